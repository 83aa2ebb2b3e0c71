"""How the kernel lists a directory without OPENDIR, and caches the listing: fs/fuse/readdir.c in Python.

A model for tests: `Kernel` is one directory's inode, `Stream` an open file of it, `getdents` one system call.  Pages
are small, so that their borders are met often.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

PAGE: Final = 256
_ENTRY_OUT: Final = 40 + 88  # struct fuse_entry_out with its fuse_attr


class Dirent(NamedTuple):
    name: bytes
    number: int
    off: int
    kind: int
    node_id: int  # of READDIRPLUS; 0: the name only
    valid_s: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        return 24 + len(self.name) + 7 & ~7


def parse(data: bytes, plus: bool) -> list[Dirent]:
    """The entries of a READDIR or READDIRPLUS answer; whatever is laid out wrongly fails here."""
    found: list[Dirent] = []
    at = 0
    while at < len(data):
        node_id, valid_s = 0, (0, 0)
        if plus:
            node_id, _, entry_s, attr_s, _, _ = struct.unpack_from("<QQQQII", data, at)
            valid_s = entry_s, attr_s
            if node_id:
                assert struct.unpack_from("<Q", data, at + 40)[0] == node_id, "the attributes are another object's"
            at += _ENTRY_OUT
        number, off, length, kind = struct.unpack_from("<QQII", data, at)
        name = data[at + 24 : at + 24 + length]
        assert 0 < len(name) == length <= 255
        at += 24 + length + 7 & ~7
        found.append(Dirent(name, number, off, kind, node_id, valid_s))
    assert at == len(data)
    return found


class Stream:
    """An open directory: where it is, and where that is in the cached copy."""

    def __init__(self) -> None:
        self.pos = 0
        self.version = self.cache_pos = self.cache_off = 0
        self.told: list[bytes] = []


class Kernel:
    """The cached copy of one directory (`rdc`), and who reads it."""

    def __init__(self, ask: Callable[[int, int], list[Dirent]]) -> None:
        """*ask*: READDIR at an offset, for so many bytes."""
        self._ask = ask
        self.requests = 0
        self.pages: dict[int, list[tuple[int, Dirent]]] = {}
        self.iversion = 0
        self.look_ups: dict[int, int] = {}
        self._size = self._pos = self._version = self._copied_iversion = 0
        self._cached = False

    def invalidate(self) -> None:
        """FUSE_NOTIFY_INVAL_INODE."""
        self.pages.clear()

    def getdents(self, stream: Stream, room: int, size_bytes: int = 4096) -> list[bytes]:
        """Names for a buffer of *room* entries; [] is the end."""
        out: list[bytes] = []
        if not self._from_copy(stream, room, out):
            self._from_daemon(stream, room, size_bytes, out)
        stream.told += out
        return out

    def _from_daemon(self, stream: Stream, room: int, size_bytes: int, out: list[bytes]) -> None:
        self.requests += 1
        entries, is_full = self._ask(stream.pos, size_bytes), False
        for entry in entries:
            if entry.node_id and entry.name not in (b".", b".."):
                self.look_ups[entry.node_id] = self.look_ups.get(entry.node_id, 0) + 1
            if is_full:
                continue
            self._copy(entry, stream.pos)  # also the first that does not fit
            is_full = len(out) == room
            if not is_full:
                out.append(entry.name)
                stream.pos = entry.off
        if not entries and self._pos == stream.pos:
            self._cached = True
            for index in [index for index in self.pages if index * PAGE >= self._size]:
                del self.pages[index]

    def _copy(self, entry: Dirent, pos: int) -> None:
        if self._cached or pos != self._pos:
            return
        index, offset = divmod(self._size, PAGE)
        if offset + entry.size_bytes > PAGE:
            index, offset = index + 1, 0
        if offset:
            if index not in self.pages:
                return
        else:
            self.pages[index] = []
        self.pages[index].append((offset, entry))
        self._size = index * PAGE + offset + entry.size_bytes
        self._pos = entry.off

    def _reset(self) -> None:
        self._cached = False
        self._version += 1
        self._size = self._pos = 0

    def _from_copy(self, stream: Stream, room: int, out: list[bytes]) -> bool:
        """False: ask the daemon."""
        if stream.cache_pos != stream.pos:
            stream.cache_pos = stream.cache_off = 0
        while True:
            if not self._has_copy(stream):
                return False
            if stream.version != self._version:
                stream.cache_pos = stream.cache_off = 0
            if not stream.cache_pos:
                stream.version = self._version
            index = stream.cache_off // PAGE
            size = self._size % PAGE if index == self._size // PAGE else PAGE
            if stream.cache_off % PAGE == size:
                return True
            if index not in self.pages:
                self._reset()
                continue
            before = stream.pos
            if not self._from_page(stream, index, room, out):
                return True
            if size != PAGE:
                return stream.pos != before
            stream.cache_off = (index + 1) * PAGE

    def _has_copy(self, stream: Stream) -> bool:
        if self._cached and not stream.pos and self.iversion != self._copied_iversion:
            self._reset()
        if not self._cached and not stream.pos and not self._size:
            self._copied_iversion = self.iversion
        return self._cached

    def _from_page(self, stream: Stream, index: int, room: int, out: list[bytes]) -> bool:
        """False: the buffer is full."""
        for offset, entry in self.pages[index]:
            if offset < stream.cache_off % PAGE:
                continue
            if stream.cache_pos == stream.pos:
                if len(out) == room:
                    return False
                out.append(entry.name)
                stream.pos = entry.off
            stream.cache_pos = entry.off
            stream.cache_off = index * PAGE + offset + entry.size_bytes
        return True
