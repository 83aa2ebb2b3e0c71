"""omfs-admin where: on which node a path is for a process, or where each magic name leads it, and why.

The running mount decides (run_dir/mount.sock), from what it resolves programs' look-ups with; nothing is looked up
through it.  Here the path is made absolute, and links before the mount point are followed: `/tmp/x` may be
`/mfs/magic/tmp/x`.  Links behind it are the owners' and are left as they are.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio
from rich.table import Table

from omfs.cli.admin_options import DIGITS_MAX, console, printable, run_dir_of
from omfs.errors import ControlError
from omfs.net.control import NamesReply, WhereReply, ask

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SOCKET: Final = "mount.sock"
LINKS_MAX: Final = 40  # as the kernel
PID_MAX: Final = 1 << 22
R = TypeVar("R")

WHERE: Final = """\
Explain on which node PATH is for a process (PATH begins in this directory and may have a magic name in it), or where
each magic name leads the process PID.  A PATH that is only digits is written ./PATH.
Process ids are those that the mount sees.
Exit status: 0 shown, 1 PATH is not below the mount point or there is no such process, 3 no mount is running here.
"""


def add_commands(commands: Commands) -> None:
    """Define `where`."""
    raw = argparse.RawDescriptionHelpFormatter
    where = commands.add_parser("where", help="explain where a path leads", description=WHERE, formatter_class=raw)
    where.add_argument("what", metavar="PATH|PID", help="a path below the mount point, or a process")
    where.add_argument("-p", "--pid", metavar="PID", type=_pid, help="for this process (default: this command itself)")
    where.add_argument("--json", action="store_true", help="print JSON")
    where.set_defaults(run=_where, usage_error=where.error)


def _pid(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX or not 1 <= int(text) <= PID_MAX:
        raise argparse.ArgumentTypeError(f'"{text}" is not a process id')
    return int(text)


def _where(arguments: argparse.Namespace) -> int:
    what: str = arguments.what
    socket = run_dir_of(arguments) / SOCKET
    if what.isascii() and what.isdigit():
        if arguments.pid is not None:
            arguments.usage_error("--pid is for a PATH")
        try:
            pid = _pid(what)
        except argparse.ArgumentTypeError as error:
            raise ControlError(f"{error}; a file of this name is ./{what}") from None
        names = _shape(trio.run(_ask, socket, {"pid": pid}), NamesReply, socket)
        _show_names(names, as_json=arguments.json)
    else:
        found = _shape(trio.run(_ask_path, socket, what, arguments.pid or os.getpid()), WhereReply, socket)
        _show_path(found, as_json=arguments.json)
    return 0


async def _ask(socket: Path, request: dict[str, Any]) -> object:
    return await ask(socket, "where", **request)


async def _ask_path(socket: Path, path: str, pid: int) -> object:
    mount_point = (await ask(socket, "identify")).get("mount_point")
    if not isinstance(mount_point, str):
        raise ControlError(f"{socket}: the mount speaks another version: it does not say where it is")
    below = led_below(os.path.join(os.getcwd(), path), mount_point)
    try:
        below.encode()
    except UnicodeEncodeError:
        raise ControlError(f"{printable(path)}: only names in UTF-8 can be asked for") from None
    return await _ask(socket, {"path": below, "pid": pid})


def led_below(path: str, mount_point: str) -> str:
    """*path*, absolute, as it reaches the mount point; what is behind that is not touched.  ControlError."""
    here, left, links = "/", deque(path.split("/")), 0
    while left:
        name = left.popleft()
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        here = os.path.join(here, name)
        if here == mount_point:
            return os.path.join(here, *(name for name in left if name not in ("", ".")))
        try:
            target = os.readlink(here)
        except OSError:
            continue  # no link; what is not there leads nowhere
        links += 1
        if links > LINKS_MAX:
            raise ControlError(f"{printable(path)}: too many symbolic links")
        left.extendleft(reversed(target.split("/")))
        here = "/" if target.startswith("/") else os.path.dirname(here)
    raise ControlError(f"{printable(path)}: not below {mount_point}, so it is on this node for every process")


def _shape(reply: object, shape: type[R], socket: Path) -> R:
    try:
        return msgspec.convert(reply, shape)
    except msgspec.ValidationError as error:
        raise ControlError(f"{socket}: the mount speaks another version: {error}") from None


def _show_path(found: WhereReply, *, as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    _print_rows(
        ("NODE", "NAME", "PATH", "WHY"),
        [(str(found.node or "-"), found.name or "-", printable(found.path), found.why or "-")],
    )


def _show_names(found: NamesReply, *, as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    _print_rows(("NAME", "NODE", "WHY"), [(name, str(node), why) for name, (node, why) in found.names.items()])


def _print_json(found: msgspec.Struct) -> None:
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


def _print_rows(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)
