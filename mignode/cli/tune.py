"""`tune NODE`: measures what moving and other nodes' files cost, and has this node reckon with it.

What is measured is what users do: programs of mosrun are moved there and back, and files there are used through /mfs
(tuneguest.py, tunefiles.py).  The result is written to /mfs/proc/hpc/admin/overheads and mfscosts, which mignode keeps;
tuning.py says what the numbers are.  One at a time on a node: two would measure each other.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from mignode.cli import controlfile, tunefiles
from mignode.cli.answers import Refused
from mignode.cli.parser import EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_REFUSED, Parser, complain, whole
from mignode.cli.tunefiles import FILES, LARGE_BYTES, SMALL_BYTES, scratch
from mignode.cli.tuneguest import HOME, Guest, Prober
from mignode.nodeinfo import UP
from mignode.tuning import MFSCOSTS, MIB, OVERHEADS, page_s, shown, tuned, written
from omfs.config import DEFAULT_CONFIG, load_settings
from omfs.errors import ConfigError, NotRunning
from omfs.magic.controlfiles import NODE_MAX

HELD_BYTES: Final = 64 * MIB
STREAM_BYTES: Final = 4 * MIB
LOCK: Final = "tune.lock"
_STARTS = 5
_ROUNDS = 100
_MOVES = 5  # there, and as many back
_LARGE_MOVES = 3
_BUSY: Final = 50  # half a standard processor

ABOUT: Final = """\
Measure what it costs to move programs between this node and NODE, and to use NODE's files from here, and set
/mfs/proc/hpc/admin/overheads and mfscosts by it (`mosctl gettune` shows them).  From then on this node decides with
these figures who is worth moving where; they are kept over restarts.  Root only.  Both nodes should do nothing else
meanwhile; it takes about ten seconds.  Some programs run there for a moment, and 130 MiB are written to NODE's /var/tmp
and removed again.
Exit status: 0 measured and set, 1 it could not be done (one line says why, and nothing was set), 2 wrong usage,
3 this node is in no cluster now: /mfs is not mounted, or mignode does not run.
"""


class _Interrupted(BaseException):
    """By a signal; from now on none interrupts us, while we tidy up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def build_parser() -> Parser:
    parser = Parser("tune", ABOUT)
    parser.add_argument("node", metavar="NODE", type=_node, help="the other node, by its number")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    return parser


def _node(text: str) -> int:
    try:
        return whole(text, 1, NODE_MAX)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a node (1..{NODE_MAX})') from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    heeded = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup's, say
    before = {number: signal.signal(number, _interrupt) for number in heeded}
    try:
        return _tune(arguments.node, arguments.mfs, as_json=arguments.json)
    except NotRunning as error:
        return complain("tune", str(error), EXIT_NOT_RUNNING)
    except (Refused, ConfigError) as error:
        return complain("tune", str(error), EXIT_REFUSED)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return complain("tune", controlfile.MIGNODE_IS_OFF, EXIT_NOT_RUNNING)
        return complain("tune", _why(error), EXIT_REFUSED)
    except _Interrupted as interrupted:
        return EXIT_INTERRUPTED if interrupted.number == signal.SIGINT else 128 + interrupted.number
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(number: int, _: object) -> NoReturn:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted(number)


def _why(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "only root may do that"
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)


def _tune(node: int, wanted: Path | None, *, as_json: bool) -> int:
    """Raises Refused, NotRunning, ConfigError, OSError."""
    mount = controlfile.find_mount(wanted)
    own = int(controlfile.read(mount / "proc" / "hpc" / "admin" / "mospe"))
    _check(mount, own, node)
    with _alone(Path(load_settings(Path(os.environ.get("OMFS_CONFIG", DEFAULT_CONFIG))).run_dir)):
        for each in (own, node):
            _warn_if_busy(mount, each)
        with _progress() as begin:
            found = tuned(measured(mount, node, begin))
        for name, values in found._asdict().items():
            controlfile.write(mount / "proc" / "hpc" / "admin" / name, written(values))
    names = {"overheads": OVERHEADS, "mfscosts": MFSCOSTS}
    told = {name: dict(zip(names[name], values, strict=True)) for name, values in found._asdict().items()}
    print(json.dumps({"node": own, "with": node, **told}) if as_json else shown(f"node {own} with node {node}", found))
    return 0


# ---------------------------------------------------------------- whether it can be done


def _check(mount: Path, own: int, node: int) -> None:
    """Raises Refused, OSError."""
    if node == own:
        raise Refused(f"node {node} is this node; name another one")
    folder = mount / "proc" / "hpc" / "nodes" / str(node)
    if not folder.is_dir():
        raise Refused(f"node {node} is not in the map of this cluster")
    if not int(controlfile.read(folder / "status")) & UP:
        raise Refused(f"node {node} is down")
    if os.geteuid():
        raise Refused("only root may do that")


