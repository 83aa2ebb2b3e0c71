"""Who may run a guest: the rules of a handover between its home, the source and the destination.

Never two copies run, and never none unless the node died that had the only one, which is the destination from the
moment the source asks to commit.  Home's record is the truth: where the guest is, and the *epoch*, which grows whenever
that changes.  An *attempt* to move it is the epoch that the guest will have if it succeeds; home issues it and takes
the commit of the newest one only, once.

    home     record                         | event              -> record
    ----------------------------------------+----------------------------------------------------------------------
             at the sender                  | begin              -> settled; a new attempt is open, former ones are dead
             the attempt is open            | commit by source   -> at the destination, THE POINT OF NO RETURN
                                            | asked by either    -> the attempt is dead: whoever asked was in doubt
                                            | given back         -> the attempt is dead
             committed, not settled         | attended           -> settled: the destination runs it
                                            | given back         -> at the source again, in a new epoch
    Every answer is `Located`, where the guest is now.  What does not fit changes nothing, however late or often it
    comes.  The record is on disk before the answer goes out (record.py).

    source   state     | event               -> state     effects
    -------------------+---------------------------------------------------------------------------------
             SENDING   | restored            -> BARRING   BAR
                       | failed              -> UNDONE    TELL_DISCARD THAW
             BARRING   | barred              -> ASKING    ASK_COMMIT
                       | failed              -> UNDONE    TELL_DISCARD THAW
             ASKING    | located here        -> UNDONE    TELL_DISCARD THAW
                       | located there       -> COMMITTED RELEASE
             COMMITTED | located here        -> UNDONE    THAW             given back, in a new epoch
             ASKING,   | running             -> DONE      KILL FORGET
             COMMITTED | located, settled    -> DONE      KILL FORGET      or further on, or nowhere
                       | home lost           -> DONE      KILL FORGET
                       | no answer           -> same      ASK_WHERE

    destination        | event               -> state     effects
    -------------------+---------------------------------------------------------------------------------
             RESTORING | restored            -> HELD      TELL_RESTORED
                       | discard, lost,failed-> DISCARDED DISCARD FORGET
             HELD      | release             -> RELEASING RUN
                       | discard             -> DISCARDED DISCARD FORGET
                       | lost, no answer     -> HELD      ASK_WHERE
                       | failed              -> RETURNING DISCARD GIVE_BACK
                       | located here        -> RELEASING RUN
             RELEASING | ran                 -> RUNNING   TELL_RUNNING ATTEND
                       | failed              -> RETURNING DISCARD GIVE_BACK
             RETURNING | no answer           -> RETURNING GIVE_BACK
                       | located, home lost  -> DISCARDED FORGET
             RUNNING   | no answer           -> RUNNING   ATTEND
             HELD,     | located elsewhere   -> DISCARDED DISCARD FORGET
             RUNNING   | home lost           -> DISCARDED DISCARD FORGET

What the callers owe for that (the model in the tests breaks without any of it):

- A `Stay` is written down on each node that has a copy, from before the copy is there (ARRIVING) until FORGET.  A node
  that has one takes no guest of that name.
- BAR makes sure that the dumped tree can't go on by itself, as it would when CRIU or mignode is killed.  First LEAVING
  is written down, then each process gets SIGSTOP: it waits behind the ptrace stop, takes effect before the next
  instruction, and is not in the images.  Only *after* that it is looked whether CRIU still holds the tree: if so, the
  tree has not run since its dump.  If not: `failed`.
- THAW sends SIGCONT, which takes back a SIGSTOP that waits, children first and while CRIU still holds the tree, then
  has CRIU undo its dump, then writes HERE.
- RUN writes HERE *before* CRIU lets the copy run.
- After a restart it is asked whether a copy has run when the CRIU that restored it has ended: told to let it run, it
  does so though mignode is dead.
- DISCARD and KILL are over when no process of the copy is left (its PID namespace has ended).
- What runs here is a Destination in RUNNING (`staying`, where it was born here or was thawed) until it begins to leave,
  and nothing else begins to leave.

After a restart of mignode the Stay says how to go on: `Source.recovered`, `Destination.recovered`.  After a reboot
there is none, and nothing runs.  Pure: no I/O, no clock, no waiting.  Called by migrate, receive and deputies.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

import msgspec
from msgspec.structs import replace

from omfs.errors import HandoverRefused
from omfs.wiretypes import Message

Node: TypeAlias = int
NOBODY: Final[Node] = 0


class Located(Message, frozen=True, tag=True):
    """Home's answer: the guest is on *node* (NOBODY: it has ended, or home never knew it) in *epoch*.

    *attempt*: the one that was asked about.  *is_settled*: it runs there, and no other copy is needed any more.
    """

    attempt: int
    epoch: int
    node: Node
    is_settled: bool


# ---------------------------------------------------------------- home


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What home knows of one guest.

    *issued*: the newest epoch ever given out.  *destination*: of the attempt *issued*, while that may be committed.
    *source*: the node that has the dumped copy, from the commit until the guest runs on *node*.
    """

    node: Node
    epoch: int = 1
    issued: int = 1
    destination: Node = NOBODY
    source: Node = NOBODY

    def located(self, attempt: int) -> Located:
        return Located(attempt, self.epoch, self.node, self.source == NOBODY)


