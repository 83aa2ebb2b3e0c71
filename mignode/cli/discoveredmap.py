"""The map that omdiscd has found, in its file and in force: the way that `setpe -w` goes, without asking anybody.

A map that a person has written is never replaced: which nodes there are is said by one or by the other.
Blocks: call from a thread.  Called by omdiscd.py.
"""

from __future__ import annotations

import logging

from mignode.cli import nodeservice
from mignode.cli.mapinforce import place_of_map
from mignode.discovery import Nodes, map_lines
from omfs.config import Settings
from omfs.errors import ConfigError, MapError, OmfsError
from omfs.net.authority import write_whole
from omfs.net.nodemap import DISCOVERED, parse_map, read_map, read_written_map

log = logging.getLogger(__name__)


def map_text(nodes: Nodes) -> str:
    """As a map file has it; the same for the same nodes."""
    return "\n".join([DISCOVERED, *map_lines(nodes)]) + "\n"


def refuse_written_map(settings: Settings) -> None:
    """Raises ConfigError where a person has written this node's map."""
    place = place_of_map(settings)
    if read_written_map(place) is not None:
        raise ConfigError(f"{place} was not written by omdiscd, which would replace it: move it away, or do without")


def put_in_force(settings: Settings, nodes: Nodes) -> None:
    """Raises ConfigError; then the map that was in force still is."""
    place = place_of_map(settings)
    text = map_text(nodes)
    wanted = parse_map(text, str(place))
    refuse_written_map(settings)
    try:
        is_written = read_map(place).digest == wanted.digest
    except MapError:
        is_written = False
    if not is_written:
        write_whole(place, text.encode(), mode=0o644)
    try:
        daemons = nodeservice.read_again(settings, wanted.digest)
    except ConfigError:
        raise
    except OmfsError as error:
        raise ConfigError(f"the daemons did not read the map: {error}") from None
    log.info("the map has %d nodes now; %s", len(nodes), f"read by {', '.join(daemons)}" if daemons else "nobody runs")
