"""Fork events: the proc connector (drivers/connector/cn_proc.c), a netlink multicast that tells each new process.

It speaks only to processes in the initial PID, user and network namespaces with CAP_NET_ADMIN, and its pids are those
of the initial PID namespace: in a container, and in a node of the lab, there are none.  From Linux 6.6 on the kernel
sends only what was asked for, before that all its events.

Invariant: an event is in our queue before the new process runs its first instruction (copy_process sends it before it
wakes the child).  So after `drain` every fork that led to something we were asked about has been seen; unless the queue
overflowed (`lost`), or the kernel had no memory for an event, which nobody tells.

No policy, no trio.  Called by mignode's registry of processes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from contextlib import suppress
from typing import Final, NamedTuple, Self

# include/uapi/linux/netlink.h, connector.h, cn_proc.h
_NETLINK_CONNECTOR: Final = 11
_SO_RCVBUFFORCE: Final = 33
_NLMSG_DONE: Final = 3
_PROC: Final = (1, 1)  # CN_IDX_PROC (also the multicast group), CN_VAL_PROC
_LISTEN: Final = 1
_IGNORE: Final = 2
_FORK: Final = 1  # PROC_EVENT_FORK
_HEADERS: Final = struct.Struct("=IHHIIIIIIHH")  # nlmsghdr: length, type, -, -, -; cn_msg: idx, val, -, -, length, -
_EVENT: Final = struct.Struct("=36xI4xQ4i")  # behind both: what, cpu, time; parent pid and tgid, child pid and tgid
_DATAGRAM_BYTES: Final = 4096

_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # include/linux/proc_ns.h: its inode number

QUEUE_BYTES: Final = 16 << 20
"""Room for events not read yet, in the kernel's memory: about 40,000 (it takes twice this, 832 bytes each)."""


class Forked(NamedTuple):
    """A new process.  *at_ns*: of CLOCK_MONOTONIC, when it was made.

    *parent* is who is its parent then: the one that forked it, or that one's own parent (clone with CLONE_PARENT).
    """

    parent: int
    child: int
    at_ns: int


class _Event(NamedTuple):
    at_ns: int
    forked: Forked | None


def parse_event(datagram: bytes) -> _Event | None:
    """None: it is no event.  Others than FORK, and a new thread of a process, are an event without `forked`."""
    if len(datagram) < _EVENT.size or _HEADERS.unpack_from(datagram)[5:7] != _PROC:
        return None
    what, at_ns, _, parent, child, child_group = _EVENT.unpack_from(datagram)
    is_process = what == _FORK and child == child_group
    return _Event(at_ns, Forked(parent, child, at_ns) if is_process else None)


class ForkEvents:
    """One listener.  *lost*: the last `drain` found that events had been dropped, because the queue was full."""

    def __init__(self, receiver: socket.socket) -> None:
        self._socket = receiver
        self.lost = False

    @classmethod
    def open(cls) -> Self:
        """Begin to listen.  Raises OSError, saying why, where no fork is told: a child is forked to try it."""
        if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_PID_NAMESPACE:
            raise OSError(errno.EOPNOTSUPP, "no fork events: not in the initial PID namespace")
        try:
            receiver = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_CONNECTOR)
        except OSError as error:
            raise OSError(error.errno, f"no fork events: the kernel has no connector ({error.strerror})") from None
        events = cls(receiver)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, QUEUE_BYTES)
            receiver.bind((0, _PROC[0]))
            for request in (_LISTEN, _FORK), (_LISTEN,):  # before Linux 6.6 the longer one is ignored
                events._ask(*request)
                if events._hears_of_a_child():
                    return events
            raise OSError(errno.EOPNOTSUPP, "none comes (is CONFIG_PROC_EVENTS set?)")
        except OSError as error:
            events.close()
            where = " (not in the initial network namespace)" if error.errno == errno.ECONNREFUSED else ""
            raise OSError(error.errno, f"no fork events: {error.strerror}{where}") from None

    def fileno(self) -> int:
        """Readable when `drain` has something to say."""
        return self._socket.fileno()

    def drain(self) -> list[Forked]:
        """All processes made before this call that were not told yet, parents before their children; never blocks."""
        self.lost = False
        found = []
        began = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        while True:
            try:
                datagram, (sender, _) = self._socket.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            event = parse_event(datagram) if sender == 0 else None  # 0: the kernel
            if event is None:
                continue
            if event.forked is not None:
                found.append(event.forked)
            if event.at_ns > began:  # so what was there when we began has been read, also in a storm without end
                break
        return found

    def close(self) -> None:
        """Listen no more."""
        with suppress(OSError):
            self._ask(_IGNORE)  # before Linux 6.6 the kernel would go on composing events for nobody
        self._socket.close()

    def _ask(self, *words: int) -> None:
        body = struct.pack(f"={len(words)}I", *words)
        head = _HEADERS.pack(_HEADERS.size + len(body), _NLMSG_DONE, 0, 0, 0, *_PROC, 0, 0, len(body), 0)
        self._socket.send(head + body)

    def _hears_of_a_child(self) -> bool:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return any(forked[:2] == (os.getpid(), child) for forked in self.drain())
