"""A world for the handover machines: nodes with kernels and daemons, what is written down, messages, all that fails.

One guest, born on node 1, moves between the nodes (handovernode.py).  It counts its steps, and the world counts them
too: a copy that runs with another count than the world's is a second one, or was taken back to an older state.

Home's line: messages are delayed, repeated and overtake each other at will; an answer reaches only the daemon that
asked.  The line of an attempt keeps the order and ends with either daemon.
"""

from __future__ import annotations

from mignode import handover
from mignode.handover import Located, Phase, Record, Stay
from omfs.errors import HandoverRefused
from tests.unit.handovernode import HOME, Copy, Daemon, Host, Line, Rules, Step, ToHome

POOL_MAX = 12  # messages under way; more would only make runs longer

Answer = Located | tuple[int, int]  # of begin: the attempt, and where to


class Broken(AssertionError):
    """The promise."""


class World:
    def __init__(self, rules: Rules, nodes: int = 3) -> None:
        self.rules = rules
        self.steps = 0
        self.has_ended = False
        self.may_be_lost = False
        self.lost_with_node: set[int] = set()  # attempts whose destination died before home committed them, unheard
        self.pool: list[ToHome | tuple[Daemon, Answer]] = []
        self.lines: list[Line] = []
        self.moves = 0  # that came to their end
        self.record: Record | None = Record(HOME)
        self.hosts = {number: Host(self, number) for number in range(1, nodes + 1)}
        home = self.hosts[HOME]
        home.copy, home.has_run, home.stay = Copy(0), True, Stay(Phase.HERE, 1)
        for host in self.hosts.values():
            host.daemon = Daemon(host)

    # ------------------------------------------------------------ home

    def _answer(self, asked: ToHome) -> None:
        before, arguments = self.record, asked.arguments
        answer: Answer | None = None
        if asked.kind == "ended":
            if before is not None and (before.node, before.epoch) == (asked.sender, *arguments):
                self.record = None
        elif asked.kind == "begin":
            try:
                self.record = before and handover.begin(before, asked.sender, *arguments)
                answer = (self.record.issued, self.record.destination) if self.record else None
            except HandoverRefused:
                pass
        elif before is None:
            answer = handover.gone(*arguments)
        else:
            self.record = getattr(handover, asked.kind)(before, asked.sender, *arguments)
            answer = self.record.located(*arguments)
            self.may_be_lost |= self.record.epoch in self.lost_with_node
        if not self.rules.home_writes_before_answer and asked.kind == "commit":
            self.record = before
        if answer is not None:
            self.pool.append((asked.asker, answer))

    def deliver(self, message: ToHome | tuple[Daemon, Answer]) -> None:
        if isinstance(message, ToHome):
            if self.hosts[HOME].daemon is not None:
                self._answer(message)
            return
        daemon, answer = message
        if daemon is not daemon.host.daemon:
            return  # the one that asked is dead
        if isinstance(answer, Located):
            daemon.located(answer)
        else:
            daemon.begun(*answer)

    # ------------------------------------------------------------ what may happen

    def busy(self) -> list[int]:
        """The nodes in the middle of something, where faults tell most; else all."""
        found = [
            number
            for number, host in self.hosts.items()
            if (host.copy is not None and not host.copy.runs) or (host.daemon is not None and host.daemon.work)
        ]
        return found or list(self.hosts)

    def usual(self) -> list[Step]:
        """Steps of daemons, and messages that come."""
        steps: list[Step] = []
        for index in range(len(self.pool)):
            steps.append(lambda index=index: self.deliver(self.pool.pop(index)))  # type: ignore[misc]
        for line in self.lines:
            for daemon, inbox in line.inboxes.items():
                if inbox:
                    steps.append(lambda line=line, daemon=daemon: self._hear(line, daemon))  # type: ignore[misc]
        for host in self.hosts.values():
            if host.copy is not None and host.copy.is_let_go:
                steps.append(host.let_go)
        for host in self.hosts.values():
            if host.daemon is not None and host.daemon.work:
                steps.append(lambda daemon=host.daemon: daemon.work.popleft()())  # type: ignore[misc]
        return steps

    def _hear(self, line: Line, daemon: Daemon) -> None:
        message = line.inboxes[daemon].popleft()
        if daemon is daemon.host.daemon:
            daemon.heard(line, *message)

    def want(self, source: int, destination: int) -> None:
        daemon = self.hosts[source].daemon
        if daemon is not None and source != destination and len(self.pool) < POOL_MAX:
            daemon.want(destination)

    def tick(self, number: int) -> None:
        """Home has not answered in time."""
        daemon = self.hosts[number].daemon
        if daemon is not None and len(self.pool) < POOL_MAX:
            daemon.each("unanswered")

    def notice(self, number: int) -> None:
        daemon = self.hosts[number].daemon
        if daemon is not None:
            daemon.notice()

    def repeat(self, choice: int) -> None:
        """A message that comes twice."""
        if self.pool and len(self.pool) < POOL_MAX:
            self.pool.append(self.pool[choice % len(self.pool)])

    def lose(self, choice: int) -> None:
        if self.pool:
            self.pool.pop(choice % len(self.pool))

    def cut(self, choice: int) -> None:
        if self.lines:
            self.lines[choice % len(self.lines)].close(is_cut=True)

    def crash(self, number: int) -> None:
        self.hosts[number].crash()

    def start(self, number: int) -> None:
        if self.hosts[number].daemon is None:
            if self.rules.waits_for_criu:
                self.hosts[number].let_go()
            self.hosts[number].daemon = Daemon(self.hosts[number])

    def criu_dies(self, number: int) -> None:
        self.hosts[number].criu_dies()

    def reboot(self, number: int) -> None:
        self.hosts[number].reboot()

    def lose_home(self, number: int) -> None:
        """For longer than anybody waits."""
        daemon = self.hosts[number].daemon
        if daemon is not None:
            self.may_be_lost = True
            daemon.each("home_lost")

    def end(self) -> None:
        """The program exits."""
        for host in self.hosts.values():
            if host.copy is not None and host.copy.runs:
                host.copy = None
                self.has_ended = True

    # ------------------------------------------------------------ the promise

    def check(self) -> None:
        """After whatever happened; the copy that runs makes a step."""
        running = [host.copy for host in self.hosts.values() if host.copy is not None and host.copy.runs]
        if len(running) > 1:
            raise Broken("two copies run")
        for copy in running:
            if self.has_ended:
                raise Broken("it runs after its end")
            if copy.steps != self.steps:
                raise Broken(f"a copy that made {copy.steps} steps runs, but the guest has made {self.steps}")
            copy.steps += 1
            self.steps += 1

    def settle(self) -> None:
        """Nothing fails any more: there must be one copy, or none with a reason, and nothing left of others."""
        self._calm()
        if not self.has_ended and not self.may_be_lost:
            self._check_one()
            return
        for host in self.hosts.values():  # what home finds out, or who has it: the guest is no more
            daemon = host.daemon
            if daemon is not None and host.stay is not None and host.copy is None and self.has_ended:
                daemon.ask("ended", host.stay.epoch)
        self._calm()
        if not any(host.copy is not None and host.copy.runs for host in self.hosts.values()):
            self.record = None
            self._calm()
            if any(host.copy is not None or host.stay is not None for host in self.hosts.values()):
                raise Broken("something is left of a guest that is no more")

    def _calm(self) -> None:
        for _ in range(6):
            for number in self.hosts:
                self.start(number)
                self.notice(number)
                self.tick(number)
            while steps := self.usual():
                steps[0]()
                self.check()

    def _check_one(self) -> None:
        having = [host for host in self.hosts.values() if host.copy is not None or host.stay is not None]
        if len(having) != 1 or having[0].copy is None or not having[0].copy.runs:
            raise Broken(f"nodes {[host.number for host in having]} have a copy")
        [host], record = having, self.record
        if (
            record is None
            or record.source
            or (record.node, record.epoch) != (host.number, host.stay and host.stay.epoch)
        ):
            raise Broken(f"it is on node {host.number} with {host.stay}, but home says {record}")
