"""Notifications to a real FUSE mount, which a thread of the test serves by hand: what does the kernel ask again?"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from omfs.kernel import namespaces as ns
from omfs.kernel.fusenotify import Notifier

LOOKUP, GETATTR, MKDIR, OPEN, READ, INIT, OPENDIR = 1, 3, 9, 14, 15, 26, 27  # enum fuse_opcode
FORGETS: Final = (2, 42)
CLOSES: Final = (18, 25, 29)
KEEP_CACHE: Final = 2
TOP, FILE, MADE = 1, 2, 3
PAGE: Final = 4096
CONTENT: Final = bytes(PAGE) + b"x" * PAGE
FOREVER_S: Final = 1 << 30

HEAD: Final = struct.Struct("<IIQQIIIHxx")
OUT: Final = struct.Struct("<IiQ")
ATTRIBUTES: Final = struct.Struct("<6Q10I")


def attributes(number: int, size_bytes: int = len(CONTENT)) -> bytes:
    mode = stat.S_IFREG | 0o644 if number == FILE else stat.S_IFDIR | 0o755
    return ATTRIBUTES.pack(number, size_bytes, 16, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, PAGE, 0)


def entry(number: int) -> bytes:
    return struct.pack("<4QII", number, 1, FOREVER_S, FOREVER_S, 0, 0) + attributes(number or TOP)


class Served:
    """A mount with one file; everything may be cached forever."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.content = CONTENT
        self.before_attributes = lambda: None
        self.file = top / "file"
        self.asked: list[tuple[int, int, int]] = []  # opcode, inode, offset (of READ)
        self.may_make = threading.Event()
        self.is_making = threading.Event()
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        ns.mount("test", str(top), "fuse", 0, f"fd={self.fd},rootmode=40000,user_id=0,group_id=0")
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        self.notifier = Notifier(self.fd)

    def serve(self) -> None:
        with suppress(OSError):  # ENODEV: unmounted
            while True:
                request = os.read(self.fd, 1 << 18)
                _, opcode, unique, number, *_ = HEAD.unpack_from(request)
                if opcode not in FORGETS:
                    body = request[HEAD.size :]
                    if opcode == MKDIR:
                        self.is_making.set()
                        threading.Thread(target=self.make, args=(unique,)).start()
                    else:
                        self.reply(unique, self.answer(opcode, number, body))

    def make(self, unique: int) -> None:
        self.may_make.wait()
        with suppress(OSError):  # the connection was aborted
            self.reply(unique, entry(MADE))

    def reply(self, unique: int, answer: bytes | int) -> None:
        error, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
        os.write(self.fd, OUT.pack(OUT.size + len(body), error, unique) + body)

    def answer(self, opcode: int, number: int, body: bytes) -> bytes | int:
        offset = struct.unpack_from("<Q", body, 8)[0] if opcode == READ else 0
        self.asked.append((opcode, number, offset))
        if opcode == INIT:
            return struct.pack("<4IHHIIHHI", 7, 31, 1 << 17, 0, 16, 12, 1 << 17, 1, 32, 0, 0) + bytes(28)
        if opcode == LOOKUP:
            return entry(FILE if body.startswith(b"file\0") else 0)  # 0: a negative entry
        if opcode == GETATTR:
            self.before_attributes()
            return struct.pack("<QII", FOREVER_S, 0, 0) + attributes(number, len(self.content))
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, KEEP_CACHE, 0)
        if opcode == READ:
            size = struct.unpack_from("<I", body, 16)[0]
            return self.content[offset : offset + size]
        return b"" if opcode in CLOSES else errno.ENOSYS

    @contextmanager
    def asking(self, *expected: tuple[int, int, int]) -> Iterator[None]:
        """What is done inside asks for exactly this."""
        self.asked.clear()
        yield
        assert [asked for asked in self.asked if asked[0] in (LOOKUP, GETATTR, READ)] == list(expected)

    def read(self) -> None:
        assert self.file.read_bytes() == CONTENT


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    mount = Served(tmp_path)
    try:
        tmp_path.stat()  # answered once INIT was
        yield mount
    finally:
        mount.may_make.set()
        ns.unmount(str(tmp_path), ns.MNT_DETACH)
        mount.thread.join()
        os.close(mount.fd)


