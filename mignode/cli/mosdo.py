"""`mosdo CMD`: a shell command on all nodes, or on some, at the same time.

Other nodes are reached by ssh, as its user has set it up: no daemon of ours runs commands for others.  The own node
needs none.  Each line of output comes whole, with the node in front.  A command ends there when mosdo ends it
here: sshd does not see to that.  What mosdo does not do: ask for passwords, or give the commands an input.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

from mignode.cli.mapinforce import InForce, in_force_or_written
from mignode.cli.parser import EXIT_INTERRUPTED, EXIT_REFUSED, Parser, complain
from mignode.mosrunoptions import nodes_of
from omfs.config import DEFAULT_CONFIG
from omfs.errors import ConfigError, OmfsError
from omfs.standing import errors_unwrapped

SSH: Final = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
AT_A_TIME: Final = 64
LINE_MAX_BYTES: Final = 1 << 16  # longer ones are cut into several
KILLED_WITHIN_S: Final = 2.0  # from SIGTERM to SIGKILL
STATUS_OF_TIMEOUT: Final = 124  # as timeout(1)
STATUS_OF_SSH: Final = 255

ABOUT: Final = f"""\
Run a command on all nodes of the cluster, or on those of -n, at the same time; it may have options of its own, and what
only the shell there is to see must be quoted.  Other nodes are reached by ssh, without a password or question:
    {SSH} ADDRESS ...
When it is interrupted, or -t is over, the commands there are ended too.
Each line of output has its node in front.  At the end, who did not succeed is said on standard error.
Exit status: the highest of the nodes' (255: ssh did not reach one, 124: it took longer than -t); 1 it could not be
begun (one line says why), 2 wrong usage.
"""

# By /bin/sh on the other node: ends its process group when ssh's connection, whose input we hold, has ended.
GUARDED: Final = """\
exec 3<&0 < /dev/null
trap : TERM
{ trap "" TERM; read -r end <&3; kill 0; sleep 2; kill -9 0; } > /dev/null 2>&1 &
guard=$!
"${SHELL:-/bin/sh}" -c "$1" 3<&-
status=$?
kill -9 $guard 2> /dev/null
exit $status"""


class Outcome(NamedTuple):
    """*status*: a shell's, so 128 and more where a signal ended it."""

    node: int
    status: int
    seconds: float
    output: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def build_parser() -> Parser:
    parser = Parser("mosdo", ABOUT)
    parser.add_argument("-n", "--nodes", metavar="LIST", type=_nodes, help="only these, e.g. 1-3,7")
    parser.add_argument("-x", "--but", metavar="LIST", type=_nodes, default=(), help="all but these")
    parser.add_argument("-t", "--timeout", metavar="SECONDS", type=_seconds, help="how long it may take; else for ever")
    parser.add_argument("-q", "--quiet", action="store_true", help="no nodes in front of the lines")
    parser.add_argument("--ssh", metavar="COMMAND", default=SSH, help='instead of ssh as above, e.g. "ssh -p 2222"')
    parser.add_argument("--json", action="store_true", help="print JSON when all have ended")
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULT_CONFIG, help="settings (%(default)s)")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")
    return parser