def gone(attempt: int) -> Located:
    """The answer for a guest that has no record."""
    return Located(attempt, 0, NOBODY, True)


def begin(record: Record, sender: Node, epoch: int, destination: Node) -> Record:
    """*sender*, where the guest runs in *epoch*, wants to move it; the attempt is `issued` of the result.

    Raises HandoverRefused.
    """
    if (record.node, record.epoch) != (sender, epoch):
        raise HandoverRefused(f"the guest is not on node {sender} in epoch {epoch} any more")
    return replace(record, issued=record.issued + 1, destination=destination, source=NOBODY)


def commit(record: Record, sender: Node, attempt: int) -> Record:
    """The destination has it; the source can't go on without our answer."""
    if not _is_open(record, attempt) or record.node != sender:
        return record
    return replace(record, node=record.destination, epoch=attempt, destination=NOBODY, source=sender)


def asked(record: Record, sender: Node, attempt: int) -> Record:
    """The source or the destination of *attempt* is in doubt; whatever is answered stays true."""
    if _is_open(record, attempt) and sender in (record.node, record.destination):
        return replace(record, destination=NOBODY)
    return record


def attended(record: Record, sender: Node, epoch: int) -> Record:
    """It runs at the sender in *epoch*."""
    if (record.node, record.epoch) == (sender, epoch):
        return replace(record, source=NOBODY)
    return record


def given_back(record: Record, sender: Node, attempt: int) -> Record:
    """The destination of *attempt* has no copy any more that could run, and none has run there."""
    if _is_open(record, attempt) and record.destination == sender:
        return replace(record, destination=NOBODY)
    if (record.node, record.epoch) == (sender, attempt) and record.source != NOBODY:
        epoch = record.issued + 1
        return replace(record, node=record.source, epoch=epoch, issued=epoch, source=NOBODY)
    return record


def _is_open(record: Record, attempt: int) -> bool:
    return attempt == record.issued and record.destination != NOBODY


# ---------------------------------------------------------------- source and destination


class Phase(enum.Enum):
    ARRIVING = "arriving"  # the copy here does not run before home has committed *epoch*
    HERE = "here"  # it runs, or CRIU was told to let it
    LEAVING = "leaving"  # it is barred, for *attempt*


class Stay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node has written down of a copy; *epoch* is the guest's, if it is or stays here.

    *stopped*: the processes (pids of the node) that were stopped before they were barred, and stay so.
    """

    phase: Phase
    epoch: int
    attempt: int = 0
    stopped: tuple[int, ...] = ()


class Effect(enum.Enum):
    """What a machine wants done, in this order; the first are the source's."""

    BAR = enum.auto()
    ASK_COMMIT = enum.auto()
    RELEASE = enum.auto()  # tell the destination
    TELL_DISCARD = enum.auto()  # the same, if there is a line to it; else it asks home
    THAW = enum.auto()
    KILL = enum.auto()
    ASK_WHERE = enum.auto()
    TELL_RESTORED = enum.auto()
    RUN = enum.auto()
    TELL_RUNNING = enum.auto()
    ATTEND = enum.auto()
    DISCARD = enum.auto()
    GIVE_BACK = enum.auto()
    FORGET = enum.auto()


Effects: TypeAlias = tuple[Effect, ...]


class Leaving(enum.Enum):
    SENDING = enum.auto()
    BARRING = enum.auto()
    ASKING = enum.auto()
    COMMITTED = enum.auto()
    UNDONE = enum.auto()
    DONE = enum.auto()


class Source:
    """The node that the guest leaves.  *epoch*: the guest's, if it stays."""

    def __init__(self, here: Node, attempt: int, epoch: int) -> None:
        self.state = Leaving.SENDING
        self.attempt = attempt
        self.epoch = epoch
        self.is_lost = False  # as far as anybody can say it runs nowhere
        self._here = here

    @classmethod
    def recovered(cls, here: Node, stay: Stay) -> tuple[Source, Effects]:
        """After a restart of mignode that was LEAVING: the tree is barred, or runs."""
        source = cls(here, stay.attempt, stay.epoch)
        source.state = Leaving.ASKING
        return source, source.unanswered()

    @property
    def is_in_doubt(self) -> bool:
        """Only home can say what becomes of the copy here."""
        return self.state in (Leaving.ASKING, Leaving.COMMITTED)

    def restored(self) -> Effects:
        """The destination holds its copy."""
        if self.state is not Leaving.SENDING:
            return ()
        self.state = Leaving.BARRING
        return (Effect.BAR,)

    def barred(self) -> Effects:
        if self.state is not Leaving.BARRING:
            return ()
        self.state = Leaving.ASKING
        return (Effect.ASK_COMMIT,)

    def failed(self) -> Effects:
        """Anything went wrong, or the line is lost; it changes nothing any more once home was asked to commit."""
        if self.state not in (Leaving.SENDING, Leaving.BARRING):
            return ()
        self.state = Leaving.UNDONE
        return Effect.TELL_DISCARD, Effect.THAW

    def located(self, answer: Located) -> Effects:
        """Home's answer to a commit or a question."""
        if answer.attempt != self.attempt or not self.is_in_doubt:
            return ()
        if answer.node == self._here:
            told: Effects = (Effect.TELL_DISCARD,) if self.state is Leaving.ASKING else ()
            self.state, self.epoch = Leaving.UNDONE, answer.epoch
            return (*told, Effect.THAW)
        if answer.epoch != self.attempt or answer.is_settled:
            self.is_lost = answer.node == NOBODY
            return self._done()
        if self.state is Leaving.COMMITTED:
            return ()
        self.state = Leaving.COMMITTED
        return (Effect.RELEASE,)

    def running(self) -> Effects:
        """The destination says so; it was released, so home has committed whatever we have heard."""
        return self._done() if self.is_in_doubt else ()

    def unanswered(self) -> Effects:
        """Home did not answer in time, or said that the guest does not run there yet."""
        return (Effect.ASK_WHERE,) if self.is_in_doubt else ()

    def home_lost(self) -> Effects:
        """For so long that the guest is given up."""
        self.is_lost = self.is_in_doubt
        return self._done() if self.is_in_doubt else ()

    def _done(self) -> Effects:
        self.state = Leaving.DONE
        return Effect.KILL, Effect.FORGET


