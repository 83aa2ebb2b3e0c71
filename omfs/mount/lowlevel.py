"""The hook between pyfuse3's extension module and libfuse.

pyfuse3 is the engine of the mount, but it sets no INIT flags, knows no locks, fallocate, lseek or copy_file_range,
drops parts of some requests, and reads the FUSE device with the GIL held, so that an aborted request can stop the
whole process.  This room redirects three calls (lowlevel_elf.py):

- `fuse_session_new`: takes `write_buf` out of pyfuse3's table, so that libfuse does not splice every request;
- `fuse_session_receive_buf`: sees each request as the kernel sent it (lowlevel_abi.py).  What pyfuse3 does not know,
  and what is too frequent for its road, is taken out (the *takers*), an INTERRUPT too; for the rest the request stays
  readable as `Hook.request` until the handler first awaits.  "Nothing there" becomes EINTR, after which pyfuse3
  simply asks again;
- libfuse's `writev`, for the one answer to INIT: flags and limits.

It depends on no libfuse struct, only on the kernel's protocol, so libfuse 3.14 and 3.17 (where pyfuse3 calls
`fuse_session_new_versioned`) are the same to it.  Where it can't be installed, `install` says why and the mount
works with pyfuse3's own operations alone.  Invariants: no exception leaves a callback; `request` is only read
before a handler's first await.  Called by session.py; loop.py shares `drained`, `ended`, `pending` and `goes_on`.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyfuse3

from omfs.mount import lowlevel_abi as abi
from omfs.mount.lowlevel_elf import LoadedObject, NotPatchable, loaded_object

log = logging.getLogger(__name__)


class Passed:
    """What a taker returns that leaves this request to pyfuse3."""


PASSED: Final = Passed()
Taken: TypeAlias = Coroutine[Any, Any, None] | Passed | None
Taker: TypeAlias = Callable[["Hook", memoryview], Taken]
"""Answers a request instead of pyfuse3; it gets the whole request.  A coroutine is run by the worker that received the
request, here as far as it comes without waiting; the request stays intact until it ends.  None: it is answered."""
Pending: TypeAlias = tuple[Coroutine[Any, Any, None], Any]
"""A taken request that waits, and what it has asked trio for."""

_RETRY: Final = -errno.EINTR
_WRITE_BUF_INDEX: Final = 36  # in struct fuse_lowlevel_ops, which only grows at its end
_VIEW_BYTES: Final = 16 << 20  # more than any request; only what was received is touched
_NEW: Final = ("fuse_session_new", "fuse_session_new_versioned")
_keep: list[Any] = []  # callbacks live as long as the process: libfuse keeps calling them


class Hook:
    """What the calls in between see; one per process, as pyfuse3 has one session per process."""

    def __init__(self) -> None:
        self.installed = False
        self.takers: dict[int, Taker] = {}
        self.next_answers: dict[int, Any] = {}  # by thread: may serve its next request if that is a GETATTR
        self.on_next: dict[int, Callable[[], None]] = {}  # by thread: called with its next request
        self.session = 0  # struct fuse_session *
        self.flags = 0  # INIT flags in force
        self.drained = False  # the device had nothing at the last look
        self.ended = False  # unmounted: no request will come any more
        self.on_end: Callable[[], None] = lambda: None
        self.goes_on: Callable[[], bool] = lambda: False  # the worker may take the next request without asking trio
        self.on_request: Callable[[int, int, int, memoryview], None] | None = None  # Usage.seen
        self.pending: Pending | None = None  # to be waited for by the worker
        self.request: memoryview = memoryview(b"")
        self.opcode = self.unique = self.node_id = self.pid = self.uid = self.gid = 0
        self.fd = -1  # /dev/fuse
        self._library: ctypes.CDLL | None = None

    def install(self) -> str:
        """Redirect the calls; before pyfuse3.init().  Returns "" or why it can't be done."""
        try:
            self._install()
        except (NotPatchable, OSError, KeyError, IndexError, ValueError) as error:
            return str(error)
        self.installed = True
        return ""

    def attach(self) -> None:
        """Find the session's device and make it non-blocking; after pyfuse3.init(), where installed.

        Non-blocking, because a request that is aborted between "readable" and the read would otherwise stop the
        whole process until the next one comes.
        """
        assert self._library is not None
        function = self._library.fuse_session_fd
        function.argtypes = [ctypes.c_void_p]
        self.fd = int(function(self.session))
        os.set_blocking(self.fd, False)

    def answer(self, message: bytes) -> None:
        """Send a reply of our own (lowlevel_abi); a request that was aborted meanwhile (ENOENT) needs none."""
        try:
            os.write(self.fd, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("a FUSE reply was refused: %s", error)

    def _install(self) -> None:
        extension = LoadedObject(Path(str(pyfuse3.__file__)).resolve())
        libfuse = LoadedObject(loaded_object("libfuse3"))
        library = ctypes.PyDLL(str(libfuse.path))
        libc = ctypes.PyDLL(None)
        new = next((name for name in _NEW if name in extension.slots), _NEW[0])
        # All addresses first: either everything is redirected or nothing.
        real_new = extension.address_of(new, library)
        real_receive = extension.address_of("fuse_session_receive_buf", library)
        real_writev = libfuse.address_of("writev", libc)
        if "writev" not in libfuse.slots:
            raise NotPatchable(f"{libfuse.path} does not call writev")
        receive = self._receiver(real_receive, self._init_patcher(libfuse, real_writev))
        _keep.append(receive)
        extension.redirect("fuse_session_receive_buf", _address(receive))
        session_new = self._session_maker(new, real_new)
        _keep.append(session_new)
        extension.redirect(new, _address(session_new))
        self._library = library

    def _session_maker(self, name: str, real_address: int) -> Any:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        more = [pointer] if name == _NEW[0] else [pointer, pointer]  # userdata, or version and userdata
        kind = ctypes.PYFUNCTYPE(pointer, pointer, pointer, size, *more)
        real = kind(real_address)

        def session_new(arguments: int, operations: int, operations_bytes: int, *rest: int) -> int:
            if operations_bytes > _WRITE_BUF_INDEX * 8:
                ctypes.c_uint64.from_address(operations + _WRITE_BUF_INDEX * 8).value = 0
            self.session = real(arguments, operations, operations_bytes, *rest) or 0
            return self.session

        return kind(session_new)

    def _receiver(self, real_address: int, expect_init: Callable[[memoryview], None]) -> Any:
        kind = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        real = kind(real_address)
        views: dict[int, memoryview] = {}  # each worker has its own buffer, at a fixed address
        at = ctypes.c_uint64.from_address
        unpack = abi.IN_HEADER.unpack_from
        takers, next_answers, on_next = self.takers, self.next_answers, self.on_next

        def receive(session: int, buffer: int) -> int:
            while True:
                received: int = real(session, buffer)
                if received <= 0:
                    return self._nothing(received)
                address = at(buffer + 16).value  # struct fuse_buf: size, flags, mem
                view = views.get(address)
                if view is None:
                    view = views[address] = memoryview((ctypes.c_char * _VIEW_BYTES).from_address(address)).cast("B")
                self.request = view
                _, opcode, self.unique, self.node_id, self.uid, self.gid, self.pid = unpack(view)
                self.opcode = opcode
                if self.on_request is not None:
                    self.on_request(opcode, self.node_id, self.pid, view)
                if next_answers and opcode != abi.GETATTR:
                    next_answers.pop(self.pid, None)
                if on_next and self.pid in on_next:
                    on_next.pop(self.pid)()
                taker = takers.get(opcode)
                if taker is None or not self._taken(taker, view[:received]):
                    if opcode == abi.INIT:
                        expect_init(view)
                    return received
                if self.pending is not None or not self.goes_on():
                    return _RETRY

        return kind(receive)

    def _nothing(self, received: int) -> int:
        """There is no request, for a moment or for ever: what pyfuse3 shall make of it."""
        if received == -errno.EAGAIN:
            self.drained = True
            return _RETRY
        if received != _RETRY:
            self.ended = True
            self.on_end()
        return received

    def _taken(self, taker: Taker, request: memoryview) -> bool:
        """Let *taker* have the request, and run what it returns until that waits (`pending`).  False: it passes."""
        try:
            taken = taker(self, request)
            if isinstance(taken, Passed):
                return False
            if taken is not None:
                self.pending = _begun(taken)
        except Exception:
            log.exception("FUSE request %d could not be taken", self.opcode)
            self.answer(abi.error_reply(self.unique, errno.EIO))
        return True

    def _init_patcher(self, libfuse: LoadedObject, real_address: int) -> Callable[[memoryview], None]:
        kind = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
        real = kind(real_address)
        offered = 0

        def writev(fd: int, vectors: int, count: int) -> int:
            libfuse.redirect("writev", real_address)
            # struct iovec[2]: the header, then struct fuse_init_out; an error has only the header.
            if count >= 2:
                start, size = (ctypes.c_uint64 * 2).from_address(vectors + 16)
                if size >= 36:
                    self.flags = abi.adjust_init_reply(
                        memoryview((ctypes.c_char * size).from_address(start)).cast("B"), offered
                    )
            return int(real(fd, vectors, count))

        callback = kind(writev)
        _keep.append(callback)

        def expect_init(request: memoryview) -> None:
            nonlocal offered
            offered = abi.init_offered(request)
            libfuse.redirect("writev", _address(callback))

        return expect_init


def _begun(taken: Coroutine[Any, Any, None]) -> Pending | None:
    """Run a taken request until it waits; None: it is answered."""
    try:
        return taken, taken.send(None)
    except StopIteration:
        return None


def _address(callback: Any) -> int:
    return ctypes.cast(callback, ctypes.c_void_p).value or 0
