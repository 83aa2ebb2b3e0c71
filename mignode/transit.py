"""What both ends of a migration need, and how each speaks with the other: for migrate.py and receive.py only.

Every wait has its time: what a stage may take at most is said here, with the reason.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import trio

from mignode.desk import Desk
from mignode.faultpoints import FaultPoints
from mignode.handover import Located
from mignode.images import ImageRoom
from mignode.line import Line
from mignode.words import Begun, Declined, Discard, NotRestored, Word
from omfs.config import Settings
from omfs.errors import CheckpointError, MoveFailed, RemoteFailure, WireError
from omfs.kernel.criuprogram import CriuProgram
from omfs.net.frames import Buffer
from omfs.standing import Standing

CONNECT_S: Final = 10.0
PREPARE_S: Final = 30.0  # its home's tree is bound entry by entry, through /mfs
FILES_S: Final = 10.0  # a few system calls of its init
DUMP_S: Final = 120.0  # some GB; the process does not run meanwhile, so more is no use to anybody
SENT_BYTES_PER_S: Final = 2 << 20  # at least, besides DUMP_S: memory goes over while it is dumped
RESTORE_S: Final = 120.0
DECISION_S: Final = 30.0  # the source only asks home, which has its own time
SILENCE_S: Final = 20.0  # the other end says StillHere every few seconds
REASON_MAX: Final = 500  # words.Reason
ASK_AGAIN_S: Final = 1.0

_W = TypeVar("_W", bound=Word)


class Transit(NamedTuple):
    """*is_blocked*: no guests of other nodes may come."""

    standing: Standing
    settings: Settings
    desk: Desk
    criu: CriuProgram
    images: ImageRoom
    is_blocked: Callable[[], bool] = lambda: False

    @property
    def run_dir(self) -> Path:
        """Of this node's daemons, with their control sockets."""
        return Path(self.settings.run_dir)

    @property
    def mount(self) -> Path:
        """The control socket of this node's mount."""
        return self.run_dir / "mount.sock"

    @property
    def here(self) -> int:
        return self.standing.local.node_id

    @property
    def faults(self) -> FaultPoints:
        return FaultPoints(Path(self.settings.run_dir))


async def heard(line: Line, kind: type[_W], silence_s: float = SILENCE_S) -> tuple[_W, Buffer]:
    """The next word, which must be of this kind.

    Raises RemoteFailure or CheckpointError where the other end can't, MoveFailed where it is lost.
    """
    try:
        word, bulk = await line.receive(silence_s)
    except (OSError, WireError) as error:
        raise MoveFailed(f"node {line.node_id}: {error}") from None
    return expect(line, word, kind), bulk


def expect(line: Line, word: Word, kind: type[_W]) -> _W:
    """*word*, if it is of this kind; raises what it says otherwise."""
    if isinstance(word, kind):
        return word
    match word:
        case Declined(_, reason):  # its errno would be taken for one of ours: "not yours", "under way"
            raise RemoteFailure(errno.EIO, f"node {line.node_id}: {reason}")
        case NotRestored(reason) | Discard(reason):
            raise CheckpointError(f"node {line.node_id}: {reason}")
        case _:
            raise WireError(f"node {line.node_id} says {type(word).__name__} instead of {kind.__name__}")


def located(answer: Begun | Located) -> Located:
    """What a desk answers to all questions but Begin."""
    assert isinstance(answer, Located)
    return answer


@contextlib.contextmanager
def within(deadline_s: float, what: str) -> Iterator[None]:
    """Around a stage.  Raises MoveFailed where it takes longer: "*what* within ... s"."""
    try:
        with trio.fail_after(deadline_s):
            yield
    except trio.TooSlowError:
        raise MoveFailed(f"{what} within {deadline_s:.0f} s") from None


@asynccontextmanager
async def kept_alive(line: Line) -> AsyncIterator[None]:
    """The other end hears that we are still there, however long a stage takes.  Raises what is raised inside."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.keep_alive)
        try:
            yield
        except Exception as error:  # out of the nursery, which would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def say(line: Line, word: Word, bulk: Buffer = b"") -> None:
    """Raises MoveFailed where the line is lost."""
    try:
        await line.send(word, bulk, deadline_s=SILENCE_S)
    except OSError as error:
        raise MoveFailed(f"node {line.node_id}: {error}") from None
