"""The holder's side of leases, row by row: what may be told to the kernel, and when a recall is over."""

from __future__ import annotations

import pytest

from omfs.cache import holder as holders
from omfs.cache.holder import Holder, Lease
from omfs.wiretypes import Mode

F, G, H = b"f", b"g", b"h"


@pytest.fixture
def holder() -> Holder:
    new = Holder()
    new.renew()
    return new


def held(holder: Holder, serial: int = 1) -> Lease:
    lease = holder.new_lease(F)
    assert holder.granted(lease, serial, Mode.SHARED) is Mode.SHARED
    return lease


# ------------------------------------------------------------ grants


def test_what_is_granted_may_be_told(holder: Holder) -> None:
    lease = held(holder)
    assert (lease.is_held, lease.told, lease.serial) == (True, True, 1)


@pytest.mark.parametrize(("serial", "mode"), [(0, Mode.SHARED), (1, Mode.NONE)])
def test_without_a_grant_nothing_is_told(holder: Holder, serial: int, mode: Mode) -> None:
    lease = holder.new_lease(F)
    assert holder.granted(lease, serial, mode) is Mode.NONE
    assert (lease.is_held, lease.told) == (False, False)


def test_what_is_known_here_is_told_while_it_is_held(holder: Holder) -> None:
    lease = held(holder)
    since = holder.begin_pass(lease)
    assert holder.may_name_unasked(lease, b"a")
    assert not holder.is_done(lease, since), "a pass that did not forget it is repeated"
    assert holder.may_name_unasked(lease, b"b")
    assert set(lease.take_names()) == {b"a", b"b"}
    holder.begin_recall(lease)
    assert not holder.may_name_unasked(lease, b"c")
    assert not holder.tell_unasked(lease)
    holder.end_recall(lease, Mode.SHARED)
    assert holder.tell_unasked(lease)
    holder.lapse()
    assert not holder.tell_unasked(lease)
    assert not holder.may_name_unasked(holder.new_lease(G), b"a")
    assert lease.names is None


def test_outside_the_term_nothing_is_told() -> None:
    holder = Holder()
    lease = holder.new_lease(F)
    assert holder.granted(lease, 1, Mode.SHARED) is Mode.NONE
    holder.renew()
    assert holder.granted(lease, 2, Mode.SHARED) is Mode.SHARED
    holder.lapse()
    assert holder.granted(lease, 3, Mode.SHARED) is Mode.NONE


def test_an_answer_overtaken_by_a_later_one_does_not_lower_the_mode(holder: Holder) -> None:
    lease = holder.new_lease(F)
    assert holder.granted(lease, 7, Mode.EXCLUSIVE) is Mode.EXCLUSIVE
    assert holder.granted(lease, 5, Mode.SHARED) is Mode.EXCLUSIVE
    assert (lease.mode, lease.serial) == (Mode.EXCLUSIVE, 7)


def test_names_are_remembered_until_they_are_taken(holder: Holder) -> None:
    lease = holder.new_lease(F)
    assert not holder.may_name(lease, 1, Mode.NONE, b"x")
    assert lease.take_names() == ()
    assert holder.may_name(lease, 2, Mode.SHARED, b"x")
    assert holder.may_name(lease, 3, Mode.SHARED, b"y")
    assert sorted(lease.take_names()) == [b"x", b"y"]
    assert lease.take_names() == ()


def test_names_of_a_listing_are_remembered_all_or_none(holder: Holder) -> None:
    lease = holder.new_lease(F)
    holder.seen(F, lease, 5)
    assert not holder.may_name_all(lease, 5, Mode.SHARED, (b"x", b"y"))
    assert lease.take_names() == ()
    assert holder.may_name_all(lease, 6, Mode.SHARED, (b"x", b"y"))
    assert holder.may_name(lease, 6, Mode.SHARED, b"z")
    assert sorted(lease.take_names()) == [b"x", b"y", b"z"]


# ------------------------------------------------------------ recalls


@pytest.mark.parametrize(("serial", "mode"), [(4, Mode.NONE), (5, Mode.NONE), (6, Mode.SHARED)])
def test_a_recall_voids_grants_that_are_still_on_their_way(holder: Holder, serial: int, mode: Mode) -> None:
    lease = holder.new_lease(F)
    holder.seen(F, lease, 5)
    assert holder.granted(lease, serial, Mode.SHARED) is mode


def test_also_of_an_object_that_is_not_known_yet(holder: Holder) -> None:
    holder.seen(F, None, 5)
    holder.seen(F, None, 3)
    lease = holder.new_lease(F)
    assert holder.granted(lease, 5, Mode.SHARED) is Mode.NONE
    assert holder.granted(holder.new_lease(G), 5, Mode.SHARED) is Mode.SHARED


def test_what_was_recalled_stays_void_after_the_object_was_forgotten(holder: Holder) -> None:
    lease = holder.new_lease(F)
    holder.seen(F, lease, 5)
    holder.drop_lease(F, lease)
    assert holder.granted(holder.new_lease(F), 5, Mode.SHARED) is Mode.NONE


def test_so_does_what_was_given_back(holder: Holder) -> None:
    """An answer that was overtaken by a later grant and by the return of that: the owner counts on nothing of it."""
    lease = held(holder, 7)
    holder.drop_lease(F, lease)
    assert holder.granted(holder.new_lease(F), 5, Mode.SHARED) is Mode.NONE
    assert holder.granted(holder.new_lease(F), 8, Mode.SHARED) is Mode.SHARED


