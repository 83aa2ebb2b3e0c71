"""Every message that travels between two mignodes, and nothing else.

A frame is that of net/frames.py, always with id 0: a line is a conversation, not a set of calls.  Whoever connects says
Greet, is answered Greeted or NotWelcome, and then says what the line is for:

    Arrive                    a migration.  Prepared or Declined; ImagePiece ... ImagesSent, State; Restored or
                              NotRestored; then Release and Running, or Discard.  Begin, Commit go to home on a line of
                              their own, or over the guest's link
    Begin, Commit,            a question to the guest's home; each is answered by Begun, Located or Refused, and more
    WhereIs, GiveBack         may follow
    TakeImage                 home wants a checkpoint of a guest there.  ImageBytes ... ImageTaken, or Declined
    IsHere                    whether a guest runs there, by whoever can't ask its home.  Located
    Attend                    the link of a guest that is away, to its home.  Located; then both ways whatever comes:
                              RelayFrame, HomeCall and HomeCalled, MoveTo and Moved or NotMoved, Why, AskSetting and
                              ChangeSetting and Told, Ended

Units are in the names; a guest is called as mignode's folders for it: its name is checked here, before it becomes a
path.  Unknown fields and types are refused.  Changes change VERSION and test_words.py.  The rules are in handover.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias, Union

import msgspec

from mignode.handover import Located as Located
from mignode.past import Past
from omfs.config import BULK_MAX_BYTES
from omfs.wiretypes import Message

VERSION: Final = 5
RELAY_MAX_BYTES: Final = 64 << 10
STATE_MAX_BYTES: Final = 1 << 20  # of the standard files: what is in pipes and a terminal

NodeId = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Epoch = Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Reason = Annotated[str, msgspec.Meta(max_length=500)]
GUEST_PATTERN: Final = r"\A[1-9][0-9]{0,4}\.[1-9][0-9]{0,9}\.[0-9]{1,20}\Z"
GuestName = Annotated[str, msgspec.Meta(pattern=GUEST_PATTERN)]
"""<home>.<pid of the deputy>.<its start ticks>."""
SettingName = Annotated[str, msgspec.Meta(max_length=32)]
SettingText = Annotated[str, msgspec.Meta(max_length=20_000)]  # mignodes has one digit for four nodes
ImageName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")]
"""Of a file in the directory of images; there are no directories below it."""

# ---------------------------------------------------------------- every line


class Greet(Message, frozen=True, tag=True):
    """First message of who connects."""

    version: int
    software: str
    node_id: NodeId
    wanted_node_id: NodeId
    dfsa: bool
    map_digest: bytes


class Greeted(Message, frozen=True, tag=True):
    version: int
    software: str
    node_id: NodeId


class NotWelcome(Message, frozen=True, tag=True):
    """The two nodes do not fit together; the text says what to do.  The line ends."""

    reason: Reason


class Refused(Message, frozen=True, tag=True):
    """An error as the call has it that somebody waits in, and why."""

    errno: Annotated[int, msgspec.Meta(ge=1, le=4095)]
    reason: Reason


class StillHere(Message, frozen=True, tag=True):
    """Says nothing: a line that is silent for longer than its deadline is lost."""


# ---------------------------------------------------------------- a migration: source to destination, and back


class Arrive(Message, frozen=True, tag=True):
    """A guest wants to come.  *home* and *epoch*: where its record is, and what that says until the commit."""

    guest: GuestName
    attempt: Epoch
    epoch: Epoch
    home: NodeId
    hostname: Annotated[str, msgspec.Meta(max_length=64)]
    command: Annotated[bytes, msgspec.Meta(max_length=64)]  # of its root, to show
    uid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]  # the deputy's; no process of it has other rights than these
    gid: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    groups: tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)], ...]
    processes: Count
    memory_bytes: Count  # that may have to be sent, at most
    processor: Annotated[bytes, msgspec.Meta(max_length=8 << 10)]  # of the source (processor.py)
    plan: Annotated[bytes, msgspec.Meta(max_length=16 << 10)]  # of its standard files
    root: Annotated[int, msgspec.Meta(ge=2, lt=1 << 22)]  # the pid of its root, inside
    past: Past  # what is known of it, by which it is judged there


class Prepared(Message, frozen=True, tag=True):
    """Its world is there, and room for that much of images."""

    room_bytes: Count


class Declined(Message, frozen=True, tag=True):
    """It can't come; the errno for who asked for the move."""

    errno: Annotated[int, msgspec.Meta(ge=1, le=4095)]
    reason: Reason


