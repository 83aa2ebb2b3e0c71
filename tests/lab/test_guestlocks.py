"""A guest's file locks go with it, and nobody else ever has them: rivals want them all the time, at home and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

import pytest

from tests.lab.askedguest import ALICE, AskedGuest
from tests.lab.cluster import PROGRAMS, Cluster, Place, Program, wait_until

HOME = 1
NATIVE = ((HOME, "try"), (HOME, "open"), (HOME, "wait"))
REMOTE = ((2, "try"), (3, "wait"))
LOCK = "__import__('fcntl').lockf(heard[0], {what}, {length}, {start})"
FLOCK = "__import__('fcntl').flock(heard[{which}], {what})"
OFD = "__import__('fcntl').fcntl(heard[0], 37, __import__('struct').pack('hhqqi', {what}, 0, 0, 10, 0)) and None"
LOCKS = {
    "posix": (LOCK.format(what=2, length=10, start=0), LOCK.format(what=8, length=10, start=0)),
    "flock": (FLOCK.format(which=0, what=2), FLOCK.format(which=0, what=8)),
    "ofd": (OFD.format(what=1), OFD.format(what=2)),  # F_WRLCK, F_UNLCK
}
"""How it is locked and unlocked."""
DIED = "until ! [ -e /run/omfs/fault ] && ! kill -0 {pid} 2>/dev/null; do sleep 0.02; done; mignode"


class Rivals:
    """Of the lock of the first ten bytes of a file, or of a database; *kind*: as rival.py has it."""

    def __init__(self, cluster: Cluster, place: Place, *whose: tuple[int, str], kind: str = "posix") -> None:
        self._programs = {
            (node, how): cluster.start_program(
                node, "rival.py", f"{place.native if node == place.owner else place.remote}/file", how, kind
            )
            for node, how in whose
        }
        for program in self._programs.values():
            program.wait_line("begun")

    def have_nothing(self) -> None:
        assert [whose for whose, program in self._programs.items() if program.has_line(0)] == []

    def get_it(self) -> None:
        """One after the other, now that it is free."""
        for program in self._programs.values():
            program.wait_line("got")

    def end(self) -> None:
        for program in self._programs.values():
            program.kill()


@contextmanager
def rivals(cluster: Cluster, place: Place, *whose: tuple[int, str], kind: str = "posix") -> Iterator[Rivals]:
    wanting = Rivals(cluster, place, *whose, kind=kind)
    try:
        yield wanting
    finally:
        wanting.end()


def locked(cluster: Cluster, place: Place, lock: str = LOCKS["posix"][0]) -> AskedGuest:
    """A guest that has the lock of a file of *place*."""
    guest = AskedGuest(cluster)
    path = f"{place.native if place.owner == HOME else place.remote}/file"
    assert guest.ask(f"heard.append(os.open({path!r}, os.O_RDWR | os.O_CREAT))") == "None"
    assert guest.ask(lock) == "None"
    return guest


@pytest.mark.parametrize("owner", [HOME, 3])
def test_a_lock_goes_wherever_its_guest_goes(cluster: Cluster, owner: int) -> None:
    place = cluster.fresh_dir(owner)
    guest = locked(cluster, place)
    with rivals(cluster, place, *(NATIVE if owner == HOME else ()), *REMOTE) as wanting:
        for node in (2, 3, "home", 2, "home", 3):
            guest.move(node)
            wanting.have_nothing()
            assert guest.ask(LOCK.format(what=2, length=5, start=100)) == "None"  # as its own as before
            assert guest.ask(LOCK.format(what=8, length=5, start=100)) == "None"
        assert guest.ask(LOCK.format(what=8, length=10, start=0)) == "None"
        wanting.get_it()
    assert guest.end() == "status 0"


def test_a_lock_to_read_goes_too(cluster: Cluster) -> None:
    """Its process need not wait for it where it comes to."""
    place = cluster.fresh_dir(HOME)
    guest = locked(cluster, place, LOCK.format(what=1, length=10, start=0))
    with rivals(cluster, place, *NATIVE) as wanting:
        for node in (2, "home"):
            guest.move(node)
            wanting.have_nothing()
        assert guest.ask(LOCK.format(what=8, length=10, start=0)) == "None"
        wanting.get_it()
    assert guest.end() == "status 0"


@pytest.mark.parametrize("owner", [HOME, 3])
@pytest.mark.parametrize("kind", ["flock", "ofd"])
def test_a_lock_of_an_open_file_goes_wherever_its_guest_goes(cluster: Cluster, kind: str, owner: int) -> None:
    """It is its own there: it can be given back and taken again."""
    place = cluster.fresh_dir(owner)
    lock, unlock = LOCKS[kind]
    guest = locked(cluster, place, lock)
    with rivals(cluster, place, *(NATIVE if owner == HOME else ()), *REMOTE, kind=kind) as wanting:
        for node in (2, 3, "home", 2, "home", 3):
            guest.move(node)
            wanting.have_nothing()
            assert guest.ask(lock) == "None"
        assert guest.ask(unlock) == "None"
        wanting.get_it()
    assert guest.end() == "status 0"


def test_a_lock_of_an_open_file_that_two_processes_share(cluster: Cluster) -> None:
    """It ends with the last of them; another open file of the guest has a lock of its own, and readers may join."""
    place = cluster.fresh_dir(HOME)
    guest = locked(cluster, place, "None")  # by a program that has ended, as a shell does it
    assert guest.ask("subprocess.call(['flock', '-s', str(heard[0])], pass_fds=[heard[0]])") == "0"
    assert guest.ask(f"heard.append(os.open('{place.native}/file', os.O_RDWR))") == "None"
    assert guest.ask(FLOCK.format(which=1, what=1)) == "None"
    assert guest.ask("heard.append(os.dup(heard[0]))") == "None"
    assert guest.ask("heard.append(subprocess.Popen(['sleep', '1000'], pass_fds=[heard[0]]))") == "None"
    with rivals(cluster, place, *NATIVE, *REMOTE, kind="flock") as wanting:
        for node in (2, 3, "home"):
            guest.move(node)
            cluster.run(3, f"flock -sn {place.remote}/file true")
            wanting.have_nothing()
        assert guest.ask("[os.close(heard[0]), os.close(heard[2])]") == "[None, None]"
        assert guest.ask(FLOCK.format(which=1, what=8)) == "None"
        guest.move(2)
        wanting.have_nothing()
        assert guest.ask("heard[3].kill() or heard[3].wait()") == "-9"
        wanting.get_it()
    assert guest.end() == "status 0"


def test_it_stays_where_no_descriptor_leads_to_the_locked_file(cluster: Cluster) -> None:
    """As long as that is on its way in a socket."""
    guest = locked(cluster, cluster.fresh_dir(HOME), LOCKS["flock"][0])
    assert guest.ask("heard.extend(__import__('socket').socketpair())") == "None"
    assert guest.ask("__import__('socket').send_fds(heard[1], [b'x'], [heard[0]])") == "1"
    assert guest.ask("os.close(heard[0])") == "None"
    done = cluster.lab.exec(HOME, ["migrate", str(guest.pid), "2"])
    assert done.returncode == 1
    assert "none of its descriptors leads to" in done.stderr
    assert guest.ask("files.extend(__import__('socket').recv_fds(heard[2], 1, 1))") == "None"
    guest.move(2)
    assert guest.end() == "status 0"


@pytest.mark.parametrize(("kind", "owner"), [("flock", HOME), ("ofd", 3)])
def test_a_counter_under_a_lock_loses_nothing_while_its_guests_move(cluster: Cluster, kind: str, owner: int) -> None:
    """Also as they wait for it, and as they have just closed the file."""
    place = cluster.fresh_dir(owner)
    cluster.run(owner, f"touch {place.native}/file; chmod 666 {place.native}/file")
    path = f"{place.native if owner == HOME else place.remote}/file"
    by = f"python3 {PROGRAMS}/underlock.py"
    guests = [cluster.lab.popen(HOME, f"exec mosrun {by} {path} {kind}", user=ALICE) for _ in range(2)]
    everybody = [*guests, cluster.lab.popen(owner, f"exec {by} {place.native}/file {kind}")]
    try:
        pids = [int(said(one)) for one in everybody]
        for to in ("2", "home", "3"):
            for pid in pids[: len(guests)]:
                cluster.lab.exec(HOME, ["migrate", str(pid), to], user=ALICE)  # or not: counted is in any case
    finally:
        counts = [one.communicate("", timeout=120)[0] for one in everybody]
    assert sum(map(int, counts)) == int(cluster.run(owner, f"cat {place.native}/file"))


def said(program: Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline()


def test_a_transaction_goes_on(cluster: Cluster) -> None:
    place = cluster.fresh_dir(HOME)
    guest = AskedGuest(cluster)
    run = "heard[0].execute({!r}).fetchall()"
    opening = f"heard.append(__import__('sqlite3').connect('{place.native}/file', isolation_level=None))"
    assert guest.ask(opening) == "None"
    assert guest.ask(run.format("create table numbers (number integer)")) == "[]"
    assert guest.ask(run.format("begin immediate")) == "[]"
    with rivals(cluster, place, (HOME, "sqlite"), (3, "sqlite")) as wanting:
        for node in (2, 3, "home", 2, "home"):
            assert guest.ask(run.format("insert into numbers values (1)")) == "[]"
            guest.move(node)
            wanting.have_nothing()
        assert guest.ask(run.format("commit")) == "[]"
        wanting.get_it()
    assert guest.ask(run.format("select count(*) from numbers")) == "[(5,)]"
    assert guest.ask(run.format("pragma integrity_check")) == "[('ok',)]"
    assert guest.end() == "status 0"


def die_at(cluster: Cluster, guest: AskedGuest, node: int, point: str, to: int) -> None:
    """*node*'s mignode is killed at that point of a move (faultpoints.py), and started again."""
    pid = int(cluster.ask(node, "mignode")["pid"])
    cluster.run(node, f"echo {point} kill > /run/omfs/fault")
    moving = cluster.lab.popen(HOME, ["migrate", str(guest.pid), str(to)])
    cluster.run(node, DIED.format(pid=pid))
    moving.communicate(timeout=120)


