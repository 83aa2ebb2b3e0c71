"""The deputy's end of a guest's standard files: mosrun's own 0, 1 and 2, for the user as if the program had them.

The other end is bodyfiles.py; the bytes between go through a Relay.  Called by mosrun, which polls `descriptors` and
calls `ready`; nothing here waits, except for a file that takes a write as slowly as for the program itself.

* Input is read only as far as the other end grants.  A seekable file is set back at the end to where the program had
  read; what was taken from a pipe is gone, as it is for any program that reads ahead.
* A terminal is read only by who is in the foreground, so `mosrun prog &` is not stopped.  There it is *raw* if input
  and output are that same terminal: keys mean what the guest's own terminal makes of them.  Otherwise it stays as it
  is, and the guest's leaves to it what both would do (`plan_of`).
* The program's end counts when all that it wrote before has been written here (`end`), even if its children go on.
* Whoever is gone on one side is gone on the other: an output that nobody reads is told to the guest, one that nobody
  writes any more is closed here, and so is an input that nobody wants.

The terminal is set back whenever it is left: `release_terminal`, which may be called at any time, twice too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import stat
import struct
import termios
import tty
from collections.abc import Callable
from typing import Any, Final

from mignode.filewords import (
    Continued,
    Control,
    Ended,
    FilesPlan,
    InputUnwanted,
    Kind,
    ReaderGone,
    Resized,
    Signalled,
    Size,
    Stopped,
    pack,
    pack_attributes,
    words_in,
)
from mignode.relay import FROM_BODY, PIECE_BYTES, TO_BODY, WINDOW_BYTES, Relay, Stream
from omfs.errors import WireError

_SURE_BYTES: Final = 4096  # PIPE_BUF: what poll(2) promises of a pipe that can be written to
_NULL_DEVICE: Final = os.makedev(1, 3)
_SIZE: Final = struct.Struct("HHHH")
_OUTPUT, _LOCAL = 1, 3  # in what termios.tcgetattr gives
_SIGNALS_MAX_BYTES: Final = 16 << 10  # of signals that wait to be sent; the kernel's own queue is limited, too


def kind_of(fd: int) -> Kind:
    """What one of the standard files is."""
    try:
        status = os.fstat(fd)
    except OSError:
        return Kind.CLOSED
    if stat.S_ISCHR(status.st_mode):
        if os.isatty(fd):
            return Kind.TERMINAL
        if status.st_rdev == _NULL_DEVICE:
            return Kind.NULL
    return Kind.PIPE


def plan_of() -> FilesPlan:
    """Of this process's own standard files."""
    kinds = (kind_of(0), kind_of(1), kind_of(2))
    if Kind.TERMINAL not in kinds:
        return FilesPlan(kinds, is_joined=_are_joined(kinds))
    terminal = kinds.index(Kind.TERMINAL)
    attributes = termios.tcgetattr(terminal)
    if not _is_one_terminal(kinds):  # then it is never raw, and does itself what the guest's is not to do again
        attributes[_OUTPUT] &= ~termios.OPOST
        attributes[_LOCAL] &= ~(termios.ECHO | termios.ECHONL)
    return FilesPlan(kinds, _size_of(terminal), pack_attributes(attributes), _are_joined(kinds))


def _are_joined(kinds: tuple[Kind, Kind, Kind]) -> bool:
    """Whether 1 and 2 are one file, as after 2>&1; two openings at the same place of it count as one."""
    if kinds[1:] != (Kind.PIPE, Kind.PIPE) or not os.path.samestat(os.fstat(1), os.fstat(2)):
        return False
    return _position(1) == _position(2) and fcntl.fcntl(1, fcntl.F_GETFL) == fcntl.fcntl(2, fcntl.F_GETFL)


def _position(fd: int) -> int:
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return -1


def _is_one_terminal(kinds: tuple[Kind, Kind, Kind]) -> bool:
    """Input and output are the same terminal."""
    return kinds[:2] == (Kind.TERMINAL, Kind.TERMINAL) and os.fstat(0).st_rdev == os.fstat(1).st_rdev


