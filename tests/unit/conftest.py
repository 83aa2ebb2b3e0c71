"""Fixtures of the unit ring: a service to ask and a directory to serve, on each kind of file system."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs.export import guards
from omfs.export.service import ExportService
from tests.unit.exportroom import Asker, FakeSession, file_system, serving
from tests.unit.leaseroom import Room, leasing_room


@pytest.fixture(scope="session", params=["ext4", "tmpfs", "overlay"])
def any_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The top of a file system of each kind in turn."""
    with file_system(request.param, tmp_path_factory.mktemp(request.param)) as top:
        yield top


@pytest.fixture
def room(any_disk: Path, tmp_path: Path) -> Path:
    """A new directory on it that everybody may write to."""
    place = any_disk / tmp_path.name
    place.mkdir()
    place.chmod(0o777)
    return place


@pytest.fixture
def many_files() -> Iterator[None]:
    """May be open: as many as a daemon takes for itself, whatever the shell gave."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ExportService]:
    """A service that exports everything with default options."""
    with serving(tmp_path / "state") as running:
        yield running


@pytest.fixture
def root(service: ExportService) -> Iterator[Asker]:
    """A holder that asks as root."""
    asker = Asker(service, FakeSession())
    yield asker
    asker.end()


@pytest.fixture
async def leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:  # type: ignore[misc]
    """An owner with leases; files that a test has just made count as old."""
    monkeypatch.setattr(guards, "UNCACHED_NS", 0)
    with serving(tmp_path / "state") as service, leasing_room(tmp_path / "state", service) as running:
        yield running
