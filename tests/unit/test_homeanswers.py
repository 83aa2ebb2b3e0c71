"""Home's answers, and what is written down when they go out."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mignode.handover import Record
from mignode.homeanswers import Question, answer
from mignode.record import Files, records
from mignode.words import Attend, Begin, Begun, Commit, GiveBack, Located, Refused, WhereIs

HOME = 1
GUEST = "1.4242.998877"


@pytest.fixture
def kept(tmp_path: Path) -> Files[Record]:
    kept = records(tmp_path)
    kept.write(GUEST, Record(HOME))
    return kept


def test_a_guest_moves_and_comes_back(kept: Files[Record]) -> None:
    assert answer(kept, HOME, 1, Begin(GUEST, 1, 2)) == Begun(2, 2)
    assert kept.read(GUEST) == Record(1, issued=2, destination=2)
    assert answer(kept, HOME, 1, Commit(GUEST, 2)) == Located(2, 2, 2, False)
    assert kept.read(GUEST) == Record(2, epoch=2, issued=2, source=1)
    assert answer(kept, HOME, 2, Attend(GUEST, 2)) == Located(2, 2, 2, True)
    assert answer(kept, HOME, 2, Begin(GUEST, 2, 1)) == Begun(3, 1)
    assert answer(kept, HOME, 2, Commit(GUEST, 3)) == Located(3, 3, 1, False)
    assert answer(kept, HOME, 1, GiveBack(GUEST, 3)) == Located(3, 4, 2, True)
    assert kept.read(GUEST) == Record(2, epoch=4, issued=4)


def test_who_is_in_doubt_is_told_and_it_stays_so(kept: Files[Record]) -> None:
    answer(kept, HOME, 1, Begin(GUEST, 1, 2))
    assert answer(kept, HOME, 2, WhereIs(GUEST, 2)) == Located(2, 1, 1, True)
    assert answer(kept, HOME, 1, Commit(GUEST, 2)) == Located(2, 1, 1, True)
    assert kept.read(GUEST) == Record(1, issued=2)


def test_who_has_no_say_changes_nothing(kept: Files[Record]) -> None:
    answer(kept, HOME, 1, Begin(GUEST, 1, 2))
    before = kept.read(GUEST)
    refused = answer(kept, HOME, 3, Begin(GUEST, 1, 3))
    assert isinstance(refused, Refused)
    assert refused.errno == errno.EBUSY
    for question in (Commit(GUEST, 2), WhereIs(GUEST, 2), GiveBack(GUEST, 2), Attend(GUEST, 1)):
        assert answer(kept, HOME, 3, question) == Located(
            question.epoch if isinstance(question, Attend) else 2, 1, 1, True
        )
    assert kept.read(GUEST) == before


@pytest.mark.parametrize("question", [Commit(GUEST, 2), WhereIs(GUEST, 2), GiveBack(GUEST, 2), Attend(GUEST, 2)])
def test_a_guest_that_has_ended_is_nowhere(kept: Files[Record], question: Question) -> None:
    kept.forget(GUEST)
    assert answer(kept, HOME, 2, question) == Located(2, 0, 0, True)
    assert kept.read(GUEST) is None


def test_a_guest_that_has_ended_can_not_move(kept: Files[Record]) -> None:
    kept.forget(GUEST)
    assert answer(kept, HOME, 1, Begin(GUEST, 1, 2)) == Refused(errno.ESRCH, f"guest {GUEST} has ended")


def test_a_guest_of_another_node(kept: Files[Record]) -> None:
    assert answer(kept, HOME, 2, WhereIs("3.1.1", 2)) == Refused(errno.ESRCH, "guest 3.1.1 is not one of node 1")


def test_what_can_not_be_written_is_not_answered(kept: Files[Record], tmp_path: Path) -> None:
    (tmp_path / "guests" / GUEST / "record.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        answer(kept, HOME, 1, Begin(GUEST, 1, 2))
    assert kept.read(GUEST) == Record(HOME)
