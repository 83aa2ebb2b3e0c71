"""What is promised of writes, also of those that return before the owner has executed them.

A write that has returned, executed or not (*early*), is seen by every call that starts later, unless it was *lost*: its
node crashed, or the term was over there, or it was an append of which nobody knows whether a former owner executed it.
What was lost is told to the open file that wrote it, once, by its next write, fsync or close.  What was returned before
an fsync or a close that returned is executed.  No write is executed after one that began when it had returned: that
would bring old data back.  Part of leasemodel.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.unit.leasedisk import Register


class Broken(AssertionError):
    """The promise was not kept."""


@dataclass(eq=False)
class Write:
    """*begun* and *returned*: `Writes.clock` then; *executed*: the versions that it made."""

    number: int
    kind: str
    file: bytes
    whose: bytes
    open_file: int
    begun: int
    returned: int | None = None
    executed: dict[Register, int] = field(default_factory=dict)
    is_lost: bool = False

    @property
    def is_early(self) -> bool:
        return self.returned is not None and not self.executed and not self.is_lost


class Writes:
    def __init__(self, call_returned: Callable[[Iterable[tuple[Register, int]]], None]) -> None:
        self.clock = 0
        self.all: list[Write] = []
        self.early: dict[bytes, list[Write]] = {}
        self._call_returned = call_returned
        self._unreported: dict[int, list[Write]] = {}  # lost, by open file
        self._last_begun: dict[bytes, Write] = {}  # of those executed

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def begin(self, kind: str, file: bytes, whose: bytes, open_file: int) -> Write:
        write = Write(len(self.all), kind, file, whose, open_file, self.tick())
        self.all.append(write)
        return write

    def executed(self, number: int, made: Iterable[tuple[Register, int]]) -> None:
        write = self.all[number]
        last = self._last_begun.get(write.file)
        if write.returned is not None and last is not None and last.begun > write.returned:
            raise Broken(f"write {number} is executed after write {last.number}, which began when it had returned")
        if write.executed and write.kind == "append":
            raise Broken(f"append {number} is executed twice")
        if last is None or last.begun < write.begun:
            self._last_begun[write.file] = write
        if not write.executed:
            is_early = write.is_early
            write.executed = dict(made)
            if is_early:
                self._not_early(write)
                self._call_returned(write.executed.items())

    def returned(self, write: Write) -> None:
        """Without an error."""
        write.returned = self.tick()
        if write.executed:
            self._call_returned(write.executed.items())
        elif not write.is_lost:
            self.early.setdefault(write.file, []).append(write)

    def early_of(self, file: bytes) -> tuple[Write, ...]:
        return tuple(self.early.get(file, ()))

    def saw(self, register: Register, version: int, before: Iterable[Write]) -> None:
        """*before*: what was early when the call began."""
        for write in before:
            if not write.is_lost and write.executed.get(register, version + 1) > version:
                raise Broken(f"{register}: version {version} was seen, write {write.number} had returned before")

    def lost(self, number: int, lapsed: int) -> None:
        """*lapsed*: when the term of its node was last over."""
        write = self.all[number]
        if lapsed < write.begun and write.kind != "append":
            raise Broken(f"write {number} is lost, and nothing had happened")
        if write.is_early:
            self._not_early(write)
        write.is_lost = True
        self._unreported.setdefault(write.open_file, []).append(write)

    def reported(self, open_file: int) -> None:
        if not self._unreported.pop(open_file, None):
            raise Broken(f"open file {open_file}: an error for nothing")

    def synced(self, open_file: int, began: int) -> None:
        """An fsync or close that began then has returned without an error."""
        if open_file in self._unreported:
            raise Broken(f"open file {open_file}: nobody was told that writes were lost")
        for write in self.all:
            if write.open_file == open_file and write.is_early and (write.returned or 0) < began:
                raise Broken(f"write {write.number} was synced and is not written")

    def gone(self, whose: bytes) -> None:
        """Its node has crashed."""
        for write in self.all:
            if write.whose == whose and not write.is_lost:
                if write.is_early:
                    self._not_early(write)
                write.is_lost = not write.executed
            if write.whose == whose:
                self._unreported.pop(write.open_file, None)

    def check_end(self) -> None:
        """Everything is closed."""
        if self._unreported:
            raise Broken(f"open files {sorted(self._unreported)}: nobody was told that writes were lost")
        if self.early:
            raise Broken("writes that returned were never executed")

    def _not_early(self, write: Write) -> None:
        self.early[write.file].remove(write)
        if not self.early[write.file]:
            del self.early[write.file]
