"""A node of leasemodel.py: its mount daemon with a `Holder`, its connection, and the processes that make calls.

A reply that was taken and written may be processed much later by the process that waits for it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from omfs.cache.holder import Holder, Lease
from omfs.cache.owner import Recall
from omfs.wiretypes import Mode
from tests.unit.leasekernel import Dentry, Kernel
from tests.unit.leasemodel import DATA, DIRECTORIES, LOOKS, TERM_S, Broken, Call, Register, Reply, Steps, World

SPAN_S: Final = 0.7 * TERM_S
BARRIER: Final = (b"no such name",)


@dataclass
class Asked:
    call: Call
    sent_s: float
    reply: Reply | None = None


class Node:
    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.boots = 0
        self.up: deque[Any] = deque()
        self.down: deque[Any] = deque()
        self.bulk: deque[Any] = deque()
        self.restart()

    def restart(self) -> None:
        """Of the whole node."""
        self.boots += 1
        self.key = b"node %d, boot %d" % (self.number, self.boots)
        self.kernel = Kernel(self.world.rules.fair_locks)
        self.holder = Holder()
        self.leases: dict[bytes, Lease] = {handle: self.holder.new_lease(handle) for handle in DIRECTORIES}
        self.written: dict[bytes, int] = {}  # replies about an inode that the kernel was given and has not processed
        self.asked: dict[int, Asked] = {}
        self.numbers = self.round = self.epoch = 0
        self.answered_s = self.world.now_s
        self.dropping = self.dropped = False
        self.revalidating: list[tuple[bytes, bytes]] = []  # names being looked up without the lock
        self.running: set[int] = set()
        self.handled: set[int] = set()
        self.is_connected = False
        self.cut()

    # ------------------------------------------------------------ the connection

    def cut(self) -> None:
        self.is_connected = False
        for frames in (self.up, self.down, self.bulk):
            frames.clear()

    def connect(self) -> None:
        self.is_connected = True
        if not self.world.begin_session(self.key):
            self._owner_forgot()
        self.answered_s = self.world.now_s
        for recall in self.world.owner.recalls_at(self.key):
            self.down.append(("recall", recall))
        for number, asked in self.asked.items():
            if asked.reply is None:
                self.up.append(("request", number, asked.call))
        self._return_everything()

    def _owner_forgot(self) -> None:
        self.epoch += 1
        self.running, self.handled = set(), set()
        for asked in self.asked.values():
            if asked.call.kind not in LOOKS and asked.reply is None:
                asked.reply = Reply("failed")
        self.lapse()
        self.holder.restart_serials(self.leases.values())

    def ping(self) -> None:
        if self.is_connected:
            self.up.append(("ping", self.world.now_s))

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
                    self._answered(sent_s)
                    self._renew()
            case ("recall", recall):
                self._take_recall(recall)

    def _answered(self, sent_s: float) -> None:
        self.answered_s = max(self.answered_s, sent_s)
        self._renew()

    def _renew(self) -> None:
        is_over = self.world.now_s >= self.answered_s + SPAN_S
        if not (self.holder.valid or self.dropping or self.dropped or is_over):
            self.holder.renew()
            self.round += 1

    # ------------------------------------------------------------ the term

    def tick(self) -> None:
        if self.holder.valid and self.world.now_s >= self.answered_s + SPAN_S:
            self.lapse()

    def lapse(self) -> None:
        self.holder.lapse()
        if self.world.rules.fails_at_lapse:
            for asked in self.asked.values():
                asked.reply = asked.reply or Reply("failed")
        self.dropped = False
        if not self.dropping:
            self.dropping = True
            self.world.spawn(self._drop(), self)

    def _drop(self) -> Steps:
        for handle in list(self.leases):
            yield from self._recall(handle, None, Mode.NONE)
        self.dropping, self.dropped = False, True
        self._return_everything()

    def _return_everything(self) -> None:
        if self.dropped and self.is_connected:
            self.up.append(("return everything", self.epoch, self.world.now_s))

    def finish_dropping(self) -> None:
        """The owner gives the leases away: by now everything must be gone."""
        for _ in range(1000):
            if not self.dropping or not self.world.step(0, only=self):
                break
        if self.dropping:
            raise Broken(f"node {self.number} could not drop its caches within the term")

    # ------------------------------------------------------------ recalls

    def _take_recall(self, recall: Recall) -> None:
        if recall.serial in self.handled:
            self.up.append(("returned", recall.serial))
        elif recall.serial not in self.running:
            self.holder.seen(recall.handle, self.leases.get(recall.handle), recall.serial)
            self.running.add(recall.serial)
            self.world.spawn(self._handle_recall(recall, self.epoch), self)

    def _handle_recall(self, recall: Recall, epoch: int) -> Steps:
        yield from self._recall(recall.handle, recall.names, recall.mode)
        if epoch == self.epoch:
            self.running.remove(recall.serial)
            self.handled.add(recall.serial)
            if self.is_connected:
                self.up.append(("returned", recall.serial))

    def _recall(self, handle: bytes, names: tuple[bytes, ...] | None, mode: Mode) -> Steps:
        lease = self.leases.get(handle)
        if lease is None:
            return
        self.holder.begin_recall(lease)
        while True:
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
        if file in kernel.known and not (self.written.get(file) or file in kernel.reading or lock.inside or lock.queue):
            kernel.forget(file)
            lease = self.leases.pop(file)
            self.holder.drop_lease(file, lease)
            if lease.mode is not Mode.NONE and self.is_connected:
                self.up.append(("give back", file, lease.serial))

    # ------------------------------------------------------------ processes and the daemon's side of their calls

    def call(self, call: Call) -> None:
        self.world.spawn(self._process(call), self, is_call=True)

    def _process(self, call: Call) -> Steps:
        returned, world = self.world.returned, self.world
        refused_s: list[float] = []
        for _ in range(2):  # as the VFS's retry_estale
            registers: dict[str, Register] = {"look": (call.handle, call.name), "read": (call.handle, DATA)}
            register = registers.get(call.kind, call.handle)
            floor = returned.get(register, 0)
            made = {"stat": self._stat, "look": self._look, "read": self._read}.get(call.kind, self._change)
            reply: Reply = yield from made(call)
            if reply.result != "refused":
                break
            refused_s.append(world.now_s)
            world.refusals += 1
        else:
            world.refused_twice += refused_s[0] == refused_s[1]
        if call.kind in LOOKS and reply.result != "failed":
            world.saw(register, reply.version, floor)
        world.call_returned(reply.changed)

    def _ask(self, call: Call) -> Steps:
        self.numbers += 1
        number = self.numbers
        asked = self.asked[number] = Asked(call, self.world.now_s)
        if self.dropping and self.world.rules.fails_at_lapse:
            asked.reply = Reply("failed")
        elif self.is_connected:
            self.up.append(("request", number, call))
        yield lambda: asked.reply is not None
        del self.asked[number]
        return asked.reply

    def _lease(self, handle: bytes) -> Lease:
        lease = self.leases.get(handle)
        if lease is None:
            lease = self.leases[handle] = self.holder.new_lease(handle)
        return lease

    def _counts(self, asked_in: int) -> bool:
        """Whether what was asked for in this round may be cached."""
        return asked_in == self.round or not self.world.rules.counts_rounds

    def _process_reply(self, handle: bytes) -> Steps:
        """The reply is written; what comes then is done by the process when it runs."""
        self.written[handle] = self.written.get(handle, 0) + 1
        yield None
        self.written[handle] -= 1

    def _stat(self, call: Call) -> Steps:
        kernel, handle = self.kernel, call.handle
        if handle not in kernel.known:
            return Reply("failed")
        if handle in kernel.attributes:
            return Reply("ok", kernel.attributes[handle])
        clock, asked_in = kernel.clock, self.round
        reply = yield from self._ask(call)
        lease = self._lease(handle)
        told = self._counts(asked_in) and self.holder.granted(lease, reply.serial, reply.mode) is not Mode.NONE
        yield from self._process_reply(handle)
        if reply.result == "ok" and handle in kernel.known:
            kernel.learn(handle, reply.version, told, clock)
        return reply

    def _look(self, call: Call) -> Steps:
        kernel, name = self.kernel, (call.handle, call.name)
        dentry = kernel.dentries.get(name)
        if dentry and not dentry.cached and dentry.file:
            self.revalidating.append(name)
            reply = yield from self._look_up(call, dentry)
            self.revalidating.remove(name)
            return reply
        lock = kernel.locks[call.handle]
        if not (dentry and dentry.cached):
            me = yield from lock.take(exclusive=False)
            dentry = kernel.dentries.get(name)
            reply = Reply("ok")
            if not (dentry and dentry.cached):
                reply = yield from self._look_up(call, None)
            lock.inside.remove(me)
            if not (dentry and dentry.cached):
                return reply
        return Reply("ok", dentry.version)

    def _look_up(self, call: Call, dentry: Dentry | None) -> Steps:
        """*dentry*: one that is there already and revalidated, without the lock."""
        kernel, name = self.kernel, (call.handle, call.name)
        clock, asked_in = kernel.clock, self.round
        reply: Reply = yield from self._ask(call)
        if reply.result == "failed":
            return reply
        counts = self._counts(asked_in)
        may_name = counts and self.holder.may_name(self._lease(call.handle), reply.serial, reply.parent_mode, call.name)
        told = False
        if reply.file:
            lease = self._lease(reply.file)
            told = counts and self.holder.granted(lease, reply.serial, reply.mode) is not Mode.NONE
        yield from self._process_reply(reply.file or call.handle)
        if reply.file:
            kernel.learn(reply.file, reply.file_version, told, clock)
        if dentry is None:
            if reply.file or may_name:
                kernel.dentries[name] = Dentry(reply.version, reply.file, may_name)
        elif dentry.file == reply.file:
            dentry.version, dentry.cached = reply.version, may_name
        elif kernel.dentries.get(name) is dentry:
            del kernel.dentries[name]
        return reply

    def _read(self, call: Call) -> Steps:
        kernel, file = self.kernel, call.handle
        if file not in kernel.known:
            return Reply("failed")
        yield lambda: file not in kernel.reading
        if file in kernel.pages:
            return Reply("ok", kernel.pages[file])
        kernel.reading.add(file)
        lease = self._lease(file)
        was_held, void, asked_in = lease.is_held and self.holder.valid, lease.void, self.round
        reply = yield from self._ask(call)
        keeps = was_held and asked_in == self.round and self.leases.get(file) is lease
        keeps = keeps and ((lease.is_held and lease.void == void) or lease.recalls > 0)
        if not self.world.rules.reads_under_lease:
            keeps = lease.is_held
        if keeps:
            lease.told = True
        yield None
        if reply.result == "ok" and keeps:
            kernel.pages[file] = reply.version
        kernel.reading.remove(file)
        return reply

    def _find_names(self, call: Call) -> Steps:
        """As the VFS does before an unlink or a rename, with the directories locked."""
        reply = Reply("ok")
        names = {"unlink": [(call.handle, call.name)], "rename": [(call.handle, call.name), call[3:5]]}
        for at, name in enumerate(names.get(call.kind, ())):
            dentry = self.kernel.dentries.get(name)
            if not (dentry and dentry.cached) and reply.result == "ok":
                found = yield from self._look_up(Call("look", *name), None)
                reply = found if found.result == "failed" or at == 0 else reply
        return reply

    def _change(self, call: Call) -> Steps:
        kernel, rules = self.kernel, self.world.rules
        file = call.handle if call.kind in ("change", "seize") else call.other if call.kind == "link" else None
        if file and file not in kernel.known:
            return Reply("failed")
        locks = [kernel.locks[one] for one in sorted({call.handle, call.other} - {b""})]
        inside = []
        for lock in locks:
            inside.append((yield from lock.take(exclusive=True)))
        reply = yield from self._find_names(call)
        asked_in = self.round
        if reply.result == "ok":
            reply = yield from self._ask(call)
        told = may_name = False
        if reply.result == "ok":
            subject = call.other if call.kind == "link" else call.handle
            lease = self._lease(subject)
            if self._counts(asked_in):
                told = self.holder.granted(lease, reply.serial, reply.mode) is not Mode.NONE
                if call.kind == "link":
                    directory = self._lease(call.handle)
                    may_name = self.holder.may_name(directory, reply.serial, reply.parent_mode, call.name)
            yield from self._outdate(call, reply)
            keeps = call.kind == "rename" and self._moved(call)
            yield from self._process_reply(subject)
            self._apply(call, reply, subject, told and not rules.changes_time_out, may_name, keeps)
        elif reply.result in ("missing", "failed"):
            yield None
            kernel.dentries.pop((call.handle, call.name), None)  # as for ENOENT, EEXIST and EINTR
        for lock, me in zip(locks, inside, strict=True):
            lock.inside.remove(me)
        return reply

    def _outdate(self, call: Call, reply: Reply) -> Steps:
        """What the mount tells the kernel before it answers a change."""
        kernel, rules = self.kernel, self.world.rules
        if call.kind in ("change", "seize") and rules.drops_pages:
            yield lambda: call.handle not in kernel.reading
            kernel.pages.pop(call.handle, None)
        if call.kind in ("unlink", "link", "rename") and rules.outdates_parents:
            for register, _ in reply.changed:
                if not isinstance(register, tuple):
                    kernel.outdate(register)

    def _moved(self, call: Call) -> bool:
        """A RENAME is being answered: the kernel takes what it knows of the name along.  Whether it may keep it."""
        lease = self._lease(call.other)
        lease.told = True
        if not (lease.is_held and self.holder.valid):
            return not self.world.rules.forgets_moved
        if self.world.rules.forgets_moved:
            lease.names = {call.other_name, *(lease.names or ())}
        return True

    def _apply(
        self, call: Call, reply: Reply, subject: bytes, told: bool, may_name: bool, keeps: bool
    ) -> None:  # fmt: skip
        """What the kernel makes of the reply of a change."""
        kernel, changed = self.kernel, dict(reply.changed)
        for register in changed:
            if not isinstance(register, tuple):
                kernel.attributes.pop(register, None)
        match call.kind:
            case "change" | "seize" | "chmod" | "link":
                kernel.known.add(subject)
                kernel.outdate(subject)
                if told:
                    kernel.attributes[subject] = reply.version
                if call.kind == "link":
                    entry = Dentry(changed[call.handle, call.name], call.other, may_name)
                    kernel.dentries[call.handle, call.name] = entry
            case "unlink":
                kernel.dentries.pop((call.handle, call.name), None)
            case "rename":
                kernel.dentries.pop((call.other, call.other_name), None)
                moved = kernel.dentries.pop((call.handle, call.name), None)
                if moved and keeps:
                    moved.version = changed[call.other, call.other_name]
                    kernel.dentries[call.other, call.other_name] = moved
