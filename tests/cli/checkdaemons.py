"""What the tests of omfs-admin check ask: a mount and an export that tell what they are told to tell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from omfs import wire
from omfs.cache.parts import is_in_part
from omfs.cli import admin
from omfs.export.handles import load_key
from omfs.net.authority import install_credentials, make_authority
from omfs.net.control import (
    Arguments,
    BrokenGuard,
    DescribeReply,
    GuardsReply,
    HeldAuditedReply,
    HeldToldReply,
    NodeTold,
    Owned,
    OwnedReply,
)
from omfs.net.tls import NODE_FILE, read_certificate
from tests.cli.test_admin_status import mount

NOW_S = 1_900_000_000.0
DAY_S = 86400
ANNA, BERT = b"a" * 16, b"b" * 16
STANDING = wire.Standing(
    map_digest=b"m" * 32, dfsa=True, certificate_expires_s=int(NOW_S) + 400 * DAY_S,
    users_digest=b"u", groups_digest=b"g",
)  # fmt: skip


def node(node_id: int, **changed: Any) -> wire.NodeDescribed:
    standing = {name: changed.pop(name) for name in list(changed) if name in wire.Standing.__struct_fields__}
    described = wire.NodeDescribed(
        software="omfs 0.1.0", version=2, node_id=node_id, hostname=f"n{node_id}", uptime_s=9.0,
        clock_ns=int(NOW_S * 1e9), exports=(), sessions=0, requests=0, bytes_in=0, bytes_out=0,
        standing=msgspec.structs.replace(STANDING, **standing),
    )  # fmt: skip
    return msgspec.structs.replace(described, **changed)


def nothing() -> None:
    """Where nothing is to happen."""


class Daemons:
    """A mount and an export that tell what they are told to tell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "omfs.toml"
        self.config.write_text(f'run_dir = "{path}"\nstate_dir = "{path}"\nconfig_dir = "{path}"\n')
        expires_s = int(time.time()) + 400 * DAY_S
        self.own = node(1, clock_ns=time.time_ns(), certificate_expires_s=expires_s)
        self.others = [node(2, clock_ns=time.time_ns(), certificate_expires_s=expires_s)]
        self.accounts: dict[int, tuple[tuple[bytes, int], ...]] = {}
        self.asked: list[tuple[str, Arguments]] = []
        self.sessions: list[dict[str, object]] = []
        self.leases: dict[str, object] = {}
        self.on_forget: Callable[[list[bytes]], int] = len
        load_key(path)
        self.broken: list[BrokenGuard] = []
        self.owned: list[Owned] = []
        self.held: dict[int, wire.HeldTold | str] = {}  # by node; or why it tells nothing
        self.audited: dict[int, list[wire.HeldAudited] | str] = {}  # one for each question, the last again and again
        self.dropped: list[Arguments] = []
        self.on_audit: Callable[[Arguments], None] = lambda _: None
        self.on_drop = self.on_guards = self.on_held = nothing  # called before each answer

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with (
            mount(self.path, describe=self.describe_nodes, ask_held=self.ask_held, ask_audit=self.ask_audit),
            mount(
                self.path,
                socket="export.sock",
                describe=self.describe,
                status=self.status,
                forget=self.forget,
                guards=self.guards,
                owned=self.tell_owned,
                drop=self.drop,
            ),
        ):
            yield

    def with_accounts(self, one: wire.NodeDescribed, arguments: Arguments) -> wire.NodeDescribed:
        if not arguments.get("accounts"):
            return one
        users = self.accounts[one.node_id]
        return msgspec.structs.replace(one, standing=msgspec.structs.replace(one.standing, users=users))

    async def describe(self, arguments: Arguments) -> object:
        self.asked.append(("export", arguments))
        return {"described": self.with_accounts(self.own, arguments)}

    async def describe_nodes(self, arguments: Arguments) -> object:
        self.asked.append(("mount", arguments))
        wanted = arguments.get("nodes", [one.node_id for one in self.others])
        nodes = [  # asked and answered when their clocks stood still: a busy machine is no difference of clocks
            NodeTold(
                one.node_id, "up", "", self.with_accounts(one, arguments), one.clock_ns - 1000, one.clock_ns + 1000
            )
            for one in self.others
            if one.node_id in wanted
        ]
        return DescribeReply(1, tuple(nodes))

    async def status(self, _: Arguments) -> object:
        return {"node_id": 1, "sessions": self.sessions, "leases": self.leases}

    async def forget(self, arguments: Arguments) -> object:
        return {"removed": self.on_forget([bytes.fromhex(key) for key in arguments["sessions"]])}

    async def guards(self, _: Arguments) -> object:
        self.on_guards()
        return GuardsReply(tuple(self.broken))

    async def tell_owned(self, arguments: Arguments) -> object:
        part, parts = arguments["part"], arguments["parts"]
        return OwnedReply(tuple(one for one in self.owned if is_in_part(one.handle, part, parts)))

    async def ask_held(self, arguments: Arguments) -> object:
        self.on_held()
        told = self.held.get(arguments["node"], wire.HeldTold(b"", (), is_cut=False))
        if isinstance(told, str):
            return HeldToldReply(None, told)
        part, parts = arguments["part"], arguments["parts"]
        leases = tuple(one for one in told.leases if is_in_part(one.handle, part, parts))
        return HeldToldReply(wire.HeldTold(told.session, leases[:4], is_cut=len(leases) > 4))

    async def ask_audit(self, arguments: Arguments) -> object:
        self.on_audit(arguments)
        told = self.audited.get(arguments["node"], [wire.HeldAudited((), 0, at_end=True)])
        if isinstance(told, str):
            return HeldAuditedReply(None, told)
        return HeldAuditedReply(told.pop(0) if len(told) > 1 else told[0])

    async def drop(self, arguments: Arguments) -> object:
        self.dropped.append(arguments)
        self.on_drop()
        return {"recalled": len(arguments.get("handles", ["all"]))}


def make_daemons(path: Path) -> Daemons:
    """Of a cluster in which all is well."""
    made = Daemons(path)
    authority = make_authority(path, force=False)
    install_credentials(path, authority.issue(1, 400))
    expires_s = int(read_certificate(path / NODE_FILE).not_valid_after_utc.timestamp())
    made.own = msgspec.structs.replace(
        made.own, standing=msgspec.structs.replace(made.own.standing, certificate_expires_s=expires_s)
    )
    return made


def check(daemons: Daemons, *arguments: str) -> int:
    """The exit status of omfs-admin check."""
    return admin.main(["check", "--config", str(daemons.config), *arguments])
