"""The cluster map (/etc/openmosix.map): which node ids exist and at which addresses.

`parse_map` is pure: text in, `NodeMap` or a `MapError` that names file, line and reason out.  Host names stay
as written; only `local_addresses`, `own_node` and `resolve` ask the resolver (they block: call them from a
thread where that matters).  Invariants of a NodeMap: every id is 1..65535, no id and no address occurs twice,
every node has at least one address and its first is the one of its own line (aliases follow).  The digest is
over ids and addresses as written, so two nodes agree on it whatever their resolvers say; order of lines,
comments and how a range is split do not change it.
Source of syntax and refusals: openmosix-interfaces.md, "The cluster map".  Called by the daemon and omfs-admin.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import ipaddress
import re
import socket
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from omfs.config import MAP_PATHS
from omfs.errors import ConfigError, MapError

NODE_ID_MAX: Final = 65535
ENTRIES_MAX: Final = 256  # the original's limit, so that a map made here also loads there
MAP_MAX_BYTES: Final = 1 << 20  # 256 entries and generous comments; a larger file is not a map
DISCOVERED: Final = "# written by omdiscd, which finds the nodes: what you write here is lost"  # first line of its maps
NONLOCAL_BIND: Final = Path("/proc/sys/net/ipv4/ip_nonlocal_bind")

_INTEGER: Final = re.compile(r"-?[0-9]{1,9}\Z")
_DOTTED: Final = re.compile(r"[0-9.]+\Z")
_HOST_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*\.?\Z", re.I)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One line: *count* nodes from *node_id* on, the first at *address*; a count of 0 is an alias."""

    line: int
    node_id: int
    address: str
    count: int

    @property
    def is_alias(self) -> bool:
        return self.count == 0

    def addresses(self) -> list[str]:
        """Every address of this line, in the order of the ids."""
        if self.count <= 1:
            return [self.address]
        prefix, _, last = self.address.rpartition(".")
        return [f"{prefix}.{int(last) + k}" for k in range(self.count)]


@dataclasses.dataclass(frozen=True, slots=True)
class NodeMap:
    """A map that was accepted.  *nodes*: id -> addresses (IPv4 or host name), the first is the primary."""

    path: str
    entries: tuple[Entry, ...]
    nodes: Mapping[int, tuple[str, ...]]
    digest: bytes

    def line_of(self, address: str) -> int:
        """The line that gave *address* (as written in the map), 0 if none."""
        return next((entry.line for entry in self.entries if address in entry.addresses()), 0)


# ---------------------------------------------------------------- parsing (pure)


def parse_map(text: str, path: str) -> NodeMap:
    """Parse *text*; *path* is only for the messages.  Raises MapError with the line and the reason."""
    entries: list[Entry] = []
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(entries) == ENTRIES_MAX:
            raise MapError(path, number, f"too many entries: a map has at most {ENTRIES_MAX}; join nodes to ranges")
        try:
            entries.append(_entry(number, fields))
        except ValueError as error:
            raise MapError(path, number, str(error)) from None
    if not entries:
        raise MapError(path, 0, "the map has no entries; write lines like: 1 192.168.1.1 1")
    nodes = _nodes(entries, path)
    return NodeMap(path, tuple(entries), nodes, digest_of(nodes))


def _entry(number: int, fields: list[str]) -> Entry:
    if len(fields) != 3:
        raise ValueError(f"expected three fields (ID, IP or host name, RANGE-SIZE or ALIAS), found {len(fields)}")
    node_id = _integer(fields[0], "node id")
    count = 0 if fields[2].upper() == "ALIAS" else _integer(fields[2], "range size")
    if not 1 <= node_id <= NODE_ID_MAX:
        raise ValueError(f"node id {node_id} is out of range; ids are 1..{NODE_ID_MAX}")
    if count < 0:
        raise ValueError(f"negative range {count}; write the number of nodes, or ALIAS")
    if node_id + count - 1 > NODE_ID_MAX:
        raise ValueError(f"the range ends at node id {node_id + count - 1}; ids are 1..{NODE_ID_MAX}")
    return Entry(number, node_id, _address(fields[1], count), count)


