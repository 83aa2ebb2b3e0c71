"""Guests where all nodes have dfsa=0: no file call is the local kernel's alone, and where they run changes nothing.

And what happens where nodes differ in it.
"""

from __future__ import annotations

import re

import pytest

from tests.lab.askedguest import AskedGuest
from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab

LAB_OPTIONS = ("--dfsa", "0")
NODES = (1, 2, 3)
FILE = "/srv/shared/file"
LOCKS = (
    "__import__('fcntl').flock({file}, {how})",
    "__import__('fcntl').lockf({file}, {how}, 10, 100)",
    "__import__('fcntl').fcntl({file}, 37, __import__('struct').pack('hhqqi', {kind}, 0, 0, 10, 0)) and None",  # OFD
)
TRIES = f"""
import errno
for lock in {[lock.format(file="open('FILE', 'r+')", how=6, kind=1) for lock in LOCKS]}:
    try:
        print(eval(lock))
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_files_of_all_nodes_from_everywhere(cluster: Cluster) -> None:
    """By path and by descriptors that stay open, of home, of where it runs and of a third node, by one user's rights."""
    for node in NODES:
        cluster.run(node, f"mkdir -m 777 /srv/shared; echo begun-{node} > {FILE}; chmod 666 {FILE}")
        cluster.run(node, f"echo secret > {FILE}.roots; chmod 600 {FILE}.roots")
    guest = AskedGuest(cluster)
    guest.ask(f"files.extend(open('/mfs/%d{FILE}' % node, 'r+') for node in {NODES})")
    for node in NODES:
        assert guest.ask(f"repr(files[{node - 1}].read())") == repr(f"begun-{node}\n")
    written = ""
    for turn, at in enumerate((2, 3, "home", 3, 2)):
        guest.move(at)
        assert guest.where() == (0 if at == "home" else at)
        line = f"{turn} on {at}\n"
        written += line
        for node in NODES:
            assert guest.ask(f"files[{node - 1}].write({line!r}) and files[{node - 1}].flush()") == "None"
            there = cluster.run(node, f"cat {FILE}")
            assert there == f"begun-{node}\n{written}"
            assert guest.ask(f"repr(open('/mfs/{node}{FILE}').read())") == repr(there)
            assert guest.ask(f"open('/mfs/{node}{FILE}.roots')") == "EACCES"
        assert guest.ask(f"repr(open('{FILE}').read())") == repr(f"begun-1\n{written}"), "its / is home's"
        cluster.run(2, f"echo native-{turn} > {FILE}.new")
        assert guest.ask(f"open('/mfs/2{FILE}.new').read().strip()") == f"native-{turn}"
        systems = guest.ask(f"len({{os.stat(p).st_dev for p in ['/mfs', *('/mfs/%d{FILE}' % n for n in {NODES})]}})")
        assert systems == "1", "all of /mfs is the one FUSE file system, also the node's own tree"
    assert guest.end() == "status 0"


def test_locks_go_along(cluster: Cluster) -> None:
    """Also those of files of the node where it is, which it has through the mount like all others."""
    paths = [f"/mfs/{node}/tmp/locked" for node in NODES]

    def others_get() -> list[set[str]]:
        tries = TRIES.replace("FILE", "/tmp/locked")
        return [set(cluster.run(node, f"python3 - <<'END'\n{tries}\nEND").split()) for node in NODES]

    guest = AskedGuest(cluster)
    guest.ask(f"files.extend(open(path, 'w+') for path in {paths})")
    for lock in LOCKS:
        for number in range(len(NODES)):
            assert guest.ask(lock.format(file=f"files[{number}]", how=2, kind=1)) == "None"
    for node in (2, 3, "home"):
        guest.move(node)
        assert others_get() == [{"EAGAIN"}] * 3
    for lock in LOCKS:
        for number in range(len(NODES)):
            assert guest.ask(lock.format(file=f"files[{number}]", how=8, kind=2)) == "None"
    assert others_get() == [{"None"}] * 3
    assert guest.end() == "status 0"


def test_nodes_that_differ_do_not_get_guests_of_each_other(cluster: Cluster) -> None:
    """Also where only the mount's options say so, and omfs.toml another thing."""
    guest = AskedGuest(cluster)
    assert guest.ask("os.getcwd()")
    cluster.run(3, "umount /mfs; mount -o dfsa=1 /mfs")
    try:
        assert "DFSA is enabled" in cluster.run(3, "cat /mfs/proc/hpc/admin/version")
        refused = cluster.try_run(1, f"migrate {guest.pid} 3", user=guest.user)
        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        assert re.search(r"node 3 is mounted with dfsa=1, node 1 with dfsa=0: use the same on all nodes", line), line
        assert guest.where() == 0
        guest.move(2)
        assert guest.where() == 2
        assert cluster.try_run(1, f"migrate {guest.pid} 3", user=guest.user).returncode == 1
        assert guest.where() == 2
    finally:
        cluster.run(3, "umount /mfs; mount /mfs")
    guest.move(3)
    assert guest.where() == 3
    assert guest.end() == "status 0"
