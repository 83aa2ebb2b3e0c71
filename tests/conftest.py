"""Rules for every test: root for the lab, a deadline for each test, nothing left behind, the pure modules covered.

The rules live in tests/watch, one file each; fixtures that only one ring needs live in that ring's own conftest.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ("tests.watch.deadline", "tests.watch.leftovers", "tests.watch.purecoverage")

LAB = Path(__file__).parent / "lab"

# No deadline: two busy cores make single examples slow. CI must find the same examples every time.
hypothesis.settings.register_profile("omfs", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("omfs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests in tests/lab are marked "lab" by their place; they run last, and not at all without root."""
    for item in items:
        if item.path.is_relative_to(LAB) and item.get_closest_marker("lab") is None:
            item.add_marker(pytest.mark.lab)
    items.sort(key=lambda item: item.get_closest_marker("lab") is not None)


def pytest_collection_finish(session: pytest.Session) -> None:
    in_lab = [item for item in session.items if item.get_closest_marker("lab")]
    if in_lab and os.geteuid() != 0 and not session.config.option.collectonly:
        raise pytest.UsageError(
            f"{len(in_lab)} tests need root (namespaces, mounts): use `make test`, or leave them out: -m 'not lab'"
        )
