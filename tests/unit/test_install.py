"""tools/install.py: what it installs works by itself, and all of it goes again, with nothing of anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import manuals

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tools" / "install.py"
STALE = "usr/local/sbin/mosrun"  # `make install` made links into the checkout once
HELPERS = "usr/sbin" if Path("/sbin").is_symlink() else "sbin"


def install(stage: Path, *words: str, prefix: str = "/usr/local") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FILE), "--prefix", prefix, "--destdir", str(stage), *words],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make manuals` writes, of some of the commands."""
    place: Path = tmp_path_factory.mktemp("build")
    commands = [command for command in manuals.commands() if command.name in ("mosctl", "mps", "setpe")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manuals, "commands", lambda: commands)
        assert len(manuals.write(place)) == 9
    return place


def tree(stage: Path) -> dict[str, object]:
    """Every path, with what tells that it was changed."""
    found: dict[str, object] = {}
    for path in sorted(stage.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(stage))] = (oct(status.st_mode), content)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, build: Path) -> Path:
    """Installed twice, where others have files too, and links of an older installation are."""
    stage = tmp_path_factory.mktemp("stage")
    (stage / "usr/local/bin").mkdir(parents=True)
    (stage / "usr/local/bin/others").write_text("theirs")
    (stage / STALE).parent.mkdir()
    (stage / STALE).symlink_to(ROOT / ".venv/bin/mosrun")
    for _ in range(2):
        done = install(stage, "--build", str(build))
        assert (done.returncode, done.stderr) == (0, "")
    return stage


def test_every_command_is_a_link_that_leads_to_a_program(installed: Path) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    administrators = declared["tool"]["omfs"]["administrators"]
    assert {"omfs-admin", "omfs-lab", "mignode"} <= {*administrators}
    for name in declared["project"]["scripts"]:
        places = [installed / place / name for place in ("usr/local/bin", "usr/local/sbin", HELPERS)]
        (place,) = [path for path in places if path.is_symlink()]
        assert (place.parent == installed / HELPERS) == name.startswith(("mount.", "umount."))
        assert (place.parent == installed / "usr/local/sbin") == (name in administrators)
        assert place.resolve().is_relative_to(installed)
        assert os.access(place, os.X_OK)
        assert place.read_text().startswith("#!/usr/local/lib/omfs/bin/python3\n")


def test_it_needs_nothing_of_the_checkout(installed: Path) -> None:
    """Each module can be imported from what was installed alone; no file names the stage or the checkout."""
    home = installed / "usr/local/lib/omfs"
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        "print(*{m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}, sep='\\n')"
    )
    modules = ["omfs.cli.mount", "omfs.daemon", "omfs.metrics", "omfs.cli.admin", "omfs.cli.lab", "mignode.daemon"]
    done = subprocess.run(
        [str(home / "bin/python3"), "-I", "-c", code, *modules], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    foreign = [line for line in done.stdout.splitlines() if "site-packages" in line and str(home) not in line]
    assert foreign == []
    for path in (home / "bin").iterdir():
        if not path.is_symlink():
            assert str(installed) not in path.read_text()
    (compiled,) = home.glob("lib/python*/site-packages/omfs/__pycache__/daemon.*.pyc")
    assert b"/usr/local/lib/omfs/lib/" in compiled.read_bytes()
    assert str(installed).encode() not in compiled.read_bytes()


def test_units_name_the_prefix_and_systemd_understands_them(tmp_path: Path) -> None:
    assert install(tmp_path, prefix="/opt/omfs").returncode == 0
    units = sorted((tmp_path / "opt/omfs/lib/systemd/system").iterdir())
    assert [unit.name for unit in units] == sorted(path.name for path in (ROOT / "systemd").iterdir())
    for unit in units:
        text = unit.read_text().replace("=/opt/omfs/sbin/", f"={tmp_path}/opt/omfs/sbin/")
        assert "/usr/local" not in text
        unit.write_text(text)
    asked = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or "mfs.mount" in line] == []
    assert done.returncode == 0, done.stderr


def test_pages_and_completions_are_where_man_and_shells_look(installed: Path, build: Path) -> None:
    share = installed / "usr/local/share"
    found = {str(path.relative_to(share)): path for path in share.rglob("*") if not path.is_dir()}
    places = {
        "man/man1/mosctl.1": "man/mosctl.1",
        "man/man1/mps.1": "man/mps.1",
        "man/man8/setpe.8": "man/setpe.8",
        **{f"bash-completion/completions/{name}": f"completion/bash/{name}" for name in ("mosctl", "mps", "setpe")},
        **{f"zsh/site-functions/_{name}": f"completion/zsh/_{name}" for name in ("mosctl", "mps", "setpe")},
    }
    assert found.keys() == places.keys()
    for place, source in places.items():
        assert found[place].read_bytes() == (build / source).read_bytes()
        assert found[place].stat().st_mode & 0o777 == 0o644


def test_uninstall_leaves_what_was_there(installed: Path) -> None:
    """The last of those that look at it.  A folder that we made stays for what others have put into it since."""
    assert not os.path.lexists(installed / STALE)
    (installed / "usr/local/sbin/others").write_text("theirs")
    done = install(installed, "--remove")
    assert (done.returncode, done.stderr) == (0, "")
    files = ["usr/local/bin/others", "usr/local/sbin/others"]
    assert list(tree(installed)) == ["usr", "usr/local", "usr/local/bin", files[0], "usr/local/sbin", files[1]]
    again = install(installed, "--remove")
    assert (again.returncode, "nothing is installed" in again.stdout) == (0, True)


def test_the_tree_is_the_same_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "usr/local/lib").mkdir(parents=True)
    (tmp_path / "usr/local/lib/others").write_text("theirs")
    before = tree(tmp_path)
    assert install(tmp_path).returncode == 0
    assert tree(tmp_path) != before
    assert install(tmp_path, "--remove").returncode == 0
    assert tree(tmp_path) == before


@pytest.mark.parametrize("path", ["usr/local/bin/mosrun", "usr/local/lib/omfs/file"])
def test_what_is_not_ours_is_not_touched(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("theirs")
    done = install(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("exists and is not ours; move it away, then repeat")
    assert list(tree(tmp_path))[-1] == path


def test_a_relative_prefix_is_refused(tmp_path: Path) -> None:
    done = install(tmp_path, prefix="usr/local")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "PREFIX" in done.stderr
