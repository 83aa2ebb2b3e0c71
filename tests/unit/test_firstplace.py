"""Where a new guest goes on: who is asked, who is tried, whom its user waits for, and what if that fails."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from mignode import firstplace
from mignode.book import Settings
from mignode.decay import DecayClass, understood
from mignode.firstplace import FirstPlace
from mignode.mosrunoptions import Job, Lock, Options
from mignode.policy import UNKNOWN, Cluster, Node
from mignode.weighing import Amount, Demand, Load
from omfs.errors import HandoverRefused, OmfsError, RemoteFailure

HOME = 1
MIB = 1 << 20
IDLE = Load(1, 1.0, 0.0, 4000 * MIB, 3000 * MIB)
CROWDED = IDLE._replace(running=3.0)
GUEST = "1.4242.99"
PATIENCE_S = 0.5


class Room:
    """Everybody that FirstPlace knows.  *tried*: where it was sent, by whom; *load*: what is said to run where."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nodes = {n: Node(n, CROWDED if n == HOME else IDLE) for n in (1, 2, 3)}
        self.view_of: Cluster | None = Cluster(HOME, self.nodes)
        self.tried: list[tuple[str, int]] = []
        self.load: list[int] = []
        self.begun: list[str] = []
        self.demand = UNKNOWN
        self.locks: list[int] = []
        self.fails: dict[int, OmfsError] = {}
        self.settings = Settings()
        self.held = trio.Event()
        self.held.set()
        self.nursery = nursery
        body = SimpleNamespace(root=4242, wait_root_ended=self._never)
        self.guest: Any = SimpleNamespace(name=GUEST, body=body, mark=self._mark, is_departing=False)
        self.deputy: Any = SimpleNamespace(traits=SimpleNamespace(name=GUEST), began=None)
        room: Any = self
        self.place = FirstPlace(SimpleNamespace(own_id=HOME), room, room, room, room, lambda: (1, 2, 3))  # type: ignore[arg-type]

    @staticmethod
    async def _never() -> None:
        await trio.sleep_forever()

    @staticmethod
    async def _mark() -> str:
        return "0" * 16

    def get(self, name: str) -> Any:
        return self.guest if self.guest is not None and name == GUEST else None

    def whole(self, traits: Any) -> Settings:
        return self.settings

    async def change(self, traits: Any, name: str, value: Any) -> None:
        await trio.lowlevel.checkpoint()
        if name == "decay":
            self.settings = replace(self.settings, decay=understood(value))
        else:
            self.locks.append(value)

    async def view(self) -> Cluster | None:
        await self.held.wait()
        return self.view_of

    def patience_s(self) -> float:
        return PATIENCE_S

    def demand_of(self, guest: Any) -> Demand:
        return self.demand

    def begins(self, guest: Any) -> None:
        self.begun.append(guest.name)

    def goes_on(self, guest: Any, node: int) -> None:
        self.load[:] = [node]

    def ended(self, name: str) -> None:
        self.load.clear()
        self.begun.clear()

    async def move(self, process: Any, node: int) -> None:
        await self._try("asked", node)

    async def start_at(self, guest: Any, node: int) -> None:
        await self._try("policy", node)

    async def _try(self, by: str, node: int) -> None:
        await trio.lowlevel.checkpoint()
        self.tried.append((by, node))
        if node in self.fails:
            raise self.fails[node]

    async def settle(self, options: Options, candidates: list[int] | None = None, *, is_new: bool = True) -> None:
        await self.place.settle(self.deputy, self.guest, options, candidates or [], is_new=is_new)


