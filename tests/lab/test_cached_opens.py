"""Files that are opened from the cache: without a message, and yet as if the owner knew of every open."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster, Place, Program, wait_until

pytestmark = pytest.mark.lab

ALICE, BOB = "1001:1001", "1002:1002"
HOLD = """
import sys
file = open({path!r}, "rb", buffering=0)
print(len(file.read(5)), flush=True)
sys.stdin.readline()
file.seek(0)
print(len(file.read()), flush=True)
"""


LOCK = """
import fcntl, sys
file = open({path!r})
fcntl.flock(file, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.readline()
"""


def read_half(cluster: Cluster, path: str, user: str | None = None) -> Program:
    """A program on node 1 that has the file open, and reads it to its end when it is told to go on."""
    program = cluster.start_python(1, HOLD.format(path=path), user=user)
    program.wait_line("5")
    return program


def opens(cluster: Cluster, node: int) -> tuple[int, int]:
    """(asked of owners, answered by the mount)."""
    counters = cluster.status(node)["counters"]
    return counters["asked_opens"], counters["answered_opens"]


def warm(cluster: Cluster, node: int, path: str, user: str | None = None) -> None:
    """Until the file is opened from the cache: its data are cached some time after the last change."""

    def is_answered_here() -> bool:
        before = opens(cluster, node)
        assert cluster.try_run(node, f"cat {path} > /dev/null", user=user).returncode == 0
        asked, answered = opens(cluster, node)
        return answered > before[1] and asked == before[0]

    wait_until(is_answered_here, f"{path} is opened from the cache")


@pytest.fixture
def here(cluster: Cluster) -> Place:
    place = cluster.fresh_dir(2)
    cluster.run(2, f"cd {place.native}; chmod 755 .; head -c 300000 /dev/urandom > file; chmod 644 file")
    return place


@pytest.mark.parametrize("remover", [1, 2, 3])
@pytest.mark.parametrize("how", ["rm file", "echo new > other; mv other file"])
def test_a_file_that_goes_lives_on_for_who_has_it_open(cluster: Cluster, here: Place, remover: int, how: str) -> None:
    """Removed on the same node, natively on the owner's, and on a third one; its pages are dropped besides."""
    warm(cluster, 1, f"{here.remote}/file")
    program = read_half(cluster, f"{here.remote}/file")
    cluster.run(remover, f"cd {here.native if remover == 2 else here.remote}; {how}")
    cluster.run(1, "echo 3 > /proc/sys/vm/drop_caches")
    program.send_line("go on")
    program.wait_line("300000")
    program.finish()


def test_who_may_not_open_it_may_not_from_the_cache(cluster: Cluster, here: Place) -> None:
    cluster.run(2, f"cd {here.native}; chown 1001:1001 file; chmod 600 file")
    path = f"{here.remote}/file"
    warm(cluster, 1, path, user=ALICE)
    assert cluster.try_run(1, f"cat {path}", user=BOB).returncode != 0
    cluster.run(3, f"chmod 000 {path}")
    assert cluster.try_run(1, f"cat {path}", user=ALICE).returncode != 0


def test_its_mode_may_change_while_it_is_open(cluster: Cluster, here: Place) -> None:
    cluster.run(2, f"cd {here.native}; chown 1001:1001 file")
    path = f"{here.remote}/file"
    warm(cluster, 1, path, user=BOB)
    program = read_half(cluster, path, user=BOB)
    cluster.run(1, f"chmod 600 {path}")
    cluster.run(1, "echo 3 > /proc/sys/vm/drop_caches")
    program.send_line("go on")
    program.wait_line("300000")
    program.finish()
    assert cluster.try_run(1, f"cat {path}", user=BOB).returncode != 0


def test_locks_of_such_a_file_are_the_owners(cluster: Cluster, here: Place) -> None:
    warm(cluster, 1, f"{here.remote}/file")
    assert cluster.try_run(1, f"flock -xn {here.remote}/file true").returncode == 0
    holder = cluster.start_python(1, LOCK.format(path=f"{here.remote}/file"))
    holder.wait_line("held")
    assert cluster.try_run(2, f"flock -xn {here.native}/file true").returncode != 0
    holder.send_line("end")
    holder.finish()
    wait_until(
        lambda: cluster.try_run(2, f"flock -xn {here.native}/file true").returncode == 0, "the lock ends with the file"
    )
