"""omfs-admin check: gathers what the nodes say about themselves, runs the checks (checks.py) and shows the findings.

It asks the mount (about the other nodes) and omfs-export (about this one) through their control sockets, and reads
the certificates and the lease table of this node.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import trio
from rich.table import Table

from omfs.cache.table import DIRECTORY, LeaseReader, read_boot_id
from omfs.cli.admin_options import console, run_dir_of, settings_of
from omfs.cli.checks import (
    Certificate,
    ClusterFacts,
    Finding,
    LeaseFacts,
    Result,
    TableSession,
    orphaned_sessions,
    run_checks,
)
from omfs.config import Settings
from omfs.errors import ConfigError, ControlError, NotRunning, OmfsError
from omfs.net import tls
from omfs.net.control import DescribeReply, NodeTold, ask
from omfs.wire import NodeDescribed

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_FOUND: Final = 1
EXIT_NOT_RUN: Final = 2
R = TypeVar("R")

CHECK: Final = """\
Check that the nodes of the cluster fit together, and that this node's leases are in order:
  answers      every node is reached        map, protocol, software, dfsa   the same everywhere
  users, groups   each name has the same number (in /etc/passwd and /etc/group)
  clock        within 1 s of this node's    certificate   holds for 30 days more
  leases       this node's lease table against the holders that live
Nodes are compared with this one.  It changes nothing without --repair, which removes leases from the table that nobody
holds any more.
Exit status: 0 all is well, 1 something was found, 2 it could not run (no mount or no omfs-export on this node).
"""


def add_commands(commands: Commands) -> None:
    """Define `check`."""
    raw = argparse.RawDescriptionHelpFormatter
    check = commands.add_parser("check", help="look for what is wrong", description=CHECK, formatter_class=raw)
    check.add_argument("--json", action="store_true", help="print JSON, every finding by itself")
    check.add_argument("--repair", action="store_true", help="remove leases that nobody holds any more")
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    try:
        settings = settings_of(arguments)
        node = OwnNode(settings, run_dir_of(arguments))
        removed = trio.run(_repair, node) if arguments.repair else None
        findings = run_checks(trio.run(gather, node))
    except NotRunning as error:
        return _could_not(f"a mount and an omfs-export must run on this node ({error})")
    except OmfsError as error:
        return _could_not(str(error))
    if arguments.json:
        _print_json(findings, removed)
    else:
        _print_table(findings, removed)
    return 0 if all(finding.result is Result.FINE for finding in findings) else EXIT_FOUND


def _could_not(text: str) -> int:
    print("omfs-admin: could not check:", " ".join(text.split("\n")), file=sys.stderr)
    return EXIT_NOT_RUN


# ---------------------------------------------------------------- gathering


@dataclass(frozen=True)
class OwnNode:
    """Where this node's daemons and files are."""

    settings: Settings
    run_dir: Path

    @property
    def mount(self) -> Path:
        return self.run_dir / "mount.sock"

    @property
    def export(self) -> Path:
        return self.run_dir / "export.sock"

    @property
    def table(self) -> Path:
        return Path(self.settings.state_dir) / DIRECTORY


class DescribedHere(msgspec.Struct):
    """Answer of omfs-export to "describe"."""

    described: NodeDescribed


class SessionHere(msgspec.Struct):
    key: str
    silent_s: float | None = None


class LeasesHere(msgspec.Struct):
    held: int | None = None
    grants: int = 0
    unwritten: int = 0  # changes that the table does not have yet
    ghosts: tuple[str, ...] = ()


class ExportHere(msgspec.Struct):
    """What of omfs-export's status the checks need."""

    sessions: tuple[SessionHere, ...]
    leases: LeasesHere = msgspec.field(default_factory=LeasesHere)


async def _ask(path: Path, shape: type[R], command: str, **arguments: Any) -> R:
    reply = await ask(path, command, **arguments)
    try:
        return msgspec.convert(reply, shape)
    except msgspec.ValidationError as error:
        raise ControlError(f"{path}: the daemon speaks another version: {error}") from None


