"""`mps`: ps(1) with the node where each process runs.

The real ps is run with the user's options, and the column is put behind its PID: what ps shows and how is ps's own.
With --ominfo it shows openMosix's columns instead of ps's.  What is known of a process is read from /mfs/proc/<pid>,
from all of them at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from mignode.cli import controlfile
from mignode.cli.parser import EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_USAGE, complain, without_mfs
from omfs.config import SOFTWARE
from omfs.errors import NotRunning

EXIT_NO_PS: Final = 127
OURS: Final = ("--ominfo", "--json")
UNKNOWN: Final = "-"
AT_A_TIME: Final = 16  # files being read: each waits for mignode
NODE: Final = "NODE"
NODE_COLUMNS: Final = len(NODE) + 2  # a node has five digits

ABOUT: Final = """\
usage: mps [--ominfo [--json]] [--mfs DIR] [options of ps]

Show processes as ps(1) does, with one more column behind PID:
  NODE      the node where it runs now; 0: at home; - : nothing is known of it
With --ominfo, for each process that ps selects: PID NODE COMMAND and
  NMIGS     how often it has moved
  LOCK      1: it is not to be moved by balancing
  CANTMOVE  why it can't move; empty when it can
--json prints that as JSON.
--mfs DIR says where the cluster's files are, if not at /mfs.
Exit status: that of ps, but 2 for options that ps refuses; 3 without a cluster: /mfs is not mounted here (what ps shows
is shown, with - for all nodes).
"""


class Wanted(NamedTuple):
    """The command line."""

    for_ps: tuple[str, ...]
    only_ours: bool = False  # --ominfo
    as_json: bool = False
    mfs: Path | None = None


def parsed(words: Sequence[str]) -> Wanted:
    """All that is not ours is ps's.  Raises ValueError."""
    mfs, others = without_mfs(words)
    as_json = "--json" in others
    for_ps = tuple(word for word in others if word not in OURS)
    return Wanted(for_ps, as_json or "--ominfo" in others, as_json, mfs)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if "--help" in words:
        print(ABOUT, end="")
        return 0
    if "--version" in words:
        print(SOFTWARE)
        return 0
    try:
        wanted = parsed(words)
    except ValueError as error:
        return complain("mps", f"{error} (see mps --help)", EXIT_USAGE)
    return shown("mps", wanted.mfs, partial(_show_ours if wanted.only_ours else _show, wanted))


def shown(prog: str, mfs: Path | None, show: Callable[[Path | None], int]) -> int:
    """*show* it, with where /mfs is, or without a cluster, which a line says; the exit status."""
    try:
        mount: Path | None = controlfile.find_mount(mfs)
    except NotRunning as error:
        mount = None
        complain(prog, str(error), EXIT_NOT_RUNNING)
    try:
        status = show(mount)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status or (EXIT_NOT_RUNNING if mount is None else 0)


# ---------------------------------------------------------------- ps


def _ps(words: Iterable[str], columns: int | None) -> tuple[int, list[str]]:
    """Its status and lines; *columns*: of the terminal, where it is one (in a pipe ps asks this variable).

    What ps says of words that it does not know goes to stderr, and the status is that of wrong usage, not ps's 1.
    """
    environment = os.environ | ({} if columns is None else {"COLUMNS": str(columns)})
    try:
        done = subprocess.run(["ps", *words], capture_output=True, env=environment, check=False)
    except FileNotFoundError:
        return complain("mps", "there is no ps on this machine", EXIT_NO_PS), []
    sys.stderr.write(os.fsdecode(done.stderr).encode(errors="replace").decode())
    is_refused = done.returncode and done.stderr and not done.stdout
    return EXIT_USAGE if is_refused else done.returncode, os.fsdecode(done.stdout).splitlines()


def _show(wanted: Wanted, mount: Path | None) -> int:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    status, lines = _ps(wanted.for_ps, None if width is None else max(width - NODE_COLUMNS, 1))
    pids = pids_in(lines)
    if lines and not pids:
        print("mps: no column PID here, so no node can be shown", file=sys.stderr)
    known = facts(mount, pids.values(), ("where",))
    edge = right_edge(lines)
    for number, line in enumerate(lines):
        if edge is None:
            _print(line)
        else:
            pid = pids.get(number)
            node = (known.get((pid, "where"), UNKNOWN) if pid else NODE) if pid or number == 0 else ""
            _print(f"{line[:edge]:{edge}} {node:>{NODE_COLUMNS - 1}}{line[edge:]}")
    return status


def right_edge(lines: Sequence[str]) -> int | None:
    """Where the column PID ends: ps aligns its numbers to the right.  None: there is no such column."""
    found = re.search(r"(?<!\S)PID(?!\S)", lines[0]) if lines else None
    return found.end() if found else None


def pids_in(lines: Sequence[str]) -> dict[int, int]:
    """By the number of the line.  Lines without one are threads', or go on with what is above."""
    edge = right_edge(lines)
    found = {}
    for number, line in enumerate(lines):
        if edge is not None and number and (match := re.search(r"(?<!\S)\d+$", line[:edge])):
            found[number] = int(match[0])
    return found


def _show_ours(wanted: Wanted, mount: Path | None) -> int:
    status, lines = _ps((*wanted.for_ps, "-o", "pid,comm"), None)
    if status in (EXIT_USAGE, EXIT_NO_PS):
        return status
    pids = pids_in(lines)
    edge = right_edge(lines) or 0
    names = ("where", "nmigs", "lock", "cantmove")
    known = facts(mount, pids.values(), names)
    if wanted.as_json:
        rows = [
            {
                "pid": pid,
                "command": lines[number][edge:].strip(),
                **{name: datum(known.get((pid, name))) for name in names},
            }
            for number, pid in pids.items()
        ]
        print(json.dumps(rows, indent=2))
        return status
    if pids:
        _print(f"{lines[0][:edge]:>7} {NODE:>5} NMIGS LOCK {'COMMAND':<15} CANTMOVE")
    for number, pid in pids.items():
        node, moves, lock, reasons = (known.get((pid, name), UNKNOWN) for name in names)
        _print(f"{pid:>7} {node:>5} {moves:>5} {lock:>4} {lines[number][edge:].strip():<15} {reasons}".rstrip())
    return status


def datum(said: str | None) -> int | str | None:
    """For JSON; None: nothing is known."""
    return int(said) if said is not None and said.isdigit() else said


def _print(line: str) -> None:
    """Whatever bytes a name has."""
    sys.stdout.buffer.write(os.fsencode(line) + b"\n")


# ---------------------------------------------------------------- facts


def facts(mount: Path | None, pids: Iterable[int], names: Sequence[str]) -> Mapping[tuple[int, str], str]:
    """By pid and name of the file; nothing for who has ended meanwhile."""
    if mount is None:
        return {}
    asked = [(pid, name) for pid in dict.fromkeys(pids) for name in names]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        answers = pool.map(lambda one: _fact(mount, *one), asked)
        return {one: answer for one, answer in zip(asked, answers, strict=True) if answer is not None}


def _fact(mount: Path, pid: int, name: str) -> str | None:
    try:
        return controlfile.read(controlfile.of_process(mount, pid, name))
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
