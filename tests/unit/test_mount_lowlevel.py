"""The hook's parts: the kernel's layouts, the ELF tables of this machine, and one question per stat."""

from __future__ import annotations

import ctypes
import errno
import struct
from pathlib import Path

import pyfuse3
import pytest
import trio

from omfs.mount import lowlevel_abi as abi
from omfs.mount.justtold import WITHIN_S, JustTold
from omfs.mount.lowlevel import Hook
from omfs.mount.lowlevel_elf import LoadedObject, NotPatchable, loaded_object


def request(opcode: int, body: bytes, unique: int = 77) -> memoryview:
    return memoryview(abi.IN_HEADER.pack(40 + len(body), opcode, unique, 5, 1000, 100, 4242) + bytes(4) + body)


def test_init_flags_are_ours_where_the_kernel_knows_them() -> None:
    libfuse = 1 << 0 | abi.AUTO_INVAL_DATA | abi.SPLICE_READ | abi.INIT_EXT | abi.READDIRPLUS_AUTO
    answer = bytearray(64)
    struct.pack_into("<IIII", answer, 0, 7, 38, 4096, libfuse)
    struct.pack_into("<I", answer, 20, 1 << 20)
    offered = (1 << 64) - 1
    flags = abi.adjust_init_reply(memoryview(answer), offered)
    assert flags & abi.WANTED_FLAGS == abi.WANTED_FLAGS
    assert not flags & abi.UNWANTED_FLAGS
    assert flags & 1, "what libfuse set besides stays"
    low, background, congestion, max_write = struct.unpack_from("<IHHI", answer, 12)
    (high,) = struct.unpack_from("<I", answer, 32)
    assert low | high << 32 == flags
    assert (background, congestion, max_write) == (abi.MAX_BACKGROUND, abi.CONGESTION_THRESHOLD, 1 << 20)
    assert high == abi.DIRECT_IO_ALLOW_MMAP >> 32


def test_init_flags_of_an_old_kernel() -> None:
    answer = bytearray(64)
    struct.pack_into("<I", answer, 12, abi.AUTO_INVAL_DATA | 1)
    offered = abi.init_offered(
        request(abi.INIT, struct.pack("<IIIII", 7, 31, 0, abi.DONT_MASK | abi.FLOCK_LOCKS, 0xFFFF))
    )
    assert offered == abi.DONT_MASK | abi.FLOCK_LOCKS, "flags2 counts only with INIT_EXT"
    assert abi.adjust_init_reply(memoryview(answer), offered) == abi.DONT_MASK | abi.FLOCK_LOCKS | 1
    assert answer[32:36] == bytes(4)


def test_requests_are_read_as_the_kernel_lays_them_out() -> None:
    write = request(abi.WRITE, struct.pack("<QQIIQII", 3, 1 << 40, 5, abi.WRITE_FROM_CACHE, 9, 0o2001, 0) + b"hello")
    assert abi.write_in(write) == (3, 1 << 40, 5, abi.WRITE_FROM_CACHE, 9, 0o2001)
    assert bytes(write[abi.WRITE_HEADER_BYTES :]) == b"hello"
    lock = request(abi.SETLKW, struct.pack("<QQQQIIII", 3, 9, 10, 2**63 - 1, 1, 4242, abi.LOCK_IS_FLOCK, 0))
    assert abi.lock_in(lock) == (3, 9, 10, 2**63 - 1, 1, 4242, abi.LOCK_IS_FLOCK)
    assert abi.fallocate_in(request(43, struct.pack("<QQQII", 3, 4, 5, 1, 0))) == (3, 4, 5, 1)
    assert abi.lseek_in(request(46, struct.pack("<QQII", 3, 4, 3, 0))) == (3, 4, 3)
    assert abi.copy_in(request(47, struct.pack("<QQQQQQQ", 1, 2, 3, 4, 5, 6, 0))) == (1, 2, 3, 4, 5, 6)
    assert abi.interrupted_unique(request(abi.INTERRUPT, struct.pack("<Q", 12345))) == 12345
    assert abi.setattr_valid(request(abi.SETATTR, struct.pack("<II", 0x180, 0))) == 0x180
    assert abi.setxattr_flags(request(abi.SETXATTR, struct.pack("<II", 4, 2) + b"user.x\0abcd")) == 2
    create = request(abi.CREATE, struct.pack("<IIII", 2, 0o100644, 0o22, 0) + b"new\0")
    assert abi.create_in(create) == (b"new", 2, 0o100644, 0o22)
    mkdir = request(abi.MKDIR, struct.pack("<II", 0o755, 0o22) + b"new\0")
    assert abi.mkdir_in(mkdir) == (b"new", 0, 0o755, 0o22)
    rename = request(abi.RENAME, struct.pack("<Q", 9) + b"old\0new\0")
    assert abi.rename_in(rename) == (b"old", 9, b"new", 0)
    rename = request(abi.RENAME2, struct.pack("<QII", 9, 2, 0) + b"old\0new\0")
    assert abi.rename2_in(rename) == (b"old", 9, b"new", 2)
    assert abi.flush_lock_owner(request(abi.FLUSH, struct.pack("<QIIQ", 3, 0, 0, 99))) == 99


