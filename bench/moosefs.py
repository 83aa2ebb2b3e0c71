"""MooseFS (--peers): master and one chunkserver in node 2, mounted in node 1; Debian's packages, their defaults.

Everything it writes lies inside the nodes: configuration in /run, metadata and chunks on node 2's ext4 disk.  Files
are made through a second mount in node 2, so that the measured one has not seen them.
"""

from __future__ import annotations

from typing import Final

from bench import nodes
from bench.nodes import CLIENT, SERVER

HOME: Final = "/run/bench-moosefs"
DATA: Final = f"{nodes.DISK}/moosefs"
MOUNT: Final = f"{HOME}/mount"
READY_TIMEOUT_S: Final = 60

_MASTER: Final = f"""
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {DATA}/master
EXPORTS_FILENAME = {HOME}/exports.cfg
"""
_CHUNKSERVER: Final = f"""
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = {DATA}/chunkserver
HDD_CONF_FILENAME = {HOME}/disks.cfg
MASTER_HOST = %s
"""
_START: Final = f"""
mkdir -p {DATA}/master {DATA}/chunkserver {DATA}/chunks
cp /var/lib/mfs/metadata.mfs.empty {DATA}/master/metadata.mfs
mfsmaster -c {HOME}/master.cfg start
mfschunkserver -c {HOME}/chunkserver.cfg start
"""

# The chunkserver registers with the master in its own time; until then the file system has no space.
_WAIT_FOR_SPACE: Final = f"until [ $(stat -f -c %b {MOUNT}) -gt 0 ]; do sleep 0.2; done"


class Moosefs:
    name = "MooseFS"
    note = "one chunkserver; caches attributes for a second, file data until another client writes; no encryption"

    def start(self) -> None:
        nodes.write(SERVER, f"{HOME}/master.cfg", _MASTER)
        nodes.write(SERVER, f"{HOME}/chunkserver.cfg", _CHUNKSERVER % nodes.address(SERVER))
        nodes.write(SERVER, f"{HOME}/exports.cfg", "* / rw,alldirs,maproot=0\n")
        nodes.write(SERVER, f"{HOME}/disks.cfg", f"{DATA}/chunks\n")
        nodes.on(SERVER, "sh", "-ec", _START)
        for node in (SERVER, CLIENT):
            nodes.on(node, "mkdir", "-p", MOUNT)
            nodes.on(node, "mfsmount", MOUNT, "-H", nodes.address(SERVER))
            nodes.on(node, "timeout", str(READY_TIMEOUT_S), "sh", "-c", _WAIT_FOR_SPACE)

    def software(self) -> str:
        return nodes.on(CLIENT, "sh", "-c", "mfsmount -V 2>&1").splitlines()[0]

    def origin(self) -> tuple[int, str]:
        return SERVER, MOUNT

    def seen_at(self) -> str:
        return MOUNT

    def seen_by_another(self) -> tuple[int, str]:
        return SERVER, MOUNT
