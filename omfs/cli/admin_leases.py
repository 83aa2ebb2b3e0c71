"""omfs-admin leases and drop: who holds what of this node's objects, and taking it back.

`leases` reads the lease table in state_dir, beside a running omfs-export or without one; `drop` asks the running
omfs-export (run_dir/export.sock).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio
from rich.table import Table

from omfs.cache.table import DIRECTORY, Lease, LeaseReader, SessionNote, read_boot_id
from omfs.cli.admin_options import console, node_number, printable, run_dir_of, settings_of
from omfs.cli.objects import Found, Objects
from omfs.config import Settings
from omfs.errors import ConfigError, ControlError, NotRunning
from omfs.net.control import Arguments, ask
from omfs.wiretypes import Mode

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SOCKET: Final = "export.sock"
ROWS_SHOWN: Final = 100
EXIT_NOT_RUNNING: Final = 3
UNITS: Final = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (60 * 2, 60, "min"), (0, 1, "s"))

LEASES: Final = """\
Show which nodes hold leases on objects of this node: what they cache and have not given back.
PATH: only on this object (with -r: and on everything below it, as far as the kernel knows the names).
An object whose name is not known is shown by its handle.
Exit status: 0 shown (nothing too), 1 there is no lease table, or no such PATH.
"""

DROP: Final = """\
Recall leases: on one object of this node (PATH), or all that a node holds on objects of this node (NODE).
A PATH that is only digits is written ./PATH.  Holders ask again when they need the object; no data are lost.
Exit status: 0 recalled (nothing too), 1 no such path or node, 3 no omfs-export is running here.
"""


def add_commands(commands: Commands) -> None:
    """Define `leases` and `drop`."""
    raw = argparse.RawDescriptionHelpFormatter
    leases = commands.add_parser("leases", help="show who caches what", description=LEASES, formatter_class=raw)
    leases.add_argument("path", metavar="PATH", nargs="?", help="only of this object")
    leases.add_argument("-r", "--recursive", action="store_true", help="PATH and everything below it")
    leases.add_argument("--limit", metavar="N", type=_limit, help=f"rows shown, 0 = all (default {ROWS_SHOWN})")
    leases.add_argument("--json", action="store_true", help="print JSON, all rows unless --limit says otherwise")
    leases.set_defaults(run=_leases, usage_error=leases.error)
    drop = commands.add_parser("drop", help="take leases back", description=DROP, formatter_class=raw)
    drop.add_argument("what", metavar="PATH|NODE", help="an object of this node, or a node's id")
    drop.set_defaults(run=_drop)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of rows')
    return int(text)


# ---------------------------------------------------------------- leases


class Row(NamedTuple):
    session: SessionNote
    lease: Lease
    found: Found | None  # None: nobody looked yet


def _leases(arguments: argparse.Namespace) -> int:
    if arguments.recursive and arguments.path is None:
        arguments.usage_error("-r is for a PATH")
    settings = settings_of(arguments)
    limit = arguments.limit
    if limit is None:
        limit = 0 if arguments.json else ROWS_SHOWN
    with _open_table(settings) as table, Objects(settings) as objects:
        sessions = {note.key: note for note in table.sessions()}
        shown: list[Row] = []
        more = 0
        for row in _chosen(table, sessions, objects, arguments.path, arguments.recursive):
            if limit and len(shown) == limit:
                more += 1
            else:
                shown.append(row._replace(found=row.found or objects.find(row.lease.handle)))
        is_old = table.boot_id != read_boot_id()
    if is_old:
        print("omfs-admin: note: these leases are of before the last boot; nobody holds them", file=sys.stderr)
    if arguments.json:
        print(
            json.dumps({"boot_id": table.boot_id, "leases": [_as_json(row) for row in shown], "more": more}, indent=2)
        )
    else:
        _print_table(shown, more)
    return 0


def _open_table(settings: Settings) -> LeaseReader:
    path = Path(settings.state_dir) / DIRECTORY
    try:
        return LeaseReader.read(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no lease table; has omfs-export run here?") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _chosen(
    table: LeaseReader, sessions: dict[bytes, SessionNote], objects: Objects, path: str | None, recursive: bool
) -> Iterator[Row]:
    target = None if path is None else objects.target(path)
    for lease in table.leases():
        session = sessions.get(lease.session)
        if session is None:  # it began after we read the sessions
            session = SessionNote(lease.session, 0, "", 0)
        if target is None:
            yield Row(session, lease, None)
        elif recursive:
            found = objects.find(lease.handle)
            if found.path and objects.is_below(found.path, target):
                yield Row(session, lease, found)
        elif objects.is_target(lease.handle, target):
            yield Row(session, lease, None)


def _as_json(row: Row) -> dict[str, object]:
    assert row.found is not None
    return {
        "node_id": row.session.node_id,
        "session": row.lease.session.hex(),
        "mode": row.lease.mode.name.lower(),
        "serial": row.lease.serial,
        "granted_at_ns": row.lease.granted_at_ns,
        "handle": row.lease.handle.hex(),
        "path": printable(row.found.path) or None,
        "instead": row.found.instead or None,
    }


def _print_table(rows: list[Row], more: int) -> None:
    if not rows:
        print("no leases")
        return
    now_ns = time.time_ns()
    table = Table(box=None, pad_edge=False)
    table.add_column("NODE", no_wrap=True)
    table.add_column("MODE", no_wrap=True)
    table.add_column("AGE", justify="right", no_wrap=True)
    table.add_column("OBJECT", overflow="fold")
    for row in rows:
        assert row.found is not None
        table.add_row(
            str(row.session.node_id or "?"),
            _mode(row.lease.mode),
            _age(now_ns - row.lease.granted_at_ns),
            printable(row.found.path) or f"{row.lease.handle.hex()} ({row.found.instead})",
        )
    console().print(table)
    if more:
        print(f"and {more} more (--limit 0 shows all)")


def _mode(mode: Mode) -> str:
    return mode.name.lower()


def _age(age_ns: int) -> str:
    age_s = max(0, age_ns // 1_000_000_000)
    return next(f"{age_s // unit} {name}" for least, unit, name in UNITS if age_s >= least)


# ---------------------------------------------------------------- drop


def _drop(arguments: argparse.Namespace) -> int:
    what: str = arguments.what
    request: dict[str, Any]
    if what.isascii() and what.isdigit():
        try:
            request, shown = {"node": node_number(what)}, f"node {what}"
        except argparse.ArgumentTypeError as error:
            raise ControlError(f"{error}; a file of this name is ./{what}") from None
    else:
        request, shown = {"path": _checked_path(what)}, what
    socket = run_dir_of(arguments) / SOCKET
    try:
        reply = trio.run(_ask_drop, socket, request)
    except NotRunning as error:
        print(f"omfs-admin: no omfs-export is running on this node ({error})", file=sys.stderr)
        return EXIT_NOT_RUNNING
    recalled = reply.get("recalled")
    if not isinstance(recalled, int):
        raise ControlError(f"{socket}: omfs-export speaks another version: {str(reply)[:200]}")
    print(f"{shown}: {recalled} {'lease' if recalled == 1 else 'leases'} recalled")
    return 0


async def _ask_drop(socket: Path, request: dict[str, Any]) -> Arguments:
    return await ask(socket, "drop", **request)


def _checked_path(path: str) -> str:
    """The absolute path without links on the way (the last name is the object itself).  ControlError."""
    try:
        os.lstat(path)
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}") from None
    head, tail = os.path.split(os.path.abspath(path))
    whole = os.path.join(os.path.realpath(head), tail)
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise ControlError(f"{printable(path)}: only names in UTF-8 can be dropped; drop the node instead") from None
    return whole
