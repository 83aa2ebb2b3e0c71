"""The rules of gossip: who is believed, what is newer, who is suspected and how that is taken back."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st

from mignode import gossip
from mignode.gossip import Board, Message, Said, Verdict
from mignode.nodeinfo import CONFIGURED, QUIET, UP, NodeInfo

MAP = range(1, 6)
INFO = NodeInfo(node=9, incarnation=9, seq=9, load=120)  # a board fills in whose it is


def board(own: int, nodes: Iterable[int] = MAP, incarnation: int = 100, seed: int = 7) -> Board:
    return Board(own, incarnation, nodes, random.Random(seed))


def record(node: int, seq: int, incarnation: int = 100, **fields: int) -> NodeInfo:
    return NodeInfo(node=node, incarnation=incarnation, seq=seq, **fields)


def said_by(
    sender: int, *records: Said, to: int = 1, number: int = 1, incarnation: int = 100, to_incarnation: int = 100,
    asks: bool = False,
) -> Message:  # fmt: skip
    own = Said(record(sender, number, incarnation), 0.0)
    return Message(sender, incarnation, number, to, to_incarnation, asks, (own, *records))


def talk(asker: Board, answerer: Board, now_s: float) -> None:
    """*asker* has a period, and only *answerer* hears of it."""
    for message in asker.tick(INFO, now_s):
        _, answer = answerer.receive(message, now_s)
        if answer is not None:
            asker.receive(answer, now_s)


def test_two_that_never_met_know_each_other_after_two_periods() -> None:
    one, two = board(1, (1, 2)), board(2, (1, 2), incarnation=50)
    two.tick(INFO, 0.0)
    talk(one, two, 0.1)
    assert one.of(2, 0.1) is not None
    assert two.of(1, 0.1) is None  # it was not for this life of two, as one could not know
    talk(one, two, 1.1)
    found = two.of(1, 3.1)
    assert found is not None
    assert (found.load, found.incarnation, found.seq, found.age_s) == (120, 100, 2, 2.0)
    assert found.is_up
    assert [info.node for info in two.known(3.1)] == [1]


def test_what_was_said_counts_once_and_here_and_now() -> None:
    me = board(1)
    me.tick(INFO, 0.0)
    message = said_by(2, number=5)
    assert me.receive(message, 0.0) == (Verdict.BELIEVED, None)
    for again in (message, said_by(2, number=4), said_by(2, number=99, incarnation=99)):
        assert me.receive(again, 0.0) == (Verdict.REPLAYED, None)
    assert me.receive(said_by(2, number=6, to=3), 0.0) == (Verdict.MISDIRECTED, None)
    assert me.receive(said_by(7, number=6), 0.0) == (Verdict.STRANGER, None)
    assert me.receive(said_by(2, number=6, to_incarnation=99), 0.0) == (Verdict.EARLY, None)
    known = me.of(2, 0.0)
    assert known is not None
    assert known.seq == 5
    assert me.receive(said_by(2, number=1, incarnation=101), 0.0)[0] == Verdict.BELIEVED  # it was started again


def test_an_early_question_is_answered_with_what_is_needed_to_ask_better() -> None:
    me = board(1)
    me.tick(INFO, 0.0)
    verdict, answer = me.receive(said_by(2, to_incarnation=0, asks=True), 0.0)
    assert verdict == Verdict.EARLY
    assert answer is not None
    assert (answer.to, answer.to_incarnation, answer.incarnation, answer.asks) == (2, 100, 100, False)


def test_answers_are_bounded() -> None:
    me = board(1)
    assert me.receive(said_by(2, number=1, asks=True), 0.0) == (Verdict.BELIEVED, None)  # it knows nothing to say yet
    me.tick(INFO, 0.0)
    answers = [me.receive(said_by(2, number=number, asks=True), 0.0)[1] for number in range(2, 40)]
    assert sum(answer is not None for answer in answers) == gossip.ANSWERS_MAX
    me.tick(INFO, 1.0)
    assert me.receive(said_by(2, number=50, asks=True), 1.0)[1] is not None


@pytest.mark.parametrize("number", [1, 2])
def test_a_life_that_others_remember_is_outlived(number: int) -> None:
    me = board(1, incarnation=10)
    if number == 1:
        me.receive(said_by(2, to_incarnation=77), 0.0)
    else:
        me.receive(said_by(2, Said(record(1, 5, 77), 0.0), to_incarnation=10), 0.0)
    assert me.incarnation == 78
    assert me.tick(INFO, 0.0)[0].incarnation == 78


@given(st.permutations([(1, 1), (1, 2), (1, 9), (2, 1), (2, 3)]))
def test_the_newest_wins_in_whatever_order_it_comes(versions: list[tuple[int, int]]) -> None:
    me = board(1)
    for number, (incarnation, seq) in enumerate(versions, 1):
        age_s = 100.0 - 10 * incarnation - seq
        me.receive(said_by(2, Said(record(3, seq, incarnation, load=seq), age_s), number=number), 0.0)
    found = me.of(3, 0.0)
    assert found is not None
    assert (found.incarnation, found.seq, found.load, found.age_s) == (2, 3, 3, 77.0)


def test_nobody_outside_the_map_is_known_and_who_leaves_it_is_forgotten() -> None:
    me = board(1)
    me.receive(said_by(2, Said(record(8, 1), 0.0), Said(record(3, 1), 0.0)), 0.0)
    assert [info.node for info in me.known(0.0)] == [2, 3]
    me.set_map((1, 3, 8))
    for number in range(1, 4 * gossip.WINDOW + 2):
        me.receive(said_by(3, number=number), 0.0)
    assert [info.node for info in me.known(0.0)] == [3]
    assert [message.to for message in me.goodbye(0.0)] == []  # it has said nothing yet
    me.tick(INFO, 0.0)
    assert [message.to for message in me.goodbye(0.0)] == [3]
    assert all(message.to in (3, 8) for second in range(20) for message in me.tick(INFO, second))
    me.set_map(MAP)
    assert me.receive(said_by(2), 20.0)[0] == Verdict.REPLAYED  # who comes back has not said it anew


def test_alone_in_the_map() -> None:
    me = board(1, (1,))
    assert me.tick(INFO, 0.0) == []
    assert me.goodbye(1.0) == []


def test_who_knows_nobody_asks_several_and_who_does_asks_one() -> None:
    me = board(1, range(1, 257))
    assert len(me.tick(INFO, 0.0)) == gossip.LONELY_ASKS
    for second in range(1, 50):
        me.receive(said_by(2, number=second), float(second))
        assert len(me.tick(INFO, float(second))) == 1


def test_a_goodbye_is_believed_at_once_and_goes_round() -> None:
    nodes = (1, 2, 3)
    one, two, three = (board(node, nodes) for node in nodes)
    one.receive(said_by(2), 0.0)
    three.receive(said_by(1, to=3), 0.0)
    three.receive(said_by(2, to=3, number=2), 0.0)
    assert two.goodbye(0.0) == []  # it has said nothing yet
    two.receive(said_by(1, to=2, number=2), 0.0)
    two.tick(INFO, 0.0)
    (goodbye,) = two.goodbye(0.5)
    one.tick(INFO, 0.5)
    assert one.receive(goodbye._replace(number=9), 0.6)[0] == Verdict.BELIEVED
    found = one.of(2, 0.6)
    assert found is not None
    assert found.status == CONFIGURED
    _, answer = one.receive(said_by(3, number=3, asks=True), 0.7)
    assert answer is not None
    assert [said.info.node for said in answer.records] == [1, 2]  # news first


# ---------------------------------------------------------------- windows


def test_a_window_holds_the_youngest_and_nothing_old() -> None:
    me = board(1, range(1, 100))
    me.tick(INFO, 0.0)
    for node in range(2, 90):
        me.receive(said_by(node), node / 10)
    now_s = 9.0
    me.tick(INFO, now_s)
    _, answer = me.receive(said_by(89, number=2, asks=True), now_s)
    assert answer is not None
    assert [said.info.node for said in answer.records] == [1, *range(88, 88 - gossip.WINDOW + 1, -1)]
    assert answer.records[1].age_s == pytest.approx(now_s - 8.8)
    me.tick(INFO, 40.0)
    _, answer = me.receive(said_by(2, number=2, asks=True), 40.0)
    assert answer is not None
    assert [said.info.node for said in answer.records] == [1]


def test_many_rounds_keep_the_list_of_the_youngest_short() -> None:
    me = board(1)
    for number in range(1, 1000):
        me.receive(said_by(2 + number % 4, number=number), number / 10)
    assert len(me._recent) <= 4 * gossip.WINDOW
    _, answer = _asked(me, 3, 100.0, 5000)
    assert sorted(said.info.node for said in answer.records) == [1, 2, 4, 5]


def _asked(me: Board, by: int, now_s: float, number: int) -> tuple[Verdict, Message]:
    me.tick(INFO, now_s)
    verdict, answer = me.receive(said_by(by, number=number, asks=True), now_s)
    assert answer is not None
    return verdict, answer


# ---------------------------------------------------------------- who is down


def silence(me: Board, node: int, now_s: float) -> float:
    """Periods in which *node* never answers and others do, until it is suspected; the time then."""
    for second in range(200):
        for message in me.tick(INFO, now_s):
            if message.to != node:
                reply = 10_000 + round(now_s * 10)
                me.receive(said_by(message.to, number=reply), now_s)
        if me._known[node].is_suspected:
            return now_s
        now_s += 1.0
        assert second < 150
    raise AssertionError


def test_who_never_answers_is_suspected_and_then_down() -> None:
    me = board(1, (1, 2, 3))
    me.receive(said_by(2), 0.0)
    me.receive(said_by(3), 0.0)
    suspected_s = silence(me, 3, 0.0)
    found = me.of(3, suspected_s)
    assert found is not None
    assert found.is_up  # for now
    end_s = suspected_s + me.suspected_at_most_s
    for now_s, is_up in ((end_s - 0.1, True), (end_s + 0.1, False)):
        found = me.of(3, now_s)
        assert found is not None
        assert found.is_up is is_up
    assert {message.to for second in range(40) for message in me.tick(INFO, end_s + second)} == {2, 3}  # strangers too
    me.receive(said_by(3, number=50), end_s + 60)
    found = me.of(3, end_s + 60)
    assert found is not None
    assert found.is_up


def suspicion(node: int, seq: int, age_s: float, for_s: float) -> Said:
    return Said(record(node, seq), age_s, for_s)


def test_a_suspicion_holds_for_all_that_was_true_before_it_and_nothing_later() -> None:
    """The one that suspects may know less than others: what counts is when."""
    me = board(1)
    me.receive(said_by(2, Said(record(3, 50), 6.0)), 10.0)  # true at 4
    me.receive(said_by(2, suspicion(3, 40, 9.0, 2.0), number=2), 10.0)  # since 8, by who knows what was at 1
    assert me._known[3].suspected_s == 8.0
    assert me._known[3].info.seq == 50
    me.receive(said_by(2, suspicion(3, 40, 9.0, 5.0), number=3), 10.0)  # somebody suspected earlier
    assert me._known[3].suspected_s == 5.0
    me.receive(said_by(2, Said(record(3, 52), 5.5), number=4), 10.0)  # newer, but true before
    assert me._known[3].suspected_s == 5.0
    assert me._known[3].info.seq == 52
    me.receive(said_by(2, Said(record(3, 55), 1.0), number=5), 10.0)  # true at 9
    assert me._known[3].suspected_s == math.inf
    me.receive(said_by(2, suspicion(3, 40, 9.0, 2.0), number=6), 10.0)
    assert me._known[3].suspected_s == math.inf


def test_who_knows_better_than_a_suspicion_says_so() -> None:
    me = board(1)
    me.receive(said_by(2, Said(record(3, 55), 1.0)), 10.0)
    _, answer = _asked(me, 2, 40.0, 2)
    assert 3 not in [said.info.node for said in answer.records]  # too old to be told
    me.receive(said_by(2, suspicion(3, 40, 60.0, 35.0), number=3), 40.0)
    _, answer = _asked(me, 4, 40.5, 4)
    assert [said.info.node for said in answer.records[:2]] == [1, 3]
    assert answer.records[1].suspected_s < 0


def test_who_hears_of_a_suspicion_looks_for_himself() -> None:
    """In a small cluster everybody does."""
    me = board(1)
    for node in (2, 3, 4, 5):
        me.receive(said_by(node), 0.0)
    me.receive(said_by(2, suspicion(3, 1, 5.0, 0.0), suspicion(4, 1, 5.0, 0.0), number=2), 5.0)
    me.set_map((1, 2, 3, 5))  # of those who have left, nobody asks
    assert [message.to for message in me.tick(INFO, 5.0)] == [3]
    assert [message.to for message in me.tick(INFO, 5.1)] != [4]


def test_who_is_suspected_says_at_once_what_is_later_than_that() -> None:
    """Its answer would else be what it was before its period: as old as the suspicion, which then held."""
    me = board(1)
    me.tick(INFO, 0.0)
    for seq in (1, 2):
        suspected = Said(record(1, seq=1), 0.2, suspected_s=0.1)
        _, answer = me.receive(said_by(2, suspected, number=seq, asks=True), 0.2)
        assert answer is not None
        assert answer.records[0].info.seq == 1 + seq
        assert answer.records[0].info.load == INFO.load
    other = board(2, seed=3)
    other.tick(INFO, 0.0)
    other.receive(said_by(3, Said(record(1, seq=1), 0.2, suspected_s=0.1), to=2), 0.2)
    other.receive(said_by(1, to=2, number=2), 0.3)
    assert not other._known[1].is_suspected


def test_who_is_suspected_before_it_has_said_anything_has_nothing_to_contradict_with_yet() -> None:
    """It was there before, went, and came back: its first record is of a later life than the one that is suspected."""
    me = board(1, incarnation=101)
    suspected = Said(record(1, seq=4, incarnation=100), 0.2, suspected_s=0.1)
    assert me.receive(said_by(2, suspected, to_incarnation=101, asks=True), 0.2) == (Verdict.BELIEVED, None)
    other = board(2)
    other.receive(said_by(3, suspected, to=2), 0.2)
    assert other._known[1].is_suspected
    talk(me, other, 0.3)
    assert not other._known[1].is_suspected


def test_news_stop_being_news() -> None:
    me = board(1)
    me.receive(said_by(2, suspicion(3, 40, 3.0, 0.5)), 0.0)
    me.receive(said_by(2, Said(record(3, 41), 0.0), number=2), 0.0)
    assert me._news == [3]
    for number in range(3, 60):
        _asked(me, 2, 30.0 + number, number)
    assert me._news == []


def test_news_of_who_left_the_map_are_not_told() -> None:
    me = board(1)
    me.receive(said_by(2, Said(record(3, 40), 3.0)), 0.0)
    me.receive(said_by(2, suspicion(3, 40, 3.0, 0.5), number=2), 0.0)
    me.set_map((1, 2, 4))
    _, answer = _asked(me, 2, 0.5, 3)
    assert [said.info.node for said in answer.records] == [1]


def test_what_nobody_has_heard_for_very_long_is_down() -> None:
    me = board(1)
    me.receive(said_by(2), 0.0)
    for now_s, is_up in ((me.age_max_s - 1, True), (me.age_max_s + 1, False)):
        found = me.of(2, now_s)
        assert found is not None
        assert found.is_up is is_up


def test_where_answers_get_lost_more_tries_are_needed() -> None:
    tries = {}
    for lost in (0, 1):
        me = board(1, (1, 2))
        me.receive(said_by(2), 0.0)
        for second in range(200):
            me.tick(INFO, second)
            if second % 2 >= lost:
                me.receive(said_by(2, number=second + 2), second + 0.5)
        tries[lost] = me.tries
    assert tries[0] == gossip.TRIES_MIN < tries[1] <= gossip.TRIES_MAX


def test_the_record_of_a_node() -> None:
    info = record(3, 1, status=CONFIGURED | UP | QUIET)
    assert info.is_up
    assert not info.tells_load
    assert record(3, 1).tells_load
    assert not record(3, 1, status=CONFIGURED).tells_load
