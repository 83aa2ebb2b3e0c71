"""Requests that wait for each other's nodes, with directories locked: who is refused so that the others go on."""

from __future__ import annotations

import pytest

from omfs.cache.owner import CONTENDED_S, STUCK_S, Owner
from omfs.wiretypes import Mode
from tests.unit.test_lease_owner import (
    CHANGE,
    CHMOD,
    A,
    B,
    C,
    D,
    E,
    F,
    circle_of_two,
    hold,
    modes,
    name,
    owner as owner,
    waiting,
)  # fmt: skip


def test_two_who_keep_a_directory_locked_against_each_other_only_wait(owner: Owner) -> None:
    """Holders answer while calls of theirs are under way."""
    hold(owner, A, D)
    hold(owner, B, D)
    first, (at_b,) = waiting(owner, A, name(b"x"))
    second, (at_a,) = waiting(owner, B, name(b"y"))
    owner.refuse_stuck(STUCK_S / 2)
    assert owner.ready() == []
    owner.returned(B, at_b.serial)
    owner.returned(A, at_a.serial)
    owner.refuse_stuck(STUCK_S)
    assert owner.ready() == [first, second]
    assert not first.refused
    assert not second.refused


def test_if_they_do_not_answer_one_is_refused(owner: Owner) -> None:
    hold(owner, A, D)
    hold(owner, B, D)
    first, (at_b,) = waiting(owner, A, name(b"x"))
    second, (at_a,) = waiting(owner, B, name(b"y"))
    owner.refuse_stuck(STUCK_S)
    assert (first.refused, second.refused) == (True, False)
    assert owner.ready() == [first]
    owner.end(first)
    owner.returned(A, at_a.serial)  # its lock is free
    assert owner.ready() == [second]
    owner.end(second)
    owner.returned(B, at_b.serial)
    assert modes(owner, C, D, now_s=STUCK_S) == [Mode.NONE]  # contended
    assert modes(owner, C, D, now_s=STUCK_S + CONTENDED_S) == [Mode.SHARED]


@pytest.mark.parametrize(("after_s", "names"), [(CONTENDED_S / 2, None), (CONTENDED_S, (b"z",))])
def test_where_it_is_contended_a_name_takes_the_lease_along(
    owner: Owner, after_s: float, names: tuple[bytes, ...] | None
) -> None:
    """A was refused in D, of which it holds something itself: that would be in the next one's way."""
    hold(owner, A, D, E)
    hold(owner, B, D)
    refused = waiting(owner, A, name(b"x"))[0]
    waiting(owner, B, name(b"y", directory=E))
    owner.refuse_stuck(STUCK_S)
    assert owner.ready() == [refused]
    _, recalls = owner.begin(C, name(b"z"), STUCK_S + after_s)
    assert [recall.names for recall in recalls if recall.session == A] == [names]


def test_if_it_does_not_help_the_other_is_refused(owner: Owner) -> None:
    hold(owner, A, D)
    hold(owner, B, D)
    refused, second = circle_of_two(owner)
    owner.end(refused)
    again, _ = owner.begin(A, name(b"x"), STUCK_S)
    owner.refuse_stuck(2 * STUCK_S)
    assert (second.refused, again.refused) == (True, False)


def test_a_circle_of_three(owner: Owner) -> None:
    """Each keeps locked what the next but one must forget names of."""
    directories = {A: b"da", B: b"db", C: b"dc"}
    for session in (A, B, C):
        hold(owner, session, directories[session])
    tickets = []
    for session, other in ((A, B), (B, C), (C, A)):
        needs = (*name(b"x", directory=directories[session]), *name(b"y", directory=directories[other]))
        tickets.append(owner.begin(session, needs, 0.0)[0])
    owner.refuse_stuck(STUCK_S)
    assert [ticket.refused for ticket in tickets] == [True, False, False]


def test_many_who_wait_for_each_other_in_no_circle(owner: Owner) -> None:
    hold(owner, A, F)
    hold(owner, B, E)
    hold(owner, C, D)
    tickets = [waiting(owner, B, (*name(b"x", directory=E), *CHANGE))[0]]
    for one in (b"y", b"z"):
        tickets.append(waiting(owner, C, (*name(one), *name(one, directory=E)))[0])
    tickets.append(waiting(owner, A, name(b"x"))[0])
    owner.refuse_stuck(STUCK_S)
    assert not any(ticket.refused for ticket in tickets)


def test_who_waits_without_being_waited_for_is_not_refused(owner: Owner) -> None:
    """C's unlink waits for a file to be given back, which needs no lock; then its directory is free for A's create."""
    hold(owner, B, F)
    hold(owner, C, D)
    unlink, (file,) = waiting(owner, C, (*name(b"x"), *CHANGE))
    create, (forget,) = waiting(owner, A, name(b"y"))
    owner.refuse_stuck(STUCK_S)
    assert not unlink.refused
    assert not create.refused
    owner.returned(B, file.serial)
    owner.returned(C, forget.serial)
    assert owner.ready() == [unlink, create]


def test_who_waits_for_each_other_for_reasons_unknown_is_refused_in_the_end(owner: Owner) -> None:
    """A kernel has a rename from D to E wait for E, where a create is under way, with D locked; we never hear of it."""
    hold(owner, A, E)
    hold(owner, B, D)
    create, _ = waiting(owner, B, name(b"y", directory=E))
    rename, _ = waiting(owner, A, name(b"x"))
    owner.refuse_stuck(STUCK_S / 2)
    assert owner.ready() == []
    owner.refuse_stuck(STUCK_S)
    assert owner.ready() == [create]
    owner.refuse_stuck(STUCK_S)
    assert not rename.refused


def test_two_who_change_one_file_only_wait(owner: Owner) -> None:
    """Forgetting attributes and data needs no lock, and write(2) is not made again after ESTALE."""
    hold(owner, A, F)
    hold(owner, B, F)
    first, (at_b,) = waiting(owner, A, CHANGE)
    second, (at_a,) = waiting(owner, B, CHANGE)
    owner.returned(B, at_b.serial)
    owner.returned(A, at_a.serial)
    assert owner.ready() == [first, second]
    assert not first.refused
    assert not second.refused


def test_whatever_is_forgotten_of_a_directory_may_wait_for_its_lock(owner: Owner) -> None:
    """The holder takes it even where no name is to be dropped, to have the replies under way processed."""
    hold(owner, A, D)
    hold(owner, B, D)
    first, _ = waiting(owner, A, CHMOD)
    second, _ = waiting(owner, B, CHMOD)
    owner.refuse_stuck(STUCK_S)
    assert (first.refused, second.refused) == (True, False)
