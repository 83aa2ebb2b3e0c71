"""`mosctl why PID` and `mosctl simulate TRACE`: the terms of a decision, when it came there, and what would be."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mignode import journey
from mignode.cli import controlfile
from mignode.cli.answers import Refused, Told, WrongValue
from mignode.cli.parser import PID_MAX, whole
from mignode.journey import State
from mignode.policy import Decision
from omfs.errors import ConfigError


def why(hpc: Path, text: str) -> Told:
    """The terms of the last decision.  Raises Refused, WrongValue, OSError."""
    try:
        pid = whole(text, 1, PID_MAX)
    except ValueError:
        raise WrongValue(f'"{text}" is not a process id') from None
    mount = hpc.parent.parent
    try:
        said = controlfile.read(controlfile.of_process(mount, pid, "decision"))
    except (FileNotFoundError, ProcessLookupError):
        raise Refused(f"there is no process {text}") from None
    if not said:
        raise Refused(f"nothing has been decided about process {text}: it is no guest, or has just begun")
    decision = msgspec.json.decode(said, type=Decision)
    came_after_s = _came_after_s(mount, pid, decision.here)
    as_json = {**msgspec.to_builtins(decision), "came_after_s": came_after_s}
    return Told(_for_people(pid, decision, came_after_s), as_json)


def _came_after_s(mount: Path, pid: int, here: int) -> float | None:
    """How old it was when it had come to where it is; None: it began there, or nobody knows."""
    try:
        last = journey.understood(controlfile.read(controlfile.of_process(mount, pid, journey.FILE)))
    except OSError:  # it has just ended
        return None
    if last is None or (last.state, last.target) != (State.ARRIVED, here):
        return None
    return last.age_s or None


def simulated(path: str) -> Told:
    """It needs no cluster.  Raises Refused."""
    from mignode import simulate  # takes long, and nobody else needs it

    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: {getattr(error, 'strerror', '') or 'it is no text'}") from None
    try:
        lines = list(simulate.told(simulate.parse(text, path)))
    except ConfigError as error:
        raise Refused(str(error)) from None
    return Told("\n".join(lines), {"lines": lines})


def _begins(first: Decision) -> str:
    """Where it was sent, or not, when it was new."""
    where = f"on node {first.target}" if first.moves else "at home"
    costs = {option.node: option.total_s for option in first.options if not option.refused}
    compared = f" ({costs[first.target]:.2f} s for a second of computing; at home {costs[first.here]:.2f} s)"
    return f"began {where}: {first.reason}{compared if first.moves else ''}"


def _for_people(pid: int, decision: Decision, came_after_s: float | None) -> str:
    began = [f"it {_begins(decision.began)}"] if decision.began is not None else []
    if came_after_s is not None:
        began.append(f"it came to node {decision.here} {came_after_s:.1f} s after its start")
    goes = f"goes to node {decision.target}" if decision.moves else "stays"
    what = _begins(decision) if decision.is_first else f"on node {decision.here} {goes}: {decision.reason}"
    lines = [
        f"process {pid} {what}",
        *began,
        f"it is expected to go on for {decision.life_s:.0f} s; a move would take {decision.moving_s:.1f} s "
        f"and save {max(0.0, decision.gain_s):.1f} s",
        *([f"it is judged as {decision.judged_as}"] if decision.judged_as else []),
        f"{'a second of computing' if decision.is_first else 'its last second'} would take, in seconds:",
        f"{'node':>6} {'cpu':>8} {'files':>8} {'memory':>8} {'in all':>8}",
    ]
    for one in decision.options:
        amounts = f"{one.cpu_s:8.2f} {one.files_s:8.2f} {one.memory_s:8.2f} {one.total_s:8.2f}"
        lines.append(f"{one.node:6} {one.refused or amounts}")
    return "\n".join(lines)
