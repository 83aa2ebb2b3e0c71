"""`make bench`: native ext4, sshfs and oMFS (with --peers also MooseFS) side by side, in interleaved rounds.

Both ends of every contender are nodes of one lab on this machine (bench/nodes.py), so the network costs the same for
all.  A round runs all workloads of each contender, the order turning from round to round; figures are medians
over the rounds.  Nothing here asserts a time.  Needs root and what `make bench` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from bench import nodes, table
from bench.contenders import Contender, Native, Omfs
from bench.moosefs import Moosefs
from bench.sshfs import Sshfs
from bench.workloads import WORKLOADS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds, the median counts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the ratios there")
    parser.add_argument("--peers", action="store_true", help="MooseFS too")
    parser.add_argument("--quick", action="store_true", help="a fifth of the files and bytes, 3 rounds")
    parser.add_argument("--only", default="", metavar="NAMES", help="comma separated: native,sshfs,omfs,moosefs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 3)
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return arguments


def choose(peers: bool, only: str) -> list[Contender]:
    everything: list[Contender] = [Native(), Sshfs(), Omfs(), *([Moosefs()] if peers else [])]
    wanted = {name.lower() for name in only.split(",") if name}
    unknown = wanted - {contender.name.lower() for contender in everything}
    if unknown:
        raise nodes.BenchError(f"--only: there is no {', '.join(sorted(unknown))} here")
    return [contender for contender in everything if not wanted or contender.name.lower() in wanted]


def measure(contender: Contender, number: int, files: int, big_mib: int) -> dict[str, float]:
    """One contender's round: fresh files made at the origin, measured in node 1, removed again."""
    node, origin = contender.origin()
    place = f"round{number}"
    nodes.workloads(node, "prepare", f"{origin}/{place}", files, big_mib)
    answer = nodes.workloads(nodes.CLIENT, "measure", f"{contender.seen_at()}/{place}", files, big_mib)
    nodes.workloads(node, "remove", f"{origin}/{place}", files, big_mib)
    figures: dict[str, float] = json.loads(answer)
    return figures


def compare(contenders: list[Contender], rounds: int, files: int, big_mib: int) -> table.Rounds:
    """All rounds; each contender is first, second, ... in turn."""
    measured: table.Rounds = {contender.name: {name: [] for name in WORKLOADS} for contender in contenders}
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            start = time.monotonic()
            for name, figure in measure(contender, number, files, big_mib).items():
                measured[contender.name][name].append(figure)
            say(f"round {number + 1} of {rounds}: {contender.name}, {time.monotonic() - start:.0f} s")
    return measured


def report(arguments: argparse.Namespace, contenders: list[Contender], rounds: table.Rounds, title: str) -> None:
    figures = table.medians(rounds)
    notes = {contender.name: f"{contender.software()}; {contender.note}" for contender in contenders}
    table.show(figures, notes, title)
    if arguments.json:
        facts = {
            "title": title,
            "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()},
            "units": {name: unit for name, (_, unit) in WORKLOADS.items()},
            "contenders": notes,
            "rounds": rounds,
            "medians": figures,
            "speed_of_omfs_against": {
                other: table.speeds(figures, Omfs.name, other) for other in figures if other != Omfs.name
            },
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
        say(f"all figures: {arguments.json}")


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def stop(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


def main() -> None:
    arguments = parse_arguments()
    if os.geteuid() != 0:
        sys.exit("bench: needs root (namespaces and mounts): use `make bench`")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    files, big_mib = (200, 205) if arguments.quick else (1000, 1024)
    title = f"{files} files of 4 KiB, one of {big_mib} MiB; {arguments.rounds} rounds; two lab nodes"
    try:
        contenders = choose(arguments.peers, arguments.only)
        say(f"a lab of two nodes for {', '.join(contender.name for contender in contenders)}")
        nodes.up()
        for contender in contenders:
            contender.start()
        rounds = compare(contenders, arguments.rounds, files, big_mib)
        report(arguments, contenders, rounds, title)
    except nodes.BenchError as error:
        sys.exit(f"bench: {error}")
    finally:
        say("taking the lab down")
        nodes.down()


if __name__ == "__main__":
    main()
