"""`mtop`: top(1) with the node where each process runs, and how often it has moved.

The real top is run in its batch mode with the user's options, and two columns are put behind its PID.  On a terminal
the newest picture is shown, as much as fits, and only what is seen is asked for; in a pipe all of it.  What is known of
a process comes from /mfs/proc/<pid>, as for mps.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import termios
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Final, NamedTuple

from mignode.cli import mps
from mignode.cli.parser import EXIT_USAGE, complain, without_mfs
from omfs.config import SOFTWARE

FACTS: Final = ("where", "nmigs")
COLUMNS: Final = f" {'NODE':>5} {'NMIGS':>5}"
SORTED_BY: Final = {"P": "%CPU", "M": "%MEM", "T": "TIME+", "N": "PID"}  # as in top
BATCH: Final = ("-b", "--batch-mode")
JSON: Final = "--json"
FOR_JSON: Final = ("-e", "k"), ("-n", "1")  # before and behind the user's words, of which the last counts
UNCHANGED: Final = {
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
}  # no toprc, no commas
TEXTS: Final = ("user", "command")  # also where they look like numbers
QUIT: Final = ("q", "Q", "\x03")
FRAME: Final = b"top - "  # how each picture begins
PAUSE_S: Final = 0.2  # top writes a picture in one go: who has paused has ended it
WIDTH: Final = "512"
ENDED_WITHIN_S: Final = 5.0

ABOUT: Final = """\
usage: mtop [--json] [--mfs DIR] [options of top]

Show processes as top(1) does, with two more columns behind PID:
  NODE      the node where it runs now; 0: at home; - : nothing is known of it
  NMIGS     how often it has moved
Keys: q quits; P M T N sort by processor, memory, time, PID; space looks at once.
In a pipe, and with -b, all of it is printed again and again; -n1: once.
--json prints one picture's processes as JSON, with top's usual columns whatever the toprc says, and memory in KiB.
--mfs DIR says where the cluster's files are, if not at /mfs.
Exit status: that of top, but 2 for options that top refuses; 3 without a cluster: /mfs is not mounted here (what top
shows is shown, with - for all nodes).
"""


class Wanted(NamedTuple):
    """The command line."""

    for_top: tuple[str, ...]
    is_batch: bool = False
    as_json: bool = False
    mfs: Path | None = None


def parsed(words: Sequence[str]) -> Wanted:
    """All that is not ours is top's; -b is ours as well, for it is always told top.  Raises ValueError."""
    mfs, others = without_mfs(words)
    for_top = tuple(word for word in others if word not in (*BATCH, JSON))
    return Wanted(for_top, bool({*BATCH} & {*others}), JSON in others, mfs)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if {"--help", "-h"} & set(words):
        print(ABOUT, end="")
        return 0
    if "--version" in words:
        print(SOFTWARE)
        return 0
    try:
        wanted = parsed(words)
    except ValueError as error:
        return complain("mtop", f"{error} (see mtop --help)", EXIT_USAGE)
    return mps.shown("mtop", wanted.mfs, partial(_show, wanted))


def _show(wanted: Wanted, mount: Path | None) -> int:
    is_live = sys.stdin.isatty() and sys.stdout.isatty() and not wanted.is_batch
    try:
        if wanted.as_json:
            return _print_json(wanted.for_top, mount)
        return _show_live(wanted.for_top, mount) if is_live else _print_all(wanted.for_top, mount)
    except FileNotFoundError:
        return complain("mtop", "there is no top on this machine", mps.EXIT_NO_PS)


# ---------------------------------------------------------------- top


