"""What a guest has done at home that keeps it there for good: no file of /proc tells of it, and CRIU loses it silently.

A Landlock sandbox, and segments that modify_ldt(2) has set.  Restored without its sandbox a program that has confined
itself would be free.  So its filter stops these calls at home (dfsa/verdict.LASTING; elsewhere they are refused), and
what they do is written down before the kernel does it: for the guest as a whole and until its end, since children and
what they execute inherit it, and nobody could tell when the last of them is gone.  Where it can't be written down the
call fails.  A call that has failed in the kernel afterwards is noted too: the guest stays in vain.

Called by guest.py, for its router, and by who asks why it can't move.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec

from dfsa.router import Call, Handler, Proceed
from mignode.reasons import Kind, Reason, told
from omfs.errors import RemoteFailure

_LDT_READS: Final = (0, 2)  # func of modify_ldt(2): they leave nothing
_KINDS: Final = {"landlock_restrict_self": Kind.SANDBOX, "modify_ldt": Kind.SEGMENTS}


class Rooted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*calls*: their names, each once."""

    calls: tuple[str, ...] = ()


def handlers(note: Callable[[str], None]) -> Mapping[str, Handler]:
    """For the router of a guest at home.  *note* has it written down when it returns, or raises OSError."""

    def sandbox(call: Call) -> Proceed:
        note(call.name)
        return Proceed()

    def segments(call: Call) -> Proceed:
        if call.arguments[0] & 0xFFFFFFFF not in _LDT_READS:
            note(call.name)
        return Proceed()

    return {"landlock_restrict_self": sandbox, "modify_ldt": segments}


def reasons_for(calls: Iterable[str]) -> list[Reason]:
    """Why who has made these calls can't move."""
    return [Reason(_KINDS[call], _KINDS[call].value) for call in calls]


def check_mobile(calls: Collection[str]) -> None:
    """Of a guest that is frozen now: until then it may have made some.  Raises RemoteFailure(EROFS)."""
    if calls:
        raise RemoteFailure(errno.EROFS, told(reasons_for(calls)))
