"""Which guest should run elsewhere: what may never be, what it costs, and whose turn it is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings, strategies as st
from msgspec import json
from msgspec.structs import replace

from mignode.book import Settings
from mignode.guestsettings import allows
from mignode.policy import (
    FORGOTTEN_S,
    RESIDENCE_MAX_S,
    RESTLESS,
    SMOOTHED_OVER_S,
    Cluster,
    Decision,
    Guest,
    Node,
    Sent,
    best_place,
    by_price,
    decide,
    first_place,
    new_guest,
    refused,
    residence_s,
    told,
    told_with,
)
from mignode.weighing import Amount, Costs, Demand, Load, moving_s, terms

MIB = 1 << 20
IDLE = Load(cpus=2, speed=1.0, running=0.0, memory_total=4096 * MIB, memory_free=4000 * MIB)
HOG = Demand(cpu=0.5, running=1.0, memory=10 * MIB, files={})
SCAN = Demand(cpu=0.3, running=0.3, memory=10 * MIB, files={2: Amount(70e6, 700)})


def cluster(*loads: Load, turn: float = 0.0) -> Cluster:
    return Cluster(1, {number: Node(number, load) for number, load in enumerate(loads, 1)}, Costs(), turn)


def guest(demand: Demand = HOG, **changes: object) -> Guest:
    return Guest("g", 1, demand, worked_s=30.0, here_s=30.0)._replace(**changes)


def decision(view: Cluster, *guests: Guest) -> Decision:
    return decide(view, guests or [guest()])[0]


CROWDED = IDLE._replace(running=6.0)


def test_a_hog_leaves_a_crowd() -> None:
    found = decision(cluster(CROWDED, IDLE))
    assert (found.target, found.moves) == (2, True)
    assert found.gain_s > 2 * found.moving_s
    assert [option.node for option in found.options] == [2, 1]


def test_it_stays_where_no_node_is_better() -> None:
    assert decision(cluster(IDLE, IDLE)).reason == "no other node is better"


def test_a_scan_goes_to_its_data() -> None:
    assert decision(cluster(IDLE, IDLE, IDLE), guest(SCAN)).target == 2


def test_a_scan_stays_where_the_move_costs_more() -> None:
    large = SCAN._replace(memory=3000 * MIB)
    assert decision(cluster(IDLE, IDLE), guest(large)).reason == "it would gain less than the move costs"
    little = SCAN._replace(files={2: Amount(1e6, 10)})
    assert decision(cluster(IDLE, IDLE), guest(little)).reason == "it would gain less than the move costs"


def test_who_has_begun_just_now_is_not_expected_to_go_on() -> None:
    assert not decision(cluster(CROWDED, IDLE), guest(worked_s=0.5)).moves


def test_who_came_just_now_stays_the_longer_the_more_often_he_was_moved() -> None:
    assert decision(cluster(CROWDED, IDLE), guest(here_s=2.0)).reason == "it has been here for less than 3 s"
    waits = [residence_s(guest(unrest=unrest), Costs()) for unrest in (0, 1, 2, 50)]
    assert waits[1:3] == pytest.approx([RESTLESS * waits[0], RESTLESS**2 * waits[0]])
    assert RESTLESS > 1
    assert waits[3] == RESIDENCE_MAX_S


def test_one_at_a_time() -> None:
    found = decide(cluster(CROWDED, IDLE), [guest(name="a"), guest(name="b", worked_s=60.0)])
    assert [one.target for one in found] == [1, 2]
    assert found[0].reason == "another one goes first"


def test_nodes_that_are_as_crowded_take_turns() -> None:
    loads = [CROWDED] * 4 + [IDLE]
    assert decision(cluster(*loads, turn=0.2)).target == 5
    assert decision(cluster(*loads, turn=0.3)).reason == "it is another node's turn"


def test_who_goes_to_his_data_waits_for_nobodys_turn() -> None:
    assert decision(cluster(IDLE, IDLE, IDLE, IDLE, turn=0.99), guest(SCAN)).target == 2


def test_its_user_is_told_the_best_place_whatever_it_costs() -> None:
    assert best_place(cluster(IDLE, IDLE), guest(SCAN._replace(memory=900 * MIB), here_s=0.0, worked_s=0.0)).target == 2
    assert best_place(cluster(IDLE, IDLE), guest()).reason == "no other node is better"


def test_only_the_best_options_are_told_and_where_it_is() -> None:
    found = decision(cluster(CROWDED, *[IDLE] * 20))
    assert len(found.options) == 9
    assert found.options[-1].node == 1


def test_the_reason_that_holds_everywhere_is_told() -> None:
    locked = guest(settings=Settings(lock=True))
    assert decision(cluster(CROWDED, IDLE, IDLE), locked).reason == "it is locked"
    assert decision(cluster(CROWDED, IDLE), guest(must_stay="a device")).reason == "a device"


# ---------------------------------------------------------------- memory

FULL = IDLE._replace(memory_free=200 * MIB)  # a sixteenth are 256 MiB


def sleeper(name: str, memory: int, **changes: object) -> Guest:
    return guest(Demand(0.0, 0.0, memory * MIB, {}), name=name, **changes)


def left(view: Cluster, *guests: Guest) -> list[str]:
    return [one.guest for one in decide(view, guests) if one.moves]


def test_memory_moves_the_least_that_helps() -> None:
    assert left(cluster(FULL, IDLE), sleeper("a", 20), sleeper("b", 60), sleeper("c", 900)) == ["b"]


def test_memory_moves_the_largest_where_nobody_is_enough() -> None:
    assert left(cluster(FULL, IDLE), sleeper("a", 20), sleeper("b", 30)) == ["b"]


def test_nobody_leaves_for_where_there_is_no_room() -> None:
    assert left(cluster(FULL, FULL), sleeper("b", 60)) == []
    assert left(cluster(FULL, IDLE), sleeper("b", 60, here_s=1.0), sleeper("none", 0)) == []


def test_what_is_gained_is_told_of_the_node_where_it_goes() -> None:
    """It would save most beside its data, where there is no room."""
    found = decision(cluster(FULL, FULL, IDLE), guest(SCAN._replace(memory=60 * MIB)))
    assert found.target == 3
    costs = {option.node: option.total_s for option in found.options}
    assert costs[2] < costs[3] < costs[1]
    assert found.gain_s == pytest.approx(found.life_s * (costs[1] - costs[3]))


# ---------------------------------------------------------------- what may never be

_load = st.builds(
    Load,
    cpus=st.integers(1, 8),
    speed=st.floats(0.1, 4.0),
    running=st.floats(0, 20),
    memory_total=st.just(1024 * MIB),
    memory_free=st.integers(0, 1024 * MIB),
)
_node = st.tuples(_load, st.booleans(), st.booleans(), st.booleans(), st.booleans())
_demand = st.builds(
    Demand,
    cpu=st.floats(0, 2),
    running=st.floats(0, 4),
    memory=st.integers(0, 900 * MIB),
    files=st.dictionaries(st.integers(1, 5), st.builds(Amount, st.floats(0, 1e9), st.floats(0, 1e4))),
)
_settings = st.builds(
    Settings, lock=st.booleans(), migfilter=st.booleans(), migpolicy=st.booleans(), mignodes=st.integers(0, 31)
)
_guest = st.builds(
    Guest,
    name=st.uuids().map(str),
    home=st.integers(1, 5),
    demand=_demand,
    worked_s=st.floats(0, 1e5),
    here_s=st.floats(0, 1e5),
    unrest=st.floats(0, 20),
    settings=_settings,
    must_stay=st.sampled_from(["", "", "", "a device"]),
)


@given(st.lists(_node, min_size=2, max_size=5), st.lists(_guest, max_size=4), st.floats(0, 1))
def test_no_decision_violates_a_rule(
    nodes: list[tuple[Load, bool, bool, bool, bool]], guests: list[Guest], turn: float
) -> None:
    known = {number: Node(number, *node) for number, node in enumerate(nodes, 1)}
    view = Cluster(1, known, turn=turn)
    found = decide(view, guests)
    assert [one.guest for one in found] == [one.name for one in guests]
    assert sum(one.moves for one in found) <= 1
    for one, who in [*zip(found, guests, strict=True), *((best_place(view, who), who) for who in guests)]:
        check_rules(known, who, one)


_seldom = st.sampled_from([False, False, False, True])
_new_node = st.tuples(_load, st.sampled_from([True, True, True, False]), _seldom, _seldom, _seldom)
_new_settings = st.builds(
    Settings, lock=_seldom, migfilter=_seldom, migpolicy=st.booleans(), mignodes=st.integers(0, 31)
)


@given(st.lists(_new_node, min_size=3, max_size=5), _new_settings, _demand, st.floats(0, 1), st.booleans())
@settings(max_examples=500)
def test_no_start_violates_a_rule(
    nodes: list[tuple[Load, bool, bool, bool, bool]], chosen: Settings, demand: Demand, turn: float, is_wanted: bool
) -> None:
    """At most one rule holds in most of these: what may go to one place must not go to another."""
    known = {number: Node(number, *node) for number, node in enumerate(nodes, 1)}
    new = new_guest("g", 1, chosen, demand)
    found = first_place(Cluster(1, known, turn=turn), new, at_any_gain=is_wanted)
    assert found.is_first
    check_rules(known, new, found)


def check_rules(known: dict[int, Node], who: Guest, found: Decision) -> None:
    if not found.moves:
        return
    here, target = known[1], known[found.target]
    assert target.is_known
    assert not who.settings.lock
    assert not who.must_stay
    assert not here.stay
    assert not (here.lstay and who.home == 1)
    assert who.home == found.target or (not target.block and allows(who.settings, found.target))


# ---------------------------------------------------------------- who was sent lately, and what it costs


def test_who_was_sent_counts_until_the_averages_have_him() -> None:
    sent, known = Sent(), dict(cluster(CROWDED, IDLE).nodes)
    sent.note(10.0, 1, 2, HOG)
    sent.note(10.0, 1, 7, HOG)
    now = sent.corrected(known, 10.0)
    assert (now[1].load.running, now[2].load.running) == (4.0, 1.0)
    assert now[2].load.memory_free == IDLE.memory_free - HOG.memory
    assert 0 < sent.corrected(known, 14.0)[2].load.running < 0.5
    assert sent.corrected(known, 10.0 + FORGOTTEN_S) == known


def test_who_is_under_way_counts_where_he_goes_for_as_long_as_that_takes() -> None:
    sent, known = Sent(), dict(cluster(CROWDED, IDLE).nodes)
    sent.note(10.0, 1, 2, HOG, "a")
    sent.departs(10.0, "a")
    assert runs(sent.corrected(known, 10.0 + 5 * FORGOTTEN_S)) == [CROWDED.running - 1.0, 1.0]
    sent.arrived(100.0, "a")
    assert runs(sent.corrected(known, 100.0)) == [CROWDED.running - 1.0, 1.0]
    assert 0 < sent.corrected(known, 104.0)[2].load.running < 0.5, "the averages begin to have him, and to lose him"
    assert sent.corrected(known, 100.0 + FORGOTTEN_S) == known
    sent.goes_on(200.0, "b", 2, HOG)
    sent.departs(201.0, "b")
    assert 0.7 < sent.corrected(known, 300.0)[2].load.running < 0.8
    sent.forget("b")  # he could not go
    assert sent.corrected(known, 300.0) == known
    sent.arrived(300.0, "b")
    assert sent.corrected(known, 300.0) == known


def test_who_begins_adds_to_where_he_goes_on_until_he_has_ended() -> None:
    sent, known = Sent(), dict(cluster(IDLE, IDLE).nodes)
    sent.goes_on(10.0, "a", 2, HOG)
    sent.goes_on(10.0, "b", 1, HOG)
    assert runs(sent.corrected(known, 10.0)) == [1.0, 1.0]
    sent.forget("a")
    assert runs(sent.corrected(known, 10.0)) == [1.0, 0.0]
    sent.goes_on(10.0, "b", 2, HOG)
    assert runs(sent.corrected(known, 10.0)) == [0.0, 1.0], "where he was tried before he is no load"


def test_who_has_begun_counts_nowhere_until_it_is_said_where() -> None:
    """Node 1's average has more and more of him, who runs there; in the end he is once where he is."""
    sent, begun_s, decided_s, later_s = Sent(), 10.0, 12.0, 15.0
    had = 1 - math.exp((begun_s - decided_s) / SMOOTHED_OVER_S)
    known = dict(cluster(IDLE._replace(running=had), IDLE).nodes)
    for name in "ab":
        sent.begins(begun_s, name, 1, HOG)
    sent.forget("b")
    assert runs(sent.corrected(known, decided_s)) == [pytest.approx(0.0), 0.0]
    sent.goes_on(decided_s, "a", 2, HOG)
    forgotten = math.exp((decided_s - later_s) / SMOOTHED_OVER_S)
    known = dict(cluster(IDLE._replace(running=had * forgotten), IDLE._replace(running=1 - forgotten)).nodes)
    assert runs(sent.corrected(known, later_s)) == pytest.approx([0.0, 1.0])