def test_replies_say_their_length() -> None:
    for message in (abi.reply(7), abi.error_reply(7, 11), abi.write_reply(7, 5), abi.number_reply(7, 1 << 40)):
        length, error, unique = struct.unpack_from("<IiQ", message)
        assert (length, unique) == (len(message), 7)
        assert error in (0, -11)
    assert abi.lock_reply(7, 1, 2, 0, 3)[16:] == struct.pack("<QQII", 1, 2, 0, 3)


def test_the_calls_to_redirect_are_found() -> None:
    extension = LoadedObject(Path(str(pyfuse3.__file__)).resolve())
    assert "fuse_session_receive_buf" in extension.slots
    assert {"fuse_session_new", "fuse_session_new_versioned"} & set(extension.slots)
    assert extension.versions["fuse_session_receive_buf"].startswith("FUSE_3")
    assert "writev" in LoadedObject(loaded_object("libfuse3")).slots


def test_what_cannot_be_patched_says_why(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not ELF")
    with pytest.raises(NotPatchable, match="not a 64-bit"):
        LoadedObject(text)
    with pytest.raises(NotPatchable, match="libnothing is not loaded"):
        loaded_object("libnothing")
    extension = LoadedObject(Path(str(pyfuse3.__file__)).resolve())
    with pytest.raises(NotPatchable, match="does not call no_such_function"):
        extension.redirect("no_such_function", 1)


def test_where_the_hook_cannot_be_installed_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omfs.mount.lowlevel.loaded_object", lambda name: Path("/etc/passwd"))
    hook = Hook()
    assert "/etc/passwd" in hook.install()
    assert not hook.installed


def test_a_look_up_answers_one_getattr_of_the_same_thread() -> None:
    now = 0.0
    kept: dict[int, tuple[float, int, bytes]] = {}
    told = JustTold(kept, lambda: now)
    told.note(5, 100, b"attr")
    assert told.take(6, 100) is None
    assert told.take(5, 100) == b"attr"
    assert told.take(5, 100) is None, "once"
    told.note(5, 100, b"attr")
    assert told.take(5, 101) is None, "another object"
    assert told.take(5, 100) is None, "a call in between"
    told.note(5, 100, b"attr")
    now = WITHIN_S * 1.01
    assert told.take(5, 100) is None, "too late"
    for thread in range(1, 5000):
        told.note(thread, 1, b"attr")
    assert len(kept) < 2000


def test_threads_that_are_not_known_are_never_answered_so() -> None:
    told = JustTold({}, lambda: 0.0)
    told.note(0, 100, b"attr")
    assert told.take(0, 100) is None, "another program's, perhaps"


@pytest.mark.parametrize(("between", "is_kept"), [(None, True), (abi.SETATTR, False), (abi.LOOKUP, False)])
def test_a_look_up_answers_only_the_very_next_request(between: int | None, is_kept: bool) -> None:
    hook = Hook()
    told = JustTold(hook.next_answers, lambda: 0.0)
    answers: list[bytes | None] = []
    hook.takers[abi.GETATTR] = lambda hook, _: answers.append(told.take(hook.pid, hook.node_id))
    receive = Receiver(hook)
    told.note(4242, 5, b"attr")
    if between is not None:
        receive(request(between, b"x"))
    receive(request(abi.GETATTR, b""))
    assert answers == [b"attr" if is_kept else None]


async def test_what_is_answered_at_once_is_followed_by_the_next_request() -> None:
    hook = Hook()
    seen: list[tuple[int, str]] = []
    waits = trio.Event()

    async def handler(unique: int) -> None:
        seen.append((unique, "begun"))
        if unique == 3:
            await waits.wait()
        seen.append((unique, "done"))

    hook.takers[abi.GETATTR] = lambda hook, _: handler(hook.unique)
    hook.goes_on = lambda: True
    receive = Receiver(hook)
    assert receive(*(request(abi.GETATTR, b"", unique) for unique in (1, 2, 3, 4))) == -errno.EINTR
    assert seen == [(1, "begun"), (1, "done"), (2, "begun"), (2, "done"), (3, "begun")]
    assert hook.pending is not None, "what waits is left to the worker, and the next request until then"
    hook.pending[0].close()
    hook.pending = None
    hook.goes_on = lambda: False
    assert receive(request(abi.GETATTR, b"", 5), request(abi.GETATTR, b"", 6)) == -errno.EINTR
    assert seen[-1] == (5, "done")


class Receiver:
    """The hook's place in front of libfuse, fed with requests of ours."""

    def __init__(self, hook: Hook) -> None:
        self._messages: list[bytes] = []
        self._memory = ctypes.create_string_buffer(4096)
        self._buffer = (ctypes.c_uint64 * 3)(4096, 0, ctypes.addressof(self._memory))  # struct fuse_buf
        self._libfuse = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(self._receive)
        address = ctypes.cast(self._libfuse, ctypes.c_void_p).value or 0
        self._hook = hook._receiver(address, lambda _: None)

    def _receive(self, session: int, buffer: int) -> int:
        message = self._messages.pop(0)
        ctypes.memmove(self._memory, message, len(message))
        return len(message)

    def __call__(self, *messages: memoryview) -> int:
        self._messages = [bytes(message) for message in messages]
        return int(self._hook(None, ctypes.addressof(self._buffer)))
