"""What omfs-admin check looks for: one function per check, from the gathered facts to findings.

Nodes are compared with the one that asks: where that is the odd one out, all others differ from it.  A check says
something about every node that it could look at, also that all is well.  Pure; gathered and shown by
admin_check.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from omfs.net.control import NodeTold
from omfs.wire import NodeDescribed

CLOCK_WARNING_S: Final = 1.0  # make(1) and rsync(1) begin to be misled
CLOCK_FAULT_S: Final = 60.0
CERTIFICATE_WARNING_S: Final = 30 * 86400
LAPSE_MARGIN_S: Final = 5.0  # within it an owner ends what is over by itself (export/leasing.py: TEND_INTERVAL_S)
NAMES_SHOWN: Final = 3


class Result(enum.Enum):
    FINE = "ok"
    WARNING = "warning"
    FAULT = "FAULT"


class Finding(NamedTuple):
    """*text* says what was found, *remedy* what to do; both are empty or short where all is well."""

    check: str
    node_id: int
    result: Result
    text: str = ""
    remedy: str = ""


class Certificate(NamedTuple):
    """A certificate file of this node; *fault*: why it can't be read."""

    file: str
    expires_s: int
    fault: str = ""


class TableSession(NamedTuple):
    """A session in the lease table, and on how many objects it holds a lease."""

    key: bytes
    node_id: int
    leases: int


@dataclass(frozen=True)
class LeaseFacts:
    """The lease table of this node beside what its omfs-export says.

    *live*: sessions that it has, and for how long each was silent; *ghosts*: ended ones whose term is not over yet;
    *held*: leases it has in memory, None where they changed while the table was read.
    """

    table: tuple[TableSession, ...]
    live: dict[bytes, float | None]
    ghosts: frozenset[bytes]
    held: int | None
    term_s: float


@dataclass(frozen=True)
class ClusterFacts:
    """Everything the checks look at; *leases* is None where this node has no table of this boot."""

    own: NodeDescribed
    others: tuple[NodeTold, ...]
    certificates: tuple[Certificate, ...]
    now_s: float
    leases: LeaseFacts | None

    def described(self) -> Iterator[NodeDescribed]:
        """The other nodes that answered."""
        return (node.described for node in self.others if node.described is not None)


Check: TypeAlias = Callable[[ClusterFacts], Iterator[Finding]]


def run_checks(facts: ClusterFacts) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(facts)]


# ---------------------------------------------------------------- the nodes side by side


def check_answers(facts: ClusterFacts) -> Iterator[Finding]:
    name = "answers"
    yield Finding(name, facts.own.node_id, Result.FINE)
    for node in facts.others:
        if node.described is not None:
            yield Finding(name, node.node_id, Result.FINE)
        elif node.state == "up":
            yield Finding(name, node.node_id, Result.WARNING, "connected, but slow to answer", "check it again")
        elif node.state == "refused":
            yield Finding(name, node.node_id, Result.FAULT, node.reason, "as it says, then check again")
        else:
            text = f"{node.state}: {node.reason}" if node.reason else node.state
            yield Finding(name, node.node_id, Result.FAULT, text, "is it running, and can this node reach it?")


def check_map(facts: ClusterFacts) -> Iterator[Finding]:
    return _alike(
        facts, "map", lambda node: node.standing.map_digest.hex()[:16], Result.FAULT,
        "install the same map on both and reload (SIGHUP)",
    )  # fmt: skip


def check_protocol(facts: ClusterFacts) -> Iterator[Finding]:
    return _alike(facts, "protocol", lambda node: str(node.version), Result.FAULT, "install the same version on both")


def check_software(facts: ClusterFacts) -> Iterator[Finding]:
    return _alike(facts, "software", lambda node: node.software, Result.WARNING, "install the same version on both")


def check_dfsa(facts: ClusterFacts) -> Iterator[Finding]:
    return _alike(
        facts, "dfsa", lambda node: f"dfsa={int(node.standing.dfsa)}", Result.FAULT, "mount all nodes with the same"
    )


def _alike(
    facts: ClusterFacts, name: str, value_of: Callable[[NodeDescribed], str], otherwise: Result, remedy: str
) -> Iterator[Finding]:
    own = value_of(facts.own)
    yield Finding(name, facts.own.node_id, Result.FINE)
    for node in facts.described():
        if (value := value_of(node)) == own:
            yield Finding(name, node.node_id, Result.FINE)
        else:
            yield Finding(name, node.node_id, otherwise, f"{value}, here {own}", remedy)


def check_users(facts: ClusterFacts) -> Iterator[Finding]:
    own = facts.own.standing
    yield Finding("users", facts.own.node_id, Result.FINE)
    for node in facts.described():
        theirs = node.standing
        yield _compare("users", node.node_id, own.users_digest == theirs.users_digest, own.users, theirs.users)


def check_groups(facts: ClusterFacts) -> Iterator[Finding]:
    own = facts.own.standing
    yield Finding("groups", facts.own.node_id, Result.FINE)
    for node in facts.described():
        theirs = node.standing
        yield _compare("groups", node.node_id, own.groups_digest == theirs.groups_digest, own.groups, theirs.groups)


Accounts: TypeAlias = Sequence[tuple[bytes, int]]


def _compare(name: str, node_id: int, is_alike: bool, ours: Accounts, theirs: Accounts) -> Finding:
    """A name with two numbers, or a number with two names, gives files to the wrong person; a missing name does not."""
    if is_alike:
        return Finding(name, node_id, Result.FINE)
    if not ours or not theirs:
        return Finding(name, node_id, Result.WARNING, "they differ, too many to tell which", "compare them by hand")
    wrong = _contradictions(dict(ours), dict(theirs))
    if wrong:
        return Finding(name, node_id, Result.FAULT, few(wrong), "give each name the same number on all nodes")
    here, there = set(ours), set(theirs)
    missing = [f"{_shown(name)} is not there" for name, _ in sorted(here - there)]
    missing += [f"{_shown(name)} is not here" for name, _ in sorted(there - here)]
    return Finding(name, node_id, Result.WARNING, few(missing), "make them there too, with the same number")


