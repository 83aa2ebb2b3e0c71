"""A world for the machines of leases: an owner with a disk, an unreliable network, time, and an oracle.

The nodes are in leasenode.py, their kernels in leasekernel.py, the disk in leasedisk.py.  Everything that waits is a
`Task`, a generator that yields what it waits for; whoever drives the world chooses which task goes on or which frame
arrives next, and when connections are cut, nodes crash, the owner restarts, time passes.

Oracle: every object and every name is a register with a version.  What a call changed is *returned* when the call
is.  From then on no node may have an older version in its caches, nor may a call that starts then see one.  In the end
every call was answered, and nothing that was returned is missing from the disk.  What is promised of writes that
return before the owner has them says leasewrites.py.

`Rules` are what the machines need of those who call them (the mount, the service); each can be broken on purpose.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from omfs.cache.owner import Change, Need, Owner, Recall
from omfs.wiretypes import Mode
from tests.unit.leasedisk import CHANGES_OF_DATA, LOOKS, Call, Disk, Register, Reply
from tests.unit.leasewrites import Broken, Writes

if TYPE_CHECKING:
    from tests.unit.leasenode import Node

TERM_S: Final = 12.0
MOMENTS: Final = 5  # within a second
WAIT_MAX_S: Final = 60  # after the network has healed everybody is served within a few terms

Steps = Generator[Callable[[], bool] | None, None, Any]


@dataclass(frozen=True)
class WriteRules:
    """What they keep to for writes that return early."""

    fences: bool = True  # a write that was answered early is executed only for who holds EXCLUSIVE
    drains_before_answer: bool = True  # a recall is answered when all that is buffered is written
    recall_stops_buffering: bool = True  # and meanwhile nothing is buffered
    buffers_when_valid: bool = True  # nothing is buffered outside the term
    lapse_drops_data: bool = True  # what is unwritten at the end of the term is dropped, and reported
    reports_losses: bool = True  # by the next write, fsync or close
    flushes_before_return: bool = True  # after the owner's restart, before everything is given back
    keeps_deadline: bool = True  # and until then the term counts from what the former owner answered
    appends_once: bool = True  # an append whose outcome the restarted owner does not know is lost
    drains_before_looking: bool = True  # who asks for attributes or data of a file has its buffer written first
    looks_again: bool = True  # LOOKUP that finds a file of which something was buffered asks again
    writes_in_order: bool = True  # a write that is not buffered is sent when those before it are written
    drains_before_sync: bool = True  # fsync and close
    flushes_one_by_one: bool = True  # never two writes of the same place are under way
    waits_in_grace: bool = True  # the owner shows files only when it knows of all who may write them
    remembers_grace: bool = True  # when it restarts before all of them have come back
    trusts_in_grace: bool = True  # and meanwhile takes what they have buffered
    takes_own_back: bool = True  # opening a file again takes EXCLUSIVE back from the same session, too


@dataclass(frozen=True)
class Rules(WriteRules):
    """What the callers of the machines keep to."""

    retries_unknown: bool = True  # an inode that the kernel is about to know is notified again
    changes_time_out: bool = True  # replies of changes carry attributes that may not be cached
    forgets_moved: bool = True  # a dentry moved by our own rename counts as told under its new name, or is forgotten
    drops_revalidated: bool = True  # a name that may be looked up again without the lock is dropped, not expired
    forgets_attributes: bool = True  # with the names of a directory also its attributes
    locks_always: bool = True  # a directory without names to forget is locked all the same
    outdates_parents: bool = True  # our own change of a name outdates replies about the directory under way
    counts_rounds: bool = True  # a grant counts only in the round of validity in which it was asked for
    fails_at_lapse: bool = True  # when the leases lapse, calls under way are failed: they keep directories locked
    reads_under_lease: bool = True  # pages stay cached only if the lease was held from asking to answering
    drops_pages: bool = True  # our own write drops the pages that were read meanwhile
    repeats_passes: bool = True  # a pass during which something was told to the kernel is followed by another
    fair_locks: bool = True  # who waits longest for the lock of a directory gets it
    answers_early: bool = True  # a recall of names does not wait while a change of the node's own keeps the lock
    chmods_count: bool = True  # a change of the directory itself keeps it locked as well
    voids_attributes: bool = True  # then the attributes of the directory are void at once
    holds_attributes: bool = True  # and nobody is told new ones until the names are forgotten
    knows_while_held: bool = True  # what a reply says of a directory is told again while the lease is held ever since
    holds_anew: bool = True  # which it is not from the moment when a recall is seen until the next grant
    knows_lookers: bool = True  # but for who may keep the directory locked himself: who only looks does not, and waits


@dataclass
class Task:
    steps: Steps
    whose: object  # a Node, or the owner's epoch: dies with it
    is_call: bool = False
    until: Callable[[], bool] | None = None
    is_frozen: bool = False  # its process does not get to run, until `thaw`

    def is_ready(self) -> bool:
        return self.until is None or self.until()


@dataclass
class Session:
    """What the owner knows of a holder."""

    heard_s: float
    replies: dict[int, Reply] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)


class World:
    def __init__(self, nodes: Callable[[World, int], Node], count: int, rules: Rules) -> None:
        self.rules = rules
        self.now_s = 0.0
        self.tasks: list[Task] = []
        self.returned: dict[Register, int] = {}
        self.moment = 0  # a few of them make no second
        self.refusals = self.refused_twice = 0
        self.disk = Disk()
        self.writes = Writes(self.call_returned)
        self.owner = Owner()
        self.epoch = 0
        self.table: dict[tuple[bytes, bytes], Change] = {}
        self.unwritten: list[Change] = []  # what the table does not have yet
        self.is_behind = False  # whether the table is written only when told so
        self.ended: Counter[bytes] = Counter()  # how often all leases of a session did
        self.uncertain: set[bytes] = set()  # sessions that may hold more than the table says
        self.strangers_until_s = 0.0
        self.sessions: dict[bytes, Session] = {}
        self.silent_until_s: dict[bytes, float] = {}  # of sessions that are no more, but whose holders may live
        self.nodes = [nodes(self, number) for number in range(count)]
        for node in self.nodes:
            node.connect()

    # ------------------------------------------------------------ driving

    def spawn(self, steps: Steps, whose: object, is_call: bool = False) -> None:
        self.tasks.append(Task(steps, whose, is_call))

    def step(self, choice: int, only: Node | None = None) -> bool:
        """Let one frame arrive, or one task go on; False: there is none."""
        choices: list[Task | tuple[Node, deque[Any], bool]] = []
        for node in self.nodes if only is None else ():
            ways = (node.up, node.down, node.bulk)[node.is_stalled :]
            choices += [(node, frames, frames is node.up) for frames in ways if frames]
        choices += [
            task
            for task in self.tasks
            if only in (None, task.whose) and not (task.is_frozen and only is None) and task.is_ready()
        ]
        if not choices:
            return False
        chosen = choices[choice % len(choices)]
        if isinstance(chosen, Task):
            try:
                chosen.until = next(chosen.steps)
            except StopIteration:
                self.tasks.remove(chosen)
        else:
            node, frames, is_up = chosen
            (self._hear if is_up else node.hear)(*((node, frames.popleft()) if is_up else (frames.popleft(),)))
        self._note()
        self.check()
        return True

    def thaw(self) -> None:
        for task in self.tasks:
            task.is_frozen = False
        for node in self.nodes:
            node.is_stalled = False

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.moment += 1
            self.now_s += 1.0
            self._look_at_grace()
            for node in self.nodes:
                node.tick()
            for key, until_s in list(self.silent_until_s.items()):
                if self.now_s >= until_s:
                    del self.silent_until_s[key]
                    self.uncertain.discard(key)
                    for node in self.nodes:
                        if node.key == key:
                            node.finish_dropping()
                    self.ended[key] += 1
                    (self.owner.end_session if key in self.sessions else self.owner.forget_session)(key)
            for node in self.nodes:
                session = self.sessions.get(node.key)
                if session and self.now_s - session.heard_s >= TERM_S and self.owner.held_by(node.key):
                    node.finish_dropping()
                    self.ended[node.key] += 1
                    self.owner.end_session(node.key)
            self.owner.refuse_stuck(self.now_s)
            self._note()
            self.check()

    def crash(self, node: Node) -> None:
        """Power cut of the node: nobody will ever say that its session is over."""
        session = self.sessions.pop(node.key, None)
        if session:
            self.silent_until_s[node.key] = session.heard_s + TERM_S
        self._close_all(node.key)
        self.writes.gone(node.key)
        self.tasks = [task for task in self.tasks if task.whose is not node]
        node.restart()

    def restart_owner(self, is_power_cut: bool = False) -> None:
        """Of its daemon; after a power cut the table is of another boot, and nothing is known."""
        self._note()
        self.tasks = [task for task in self.tasks if task.whose != self.epoch]
        self.epoch += 1
        known = {*self.sessions, *self.silent_until_s}
        is_uncertain = self.unwritten or (self.uncertain and self.rules.remembers_grace)
        self.uncertain = known if is_uncertain and not is_power_cut else set()
        self.unwritten = []
        if not self.rules.remembers_grace:
            self.strangers_until_s = 0.0
        if is_power_cut:
            self.table = {}
            self.strangers_until_s = self.now_s + TERM_S
        self.owner = Owner()
        self.owner.restore(self.table.values())
        self.sessions = {}
        self.silent_until_s = dict.fromkeys(
            sorted({session for session, _ in self.table} | self.uncertain), self.now_s + TERM_S
        )
        for opens in self.disk.opens.values():
            opens.clear()
        self._look_at_grace()
        for node in self.nodes:
            node.cut()

    def _look_at_grace(self) -> None:
        self.owner.in_grace = self.now_s < self.strangers_until_s or bool(self.uncertain)

    def settle(self) -> None:
        """The network heals, everybody goes on: in the end nobody waits for anybody."""
        self.thaw()
        self._settle_calls()
        for node in self.nodes:
            node.close_all()
        self._settle_calls()
        self.writes.check_end()
        for register, version in self.returned.items():
            if self.disk.version(register) < version:
                raise Broken(f"{register}: a returned change is lost")

    def _settle_calls(self) -> None:
        for _ in range(WAIT_MAX_S):
            for node in self.nodes:
                if not node.is_connected:
                    node.connect()
                node.ping()
            for _ in range(MOMENTS):
                while self.step(0):
                    pass
                self.moment += 1
            if not any(task.is_call for task in self.tasks):
                break
            self.pass_time(1)
        left = [task for task in self.tasks if task.is_call]
        if left:
            raise Broken(f"{len(left)} calls wait for ever")

    # ------------------------------------------------------------ the oracle

    def check(self) -> None:
        early = self.writes.early
        for node in self.nodes:
            for register, version in node.cached():
                if early and early.get(register[0] if isinstance(register, tuple) else register):
                    raise Broken(f"node {node.number} has {register} cached as it was before a write that returned")
                if version < self.returned.get(register, 0):
                    raise Broken(f"node {node.number} has {register} cached as it was before a change that returned")

    def saw(self, register: Register, version: int, floor: int) -> None:
        if version < floor:
            raise Broken(f"{register}: version {version} was seen, {floor} had returned before the call")

    def call_returned(self, changed: Iterable[tuple[Register, int]]) -> None:
        for register, version in changed:
            self.returned[register] = max(self.returned.get(register, 0), version)

    # ------------------------------------------------------------ the owner's service

    def begin_session(self, key: bytes) -> bool:
        """A connection; True: the session is resumed."""
        resumed = key in self.sessions
        self.sessions.setdefault(key, Session(self.now_s)).heard_s = self.now_s
        return resumed

    def _note(self) -> None:
        changes, self.owner.changes = self.owner.changes, []
        self.unwritten += changes
        for change in changes:
            modes = [self.owner.mode_of(key, change.handle) for key in self.owner.holders_of(change.handle)]
            if Mode.EXCLUSIVE in modes and len(modes) > 1:
                raise Broken(f"{change.handle!r} is held {modes}")
        if not self.is_behind:
            self.write_table()

    def write_table(self) -> None:
        changes, self.unwritten = self.unwritten, []
        for change in changes:
            self.table.pop((change.session, change.handle), None)
            if change.mode is not Mode.NONE:
                self.table[change.session, change.handle] = change

    def _hear(self, node: Node, frame: tuple[Any, ...]) -> None:
        session = self.sessions[node.key]
        session.heard_s = self.now_s
        match frame:
            case ("ping", sent_s):
                node.down.append(("pong", sent_s))
            case ("returned", serial):
                self.owner.returned(node.key, serial)
            case ("give back", handle, serial):
                self.owner.give_back(node.key, handle, serial)
            case ("return everything", _, _):
                self.silent_until_s.pop(node.key, None)
                self.uncertain.discard(node.key)
                self.ended[node.key] += 1
                self.owner.end_session(node.key)
                self._look_at_grace()
                node.down.append(frame)
            case ("opens", opens):
                self._close_all(node.key)
                for file, open_file in opens:
                    self.disk.opens[file].add((node.key, open_file))
            case ("request", number, call):
                self._request(node, session, number, call)

    def _request(self, node: Node, session: Session, number: int, call: Call) -> None:
        if number in session.replies:
            self._reply(node, session, number, call, session.replies[number])
        elif number not in session.running:
            needs = self._needs(call)
            if call.kind == "behind":
                session.running.add(number)
                self.spawn(self._write_behind(node, node.key, session, number, call, self.ended[node.key]), self.epoch)
            elif self.owner.is_free(node.key, needs):
                self._reply(node, session, number, call, self._granted(node.key, call, self._execute(node.key, call)))
            else:
                session.running.add(number)
                self.spawn(self._wait(node, node.key, session, number, call, needs), self.epoch)

    def _needs(self, call: Call) -> tuple[Need, ...]:
        needs = self.disk.needs(call)
        if call.kind == "open" and not self.rules.takes_own_back:
            return needs[:1]
        return needs if self.rules.waits_in_grace or not self.owner.in_grace or call.kind not in LOOKS else ()

    def _write_behind(
        self, node: Node, key: bytes, session: Session, number: int, call: Call, ended: int
    ) -> Steps:  # fmt: skip
        """Requests are executed concurrently.  If all leases ended meanwhile, one that is held now is another one."""
        yield None
        may_write = self.owner.exclusive.get(call.handle) == key or self._is_unsure(key)
        may_write &= ended == self.ended[key]
        is_void = self.rules.fences and not may_write
        self._reply(node, session, number, call, Reply("lost") if is_void else self._execute(key, call))

    def _is_unsure(self, key: bytes) -> bool:
        """Whether the session may hold what this owner does not know of; nobody else writes meanwhile."""
        return self.rules.trusts_in_grace and (key in self.uncertain or self.now_s < self.strangers_until_s)

    def _reply(self, node: Node, session: Session, number: int, call: Call, reply: Reply) -> None:
        session.running.discard(number)
        if call.kind not in LOOKS:
            session.replies[number] = reply
        if node.is_connected and self.sessions.get(node.key) is session:
            (node.bulk if call.kind == "read" else node.down).append(("reply", number, reply))

    def _wait(
        self, node: Node, key: bytes, session: Session, number: int, call: Call, needs: tuple[Need, ...]
    ) -> Steps:
        owner = self.owner
        while True:
            ticket, recalls = owner.begin(key, needs, self.now_s)
            self._send(recalls)
            yield lambda ticket=ticket: ticket in owner.ready()
            again = self._needs(call)
            if ticket.refused or set(again) <= set(needs) or owner.is_free(key, again):
                break
            owner.end(ticket)
            needs = again
        reply = Reply("refused") if ticket.refused else self._execute(key, call)
        owner.end(ticket)
        self._reply(node, session, number, call, self._granted(key, call, reply))

    def _execute(self, key: bytes, call: Call) -> Reply:
        if call.kind == "open":
            if self.disk.opens[call.handle] and self._is_exclusive(call.handle):
                raise Broken(f"{call.handle!r} is opened beside the kernel's write lease")
            self.disk.opens[call.handle].add((key, call.open_file))
        elif call.kind == "close":
            self.disk.opens[call.handle].discard((key, call.open_file))
            if not any(one[0] == key for one in self.disk.opens[call.handle]):
                self.owner.share(key, call.handle)
        reply = self.disk.execute(call)
        if call.kind in CHANGES_OF_DATA:
            for number in call.writes:
                self.writes.executed(number, reply.changed)
        return reply

    def _is_exclusive(self, handle: bytes) -> bool:
        return Mode.EXCLUSIVE in (self.owner.mode_of(key, handle) for key in self.owner.holders_of(handle))

    def _close_all(self, key: bytes) -> None:
        for opens in self.disk.opens.values():
            opens -= {one for one in opens if one[0] == key}

    def _send(self, recalls: Iterable[Recall]) -> None:
        for recall in recalls:
            for node in self.nodes:
                if node.key == recall.session and node.is_connected:
                    node.down.append(("recall", recall))

    def _granted(self, key: bytes, call: Call, reply: Reply) -> Reply:
        if (
            key not in self.sessions
            or call.kind in ("read", "list", "write", "append", "behind", "close")
            or not (reply.result == "ok" or call.kind == "look")
        ):
            return reply
        if call.kind == "look" or call.kind == "link":
            file = call.other if call.kind == "link" else reply.file
            serial, (parent_mode, *modes) = self.owner.grant(key, (call.handle, *((file,) if file else ())), self.now_s)
            return reply._replace(serial=serial, parent_mode=parent_mode, mode=modes[0] if modes else Mode.NONE)
        mode = Mode.SHARED
        if call.kind in ("open", "ask"):
            is_alone = self.disk.opens[call.handle] == {(key, call.open_file)}
            is_alone = is_alone and self.owner.may_be_exclusive(key, call.handle, self.now_s)
            mode = Mode.EXCLUSIVE if is_alone else Mode.SHARED
        serial, (mode,) = self.owner.grant(key, (call.handle,), self.now_s, mode)
        return reply._replace(serial=serial, mode=mode)
