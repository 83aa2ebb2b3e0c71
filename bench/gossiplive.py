"""What gossip costs a real mignode that has many neighbours: processor time and memory, beside simulated peers.

The mignode is a process of its own, idle, on 127.0.0.1 of a map of loopback addresses; all others are boards in this
process.  What they say to it and it to them is sealed and goes through sockets; among themselves they talk without.
`python -m bench.gossiplive --peers 200`, as root.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

import trio

from bench.gossip import INFO
from mignode import gossipwords
from mignode.gossip import PERIOD_S, Board, Message
from mignode.gossipport import open_socket
from mignode.gossipseal import Seal, load_seal
from omfs.net import control
from omfs.net.authority import install_credentials, make_authority

PORT: Final = 15428
SETTLED_AFTER_S: Final = 30.0
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Peers:
    """Nodes 2 to *nodes*; node 1 is the real one.  One socket has the datagrams of all of them."""

    def __init__(self, nodes: int, seals: dict[int, Seal]) -> None:
        everybody = range(1, nodes + 1)
        self.boards = {node: Board(node, 1, everybody, random.Random(node)) for node in everybody if node != 1}
        self._seals = seals
        self._sockets = {node: trio.socket.from_stdlib_socket(open_socket(address_of(node), PORT)) for node in seals}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for node in self.boards:
                nursery.start_soon(self._ask, node)
                nursery.start_soon(self._hear, node)

    async def _ask(self, node: int) -> None:
        await trio.sleep(random.random() * PERIOD_S)
        while True:
            for message in self.boards[node].tick(INFO, trio.current_time()):
                await self._carry(message)
            await trio.sleep(PERIOD_S)

    async def _hear(self, node: int) -> None:
        while True:
            data, _ = await self._sockets[node].recvfrom(2048)
            message = gossipwords.decode(self._seals[node].open(data)[1])
            _, answer = self.boards[node].receive(message, trio.current_time())
            if answer is not None:
                await self._carry(answer)

    async def _carry(self, message: Message | None) -> None:
        while message is not None:
            if message.to == 1:
                seal = self._seals[message.sender]
                datagram = seal.close(gossipwords.encode(message, seal.room_bytes))
                await self._sockets[message.sender].sendto(datagram, (address_of(1), PORT))
                return
            _, message = self.boards[message.to].receive(message, trio.current_time())


def address_of(node: int) -> str:
    return f"127.0.0.{node}"


def prepare(place: Path, nodes: int) -> dict[int, Seal]:
    """omfs.toml of node 1, and the seals of the others."""
    authority = make_authority(place / "ca")
    for node in range(1, nodes + 1):
        install_credentials(place / str(node), authority.issue(node))
    (place / "map").write_text(f"1 127.0.0.1 {nodes}\n")
    (place / "omfs.toml").write_text(
        f'map = "{place}/map"\naddress = "127.0.0.1"\nconfig_dir = "{place}/1"\ngossip_port = {PORT}\n'
        f'state_dir = "{place}/state"\nrun_dir = "{place}/run"\nmigration_port = 0\n'
    )
    return {node: load_seal(place / str(node), "tls") for node in range(2, nodes + 1)}


def used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def measure(place: Path, nodes: int, seconds: float) -> None:
    peers = Peers(nodes, prepare(place, nodes))
    command = [sys.executable, "-m", "mignode.cli.mignode", "--config", f"{place}/omfs.toml", "--foreground"]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, stderr=subprocess.DEVNULL)
        process = await nursery.start(start)
        nursery.start_soon(peers.run)
        await trio.sleep(SETTLED_AFTER_S)
        before_s = used_s(process.pid)
        await trio.sleep(seconds)
        part = (used_s(process.pid) - before_s) / seconds
        told = await control.ask(place / "run" / "mignode.sock", "status")
        counts = told["gossip"]
        known = await control.ask(place / "run" / "mignode.sock", "read_control", scope="hpc", file="info")
        up = sum("load=" in line for line in known["text"].splitlines())
        took_s = told["seconds"]
        print(
            f"{nodes - 1} peers ({up - 1} of them known and up): {part:.2%} of a processor, "
            f"{told['memory_bytes'] / 2**20:.0f} MiB, {counts['sent'] / took_s:.1f} datagrams/s sent, "
            f"{counts['received'] / took_s:.1f} received"
        )
        nursery.cancel_scope.cancel()


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gossiplive", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--peers", type=int, nargs="+", default=[2, 200], metavar="N", help="at most 253")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured for so long, after 30 s (default: 60)")
    arguments = parser.parse_args()
    for peers in arguments.peers:
        with tempfile.TemporaryDirectory() as place:
            trio.run(measure, Path(place), peers + 1, arguments.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
