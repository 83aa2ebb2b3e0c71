"""/mfs/proc in a real FUSE mount: what cat, echo and ls see, who may, and what a value is."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trio
from pyfuse3 import FUSEError

from omfs.errors import RemoteFailure
from omfs.kernel.processes import Identity, identify
from omfs.magic import controlfiles
from omfs.mount import controltree as tree, lowlevel_abi as abi, virtual
from omfs.mount.controltree import Spot
from omfs.mount.lowlevel import Hook
from tests.unit.controlmount import NOBODY, ControlMount, FakeSource

ME = os.getpid()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[ControlMount]:
    mounted = ControlMount(tmp_path)
    try:
        yield mounted
    finally:
        mounted.end()


def error_of(call: Callable[[], Any]) -> int | None:
    """With what it fails."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def sleeper(user: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"], user=user, group=user, extra_groups=[])


@pytest.fixture
def nobodys() -> Iterator[int]:
    """A process of another user."""
    process = sleeper(NOBODY)
    yield process.pid
    process.kill()
    process.wait()


# ---------------------------------------------------------------- names


def test_the_tree(mount: ControlMount) -> None:
    names = os.listdir(mount.proc)
    assert {"hpc", "self", str(ME), "1"} <= set(names)
    assert all(name.isdigit() for name in set(names) - {"hpc", "self"})
    assert set(os.listdir(mount.proc / "self")) == {file.name for file in controlfiles.OF_PROCESS}
    hpc = mount.proc / "hpc"
    assert set(os.listdir(hpc)) == {"admin", "decay", "nodes", "remote", "info"}
    assert set(os.listdir(hpc / "admin")) == {file.name for file in controlfiles.OF_ADMIN}
    assert set(os.listdir(hpc / "nodes")) == {"1", "2"}
    assert set(os.listdir(hpc / "nodes/2")) == {file.name for file in controlfiles.OF_NODE}


def test_ls_shows_the_owners_and_modes(mount: ControlMount, nobodys: int) -> None:
    lines = mount.run(f"ls -ln proc/{nobodys}").stdout.splitlines()[1:]
    shown = {line.split()[-1]: line.split()[:4] for line in lines}
    assert shown["lock"] == ["-rw-r--r--", "1", str(NOBODY), str(NOBODY)]
    assert shown["where"][0] == "-r--r--r--"
    assert mount.run("ls -ld proc/1 proc/self proc/hpc/* proc/hpc/admin/*").stderr == ""
    assert stat.S_IMODE((mount.proc / "hpc/admin/expel").stat().st_mode) == 0o200
    top = mount.proc.stat()
    assert (stat.S_IMODE(top.st_mode), top.st_uid) == (0o555, 0)


def test_a_listing_and_stat_name_the_same_inodes(mount: ControlMount) -> None:
    for directory in ("", "hpc", "hpc/admin", "hpc/nodes", "self"):
        with os.scandir(mount.proc / directory) as entries:
            for entry in entries:
                if not entry.name.isdigit() or entry.name in ("1", "2", str(ME)):
                    assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_both_spellings_are_one_file(mount: ControlMount) -> None:
    hpc = mount.proc / "hpc"
    for alias, name in (("nodes/2/CPUs", "nodes/2/cpus"), ("admin/slow-decay", "admin/slowdecay")):
        assert (hpc / alias).samefile(hpc / name)
    (hpc / "admin/decay-interval").write_text("5\n")
    assert mount.written() == [("admin/decayinterval", ME, "5\n")]


@pytest.mark.parametrize("name", ["0", "01", "99999999", "lock", "hpc/nodes/3", "hpc/nodes/02", "1/x", "hpc/remote/1"])
def test_what_is_not_there(mount: ControlMount, name: str) -> None:
    assert error_of((mount.proc / name).stat) == errno.ENOENT


def test_a_thread_is_no_process(mount: ControlMount) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert error_of((mount.proc / str(thread.native_id)).stat) == errno.ENOENT
    finally:
        done.set()
        thread.join()


def test_listings_follow_what_comes_and_goes(mount: ControlMount) -> None:
    nodes = mount.proc / "hpc/nodes"
    assert set(os.listdir(nodes)) == {"1", "2"}
    mount.nodes = [1, 300]
    assert set(os.listdir(nodes)) == {"1", "300"}
    process = sleeper()
    try:
        assert str(process.pid) in os.listdir(mount.proc)
    finally:
        process.kill()
        process.wait()
    assert str(process.pid) not in os.listdir(mount.proc)
    assert error_of((nodes / "2").stat) == errno.ENOENT