class Coming(enum.Enum):
    RESTORING = enum.auto()
    HELD = enum.auto()
    RELEASING = enum.auto()
    RUNNING = enum.auto()
    RETURNING = enum.auto()
    DISCARDED = enum.auto()


class Destination:
    """The node that the guest comes to, and where it then is."""

    def __init__(self, here: Node, attempt: int) -> None:
        self.state = Coming.RESTORING
        self.attempt = attempt
        self._here = here

    @classmethod
    def recovered(cls, here: Node, stay: Stay, *, has_run: bool) -> tuple[Destination, Effects]:
        """After a restart of mignode.  *has_run*: as its init says, also of a guest that has ended."""
        if stay.phase is Phase.HERE and has_run:
            return cls.staying(here, stay.epoch), (Effect.ATTEND,)
        destination = cls(here, stay.epoch)
        return destination, destination._given_back()

    @classmethod
    def staying(cls, here: Node, epoch: int) -> Destination:
        """Of a guest that runs here."""
        destination = cls(here, epoch)
        destination.state = Coming.RUNNING
        return destination

    def restored(self) -> Effects:
        """CRIU holds the copy."""
        if self.state is not Coming.RESTORING:
            return ()
        self.state = Coming.HELD
        return (Effect.TELL_RESTORED,)

    def failed(self) -> Effects:
        """The copy can't run, and never has."""
        if self.state is Coming.RESTORING:
            return self._discarded()
        return self._given_back() if self.state in (Coming.HELD, Coming.RELEASING) else ()

    def discard(self) -> Effects:
        """The source says that it is not committed and never will be."""
        return self._discarded() if self.state in (Coming.RESTORING, Coming.HELD) else ()

    def source_lost(self) -> Effects:
        """The line to the source has ended."""
        if self.state is Coming.RESTORING:
            return self._discarded()
        return (Effect.ASK_WHERE,) if self.state is Coming.HELD else ()

    def release(self) -> Effects:
        """The source says that home has committed."""
        if self.state is not Coming.HELD:
            return ()
        self.state = Coming.RELEASING
        return (Effect.RUN,)

    def ran(self) -> Effects:
        """CRIU let it run."""
        if self.state is not Coming.RELEASING:
            return ()
        self.state = Coming.RUNNING
        return Effect.TELL_RUNNING, Effect.ATTEND

    def located(self, answer: Located) -> Effects:
        """Home's answer to whatever it was asked."""
        if answer.attempt != self.attempt:
            return ()
        is_here = (answer.node, answer.epoch) == (self._here, self.attempt)
        if self.state is Coming.RETURNING:
            return self._forgotten()
        if self.state is Coming.HELD and is_here:
            return self.release()
        return self._discarded() if self.state in (Coming.HELD, Coming.RUNNING) and not is_here else ()

    def unanswered(self) -> Effects:
        """Home did not answer in time."""
        return _AGAIN.get(self.state, ())

    def home_lost(self) -> Effects:
        """For so long that the guest is given up."""
        if self.state is Coming.RETURNING:
            return self._forgotten()
        return self._discarded() if self.state in (Coming.HELD, Coming.RUNNING) else ()

    def _forgotten(self) -> Effects:
        self.state = Coming.DISCARDED
        return (Effect.FORGET,)

    def _discarded(self) -> Effects:
        self.state = Coming.DISCARDED
        return Effect.DISCARD, Effect.FORGET

    def _given_back(self) -> Effects:
        self.state = Coming.RETURNING
        return Effect.DISCARD, Effect.GIVE_BACK


_AGAIN: Final = {
    Coming.HELD: (Effect.ASK_WHERE,),
    Coming.RUNNING: (Effect.ATTEND,),
    Coming.RETURNING: (Effect.GIVE_BACK,),
}
