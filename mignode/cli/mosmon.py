"""`mosmon` (and `mon`): a bar for each node of the cluster, on a terminal, with the original's keys.

/mfs/proc/hpc/info has all nodes in one file, which is read once a second in a thread: a mount that is silent must not
keep the keys from working.  What is drawn is loadbars.py's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mignode.cli import controlfile
from mignode.cli.parser import EXIT_NOT_RUNNING, EXIT_REFUSED, Parser, complain
from mignode.loadbars import QUANTITIES, parse
from omfs.errors import NotRunning

KEYS: Final = """\
  l  load (100: a standard processor kept busy)   w  wide: node numbers across
  L  the same, with who is frozen                 v  numbers downwards
  s  speed (10000: a Pentium III of 1 GHz)        V  very narrow
  m  memory in use     r  as Linux sees it        a  what fits
  u  utilizability     d  dead nodes, too         t  totals    y  yardstick
  arrows, n, p  scroll                            h  help      q  quit
"""
ABOUT: Final = f"""\
Show how the nodes of the cluster are, a bar for each, until q is pressed.
{KEYS}Exit status: 0, 1 there is no terminal, 2 wrong usage, 3 this node is in no cluster now.
"""


def build_parser() -> Parser:
    parser = Parser("mosmon", ABOUT)
    parser.add_argument("view", metavar="KEY", nargs="?", choices=sorted(QUANTITIES), default="l", help="what first")
    parser.add_argument("--json", action="store_true", help="print what is known of the nodes once, as JSON")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        hpc = controlfile.find_mount(arguments.mfs) / "proc" / "hpc"
        samples = parse(controlfile.read(hpc / "info"))
    except NotRunning as error:
        return complain("mosmon", str(error), EXIT_NOT_RUNNING)
    except OSError:
        return complain("mosmon", controlfile.MIGNODE_IS_OFF, EXIT_NOT_RUNNING)
    if arguments.json:
        print(json.dumps([one._asdict() for one in samples], indent=2))
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return complain("mosmon", "it needs a terminal; --json prints once", EXIT_REFUSED)
    from mignode.cli.monitor import Monitor  # takes long, and --json does not need it

    Monitor(lambda name: controlfile.read(hpc / name), samples, arguments.view, KEYS).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
