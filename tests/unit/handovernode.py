"""The nodes of the handover's model: what their kernels have, what is written down there, and one life of a mignode.

The callers' work (the effects) is done here in the smallest steps, so that a daemon may be killed between any two of
them.  `Rules` leaves out what the callers owe.  Called by handovermodel.py.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mignode import handover
from mignode.handover import Coming, Destination, Located, Phase, Source, Stay

if TYPE_CHECKING:
    from tests.unit.handovermodel import World

HOME = 1

Step = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the callers do; a run without any of them must break the promise."""

    bars: bool = True
    looks_after_bar: bool = True
    writes_before_bar: bool = True
    writes_before_run: bool = True
    waits_for_criu: bool = True
    remembers_until_given_back: bool = True
    refuses_second_copy: bool = True
    home_writes_before_answer: bool = True
    thaws_before_writing: bool = True
    moves_what_runs: bool = True


@dataclasses.dataclass
class Copy:
    """The guest's processes on one node, as the kernel has them."""

    steps: int
    is_traced: bool = False  # CRIU holds it
    is_stopped: bool = False  # by SIGSTOP, maybe behind CRIU's stop
    is_fresh: bool = False  # CRIU has not let it go yet: it ends with CRIU ...
    is_let_go: bool = False  # ... unless it was told to, which it then does, whoever is dead

    @property
    def runs(self) -> bool:
        return not (self.is_traced or self.is_stopped or self.is_fresh)


class Line:
    """Of one attempt, between two daemons; "lost" is the last that either reads."""

    def __init__(self, source: Daemon, destination: Daemon) -> None:
        self.ends = {source: destination, destination: source}
        self.inboxes: dict[Daemon, deque[tuple[Any, ...]]] = {source: deque(), destination: deque()}
        self.is_open = True

    def send(self, sender: Daemon, *message: Any) -> None:
        if self.is_open:
            self.inboxes[self.ends[sender]].append(message)

    def close(self, is_cut: bool = False) -> None:
        if self.is_open:
            self.is_open = False
            for inbox in self.inboxes.values():
                if is_cut:
                    inbox.clear()
                inbox.append(("lost",))


@dataclasses.dataclass
class ToHome:
    sender: int
    asker: Daemon
    kind: str
    arguments: tuple[int, ...]


