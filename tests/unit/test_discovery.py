"""Who belongs to the cluster: what a node makes of what it hears, and that all come to the same map."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from mignode import discovery
from mignode.discovery import LEAVE_GRACE_S, SILENT_PERIODS, Verdict, map_lines
from mignode.discoverywords import SERIAL_MAX, VERSION, Kind, Said, decode, encode
from omfs.net.nodemap import digest_of, parse_map
from tests.unit.discoveryroom import STEP_S, Machine, Room, address, nodes, said, tell


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def one(room: Room) -> Machine:
    """Node 1, which is alone."""
    machine = room.start(1)
    room.run(10)
    return machine


# ---------------------------------------------------------------- coming and going


def test_alone(one: Machine) -> None:
    assert one.published == nodes(1)


def test_all_come_at_the_same_time(room: Room) -> None:
    for node in range(1, 21):
        room.start(node)
    room.run(15)
    assert [one.published for one in room.machines] == [nodes(*range(1, 21))] * 20


def test_who_asks_is_not_there_yet(room: Room, one: Machine) -> None:
    two = room.start(2)
    room.run(discovery.PROBES * discovery.PROBE_EVERY_S - 1)
    assert (one.published, two.roll.is_here, two.published) == (nodes(1), False, {})
    room.run(10)
    assert one.published == two.published == nodes(1, 2)


def test_who_leaves_is_out_after_a_while_and_back_at_once(room: Room, one: Machine) -> None:
    two, three = room.start(2), room.start(3)
    room.run(10)
    two.stop()
    room.run(LEAVE_GRACE_S - 2)
    assert one.published == nodes(1, 2, 3), "a restart must not close anybody's files"
    room.run(5)
    assert one.published == three.published == nodes(1, 3)
    again = room.start(2)
    room.run(10)
    assert one.published == three.published == again.published == nodes(1, 2, 3)


def test_a_restart_is_not_seen(room: Room, one: Machine) -> None:
    two = room.start(2)
    room.run(10)
    two.stop()
    room.run(3)
    seen = [one.published]
    room.start(2)
    for _ in range(100):
        room.run(STEP_S)
        seen.append(one.published)
    assert seen == [nodes(1, 2)] * 101


def test_who_is_silent_stays_and_a_newcomer_hears_of_him(room: Room, one: Machine) -> None:
    two = room.start(2)
    room.run(10)
    two.is_on = False
    room.run(60)
    assert one.roll.silent(room.now) == [2]
    three = room.start(3)
    room.run(20)
    assert one.published == three.published == nodes(1, 2, 3)
    assert one.roll.silent(room.now) == [2]


def test_who_is_silent_for_a_day_is_taken_out_by_all(room: Room) -> None:
    one, two, three = (room.start(node, forget_after_s=100.0) for node in (1, 2, 3))
    room.run(10)
    two.is_on = False
    room.run(90)
    assert one.published == nodes(1, 2, 3)
    room.run(30)
    assert one.published == three.published == nodes(1, 3)
    two.is_on = True
    room.run(20)
    assert room.maps() == {digest_of(nodes(1, 2, 3))}


def test_never_forgotten(room: Room) -> None:
    one, two = (room.start(node, forget_after_s=0.0) for node in (1, 2))
    room.run(10)
    two.is_on = False
    room.run(1000)
    assert one.published == nodes(1, 2)


def test_an_administrator_says_that_a_node_is_gone(room: Room, one: Machine) -> None:
    two, three = room.start(2), room.start(3)
    room.run(10)
    two.is_on = False
    one.say(one.roll.forget(2, room.now))
    room.run(20)
    assert one.published == three.published == nodes(1, 3)
    assert one.roll.forget(2, room.now) == one.roll.forget(9, room.now) == one.roll.forget(1, room.now) == []


def test_a_living_node_that_is_said_to_be_gone_says_no(room: Room, one: Machine) -> None:
    two = room.start(2)
    room.run(10)
    one.say(one.roll.forget(2, room.now))
    for _ in range(100):
        room.run(STEP_S)
        assert one.published == two.published == nodes(1, 2)


def test_another_address(room: Room, one: Machine) -> None:
    two, three = room.start(2), room.start(3)
    room.run(10)
    two.at = "10.0.9.9"
    two.say(two.roll.move((two.at,), room.now))
    room.run(5)
    assert one.published == two.published == three.published == {**nodes(1, 3), 2: ("10.0.9.9",)}


def test_another_address_before_it_is_there(room: Room) -> None:
    one = room.start(1)
    room.run(1)
    one.at = "10.0.9.9"
    assert one.roll.move((one.at,), room.now) == []
    room.run(10)
    assert one.published == {1: ("10.0.9.9",)}


def test_what_was_known_is_known_after_a_restart(room: Room, one: Machine) -> None:
    room.start(2)
    room.run(10)
    room.machines.clear()
    again = room.start(1)
    left = encode(Said(VERSION, Kind.LEFT, 2, 7, 5))
    own = encode(said(Kind.HERE, 1, 999))
    for datagram in [
        *one.roll.kept(),
        left,
        own,
        encode(said(Kind.ASK, 8, 1)),
        encode(said(Kind.HERE, 9, 1, word="x")),
    ]:
        again.roll.recall(decode(datagram), datagram, room.now)
    room.run(6)
    assert again.published == nodes(1, 2)
    assert again.roll.serial == 1000


# ---------------------------------------------------------------- two that want the same


def test_the_id_of_one_that_is_there_is_taken(room: Room, one: Machine) -> None:
    two = room.start(2)
    room.run(10)
    clone = room.start(2, at="10.0.7.7")
    room.run(10)
    assert clone.roll.taken_by == two.at
    assert clone.published == {}
    assert one.published == two.published == nodes(1, 2)


@pytest.mark.parametrize("first", ["low", "high"])
def test_of_two_that_start_together_the_lower_address_stays(room: Room, first: str) -> None:
    """Whichever has the later serial."""
    if first == "high":
        high, low = room.start(2, at="10.0.0.100"), room.start(2, at="10.0.0.20")
    else:
        low, high = room.start(2, at="10.0.0.20"), room.start(2, at="10.0.0.100")
    room.run(10)
    assert (high.roll.taken_by, low.roll.taken_by) == (low.at, "")
    assert low.published == {2: (low.at,)}


@pytest.mark.parametrize("is_settled", [False, True])
def test_nobody_leaves_for_what_he_has_said_himself_at_another_address(room: Room, is_settled: bool) -> None:
    """Somebody has kept it, and says it again from there: when this node starts, and when it is here."""
    one = room.start(1)
    before = said(Kind.HERE, 1, one.roll.serial - 1, at="10.0.0.0", settled=True)
    for seconds in (1, 10, 60 if is_settled else 1):
        room.run(seconds)
        verdict, outgoing = tell(one, before)
        assert (verdict in (Verdict.OWN, Verdict.RIVAL), outgoing, one.roll.taken_by) == (True, [], "")
    assert one.published == nodes(1)


@pytest.mark.parametrize("clock", [-1, 0, 1])
def test_a_clone_stays_out_whatever_its_clock_says(room: Room, one: Machine, clock: int) -> None:
    clone = room.start(1, at="10.0.0.0")
    clone.roll.serial = one.roll.serial + clock
    room.run(10)
    assert (clone.roll.taken_by, clone.is_on, one.is_on) == (one.at, False, True)
    assert (one.published, clone.published) == (nodes(1), {})


def test_a_machine_that_was_replaced_by_one_whose_clock_is_behind(room: Room, one: Machine) -> None:
    """Nobody believes what is earlier than what he knows: the new one has to be told."""
    two = room.start(2)
    room.run(10)
    two.is_on = False
    new = room.start(2, at="10.0.7.7")
    new.roll.serial = 0
    room.run(10)
    assert one.published == nodes(1, 2), "as long as nobody knows that the former one is gone"
    room.run(60)
    assert one.published == new.published == {**nodes(1), 2: ("10.0.7.7",)}


def test_two_that_were_cut_off_from_each_other(room: Room) -> None:
    """Both have been there for long: the lower address stays, for all."""
    one, low, other, high = room.start(1), room.start(9, "10.0.0.9"), room.start(2), room.start(9, "10.0.0.90")
    room.cut = {frozenset((a.at, b.at)) for a in (one, low) for b in (other, high)}
    room.run(120)
    assert one.published == {**nodes(1), 9: (low.at,)}
    assert other.published == {**nodes(2), 9: (high.at,)}
    room.cut = set()
    room.run(40)
    assert (high.is_on, low.is_on) == (False, True)
    assert one.published == other.published == low.published == {**nodes(1, 2), 9: (low.at,)}


def test_who_has_been_there_for_long_stays(room: Room) -> None:
    old, young = room.start(9, "10.0.0.90"), room.start(9, "10.0.0.9")
    young.is_on = False
    room.run(120)
    young.is_on = True
    room.cut = {frozenset((old.at, young.at))}
    room.run(10)
    assert young.roll.is_here
    room.cut = set()
    room.run(20)
    assert (old.is_on, young.is_on) == (True, False)
    assert old.published == {9: (old.at,)}


def test_nobody_becomes_a_node_that_is_heard(room: Room, one: Machine) -> None:
    two = room.start(2)
    room.run(10)
    clone = said(Kind.HERE, 2, 10_000, at="10.0.7.7")
    assert tell(one, clone)[0] is Verdict.RIVAL
    assert tell(one, said(Kind.HERE, 2, 1, at="10.0.7.7"))[0] is Verdict.RIVAL, "nor one that says it was before"
    room.run(10)
    assert one.published == nodes(1, 2)
    two.is_on = False
    room.run(SILENT_PERIODS * one.roll.period_s + 1)
    assert tell(one, clone)[0] is Verdict.NEWS, "the machine was replaced"
    room.run(5)
    assert one.published == {**nodes(1), 2: ("10.0.7.7",)}


def test_a_rival_that_goes_on_is_contradicted(room: Room, one: Machine) -> None:
    """It has been accepted elsewhere, with a higher serial."""
    room.run(100)
    verdict, (again,) = tell(one, said(Kind.HERE, 1, 5000, at="10.0.7.7"))
    assert verdict is Verdict.RIVAL
    assert isinstance(again.what, Said)
    assert (again.what.kind, again.what.serial, again.to) == (Kind.HERE, 5001, "")
    assert tell(one, said(Kind.HERE, 1, 4000, at="10.0.7.7")) == (Verdict.RIVAL, [])
    assert tell(one, said(Kind.HERE, 1, 4000, at="10.0.7.7"), source="10.0.0.5") == (Verdict.OWN, [])


def test_the_later_claim_to_an_address_holds(room: Room, one: Machine) -> None:
    tell(one, said(Kind.HERE, 2, 100, at="10.0.5.5"))
    room.run(5)
    tell(one, said(Kind.HERE, 3, 200, at="10.0.5.5"))
    room.run(5)
    assert one.published == {**nodes(1), 3: ("10.0.5.5",)}
    assert one.roll.conflicts(room.now) == ["node 2 says it has 10.0.5.5, and another node said so later"]
    room.run(30)
    tell(one, said(Kind.HERE, 2, 300, at="10.0.5.6"))
    room.run(5)
    assert one.published == {**nodes(1), 2: ("10.0.5.6",), 3: ("10.0.5.5",)}
    assert one.roll.conflicts(room.now) == []


def test_my_own_address(room: Room, one: Machine) -> None:
    """Who was there before me is outbid, whatever his clock said; but not again and again."""
    tell(one, said(Kind.HERE, 2, 10_000, at=one.at), source="10.0.0.5")
    assert one.roll.serial == 10_001
    tell(one, said(Kind.HERE, 2, 20_000, at=one.at), source="10.0.0.5")
    assert one.roll.serial == 10_001
    room.run(70)
    assert one.published == {2: (one.at,)}, "an address that two machines use: nothing works anyway"
    tell(one, said(Kind.HERE, 2, 20_001, at=one.at), source="10.0.0.5")
    room.run(5)
    assert one.published == nodes(1)


def test_an_address_that_was_anothers_when_we_start(room: Room) -> None:
    one = room.start(1)
    late = said(Kind.HERE, 2, 10_000, at=one.at)
    one.roll.recall(late, encode(late), room.now)
    other = said(Kind.HERE, 3, 10_000)
    one.roll.recall(other, encode(other), room.now)
    room.run(10)
    assert one.published == nodes(1, 3)


def test_several_addresses(room: Room, one: Machine) -> None:
    two = said(Kind.HERE, 2, 100)
    tell(one, Said(VERSION, Kind.HERE, 2, 2, 100, addresses=(*two.addresses, "192.168.7.2", address(3))))
    tell(one, said(Kind.HERE, 3, 200))
    room.run(5)
    assert one.published == {**nodes(1, 3), 2: (address(2), "192.168.7.2")}


# ---------------------------------------------------------------- strangers


def test_strangers_and_refused_nodes(room: Room) -> None:
    one = room.start(1, word="ours", refused=[7])
    room.run(10)
    assert tell(one, said(Kind.HERE, 2, 100))[0] is Verdict.STRANGER
    assert tell(one, said(Kind.HERE, 7, 100, word="ours"))[0] is Verdict.REFUSED
    left = Said(VERSION, Kind.LEFT, 7, 2, 100, "ours")
    assert tell(one, left, source=address(7))[0] is Verdict.REFUSED
    assert tell(one, said(Kind.HERE, 2, 100, word="ours"))[0] is Verdict.NEWS
    room.run(10)
    assert one.published == nodes(1, 2)


def test_a_crowd_is_not_remembered(room: Room, one: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "KNOWN_MAX", 1)
    assert tell(one, said(Kind.HERE, 2, 100))[0] is Verdict.NEWS
    assert tell(one, said(Kind.HERE, 3, 100))[0] is Verdict.CROWD
    assert tell(one, said(Kind.HERE, 2, 101))[0] is Verdict.NEWS


def test_what_was_said_before_changes_nothing(room: Room, one: Machine) -> None:
    tell(one, said(Kind.HERE, 2, 100))
    assert tell(one, said(Kind.HERE, 2, 99, at="10.0.7.7"), source="10.0.0.5")[0] is Verdict.OLD
    assert tell(one, Said(VERSION, Kind.LEFT, 3, 2, 99), source=address(3))[0] is Verdict.OLD
    assert tell(one, said(Kind.HERE, 2, 100), source="10.0.0.5")[0] is Verdict.KNOWN
    room.run(10)
    assert one.published == nodes(1, 2)


def test_a_serial_at_its_end(one: Machine) -> None:
    tell(one, Said(VERSION, Kind.LEFT, 3, 1, SERIAL_MAX), source=address(3))
    assert one.roll.serial == SERIAL_MAX


def test_a_left_twice_heard_holds(room: Room, one: Machine) -> None:
    for serial in (100, 101):
        assert tell(one, Said(VERSION, Kind.LEFT, 3, 2, serial), source=address(3))[0] is Verdict.NEWS
    room.run(5)
    assert one.published == nodes(1)


# ---------------------------------------------------------------- all come to the same map


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_happens_all_come_to_the_same_map(data: st.DataObject) -> None:
    """Starts, ends, power cuts, other addresses, clones and machines that take a place, whatever their clocks say, lost
    datagrams and a network in two parts; then peace.
    """
    room = Room(data.draw(st.integers(0, 1000)))
    room.loses = data.draw(st.sampled_from([0.0, 0.1, 0.4]))
    for _ in range(data.draw(st.integers(1, 12))):
        living = [one for one in room.machines if one.is_on]
        what = data.draw(st.sampled_from(["start", "start", "another", "stop", "kill", "move", "cut", "heal"]))
        if what == "start":
            free = sorted({1, 2, 3, 4, 5} - {one.node for one in living})
            if free:
                room.start(data.draw(st.sampled_from(free)))
        elif what == "another":
            at = f"10.2.{len(room.machines)}.{room.chance.randrange(1, 255)}"
            another = room.start(data.draw(st.integers(1, 5)), at)
            another.roll.serial = max(0, another.roll.serial + data.draw(st.integers(-50, 50)))
        elif what == "cut":
            sides = [data.draw(st.booleans()) for _ in living]
            room.cut = {
                frozenset((one.at, other.at))
                for one, here in zip(living, sides, strict=True)
                for other, there in zip(living, sides, strict=True)
                if here != there
            }
        elif what == "heal":
            room.cut = set()
        elif living:
            one = data.draw(st.sampled_from(living))
            if what == "stop":
                one.stop()
            elif what == "kill":
                one.is_on = False
            else:
                one.at = f"10.1.{len(room.machines)}.{room.chance.randrange(1, 255)}"
                one.say(one.roll.move((one.at,), room.now))
        room.run(data.draw(st.sampled_from([0.5, 3.0, 20.0])))
    room.cut, room.loses = set(), 0.0
    if not any(one.is_on for one in room.machines):
        return

    def agree() -> bool:
        here = [one for one in room.machines if one.is_on]
        return len(room.maps()) == 1 and all(here[0].published.get(one.node) == (one.at,) for one in here)

    room.run(30)
    room.run_until(agree, within_s=120)


@given(
    st.dictionaries(st.integers(1, 600), st.integers(1, 600), min_size=1, max_size=40),
    st.dictionaries(st.integers(1, 600), st.integers(1, 600), min_size=1, max_size=40),
)
def test_a_map_says_what_was_meant_and_two_maps_are_never_taken_for_one(
    first: dict[int, int], second: dict[int, int]
) -> None:
    digests = []
    for numbers in (first, second):
        claimed: set[int] = set()
        members = {
            node: (address(at), f"192.168.{node >> 8}.{node & 255}") if node % 3 == 0 else (address(at),)
            for node, at in sorted(numbers.items())
            if not (at in claimed or claimed.add(at))  # type: ignore[func-returns-value]
        }
        read = parse_map("\n".join(map_lines(members)), "made")
        assert dict(read.nodes) == members
        assert read.digest == digest_of(members)
        digests.append((members, read.digest))
    assert (digests[0][0] == digests[1][0]) == (digests[0][1] == digests[1][1])


def test_neighbours_are_a_range() -> None:
    members = nodes(1, 2, 3, 7) | {8: ("10.0.0.9",), 255: ("10.0.0.255",), 256: ("10.0.1.0",)}
    assert map_lines(members) == ["1 10.0.0.1 3", "7 10.0.0.7 1", "8 10.0.0.9 1", "255 10.0.0.255 1", "256 10.0.1.0 1"]
