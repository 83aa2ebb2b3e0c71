"""Whether a recorded history of concurrent operations is linearizable, object by object; pure, for tests.

A history is linearizable when each operation can be given one moment between its call and its return such that the
operations, done one after the other in that order, give the results that were recorded (Herlihy and Wing 1990).  The
property is local: a history is linearizable if the part of each object is, so `partition` and check each part.

The search is that of Wing and Gong with Lowe's just-in-time order and memoisation ("Testing for linearizability",
2017).  It walks the calls and returns in the order of their times and keeps every *configuration* that explains what
was seen so far: the state of the object, and which of the operations in flight have had their moment already.  An
operation must have had it when it returns; only then others that are in flight are tried before it.  When no
configuration is left, the history is wrong there, and NotLinearizable says what was seen, by whom, and what could have
been seen.

An operation that failed without telling whether it happened has the result UNKNOWN: it may have its moment between its
call and its `returned`, or never.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

EXPLAINED_STATES: Final = 4
EXPLAINED_OPERATIONS: Final = 12
SHOWN_LENGTH: Final = 200


class Outcome(Enum):
    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return "(nobody knows)"


UNKNOWN: Final = Outcome.UNKNOWN


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of somebody and what came of it; times of one clock, in seconds."""

    who: str
    called: float
    returned: float
    thing: str  # the object: what the history is split by
    action: str
    argument: Hashable = None
    result: Hashable = None

    def __str__(self) -> str:
        argument = "" if self.argument is None else _shorten(self.argument)
        return f"{self.who}: {self.thing}.{self.action}({argument}) -> {_shorten(self.result)}"


class Specification(Protocol):
    """What one object does when it is alone.  States are compared and hashed."""

    @property
    def initial(self) -> Hashable: ...

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        """The state after the operation; None where it can't have this result in this state (no state is None)."""
        ...

    def only_looks(self, operation: Operation) -> bool:
        """Whether the operation, with the result it had, leaves every state as it was."""
        ...


class NotLinearizable(AssertionError):
    """The text is for the reader of a failed test; *operation* is where the history can't be explained any more."""

    def __init__(self, text: str, operation: Operation) -> None:
        super().__init__(text)
        self.operation = operation


# ---------------------------------------------------------------- what objects do


class Register:
    """write(value), read() -> value; the content of a file that is written whole."""

    def __init__(self, initial: Hashable) -> None:
        self.initial: Hashable = ("value", initial)

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        if operation.action == "write":
            return ("value", operation.argument)
        assert operation.action == "read", operation
        return state if state == ("value", operation.result) else None

    def only_looks(self, operation: Operation) -> bool:
        return operation.action == "read"


class Names:
    """The names of a directory and what each leads to (an identity, None = nothing).

    make((name, identity)), put((name, identity)) (in place of what is there), remove(name), move((old, new)) (also in
    place of what is there), move_to_free((old, new)), look(name) -> identity.
    Results of changes: "ok", "EEXIST", "ENOENT".
    """

    def __init__(self, initial: Iterable[tuple[Hashable, Hashable]] = ()) -> None:
        self.initial: Hashable = frozenset(initial)

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        assert isinstance(state, frozenset)
        names = dict(state)
        if operation.action == "move_to_free" and operation.result == "ENOENT":  # the new name may be free or not
            assert isinstance(operation.argument, tuple)
            return None if operation.argument[0] in names else state
        done = getattr(self, "_" + operation.action)(names, operation.argument)
        expected = operation.result in (done, UNKNOWN)
        return frozenset(names.items()) if expected else None

    @staticmethod
    def _make(names: dict[Hashable, Hashable], argument: tuple[Hashable, Hashable]) -> str:
        name, identity = argument
        if name in names:
            return "EEXIST"
        names[name] = identity
        return "ok"

    @staticmethod
    def _put(names: dict[Hashable, Hashable], argument: tuple[Hashable, Hashable]) -> str:
        name, identity = argument
        names[name] = identity
        return "ok"

    @staticmethod
    def _remove(names: dict[Hashable, Hashable], name: Hashable) -> str:
        return "ENOENT" if names.pop(name, None) is None else "ok"

    @staticmethod
    def _move(names: dict[Hashable, Hashable], argument: tuple[Hashable, Hashable]) -> str:
        old, new = argument
        if old not in names:
            return "ENOENT"
        names[new] = names.pop(old)
        return "ok"

    @staticmethod
    def _move_to_free(names: dict[Hashable, Hashable], argument: tuple[Hashable, Hashable]) -> str:
        """With RENAME_NOREPLACE."""
        return "EEXIST" if argument[1] in names else Names._move(names, argument)

    @staticmethod
    def _look(names: dict[Hashable, Hashable], name: Hashable) -> Hashable:
        return names.get(name)

    def only_looks(self, operation: Operation) -> bool:
        return operation.action == "look" or operation.result in ("EEXIST", "ENOENT")


