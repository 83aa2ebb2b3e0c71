"""The rules of what can't move: any mixture of things that move and things that stay, in any of several processes."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mignode import eligible
from mignode.facts import Process, Thread
from mignode.reasons import Kind, Reason, named, told, where, without_names
from omfs.kernel.procobjects import Rights, Standing
from tests.unit.movables import FIRST, GUEST, MOVES, NONE, OURS, STAYS, STAYS_BEHIND, Room, namespaces, rights

# What sets what also a thing that stays sets: the last one would count.
CHANGES_THE_SAME = {
    "a session whose leader is gone", "a relayed terminal", "a thread that has ended", "locked memory of who may",
    "locked memory within the limit", "a directory of the cluster to work in",
}  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 2), st.integers(0, 2)), max_size=12),
    st.dictionaries(st.sampled_from(sorted(STAYS_BEHIND)), st.integers(0, 2), max_size=4),
)
def test_any_mixture(moving: list[tuple[str, int, int]], staying: dict[str, int]) -> None:
    """Just the reasons of what stays, whatever lies beside it and in whichever process."""
    room = Room([FIRST, FIRST + 100, FIRST + 200])
    for name, one, other in moving:
        if not (name in CHANGES_THE_SAME and staying):
            MOVES[name](room, room.pids[one], room.pids[other])
    for name, one in staying.items():
        STAYS_BEHIND[name][0](room, room.pids[one], room.pids[one])
    found = eligible.reasons(room.facts())
    assert {one.kind for one in found} == {STAYS_BEHIND[name][1] for name in staying}
    assert len(set(found)) == len(found)
    for one in found:
        assert one.text
        mine = [pid for pid in room.pids[1:] if f"process {pid})" in one.text]
        assert len(mine) <= 1


@pytest.mark.parametrize("name", MOVES)
def test_what_moves(name: str) -> None:
    """In one process, and where it has two ends in two."""
    for other in (0, 1):
        room = Room([FIRST, FIRST + 100])
        MOVES[name](room, FIRST, room.pids[other])
        assert eligible.reasons(room.facts()) == []


@pytest.mark.parametrize("name", STAYS_BEHIND)
def test_what_stays(name: str) -> None:
    thing, kind = STAYS_BEHIND[name]
    for pid in (FIRST, FIRST + 100):
        room = Room([FIRST, FIRST + 100])
        thing(room, pid, pid)
        found = eligible.reasons(room.facts())
        assert {one.kind for one in found} == {kind}
        if name != "another net":  # of the first process: all others are elsewhere then, too
            assert all((f"process {pid})" in one.text) == (pid != FIRST) for one in found)


# ---------------------------------------------------------------- whom it is about


def test_who_is_not_asked_further() -> None:
    room = Room([FIRST])
    room.path(FIRST, "/sys/file", 7)
    facts = room.facts()
    (one,) = facts.processes

    def alone(process: Process | None) -> list[Kind]:
        return [found.kind for found in eligible.reasons(facts._replace(processes=(process,) if process else ()))]

    assert alone(None) == [Kind.ENDED]
    assert alone(one._replace(state="Z", threads=one.threads[:1])) == [Kind.ENDED]
    assert alone(one._replace(state="Z")) == [Kind.HALF_ENDED]
    assert alone(one._replace(standing=Standing(0, (0, 0), is_kernel_thread=True))) == [Kind.KERNEL_THREAD]
    assert alone(one._replace(threads=(Thread(FIRST, NONE, GUEST | {"mnt": OURS["mnt"]}),))) == [Kind.NO_GUEST]
    assert alone(one._replace(threads=(Thread(FIRST, NONE, GUEST | {"pid": OURS["pid"]}),))) == [Kind.NO_GUEST]
    assert alone(one) == [Kind.PLACE]


def test_the_terminal_by_its_other_name() -> None:
    """/dev/tty is another one in a session that has another; that of the guest goes along."""
    room = Room([FIRST, FIRST + 100])
    room.device(FIRST + 100, 5, 0)
    assert eligible.reasons(room.facts()) == []
    MOVES["a relayed terminal"](room, FIRST, FIRST)
    room.device(FIRST, 5, 0)
    (found,) = eligible.reasons(room.facts())
    assert found.kind is Kind.OWN_TERMINAL
    assert found.text.startswith("has /dev/5.0 open (descriptor")
    assert found.text.endswith(f"of process {FIRST + 100})")


def test_who_works_in_a_removed_directory() -> None:
    room = Room([FIRST])
    room.changes[FIRST] = lambda process: process._replace(directory="/home/x (deleted)")
    (found,) = eligible.reasons(room.facts())
    assert found == Reason(Kind.REMOVED, "works in the directory /home/x that was removed")


def test_children_that_have_ended() -> None:
    """A zombie moves with who may wait for it; one whose other threads run on does not."""
    room = Room([FIRST, FIRST + 100])
    gone = Rights(0, (5, 0, 0, 0), 0, 0, 0)
    zombie = Process(FIRST + 100, "Z", Standing(STAYS, (136, 200)), (Thread(FIRST + 100, gone, {"pid": "pid:[2]"}),))
    room.changes[FIRST + 100] = lambda process: zombie
    assert eligible.reasons(room.facts()) == []
    room.changes[FIRST + 100] = lambda process: process._replace(state="Z")
    assert [one.text for one in eligible.reasons(room.facts())] == [
        f"runs on after its first thread has ended (process {FIRST + 100})"
    ]


def test_system_v_memory_needs_an_ipc_namespace() -> None:
    room = Room([FIRST])
    room.mapped[FIRST] = ["/SYSV00000000 (deleted)"]
    assert eligible.reasons(room.facts()) == []
    namespaces(0, ipc=OURS["ipc"])(room, FIRST, FIRST)
    namespaces(1, ipc=OURS["ipc"])(room, FIRST, FIRST)
    assert [one.kind for one in eligible.reasons(room.facts())] == [Kind.SYSV_MEMORY]


def test_our_own_filters_are_none() -> None:
    room = Room([FIRST])
    rights(filters=2)(room, FIRST, FIRST)
    facts = room.facts()
    assert [[one.kind for one in eligible.reasons(facts._replace(own_filters=own))] for own in (0, 1, 2)] == [
        [Kind.FILTER], [Kind.FILTER], [],
    ]  # fmt: skip


def test_without_mounts_nothing_has_a_place() -> None:
    facts = Room([FIRST]).facts()
    assert [one.kind for one in eligible.reasons(facts._replace(mounts={}))] == [Kind.PLACE]


# ---------------------------------------------------------------- in words


@given(
    st.lists(st.builds(Reason, st.sampled_from(Kind), st.text(min_size=1, max_size=80)), max_size=30),
    st.integers(40, 400),
)
def test_what_is_told_fits(found: list[Reason], max_characters: int) -> None:
    text = told(found, max_characters)
    assert len(text) <= max_characters
    whole = ", ".join(one.text for one in found)
    if len(whole) <= max_characters:
        assert text == whole
    else:
        said, _, rest = text.rpartition("and ")
        assert whole.startswith(said)
        left = int(rest.split()[0])
        assert 0 < left <= len(found)
        assert ", ".join([one.text for one in found[: len(found) - left]] + ["and "]) == said + "and " or left == len(
            found
        )


@given(st.text(max_size=300))
def test_a_name_is_one_line(name: str) -> None:
    assert named(name).isprintable()
    assert len(named(name)) <= 203
    if name.isprintable() and len(name) <= 200:
        assert named(name) == name


def test_names_are_not_for_others() -> None:
    found = [Reason(Kind.PLACE, "has /secret open", "/secret"), Reason(Kind.PLACE, "has /other open", "/other")]
    assert without_names(found) == [Reason(Kind.PLACE, Kind.PLACE.value)]
    assert all("/" not in kind.value and "%" not in kind.value for kind in Kind)


def test_where() -> None:
    assert [where(0), where(7), where(0, 3), where(7, 0)] == [
        "", " (process 7)", " (descriptor 3)", " (descriptor 0 of process 7)",
    ]  # fmt: skip
