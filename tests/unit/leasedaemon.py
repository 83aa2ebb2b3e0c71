"""The mount daemon of a node of leasemodel.py: its `Holder`, its connection, and what it makes the kernel forget.

Its buffered writes are in leasebehind.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from omfs.cache.holder import Holder, Lease
from omfs.cache.owner import Recall
from omfs.wiretypes import Mode
from tests.unit.leasebehind import WriteBehind
from tests.unit.leasedisk import DIRECTORIES, LOOKS, Call, Register, Reply
from tests.unit.leasekernel import Kernel
from tests.unit.leasemodel import TERM_S, Steps, World
from tests.unit.leasewrites import Broken

SPAN_S: Final = 0.7 * TERM_S
BARRIER: Final = (b"no such name",)


@dataclass
class Asked:
    call: Call
    sent_s: float
    reply: Reply | None = None


@dataclass(eq=False)
class Forgetting:
    """Names that the owner was told are forgotten."""

    is_done: bool = False


class Daemon:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.boots = 0
        self.clock_rate = 1.0
        self.up: deque[Any] = deque()
        self.down: deque[Any] = deque()
        self.bulk: deque[Any] = deque()
        self.is_stalled = False  # what it sends is on its way for long
        self.restart()

    @property
    def now_s(self) -> float:
        """By its own clock, which shows another time and has a longer or shorter second than the owner's."""
        return 1e4 * self.number + self.clock_rate * self.world.now_s

    def restart(self) -> None:
        """Of the whole node."""
        self.boots += 1
        self.key = b"node %d, boot %d" % (self.number, self.boots)
        self.kernel = Kernel(self.world.rules.fair_locks)
        self.holder = Holder()
        self.leases: dict[bytes, Lease] = {handle: self.holder.new_lease(handle) for handle in DIRECTORIES}
        self.written: dict[bytes, int] = {}  # replies about an inode that the kernel was given and has not processed
        self.asked: dict[int, Asked] = {}
        self.numbers = self.pids = self.round = self.epoch = 0
        self.answered_s = self.now_s
        self.data_until_s: float | None = None  # while what a former owner knows is given back
        self.behind = WriteBehind(self)
        self.dropping = self.dropped = False
        self.revalidating: list[tuple[bytes, bytes]] = []  # names being looked up without the lock
        self.changing = dict.fromkeys(DIRECTORIES, 0)
        self.looking: set[int] = set()  # processes in calls that only look
        self.forgetting: dict[bytes, list[Forgetting]] = {handle: [] for handle in DIRECTORIES}
        self.known: dict[Register, tuple[tuple[int, int] | None, int]] = {}  # by what is held, and the version
        self.breaks = dict.fromkeys(DIRECTORIES, 0)  # how often what was known of it ceased to hold
        self.listed: dict[bytes, tuple[tuple[int, int] | None, int]] = {}  # as `known`
        self.running: set[int] = set()
        self.handled: set[int] = set()
        self.is_connected = False
        self.cut()

    # ------------------------------------------------------------ the connection

    def cut(self) -> None:
        self.is_connected = self.is_stalled = False
        for frames in (self.up, self.down, self.bulk):
            frames.clear()

    def connect(self) -> None:
        self.is_connected = True
        if not self.world.begin_session(self.key):
            self._owner_forgot()
            self._tell_opens()
        self.answered_s = self.now_s
        for recall in self.world.owner.recalls_at(self.key):
            self.down.append(("recall", recall))
        for number, asked in self.asked.items():
            if asked.reply is None:
                self.up.append(("request", number, asked.call))
        self._return_everything()

    def _owner_forgot(self) -> None:
        self.epoch += 1
        self.running, self.handled = set(), set()
        if self.data_until_s is None and self.world.rules.keeps_deadline:
            self.data_until_s = self.answered_s + SPAN_S
        for asked in self.asked.values():
            if self.behind.is_append(asked.call) and self.world.rules.appends_once:
                asked.reply = asked.reply or Reply("lost")
            elif asked.call.kind not in (*LOOKS, "behind") and asked.reply is None:
                asked.reply = Reply("failed")
        self.lapse()
        self.holder.restart_serials(self.leases.values())

    def ping(self) -> None:
        if self.is_connected:
            self.up.append(("ping", self.now_s))

    def hear(self, frame: tuple[Any, ...]) -> None:
        match frame:
            case ("pong", sent_s):
                self._answered(sent_s)
            case ("reply", number, reply):
                if (asked := self.asked.get(number)) and asked.reply is None:
                    asked.reply = reply
                    self._answered(asked.sent_s)
            case ("return everything", epoch, sent_s):
                if epoch == self.epoch and self.dropped:
                    self.dropped = False
                    self.data_until_s = None
                    self._answered(sent_s)
                    self._renew()
            case ("recall", recall):
                self._take_recall(recall)

    def _answered(self, sent_s: float) -> None:
        self.answered_s = max(self.answered_s, sent_s)
        self._renew()

    def _renew(self) -> None:
        is_over = self.now_s >= self.answered_s + SPAN_S
        if not (self.holder.valid or self.dropping or self.dropped or is_over):
            self.holder.renew()
            self.round += 1

    def ask(self, call: Call) -> Steps:
        self.numbers += 1
        number = self.numbers
        asked = self.asked[number] = Asked(call, self.now_s)
        if self.dropping and self.world.rules.fails_at_lapse and call.kind != "behind":
            asked.reply = Reply("failed")
        elif self.is_connected:
            self.up.append(("request", number, call))
        yield lambda: asked.reply is not None
        del self.asked[number]
        return asked.reply

    # ------------------------------------------------------------ the term

    def tick(self) -> None:
        now_s, over_s = self.now_s, self.answered_s + SPAN_S
        if self.holder.valid and now_s >= over_s:
            self.lapse()
        if self.world.rules.lapse_drops_data and now_s >= (over_s if self.data_until_s is None else self.data_until_s):
            self.behind.lapsed = self.world.writes.tick()
            self.behind.drop_all()
            for asked in self.asked.values():
                if asked.call.kind == "behind":
                    asked.reply = asked.reply or Reply("failed")

    def lapse(self) -> None:
        """The term is over, or the owner has forgotten us; then what is buffered is still to be written."""
        self.holder.lapse()
        if self.world.rules.fails_at_lapse:
            for asked in self.asked.values():
                if asked.call.kind != "behind":
                    asked.reply = asked.reply or Reply("failed")
        self.dropped = False
        if not self.dropping:
            self.dropping = True
            self.world.spawn(self._drop(), self)

    def _drop(self) -> Steps:
        for handle in list(self.leases):
            yield from self._recall(handle, None, Mode.NONE, self.world.rules.flushes_before_return)
        self.dropping, self.dropped = False, True
        self._return_everything()

    def _return_everything(self) -> None:
        if self.dropped and self.is_connected:
            self._tell_opens()
            self.up.append(("return everything", self.epoch, self.now_s))

    def _tell_opens(self) -> None:
        """What is open here, or is going to be: the owner may have forgotten it, or we what we asked it for."""
        asked = [one.call for one in self.asked.values() if one.call.kind == "open" and one.reply is None]
        opens = [(one.file, one.number) for one in self.behind.opens.values()]
        self.up.append(("opens", (*opens, *((call.handle, call.open_file) for call in asked))))

    def finish_dropping(self) -> None:
        """The owner gives the leases away: by now everything must be gone."""
        for _ in range(1000):
            if not self.dropping:
                break
            if not self.world.step(0, only=self):
                self.world.moment += 1  # somebody waits for 20 ms
        if self.dropping:
            raise Broken(f"node {self.number} could not drop its caches within the term")

    # ------------------------------------------------------------ recalls

    def _take_recall(self, recall: Recall) -> None:
        if recall.serial in self.handled:
            self.up.append(("returned", recall.serial))
        elif recall.serial not in self.running:
            self.holder.seen(recall.handle, self.leases.get(recall.handle), recall.serial)
            if recall.handle in DIRECTORIES:
                self.breaks[recall.handle] += 1
            self.running.add(recall.serial)
            self.world.spawn(self._handle_recall(recall, self.epoch), self)

    def _handle_recall(self, recall: Recall, epoch: int) -> Steps:
        if recall.handle in DIRECTORIES and self.world.rules.answers_early:
            yield from self._recall_names(recall)
        else:
            yield from self._recall(recall.handle, recall.names, recall.mode, self.world.rules.drains_before_answer)
        if epoch == self.epoch:
            self.running.remove(recall.serial)
            self.handled.add(recall.serial)
            if self.is_connected:
                self.up.append(("returned", recall.serial))

    def _recall_names(self, recall: Recall) -> Steps:
        """Over when they are forgotten, or nobody can see them any more."""
        handle, forgetting = recall.handle, Forgetting()
        Holder.begin_recall(self.leases[handle])
        self.world.spawn(self._forget_names(recall, forgetting), self)
        while not forgetting.is_done:
            if self.changing[handle]:
                self.forgetting[handle].append(forgetting)
                if self.world.rules.voids_attributes:
                    self.kernel.outdate(handle)
                break
            yield lambda: forgetting.is_done or self.changing[handle] > 0

    def _forget_names(self, recall: Recall, forgetting: Forgetting) -> Steps:
        yield from self._recall(recall.handle, recall.names, recall.mode)
        Holder.end_recall(self.leases[recall.handle], recall.mode)
        forgetting.is_done = True
        if forgetting in self.forgetting[recall.handle]:
            self.forgetting[recall.handle].remove(forgetting)

    def _wait_forgotten(self, handle: bytes, pid: int) -> Steps:
        """Before attributes are told.  Who is about to change something may keep the directory locked himself."""
        rules, begun = self.world.rules, self.world.moment
        waits = pid in self.looking and rules.knows_lookers
        while (forgetting := self.forgetting.get(handle)) and rules.holds_attributes:

            def may_go(first: Forgetting = forgetting[0]) -> bool:
                return first.is_done or (not waits and not self.changing[handle] and self.world.moment > begun + 1)

            first = forgetting[0]
            yield may_go
            if not first.is_done:
                return

    def cached(self) -> Iterator[tuple[Register, int]]:
        """What calls that start now would see without asking."""
        for register, version in self.kernel.cached():
            directory = register[0] if isinstance(register, tuple) else b""
            if directory in self.kernel.attributes or not self.forgetting.get(directory):
                yield register, version

    def _recall(self, handle: bytes, names: tuple[bytes, ...] | None, mode: Mode, drains: bool = False) -> Steps:
        lease = self.leases.get(handle)
        if lease is None:
            return
        self.holder.begin_recall(lease)
        while mode is Mode.NONE or names is not None:
            since = self.holder.begin_pass(lease)
            told = sorted(lease.take_names()) if names is None else names
            for name in told or (BARRIER if handle in DIRECTORIES and self.world.rules.locks_always else ()):
                drops = self.world.rules.drops_revalidated and (handle, name) in self.revalidating
                yield from self.kernel.inval_entry(handle, name, drops)
            if names is None or self.world.rules.forgets_attributes:
                yield from self._inval_inode(handle)
            yield None
            if self.holder.is_done(lease, since) or not self.world.rules.repeats_passes:
                break
        if drains:
            yield from self.behind.drain(handle)
        self.holder.end_recall(lease, mode)

    def _inval_inode(self, handle: bytes) -> Steps:
        yield None
        if self.world.rules.retries_unknown:
            yield lambda: handle in self.kernel.known or not self.written.get(handle)
        if handle in self.kernel.known:
            self.kernel.outdate(handle)
            yield lambda: handle not in self.kernel.reading
            self.kernel.pages.pop(handle, None)

    def evict(self, file: bytes) -> None:
        """The kernel needs memory, or the last name that it knew is gone."""
        kernel, lock = self.kernel, self.kernel.locks[file]
        if self.behind.is_open(file):
            return
        if file in kernel.known and not (self.written.get(file) or file in kernel.reading or lock.inside or lock.queue):
            kernel.forget(file)
            lease = self.leases.pop(file)
            self.holder.drop_lease(file, lease)
            if lease.mode is not Mode.NONE and self.is_connected:
                self.up.append(("give back", file, lease.serial))
