"""Rules for every test: root for the lab, a deadline for each test, nothing left behind, the pure modules covered.

The rules live in tests/watch, one file each; fixtures that only one ring needs live in that ring's own conftest.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ("tests.watch.deadline", "tests.watch.leftovers", "tests.watch.purecoverage")

LAB = Path(__file__).parent / "lab"

# Not against the clock: two busy cores make examples slow, and looking for them. CI must find the same ones every time.
hypothesis.settings.register_profile(
    "omfs", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("omfs")


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Who is started in the background by a shell has SIGINT and SIGQUIT ignored, and so had all that we start."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    from omfs.kernel.filelease import block_signals  # no earlier: what is imported before purecoverage is not measured

    block_signals()  # a worker (pytest-xdist) has threads before it imports any test, and they inherit this


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Not in /tmp: tests of another worker watch what changes there, since their own directories are below it."""
    tempfile.tempdir = str(tmp_path_factory.getbasetemp())
    yield
    tempfile.tempdir = None


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
