"""Why a process can't move, asked of real processes that hold what can't, and of those that hold what can."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from mignode.cantmove import has_another_terminal, why
from mignode.reasons import Kind
from omfs.kernel import processes
from tests.unit.holders import NAMESPACES, holding
from tests.unit.holdings import ALL_THAT_MOVES, STAYS
from tests.unit.kthreadd import is_kthreadd


def known(pid: int) -> processes.Identity:
    found = processes.identify(pid)
    assert found is not None
    return found


# ---------------------------------------------------------------- what moves


def test_what_moves(tmp_path: Path) -> None:
    """Threads, forks, a stopped one and a zombie, pipes, files, locks, memory, timers, a pty, sockets to each other."""
    with holding(ALL_THAT_MOVES, str(tmp_path)) as holder:
        assert holder.texts() == []
        assert len(processes.descendants_of(holder.identity)) == 3


def test_a_stopped_process_moves() -> None:
    with holding("ready()") as holder:
        os.kill(holder.identity.pid, signal.SIGSTOP)
        assert holder.texts() == []


# ---------------------------------------------------------------- what does not


@pytest.fixture
def shared_memory() -> Iterator[Path]:
    """A file of /dev/shm."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="omfs-") as file:
        file.truncate(4096)
        yield Path(file.name)


@pytest.mark.parametrize("what", STAYS)
def test_what_stays(what: str, tmp_path: Path, shared_memory: Path) -> None:
    setting, kind, text = STAYS[what]
    program = f"said = ''\n{setting.strip()}\nready(said)\n"
    with holding(program, str(tmp_path), str(shared_memory)) as holder:
        found = holder.why()
        assert {one.kind for one in found} == {kind}, found
        if text is not None:
            said = holder.said[0] if holder.said else ""
            assert [one.text for one in found] == [text.format(place=tmp_path, memory=shared_memory, said=said)]


# ---------------------------------------------------------------- what has an end outside


def test_a_pipe_to_outside() -> None:
    """Until nobody holds its other end; a pipe that the deputy takes along is none."""
    for end in (0, 1):
        ends = os.pipe()
        try:
            with holding("ready()", pass_fds=[ends[end]]) as holder:
                assert holder.texts() == [f"holds a pipe whose other end is outside (descriptor {ends[end]})"]
                pipe = os.readlink(f"/proc/self/fd/{ends[end]}")
                assert why(holder.identity, [*holder.relayed(), pipe]) == []
                os.close(ends[1 - end])
                assert holder.texts() == []
        finally:
            os.close(ends[end])


def test_a_unix_socket_to_outside() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, holding("ready()", pass_fds=[theirs.fileno()]) as holder:
        number = theirs.fileno()
        theirs.close()
        assert holder.texts() == [f"holds a unix socket whose other end is outside (descriptor {number})"]
        ours.close()
        assert holder.texts() == []


def test_a_unix_socket_of_a_service(tmp_path: Path) -> None:
    """Said by its name; also while the service has not accepted, and after."""
    path = f"{tmp_path}/bus"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(path)
        service.listen()
        program = "kept = socket.socket(socket.AF_UNIX); kept.connect(sys.argv[1]); ready()"
        with holding(program, path) as holder:
            assert holder.texts() == ["holds a unix socket whose other end is outside (descriptor 3)"]
            connection, _ = service.accept()
            with connection:
                assert holder.texts() == [f"holds a unix socket whose other end is outside (descriptor 3): {path}"]


def test_a_unix_connection_that_waits_inside(tmp_path: Path) -> None:
    """Only the listener, which others could find, keeps it."""
    program = """
service = socket.socket(socket.AF_UNIX); service.bind(sys.argv[1]); service.listen()
kept = socket.socket(socket.AF_UNIX); kept.connect(sys.argv[1])
ready()"""
    with holding(program, f"{tmp_path}/own") as holder:
        assert holder.texts() == [f"can be reached at the unix socket {tmp_path}/own (descriptor 3)"]


