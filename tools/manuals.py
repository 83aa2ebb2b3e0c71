#!/usr/bin/env python3
"""Writes a man page for every command, and completions for bash and zsh, from what the commands say of themselves.

    build/man/NAME.1 or .8         from the argument parser (argparse-manpage), or else from what --help prints
    build/completion/bash/NAME     from the argument parser (shtab), or else the options that --help names; for what
    build/completion/zsh/_NAME     starts programs, as for sudo; none for mount(8)'s helpers, which nobody types

So there is nothing to keep up to date by hand: a command of [project.scripts] whose module has a `build_parser` gets
all that, and what it is in a few words is the first line of its module.  Called by `make manuals`, with .venv's
interpreter; `make install` puts in place what it finds in build/.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import shtab
from argparse_manpage.manpage import Manpage

ROOT = Path(__file__).resolve().parent.parent
HELPERS = ("mount.", "umount.")
STARTERS = "mignode.cli.mosrun"  # its commands take a program and its arguments
FILLED = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}


class Command(NamedTuple):
    """Of [project.scripts]; *parser*: None where the words are not argparse's."""

    name: str
    module: str
    about: str
    parser: argparse.ArgumentParser | None
    section: int

    @property
    def is_helper(self) -> bool:
        """What mount(8) and umount(8) call."""
        return self.name.startswith(HELPERS)


def commands() -> list[Command]:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    administrators = declared["tool"]["omfs"]["administrators"]
    found = []
    for name, target in declared["project"]["scripts"].items():
        module = importlib.import_module(target.partition(":")[0])
        build = getattr(module, "build_parser", None)
        parser: argparse.ArgumentParser | None = build() if build else None
        if parser is not None:
            parser.prog = name  # a command may have two
        section = 8 if name in administrators or name.startswith(HELPERS) else 1
        found.append(Command(name, module.__name__, _first_words(module.__doc__ or ""), parser, section))
    return found


def _first_words(docstring: str) -> str:
    line = docstring.strip().splitlines()[0].partition(": ")[2].rstrip(".")
    return line.partition(";")[0].replace("`", "")


# ---------------------------------------------------------------- man pages


def page(command: Command) -> str:
    """roff."""
    if command.parser is None:
        return _head(command) + f".SH DESCRIPTION\n.nf\n{_escaped(_help_of(command))}\n.fi\n"
    facts = {
        "description": command.about, "project_name": "omfs", "manual_title": "omfs", "date": " ",
        "manual_section": command.section,
    }  # fmt: skip
    text = str(Manpage(command.parser, _data=facts))
    # descriptions are set as we have set them
    return re.sub(r"(?s)(\.SH DESCRIPTION\n)(.*?)(?=\n\.SH |\Z)", r"\1.nf\n\2\n.fi", text, count=1)


def _head(command: Command) -> str:
    title = command.name.upper().replace("-", "\\-")
    return (
        f'.TH {title} "{command.section}" " " "omfs" "omfs"\n.SH NAME\n{command.name} \\- {_escaped(command.about)}\n'
    )


def _escaped(text: str) -> str:
    lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def _help_of(command: Command) -> str:
    """Under its own name: mosrun is many."""
    code = f"import sys; sys.argv = [{command.name!r}, '--help']; from {command.module} import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


# ---------------------------------------------------------------- completions


def completion(command: Command, shell: str) -> str:
    """What completes its words in *shell*."""
    if command.module == STARTERS:
        return f"complete -c {command.name}\n" if shell == "bash" else f"#compdef {command.name}\n_precommand\n"
    if command.is_helper:
        return ""
    if command.parser is None:
        return _named_options(command, shell)
    _fill(command.parser)
    return str(shtab.complete(command.parser, shell))


def _named_options(command: Command, shell: str) -> str:
    """And files; the options of ps and top, which are handed on, are theirs to complete."""
    named = re.findall(r"(?<![\w-])-(?:[a-z]|-[a-z]+)(?!\w)", _help_of(command))
    options = " ".join(sorted({"--help", "--version", *named}))
    if shell == "bash":
        return f"complete -o default -W '{options}' {command.name}\n"
    return f"#compdef {command.name}\ncompadd -- {options}\n_files\n"


def _fill(parser: argparse.ArgumentParser) -> None:
    """Files are completed where a file is meant, in its subcommands, too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _fill(inner)
        elif action.metavar in FILLED:
            action.complete = FILLED[str(action.metavar)]  # type: ignore[attr-defined]


def write(build: Path) -> list[Path]:
    """All of them; what was there of earlier ones stays away from who installs."""
    texts = {}
    for command in commands():
        texts[build / "man" / f"{command.name}.{command.section}"] = page(command)
        for shell, name in (("bash", command.name), ("zsh", f"_{command.name}")):
            texts[build / "completion" / shell / name] = completion(command, shell)
    for folder in {path.parent for path in texts}:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.iterdir():
            stale.unlink()
    written = {path: text for path, text in texts.items() if text}
    for path, text in written.items():
        path.write_text(text)
    return list(written)


if __name__ == "__main__":
    print(f"==> {len(write(ROOT / 'build'))} man pages and completions in build/")
