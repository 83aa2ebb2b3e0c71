"""The cluster map that this node runs with, and how openMosix's tools print it.

What holds is asked from mignode by way of /mfs/proc; where no cluster runs there is only the file.  What it does not
do: change it (setpe.py, discoveredmap.py).  Called by these, showmap.py, mosdo.py and openmosix.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mignode.cli import controlfile
from omfs.config import DEFAULT_CONFIG, MAP_PATHS, Settings, load_settings
from omfs.errors import NotRunning
from omfs.net.nodemap import Entry, NodeMap, own_node, parse_map, read_map


class InForce(NamedTuple):
    """*own*: this node's id."""

    own: int
    map: NodeMap


def in_force(mount: Path | None) -> InForce:
    """What mignode says.  Raises NotRunning, OSError, MapError."""
    hpc = controlfile.find_mount(mount) / "proc" / "hpc"
    return InForce(int(controlfile.read(hpc / "admin" / "mospe")), parse_map(_config(hpc), "the map in force"))


def _config(hpc: Path) -> str:
    return controlfile.read(hpc / "admin" / "config")


def in_force_or_written(mount: Path | None, config: Path = DEFAULT_CONFIG) -> InForce:
    """What mignode says; the file where it does not run: a node that is off has a map, too.  Raises ConfigError."""
    try:
        return in_force(mount)
    except (NotRunning, OSError):
        settings = load_settings(config)
        node_map = written(settings)
        return InForce(own_node(node_map, settings.address), node_map)


def written(settings: Settings) -> NodeMap:
    """The map in its file.  Raises MapError."""
    return read_map(Path(settings.map) if settings.map else None)


def place_of_map(settings: Settings) -> Path:
    """Where this node has its map, or will have it."""
    if settings.map:
        return Path(settings.map)
    return next((path for path in MAP_PATHS if path.exists()), MAP_PATHS[0])


def sentences(now: InForce) -> list[str]:
    """As `setpe -r` and `openmosix status` of the original say it."""
    return [
        f"This is OpenMosix node #{now.own}", "Network protocol: 2 (AF_INET)",
        *(_sentence(entry) for entry in now.map.entries), f"Total configured: {len(now.map.nodes)}",
    ]  # fmt: skip


def _sentence(entry: Entry) -> str:
    if entry.is_alias:
        return f"OpenMosix alias of {entry.node_id} is {entry.address}"
    return f"OpenMosix range {entry.node_id}-{entry.node_id + entry.count - 1} begins at {entry.address}"


def map_lines(node_map: NodeMap) -> list[str]:
    """As a map file has them."""
    return [f"{one.node_id} {one.address} {'ALIAS' if one.is_alias else one.count}" for one in node_map.entries]


def as_data(now: InForce) -> dict[str, Any]:
    """For --json."""
    entries = [{"node": one.node_id, "address": one.address, "count": one.count} for one in now.map.entries]
    return {"node": now.own, "total": len(now.map.nodes), "entries": entries}
