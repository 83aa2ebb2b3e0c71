"""What a guest, its user and the administrator see and say by control files, wherever the guest runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab.askedguest import AskedGuest
from tests.lab.cluster import Cluster, Program, wait_until

ALICE: Final = "1001:1001"

pytestmark = pytest.mark.lab

USER = "nobody"
# Answers each line of its input: "read FILE", "write FILE VALUE", "listen here".  Its deputy's pid comes first.
OBEYS = r"""
import os, socket, sys
print("pid", os.getpid(), flush=True)
for line in sys.stdin:
    what, path, *value = line.split()
    try:
        if what == "read":
            with open(path) as file:
                print("is", file.read().strip() or "-", flush=True)
        elif what == "listen":
            kept = socket.socket()
            kept.bind(("", 0))
            kept.listen()
            print("listening", flush=True)
        else:
            with open(path, "w") as file:
                file.write(value[0])
            print("written", flush=True)
    except OSError as error:
        print("refused", error.errno, flush=True)
"""


class Guest:
    """A program that mosrun has started on node 1, and that does what it is told."""

    def __init__(self, cluster: Cluster, *options: str, user: str | None = None) -> None:
        self.cluster = cluster
        process = cluster.lab.popen(1, ["mosrun", *options, "/usr/bin/python3", "-c", OBEYS], user=user)
        self.program = Program(cluster.lab, process)
        self.pid = int(self.answer().split()[1])

    def answer(self) -> str:
        return self.program.next_line()

    def ask(self, *words: str) -> str:
        self.program.send_line(" ".join(words))
        return self.answer()

    def read(self, file: str) -> str:
        """In its own /proc."""
        return self.ask("read", f"/proc/self/{file}").removeprefix("is ")

    def shown(self, file: str) -> str:
        """At home, by the deputy."""
        return self.cluster.run(1, f"cat /mfs/proc/{self.pid}/{file}").strip()

    def is_at(self, node: int) -> bool:
        """As it and its home say."""
        return self.read("where") == self.shown("where") == str(node)

    def wait_at(self, node: int) -> None:
        """It is not asked meanwhile: with a control file open it could not move."""
        wait_until(lambda: self.shown("where") == str(node), f"the guest runs on node {node}")
        assert self.is_at(node)


@contextlib.contextmanager
def guest_of(cluster: Cluster, *options: str, user: str | None = None) -> Iterator[Guest]:
    guest = Guest(cluster, *options, user=user)
    yield guest
    guest.program.finish()


@pytest.fixture
def guest(cluster: Cluster) -> Iterator[Guest]:
    with guest_of(cluster) as guest:
        yield guest


def strangers(cluster: Cluster, node: int) -> list[int]:
    return sorted(map(int, cluster.run(node, "ls /mfs/proc/hpc/remote").split()))


def wait_strangers(cluster: Cluster, node: int, count: int) -> list[int]:
    """So many; those of tests before may take a moment to go."""
    found: list[int] = []

    def are_there() -> bool:
        found[:] = strangers(cluster, node)
        return len(found) == count

    wait_until(are_there, f"{count} guests on node {node}")
    return found


def test_scripts_of_openmosix_run_unchanged_in_a_guest(guest: Guest) -> None:
    assert guest.is_at(0)
    assert guest.ask("write", "/proc/self/selected", "3") == "written"
    assert guest.ask("write", "/proc/self/goto", "2") == "written"
    guest.wait_at(2)
    assert guest.read("selected") == "3"
    assert guest.read("nmigs") == guest.shown("nmigs") == "1"
    assert guest.ask("read", "/proc/hpc/admin/mospe") == "is 2"
    assert int(guest.ask("read", "/proc/hpc/nodes/2/load").removeprefix("is ")) >= 0
    assert guest.ask("write", "/proc/self/migrate", "3") == "written"
    guest.wait_at(3)
    assert guest.ask("write", "/proc/self/goto", "9") == "refused 22"  # EINVAL: no such node
    assert guest.ask("write", "/proc/self/goto", "0") == "written"
    guest.wait_at(0)
    assert guest.shown("nmigs") == "3"


def test_who_has_just_been_started_can_be_moved(cluster: Cluster) -> None:
    """mosrun has hardly begun when migrate asks."""
    where = cluster.run(
        1,
        "mosrun sleep 1000 > /dev/null & status=0; migrate $! 2 || status=$?; cat /mfs/proc/$!/where; kill $!; wait; exit $status",
    )
    assert where.strip() == "2"


def test_what_a_dump_would_stumble_over_is_said_before(cluster: Cluster) -> None:
    guest, place = AskedGuest(cluster), cluster.fresh_dir(1).native

    def why() -> str:
        return cluster.run(1, f"cat /mfs/proc/{guest.pid}/cantmove").strip()

    control = guest.ask("os.open('/proc/self/nmigs', 0)")
    assert why().startswith("has the control file /mfs/proc/")
    assert why().endswith(f"/nmigs open (descriptor {control})")
    guest.ask(f"os.close({control})")
    for node in (2, 3):
        assert why() == ""
        guest.move(node)
        removed = guest.ask(f"[os.mkdir('{place}/x'), os.open('{place}/x', 0o200000), os.rmdir('{place}/x')][1]")
        assert why() == f"has the directory {place}/x open that was removed (descriptor {removed})"
        guest.ask(f"os.close({removed})")
    assert guest.end() == "status 0"


def test_settings_are_the_guests_wherever_they_are_said(cluster: Cluster, guest: Guest) -> None:
    cluster.run(1, f"migrate {guest.pid} 2")
    assert guest.ask("write", "/proc/self/lock", "1") == "written"
    assert guest.shown("lock") == "1"
    cluster.run(1, f"echo 0 > /mfs/proc/{guest.pid}/lock")
    assert guest.read("lock") == "0"
    (body,) = wait_strangers(cluster, 2, 1)
    cluster.run(2, f"echo 4 > /mfs/proc/{body}/mignodes; echo 1 > /mfs/proc/{body}/migfilter")
    assert guest.shown("mignodes") == guest.read("mignodes") == "00000004"
    refused = cluster.try_run(1, f"migrate {guest.pid} 3")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "node 3 is none of those where it may run (migfilter)" in refused.stderr
    assert guest.ask("write", "/proc/self/migpolicy", "1") == "written"
    cluster.run(1, f"migrate {guest.pid} 3")
    assert guest.is_at(3)
    cluster.run(1, f"migrate {guest.pid} home")  # which is always allowed
    assert guest.is_at(0)


def test_home_tells_why_a_guest_elsewhere_stays(cluster: Cluster) -> None:
    with guest_of(cluster, user=USER) as guest:
        cluster.run(1, f"migrate {guest.pid} 2")
        assert guest.shown("cantmove") == ""
        assert guest.ask("listen", "here") == "listening"
        told = guest.shown("cantmove")
        assert "port" in told
        refused = cluster.try_run(1, f"migrate {guest.pid} home")
        assert (refused.returncode, refused.stderr) == (1, f"migrate: process {guest.pid} can't move: {told}\n")
        brief = cluster.run(1, f"cat /mfs/proc/{guest.pid}/cantmove", user="daemon").strip()
        assert brief == "can be reached at a port or name"


def test_who_is_here_from_elsewhere(cluster: Cluster) -> None:
    with guest_of(cluster, "-2", user=USER) as guest:
        (body,) = wait_strangers(cluster, 2, 1)
        told = dict(
            line.split("=", 1) for line in cluster.run(2, f"cat /mfs/proc/hpc/remote/{body}/identity").splitlines()
        )
        uid, gid = cluster.run(1, f"id -u {USER}; id -g {USER}").split()
        assert (told["uid"], told["gid"], told["pid"], told["nmigs"]) == (uid, gid, str(guest.pid), "1")
        assert told["command"] == "python3"
        assert cluster.run(2, f"cat /mfs/proc/hpc/remote/{body}/from").split()[0] == "1"
        stats = cluster.run(2, f"cat /mfs/proc/hpc/remote/{body}/stats")
        assert [line.split("=")[0] for line in stats.splitlines()] == [
            "utime", "cutime", "nice", "state", "vsize", "rss", "nswap", "cnswap",
        ]  # fmt: skip
        assert re.fullmatch(r"\d+( \d+){6}", cluster.run(2, f"cat /mfs/proc/hpc/remote/{body}/statm").strip())
        away = cluster.run(2, f"mps --ominfo -p {body}").splitlines()[1].split()
        home = cluster.run(1, f"mps --ominfo -p {guest.pid}").splitlines()[1].split()
        assert away[:4] == [str(body), "2", "1", "1"]  # who names a node has it locked
        assert home[:4] == [str(guest.pid), "2", "1", "1"]
        assert cluster.try_run(2, f"echo 3 > /mfs/proc/hpc/remote/{body}/goto", user=USER).returncode
        cluster.run(2, f"echo 0 > /mfs/proc/hpc/remote/{body}/goto")
        guest.wait_at(0)
        wait_strangers(cluster, 2, 0)


def test_pipes_stay_their_users(cluster: Cluster) -> None:
    """CRIU makes them as root; /dev/stdout of a shell's children is one that was there before the move."""
    directory = cluster.fresh_dir(1).native
    cluster.run(1, f"chown {ALICE} {directory}")
    script = (
        "(touch begun; until [ -e enough ]; do sleep 0.1; done; echo told > /dev/stdout; echo why >/dev/stderr) | cat"
    )
    moved = f"mosrun bash -c '{script}' > out 2> err & moved=$!; until [ -e begun ]; do sleep 0.1; done"
    told = f"cd {directory}; {moved}; migrate $moved 2 && touch enough && wait $moved && cat out err"
    assert cluster.run(1, told, user=ALICE) == "told\nwhy\n"


