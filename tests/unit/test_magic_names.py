"""What each magic name is for a process, by the table of the specification, and that the explanation says the same."""

from __future__ import annotations

import pytest

from omfs.magic import names
from omfs.magic.names import Magic
from omfs.magic.places import Place

OWN = 1
MOVED = Place(10, 1, home=2, here=3, lastexec=4, image="then", selected=5, magic=6)
FRESH = Place(10, 1, home=2, here=3, lastexec=4, image="then")

TABLE = [
    # name, place, image now, creates: node, and what its reason speaks of
    (Magic.HERE, MOVED, "then", False, 3, "runs at node 3"),
    (Magic.HOME, MOVED, "then", False, 2, "born at node 2"),
    (Magic.LASTEXEC, MOVED, "then", False, 4, "last execve at node 4"),
    (Magic.LASTEXEC, MOVED, "now", False, 3, "execve since it runs at node 3"),
    (Magic.SELECTED, MOVED, "then", False, 5, "node 5 was written"),
    (Magic.SELECTED, FRESH, "then", False, 2, "home, node 2"),
    (Magic.MAGIC, MOVED, "then", False, 6, "last created"),
    (Magic.MAGIC, MOVED, "then", True, 3, "made where it runs, at node 3"),
    (Magic.MAGIC, FRESH, "then", False, 3, "nothing through magic elsewhere"),
    (Magic.MAGIC, FRESH, "then", True, 3, "made where it runs, at node 3"),
    *[(name, None, "now", creates, OWN, "ordinary") for name in Magic for creates in (False, True)],
]


@pytest.mark.parametrize(("name", "place", "image", "creates", "node", "reason"), TABLE)
def test_a_name_is_a_node_with_a_reason(
    name: Magic, place: Place | None, image: str, creates: bool, node: int, reason: str
) -> None:
    assert names.resolve(name, place, image, OWN, creates) == node
    explained = names.explain(name, place, image, OWN, creates)
    assert reason in explained
    assert f"node {node}" in explained


def test_the_names_are_those_of_the_specification() -> None:
    assert [str(name) for name in Magic] == ["here", "home", "lastexec", "selected", "magic"]


def test_a_creation_is_news_where_the_last_one_was_elsewhere() -> None:
    assert names.is_news(MOVED)
    assert not names.is_news(FRESH)
    assert not names.is_news(None)
    assert not names.is_news(Place(10, 1, 2, 3, 4, "", magic=3))
