"""The rules of the registry and the resolver against a slow, obvious world (placeworld.py), and that each is needed.

Hypothesis looks for the shortest way to a wrong answer; seeds try many more.  With any of the mutants, or without what
the callers keep to, the same runs give wrong answers.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mignode import book
from omfs.magic import names, places
from omfs.magic.places import Key, Place, Places
from tests.unit import placeworld
from tests.unit.placeworld import KINDS, MEANWHILE, Rules, Step, World, first_broken

SEEDS = 500
MUTANT_SEEDS = 3000  # at most: most are found among the first hundred

numbers = st.integers(0, 59)
meanwhiles = st.lists(st.tuples(st.sampled_from(MEANWHILE), numbers, numbers), max_size=4)


class PlaceMachine(RuleBasedStateMachine):
    has_events = True

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.has_events, Rules())

    @rule(kind=st.sampled_from(KINDS), who=numbers, what=numbers, meanwhile=meanwhiles)
    def step(self, kind: str, who: int, what: int, meanwhile: list[tuple[str, int, int]]) -> None:
        self.world.step(Step(kind, who, what, tuple(Step(*step) for step in meanwhile)))

    def teardown(self) -> None:
        self.world.finish()


class EventlessMachine(PlaceMachine):
    has_events = False


@pytest.mark.parametrize("machine", [PlaceMachine, EventlessMachine])
def test_everybody_gets_the_right_node(machine: type[PlaceMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_everybody_gets_the_right_node_in_many_runs() -> None:
    assert first_broken(Rules(), range(SEEDS)) is None


# ---------------------------------------------------------------- that it would be noticed


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Rules)])
def test_what_the_callers_keep_to_is_needed(name: str) -> None:
    assert first_broken(Rules(**{name: False}), range(MUTANT_SEEDS)) is not None


LASTEXEC = "place.lastexec if image == place.image else place.here"

# A pid that is given again just when it matters is rare in runs: test_book.py looks after those guards.
MUTANTS = {
    # what a name means
    "here is home": (names, "here\n        case Magic.HOME", "home\n        case Magic.HOME"),
    "home is here": (names, "home\n        case Magic.LASTEXEC", "here\n        case Magic.LASTEXEC"),
    "lastexec as noted": (names, LASTEXEC, "place.lastexec"),
    "lastexec is here": (names, LASTEXEC, "place.here"),
    "nothing selected is here": (names, "place.selected or place.home", "place.selected or place.here"),
    "selected is not": (names, "place.selected or place.home", "place.home"),
    "creates where it created": (names, "place.here if creates else place.magic", "place.magic"),
    "magic is here": (names, "place.here if creates else place.magic or place.here", "place.here"),
    "never news": (names, "place.magic not in (0, place.here)", "False"),
    # the replica
    "climbed once": (places, "if chain == before:", "if chain:"),
    "only its own": (places, "one = parent_of(one)", "one = None"),
    "any entry will do": (places, "self._places.get(one))", "next(iter(self._places.values()), None))"),
    "the farthest ancestor": (places, "return place\n", "found = place\n"),
    "a pid is enough": (places, "self._places.get(one)", "{k[0]: p for k, p in self._places.items()}.get(one[0])"),
    "gone and kept": (places, "self._places.pop(key, None)", "pass"),
    # entries
    "nothing is frozen": (book, "for heir in heirs:", "for heir in ():"),
    "what an ancestor has is not its own": (book, "entry == before and (", "entry == before or ("),
    "frozen with the new value": (book, "before.passed_to(heir)", "entry.passed_to(heir)"),
    "orphans are frozen": (book, "self._notice(change)  # an orphan", "# an orphan"),
    "frozen over its own": (book, "if heir not in self._places:", "if heir:"),
    "those below an entry are frozen": (book, "if child not in self._places]", "]"),
    "children only": (book, "parents += children\n", "pass\n"),
    "one look for heirs": (book, "before = len(found)\n", "before = 99\n"),
    "forks after the change": (book, "self._notice(change)\n        before = ", "before = "),
    "lastexec not noted": (book, LASTEXEC, "place.lastexec"),
    "lastexec noted as here": (book, LASTEXEC, "place.here"),
    "its image not noted": (book, "lastexec=lastexec, image=image", "lastexec=lastexec"),
    "magic not noted": (book, "magic=place.magic or place.here)", "magic=place.magic)"),
    "a child has migrated too": (book, "nmigs=0, ", ""),
    "a child has no settings": (book, "self.settings.passed_on())", "Settings())"),
    "settings of nobody": (book, "entry = Entry(place, self._settings[place.key])", "entry = Entry(place, Settings())"),
    "migrations are not counted": (book, "now.settings.nmigs + 1", "now.settings.nmigs"),
    # forks
    "one batch": (book, "(named := self._follow(", "not newborn and (named := self._follow("),
    "children of the unseen": (book, "newborn[parent] if parent in newborn else ", ""),
    "a pid given again": (book, "if known is not None and known != key:", "if False:"),
    "who has the pid was ours": (book, "or child in newborn or child in self._by_pid", ""),
    "nobody catches up": (book, "for entry in [self.entry_of(key) for key in heirs]:", "for entry in ():"),
    "forks after the end": (book, "change = self.notice()\n", "change = Change([], [])\n"),
    "gone and put": (book, "change.puts[:] =", "_ ="),
    "told of nothing that is gone": (book, "change.gone.append(key)", "pass"),
}
FOUND_FROM = {"one look for heirs": 2160, "gone and put": 1425}  # saves time, no more


def replace_by_mutant(module: Any, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world and the book use a copy of *module* with one place changed."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, old
    changed = types.ModuleType(f"{module.__name__}_mutant")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    exec(compile(source.replace(old, new), module.__file__, "exec"), changed.__dict__)
    if module is names:
        monkeypatch.setattr(changed, "Magic", names.Magic)  # its members are compared with the world's
        monkeypatch.setattr(placeworld, "names", changed)
    elif module is book:
        monkeypatch.setattr(placeworld, "real_book", changed)
    else:
        monkeypatch.setattr(book, "Places", changed.Places)
        monkeypatch.setattr(placeworld, "real_places", changed)


@pytest.mark.parametrize("name", MUTANTS)
def test_every_rule_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_by_mutant(*MUTANTS[name], monkeypatch)
    start = FOUND_FROM.get(name, 0)
    assert first_broken(Rules(), range(start, start + MUTANT_SEEDS)) is not None


@pytest.mark.parametrize("module", [names, places, book])
def test_a_copy_without_a_change_does_as_well(module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_by_mutant(module, '"""' + (module.__doc__ or ""), '"""', monkeypatch)
    assert first_broken(Rules(), range(100)) is None


# ---------------------------------------------------------------- the replica by itself

A, B, C = (10, 1), (11, 2), (12, 3)


def place(key: Key, selected: int = 0) -> Place:
    return Place(*key, 1, 1, 1, "", selected)


def test_an_entry_ends_the_memory_of_having_none() -> None:
    replica = Places(10)
    for key in (A, B):
        replica.note_ordinary(key)
    replica.put(place(A))
    assert (replica.is_ordinary(A), replica.is_ordinary(B)) == (False, True)
    replica.note_ordinary(A)  # an answer that was overtaken
    assert not replica.is_ordinary(A)
    replica.replace_all([place(B, 5)])
    assert (replica.is_ordinary(A), replica.is_ordinary(B)) == (False, False)
    assert list(replica) == [place(B, 5)]
    assert (len(replica), A in replica, B in replica) == (1, False, True)
    replica.remove(A)
    replica.remove(B)
    assert len(replica) == 0


def test_the_oldest_of_too_many_is_forgotten() -> None:
    replica = Places(2)
    for key in (A, B, A, C):
        replica.note_ordinary(key)
    assert [replica.is_ordinary(key) for key in (A, B, C)] == [False, True, True]
    nothing = Places()
    nothing.note_ordinary(A)
    assert not nothing.is_ordinary(A)


def test_who_is_known_to_be_ordinary_is_not_climbed_from() -> None:
    replica = Places(10)
    replica.put(place(A, 5))
    replica.note_ordinary(B)
    climbed = []

    def parent_of(key: Key) -> Key | None:
        climbed.append(key)
        return {C: B, B: A}.get(key)

    assert replica.nearest(C, parent_of) is None
    assert climbed == [C]


def test_an_ancestor_that_ends_meanwhile_does_not_hide_those_above() -> None:
    replica = Places()
    replica.put(place(A, 5))
    parents = {C: B, B: None}  # B has just ended, and C was told its old parent
    answers = []

    def parent_of(key: Key) -> Key | None:
        answer = parents[key]
        parents[C] = A
        answers.append(answer)
        return answer

    assert replica.nearest(C, parent_of) == place(A, 5)
    assert answers == [B, None, A]