def test_an_object_of_which_nothing_was_ever_held_leaves_nothing(holder: Holder) -> None:
    holder.drop_lease(F, holder.new_lease(F))
    assert holder.new_lease(F).void == 0


def test_the_floor_stands_for_recalls_too_old_to_be_kept(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "KEPT_MAX", 2)
    for serial, handle in enumerate((F, G, F, H), 1):  # F again: G is the oldest then
        holder.seen(handle, None, serial)
    assert holder.floor == 2
    assert [holder.new_lease(handle).void for handle in (F, G, H, b"new")] == [3, 2, 4, 2]


def test_everything_is_void_up_to_a_serial(holder: Holder) -> None:
    lease = held(holder)
    holder.seen_all([lease], 5)
    assert holder.granted(lease, 5, Mode.SHARED) is Mode.NONE
    assert holder.granted(holder.new_lease(G), 5, Mode.SHARED) is Mode.NONE
    assert holder.granted(lease, 6, Mode.SHARED) is Mode.SHARED


def test_while_a_recall_is_under_way_nothing_is_told(holder: Holder) -> None:
    lease = held(holder)
    holder.seen(F, lease, 2)
    holder.begin_recall(lease)
    assert not lease.is_held
    assert holder.granted(lease, 3, Mode.SHARED) is Mode.NONE
    holder.begin_pass(lease)
    assert holder.is_done(lease)
    holder.end_recall(lease, Mode.NONE)
    assert (lease.mode, lease.is_held) == (Mode.NONE, False)
    assert holder.granted(lease, 4, Mode.SHARED) is Mode.SHARED


@pytest.mark.parametrize("left", [Mode.NONE, Mode.SHARED])
def test_from_the_recall_on_nothing_is_held_until_the_next_grant(holder: Holder, left: Mode) -> None:
    lease = held(holder)
    holder.seen(F, lease, 2)
    assert not lease.is_held, "as soon as it is seen: the recall may begin later, and what changes then is not told"
    holder.begin_recall(lease)
    holder.end_recall(lease, left)
    assert not lease.is_held
    assert not holder.tell_unasked(lease)
    holder.granted(lease, 3, Mode.SHARED)
    assert lease.is_held


def test_what_was_told_during_a_pass_makes_another_necessary(holder: Holder) -> None:
    lease = held(holder)
    holder.begin_recall(lease)
    holder.begin_pass(lease)
    lease.told = True  # a READ that could not wait
    assert not holder.is_done(lease)
    holder.begin_pass(lease)
    assert holder.is_done(lease)


def test_another_recalls_pass_does_not_hide_what_was_told(holder: Holder) -> None:
    lease = held(holder)
    holder.begin_recall(lease)
    first = holder.begin_pass(lease)
    lease.told = True
    holder.begin_recall(lease)
    second = holder.begin_pass(lease)
    assert (holder.is_done(lease, first), holder.is_done(lease, second)) == (False, True)


@pytest.mark.parametrize(
    ("left", "mode", "data"),
    [(Mode.EXCLUSIVE, Mode.SHARED, True), (Mode.SHARED, Mode.SHARED, True), (Mode.NONE, Mode.NONE, False)],
)
def test_a_recall_leaves_no_more_than_its_mode(holder: Holder, left: Mode, mode: Mode, data: bool) -> None:
    lease = held(holder)
    lease.data = True
    holder.begin_recall(lease)
    holder.end_recall(lease, left)
    assert (lease.mode, lease.data) == (mode, data)


# ------------------------------------------------------------ a new session


def test_with_a_new_session_serials_begin_anew(holder: Holder) -> None:
    lease = held(holder, 9)
    holder.seen(F, lease, 10)
    holder.seen(G, None, 11)
    holder.seen_all([lease], 12)
    holder.restart_serials([lease])
    assert holder.granted(lease, 1, Mode.SHARED) is Mode.SHARED
    assert holder.granted(holder.new_lease(G), 1, Mode.SHARED) is Mode.SHARED


def test_a_file_that_is_closed_is_not_exclusive(holder: Holder) -> None:
    lease, writer = Lease(), object()
    holder.granted(lease, 2, Mode.SHARED)
    holder.granted(lease, 2, Mode.EXCLUSIVE)  # more of the same answer
    lease.writer = writer
    holder.stopped_writing(lease, object())
    assert lease.is_exclusive, "another file was closed"
    holder.stopped_writing(lease, writer)
    assert (lease.mode, lease.is_exclusive, lease.is_held) == (Mode.SHARED, False, True)


def test_from_the_recall_on_nothing_is_exclusive(holder: Holder) -> None:
    lease = Lease()
    holder.granted(lease, 1, Mode.EXCLUSIVE)
    holder.seen(F, lease, 2)
    assert not lease.is_exclusive, "as soon as it is seen"
    holder.begin_recall(lease)
    assert not lease.is_exclusive
    holder.end_recall(lease, Mode.SHARED)
    assert (lease.mode, lease.is_exclusive) == (Mode.SHARED, False)
    assert holder.granted(lease, 3, Mode.EXCLUSIVE) is Mode.EXCLUSIVE
