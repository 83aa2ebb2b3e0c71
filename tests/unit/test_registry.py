"""The registry with real processes: who inherits what, who has ended, and what the mount knows when a write returns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mignode import registry as registry_module
from mignode.decay import spelled, understood
from mignode.registry import Registry
from omfs.errors import ControlError
from omfs.kernel import processes
from omfs.kernel.forkevents import ForkEvents
from omfs.kernel.processes import Identity
from omfs.magic.places import Place
from omfs.net import control
from tests.unit.fakemount import mounted
from tests.unit.puppets import Puppets, puppets
from tests.unit.registryroom import running_registry

OWN = 1


@pytest.fixture
def tree() -> Iterator[Puppets]:
    with puppets() as made:
        yield made


@pytest.fixture
def no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a node of the lab."""

    def refuse() -> ForkEvents:
        raise OSError(95, "not here")

    monkeypatch.setattr(ForkEvents, "open", refuse)


def who(pid: int) -> Identity:
    found = processes.identify(pid)
    assert found is not None
    return found


def chosen(registry: Registry, pid: int) -> int:
    return registry.entry_of(who(pid)).place.selected


# ---------------------------------------------------------------- inheritance


async def test_the_mount_knows_before_the_write_returns(tree: Puppets, tmp_path: Path) -> None:
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        await registry.select(who(tree.first), 2)
        assert mount.selected(tree.first) == 2
        await registry.select(who(tree.first), 0)
        assert mount.selected(tree.first) == 0


@pytest.mark.parametrize("events", [True, False])
async def test_who_was_forked_before_keeps_what_it_had(
    tree: Puppets, tmp_path: Path, events: bool, request: pytest.FixtureRequest
) -> None:
    if not events:
        request.getfixturevalue("no_events")
    early = tree.fork(tree.first)
    earlier = tree.fork(early)
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        await registry.select(who(tree.first), 2)
        middle = tree.fork(tree.first)
        await registry.select(who(tree.first), 3)
        late = tree.fork(tree.fork(tree.first))
        of_early = tree.fork(earlier)
        for pid, node in ((early, 0), (earlier, 0), (of_early, 0), (middle, 2), (tree.first, 3), (late, 3)):
            assert (chosen(registry, pid), mount.selected(pid)) == (node, node)
        await registry.select(who(middle), 5)
        assert [mount.selected(pid) for pid in (tree.first, middle, late)] == [3, 5, 3]


async def test_an_orphan_has_what_its_ancestor_had(tree: Puppets, tmp_path: Path) -> None:
    """The process in between may be gone before anybody looks.  Exact only where the kernel tells of forks."""
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        await registry.select(who(tree.first), 2)
        orphans = [tree.orphan(tree.first) for _ in range(50)]
        orphans += [tree.orphan(orphan) for orphan in orphans[:10]]
        child = tree.fork(tree.first)
        grandchild = tree.fork(child)
        if registry.has_fork_events:  # nobody need ask
            await mount.wait_until(lambda: who(grandchild) in mount.places)
        tree.end(child)
        tree.end(tree.first)
        expected = 2 if registry.has_fork_events else 0
        assert {chosen(registry, pid) for pid in (*orphans, grandchild)} == {expected}
        if registry.has_fork_events:
            await mount.wait_until(lambda: {mount.selected(pid) for pid in (*orphans, grandchild)} == {2})


async def test_without_fork_events_an_orphan_is_ordinary(tree: Puppets, tmp_path: Path, no_events: None) -> None:
    async with running_registry(OWN, tmp_path) as registry:
        assert not registry.has_fork_events
        await registry.select(who(tree.first), 2)
        child = tree.fork(tree.first)
        assert chosen(registry, child) == 2
        assert chosen(registry, tree.orphan(child)) == 0


