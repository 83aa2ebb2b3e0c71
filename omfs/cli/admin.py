"""omfs-admin: checks the map and the cluster, makes certificates, shows the nodes and who holds leases.

This file holds the command line and turns errors into one line and an exit status; each command family has a file of
its own (FAMILIES) with `add_commands` and functions that return the exit status: 0 good, 1 a fault was found, 2 wrong
usage (check: or it could not run), 3 no mount (status, ping, where) or no omfs-export (drop) is running.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from omfs.cli.admin_options import add_common_options
from omfs.config import SOFTWARE
from omfs.errors import NotRunning, OmfsError

# the commands of each file, in the order of --help
FAMILIES: Final = {
    "omfs.cli.admin_map": ("map",),
    "omfs.cli.admin_certificates": ("init", "join", "cert"),
    "omfs.cli.admin_status": ("status", "ping"),
    "omfs.cli.admin_leases": ("leases", "drop"),
    "omfs.cli.admin_check": ("check",),
    "omfs.cli.admin_where": ("where",),
    "omfs.cli.admin_doctor": ("doctor",),
}
PROGRAM: Final = "omfs-admin"
EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line gives one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{PROGRAM}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def build_parser(words: Sequence[str] = ()) -> Parser:
    """The whole command line, or of the command that *words* begin with: certificates alone take 0.2 s to import."""
    parser = Parser(prog=PROGRAM, description="Administer an omfs cluster from one of its nodes.")
    parser.add_argument("--version", action="version", version=SOFTWARE)
    add_common_options(parser, with_defaults=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = command_in(words)
    named = [family for family, names in FAMILIES.items() if command in names]
    for family in named or FAMILIES:
        importlib.import_module(family).add_commands(commands)
    for one in commands.choices.values():
        add_common_options(one, with_defaults=False)
    return parser


def command_in(words: Sequence[str]) -> str | None:
    """The first of these that is neither an option nor its value."""
    parser = Parser(prog=PROGRAM, add_help=False)
    add_common_options(parser, with_defaults=False)
    parser.add_argument("command", nargs="?")
    command: str | None = parser.parse_known_args(words)[0].command
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (usage errors raise SystemExit(2), as argparse does)."""
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser(words).parse_args(words)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()
    except NotRunning as error:
        return _complain(f"no mount is running on this node ({error})", EXIT_NOT_RUNNING)
    except OmfsError as error:
        return _complain(str(error), EXIT_FAULT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        return EXIT_FAULT
    except KeyboardInterrupt:
        return 130
    return status


def _complain(text: str, status: int) -> int:
    print(f"{PROGRAM}:", " ".join(text.split("\n")), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
