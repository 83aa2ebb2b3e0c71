"""`migrate PID {NODE|home|balance}`: move a running process; ends when it runs there.

The move is one write to /mfs/proc/PID/goto, so who may is the kernel's and mignode's to say; this command says what the
errno means, and shows on a terminal how far it is (journey.py).  No imports that take long: scripts call it often.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from mignode import journey
from mignode.cli import controlfile
from mignode.cli.parser import EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_REFUSED, PID_MAX, Parser, whole
from mignode.journey import Journey, State
from omfs.errors import NotRunning
from omfs.magic.controlfiles import NODE_MAX

HOME: Final = 0
BALANCE: Final = -1
SHOWN_AFTER_S: Final = 0.5  # most moves are over by then
LOOK_EVERY_S: Final = 0.25

ABOUT: Final = """\
Move the process PID to the node NODE of the cluster, home to the node where it was started, or, with balance, to
where the cluster finds best.  The process must have been started by mosrun; it and its descendants move together.
Its user may do that, and root.
Exit status: 0 it runs there, 1 it can't or did not (one line says why, and it runs on where it was), 2 wrong usage,
3 this node is in no cluster now: /mfs is not mounted, or mignode does not run.
"""


def build_parser() -> Parser:
    parser = Parser("migrate", ABOUT)
    parser.add_argument("pid", metavar="PID", type=_pid, help="the process, as ps shows it at its home")
    parser.add_argument("node", metavar="{NODE|home|balance}", type=_node, help="where it is to run")
    parser.add_argument("--explain", action="store_true", help="tell the stages afterwards, with times and bytes")
    parser.add_argument("--json", action="store_true", help="tell them as JSON")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    return parser


def _pid(text: str) -> int:
    try:
        return whole(text, 1, PID_MAX)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a process id') from None


def _node(text: str) -> int:
    if text in ("home", "balance"):
        return HOME if text == "home" else BALANCE
    try:
        return whole(text, 1, NODE_MAX)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}" is not a node (1..{NODE_MAX}), home or balance') from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        mount = controlfile.find_mount(arguments.mfs)
        with _progress_shown(mount, arguments.pid):
            controlfile.write(controlfile.of_process(mount, arguments.pid, "goto"), arguments.node)
        status = 0
    except NotRunning as error:
        return _complain(str(error), EXIT_NOT_RUNNING)
    except OSError as error:
        status = EXIT_NOT_RUNNING if error.errno == errno.ENOTCONN else EXIT_REFUSED
        _complain(why_it_failed(error, mount, arguments.pid, arguments.node), status)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if status == 0 and arguments.node == BALANCE and not arguments.json:
        print(_whereabouts(mount, arguments.pid))
    if arguments.json or arguments.explain:
        _explain(_journey(mount, arguments.pid), as_json=arguments.json)
    return status


def _whereabouts(mount: Path, pid: int) -> str:
    """What balancing chose: it may well be where the process was."""
    try:
        node = controlfile.read(controlfile.of_process(mount, pid, "where"))
    except OSError:
        return f"process {pid} has ended"
    return f"process {pid} runs {'at home' if node == '0' else f'on node {node}'}"


def _complain(text: str, status: int) -> int:
    print("migrate:", " ".join(text.split("\n")), file=sys.stderr)
    return status


# ---------------------------------------------------------------- what went wrong


def why_it_failed(error: OSError, mount: Path, pid: int, node: int) -> str:
    """One line for who asked."""
    to = {HOME: "its home", BALANCE: "any node"}.get(node, f"node {node}")
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return f"process {pid} is not yours: its user and root may move it"
        case errno.ENOENT | errno.ESRCH:
            return f"there is no process {pid}"
        case errno.EROFS:
            return f"process {pid} can't move: {_reasons(mount, pid, node)}"
        case errno.EHOSTDOWN:
            return f"process {pid} stays where it is: {to} is down or can't be reached"
        case errno.EINVAL:
            return f"{to} is not in the map of this cluster"
        case errno.ENOTCONN:
            return controlfile.MIGNODE_IS_OFF
        case errno.EAGAIN if node == BALANCE:
            return f"it is not known yet what process {pid} does, or how the nodes are; try again in some seconds"
        case errno.ENOSYS:
            what = "nothing chooses nodes" if node == BALANCE else "this version moves no processes"
            return f"process {pid} stays where it is: {what}"
    told = _journey(mount, pid)
    if told is not None and told.state is State.LOST:
        return f"process {pid} is lost: {told.reason}"
    reason = _why_it_stayed(mount, pid)
    if error.errno == errno.EBUSY and not reason:
        return f"process {pid} is on its way to another node already"
    if _has_ended(mount, pid):
        return f"process {pid} has ended"
    return f"process {pid} stays where it is: {reason or os.strerror(error.errno or errno.EIO)}"


def _has_ended(mount: Path, pid: int) -> bool:
    """Meanwhile: a guest's process may end of itself, and of a CRIU that is killed while its code runs inside."""
    try:
        controlfile.of_process(mount, pid, journey.FILE).stat()
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        pass
    return False