def _contradictions(ours: dict[bytes, int], theirs: dict[bytes, int]) -> list[str]:
    found = [
        f"{_shown(name)} is {theirs[name]}, here {number}"
        for name, number in ours.items()
        if theirs.get(name, number) != number
    ]
    by_number: dict[int, list[bytes]] = {}
    for name, number in theirs.items():
        by_number.setdefault(number, []).append(name)
    for name, number in ours.items():
        others = by_number.get(number, [])
        if name not in theirs and others and not any(ours.get(other) == number for other in others):
            found.append(f"{number} is {_shown(others[0])}, here {_shown(name)}")
    return found


def few(texts: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(texts) - NAMES_SHOWN
    return "; ".join(texts[:NAMES_SHOWN]) + (f"; {more} more" if more > 0 else "")


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def check_clocks(facts: ClusterFacts) -> Iterator[Finding]:
    for node in facts.others:
        if node.described is None:
            continue
        middle_ns = (node.asked_ns + node.answered_ns) // 2
        ahead_s = (node.described.clock_ns - middle_ns) / 1e9
        sure_s = abs(ahead_s) - (node.answered_ns - node.asked_ns) / 2e9  # the answer came at any moment in between
        text = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this node"
        if sure_s > CLOCK_FAULT_S:
            yield Finding("clock", node.node_id, Result.FAULT, text, "set the clocks by NTP (chrony)")
        elif sure_s > CLOCK_WARNING_S:
            yield Finding("clock", node.node_id, Result.WARNING, text, "set the clocks by NTP (chrony)")
        else:
            yield Finding("clock", node.node_id, Result.FINE)


# ---------------------------------------------------------------- certificates


def check_certificates(facts: ClusterFacts) -> Iterator[Finding]:
    """Files of this node, what its daemon uses, and what the others say of theirs."""
    own_id = facts.own.node_id
    for certificate in facts.certificates:
        if certificate.fault:
            yield Finding("certificate", own_id, Result.FAULT, certificate.fault, "omfs-admin cert --help")
        else:
            yield _expiry(facts, own_id, certificate.expires_s, f"{certificate.file} ")
    in_use_s = facts.own.standing.certificate_expires_s
    if in_use_s and all(certificate.expires_s != in_use_s for certificate in facts.certificates):
        text = f"the one in use expires in {_days(facts, in_use_s)}, another lies ready"
        yield Finding("certificate", own_id, Result.WARNING, text, "reload (SIGHUP)")
    for node in facts.described():
        if node.standing.certificate_expires_s:
            yield _expiry(facts, node.node_id, node.standing.certificate_expires_s, "")


def _expiry(facts: ClusterFacts, node_id: int, expires_s: int, what: str) -> Finding:
    remedy = "renew it (omfs-admin cert --help)"
    if expires_s <= facts.now_s:
        return Finding("certificate", node_id, Result.FAULT, f"{what}has expired", remedy)
    if expires_s - facts.now_s < CERTIFICATE_WARNING_S:
        text = f"{what}expires in {_days(facts, expires_s)}"
        return Finding("certificate", node_id, Result.WARNING, text, remedy)
    return Finding("certificate", node_id, Result.FINE)


def _days(facts: ClusterFacts, expires_s: int) -> str:
    days = int((expires_s - facts.now_s) // 86400)
    return "1 day" if days == 1 else f"{days} days"


# ---------------------------------------------------------------- leases


def orphaned_sessions(leases: LeaseFacts) -> list[TableSession]:
    """Those that no holder can still use: omfs-export has no such session, nor waits for the end of its term."""
    return [one for one in leases.table if one.leases and one.key not in leases.live and one.key not in leases.ghosts]


def check_leases(facts: ClusterFacts) -> Iterator[Finding]:
    """The lease table against the sessions that live."""
    leases = facts.leases
    if leases is None:
        return
    found = [*_orphans(leases, facts.own.node_id), *_lapsed(leases, facts.own.node_id)]
    in_table = sum(one.leases for one in leases.table)
    if not found and leases.held is not None and leases.held != in_table:
        text = f"{in_table} in the table, {leases.held} in memory"
        remedy = "restart omfs-export (nothing is lost), and report it"
        found.append(Finding("leases", facts.own.node_id, Result.FAULT, text, remedy))
    yield from found or [Finding("leases", facts.own.node_id, Result.FINE)]


def _orphans(leases: LeaseFacts, node_id: int) -> Iterator[Finding]:
    for one in orphaned_sessions(leases):
        text = f"{one.leases} of a session of node {one.node_id} that is no more ({one.key.hex()[:8]})"
        yield Finding("leases", node_id, Result.FAULT, text, "omfs-admin check --repair")


def _lapsed(leases: LeaseFacts, node_id: int) -> Iterator[Finding]:
    for one in leases.table:
        silent_s = leases.live.get(one.key)
        if one.leases and silent_s is not None and silent_s > leases.term_s + LAPSE_MARGIN_S:
            text = f"{one.leases} of node {one.node_id}, not heard for {silent_s:.0f} s: their term is over"
            yield Finding("leases", node_id, Result.FAULT, text, "restart omfs-export (nothing is lost), and report it")


CHECKS: Final[tuple[Check, ...]] = (
    check_answers, check_map, check_protocol, check_software, check_dfsa, check_users, check_groups, check_clocks,
    check_certificates, check_leases,
)  # fmt: skip
