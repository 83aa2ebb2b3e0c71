"""`mosctl simulate TRACE`: a trace of nodes and jobs is run with every strategy, and what balancing did is told.

A trace is text, one line each:

    node 1 cpus=2 speed=10000 memory=4G stay lstay block      only the number must be there
    network bytes=100M call=0.0002 move=0.35 memory=100M      bytes of files a second, seconds a call, seconds a move,
                                                              bytes of a job's memory a second (else as those of files)
    job scan home=1 at=0 cpu=60 memory=20M reads=2:4G:1000 locked only=1,2 athome
                                                              cpu: standard seconds; reads: node:bytes:calls; athome:
                                                              begins there, whatever that costs
    expect scan on 2 by 10                                    what balancing must do with it, or the trace fails:
    expect scan stays                                         `on` at that moment, always at home, at most so many moves
    expect scan moves 2

Pure: text in, lines out.  Called by cli/mosctl.py and the tests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mignode.nodeinfo import STANDARD_SPEED
from mignode.simulation import Job, Machine, Simulation, Work, mean_slowdown
from mignode.strategies import PLACEMENTS_MAX, STRATEGIES, Balancing, best_assignment
from mignode.weighing import Costs
from omfs.errors import ConfigError
from omfs.net.nodemap import NODE_ID_MAX

OURS: Final = "best price, balancing"
STANDARD_COSTS: Final = Costs()
CPUS_MAX: Final = 65535
MOVES_MAX: Final = 1_000_000
_FACTORS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AMOUNT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)")


@dataclass
class Trace:
    machines: list[Machine] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    expected: list[tuple[str, ...]] = field(default_factory=list)
    costs: Costs = STANDARD_COSTS


def parse(text: str, name: str) -> Trace:
    """Raises ConfigError, naming the line."""
    trace = Trace()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        try:
            if words:
                _read(trace, words)
        except ValueError as error:
            raise ConfigError(f"{name}, line {number}: {error}") from None
    _check(trace, name)
    return trace


def _check(trace: Trace, name: str) -> None:
    nodes, jobs = {machine.node_id for machine in trace.machines}, {work.name for work in trace.works}
    if not nodes or not jobs:
        raise ConfigError(f"{name}: a trace has at least one node and one job")
    if len(nodes) < len(trace.machines) or len(jobs) < len(trace.works):
        raise ConfigError(f"{name}: two nodes or two jobs have the same name")
    named = {work.home for work in trace.works} | {node for work in trace.works for node, _, _ in work.files}
    named |= {node for work in trace.works for node in work.mask or ()}
    named |= {_node(words[2]) for words in trace.expected if words[1] == "on"}
    if named - nodes:
        raise ConfigError(f"{name}: there is no node {min(named - nodes)}")
    if unknown := {words[0] for words in trace.expected} - jobs:
        raise ConfigError(f"{name}: there is no job {min(unknown)}")


def _read(trace: Trace, words: list[str]) -> None:
    flags = {word for word in words[2:] if "=" not in word}
    values = dict(word.split("=", 1) for word in words if "=" in word)
    match words[0]:
        case "node":
            _refuse_others(flags - {"stay", "lstay", "block"}, values, {"cpus", "speed", "memory"})
            trace.machines.append(_machine(_node(_name(words)), values, flags))
        case "job":
            _refuse_others(flags - {"locked", "athome"}, values, {"home", "at", "cpu", "memory", "reads", "only"})
            trace.works.append(_work(_name(words), values, flags))
        case "network":
            _refuse_others(flags, values, set(_NETWORK))
            values.setdefault("memory", values.get("bytes", f"{trace.costs.memory_bytes_per_s:.0f}"))
            trace.costs = Costs(*(_positive(values, key, had) for key, had in zip(_NETWORK, trace.costs, strict=True)))
        case "expect":
            trace.expected.append(_expectation(words[1:]))
        case _:
            raise ValueError(f'"{words[0]}" is not node, network, job or expect')


_NETWORK: Final = ("bytes", "call", "move", "memory")


def _refuse_others(flags: set[str], values: dict[str, str], known: set[str]) -> None:
    if wrong := flags | (values.keys() - known):
        raise ValueError(f'"{min(wrong)}" means nothing here')


def _name(words: list[str]) -> str:
    if len(words) < 2 or "=" in words[1]:
        raise ValueError(f"{words[0]} what?")
    return words[1]


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise ValueError(f'"{text}" is no number from {least} to {most}')
    return int(text)


def _node(text: str) -> int:
    return _whole(text, 1, NODE_ID_MAX)


def _positive(values: dict[str, str], key: str, otherwise: float) -> float:
    found = amount(values[key]) if key in values else otherwise
    if found <= 0:
        raise ValueError(f"{key} is more than 0")
    return found


def amount(text: str) -> float:
    """4, 0.5, 20M, 4G.  Raises ValueError."""
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError(f'"{text}" is no amount (like 0.5, 20M or 4G)')
    return float(found[1]) * _FACTORS[found[2]]


def _machine(number: int, values: dict[str, str], flags: set[str]) -> Machine:
    return Machine(
        number,
        _whole(values.get("cpus", "1"), 1, CPUS_MAX),
        _positive(values, "speed", STANDARD_SPEED) / STANDARD_SPEED,
        int(_positive(values, "memory", 4 << 30)),
        "stay" in flags,
        "lstay" in flags,
        "block" in flags,
    )


def _work(name: str, values: dict[str, str], flags: set[str]) -> Work:
    return Work(
        name,
        amount(values.get("at", "0")),
        _node(values.get("home", "1")),
        _positive(values, "cpu", 60),
        int(amount(values.get("memory", "16M"))),
        tuple(_files(one) for one in values.get("reads", "").split(";") if one),
        "locked" in flags,
        frozenset(map(_node, values["only"].split(","))) if "only" in values else None,
        "athome" in flags,
    )


def _files(text: str) -> tuple[int, float, float]:
    match text.split(":"):
        case [node, size]:
            return _node(node), amount(size), 0.0
        case [node, size, calls]:
            return _node(node), amount(size), amount(calls)
    raise ValueError(f'"{text}" is not NODE:BYTES or NODE:BYTES:CALLS')


def _expectation(words: list[str]) -> tuple[str, ...]:
    match words:
        case [_, "moves", most]:
            _whole(most, 0, MOVES_MAX)
        case [_, "on", node, "by", moment]:
            _node(node)
            amount(moment)
        case [_, "stays"]:
            pass
        case _:
            raise ValueError("expect NAME stays, NAME moves N, or NAME on NODE by SECONDS")
    return tuple(words)


# ---------------------------------------------------------------- what became of it


def failures(trace: Trace, seed: int = 0) -> list[str]:
    """What balancing did not do as the trace expects."""
    jobs, _ = _balanced(trace, seed)
    by_name = {job.work.name: job for job in jobs}
    return [said for words in trace.expected if (said := _unlike(by_name[words[0]], words[1:]))]


def _balanced(trace: Trace, seed: int) -> tuple[list[Job], Balancing]:
    strategy = STRATEGIES[OURS]()
    assert isinstance(strategy, Balancing)
    return Simulation(trace.machines, trace.costs, strategy, seed).run(trace.works), strategy


def _unlike(job: Job, words: Sequence[str]) -> str:
    moves = len(job.moves)
    match words:
        case ["stays"] if job.began != job.work.home:
            return f"{job.work.name} began on node {job.began}"
        case ["stays"] if moves:
            return f"{job.work.name} moved to node {job.moves[0][1]} after {job.moves[0][0]:.0f} s"
        case ["moves", most] if moves > int(most):
            return f"{job.work.name} moved {moves} times"
        case ["on", node, "by", moment]:
            where = [job.began, *(to for at_s, to in job.moves if at_s <= float(moment))][-1]
            return "" if where == int(node) else f"{job.work.name} is on node {where} after {moment} s"
    return ""


def told(trace: Trace, seed: int = 0) -> Iterator[str]:
    """Lines for people."""
    jobs, strategy = _balanced(trace, seed)
    events = [(at_s, job.work.name, "moves to", node) for job in jobs for at_s, node in job.moves]
    events += [(job.work.begins_s, job.work.name, "begins on", job.began) for job in jobs]
    for at_s, name, does, node in sorted(events):
        yield f"{at_s:8.1f} s  {name} {does} node {node}"
    for job in jobs:
        last = strategy.decisions.get(job.work.name)
        why = f", {last.reason}" if last is not None and not job.moves else ""
        yield f"{job.ended_s:8.1f} s  {job.work.name} ends on node {job.node}{why}"
    yield f"{'mean slowdown':32} moves"
    for name, make in STRATEGIES.items():
        yield _row(trace, name, make, seed)
    if len(trace.machines) ** len(trace.works) <= PLACEMENTS_MAX:
        best, _ = best_assignment(trace.works, trace.machines, trace.costs)
        yield f"{'the best without moves':24} {best:7.2f}"
    for said in failures(trace, seed):
        yield f"not as expected: {said}"


def _row(trace: Trace, name: str, make: Callable[[], object], seed: int) -> str:
    jobs = Simulation(trace.machines, trace.costs, STRATEGIES[name](), seed).run(trace.works)
    slowdown = mean_slowdown(jobs, trace.machines, trace.costs)
    moves = sum(len(job.moves) for job in jobs)
    return f"{name:24} {slowdown:7.2f} {moves if not math.isnan(slowdown) else '':5}"
