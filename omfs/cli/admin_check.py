"""omfs-admin check: gathers what the nodes say about themselves, runs the checks and shows the findings.

It asks the mount (about the other nodes) and omfs-export (about this one) through their control sockets, and reads
the certificates and the lease table of this node.  The checks are in checks.py and leasechecks.py; what holders have is
gathered by leasefacts.py and audit.py, and mended by mending.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import trio
from rich.table import Table

from omfs.cache.table import LeaseReader, read_boot_id
from omfs.cli.admin_options import console, printable, run_dir_of, settings_of
from omfs.cli.audit import SAMPLE, audit_facts
from omfs.cli.checks import (
    Certificate,
    ClusterFacts,
    Finding,
    LeaseFacts,
    Result,
    TableSession,
    run_checks,
)
from omfs.cli.leasechecks import AuditFacts, HeldFacts, Kind, run_lease_checks
from omfs.cli.leasefacts import guard_facts, holder_facts
from omfs.cli.mending import mend
from omfs.cli.objects import Objects
from omfs.cli.ownnode import OwnNode, ask_for
from omfs.config import Settings
from omfs.errors import ConfigError, ControlError, NotRunning, OmfsError
from omfs.net import tls
from omfs.net.control import DescribeReply, NodeTold
from omfs.wire import NodeDescribed

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_FOUND: Final = 1
EXIT_NOT_RUN: Final = 2

CHECK: Final = """\
Check that the nodes of the cluster fit together, and that the leases on this node's objects are in order:
  answers      every node is reached        map, protocol, software, dfsa   the same everywhere
  users, groups   each name has the same number (in /etc/passwd and /etc/group)
  clock        within 1 s of this node's    certificate   holds for 30 days more
  leases       this node's lease table against the holders that live
  guards       what others cache of its data against the kernel leases that keep native writers waiting
  holders      what it granted against what each holder believes
  audit        what others see of cached objects, attributes and data, against what they are
Nodes are compared with this one; the last four are about this node's own objects, so run it on each node.  It changes
nothing without --repair, which removes leases that nobody holds any more and has holders forget what they should not
have cached; they ask again when they need it.
Exit status: 0 all is well, 1 something was found, 2 it could not run (no mount or no omfs-export on this node).
"""


def add_commands(commands: Commands) -> None:
    """Define `check`."""
    raw = argparse.RawDescriptionHelpFormatter
    check = commands.add_parser("check", help="look for what is wrong", description=CHECK, formatter_class=raw)
    check.add_argument("--json", action="store_true", help="print JSON, every finding by itself")
    check.add_argument("--repair", action="store_true", help="end leases that are wrong")
    check.add_argument(
        "--sample", metavar="N", type=_sample, default=SAMPLE,
        help=f"objects audited on each other node, 0: none (default {SAMPLE})",
    )  # fmt: skip
    check.set_defaults(run=_check)


def _sample(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of objects')
    return int(text)


class Checked(NamedTuple):
    """What was gathered."""

    cluster: ClusterFacts
    held: HeldFacts

    def findings(self) -> list[Finding]:
        return [*run_checks(self.cluster), *run_lease_checks(self.held)]


def _check(arguments: argparse.Namespace) -> int:
    try:
        settings = settings_of(arguments)
        node = OwnNode(settings, run_dir_of(arguments))
        checked, removed = trio.run(_checked, node, arguments.sample, arguments.repair)
    except NotRunning as error:
        return _could_not(f"a mount and an omfs-export must run on this node ({error})")
    except OmfsError as error:
        return _could_not(str(error))
    findings = checked.findings()
    if arguments.json:
        _print_json(findings, removed)
    else:
        _print_table(findings, removed)
    return 0 if all(finding.result is Result.FINE for finding in findings) else EXIT_FOUND


async def _checked(node: OwnNode, sample: int, repair: bool) -> tuple[Checked, int | None]:
    """With *repair*: how all is afterwards, and the number of leases that were ended."""
    checked = await _gather_all(node, sample)
    if not repair:
        return checked, None
    removed = await mend(node, checked.cluster.leases, checked.held)
    return (await _gather_all(node, sample) if removed else checked), removed


async def _gather_all(node: OwnNode, sample: int) -> Checked:
    cluster = await gather(node)
    return Checked(cluster, await _held_facts(node, cluster, sample))


def _could_not(text: str) -> int:
    print("omfs-admin: could not check:", " ".join(text.split("\n")), file=sys.stderr)
    return EXIT_NOT_RUN


# ---------------------------------------------------------------- gathering


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


async def gather(node: OwnNode) -> ClusterFacts:
    """Ask everybody.  NotRunning, ControlError."""
    own = (await ask_for(node.export, DescribedHere, "describe")).described
    others = {one.node_id: one for one in (await ask_for(node.mount, DescribeReply, "describe")).nodes}
    others.pop(own.node_id, None)  # dfsa=0: the mount has a peer for its own node too
    if differ := [one.node_id for one in others.values() if _accounts_differ(own, one)]:
        own = (await ask_for(node.export, DescribedHere, "describe", accounts=True)).described
        for one in (await ask_for(node.mount, DescribeReply, "describe", accounts=True, nodes=differ)).nodes:
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
    before = await ask_for(node.export, ExportHere, "status")
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
    after = await ask_for(node.export, ExportHere, "status")
    is_quiet = before.leases == after.leases and not after.leases.unwritten
    silent_s = {bytes.fromhex(one.key): one.silent_s for one in (*before.sessions, *after.sessions)}
    ghosts = frozenset(bytes.fromhex(key) for key in (*before.leases.ghosts, *after.leases.ghosts))
    return LeaseFacts(sessions, silent_s, ghosts, after.leases.held if is_quiet else None, node.settings.lease_term_s)


async def _held_facts(node: OwnNode, cluster: ClusterFacts, sample: int) -> HeldFacts:
    """What holders that answer say of this node's objects.  Who does not answer is a finding already."""
    holders = [one.node_id for one in cluster.others if one.described is not None]
    if not cluster.own.standing.dfsa:
        holders.append(cluster.own.node_id)  # its own mount is a holder like the others
    guards = await guard_facts(node)
    told = await holder_facts(node, holders)
    named = {handle for guard in guards for handle in guard.handles} | {
        one.handle for holder in told for one in holder.found if one.kind is not Kind.UNUSED
    }
    audits: tuple[AuditFacts, ...] | None = None
    names: dict[bytes, str] = {}
    if named or (sample and holders):
        with Objects(node.settings) as objects:
            if sample:
                progress = _Progress()
                audits = await audit_facts(node, objects, holders, sample, progress.show)
                progress.end()
            named |= {one.handle for audit in audits or () for one in audit.stale}
            for handle in named:
                if path := objects.find(handle).path:
                    names[handle] = printable(path)
    return HeldFacts(cluster.own.node_id, guards, told, audits, names)


class _Progress:
    """The objects audited so far, on a terminal."""

    def __init__(self) -> None:
        self._compared: dict[int, int] = {}

    def show(self, node_id: int, compared: int) -> None:
        self._compared[node_id] = compared
        self._print(f"{sum(self._compared.values())} objects audited")

    def end(self) -> None:
        self._print("")

    @staticmethod
    def _print(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text:<40}\r", end="", file=sys.stderr, flush=True)


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