async def test_forks_that_the_kernel_could_not_tell_are_looked_up(
    tree: Puppets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        if not registry.has_fork_events:
            return
        await registry.select(who(tree.first), 2)
        drain = ForkEvents.drain

        def lose(events: ForkEvents) -> list[object]:
            drain(events)
            events.lost = True
            return []

        monkeypatch.setattr(ForkEvents, "drain", lose)
        child = tree.fork(tree.first)
        assert chosen(registry, child) == 2
        monkeypatch.setattr(ForkEvents, "drain", drain)
        tree.end(tree.first)  # what it was forked with is its own by now
        assert chosen(registry, child) == 2
        await mount.wait_until(lambda: mount.selected(child) == 2)
        assert registry.describe()["overruns"] >= 1


async def test_resolving_takes_the_forks_that_have_happened(tree: Puppets, tmp_path: Path) -> None:
    async with running_registry(OWN, tmp_path) as registry:
        await registry.select(who(tree.first), 2)
        if registry.has_fork_events:
            orphan = tree.orphan(tree.first)
            place = registry.resolve(who(orphan))
            assert place is not None
            assert (place.pid, place.selected) == (orphan, 2)
        assert registry.resolve(who(os.getpid())) is None


# ---------------------------------------------------------------- ends


async def test_an_ended_process_is_forgotten_everywhere(tree: Puppets, tmp_path: Path) -> None:
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        children = [tree.fork(tree.first) for _ in range(20)]
        for number, child in enumerate(children, start=2):
            await registry.select(who(child), number)
        keys = [who(child) for child in children]
        for child in children[:15]:
            tree.end(child)
        await mount.wait_until(lambda: sum(key in mount.places for key in keys) == 5)
        assert [mount.selected(child) for child in children[15:]] == [17, 18, 19, 20, 21]
        assert (registry.describe()["processes"], registry.exits) == (5, 15)


async def test_a_process_that_is_gone_gets_no_entry(tree: Puppets, tmp_path: Path) -> None:
    child = tree.fork(tree.first)
    key = who(child)
    tree.end(child)
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        await registry.select(key, 2)
        assert (registry.describe()["processes"], len(mount.places)) == (0, 0)


async def test_descriptors_go_with_the_processes(tree: Puppets, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with mounted(tmp_path), running_registry(OWN, tmp_path) as registry:
        for _ in range(30):
            await registry.select(who(tree.fork(tree.first)), 2)
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- many


async def test_a_thousand_processes_each_with_its_own(tree: Puppets, tmp_path: Path, many_files: None) -> None:
    """All of them write at once, some twice, while others fork."""
    pids = [tree.fork(tree.first) for _ in range(1000)]
    keys = {pid: who(pid) for pid in pids}
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        wrong = []

        async def write(pid: int, node: int) -> None:
            await registry.select(keys[pid], node)
            if mount.selected(pid) != node:
                wrong.append((pid, node))

        async with trio.open_nursery() as nursery:
            for node, pid in enumerate(pids, start=2):
                nursery.start_soon(write, pid, node)
            children = {tree.fork(pid): pid for pid in pids[::10]}
        assert wrong == []
        assert {mount.selected(pid) for pid in pids} == set(range(2, 1002))
        for child, parent in children.items():  # forked before or after its parent wrote: one or the other
            assert chosen(registry, child) in (0, pids.index(parent) + 2)
            assert mount.selected(child) == chosen(registry, child)


async def test_a_storm_of_forks_and_writes(tree: Puppets, tmp_path: Path) -> None:
    """Whoever is forked after a write has it; the mount and the registry agree on everybody."""
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        expected: dict[int, int] = {}
        for node in range(2, 22):
            await registry.select(who(tree.first), node)
            for _ in range(5):
                child = tree.fork(tree.first)
                expected[child] = node
                expected[tree.fork(child)] = node
                if registry.has_fork_events:
                    expected[tree.orphan(child)] = node
                tree.end(tree.fork(child))
        expected[tree.first] = 21
        assert {pid: chosen(registry, pid) for pid in expected} == expected
        await mount.wait_until(lambda: {pid: mount.selected(pid) for pid in expected} == expected)


# ---------------------------------------------------------------- restarts


@pytest.mark.parametrize("events", [True, False])
async def test_a_restarted_registry_takes_its_entries_back(
    tree: Puppets, tmp_path: Path, events: bool, request: pytest.FixtureRequest
) -> None:
    if not events:
        request.getfixturevalue("no_events")
    child, dead, third = [tree.fork(tree.first) for _ in range(3)]
    async with mounted(tmp_path) as mount:
        async with running_registry(OWN, tmp_path) as registry:
            await registry.select(who(tree.first), 2)
            await registry.select(who(child), 3)
            await registry.select(who(dead), 4)
            await registry.select(who(third), 5)
            gone = who(dead)
        other = Place(tree.first, who(tree.first).start_ticks - 100, 7, 7, 7, "")  # had the pid before
        mount.places.put(other)
        tree.end(dead)
        meanwhile, of_third = tree.fork(child), tree.fork(third)
        assert (mount.selected(child), gone in mount.places) == (3, True)  # nobody lost anything
        async with running_registry(OWN, tmp_path) as again:
            await mount.wait_until(lambda: mount.pushes[-1].all)
            assert [chosen(again, pid) for pid in (tree.first, child, meanwhile)] == [2, 3, 3]
            assert gone not in mount.places
            assert other.key not in mount.places
            tree.end(third)
            assert chosen(again, of_third) == (5 if again.has_fork_events else 0)
            await again.select(who(child), 6)
            assert [mount.selected(pid) for pid in (tree.first, child, meanwhile)] == [2, 6, 3]
            tree.end(child)
            await mount.wait_until(lambda: not any(place.selected == 6 for place in mount.places))


async def test_a_mount_that_is_away_is_no_error_and_hears_all_later(tree: Puppets, tmp_path: Path) -> None:
    async with running_registry(OWN, tmp_path) as registry:
        await registry.select(who(tree.first), 2)
        child = tree.fork(tree.first)
        await registry.select(who(child), 3)
        async with mounted(tmp_path) as mount:
            registry.tell_mount_everything()
            await mount.wait_until(lambda: bool(mount.pushes))
            assert mount.pushes[0].all
            assert [mount.selected(pid) for pid in (tree.first, child)] == [2, 3]
        await registry.select(who(child), 4)
        assert chosen(registry, child) == 4
        async with mounted(tmp_path) as another:
            await another.wait_until(lambda: bool(another.pushes))  # it is tried again, nobody has to ask
            assert another.selected(child) == 4


async def test_a_silent_mount_is_asked_again(tree: Puppets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be told that there is nothing, and forget what it knew."""
    monkeypatch.setattr(registry_module, "TAKE_BACK_PAUSE_S", 0.0)
    place = Place(*who(tree.first), OWN, OWN, OWN, "", 6)
    ask, silent = control.ask, [ControlError("no answer")] * 3

    async def ask_later(path: Path, command: str, /, **arguments: Any) -> control.Arguments:
        if silent:
            raise silent.pop()
        return await ask(path, command, **arguments)

    async with mounted(tmp_path, [place]) as mount:
        monkeypatch.setattr(control, "ask", ask_later)
        async with running_registry(OWN, tmp_path) as registry:
            assert chosen(registry, tree.first) == 6
            await mount.wait_until(lambda: bool(mount.pushes))
            assert mount.selected(tree.first) == 6


async def test_settings_are_inherited_and_survive_a_restart(tree: Puppets, tmp_path: Path) -> None:
    wide = 1 << 300 | 5
    async with mounted(tmp_path) as mount:
        async with running_registry(OWN, tmp_path) as registry:
            await registry.set_settings(who(tree.first), lock=True, mignodes=wide)
            child = tree.fork(tree.first)
            assert registry.entry_of(who(child)).settings.lock
            await registry.set_settings(who(tree.first), lock=False)
            await registry.set_settings(who(child), migfilter=True, decay=understood("cpujob own:900:7 exec"))
            late = tree.fork(child)
            if registry.has_fork_events:  # then it has an entry, and still nothing in the file
                await mount.wait_until(lambda: who(late) in mount.places)
        async with running_registry(OWN, tmp_path) as again:
            settings = {pid: again.entry_of(who(pid)).settings for pid in (tree.first, child, late)}
    assert [settings[pid].lock for pid in (tree.first, child, late)] == [False, True, True]
    assert [settings[pid].migfilter for pid in (tree.first, child, late)] == [False, True, True]
    assert {one.mignodes for one in settings.values()} == {wide}
    decays = [spelled(settings[pid].decay) for pid in (tree.first, child, late)]
    assert decays == ["default", "cpujob own:900:7 exec", "cpujob own:900:7 exec"]


async def test_kept_settings_of_another_boot_are_nobodys(tree: Puppets, tmp_path: Path) -> None:
    async with mounted(tmp_path):
        async with running_registry(OWN, tmp_path) as registry:
            await registry.set_settings(who(tree.first), lock=True)
        kept = tmp_path / "mignode.settings"
        kept.write_text(kept.read_text().replace('"boot_id":"', '"boot_id":"x'))
        async with running_registry(OWN, tmp_path) as again:
            assert not again.entry_of(who(tree.first)).settings.lock


async def test_a_waiting_writer_sees_neither_half(tree: Puppets, tmp_path: Path) -> None:
    """Descendants that keep their value and the writer's new one arrive in one message."""
    children = [tree.fork(tree.first) for _ in range(5)]
    async with mounted(tmp_path) as mount, running_registry(OWN, tmp_path) as registry:
        await mount.wait_until(lambda: bool(mount.pushes))
        mount.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.select, who(tree.first), 2)
            with trio.move_on_after(0.05):
                await mount.wait_until(lambda: len(mount.pushes) > 1)
            assert [mount.selected(pid) for pid in (tree.first, *children)] == [0] * 6
            mount.gate.set()
        (push,) = mount.pushes[1:]
        assert {place.pid for place in push.places} == {tree.first, *children}
        assert [mount.selected(pid) for pid in (tree.first, *children)] == [2, 0, 0, 0, 0, 0]
