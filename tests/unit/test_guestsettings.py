"""What is set for a guest: where the cluster mask lets it run, and what may be said of settings between nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mignode.book import Settings
from mignode.decay import understood as class_of
from mignode.guestsettings import OF_GUEST, GuestSettings, allows, settings_from, spelled, understood, value_of
from mignode.traits import Traits, deputy_in
from omfs.kernel import processes
from tests.unit.puppets import Puppets, puppets
from tests.unit.registryroom import running_registry

HOME = 2


@pytest.mark.parametrize(
    ("settings", "nodes"),
    [
        (Settings(), {1, 2, 3}),
        (Settings(mignodes=0b101), {1, 2, 3}),
        (Settings(migfilter=True), {1, 2, 3}),
        (Settings(migfilter=True, mignodes=0b101), {2}),
        (Settings(migfilter=True, migpolicy=True), set()),
        (Settings(migfilter=True, migpolicy=True, mignodes=0b101), {1, 3}),
        (Settings(migfilter=True, migpolicy=True, mignodes=0b101, lock=True), {1, 3}),
    ],
)
def test_the_mask_says_where(settings: Settings, nodes: set[int]) -> None:
    assert {node for node in (1, 2, 3) if allows(settings, node)} == nodes


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_a_mask_of_one_node_is_for_that_node(node: int, other: int) -> None:
    only = Settings(migfilter=True, migpolicy=True, mignodes=1 << (node - 1))
    assert allows(only, other) == (node == other)


@given(st.sampled_from(sorted(OF_GUEST - {"decay"})), st.integers(0, 1))
def test_another_node_understands_what_is_spelled(name: str, value: int) -> None:
    assert understood(name, spelled(name, value)) == value


def test_another_node_understands_a_class_of_decay() -> None:
    assert understood("decay", spelled("decay", "iojob fast")) == "iojob fast"


@given(st.booleans(), st.integers(0, 1 << 40), st.integers(0, 99), st.sampled_from(["default", "cpujob own:1:2 exec"]))
def test_all_that_is_told_makes_what_was_set(flag: bool, mask: int, nmigs: int, decay: str) -> None:
    settings = Settings(flag, not flag, flag, mask, nmigs, class_of(decay))
    told = {name: understood(name, spelled(name, value_of(settings, name))) for name in OF_GUEST}
    assert settings_from(told) == settings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("goto", "2"),
        ("selected", "1"),
        ("../lock", "1"),
        ("lock", "2"),
        ("lock", ""),
        ("mignodes", "x"),
        ("decay", "x"),
    ],
)
def test_what_another_node_may_not_say(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        understood(name, text)


@pytest.fixture
def tree() -> Iterator[Puppets]:
    with puppets() as tree:
        yield tree


def traits_of(pid: int) -> Traits:
    process = processes.identify(pid)
    assert process is not None
    name = f"{HOME}.{process.pid}.{process.start_ticks}"
    return Traits(name, HOME, pid, 1000, 1000, (), "node2", b"program", b"", pid)


async def test_they_are_its_deputys(tmp_path: Path, tree: Puppets) -> None:
    """So what the caller of mosrun has set counts, and whoever looks at the deputy sees it."""
    async with running_registry(HOME, tmp_path) as registry:
        settings = GuestSettings(registry)
        parent = processes.identify(tree.first)
        assert parent is not None
        await registry.set_settings(parent, migfilter=True, mignodes=0b100)
        guest = traits_of(tree.fork(tree.first))
        assert settings.read(guest, "migfilter") == 1
        assert settings.why_not(guest, 3)
        assert settings.why_not(guest, 1) == settings.why_not(guest, HOME) == ""
        await settings.change(guest, "lock", 1)
        await settings.change(guest, "mignodes", 0b111)
        assert registry.entry_of(deputy_in(guest.name)).settings.lock
        assert not registry.entry_of(parent).settings.lock
        await settings.change(guest, "decay", "cpujob")
        assert settings.whole(guest).decay == class_of("cpujob")
        assert settings.why_not(guest, 1)
        assert settings.why_not(guest, HOME) == ""  # where it may always go