@contextlib.contextmanager
def _top(
    words: Sequence[str], stderr: IO[bytes] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Running in its batch mode; ended afterwards."""
    command = ["top", "-b", *(() if any(word.startswith("-w") for word in words) else ("-w", WIDTH)), *words]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _status_of(process: subprocess.Popen[bytes], *, has_shown: bool) -> int:
    """Of top, which says what is wrong with its options, shows an empty line or none, and ends with 0 or 1."""
    status = process.wait()
    return EXIT_USAGE if status in (0, 1) and not has_shown else status


def with_nodes(lines: Sequence[str], mount: Path | None) -> list[str]:
    """One picture of top's, with our columns."""
    heading = _heading(lines)
    if heading is None:
        return list(lines)
    below = lines[heading:]
    pids, edge = mps.pids_in(below), mps.right_edge(below) or 0
    known = mps.facts(mount, pids.values(), FACTS)
    rows = [f"{line[:edge]:{edge}}{_columns(number, pids, known)}{line[edge:]}" for number, line in enumerate(below)]
    return [*lines[:heading], *rows]


def _heading(lines: Sequence[str]) -> int | None:
    return next((number for number, line in enumerate(lines) if re.search(r"(?<!\S)PID(?!\S)", line)), None)


def _columns(number: int, pids: Mapping[int, int], known: Mapping[tuple[int, str], str]) -> str:
    pid = pids.get(number)
    if pid is None:
        return COLUMNS if number == 0 else " " * len(COLUMNS)
    node, moves = (known.get((pid, name), mps.UNKNOWN) for name in FACTS)
    return f" {node:>5} {moves:>5}"


def _print_all(words: Sequence[str], mount: Path | None) -> int:
    """Each picture as it is complete: when the next one begins, or none comes any more."""
    with _top(words) as process:
        assert process.stdout is not None
        picture: list[str] = []
        for line in process.stdout:
            if line.startswith(FRAME) and picture:
                _print(with_nodes(picture, mount))
                picture = []
            picture.append(os.fsdecode(line).rstrip("\n"))
        if any(picture):
            _print(with_nodes(picture, mount))
        return _status_of(process, has_shown=any(picture))


def _print_json(words: Sequence[str], mount: Path | None) -> int:
    before, behind = FOR_JSON
    with _top((*before, *words, *behind), environment=os.environ | UNCHANGED) as process:
        assert process.stdout is not None
        lines = os.fsdecode(process.stdout.read()).splitlines()
        status = _status_of(process, has_shown=any(lines))
    heading = _heading(lines)
    if heading is not None:
        print(json.dumps(rows(lines[heading:], mount), indent=2))
    return status


def rows(lines: Sequence[str], mount: Path | None) -> list[dict[str, int | float | str | None]]:
    """The processes below a heading of top's usual columns, by whose names its values are; where and nmigs are ours."""
    names = lines[0].lower().split()
    pids = mps.pids_in(lines)
    known = mps.facts(mount, pids.values(), FACTS)
    found = []
    for number, pid in pids.items():
        values = lines[number].split(None, len(names) - 1)
        theirs = {name: _datum(name, value) for name, value in zip(names, values, strict=False)}  # some have no name
        found.append({**theirs, **{name: mps.datum(known.get((pid, name))) for name in FACTS}})
    return found


def _datum(name: str, said: str) -> int | float | str:
    if name in TEXTS or not re.fullmatch(r"-?\d+(\.\d+)?", said):
        return said.rstrip()
    return float(said) if "." in said else int(said)


def _print(lines: Sequence[str]) -> None:
    """Whatever bytes a name has."""
    sys.stdout.buffer.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
    sys.stdout.flush()


# ---------------------------------------------------------------- on a terminal


def _show_live(words: Sequence[str], mount: Path | None) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    with _keys() as keyboard, tempfile.TemporaryFile() as complaints:
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:

                def show(picture: Sequence[str]) -> None:
                    shown = with_nodes(picture[: console.height], mount)
                    text = "\n".join(line[: console.width].encode(errors="replace").decode() for line in shown)
                    live.update(Text(text, no_wrap=True), refresh=True)

                return _follow(words, keyboard, complaints, show)
        finally:  # when our screen is gone: on it nobody would have read them
            complaints.seek(0)
            sys.stderr.write(complaints.read().decode(errors="replace"))


def _follow(words: Sequence[str], keyboard: int, complaints: IO[bytes], show: Callable[[Sequence[str]], None]) -> int:
    """Until top ends or a key says so; top is started anew for another order, or to look at once."""
    sorting: tuple[str, ...] = ()
    has_shown = False
    while True:
        with _top((*words, *sorting), complaints) as process:
            assert process.stdout is not None
            for picture, key in _pictures(process.stdout.fileno(), keyboard):
                if any(picture):
                    show(picture)
                    has_shown = True
                if key in QUIT:
                    return 0
                if key in SORTED_BY:
                    sorting = ("-o", SORTED_BY[key])
                if key == " " or key in SORTED_BY:
                    break
            else:
                return _status_of(process, has_shown=has_shown)


def _pictures(output: int, keyboard: int) -> Iterator[tuple[list[str], str]]:
    """The newest lines of top, and a key, as they come; ends with top."""
    newest, is_shown = b"", True
    while True:
        ready = select.select([output, keyboard], [], [], None if is_shown else PAUSE_S)[0]
        data = os.read(output, 1 << 16) if output in ready else b""
        if not is_shown and not data:  # a pause, a key, or the end
            yield os.fsdecode(newest).splitlines(), ""
            is_shown = True
        if output in ready:
            if not data:
                return
            newest += data
            newest, is_shown = newest[max(newest.rfind(FRAME), 0) :], False
        if keyboard in ready:
            yield [], os.read(keyboard, 1).decode(errors="replace") or "q"


@contextlib.contextmanager
def _keys() -> Iterator[int]:
    """The terminal gives each key at once, and does not show it."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main())
