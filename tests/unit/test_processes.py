"""Real processes: threads, children, zombies, fork and exec storms, pids used again, other PID namespaces."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from omfs.kernel import processes as ps
from omfs.kernel.processes import Identity
from omfs.kernel.procfs import AT_RANDOM, ProcessStat, parse_stat, parse_status
from tests.unit.kthreadd import is_kthreadd

HERE: Final = Path(__file__).parent.parent.parent
NOBODY: Final = 65534


def own() -> Identity:
    identity = ps.identify(os.getpid())
    assert identity is not None
    return identity


def known(pid: int) -> Identity:
    identity = ps.identify(pid)
    assert identity is not None
    return identity


def state_of(pid: int) -> str:
    return parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).state


class Talking:
    """A program that says a line when it has got to a point and waits for one to go on."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )

    @property
    def identity(self) -> Identity:
        return known(self.process.pid)

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.wait()
        return line.decode().strip()

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()


@contextmanager
def talking(*command: str) -> Iterator[Talking]:
    program = Talking(*command)
    try:
        yield program
    finally:
        assert program.process.stdin is not None
        assert program.process.stdout is not None
        program.process.kill()
        program.process.stdin.close()
        program.process.stdout.read()  # whoever else has it has ended
        program.process.stdout.close()
        program.process.wait()


