"""kernel/criuprogram.py: which CRIU is found, and how it is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from omfs.errors import ConfigError
from omfs.kernel import criuprogram
from omfs.kernel.criuprogram import CriuProgram, find_criu, installed_in, parse_version, run, version_of


def make_prefix(prefix: Path) -> Path:
    for path in ("usr/sbin/criu", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"):
        (prefix / path).parent.mkdir(parents=True)
        (prefix / path).write_text("")
    (prefix / "usr/lib64").mkdir()
    return prefix


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(criuprogram.sysconfig, "get_config_var", lambda name: "x86_64-linux-gnu")
    monkeypatch.setattr(criuprogram, "PRIVATE_PREFIX", tmp_path / "criu")
    return tmp_path / "criu"


def test_it_is_started_by_its_own_loader_with_its_own_libraries(private: Path) -> None:
    criu = installed_in(make_prefix(private))
    libraries = ("usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib")
    assert criu == CriuProgram(private, "usr/sbin/criu", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", libraries)
    assert criu.path == private / "usr/sbin/criu"
    assert criu.is_private
    at = "/proc/self/fd/4"
    assert criu.command("swrk", "3", through=4) == [
        f"{at}/{criu.loader}", "--inhibit-cache",
        "--library-path", f"{at}/usr/lib/x86_64-linux-gnu:{at}/usr/lib64:{at}/usr/lib",
        f"{at}/usr/sbin/criu", "swrk", "3",
    ]  # fmt: skip
    assert criu.command()[0] == str(private / criu.loader)


def test_the_private_one_comes_before_that_in_path(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criuprogram.shutil, "which", lambda name, path: sys.executable)
    assert not find_criu().is_private
    assert find_criu().prefix == Path("/")
    make_prefix(private)
    assert find_criu().is_private
    assert find_criu(sys.executable).path == Path(sys.executable).resolve()


def test_there_is_none(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criuprogram.shutil, "which", lambda name, path: None)
    with pytest.raises(ConfigError, match="there is no CRIU on this machine: `make install`"):
        find_criu()
    with pytest.raises(ConfigError, match="/nowhere/criu: No such file"):
        find_criu("/nowhere/criu")
    (private / "usr/sbin").mkdir(parents=True)
    (private / "usr/sbin/criu").write_text("")
    with pytest.raises(ConfigError, match="no dynamic loader"):
        find_criu()
    with pytest.raises(ConfigError, match="/usr/sbin/none: no such program"):
        installed_in(Path("/"), "usr/sbin/none")


def test_any_program_of_the_system_runs_that_way() -> None:
    """The same road that a distribution's CRIU takes."""
    true = find_criu("/usr/bin/true")
    assert run(true).returncode == 0
    with pytest.raises(ConfigError, match=r"/usr/bin/true does not say its version"):
        version_of(true)


def test_versions() -> None:
    path = Path("criu")
    assert parse_version("Version: 4.2.1\n", path) == (4, 2, 1)
    assert parse_version("a warning\nVersion: 3.17\nGitID: v3.17\n", path) == (3, 17)
    assert (4, 2) <= (4, 2, 1) < (4, 10)


def test_one_that_can_not_be_started(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="criu: No such file or directory"):
        run(CriuProgram(tmp_path, "criu", "ld.so", ("lib",)))