class Daemon:
    """One life of a mignode: what it knows is lost with it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.rules = host.world.rules
        self.source: Source | None = None
        self.destination: Destination | None = None
        self.line: Line | None = None
        self.work: deque[Step] = deque()
        self._start()

    def _start(self) -> None:
        stay = self.host.stay
        if stay is None:
            return
        if stay.phase is Phase.LEAVING:
            self.source, effects = Source.recovered(self.host.number, stay)
        else:
            self.destination, effects = Destination.recovered(self.host.number, stay, has_run=self.host.has_run)
        self.plan(effects)

    # ------------------------------------------------------------ effects

    def plan(self, effects: handover.Effects) -> None:
        for effect in effects:
            self.work.extend(getattr(self, "_" + effect.name.lower())())

    def _bar(self) -> list[Step]:
        steps = [self._write_leaving, self._stop, self._look]
        if not self.rules.bars:
            steps = [self._write_leaving, self._look]
        elif not self.rules.looks_after_bar:
            steps = [self._write_leaving, self._look_only, self._stop, self._barred]
        elif not self.rules.writes_before_bar:
            steps = [self._stop, self._look]
        return steps

    def _write_leaving(self) -> None:
        assert self.source is not None
        self.host.stay = Stay(Phase.LEAVING, self.source.epoch, self.source.attempt)

    def _stop(self) -> None:
        if self.host.copy is not None:
            self.host.copy.is_stopped = True

    def _look(self) -> None:
        if self.host.copy is not None and self.host.copy.is_traced:
            self._barred()
        else:
            self._source_failed()

    def _look_only(self) -> None:
        if self.host.copy is None or not self.host.copy.is_traced:
            self._source_failed()

    def _barred(self) -> None:
        if self.source is not None:
            self.plan(self.source.barred())

    def _source_failed(self) -> None:
        if self.source is not None:
            self.plan(self.source.failed())

    def _thaw(self) -> list[Step]:
        steps: list[Step] = [self._continue, self._undo, self._stays]
        return steps if self.rules.thaws_before_writing else steps[::-1]

    def _continue(self) -> None:
        if self.host.copy is not None:
            self.host.copy.is_stopped = False

    def _undo(self) -> None:
        if self.host.copy is not None:
            self.host.copy.is_traced = False

    def _stays(self) -> None:
        if self.source is not None:
            epoch = self.source.epoch
            self.source, self.line = None, None
            self.host.stay = Stay(Phase.HERE, epoch)
            self.destination = Destination.staying(self.host.number, epoch)

    def _kill(self) -> list[Step]:
        return [self._end_copy]

    _discard = _kill

    def _end_copy(self) -> None:
        self.host.copy = None
        is_returning = self.destination is not None and self.destination.state is Coming.RETURNING
        if is_returning and not self.rules.remembers_until_given_back:
            self.host.stay = None

    def _forget(self) -> list[Step]:
        return [self._forget_stay]

    def _forget_stay(self) -> None:
        self.host.stay = None
        self.source = self.destination = self.line = None

    def _run(self) -> list[Step]:
        steps: list[Step] = [self._write_here, self._let_run]
        return steps if self.rules.writes_before_run else steps[::-1]

    def _write_here(self) -> None:
        assert self.destination is not None
        self.host.stay = Stay(Phase.HERE, self.destination.attempt)

    def _let_run(self) -> None:
        assert self.destination is not None
        copy = self.host.copy
        if copy is None:
            self.plan(self.destination.failed())
            return
        copy.is_let_go = True
        self.work.append(self._see)

    def _see(self) -> None:
        assert self.destination is not None
        if self.host.has_run:
            self.plan(self.destination.ran())
        elif self.host.copy is None:
            self.plan(self.destination.failed())
        else:
            self.work.append(self._see)

    def _say(self, *message: str) -> list[Step]:
        line = self.line
        return [lambda: line.send(self, *message)] if line is not None else []

    def _release(self) -> list[Step]:
        return self._say("release")

    def _tell_discard(self) -> list[Step]:
        return self._say("discard")

    def _tell_restored(self) -> list[Step]:
        return self._say("restored")

    def _tell_running(self) -> list[Step]:
        return self._say("running")

    def _ask_commit(self) -> list[Step]:
        return self._home("commit", self.source)

    def _ask_where(self) -> list[Step]:
        return self._home("asked", self.source or self.destination)

    def _attend(self) -> list[Step]:
        return self._home("attended", self.destination)

    def _give_back(self) -> list[Step]:
        return self._home("given_back", self.destination)

    def _home(self, kind: str, machine: Source | Destination | None) -> list[Step]:
        assert machine is not None
        attempt = machine.attempt
        return [lambda: self.ask(kind, attempt)]

    def ask(self, kind: str, *arguments: int) -> None:
        self.host.world.pool.append(ToHome(self.host.number, self, kind, arguments))

    # ------------------------------------------------------------ events

    def want(self, destination: int) -> None:
        """Somebody wants the guest, which is here, to be there."""
        machine = self.destination
        if machine is not None and (machine.state is Coming.RUNNING or not self.rules.moves_what_runs):
            self.ask("begin", machine.attempt, destination)

    def begun(self, attempt: int, destination: int) -> None:
        """Dump it, and send it."""
        host, stay = self.host, self.host.stay
        there = host.world.hosts[destination].daemon
        is_free = self.source is None and not self.work and host.copy is not None and host.copy.runs
        if there is None or stay is None or stay.phase is not Phase.HERE or not is_free or there is self:
            return
        assert host.copy is not None
        self.destination = None
        self.source = Source(host.number, attempt, stay.epoch)
        host.copy.is_traced = True
        self.line = Line(self, there)
        host.world.lines.append(self.line)
        self.line.send(self, "arrive", attempt, host.copy.steps)

    def heard(self, line: Line, kind: str, *arguments: int) -> None:
        """From the other end of an attempt's line."""
        if kind == "arrive":
            self._arrive(line, *arguments)
        elif line is self.line and self.source is not None:
            self.plan(
                {"restored": self.source.restored, "running": self.source.running, "lost": self.source.failed}[kind]()
            )
        elif line is self.line and self.destination is not None:
            machine = self.destination
            self.plan({"release": machine.release, "discard": machine.discard, "lost": machine.source_lost}[kind]())

    def _arrive(self, line: Line, attempt: int, steps: int) -> None:
        if self.host.stay is not None and self.rules.refuses_second_copy:
            line.close()
            return
        self.host.stay = Stay(Phase.ARRIVING, attempt)
        self.host.has_run = False
        self.source, self.line = None, line
        machine = self.destination = Destination(self.host.number, attempt)
        self.work.append(lambda: self._restore(machine, steps))

    def _restore(self, machine: Destination, steps: int) -> None:
        if machine.state is Coming.RESTORING and machine is self.destination:
            self.host.copy = Copy(steps, is_traced=True, is_fresh=True)
            self.plan(machine.restored())

    def located(self, answer: Located) -> None:
        if self.source is not None:
            self.plan(self.source.located(answer))
        elif self.destination is not None:
            self.plan(self.destination.located(answer))

    def each(self, event: str) -> None:
        """Something that both machines know."""
        for machine in (self.source, self.destination):
            if machine is not None:
                self.plan(getattr(machine, event)())

    def notice(self) -> None:
        """Whether CRIU has ended."""
        copy = self.host.copy
        if self.source is not None and (copy is None or not copy.is_traced):
            self._source_failed()
        if self.destination is not None and self.destination.state is Coming.HELD and copy is None:
            self.plan(self.destination.failed())


class Host:
    """A node: what survives its daemon."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.copy: Copy | None = None
        self.has_run = False  # the copy that it has or had last, as its init knows
        self.stay: Stay | None = None
        self.daemon: Daemon | None = None

    def let_go(self) -> None:
        """What CRIU does when it was told to, and then ends."""
        if self.copy is not None and self.copy.is_let_go:
            self.copy = Copy(self.copy.steps)
            self.has_run = True

    def criu_dies(self) -> None:
        copy = self.copy
        if copy is not None and copy.is_fresh:
            self.copy = None  # what it had begun never runs
        elif copy is not None:
            copy.is_traced = False

    def crash(self) -> None:
        """kill -9 of mignode, and with it of the CRIU that it talks to."""
        if self.daemon is not None:
            for line in self.world.lines:
                if self.daemon in line.ends:
                    line.close()
            self.daemon = None
        if self.copy is not None and not self.copy.is_let_go:
            self.criu_dies()

    def reboot(self) -> None:
        world, record = self.world, self.world.record
        if self.number == HOME or (record is not None and self.number in (record.node, record.source)):
            world.may_be_lost = True
        self.crash()
        if self.stay is not None:
            world.lost_with_node.add(self.stay.epoch)
        self.copy = self.stay = None
        if self.number == HOME:
            world.record = None