def test_who_goes_on_where_he_began_is_once_there() -> None:
    sent = Sent()
    sent.begins(10.0, "a", 1, HOG)
    sent.goes_on(12.0, "a", 1, HOG)
    has = 1 - math.exp((10.0 - 13.0) / SMOOTHED_OVER_S)
    known = dict(cluster(IDLE._replace(running=has), IDLE).nodes)
    assert runs(sent.corrected(known, 13.0)) == pytest.approx([1.0, 0.0])


def runs(nodes: dict[int, Node]) -> list[float]:
    return [node.load.running for node in nodes.values()]


# ---------------------------------------------------------------- where one begins

NEW = new_guest("g", 1, Settings())


def test_who_begins_where_all_is_idle_begins_at_home() -> None:
    found = first_place(cluster(IDLE, IDLE), NEW)
    assert (found.target, found.reason, found.is_first) == (1, "no other node is better", True)


def test_who_begins_in_a_crowd_goes_on_elsewhere() -> None:
    found = first_place(cluster(CROWDED, IDLE), NEW)
    assert (found.target, found.moves, found.is_first) == (2, True, True)
    costs = {option.node: option.cpu_s for option in found.options}
    assert costs == {1: pytest.approx(4.75), 2: 1.0}, "he himself is not in the load yet: 7 want to run on 2"


