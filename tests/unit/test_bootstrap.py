"""tools/bootstrap.py: which packages are missing, which python3 will do, when the environment is made again."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parent.parent.parent / "tools" / "bootstrap.py"


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def make_python(folder: Path, version: list[int], headers: bool = True, venv: bool = True) -> str:
    path = folder / "python3"
    facts = {"path": str(path), "version": version, "headers": headers, "venv": venv}
    make_program(path, f"echo '{json.dumps(facts)}'")
    return str(folder)


def test_only_what_dpkg_calls_installed_counts(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_program(tmp_path / "dpkg-query", "echo 'gcc installed'; echo 'acl config-files'; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert bootstrap.missing_packages(("gcc", "acl", "attr")) == ["acl", "attr"]


def test_the_first_python_that_can_do_it(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_program(tmp_path / "broken" / "python3", "exit 1")
    folders = [
        str(tmp_path / "broken"),
        make_python(tmp_path / "old", [3, 9, 2]),
        make_python(tmp_path / "bare", [3, 12, 1], headers=False),
        make_python(tmp_path / "lean", [3, 12, 1], venv=False),
        make_python(tmp_path / "good", [3, 12, 1]),
        make_python(tmp_path / "newer", [3, 13, 0]),
    ]
    monkeypatch.setenv("PATH", ":".join(folders), prepend=":")
    monkeypatch.setattr(bootstrap, "DISTRIBUTION_BIN", str(tmp_path / "bare"))
    assert bootstrap.choose_python().path == str(tmp_path / "good" / "python3")
    said = capsys.readouterr().out
    for reason in ("is 3.9.2, older than 3.11", "has no header files", "has no venv module"):
        assert reason in said
    monkeypatch.setattr(bootstrap, "DISTRIBUTION_BIN", str(tmp_path / "newer"))
    assert bootstrap.choose_python().path == str(tmp_path / "newer" / "python3"), "the distribution's is the fast one"


def test_no_sudo_is_said_in_one_line(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_program(tmp_path / "dpkg-query", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit):
        bootstrap.install_packages(("acl",))
    assert "run this as root, or install sudo" in capsys.readouterr().err


def test_a_failing_apt_says_what_to_do(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_program(tmp_path / "dpkg-query", "exit 1")
    make_program(tmp_path / "env", "exit 100")  # what apt-get is called by
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 0)
    with pytest.raises(SystemExit) as ended:
        bootstrap.install_packages(("acl",))
    assert ended.value.code == 1
    assert "apt-get failed, see the lines above\nbootstrap: check the network" in capsys.readouterr().err


def test_no_usable_python_says_what_to_do(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setenv("PATH", make_python(tmp_path, [3, 9, 2]))
    monkeypatch.setattr(bootstrap, "install_packages", asked.append)
    with pytest.raises(SystemExit):
        bootstrap.usable_python()
    assert asked == [bootstrap.PYTHON_PACKAGES], "Debian's own were tried"
    assert "no usable python3\nbootstrap: put a python3 >= 3.11" in capsys.readouterr().err


@pytest.fixture
def project(bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a python3 that makes environments, whose pip does what the file `pip` there says."""
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "LOCK", tmp_path / "requirements.lock")
    (tmp_path / "requirements.lock").write_text("trio==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    facts = json.dumps({"path": str(tmp_path / "bin/python3"), "version": [3, 12, 1], "headers": True, "venv": True})
    inside = f'echo "$@" >> {tmp_path}/calls; [ "$1" = -c ] || exec sh {tmp_path}/pip'
    make_program(tmp_path / "inside", inside)
    make = f"mkdir -p {tmp_path}/.venv/bin; cp {tmp_path}/inside {tmp_path}/.venv/bin/python"
    make_program(tmp_path / "bin/python3", f"case $1 in -c) echo '{facts}';; -m) {make};; esac")
    monkeypatch.setattr(bootstrap, "DISTRIBUTION_BIN", str(tmp_path / "bin"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "pip").write_text("exit 0\n")
    return tmp_path


def calls_of_pip(project: Path) -> int:
    return (project / "calls").read_text().count("-m pip install")


def test_the_second_run_installs_nothing(bootstrap: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_program(project / "bin/env", f"touch {project}/apt-get-was-called")
    make_program(project / "bin/dpkg-query", f"[ -e {project}/apt-get-was-called ] && echo 'acl installed'")
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 0)
    bootstrap.install_packages(("acl",))
    bootstrap.make_environment()
    assert calls_of_pip(project) == 2
    (project / "bin/env").write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(bootstrap, "run", lambda *_, **__: pytest.fail("something is run"))
    bootstrap.install_packages(("acl",))
    bootstrap.make_environment()


def test_only_what_changed_is_installed_again(bootstrap: ModuleType, project: Path) -> None:
    bootstrap.make_environment()
    (project / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    bootstrap.make_environment()
    assert calls_of_pip(project) == 3, "the project itself"
    (project / "requirements.lock").write_text("trio==2\n")
    bootstrap.make_environment()
    assert calls_of_pip(project) == 5


def test_a_failing_pip_says_what_to_do_and_is_tried_again(
    bootstrap: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "pip").write_text("exit 1\n")
    with pytest.raises(SystemExit) as ended:
        bootstrap.make_environment()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "that failed with status 1" in told
    assert "check the network, then repeat" in told
    (project / "pip").write_text("exit 0\n")
    bootstrap.make_environment()
    assert (project / ".venv" / "bootstrap.stamp").exists()


def test_the_environment_is_made_again_when_the_lock_changes(bootstrap: ModuleType, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("trio==1\n")
    before = bootstrap.digest_of(lock)
    assert bootstrap.digest_of(lock) == before
    lock.write_text("trio==2\n")
    assert bootstrap.digest_of(lock) != before


def test_the_lock_pins_everything_that_is_asked_for() -> None:
    lines = (FILE.parent.parent / "requirements.lock").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((FILE.parent.parent / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"], "setuptools>=68"]
    assert [name for name in wanted if name.partition(">=")[0] not in pinned] == []
