"""The owner's side of leases, row by row: who waits for whom, what is granted, what a return ends."""

from __future__ import annotations

import pytest

from omfs.cache.owner import STUCK_S, Change, Need, Owner, Recall, Ticket
from omfs.cache.rules import Use
from omfs.wiretypes import Mode

A, B, C = b"session a", b"session b", b"session c"
F, D, E = b"file", b"directory", b"other directory"
CHANGE = (Need(F, Use.CHANGE),)
CHMOD = (Need(D, Use.CHANGE_DIRECTORY),)


def name(*names: bytes, directory: bytes = D) -> tuple[Need, ...]:
    return tuple(Need(directory, Use.NAME, one) for one in names)


@pytest.fixture
def owner() -> Owner:
    return Owner()


def hold(owner: Owner, session: bytes, *handles: bytes, mode: Mode = Mode.SHARED) -> int:
    serial, modes = owner.grant(session, handles, 0.0, mode)
    assert modes == [mode] * len(handles)
    return serial


def modes(owner: Owner, session: bytes, *handles: bytes, now_s: float = 0.0, mode: Mode = Mode.SHARED) -> list[Mode]:
    return owner.grant(session, handles, now_s, mode)[1]


def waiting(owner: Owner, session: bytes, needs: tuple[Need, ...]) -> tuple[Ticket, list[Recall]]:
    """A request that must wait."""
    assert not owner.is_free(session, needs)
    ticket, recalls = owner.begin(session, needs, 0.0)
    assert ticket not in owner.ready()
    return ticket, recalls


def circle_of_two(owner: Owner) -> tuple[Ticket, Ticket]:
    """Of A and B in D; A is refused."""
    first = owner.begin(A, name(b"x"), 0.0)[0]
    second = owner.begin(B, name(b"y"), 0.0)[0]
    owner.refuse_stuck(STUCK_S)
    assert (first.refused, second.refused) == (True, False)
    return first, second


# ------------------------------------------------------------ nobody in the way


def test_where_nothing_is_held_everything_is_free(owner: Owner) -> None:
    assert owner.is_free(A, (*CHANGE, *name(b"x")))
    assert (owner.is_held(F), owner.holders_of(F), owner.mode_of(A, F), len(owner)) == (False, [], Mode.NONE, 0)
    assert (owner.recalls_at(A), owner.held_by(A)) == ([], 0)


def test_what_one_session_holds(owner: Owner) -> None:
    hold(owner, B, F)
    hold(owner, A, D)
    serial = hold(owner, A, E)
    assert set(owner.leases_of(A)) == {Change(A, D, Mode.SHARED, serial - 1), Change(A, E, Mode.SHARED, serial)}
    assert list(owner.leases_of(C)) == []


def test_the_own_lease_is_in_nobodys_way(owner: Owner) -> None:
    hold(owner, A, F, D)
    assert owner.is_free(A, (*CHANGE, *name(b"x")))
    ticket, recalls = owner.begin(A, CHANGE, 0.0)
    assert (recalls, owner.ready()) == ([], [ticket])
    owner.end(ticket)
    assert owner.ready() == []


def test_who_looks_waits_for_no_shared_holder(owner: Owner) -> None:
    hold(owner, A, F)
    look = (Need(F, Use.LOOK),)
    assert owner.is_free(B, look)
    ticket, recalls = owner.begin(B, look, 0.0)
    assert (recalls, owner.ready()) == ([], [ticket])
    assert modes(owner, B, F) == [Mode.SHARED]  # looking does not stop grants
    owner.end(ticket)


# ------------------------------------------------------------ recalls


def test_a_change_waits_until_every_other_holder_has_given_back(owner: Owner) -> None:
    hold(owner, A, F)
    hold(owner, B, F)
    hold(owner, C, F)
    ticket, recalls = waiting(owner, A, CHANGE)
    assert [(recall.session, recall.handle, recall.mode, recall.names) for recall in recalls] == [
        (B, F, Mode.NONE, None),
        (C, F, Mode.NONE, None),
    ]
    assert owner.recalls_at(B) == [recalls[0]]
    owner.returned(B, recalls[0].serial)
    assert owner.ready() == []
    owner.returned(C, recalls[1].serial)
    assert owner.ready() == [ticket]
    assert owner.holders_of(F) == [A]
    assert (owner.held_by_others(A), owner.held_by_others(B)) == (False, True)
    owner.end(ticket)