def _size_of(terminal: int) -> Size:
    return Size(*_SIZE.unpack(fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(_SIZE.size))))


class _Sink:
    """Where a stream is written to: one of our standard files."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd, self.piece = _opened_again(number, os.O_WRONLY)
        self.written = 0

    def write(self, data: bytes) -> int:
        """How much of it was; -1: nobody takes it, now or ever."""
        try:
            return os.write(self.fd, data[: self.piece])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal that is gone: written in vain
                return len(data)
            if error.errno != errno.EPIPE:  # a full disk: the program can't be told, only that nobody takes it any more
                with contextlib.suppress(OSError):
                    os.write(2, f"mosrun: can't write to descriptor {self.number}: {error.strerror}\n".encode())
            return -1

    def close(self) -> None:
        _close(self.number, self.fd)


def _opened_again(number: int, mode: int) -> tuple[int, int]:
    """A descriptor of the same pipe or terminal that never blocks, and how much to write to it at a time.

    O_NONBLOCK belongs to an opening, and that of our standard files is shared with the shell and others.
    """
    status = os.fstat(number)
    if stat.S_ISFIFO(status.st_mode) or (stat.S_ISCHR(status.st_mode) and os.isatty(number)):
        with contextlib.suppress(OSError):  # somebody else's, after su(1): then with care
            return os.open(f"/proc/self/fd/{number}", mode | os.O_NONBLOCK | os.O_NOCTTY), PIECE_BYTES
    return number, _SURE_BYTES if not stat.S_ISREG(status.st_mode) else PIECE_BYTES


def _close(number: int, fd: int) -> None:
    """For everybody who waits for us to close it; the number stays taken."""
    if fd != number:
        os.close(fd)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)
    os.close(null)


class DeputyFiles:
    """All of it; *stop* is called when the program was stopped, and returns when it is to go on."""

    def __init__(self, plan: FilesPlan, send: Callable[[bytes], None], stop: Callable[[int], None]) -> None:
        self._plan = plan
        self._send, self._stop = send, stop
        self._relay = Relay(TO_BODY, FROM_BODY)
        self._sinks = self._make_sinks()
        self._input, _ = _opened_again(0, os.O_RDONLY) if self._has_input else (-1, 0)
        self._is_one_terminal = _is_one_terminal(plan.kinds)
        self._user_attributes: list[Any] | None = None  # of the terminal while it is raw
        self._raw: list[Any] = []  # what it is then
        self._is_in_foreground = False
        self._told_size = plan.window
        self._end: Ended | None = None
        self._stopped: Stopped | None = None
        if not self._has_input:
            self._relay.end(Stream.INPUT)

    @property
    def _has_input(self) -> bool:
        return self._plan.kinds[0] in (Kind.PIPE, Kind.TERMINAL)

    def _make_sinks(self) -> dict[Stream, _Sink]:
        kinds = self._plan.kinds
        sinks = {}
        for number, stream in ((1, Stream.OUTPUT), (2, Stream.ERRORS)):
            if kinds[number] is Kind.PIPE and not (number == 2 and self._plan.is_joined):
                sinks[stream] = _Sink(number)
        if self._plan.has_terminal:  # the output where it is one; else wherever the user sees it
            sinks[Stream.TERMINAL] = _Sink(next(n for n in (1, 2, 0) if kinds[n] is Kind.TERMINAL))
        return sinks

    # ------------------------------------------------------------ descriptors

    def descriptors(self) -> list[tuple[int, int]]:
        """To be polled now, each with selectors' events."""
        wanted: dict[int, int] = {}
        if self._input >= 0 and self._relay.room(Stream.INPUT) and self._may_read():
            wanted[self._input] = selectors.EVENT_READ
        for stream, sink in self._sinks.items():
            if self._relay.peek(stream, 1):
                wanted[sink.fd] = wanted.get(sink.fd, 0) | selectors.EVENT_WRITE
        return list(wanted.items())

    def _may_read(self) -> bool:
        return self._plan.kinds[0] is not Kind.TERMINAL or self._is_in_foreground

    def ready(self, fd: int, events: int) -> None:
        """*fd* is so now."""
        if fd == self._input and events & selectors.EVENT_READ:
            self._read()
        if events & selectors.EVENT_WRITE:
            for stream, sink in list(self._sinks.items()):
                if sink.fd == fd:
                    self._write(stream, sink)
        self._flush()
        self._stop_if_shown()

    def _read(self) -> None:
        if not self._may_read() or not (self._plan.kinds[0] is not Kind.TERMINAL or self.is_foreground()):
            self.enter_terminal()  # it was taken from us meanwhile
            return
        try:
            data = os.read(self._input, min(PIECE_BYTES, self._relay.room(Stream.INPUT)))
        except BlockingIOError:
            return
        except OSError:  # EIO: a terminal that is gone
            self._end_input()
            return
        if data:
            if self._plan.kinds[0] is Kind.TERMINAL:
                self._size_before_keys()
            self._relay.put(Stream.INPUT, data)
        elif self._plan.kinds[0] is Kind.TERMINAL and not self._is_hung_up():
            self._relay.put(Stream.INPUT, self._typed_end())
        else:
            self._end_input()

    def _is_hung_up(self) -> bool:
        try:
            termios.tcgetattr(0)
        except termios.error:
            return True
        return False

    def _typed_end(self) -> bytes:
        """An end of file on the user's terminal is one on the guest's."""
        attributes = termios.tcgetattr(0)
        typed: bytes = attributes[6][termios.VEOF]
        return typed if attributes[_LOCAL] & termios.ICANON else b""

    def _end_input(self) -> None:
        self._relay.end(Stream.INPUT)
        self._close_input()

    def _close_input(self) -> None:
        if self._input >= 0:
            if self._plan.kinds[0] is Kind.PIPE and _position(0) < 0:
                _close(0, self._input)
            elif self._input != 0:
                os.close(self._input)
            self._input = -1

    def _write(self, stream: Stream, sink: _Sink) -> None:
        data = self._relay.peek(stream)
        written = sink.write(data) if data else 0
        if written >= 0:
            sink.written += written
            self._relay.took(stream, written)
        else:
            self._say(ReaderGone(stream))
            self._relay.took(stream, len(data))
            sink.close()
            del self._sinks[stream]
        self._close_what_ended()

    def _close_what_ended(self) -> None:
        for stream, sink in list(self._sinks.items()):
            if self._relay.is_at_end(stream) and stream is not Stream.TERMINAL:
                del self._sinks[stream]
                sink.close()
        for stream in FROM_BODY[1:]:
            if stream not in self._sinks:  # what still comes is for nobody
                self._relay.took(stream, len(self._relay.peek(stream, WINDOW_BYTES)))

    # ------------------------------------------------------------ the body

    def received(self, frame: bytes) -> None:
        """From the body's end.  Raises WireError."""
        self._relay.received(frame)
        for word, size in words_in(self._relay.peek(Stream.CONTROL, WINDOW_BYTES)):
            self._relay.took(Stream.CONTROL, size)
            self._obey(word)
        self._close_what_ended()
        self._flush()
        self._stop_if_shown()

    def _stop_if_shown(self) -> None:
        """When the user sees what the program had on its terminal; an editor has tidied it up before."""
        sink = self._sinks.get(Stream.TERMINAL)
        if self._stopped and (sink is None or sink.written >= self._stopped.shown):
            number, self._stopped = self._stopped.number, None
            self._stop(number)

    def _obey(self, word: Control) -> None:
        if isinstance(word, Ended):
            self._end = word
        elif isinstance(word, Stopped):
            self._stopped = word
        elif isinstance(word, Continued):
            self._stopped = None
        elif isinstance(word, InputUnwanted):
            self._close_input()
        else:
            raise WireError("a body said what only a deputy says")

    def connected(self) -> None:
        """There is a way to the body, again or for the first time."""
        self._relay.connected()
        self._flush()

    def disconnected(self) -> None:
        self._relay.disconnected()

    def _say(self, word: Control) -> None:
        self._relay.put(Stream.CONTROL, pack(word))

    def _flush(self) -> None:
        for frame in self._relay.frames():
            self._send(frame)

    # ------------------------------------------------------------ signals

    def signalled(self, number: int, is_for_group: bool) -> None:
        """We got a signal that is for the program; lost, where thousands wait already."""
        if self._relay.room(Stream.CONTROL) > WINDOW_BYTES - _SIGNALS_MAX_BYTES:
            self._say(Signalled(number, is_for_group))
            self._flush()

    def resized(self) -> None:
        """The user's window may have another size."""
        if self._plan.has_terminal:
            with contextlib.suppress(OSError):
                self._tell_size(_size_of(self._plan.kinds.index(Kind.TERMINAL)))
                self._flush()

    def _size_before_keys(self) -> None:
        """What is typed into a window of a new size finds it: keys may be here before we have heard SIGWINCH."""
        with contextlib.suppress(OSError):
            if (size := _size_of(0)) != self._told_size:
                self._tell_size(size)

    def _tell_size(self, size: Size) -> None:
        self._told_size = size
        self._say(Resized(size))

    # ------------------------------------------------------------ the user's terminal

    @property
    def wants_terminal(self) -> bool:
        """Input is a terminal that we don't have: whether we are in the foreground must be looked at now and then."""
        return self._plan.kinds[0] is Kind.TERMINAL and self._input >= 0 and not self._is_in_foreground

    @property
    def is_raw(self) -> bool:
        """Keys go to the guest's terminal, so that the user's sends no signals to the others in the foreground."""
        return self._user_attributes is not None

    def is_foreground(self) -> bool:
        """Whether the keys are for us; a terminal that is not our session's has no foreground, and can be read."""
        try:
            return os.tcgetpgrp(0) == os.getpgrp()
        except OSError as error:
            return error.errno == errno.ENOTTY

    def enter_terminal(self) -> None:
        """If we are in the foreground, take it; else leave it."""
        if self._plan.kinds[0] is Kind.TERMINAL and self._input >= 0 and self._is_hung_up():
            self._end_input()
            self._flush()
        self._is_in_foreground = self._plan.kinds[0] is Kind.TERMINAL and self.is_foreground()
        if self._is_in_foreground and self._is_one_terminal and self._user_attributes is None:
            with contextlib.suppress(termios.error):
                attributes = termios.tcgetattr(0)
                tty.setraw(0, termios.TCSADRAIN)
                self._user_attributes, self._raw = attributes, termios.tcgetattr(0)

    def find_terminal(self) -> None:
        """After we were stopped without having released it: a shell has made it its own meanwhile."""
        with contextlib.suppress(termios.error):
            if self._user_attributes is not None and not (self.is_foreground() and termios.tcgetattr(0) == self._raw):
                self._user_attributes = None
        self.enter_terminal()

    def release_terminal(self) -> None:
        """As it was before."""
        if self._user_attributes is not None and self.is_foreground():
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._user_attributes)
        self._user_attributes = None
        self._is_in_foreground = False

    # ------------------------------------------------------------ the end

    def end(self) -> int | None:
        """The program's wait status, when all is written here that it wrote before."""
        if self._end is None:
            return None
        for stream, sink in self._sinks.items():
            if sink.written < self._end.written.get(stream, 0):
                return None
        return self._end.status

    def write_what_is_here(self) -> None:
        """As far as it goes without waiting: nothing more will come."""
        for stream, sink in self._sinks.items():
            while (data := self._relay.peek(stream)) and (written := sink.write(data)) > 0:
                self._relay.took(stream, written)

    def set_input_back(self) -> None:
        """A file that others go on reading is where the program left it."""
        if self._end and self._plan.kinds[0] is Kind.PIPE and _position(0) >= 0:
            os.lseek(0, self._end.input_taken - self._relay.offset(Stream.INPUT), os.SEEK_CUR)

    @property
    def is_finished(self) -> bool:
        """Nothing more can come from the program's children either."""
        return all(self._relay.is_at_end(stream) for stream in FROM_BODY[1:])
