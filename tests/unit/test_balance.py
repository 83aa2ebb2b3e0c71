"""The task that has guests moved: whose facts it takes, what it asks again before it does, and what it learns."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from mignode import balance, guestusage, policy
from mignode.adminvalues import AdminStore
from mignode.balance import LEFT_ALONE_S, Balance
from mignode.book import Settings
from mignode.decay import DecayClass, OnExec, understood
from mignode.guestusage import Used
from mignode.journey import Journey, Stage, State
from mignode.nodeinfo import BLOCK, CONFIGURED, LSTAY, QUIET, STAY, UP, NodeInfo
from mignode.past import OfNode, Past
from mignode.policy import Decision
from mignode.weighing import Costs
from omfs.errors import NodeDown, RemoteFailure

Clock = trio.testing.MockClock

HERE, IDLE = 1, 2
MIB = 1 << 20


def info(node: int, load: int = 0, *, age_s: float = 0.0, bits: int = 0) -> NodeInfo:
    return NodeInfo(
        node=node, incarnation=1, seq=1, age_s=age_s, load=load, speed=15000, cpus=1, mem_free=3000 * MIB,
        mem_total=4000 * MIB, status=CONFIGURED | UP | bits,
    )  # fmt: skip


class House:
    """Guests that compute all the time, a crowded node and an idle one; *sent* is who was moved where."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.infos = [info(HERE, 300), info(IDLE)]
        self.settings: dict[str, Settings] = {}
        self.asked = 0
        self.sent: list[tuple[str, int]] = []
        self.fails: Exception | None = None
        self.move_takes_s = 2.0
        self.mark = "0" * 16
        self.past_told = Past()
        self.here: dict[str, Any] = {}
        self.store = AdminStore(tmp_path)
        guests: Any = self
        self.balance = Balance(
            guests, HERE, self.store, tmp_path / "mount.sock", self.settings_of, self.set_of, self.send
        )
        self.balance.news = self.news
        monkeypatch.setattr(balance, "_look_at", self._look_at)
        monkeypatch.setattr(guestusage, "ask_mount", self._ask_mount)
        monkeypatch.setattr(balance.random, "random", lambda: 0.0)
        monkeypatch.setattr(trio.to_thread, "run_sync", self._at_once)

    @staticmethod
    async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    def __iter__(self) -> Any:
        return iter(list(self.here.values()))

    def get(self, name: str) -> Any:
        return self.here.get(name)

    def add(self, name: str, home: int = HERE, link: object = None) -> Any:
        async def all_pids() -> dict[int, int]:
            await trio.lowlevel.checkpoint()
            return {1: 1}

        async def mark() -> str:
            await trio.lowlevel.checkpoint()
            return self.mark

        self.here[name] = SimpleNamespace(
            name=name, traits=SimpleNamespace(home=home), link=link,
            is_departing=False, has_departed=False, is_frozen=False,
            body=SimpleNamespace(pid=1, all_pids=all_pids), mark=mark, past=Past(), folder=SimpleNamespace(past=None),
        )  # fmt: skip
        return self.here[name]

    async def news(self) -> list[NodeInfo]:
        await trio.lowlevel.checkpoint()
        return self.infos

    async def settings_of(self, guest: Any) -> Settings:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return self.settings.get(guest.name, Settings())

    async def set_of(self, guest: Any, name: str, value: Any) -> None:
        await trio.lowlevel.checkpoint()
        before = self.settings.get(guest.name, Settings())
        self.settings[guest.name] = msgspec.structs.replace(before, **{name: understood(value)})

    async def send(self, guest: Any, node: int, learn: Callable[[Journey], None]) -> None:
        await trio.lowlevel.checkpoint()
        self.past_told = guest.past
        self.sent.append((guest.name, node))
        if self.fails is not None:
            raise self.fails
        stages = (Stage("dumped and sent", self.move_takes_s, 100 * MIB),)
        learn(Journey(HERE, node, State.ARRIVED, stages, sent_bytes=100 * MIB))
        del self.here[guest.name]

    @staticmethod
    def _look_at(init: int, pids: list[int]) -> tuple[Used, int]:
        now_s = trio.current_time()
        return Used(cpu_s=now_s / 3, waited_s=now_s * 2 / 3, io_bytes=0, memory=10 * MIB), 77

    @staticmethod
    async def _ask_mount(mount: Path) -> dict[int, Any]:
        await trio.lowlevel.checkpoint()
        return {}

    @asynccontextmanager
    async def running(self, seconds: float) -> AsyncIterator[None]:
        """After so long."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.balance.run)
            await trio.sleep(seconds)
            yield
            nursery.cancel_scope.cancel()

    def decision(self, name: str) -> Decision:
        return msgspec.json.decode(self.balance.why(self.here[name]), type=Decision)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, monkeypatch)


async def test_a_hog_leaves_a_crowded_node(autojump_clock: Clock, house: House) -> None:
    house.add("a")
    async with house.running(10.5):
        assert house.sent == [("a", IDLE)]


async def test_why_he_stays_is_told(autojump_clock: Clock, house: House) -> None:
    house.add("a")
    house.store.values = msgspec.structs.replace(house.store.values, stay=True)
    house.infos[0] = info(HERE, 300, bits=STAY)
    assert house.balance.why(house.here["a"]) == ""
    async with house.running(10.5):
        assert house.decision("a").reason == "nobody leaves this node (stay)"
        assert house.sent == []


@pytest.mark.parametrize(
    "infos",
    [
        [],
        [info(IDLE)],
        [info(HERE, 300), info(IDLE, age_s=60.0)],
        [info(HERE, 300), info(IDLE, bits=QUIET)],
        [info(HERE, 300), info(IDLE, bits=BLOCK)],
        [info(HERE, 300), msgspec.structs.replace(info(IDLE), status=CONFIGURED)],
    ],
)
async def test_nobody_goes_where_nothing_is_known(autojump_clock: Clock, house: House, infos: list[NodeInfo]) -> None:
    house.add("a")
    house.infos = infos
    async with house.running(20.5):
        assert house.sent == []


@pytest.mark.parametrize(
    ("settings", "infos", "reason"),
    [
        (Settings(lock=True), {}, "it is locked"),
        (Settings(migfilter=True, mignodes=0b10), {}, "its mask (migfilter)"),
        (Settings(migfilter=True, migpolicy=True), {}, "its mask (migfilter)"),
        (Settings(migfilter=True, migpolicy=True, mignodes=0b100), {}, "its mask (migfilter)"),
        (Settings(), {HERE: STAY}, "nobody leaves this node (stay)"),
        (Settings(), {HERE: LSTAY}, "processes of this node stay at home (lstay)"),
        (Settings(), {IDLE: BLOCK}, "the node takes no guests (block)"),
    ],
    ids=["lock", "denied", "none allowed", "another allowed", "stay", "lstay", "block"],
)
async def test_what_was_set_a_moment_ago_is_obeyed(
    autojump_clock: Clock, house: House, settings: Settings, infos: dict[int, int], reason: str
) -> None:
    """The look did not know of it: home, this node and what the others say are asked again before anything is done."""
    house.add("a")
    real, looks = policy.decide, 0

    def decide(cluster: policy.Cluster, guests: Iterable[policy.Guest]) -> list[Decision]:
        nonlocal looks
        found = real(cluster, guests)
        if any(one.moves for one in found):
            looks += 1
            house.settings["a"] = settings  # before the move has begun
            house.infos = [info(node, load, bits=infos.get(node, 0)) for node, load in ((HERE, 300), (IDLE, 0))]
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(policy, "decide", decide)
        async with house.running(10.5):
            assert looks == 1
            assert house.sent == []
            assert house.decision("a").reason == reason


async def test_a_home_that_is_silent_when_it_matters_holds_up_nobody(autojump_clock: Clock, house: House) -> None:
    """It answers at the look, and not before the move."""
    stranger = house.add("a", home=3, link=object())
    answer, asked = house.settings_of, 0

    async def settings_of(guest: Any) -> Settings:
        nonlocal asked
        asked += 1
        if guest is stranger and asked > 1:
            await trio.sleep_forever()
        return await answer(guest)

    house.balance._ask_settings = settings_of
    async with house.running(10.5):
        assert house.sent == []
        assert house.decision("a").reason == "its home does not say what is set for it: no answer"
        house.add("b")
        await trio.sleep(20)
        assert house.sent == [("b", IDLE)]


async def test_one_at_a_time(autojump_clock: Clock, house: House) -> None:
    house.add("a")
    house.add("b")
    house.infos = [info(HERE, 200), info(IDLE)]
    async with house.running(6.5):
        assert len(house.sent) == 1  # the averages say otherwise, but one of the two is gone


async def test_who_could_not_be_moved_is_left_alone(autojump_clock: Clock, house: House) -> None:
    house.add("a")
    house.fails = RemoteFailure(errno.EROFS, "a device")
    async with house.running(LEFT_ALONE_S):
        assert len(house.sent) == 1
        assert house.decision("a").reason == "a device"
        house.fails = None
        await trio.sleep(2 * LEFT_ALONE_S)
        assert len(house.sent) == 2


async def test_who_has_no_way_home_stays(autojump_clock: Clock, house: House) -> None:
    house.add("a", home=3, link=object())

    async def silent(_: Any) -> Settings:
        await trio.lowlevel.checkpoint()
        raise NodeDown("there is no way home")

    house.balance._ask_settings = silent
    async with house.running(10.5):
        assert house.sent == []
        assert "there is no way home" in house.decision("a").reason


async def test_a_home_that_is_silent_holds_up_nobody_else(autojump_clock: Clock, house: House) -> None:
    strangers = {house.add(name, home=3, link=object()).name for name in "bcdef"}
    house.add("a")
    answer = house.settings_of

    async def slow(guest: Any) -> Settings:
        if guest.name in strangers:
            await trio.sleep(10)
            raise NodeDown("there is no way home")
        return await answer(guest)

    house.balance._ask_settings = slow
    async with house.running(15.5):
        assert house.sent == [("a", IDLE)]
        assert {house.decision(name).reason for name in strangers} == {
            "its home does not say what is set for it: no answer"
        }


async def test_who_is_forgotten_or_ends_while_a_home_is_asked(autojump_clock: Clock, house: House) -> None:
    """It was known when the look began; nobody misses it at the end."""
    for name in "abc":
        house.add(name)
    answer, asked = house.settings_of, 0

    async def settings_of(guest: Any) -> Settings:
        nonlocal asked
        asked += 1
        if guest.name == "a" and asked < 4:
            house.balance.forget(guest)
            del house.here["b"]
            await house.balance._measure()  # as whoever asks for a move has it done
        return await answer(guest)

    house.balance._ask_settings = settings_of
    async with house.running(15.5):
        assert "a" in [name for name, _ in house.sent]


async def refused(asking: Awaitable[int]) -> int:
    with pytest.raises(RemoteFailure) as raised:
        await asking
    return raised.value.errno


async def test_who_asks_is_moved_to_the_best_place(autojump_clock: Clock, house: House) -> None:
    guest = house.add("a")
    assert await refused(house.balance.best_for(guest)) == errno.EAGAIN
    await trio.sleep(0.2)
    assert await house.balance.best_for(guest) == IDLE  # it has been here for a moment only
    house.settings["a"] = Settings(lock=True)
    await trio.sleep(0.2)
    assert await refused(house.balance.best_for(guest)) == errno.EROFS


async def test_what_moves_cost_is_learned_and_what_tune_has_measured_comes_first(
    autojump_clock: Clock, house: House
) -> None:
    house.add("a")
    async with house.running(10.5):
        assert house.balance._costs().bytes_per_s == Costs().bytes_per_s, "no more, where three want the processor"
    house.store.values = msgspec.structs.replace(house.store.values, overheads=(*[0] * 12, 500_000, 40))
    costs = house.balance._costs()
    assert (costs.move_s, round(costs.memory_bytes_per_s)) == (0.5, 102_400_000)


async def test_what_is_known_of_the_nodes_has_those_who_have_just_begun(autojump_clock: Clock, house: House) -> None:
    view = await house.balance.view()
    assert view is not None
    assert [view.nodes[node].load.running for node in (HERE, IDLE)] == [3.0, 0.0]
    for name in "ab":
        house.balance.begins(house.add(name))
        house.balance.goes_on(house.here[name], IDLE)
    house.balance.ended("a")
    again = await house.balance.view()
    assert again is not None
    assert again.nodes[IDLE].load.running == 1.0
    house.infos = []
    assert await house.balance.view() is None


async def test_nobody_fails_to_begin_because_nothing_is_known(
    autojump_clock: Clock, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def news() -> list[NodeInfo]:
        raise OSError(errno.EMFILE, "too many open files")

    house.balance.news = news
    assert await house.balance.view() is None
    assert "too many open files" in caplog.text


async def test_who_begins_is_taken_to_compute_until_something_is_known(autojump_clock: Clock, house: House) -> None:
    house.infos = [info(HERE, 100)]
    guest = house.add("a")
    assert house.balance.demand_of(guest) == policy.UNKNOWN
    assert house.balance.patience_s() == pytest.approx(Costs().move_s + (16 << 20) / Costs().memory_bytes_per_s)
    async with house.running(5.5):
        assert house.balance.demand_of(guest) == house.balance._known["a"].demand


async def test_who_begins_elsewhere_is_moved_as_any(autojump_clock: Clock, house: House) -> None:
    house.infos = [info(HERE, 100), info(IDLE, 0)]
    await house.balance.view()
    await house.balance.start_at(house.add("a"), IDLE)
    assert house.sent == [("a", IDLE)]
    assert house.balance._costs().memory_bytes_per_s == 50 * MIB, "and shows how fast the network is"


async def test_a_move_from_a_crowded_node_is_not_taken_for_dear(autojump_clock: Clock, house: House) -> None:
    house.move_takes_s = 20.0
    view = await house.balance.view()
    assert view is not None
    assert view.nodes[HERE].load.running == 3.0
    await house.balance.start_at(house.add("a"), IDLE)
    assert house.balance._costs().memory_bytes_per_s == 15 * MIB


# ---------------------------------------------------------------- decay, and the past


async def test_the_next_node_is_told_what_is_known(autojump_clock: Clock, house: House) -> None:
    """How long it has worked, there and here, and that it is moved once more though nobody has asked for that."""
    guest = house.add("a")
    guest.past = Past(worked_ms=50_000, unrest_thousandths=500)
    async with house.running(30.5):
        assert house.sent == [("a", IDLE)]
    assert 52 < house.past_told.worked_s < 85
    assert house.past_told.unrest == pytest.approx(1.5, abs=0.1)
    assert [one.node for one in house.past_told.files] == [HERE]


async def test_who_comes_again_is_judged_by_what_was_told_with_him(autojump_clock: Clock, house: House) -> None:
    house.infos = [info(HERE, 100), info(IDLE, bits=BLOCK)]
    house.add("a")
    async with house.running(5.5):
        assert house.decision("a").life_s < 6
        del house.here["a"]
        house.add("a").past = Past(worked_ms=500_000)  # in between no look has missed him
        await trio.sleep(4)
        assert 500 < house.decision("a").life_s < 506


async def test_the_mignode_that_comes_after_finds_it(autojump_clock: Clock, house: House) -> None:
    house.infos = [info(HERE, 100)]
    guest = house.add("a")
    async with house.running(30.5):
        assert 15 < guest.folder.past.worked_s < 31
        assert guest.past.worked_s >= guest.folder.past.worked_s


async def test_what_is_forgotten_at_once(autojump_clock: Clock, house: House) -> None:
    house.infos = [info(HERE, 100)]
    guest = house.add("a")
    guest.past = Past(worked_ms=900_000, files=(OfNode(7, 1, 1, 1, 1000),))
    async with house.running(5.5):
        assert house.decision("a").life_s > 900
        house.balance.forget(guest)
        assert house.balance.why(guest) == ""
        await trio.sleep(3)
        assert house.decision("a").life_s < 4
        assert guest.folder.past == Past()


async def test_its_class_is_told_and_ends_with_its_program(autojump_clock: Clock, house: House) -> None:
    house.infos = [info(HERE, 100)]
    guest = house.add("a")
    house.settings["a"] = Settings(decay=DecayClass(on_exec=OnExec.ONCE), lock=True)
    await house.set_of(guest, "decay", "cpujob execonce own:500:9")
    async with house.running(5.5):
        assert house.decision("a").judged_as.startswith("cpujob (its files do not count), 500/1000")
        assert house.settings["a"].decay.mark == house.mark  # nobody could say it before
        house.mark = "1" * 16
        await trio.sleep(3)
        assert house.settings["a"].decay == understood(f"cpujob own:500:9 of:{house.mark}")
        house.mark = ""  # it is ending
        await trio.sleep(3)
        house.mark = "2" * 16
        await trio.sleep(3)
        assert house.settings["a"] == Settings(lock=True)
        assert house.decision("a").judged_as == "any job, 975/1000 of its past kept every 2 s"


async def test_who_stands_still_is_told_by_what_he_did_before(autojump_clock: Clock, house: House) -> None:
    house.infos = [info(HERE, 100)]
    frozen, _ = house.add("a"), house.add("b")
    async with house.running(5.5):
        assert house.balance.frozen() == 0
        frozen.is_departing = frozen.is_frozen = True
        await trio.sleep(5)
        assert house.balance.frozen() == pytest.approx(1.0)


async def test_who_asks_right_after_a_look_gets_no_rates_of_a_moment(autojump_clock: Clock, house: House) -> None:
    """Ticks are 10 ms: within one of them a processor was used wholly or not at all."""
    house.infos = [info(HERE, 300), info(IDLE, bits=BLOCK)]
    guest = house.add("a")
    async with house.running(5.05):
        looked_s = house.balance._known["a"].looked_s
        assert await house.balance.best_for(guest) == HERE
        assert house.balance._known["a"].looked_s == looked_s
        await trio.sleep(0.5)
        assert await house.balance.best_for(guest) == HERE
        assert house.balance._known["a"].looked_s == trio.current_time()
