"""dfsa/procview.py over a real procfs: what programs find in it, and CRIU below it.

Each test has a room of its own (criuroom.py).  The functions named `inside_...` run in there as pid 1; the view is
served by a child of theirs, as a guest's init does, and all others use it.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dfsa.procview import DEVICE, ProcView, known_by, lay_over
from mignode.checkpoint import Tree
from omfs.kernel import namespaces
from omfs.magic import controlfiles
from tests.lab.criuroom import DEADLINE_S, Puppet, criu, images, run_inside
from tests.lab.movedprograms import IN_PROC, PYTHON

NOBODY = 65534
REAL_PYTHON = os.path.realpath(PYTHON)


class Fork:
    """A child that runs *function*."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                function()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def wait(self) -> None:
        assert os.waitpid(self.pid, 0)[1] == 0


def kill(pid: int) -> None:
    """A child, that may have ended already; without waiting for others, as Puppet does."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def lay(node_proc: int) -> ProcView:
    return lay_over("/proc", os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC), b"/mfs", known_by(node_proc))


def serve(view: ProcView, until: int = -1) -> None:
    """Until it is mounted nowhere, or *until*, a pidfd, has ended."""
    with select.epoll() as poll:
        poll.register(view.device, select.EPOLLIN)
        if until >= 0:
            poll.register(until, select.EPOLLIN)
        while not view.has_ended and until not in {descriptor for descriptor, _ in poll.poll()}:
            view.ready()


@contextmanager
def served() -> Iterator[int]:
    """The view over /proc of this room, served by a child, whose pid this is."""
    is_laid, laid = os.pipe()

    def server() -> None:
        view = lay(os.open("/proc", os.O_RDONLY | os.O_DIRECTORY))
        os.write(laid, b"1")
        serve(view)

    child = Fork(server)
    os.close(laid)
    try:
        assert os.read(is_laid, 1) == b"1"
        yield child.pid
    finally:
        os.close(is_laid)
        for place in ("/proc/sys", "/proc/.real", "/proc"):
            namespaces.unmount(place, namespaces.MNT_DETACH)
        kill(child.pid)  # somebody may still have something open in it


async def inside_view() -> None:
    with served() as server:
        globals()[sys.argv[3]](server)


def in_view(function: Callable[[int], None]) -> None:
    """Run a function of this module in a room with the view; it gets the pid of who serves it."""
    run_inside(inside_view, function.__name__)


def output(command: str) -> str:
    """Of a shell."""
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.strip()


# ---------------------------------------------------------------- openMosix's names


def names(_: int) -> None:
    own = os.getpid()
    for file in controlfiles.OF_PROCESS:
        assert os.readlink(f"/proc/self/{file.name}") == f"/mfs/proc/{own}/{file.name}"
    assert os.readlink("/proc/hpc") == "/mfs/proc/hpc"
    assert {"hpc", "self", "mounts", str(own)} <= set(os.listdir("/proc"))
    assert {"goto", "where", "status", "fd"} <= set(os.listdir("/proc/self"))
    assert ".real" not in os.listdir("/proc")
    with pytest.raises(FileNotFoundError):
        os.stat("/proc/self/gone")
    with pytest.raises(FileNotFoundError):
        os.stat("/proc/gone")
    for change in (lambda: os.mkdir("/proc/x"), lambda: os.chmod("/proc/self", 0), lambda: os.unlink("/proc/hpc")):
        with pytest.raises(PermissionError):
            change()


def test_the_names_of_openmosix_lead_into_mfs() -> None:
    in_view(names)


async def inside_other_pids() -> None:
    """This room is the node, and a guest has a PID namespace below it."""
    node_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)

    def program() -> None:
        known_as = os.readlink("self", dir_fd=node_proc)
        assert os.readlink("/proc/self") == str(os.getpid()) != known_as
        assert os.readlink("/proc/self/goto") == f"/mfs/proc/{known_as}/goto"
        for gone in ("/proc/99/goto", "/proc/99", "/proc/.real/99"):
            with pytest.raises(FileNotFoundError):
                os.lstat(gone)

    def init() -> None:
        namespaces.mount("proc", "/proc", "proc")
        view = lay(node_proc)
        root = Fork(program)
        serve(view, os.pidfd_open(root.pid))
        root.wait()

    def spawn() -> None:
        namespaces.unshare(namespaces.CLONE_NEWPID | namespaces.CLONE_NEWNS)
        Fork(init).wait()

    Fork(spawn).wait()


def test_they_lead_to_what_the_node_calls_the_process() -> None:
    run_inside(inside_other_pids)


# ---------------------------------------------------------------- all else is procfs's


def same(server: int) -> None:
    for path in ("self/status", "self/fd", "net/tcp", "cpuinfo", "sys/kernel/ostype", "self/task/1/comm", "mounts"):
        shown, real = os.stat(f"/proc/{path}"), os.stat(f"/proc/.real/{path}")
        assert (shown.st_dev, shown.st_ino, shown.st_mode) == (real.st_dev, real.st_ino, real.st_mode)
    assert os.path.realpath("/proc/sys/kernel/ostype") == "/proc/sys/kernel/ostype"
    assert os.readlink("/proc/self") == "1"
    assert os.readlink("/proc/mounts") == "self/mounts"
    for name in ("exe", "cwd", "root"):
        assert os.readlink(f"/proc/self/{name}") == os.readlink(f"/proc/.real/self/{name}")
    shown, real = os.stat(f"/proc/{server}"), os.stat(f"/proc/.real/{server}")
    assert (shown.st_mode, shown.st_uid) == (real.st_mode, real.st_uid)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    assert pids == sorted(int(name) for name in os.listdir("/proc/.real") if name.isdigit())


def test_all_else_is_procfs() -> None:
    in_view(same)


def threads(_: int) -> None:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(map(os.readlink, ("/proc/self", "/proc/thread-self"))))
    thread.start()
    thread.join()
    assert seen == ["1", f"1/task/{thread.native_id}"]


def test_self_is_the_process_of_a_thread() -> None:
    in_view(threads)


async def inside_changes() -> None:
    """What may be cached, and what may not."""
    with served():
        puppet = Puppet(["sh", "-c", f"read line; exec {PYTHON} -c 'input(); print(1); input()'"])
        link = f"/proc/{puppet.pid}/exe"
        before = os.readlink(link)
        puppet.say("go on")
        assert await puppet.ask("") == "1"
        assert before != os.readlink(link) == REAL_PYTHON
        directory = os.open(f"/proc/{puppet.pid}", os.O_RDONLY)
        kill(puppet.pid)
        for path in (link, f"/proc/{puppet.pid}", f"/proc/{puppet.pid}/status"):
            with pytest.raises(FileNotFoundError):
                os.lstat(path)
        with pytest.raises(FileNotFoundError):
            os.open("status", os.O_RDONLY, dir_fd=directory)
        assert str(puppet.pid) not in os.listdir("/proc")


def test_who_changes_or_ends_does_so_at_once() -> None:
    run_inside(inside_changes)


def magic(_: int) -> None:
    """What a link in procfs leads to without having a name."""
    with tempfile.TemporaryDirectory() as folder:
        reader, writer = os.pipe()
        with open(f"/proc/self/fd/{writer}", "wb") as again:
            again.write(b"x")
        assert os.read(reader, 1) == b"x"
        unnamed = os.open(folder, os.O_TMPFILE | os.O_RDWR)
        os.link(
            f"/proc/self/fd/{unnamed}", f"{folder}/named", src_dir_fd=reader
        )  # a directory, or Python does not follow
        by_path = os.open(f"{folder}/named", os.O_PATH)
        os.chmod(f"/proc/self/fd/{by_path}", 0o604)
        assert stat.S_IMODE(os.stat(f"{folder}/named").st_mode) == 0o604
        program = f"{folder}/program"
        for path in ("/bin/sleep", "/bin/true"):
            subprocess.run(["cp", path, program], check=True)
            descriptor = os.open(program, os.O_RDONLY)
            if path == "/bin/sleep":
                sleeping = subprocess.Popen([program, "1000"])
            os.unlink(program)
            subprocess.run([f"/proc/self/fd/{descriptor}", "0"], pass_fds=[descriptor], check=True)
        exe = f"/proc/{sleeping.pid}/exe"
        assert os.readlink(exe) == f"../.real/{sleeping.pid}/exe"
        subprocess.run([exe, "0"], check=True)
        sleeping.kill()
        sleeping.wait()


def test_descriptors_and_programs_without_a_name() -> None:
    in_view(magic)


def users(_: int) -> None:
    sleeping = subprocess.Popen(["sleep", "1000"], user=NOBODY, group=NOBODY, extra_groups=[])
    assert os.stat(f"/proc/{sleeping.pid}").st_uid == NOBODY

    def user() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        assert os.readlink(f"/proc/{sleeping.pid}/exe") == os.path.realpath("/bin/sleep")
        assert os.readlink("/proc/1/goto") == "/mfs/proc/1/goto"
        for name in ("exe", "cwd", "root", "fd/0"):
            with pytest.raises(PermissionError):
                os.readlink(f"/proc/1/{name}")

    os.readlink("/proc/1/exe")  # what root was told is not for others
    Fork(user).wait()
    sleeping.kill()
    sleeping.wait()


def test_nobody_sees_more_than_in_procfs() -> None:
    in_view(users)


def programs(_: int) -> None:
    sleeping = subprocess.Popen(["sleep", "1000"])
    assert output("pidof sleep") == str(sleeping.pid)
    assert output("ps -eo pid,user,comm | grep sleep").split() == [str(sleeping.pid), "root", "sleep"]
    assert str(sleeping.pid) in output("TERM=linux top -b -n 1").split()
    assert output("pgrep -u root sleep") == str(sleeping.pid)
    assert output("cat <(echo substituted)") == "substituted"
    assert output("echo through | cat /dev/stdin") == "through"
    assert output("script -qc tty /dev/null").startswith("/dev/pts/")
    assert output("sysctl kernel.ostype") == "kernel.ostype = Linux"
    assert output("perl -e 'print readlink(\"/proc/self\") == $$'") == "1"
    assert output("unshare --pid --fork --mount-proc ps -eo comm=") == "ps"
    assert output(f"lsof -p {sleeping.pid} | awk '$4 == \"txt\" {{ print $9 }}'") == os.path.realpath("/bin/sleep")
    sleeping.kill()
    sleeping.wait()


def test_programs_that_live_from_it() -> None:
    in_view(programs)


# ---------------------------------------------------------------- CRIU


async def inside_moved() -> None:
    directory = images()
    with served():
        puppet = Puppet([PYTHON, "-c", IN_PROC])
        expected = f"{puppet.pid} Name: python3 5 True /mfs/proc/{puppet.pid}/goto"
        assert await puppet.ask("") == expected
        async with criu().dump(puppet.pid, directory, Tree(), DEADLINE_S) as frozen:
            puppet.is_dumped()
            await frozen.finish()
        kill(puppet.pid)  # it is dead already
    with served():  # as on the other node: another one
        async with criu().restore(directory, Tree(), DEADLINE_S, inherited=puppet.new_pipes()) as restored:
            puppet.given()
            await restored.finish()
        assert await puppet.ask("") == expected
        kill(puppet.pid)


def test_a_program_that_uses_it_is_dumped_below_one_and_restored_below_another() -> None:
    run_inside(inside_moved)


# ---------------------------------------------------------------- ends


def killed(server: int) -> None:
    """Who serves is killed: nobody hangs."""
    os.stat("/proc/self/status")
    os.kill(server, signal.SIGKILL)
    os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OSError, match="not connected"):
        os.stat("/proc/self/status")


def test_when_nobody_serves_it_any_more() -> None:
    in_view(killed)