class ImagePiece(Message, frozen=True, tag=True):
    """The next of *name*: the bulk data, and their CRC-32; none where TLS checks them."""

    name: ImageName
    offset: Count
    crc32: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] | None


class Image(Message, frozen=True):
    name: ImageName
    size_bytes: Count


class ImagesSent(Message, frozen=True, tag=True):
    """All images, with their sizes; no piece follows."""

    images: tuple[Image, ...]


class State(Message, frozen=True, tag=True):
    """Of the standard files (bodyfiles), in the bulk data; the guest is to be restored now.

    *luggage*: what the registry keeps of its processes (luggage.py); nothing in a checkpoint, whose home is another.
    """

    luggage: Annotated[bytes, msgspec.Meta(max_length=768 << 10)] = b""


class Restored(Message, frozen=True, tag=True):
    """The copy is there, and held."""


class NotRestored(Message, frozen=True, tag=True):
    """There is no copy, and nothing is left of it."""

    reason: Reason


class Release(Message, frozen=True, tag=True):
    """Home has committed: let it run."""


class Running(Message, frozen=True, tag=True):
    """It runs; the source's copy is not needed any more."""


class Discard(Message, frozen=True, tag=True):
    """It stays where it was."""

    reason: Reason


# ---------------------------------------------------------------- checkpoints


class TakeImage(Message, frozen=True, tag=True):
    """Home, for its user: dump the guest and let it go on; *every_s* is written into the image."""

    guest: GuestName
    every_s: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class ImageBytes(Message, frozen=True, tag=True):
    """The next bytes of its file (imagefile.py), in the bulk data."""


class ImageTaken(Message, frozen=True, tag=True):
    """The file ends here."""

    frozen_s: float


class IsHere(Message, frozen=True, tag=True):
    """Answered with node 0 where it is not."""

    guest: GuestName


# ---------------------------------------------------------------- questions to home


class Begin(Message, frozen=True, tag=True):
    """I have the guest in *epoch* and want to send it to *destination*."""

    guest: GuestName
    epoch: Epoch
    destination: NodeId


class Begun(Message, frozen=True, tag=True):
    attempt: Epoch
    destination: NodeId


class Commit(Message, frozen=True, tag=True):
    """The destination has it: the point of no return."""

    guest: GuestName
    attempt: Epoch


class WhereIs(Message, frozen=True, tag=True):
    """I am in doubt; an attempt that is not committed never will be."""

    guest: GuestName
    attempt: Epoch


class GiveBack(Message, frozen=True, tag=True):
    """The copy here has not run and never will."""

    guest: GuestName
    attempt: Epoch


# ---------------------------------------------------------------- the link


class Attend(Message, frozen=True, tag=True):
    """The guest runs here in *epoch*; this line is its link."""

    guest: GuestName
    epoch: Epoch


class RelayFrame(Message, frozen=True, tag=True):
    """Between the deputy and the guest's init, in the bulk data; at most RELAY_MAX_BYTES."""


class MoveTo(Message, frozen=True, tag=True):
    """Home orders the guest elsewhere (or to itself); 0: to where it is best, as the node finds where it runs."""

    order: Count
    destination: Annotated[int, msgspec.Meta(ge=0, le=65535)]


class DeputyThere(Message, frozen=True, tag=True):
    """Whether mosrun hears what is said, from now on."""

    is_there: bool