async def gather(node: OwnNode) -> ClusterFacts:
    """Ask everybody.  NotRunning, ControlError."""
    own = (await _ask(node.export, DescribedHere, "describe")).described
    others = {one.node_id: one for one in (await _ask(node.mount, DescribeReply, "describe")).nodes}
    others.pop(own.node_id, None)  # dfsa=0: the mount has a peer for its own node too
    if differ := [one.node_id for one in others.values() if _accounts_differ(own, one)]:
        own = (await _ask(node.export, DescribedHere, "describe", accounts=True)).described
        for one in (await _ask(node.mount, DescribeReply, "describe", accounts=True, nodes=differ)).nodes:
            if one.described is not None:
                others[one.node_id] = one
    return ClusterFacts(
        own, tuple(others.values()), _certificates(node.settings), time.time(), await _lease_facts(node)
    )


def _accounts_differ(own: NodeDescribed, other: NodeTold) -> bool:
    if other.described is None:
        return False
    ours, theirs = own.standing, other.described.standing
    return (ours.users_digest, ours.groups_digest) != (theirs.users_digest, theirs.groups_digest)


def _certificates(settings: Settings) -> tuple[Certificate, ...]:
    if settings.sec != "tls":
        return ()
    found = []
    for name in (tls.CA_FILE, tls.NODE_FILE):
        path = Path(settings.config_dir) / name
        try:
            expires = tls.read_certificate(path).not_valid_after_utc
            found.append(Certificate(str(path), int(expires.timestamp())))
        except ConfigError as error:
            found.append(Certificate(str(path), 0, str(error)))
    return tuple(found)


async def _lease_facts(node: OwnNode) -> LeaseFacts | None:
    """The table, read between two looks at the sessions: who began or ended meanwhile is taken for live."""
    before = await _ask(node.export, ExportHere, "status")
    try:
        with LeaseReader.read(node.table) as table:
            if table.boot_id != read_boot_id():
                return None
            counts = Counter(lease.session for lease in table.leases())
            sessions = tuple(TableSession(one.key, one.node_id, counts[one.key]) for one in table.sessions())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ControlError(str(error.strerror)) from None
    after = await _ask(node.export, ExportHere, "status")
    is_quiet = before.leases == after.leases and not after.leases.unwritten
    silent_s = {bytes.fromhex(one.key): one.silent_s for one in (*before.sessions, *after.sessions)}
    ghosts = frozenset(bytes.fromhex(key) for key in (*before.leases.ghosts, *after.leases.ghosts))
    return LeaseFacts(sessions, silent_s, ghosts, after.leases.held if is_quiet else None, node.settings.lease_term_s)


async def _repair(node: OwnNode) -> int:
    """Have omfs-export forget sessions that are no more (it looks again whether they are); leases removed."""
    leases = await _lease_facts(node)
    orphans = orphaned_sessions(leases) if leases else []
    if not orphans:
        return 0
    reply = await ask(node.export, "forget", sessions=[one.key.hex() for one in orphans])
    removed = reply.get("removed")
    if not isinstance(removed, int):
        raise ControlError(f"{node.export}: the daemon speaks another version: {str(reply)[:200]}")
    return removed


# ---------------------------------------------------------------- showing


def _print_json(findings: Sequence[Finding], removed: int | None) -> None:
    rows = [finding._replace(result=finding.result.value)._asdict() for finding in findings]  # type: ignore[arg-type]
    print(json.dumps({"findings": rows, "removed_leases": removed}, indent=2))


def _print_table(findings: Sequence[Finding], removed: int | None) -> None:
    """A row for all nodes where a check is well, one for each fault."""
    table = Table(box=None, pad_edge=False)
    table.add_column("CHECK", no_wrap=True)
    table.add_column("NODE", overflow="fold")
    table.add_column("RESULT", overflow="fold")
    table.add_column("WHAT TO DO", overflow="fold")
    for check in dict.fromkeys(finding.check for finding in findings):
        mine = [finding for finding in findings if finding.check == check]
        wrong = [finding for finding in mine if finding.result is not Result.FINE]
        fine = {finding.node_id for finding in mine} - {finding.node_id for finding in wrong}
        if fine:
            table.add_row(check, _ranges(sorted(fine)), Result.FINE.value, "")
        for finding in wrong:
            table.add_row(check, str(finding.node_id), f"{finding.result.value}: {finding.text}", finding.remedy)
    console().print(table)
    if removed is not None:
        print(f"repair: {removed} {'lease' if removed == 1 else 'leases'} removed")


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
