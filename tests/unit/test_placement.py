"""Jobs in a simulated cluster: the traces of tests/scenarios/placement, strategies compared; how traces are read."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from bench.placement import COMPUTING, CROWDED, READING, Mix, by_the_optimum, measure
from mignode.simulate import OURS, Trace, failures, parse, told
from mignode.simulation import Job, Machine, Simulation, Work, mean_slowdown
from mignode.strategies import STRATEGIES, AtHome, Balancing, best_assignment
from mignode.weighing import Costs
from omfs.errors import ConfigError

TRACES = sorted((Path(__file__).parent.parent / "scenarios" / "placement").glob("*.trace"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_trace(path: Path) -> None:
    trace = parse(path.read_text(), path.name)
    assert trace.expected
    assert [said for seed in range(1) for said in failures(trace, seed)] == []


def test_what_is_not_as_expected_is_said() -> None:
    expected = ("a stays", "b stays", "a on 2 by 50", "a moves 0", "b on 2 by 50", "b moves 0", "c stays")
    text = (
        "node 1\nnode 2\njob a cpu=100 athome\njob b cpu=100 athome\njob c cpu=1 at=300\njob d cpu=1 at=300\n"
        + "".join(f"expect {one}\n" for one in expected)
    )
    said = failures(parse(text, "t"))
    assert len(said) == 4
    assert any("c began on node 2" in one for one in said)
    assert any("moved to node 2" in one for one in said)
    assert any("moved 1 times" in one for one in said)
    assert any("is on node 1 after 50 s" in one for one in said)
    assert sum("not as expected" in line for line in told(parse(text, "t"))) == 4


def test_what_is_told() -> None:
    lines = list(told(parse("node 1\nnode 2\njob a cpu=30\njob b cpu=30 at=1", "t")))
    assert [line.split(maxsplit=2)[2] for line in lines[:2]] == ["a begins on node 1", "b begins on node 2"]
    assert sum("ends on node" in line for line in lines) == 2
    assert {name for name in STRATEGIES if any(line.startswith(name) for line in lines)} == set(STRATEGIES)
    assert lines[-1].startswith("the best without moves")
    many = "node 1\nnode 2\n" + "".join(f"job j{number} cpu=1\n" for number in range(20))
    assert not any("without moves" in line for line in told(parse(many, "t")))


def test_a_trace_is_read() -> None:
    text = """
    node 1 cpus=2 speed=30000 memory=8G stay   # the first
    node 2 block lstay
    network bytes=50M call=0.001 move=0.5
    job a home=2 at=3.5 cpu=10 memory=1.5M reads=1:2G:100;2:1K locked only=1,2 athome
    """
    trace = parse(text, "t")
    assert trace.machines == [Machine(1, 2, 2.0, 8 << 30, True), Machine(2, lstay=True, block=True)]
    files = ((1, float(2 << 30), 100.0), (2, 1024.0, 0.0))
    assert trace.works == [Work("a", 3.5, 2, 10.0, 1536 << 10, files, True, frozenset({1, 2}), True)]
    assert trace.costs == Costs(50 * (1 << 20), 0.001, 0.5, 50 * (1 << 20))
    slow_moves = parse(text + "network memory=10M", "t").costs
    assert slow_moves == trace.costs._replace(memory_bytes_per_s=10 * (1 << 20))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node 1\njob a\nfoo", "line 3"),
        ("node 1\njob a cpu=x", '"x" is no amount'),
        ("node 1\njob a cpu=0", "cpu is more than 0"),
        ("node 1 fast\njob a", '"fast" means nothing here'),
        ("node 1 size=3\njob a", '"size" means nothing here'),
        ("node", "line 1: node what"),
        ("job home=1", "job what"),
        ("node 0", '"0" is no number from 1'),
        ("node 65536", '"65536" is no number from 1'),
        ("node 1 cpus=0.5\njob a", '"0.5" is no number from 1'),
        ("node 1\njob a home=x", '"x" is no number from 1'),
        ("node 1\njob a reads=1", "is not NODE:BYTES"),
        ("node 1\njob a reads=1:2:3:4", "is not NODE:BYTES"),
        ("node 1\njob a reads=2:4G", "there is no node 2"),
        ("node 1\njob a only=1,2", "there is no node 2"),
        ("node 1\njob a only=", '"" is no number'),
        ("node 1\njob a\nexpect a on 2 by 10", "there is no node 2"),
        ("node 1\njob a\nexpect a on 1.5 by 10", '"1.5" is no number'),
        ("node 1\njob a\nexpect a on 1 by nan", '"nan" is no amount'),
        ("node 1\njob a\nexpect a moves 1.5", '"1.5" is no number'),
        ("node 1\njob a\nexpect a flies", "expect NAME stays"),
        ("node 1", "at least one node and one job"),
        ("node 1\njob a\njob a", "the same name"),
        ("node 1\njob a home=3", "there is no node 3"),
        ("node 1\njob a\nexpect b stays", "there is no job b"),
    ],
)
def test_a_bad_trace_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(text, "t")


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(("mix", "in_turn_by"), [(READING, 1.5), (CROWDED, 1.68)], ids=["data", "memory"])
def test_balancing_beats_the_best_placement_as_published(mix: Mix, in_turn_by: float) -> None:
    """Amir and others: the best static assignment is 14 % worse than the adaptive one, round robin 68 %.

    Where half of the jobs read, the runs are too short here for the whole of the latter.
    """
    ours, static, in_turn = (measure(name, 3, 1000.0, mix)[0] for name in (OURS, "best price", "in turn"))
    assert static >= 1.14 * ours
    assert in_turn >= in_turn_by * ours


@pytest.mark.parametrize(
    ("mix", "least"), [(READING, 1.2), (COMPUTING, 1.05), (CROWDED, 1.2)], ids=["data", "all compute", "memory"]
)
def test_balancing_beats_what_knows_less(mix: Mix, least: float) -> None:
    ours = measure(OURS, 3, 1000.0, mix)[0]
    for name in ("nobody moves", "by chance", "least loaded"):
        assert measure(name, 3, 1000.0, mix)[0] >= least * ours, name


def test_the_least_loaded_is_by_processors_and_speed() -> None:
    """With one the fast node is as good as the others with none; home comes before them."""
    machines = [Machine(1), Machine(2), Machine(3, speed=2.0)]
    works = [Work(f"j{number}", 20.0 * number, 1, 1000.0) for number in range(3)]
    jobs = Simulation(machines, Costs(), STRATEGIES["least loaded"]()).run(works, 60.0)
    assert [job.began for job in jobs] == [3, 1, 2]


def test_balancing_is_near_the_optimum() -> None:
    """Of what can be had without moves, by all placements of small clusters; what is placed once is not as near."""
    once = ("nobody moves", "by chance", "in turn", "least loaded", "best price")
    found = by_the_optimum((OURS, *once), 5)
    assert found[OURS] <= 1.15
    assert min(found[name] for name in once) >= 1.2


def test_nothing_is_better_than_the_optimum() -> None:
    machines = [Machine(1), Machine(2, speed=2.0)]
    works = [Work(f"j{number}", 0.0, 1, 10.0 * number, files=((2, 1e9, 0.0),)) for number in (1, 2, 3, 4)]
    best, _ = best_assignment(works, machines, Costs())
    for name in ("nobody moves", "by chance", "in turn", "best price", "all-knowing price"):
        assert (
            mean_slowdown(Simulation(machines, Costs(), STRATEGIES[name]()).run(works), machines, Costs())
            >= best - 1e-9
        )
    with pytest.raises(ValueError, match="placements"):
        best_assignment([*works] * 5, machines, Costs())


def test_a_cluster_that_nobody_watches_goes_the_same_way() -> None:
    """What tries thousands of placements need not look at each of them every second."""
    machines = [Machine(1), Machine(2, speed=2.0)]
    works = [Work(f"j{number}", 3.5 * number, 1 + number % 2, 7.0 * number) for number in (1, 2, 3, 4, 5)]

    def ends(is_watched: bool) -> dict[str, float]:
        cluster = Simulation(machines, Costs(), AtHome(), is_watched=is_watched)
        return {job.work.name: job.ended_s for job in cluster.run(works)}

    assert ends(is_watched=False) == pytest.approx(ends(is_watched=True))


def run(machines: list[Machine], works: list[Work], until_s: float, seed: int = 0) -> list[Job]:
    return Simulation(machines, Costs(), Balancing(AtHome()), seed).run(works, until_s)


@pytest.mark.parametrize("seed", range(2))
def test_an_hour_without_ping_pong(seed: int) -> None:
    """Jobs that go on for ever, and nothing changes: whoever was moved finds his place and stays."""
    chance = random.Random(seed)
    machines = [Machine(number, chance.randint(1, 2), chance.choice([1.0, 1.5])) for number in (1, 2, 3, 4)]
    works = [
        Work(
            f"j{number}",
            0.0,
            chance.randint(1, 4),
            1e6,
            100 << 20,
            ((chance.randint(1, 4), chance.choice([0, 3e13]), 0.0),),
        )
        for number in range(6)
    ]
    jobs = run(machines, works, 3600.0, seed)
    assert max(len(job.moves) for job in jobs) <= 4
    assert not [job for job in jobs for at_s, _ in job.moves if at_s > 1800]


@pytest.mark.parametrize(("nodes", "jobs"), [(3, 6), (5, 20), (4, 30)])
def test_hogs_spread_out_within_a_tenth(nodes: int, jobs: int) -> None:
    """As near as whole jobs allow."""
    machines = [Machine(number, 2) for number in range(1, nodes + 1)]
    ended = run(machines, [Work(f"j{number}", 0.0, 1, 1e6) for number in range(jobs)], 120.0)
    amounts = [sum(job.node == machine.node_id for job in ended) for machine in machines]
    assert max(amounts) - min(amounts) <= max(1, 0.1 * jobs / nodes)


def test_nobody_who_has_ended_is_no_mean() -> None:
    machines = [Machine(1)]
    assert math.isnan(mean_slowdown(run(machines, [Work("j", 0.0, 1, 100.0)], 10.0), machines, Costs()))


def test_a_trace_has_defaults() -> None:
    assert Trace().costs == Costs()
