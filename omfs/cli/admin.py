"""omfs-admin: checks the map and the cluster, makes certificates, shows the nodes and who holds leases.

This file holds the command line and turns errors into one line and an exit status; each command family has a
file of its own (admin_map, admin_certificates, admin_status, admin_leases, admin_check, admin_where, admin_doctor) with
`add_commands` and functions that return the exit status: 0 good, 1 a fault was found, 2 wrong usage (check: or it
could not run), 3 no mount (status, ping, where) or no omfs-export (drop) is running.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from omfs.cli import (
    admin_certificates,
    admin_check,
    admin_doctor,
    admin_leases,
    admin_map,
    admin_status,
    admin_where,
)
from omfs.cli.admin_options import add_common_options
from omfs.config import SOFTWARE
from omfs.errors import NotRunning, OmfsError

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line gives one line."""

    def error(self, message: str) -> NoReturn:
        print(f"omfs-admin: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="omfs-admin", description="Administer an omfs cluster from one of its nodes.")
    parser.add_argument("--version", action="version", version=SOFTWARE)
    add_common_options(parser, with_defaults=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    families = (admin_map, admin_certificates, admin_status, admin_leases, admin_check, admin_where, admin_doctor)
    for family in families:
        family.add_commands(commands)
    for command in commands.choices.values():
        add_common_options(command, with_defaults=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (usage errors raise SystemExit(2), as argparse does)."""
    arguments = build_parser().parse_args(argv)
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
    print("omfs-admin:", " ".join(text.split("\n")), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
