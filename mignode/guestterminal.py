"""A guest's own terminal: a pty of which the guest has the slave, and its init the master.

The user's terminal is at home, so each node where the guest runs makes a pty for it; CRIU puts the new slave in the
place of the old one (by its key), also where that was opened as /dev/tty.  What does not move by itself is moved here:
the terminal's attributes and size, who is in the foreground, and what was typed and not read yet.  That is taken back
from the slave, and typed into the next one without being shown again: byte by byte with TIOCSTI, which the kernel does
at once, where a write to the master would be looked at some time later, with the attributes of then.

The init leads the session and has the terminal as its controlling one; the guest's first process leads only a group,
in the foreground (`enter_foreground`).  Were it to lead the session, its parent would be in another one, and then no
terminal and no SIGTSTP stops it (setpgid(2), orphaned process groups).  CRIU takes such a tree as a "shell job"; what
it says of the terminal's session is taken out of the images (ownsession.py).

What it does not do: moving bytes between master and relay (bodyfiles.py, which calls it).  Single-threaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from mignode.criukeys import tty_key, tty_key_of
from mignode.filewords import Size, pack_attributes, unpack_attributes
from mignode.ownproc import own_proc

OWN_TERMINAL: Final = "/dev/tty"
_SIZE: Final = struct.Struct("HHHH")
_TIOCGSID: Final = 0x5429  # of whose session it is the terminal; include/uapi/asm-generic/ioctls.h
_LINES_MAX_BYTES: Final = 4095  # that a terminal keeps (N_TTY_BUF_SIZE); what comes then, it has not looked at yet
_READ_BYTES: Final = 8192  # more than a line can have
_INPUT, _LOCAL, _CHARACTERS = 0, 3, 6  # in what termios.tcgetattr gives
_DISABLED: Final = b"\0"


class Typed(msgspec.Struct, frozen=True, array_like=True):
    """Input that nobody has read.  *has_eof*: the user then typed the end of file (^D), which is no byte."""

    data: bytes
    has_eof: bool = False


class TerminalState(msgspec.Struct, frozen=True, array_like=True):
    """What is to be the same on the next terminal.

    *key* is how CRIU calls this one, *own_key* the same opened as /dev/tty.
    """

    key: str
    own_key: str
    attributes: bytes
    size: Size
    foreground: int  # process group, as the guest's PID namespace has it
    typed: tuple[Typed, ...] = ()


def enter_foreground(terminal: int) -> None:
    """Of a session leader's child that leads a group: what the terminal's keys mean is for that group."""
    with _unstopped():
        os.tcsetpgrp(terminal, os.getpgrp())


class GuestTerminal:
    """Raises OSError where there can be none."""

    def __init__(self, attributes: bytes, size: Size | None, owner: tuple[int, int] | None) -> None:
        """*owner*: uid and gid of who may open it by its name, the guest's; a new terminal is its maker's.

        It becomes the controlling terminal of a caller who leads a session and has none.
        """
        self.master, self.slave = os.openpty()
        self._attributes: list[Any] = []  # while frozen: what they were
        os.set_blocking(self.master, False)
        if owner is not None:
            os.fchown(self.slave, owner[0], -1)
        if attributes:
            self._set(unpack_attributes(attributes))
        if size is not None:
            self.resize(size)
        if os.getsid(0) == os.getpid():  # the guest's init; it has no other
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

    @property
    def key(self) -> str:
        return tty_key(self.slave)

    @property
    def own_key(self) -> str:
        """Of what is opened as /dev/tty, in any session: nobody may have another terminal so (eligiblefiles.py)."""
        return tty_key_of(os.stat(OWN_TERMINAL))

    @staticmethod
    def open_own() -> int:
        """As the guest would have, in the same session."""
        return os.open(OWN_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def foreground(self) -> int:
        """The process group that gets what its keys mean; 0 for none."""
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(self.master)
        return 0

    def set_foreground(self, group: int) -> None:
        """Not more than a try: the group may have ended."""
        with _unstopped(), contextlib.suppress(OSError):
            os.tcsetpgrp(self.slave, group)

    def resize(self, size: Size) -> None:
        """The foreground gets SIGWINCH if that is another size."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, _SIZE.pack(size.rows, size.columns, size.x_pixels, size.y_pixels))

    def end_of_file(self) -> bytes:
        """What is to be typed for it now; b"" where it can't be."""
        attributes = termios.tcgetattr(self.slave)
        typed: bytes = attributes[_CHARACTERS][termios.VEOF]
        return typed if attributes[_LOCAL] & termios.ICANON and typed != _DISABLED else b""

    # ------------------------------------------------------------ moving

    def freeze(self) -> TerminalState:
        """The guest does not run: take back what was typed.  What is to be shown was read from the master before."""
        self._attributes = attributes = termios.tcgetattr(self.slave)
        size = Size(*_SIZE.unpack(fcntl.ioctl(self.slave, termios.TIOCGWINSZ, bytes(_SIZE.size))))
        foreground = self.foreground()
        self._wait_looked_at()
        with self._in_foreground():
            typed = tuple(self._take_typed(attributes))
        return TerminalState(self.key, self.own_key, pack_attributes(attributes), size, foreground, typed)

    def thaw(self, state: TerminalState) -> bytes:
        """As `freeze` found it, here or on the next node; the rest of what was typed, which goes to the master."""
        attributes = unpack_attributes(state.attributes)
        with _unstopped():
            rest = self._retype(state.typed, attributes)
            self._set(attributes)
        return rest

    def _wait_looked_at(self) -> None:
        """What was written to the master the kernel looks at a moment later, unless somebody polls the slave: it is to
        be shown, and signals are to be sent to the guest, before we are in the foreground."""
        poll = select.poll()
        poll.register(self.slave, select.POLLIN)
        poll.poll(0)

    def _take_typed(self, attributes: list[Any]) -> Iterator[Typed]:
        reader = own_proc.open_again(self.slave, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            if attributes[_LOCAL] & termios.ICANON:
                characters = attributes[_CHARACTERS]
                line_ends = {b"\n", characters[termios.VEOL], characters[termios.VEOL2]} - {_DISABLED}
                while (line := _read(reader)) is not None:
                    yield Typed(line, line[-1:] not in line_ends)
            raw = _without(attributes, termios.ICANON | termios.ECHO | termios.ECHONL)
            raw[_CHARACTERS][termios.VMIN], raw[_CHARACTERS][termios.VTIME] = 1, 0
            self._set(raw)
            while part := _read(reader):
                yield Typed(part)
        finally:
            os.close(reader)

    def _retype(self, typed: tuple[Typed, ...], attributes: list[Any]) -> bytes:
        silent = _taking_all(attributes)
        ending = [*silent[:_CHARACTERS], list(silent[_CHARACTERS])]
        ending[_CHARACTERS][termios.VEOF] = attributes[_CHARACTERS][termios.VEOF]
        self._set(silent)
        room = _LINES_MAX_BYTES
        rest = b""
        for one in typed:
            eof = attributes[_CHARACTERS][termios.VEOF] if one.has_eof else b""
            if rest or len(one.data) + len(eof) > room:
                rest += one.data + eof
                continue
            room -= len(one.data) + len(eof)
            self._type(one.data)
            if eof:
                self._set(ending)
                self._type(eof)
                self._set(silent)
        return rest

    def _type(self, data: bytes) -> None:
        for byte in data:
            fcntl.ioctl(self.slave, termios.TIOCSTI, bytes((byte,)))

    def _set(self, attributes: list[Any]) -> None:
        with _unstopped():
            termios.tcsetattr(self.slave, termios.TCSANOW, attributes)

    @contextlib.contextmanager
    def _in_foreground(self) -> Iterator[None]:
        """Who has it as the controlling terminal can read it only there (EIO)."""
        before = self.foreground()
        if not before or self._session() != os.getsid(0):
            yield
            return
        self.set_foreground(os.getpgrp())
        try:
            yield
        finally:
            self.set_foreground(before)

    def _session(self) -> int:
        with contextlib.suppress(OSError):
            return int.from_bytes(fcntl.ioctl(self.master, _TIOCGSID, bytes(4)), "little")
        return 0

    def let_go(self) -> None:
        """Of the slave: the master is at its end once the guest has closed it, too."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def close(self) -> None:
        self.let_go()
        os.close(self.master)


def _read(fd: int) -> bytes | None:
    """None where nothing is there; b"" is an end of file that was typed."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None


def _without(attributes: list[Any], local: int) -> list[Any]:
    changed = [*attributes[:_CHARACTERS], list(attributes[_CHARACTERS])]
    changed[_LOCAL] &= ~local
    return changed


def _taking_all(attributes: list[Any]) -> list[Any]:
    """The same lines, but no character does anything, is changed or shown: the terminal has done all that before."""
    silent = _without(attributes, termios.ISIG | termios.ECHO | termios.ECHONL)
    silent[_INPUT] &= ~(
        termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IUCLC | termios.IXON | termios.PARMRK
    )
    for which in (
        termios.VERASE, termios.VKILL, termios.VEOF, termios.VWERASE, termios.VREPRINT, termios.VLNEXT,
        termios.VINTR, termios.VQUIT, termios.VSUSP, termios.VDISCARD,
    ):  # fmt: skip
        silent[_CHARACTERS][which] = _DISABLED
    return silent


@contextlib.contextmanager
def _unstopped() -> Iterator[None]:
    """Who changes a terminal from the background is stopped, unless SIGTTOU is blocked (tcsetattr(3))."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
