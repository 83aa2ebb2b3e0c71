"""The messages that are about leases alone (docs/leases.md); most grants come with other replies (wire.py)."""

from __future__ import annotations

from omfs.wiretypes import Message, Mode


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
