"""mignode/checkpoint.py with a real CRIU and real programs, each test in namespaces of its own.

The functions named `inside_...` run in there.  Every program counts: what it answers after a dump and a restore is right
only if all that it had is there again, once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

from mignode.checkpoint import After, Criu, Tree
from mignode.criukeys import file_key, tty_key
from mignode.criutalk import Start, Worker, start_here
from omfs.errors import CheckpointError, CriuEnded
from tests.lab.criuroom import DEADLINE_S, IMAGES, Puppet, criu, images, run, run_inside, wait_childless
from tests.lab.movedprograms import COUNTS_ON_TERMINAL, PIPES, PYTHON, SUM, TCP, THREADS


def compiled(folder: Path, *options: str) -> str:
    """A program of nine threads."""
    program = folder / "threads"
    command = ["gcc", "-O2", "-pthread", *options, "-x", "c", "-", "-o", program]
    subprocess.run(command, input=THREADS, text=True, check=True)
    return str(program)


def python(text: str) -> Puppet:
    return Puppet([PYTHON, "-c", text])


async def move(puppet: Puppet, tree: Tree | None = None) -> None:
    """Dump it and restore it, with new pipes."""
    directory = images(f"of {puppet.pid}")
    await dump(puppet, directory, tree)
    await restore(puppet, directory, tree)


async def dump(puppet: Puppet, directory: int, tree: Tree | None = None, start: Start = start_here) -> None:
    async with criu(start).dump(puppet.pid, directory, tree or Tree(), DEADLINE_S) as frozen:
        assert puppet.state() == "t"
        puppet.is_dumped()
        await frozen.finish()
    assert os.WTERMSIG(puppet.reap()) == signal.SIGKILL


async def restore(puppet: Puppet, directory: int, tree: Tree | None = None, start: Start = start_here) -> None:
    pipes = puppet.new_pipes()
    async with criu(start).restore(directory, tree or Tree(), DEADLINE_S, inherited=pipes) as restored:
        assert restored.pid == puppet.pid
        puppet.given()
        await restored.finish()


# ---------------------------------------------------------------- what moves


async def inside_python() -> None:
    puppet = python(SUM)
    assert await puppet.ask("20") == "20"
    for _ in range(3):
        await move(puppet)
        assert await puppet.ask("1") in ("21", "22", "23")
        run("rm", "-r", IMAGES / f"of {puppet.pid}")
    assert await puppet.ask("0") == "23"
    puppet.kill()


def test_a_python_program_goes_on_where_it_was() -> None:
    run_inside(inside_python)


async def inside_threads() -> None:
    puppet = Puppet([sys.argv[3]])
    assert [await puppet.ask("x") for _ in range(3)] == ["8", "16", "24"]
    await move(puppet)
    assert len(os.listdir(f"/proc/{puppet.pid}/task")) == 9
    assert await puppet.ask("x") == "32"
    puppet.kill()


def test_all_threads_go_on(tmp_path: Path) -> None:
    run_inside(inside_threads, compiled(tmp_path))


async def inside_bare_root() -> None:
    """A guest's / is another machine's tree; this one has neither CRIU nor a library that it needs."""
    root = Path("/run/root")
    run("mkdir", root)
    run("mount", "-t", "tmpfs", "tmpfs", root)
    run("mkdir", root / "proc", root / "tmp", root / "run")
    run("mount", "-t", "proc", "proc", root / "proc")
    run("cp", sys.argv[3], root / "program")
    puppet = Puppet(["/usr/sbin/chroot", str(root), "/program"])
    assert await puppet.ask("x") == "8"

    async def start(command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
        return await start_here(["/usr/sbin/chroot", str(root), *command], descriptors)

    directory = images()
    await dump(puppet, directory, start=start)
    await restore(puppet, directory, start=start)
    assert os.readlink(f"/proc/{puppet.pid}/root") == str(root)
    assert await puppet.ask("x") == "16"
    puppet.kill()


def test_criu_brings_its_own_libraries_into_any_root(tmp_path: Path) -> None:
    run_inside(inside_bare_root, compiled(tmp_path, "-static"))


async def inside_pipes() -> None:
    puppet = python(PIPES)
    assert await puppet.ask("4000") == "4000 4000"
    await move(puppet)
    assert await puppet.ask("9999") == "5000 5000"
    puppet.kill()


def test_a_child_and_the_pipes_between_with_what_is_in_them() -> None:
    run_inside(inside_pipes)


async def inside_tcp() -> None:
    puppet = python(TCP)
    puppet.say("and in the first line")
    assert await puppet.hear() == "sent before the dump,and in the first line"
    await move(puppet, Tree(tcp_established=True))
    assert await puppet.ask("and after it") == "and after it"
    puppet.kill()


def test_an_established_connection_inside_the_tree() -> None:
    run_inside(inside_tcp)


class Terminal:
    """A terminal of ours, with a program on it or without."""

    def __init__(self, *command: str) -> None:
        self.master, self.slave = os.openpty()
        self.key = tty_key(self.slave)
        if command:
            ends = {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave}
            self.pid = subprocess.Popen(["setsid", "--ctty", *command], **ends).pid

    async def ask(self, line: str) -> str:
        os.write(self.master, line.encode() + b"\n")
        return await self.hear()

    async def hear(self) -> str:
        said = b""
        while not said.endswith(b"\n"):
            await trio.lowlevel.wait_readable(self.master)
            said += os.read(self.master, 100)
        return said.decode().strip()

    def close(self) -> None:
        os.close(self.slave)
        os.close(self.master)


async def inside_terminal() -> None:
    first = Terminal(PYTHON, "-c", COUNTS_ON_TERMINAL)
    assert await first.hear() == "ready"
    assert await first.ask("5") == "5"
    directory = images()
    tree = Tree(external=(first.key,))
    async with criu().dump(first.pid, directory, tree, DEADLINE_S) as frozen:
        await frozen.finish()
    wait_childless()
    first.close()
    second = Terminal()
    async with criu().restore(directory, tree, DEADLINE_S, inherited={first.key: second.slave}) as restored:
        await restored.finish()
    assert await second.ask("6") == "11"
    os.kill(first.pid, signal.SIGKILL)
    wait_childless()


def test_a_terminal_is_replaced_by_another() -> None:
    run_inside(inside_terminal)


async def inside_orphan_terminal() -> None:
    first = Terminal(PYTHON, "-c", COUNTS_ON_TERMINAL)
    assert await first.hear() == "ready"
    assert await first.ask("5") == "5"
    directory = images()
    tree = Tree(orphan_terminals=True)
    async with criu().dump(first.pid, directory, tree, DEADLINE_S) as frozen:
        await frozen.finish()
    wait_childless()
    first.close()
    async with criu().restore(directory, tree, DEADLINE_S) as restored:
        (master,) = restored.terminal_masters
        first.master = os.dup(master)
        await restored.finish()
    assert await first.ask("6") == "11"
    os.kill(first.pid, signal.SIGKILL)
    wait_childless()


def test_a_terminal_comes_back_with_a_new_master() -> None:
    run_inside(inside_orphan_terminal)


async def inside_file() -> None:
    """A file of a file system that is not there any more at the other end."""
    run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    first = os.open("/mnt/first", os.O_RDWR | os.O_CREAT)
    tree = Tree(external=(file_key(first),))
    puppet = Puppet([PYTHON, "-c", SUM.replace("print(", "print(total, file=sys.stderr); print(")], output=first)
    assert await puppet.ask("5") == "5"
    assert os.pread(first, 100, 0) == b"5\n"
    directory = images()
    await dump(puppet, directory, tree)
    os.close(first)
    run("umount", "/mnt")
    second = os.open("/run/second", os.O_RDWR | os.O_CREAT)
    os.write(second, b"5\n")  # the same at the other end
    inherited = {**puppet.new_pipes(), tree.external[0]: second}
    async with criu().restore(directory, tree, DEADLINE_S, inherited=inherited) as restored:
        puppet.given()
        await restored.finish()
    assert await puppet.ask("6") == "11"
    assert os.pread(second, 100, 0) == b"5\n11\n"
    puppet.kill()


def test_a_file_is_replaced_by_another() -> None:
    run_inside(inside_file)


# ---------------------------------------------------------------- held, finished or not


async def inside_not_finished() -> None:
    puppet = python(SUM)
    await puppet.ask("5")
    directory = images()
    async with criu().dump(puppet.pid, directory, Tree(), DEADLINE_S):
        puppet.say("1")
        assert puppet.state() == "t"
    assert await puppet.hear() == "6"
    puppet.wait_state("S")
    puppet.kill()

    async with criu().restore(directory, Tree(), DEADLINE_S, inherited=puppet.new_pipes()) as restored:
        puppet.given()
        assert restored.pid == puppet.pid
        puppet.say("1")
    assert puppet.reap() == signal.SIGKILL  # it was there, as our child, and it answered nothing
    assert puppet.state() == ""
    await restore(puppet, directory)
    assert await puppet.ask("2") == "7"
    puppet.kill()


def test_who_does_not_finish_has_changed_nothing() -> None:
    run_inside(inside_not_finished)


async def inside_cancelled() -> None:
    puppet = python(SUM)
    with trio.CancelScope() as scope:
        async with criu().dump(puppet.pid, images(), Tree(), DEADLINE_S):
            scope.cancel()
            await trio.sleep_forever()
    assert await puppet.ask("1") == "1"
    puppet.kill()


def test_a_cancelled_dump_has_changed_nothing() -> None:
    run_inside(inside_cancelled)


async def inside_afterwards() -> None:
    puppet = python(SUM)
    await puppet.ask("5")
    for after, state in ((After.RUNNING, "S"), (After.STOPPED, "T")):
        directory = images(after.name)
        async with criu().dump(puppet.pid, directory, Tree(), DEADLINE_S, after=after) as frozen:
            await frozen.finish()
        puppet.wait_state(state)
    os.kill(puppet.pid, signal.SIGCONT)
    assert await puppet.ask("1") == "6"
    puppet.kill()
    await restore(puppet, directory)
    os.kill(puppet.pid, signal.SIGCONT)  # it was dumped to stop, so it is stopped again
    assert await puppet.ask("2") == "7"
    puppet.kill()


def test_it_may_run_on_or_stop() -> None:
    run_inside(inside_afterwards)


# ---------------------------------------------------------------- what fails


async def fails(puppet: Puppet, directory: int, *reasons: str) -> None:
    """A dump fails, saying why, and the program goes on."""
    with pytest.raises(CheckpointError) as caught:
        await dump(puppet, directory)
    said = str(caught.value)
    assert f"criu could not dump process {puppet.pid}: " in said
    assert [reason for reason in reasons if reason not in said] == [], said
    assert "\n" not in said
    assert "Error (" not in said
    puppet.say("1")
    assert await puppet.hear() == "1"


async def inside_refused() -> None:
    near, far = socket.socketpair()
    with near, far:
        puppet = Puppet([PYTHON, "-c", SUM], pass_fds=(far.fileno(),))
        await fails(puppet, images("socket"), "unix")
        puppet.kill()
    puppet = Puppet([PYTHON, "-c", SUM], start_new_session=False)
    await fails(puppet, images("session"), "session leader")
    os.kill(puppet.pid, signal.SIGKILL)
    puppet.reap()
    run("mkdir", "/run/small")
    run("mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", "/run/small")
    puppet = python(SUM)
    small = os.open("/run/small", os.O_RDONLY)
    await fails(puppet, small, "No space left on device")
    puppet.kill()
    with pytest.raises(CheckpointError, match=f"criu could not dump process {puppet.pid}: .*o such"):
        await dump(puppet, images("gone"))


def test_a_dump_that_fails_leaves_the_program_running() -> None:
    run_inside(inside_refused)


async def inside_bad_images() -> None:
    puppet = python(SUM)
    directory = images()
    await dump(puppet, directory)
    core = IMAGES / "images" / f"core-{puppet.pid}.img"
    good = core.read_bytes()
    for bad in (b"", good[:60], bytes(byte ^ 0x55 for byte in good)):
        core.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"criu could not restore: |when it was to restore: "):
            await restore(puppet, directory)
        puppet.given()
        wait_childless()  # nothing is left
    core.write_bytes(good)
    await restore(puppet, directory)
    assert await puppet.ask("3") == "3"
    puppet.kill()


def test_bad_images_make_no_process() -> None:
    run_inside(inside_bad_images)


class Watched:
    """Starts CRIU, and can kill it."""

    worker: Worker | None = None

    async def start(self, command: Sequence[str], descriptors: Mapping[int, int]) -> Worker:
        self.worker = await start_here(command, descriptors)
        return self.worker

    def kill(self) -> None:
        assert self.worker is not None
        self.worker.kill()

    async def dump(self, puppet: Puppet, directory: int) -> None:
        """Kill CRIU when it holds the program."""
        async with criu(self.start).dump(puppet.pid, directory, Tree(), DEADLINE_S) as frozen:
            self.kill()
            await frozen.finish()

    async def restore(self, puppet: Puppet, directory: int) -> None:
        pipes = puppet.new_pipes()
        async with criu(self.start).restore(directory, Tree(), DEADLINE_S, inherited=pipes) as restored:
            puppet.given()
            self.kill()
            await restored.finish()


async def inside_killed() -> None:
    puppet = python(SUM)
    directory = images()
    with pytest.raises(CriuEnded, match=f"was killed by signal 9 when it was to dump process {puppet.pid}"):
        await Watched().dump(puppet, directory)
    assert await puppet.ask("5") == "5"

    await dump(puppet, directory)
    with pytest.raises(CriuEnded, match="was killed by signal 9 when it was to restore"):
        await Watched().restore(puppet, directory)
    puppet.say("1")
    os.kill(puppet.pid, signal.SIGKILL)  # in a guest, the end of its init does that
    puppet.reap()
    assert await puppet.hear() == "", "a copy ran that nobody had released"


def test_a_killed_criu_is_reported_and_leaves_one_copy() -> None:
    run_inside(inside_killed)


async def hold(pid: int) -> None:
    """Dump it and hold it until we are killed."""
    async with criu().dump(pid, images(), Tree(), DEADLINE_S):
        os.write(1, b"held\n")
        await trio.sleep_forever()


async def inside_caller_killed() -> None:
    puppet = python(SUM)
    await puppet.ask("5")
    text = f"import trio; from {hold.__module__} import hold; trio.run(hold, {puppet.pid})"
    holder = Puppet([sys.executable, "-c", text])
    assert await holder.hear() == "held"
    assert puppet.state() == "t"
    holder.process.kill()
    assert await puppet.ask("1") == "6"


def test_a_held_program_goes_on_when_its_holder_is_killed() -> None:
    run_inside(inside_caller_killed)


# ---------------------------------------------------------------- what CRIU says of itself


async def inside_asked() -> None:
    asked: Criu = criu()
    assert await asked.version(DEADLINE_S) >= (4, 2)
    assert (await asked.features(DEADLINE_S)).pidfd_store
    await asked.check(DEADLINE_S)
    puppet = python(SUM)
    if (await asked.features(DEADLINE_S)).memory_tracking:
        await asked.pre_dump(puppet.pid, images("before"), Tree(), DEADLINE_S)
    else:
        with pytest.raises(CheckpointError, match=f"criu could not pre-dump process {puppet.pid}: .*soft-dirty"):
            await asked.pre_dump(puppet.pid, images("before"), Tree(), DEADLINE_S)
        assert os.listdir(IMAGES / "before") == []
    assert await puppet.ask("1") == "1"
    puppet.kill()


def test_what_criu_says_of_itself() -> None:
    run_inside(inside_asked)