def _warn_if_busy(mount: Path, node: int) -> None:
    """It goes on: who knows better may have nothing else."""
    with contextlib.suppress(OSError):  # it does not tell
        load = int(controlfile.read(mount / "proc" / "hpc" / "nodes" / str(node) / "load"))
        if load > _BUSY:
            complain("tune", f"node {node} is busy (load={load}): it costs less when nobody else works there", 0)


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Raises Refused where another one is at it."""
    path = run_dir / LOCK
    file = _open_locked(path)
    try:
        os.truncate(file, 0)
        os.write(file, b"%d\n" % os.getpid())
        yield
    finally:
        path.unlink()  # as long as it is ours
        os.close(file)


def _open_locked(path: Path) -> int:
    """The file of that name, not one that has just been removed.  Raises Refused."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(file, 32).decode(errors="replace").strip()
            os.close(file)
            raise Refused(f"another tune runs on this node{pid and f' (process {pid})'}; wait until it ends") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)


# ---------------------------------------------------------------- what is measured


Begin = Callable[[str], None]
_STEPS: Final = (
    "starting programs", "moving an empty program", "programs at home", "programs away", "moving memory",
    "files of the other node",
)  # fmt: skip


def measured(mount: Path, node: int, begin: Begin) -> dict[str, float]:
    """Seconds, by tuning's names.  *begin*: is told each of _STEPS.  Raises Refused, OSError."""
    steps = iter(_STEPS)
    found = {}
    with scratch(mount / str(node)) as folder:
        begin(next(steps))
        found["start"] = statistics.median(_start_s(mount) for _ in range(_STARTS))
        begin(next(steps))
        found |= _empty_moves(mount, node)
        with Prober(mount) as prober:
            begin(next(steps))
            found["call_home"] = prober.ask("call", _ROUNDS)
            begin(next(steps))
            prober.move(node)
            small, other, large = _files_made(prober, folder)
            found |= _away(prober)
            begin(next(steps))
            found["move_page"] = _page_s(prober, node)
        begin(next(steps))
        found |= tunefiles.measured(folder, small, other, large)
    return found


def _start_s(mount: Path) -> float:
    began = time.perf_counter()
    with Guest(mount, ["echo"]) as guest:
        guest.receive(1)
        return time.perf_counter() - began


def _empty_moves(mount: Path, node: int) -> dict[str, float]:
    with Guest(mount, ["cat"]) as guest:
        found = {"byte_home": statistics.median(guest.echo() for _ in range(_ROUNDS))}
        guest.move(node)
        found["byte_away"] = statistics.median(guest.echo() for _ in range(_ROUNDS))
        guest.move(HOME)
        moves = [guest.move(to) for _ in range(_MOVES) for to in (node, HOME)]
    found["move"] = statistics.median(took_s for took_s, _ in moves)
    found["freeze"] = statistics.median(way.frozen_s for _, way in moves if way is not None)
    return found


def _files_made(prober: Prober, folder: Path) -> tuple[Path, Path, Path]:
    """Natively, by who is there: two directories of small files, and a large one."""
    small, other, large = folder / "small", folder / "other", folder / "large"
    for each, count, size in ((small, FILES, SMALL_BYTES), (other, FILES, SMALL_BYTES), (large, 1, LARGE_BYTES)):
        each.mkdir()
        prober.ask("files", each, count, size)
    return small, other, large / "0"


def _away(prober: Prober) -> dict[str, float]:
    prober.answer_to_signal()
    return {
        "call_away": prober.ask("call", _ROUNDS),
        "fork_away": prober.ask("fork", _ROUNDS),
        "open_away": prober.ask("open", "/etc/passwd", _ROUNDS),
        "signal_away": statistics.median(prober.answer_to_signal() for _ in range(_ROUNDS)),
        "input_mib": prober.give(STREAM_BYTES) * MIB / STREAM_BYTES,
        "output_mib": prober.take(STREAM_BYTES) * MIB / STREAM_BYTES,
    }


def _page_s(prober: Prober, node: int) -> float:
    """It is away, and comes home as it is at the end."""
    ways = [HOME, node] * _LARGE_MOVES
    small_s = [prober.move(to)[0] for to in ways]
    prober.ask("hold", HELD_BYTES)
    large_s = [prober.move(to)[0] for to in ways]
    return page_s(small_s, large_s, HELD_BYTES)


@contextlib.contextmanager
def _progress() -> Iterator[Begin]:
    """A bar on the terminal."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:26}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(_STEPS), completed=-1)

        def begin(step: str) -> None:
            bar.update(task, description=step, advance=1)

        yield begin


if __name__ == "__main__":
    sys.exit(main())
