"""`setpe`: check the cluster map, put it in force, print what is in force, turn this node off.

The original gave the map to the kernel; here it is a file that the daemons read (omfs.toml says which), so writing it
is a rename and a SIGHUP, and it is in force when they have said so (nodeservice.py).  A daemon that reads a map which
is refused goes on with the old one, so everything is looked at before the file is touched.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mignode.cli import controlfile, nodeservice
from mignode.cli.mapinforce import InForce, as_data, in_force, map_lines, place_of_map, sentences, written
from mignode.cli.parser import EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_REFUSED, Parser, complain, number_from
from omfs.config import DEFAULT_CONFIG, Settings, load_settings
from omfs.errors import ConfigError, MapError, NotRunning, OmfsError
from omfs.magic.controlfiles import NODE_MAX
from omfs.net.authority import write_whole
from omfs.net.nodemap import MAP_MAX_BYTES, NodeMap, own_node, parse_map

GATEWAYS_MAX: Final = 2
STDIN: Final = Path("-")

ABOUT: Final = """\
Put a cluster map in force on this node, or show which one is.  A line of the map is ID IP-or-host-name RANGE-SIZE, or
ID IP-or-host-name ALIAS; # starts a comment.  All nodes need the same map.
  -w -f FILE   check the map in FILE, make it this node's map and let the daemons read it (without -f: read it again)
  -W -f FILE   the same, also where a node that is in the map now gets another address
  -c -f FILE   only check it
  -r           print what is in force, in sentences; -r -f FILE: write it to FILE, as a map
  -off         leave the cluster: /mfs is unmounted and mignode ends (openmosix stop sends all guests home first)
  -g N         at most N gateways lie between two nodes
Exit status: 0 done, 1 it could not be done (one line says why), 2 wrong usage, 3 this node is in no cluster now.
"""


def build_parser() -> Parser:
    parser = Parser("setpe", ABOUT)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-w", dest="what", action="store_const", const="write", help="put a map in force")
    what.add_argument("-W", dest="what", action="store_const", const="rewrite", help="nodes may get other addresses")
    what.add_argument("-c", dest="what", action="store_const", const="check", help="check a map")
    what.add_argument("-r", dest="what", action="store_const", const="read", help="print what is in force")
    what.add_argument("-off", dest="what", action="store_const", const="off", help="leave the cluster")
    parser.add_argument("-f", dest="file", metavar="FILE", type=Path, help="the map; - is standard input or output")
    parser.add_argument(
        "-p", dest="own", metavar="ID", type=number_from(1, NODE_MAX), help="this node must be node ID of the map"
    )
    parser.add_argument(
        "-g", dest="gateways", metavar="N", type=number_from(0, GATEWAYS_MAX), help=f"0 to {GATEWAYS_MAX}"
    )
    parser.add_argument("--json", action="store_true", help="with -r: print JSON")
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULT_CONFIG, help="settings (%(default)s)")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    _check_usage(parser, arguments)
    try:
        _do(arguments)
    except NotRunning as error:
        return complain("setpe", str(error), EXIT_NOT_RUNNING)
    except ConfigError as error:
        return complain("setpe", str(error), EXIT_REFUSED)
    except (OmfsError, OSError) as error:
        is_off = isinstance(error, OSError) and error.errno == errno.ENOTCONN
        return complain("setpe", nodeservice.explained(error), EXIT_NOT_RUNNING if is_off else EXIT_REFUSED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _check_usage(parser: Parser, arguments: argparse.Namespace) -> None:
    what = arguments.what
    if what is None and arguments.gateways is None:
        parser.error("say what to do: -w, -W, -c, -r, -off or -g")
    if what in ("check", "rewrite") and arguments.file is None:
        parser.error(f"-{'c' if what == 'check' else 'W'} needs -f FILE")
    if arguments.json and what != "read":
        parser.error("--json is for -r")
    if arguments.own is not None and what not in ("write", "rewrite", "check"):
        parser.error("-p is for -w, -W and -c")
    if arguments.gateways is not None and what not in (None, "write", "rewrite"):
        parser.error("-g is for -w and -W, or alone")
    if arguments.file is not None and what in (None, "off"):
        parser.error("-f is for -w, -W, -c and -r")


def _do(arguments: argparse.Namespace) -> None:
    """Raises ConfigError and other OmfsError, OSError."""
    what = arguments.what
    if what == "read":
        _show(in_force(arguments.mfs), arguments)
        return
    settings = load_settings(arguments.config)
    if what == "check":
        wanted = InForce(*_checked(_text(arguments.file), arguments, settings))
        print(f"the map is good: {_amount(wanted.map)}, and this is node {wanted.own}")
        return
    if os.geteuid() != 0:
        raise ConfigError("only root may do that")
    if what == "off":
        nodeservice.refuse_loss(settings)
        was_on = nodeservice.turn_off(settings, arguments.mfs)
        print("this node has left the cluster" if was_on else "this node was in no cluster")
    if what in ("write", "rewrite"):
        _put_in_force(arguments, settings)
    if arguments.gateways is not None:
        file = controlfile.find_mount(arguments.mfs) / "proc" / "hpc" / "admin" / "gateways"
        controlfile.write(file, arguments.gateways)
        print(f"from now on, at most {arguments.gateways} gateways lie between two nodes")


# ---------------------------------------------------------------- what is in force


def _show(now: InForce, arguments: argparse.Namespace) -> None:
    lines = sentences(now)
    if arguments.json:
        print(json.dumps(as_data(now), indent=2))
    elif arguments.file is None:
        print("\n".join(lines))
    else:
        text = "\n".join([*(f"# {line}" for line in lines), *map_lines(now.map)]) + "\n"
        if arguments.file == STDIN:
            print(text, end="")
        else:
            arguments.file.write_text(text)


# ---------------------------------------------------------------- putting one in force


def _text(path: Path) -> tuple[str, str]:
    """The map and how to call it.  Raises MapError."""
    try:
        if path == STDIN:
            data, name = sys.stdin.buffer.read(MAP_MAX_BYTES + 1), "standard input"
        else:
            with open(path, "rb") as file:
                data, name = file.read(MAP_MAX_BYTES + 1), str(path)
    except OSError as error:
        raise MapError(str(path), 0, error.strerror or str(error)) from None
    if len(data) > MAP_MAX_BYTES:
        raise MapError(name, 0, f"larger than {MAP_MAX_BYTES} bytes; this is not a cluster map")
    return data.decode("utf-8", "surrogateescape"), name


def _checked(read: tuple[str, str], arguments: argparse.Namespace, settings: Settings) -> tuple[int, NodeMap]:
    """This node's id in the map, and the map.  Raises MapError."""
    node_map = parse_map(*read)
    own = own_node(node_map, settings.address)
    if arguments.own not in (None, own):
        raise MapError(node_map.path, 0, f"this machine is node {own} there, not {arguments.own}: see its addresses")
    return own, node_map


