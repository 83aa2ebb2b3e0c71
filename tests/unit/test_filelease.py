"""Kernel leases on files: on each kind of file system, with programs that want to write."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs.kernel.filelease import OVERFLOW_SIGNAL, FileLeases
from tests.unit.localwatch import WRITE, program


@pytest.fixture
def leases() -> Iterator[FileLeases]:
    held = FileLeases()
    yield held
    held.close()


@pytest.fixture
def path(room: Path) -> Path:
    file = room / "file"
    file.write_bytes(b"content")
    return file


@pytest.fixture
def fd(leases: FileLeases, path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    yield descriptor
    leases.release(descriptor)
    os.close(descriptor)


def wait_broken(leases: FileLeases) -> list[int]:
    while not (broken := leases.broken()):
        select.select([leases.descriptor], [], [])
    return broken


@pytest.mark.parametrize(
    "action",
    [
        "os.open(PATH, os.O_WRONLY)",
        "os.open(PATH, os.O_RDWR | os.O_APPEND)",
        "os.open(PATH, os.O_WRONLY | os.O_TRUNC)",
        "os.truncate(PATH, 3)",
    ],
)
def test_a_writer_waits_until_the_lease_is_released(leases: FileLeases, path: Path, fd: int, action: str) -> None:
    assert leases.take(fd)
    assert leases.is_whole(fd)
    assert leases.broken() == []
    with program(path, action) as writer:
        assert wait_broken(leases) == [fd]
        assert not leases.is_whole(fd)
        assert not writer.is_in
        assert path.read_bytes() == b"content"
        leases.release(fd)
        writer.wait_in()
        assert leases.broken() == []


def test_readers_do_not_wait(leases: FileLeases, path: Path, fd: int) -> None:
    assert leases.take(fd)
    with program(path, "os.open(PATH, os.O_RDONLY)") as reader:
        reader.wait_in()
    assert leases.broken() == []


@pytest.mark.parametrize("action", ["os.open(PATH, os.O_WRONLY)", "os.open(PATH, os.O_RDWR)"])
def test_no_lease_beside_a_writer(leases: FileLeases, path: Path, fd: int, action: str) -> None:
    with program(path, action) as writer:
        writer.wait_in()
        assert not leases.take(fd)
    assert leases.take(fd)


def test_no_lease_beside_a_mapping_that_can_be_stored_to(leases: FileLeases, path: Path, fd: int) -> None:
    action = "__import__('mmap').mmap((fd := os.open(PATH, os.O_RDWR)), 0), os.close(fd)"
    with program(path, action) as writer:
        writer.wait_in()
        assert not leases.take(fd)


def test_we_are_no_exception(leases: FileLeases, path: Path, fd: int) -> None:
    assert leases.take(fd)
    with pytest.raises(BlockingIOError):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    assert wait_broken(leases) == [fd]


@pytest.fixture
def own(leases: FileLeases, path: Path) -> Iterator[int]:
    """Open for writing."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield descriptor
    leases.release(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("action", "only_reads"),
    [("os.open(PATH, os.O_RDONLY)", True), ("os.open(PATH, os.O_WRONLY)", False), ("os.truncate(PATH, 3)", False)],
)
def test_whoever_opens_the_file_waits_for_a_write_lease(
    leases: FileLeases, path: Path, own: int, action: str, only_reads: bool
) -> None:
    assert leases.take(own, fcntl.F_WRLCK)
    assert leases.is_whole(own)
    with program(path, action) as other:
        assert wait_broken(leases) == [own]
        assert not leases.is_whole(own)
        assert leases.may_be_read(own) is only_reads
        assert not other.is_in
        os.pwrite(own, b"flushed", 0)
        leases.release(own)
        other.wait_in()


def test_who_has_a_write_lease_writes_and_truncates_through_it(leases: FileLeases, path: Path, own: int) -> None:
    assert leases.take(own, fcntl.F_WRLCK)
    other = os.dup(own)
    os.pwrite(other, b"x", 0)
    os.ftruncate(other, 0)
    os.close(other)
    os.close(os.open(path, os.O_PATH))
    path.chmod(0o600)
    path.rename(path.with_name("new"))
    assert leases.is_whole(own)
    assert leases.broken() == []


@pytest.mark.parametrize("action", ["os.open(PATH, os.O_RDONLY)", "os.open(PATH, os.O_WRONLY)"])
def test_no_write_lease_while_anybody_has_the_file_open(leases: FileLeases, path: Path, own: int, action: str) -> None:
    with program(path, action) as other:
        other.wait_in()
        assert not leases.take(own, fcntl.F_WRLCK)
    assert leases.take(own, fcntl.F_WRLCK)