def test_attributes_are_asked_again(served: Served) -> None:
    with served.asking((LOOKUP, TOP, 0)):
        served.file.stat()
        served.file.stat()
    served.read()
    assert served.notifier.inval_attributes(FILE)
    with served.asking((GETATTR, FILE, 0)):
        served.file.stat()
        served.read()  # its pages are still there


def test_pages_are_read_again(served: Served) -> None:
    served.read()
    served.read()  # the first one has made the kernel doubt the access time
    with served.asking():
        served.read()
    assert served.notifier.inval_inode(FILE)
    with served.asking((GETATTR, FILE, 0), (READ, FILE, 0)):
        served.read()


def test_a_range_of_pages_is_read_again(served: Served) -> None:
    served.read()
    assert served.notifier.inval_inode(FILE, PAGE, PAGE)
    with served.asking((GETATTR, FILE, 0), (READ, FILE, PAGE)):
        served.read()


def test_a_file_grows_though_its_attributes_were_overtaken(served: Served) -> None:
    served.read()
    with served.file.open("rb", buffering=0) as file:
        served.content += b"more"
        assert served.notifier.inval_inode(FILE)

        def overtake() -> None:
            assert served.notifier.inval_attributes(FILE)
            assert served.notifier.grow(FILE, len(served.content))

        served.before_attributes = overtake
        assert file.read(len(served.content)) == served.content


def test_growing_changes_no_page_and_never_shrinks(served: Served) -> None:
    served.read()
    served.read()  # as above
    with served.asking():
        assert served.notifier.grow(FILE, len(CONTENT))
        assert served.notifier.grow(FILE, 1)
        assert served.notifier.grow(FILE, PAGE + 1)
        served.read()
    assert not served.notifier.grow(999, 1)


def test_names_are_looked_up_again(served: Served) -> None:
    served.file.stat()
    assert served.notifier.inval_entry(TOP, b"file")
    with served.asking((LOOKUP, TOP, 0)):
        served.file.stat()
        served.file.stat()


def test_missing_names_are_looked_up_again(served: Served) -> None:
    missing = served.top / "missing"
    with served.asking((LOOKUP, TOP, 0)):
        assert not missing.exists()
        assert not missing.exists()
    assert served.notifier.inval_entry(TOP, b"missing")
    with served.asking((LOOKUP, TOP, 0)):
        assert not missing.exists()


def test_what_the_kernel_does_not_know(served: Served) -> None:
    assert not served.notifier.inval_inode(999)
    assert not served.notifier.inval_attributes(999)
    assert not served.notifier.inval_entry(999, b"file")
    assert not served.notifier.inval_entry(TOP, b"never-asked-for")


def test_faults_are_errors(served: Served) -> None:
    served.file.stat()
    with pytest.raises(NotADirectoryError):
        served.notifier.inval_entry(FILE, b"x")
    with pytest.raises(OSError, match="File name too long"):
        served.notifier.inval_entry(TOP, b"x" * 5000)


def wait_stuck(thread: threading.Thread) -> None:
    """Until it sleeps in the kernel and nothing can wake it but what it waits for."""
    state = Path(f"/proc/self/task/{thread.native_id}/stat")
    while state.read_text().rpartition(")")[2].split()[0] != "D":
        assert thread.is_alive()


def test_only_entries_wait_for_the_directorys_lock(served: Served) -> None:
    served.file.stat()
    making = threading.Thread(target=os.mkdir, args=(served.top / "made",))
    making.start()
    served.is_making.wait()
    assert served.notifier.inval_attributes(TOP)
    assert served.notifier.inval_inode(TOP)
    notifying = threading.Thread(target=served.notifier.inval_entry, args=(TOP, b"file"))
    notifying.start()
    wait_stuck(notifying)
    served.may_make.set()
    making.join()
    notifying.join()
    with served.asking((LOOKUP, TOP, 0)):
        served.file.stat()
