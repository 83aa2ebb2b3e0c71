"""The holder's side of leases: what this node may cache of one owner's objects, and what it must forget when.

Every object that the kernel knows has a `Lease` here, whether anything is held or not.  An answer may be cached only if
`granted` says so when it is taken; a recall is answered only after a pass that forgot everything and during which
nothing was told again.

    event                        | effect
    -----------------------------+--------------------------------------------------------------------
    granted (serial, mode)       | the mode, unless a recall with this serial or a later one was seen, one is under way,
                                 | or the leases are not valid: then NONE, and the answer serves only for its own call
    stopped writing              | EXCLUSIVE is SHARED
    told unasked                 | what is known here under a lease that is held, and not being recalled
    recall seen                  | grants up to its serial are void, also those that are still on their way
    recall begun                 | nothing is granted; told() from now on makes another pass necessary
    pass ended                   | done if nothing was told during it: the lease is down to the mode; else another
    lapsed                       | everything is void: all leases are NONE

Serials of recalls of objects without a lease are kept for the KEPT_MAX latest; *floor* stands for the older ones.
Pure.  Called by mount/remote.py and mount/recall.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from omfs.wiretypes import Mode

KEPT_MAX: Final = 4096  # recalls whose answer of LookUp may still be on its way: far more than can be in flight


class Lease:
    """One object as this node holds it.

    *data*: pages may stay cached under the lease.  *names*: what the kernel was told of the names of a directory.
    *recalls*: under way.  *writer*: the open file that it was made EXCLUSIVE for.
    *told*: the kernel may have cached something of it since the last pass began.
    """

    __slots__ = ("data", "mode", "names", "recalls", "serial", "tellings", "tellings_passed", "void", "writer")

    def __init__(self, void: int = 0) -> None:
        self.mode = Mode.NONE
        self.serial = 0
        self.void = void  # grants up to this serial are void
        self.data = False
        self.tellings = 0  # how often the kernel may have cached something of it
        self.tellings_passed = 0  # so often before the last pass began
        self.recalls = 0
        self.names: set[bytes] | None = None
        self.writer: object = None

    @property
    def told(self) -> bool:
        return self.tellings > self.tellings_passed

    @told.setter
    def told(self, told: bool) -> None:
        self.tellings += told

    @property
    def is_held(self) -> bool:
        """Whether an answer given now may be cached; not from the moment when a recall was seen until the next grant.

        What changes until that recall is answered is not recalled once more.
        """
        return self.mode is not Mode.NONE and not self.recalls and self.serial > self.void

    @property
    def is_exclusive(self) -> bool:
        """Whether a write answered now may be sent later."""
        return self.mode is Mode.EXCLUSIVE and self.is_held

    def take_names(self) -> tuple[bytes, ...]:
        """The names told so far; they count as forgotten now."""
        names, self.names = self.names, None
        return tuple(names) if names else ()


class Holder:
    """The leases of one owner's objects at this node."""

    def __init__(self) -> None:
        self.valid = False  # within the term
        self.floor = 0
        self._void: dict[bytes, int] = {}  # of objects without a Lease, oldest first

    def new_lease(self, handle: bytes) -> Lease:
        """For an object that becomes known; grants that were recalled before are void for it."""
        return Lease(max(self.floor, self._void.get(handle, 0)))

    def granted(self, lease: Lease, serial: int, mode: Mode) -> Mode:
        """The answer with *serial* grants *mode*: what of it may be used.  The kernel is going to be told."""
        if not serial or mode is Mode.NONE or not self.valid or lease.recalls or serial <= lease.void:
            return Mode.NONE
        if serial >= lease.serial:  # the same: more of the same answer
            lease.serial = serial
            lease.mode = mode
        lease.told = True
        return lease.mode

    def may_name(self, directory: Lease, serial: int, mode: Mode, name: bytes) -> bool:
        """Whether the kernel may remember what *name* in this directory is (or that it is not there)."""
        return self.may_name_all(directory, serial, mode, (name,))

    def may_name_all(self, directory: Lease, serial: int, mode: Mode, names: Collection[bytes]) -> bool:
        """The same of several."""
        return self.granted(directory, serial, mode) is not Mode.NONE and self._names(directory, names)

    def tell_unasked(self, lease: Lease) -> bool:
        """Whether the kernel may remember what is known here of the object, and is told without asking the owner."""
        may_tell = lease.is_held and self.valid
        lease.told = may_tell
        return may_tell

    def may_name_unasked(self, directory: Lease, name: bytes) -> bool:
        """The same of a name in this directory."""
        return self.tell_unasked(directory) and self._names(directory, (name,))

    @staticmethod
    def _names(directory: Lease, names: Collection[bytes]) -> bool:
        if directory.names is None:
            directory.names = set()
        directory.names.update(names)
        return True

    @staticmethod
    def stopped_writing(lease: Lease, writer: object) -> None:
        """The file was closed: the owner leaves SHARED of the EXCLUSIVE lease that it had."""
        if lease.writer is writer:
            lease.writer = None
            lease.mode = min(lease.mode, Mode.SHARED)

    # ------------------------------------------------------------ recalls

    def seen(self, handle: bytes, lease: Lease | None, serial: int) -> None:
        """A recall has arrived; in the order of arrival among the answers."""
        if lease is not None:
            lease.void = max(lease.void, serial)
            return
        serial = max(serial, self._void.pop(handle, 0))
        self._void[handle] = serial
        if len(self._void) > KEPT_MAX:
            oldest = next(iter(self._void))
            self.floor = max(self.floor, self._void.pop(oldest))

    def seen_all(self, leases: Iterable[Lease], serial: int) -> None:
        """Everything up to *serial* is recalled; *leases*: all there are."""
        self.floor = max(self.floor, serial)
        for lease in leases:
            lease.void = max(lease.void, serial)

    def drop_lease(self, handle: bytes, lease: Lease) -> None:
        """The kernel has forgotten the object, and the owner is told; what it granted up to now is void."""
        void = max(lease.void, lease.serial)
        if void:
            self.seen(handle, None, void)

    @staticmethod
    def begin_recall(lease: Lease) -> None:
        lease.recalls += 1

    @staticmethod
    def begin_pass(lease: Lease) -> int:
        """Everything told before is going to be forgotten.  Returns what `is_done` wants to hear after the pass."""
        lease.tellings_passed = lease.tellings
        return lease.tellings

    @staticmethod
    def is_done(lease: Lease, since: int | None = None) -> bool:
        """Nothing was told during the pass.  *since*: which one, as several recalls may be under way."""
        return lease.tellings == since if since is not None else not lease.told

    @staticmethod
    def end_recall(lease: Lease, mode: Mode) -> None:
        """The recall is over: no more than *mode* is left."""
        lease.recalls -= 1
        lease.mode = min(lease.mode, mode)
        if lease.mode is Mode.NONE:
            lease.data = False

    # ------------------------------------------------------------ the term

    def lapse(self) -> None:
        """The term is over, or the owner has forgotten us: nothing is granted until `renew`."""
        self.valid = False

    def renew(self) -> None:
        """The owner knows that we hold nothing: what it grants from now on counts.  Its serials may begin anew."""
        self.valid = True

    def restart_serials(self, leases: Iterable[Lease]) -> None:
        """The owner has begun a new session with us, in which nothing is granted or recalled yet."""
        self.floor = 0
        self._void.clear()
        for lease in leases:
            lease.void = lease.serial = 0