def test_a_name_is_forgotten_and_the_lease_kept(owner: Owner) -> None:
    hold(owner, B, D)
    ticket, (recall,) = waiting(owner, A, name(b"x"))
    assert (recall.names, recall.mode) == ((b"x",), Mode.SHARED)
    owner.returned(B, recall.serial)
    assert owner.ready() == [ticket]
    assert owner.mode_of(B, D) is Mode.SHARED
    owner.end(ticket)


def test_a_changed_directory_keeps_its_names(owner: Owner) -> None:
    hold(owner, B, D)
    _, (recall,) = waiting(owner, A, CHMOD)
    assert recall.names == ()


def test_who_did_not_look_since_it_forgot_gives_back(owner: Owner) -> None:
    hold(owner, B, D)
    for needs, names in ((name(b"x"), (b"x",)), (name(b"y"), None)):
        ticket, (recall,) = waiting(owner, A, needs)
        assert recall.names == names
        owner.returned(B, recall.serial)
        owner.end(ticket)
    assert not owner.is_held(D)
    hold(owner, B, D)
    assert waiting(owner, A, name(b"z"))[1][0].names == (b"z",)  # it looked


def test_a_rename_within_a_directory_is_one_recall_of_two_names(owner: Owner) -> None:
    """Two needs of one request are no two strikes."""
    hold(owner, B, D)
    _, (recall,) = waiting(owner, A, name(b"x", b"y"))
    assert recall.names == (b"x", b"y")


def test_a_recall_under_way_serves_another_request(owner: Owner) -> None:
    hold(owner, C, F, D)
    first, (given_back,) = waiting(owner, A, CHANGE)
    second, none = waiting(owner, B, CHANGE)
    assert none == []
    named, (forget,) = waiting(owner, A, name(b"x"))
    assert waiting(owner, A, CHMOD)[1] == []  # the attributes are among what it forgets already
    assert [recall.names for recall in waiting(owner, A, name(b"y"))[1]] == [None]  # but not this name
    assert waiting(owner, A, name(b"z"))[1] == []  # with everything
    owner.returned(C, given_back.serial)
    assert owner.ready() == [first, second]
    owner.returned(C, forget.serial)
    assert named in owner.ready()


def test_an_exclusive_holder_shares_with_who_looks(owner: Owner) -> None:
    hold(owner, B, F, mode=Mode.EXCLUSIVE)
    assert modes(owner, A, F) == [Mode.NONE]
    ticket, (recall,) = waiting(owner, A, (Need(F, Use.LOOK),))
    assert (recall.mode, recall.names) == (Mode.SHARED, None)
    assert waiting(owner, C, (Need(F, Use.LOOK),))[1] == []
    change, (more,) = waiting(owner, A, CHANGE)  # SHARED is not enough for this one
    assert more.mode is Mode.NONE
    owner.returned(B, recall.serial)
    assert ticket in owner.ready()
    assert owner.mode_of(B, F) is Mode.SHARED
    owner.returned(B, more.serial)
    assert change in owner.ready()
    assert [change.mode for change in owner.changes] == [Mode.EXCLUSIVE, Mode.SHARED, Mode.NONE]


def test_what_concerns_everybody_spares_not_even_who_asks(owner: Owner) -> None:
    """And is not refused: a file is not kept locked by who waits (only directories are)."""
    hold(owner, A, F)
    needs = (Need(F, Use.CHANGE, everybody=True),)
    ticket, (recall,) = waiting(owner, A, needs)
    assert recall.session == A
    owner.returned(A, recall.serial)
    assert owner.ready() == [ticket]
    assert not ticket.refused


# ------------------------------------------------------------ grants


def test_nothing_is_granted_on_what_is_being_changed(owner: Owner) -> None:
    hold(owner, A, F)
    ticket, (recall,) = waiting(owner, B, CHANGE)
    assert modes(owner, C, F, D) == [Mode.NONE, Mode.SHARED]
    owner.returned(A, recall.serial)
    assert modes(owner, A, F) == [Mode.NONE]
    owner.end(ticket)
    assert modes(owner, A, F) == [Mode.SHARED]


def test_nothing_is_granted_to_whom_it_is_recalled_from(owner: Owner) -> None:
    hold(owner, A, D)
    hold(owner, B, D)
    (at_a, at_b) = owner.changed_here(D, (b"x",))
    assert modes(owner, A, D) == [Mode.NONE]
    assert modes(owner, C, D) == [Mode.SHARED]
    owner.returned(A, at_a.serial)
    assert modes(owner, A, D) == [Mode.SHARED]
    assert owner.recalls_at(B) == [at_b]


