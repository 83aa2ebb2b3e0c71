"""fanotify: native programs are told of, with the handles that name_to_handle_at gives, on each kind of file system."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs.kernel import fanotify
from omfs.kernel.fanotify import ATTRIB, CREATE, DELETE, MODIFY, ON_DIRECTORY, OVERFLOW, RENAME, Event, Watcher
from omfs.kernel.handles import HandleReader, prepare_handle

QUEUE_LIMIT = Path("/proc/sys/fs/fanotify/max_queued_events")
READER = HandleReader()


def key_of(path: Path) -> bytes:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        kind, data, _ = READER.read(fd)
        return fanotify.object_key(os.statvfs(path.parent).f_fsid, prepare_handle(kind, data))
    finally:
        os.close(fd)


def run(path: Path, code: str) -> int:
    """Have another process do it in *path*; its pid."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import os\n" + code], cwd=path)
    assert child.wait() == 0
    return child.pid


class Watched:
    """A directory, and what is told of it and what is in it (the file systems are shared with other tests)."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.watcher = Watcher()
        fd = os.open(top, os.O_RDONLY)
        self.watcher.mark(fd)
        os.close(fd)

    def key(self, name: str) -> bytes:
        return key_of(self.top / name)

    def after(self, code: str) -> list[Event]:
        """The events of a program that does this, their pids checked."""
        pid = run(self.top, code)
        events = self.watcher.read(os.getpid())
        assert {event.pid for event in events} <= {pid}
        return [event._replace(pid=0) for event in events]


def told(mask: int, object_key: bytes | None, *names: bytes | None) -> Event:
    padded = [*names, None, None, None, None][:4]
    return Event(mask, 0, object_key, *padded)


@pytest.fixture
def watched(room: Path) -> Iterator[Watched]:
    watched = Watched(room)
    yield watched
    watched.watcher.close()


def test_creations(watched: Watched) -> None:
    top = watched.key(".")
    for code, extra in [
        ("os.close(os.open('a', os.O_CREAT | os.O_WRONLY))", 0),
        ("os.mkdir('b')", ON_DIRECTORY),
        ("os.symlink('x', 'c')", 0),
        ("os.mkfifo('d')", 0),
    ]:
        name = code.split("'")[-2 if "symlink" in code else 1]
        events = watched.after(code)
        assert events == [told(CREATE | extra, watched.key(name), top, name.encode())]


def test_a_link(watched: Watched) -> None:
    (watched.top / "a").touch()
    key = watched.key("a")
    events = watched.after("os.link('a', 'b')")
    assert set(events) == {told(ATTRIB, key), told(CREATE, key, watched.key("."), b"b")}


@pytest.mark.parametrize(
    ("code", "mask"),
    [
        ("os.write(os.open('a', os.O_WRONLY), b'x')", MODIFY),
        ("os.close(os.open('a', os.O_WRONLY | os.O_TRUNC))", MODIFY),
        ("os.truncate('a', 1)", MODIFY),
        ("os.posix_fallocate(os.open('a', os.O_WRONLY), 0, 9999)", MODIFY),
        ("os.chmod('a', 0o600)", ATTRIB),
        ("os.chown('a', 5, 5)", ATTRIB),
        ("os.utime('a', (1, 1))", ATTRIB),
        ("os.setxattr('a', 'user.x', b'1')", ATTRIB),
        ("os.setxattr('a', 'user.x', b'1'); os.removexattr('a', 'user.x')", ATTRIB),
    ],
)
def test_changes_of_a_file(watched: Watched, code: str, mask: int) -> None:
    file = watched.top / "a"
    file.write_bytes(b"content")
    events = watched.after(code)
    assert events == [told(mask, watched.key("a"), watched.key("."), b"a")]


def test_a_file_can_be_ignored(watched: Watched) -> None:
    for name in ("mine", "other"):
        (watched.top / name).write_bytes(b"content")
    watched.watcher.ignore(watched.top / "mine")
    code = "[os.write(os.open(name, os.O_WRONLY), b'x') for name in ('mine', 'other', 'mine')]"
    assert watched.after(code) == [told(MODIFY, watched.key("other"), watched.key("."), b"other")]


def test_changes_of_a_directory_itself(watched: Watched) -> None:
    (watched.top / "b").mkdir()
    for code in ("os.chmod('b', 0o700)", "os.setxattr('b', 'trusted.x', b'1')", "os.utime('b')"):
        assert watched.after(code) == [told(ATTRIB | ON_DIRECTORY, watched.key("b"))]


def test_removals(watched: Watched) -> None:
    (watched.top / "a").touch()
    (watched.top / "b").mkdir()
    top, file, directory = (watched.key(name) for name in (".", "a", "b"))
    events = watched.after("os.unlink('a'); os.rmdir('b')")
    assert told(DELETE, file, top, b"a") in events
    assert told(ATTRIB, file) in events  # its link count
    assert told(DELETE | ON_DIRECTORY, directory, top, b"b") in events


def test_a_rename_names_both_places_and_the_victim(watched: Watched) -> None:
    (watched.top / "a").touch()
    (watched.top / "b").mkdir()
    (watched.top / "b" / "c").touch()
    top, moved, directory, victim = (watched.key(name) for name in (".", "a", "b", "b/c"))
    events = watched.after("os.rename('a', 'b/c')")
    assert set(events) == {told(RENAME, moved, top, b"a", directory, b"c"), told(ATTRIB, victim)}


def test_an_exchange_is_two_renames(watched: Watched) -> None:
    (watched.top / "a").touch()
    (watched.top / "b").mkdir()
    top, file, directory = (watched.key(name) for name in (".", "a", "b"))
    exchange = "import ctypes; assert ctypes.CDLL(None).renameat2(-100, b'a', -100, b'b', 2) == 0"
    pid = subprocess.run([sys.executable, "-c", exchange], cwd=watched.top, check=True)
    assert pid.returncode == 0
    events = {event._replace(pid=0) for event in watched.watcher.read(os.getpid())}
    assert events == {
        told(RENAME, file, top, b"a", top, b"b"),
        told(RENAME | ON_DIRECTORY, directory, top, b"b", top, b"a"),
    }


def test_what_we_do_is_not_told(watched: Watched) -> None:
    (watched.top / "a").write_bytes(b"x")
    (watched.top / "a").unlink()
    assert watched.watcher.read(os.getpid()) == []
    (watched.top / "a").write_bytes(b"x")
    assert {event.pid for event in watched.watcher.read()} == {os.getpid()}


def test_what_is_only_read_is_not_told(watched: Watched) -> None:
    (watched.top / "a").write_bytes(b"x")
    assert watched.after("open('a').read(); os.listdir('.'); os.stat('a')") == []


def test_another_process_can_go_on_with_the_group(watched: Watched) -> None:
    number = os.dup(watched.watcher.descriptor)
    run(watched.top, "os.mkdir('b')")
    again = Watcher(number)
    assert [event.name for event in again.read(os.getpid())] == [b"b"]
    again.close()


# ---------------------------------------------------------------- the lower layer of an overlay


@pytest.fixture
def lower(any_disk: Path) -> Path:
    """A file that an overlay has only in its lower layer; elsewhere an ordinary one."""
    name = f"untouched{len(os.listdir(any_disk))}"
    layer = any_disk.parent / "lower"
    below = (layer if layer.is_dir() else any_disk) / name
    below.mkdir()
    (below / "file").write_bytes(b"x")
    (below / "sub").mkdir()
    return any_disk / name


@pytest.mark.parametrize(
    "code",
    ["os.chmod('file', 0o600)", "os.write(os.open('file', os.O_WRONLY), b'y')", "os.utime('file')"],
)
def test_a_file_of_the_lower_layer_keeps_its_key(lower: Path, code: str) -> None:
    before = (key_of(lower / "file"), key_of(lower))
    watched = Watched(lower)
    (event,) = watched.after(code)  # copies it up
    assert (event.object, event.directory) == before
    assert (key_of(lower / "file"), key_of(lower)) == before
    (event,) = watched.after(code)
    assert (event.object, event.directory) == before
    watched.watcher.close()


def test_files_of_the_lower_layer_nobody_looked_at(lower: Path) -> None:
    watched = Watched(lower)
    events = watched.after("os.rename('file', 'renamed')")
    top = watched.key(".")
    assert events == [told(RENAME, watched.key("renamed"), top, b"file", top, b"renamed")]
    (event,) = watched.after("os.rmdir('sub')")  # an overlay does not say which it was
    assert event._replace(object=None) == told(DELETE | ON_DIRECTORY, None, top, b"sub")
    watched.watcher.close()


# ---------------------------------------------------------------- overflow, and what the parser is fed


def test_a_full_queue_is_told(watched: Watched) -> None:
    """Filled to the brim: a smaller limit would be the whole machine's, and so that of other workers' exports."""
    limit = int(QUEUE_LIMIT.read_text())
    run(
        watched.top,
        "os.close(os.open('a', os.O_CREAT))\n"
        f"for number in range({limit} + 50): os.link('a', str(number)); os.unlink(str(number))",  # which is one event
    )
    events = watched.watcher.read(os.getpid())
    assert [bool(event.mask & OVERFLOW) for event in events] == [False] * limit + [True]
    assert watched.after("os.unlink('a')") != []


def test_a_long_queue_is_read_to_its_end(watched: Watched) -> None:
    run(watched.top, "for name in range(3000): os.mkdir('x' * 100 + str(name))")
    assert len(watched.watcher.read(os.getpid())) == 3000
    assert watched.watcher.read(os.getpid()) == []


def metadata(mask: int, pid: int, infos: bytes = b"", version: int = 3) -> bytes:
    return struct.pack("=IBBHQii", 24 + len(infos), version, 0, 24, mask, -1, pid) + infos


def info(kind: int, handle: bytes, name: bytes | None = None) -> bytes:
    """Padded to 4 bytes with NULs, as the kernel does it."""
    body = struct.pack("=8sIi", b"ABCDEFGH", len(handle), 1) + handle + (b"" if name is None else name + b"\0")
    body += bytes(-len(body) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def parse(records: bytes, own_pid: int = -1) -> list[Event]:
    events: list[Event] = []
    fanotify.parse_events(records, own_pid, events)
    return events


def test_overflow_is_never_ours() -> None:
    assert parse(metadata(OVERFLOW, 7) + metadata(MODIFY, 7), own_pid=7) == [told(OVERFLOW, None)._replace(pid=7)]


def test_records_of_all_kinds() -> None:
    def key(handle: bytes) -> bytes:
        return fanotify.object_key(int.from_bytes(b"ABCDEFGH", "little"), prepare_handle(1, handle))

    records = metadata(MODIFY, 1, info(2, b"dir", b"name") + info(1, b"object"))
    records += metadata(ATTRIB, 2, info(3, b"dir"))
    records += metadata(RENAME, 3, info(10, b"d1", b"n1") + info(12, b"d2", b"n2") + info(1, b"o"))
    records += metadata(ATTRIB, 4, info(2, b"dir", b"."))
    records += metadata(ATTRIB, 5, info(1, b"o") + info(200, b"of the future"))
    assert parse(records) == [
        Event(MODIFY, 1, key(b"object"), key(b"dir"), b"name"),
        Event(ATTRIB, 2, key(b"dir"), None, None),
        Event(RENAME, 3, key(b"o"), key(b"d1"), b"n1", key(b"d2"), b"n2"),
        Event(ATTRIB, 4, key(b"dir"), None, None),
        Event(ATTRIB, 5, key(b"o"), None, None),
    ]
    assert fanotify.split_key(key(b"object")) == (b"ABCDEFGH", 1, b"object")


def test_another_version_is_refused() -> None:
    with pytest.raises(OSError, match="version 4"):
        parse(metadata(MODIFY, 1, version=4))


@pytest.mark.parametrize("place", ["/proc", "/sys"])
def test_what_can_not_be_watched_says_so(place: str) -> None:
    watcher = Watcher()
    fd = os.open(place, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"No such device|not supported|cross-device"):
            watcher.mark(fd)
    finally:
        os.close(fd)
        watcher.close()
