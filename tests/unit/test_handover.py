"""The machines of the handover against the promise, with everything that may go wrong (handovermodel.py).

Hypothesis looks for the shortest way to break it; many more runs go by seeds.  The mutants show that the promise is
looked after: without any of what the callers owe, or of the lines of the machines, the same runs break it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import inspect
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mignode import handover
from mignode.handover import Coming, Destination, Effect, Leaving, Located, Record, Source
from omfs.errors import HandoverRefused
from tests.unit import handovermodel, handovernode
from tests.unit.handovermodel import Broken, World
from tests.unit.handovernode import Rules

SEEDS = 1500
MUTANT_SEEDS = 12_000  # at most: most are found among the first hundred

numbers = st.integers(1, 3)


class HandoverMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(Rules())

    @rule(source=numbers, destination=numbers)
    def want(self, source: int, destination: int) -> None:
        self.world.want(source, destination)

    @rule(choices=st.lists(st.integers(0, 20), min_size=1, max_size=12))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            if steps := self.world.usual():
                steps[choice % len(steps)]()
                self.world.check()

    @rule(
        fault=st.sampled_from(("repeat", "lose", "cut", "tick", "notice", "crash", "start", "criu_dies", "reboot")),
        choice=numbers,
    )
    def fail(self, fault: str, choice: int) -> None:
        getattr(self.world, fault)(choice)
        self.world.check()

    @rule(number=numbers)
    def lose_home(self, number: int) -> None:
        self.world.lose_home(number)
        self.world.check()

    @rule()
    def end(self) -> None:
        self.world.end()
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


def test_the_promise_holds() -> None:
    run_state_machine_as_test(
        HandoverMachine, settings=settings(max_examples=100, stateful_step_count=50, deadline=None)
    )


FAULTS = ("repeat", "lose", "cut", "crash", "criu_dies", "tick", "notice")
RARE = ("reboot", "lose_home")


def run_by(seed: int, rules: Rules, world_type: type[World] = World) -> World:
    """A run that is mostly usual, with faults mostly where something is under way; every fourth loses whole nodes."""
    chance = random.Random(seed)
    world = world_type(rules)
    for _ in range(chance.randint(10, 120)):
        dice = chance.random()
        number = chance.choice(world.busy()) if chance.random() < 0.6 else chance.randint(1, 3)
        if dice < 0.1:
            world.want(chance.randint(1, 3), chance.randint(1, 3))
        elif dice < 0.2:
            getattr(world, chance.choice(FAULTS))(number)
        elif dice < 0.25:
            world.start(number)
        elif dice < 0.26 and seed % 4 == 0:
            getattr(world, chance.choice(RARE))(number)
        elif dice < 0.2605:
            world.end()
        elif steps := world.usual():
            chance.choice(steps)()
        world.check()
    world.settle()
    return world


def first_broken(rules: Rules, seeds: range) -> int | None:
    for seed in seeds:
        try:
            run_by(seed, rules)
        except Broken:
            return seed
    return None


def test_the_promise_holds_in_many_runs() -> None:
    assert first_broken(Rules(), range(SEEDS)) is None


@pytest.mark.parametrize("rule", [field.name for field in dataclasses.fields(Rules)])
def test_what_the_callers_owe(rule: str) -> None:
    assert first_broken(Rules(**{rule: False}), range(MUTANT_SEEDS)) is not None


MUTANTS = {
    "a question leaves the attempt open": (
        "if _is_open(record, attempt) and sender in (record.node, record.destination):",
        "if attempt < 0:",
    ),
    "a dead attempt is committed": (
        "if not _is_open(record, attempt) or record.node != sender:",
        "if record.destination == NOBODY or record.node != sender:",
    ),
    "an answer to another attempt counts": (
        "if answer.attempt != self.attempt or not self.is_in_doubt:",
        "if not self.is_in_doubt:",
    ),
    "a commit without an answer is undone": (
        "if self.state not in (Leaving.SENDING, Leaving.BARRING):",
        "if self.state not in (Leaving.SENDING, Leaving.BARRING, Leaving.ASKING):",
    ),
    "released is as good as running": (
        "        self.state = Leaving.COMMITTED\n        return (Effect.RELEASE,)",
        "        return Effect.RELEASE, *self._done()",
    ),
    "a held copy that is lost is not given back": (
        "if self.state is Coming.RESTORING:\n            return self._discarded()\n        return self._given",
        "if self.state is not Coming.RELEASING:\n            return self._discarded()\n        return self._given",
    ),
    "a held copy whose source is lost is discarded": (
        "return (Effect.ASK_WHERE,) if self.state is Coming.HELD else ()",
        "return self._discarded() if self.state is Coming.HELD else ()",
    ),
    "what was written down is forgotten before it is given back": (
        "return Effect.DISCARD, Effect.GIVE_BACK",
        "return Effect.DISCARD, Effect.FORGET, Effect.GIVE_BACK",
    ),
}


@contextlib.contextmanager
def mutant(old: str, new: str) -> Iterator[None]:
    """The model with a changed line of handover.py."""
    source = inspect.getsource(handover)
    assert source.count(old) == 1, old
    module = types.ModuleType("handover_mutant")
    sys.modules[module.__name__] = module  # msgspec looks there for the types of fields
    with pytest.MonkeyPatch.context() as patch:
        exec(compile(source.replace(old, new), "<mutant>", "exec"), module.__dict__)
        for using in (handovermodel, handovernode):
            patch.setattr(using, "handover", module)
            for name in ("Coming", "Destination", "Leaving", "Located", "Phase", "Record", "Source", "Stay"):
                patch.setattr(using, name, vars(module)[name], raising=False)
        yield
    del sys.modules[module.__name__]


@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_the_promise_needs_every_line(old: str, new: str) -> None:
    with mutant(old, new):
        assert first_broken(Rules(), range(MUTANT_SEEDS)) is not None


# ---------------------------------------------------------------- one by one


def test_a_handover_without_faults() -> None:
    record = handover.begin(Record(1), 1, 1, 2)
    source, destination = Source(1, record.issued, 1), Destination(2, record.issued)
    assert destination.restored() == (Effect.TELL_RESTORED,)
    assert source.restored() == (Effect.BAR,)
    assert source.barred() == (Effect.ASK_COMMIT,)
    record = handover.commit(record, 1, source.attempt)
    assert record == Record(2, epoch=2, issued=2, source=1)
    assert source.located(record.located(2)) == (Effect.RELEASE,)
    assert destination.release() == (Effect.RUN,)
    assert destination.ran() == (Effect.TELL_RUNNING, Effect.ATTEND)
    assert source.running() == (Effect.KILL, Effect.FORGET)
    record = handover.attended(record, 2, 2)
    assert record == Record(2, epoch=2, issued=2)
    assert destination.located(record.located(2)) == ()
    assert (source.state, destination.state) == (Leaving.DONE, Coming.RUNNING)


def test_only_who_has_the_guest_moves_it() -> None:
    record = Record(2, epoch=5, issued=7)
    for sender, epoch in ((1, 5), (2, 4), (2, 7)):
        with pytest.raises(HandoverRefused, match=f"not on node {sender} in epoch {epoch}"):
            handover.begin(record, sender, epoch, 3)
    assert handover.begin(Record(2, 5, 7, source=1), 2, 5, 3) == Record(2, 5, 8, destination=3)  # it runs there


def test_what_does_not_fit_changes_nothing() -> None:
    still = Record(2, epoch=5, issued=7)
    is_open = Record(2, epoch=5, issued=7, destination=3)
    committed = Record(3, epoch=7, issued=7, source=2)
    for record, change, sender, epoch in (
        (still, handover.commit, 2, 7),
        (is_open, handover.commit, 3, 7),
        (is_open, handover.commit, 2, 6),
        (is_open, handover.asked, 1, 7),
        (is_open, handover.asked, 2, 6),
        (committed, handover.asked, 2, 7),
        (is_open, handover.attended, 3, 7),
        (committed, handover.attended, 2, 7),
        (is_open, handover.given_back, 2, 7),
        (still, handover.given_back, 2, 5),
        (committed, handover.given_back, 2, 7),
    ):
        assert change(record, sender, epoch) == record


def test_a_guest_that_is_given_back_has_a_new_epoch() -> None:
    committed = Record(3, epoch=7, issued=7, source=2)
    assert handover.given_back(committed, 3, 7) == Record(2, epoch=8, issued=8)
    assert handover.given_back(Record(2, 5, 7, destination=3), 3, 7) == Record(2, 5, 7)


BOTH = ("restored", "failed", "unanswered", "home_lost")
MACHINES: list[tuple[Callable[[], Any], str]] = [
    *((lambda: Source(1, 7, 5), event) for event in (*BOTH, "barred", "running")),
    *((lambda: Destination(2, 7), event) for event in (*BOTH, "discard", "source_lost", "release", "ran")),
]


@pytest.mark.parametrize(("make", "event"), MACHINES)
@pytest.mark.parametrize("state", [*Leaving, *Coming])
def test_an_event_out_of_place_does_nothing(make: Callable[[], Any], event: str, state: enum.Enum) -> None:
    """What the tables do not name; a machine that is finished stays so."""
    machine = make()
    if type(state) is not type(machine.state):
        return
    machine.state = state
    effects = getattr(machine, event)()
    assert bool(effects) == ((state.name, event) in EXPECTED), effects
    if state in (Leaving.DONE, Leaving.UNDONE, Coming.DISCARDED):
        assert (effects, machine.state) == ((), state)


EXPECTED = {
    ("SENDING", "restored"), ("SENDING", "failed"), ("BARRING", "barred"), ("BARRING", "failed"),
    *((state, event) for state in ("ASKING", "COMMITTED") for event in ("running", "unanswered", "home_lost")),
    *(("RESTORING", event) for event in ("restored", "failed", "discard", "source_lost")),
    *(("HELD", event) for event in ("failed", "discard", "source_lost", "release", "unanswered", "home_lost")),
    *(("RELEASING", event) for event in ("ran", "failed")),
    *((state, event) for state in ("RUNNING", "RETURNING") for event in ("unanswered", "home_lost")),
}  # fmt: skip


def test_an_answer_that_does_not_fit_changes_nothing() -> None:
    source, destination = Source(1, 7, 5), Destination(2, 7)
    assert source.located(Located(7, 7, 2, True)) == ()  # it has not asked
    assert destination.located(Located(6, 6, 3, True)) == ()
    source.state = Leaving.COMMITTED
    assert source.located(Located(7, 7, 2, False)) == ()
    assert source.located(Located(7, 8, 1, True)) == (Effect.THAW,)
    assert (source.state, source.epoch) == (Leaving.UNDONE, 8)


def test_a_held_copy_goes_where_home_says() -> None:
    for answer, effects in (
        (Located(7, 7, 2, False), (Effect.RUN,)),
        (Located(7, 5, 1, True), (Effect.DISCARD, Effect.FORGET)),
        (handover.gone(7), (Effect.DISCARD, Effect.FORGET)),
    ):
        destination = Destination(2, 7)
        destination.restored()
        assert destination.located(answer) == effects


def test_whoever_asks_about_nothing_is_told_so() -> None:
    assert handover.gone(7) == Located(7, 0, handover.NOBODY, True)