@contextmanager
def forked(then: Callable[[], None] = lambda: None) -> Iterator[int]:
    """A child that waits for its death after *then*."""
    child = os.fork()
    if child == 0:
        try:
            then()
            signal.pause()
        finally:
            os._exit(1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---------------------------------------------------------------- who


def test_a_thread_is_its_process() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    number = thread.native_id
    assert number is not None
    assert number != os.getpid()
    assert ps.identify(number) == own()
    assert own().pid == os.getpid()
    stop.set()
    thread.join()
    while os.path.exists(f"/proc/self/task/{number}"):
        os.sched_yield()
    assert ps.identify(number) is None


def test_who_is_not_shown() -> None:
    assert ps.identify(0) is None
    assert ps.identify(-1) is None
    assert ps.identify(1 << 30) is None


def test_a_thread_whose_process_ended_while_we_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that has its group's number by now is not its process."""
    with forked() as other:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        number = thread.native_id
        assert number is not None
        status = Path(f"/proc/{other}/status").read_bytes()
        real = ps.read_file
        monkeypatch.setattr(ps, "read_file", lambda path: status if path.endswith("status") else real(path))
        assert ps.identify(number) is None
        stop.set()
        thread.join()


def test_zombies_are_processes_until_they_are_reaped() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    identity = known(child)
    while state_of(child) != "Z":
        os.sched_yield()
    assert ps.identify(child) == identity
    assert ps.image_of(identity) == ""
    assert identity in ps.children_of(own())
    assert ps.children_of(identity) == []
    assert ps.parent_of(identity) == own()
    descriptor = ps.open_pidfd(identity)
    assert select.select([descriptor], [], [], 0)[0]
    os.close(descriptor)
    os.waitpid(child, 0)
    check_gone(identity)


def check_gone(identity: Identity) -> None:
    assert ps.parent_of(identity) is None
    assert ps.image_of(identity) == ""
    assert ps.children_of(identity) == []
    assert ps.descendants_of(identity) == []
    with pytest.raises(ProcessLookupError):
        ps.open_pidfd(identity)
    with pytest.raises(ProcessLookupError):
        ps.owner_of(identity)


def test_who_started_at_another_time_is_another() -> None:
    with forked() as child:
        identity = known(child)
        assert ps.image_of(identity)
        check_gone(Identity(child, identity.start_ticks - 1))
        check_gone(Identity(child, identity.start_ticks + 1))


def test_a_pid_that_is_a_threads_by_now() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        stat = parse_stat(Path(f"/proc/{thread.native_id}/stat").read_bytes())
        check_gone(Identity(stat.pid, stat.start_ticks))
    finally:
        stop.set()
        thread.join()


REUSE: Final = """
import os, signal, time
from omfs.kernel.processes import *
def forked():
    child = os.fork()
    if not child:
        signal.pause()
    return child
def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
assert os.getpid() == 1
first = forked()
old = identify(first)
kept = open_pidfd(old)
end(first)
assert parent_of(old) is None
while time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") < old.start_ticks + 1:
    os.sched_yield()
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(first - 1))
second = forked()
new = identify(second)
assert second == first and new != old, (first, second)
assert image_of(new) and not image_of(old)
assert parent_of(new) == identify(1) and parent_of(old) is None
assert children_of(identify(1)) == [new]
for use in open_pidfd, owner_of:
    try:
        use(old)
    except ProcessLookupError:
        pass
    else:
        raise AssertionError(use)
os.close(open_pidfd(new))
try:
    signal.pidfd_send_signal(kept, 0)
except ProcessLookupError:
    print("all is well")
end(second)
"""


def test_a_pid_used_again_is_another_process() -> None:
    """In a PID namespace of its own, where the next pid can be chosen."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", REUSE]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("all is well\n", "")


def test_kernel_threads_have_no_image() -> None:
    """Found by their parent, kthreadd; in a container none is shown, so that none of them can ask."""
    for pid in ps.processes():
        identity = ps.identify(pid)
        if identity is not None and (parent := ps.parent_of(identity)) is not None and is_kthreadd(parent):
            assert ps.parent_of(parent) is None
            assert ps.image_of(identity) == ""
            assert ps.children_of(identity) == []
            assert ps.owner_of(identity) == (0, 0)
            break


def test_owners() -> None:
    def become_nobody() -> None:
        os.setresgid(0, NOBODY, 0)
        os.setresuid(0, NOBODY, 0)

    assert ps.owner_of(own()) == (os.geteuid(), os.getegid())
    with forked(become_nobody) as child:
        while ps.owner_of(known(child)) != (NOBODY, NOBODY):  # effective; and not root's, though it can't be dumped now
            os.sched_yield()


# ---------------------------------------------------------------- parents and children


def test_ancestors_end_at_the_top() -> None:
    with talking("sh", "-c", "exec 3<&0; sh -c 'read x' <&3 & echo $!; wait") as shell:
        child = known(int(shell.hear()))
        assert ps.parent_of(child) == shell.identity
        assert ps.parent_of(shell.identity) == own()
        walk = [child]
        while (parent := ps.parent_of(walk[-1])) is not None:
            assert parent.start_ticks <= walk[-1].start_ticks
            walk.append(parent)
        assert walk[-1].pid == 1
        shell.say()


def test_who_lost_his_parent_has_another() -> None:
    with talking("sh", "-c", "exec 3<&0; sh -c 'read x' <&3 & echo $!; read x") as shell:
        child, parent = known(int(shell.hear())), shell.identity
        assert ps.parent_of(child) == parent
        assert child in ps.children_of(parent)
        os.kill(parent.pid, signal.SIGKILL)
        shell.process.wait()
        assert ps.parent_of(child) not in (parent, None)
        assert ps.identify(child.pid) == child
        os.kill(child.pid, signal.SIGKILL)


@pytest.mark.parametrize("newcomer_ticks", [100, 101])
def test_a_parent_whose_pid_another_got_while_we_asked(newcomer_ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    child = ProcessStat(50, b"", "S", 40, 100)
    newcomer, taker = ProcessStat(40, b"", "S", 1, newcomer_ticks), ProcessStat(1, b"", "S", 0, 3)
    asked = [0]

    def stat(pid: int) -> ProcessStat | None:
        asked[0] += pid == 50
        now = child if asked[0] == 1 else child._replace(parent=1)
        return {50: now, 40: newcomer, 1: taker}.get(pid)

    monkeypatch.setattr(ps, "_stat", stat)
    assert ps.parent_of(Identity(50, 100)) == Identity(1, 3)


def test_children_of_all_threads_and_theirs() -> None:
    others = set(ps.children_of(own()))  # orphans of earlier tests, which nobody waits for
    started: list[Talking] = []
    stop = threading.Event()

    def start() -> None:
        started.append(Talking("sh", "-c", "exec 3<&0; sh -c 'echo $$; read x' <&3 & wait"))
        stop.wait()

    thread = threading.Thread(target=start)
    thread.start()
    try:
        while not started:  # before anybody forks, who would hold that program's pipes open
            os.sched_yield()
        with forked() as second:
            first, grandchild = started[0].identity, known(int(started[0].hear()))
            assert set(ps.children_of(own())) - others == {first, known(second)}
            assert ps.children_of(first) == [grandchild]
            found = ps.descendants_of(own())
            assert set(found) - others == {first, known(second), grandchild}
            assert found.index(first) < found.index(grandchild)
    finally:
        stop.set()
        thread.join()
        started[0].say()
        started[0].process.wait()
        for stream in started[0].process.stdin, started[0].process.stdout:
            assert stream is not None
            stream.close()


def test_no_child_is_missed_while_others_come_and_go() -> None:
    """In the kernel's list those that end stand before those that stay."""
    go = (
        'for i in 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5 6; do sleep .1$i$j & done; sleep 1000 & all="$all $!"; done;'
    )
    with talking("sh", "-c", go + "echo $all; wait") as shell:
        lasting = {known(int(pid)) for pid in shell.hear().split()}
        while (found := set(ps.children_of(shell.identity))) != lasting:
            assert lasting <= found
        for one in lasting:
            os.kill(one.pid, signal.SIGKILL)


def test_a_list_that_lacks_a_child_because_another_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with forked() as child:
        whole = {"1": b"%d " % child}
        lists = [{"1": b"", "2": b""}, {"1": b""}, None, whole, whole]
        monkeypatch.setattr(ps, "_children_of_threads", lambda pid: lists.pop(0))
        assert ps.children_of(own()) == [known(child)]


def test_children_where_the_kernel_does_not_list_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CONFIG_PROC_CHILDREN, or when they come and go faster than we read."""
    monkeypatch.setattr(ps, "_children_of_threads", lambda pid: None)
    others = ps.children_of(own())
    with forked() as child:
        assert [one for one in ps.children_of(own()) if one not in others] == [known(child)]
        assert ps.children_of(known(child)) == []


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError])
def test_who_ends_while_his_threads_are_listed_has_none(monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    """Before its directory is opened, or before it is read."""
    listdir, ended = os.listdir, f"/proc/{1 << 30}/task"

    def read(path: str) -> list[str]:
        if path == ended:
            raise error(0, "", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", read)
    assert ps._children_of_threads(1 << 30) == {}


def test_a_child_that_is_another_ones_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ps, "_children", lambda pid: [os.getppid(), 1 << 30])
    assert ps.children_of(own()) == []


def test_children_in_another_pid_namespace() -> None:
    with talking("unshare", "--pid", "--fork", "sh", "-c", "echo $$; read x") as outer:
        assert outer.hear() == "1"
        (inner,) = ps.children_of(outer.identity)
        status = parse_status(Path(f"/proc/{inner.pid}/status").read_bytes())
        assert status.namespace_pids == (inner.pid, 1)
        assert ps.parent_of(inner) == outer.identity
        assert ps.identify(inner.pid) == inner
        assert inner in ps.descendants_of(own())
        assert ps.image_of(inner)
        outer.say()


def test_processes_shown() -> None:
    with forked() as child:
        assert {1, os.getpid(), child} <= set(ps.processes())


# ---------------------------------------------------------------- images

SAYS_ITS_IMAGE: Final = f"""
import ctypes, os, sys
address = ctypes.CDLL(None).getauxval
address.restype = ctypes.c_ulong
print(ctypes.string_at(address(ctypes.c_ulong({AT_RANDOM})), 16).hex(), flush=True)
"""
AGAIN: Final = """
left = int(sys.argv[1])
if left:
    os.execv(sys.executable, [sys.executable, "-SE", "-c", PROGRAM, str(left - 1)])
input()
"""


def test_an_image_is_the_random_bytes_of_the_execve() -> None:
    with talking(sys.executable, "-SEc", SAYS_ITS_IMAGE + "input()") as program:
        said = program.hear()  # so it has executed
        assert ps.image_of(program.identity) == said
        assert ps.image_of(program.identity) != ps.image_of(own())


def test_a_fork_storm_keeps_the_image_and_an_exec_storm_does_not() -> None:
    shells = "exec 3<&0; for i in 1 2 3 4 5 6 7 8 9 10; do (echo; read x; exec sleep 1000) <&3 & done; wait"
    with talking("sh", "-c", shells) as shell:
        for _ in range(10):
            shell.hear()
        children = ps.children_of(shell.identity)
        assert len(children) == 10
        assert {ps.image_of(child) for child in children} == {ps.image_of(shell.identity)}
        before = ps.image_of(shell.identity)
        for _ in children:
            shell.say()
        while before in (images := {ps.image_of(child) for child in children}):
            os.sched_yield()
        assert len(images) == 10
        assert ps.children_of(shell.identity) == children
        for child in children:
            os.kill(child.pid, signal.SIGKILL)


@pytest.mark.parametrize("wrapper", [(), ("setarch", "-R")], ids=["random addresses", "addresses always the same"])
def test_no_image_but_those_there_were(wrapper: tuple[str, ...]) -> None:
    """A process that does one execve of the same program after the other, while it is looked at without a pause."""
    program = SAYS_ITS_IMAGE + AGAIN.replace("PROGRAM", "sys.orig_argv[-2]")
    with talking(*wrapper, sys.executable, "-SE", "-c", program, "20") as storm:
        said = [storm.hear()]  # it has done the execve of setarch, too
        reader = threading.Thread(target=lambda: said.extend(storm.hear() for _ in range(20)))
        reader.start()
        seen: set[str] = set()
        while reader.is_alive():
            seen.add(ps.image_of(storm.identity))
        reader.join()
        assert len(set(said)) == 21
        assert seen - {""} <= set(said)
        assert len(seen) > 1
        assert ps.image_of(storm.identity) == said[-1]
        assert storm.identity.start_ticks == known(storm.process.pid).start_ticks


def test_the_image_of_a_process_whose_first_thread_has_ended() -> None:
    exit_number = {"x86_64": 60}.get(os.uname().machine, 93)  # of a thread; exit(3) is another call
    program = f"import threading\nthreading.Thread(target=input).start()\nctypes.CDLL(None).syscall({exit_number}, 0)"
    with talking(sys.executable, "-SEc", SAYS_ITS_IMAGE + program) as half:
        said = half.hear()
        while state_of(half.process.pid) != "Z":
            os.sched_yield()
        assert ps.image_of(half.identity) == said


def test_an_image_that_changes_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is of the program before, the memory of the one after it: what lies there is nobody's image."""
    real, first, second = ps.read_file, ctypes.create_string_buffer(b"a" * 16), ctypes.create_string_buffer(b"b" * 16)
    vectors = [(AT_RANDOM, ctypes.addressof(buffer), 0, 0) for buffer in (first, second, second)]
    packed = [struct.pack("=4Q", *vector) for vector in vectors]
    monkeypatch.setattr(ps, "read_file", lambda path: packed.pop(0) if path.endswith("auxv") else real(path))
    assert ps.image_of(own()) == (b"b" * 16).hex()
    assert packed == []  # only with memory that was opened between two equal answers


def test_memory() -> None:
    data = ctypes.create_string_buffer(b"what is there")
    assert ps.read_memory("self", ctypes.addressof(data), 4) == b"what"
    with pytest.raises(OSError, match="Input/output"):
        ps.read_memory("self", 1, 4)