def _nodes(text: str) -> tuple[tuple[int, int], ...]:
    try:
        return nodes_of(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f'"{text}" is no number of seconds')


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not words:
        parser.error("say which command")
    command = words[0] if len(words) == 1 else shlex.join(words)
    try:
        now = in_force_or_written(arguments.mfs, arguments.config)
        nodes = _chosen(now, arguments.nodes, arguments.but)
        ssh = shlex.split(arguments.ssh)
    except (OmfsError, ValueError) as error:
        return complain("mosdo", str(error), EXIT_REFUSED)
    printer = _Printer(_width(nodes) if not arguments.quiet else 0, is_kept=arguments.json)
    lines = {node: _line(now, node, ssh, command) for node in nodes}
    try:
        with errors_unwrapped():
            outcomes = trio.run(_run_all, lines, now.own, arguments.timeout, printer)
    except ConfigError as error:
        return complain("mosdo", str(error), EXIT_REFUSED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        return EXIT_REFUSED
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if arguments.json:
        print(json.dumps([outcome._asdict() for outcome in outcomes], indent=2))
    for outcome in outcomes:
        if outcome.status:
            complain("mosdo", f"node {outcome.node}: {_meaning(outcome.status, arguments.timeout)}", 0)
    return max(outcome.status for outcome in outcomes)


def _chosen(now: InForce, ranges: Sequence[tuple[int, int]] | None, but: Sequence[tuple[int, int]]) -> list[int]:
    """Raises ConfigError for who is not in the map: a typing error must not pass for a success."""
    for first, last in (*(ranges or ()), *but):
        if missing := [node for node in range(first, last + 1) if node not in now.map.nodes]:
            raise ConfigError(f"node {missing[0]} is not in the map of this cluster")
    chosen = [
        node
        for node in now.map.nodes
        if (ranges is None or any(first <= node <= last for first, last in ranges))
        and not any(first <= node <= last for first, last in but)
    ]
    if not chosen:
        raise ConfigError("no node is left")
    return chosen


def _line(now: InForce, node: int, ssh: Sequence[str], command: str) -> list[str]:
    if node == now.own:
        return [os.environ.get("SHELL") or "/bin/sh", "-c", command]
    guarded = "; ".join(GUARDED.splitlines()).replace("&;", "&")
    return [*ssh, now.map.nodes[node][0], f"exec /bin/sh -c {shlex.quote(guarded)} mosdo {shlex.quote(command)}"]


def _width(nodes: Sequence[int]) -> int:
    return max(len(str(node)) for node in nodes)


def _meaning(status: int, timeout_s: float | None) -> str:
    if status == STATUS_OF_SSH:
        return "255: ssh could not reach it, or the command said so"
    if status == STATUS_OF_TIMEOUT and timeout_s is not None:
        return f"not done within {timeout_s:g} s; ended"
    return f"exit status {status}"


# ---------------------------------------------------------------- running


async def _run_all(lines: dict[int, list[str]], own: int, timeout_s: float | None, printer: _Printer) -> list[Outcome]:
    outcomes: list[Outcome] = []
    at_a_time = trio.Semaphore(AT_A_TIME)

    async def run(node: int, line: list[str]) -> None:
        async with at_a_time:
            outcomes.append(await _run(node, line, timeout_s, printer, has_input=node != own))

    async with trio.open_nursery() as nursery:
        for node, line in lines.items():
            nursery.start_soon(run, node, line)
    return sorted(outcomes)


async def _run(node: int, line: list[str], timeout_s: float | None, printer: _Printer, *, has_input: bool) -> Outcome:
    """*has_input*: one that stays open, and empty, as long as it may run."""
    begun_s = time.monotonic()
    printed: dict[bool, list[str]] = {False: [], True: []}

    async def show(stream: trio.abc.ReceiveStream, *, is_error: bool) -> None:
        rest = b""
        async for chunk in stream:
            *whole, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_MAX_BYTES:
                whole, rest = [*whole, rest], b""
            for one in whole:
                printed[is_error] += printer.show(node, one, is_error=is_error)
        if rest:
            printed[is_error] += printer.show(node, rest, is_error=is_error)

    status = STATUS_OF_TIMEOUT
    stdin = subprocess.PIPE if has_input else subprocess.DEVNULL
    with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
        async with trio.open_nursery() as nursery:
            try:
                process = await nursery.start(partial(trio.run_process, **_STREAMS, stdin=stdin), line)
            except OSError as error:
                raise ConfigError(f"{line[0]}: {error.strerror}") from None
            nursery.start_soon(partial(show, process.stdout, is_error=False))
            nursery.start_soon(partial(show, process.stderr, is_error=True))
            status = await process.wait()
    status = 128 - status if status < 0 else status
    return Outcome(node, status, round(time.monotonic() - begun_s, 3), tuple(printed[False]), tuple(printed[True]))


async def _end(process: trio.Process) -> None:
    """It and what it started; their group is their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with trio.move_on_after(KILLED_WITHIN_S):
            await process.wait()
            return


_STREAMS: Final = {
    "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "check": False,
    "start_new_session": True, "deliver_cancel": _end,
}  # fmt: skip


class _Printer:
    """Whole lines, as they come; with *is_kept*, kept for later instead."""

    def __init__(self, width: int, *, is_kept: bool) -> None:
        self._width = width
        self._is_kept = is_kept

    def show(self, node: int, line: bytes, *, is_error: bool) -> list[str]:
        """What is to be kept of it."""
        if self._is_kept:
            return [line.decode(errors="backslashreplace")]
        file = sys.stderr.buffer if is_error else sys.stdout.buffer
        file.write((f"{node:>{self._width}}: ".encode() if self._width else b"") + line + b"\n")
        file.flush()
        return []


if __name__ == "__main__":
    sys.exit(main())
