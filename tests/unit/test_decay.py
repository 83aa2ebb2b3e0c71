"""Classes of decay: what they mean, how they are said, and when they end."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from mignode.decay import (
    Admin,
    DecayClass,
    OnExec,
    Pace,
    chosen,
    executed,
    for_people,
    is_in_force,
    mark_of,
    pace,
    spelled,
    triggered,
    understood,
    weighed,
)
from mignode.mosrunoptions import Decay, Job, Options, parse, words_of
from mignode.weighing import Amount, Demand
from omfs.magic import controlfiles

ADMIN = Admin(3, 975, 926)
FILES = [file.name for file in controlfiles.OF_DECAY]
MARKS = st.sampled_from(["", "0123456789abcdef", "fedcba9876543210"])


@st.composite
def classes(draw: st.DrawFn) -> DecayClass:
    """All that can be said."""
    has_own = draw(st.booleans())
    kinds = [kind for kind in Decay if kind is not (Decay.DEFAULT if has_own else Decay.OWN)]
    return DecayClass(
        draw(st.sampled_from(Job)), draw(st.sampled_from(kinds)), draw(st.integers(0, 1000)) if has_own else 0,
        draw(st.integers(0, 65535)) if has_own else 0, has_own, draw(st.sampled_from(OnExec)), draw(st.booleans()),
        draw(MARKS),
    )  # fmt: skip


# ---------------------------------------------------------------- what it means


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("default", Pace(3, 0.975)),
        ("cpujob", Pace(3, 0.975)),
        ("iojob", Pace(3, 0.926)),
        ("slow", Pace(3, 0.975)),
        ("iojob slow", Pace(3, 0.975)),
        ("fast", Pace(3, 0.926)),
        ("nodecay", Pace(3, 1.0)),
        ("own:900:0", Pace(3, 0.9)),
        ("own:900:10", Pace(10, 0.9)),
        ("own:0:0", Pace(3, 0.001)),
        ("fast own:900:10", Pace(3, 0.926)),
    ],
)
def test_pace(words: str, expected: Pace) -> None:
    assert pace(understood(words), ADMIN) == expected


@given(classes(), st.builds(Admin, st.integers(1, 65535), st.integers(0, 1000), st.integers(0, 1000)))
def test_every_class_has_a_pace_that_hints_can_keep(one: DecayClass, admin: Admin) -> None:
    interval_s, kept = pace(one, admin)
    assert interval_s >= 1
    assert 0 < kept <= 1
    assert for_people(one, admin)


def test_what_counts_of_a_demand() -> None:
    demand = Demand(0.7, 2.0, 4096, {2: Amount(1e6, 10)})
    assert weighed(understood("slow"), demand) == demand
    assert weighed(understood("cpujob"), demand) == demand._replace(files={})
    assert weighed(understood("iojob"), demand) == demand._replace(cpu=0.0)


def test_for_people() -> None:
    assert for_people(DecayClass(), ADMIN) == "any job, 975/1000 of its past kept every 3 s"
    assert (
        for_people(understood("iojob nodecay"), ADMIN) == "iojob (what it computes does not count), nothing forgotten"
    )


# ---------------------------------------------------------------- how it is said


@given(classes())
def test_what_is_spelled_is_understood_and_fits_its_file(one: DecayClass) -> None:
    kind = controlfiles.find(controlfiles.PROCESS, "decay").file.kind
    assert understood(str(kind.parse(kind.format(spelled(one))))) == one


@pytest.mark.parametrize("text", ["nonsense", "own", "own:1001:1", "own:1:65536", "own:-1:1", "of:xyz", "cpujob,slow"])
def test_what_is_no_class(text: str) -> None:
    with pytest.raises(ValueError, match="no class of decay"):
        understood(text)


def test_nothing_said_is_the_default() -> None:
    assert understood("") == understood("default") == DecayClass()
    assert spelled(DecayClass()) == "default"
    assert not DecayClass(mark="0123456789abcdef").says_something


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("prog", "fast noinherit"),
        ("-c prog", "cpujob"),
        ("-i -e prog", "iojob exec"),
        ("-n prog", "nodecay"),
        ("-s -R prog", "slow noinherit"),
        ("-d 900 -t 7 prog", "own:900:7"),
        ("-e prog", "fast noinherit exec"),
    ],
)
def test_what_mosrun_is_told_comes_before_what_its_caller_has(words: str, expected: str) -> None:
    assert chosen(parse(words.split()).options, understood("fast noinherit")) == understood(expected)


@pytest.mark.parametrize(
    ("wrapper", "expected"),
    [("cpujob", "cpujob"), ("iojob", "iojob"), ("nodecay", "nodecay"), ("slowdecay", "slow"), ("fastdecay", "fast")],
)
def test_the_wrappers(wrapper: str, expected: str) -> None:
    assert chosen(parse(words_of(wrapper, ["prog"])).options, DecayClass()) == understood(expected)


def test_without_options_nothing_is_chosen() -> None:
    assert chosen(Options(), understood("iojob own:1:2")) == understood("iojob own:1:2")


# ---------------------------------------------------------------- hpc/decay


@given(classes(), st.sampled_from(FILES))
def test_what_was_triggered_is_in_force(one: DecayClass, name: str) -> None:
    if name == "own" and not one.has_own:
        with pytest.raises(ValueError, match="own:DEC:SECONDS"):
            triggered(one, name)
        return
    after = triggered(one, name)
    assert is_in_force(after, name) == (name != "clear")
    assert triggered(after, name) == after
    if name == "clear":
        assert after == DecayClass()


def test_one_takes_the_place_of_another() -> None:
    one = understood("own:900:7 cpujob")
    for name in ("iojob", "fast", "execonce"):
        one = triggered(one, name)
    assert one == understood("iojob fast execonce own:900:7")
    assert triggered(one, "own") == understood("iojob execonce own:900:7")
    assert triggered(understood("noinherit exec"), "inherit") == understood("exec")


# ---------------------------------------------------------------- another program


def test_a_mark_tells_programs_apart_and_nothing_else() -> None:
    image = "00112233445566778899aabbccddeeff"
    assert mark_of(image) == mark_of(image) != mark_of(image[:-1] + "0")
    assert mark_of("") == ""
    assert mark_of(image) not in image


@given(classes(), MARKS)
def test_a_class_lasts_as_it_says(one: DecayClass, mark: str) -> None:
    after = executed(one, mark)
    if not one.mark or not mark or mark == one.mark:
        assert after == one
    elif one.on_exec is OnExec.ENDS:
        assert after == DecayClass()
    else:
        assert replace(after, mark=one.mark, on_exec=one.on_exec) == one
        again = executed(after, "aaaaaaaaaaaaaaaa")
        assert (again == DecayClass()) == (one.on_exec is OnExec.ONCE)


@given(classes())
def test_a_child_has_it_or_nothing(one: DecayClass) -> None:
    assert one.passed_on() == (one if one.inherits else DecayClass())
