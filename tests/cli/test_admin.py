"""omfs-admin's command line: help, usage errors, exit statuses, one line per fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from omfs.cli import admin
from omfs.config import SOFTWARE


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The real command, as a user runs it."""
    command = [sys.executable, "-m", "omfs.cli.admin", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_installed_command() -> None:
    script = Path(sys.executable).parent / "omfs-admin"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == SOFTWARE


@pytest.mark.parametrize("command", ["map", "init", "join", "cert", "status", "ping"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], [command, "--help"]):
        with pytest.raises(SystemExit) as caught:
            admin.main(arguments)
        assert caught.value.code == 0
        assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["map", "--frobnicate"],
        ["map", "a", "b"],
        ["status", "--run-dir"],
        ["ping", "0"],
        ["ping", "65536"],
        ["ping", "two"],
        ["ping", "2", "-c", "0"],
        ["ping", "2", "-i", "-1"],
        ["ping", "2", "-i", "nan"],
        ["join"],
        ["join", "two"],
        ["join", "2", "--bundle", "f"],
        ["join", "-o", "f", "--from", "h"],
        ["join", "--bundle", "f", "--from", "h"],
        ["join", "--from=-oProxyCommand=x"],
        ["init", "--node", "0"],
        ["init", "--days", "0"],
        ["cert", "--days", "1000000"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        admin.main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("omfs-admin: ")
    assert captured.err.count("\n") == 1
    assert "--help" in captured.err


def test_a_word_that_is_no_command_is_told_all_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        admin.main(["--config", "status", "frobnicate", "map"])
    error = capsys.readouterr().err
    assert all(f"'{name}'" in error for family in admin.FAMILIES.values() for name in family)


def test_a_command_loads_what_it_needs() -> None:
    words = "['--run-dir', 'cert', 'map']"
    program = f"from omfs.cli import admin; import sys; admin.build_parser({words}); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "omfs.cli.admin_map" in loaded
    assert not loaded & {"omfs.cli.admin_certificates", "cryptography", "trio"}


def test_a_fault_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = run("map", tmp_path / "none.map")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"omfs-admin: {tmp_path}/none.map: no such file\n"


def test_common_options_stand_before_or_after_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "omfs.toml"
    config.write_text(f'run_dir = "{tmp_path}/configured"\n')
    for arguments, place in (
        (["--config", str(config), "status"], "configured"),
        (["status", "--config", str(config)], "configured"),
        (["--run-dir", f"{tmp_path}/chosen", "status", "--config", str(config)], "chosen"),
        (["--config", str(config), "status", "--run-dir", f"{tmp_path}/chosen"], "chosen"),
    ):
        assert admin.main(arguments) == 3
        expected = (
            f"omfs-admin: no mount is running on this node ({tmp_path}/{place}/mount.sock: nobody listens here)\n"
        )
        assert capsys.readouterr().err == expected


def test_wrong_settings_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "omfs.toml"
    config.write_text("prot = 723\n")
    for command in ("map", "status", "cert"):
        assert admin.main([command, "--config", str(config)]) == 1
        assert capsys.readouterr().err.startswith(f"omfs-admin: {config}: ")


def test_a_reader_that_leaves_is_no_fault_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_text("".join(f"{1 + 255 * n} 10.0.{n}.1 255\n" for n in range(200)))
    command = f"{sys.executable} -m omfs.cli.admin map --elsewhere --json {path} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "{\n"
    assert done.stderr == ""
