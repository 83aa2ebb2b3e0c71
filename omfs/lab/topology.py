"""What a lab looks like: names, addresses, file texts and paths.

Pure: nothing here touches the machine.  Everything follows from the lab's name and a node's number, so `omfs-lab
down` finds a lab again whatever became of the command that made it.  Called by all of omfs/lab and by the tests.

              network namespace of the lab ("switch": one process that sleeps)
              +--------------------- bridge ---------------------+
              |  port node1      port node2        port node3    |
              +------|---------------|-----------------|---------+
                    eth0            eth0              eth0
               198.18.x.1      198.18.x.2        198.18.x.3
                  node1           node2             node3        network, mount, UTS, IPC, PID namespaces
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from omfs.errors import ConfigError

BASE_DIR: Final = Path("/var/lib/omfs-lab")
DEFAULT_NAME: Final = "lab"
DEFAULT_NODES: Final = 3
DEFAULT_SIZE: Final = "8G"  # sparse: only what a node writes takes space
NODES_MAX: Final = 200  # host part of a /24, with room for nothing else
SIZE_MIN_BYTES: Final = 16 << 20  # below it ext4 has no room for its journal and our directories
MEMORY_MIN_BYTES: Final = 256 << 20
PROCESSORS_MIN, PROCESSORS_MAX = 0.1, 1024.0
UNREACHABLE_MAC: Final = "02:00:00:00:00:ff"  # no port has it: what is sent there arrives nowhere

Security: TypeAlias = Literal["tls", "none"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_SIZE = re.compile(r"([0-9]+)([KMGT]?)(i?B)?", re.IGNORECASE)


class LabPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `omfs-lab up` was asked for; kept in lab.json."""

    name: str = DEFAULT_NAME
    nodes: int = DEFAULT_NODES
    sec: Security = "tls"
    dfsa: bool = True
    size_bytes: int = 8 << 30  # of each node's disk
    mount: bool = True  # mount /mfs; otherwise only the node itself is started
    settings: str = ""  # more lines for every node's omfs.toml
    memory_bytes: int = 0  # a node's processes may have so much together; 0: as much as there is
    processors: float = 0.0  # worth of time that they may use together; 0: as much as there is

    def check(self) -> None:
        """Raise ConfigError where the plan can't be carried out."""
        check_name(self.name)
        if not 1 <= self.nodes <= NODES_MAX:
            raise ConfigError(f"a lab has 1 to {NODES_MAX} nodes, not {self.nodes}")
        if self.size_bytes < SIZE_MIN_BYTES:
            raise ConfigError(f"a node's disk has at least {SIZE_MIN_BYTES >> 20} MiB, not {self.size_bytes} bytes")
        if self.memory_bytes and self.memory_bytes < MEMORY_MIN_BYTES:
            raise ConfigError(
                f"a node needs {MEMORY_MIN_BYTES >> 20} MiB for its daemons, not {self.memory_bytes} bytes"
            )
        if self.processors and not PROCESSORS_MIN <= self.processors <= PROCESSORS_MAX:
            raise ConfigError(
                f"a node has {PROCESSORS_MIN:g} to {PROCESSORS_MAX:g} processors, not {self.processors:g}"
            )

    @property
    def is_limited(self) -> bool:
        return bool(self.memory_bytes or self.processors)

    def check_node(self, node: int) -> None:
        """Raise ConfigError where the lab has no node of that number."""
        if not 1 <= node <= self.nodes:
            raise ConfigError(f"lab {self.name!r} has nodes 1 to {self.nodes}, not {node}")


def check_name(name: str) -> None:
    """A lab's name is part of paths: lower case letters, digits and "-", at most 32.  Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f'a lab\'s name has up to 32 of a-z, 0-9 and "-", and does not begin with "-": {name!r}')


def parse_size(text: str) -> int:
    """Bytes of "8G", "512M" (powers of 1024) or a plain number.  Raises ConfigError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size; give for example 8G or 512M")
    return int(match[1]) << (10 * " KMGT".index((match[2] or " ").upper()))


def subnet(name: str) -> str:
    """First three bytes of a lab's addresses, out of 198.18.0.0/15 (RFC 2544: never routed).

    Two names may get the same one: labs don't share a network.
    """
    number = zlib.crc32(name.encode()) % 512
    return f"198.{18 + number // 256}.{number % 256}"


def address(name: str, node: int) -> str:
    return f"{subnet(name)}.{node}"


def mac(node: int) -> str:
    """A node's own, the same after `kill` and `start`, so that its neighbours need not notice."""
    return f"02:6f:6d:66:73:{node:02x}"


def hostname(node: int) -> str:
    return f"node{node}"


def port_name(node: int) -> str:
    """The node's network interface at the switch."""
    return f"node{node}"


def map_text(plan: LabPlan) -> str:
    """/etc/openmosix.map: one range."""
    return f"# lab {plan.name}\n1 {address(plan.name, 1)} {plan.nodes}\n"


def hosts_text(plan: LabPlan) -> str:
    lines = ["127.0.0.1 localhost"]
    lines += [f"{address(plan.name, node)} {hostname(node)}" for node in range(1, plan.nodes + 1)]
    return "\n".join(lines) + "\n"


def fstab_text(plan: LabPlan) -> str:
    return f"mfs_mnt /mfs fuse.omfs dfsa={int(plan.dfsa)} 0 0\n"


def settings_text(plan: LabPlan) -> str:
    """/etc/omfs/omfs.toml."""
    text = f'sec = "{plan.sec}"\ndfsa = {str(plan.dfsa).lower()}\n'
    return text + plan.settings.rstrip("\n") + "\n" if plan.settings else text


class NodePaths:
    """Where the host keeps what belongs to one node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = directory / "disk.img"  # a file system image: the upper layer of the node's root
        self.log = directory / "log"  # what its PID 1 and daemons print
        self.etc = directory / "etc"  # its /etc/omfs, as copied in at the first boot
        self.boot = directory / "boot.process"  # who builds the node, while it does
        self.init = directory / "init.process"  # the node's PID 1
        self.layers = directory / "layers"  # mount points, used only in the node's mount namespace
        self.root = directory / "root"


class LabPaths:
    """Where the host keeps a lab's state."""

    def __init__(self, name: str, base: Path = BASE_DIR) -> None:
        check_name(name)
        self.name = name
        self.base = base
        self.directory = base / name
        self.plan = self.directory / "lab.json"
        self.cuts = self.directory / "cuts.json"
        self.lock = self.directory / "lock"
        self.switch = self.directory / "switch.process"
        self.log = self.directory / "log"
        self.authority = self.directory / "authority"  # the cluster's CA

    def node(self, node: int) -> NodePaths:
        return NodePaths(self.directory / f"node{node}")