def _why_it_stayed(mount: Path, pid: int) -> str:
    """What its last journey says, if that has just failed."""
    told = _journey(mount, pid)
    return told.reason if told is not None and told.state is State.STAYED else ""


def _reasons(mount: Path, pid: int, node: int) -> str:
    with contextlib.suppress(OSError):
        if reasons := controlfile.read(controlfile.of_process(mount, pid, "cantmove")):
            return reasons
        if node == BALANCE and controlfile.read(controlfile.of_process(mount, pid, "lock")) == "1":
            return "it is locked, so balancing leaves it alone (echo 0 > /proc/PID/lock lets it)"
    return _why_it_stayed(mount, pid) or "the reason has just gone; try again"


# ---------------------------------------------------------------- how far it is, and how it was


def _journey(mount: Path, pid: int) -> Journey | None:
    try:
        return journey.understood(controlfile.read(controlfile.of_process(mount, pid, journey.FILE)))
    except OSError:
        return None


def _explain(told: Journey | None, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
        return
    if told is None:
        print("nothing is known of its way")
        return
    for stage in told.stages:
        _print_row(stage.name, stage.seconds, stage.bytes)
    total_s = sum(stage.seconds for stage in told.stages)
    _print_row(f"node {told.origin} to {told.target}: {told.state.value}", total_s, told.sent_bytes)
    _print_row("it did not run for", told.frozen_s)
    if told.reason:
        print(f"because {told.reason}")


def _print_row(name: str, seconds: float, amount: int = 0) -> None:
    print(f"{name:<32} {1000 * seconds:9.1f} ms  {_size(amount) if amount else '':>10}".rstrip())


def _size(amount: int) -> str:
    """Bytes, for people."""
    size, unit = float(amount), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


@contextlib.contextmanager
def _progress_shown(mount: Path, pid: int) -> Iterator[None]:
    """A bar on the terminal while it takes long."""
    if not sys.stderr.isatty():
        yield
        return
    is_over = threading.Event()
    shower = threading.Thread(target=_show_progress, args=(mount, pid, is_over), daemon=True)
    shower.start()
    try:
        yield
    finally:
        is_over.set()
        shower.join()


def _show_progress(mount: Path, pid: int, is_over: threading.Event) -> None:
    if is_over.wait(SHOWN_AFTER_S):
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"process {pid}", total=None)
        while not is_over.wait(LOOK_EVERY_S):
            told = _journey(mount, pid)
            if told is not None and told.state is State.UNDER_WAY:
                stage = told.stages[-1].name if told.stages else f"to node {told.target}"
                total = max(told.expected_bytes, told.sent_bytes) or None
                shown.update(task, description=f"process {pid}: {stage}", completed=told.sent_bytes, total=total)


if __name__ == "__main__":
    sys.exit(main())
