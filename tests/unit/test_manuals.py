"""Man pages and completions: every command has a page, shells take the completions, and they complete."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools import manuals

ROOT = Path(__file__).parents[2]
REQUESTS = {".TH", ".SH", ".SS", ".TP", ".B", ".I", ".BR", ".br", ".nf", ".fi", ".PP", ".P", ".RS", ".RE", ".sp"}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("build")
    stale = place / "man" / "stale.1"
    stale.parent.mkdir()
    stale.write_text("of a command that is no more")
    manuals.write(place)
    return place


def test_a_page_for_every_command(build: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(page.name.rsplit(".", 1)[0] for page in (build / "man").iterdir()) == sorted(scripts)
    for page in (build / "man").iterdir():
        text = page.read_text()
        assert re.search(r"\.SH NAME\n\S+ +\\- \S", text), page.name
        assert {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))} <= REQUESTS, page.name


def test_a_page_says_what_help_says(build: Path) -> None:
    assert "put a map in force" in (build / "man" / "setpe.8").read_text()
    assert "\\-\\-checkpoint" in (build / "man" / "mosrun.1").read_text()
    assert "usage: mtop" in (build / "man" / "mtop.1").read_text()


def test_bash_completes(build: Path) -> None:
    def completed(command: str, *words: str) -> list[str]:
        script = f"""
            source {build}/completion/bash/{command}
            COMP_WORDS=({command} {" ".join(words)}) COMP_CWORD={len(words)}
            $(complete -p {command} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert completed("mosctl", "getm") == ["getmem"]
    assert completed("openmosix", "st") == ["start", "stop", "status"]
    assert completed("setpe", "--j") == ["--json"]
    assert completed("omfs-lab", "sta") == ["status", "start"]
    assert completed("mignode", "--f") == completed("omfs-export", "--f") == ["--foreground"]
    assert completed("mignode", "--config", f"{ROOT}/pyproj") == [f"{ROOT}/pyproject.toml"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("mps", {"--ominfo", "--json", "--mfs", "--help"}),
        ("mtop", {"-b", "--json", "--mfs", "--help"}),
        ("omfs", {"-o"}),
    ],
)
def test_options_of_what_has_no_parser(build: Path, command: str, options: set[str]) -> None:
    """And files: the rest is for ps, top and mount."""
    file = build / "completion" / "bash" / command
    done = subprocess.run(
        ["bash", "-c", f"source {file}; complete -p {command}"], stdout=subprocess.PIPE, text=True, check=True
    )
    words = re.fullmatch(rf"complete -o default -W '(.*)' {command}\n", done.stdout)
    assert words is not None
    assert options <= set(words[1].split())
    assert all(word.startswith("-") for word in words[1].split())


def test_every_command_that_is_typed_completes_in_both_shells(build: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    typed = sorted(name for name in scripts if not name.startswith(manuals.HELPERS))
    assert sorted(path.name for path in (build / "completion/bash").iterdir()) == typed
    assert sorted(path.name for path in (build / "completion/zsh").iterdir()) == [f"_{name}" for name in typed]
    for path in (build / "completion/zsh").iterdir():
        assert path.read_text().startswith("#compdef ")


def test_what_administrators_call_is_of_section_8(build: Path) -> None:
    """They are in sbin, too: tools/install.py goes by the same list."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    administrators = {*declared["tool"]["omfs"]["administrators"]}
    assert administrators <= set(declared["project"]["scripts"])
    helpers = {name for name in declared["project"]["scripts"] if name.startswith(manuals.HELPERS)}
    assert {page.stem for page in (build / "man").glob("*.8")} == administrators | helpers


def test_bash_takes_them_all(build: Path) -> None:
    for file in (build / "completion" / "bash").iterdir():
        subprocess.run(["bash", "-c", f"source {file}; complete -p {file.name}"], check=True, stdout=subprocess.DEVNULL)
