"""The deputy: the process that the user sees, as long as the program runs anywhere (mosrun after its request).

It keeps a connection to mignode, and moves frames between it and DeputyFiles; takes signals, stops and goes on with
the program, and ends as it ended.  When mignode is gone it goes on alone: everything waits, and it connects again, for
up to DEPUTY_ALONE_S.

One thread and one poll (another thread only receives signals): it starts quickly and costs little.  Called by
mignode/cli/mosrun.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from mignode.deputycalls import call_done
from mignode.deputyfiles import DeputyFiles
from mignode.deputywords import (
    Attend,
    Attended,
    Call,
    Called,
    DeputyWord,
    Lost,
    Refused,
    Relayed,
    Restart,
    Run,
    Started,
    Words,
    pack,
)
from mignode.filewords import FilesPlan, without_input
from mignode.signalsource import SignalSource
from omfs.config import DEPUTY_ALONE_S
from omfs.errors import ControlError, NotRunning, WireError

if TYPE_CHECKING:  # mosrun starts quickly, and few want it
    from mignode.imagekeeper import ImageKeeper

_RETRY_S: Final = 0.25
_FOREGROUND_LOOK_S: Final = 0.5  # nobody tells that a running job was brought to the foreground
_READ_BYTES: Final = 256 << 10
_FROM_KEYS: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)


class ProgramRefused(ControlError):
    """The program can't be executed: *errno* as execvp(3) has it."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno


def ask(
    path: Path, run: Run | Restart, plan: FilesPlan, more: Callable[[socket.socket], None] = lambda _: None
) -> Deputy:
    """Have the program started.  *more*: says what follows the request.

    Raises NotRunning where there is no mignode, ProgramRefused, and ControlError with mignode's reason.
    """
    try:
        line = _connected(path)
    except OSError as error:
        raise NotRunning(f"{path}: {error.strerror}") from None
    words = Words()
    try:
        line.sendall(pack(run))
        more(line)
        answer, *early = _first(line, words)
    except OSError as error:
        raise ControlError(f"mignode: {error.strerror}") from None
    if isinstance(answer, Refused):
        if answer.is_of_program:
            raise ProgramRefused(answer.errno, answer.reason)
        raise ControlError(answer.reason)
    if not isinstance(answer, Started):
        raise ControlError("mignode answered something else")
    return Deputy(path, plan, answer, line, words, early, is_restarted=isinstance(run, Restart))