def test_guests_are_those_that_are_told(mount: ControlMount) -> None:
    remote = mount.proc / "hpc/remote"
    mount.source.values["remote", ME] = "4711\n12\nnonsense\n"
    assert os.listdir(remote) == ["12", "4711"]
    assert set(os.listdir(remote / "4711")) == {file.name for file in controlfiles.OF_GUEST}
    mount.source.values["remote/4711/from", ME] = "2 10.0.0.2\n"
    assert (remote / "4711/from").read_text() == "2 10.0.0.2\n"
    assert error_of((remote / "13").stat) == errno.ENOENT
    mount.source.fail["remote"] = RemoteFailure(errno.ENOTCONN)
    assert os.listdir(remote) == []


# ---------------------------------------------------------------- self


def test_self_is_who_asks(mount: ControlMount) -> None:
    link = mount.proc / "self"
    with ThreadPoolExecutor(1) as other:
        assert other.submit(os.readlink, link).result() == str(ME)
    assert os.readlink(link) == str(ME)
    pid, shown = mount.run("echo $$; readlink proc/self; cat proc/self/where").stdout.split(maxsplit=1)
    assert pid not in shown.split()  # readlink and cat are processes of their own
    (link / "lock").write_text("1")
    assert mount.written() == [("lock", ME, "1")]


def test_self_of_many_at_once(mount: ControlMount) -> None:
    """Processes and their threads look up one name at the same time; each finds itself."""
    program = (
        "import os, sys, threading\n"
        "def look():\n"
        "    for _ in range(50):\n"
        "        assert os.readlink('proc/self') == str(os.getpid()), os.readlink('proc/self')\n"
        "        assert open('proc/self/where').read() == f'{os.getpid()}\\n'\n"
        "def run():\n"
        "    try: look()\n"
        "    except BaseException as error: wrong.append(error)\n"
        "wrong = []\n"
        "threads = [threading.Thread(target=run) for _ in range(2)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "sys.exit(str(wrong) if wrong else 0)\n"
    )
    running = [mount.start(sys.executable, "-I", "-c", program) for _ in range(6)]
    assert [process.communicate()[1] for process in running] == [""] * len(running)
    assert [process.returncode for process in running] == [0] * len(running)


def test_self_in_another_pid_namespace_is_the_process_shown_here(mount: ControlMount) -> None:
    found = mount.run("unshare --fork --pid sh -c 'echo $$; cat proc/self/where; true'").stdout.split()
    assert found[0] == "1"
    assert int(found[1]) > 2


# ---------------------------------------------------------------- who may


def test_a_process_is_its_owners(mount: ControlMount, nobodys: int) -> None:
    assert mount.run("echo 1 > proc/self/lock", NOBODY).stderr == ""
    assert mount.run(f"echo 1 > proc/{nobodys}/lock", NOBODY).stderr == ""
    assert [uid for _, _, uid in mount.source.writes] == [NOBODY, NOBODY]
    assert "Permission denied" in mount.run(f"echo 1 > proc/{ME}/lock", NOBODY).stderr
    assert "denied" in mount.run(f"echo 1 > proc/{nobodys}/lock", 65533).stderr
    assert mount.run(f"cat proc/{nobodys}/lock", 65533).stdout
    assert mount.run(f"echo 0 > proc/{nobodys}/lock").stderr == ""  # root
    assert [(path, text) for path, _, text in mount.written()] == [("lock", "1\n"), ("lock", "1\n"), ("lock", "0\n")]


def test_admin_is_roots(mount: ControlMount) -> None:
    for name in ("stay", "expel", "speed"):
        assert "Permission denied" in mount.run(f"echo 1 > proc/hpc/admin/{name}", NOBODY).stderr
        assert mount.run(f"echo 1 > proc/hpc/admin/{name}").stderr == ""
    assert mount.run("cat proc/hpc/admin/stay", NOBODY).stderr == ""
    assert "Permission denied" in mount.run("cat proc/hpc/admin/expel", NOBODY).stderr


def test_anybody_writes_what_concerns_himself(mount: ControlMount) -> None:
    pid = mount.run("echo $$; echo 1 > proc/hpc/decay/cpujob", NOBODY).stdout.strip()
    assert mount.written() == [("decay/cpujob", int(pid), "1\n")]


