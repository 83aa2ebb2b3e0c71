"""The checker of histories: what has an order is accepted; stale, lost, torn and reordered is rejected, in words."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Hashable

import hypothesis
import pytest
from hypothesis import assume, given, strategies as st

from tests.linearizability import (
    UNKNOWN,
    Ascending,
    Log,
    Names,
    NotLinearizable,
    Operation,
    Register,
    Specification,
    check,
    check_promise,
    partition,
)

KINDS = ("register", "names", "log", "times")


def specification_of(kind: str, world: World) -> Specification:
    """Of an object that begins as World does."""
    kinds: dict[str, Specification] = {
        "register": Register("nothing"),
        "names": Names([("a", "first")]),
        "log": Log(world.records),
        "times": Ascending(),
    }
    return kinds[kind]


def op(
    who: str, called: float, returned: float, action: str, argument: Hashable = None, result: Hashable = "ok"
) -> Operation:
    return Operation(who, called, returned, "it", action, argument, result)


# ---------------------------------------------------------------- histories that have an order


class World:
    """Objects that are alone in the world: does one operation after the other and gives the result of each."""

    def __init__(self) -> None:
        self.value: Hashable = "nothing"
        self.names: dict[str, str] = {"a": "first"}
        self.records: list[str] = []
        self.mtime = 0
        self.serial = 0

    def do(self, kind: str, rng: random.Random) -> tuple[str, Hashable, Hashable]:
        """One random operation: (action, argument, result)."""
        self.serial += 1
        fresh = f"v{self.serial}"
        if kind == "register":
            if rng.random() < 0.6:
                return "read", None, self.value
            self.value = fresh
            return "write", fresh, "ok"
        if kind == "log":
            if rng.random() < 0.5:
                self.records.append(fresh)
                return "append", fresh, "ok"
            return ("count", None, len(self.records)) if rng.random() < 0.5 else ("read", None, tuple(self.records))
        if kind == "times":
            self.mtime += rng.randrange(3)
            return "look", None, self.mtime
        return self.do_name(rng, fresh)

    def do_name(self, rng: random.Random, fresh: str) -> tuple[str, Hashable, Hashable]:
        name, other = rng.choice("abc"), rng.choice("abc")
        action = rng.choice(["make", "put", "remove", "move", "move_to_free", "look", "look"])
        if action == "look":
            return action, name, self.names.get(name)
        if action == "remove":
            return action, name, "ok" if self.names.pop(name, None) else "ENOENT"
        if action.startswith("move"):
            if name not in self.names:
                return action, (name, other), "ENOENT"
            if action == "move_to_free" and other in self.names:
                return action, (name, other), "EEXIST"
            self.names[other] = self.names.pop(name)
            return action, (name, other), "ok"
        if action == "make" and name in self.names:
            return action, (name, fresh), "EEXIST"
        self.names[name] = fresh
        return action, (name, fresh), "ok"


def make_history(kind: str, seed: int, count: int, clients: int = 5) -> tuple[list[Operation], Specification]:
    """What several clients saw of a world in which every operation had one moment; some failed without saying more."""
    rng, world, nowhere = random.Random(seed), World(), World()
    free_at = dict.fromkeys(range(clients), 0.0)
    history, now = [], 0.0
    for number in range(count):
        now += rng.random()
        who = rng.choice([client for client, since in free_at.items() if since <= now] or [0])
        now = max(now, free_at[who])
        called, returned = rng.uniform(free_at[who], now), now + rng.random() * 4
        free_at[who] = returned
        failed = rng.random() < 0.1
        if failed and rng.random() < 0.5:  # and it never happened
            action, argument, _ = nowhere.do(kind, rng)
            argument = f"lost{number}" if action in ("write", "append") else argument
        else:
            action, argument, result = world.do(kind, rng)
        if not failed:
            history.append(op(f"client{who}", called, returned, action, argument, result))
        elif action not in ("read", "look", "count"):  # who saw nothing tells nothing
            history.append(op(f"client{who}", called, returned, action, argument, UNKNOWN))
    rng.shuffle(history)
    return history, specification_of(kind, world)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 40))
def test_a_history_with_an_order_is_accepted(kind: str, seed: int, count: int) -> None:
    check(*make_history(kind, seed, count))


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_grows_with_the_length_only(kind: str) -> None:
    steps = 0

    def count(history: list[Operation], specification: Specification) -> int:
        nonlocal steps
        steps = 0

        class Counting:
            initial = specification.initial
            only_looks = staticmethod(specification.only_looks)

            def step(self, state: Hashable, operation: Operation) -> Hashable | None:
                nonlocal steps
                steps += 1
                return specification.step(state, operation)

        check(history, Counting())
        return steps

    short, long = (count(*make_history(kind, 1, length, clients=9)) for length in (500, 2000))
    assert long < 8 * short


# ---------------------------------------------------------------- against every order there is

few_values = st.sampled_from(["u", "v"])
few_times = st.integers(0, 8)


@st.composite
def random_histories(draw: st.DrawFn) -> list[Operation]:
    """Anything, most of it impossible; a register and names in turn."""
    history = []
    registers = draw(st.booleans())
    for number in range(draw(st.integers(1, 5))):
        called = draw(few_times)
        returned = called + draw(few_times)
        who, unknown = f"client{number}", draw(st.booleans()) and draw(st.booleans())
        if registers and draw(st.booleans()):
            history.append(op(who, called, returned, "read", None, draw(few_values)))
        elif registers:
            history.append(op(who, called, returned, "write", draw(few_values), UNKNOWN if unknown else "ok"))
        else:
            action = draw(st.sampled_from(["make", "put", "remove", "move", "move_to_free", "look"]))
            name, value = draw(few_values), draw(few_values)
            argument = name if action in ("remove", "look") else (name, value)
            codes = ["ok", "ENOENT", "EEXIST"]
            choices: dict[str, list[str | None]] = {"look": [None, "u", "v"], "make": ["ok", "EEXIST"], "put": ["ok"]}
            seen = choices.get(action, [*codes])
            result = draw(st.sampled_from(seen))
            history.append(
                op(who, called, returned, action, argument, UNKNOWN if unknown and action != "look" else result)
            )
    return history


def has_order(history: list[Operation], specification: Specification) -> bool:
    """By trying all orders and all sets of the unknown that may have happened."""
    unknown = [one for one in history if one.result is UNKNOWN]
    for bits in range(1 << len(unknown)):
        happened = [one for one in history if one not in [u for n, u in enumerate(unknown) if not bits >> n & 1]]
        for order in itertools.permutations(happened):
            state: Hashable | None = specification.initial
            fits = all(a.called <= b.returned for a, b in itertools.combinations(order, 2))
            for one in order if fits else ():
                state = specification.step(state, one) if state is not None else None
            if fits and state is not None:
                return True
    return False


@hypothesis.settings(max_examples=400)
@given(random_histories())
def test_the_search_agrees_with_all_orders(history: list[Operation]) -> None:
    names = any(one.action not in ("read", "write") for one in history)
    specification: Specification = Names([("u", "v")]) if names else Register("u")
    try:
        check(history, specification)
    except NotLinearizable:
        assert not has_order(history, specification)
    else:
        assert has_order(history, specification)


@hypothesis.settings(max_examples=400)
@given(random_histories())
def test_the_promise_is_about_each_look_by_itself(history: list[Operation]) -> None:
    names = any(one.action not in ("read", "write") for one in history)
    specification: Specification = Names([("u", "v")]) if names else Register("u")
    looks = [one for one in history if one.result is not UNKNOWN and specification.only_looks(one)]
    changes = [one for one in history if one not in looks]
    each = [has_order([*changes, look], specification) for look in looks] or [has_order(changes, specification)]
    try:
        check_promise(history, specification)
    except NotLinearizable:
        assert not all(each)
    else:
        assert has_order(changes, specification)


@pytest.mark.parametrize("kind", ["register", "names", "log"])
@given(seed=st.integers(0, 2**32), count=st.integers(0, 40))
def test_what_is_linearizable_keeps_the_promise(kind: str, seed: int, count: int) -> None:
    check_promise(*make_history(kind, seed, count))


def test_looks_may_disagree_until_the_change_returns() -> None:
    unlink = op("A", 0, 9, "remove", "a")
    gone, there = op("B", 1, 2, "look", "a", None), op("A", 3, 4, "look", "a", "first")
    check_promise([unlink, gone, there], Names([("a", "first")]))
    with pytest.raises(NotLinearizable):
        check([unlink, gone, there], Names([("a", "first")]))
    with pytest.raises(NotLinearizable):
        check_promise([unlink, op("B", 10, 11, "look", "a", "first")], Names([("a", "first")]))


# ---------------------------------------------------------------- planted faults


def stale_reads(history: list[Operation]) -> list[tuple[Operation, Operation, Operation]]:
    """(old write, new write, read) one after the other: the read must not give the old one's value."""
    writes = [one for one in history if one.action == "write" and one.result is not UNKNOWN]
    reads = [one for one in history if one.action == "read"]
    return [
        (old, new, read)
        for old, new, read in itertools.product(writes, writes, reads)
        if old.returned < new.called and new.returned < read.called
    ]


