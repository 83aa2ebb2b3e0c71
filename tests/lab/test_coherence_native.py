"""Programs on the owner that use its native path (or the bind at /mfs/<self>) and programs of other nodes see each other.

Data strictly: what was written through a descriptor whose open has returned is seen by every later open and read.
Names and attributes within 50 ms, which is promised, and so is measured here: the only time in these tests that is.  A
late round in which the machine stood still, or whose processes had to wait for a processor so long, says nothing.

OMFS_ROUNDS and OMFS_SEED as in test_coherence.py, OMFS_HISTORY_S as in test_histories.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.agents import Agent, Witness, chosen_seed, number_from
from tests.lab.cluster import Cluster, wait_until
from tests.lab.recording import NODES, Recording
from tests.lab.rounds import DATA_KINDS, NAMES, Change, Model, Thing
from tests.lab.turns import Turns
from tests.watch.deadline import LAB_TIMEOUT_S

OWNER, OTHER = 2, 1
ROUNDS = number_from("OMFS_ROUNDS", 900)
HISTORY_S = number_from("OMFS_HISTORY_S", 2)
OPEN_ROUNDS = max(ROUNDS // 30, 5)
PROMISED_S = 0.050
GIVE_UP_S = 60.0
STALLED_S = 0.010  # in which daemons of ours may have stood still as well

pytestmark = [pytest.mark.lab, pytest.mark.timeout(max(LAB_TIMEOUT_S, ROUNDS))]


@pytest.fixture
def witness() -> Iterator[Witness]:
    with Witness() as witness:
        yield witness


@pytest.mark.parametrize("who", ["native path writes", "bind writes", "native path reads"])
def test_data_at_once_and_names_within_50_ms(cluster: Cluster, witness: Witness, who: str) -> None:
    here = cluster.fresh_dir(OWNER)
    local = Agent(cluster.lab, OWNER, "calls.py", here.remote if who == "bind writes" else here.native)
    remote = Agent(cluster.lab, OTHER, "calls.py", here.remote)
    writer, reader = (remote, local) if who == "native path reads" else (local, remote)
    rng = chosen_seed()
    model = Model(rng)
    lateness = Lateness(witness, Turns(cluster.lab, (OWNER, OTHER)))
    for number in range(ROUNDS // 3):
        was = dict(model.paths())
        change = model.change()
        paths = sorted({*change.paths, rng.choice(NAMES)})
        one_round(f"round {number}", model, change, paths, was, writer, reader, lateness)
    lateness.judge()


def one_round(
    name: str, model: Model, change: Change, paths: list[str], was: dict[str, Thing], writer: Agent, reader: Agent,
    lateness: Lateness,
) -> None:  # fmt: skip
    """Warm, change natively, look: at the data at once, at the rest until it is right."""
    looks = [("facts", path, "data", "xattrs") for path in paths]
    opened = {path: thing for path, thing in was.items() if path in paths and thing.kind == "file"}
    reader.call(*looks, *looks, *(("keep", path) for path in opened))
    lateness.turns.mark()
    *results, truth, returned = writer.call(*change.calls, ("many_facts", paths), ("clock",))
    assert results == [None] * len(change.calls), f"{name}: {change}: {results}"
    if change.only_data:
        for path, data in zip(change.paths, reader.call(*(("data", path) for path in change.paths)), strict=True):
            thing = model.at(path)
            assert thing is not None
            assert data == thing.data, f"{name}: {change}: stale data at {path}"
    for (path, thing), seen in zip(opened.items(), reader.call(*(("kept_facts", p) for p in opened)), strict=True):
        assert seen["data"] == thing.data, f"{name}: {change}: stale data in what was opened as {path}"
    for path, facts in truth.items():
        wrong = {key: value for key, value in model.expected(path).items() if facts[key] != value}
        assert not wrong, f"{name}: {change}: the writer itself must see at {path}: {wrong}"
    (waited,) = reader.call(("wait_facts", truth, returned, GIVE_UP_S))
    assert waited["wrong"] == {}, f"{name}: {change}: after {GIVE_UP_S} s still {waited['wrong']}, is {truth}"
    lateness.note(f"{name}: {change}", returned, waited["late_s"])


@dataclass
class Lateness:
    """How long old names and attributes were shown, by round."""

    witness: Witness
    turns: Turns
    worst_s: float = 0.0
    measured: int = 0
    stalled: int = 0
    broken: list[str] = field(default_factory=list)

    def note(self, what: str, returned: float, late_s: float) -> None:
        """A look that began *late_s* after the change had returned was the last to show what was before."""
        if late_s > PROMISED_S and (
            self.witness.stalled_s(returned, returned + late_s) > STALLED_S
            or late_s - self.turns.waited_s() <= PROMISED_S
        ):
            self.stalled += 1
            return
        self.measured += 1
        self.worst_s = max(self.worst_s, late_s)
        if late_s > PROMISED_S:
            self.broken.append(f"{late_s * 1000:.1f} ms: {what}")

    def judge(self) -> None:
        print(f"worst {self.worst_s * 1000:.1f} ms of {self.measured} rounds, {self.stalled} stalled", file=sys.stderr)
        # What is held up by others than the processor (the disk, memory) is not seen: so a round in fifty may be late, but
        # none by a second.
        assert self.measured, "the machine stood still all the time"
        assert len(self.broken) <= self.measured // 50, f"{self.broken} after more than {PROMISED_S * 1000:.0f} ms"
        assert self.worst_s < 1, self.broken


@pytest.mark.parametrize("who", ["native path", "bind"])
@pytest.mark.parametrize("how", ["descriptor", "mapping"])
def test_data_of_a_writer_that_stays_open_are_seen_at_once(cluster: Cluster, who: str, how: str) -> None:
    """From the return of its open on, nobody may cache the file, also where it writes without a call: by a mapping."""
    here = cluster.fresh_dir(OWNER)
    writer = Agent(cluster.lab, OWNER, "calls.py", here.remote if who == "bind" else here.native)
    readers = [Agent(cluster.lab, node, "calls.py", here.remote) for node in (1, 3)]
    opens, stores, closes = {
        "descriptor": ("open_writer", "write_on", "close_writer"),
        "mapping": ("map_open", "map_store", "map_close"),
    }[how]
    text = "0" * 5000
    assert writer.call(("create", "file", text)) == [None]
    for number in range(OPEN_ROUNDS):
        look_twice(readers, text)
        for reader in readers:
            reader.call(("keep", "file"))
        assert writer.call((opens, "file")) == [None]
        look_twice(readers, text)
        for part in ("a", "b"):
            fresh = f"{number}{part}" * 100
            text = fresh + text[len(fresh) :]
            assert writer.call((stores, "file", fresh)) == [None]
            look_twice(readers, text)
        for reader in readers:
            (kept,) = reader.call(("kept_facts", "file"))
            assert kept["data"] == text, f"round {number}: {reader.name}: stale through an open descriptor"
        fresh = f"{number}c" * 100
        text = fresh + text[len(fresh) :]
        assert writer.call((stores, "file", fresh), (closes, "file")) == [None, None]
        look_twice(readers, text)


def look_twice(readers: list[Agent], text: str) -> None:
    for reader in readers:
        for data in reader.call(("data", "file"), ("data", "file")):
            assert data == text, f"{reader.name}: stale data"


def test_content_changes_without_a_pause(cluster: Cluster) -> None:
    """The same few files again and again, only their data: the rounds in which a data lease is granted and broken."""
    here = cluster.fresh_dir(OWNER)
    writer = Agent(cluster.lab, OWNER, "calls.py", here.native)
    readers = [Agent(cluster.lab, node, "calls.py", here.remote) for node in (1, 3)]
    model = Model(chosen_seed())
    for _ in range(3):
        writer.call(*model.change(("create",)).calls)
    for number in range(ROUNDS // 3):
        change = model.change(DATA_KINDS)
        (path,) = change.paths
        for reader in readers:
            reader.call(("data", path), ("data", path))
        assert writer.call(*change.calls) == [None]
        for reader in readers:
            (data,) = reader.call(("data", path))
            assert data == model.expected(path)["data"], f"round {number}: {change}: {reader.name}: stale data"


def test_what_is_mounted_over_a_directory_is_seen(cluster: Cluster) -> None:
    """And what was there before, when it is unmounted."""
    here = cluster.fresh_dir(OWNER)
    cluster.run(OWNER, f"mkdir {here.native}/inner; touch {here.native}/inner/below")
    reader = Agent(cluster.lab, OTHER, "calls.py", here.remote)

    def names() -> list[str]:
        (inner,) = reader.call(("facts", "inner"))
        return list(inner["names"])

    for _ in range(3):
        assert names() == names() == ["below"]
        cluster.run(OWNER, f"mount -t tmpfs above {here.native}/inner; touch {here.native}/inner/above")
        wait_until(lambda: names() == ["above"], "it is seen")
        cluster.run(OWNER, f"umount --lazy {here.native}/inner")
        wait_until(lambda: names() == ["below"], "what was below is seen again")


@pytest.mark.parametrize("who", ["native path", "bind"])
def test_data_have_one_order_for_programs_of_the_owner_and_of_others(cluster: Cluster, who: str) -> None:
    here = cluster.fresh_dir(OWNER)
    paths = dict.fromkeys(NODES, here.remote) | ({OWNER: here.native} if who == "native path" else {})
    recording = Recording(cluster, paths, here, ("r0data", "r1data", "log0data", "log1data"))
    recording.run(HISTORY_S)
    recording.check()