def test_what_a_start_elsewhere_gains_is_more_than_it_costs() -> None:
    little_worse = IDLE._replace(running=1.3)
    slow = cluster(IDLE._replace(running=3.0), IDLE)._replace(costs=Costs(move_s=20.0))
    for view in (cluster(little_worse, IDLE), slow):
        assert first_place(view, NEW).reason == "it would gain less than the move costs"
        assert first_place(view, NEW, at_any_gain=True).target == 2, "its user has asked for the best"


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        (Settings(lock=True), {}, "it is locked"),
        (Settings(migfilter=True, migpolicy=True), {}, "its mask (migfilter)"),
        (Settings(), {"stay": True}, "nobody leaves this node (stay)"),
        (Settings(), {"lstay": True}, "processes of this node stay at home (lstay)"),
    ],
)
@pytest.mark.parametrize("at_any_gain", [False, True])
def test_who_may_not_leave_begins_at_home(
    settings: Settings, changes: dict[str, bool], reason: str, at_any_gain: bool
) -> None:
    view = cluster(CROWDED, IDLE)
    view = view._replace(nodes={**view.nodes, 1: view.nodes[1]._replace(**changes)})
    found = first_place(view, new_guest("g", 1, settings), at_any_gain=at_any_gain)
    assert (found.target, found.reason) == (1, reason)