@pytest.mark.parametrize("kind", ["TCP", "UDP"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_to_outside(kind: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM) as service:
        service.bind((host, 0))
        if kind == "TCP":
            service.listen()
        port = service.getsockname()[1]
        program = f"kept = socket.socket({int(family)}, {int(service.type)}); kept.connect(('{host}', {port})); ready()"
        with holding(program) as holder:
            shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            assert holder.texts() == [f"holds a {kind} connection with {shown} (descriptor 3)"]


def test_an_ipv4_connection_of_ipv6_sockets_inside() -> None:
    program = """
service = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
there = socket.create_connection(("127.0.0.1", service.getsockname()[1]))
here, _ = service.accept()
service.close()
ready()"""
    with holding(program) as holder:
        assert holder.texts() == []


def test_a_terminal_of_others() -> None:
    """Open, and as the controlling one; not if the deputy takes it along."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    try:
        program = "kept = os.open(sys.argv[1], os.O_RDWR | int(sys.argv[2])); ready()"
        with holding(program, name, str(os.O_NOCTTY)) as holder:
            assert holder.texts() == [f"has the terminal {name} of others open (descriptor 3)"]
        with holding(program, name, "0") as holder:
            assert holder.texts() == [
                f"has the controlling terminal {name} of others",
                f"has the terminal {name} of others open (descriptor 3)",
            ]
            assert why(holder.identity, [*holder.relayed(), name]) == []
        with holding(
            f"kept = os.open('{name}', os.O_RDWR); os.close(kept); kept = open('/dev/tty'); ready()"
        ) as holder:
            assert holder.texts() == [f"has the controlling terminal {name} of others"]
            assert why(holder.identity, [*holder.relayed(), name]) == []
            relayed, pids = [*holder.relayed(), "/dev/pts/1000000"], (holder.identity.pid,)
            assert [one.text for one in why(holder.identity, relayed)] == [
                f"has the controlling terminal {name} of others", "has /dev/tty open (descriptor 3)",
            ]  # fmt: skip
            assert has_another_terminal(pids, relayed)
            assert not has_another_terminal(pids, [*relayed, name])
            assert not has_another_terminal(pids, holder.relayed())
    finally:
        os.close(master)
        os.close(slave)


def test_a_session_of_others() -> None:
    with holding("ready()", leads=False) as holder:
        leader = os.getsid(holder.identity.pid)
        which = f"the session of process {leader}, which stays" if leader else "a session of outside this PID namespace"
        assert holder.texts() == [f"belongs to {which}"]


def test_a_pidfd_of_outside() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        with holding("ready()", pass_fds=[pidfd]) as holder:
            assert holder.texts() == [f"holds a pidfd of a process outside (descriptor {pidfd})"]
    finally:
        os.close(pidfd)


def test_a_file_from_before(tmp_path: Path) -> None:
    """A descriptor that came from another tree of mounts can't be opened again by its path."""
    with open(tmp_path / "file", "w") as file, holding("ready()", pass_fds=[file.fileno()]) as holder:
        number = file.fileno()
        assert holder.texts() == [f"has {tmp_path}/file open that is outside its tree of files (descriptor {number})"]


def test_a_block_device() -> None:
    for device in sorted(Path("/dev").iterdir()):
        if device.is_block_device():
            with holding("kept = os.open(sys.argv[1], os.O_PATH); ready()", str(device)) as holder:
                assert holder.texts() == [f"has the device {device} open (descriptor 3)"]
            break


def test_a_child_is_named() -> None:
    program = "ready(forked(lambda: globals().update(kept=open('/dev/kmsg', 'wb', 0))))"
    with holding(program) as holder:
        (child,) = processes.children_of(holder.identity)
        assert holder.texts() == [f"has the device /dev/kmsg open (descriptor 5 of process {child.pid})"]


@pytest.mark.parametrize("unshared", ["0x10000000", "0x20000000"], ids=["user", "pid"])
def test_a_child_in_another_namespace(unshared: str) -> None:
    kind = {"0x10000000": "user", "0x20000000": "pid"}[unshared]
    program = f"forked(lambda: (libc.unshare({unshared}), forked(lambda: None))); ready()"
    with holding(program) as holder:
        assert holder.kinds() == {Kind.NAMESPACE}
        child = processes.descendants_of(holder.identity)[-1]
        said = next(text for text in holder.texts() if str(child.pid) in text)
        assert said.startswith("is in another namespace: ")
        assert kind in said.removesuffix(f" (process {child.pid})").partition(": ")[2].split()


def test_system_v_memory_of_the_machine() -> None:
    """With an IPC namespace of its own it moves (above)."""
    program = """
shared = libc.shmget(0, 4096, 0o1600)
libc.shmat.restype = ctypes.c_void_p
assert libc.shmat(shared, None, 0)
libc.shmctl(shared, 0, None)
ready()"""
    with holding(program, namespaces=[one for one in NAMESPACES if one != "--ipc"]) as holder:
        assert holder.texts() == ["shares System V memory with this machine"]


# ---------------------------------------------------------------- whom it is about


def test_a_filter_of_ours_is_none() -> None:
    program = STAYS["a filter of system calls"][0].strip()
    with holding(f"{program}\nready()") as holder:
        assert holder.why(own_filters=1) == []


def test_who_is_no_guest() -> None:
    (reason,) = why(known(os.getpid()))
    assert reason[:2] == (Kind.NO_GUEST, "was not started by mosrun")


def test_who_has_ended() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    identity = known(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert [one.text for one in why(identity)] == ["has ended"]
    os.waitpid(pid, 0)
    assert [one.text for one in why(identity)] == ["has ended"]


def test_a_part_of_the_kernel() -> None:
    """Where they are shown; in a container none is."""
    for pid in processes.processes():
        found = processes.identify(pid)
        parent = processes.parent_of(found) if found is not None else None
        if found is not None and parent is not None and is_kthreadd(parent):
            assert [one.kind for one in why(found)] in ([Kind.KERNEL_THREAD], [Kind.ENDED], [])
            break


def test_a_group_that_changes_all_the_time() -> None:
    """While it forks, opens, closes and ends: an answer each time, and never a wrong one."""
    program = """
def storm():
    while True:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            file = open("/proc/self/statm")
            thread = threading.Thread(target=file.read)
            thread.start(); thread.join()
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        os.wait()
for _ in range(3):
    if os.fork() == 0:
        storm()
ready()"""
    with holding(program) as holder:
        for _ in range(10):
            assert holder.texts() == []


def test_pipes_that_are_closed_by_an_execve() -> None:
    """As perl's and Python's, by which they learn whether a child could execute.

    The child has lost its end before the kernel has closed it.  It is met in that moment about once in sixty looks.
    """
    program = """
def storm():
    while True:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.execv("/bin/true", ["true"])
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        os.wait()
for _ in range(4):
    if os.fork() == 0:
        storm()
ready()"""
    with holding(program) as holder:
        for _ in range(200):
            assert holder.texts() == []


# ---------------------------------------------------------------- the page about it

PAGE: Final = Path(__file__).parent.parent.parent / "docs" / "migration.md"


def test_the_page_names_tests_that_there_are() -> None:
    """And each case of what stays has its row."""
    here = Path(__file__).parent
    known = {
        name: set(re.findall(r"^(?:async )?def (test_\w+)", (here / name).read_text(), re.MULTILINE))
        for name in ("test_cantmove.py", "test_eligible.py", "test_lasting.py")
    }
    cells = [line.rstrip(" |").rpartition("|")[2] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    named = [name.strip() for cell in cells for name in cell.split(", ")]
    rows = [name for name in named if name.startswith(("test_", "["))]
    assert len(rows) > 80
    for name in rows:
        file, _, function = name.rpartition("::")
        assert function in known[file or "test_cantmove.py"] or name.strip("[]") in STAYS, name
    assert {f"[{case}]" for case in STAYS} - set(rows) == set()


def test_the_page_names_what_is_really_moved() -> None:
    """By one guest that holds all of it."""
    text = PAGE.read_text()
    rows = text[text.index("| what | moved |") : text.index("## What stays")].splitlines()[2:]
    named = [name.removesuffix(" (IPv4)") for row in rows if row for name in row.split("|")[2].strip().split(", ")]
    program = (Path(__file__).parent.parent / "lab" / "programs" / "holdsall.py").read_text()
    held = re.findall(r"^@thing\ndef (\w+)", program, re.MULTILINE)
    assert sorted(filter(None, named)) == sorted(set(held) - {"files_of_where_it_runs_are_the_nodes_own"})