@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_planted_stale_read_is_rejected(seed: int, data: st.DataObject) -> None:
    history, specification = make_history("register", seed, 30)
    candidates = stale_reads(history)
    assume(candidates)
    old, _, read = data.draw(st.sampled_from(candidates))
    history[history.index(read)] = dataclasses.replace(read, result=old.argument)
    for judge in (check, check_promise):
        with pytest.raises(NotLinearizable, match="what it saw came from") as caught:
            judge(history, specification)
        assert repr(old.argument) in str(caught.value)


@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_torn_read_is_rejected(seed: int, data: st.DataObject) -> None:
    history, specification = make_history("register", seed, 30)
    reads = [one for one in history if one.action == "read"]
    assume(reads)
    read = data.draw(st.sampled_from(reads))
    history[history.index(read)] = dataclasses.replace(read, result="v1v2")
    with pytest.raises(NotLinearizable, match="nobody ever wrote what it saw") as caught:
        check(history, specification)
    assert caught.value.operation.result == "v1v2"


@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_lost_append_is_rejected(seed: int, data: st.DataObject) -> None:
    history, specification = make_history("log", seed, 30)
    appended = [one.argument for one in history if one.action == "append" and one.result == "ok"]
    assume(appended)
    lost = data.draw(st.sampled_from(appended))
    assert isinstance(specification, Log)
    final = [record for record in specification.final if record != lost]
    with pytest.raises(NotLinearizable):
        check([one for one in history if one.action == "append"], Log(final))


