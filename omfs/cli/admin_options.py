"""The options that every omfs-admin command shares, and the settings they lead to."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from omfs.config import DEFAULT_CONFIG, Settings, load_settings
from omfs.errors import ConfigError
from omfs.kernel.interfaces import address_of, chosen_interfaces
from omfs.net.nodemap import NODE_ID_MAX, NodeMap, id_of_address, own_node, read_map, read_written_map

DIGITS_MAX = 20  # of numbers: Python refuses thousands, in words of its own


def add_common_options(parser: argparse.ArgumentParser, *, with_defaults: bool) -> None:
    """--config and --run-dir, accepted before and after the command's name.

    Only the outermost parser sets defaults, or the inner one's would overwrite what stood before the command.
    """
    default: dict[str, Any] = {"default": None if with_defaults else argparse.SUPPRESS}
    text = f"settings (default {DEFAULT_CONFIG})"
    parser.add_argument("--config", metavar="FILE", type=Path, help=text, **default)
    parser.add_argument("--run-dir", metavar="DIR", type=Path, help="where the daemons' sockets are", **default)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """omfs.toml as chosen on the command line.  Raises ConfigError."""
    return load_settings(arguments.config or DEFAULT_CONFIG)


def run_dir_of(arguments: argparse.Namespace) -> Path:
    """Where the control sockets are.  Raises ConfigError."""
    return arguments.run_dir or Path(settings_of(arguments).run_dir)


def map_of(path: Path | None, settings: Settings) -> NodeMap:
    """The map of the command line, else of omfs.toml, else the usual places.  Raises MapError."""
    return read_map(path or (Path(settings.map) if settings.map else None))


def written_map_of(path: Path | None, settings: Settings) -> NodeMap | None:
    """As map_of; None where nobody has written one, so that the nodes find each other (omdiscd).  Raises MapError."""
    if path is not None:
        return read_map(path)
    return read_written_map(Path(settings.map) if settings.map else None)


def own_id(node_map: NodeMap | None, settings: Settings) -> int:
    """This machine's id: by the map, or where there is none by its address.  Raises ConfigError."""
    if node_map is not None:
        return own_node(node_map, settings.address)
    try:
        address = settings.address or address_of(chosen_interfaces(settings.discovery_interfaces)[0])
        return id_of_address(address)
    except ConfigError as error:
        raise ConfigError(
            f"there is no cluster map, and no id without one (give the id, or write a map): {error}"
        ) from None


def node_number(text: str) -> int:
    """argparse type of a node id."""
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX or not 1 <= int(text) <= NODE_ID_MAX:
        raise argparse.ArgumentTypeError(f'"{text}" is not a node id (1..{NODE_ID_MAX})')
    return int(text)


def console() -> Console:
    """stdout for tables; in a pipe nothing is wrapped, coloured or cut."""
    plain = Console(highlight=False, markup=False, emoji=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, emoji=False, width=1000)


def printable(path: str) -> str:
    """One line of text, whatever bytes the name has."""
    return os.fsencode(path).decode(errors="backslashreplace").replace("\n", "\\n")
