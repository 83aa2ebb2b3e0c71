"""omfs-export's end of the process that keeps its kernel leases (keeperprocess.py), should it be killed.

`recover` connects to the keeper that a former omfs-export left, or starts one, and brings back what it holds; then each
lease is handed over before anybody is told that it may cache anything (`hold`), and taken back when it was released
(`drop`).  A keeper that dies is replaced and gets everything again.  Packets are queued in the kernel (measured: 5 us a
lease), nobody waits for the keeper.

Invariant: after `hold` returned True, this process may be killed at any instant without the lease ending.
It keeps no descriptor of its own and closes none.  Called by localchanges.py, in the trio thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from omfs.export import keeperprocess as wired

SOCKET_NAME: Final = "leasekeeper.sock"
LINGER_S: Final = 60.0  # how long leases are kept without an omfs-export; holders' caches end with the lease term
END_DEADLINE_S: Final = 5.0
ANSWER_DEADLINE_S: Final = 5.0  # a keeper that does not answer is replaced
FULL_QUEUE_DEADLINE_S: Final = 1.0

_SO_SNDBUFFORCE: Final = 32  # include/uapi/asm-generic/socket.h; beyond net.core.wmem_max

log = logging.getLogger(__name__)


class Recovered(NamedTuple):
    """What the keeper held: the fanotify group or -1, and descriptors by key; all now belong to the caller."""

    group: int
    leases: dict[bytes, int]


class LeaseKeeper:
    """One keeper process and what it was told to keep."""

    def __init__(self, run_dir: Path, linger_s: float = LINGER_S) -> None:
        self._path = run_dir / SOCKET_NAME
        self._linger_s = linger_s
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: dict[bytes, int] = {}
        self._group = -1

    # ------------------------------------------------------------ begin and end

    def recover(self) -> Recovered:
        """Connect, and take over what a former omfs-export left.  Raises OSError when no keeper can be had."""
        try:
            self._socket = self._connect()
        except (FileNotFoundError, ConnectionRefusedError):
            self._start()
            return Recovered(-1, {})
        try:
            recovered = self._take_back(self._socket)
        except (OSError, ValueError) as error:
            log.error("%s: the lease keeper does not answer (%s); starting another", self._path, error)
            self._socket.close()
            self._start()
            return Recovered(-1, {})
        self._kept, self._group = dict(recovered.leases), recovered.group
        return recovered

    def close(self) -> None:
        """An orderly end: the keeper ends too, and with it whatever it still holds."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(wired.END)
            self._socket.close()
            self._socket = None
        self._kept.clear()
        self._group = -1
        self._reap()

    def _reap(self) -> None:
        """Wait for our child; a keeper that a former omfs-export started is not."""
        if self._process is None:
            return
        try:
            self._process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            log.warning("the lease keeper, pid %d, does not end; killing it", self._process.pid)
            self._process.kill()
            self._process.wait()
        self._process = None

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, wired.QUEUE_BYTES)
            connection.settimeout(FULL_QUEUE_DEADLINE_S)
            connection.connect(os.fsencode(self._path))
        except BaseException:
            connection.close()
            raise
        return connection

    def _start(self) -> None:
        """The socket listens before the process runs, so there is nothing to wait for."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            os.fchmod(listener.fileno(), 0o600)  # what bind(2) gives the name; the umask belongs to all threads
            listener.bind(os.fsencode(self._path))
            listener.listen(4)
            # Isolated and without site-packages: a third of the memory.  A session of its own: what ends the daemon's
            # process group must not end it.
            command = [sys.executable, "-I", "-S", wired.__file__]
            command += [str(listener.fileno()), str(self._linger_s), str(self._path)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd="/", pass_fds=(listener.fileno(),), start_new_session=True,
            )  # fmt: skip
            self._socket = self._connect()
        log.info("the lease keeper runs with pid %d", self._process.pid)

    def _take_back(self, connection: socket.socket) -> Recovered:
        connection.settimeout(ANSWER_DEADLINE_S)
        connection.send(wired.RECOVER)
        group = -1
        leases: dict[bytes, int] = {}
        try:
            while True:
                packet, fds, _, _ = socket.recv_fds(connection, wired.PACKET_MAX_BYTES, wired.DESCRIPTORS_MAX)
                kind = packet[:1]
                if kind == wired.HOLD:
                    leases.update(zip(wired.unpack_keys(packet), fds, strict=True))
                elif kind == wired.WATCH:
                    (group,) = fds
                elif kind == wired.END:
                    connection.settimeout(FULL_QUEUE_DEADLINE_S)
                    return Recovered(group, leases)
                else:
                    raise ConnectionResetError("it closed the connection")
        except BaseException:
            for fd in [*leases.values(), *([group] if group >= 0 else [])]:
                os.close(fd)
            raise

    # ------------------------------------------------------------ what it keeps

    def hold(self, key: bytes, fd: int) -> bool:
        """Have *fd* kept under *key*; False when that is not possible now."""
        self._kept[key] = fd
        if self._send(wired.HOLD + wired.pack_keys((key,)), fd):
            return True
        self._kept.pop(key, None)
        return False

    def drop(self, key: bytes) -> None:
        """The lease under *key* was released."""
        if self._kept.pop(key, None) is not None:
            self._send(wired.DROP + wired.pack_keys((key,)))

    def close_kept(self, key: bytes) -> None:
        """As `drop`, and wait until the keeper has closed its descriptor (measured: 0.1 ms), or is no more.

        For a file that is open for writing: as long as it is so anywhere, it can't be executed nor guarded again.
        """
        if self._kept.pop(key, None) is None or self._socket is None:
            return
        try:
            self._put(wired.CLOSE + wired.pack_keys((key,)))
            if self._socket.recv(wired.PACKET_MAX_BYTES) != wired.CLOSE:
                raise ConnectionResetError("it closed the connection")
        except OSError as error:
            self._lost(error)
            self._start_over()

    def watch(self, group: int) -> bool:
        """Have the fanotify group kept."""
        self._group = group
        return self._send(wired.WATCH, group)

    def _send(self, packet: bytes, fd: int = -1) -> bool:
        """False when the packet did not reach a keeper, nor a new one."""
        try:
            if self._socket is not None:
                self._put(packet, fd)
                return True
        except OSError as error:
            self._lost(error)
        return self._start_over()

    def _lost(self, error: OSError) -> None:
        log.error("the lease keeper is lost (%s); starting another", error)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _put(self, packet: bytes, fd: int = -1) -> None:
        assert self._socket is not None
        if fd < 0:
            self._socket.send(packet)
        else:
            socket.send_fds(self._socket, [packet], [fd])

    def _start_over(self) -> bool:
        """A new keeper that keeps all we know of (the packet that was lost among it)."""
        self._reap_lost()
        try:
            self._start()
            for key, fd in self._kept.items():
                self._put(wired.HOLD + wired.pack_keys((key,)), fd)
            if self._group >= 0:
                self._put(wired.WATCH, self._group)
        except OSError as error:
            log.error("%s: there is no lease keeper: %s", self._path, error)
            return False
        return True

    def _reap_lost(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
