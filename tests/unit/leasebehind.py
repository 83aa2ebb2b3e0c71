"""Write-behind in the mount daemon of leasemodel.py: what is buffered of each file, sent, lost and reported.

All writes of a file go to one place, so that each must come after the one before: at most one request is under way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omfs.wiretypes import Mode
from tests.unit.leasedisk import FILES, Call, Reply
from tests.unit.leasewrites import Write

if TYPE_CHECKING:
    from tests.unit.leasedaemon import Daemon
    from tests.unit.leasemodel import Steps


@dataclass(eq=False)
class OpenFile:
    """A file that a process has open for writing."""

    number: int
    file: bytes
    has_failed: bool = False  # what it wrote earlier
    is_closing: bool = False
    users: int = 0  # calls under way: it is closed after them


@dataclass(eq=False)
class Buffer:
    """Of one file; *added* and *done*: how many writes so far."""

    unsent: list[Write] = field(default_factory=list)
    sent: list[Write] = field(default_factory=list)
    added: int = 0
    done: int = 0
    is_sending: bool = False


class WriteBehind:
    def __init__(self, node: Daemon) -> None:
        self.buffers = {file: Buffer() for file in FILES}
        self.opens: dict[int, OpenFile] = {}
        self.lapsed = 0  # when the leases last did
        self._node = node

    def may_buffer(self, file: bytes) -> bool:
        node, rules = self._node, self._node.world.rules
        lease = node.leases.get(file)
        if lease is None or lease.mode is not Mode.EXCLUSIVE:
            return False
        is_valid = node.holder.valid or not rules.buffers_when_valid
        return is_valid and not (lease.recalls and rules.recall_stops_buffering)

    def is_open(self, file: bytes) -> bool:
        return any(one.file == file for one in self.opens.values())

    def open_of(self, file: bytes, pid: int) -> OpenFile | None:
        opens = [one for one in self.opens.values() if one.file == file and not one.is_closing]
        return opens[pid % len(opens)] if opens else None

    def add(self, write: Write) -> None:
        buffer = self.buffers[write.file]
        buffer.unsent.append(write)
        buffer.added += 1
        if not buffer.is_sending or not self._node.world.rules.flushes_one_by_one:
            buffer.is_sending = True
            self._node.world.spawn(self._send(write.file, buffer), self._node)

    def dirty(self) -> list[bytes]:
        return [file for file, buffer in self.buffers.items() if buffer.done < buffer.added]

    def drain(self, file: bytes) -> Steps:
        """Wait until everything that is buffered now is written, or lost."""
        buffer = self.buffers.get(file)
        if buffer is not None and buffer.done < buffer.added:
            until = buffer.added
            yield lambda: buffer.done >= until

    def _send(self, file: bytes, buffer: Buffer) -> Steps:
        yield None
        while buffer.unsent:
            kind = buffer.unsent[0].kind
            batch = []
            while buffer.unsent and buffer.unsent[0].kind == kind:
                batch.append(buffer.unsent.pop(0))
            buffer.sent += batch
            call = Call("behind", file, writes=tuple(write.number for write in batch))
            reply: Reply = yield from self._node.ask(call)
            if not all(write in buffer.sent for write in batch):
                continue  # dropped meanwhile
            if reply.result != "ok":
                self._lose(batch)
            buffer.sent = [write for write in buffer.sent if write not in batch]
            buffer.done += len(batch)
        buffer.is_sending = False

    def drop_all(self) -> None:
        """The term is over."""
        for buffer in self.buffers.values():
            self._lose(buffer.sent + buffer.unsent)
            buffer.sent, buffer.unsent, buffer.done = [], [], buffer.added

    def is_append(self, call: Call) -> bool:
        return call.kind == "behind" and self._node.world.writes.all[call.writes[0]].kind == "append"

    def _lose(self, writes: list[Write]) -> None:
        for write in writes:
            self._node.world.writes.lost(write.number, self.lapsed)
            if write.open_file in self.opens and self._node.world.rules.reports_losses:
                self.opens[write.open_file].has_failed = True