def test_places_that_are_alike_are_taken_by_turns() -> None:
    crowds = [CROWDED, *[IDLE] * 20]
    found = [first_place(cluster(*crowds, turn=turn), NEW) for turn in (0.0, 0.5, 0.999, 1.0)]
    assert [one.target for one in found] == [2, 12, 21, 21]
    assert all({1, one.target} <= {option.node for option in one.options} for one in found)


def test_who_could_not_go_is_told_to_have_begun_at_home() -> None:
    found = refused(first_place(cluster(CROWDED, IDLE), NEW), "it was down")
    assert (found.target, found.reason, found.is_first) == (1, "node 2 was best, but it was down", True)


def test_a_crowd_that_begins_at_once_is_spread_evenly() -> None:
    """Of nine, on three nodes of two processors; whoever waits for his turn runs at home, and its average has him."""
    sent, begun_s, found = Sent(), 100.0, list[int]()
    names = [f"g{number}" for number in range(9)]
    for name in names:
        sent.begins(begun_s, name, 1, HOG)
    for number, name in enumerate(names):
        now_s = begun_s + 0.5 + 0.4 * number
        home = [begun_s] * 9
        left = [(begun_s + 0.5 + 0.4 * before, node) for before, node in enumerate(found) if node != 1]
        running = sum(1 - math.exp((then - now_s) / SMOOTHED_OVER_S) for then in home)
        running -= sum(1 - math.exp((then - now_s) / SMOOTHED_OVER_S) for then, _ in left)
        loads = [IDLE._replace(cpus=2, running=running)]
        for there in (2, 3):
            came = [then for then, node in left if node == there]
            seen = sum(1 - math.exp((then - now_s) / SMOOTHED_OVER_S) for then in came)
            loads.append(IDLE._replace(cpus=2, running=seen))
        view = cluster(*loads, turn=number / 9)
        view = view._replace(nodes=sent.corrected(view.nodes, now_s))
        found.append(first_place(view, new_guest(name, 1, Settings())).target)
        sent.goes_on(now_s, name, found[-1], HOG)
    assert sorted(found) == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_of_the_nodes_that_were_named_the_cheapest_comes_first() -> None:
    view = cluster(IDLE, CROWDED, IDLE._replace(speed=2.0), IDLE)
    view = view._replace(nodes={**view.nodes, 4: view.nodes[4]._replace(is_known=False)})
    assert by_price(view, [9, 4, 2, 1, 3]) == [3, 1, 2, 9, 4]


