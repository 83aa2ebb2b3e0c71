"""The guest's end of its standard files: what the program has as 0, 1 and 2, on the node where it runs.

For each pipe that mosrun has, the program has one of ours; for a terminal, one of its own (guestterminal.py).  Bytes go
between them and the deputy's end (deputyfiles.py) through a Relay, so that none is lost or repeated when mignode is
killed or the guest moves.  Called by the guest's init, which polls `descriptors` and calls `ready`; nothing here waits.

A move: when the tree is dumped and does not run, `freeze` drains what it wrote, takes back what it has not read, and
gives a state.  On the other node that makes a BodyFiles with new pipes and a new terminal: `inherited` tells CRIU in
the place of which ones.  Either `thaw` follows here, or this one is thrown away.

The program's end of each pipe is only the program's (once `given`), so the kernel tells when nobody reads or writes any
more, and the deputy does the same at home; what was not read is taken back through an O_PATH descriptor of the pipe,
which holds neither end.

A deputy is its user's, and may say anything: who breaks the rules is not listened to until connected again.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from mignode.criukeys import pipe_key
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
    Stopped,
    pack,
    words_in,
)
from mignode.guestterminal import GuestTerminal, TerminalState
from mignode.ownproc import own_proc
from mignode.relay import FROM_BODY, PIECE_BYTES, TO_BODY, WINDOW_BYTES, Relay, Stream, begun_anew
from mignode.stops import Stops
from omfs.errors import WireError

_DRAIN_BYTES: Final = 1 << 20  # at a time; the largest pipe that an ordinary user may have
_FROM_TERMINAL: Final = frozenset(
    (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT)
)
"""What a group may get from its terminal, whoever its processes are."""
_STREAMS: Final = (Stream.INPUT, Stream.OUTPUT, Stream.ERRORS)  # of 0, 1, 2, where they are pipes


class Act(Protocol):
    """What the init does for the deputy."""

    def signal(self, number: int, group: bool) -> None:
        """To the root, or to the group that is in the foreground (without a terminal, the root's)."""


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What moves.  *keys*: of the pipes that the program has, by stream."""

    plan: FilesPlan
    owner: tuple[int, int] | None
    relay: bytes
    keys: dict[int, str]
    terminal: TerminalState | None
    has_typed_end: bool  # of the input, on the terminal
    stops: Stops


class BodyFiles:
    """Raises OSError where pipes or a terminal can't be made, WireError for a state that is none."""

    def __init__(
        self,
        plan: FilesPlan,
        send: Callable[[bytes], None],
        act: Act,
        state: bytes = b"",
        owner: tuple[int, int] | None = None,
    ) -> None:
        """*owner*: uid and gid of the program, which may open its files by name.  A *state* has its own plan and owner.

        The terminal becomes the controlling one of a caller who leads a session, as the init does; the program then
        is in that session, in a group of its own (guestterminal.enter_foreground), dumped as a "shell job".
        """
        kept = _decoded(state) if state else None
        self._plan, self._owner = (kept.plan, kept.owner) if kept else (plan, owner)
        self._send, self._act = send, act
        self._restored = kept  # from a state, until the tree has its ends
        self._relay = Relay(FROM_BODY, TO_BODY, kept.relay if kept else b"")
        self._terminal: GuestTerminal | None = None
        self._keys: dict[int, str] = {}
        self._input = self._input_pipe = -1  # what we write to; and the pipe itself (O_PATH)
        self._outputs: dict[Stream, int] = {}  # what we read from
        self._own_terminal = -1  # the terminal as /dev/tty, for the tree that is restored
        self._typed = b""  # for the terminal, before what the deputy sends
        self._frozen: TerminalState | None = None
        self._is_frozen = self._is_connected = self._has_ended = False
        self._has_typed_end = kept is not None and kept.has_typed_end
        self._stops = kept.stops if kept else Stops()
        self._is_stop_due = False  # of the root, when it is not frozen any more
        self.guest_ends: Mapping[int, int] = {}
        try:
            self.guest_ends = self._make_ends()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ the ends

    def _make_ends(self) -> dict[int, int]:
        if self._plan.has_terminal:
            self._terminal = self._make_terminal()
        else:
            self._relay.end(Stream.TERMINAL)
        ends: dict[int, int] = {}
        for number, kind in enumerate(self._plan.kinds):
            stream = _STREAMS[number]
            if number == 2 and self._plan.is_joined and 1 in ends:
                ends[2] = os.dup(ends[1])
            elif kind is Kind.PIPE and (self._restored is None or int(stream) in self._restored.keys):
                ends[number] = self._make_pipe(stream)
                self._keys[stream] = pipe_key(ends[number])
            elif kind is Kind.TERMINAL and self._terminal:
                ends[number] = os.dup(self._terminal.slave)
            elif kind is Kind.NULL and self._restored is None:  # one that was dumped, CRIU opens itself
                ends[number] = os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)
            if number and stream not in self._outputs:
                self._relay.end(stream)
        return ends

    def _make_pipe(self, stream: Stream) -> int:
        """The program's end."""
        reading, writing = os.pipe()
        ours, its = (writing, reading) if stream is Stream.INPUT else (reading, writing)
        os.set_blocking(ours, False)
        if self._owner is not None:  # who may open it as /dev/stdout, for one
            os.fchown(its, *self._owner)
        if stream is Stream.INPUT:
            self._input = ours
            self._input_pipe = own_proc.open_again(ours, os.O_PATH)
        elif self._relay.is_ended(stream):  # nobody reads it any more
            os.close(ours)
        else:
            self._outputs[stream] = ours
        return its

    def _make_terminal(self) -> GuestTerminal:
        if self._restored is None or self._restored.terminal is None:
            return GuestTerminal(self._plan.termios, self._plan.window, self._owner)
        terminal = GuestTerminal(b"", self._restored.terminal.size, self._owner)
        self._typed = terminal.thaw(self._restored.terminal)
        return terminal

    @property
    def has_terminal(self) -> bool:
        return self._terminal is not None

    @property
    def external(self) -> tuple[str, ...]:
        """For a restore those of the images; once `given`, those of the next dump."""
        if self._restored and self._restored.terminal:
            return (self._restored.terminal.key, self._restored.terminal.own_key)
        return (self._terminal.key, self._terminal.own_key) if self._terminal else ()

    def inherited(self) -> dict[str, int]:
        """Made from a state: our descriptors, by CRIU's keys of what they replace."""
        if self._restored is None:
            return {}
        old = self._restored.keys
        found = {old[stream]: self.guest_ends[number] for number, stream in enumerate(_STREAMS) if stream in self._keys}
        if self._terminal and self._restored.terminal:
            found[self._restored.terminal.key] = self._terminal.slave
            with contextlib.suppress(OSError):  # it could not become the controlling one: then nobody has it so
                self._own_terminal = self._terminal.open_own()
                found[self._restored.terminal.own_key] = self._own_terminal
        return found

    def given(self) -> None:
        """The program, or the restored tree, has its ends."""
        self._close_guest_ends()
        if self._terminal and self._restored and self._restored.terminal:
            self._terminal.set_foreground(self._restored.terminal.foreground)
        self._restored = None
        self._end_input()

    def _close_guest_ends(self) -> None:
        for end in self.guest_ends.values():
            os.close(end)
        self.guest_ends = {}
        if self._own_terminal >= 0:
            os.close(self._own_terminal)
            self._own_terminal = -1

    # ------------------------------------------------------------ between descriptors and relay

    def descriptors(self) -> list[tuple[int, int]]:
        """To be polled now, each with selectors' events; may be others after any call here."""
        if self._is_frozen or self._restored:
            return []
        wanted = {fd: selectors.EVENT_READ for stream, fd in self._outputs.items() if self._relay.room(stream)}
        has_input = bool(self._relay.peek(Stream.INPUT, 1))
        if self._terminal and not self._relay.is_ended(Stream.TERMINAL):
            events = selectors.EVENT_READ if self._relay.room(Stream.TERMINAL) else 0
            if self._typed or (has_input and self._plan.kinds[0] is Kind.TERMINAL):
                events |= selectors.EVENT_WRITE
            if events:
                wanted[self._terminal.master] = events
        if self._input >= 0 and has_input:
            wanted[self._input] = selectors.EVENT_WRITE
        return list(wanted.items())

    def ready(self, fd: int, events: int) -> None:
        """*fd* is so now."""
        if self._is_frozen:
            return
        if self._terminal and fd == self._terminal.master:
            if events & selectors.EVENT_READ:
                self._read(Stream.TERMINAL, fd, self._relay.room(Stream.TERMINAL))
            if events & selectors.EVENT_WRITE:
                self._write_terminal(fd)
        elif fd == self._input:
            self._write_input()
        else:
            for stream in [stream for stream, each in self._outputs.items() if each == fd]:
                self._read(stream, fd, self._relay.room(stream))
        self._flush()

    def _read(self, stream: Stream, fd: int, size: int) -> bool:
        """Whether there was something."""
        if not size:
            return False
        try:
            data = os.read(fd, min(size, PIECE_BYTES))
        except BlockingIOError:
            return False
        except OSError:  # EIO: of a terminal that nobody has any more
            data = b""
        if data:
            self._relay.put(stream, data)
            return True
        self._relay.end(stream)
        if stream in self._outputs:
            os.close(self._outputs.pop(stream))
            self._keys.pop(stream, None)  # the program has no end of it either
        return False

    def _write_input(self) -> None:
        data = self._relay.peek(Stream.INPUT)
        try:
            self._relay.took(Stream.INPUT, os.write(self._input, data))
        except BlockingIOError:
            return
        except BrokenPipeError:  # nobody can read it, now or ever; what lies in the pipe goes with its last end
            self._relay.put_back(Stream.INPUT, self._take_back())
            self._keys.pop(Stream.INPUT, None)
            self._say(InputUnwanted())
            self._close_input()
            return
        self._end_input()

    def _end_input(self) -> None:
        if self._restored or not self._relay.is_at_end(Stream.INPUT):
            return
        if self._input >= 0:
            self._close_input()
        elif self._terminal and self._plan.kinds[0] is Kind.TERMINAL and not self._has_typed_end:
            self._has_typed_end = True
            self._typed += self._terminal.end_of_file()

    def _close_input(self) -> None:
        os.close(self._input)
        self._input = -1

    def _write_terminal(self, master: int) -> None:
        data = self._typed or self._relay.peek(Stream.INPUT)
        try:
            written = os.write(master, data) if data else 0
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has it any more
            written = len(data)
        if self._typed:
            self._typed = self._typed[written:]
        else:
            self._relay.took(Stream.INPUT, written)
            self._end_input()

    # ------------------------------------------------------------ the deputy

    def received(self, frame: bytes) -> None:
        """From the deputy's end."""
        if self._is_frozen:
            return  # the deputy's end keeps it
        try:
            self._relay.received(frame)
            for word, size in words_in(self._relay.peek(Stream.CONTROL, WINDOW_BYTES)):
                self._relay.took(Stream.CONTROL, size)
                self._obey(word)
        except WireError:
            self.disconnected()
            return
        self._end_input()
        self._flush()

    def _obey(self, word: Control) -> None:
        if isinstance(word, Signalled):
            if word.number == signal.SIGCONT:
                self._stops.deputy_continued()
            self._act.signal(word.number, word.is_for_group and word.number in _FROM_TERMINAL)
        elif isinstance(word, Resized):
            if self._terminal:
                self._terminal.resize(word.size)
        elif isinstance(word, ReaderGone):
            for stream in [stream for stream in self._outputs if stream == word.stream]:
                os.close(self._outputs.pop(stream))
                self._relay.end(stream)
        else:
            raise WireError("a deputy said what only a body says")

    def deputy_stopped(self) -> None:
        """By somebody: so is the root."""
        if self._is_frozen:
            self._is_stop_due = True
        elif self._stops.of_deputy():
            self._act.signal(signal.SIGSTOP, False)

    def connected(self) -> None:
        """There is a way to the deputy, again or for the first time: say what it may have missed."""
        self._is_connected = True
        if not self._is_frozen:
            self._relay.connected()
            self._flush()

    def disconnected(self) -> None:
        self._is_connected = False
        self._relay.disconnected()

    def _say(self, word: Control) -> None:
        self._relay.put(Stream.CONTROL, pack(word))

    def _flush(self) -> None:
        if not self._is_frozen:
            for frame in self._relay.frames():
                self._send(frame)

    # ------------------------------------------------------------ the program

    def stopped(self, number: int) -> None:
        """The root was stopped by this signal: mosrun stops, too."""
        if self._stops.of_program():
            self._drain()
            self._say(Stopped(number, self._relay.offset(Stream.TERMINAL)))
            self._flush()

    def continued(self) -> None:
        """The root runs again."""
        if self._stops.program_continued():
            self._say(Continued())
            self._flush()

    def ended(self, status: int) -> None:
        """The root's wait status.  All that it wrote goes before it; its children may go on writing."""
        self._drain()
        if self._terminal:
            self._terminal.let_go()
            self._drain()  # it may have been the last one
        written = {int(stream): self._relay.offset(stream) for stream in FROM_BODY[1:]}
        self._say(Ended(status, written, max(0, self._relay.taken(Stream.INPUT) - self._unread())))
        self._has_ended = True
        self._flush()

    def _unread(self) -> int:
        """How much of the input lies in the pipe and nobody can read it any more."""
        return 0 if self._input_pipe < 0 or self._has_reader() else len(self._take_back())

    def _has_reader(self) -> bool:
        """Whether the program or a child of it has the input's pipe open (pipe(7): else writers are told POLLERR)."""
        writing = self._reopened(os.O_WRONLY)
        poll = select.poll()
        poll.register(writing, 0)
        found = poll.poll(0)
        os.close(writing)
        return not found

    @property
    def is_finished(self) -> bool:
        """The deputy has everything, the end too, and nothing more can come."""
        all_ended = all(self._relay.is_ended(stream) for stream in FROM_BODY[1:])
        return self._has_ended and all_ended and self._relay.is_settled()

    def _drain(self) -> None:
        """Whatever was written until now."""
        sources = dict(self._outputs)
        if self._terminal and not self._relay.is_ended(Stream.TERMINAL):
            sources[Stream.TERMINAL] = self._terminal.master
        for stream, fd in sources.items():
            while self._read(stream, fd, _DRAIN_BYTES):
                pass

    # ------------------------------------------------------------ moving

    def freeze(self) -> bytes:
        """The tree is dumped and does not run: the state for the next node.  Nothing moves until `thaw`."""
        self._drain()
        if Stream.INPUT in self._keys:
            self._relay.put_back(Stream.INPUT, self._take_back())
        self._relay.put_back(Stream.INPUT, self._typed)
        self._typed = b""
        self._frozen = self._terminal.freeze() if self._terminal else None
        self._drain()
        self._is_frozen = True
        relay = self._relay.state()
        return msgspec.msgpack.encode(
            _State(self._plan, self._owner, relay, self._keys, self._frozen, self._has_typed_end, self._stops)
        )

    def thaw(self) -> None:
        """It goes on here, as if it had never been frozen."""
        if self._terminal and self._frozen:
            self._typed = self._terminal.thaw(self._frozen)
        if Stream.INPUT in self._keys and self._input < 0:
            self._input = self._reopened(os.O_WRONLY)
        self._is_frozen = False
        if self._is_connected:
            self._relay.connected()  # what came meanwhile was not taken
        if self._is_stop_due:
            self._is_stop_due = False
            self.deputy_stopped()
        self._end_input()
        self._flush()

    def _take_back(self) -> bytes:
        """What lies in the input's pipe."""
        taken = bytearray()
        reading = self._reopened(os.O_RDONLY)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reading, _DRAIN_BYTES):
                taken += piece
        os.close(reading)
        return bytes(taken)

    def _reopened(self, mode: int) -> int:
        """Another descriptor of the input's pipe, which never blocks."""
        return own_proc.open_again(self._input_pipe, mode | os.O_NONBLOCK)

    def close(self) -> None:
        """All descriptors."""
        self._close_guest_ends()
        for fd in (self._input, self._input_pipe, *self._outputs.values()):
            if fd >= 0:
                os.close(fd)
        self._input = self._input_pipe = -1
        self._outputs = {}
        if self._terminal:
            self._terminal.close()
            self._terminal = None


def _decoded(state: bytes) -> _State:
    try:
        return msgspec.msgpack.decode(state, type=_State)
    except msgspec.DecodeError as error:
        raise WireError(f"bad state of a guest's standard files: {error}") from None


def restarted(state: bytes) -> tuple[bytes, bool]:
    """*state*, for a deputy that knows nothing of the one before; False: the input has ended.  Raises WireError."""
    kept = _decoded(state)
    unwanted = kept.plan.kinds[0] is Kind.PIPE and int(Stream.INPUT) not in kept.keys
    relay, has_input = begun_anew(kept.relay, pack(InputUnwanted()) if unwanted else b"")
    return msgspec.msgpack.encode(msgspec.structs.replace(kept, relay=relay)), has_input


def made(
    plan: bytes, send: Callable[[bytes], None], act: Act, state: bytes, owner: tuple[int, int] | None
) -> BodyFiles:
    """For a guest's init, which has the plan as it came.  Raises WireError."""
    try:
        known = msgspec.msgpack.decode(plan, type=FilesPlan)
    except msgspec.MsgspecError as error:
        raise WireError(f"the plan of a guest's standard files: {error}") from None
    return BodyFiles(known, send, act, state, owner)
