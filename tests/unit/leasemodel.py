"""A world for the machines of leases: an owner with a disk, an unreliable network, time, and an oracle.

The nodes are in leasenode.py, their kernels in leasekernel.py.  Everything that waits is a `Task`, a generator that
yields what it waits for; whoever drives the world chooses which task goes on or which frame arrives next, and when
connections are cut, nodes crash, the owner restarts, time passes.

Oracle: every object and every name is a register with a version.  What a call changed is *returned* when the call
is.  From then on no node may have an older version in its caches, nor may a call that starts then see one.  In the end
every call was answered, and nothing that was returned is missing from the disk.

`Rules` are what the machines need of those who call them (the mount, the service); each can be broken on purpose.
SHARED only: writers write through.  EXCLUSIVE and write-behind come with the next step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from omfs.cache.owner import Change, Need, Owner, Recall
from omfs.cache.rules import Use
from omfs.wiretypes import Mode

if TYPE_CHECKING:
    from tests.unit.leasenode import Node

TERM_S: Final = 12.0
FILES: Final = (b"f", b"g")
DIRECTORIES: Final = (b"D", b"E")
NAMES: Final = (b"x", b"y")
DATA: Final = b"/data"
LOOKS: Final = frozenset({"stat", "look", "read"})
MOMENTS: Final = 5  # within a second
WAIT_MAX_S: Final = 60  # after the network has healed everybody is served within a few terms

Register = Any  # a handle, for the attributes, (directory, name), or (file, DATA)
Steps = Generator[Callable[[], bool] | None, None, Any]


@dataclass(frozen=True)
class Rules:
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
    knows_granted: bool = True  # what a reply says of a directory is known here only if it was granted with it
    knows_while_held: bool = True  # and is told to the kernel while the lease is held without a break since
    knows_lookers: bool = True  # but for who may keep the directory locked himself: who only looks does not, and waits


class Broken(AssertionError):
    """The promise was not kept."""


class Call(NamedTuple):
    kind: str
    handle: bytes
    name: bytes = b""
    other: bytes = b""  # the file to link, or the directory to rename into
    other_name: bytes = b""
    pid: int = 0


class Reply(NamedTuple):
    """*changed*: what the call changed; *result*: "ok", "missing", "refused", or "failed" (nobody knows)."""

    result: str
    version: int = 0  # of the object, or of the name
    file: bytes | None = None
    file_version: int = 0
    changed: tuple[tuple[Register, int], ...] = ()
    serial: int = 0
    mode: Mode = Mode.NONE
    parent_mode: Mode = Mode.NONE


class Disk:
    def __init__(self) -> None:
        self.versions: dict[bytes, int] = dict.fromkeys((*FILES, *DIRECTORIES), 1)
        self.data = dict.fromkeys(FILES, 1)
        self.names: dict[tuple[bytes, bytes], tuple[int, bytes | None]] = {
            (directory, name): (1, FILES[0] if name == NAMES[0] else None)
            for directory in DIRECTORIES
            for name in NAMES
        }

    def version(self, register: Register) -> int:
        if isinstance(register, tuple):
            return self.data[register[0]] if register[1] == DATA else self.names[register][0]
        return self.versions[register]

    def needs(self, call: Call) -> tuple[Need, ...]:
        match call.kind:
            case "change" | "seize":
                return (Need(call.handle, Use.CHANGE, everybody=call.kind == "seize"),)
            case "chmod":
                return (Need(call.handle, Use.CHANGE_DIRECTORY),)
            case "link" if self.names[call.handle, call.name][1] is None:
                return Need(call.handle, Use.NAME, call.name), Need(call.other, Use.CHANGE)
            case "unlink" if file := self.names[call.handle, call.name][1]:
                return Need(call.handle, Use.NAME, call.name), Need(file, Use.CHANGE)
            case "rename" if file := self.names[call.handle, call.name][1]:
                victim = self.names[call.other, call.other_name][1]
                names = Need(call.handle, Use.NAME, call.name), Need(call.other, Use.NAME, call.other_name)
                return (*names, *(Need(one, Use.CHANGE) for one in dict.fromkeys((file, victim)) if one))
        return ()

    def execute(self, call: Call) -> Reply:
        if call.kind in LOOKS:
            if call.kind == "read":
                return Reply("ok", self.data[call.handle])
            if call.kind == "stat":
                return Reply("ok", self.versions[call.handle])
            version, file = self.names[call.handle, call.name]
            return Reply("ok" if file else "missing", version, file, self.versions[file] if file else 0)
        needs = self.needs(call)
        if not needs:
            return Reply("missing")
        if call.kind == "rename":
            file = self.names[call.handle, call.name][1]
            self._name(call.handle, call.name, None)
            self._name(call.other, call.other_name, file)
        elif call.kind in ("link", "unlink"):
            self._name(call.handle, call.name, call.other or None)
        registers: dict[Register, None] = {}
        if call.kind in ("change", "seize"):
            self.data[call.handle] += 1
            registers[call.handle, DATA] = None
        for need in needs:
            self.versions[need.handle] += 1
            registers[need.handle] = None
            if need.name:
                registers[need.handle, need.name] = None
        changed = tuple((register, self.version(register)) for register in registers)
        return Reply("ok", self.versions[call.other if call.kind == "link" else call.handle], changed=changed)

    def _name(self, directory: bytes, name: bytes, file: bytes | None) -> None:
        self.names[directory, name] = (self.names[directory, name][0] + 1, file)


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
        self.owner = Owner()
        self.epoch = 0
        self.table: dict[tuple[bytes, bytes], Change] = {}
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
            choices += [(node, frames, frames is node.up) for frames in (node.up, node.down, node.bulk) if frames]
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

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.moment += 1
            self.now_s += 1.0
            for node in self.nodes:
                node.tick()
            for key, until_s in list(self.silent_until_s.items()):
                if self.now_s >= until_s:
                    del self.silent_until_s[key]
                    for node in self.nodes:
                        if node.key == key:
                            node.finish_dropping()
                    (self.owner.end_session if key in self.sessions else self.owner.forget_session)(key)
            for node in self.nodes:
                session = self.sessions.get(node.key)
                if session and self.now_s - session.heard_s >= TERM_S and self.owner.held_by(node.key):
                    node.finish_dropping()
                    self.owner.end_session(node.key)
            self.owner.refuse_stuck(self.now_s)
            self._note()
            self.check()

    def crash(self, node: Node) -> None:
        """Power cut of the node: nobody will ever say that its session is over."""
        session = self.sessions.pop(node.key, None)
        if session:
            self.silent_until_s[node.key] = session.heard_s + TERM_S
        self.tasks = [task for task in self.tasks if task.whose is not node]
        node.restart()

    def restart_owner(self) -> None:
        self._note()
        self.tasks = [task for task in self.tasks if task.whose != self.epoch]
        self.epoch += 1
        self.owner = Owner()
        self.owner.restore(self.table.values())
        self.sessions = {}
        self.silent_until_s = {session: self.now_s + TERM_S for session, _ in self.table}
        for node in self.nodes:
            node.cut()

    def settle(self) -> None:
        """The network heals, everybody goes on: in the end nobody waits for anybody."""
        self.thaw()
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
        for register, version in self.returned.items():
            if self.disk.version(register) < version:
                raise Broken(f"{register}: a returned change is lost")

    # ------------------------------------------------------------ the oracle

    def check(self) -> None:
        for node in self.nodes:
            for register, version in node.cached():
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
                self.owner.end_session(node.key)
                node.down.append(frame)
            case ("request", number, call):
                self._request(node, session, number, call)

    def _request(self, node: Node, session: Session, number: int, call: Call) -> None:
        if number in session.replies:
            self._reply(node, session, number, call, session.replies[number])
        elif number not in session.running:
            needs = self.disk.needs(call)
            if self.owner.is_free(node.key, needs):
                self._reply(node, session, number, call, self._granted(node.key, call, self.disk.execute(call)))
            else:
                session.running.add(number)
                self.spawn(self._wait(node, node.key, session, number, call, needs), self.epoch)

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
            again = self.disk.needs(call)
            if ticket.refused or set(again) <= set(needs) or owner.is_free(key, again):
                break
            owner.end(ticket)
            needs = again
        reply = Reply("refused") if ticket.refused else self.disk.execute(call)
        owner.end(ticket)
        self._reply(node, session, number, call, self._granted(key, call, reply))

    def _send(self, recalls: Iterable[Recall]) -> None:
        for recall in recalls:
            for node in self.nodes:
                if node.key == recall.session and node.is_connected:
                    node.down.append(("recall", recall))

    def _granted(self, key: bytes, call: Call, reply: Reply) -> Reply:
        if key not in self.sessions or call.kind == "read" or not (reply.result == "ok" or call.kind == "look"):
            return reply
        if call.kind == "look" or call.kind == "link":
            file = call.other if call.kind == "link" else reply.file
            serial, (parent_mode, *modes) = self.owner.grant(key, (call.handle, *((file,) if file else ())), self.now_s)
            return reply._replace(serial=serial, parent_mode=parent_mode, mode=modes[0] if modes else Mode.NONE)
        serial, (mode,) = self.owner.grant(key, (call.handle,), self.now_s)
        return reply._replace(serial=serial, mode=mode)
