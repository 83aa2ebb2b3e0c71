"""omfs-admin map: check a cluster map and show what it says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from omfs.cli.admin_options import console, map_of, settings_of
from omfs.net.nodemap import Entry, NodeMap, own_node

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

ABOUT = """\
Check a cluster map and print it.  A line of the map is

    ID  IP-OR-HOST-NAME  RANGE-SIZE      nodes ID, ID+1, ... at IP, IP+1, ...
    ID  IP-OR-HOST-NAME  ALIAS           one more address of node ID

and # starts a comment.  All nodes need the same map: compare the digests.
Exit status: 0 the map is good, 1 it is refused (stderr names file, line and reason).
"""


def add_commands(commands: Commands) -> None:
    """Define `map`."""
    parser = commands.add_parser(
        "map",
        help="check and print the cluster map",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help="default: the map this node uses")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per node")
    parser.add_argument("--elsewhere", action="store_true", help="this machine need not be in the map")
    parser.set_defaults(run=_map)


def _map(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    node_map = map_of(arguments.file, settings)
    own = None if arguments.elsewhere else own_node(node_map, settings.address)
    if arguments.json:
        _print_json(node_map, own)
    else:
        _print_table(node_map, own)
    return 0


def _print_json(node_map: NodeMap, own: int | None) -> None:
    nodes = [{"node_id": node_id, "addresses": addresses} for node_id, addresses in node_map.nodes.items()]
    print(json.dumps({"path": node_map.path, "digest": node_map.digest.hex(), "self": own, "nodes": nodes}, indent=2))


def _print_table(node_map: NodeMap, own: int | None) -> None:
    table = Table("NODE", "ADDRESS", "COUNT", "LINE", box=None, pad_edge=False)
    for entry in sorted(node_map.entries, key=lambda entry: (entry.node_id, entry.is_alias)):
        last = entry.node_id + entry.count - 1
        nodes = f"{entry.node_id}-{last}" if entry.count > 1 else str(entry.node_id)
        table.add_row(nodes, _addresses(entry), "alias" if entry.is_alias else str(entry.count), str(entry.line))
    console().print(table)
    nodes = "1 node" if len(node_map.nodes) == 1 else f"{len(node_map.nodes)} nodes"
    print(f"{node_map.path}: good, {nodes}, digest {node_map.digest.hex()[:16]}")
    if own is not None:
        print(f"this is node {own}")


def _addresses(entry: Entry) -> str:
    addresses = entry.addresses()
    return addresses[0] if len(addresses) == 1 else f"{addresses[0]} - {addresses[-1]}"
