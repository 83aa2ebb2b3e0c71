"""The messages that are about leases alone (docs/leases.md); most grants come with other replies (wire.py)."""

from __future__ import annotations

from omfs.wiretypes import Attributes, Message, Mode


class ReturnLeases(Message, frozen=True, tag=True):
    """The holder caches nothing of these any more: (handle, serial of its grant) each.  *everything*: of no object."""

    leases: tuple[tuple[bytes, int], ...]
    everything: bool = False


class RecallLease(Message, frozen=True, tag=True):
    """Owner to holder: keep no more than *mode* of what was granted up to *serial*; answered when that is so."""

    handle: bytes
    serial: int
    mode: Mode


class RecallNames(Message, frozen=True, tag=True):
    """Owner to holder: forget these names of the directory, its listing and its attributes; the lease stays."""

    handle: bytes
    serial: int
    names: tuple[bytes, ...]


class RecallAll(Message, frozen=True, tag=True):
    """Owner to holder: everything that was granted up to *serial* is void."""

    serial: int


class AskLease(Message, frozen=True, tag=True):
    """The EXCLUSIVE lease on a file that is open for writing, after it was recalled; others give back theirs."""

    open_id: int


class LeaseGranted(Message, frozen=True, tag=True):
    """Answer to AskLease; *mode* SHARED or NONE: not now."""

    serial: int
    mode: Mode


class LeaseReturned(Message, frozen=True, tag=True):
    """Answer to every recall: nothing of what was named is cached or will be without a new grant."""


class TellHeld(Message, frozen=True, tag=True):
    """For omfs-admin check: what the node that is asked holds of the asking one's objects; one of several parts.

    A lease is in the part that cache/parts.py says.
    """

    part: int
    parts: int


class Believed(Message, frozen=True):
    """A lease as its holder knows it; *data*: pages may be cached, too."""

    handle: bytes
    serial: int
    mode: Mode
    data: bool


class HeldTold(Message, frozen=True, tag=True):
    """*session*: under which it is held; empty where no lease is used now.  *is_cut*: too many for one reply."""

    session: bytes
    leases: tuple[Believed, ...]
    is_cut: bool


class AuditHeld(Message, frozen=True, tag=True):
    """For omfs-admin check: what the kernel of the node that is asked has cached of the asking one's objects.

    Of *count* objects from *start* on, in an order that *seed* gives; or of these *handles*.  It also chooses the part
    of their data.
    """

    start: int
    count: int
    seed: int
    handles: tuple[bytes, ...] = ()


class Audited(Message, frozen=True):
    """An object as programs see it there; *digest* (sha256) is of the data in a range, empty where none are cached.

    *breaks* grows with every recall and every change by that node.
    """

    handle: bytes
    breaks: int
    attributes: Attributes
    offset: int
    size_bytes: int
    digest: bytes


class HeldAudited(Message, frozen=True, tag=True):
    """*skipped*: those that changed meanwhile and, told once, those that may be newer there than at their owner.

    *at_end*: there are no more.
    """

    objects: tuple[Audited, ...]
    skipped: int
    at_end: bool