def _integer(field: str, what: str) -> int:
    if not _INTEGER.match(field):
        raise ValueError(f'{what} "{_shown(field)}" is not a number')
    return int(field)


def _address(field: str, count: int) -> str:
    """The address in canonical form: dotted quad, or a host name in lower case without the final dot."""
    if _DOTTED.match(field):
        try:
            address = ipaddress.IPv4Address(field)
        except ValueError:
            raise ValueError(f'"{_shown(field)}" is not an IPv4 address') from None
        if address.is_multicast or address.is_unspecified or address == ipaddress.IPv4Address("255.255.255.255"):
            raise ValueError(f"{address} can't be the address of a node")
        last = int(address) & 0xFF
        if last + count - 1 > 255:
            raise ValueError(f"the range of {count} from {address} wraps past .255; use several lines")
        return str(address)
    if ":" in field:
        raise ValueError(f'"{_shown(field)}": only IPv4 addresses and host names can stand in a map')
    if not _HOST_NAME.match(field):
        raise ValueError(f'"{_shown(field)}" is neither an IPv4 address nor a host name')
    if count > 1:
        raise ValueError(f'a range of {count} needs an IP address, not the host name "{field}"')
    return field.lower().rstrip(".")


def _shown(field: str) -> str:
    """*field* fit for one line of a terminal."""
    return ascii(field[:64])[1:-1]


def _nodes(entries: Iterable[Entry], path: str) -> dict[int, tuple[str, ...]]:
    primary: dict[int, str] = {}
    line_of_id: dict[int, int] = {}
    line_of_address: dict[str, int] = {}
    aliases: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.is_alias:
            aliases.setdefault(entry.node_id, []).append(entry)
        for node_id, address in enumerate(entry.addresses(), start=entry.node_id):
            if address in line_of_address:
                reason = f"conflicting addresses: {address} is already in line {line_of_address[address]}"
                raise MapError(path, entry.line, reason)
            line_of_address[address] = entry.line
            if entry.is_alias:
                continue
            if node_id in primary:
                reason = f"conflicting ids: node {node_id} is already in line {line_of_id[node_id]}"
                raise MapError(path, entry.line, f"{reason} (write ALIAS to give it one more address)")
            primary[node_id] = address
            line_of_id[node_id] = entry.line
    for node_id, named in aliases.items():
        if node_id not in primary:
            raise MapError(path, named[0].line, f"alias for node {node_id}, which is not in the map")
    return {node: (primary[node], *(entry.address for entry in aliases.get(node, ()))) for node in sorted(primary)}


def digest_of(nodes: Mapping[int, tuple[str, ...]]) -> bytes:
    lines = (f"{node_id} {first} {' '.join(sorted(more))}\n" for node_id, (first, *more) in nodes.items())
    return hashlib.blake2b("".join(lines).encode(), digest_size=32).digest()


def id_of_address(address: str) -> int:
    """The id that openMosix gives a node that nobody has given one: the low 16 bits.  Raises ConfigError."""
    node_id = int(ipaddress.IPv4Address(address)) & 0xFFFF
    if node_id == 0:
        raise ConfigError(f"{address} ends in 0.0, which is no node id; give one")
    return node_id


# ---------------------------------------------------------------- files and addresses


def read_map(path: Path | None) -> NodeMap:
    """Read *path*, or the first of MAP_PATHS that exists.  Raises MapError."""
    found = _first_that_exists(path)
    if found is not None:
        return parse_map(found[1], found[0])
    if path is None:
        elsewhere = " or ".join(map(str, MAP_PATHS[1:]))
        raise MapError(str(MAP_PATHS[0]), 0, f"no cluster map here, nor in {elsewhere}; write one, or start omdiscd")
    raise MapError(str(path), 0, "no such file")


def read_written_map(path: Path | None) -> NodeMap | None:
    """As read_map; None where nobody has written one: there is none, or omdiscd has found it.  Raises MapError."""
    found = _first_that_exists(path)
    if found is None or found[1].startswith(DISCOVERED):
        return None
    return parse_map(found[1], found[0])