def test_where_mosrun_says(cluster: Cluster) -> None:
    with guest_of(cluster, "-j2-3", "-l") as guest:
        assert guest.shown("where") in ("2", "3")
        assert guest.read("lock") == "0"
    with guest_of(cluster, "-h") as guest:
        assert guest.is_at(0)
        assert guest.read("lock") == "1"
    refused = cluster.try_run(1, "mosrun -9 true")
    assert (refused.returncode, refused.stderr) == (125, "mosrun: node 9 is not in the map of this cluster\n")
    cluster.run(2, "mosctl block")
    refused = cluster.try_run(1, "mosrun -2 sleep 600")
    assert (refused.returncode, refused.stderr) == (125, "mosrun: node 2: it takes no guests now (block)\n")
    assert cluster.run(1, "mosrun -F -2 echo here") == "here\n"
    cluster.run(2, "mosctl noblock")
    assert cluster.run(1, "mosrun -2 sh -c 'exit 7' || echo $?") == "7\n"
    kept = "echo 1 > /mfs/proc/$$/lock; echo 3 > /mfs/proc/$$/selected; mosrun cat /proc/self/lock /proc/self/selected"
    assert cluster.run(1, kept) == "1\n3\n"


def test_a_node_that_is_to_be_shut_down_sends_everybody_home(cluster: Cluster) -> None:
    with guest_of(cluster, "-2") as one, guest_of(cluster, "-2", user=USER) as other, guest_of(cluster, "-3") as third:
        wait_strangers(cluster, 2, 2)
        assert cluster.run(2, "mosctl expel").startswith("all guests have gone home")
        assert strangers(cluster, 2) == []
        assert one.is_at(0)
        assert other.is_at(0)
        assert third.is_at(3)
        refused = cluster.try_run(1, f"migrate {one.pid} 2")
        assert (refused.returncode, "it takes no guests now (block)" in refused.stderr) == (1, True)
        assert cluster.run(2, "mosctl status") == "up,stay,block\n"
        assert cluster.run(2, "mosctl noblock").startswith("from now on, ")
        cluster.run(1, f"migrate {one.pid} 2")
        assert one.is_at(2)
        assert cluster.run(1, "mosctl bring").startswith("all processes of this node are at home")
        assert one.is_at(0)
        assert third.is_at(0)
        cluster.run(1, "mosctl nolstay")


def test_who_can_not_leave_is_named(cluster: Cluster) -> None:
    with guest_of(cluster, "-2") as guest:
        assert guest.ask("listen", "here") == "listening"
        (body,) = wait_strangers(cluster, 2, 1)
        refused = cluster.try_run(2, "mosctl expel")
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"mosctl: some guests can't leave, and none may come: {body} (")
        assert strangers(cluster, 2) == [body]
        cluster.run(2, "mosctl noblock")