class Log:
    """append(record), read() -> all records, count() -> how many; a file that is only appended to, records unique.

    *final* is what it held when all was over.  It gives the order of the appends, which would otherwise have to be
    guessed until the next read; a state is then the number of records that are there.
    """

    def __init__(self, final: Sequence[Hashable]) -> None:
        self.initial: Hashable = 0
        self.final = tuple(final)
        self._place = {record: place for place, record in enumerate(final)}
        assert len(self._place) == len(final), "a record is there twice"

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        assert isinstance(state, int)
        if operation.action == "append":
            return state + 1 if self._place.get(operation.argument) == state else None
        if operation.action == "count":
            return state if operation.result == state else None
        assert operation.action == "read", operation
        return state if operation.result == self.final[:state] else None

    def only_looks(self, operation: Operation) -> bool:
        return operation.action != "append"


class Ascending:
    """look() -> a number that never becomes smaller; a file's mtime while nobody sets it."""

    initial: Hashable = -1

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        assert isinstance(state, int)
        assert isinstance(operation.result, int)
        return operation.result if operation.result >= state else None

    def only_looks(self, operation: Operation) -> bool:
        return False  # seeing a number rules the smaller ones out


# ---------------------------------------------------------------- the search


def partition(history: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each object."""
    parts: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        parts[operation.thing].append(operation)
    return parts


def check(
    history: Iterable[Operation], specification: Specification, begin: Iterable[Hashable] | None = None
) -> frozenset[Hashable]:
    """The states in which the object may be after *history*; raises NotLinearizable.

    *begin*: the states in which it may be before (default: the specification's initial one), so that histories with
    a moment of rest between them can be checked one after the other.
    """
    operations = list(history)
    return _walk(operations, _Search(specification, operations, [specification.initial] if begin is None else begin))


def check_promise(history: Iterable[Operation], specification: Specification) -> None:
    """Less than `check`: the changes have one order, and each look by itself fits into it.  Raises NotLinearizable.

    It lets two looks disagree for as long as a change has not returned: the one sees it already, a later one does not
    yet.  What has returned must be seen by all that start later; that is what caches promise that are recalled before a
    change is done, but not at the one that makes the change.
    """
    operations = list(history)
    _walk(operations, _SearchOfChanges(specification, operations, [specification.initial]))


def _walk(operations: list[Operation], search: _Search) -> frozenset[Hashable]:
    events: list[tuple[float, int, int, Operation]] = []
    for operation in operations:
        assert operation.called <= operation.returned, operation
        # At equal times calls come first: what touches counts as concurrent.
        events += [(operation.called, 0, len(events), operation), (operation.returned, 1, len(events), operation)]
    for _, is_return, _, operation in sorted(events, key=lambda event: event[:3]):
        if is_return:
            search.take_return(operation)
        else:
            search.take_call(operation)
    return frozenset(state for state, _ in search.configurations)


class _Search:
    """The configurations that explain what was seen so far: (state, bits of those in flight that had their moment)."""

    def __init__(self, specification: Specification, history: list[Operation], begin: Iterable[Hashable]) -> None:
        self.specification = specification
        self._history = history
        self.configurations: set[tuple[Hashable, int]] = {(state, 0) for state in begin}
        self.in_flight: dict[int, Operation] = {}  # bit -> operation
        self._bits: dict[int, int] = {}  # id of an operation in flight -> its bit
        self._looks = 0  # the bits of those that only look
        self._ended: list[Operation] = []  # the last that returned, to explain

    def take_call(self, operation: Operation) -> None:
        bit = 1
        while bit in self.in_flight:
            bit <<= 1
        self.in_flight[bit] = operation
        self._bits[id(operation)] = bit
        if operation.result is not UNKNOWN and self.specification.only_looks(operation):
            self._looks |= bit
            self.configurations = {self._with_looks(*one) for one in self.configurations}

    def take_return(self, operation: Operation) -> None:
        bit = self._bits.pop(id(operation))
        left = self._after_moment_of(bit)
        if operation.result is UNKNOWN:  # or it never happened
            left |= {(state, moments) for state, moments in self.configurations if not moments & bit}
        if not left:
            raise NotLinearizable(self._explain(operation), operation)
        del self.in_flight[bit]
        self._looks &= ~bit
        self.configurations = left
        self._ended = [*self._ended[-EXPLAINED_OPERATIONS:], operation]

    def _after_moment_of(self, wanted: int) -> set[tuple[Hashable, int]]:
        """Every configuration in which *wanted* has had its moment, after as few others as needed; its bit cleared."""
        found = set()
        seen = set(self.configurations)
        pending = list(self.configurations)
        while pending:
            state, moments = pending.pop()
            if moments & wanted:
                found.add((state, moments & ~wanted))
                continue
            for bit, operation in self.in_flight.items():
                if moments & bit:
                    continue
                after = self.specification.step(state, operation)
                if after is not None:
                    fresh = self._with_looks(after, moments | bit)
                    if fresh not in seen:
                        seen.add(fresh)
                        pending.append(fresh)
        return found

    def _with_looks(self, state: Hashable, moments: int) -> tuple[Hashable, int]:
        """Those in flight that only look have their moment as soon as they can: it changes nothing for the others."""
        waiting = self._looks & ~moments
        while waiting:
            bit = waiting & -waiting
            waiting ^= bit
            if self.specification.step(state, self.in_flight[bit]) is not None:
                moments |= bit
        return state, moments

    # ------------------------------------------------------------ for people

    def _explain(self, wrong: Operation) -> str:
        def lines(operations: Iterable[Operation]) -> list[str]:
            found = []
            for one in sorted(operations, key=lambda one: one.called):
                called, returned = ((at - wrong.called) * 1000 for at in (one.called, one.returned))
                found.append(f"  {called:+10.3f} .. {returned:+10.3f} ms  {one}")
            return found

        states = sorted({_shorten(state) for state, _ in self.configurations})
        if len(states) > EXPLAINED_STATES:
            states[EXPLAINED_STATES:] = [f"... {len(states)} in all"]
        others = lines(one for one in self.in_flight.values() if one is not wrong)
        return "\n".join(
            [
                f"not linearizable: {wrong}",
                "when it was called and when it returned (times of all count from this call):",
                *lines([wrong]),
                "what the object could be when it returned, before those in flight have had their moment:",
                *(f"  {state}" for state in states),
                *(["in flight with it:", *others] if others else ["nothing was in flight with it"]),
                *self._origin(wrong, lines),
                "the last that returned before:",
                *lines(self._ended),
            ]
        )

    def _origin(self, wrong: Operation, lines: Callable[[Iterable[Operation]], list[str]]) -> list[str]:
        """Who made the value that was seen: it tells a stale value from one that nobody wrote."""
        if wrong.result is None or not self.specification.only_looks(wrong):
            return []
        makers = [
            one
            for one in self._history
            if one.argument == wrong.result or (isinstance(one.argument, tuple) and wrong.result in one.argument)
        ]
        if not makers:
            return ["nobody ever wrote what it saw"]
        return ["what it saw came from:", *lines(makers[-EXPLAINED_OPERATIONS:])]


class _SearchOfChanges(_Search):
    """Looks are kept apart: each waits for a state that it fits, and nothing else depends on it."""

    def __init__(self, specification: Specification, history: list[Operation], begin: Iterable[Hashable]) -> None:
        super().__init__(specification, history, begin)
        self._waiting: list[Operation] = []

    def take_call(self, operation: Operation) -> None:
        if self._is_look(operation):
            self._waiting.append(operation)
        else:
            super().take_call(operation)
        self._let_look()

    def take_return(self, operation: Operation) -> None:
        if not self._is_look(operation):
            super().take_return(operation)
            return
        if any(one is operation for one in self._waiting):
            raise NotLinearizable(self._explain(operation), operation)

    def _is_look(self, operation: Operation) -> bool:
        return operation.result is not UNKNOWN and self.specification.only_looks(operation)

    def _let_look(self) -> None:
        """Whoever fits a state that is possible now, or when some of the changes in flight have had their moment."""
        if not self._waiting:
            return
        seen = set(self.configurations)
        pending = list(seen)
        while pending:
            state, moments = pending.pop()
            for bit, operation in self.in_flight.items():
                after = None if moments & bit else self.specification.step(state, operation)
                if after is not None and (after, moments | bit) not in seen:
                    seen.add((after, moments | bit))
                    pending.append((after, moments | bit))
        states = {state for state, _ in seen}
        self._waiting = [
            one for one in self._waiting if all(self.specification.step(state, one) is None for state in states)
        ]


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH // 2]} ... {text[-SHOWN_LENGTH // 2 :]}"