def _first_that_exists(path: Path | None) -> tuple[str, str] | None:
    """Which, and its text.  Raises MapError."""
    for candidate in MAP_PATHS if path is None else (path,):
        try:
            with open(candidate, "rb") as file:
                raw = file.read(MAP_MAX_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MapError(str(candidate), 0, error.strerror or str(error)) from None
        if len(raw) > MAP_MAX_BYTES:
            raise MapError(str(candidate), 0, f"larger than {MAP_MAX_BYTES} bytes; this is not a cluster map")
        return str(candidate), raw.decode("utf-8", "surrogateescape")
    return None


def find_self(node_map: NodeMap, addresses: Collection[str]) -> int:
    """The id of the node that has one of *addresses* (as written in the map); pure.

    Raises MapError when no node has, or several have.
    """
    mine = {node_id for node_id, own in node_map.nodes.items() if any(address in addresses for address in own)}
    if len(mine) == 1:
        return mine.pop()
    if mine:
        several = ", ".join(map(str, sorted(mine)[:8]))
        reason = f"this machine has the addresses of several nodes ({several}); say which by address = in omfs.toml"
        raise MapError(node_map.path, 0, reason)
    raise MapError(node_map.path, 0, "my own address is missing: no address of this machine is in the map")


def own_node(node_map: NodeMap, address: str = "") -> int:
    """This machine's node id; *address* (omfs.toml) decides instead of the local interfaces.  May ask the resolver.

    Raises MapError, with the hint about /etc/hosts where a host name of the map leads to 127.x.
    """
    if address:
        mine = _named(node_map, address.lower().rstrip("."))
        if not mine:
            raise MapError(node_map.path, 0, f"my own address is missing: {address} (omfs.toml) is not in the map")
        return find_self(node_map, mine)
    if _nonlocal_bind():
        reason = f"can't tell which address is mine while {NONLOCAL_BIND} is 1; say it by address = in omfs.toml"
        raise MapError(node_map.path, 0, reason)
    mine = local_addresses(node_map)
    if not mine:
        _explain_missing(node_map)
    return find_self(node_map, mine)


def _named(node_map: NodeMap, address: str) -> set[str]:
    """*address* if it stands in the map, else the host names of the map that mean it."""
    written = [one for addresses in node_map.nodes.values() for one in addresses]
    if address in written:
        return {address}
    return {one for one in written if not _DOTTED.match(one) and address in resolve(one)}


def local_addresses(node_map: NodeMap) -> set[str]:
    """The addresses of the map, as written, that belong to this machine.

    Host names are resolved only if no IP address of the map is ours, and count only by what is not 127.x.
    """
    written = [address for addresses in node_map.nodes.values() for address in addresses]
    literal = set(_bindable(address for address in written if _DOTTED.match(address)))
    if literal:
        return literal
    found = set()
    for name in (address for address in written if not _DOTTED.match(address)):
        numbers = [number for number in resolve(name) if not number.startswith("127.")]
        if any(_bindable(numbers)):
            found.add(name)
    return found


def resolve(address: str) -> tuple[str, ...]:
    """IPv4 addresses of an address of the map; an unknown host name has none.  Blocks on the resolver."""
    if _DOTTED.match(address):
        return (address,)
    try:
        answers = socket.getaddrinfo(address, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _bindable(addresses: Iterable[str]) -> Iterable[str]:
    """Those of *addresses* that the kernel lets us bind, which means they are local; nothing is sent or accepted."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        for address in addresses:
            try:
                probe.bind((address, 0))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                continue  # a socket whose bind failed may try again: one socket serves 65535 foreign addresses
            yield address
            probe.close()
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    finally:
        probe.close()


def _nonlocal_bind() -> bool:
    try:
        return NONLOCAL_BIND.read_text().strip() == "1"
    except OSError:
        return False


def _explain_missing(node_map: NodeMap) -> None:
    """Raise the refusal with the hint that the original's HOWTO gives, where it applies."""
    for name in (one for addresses in node_map.nodes.values() for one in addresses if not _DOTTED.match(one)):
        loopback = next((number for number in resolve(name) if number.startswith("127.")), None)
        if loopback:
            hint = f'the host name "{name}" means {loopback} here; give it its real address in /etc/hosts'
            raise MapError(node_map.path, node_map.line_of(name), f"my own address is missing: {hint}")
