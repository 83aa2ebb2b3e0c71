"""The kernel of a node of leasemodel.py: its caches and locks, as Linux' fs/fuse has them.

Attributes are cached until invalidated, and a reply that was asked for before an invalidation does not count
(attr_version), except replies of changes, which always do; an inode is unknown until the first reply about it is
processed; no name of a directory is looked at without valid attributes of it (default_permissions), also by who
keeps it locked; names are looked up with the directory locked shared, changed with it locked, and forgotten
(inval_entry) with it locked; a dentry that is already there is revalidated without the lock, and a rename takes it
along; a page that is being read is locked, and invalidating it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.unit.leasedisk import DATA, DIRECTORIES, FILES, Register
from tests.unit.leasemodel import Steps


@dataclass(eq=False)
class Waiter:
    exclusive: bool


@dataclass
class Lock:
    fair: bool
    inside: list[Waiter] = field(default_factory=list)
    queue: list[Waiter] = field(default_factory=list)

    def take(self, exclusive: bool) -> Steps:
        me = Waiter(exclusive)
        self.queue.append(me)
        yield lambda: self._may_enter(me)
        self.queue.remove(me)
        self.inside.append(me)
        return me

    def _may_enter(self, me: Waiter) -> bool:
        before = [*self.inside, *(self.queue[: self.queue.index(me)] if self.fair else ())]
        return not before if me.exclusive else not any(other.exclusive for other in before)


@dataclass(eq=False)
class Dentry:
    version: int
    file: bytes | None
    cached: bool


class Kernel:
    def __init__(self, fair: bool) -> None:
        self.attributes: dict[bytes, int] = {}
        self.pages: dict[bytes, int] = {}
        self.dentries: dict[tuple[bytes, bytes], Dentry] = {}
        self.known = set(DIRECTORIES)
        self.reading: set[bytes] = set()
        self.clock = 0  # attr_version
        self.outdated: dict[bytes, int] = {}
        self.evicted = 0  # when the last inode was (evict_ctr, Linux 6.14)
        self.locks = {handle: Lock(fair) for handle in (*FILES, *DIRECTORIES)}

    def cached(self) -> Iterator[tuple[Register, int]]:
        yield from self.attributes.items()
        yield from (((file, DATA), version) for file, version in self.pages.items())
        for name, dentry in self.dentries.items():
            if dentry.cached:
                yield name, dentry.version

    def outdate(self, handle: bytes) -> None:
        self.clock += 1
        self.outdated[handle] = self.clock
        self.attributes.pop(handle, None)

    def learn(self, handle: bytes, version: int, told: bool, asked: int) -> None:
        """*asked*: `clock` when it was asked for."""
        outdated = self.outdated.get(handle, 0) if handle in self.known else self.evicted
        self.known.add(handle)
        if outdated <= asked:
            self.attributes.pop(handle, None)
            if told:
                self.attributes[handle] = version

    def forget(self, handle: bytes) -> None:
        self.known.discard(handle)
        self.attributes.pop(handle, None)
        self.pages.pop(handle, None)
        self.outdated.pop(handle, None)
        self.clock += 1
        self.evicted = self.clock
        self.dentries = {name: dentry for name, dentry in self.dentries.items() if dentry.file != handle}

    def inval_entry(self, directory: bytes, name: bytes, drops: bool) -> Steps:
        """Or, unless it *drops* it, expire it."""
        lock = self.locks[directory]
        me = yield from lock.take(exclusive=True)
        if drops:
            self.dentries.pop((directory, name), None)
        elif dentry := self.dentries.get((directory, name)):
            dentry.cached = False
        lock.inside.remove(me)