def test_a_serial_counts_grants_and_recalls_of_a_session(owner: Owner) -> None:
    assert hold(owner, A, F) == 1
    (recall,) = owner.changed_here(F)
    assert recall.serial == 2
    assert hold(owner, A, D) == 3
    assert hold(owner, B, F) == 1


def test_nobody_loses_by_asking_for_less(owner: Owner) -> None:
    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    assert modes(owner, A, F) == [Mode.EXCLUSIVE]
    assert owner.changes == [Change(A, F, Mode.EXCLUSIVE, 1)]


def test_one_asks_for_more(owner: Owner) -> None:
    hold(owner, A, F)
    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    assert [change.mode for change in owner.changes] == [Mode.SHARED, Mode.EXCLUSIVE]
    assert modes(owner, B, F) == [Mode.NONE]


def test_exclusive_is_not_granted_beside_another(owner: Owner) -> None:
    hold(owner, A, F)
    assert modes(owner, B, F, mode=Mode.EXCLUSIVE) == [Mode.NONE]
    assert list(owner.leases()) == [Change(A, F, Mode.SHARED, 1)]


def test_exclusive_is_of_the_first_of_several(owner: Owner) -> None:
    assert modes(owner, A, F, D, mode=Mode.EXCLUSIVE) == [Mode.EXCLUSIVE, Mode.SHARED]
    assert owner.exclusive == {F: A}


def test_whoever_waits_keeps_exclusive_from_being_granted(owner: Owner) -> None:
    """Also who only looks: when it is his turn, nobody may have newer data again."""
    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    look, (recall,) = waiting(owner, B, (Need(F, Use.LOOK),))
    assert not owner.may_be_exclusive(A, F, 0.0)  # it is recalled
    owner.returned(A, recall.serial)
    assert owner.ready() == [look]
    assert not owner.may_be_exclusive(A, F, 0.0)
    assert modes(owner, A, F, mode=Mode.EXCLUSIVE) == [Mode.NONE]
    assert modes(owner, A, F) == [Mode.SHARED]
    owner.end(look)
    assert owner.may_be_exclusive(A, F, 0.0)
    hold(owner, A, F, mode=Mode.EXCLUSIVE)


def test_exclusive_is_granted_neither_in_the_grace_nor_where_it_is_contended(owner: Owner) -> None:
    owner.in_grace = True
    assert modes(owner, A, F, mode=Mode.EXCLUSIVE) == [Mode.NONE]
    owner.in_grace = False
    hold(owner, A, D)
    hold(owner, B, D)
    circle_of_two(owner)
    assert not owner.may_be_exclusive(A, D, STUCK_S)
    assert owner.may_be_exclusive(A, F, STUCK_S)


def test_what_is_exclusive_is_known_until_it_is_not(owner: Owner) -> None:
    def no_longer() -> list[bytes]:
        told, owner.shared_again = owner.shared_again, []
        return told

    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    (recall,) = owner.changed_here(F)
    owner.returned(A, recall.serial)
    assert (owner.exclusive, no_longer()) == ({}, [F])
    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    owner.share(B, F)
    assert (owner.exclusive, no_longer()) == ({F: A}, [])
    owner.share(A, F)
    assert (owner.mode_of(A, F), owner.exclusive, no_longer()) == (Mode.SHARED, {}, [F])
    assert owner.changes[-1].mode is Mode.SHARED
    owner.share(A, F)
    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    after = Owner()
    after.restore(owner.leases())
    assert after.exclusive == {F: A}
    owner.end_session(A)
    assert (owner.exclusive, no_longer()) == ({}, [F])


def test_a_recall_that_was_overtaken_by_a_new_grant_ends_nothing(owner: Owner) -> None:
    """To SHARED as well as to NONE."""
    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    ticket, (recall,) = waiting(owner, B, (Need(F, Use.LOOK),))
    owner.end_session(A)
    owner.end(ticket)
    hold(owner, A, F, mode=Mode.EXCLUSIVE)
    owner.returned(A, recall.serial)
    assert owner.mode_of(A, F) is Mode.EXCLUSIVE


def test_two_who_want_it_for_themselves_are_served_one_after_the_other(owner: Owner) -> None:
    hold(owner, A, F)
    hold(owner, B, F)
    first, (at_b,) = waiting(owner, A, CHANGE)
    second, (at_a,) = waiting(owner, B, CHANGE)
    owner.returned(B, at_b.serial)
    owner.returned(A, at_a.serial)
    assert owner.ready() == [first, second]
    owner.end(first)
    assert modes(owner, A, F, mode=Mode.EXCLUSIVE) == [Mode.NONE]
    owner.end(second)
    assert modes(owner, B, F, mode=Mode.EXCLUSIVE) == [Mode.EXCLUSIVE]


