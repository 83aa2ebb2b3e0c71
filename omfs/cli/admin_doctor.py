"""omfs-admin doctor: what this machine can and can't do for omfs, and how to mend it.

It asks only this machine, no daemon, so it is of use before anything runs.  The questions are in probes.py.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.table import Table

from omfs.cli.admin_options import console, settings_of
from omfs.cli.probes import Result, Row, Weight, probe_all
from omfs.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_MISSED: Final = 1

ABOUT: Final = """\
Look what this machine can do: FUSE, leases and fanotify for files, namespaces, seccomp and CRIU for migration, limits.
Everything is tried, not guessed from versions.  What is missing comes with what to do about it.
Exit status: 0 nothing that is needed is missing, 1 something is (or this is not root, who alone may try).
"""


def add_commands(commands: Commands) -> None:
    """Define `doctor`."""
    raw = argparse.RawDescriptionHelpFormatter
    doctor = commands.add_parser("doctor", help="what this machine can do", description=ABOUT, formatter_class=raw)
    doctor.add_argument("--json", action="store_true", help="print JSON, an object per row")
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise ConfigError("doctor must run as root: nobody else may try namespaces, mounts and fanotify")
    rows = probe_all(settings_of(arguments))
    missed = [row.name for row in rows if row.is_missed]
    if arguments.json:
        _print_json(rows, missed)
    else:
        _print_table(rows, missed)
    return EXIT_MISSED if missed else 0


def _print_json(rows: Sequence[Row], missed: Sequence[str]) -> None:
    shown = [
        {
            "name": row.name, "needed": row.weight is Weight.NEEDED, "used_for": row.used_for,
            "there": row.result is Result.YES, "text": row.text, "remedy": row.remedy,
        }
        for row in rows
    ]  # fmt: skip
    print(json.dumps({"rows": shown, "missed": missed}, indent=2))


def _print_table(rows: Sequence[Row], missed: Sequence[str]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("WHAT", no_wrap=True)
    table.add_column("THERE", no_wrap=True)
    for heading in ("FOUND", "WITHOUT IT", "WHAT TO DO"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        without = f"no {row.used_for}" if row.result is Result.NO else ""
        table.add_row(row.name, row.result.value, row.text, without, row.remedy)
    console().print(table)
    if missed:
        print(f"missing and needed: {', '.join(missed)}")
    else:
        print("nothing that is needed is missing")