def test_what_cannot_be_read_or_written_is_refused_to_root(mount: ControlMount) -> None:
    for name, flags in (("hpc/admin/bring", os.O_RDONLY), ("hpc/admin/bring", os.O_RDWR), ("self/where", os.O_WRONLY)):
        assert error_of(lambda path=mount.proc / name, how=flags: os.open(path, how)) == errno.EACCES  # type: ignore[misc]


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("command", ["echo 1 > F", "echo -n 1 > F", "echo 1 >> F", "printf 1 | tee F", "cp one F"])
def test_ways_to_write(mount: ControlMount, command: str) -> None:
    found = mount.run(command.replace("F", f"proc/{ME}/lock").replace("echo -n", "/bin/echo -n"))
    assert found.stderr == ""
    assert [(path, pid, text.strip()) for path, pid, text in mount.written()] == [("lock", ME, "1")]


@pytest.mark.parametrize("text", ["2\n", "-1", "1 ", "one", "1\n1\n", "\n", "\0", "\N{SUPERSCRIPT ONE}"])
def test_malformed_writes_change_nothing(mount: ControlMount, text: str) -> None:
    assert error_of(lambda: (mount.proc / "self/lock").write_text(text)) == errno.EINVAL
    assert mount.source.writes == []


def test_what_is_no_text_or_too_much_is_refused_whole(mount: ControlMount) -> None:
    mask = mount.proc / "self/mignodes"
    assert error_of(lambda: mask.write_bytes(b"\xff\xfe")) == errno.EINVAL
    for size_bytes in (20_000, 3 << 20):  # the kernel sends the last one in pieces
        descriptor = os.open(mask, os.O_WRONLY)
        try:
            assert error_of(lambda fd=descriptor, size=size_bytes: os.write(fd, b"1" * size)) == errno.EINVAL  # type: ignore[misc]
        finally:
            os.close(descriptor)
    assert mount.source.writes == []
    mask.write_text("f" * 16383 + "\n")
    assert len(mount.source.writes) == 1


def test_truncating_and_writing_nothing_change_nothing(mount: ControlMount) -> None:
    lock = mount.proc / "self/lock"
    assert mount.run("> proc/self/lock && : >> proc/self/lock && truncate -s 0 proc/self/lock").stderr == ""
    lock.write_bytes(b"")
    os.truncate(lock, 100)
    assert mount.source.writes == []
    assert lock.stat().st_size == 0


def test_one_write_is_one_value(mount: ControlMount) -> None:
    descriptor = os.open(mount.proc / "self/lock", os.O_RDWR)
    try:
        assert error_of(lambda: os.pwrite(descriptor, b"1", 1)) == errno.EINVAL
        assert os.write(descriptor, b"1\n") == 2
        assert error_of(lambda: os.write(descriptor, b"0\n")) == errno.EINVAL  # at offset 2
        assert os.pwrite(descriptor, b"0", 0) == 1
        assert os.writev(descriptor, [b""]) == 0
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert os.writev(descriptor, [b"1", b"\n"]) == 2
    finally:
        os.close(descriptor)
    assert mount.written() == [("lock", ME, "1\n"), ("lock", ME, "0"), ("lock", ME, "1\n")]


def test_appending_is_writing(mount: ControlMount) -> None:
    with open(mount.proc / "self/lock", "ab", buffering=0) as file:
        assert [file.write(text) for text in (b"1", b"0\n", b"1")] == [1, 2, 1]
    assert [text for _, _, text in mount.written()] == ["1", "0\n", "1"]


