"""Locks that hold across nodes: flock and POSIX locks, against each other and against native programs."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab

HOLD = """
import fcntl, os, sys
fd = os.open("{path}", os.O_RDWR | os.O_CREAT)
{lock}
print("held", flush=True)
sys.stdin.readline()
"""
TRY = """
import fcntl, os
fd = os.open("{path}", os.O_RDWR)
try: {lock}
except BlockingIOError: print("refused")
else: print("granted")
"""
EXCLUSIVE = {"flock": "fcntl.flock(fd, fcntl.LOCK_EX | {nb})", "posix": "fcntl.lockf(fd, fcntl.LOCK_EX | {nb}, 10, 5)"}


@pytest.mark.parametrize("kind", ["flock", "posix"])
def test_a_counter_under_a_lock_on_three_nodes_loses_nothing(cluster: Cluster, kind: str) -> None:
    here = cluster.fresh_dir(2)
    paths = {1: here.remote, 2: here.native, 3: here.remote}
    programs = [cluster.start_program(n, "counter.py", f"{p}/counter", "120", kind) for n, p in paths.items()]
    for program in programs:
        program.wait_success(timeout_s=240)
    assert cluster.run(3, f"cat {here.remote}/counter") == "360"


@pytest.mark.parametrize("kind", ["flock", "posix"])
def test_who_holds_excludes_the_others_until_it_ends(cluster: Cluster, kind: str) -> None:
    here = cluster.fresh_dir(2)
    lock = EXCLUSIVE[kind]
    attempt = TRY.format(path="{}/l", lock=lock.format(nb="fcntl.LOCK_NB"))
    holder = cluster.start_python(1, HOLD.format(path=f"{here.remote}/l", lock=lock.format(nb="0")))
    holder.wait_line("held")
    for node, path in ((1, here.remote), (2, here.native), (3, here.remote)):
        assert cluster.python(node, attempt.format(path)) == "refused\n", f"node {node}"
    waiter = cluster.start_python(3, HOLD.format(path=f"{here.remote}/l", lock=lock.format(nb="0")))
    assert not waiter.has_line(within_s=0.5)
    holder.kill()  # a killed program's locks end with it
    waiter.wait_line("held")
    assert cluster.python(1, attempt.format(here.remote)) == "refused\n"
    waiter.finish()
    # flock: a close is told to the owner a moment after it has returned (docs/LIMITS.md)
    wait_until(lambda: cluster.python(1, attempt.format(here.remote)) == "granted\n", "the lock is free")


def test_native_locks_hold_against_remote_ones(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    for lock in EXCLUSIVE.values():
        holder = cluster.start_python(2, HOLD.format(path=f"{here.native}/l", lock=lock.format(nb="0")))
        holder.wait_line("held")
        attempt = TRY.format(path=f"{here.remote}/l", lock=lock.format(nb="fcntl.LOCK_NB"))
        assert cluster.python(1, attempt) == "refused\n"
        holder.finish()
        assert cluster.python(1, attempt) == "granted\n", "a native lock is gone when its program is"


def test_a_waiting_lock_can_be_interrupted(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    for kind in ("flock", "posix"):
        lock = EXCLUSIVE[kind]
        holder = cluster.start_python(1, HOLD.format(path=f"{here.remote}/l", lock=lock.format(nb="0")))
        holder.wait_line("held")
        script = f"""
import fcntl, os, signal
class Alarm(Exception): pass
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM, ring)
fd = os.open("{here.remote}/l", os.O_RDWR)
signal.alarm(1)
try: {lock.format(nb="0")}
except Alarm: print("interrupted")
"""
        assert cluster.python(3, script, timeout_s=30) == "interrupted\n"
        holder.finish()
        attempt = TRY.format(path=f"{here.remote}/l", lock=lock.format(nb="fcntl.LOCK_NB"))
        wait_until(
            lambda attempt=attempt: cluster.python(1, attempt) == "granted\n",
            "the interrupted wait left no lock behind",
        )


def test_getlk_names_the_range(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    lock = EXCLUSIVE["posix"]
    holder = cluster.start_python(1, HOLD.format(path=f"{here.remote}/l", lock=lock.format(nb="0")))
    holder.wait_line("held")
    script = f"""
import fcntl, os, struct
fd = os.open("{here.remote}/l", os.O_RDWR)
answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
kind, _, start, length, pid = struct.unpack("hhqqi4x", answer)
print(kind == fcntl.F_WRLCK, start, length)
"""
    assert cluster.python(3, script) == "True 5 10\n"
    holder.finish()