class DeputyLost(Message, frozen=True, tag=True):
    """mosrun was killed: so is the guest's root."""


class DeputyStopped(Message, frozen=True, tag=True):
    """mosrun was stopped, and its program is to be; SIGCONT comes by the relay."""


class OnTheWay(Message, frozen=True, tag=True):
    """How far the order is (journey.py); said again and again, also when it has ended."""

    order: Count
    journey: Annotated[str, msgspec.Meta(max_length=8 << 10)]


class Moved(Message, frozen=True, tag=True):
    order: Count


class NotMoved(Message, frozen=True, tag=True):
    order: Count
    errno: Annotated[int, msgspec.Meta(ge=1, le=4095)]
    reason: Reason


class HomeCall(Message, frozen=True, tag=True):
    """Do a guest's system call as its deputy (dfsa/outside.py)."""

    number: Count
    process: Count
    call: Annotated[str, msgspec.Meta(max_length=32)]
    arguments: Annotated[tuple[int, ...], msgspec.Meta(max_length=6)]


class HomeCalled(Message, frozen=True, tag=True):
    """What it returned; an errno other than 0 is its error."""

    number: Count
    value: int
    errno: Annotated[int, msgspec.Meta(ge=0, le=4095)]


class Why(Message, frozen=True, tag=True):
    """Home asks why the guest can't move; answered by Told: the reasons, without names of files where *is_brief*."""

    number: Count
    is_brief: bool


class WhyThere(Message, frozen=True, tag=True):
    """Home asks why the guest runs where it does; answered by Told: the last decision (policy.py), as JSON."""

    number: Count


class AskSetting(Message, frozen=True, tag=True):
    """What is set for the guest (guestsettings.py): home has it.  Answered by Told, as the control file shows it.

    Home asks where the guest runs for its root's `selected`.
    """

    number: Count
    name: SettingName


class ChangeSetting(Message, frozen=True, tag=True):
    """A process of the guest, or its user, has written to that control file.  Answered by Told, without a text.

    Home says it of `selected`; Told has what that is then.
    """

    number: Count
    name: SettingName
    text: SettingText


class Told(Message, frozen=True, tag=True):
    """The answer to a question of that number; an errno other than 0 is its error, and the text the reason."""

    number: Count
    errno: Annotated[int, msgspec.Meta(ge=0, le=4095)]
    text: SettingText


END_UNKNOWN: Final = 0xFFFF  # no status of waitpid(2) for one that has ended


class Ended(Message, frozen=True, tag=True):
    """All of it has ended, the root with this status of waitpid(2); END_UNKNOWN: nobody knows how.

    Home ends the line, and answers the next Attend with Located (nowhere).
    """

    epoch: Epoch
    status: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


FirstWord: TypeAlias = Union[Arrive, TakeImage, IsHere, Begin, Commit, WhereIs, GiveBack, Attend]
Word: TypeAlias = Union[
    Greet, Greeted, NotWelcome, Refused, StillHere,
    Arrive, Prepared, Declined, ImagePiece, ImagesSent, State, Restored, NotRestored, Release, Running, Discard,
    TakeImage, ImageBytes, ImageTaken, IsHere,
    Begin, Begun, Commit, WhereIs, GiveBack, Located,
    Attend, RelayFrame, DeputyThere, DeputyLost, DeputyStopped, MoveTo, OnTheWay, Moved, NotMoved, HomeCall,
    HomeCalled, Why, WhyThere, AskSetting, ChangeSetting, Told, Ended,
]  # fmt: skip

BULK_MAX: Final[Mapping[type[Message], int]] = {
    ImagePiece: BULK_MAX_BYTES,
    State: STATE_MAX_BYTES,
    ImageBytes: BULK_MAX_BYTES,
    RelayFrame: RELAY_MAX_BYTES,
}
"""Bytes of bulk data that come with a word; all others have none."""
