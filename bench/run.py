"""`make bench`: native ext4, sshfs and oMFS (with --peers also MooseFS) side by side, in interleaved rounds.

What is measured is single calls, with --programs real programs, with --pingpong two nodes that take turns on a file.
Both ends of every contender are nodes of one lab on this machine (bench/nodes.py), so the network costs the same for
all.  A round runs everything for each contender, the order turning from round to round; figures are medians
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

from bench import day, moves, nodes, table
from bench.contenders import Contender, Native, Omfs
from bench.moosefs import Moosefs
from bench.sshfs import Sshfs
from bench.suites import Calls, Programs, Suite, Turns


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--programs", action="store_true", help="PostMark, tar, git, compileall, dbench; not single calls"
    )
    what.add_argument("--pingpong", action="store_true", help="two nodes take turns on a file; not single calls")
    what.add_argument("--moves", action="store_true", help="what moving a process costs and brings; not single calls")
    what.add_argument("--day", action="store_true", help="mixed work on three nodes, balanced and not")
    parser.add_argument("--rounds", type=int, metavar="N", help="the median counts (5; with --programs and --day 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the ratios there")
    parser.add_argument("--peers", action="store_true", help="MooseFS too")
    parser.add_argument("--quick", action="store_true", help="a fifth of the work, at most 3 rounds")
    parser.add_argument("--only", default="", metavar="NAMES", help="comma separated: native,sshfs,omfs,moosefs")
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return arguments


def choose(peers: bool, only: str) -> list[Contender]:
    everything: list[Contender] = [Native(), Sshfs(), Omfs(), *([Moosefs()] if peers else [])]
    wanted = {name.lower() for name in only.split(",") if name}
    unknown = wanted - {contender.name.lower() for contender in everything}
    if unknown:
        raise nodes.BenchError(f"--only: there is no {', '.join(sorted(unknown))} here")
    return [contender for contender in everything if not wanted or contender.name.lower() in wanted]


def choose_suite(arguments: argparse.Namespace) -> tuple[Suite, int]:
    """What to measure, and how many rounds of it."""
    kind = Programs if arguments.programs else Turns if arguments.pingpong else Calls
    suite: Suite = kind(arguments.quick)
    rounds = arguments.rounds or suite.rounds
    return suite, min(rounds, 3) if arguments.quick else rounds


def compare(suite: Suite, contenders: list[Contender], rounds: int) -> table.Rounds:
    """All rounds; each contender is first, second, ... in turn.  A rival that fails costs only its own figures."""
    measured: table.Rounds = {contender.name: {} for contender in contenders}

    def note(name: str, figures: dict[str, float]) -> None:
        for row, figure in figures.items():
            measured[name].setdefault(row, []).append(figure)

    for number in range(rounds):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            start = time.monotonic()
            try:
                note(contender.name, suite.measure(contender, f"round{number}"))
            except nodes.BenchError as error:
                if contender.name == Omfs.name:
                    raise
                say(f"round {number + 1} of {rounds}: {contender.name} failed, the others go on: {str(error)[-300:]}")
                continue
            say(f"round {number + 1} of {rounds}: {contender.name}, {time.monotonic() - start:.0f} s")
        for name, figures in suite.measure_together(contenders, f"together{number}").items():
            note(name, figures)
    for contender in contenders:
        for row in suite.disqualified(contender) & set(measured[contender.name]):
            del measured[contender.name][row]
    return measured


def report(suite: Suite, contenders: list[Contender], rounds: table.Rounds, title: str, path: Path | None) -> None:
    figures = table.medians({name: measured for name, measured in rounds.items() if measured})
    taking_part = [one for one in contenders if one.name in figures or suite.disqualified(one)]
    notes = {one.name: f"{one.software()}; {one.note}" for one in taking_part}
    for contender in taking_part:
        if stale := suite.disqualified(contender):
            notes[contender.name] += f"; showed stale data in: {', '.join(suite.rows[row][0] for row in sorted(stale))}"
    table.show(figures, notes, title)
    if path:
        facts = {
            "title": title,
            "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()},
            "units": {row: unit for row, (_, unit) in table.rows_of(figures).items()},
            "contenders": notes,
            "rounds": rounds,
            "medians": figures,
            "speed_of_omfs_against": {
                other: table.speeds(figures, Omfs.name, other) for other in figures if other != Omfs.name
            },
            "aims_met": table.aims_met(figures),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=2) + "\n")
        say(f"all figures: {path}")


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
    suite, count = choose_suite(arguments)
    try:
        if arguments.moves:
            moves.run(arguments.quick, arguments.json)
            return
        if arguments.day:
            day.run(arguments.quick, arguments.rounds, arguments.json)
            return
        contenders = choose(arguments.peers, arguments.only)
        say(f"a lab of {suite.node_count} nodes for {', '.join(contender.name for contender in contenders)}")
        nodes.up(suite.node_count)
        for contender in contenders:
            contender.start()
        for line in suite.start():
            say(line)
        rounds = compare(suite, contenders, count)
        report(
            suite, contenders, rounds, f"{suite.title}; {count} rounds; {suite.node_count} lab nodes", arguments.json
        )
    except nodes.BenchError as error:
        sys.exit(f"bench: {error}")
    finally:
        say("taking the lab down")
        nodes.down()


if __name__ == "__main__":
    main()