def test_a_lost_write_is_rejected() -> None:
    history = [op("A", 0, 1, "write", "x"), op("B", 2, 3, "write", "y"), op("C", 4, 5, "read", None, "x")]
    check(history[:2], Register("0"))
    with pytest.raises(NotLinearizable):
        check(history, Register("0"))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(op("B", 4, 5, "look", "a", "first"), id="an unlinked name is still there"),
        pytest.param(op("B", 4, 5, "look", "b", None), id="a new name is not there yet"),
        pytest.param(op("B", 4, 5, "make", ("b", "other")), id="two make the same name"),
        pytest.param(op("B", 4, 5, "move", ("a", "c")), id="a name that is gone is renamed"),
        pytest.param(op("B", 4, 5, "remove", "b", "ENOENT"), id="a name that is there is not found"),
    ],
)
def test_stale_names_are_rejected(wrong: Operation) -> None:
    renamed = [op("A", 0, 1, "move", ("a", "b"))]
    check(renamed, Names([("a", "first")]))
    with pytest.raises(NotLinearizable):
        check([*renamed, wrong], Names([("a", "first")]))


def test_a_rename_is_seen_at_both_names_at_once() -> None:
    during = [op("A", 0, 9, "move", ("a", "b")), op("B", 1, 2, "look", "b", "first")]
    check([*during, op("B", 3, 4, "look", "a", None)], Names([("a", "first")]))
    with pytest.raises(NotLinearizable):
        check([*during, op("B", 3, 4, "look", "a", "first")], Names([("a", "first")]))


def test_times_that_go_back_are_rejected() -> None:
    history = [op("A", 0, 2, "look", None, 5), op("B", 1, 3, "look", None, 4)]
    check(history, Ascending())
    with pytest.raises(NotLinearizable):
        check([*history, op("C", 4, 5, "look", None, 4)], Ascending())


def test_who_does_not_know_may_have_written_once_or_never() -> None:
    unknown = op("A", 0, 9, "write", "x", UNKNOWN)
    old, new = op("B", 1, 2, "read", None, "0"), op("B", 3, 4, "read", None, "x")
    check([unknown, old], Register("0"))
    check([unknown, old, new], Register("0"))
    with pytest.raises(NotLinearizable):
        check([unknown, old, new, op("B", 5, 6, "read", None, "0")], Register("0"))
    with pytest.raises(NotLinearizable):  # the effect comes no later than it is said to
        check([unknown, op("B", 10, 11, "read", None, "0"), op("B", 12, 13, "read", None, "x")], Register("0"))


def test_histories_are_checked_one_after_the_other() -> None:
    left = check([op("A", 0, 9, "write", "x", UNKNOWN)], Register("0"))
    assert len(left) == 2
    assert check([op("B", 10, 11, "read", None, "x")], Register("0"), left) == {("value", "x")}
    with pytest.raises(NotLinearizable):
        check([op("B", 10, 11, "read", None, "y")], Register("0"), left)


def test_each_object_has_its_part() -> None:
    history = [dataclasses.replace(op("A", n, n + 1, "read"), thing=thing) for n, thing in enumerate("xyx")]
    assert {thing: [one.called for one in part] for thing, part in partition(history).items()} == {
        "x": [0, 2],
        "y": [1],
    }


def test_the_explanation_can_be_read() -> None:
    history = [
        op("node1", 10.0, 10.001, "write", "old"),
        op("node1", 10.002, 10.003, "write", "new"),
        op("node2", 10.0035, 10.2, "write", "newer"),
        op("node3", 10.004, 10.005, "read", None, "old"),
    ]
    with pytest.raises(NotLinearizable) as caught:
        check(history, Register("0"))
    assert str(caught.value).splitlines() == [
        "not linearizable: node3: it.read() -> 'old'",
        "when it was called and when it returned (times of all count from this call):",
        "      +0.000 ..     +1.000 ms  node3: it.read() -> 'old'",
        "what the object could be when it returned, before those in flight have had their moment:",
        "  ('value', 'new')",
        "in flight with it:",
        "      -0.500 ..   +196.000 ms  node2: it.write('newer') -> 'ok'",
        "what it saw came from:",
        "      -4.000 ..     -3.000 ms  node1: it.write('old') -> 'ok'",
        "the last that returned before:",
        "      -4.000 ..     -3.000 ms  node1: it.write('old') -> 'ok'",
        "      -2.000 ..     -1.000 ms  node1: it.write('new') -> 'ok'",
    ]