def _put_in_force(arguments: argparse.Namespace, settings: Settings) -> None:
    place = place_of_map(settings)
    text, name = _text(arguments.file or place)
    own, wanted = _checked((text, name), arguments, settings)
    before = _before(arguments.mfs, settings)
    if before is not None:
        if arguments.what == "write":
            _refuse_other_addresses(before.map, wanted)
        if before.own not in (0, own) and nodeservice.running(settings):
            reason = f"this node would become {own} instead of {before.own}; that needs openmosix stop first"
            raise MapError(wanted.path, 0, reason)
    if arguments.file is not None:
        if nodeservice.is_discovering(settings):
            raise ConfigError("omdiscd looks after this node's map; stop it first: systemctl stop omdiscd")
        write_whole(place, text.encode("utf-8", "surrogateescape"), mode=0o644)
    daemons = nodeservice.read_again(settings, wanted.digest)
    then = "in force" if daemons else "will be in force when this node starts (openmosix start)"
    print(f"the map of {place}, {_amount(wanted)}, is {then}")


def _before(mount: Path | None, settings: Settings) -> InForce | None:
    """What holds, or else what would; None: there has been no map."""
    try:
        return in_force(mount)
    except (NotRunning, OSError):
        try:
            return InForce(0, written(settings))
        except MapError:
            return None


def _refuse_other_addresses(before: NodeMap, wanted: NodeMap) -> None:
    for node, addresses in wanted.nodes.items():
        had = before.nodes.get(node, addresses)
        if had[0] != addresses[0]:
            reason = f"node {node} would be {addresses[0]} instead of {had[0]}; setpe -W allows that"
            raise MapError(wanted.path, wanted.line_of(addresses[0]), reason)


def _amount(node_map: NodeMap) -> str:
    return "1 node" if len(node_map.nodes) == 1 else f"{len(node_map.nodes)} nodes"


if __name__ == "__main__":
    sys.exit(main())
