"""omfs-admin status and ping: what the running mount knows about the nodes, and how fast they answer.

Both ask the mount's control socket (run_dir/mount.sock); neither opens a connection to a node itself, so what
they show is what programs under /mfs experience.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio
from rich.table import Table

from omfs.cli.admin_options import console, node_number, run_dir_of
from omfs.errors import ControlError, NotRunning
from omfs.net.control import ExportStatus, LeasesStatus, NodeStatus, PingReply, StatusReply, ask

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SOCKET: Final = "mount.sock"
UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
GOOD_STATES: Final = ("up", "self")
R = TypeVar("R")

STATUS = """\
Show every node as the mount on this node sees it, and what the leases do: LEASES are those that this mount holds
at a node, below are those that others hold on objects of this node.  --json has more.
Exit status: 0 all nodes are up, 1 at least one is not, 3 no mount is running here.
"""

PING = """\
Send requests to nodes through the running mount and show how long the answers take.
Exit status: 0 every node answered at least once, 1 one did not, 3 no mount is running here.
"""


def add_commands(commands: Commands) -> None:
    """Define `status` and `ping`."""
    raw = argparse.RawDescriptionHelpFormatter
    status = commands.add_parser("status", help="show the nodes", description=STATUS, formatter_class=raw)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)
    ping = commands.add_parser("ping", help="measure round trips", description=PING, formatter_class=raw)
    ping.add_argument("nodes", metavar="NODE", nargs="*", type=node_number, help="default: every other node")
    ping.add_argument("-c", dest="count", metavar="N", type=_count, default=3, help="requests per node (default 3)")
    ping.add_argument("-i", dest="interval_s", metavar="S", type=_interval, default=1.0, help="seconds between them")
    ping.set_defaults(run=_ping)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f'"{text}" is not a count (1..1000000)')
    return int(text)


def _interval(text: str) -> float:
    try:
        interval_s = float(text)
    except ValueError:
        interval_s = -1.0
    if not 0 <= interval_s <= 3600:
        raise argparse.ArgumentTypeError(f'"{text}" is not a time in seconds (0..3600)')
    return interval_s


def _shape(reply: object, shape: type[R], path: Path) -> R:
    try:
        return msgspec.convert(reply, shape)
    except msgspec.ValidationError as error:
        raise ControlError(f"{path}: the mount speaks another version: {error}") from None


async def _ask_status(path: Path) -> StatusReply:
    return _shape(await ask(path, "status"), StatusReply, path)


# ---------------------------------------------------------------- status


def _status(arguments: argparse.Namespace) -> int:
    reply = trio.run(_ask_status, run_dir_of(arguments) / SOCKET)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(reply), indent=2).decode())
    else:
        _print_status(reply.nodes)
        if reply.leases is not None:
            _print_leases(reply.leases, reply.counters)
    return 0 if all(node.state in GOOD_STATES for node in reply.nodes) else 1


def _print_status(nodes: Sequence[NodeStatus]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("NODE", "ADDRESS", "STATE", "VERSION"):
        table.add_column(heading, overflow="fold")
    for heading in ("ROUND TRIP", "REQUESTS", "IN", "OUT", "LEASES"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("EXPORTS", overflow="fold")
    for node in nodes:
        table.add_row(
            str(node.node_id),
            ", ".join(node.addresses) or "-",
            _state(node),
            node.software or "-",
            _milliseconds(node.round_trip_s),
            str(node.requests),
            _size(node.bytes_in),
            _size(node.bytes_out),
            "-" if node.state == "self" else str(node.leases),
            ", ".join(map(_export, node.exports)) or "-",
        )
    console().print(table)


def _state(node: NodeStatus) -> str:
    return node.state + (f": {node.reason}" if node.reason else "") + (" (nomfs: refuses others)" if node.nomfs else "")


def _print_leases(here: LeasesStatus, counters: Mapping[str, int]) -> None:
    """What others hold here, what recalls did, at both ends, and what this mount had to ask its owners."""
    mean = f", {_milliseconds(here.recall_mean_s)} on average" if here.recall_mean_s is not None else ""
    under_way = f", {here.recalls_under_way} under way" if here.recalls_under_way else ""
    lines = [
        "",
        f"leases held here by others: {here.held} ({here.grants} granted)",
        f"recalls sent: {here.recalls}{mean}{under_way}",
        f"recalls received: {counters.get('recalls', 0)}",
        f"answered by this mount: {_all_of('answered_', counters)}; asked of the owners: {_all_of('asked_', counters)}",
        f"written and not yet at the owners: {_size(counters.get('behind_bytes', 0))}"
        f" of {counters.get('behind_files', 0)} files",
    ]
    for line in lines:
        console().print(line)


def _all_of(prefix: str, counters: Mapping[str, int]) -> int:
    return sum(count for name, count in counters.items() if name.startswith(prefix))


def _export(export: ExportStatus) -> str:
    flags = [word for word, holds in (("ro", export.read_only), ("root_squash", export.root_squash)) if holds]
    return f"{export.path} ({','.join(flags)})" if flags else export.path


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.3f} ms"


def _size(size_bytes: int) -> str:
    if size_bytes < 1024:
        return f"{size_bytes} B"
    exponent = min((size_bytes.bit_length() - 1) // 10, len(UNITS) - 1)
    return f"{size_bytes / (1 << 10 * exponent):.1f} {UNITS[exponent]}"


# ---------------------------------------------------------------- ping


class Pinger:
    """The requests to one node and what came of them."""

    def __init__(self, path: Path, node_id: int) -> None:
        self.path = path
        self.node_id = node_id
        self.sent = 0
        self.round_trips_s: list[float] = []
        self.mount_gone: NotRunning | None = None

    async def run(self, count: int, interval_s: float) -> None:
        """Send *count* requests, *interval_s* seconds after each answer."""
        for sequence in range(1, count + 1):
            if sequence > 1:
                await trio.sleep(interval_s)
            self.sent += 1
            try:
                reply = _shape(await ask(self.path, "ping", node=self.node_id), PingReply, self.path)
            except NotRunning as error:
                self.mount_gone = error
                return
            except ControlError as error:
                reply = PingReply(node_id=self.node_id, reason=str(error))
            name = f"node {self.node_id}" + (f" ({reply.address})" if reply.address else "")
            if reply.round_trip_s is None:
                print(f"no answer from {name}: seq={sequence} {reply.reason}", flush=True)
            else:
                self.round_trips_s.append(reply.round_trip_s)
                print(f"answer from {name}: seq={sequence} time={_milliseconds(reply.round_trip_s)}", flush=True)

    def print_statistics(self) -> None:
        """The end of ping(8)'s output."""
        answered = len(self.round_trips_s)
        lost = 100 * (self.sent - answered) // self.sent if self.sent else 0
        print(f"\n--- node {self.node_id} ---\n{self.sent} requests, {answered} answers, {lost}% lost")
        if answered:
            times = (min(self.round_trips_s), sum(self.round_trips_s) / answered, max(self.round_trips_s))
            print("round trip min/avg/max = " + "/".join(f"{time * 1e3:.3f}" for time in times) + " ms")


async def _ping_all(path: Path, nodes: Sequence[int], count: int, interval_s: float) -> list[Pinger]:
    if not nodes:
        status = await _ask_status(path)
        nodes = [node.node_id for node in status.nodes if node.state != "self"]
    pingers = [Pinger(path, node_id) for node_id in dict.fromkeys(nodes)]
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as outer:

            async def stop_at_interrupt() -> None:
                async for _ in signals:
                    outer.cancel_scope.cancel()

            outer.start_soon(stop_at_interrupt)
            async with trio.open_nursery() as inner:
                for pinger in pingers:
                    inner.start_soon(pinger.run, count, interval_s)
            outer.cancel_scope.cancel()
    return pingers


def _ping(arguments: argparse.Namespace) -> int:
    path = run_dir_of(arguments) / SOCKET
    pingers = trio.run(_ping_all, path, arguments.nodes, arguments.count, arguments.interval_s)
    for pinger in pingers:
        if pinger.mount_gone is not None:
            raise pinger.mount_gone
        pinger.print_statistics()
    return 0 if all(pinger.round_trips_s for pinger in pingers) else 1
