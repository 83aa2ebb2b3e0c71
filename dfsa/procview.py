"""A guest's /proc: the real procfs, and openMosix's names (hpc, <pid>/goto ...) where its scripts look for them.

A FUSE of directories and links (proctree.py has its shape) is laid over the guest's procfs, which is in it again as
/proc/.real.  Whatever is read or written is read from there or from /mfs/proc, by the kernel alone; only names are
looked up here.  docs/dfsa.md says what programs notice of it.

One view for each guest, served by its init: who serves is in the guest's PID namespace, has no threads, and calls
`ready` when there is something to read.  **It must not use the guest's /proc by path any more** (ttyname does, too),
**nor wait for a child that may, without serving meanwhile**: not by vfork (subprocess, posix_spawn), nor in a blocking
read for what becomes of an execve.  It would wait for itself.

Invariants: no request waits for anything but procfs, and there for nothing that an execve holds (kernel/processes.py);
each is answered once; what goes wrong in one is its errno (EIO, and logged, where it is our fault).
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable
from typing import Final

from dfsa import fusewords as words, proctree as tree
from dfsa.fusewords import Entry, Request
from dfsa.procnames import FOR_EVER_S, ProcNames
from dfsa.proctree import Kind, Spot
from omfs.kernel import namespaces
from omfs.kernel.mounttable import PROCVIEW_TYPE
from omfs.kernel.namespaces import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID
from omfs.kernel.procobjects import parse_fdinfo

log = logging.getLogger(__name__)

DEVICE: Final = "/dev/fuse"
OF_PROCESS_NS: Final = 10_000_000  # a stat is a LOOKUP and a GETATTR: one answer serves for both
_ENDED: Final = frozenset({errno.ENODEV, errno.ENOTCONN})
_FDINFO_BYTES: Final = 512
_OPTIONS: Final = "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"


def known_by(node_proc: int) -> Callable[[int], int]:
    """`known_as` for `lay_over`.  *node_proc*: the node's /proc, opened before its PID namespace was left.

    A process of ours is told its number there by the kernel: in what that /proc says of our descriptor for it.
    """

    def known_as(pid: int) -> int:
        process = os.pidfd_open(pid)
        try:
            info = os.open(f"self/fdinfo/{process}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=node_proc)
            try:
                known = parse_fdinfo(os.read(info, _FDINFO_BYTES)).process
            finally:
                os.close(info)
        finally:
            os.close(process)
        if not known or known < 0:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return known

    return known_as


def lay_over(proc: str, device: int, mfs: bytes, known_as: Callable[[int], int]) -> ProcView:
    """Lay a view over the procfs at *proc*, as whoever will serve it.  Raises OSError; then nothing is mounted.

    *device*: /dev/fuse, opened for this, which is the view's from now on.  *mfs*: where the guest has /mfs.
    *known_as*: the pid that the node, and so /mfs/proc, has for a process of the guest; OSError where it has none.
    """
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    real = os.open(proc, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        namespaces.mount("procview", proc, PROCVIEW_TYPE.decode(), flags, _OPTIONS.format(device))
    except OSError:
        os.close(real)
        raise
    view = ProcView(device, real, mfs, known_as)
    try:
        view.mount_real(proc)
    except OSError:
        namespaces.unmount(proc, namespaces.MNT_DETACH)
        view.close()
        raise
    return view


class ProcView:
    """Answers for one guest."""

    def __init__(self, device: int, real: int, mfs: bytes, known_as: Callable[[int], int]) -> None:
        """*real*: the directory of the procfs below, open for reading; as *device*, closed by `close`."""
        self.device = device
        self.has_ended = False  # it is mounted nowhere any more
        self._real = real
        self._names = ProcNames(real, mfs, known_as)
        self._listings: dict[int, list[Entry]] = {}  # being read
        self._next_listing = 0
        self._handlers: dict[int, Callable[[Request], bytes]] = {
            words.INIT: words.agreement,
            words.LOOKUP: self._look_up,
            words.GETATTR: self._get_attributes,
            words.READLINK: self._read_link,
            words.READDIR: self._read_directory,
            words.OPENDIR: self._open_directory,
            words.RELEASEDIR: self._close_directory,
            words.STATFS: words.statistics,
            words.DESTROY: words.done,
        }
        os.set_blocking(device, False)

    def close(self) -> None:
        """Who is in the view then gets ENOTCONN."""
        os.close(self.device)
        os.close(self._real)

    def mount_real(self, proc: str) -> None:
        """Mount the procfs in it; in a child, which asks us for the names on its way.  Raises OSError."""
        child = os.fork()
        if child == 0:
            status = errno.EIO
            try:
                os.fchdir(self._real)
                for name, source in tree.MOUNTED.items():
                    namespaces.mount(source, os.path.join(proc, os.fsdecode(name)), None, MS_BIND)
                status = 0
            except OSError as error:
                status = error.errno or errno.EIO
            finally:
                os._exit(status)
        ended = os.pidfd_open(child)
        with select.epoll() as poll:
            poll.register(self.device, select.EPOLLIN)
            poll.register(ended, select.EPOLLIN)
            while ended not in {descriptor for descriptor, _ in poll.poll()}:
                self.ready()
        os.close(ended)
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise OSError(status, os.strerror(status), proc)

    def ready(self) -> None:
        """Answer all that is asked now."""
        while not self.has_ended:
            try:
                message = os.read(self.device, words.REQUEST_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _ENDED:
                    self.has_ended = True
                elif error.errno not in (errno.ENOENT, errno.EINTR):  # it was given up before we read it
                    raise
                continue
            asked = words.request(message)
            if asked.opcode not in words.UNANSWERED:
                self._send(self._answered(asked))

    def _answered(self, asked: Request) -> bytes:
        handler = self._handlers.get(asked.opcode)
        if handler is None:
            number = errno.EPERM if asked.opcode in words.CHANGES else errno.ENOSYS
            return words.refusal(asked.unique, number)  # ENOSYS: the kernel asks for this no more
        try:
            return handler(asked)
        except OSError as error:
            return words.refusal(asked.unique, error.errno or errno.EIO)
        except Exception:
            log.exception("a request of kind %d for a guest's /proc failed", asked.opcode)
            return words.refusal(asked.unique, errno.EIO)

    def _send(self, message: bytes) -> None:
        try:
            os.write(self.device, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *_ENDED):  # who asked was killed meanwhile
                raise

    # ------------------------------------------------------------ requests

    def _look_up(self, asked: Request) -> bytes:
        parent, name = tree.spot_of(asked.node), words.name_in(asked)
        spot, entry_s = self._names.find(parent, name, asked.uid, asked.thread)
        node = spot.node
        attributes = words.attributes(node, *self._names.attributes(spot))
        return words.found(asked.unique, node, attributes, entry_s, _believed_ns(spot))

    def _get_attributes(self, asked: Request) -> bytes:
        spot = tree.spot_of(asked.node)
        attributes = words.attributes(asked.node, *self._names.attributes(spot))
        return words.told(asked.unique, attributes, _believed_ns(spot))

    def _read_link(self, asked: Request) -> bytes:
        return words.answer(asked.unique, self._names.target(tree.spot_of(asked.node), asked.uid))

    def _open_directory(self, asked: Request) -> bytes:
        self._next_listing += 1
        return words.opened(asked.unique, self._next_listing)

    def _close_directory(self, asked: Request) -> bytes:
        self._listings.pop(words.opened_in(asked), None)
        return words.done(asked)

    def _read_directory(self, asked: Request) -> bytes:
        """Who begins gets it as it is now, and goes on in that."""
        listing, behind, room_bytes = words.listing_in(asked)
        if behind == 0 or listing not in self._listings:
            self._listings[listing] = self._names.listing(tree.spot_of(asked.node))
        return words.listed(asked.unique, self._listings[listing][behind:], room_bytes)


def _believed_ns(spot: Spot) -> int:
    """For how long the kernel may believe the attributes."""
    return OF_PROCESS_NS if spot.kind == Kind.PROCESS else FOR_EVER_S * 10**9