def wait_alone(cluster: Cluster, where: int) -> None:
    """The one init of a guest is at this node."""
    inits = "pgrep -xc omfs-guest || true"
    found: list[int] = []

    def is_alone() -> bool:
        found[:] = [int(cluster.run(node, inits)) for node in (1, 2, 3)]
        return found == [int(node == where) for node in (1, 2, 3)]

    wait_until(is_alone, f"the guest at node {where}")


def test_a_lock_stays_where_its_guest_stays(cluster: Cluster) -> None:
    """mignode dies before the commit and after it, as the guest leaves the file's node and as it comes back."""
    place = cluster.fresh_dir(HOME)
    guest = locked(cluster, place)
    assert guest.ask(LOCKS["flock"][0]) == "None"
    with (
        rivals(cluster, place, *NATIVE, *REMOTE) as wanting,
        rivals(cluster, place, *NATIVE, (3, "wait"), kind="flock") as wanting_file,
    ):
        for node, point, to, where in (
            (HOME, "barred", 2, HOME), (HOME, "committed", 2, 2), (HOME, "held", HOME, 2),
            (HOME, "let-run", HOME, HOME),
        ):  # fmt: skip
            die_at(cluster, guest, node, point, to)
            assert guest.ask(LOCK.format(what=2, length=5, start=100)) == "None", point
            wait_alone(cluster, where)
            wanting.have_nothing()
            wanting_file.have_nothing()
        assert guest.ask(LOCK.format(what=8, length=10, start=0)) == "None"
        wanting.get_it()
        wanting_file.have_nothing()
        assert guest.ask(LOCKS["flock"][1]) == "None"
        wanting_file.get_it()
    assert guest.end() == "status 0"


def test_it_stays_where_a_debugger_has_the_file_open(cluster: Cluster) -> None:
    place = cluster.fresh_dir(HOME)
    guest = locked(cluster, place)
    code = (
        "import ctypes, os, sys, time\n"
        f"file = open('{place.native}/file')\n"
        "if not os.fork():\n    ctypes.CDLL(None).ptrace(0, 0, 0, 0)\n    print('traced', flush=True)\n"
        "sys.stdin.read()"
    )
    tracer: Program = cluster.start_python(HOME, code)
    tracer.wait_line("traced")
    done = cluster.lab.exec(HOME, ["migrate", str(guest.pid), "2"])
    assert done.returncode == 1
    assert "is being traced" in done.stderr
    tracer.finish()
    guest.move(2)
    assert guest.end() == "status 0"