@pytest.fixture
async def room(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> Room:
    await trio.lowlevel.checkpoint()
    return Room(nursery)


async def test_nobody_waits_for_what_nobody_asked_for(room: Room) -> None:
    await room.settle(Options())
    assert (room.tried, room.begun) == ([], [GUEST])
    await trio.sleep(2 * PATIENCE_S)
    assert room.tried in ([("policy", 2)], [("policy", 3)])
    assert room.deputy.began.target == room.load[0] == room.tried[0][1]


async def test_who_ends_sooner_than_a_move_would_is_sent_nowhere(room: Room) -> None:
    await room.settle(Options())
    await trio.sleep(PATIENCE_S / 2)
    room.guest = None
    await trio.sleep(2 * PATIENCE_S)
    assert (room.tried, room.begun, room.deputy.began) == ([], [], None)


async def test_who_is_best_off_at_home_goes_nowhere_and_counts_there(room: Room) -> None:
    room.view_of = Cluster(HOME, {n: Node(n, IDLE) for n in (1, 2)})
    await room.settle(Options())
    await trio.sleep(2 * PATIENCE_S)
    assert (room.tried, room.load, room.deputy.began.target) == ([], [HOME], HOME)


@pytest.mark.parametrize(
    ("options", "is_new"),
    [
        (Options(job=Job.IO), True),
        (Options(nodes=((9, 9),), may_fall_back=True), True),  # none of those is in the map
        (Options(), False),
    ],
    ids=["its files are at home", "it fell back", "an image"],
)
async def test_who_stays_where_he_is(options: Options, is_new: bool, room: Room) -> None:
    await room.settle(options, is_new=is_new)
    await trio.sleep(2 * PATIENCE_S)
    assert (room.tried, room.deputy.began) == ([], None)


async def test_who_is_said_to_be_an_iojob_by_his_caller_stays_too(room: Room) -> None:
    room.settings = Settings(decay=DecayClass(job=Job.IO))
    await room.settle(Options())
    await trio.sleep(2 * PATIENCE_S)
    assert (room.tried, room.settings.decay.job) == ([], Job.IO)


async def test_a_lock_holds_before_anybody_decides(room: Room) -> None:
    room.settings = Settings(lock=True)
    await room.settle(Options(lock=Lock.LOCK))
    await trio.sleep(2 * PATIENCE_S)
    assert (room.locks, room.tried) == ([1], [])
    assert room.deputy.began.reason == "it is locked"


async def test_who_asks_for_the_best_waits_for_it(room: Room) -> None:
    room.view_of = Cluster(HOME, {1: Node(1, IDLE._replace(running=0.1)), 2: Node(2, IDLE)})
    await room.settle(Options(at_best=True))
    assert room.tried == [("asked", 2)]
    assert room.deputy.began.target == 2


@pytest.mark.parametrize("at_best", [False, True])
async def test_who_can_not_go_goes_on_at_home(at_best: bool, room: Room) -> None:
    room.fails = {2: RemoteFailure(errno.EAGAIN, "no guests"), 3: RemoteFailure(errno.EAGAIN, "no guests")}
    await room.settle(Options(at_best=at_best))
    await trio.sleep(2 * PATIENCE_S)
    [(_, node)] = room.tried
    assert (room.deputy.began.target, room.load) == (HOME, [])
    assert room.deputy.began.reason == f"node {node} was best, but no guests"


async def test_whose_user_was_quicker_was_sent_by_nobody_else(room: Room) -> None:
    room.fails = {2: HandoverRefused("on its way"), 3: HandoverRefused("on its way")}
    await room.settle(Options())
    await trio.sleep(2 * PATIENCE_S)
    assert (len(room.tried), room.deputy.began, room.load) == (1, None, [])


async def test_who_is_on_his_way_when_it_is_his_turn_is_left_alone(room: Room) -> None:
    await room.settle(Options())
    room.guest.is_departing = True
    await trio.sleep(2 * PATIENCE_S)
    assert (room.tried, room.begun, room.deputy.began) == ([], [], None)


async def test_what_is_known_by_his_turn_counts(room: Room) -> None:
    """Who waited has begun to read files of node 3; a job that is said to compute is not judged by that."""
    room.demand = Demand(0.5, 0.6, 16 * MIB, {3: Amount(40e6, 40.0)})
    for options, targets in ((Options(), {3}), (Options(job=Job.CPU), {2, 3})):
        room.settings = Settings()
        room.view_of = Cluster(HOME, room.nodes, turn=0.0)
        await room.settle(options)
        await trio.sleep(2 * PATIENCE_S)
        costs = {one.node: one.total_s for one in room.deputy.began.options}
        assert {node for node, cost in costs.items() if cost == min(costs.values())} == targets


async def test_where_nothing_is_known_nobody_is_sent(room: Room) -> None:
    room.view_of = None
    await room.settle(Options())
    await trio.sleep(2 * PATIENCE_S)
    assert (room.tried, room.begun) == ([], [])


async def test_a_crowd_that_begins_at_once_goes_some_at_a_time(room: Room) -> None:
    room.held = trio.Event()
    for _ in range(5):
        await room.settle(Options())
    await trio.sleep(2 * PATIENCE_S)
    assert room.place._starts.borrowed_tokens == firstplace._STARTS_MAX
    room.held.set()
    await trio.sleep(2 * PATIENCE_S)
    assert len(room.tried) == 5


async def test_of_a_list_the_cheapest_is_taken_and_the_next_where_that_fails(room: Room) -> None:
    fast = Node(3, IDLE._replace(speed=2.0))
    assert room.view_of is not None
    room.view_of = room.view_of._replace(nodes={**room.view_of.nodes, 3: fast})
    room.fails = {3: RemoteFailure(errno.EAGAIN, "no guests")}
    await room.settle(Options(nodes=((1, 3),)), [1, 2, 3])
    assert room.tried == [("asked", 3), ("asked", 2)]
    assert room.load == [2]
    assert room.deputy.began is None, "its user has decided"


@pytest.mark.parametrize("candidates", [[3], [3, 2]])
async def test_where_nothing_is_known_they_are_tried_as_they_come(candidates: list[int], room: Room) -> None:
    room.view_of = None
    await room.settle(Options(nodes=((2, 3),)), candidates)
    assert room.tried == [("asked", 3)]


async def test_who_may_begin_nowhere_else_is_told(room: Room) -> None:
    room.fails = {2: RemoteFailure(errno.EAGAIN, "no guests"), 3: RemoteFailure(errno.EAGAIN, "no guests")}
    with pytest.raises(RemoteFailure, match="no guests"):
        await room.settle(Options(nodes=((2, 3),)), [2, 3])
    await room.settle(Options(nodes=((2, 3),), may_fall_back=True), [2, 3])