# ------------------------------------------------------------ returns


def test_a_lease_given_back_is_over_unless_granted_anew(owner: Owner) -> None:
    early = hold(owner, A, F)
    late = hold(owner, A, F)
    owner.give_back(A, F, early)
    assert owner.mode_of(A, F) is Mode.SHARED
    owner.give_back(A, F, late)
    assert owner.mode_of(A, F) is Mode.NONE
    owner.give_back(A, F, late)
    owner.give_back(B, F, late)
    assert owner.changes[-1] == Change(A, F, Mode.NONE, 0)


def test_an_answer_to_nothing_is_nothing(owner: Owner) -> None:
    owner.returned(A, 1)
    hold(owner, A, F)
    owner.returned(A, 1)
    assert owner.mode_of(A, F) is Mode.SHARED


def test_given_back_before_the_answer(owner: Owner) -> None:
    serial = hold(owner, A, F)
    ticket, (recall,) = waiting(owner, B, CHANGE)
    owner.give_back(A, F, serial)
    assert (
        owner.ready() == []
    )  # it may be telling its kernel what it was granted before; its answer says that it is not
    owner.returned(A, recall.serial)
    assert owner.ready() == [ticket]


def test_everything_is_recalled_up_to_a_serial(owner: Owner) -> None:
    hold(owner, A, F, D)
    serial = owner.recall_all(A)
    hold(owner, A, D)
    owner.returned_all(A, serial)
    assert (owner.mode_of(A, F), owner.mode_of(A, D)) == (Mode.NONE, Mode.SHARED)
    owner.returned_all(B, owner.recall_all(B))
    owner.returned_all(C, 1)


def test_a_session_that_ends_is_waited_for_no_longer(owner: Owner) -> None:
    hold(owner, A, F, D)
    ticket, _ = waiting(owner, B, CHANGE)
    owner.end_session(A)
    assert owner.ready() == [ticket]
    assert (owner.held_by(A), len(owner)) == (0, 0)
    assert hold(owner, A, D) == 3  # its serials go on
    owner.forget_session(A)
    owner.forget_session(C)
    assert hold(owner, A, D) == 1


# ------------------------------------------------------------ native changes


def test_native_changes_are_recalled_from_everybody(owner: Owner) -> None:
    hold(owner, A, F, D)
    hold(owner, B, F)
    assert [recall.session for recall in owner.changed_here(F)] == [A, B]
    assert owner.changed_here(F) == []  # under way
    (names,) = owner.changed_here(D, (b"x", b"y"))
    assert names.names == (b"x", b"y")
    assert owner.changed_here(D, (b"y",)) == []
    assert owner.changed_here(D, ()) == []
    assert [recall.names for recall in owner.changed_here(D)] == [None]
    assert owner.changed_here(D, (b"z",)) == []
    assert owner.changed_here(E) == []


# ------------------------------------------------------------ restarts


def test_after_a_restart_everything_is_held_as_before(owner: Owner) -> None:
    hold(owner, A, F, D)
    hold(owner, B, D, mode=Mode.SHARED)
    after = Owner()
    after.restore(owner.changes)
    assert list(after.leases()) == [*owner.leases()]
    (recall,) = waiting(after, B, CHANGE)[1]
    assert recall.serial > 1


def test_in_the_grace_after_a_power_cut_nobody_looks_at_a_file_nor_changes_anything(owner: Owner) -> None:
    """But those of before go first with what they have to write."""
    owner.in_grace = True
    assert owner.is_free(A, ())
    assert not owner.is_free(A, (Need(F, Use.LOOK),))
    assert not owner.is_free(A, CHANGE)
    assert owner.is_free(A, CHANGE, despite_grace=True)
    first, _ = owner.begin(A, CHANGE, 0.0, despite_grace=True)
    assert owner.ready() == [first]
    owner.end(first)
    hold(owner, A, F)
    assert not owner.is_free(B, (Need(F, Use.LOOK), *CHANGE))
    ticket, (recall,) = waiting(owner, B, CHANGE)
    owner.returned(A, recall.serial)
    assert owner.ready() == []
    ticket.refused = True
    assert owner.ready() == [ticket]
    ticket.refused = False
    owner.in_grace = False
    assert owner.ready() == [ticket]