def test_a_lower_layers_file_is_guarded_over_its_copy_up(leases: FileLeases, any_disk: Path) -> None:
    path = any_disk / "below" / "file"
    if not path.exists():  # not an overlay; then any file will do
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert leases.take(fd)
        path.chmod(0o640)  # copies it up
        assert leases.is_whole(fd)
        with program(path, WRITE) as writer:
            assert wait_broken(leases) == [fd]
            assert not writer.is_in
            leases.release(fd)
            writer.wait_in()
            leases.release(fd)  # as when the kernel has taken it away already
    finally:
        os.close(fd)


def test_a_late_signal_for_another_file_is_not_believed(leases: FileLeases, path: Path, fd: int) -> None:
    """The number of a descriptor that was closed belongs to the next one."""
    number = os.dup(fd)
    other = path.with_name("other")
    other.touch()
    mine = os.open(other, os.O_RDONLY)
    try:
        assert leases.take(mine)
        with pytest.raises(BlockingIOError):
            os.open(other, os.O_WRONLY | os.O_NONBLOCK)
        leases.release(mine)
        os.dup2(number, mine)  # the signal for it is still in the queue
        assert leases.take(mine)
        assert leases.broken() == []
        assert leases.is_whole(mine)
    finally:
        leases.release(mine)
        os.close(number)
        os.close(mine)


def test_when_the_queue_is_full_all_are_asked(leases: FileLeases, path: Path, fd: int) -> None:
    other = path.with_name("other")
    other.touch()
    whole = os.open(other, os.O_RDONLY)
    try:
        assert leases.take(fd)
        assert leases.take(whole)
        with program(path, WRITE):
            assert wait_broken(leases) == [fd]
            assert leases.broken() == []  # told once,
            assert leases.is_whole(whole)
            os.kill(os.getpid(), OVERFLOW_SIGNAL)
            assert wait_broken(leases) == [fd]  # and again when nobody knows what was lost
    finally:
        leases.release(whole)
        os.close(whole)


def test_a_full_queue_ends_in_the_other_signal(path: Path, tmp_path: Path) -> None:
    """With the real limit, in a process of its own: as root it counts only without CAP_SYS_RESOURCE."""
    code = f"""
import os, resource, sys
from omfs.kernel.credentials import CAP_SYS_RESOURCE, drop_effective_capability
from omfs.kernel.filelease import FileLeases, block_signals
block_signals()
leases = FileLeases()
fd = os.open({str(path)!r}, os.O_RDONLY)
assert leases.take(fd)
drop_effective_capability(CAP_SYS_RESOURCE)
resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
try:
    os.open({str(path)!r}, os.O_WRONLY | os.O_NONBLOCK)
except BlockingIOError:
    pass
records = os.read(os.dup(leases.descriptor), 128)
os.kill(os.getpid(), int.from_bytes(records[:4], "little"))  # put it back
print(int.from_bytes(records[:4], "little"), leases.broken() == [fd])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(int(OVERFLOW_SIGNAL)), "True"]


def test_a_lease_taken_in_another_thread_is_told_too(leases: FileLeases, path: Path, fd: int) -> None:
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.append(leases.take(fd)))
    thread.start()
    thread.join()
    assert taken == [True]
    with program(path, WRITE):
        assert wait_broken(leases) == [fd]


def test_what_has_no_leases_says_so(leases: FileLeases, room: Path) -> None:
    fd = os.open(room, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            leases.take(fd)
    finally:
        os.close(fd)


def test_a_thread_that_would_die_of_the_signal_is_found() -> None:
    stop = threading.Event()
    unblocked = threading.Event()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (OVERFLOW_SIGNAL,))
        unblocked.set()
        stop.wait()

    thread = threading.Thread(target=run)
    thread.start()
    unblocked.wait()
    try:
        with pytest.raises(RuntimeError, match="block_signals"):
            FileLeases()
    finally:
        stop.set()
        thread.join()


def test_a_lease_that_another_process_took(leases: FileLeases, path: Path, fd: int) -> None:
    """Taken over from a child that has ended, by way of the description that both share."""
    child = os.fork()
    if child == 0:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    number = os.dup(fd)  # not the number that the child knew
    try:
        assert leases.take_over(number)
        with program(path, WRITE) as writer:
            assert wait_broken(leases) == [number]
            assert not leases.take_over(number)
            assert not writer.is_in
            leases.release(number)
            writer.wait_in()
    finally:
        os.close(number)