def test_where_it_began_is_told_with_what_was_decided_last() -> None:
    began, last = first_place(cluster(CROWDED, IDLE), NEW), decision(cluster(IDLE, IDLE))
    assert told_with("", None) == ""
    assert told_with(told(last), None) == told(last)
    assert json.decode(told_with("", began), type=Decision) == began
    assert json.decode(told_with(told(last), began), type=Decision) == replace(last, began=began)


def test_terms_are_seconds() -> None:
    costs = Costs(bytes_per_s=100e6, call_s=0.001, move_s=0.3)
    assert terms(HOG, 2, IDLE, costs) == (0.5, 0.0, pytest.approx(0.0, abs=1e-3))
    assert terms(HOG, 2, IDLE._replace(speed=2.0), costs).cpu == 0.25
    assert terms(HOG, 2, IDLE._replace(running=3.0), costs).cpu == pytest.approx(0.5 * 2.5)
    assert terms(SCAN, 1, IDLE, costs).files == pytest.approx(0.7 + 0.7)
    assert terms(SCAN, 2, IDLE, costs).files == 0.0
    assert terms(HOG._replace(memory=4000 * MIB), 2, IDLE, costs).memory > 0.8
    assert terms(HOG, 2, IDLE._replace(memory_total=0), costs).memory == 0.0
    assert moving_s(HOG._replace(memory=100_000_000), costs) == pytest.approx(1.3)
    assert IDLE.without(1.0, 1 << 40)[2:] == (0.0, IDLE.memory_total, IDLE.memory_total)
