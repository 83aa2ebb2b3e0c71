"""sec=none between nodes: the whole road without TLS, with sendfile from the owner's page cache."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab

LAB_OPTIONS = ("--sec", "none")
LAB_NODES = 2


def test_data_and_locks_without_tls(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    assert "sec=none" in cluster.log(1), "it is said aloud"
    made = cluster.run(
        1, f"head -c 64M /dev/urandom > /srv/there; cp /srv/there {here.remote}/; sha256sum < /srv/there"
    )
    assert cluster.run(2, f"sha256sum < {here.native}/there") == made
    # A tmpfs, for the owner sends by sendfile what it can see is in memory, and overlays don't let it see.
    cluster.run(2, f"mkdir {here.native}/ram; mount -t tmpfs ram {here.native}/ram")
    for place in ("", "ram/"):
        back = cluster.run(2, f"cd {here.native}; head -c 64M /dev/urandom > {place}back; sha256sum < {place}back")
        assert cluster.run(1, f"cp {here.remote}/{place}back /srv/back; sha256sum < /srv/back") == back
    holder = cluster.start_python(
        1,
        f"import fcntl, sys; f = open('{here.remote}/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.readline()",
    )
    holder.wait_line("held")
    assert cluster.try_run(2, f"flock -n {here.native}/lock true").returncode == 1
    holder.finish()
