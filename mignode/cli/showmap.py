"""`showmap`: the cluster map that this node runs with, as openMosix's tool of that name prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mignode.cli import controlfile
from mignode.cli.mapinforce import InForce, as_data, in_force
from mignode.cli.parser import EXIT_NOT_RUNNING, Parser, complain
from omfs.errors import NotRunning, OmfsError

ABOUT: Final = """\
Show this node's id and the map that it runs with: for each range of nodes the first id, its address, how many.  Ids are
in hexadecimal, as those that come from addresses are easier to read; a count of 0 is one more address of a node.
Exit status: 0, 2 wrong usage, 3 this node is in no cluster now.
"""


def build_parser() -> Parser:
    parser = Parser("showmap", ABOUT)
    parser.add_argument("--json", action="store_true", help="print JSON, with ids in decimal")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        now = in_force(arguments.mfs)
    except NotRunning as error:
        return complain("showmap", str(error), EXIT_NOT_RUNNING)
    except OSError:
        return complain("showmap", controlfile.MIGNODE_IS_OFF, EXIT_NOT_RUNNING)
    except OmfsError as error:
        return complain("showmap", str(error), EXIT_NOT_RUNNING)
    print(json.dumps(as_data(now), indent=2) if arguments.json else "\n".join(table(now)))
    return 0


def table(now: InForce) -> list[str]:
    """The original's columns and widths."""
    return [
        f"My Node-Id: 0x{now.own:04x}", "", f"{'Base Node-Id':12} {'Address':16} Count", f"{'-' * 12} {'-' * 16} -----",
        *(f"{f'0x{one.node_id:04x}':12} {one.address:16} {one.count}" for one in now.map.entries),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