def test_writers_at_once_each_write_theirs(mount: ControlMount) -> None:
    def write(value: int) -> None:
        with open(mount.proc / "self/selected", "wb", buffering=0) as file:
            for count in range(40):
                assert os.pwrite(file.fileno(), b"%d" % (value * 100 + count), 0)

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(write, range(8)))
    texts = [int(text) for _, _, text in mount.written()]
    assert sorted(texts) == [value * 100 + count for value in range(8) for count in range(40)]
    for value in range(8):
        assert [text for text in texts if text // 100 == value] == [value * 100 + count for count in range(40)]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EBUSY, errno.EPERM, errno.ESRCH, errno.ENOTCONN])
def test_the_answer_of_who_decides_is_the_writers(mount: ControlMount, number: int) -> None:
    mount.source.fail["goto"] = RemoteFailure(number)
    goto = mount.proc / "self/goto"
    for _ in range(2):  # ENOSYS is not taken to be said of the mount
        assert error_of(lambda: goto.write_text("2")) == number
        assert error_of(goto.read_text) == number
    (mount.proc / "self/lock").write_text("1")
    assert (mount.proc / "self/lock").read_text() == "1\n"


# ---------------------------------------------------------------- reading


def test_a_value_stays_while_it_is_read(mount: ControlMount) -> None:
    mount.source.values["cantmove", ME] = "monkey, pending requests\n"
    with open(mount.proc / "self/cantmove", "rb", buffering=0) as file:
        text = file.read(1)
        mount.source.values["cantmove", ME] = "another, longer one, that came later\n"
        while piece := file.read(1):
            text += piece
        assert text == b"monkey, pending requests\n"
        assert os.pread(file.fileno(), 100, 8) == text[8:]
        file.seek(0)
        assert file.read() == b"another, longer one, that came later\n"
    assert len(mount.source.reads) == 2


def test_an_empty_value_is_an_empty_file(mount: ControlMount) -> None:
    mount.source.values["cantmove", ME] = ""
    assert mount.run(f"cat proc/{ME}/cantmove").stdout == ""


def test_values_of_the_cluster_name_who_asks(mount: ControlMount) -> None:
    (mount.proc / "hpc/nodes/2/load").read_text()
    assert mount.source.reads == [virtual.Target("hpc", "nodes/2/load", *(identify(ME) or ()))]
    mount.run("cat proc/hpc/nodes/2/load", user=65534)
    assert mount.source.readers == [0, 65534]


def test_a_long_value_comes_whole(mount: ControlMount) -> None:
    mount.source.values["admin/config", ME] = "node 2\n" * 40_000
    assert (mount.proc / "hpc/admin/config").read_text() == "node 2\n" * 40_000


# ---------------------------------------------------------------- processes that end


def test_a_process_that_ends_meanwhile(mount: ControlMount) -> None:
    process = sleeper()
    directory = mount.proc / str(process.pid)
    held = os.open(directory, os.O_PATH)
    with open(directory / "lock", "r+b", buffering=0) as file:
        assert file.read(1)
        process.kill()
        process.wait()
        assert error_of(lambda: os.pread(file.fileno(), 10, 0)) == errno.ESRCH
        assert error_of(lambda: os.pread(file.fileno(), 10, 1)) == errno.ESRCH
        assert error_of(lambda: os.pwrite(file.fileno(), b"1", 0)) == errno.ESRCH
    assert error_of((directory / "lock").read_text) == errno.ENOENT
    assert error_of(lambda: os.stat("lock", dir_fd=held)) == errno.ESRCH
    os.close(held)
    assert mount.source.writes == []


def test_another_process_with_its_pid_is_another(mount: ControlMount, monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper()
    try:
        directory = mount.proc / str(process.pid)
        held = os.open(directory, os.O_RDONLY)
        with open(directory / "lock", "r+b", buffering=0) as file:
            assert file.read(1)

            def later(thread: int) -> Identity | None:
                found = identify(thread)
                return found and Identity(found.pid, found.start_ticks + (thread == process.pid))

            monkeypatch.setattr(virtual, "identify", later)
            monkeypatch.setattr(virtual, "owner_of", lambda identity: (NOBODY, NOBODY))
            assert error_of(lambda: os.pwrite(file.fileno(), b"1", 0)) == errno.ESRCH
            assert error_of(lambda: os.stat("lock", dir_fd=held)) == errno.ESRCH
            assert error_of(lambda: os.listdir(held)) == errno.ESRCH
            assert (directory / "lock").stat().st_uid == NOBODY
        os.close(held)
    finally:
        process.kill()
        process.wait()
    assert mount.source.writes == []


def test_a_process_that_ends_while_its_owner_is_looked_up(mount: ControlMount, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(identity: Identity) -> tuple[int, int]:
        raise ProcessLookupError(errno.ESRCH, "gone")

    monkeypatch.setattr(virtual, "owner_of", gone)
    assert error_of((mount.proc / "self/lock").stat) == errno.ESRCH


def test_who_is_killed_waits_no_longer(mount: ControlMount) -> None:
    mount.source.held["admin/expel"] = trio.Event()
    process = mount.start("/bin/sh", "-c", "echo 1 > proc/hpc/admin/expel")
    mount.source.is_held.wait()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert mount.source.writes == []


# ---------------------------------------------------------------- whatever else is tried


@pytest.mark.parametrize(
    ("number", "call"),
    [
        (errno.ENOENT, lambda proc: (proc / "x").mkdir()),
        (errno.ENOENT, lambda proc: (proc / "self/x").touch()),
        (errno.ENOENT, lambda proc: (proc / "self/x").symlink_to("y")),
        (errno.ENOENT, lambda proc: os.mkfifo(proc / "hpc/x")),
        (errno.ENOENT, lambda proc: os.link(proc / "self/lock", proc / "self/x")),
        (errno.EPERM, lambda proc: (proc / "self/lock").unlink()),
        (errno.EPERM, lambda proc: (proc / "hpc/admin").rmdir()),
        (errno.EPERM, lambda proc: (proc / "self/lock").rename(proc / "self/x")),
        (errno.EPERM, lambda proc: (proc / "self/lock").rename(proc.parent / "x")),
        (errno.EXDEV, lambda proc: (proc.parent / "one").rename(proc / "x")),
        (errno.EXDEV, lambda proc: os.link(proc / "self/lock", proc.parent / "x")),
        (errno.EPERM, lambda proc: (proc / "self/lock").chmod(0o600)),
        (errno.EPERM, lambda proc: os.chown(proc / "self/lock", 1, 1)),
        (errno.EOPNOTSUPP, lambda proc: os.setxattr(proc / "self/lock", "user.x", b"1")),
        (errno.EOPNOTSUPP, lambda proc: os.removexattr(proc / "self/lock", "user.x")),
        (errno.ENODATA, lambda proc: os.getxattr(proc / "self/lock", "user.x")),
        (None, lambda proc: os.utime(proc / "self/lock")),
        (None, lambda proc: os.access(proc / "self/lock", os.R_OK)),
    ],
)
def test_as_procfs_would(mount: ControlMount, number: int | None, call: Callable[[Path], Any]) -> None:
    for _ in range(2):
        assert error_of(lambda: call(mount.proc)) == number
    assert mount.source.writes == []


def test_of_an_open_file(mount: ControlMount) -> None:
    descriptor = os.open(mount.proc / "self/lock", os.O_RDWR)
    plain = os.open(mount.top / "one", os.O_RDWR)
    try:
        assert error_of(lambda: os.posix_fallocate(descriptor, 0, 10)) in (errno.EOPNOTSUPP, errno.EINVAL)
        assert error_of(lambda: os.lockf(descriptor, os.F_LOCK, 0)) == errno.ENOLCK
        os.fsync(descriptor)
        os.ftruncate(descriptor, 0)
        assert os.lseek(descriptor, 0, os.SEEK_END) == 0
        assert os.fstat(descriptor).st_size == 0
        assert os.copy_file_range(plain, descriptor, 2) == 2  # through the kernel's buffers
    finally:
        os.close(plain)
        os.close(descriptor)
    assert mount.written() == [("lock", ME, "1\n")]


def test_it_takes_no_space_and_has_no_attributes(mount: ControlMount) -> None:
    found = os.statvfs(mount.proc / "hpc")
    assert (found.f_blocks, found.f_files, found.f_namemax) == (0, 0, 255)
    assert os.listxattr(mount.proc / "self/lock") == []


async def test_what_comes_from_a_mapping_is_refused() -> None:
    """It says nothing of who wrote it."""
    source, hook = FakeSource(), Hook()
    answers = virtual.VirtualTree(source, list).handlers
    me = identify(ME)
    assert me
    lock = tree.named(Spot(tree.PROCESS, ME, tree.ticks_of(me.start_ticks)), b"lock")
    assert lock
    hook.pid, hook.node_id = ME, lock.node_id
    head = bytes(abi.IN_HEADER_BYTES)
    opened = await answers[abi.OPEN](hook, memoryview(head + struct.pack("<II", os.O_RDWR, 0)), 1)
    (fh,) = struct.unpack_from("<Q", opened, 16)

    async def write(flags: int) -> bytes:
        body = struct.pack("<QQIIQII", fh, 0, 1, flags, 0, os.O_RDWR, 0) + b"1"
        return await answers[abi.WRITE](hook, memoryview(head + body), 2)

    with pytest.raises(FUSEError):
        await write(abi.WRITE_FROM_CACHE)
    assert source.writes == []
    assert await write(0) == abi.write_reply(2, 1)


def test_attributes_that_were_told_before_are_not_told_later(mount: ControlMount) -> None:
    """What a LOOKUP told (justtold.py) is for a thread's very next request."""
    me = threading.get_native_id()
    mount.hook.next_answers[me] = "of another object"
    (mount.proc / "self/lock").stat()
    assert me not in mount.hook.next_answers


def test_the_rest_of_the_mount_is_asked_as_before(mount: ControlMount) -> None:
    mount.asked.clear()
    with open(mount.top / "one", "rb", buffering=0) as file:
        assert file.read(10) == b"1\n"
    assert {abi.LOOKUP, abi.OPEN, abi.READ, abi.RELEASE} >= set(mount.asked) - {abi.GETATTR, abi.FLUSH} >= {abi.READ}
    mount.asked.clear()
    (mount.proc / "self/lock").read_text()
    assert abi.READ not in mount.asked
    assert abi.OPEN not in mount.asked
