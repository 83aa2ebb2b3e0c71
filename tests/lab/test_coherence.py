"""Once a change has returned on one node, another node sees it, whatever it had cached: no stale answer, ever.

OMFS_ROUNDS=20000 makes it long, OMFS_SEED repeats the choices of a run.  Without the bind of a node's own tree
(--dfsa 0) all nodes go through /mfs, so the promise is the strict one for all of them.
"""

from __future__ import annotations

import pytest

from tests.lab.agents import Agent, chosen_seed, number_from
from tests.lab.cluster import Cluster
from tests.lab.rounds import NAMES, SHOWN_LENGTH, Change, Model, Thing
from tests.watch.deadline import LAB_TIMEOUT_S

LAB_OPTIONS = ("--dfsa", "0")
ROUNDS = number_from("OMFS_ROUNDS", 900)
PLACEMENTS = {"a third node owns it": (1, 3, 2), "the writer owns it": (1, 3, 1), "the reader owns it": (1, 3, 3)}
TRUTH_EVERY = 8  # rounds

pytestmark = [pytest.mark.lab, pytest.mark.timeout(max(LAB_TIMEOUT_S, ROUNDS))]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_look_shows_what_was_before_a_change(cluster: Cluster, placement: str) -> None:
    writer, reader, owner = PLACEMENTS[placement]
    here = cluster.fresh_dir(owner)
    agents = [Agent(cluster.lab, node, "calls.py", here.remote) for node in (writer, reader)]
    truth = Agent(cluster.lab, owner, "calls.py", here.native)
    rng = chosen_seed()
    model = Model(rng)
    for number in range(ROUNDS // len(PLACEMENTS)):
        # Mostly one writes and the other reads; the one who wrote has caches too, so sometimes the other way round.
        changing, looking = agents if rng.random() < 0.75 else agents[::-1]
        was = dict(model.paths())
        change = model.change()
        paths = sorted({*change.paths, rng.choice(NAMES)})
        round_ = Round(number, model, change, paths, was)
        round_.warm(looking)
        if rng.random() < 0.5:
            round_.warm(changing)
        round_.change(changing, then_look=rng.random() < 0.5)
        round_.look(looking)
        if number % TRUTH_EVERY == 0:
            round_.compare_with_disk(truth)


class Round:
    """One change: warm, change, look."""

    def __init__(self, number: int, model: Model, change: Change, paths: list[str], was: dict[str, Thing]) -> None:
        self._name = f"round {number}, {change}"
        self._model, self._change, self._paths = model, change, paths
        self._opened = {path: thing for path, thing in was.items() if path in paths and thing.kind == "file"}
        self._looks = [("facts", path, "data", "xattrs") for path in paths]
        self._kept: Agent | None = None
        self._seen: list[object] = []

    def warm(self, agent: Agent) -> None:
        """Twice: what the first look brought is used by the second; and the files are left open by the last to warm."""
        agent.call(*self._looks, *self._looks)
        if self._kept is None:
            agent.call(*(("keep", path) for path in self._opened))
            self._kept = agent

    def change(self, agent: Agent, *, then_look: bool) -> None:
        results = agent.call(*self._change.calls)
        assert results == [None] * len(results), f"{self._name}: {results}"
        if then_look:
            self._compare(agent, agent.call(*self._looks))

    def look(self, agent: Agent) -> None:
        assert self._kept is agent
        seen = agent.call(*self._looks)
        self._compare(agent, seen)
        kept = agent.call(*(("kept_facts", path) for path in self._opened))
        for (path, thing), facts in zip(self._opened.items(), kept, strict=True):
            expected = {key: value for key, value in thing.facts().items() if key != "xattrs"}
            wrong = differences(facts, expected)
            assert not wrong, f"{self._name}: {agent.name} sees through what it opened as {path} (is, must be): {wrong}"

    def compare_with_disk(self, truth: Agent) -> None:
        """Times too, which the model does not know.  After the looks: a native open may recall a cached file."""
        disk = truth.call(*self._looks)
        assert self._seen == disk, f"{self._name}: the last look differs from the owner's disk"

    def _compare(self, agent: Agent, seen: list[dict[str, object]]) -> None:
        for path, facts in zip(self._paths, seen, strict=True):
            wrong = differences(facts, self._model.expected(path))
            assert not wrong, f"{self._name}: {agent.name} sees at {path} (is, must be): {wrong}"
        earlier, self._seen = self._seen, list(seen)
        assert earlier in ([], self._seen), f"{self._name}: the two nodes see different times or links"


def differences(facts: dict[str, object], expected: dict[str, object]) -> dict[str, tuple[str, str]]:
    """(is, must be) of each fact that is wrong; long content is cut."""
    wrong = [(key, facts.get(key), value) for key, value in expected.items() if facts.get(key) != value]
    return {key: (repr(seen)[:SHOWN_LENGTH], repr(due)[:SHOWN_LENGTH]) for key, seen, due in wrong}
