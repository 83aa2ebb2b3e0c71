"""A small process that forks the inits of guests, with all that they need in memory; mignode's own child.

mignode has threads and open descriptors, so it can't fork without an execve, and starting a Python for each guest would
take 50 ms.  So the command starts this one before anything else, without threads; it costs some 2 ms to hatch.  It ends
with mignode.  The inits don't: they have sessions of their own, and belong to the machine's init then.

Started by mignode/cli/mignode.py; what is hatched is spoken to through body.py.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from dfsa.guestroot import World
from mignode import bodywords as words
from mignode.bodyends import MakeFiles
from mignode.bodysocket import BodySocket
from mignode.guestinit import live
from omfs.errors import BodyLost
from omfs.kernel import clone, namespaces
from omfs.kernel.descriptors import have_exactly, receive_with

_ORDER_MAX_BYTES: Final = 1 << 16
_NAMESPACES: Final = (
    namespaces.CLONE_NEWNS | namespaces.CLONE_NEWUTS | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWPID
)


class _Hatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    folder: str
    world: World


class Hatchery:
    """Forks at once: to be made before trio runs or any thread does.  *make_files*: what the inits have as `Files`."""

    def __init__(self, make_files: MakeFiles) -> None:
        self._sock, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            _hatch_for_ever(its, make_files)
        its.close()
        self._sock.setblocking(False)

    def close(self) -> None:
        """It ends, and is waited for; inits go on."""
        if self._sock.fileno() >= 0:
            self._sock.close()
            os.waitpid(self.pid, 0)

    def order(self, folder: Path, world: World) -> socket.socket:
        """Have an init begin in *folder*, a directory; our end of its first connection, on which it says how it went.

        Nothing here waits.  Raises BodyLost where the hatchery has ended.
        """
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its:
                order = msgspec.msgpack.encode(_Hatch(str(folder), world))
                socket.send_fds(self._sock, [order], [its.fileno()], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            ours.close()
            raise BodyLost("the hatchery does not take any more orders") from None
        except OSError as error:
            ours.close()
            raise BodyLost(f"the hatchery has ended ({error.strerror}); restart mignode") from None
        return ours


def _hatch_for_ever(sock: socket.socket, make_files: MakeFiles) -> NoReturn:
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGHUP):  # they are for mignode, whose end we see
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel waits for the inits
        node_ipc = os.open("/proc/self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        have_exactly({0: null, 1: null, 2: 2, sock.fileno(): sock.fileno(), node_ipc: node_ipc})
        os.chdir("/")
        gc.freeze()  # so that the inits go on sharing what is in memory now
        while True:
            packet, descriptors, _ = receive_with(sock, _ORDER_MAX_BYTES, 1)
            if not packet:
                break
            _hatch(msgspec.msgpack.decode(packet, type=_Hatch), descriptors[0], node_ipc, make_files)
        status = 0
    finally:
        os._exit(status)


def _hatch(order: _Hatch, first: int, node_ipc: int, make_files: MakeFiles) -> None:
    with socket.socket(fileno=first) as way:
        try:
            if clone.fork(_NAMESPACES) == 0:
                live(Path(order.folder), order.world, way, node_ipc, make_files)
        except OSError as error:
            with contextlib.suppress(OSError):
                BodySocket(way).send(words.Failed(0, error.errno or 0, f"no init for a guest: {error.strerror}"))