def _connected(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.connect(os.fspath(path))
    except OSError:
        line.close()
        raise
    return line


def _first(line: socket.socket, words: Words) -> list[DeputyWord]:
    """The first message, and what came with it.  Raises OSError, WireError."""
    while data := line.recv(_READ_BYTES):
        if found := list(words.arrived(data)):
            return found
    raise ConnectionResetError(0, "ended before the program was started")


class Deputy:
    """Of a program that was started."""

    def __init__(
        self, path: Path, plan: FilesPlan, started: Started, line: socket.socket, words: Words, early: list[DeputyWord],
        *, is_restarted: bool = False,
    ) -> None:  # fmt: skip
        self._is_restarted = is_restarted
        self._path, self.guest = path, started.guest
        self.warning = started.warning
        self._pid = os.getpid()
        self._files = DeputyFiles(plan if started.has_input else without_input(plan), self._send, self._stop)
        self._line: socket.socket | None = line
        self._words = words
        self._early = early
        self._to_send = bytearray()
        self._is_attended = True
        self._alone_since = 0.0
        self._retry_at = 0.0
        self._signals: SignalSource | None = None
        self._is_continuing = False
        self._was_raw = False

    def say(self, text: str) -> None:
        """A line for the user, also on a terminal that is raw."""
        with contextlib.suppress(OSError):
            end = "\r\n" if self._files.is_raw else "\n"
            os.write(2, f"mosrun: {text}{end}".encode(errors="replace"))

    def serve(self, keeper: ImageKeeper | None = None) -> NoReturn:
        """Until the program has ended; then as it did.  *keeper*: of its images.

        Raises ControlError where it is lost.
        """
        self._signals = SignalSource()
        if keeper is not None:
            keeper.start()  # now, as the signals are another thread's
        try:
            status = self._serve()
        except BaseException:
            if keeper is not None:
                keeper.stop(is_needed=True)
            raise
        if keeper is not None:
            keeper.stop(is_needed=os.WIFSIGNALED(status))
        if not self._files.is_finished:
            self._leave_the_rest()
        # a script that runs mosrun gets what the terminal would have sent it, had it not been raw
        if self._was_raw and os.WIFSIGNALED(status) and os.WTERMSIG(status) in _FROM_KEYS:
            os.killpg(0, os.WTERMSIG(status))  # ours is blocked still
        end_as(status)

    def _serve(self) -> int:
        assert self._line is not None
        self._line.setblocking(False)
        try:
            self._files.enter_terminal()
            self._files.connected()
            if self._is_restarted:
                self._files.resized()  # another terminal than it had
            for word in self._early:
                self._obey(word)
            while (status := self._files.end()) is None:
                self._turn()
            self._files.set_input_back()
            self._was_raw = self._files.is_raw
            return status
        finally:
            self._files.release_terminal()

    # ------------------------------------------------------------ one turn

    def _turn(self) -> None:
        """Wait for whatever comes, and do it."""
        wanted = dict(self._files.descriptors())
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, _polled(events))
        if self._signals:
            poll.register(self._signals.fileno(), select.POLLIN)
        if self._line:
            poll.register(self._line, select.POLLIN | (select.POLLOUT if self._to_send else 0))
        for fd, found in poll.poll(self._timeout_ms()):
            if self._signals and fd == self._signals.fileno():
                self._take_signals(self._signals)
            elif self._line and fd == self._line.fileno():
                self._exchange(found)
            elif fd in wanted:
                self._files.ready(fd, _events(found) & wanted[fd])
        if self._line is None:
            self._find_mignode()
        if self._files.wants_terminal:
            self._files.enter_terminal()

    def _timeout_ms(self) -> int | None:
        waits = []
        if self._files.wants_terminal:
            waits.append(_FOREGROUND_LOOK_S)
        if self._line is None:
            waits.append(max(0.0, self._retry_at - time.monotonic()))
        return int(min(waits) * 1000) + 1 if waits else None

    def _exchange(self, found: int) -> None:
        assert self._line is not None
        try:
            if found & select.POLLOUT:
                del self._to_send[: self._line.send(self._to_send)]
            if found & ~select.POLLOUT:
                self._hear(self._line.recv(_READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            self._lose_mignode()

    def _hear(self, data: bytes) -> None:
        if not data:
            self._lose_mignode()
            return
        for word in self._words.arrived(data):
            self._obey(word)

    def _obey(self, word: DeputyWord) -> None:
        if isinstance(word, Relayed):
            self._files.received(word.frame)
        elif isinstance(word, Attended):
            self._is_attended = True
            self._files.connected()
        elif isinstance(word, Call):
            self._do(word)
        elif isinstance(word, Lost | Refused):
            self._files.write_what_is_here()
            raise ControlError(word.reason)
        else:
            raise WireError("mignode said what only mosrun says")

    def _do(self, call: Call) -> None:
        """For the guest; mignode waits for the answer, and the guest for mignode."""
        value = number = 0
        try:
            value = call_done(call.call, call.arguments)
        except (OSError, OverflowError, ValueError) as error:
            number = getattr(error, "errno", None) or errno.EINVAL
        if self._line:
            self._to_send += pack(Called(call.number, value, number))
            self._push()

    def _send(self, frame: bytes) -> None:
        if self._line and self._is_attended:
            self._to_send += pack(Relayed(frame))
            self._push()

    def _push(self) -> None:
        """As much as goes at once: most does."""
        assert self._line is not None
        try:
            del self._to_send[: self._line.send(self._to_send)]
        except BlockingIOError:
            return
        except OSError:
            return  # the poll says it, too, and there it is handled

    # ------------------------------------------------------------ without mignode

    def _lose_mignode(self) -> None:
        assert self._line is not None
        self._line.close()
        self._line = None
        self._files.disconnected()
        self._to_send.clear()
        self._alone_since = time.monotonic()
        self._retry_at = 0.0

    def _find_mignode(self) -> None:
        now = time.monotonic()
        if now < self._retry_at:
            return
        self._retry_at = now + _RETRY_S
        try:
            line = _connected(self._path)
            line.setblocking(False)
        except OSError:
            if now - self._alone_since > DEPUTY_ALONE_S:
                raise ControlError("mignode has ended, and with it the program") from None
            return
        self._line, self._words = line, Words()
        self._is_attended = False
        self._to_send += pack(Attend(self.guest, self._pid))
        self._push()

    # ------------------------------------------------------------ signals

    def _take_signals(self, source: SignalSource) -> None:
        for received in source.received():
            if received.number == signal.SIGWINCH:
                self._files.resized()
            elif received.number == signal.SIGCONT:
                self._files.find_terminal()
                self._files.resized()
                if not self._is_continuing:
                    self._files.signalled(received.number, True)
                self._is_continuing = False
            else:
                self._files.signalled(received.number, received.is_from_kernel)

    def _stop(self, number: int) -> None:
        """As the program was stopped; returns when we are continued, or at once where nobody could continue us."""
        by_a_key = self._files.is_raw and number in _FROM_KEYS
        self._files.release_terminal()
        self._is_continuing = True  # what continues us is blocked, and comes as a signal as well
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        if by_a_key:
            os.killpg(0, number)  # this thread gets ours, since the other one waits with it blocked
        else:
            signal.pthread_kill(threading.get_ident(), number)
        signal.pthread_sigmask(signal.SIG_BLOCK, {number} - {signal.SIGSTOP})
        self._files.enter_terminal()
        self._files.resized()
        self._files.signalled(signal.SIGCONT, True)

    # ------------------------------------------------------------ the end

    def _leave_the_rest(self) -> None:
        """The program's children may still write: a child of ours relays that, and we end as the program did."""
        if os.fork() != 0:
            return
        assert self._signals is not None
        signal.pthread_sigmask(signal.SIG_SETMASK, self._signals.before)
        self._signals = None
        try:
            while not self._files.is_finished and self._line:
                self._turn()
        finally:
            os._exit(0)


def _polled(events: int) -> int:
    return (select.POLLIN if events & selectors.EVENT_READ else 0) | (
        select.POLLOUT if events & selectors.EVENT_WRITE else 0
    )


def _events(found: int) -> int:
    """An error or hang-up is for whoever reads or writes."""
    return (selectors.EVENT_READ if found & ~select.POLLOUT else 0) | (
        selectors.EVENT_WRITE if found & ~select.POLLIN else 0
    )


def end_as(status: int) -> NoReturn:
    """End with this wait status, without a core of our own."""
    if sys.stderr:
        sys.stderr.flush()
    if os.WIFSIGNALED(status):
        import resource  # only here: mosrun starts quickly

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.pthread_kill(threading.get_ident(), number)
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))
