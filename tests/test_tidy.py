"""The habits of the house that no linter knows: sizes, names, dead modules, one handler per message, no leftovers."""

from __future__ import annotations

import ast
import functools
import os
import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs import wire

ROOT = Path(__file__).parent.parent
PACKAGES = ("omfs", "dfsa", "mignode")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
MADE_HERE = {".git", ".venv", "build", "results", "__pycache__", ".hypothesis"}
MADE_LIKE = re.compile(r"_cache$|\.egg-info$|^\.coverage")
SPEAKS = ("omfs/cli/", "mignode/cli/", "bench/", "tools/", "tests/lab/programs/")  # what talks to a person


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OURS = python_files(*PACKAGES)
ALL = [*OURS, *python_files("bench", "tools", "tests")]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


def text_files() -> Iterator[tuple[str, str]]:
    """Path and text of everything that a commit would hold."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(set(folders) - MADE_HERE - {name for name in folders if MADE_LIKE.search(name)})
        for name in sorted(names):
            data = Path(folder, name).read_bytes()
            if b"\0" not in data and not MADE_LIKE.search(name):
                yield relative(Path(folder, name)), data.decode("utf-8")


# ---------------------------------------------------------------- sizes


def test_files_are_rooms_not_halls() -> None:
    sizes = {relative(path): path.read_text().count("\n") for path in ALL}
    assert {path: lines for path, lines in sizes.items() if lines > FILE_LINES_MAX} == {}


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in ALL
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_packages_begin_empty() -> None:
    assert [relative(path) for path in ALL if path.name == "__init__.py" and path.read_bytes()] == []


def test_modules_say_what_they_are_for() -> None:
    silent = [relative(path) for path in ALL if path.name != "__init__.py" and not ast.get_docstring(tree_of(path))]
    assert silent == []


# ---------------------------------------------------------------- names


def test_no_name_says_nothing() -> None:
    empty = re.compile(r"(^|_)(utils?|helpers?|managers?|misc|common|stuff)($|_)|[a-z](Utils?|Helper|Manager)$")
    names = {relative(path): [path.stem, path.parent.name] for path in ALL}
    for path in ALL:
        names[relative(path)] += [node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    assert {path: bad for path, found in names.items() if (bad := [name for name in found if empty.search(name)])} == {}


# ---------------------------------------------------------------- nothing dead, nothing twice


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def modules_named_in(path: Path) -> set[str]:
    """What *path* imports, and what it names in a string (`python -m omfs.lab.init`)."""
    named = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PACKAGES):
            named.add(node.value)
    return named


def scripts() -> dict[str, str]:
    found: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return found


def test_no_module_is_dead() -> None:
    alive = {entry.partition(":")[0] for entry in scripts().values()}
    for path in OURS:
        alive |= modules_named_in(path) - {module_name(path)}
    modules = {module_name(path) for path in OURS if path.name != "__init__.py"}
    assert modules - alive == set()


def test_every_command_exists() -> None:
    entries = {entry.partition(":")[0].replace(".", "/") + ".py" for entry in scripts().values()}
    assert [entry for entry in entries if not (ROOT / entry).is_file()] == []


def test_every_request_is_handled_in_one_place() -> None:
    """net answers what concerns the connection, underleases what gives leases back, service all the rest, once each."""
    requests = {message.__name__ for message in typing.get_args(wire.Request)}
    elsewhere = {"Hello", "Ping", "CancelRequest", "ReturnLeases"}
    table = ast.unparse(tree_of(ROOT / "omfs/export/service.py"))
    handled = {name: len(re.findall(rf"\bwire\.{name}:", table)) for name in requests - elsewhere}
    assert {name: count for name, count in handled.items() if count != 1} == {}


# ---------------------------------------------------------------- documents


def test_the_readme_has_a_line_for_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in readme.splitlines() if line.startswith("|")]
    assert [name for name in scripts() if not any(f"`{name}`" in line for line in lines)] == []
    assert "make demo" in readme
    assert "make test" in readme


def test_documents_link_to_what_exists() -> None:
    broken = []
    for path, text in text_files():
        if path.endswith(".md"):
            for target in re.findall(r"\]\(([^)#:\s]+)", text):
                if not (ROOT / path).parent.joinpath(target).exists():
                    broken.append(f"{path}: {target}")
    assert broken == []


# ---------------------------------------------------------------- leftovers


def test_ctypes_stays_in_its_rooms() -> None:
    outside = [
        relative(path)
        for path in [*OURS, *python_files("bench", "tools")]
        if "ctypes" in modules_named_in(path) and not re.match(r"omfs/kernel/|omfs/mount/lowlevel", relative(path))
    ]
    assert outside == []


def test_only_commands_print() -> None:
    """Daemons log; a print that is not for stderr in one of them is left from debugging."""
    prints = [
        f"{relative(path)}:{node.lineno}"
        for path in ALL
        if not relative(path).startswith(SPEAKS)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        and not any(keyword.arg == "file" for keyword in node.keywords)
    ]  # fmt: skip
    assert prints == []


@pytest.mark.parametrize(
    "pattern",
    [
        pytest.param("TO" + "DO|FIX" + r"ME|\bXX" + r"X\b|NotImplemented" + "Error", id="unfinished"),
        pytest.param(r"pytest\.sk" + r"ip\(|mark\.(sk" + "ip|xf" + r"ail)\b", id="skipped"),
        pytest.param(r"\bbreak" + r"point\(|\bpdb\.set_tr" + "ace", id="debugging"),
        pytest.param("/wo" + r"rk/(main|shared)|/ro" + r"ot/\.|\.pye" + "nv|/tmp/sc" + "affold", id="machine paths"),
        pytest.param("python" + r"hosted|pypi\.o" + r"rg|debian\.o" + "rg/debian|index-" + "url", id="registries"),
    ],
)
def test_nothing_is_left_over(pattern: str) -> None:
    left = re.compile(pattern)
    found = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if left.search(line)
    ]
    assert found == []
