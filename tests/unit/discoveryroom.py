"""Machines that run omdiscd's rules on a network in memory, under a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Callable

from mignode.discovery import Nodes, Outgoing, Roll, Verdict
from mignode.discoverywords import VERSION, Kind, Said, decode, encode
from omfs.net.nodemap import digest_of

STEP_S = 0.25


def address(node: int) -> str:
    return f"10.0.{node >> 8}.{node & 255}"


class Machine:
    """One that runs omdiscd, or does not.  *published*: the map in force."""

    def __init__(self, room: Room, node: int, at: str = "", **more: object) -> None:
        self.room, self.node = room, node
        self.at = at or address(node)
        self.published: Nodes = {}
        self.is_on = True
        self.roll = Roll(
            node,
            (self.at,),
            room.serial(),
            room.now,
            chance=random.Random(node),
            **more,  # type: ignore[arg-type]
        )
        self.verdicts: list[Verdict] = []

    def step(self) -> None:
        self.say(self.roll.tick(self.room.now))
        self.published = self.roll.fresh_map(self.room.now) or self.published

    def say(self, outgoing: list[Outgoing]) -> None:
        for what, to in outgoing:
            datagram = what if isinstance(what, bytes) else encode(what)
            if isinstance(what, Said) and what.node != self.node:
                self.roll.take(what, datagram, "", self.room.now)
            self.room.carry(self, datagram, to)

    def hear(self, datagram: bytes, source: str) -> None:
        verdict, outgoing = self.roll.take(decode(datagram), datagram, source, self.room.now)
        self.verdicts.append(verdict)
        self.say(outgoing)
        if self.roll.taken_by:
            self.is_on = False

    def stop(self) -> None:
        self.say(self.roll.leave(self.room.now))
        self.is_on = False


class Room:
    """Machines on one network.  *cut*: pairs that don't hear each other; *loses*: how often a datagram is lost."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.0
        self.machines: list[Machine] = []
        self.cut: set[frozenset[str]] = set()
        self.loses = 0.0
        self.chance = random.Random(seed)
        self._serial = 0

    def serial(self) -> int:
        self._serial += 10
        return self._serial

    def start(self, node: int, at: str = "", **more: object) -> Machine:
        machine = Machine(self, node, at, **more)
        self.machines.append(machine)
        return machine

    def carry(self, sender: Machine, datagram: bytes, to: str) -> None:
        for other in self.machines:
            if other is sender or not other.is_on or frozenset((sender.at, other.at)) in self.cut:
                continue
            if to in ("", other.at) and self.chance.random() >= self.loses:
                other.hear(datagram, sender.at)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            for machine in self.machines:
                if machine.is_on:
                    machine.step()

    def run_until(self, condition: Callable[[], bool], within_s: float = 60.0) -> None:
        for _ in range(int(within_s / STEP_S)):
            if condition():
                return
            self.run(STEP_S)
        raise AssertionError(f"not within {within_s} s: {[one.published for one in self.machines]}")

    def maps(self) -> set[bytes]:
        return {digest_of(one.published) for one in self.machines if one.is_on}


def nodes(*numbers: int) -> Nodes:
    return {number: (address(number),) for number in numbers}


def said(kind: Kind, node: int, serial: int, at: str = "", **more: object) -> Said:
    addresses = (at or address(node),) if kind is not Kind.LEFT else ()
    return Said(VERSION, kind, node, node, serial, addresses=addresses, **more)  # type: ignore[arg-type]


def tell(machine: Machine, statement: Said, source: str = "") -> tuple[Verdict, list[Outgoing]]:
    """From itself, unless *source* says otherwise."""
    return machine.roll.take(statement, encode(statement), source or statement.addresses[0], machine.room.now)
