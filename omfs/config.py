"""Every tunable: unit, default, and the reason for the default.

`Settings` is what /etc/omfs/omfs.toml may say (unknown keys are refused); command lines override it.
Constants that nobody should change are at module level with their reason.  Only files are read here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from omfs.errors import ConfigError

SOFTWARE: Final = "omfs 0.1.0"

META_MAX_BYTES: Final = 1 << 20  # a frame's msgpack part: a full readdir reply is 256 KiB, xattrs are 64 KiB
BULK_MAX_BYTES: Final = 4 << 20  # a frame's bulk part: FUSE asks for 1 MiB, joined writes may be larger
BULK_LANE_FROM_BYTES: Final = 32 << 10  # larger transfers take the bulk connection
IN_FLIGHT_MAX: Final = 1024  # requests one peer may have under way; FUSE's own max_background is 512
WRITTEN_CLOSES_MAX: Final = 16  # in one CloseFiles: the owner's disk may begin to write each of them back
REPLIES_KEPT: Final = 2 * IN_FLIGHT_MAX  # per session, for replay: any request still under way is among them
WHOLE_FILE_MAX_BYTES: Final = 16 << 10  # most source files are smaller; takes less than a round trip at 1 Gbit/s
READDIR_REPLY_BYTES: Final = 128 << 10
LISTING_POSITION_BITS: Final = 28  # of a position in a directory of /mfs: which entry; above them, of which listing
LISTING_POSITION_MASK: Final = (1 << LISTING_POSITION_BITS) - 1
LOCK_WAITERS_MAX: Final = 512  # threads that may block in a lock for others; beyond it ENOLCK
GUEST_CALLS_MAX: Final = 64  # of one guest's threads that home is asked for at a time; the others wait in the kernel
HOME_CALL_TIMEOUT_S: Final = (
    5.0  # a guest's thread that waits for home can't be stopped, so not frozen for a dump either
)

BODY_ALONE_S: Final = 60.0  # a guest's init waits so long for mignode to come back; as long as others wait for a node
DEPUTY_ALONE_S: Final = 60.0  # mosrun waits so long for a mignode that has ended: systemd starts it within seconds

DEFAULT_CONFIG: Final = Path("/etc/omfs/omfs.toml")
MAP_PATHS: Final = (Path("/etc/openmosix.map"), Path("/etc/mosix.map"), Path("/etc/hpc.map"))


TcpPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]  # 0 = none
UdpPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Tree(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of an exported subtree; the nearest ancestor's entry holds."""

    path: str
    read_only: bool = False
    root_squash: bool = False
    hidden: bool = False
    anon_uid: int = 65534
    anon_gid: int = 65534


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """omfs.toml."""

    map: str = ""  # "" = the first of MAP_PATHS that exists
    address: str = ""  # this node's address in the map; "" = found by comparing with the local interfaces
    dfsa: bool = True  # /mfs/<self> is a bind of the local tree; the same on all nodes of a cluster
    port: int = 723  # tcp, the original's port for files
    sec: str = "tls"  # or "none", only for isolated networks
    config_dir: str = "/etc/omfs"  # certificates
    state_dir: str = "/var/lib/omfs"
    run_dir: str = "/run/omfs"
    timeo_s: float = 15.0  # silence after which a node counts as down
    ping_interval_s: float = 3.0  # a fifth of timeo: several may be lost before a node counts as down
    session_timeout_s: float = 60.0  # the owner keeps a lost holder's opens and locks that long
    reconnect_interval_s: float = 1.0
    migration_port: TcpPort = 4660  # the original's, of mignode
    gossip_port: UdpPort = 5428  # the original's, of mignode; the same on all nodes
    discovery_port: UdpPort = 5429  # of omdiscd, and the same on all nodes; openMosix's is not known
    discovery_interfaces: tuple[str, ...] = ()  # where nodes look for each other; none: that of the default route
    discovery_refused: tuple[int, ...] = ()  # nodes thrown out, whose certificates still hold; the same on all nodes
    discovery_word: str = ""  # with sec=none, which cluster this is: nodes with another word are not of it
    discovery_forget_after_s: float = 86400.0  # a node silent for so long leaves the map; 0: never
    metrics_port_mount: TcpPort = 0  # 0: nobody is told; who wants metrics chooses a port that is free on all nodes
    metrics_port_export: TcpPort = 0  # of its own, because omfs-export is a process of its own
    metrics_port_mignode: TcpPort = 0
    metrics_address: str = "127.0.0.1"  # whoever may connect may read; "" = all addresses of this machine
    # Holders drop what they cached after 0.7 of it: more than timeo, or calls of theirs that wait for a silent owner
    # would still keep directories locked; and all less than the 45 s after which the kernel breaks a file lease.
    lease_term_s: float = 24.0
    images_max_bytes: int = 8 << 30  # of processes on their way, in memory; less where the machine has less
    guest_timeout_s: float = 60.0  # a guest's node and its home don't reach each other: given up; a restart takes less
    criu: str = ""  # the program; "" = the private one of tools/criu.py, else the distribution's
    processor_check: bool = True  # no guest comes that may use instructions which this node lacks (SIGILL)
    procview: bool = True  # openMosix's names in a guest's /proc; the same on all nodes of a cluster
    trees: tuple[Tree, ...] = ()


def load_settings(path: Path = DEFAULT_CONFIG) -> Settings:
    """Read omfs.toml; a missing file at the default place means all defaults.

    Raises ConfigError, naming the file and the fault.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        if path == DEFAULT_CONFIG:
            return Settings()
        raise ConfigError(f"{path}: no such file; give an existing omfs.toml or leave the option out") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        settings = msgspec.convert(tomllib.loads(text), Settings)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if settings.sec not in ("tls", "none"):
        raise ConfigError(f'{path}: sec must be "tls" or "none", not "{settings.sec}"')
    return settings
