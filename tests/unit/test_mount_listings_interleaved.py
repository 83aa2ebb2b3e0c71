"""Many list one directory while names come and go: nobody misses a name that stays, meets one twice, or a stale one."""

from __future__ import annotations

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from omfs.mount import takenlistings
from tests.unit.kerneldirectory import Stream
from tests.unit.listingmount import Mount, finished


class Reading:
    """A process that lists the directory, and what it must and may meet."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.must: set[bytes] = set()
        self.may: set[bytes] = set()
        self.marks: list[tuple[int, int]] = []  # telldir(3): offset, names told before

    def begin(self, names: set[bytes]) -> None:
        self.stream.pos = 0
        self.stream.told.clear()
        self.marks.clear()
        self.must, self.may = set(names), set(names)

    def check(self) -> None:
        told = self.stream.told[2:]
        assert len(told) == len(set(told)), "told twice"
        assert self.must <= set(told), f"skipped {self.must - set(told)}"
        assert set(told) <= self.may, f"gone long ago: {set(told) - self.may}"


class Interleaved(RuleBasedStateMachine):
    """Processes list one directory while names come and go here and at other nodes, with and without a lease."""

    @initialize(count=st.integers(0, 24))
    def begin(self, count: int) -> None:
        self.mount = Mount()
        self.readings: list[Reading] = []
        self.made = 0
        for _ in range(count):
            self._make()

    def _make(self) -> bytes:
        self.made += 1
        self.mount.peer.make(b"%d" % self.made)
        return b"%d" % self.made

    @rule(by_us=st.booleans())
    def make(self, by_us: bool) -> None:
        name = self._make()
        for reading in self.readings:
            reading.may.add(name)
        self._changed(by_us)

    @precondition(lambda self: self.mount.peer.names)
    @rule(data=st.data(), by_us=st.booleans())
    def remove(self, data: st.DataObject, by_us: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.mount.peer.names)))
        del self.mount.peer.names[name]
        for reading in self.readings:
            reading.must.discard(name)
        self._changed(by_us)

    def _changed(self, by_us: bool) -> None:
        mount = self.mount
        if by_us:
            mount.listings.stale(mount.inode.id)
            mount.kernel.iversion += 1
        elif mount.leases.is_on:
            mount.listings.stale(mount.inode.id)
            mount.kernel.invalidate()

    @rule(is_on=st.booleans())
    def lease(self, is_on: bool) -> None:
        if self.mount.leases.is_on and not is_on:
            self.mount.listings.stale(self.mount.inode.id)
            self.mount.kernel.invalidate()
        self.mount.leases.is_on = is_on

    @rule()
    def open(self) -> None:
        reading = Reading()
        reading.begin(set(self.mount.peer.names))
        self.readings.append(reading)

    @precondition(lambda self: self.readings)
    @rule(data=st.data(), room=st.integers(1, 30), size_bytes=st.sampled_from([480, 4096]))
    def read(self, data: st.DataObject, room: int, size_bytes: int) -> None:
        reading = data.draw(st.sampled_from(self.readings))
        if not reading.stream.told:  # what holds is what is there when the first call is made
            reading.begin(set(self.mount.peer.names))
        if not self.mount.kernel.getdents(reading.stream, room, size_bytes):
            reading.check()
            self.readings.remove(reading)

    @precondition(lambda self: self.readings)
    @rule(data=st.data(), how=st.sampled_from(["rewind", "mark", "seek", "abandon"]))
    def move(self, data: st.DataObject, how: str) -> None:
        reading = data.draw(st.sampled_from(self.readings))
        stream = reading.stream
        match how:
            case "rewind":
                reading.begin(set(self.mount.peer.names))
            case "mark":
                reading.marks.append((stream.pos, len(stream.told)))
            case "seek" if reading.marks:
                stream.pos, told = data.draw(st.sampled_from(reading.marks))
                if told == 0:
                    reading.begin(set(self.mount.peer.names))
                del stream.told[told:]
                reading.marks = [mark for mark in reading.marks if mark[1] <= told]
            case "abandon":
                self.readings.remove(reading)

    @rule(data=st.data())
    def memory_is_short(self, data: st.DataObject) -> None:
        if self.mount.kernel.pages:
            del self.mount.kernel.pages[data.draw(st.sampled_from(sorted(self.mount.kernel.pages)))]

    @rule()
    def time_passes(self) -> None:
        for snapshot in self.mount.listings.idle():
            finished(takenlistings._close(snapshot))

    @invariant()
    def look_ups_are_counted(self) -> None:
        inodes = self.mount.operations.inodes
        for node_id, look_ups in self.mount.kernel.look_ups.items():
            assert inodes.get(node_id).lookups == look_ups
        assert len(inodes) == 2 + len(self.mount.kernel.look_ups)

    def teardown(self) -> None:
        if not hasattr(self, "mount"):
            return
        for reading in self.readings:
            while self.mount.kernel.getdents(reading.stream, 5):
                pass
            reading.check()
        names = self.mount.list_all(7)
        assert sorted(names) == sorted(self.mount.peer.names), "a listing that begins now"


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
