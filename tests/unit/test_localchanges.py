"""The owner's watch over native programs, with real ones."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from omfs.export.localchanges import Change, ChangeKind
from omfs.export.mounts import Mount
from omfs.kernel import fanotify
from omfs.kernel.filelease import LeaseState
from tests.unit.localwatch import WRITE, Watch, program

READING = "os.open(PATH, os.O_RDONLY)"
ATTRIBUTES, NAMES, DATA, READ, EVICTED, EVERYTHING = ChangeKind


@pytest.fixture
def watch(room: Path, tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(room, tmp_path)
    yield watch
    watch.close()


@pytest.fixture
def file(watch: Watch) -> Path:
    path = watch.top / "file"
    path.write_bytes(b"content")
    return path


# ---------------------------------------------------------------- names and attributes


def test_names_are_told_once_per_directory(watch: Watch) -> None:
    (watch.top / "old").touch()
    top = watch.cache(".")
    watch.run("os.mkdir('a'); os.symlink('x', 'b'); os.rename('old', 'new'); os.rmdir('a')")
    assert watch.drained() == [Change(NAMES, top, frozenset({b"a", b"b", b"old", b"new"}))]


def test_a_rename_is_told_of_both_directories_and_the_object(watch: Watch, file: Path) -> None:
    (watch.top / "sub").mkdir()
    top, sub, moved = watch.cache("."), watch.cache("sub"), watch.cache("file")
    watch.run("os.rename('file', 'sub/moved')")
    assert set(watch.drained()) == {
        Change(NAMES, top, frozenset({b"file"})),
        Change(NAMES, sub, frozenset({b"moved"})),
        Change(ATTRIBUTES, moved),
    }


@pytest.mark.parametrize(
    "code",
    [
        "os.chmod('file', 0o600)",
        "os.setxattr('file', 'user.x', b'1')",
        "os.write(os.open('file', os.O_WRONLY), b'x')",
        "os.truncate('file', 0)",
        "os.link('file', 'other')",
        "os.unlink('file')",
    ],
)
def test_attributes_are_told(watch: Watch, file: Path, code: str) -> None:
    key = watch.cache("file")
    watch.run(code)
    assert watch.drained() == [Change(ATTRIBUTES, key)]


def test_what_nobody_caches_is_not_told(watch: Watch, file: Path) -> None:
    watch.run("os.chmod('file', 0o600); os.mkdir('a')")
    assert watch.drained() == []


def test_what_we_do_ourselves_is_not_told(watch: Watch, file: Path) -> None:
    watch.cache("file")
    watch.cache(".")
    file.chmod(0o600)
    file.rename(watch.top / "other")
    assert watch.drained() == []


def test_too_much_is_told_as_everything(watch: Watch, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.cache("file")
    lost = [fanotify.Event(fanotify.OVERFLOW, 0, None, None, None)]
    monkeypatch.setattr("omfs.kernel.fanotify.Watcher.read", lambda self, pid: lost)
    watch.run("os.chmod('file', 0o600)")
    assert watch.drained() == [Change(EVERYTHING, None)]


def test_file_systems_that_can_not_be_watched(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    fd = os.open("/proc", os.O_RDONLY)
    other = Mount(watch.mount.line, b"elsewhr!")
    try:
        assert not watch.changes.watches(other)
        assert not watch.changes.watch_mount(other, fd)
        watch.changes.mounts_changed()
        assert not watch.changes.watches(watch.mount)
        assert not watch.changes.watch_mount(other, fd)
        assert not watch.changes.watches(other)
    finally:
        os.close(fd)
    assert [record.message.count("can't be watched") for record in caplog.records] == [1]
    assert watch.changes.watch_mount(watch.mount, watch.mounts.descriptor(watch.mount))
    assert watch.changes.watches(watch.mount)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("action", [WRITE, "os.open(PATH, os.O_WRONLY | os.O_TRUNC)", "os.truncate(PATH, 1)"])
def test_a_writer_is_told_and_waits_for_the_unguard(watch: Watch, file: Path, action: str) -> None:
    key = watch.guard("file")
    assert watch.changes.is_guarded(key)
    with program(file, action) as writer:
        assert watch.wait_told() == [Change(DATA, key)]
        assert not writer.is_in
        assert file.read_bytes() == b"content"
        assert not watch.changes.is_guarded(key)
        assert not watch.changes.guard_data(key, watch.opener("file"))
        watch.changes.unguard(key)
        writer.wait_in()
    assert watch.changes.guard_data(key, watch.opener("file"))


def test_what_the_kernel_has_of_a_guard(watch: Watch, file: Path) -> None:
    key = watch.guard("file")
    assert watch.changes.look_at(key) == (LeaseState.ACTIVE, False)
    assert watch.changes.look_at(b"other") == (None, False)
    with program(file, WRITE):
        while watch.changes.look_at(key).lease is LeaseState.ACTIVE:
            pass
        assert watch.changes.look_at(key) == (LeaseState.BREAKING, False)
        assert watch.wait_told() == [Change(DATA, key)]
        assert watch.changes.look_at(key) == (LeaseState.BREAKING, True)
    # What the kernel does after lease-break-time, which is the whole machine's and too long for a test.
    fcntl.fcntl(watch.descriptor_of(key), fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert watch.changes.look_at(key) == (LeaseState.GONE, True)


def test_no_guard_beside_a_writer(watch: Watch, file: Path) -> None:
    key = watch.cache("file")
    with program(file, WRITE) as writer:
        writer.wait_in()
        assert not watch.changes.guard_data(key, watch.opener("file"))
    assert not watch.changes.is_guarded(key)


def test_a_guard_is_one_lease(watch: Watch, file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    key = watch.guard("file")
    watch.guard("file")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    watch.changes.unguard(key)
    watch.changes.unguard(key)
    assert len(os.listdir("/proc/self/fd")) == before
    with program(file, WRITE) as writer:
        writer.wait_in()


def test_what_can_not_be_opened_is_not_guarded(watch: Watch, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = watch.cache("file")

    def fail(flags: int) -> int:
        raise OSError(24, "no more descriptors")

    assert not watch.changes.guard_data(key, fail)
    assert not watch.changes.guard_data(key, fail)
    assert len(caplog.records) == 1


def test_the_least_recently_granted_is_evicted(room: Path, tmp_path: Path) -> None:
    watch = Watch(room, tmp_path, guards_max=2)
    try:
        for name in "abcd":
            (room / name).touch()
        first, second = watch.guard("a"), watch.guard("b")
        watch.guard("a")
        third = watch.guard("c")
        assert watch.drained() == [Change(EVICTED, second)]
        with program(room / "b", WRITE) as writer:  # until `unguard` it is as good as before
            assert watch.wait_told() == [Change(DATA, second)]
            assert not writer.is_in
            assert not watch.changes.guard_data(watch.cache("d"), watch.opener("d"))  # too many are overdue
            watch.changes.unguard(second)
            writer.wait_in()
        assert [watch.changes.is_guarded(key) for key in (first, second, third)] == [True, False, True]
        watch.guard("d")
        assert watch.drained() == [Change(EVICTED, first)]
    finally:
        watch.close()


def test_a_removed_file_is_wanted_back(watch: Watch, file: Path) -> None:
    key = watch.guard("file")
    watch.run("os.link('file', 'other'); os.unlink('file')")
    assert watch.drained() == []
    watch.run("os.rename('other', 'again'); os.unlink('again')")
    assert watch.drained() == [Change(EVICTED, key)]
    assert not watch.changes.is_guarded(key)
    watch.changes.unguard(key)


# ---------------------------------------------------------------- data that only one has


@contextmanager
def open_for_writing(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(("action", "kind"), [(READING, READ), (WRITE, DATA)])
def test_whoever_opens_what_is_exclusive_is_told_and_waits(
    watch: Watch, file: Path, action: str, kind: ChangeKind
) -> None:
    key = watch.cache("file")
    with open_for_writing(file) as fd:
        assert watch.changes.guard_exclusive(key, fd)
        assert watch.changes.guard_exclusive(key, fd)
        assert not watch.changes.guard_data(key, watch.opener("file"))
        with program(file, action) as other:
            assert watch.wait_told() == [Change(kind, key)]
            assert not other.is_in
            assert not watch.changes.guard_exclusive(key, fd)
            assert watch.changes.give_way(key)
            other.wait_in()
            assert not watch.changes.guard_exclusive(key, fd)
        assert watch.changes.guard_exclusive(key, fd)
        assert not watch.changes.give_way(key)  # another one than was told
        assert watch.changes.is_guarded(key)
        watch.changes.unguard(key)


def test_a_file_whose_data_are_cached_is_not_exclusive(watch: Watch, file: Path) -> None:
    with open_for_writing(file) as fd:
        os.close(os.open(file, os.O_RDONLY))
        key = watch.cache("file")
        assert not watch.changes.guard_data(key, watch.opener("file"))
        assert watch.changes.guard_exclusive(key, fd)
        watch.changes.unguard(key)
    assert watch.changes.guard_data(key, watch.opener("file"))
    assert not watch.changes.guard_exclusive(key, -1)


def test_what_is_exclusive_is_evicted_by_sharing_it(room: Path, tmp_path: Path) -> None:
    watch = Watch(room, tmp_path, guards_max=1)
    try:
        for name in "ab":
            (room / name).touch()
        first = watch.cache("a")
        with open_for_writing(room / "a") as one, open_for_writing(room / "b") as other:
            assert watch.changes.guard_exclusive(first, one)
            watch.run("os.unlink('a')")  # it ends with the file that is open
            assert watch.changes.guard_exclusive(watch.cache("b"), other)
            assert watch.drained() == [Change(READ, first), Change(ATTRIBUTES, first)]
    finally:
        watch.close()


async def test_the_keeper_gets_what_is_not_over_soon(watch: Watch, file: Path, nursery: trio.Nursery) -> None:
    nursery.start_soon(watch.changes.run)
    key = watch.cache("file")
    with open_for_writing(file) as fd:
        assert watch.changes.guard_exclusive(key, fd)
        assert watch.keeper._kept == {}
        while not watch.keeper._kept:  # noqa: ASYNC110 - a table is what is filled
            await trio.sleep(0.001)
        watch.changes.unguard(key)
    assert watch.keeper._kept == {}
    assert watch.changes.guard_data(key, watch.opener("file"))  # nobody has it open for writing any more


async def test_all_is_told_as_it_happens(watch: Watch, file: Path, nursery: trio.Nursery) -> None:
    key, top = watch.guard("file"), watch.cache(".")
    nursery.start_soon(watch.changes.run)

    async def wait_told() -> list[Change]:
        while not watch.told:  # noqa: ASYNC110 - a list is what is told
            await trio.sleep(0.001)
        told = list(watch.told)
        watch.told.clear()
        return told

    watch.run("os.mkdir('a')")
    assert await wait_told() == [Change(NAMES, top, frozenset({b"a"}))]
    with program(file, WRITE) as writer:
        assert await wait_told() == [Change(DATA, key)]
        watch.changes.unguard(key)
        await trio.to_thread.run_sync(writer.wait_in)
    watch.run("os.mkdir('b')")
    assert await wait_told() == [Change(NAMES, top, frozenset({b"b"}))]
