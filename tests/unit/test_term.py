"""The clockwork of a holder's leases: scenes by hand, and any order of events against the promise to the owner."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from omfs.net.term import SPAN, TERM_MAX_S, TERM_MIN_S, State, Term

TERM_S = 12.0


def held(at_s: float = 0.0) -> Term:
    """A term that began with an answer to what was sent at *at_s*."""
    term = Term()
    term.agree(TERM_S)
    term.answered(at_s, at_s)
    return term


def test_it_begins_with_an_answer_and_ends_before_the_owner_counts_it_over() -> None:
    term = Term()
    term.agree(TERM_S)
    assert term.round_at(0) == 0
    term.answered(100, 101)
    assert term.round_at(101) == 1
    assert term.until_s == 100 + SPAN * TERM_S
    assert term.until_s < 100 + TERM_S
    assert term.round_at(term.until_s - 0.1) == 1
    assert not term.is_over(term.until_s - 0.1)
    assert term.round_at(term.until_s) == 0
    assert term.is_over(term.until_s)


def test_an_answer_to_what_was_sent_too_long_ago_begins_nothing() -> None:
    term = Term()
    term.agree(TERM_S)
    term.answered(0, TERM_S)
    assert term.state is State.NOTHING
    assert term.round_at(TERM_S) == 0


def test_answers_renew_and_late_ones_take_nothing_back() -> None:
    term = held()
    term.answered(6, 6)
    until_s = term.until_s
    term.answered(3, 7)
    assert term.until_s == until_s
    assert term.round_at(10) == 1


def test_after_a_lapse_all_must_be_dropped_and_told_first() -> None:
    term = held()
    assert term.lapse()
    assert not term.lapse()  # told once
    term.answered(1, 1)
    assert term.round_at(1) == 0
    term.returned()  # nobody can have told what is not dropped yet
    assert term.state is State.LAPSED
    term.dropped()
    term.answered(2, 2)
    assert term.round_at(2) == 0
    term.returned()
    assert term.round_at(2) == 0
    term.answered(2, 3)
    assert term.round_at(3) == 2
    term.dropped()  # of no lapse
    assert term.round_at(3) == 2
    assert term.lapses == 1


def test_what_another_session_answered_counts_no_more() -> None:
    term = held()
    assert term.owner_forgot()
    term.dropped()
    term.returned()
    assert term.state is State.NOTHING
    assert term.until_s == -math.inf
    assert not term.owner_forgot()  # nothing was held


@pytest.mark.parametrize("term_s", [0.0, -1.0, TERM_MIN_S / 2, TERM_MAX_S * 2, math.inf, math.nan])
def test_an_owner_that_says_nonsense_gives_no_leases(term_s: float) -> None:
    term = Term()
    term.agree(term_s)
    term.answered(5, 5)
    assert term.round_at(5) == 0
    assert term.renew_every_s == math.inf


def test_renewals_leave_room_for_a_lost_one() -> None:
    assert 2 * held().renew_every_s < SPAN * TERM_S


EVENTS = st.sampled_from(["send", "answer", "answer", "look", "dropped", "returned", "forget", "lapse"])


@given(st.lists(st.tuples(EVENTS, st.floats(0, 5)), max_size=60), st.integers(0, 3))
def test_never_valid_after_the_term(events: list[tuple[str, float]], which: int) -> None:
    """The owner of a session hears what is sent no earlier than it was sent, and waits a whole term from then on."""
    term = Term()
    term.agree(TERM_S)
    now_s = 0.0
    sent: list[float] = []  # and not answered
    heard_s = -math.inf  # the latest that this owner's session can have heard, going by what it answered
    must_drop = must_tell = False
    rounds: list[int] = []
    for event, later_s in events:
        now_s += later_s
        if term.is_over(now_s) and event == "look":
            assert term.lapse()
            must_drop = must_tell = True
        match event:
            case "send":
                sent.append(now_s)
            case "answer" if sent:
                sent_s = sent.pop(which % len(sent))
                heard_s = max(heard_s, sent_s)
                term.answered(sent_s, now_s)
            case "dropped":
                term.dropped()
                must_drop = False
            case "returned":
                term.returned()
                must_tell = must_tell and must_drop
            case "forget" | "lapse":
                if event == "forget":
                    heard_s = -math.inf
                    sent.clear()
                if term.owner_forgot() if event == "forget" else term.lapse():
                    must_drop = must_tell = True
        number = term.round_at(now_s)
        if number:
            assert now_s < heard_s + SPAN * TERM_S
            assert not must_drop
            assert not must_tell
            assert number == term.lapses + 1  # another round after each lapse, and only then
            rounds.append(number)
    assert rounds == sorted(rounds)
