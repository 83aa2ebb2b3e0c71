"""The values of /mfs/proc/hpc: what the administrator sets, what the nodes are, and what is not known yet.

admin/ is kept by adminvalues.py, nodes/<own id>/ comes from nodefacts.py.  Of other nodes only the mount knows whether
they are up; how loaded they are nobody tells yet (ENOSYS).  No guest can come yet, so bring and expel have nothing to
send and are done at once; decay/ has no statistics to act on (ENOSYS).
What it does not do: parse, format, or look who may (controls.py).  nomfs is the export's, which is asked.
Called by controls.py.
"""

from __future__ import annotations

import errno
import functools
from pathlib import Path
from typing import Final

import msgspec
import trio

from mignode import nodefacts
from mignode.adminvalues import AdminStore
from omfs.config import SOFTWARE
from omfs.errors import ControlError, NotRunning, RemoteFailure
from omfs.magic.controlfiles import GUESTS, Value
from omfs.net import control
from omfs.standing import Standing

ASK_WITHIN_S: Final = 3.0  # the mount may ask the node in turn, for 2 s
DEAD: Final = -101  # cpus of a node that is in the map and does not answer
CONFIGURED: Final = 1
UP: Final = 2
_FLAGS: Final = {"stay": 4, "lstay": 8, "block": 0x10, "quiet": 0x20}
NOMFS: Final = 0x40
_SHOWN: Final = ("status", "cpus", "speed", "load", "mem", "rmem", "tmem", "util")
_BALANCED: Final = "load information is not exchanged yet"


class _Told(msgspec.Struct):
    node_id: int
    state: str


class _Described(msgspec.Struct):
    """What we need of a mount's control.DescribeReply."""

    nodes: list[_Told]


class HpcFiles:
    """Reads and changes what is known of this node and the others."""

    def __init__(self, standing: Standing, store: AdminStore, run_dir: Path) -> None:
        self._standing = standing
        self._store = store
        self._run_dir = run_dir
        self._one_writer = trio.Lock()
        self._utilisation = nodefacts.Utilisation()
        self._measured_speed = nodefacts.measured_speed()

    # ------------------------------------------------------------ reading

    async def read(self, folder: str, number: int, name: str) -> Value:
        """Raises RemoteFailure."""
        match folder:
            case "admin":
                return await self._admin(name)
            case "decay":
                return 0  # nothing is in force
            case "nodes":
                return await self._of_node(number, name)
            case "info":
                return await self._info()
        raise RemoteFailure(errno.ENOENT)  # no guest is here

    def guests(self) -> str:
        """The pids under remote/, one a line: none can come yet."""
        return ""

    async def _admin(self, name: str) -> Value:
        match name:
            case "mospe":
                return self._standing.local.node_id
            case "speed":
                return self._speed()
            case "nomfs":
                return int(await self._nomfs())
            case "version":
                return f"{SOFTWARE}\nDFSA is {'enabled' if self._standing.local.dfsa else 'disabled'}"
            case "config":
                return "\n".join(f"{one.node_id} {one.address} {one.count}" for one in self._standing.node_map.entries)
        value: Value = getattr(self._store.values, name)
        return int(value) if isinstance(value, bool) else value

    def _speed(self) -> int:
        return self._store.values.speed or self._measured_speed

    async def _of_node(self, node: int, name: str) -> Value:
        if node not in self._standing.node_map.nodes:
            raise RemoteFailure(errno.ENOENT)
        if node == self._standing.local.node_id:
            return await self._own(name)
        is_up = node in await self._up([node])
        if name == "status":
            return CONFIGURED | (UP if is_up else 0)
        if is_up:
            raise RemoteFailure(errno.ENOSYS, _BALANCED)
        if name == "cpus":
            return DEAD
        raise RemoteFailure(errno.EHOSTDOWN)

    async def _own(self, name: str) -> Value:
        match name:
            case "cpus":
                return nodefacts.processors()
            case "load":
                return nodefacts.load_of(nodefacts.load_average(), self._speed(), self._store.values.sspeed)
            case "mem":
                return nodefacts.memory().available
            case "rmem":
                return nodefacts.memory().free
            case "tmem":
                return nodefacts.memory().total
            case "speed":
                return self._speed()
            case "util":
                return self._utilisation.percent()
        return await self._status()

    async def _status(self) -> int:
        values = self._store.values
        bits = CONFIGURED | UP | sum(bit for name, bit in _FLAGS.items() if getattr(values, name))
        try:
            return bits | (NOMFS if await self._nomfs() else 0)
        except RemoteFailure:  # no export, nobody to refuse
            return bits

    async def _info(self) -> str:
        """A line for each node of the map: what can be said of it now."""
        own_id, nodes = self._standing.local.node_id, sorted(self._standing.node_map.nodes)
        up = await self._up(nodes)
        lines = [f"node={node} status={CONFIGURED | (UP if node in up else 0)}" for node in nodes if node != own_id]
        own = [f"{name}={await self._own(name)}" for name in _SHOWN]
        return "\n".join([f"node={own_id} {' '.join(own)}", *lines])

    async def _up(self, nodes: list[int]) -> set[int]:
        """Which of these other nodes are up, as the mount says; without one, nobody here has heard of them."""
        try:
            told = await control.ask(self._run_dir / "mount.sock", "describe", deadline_s=ASK_WITHIN_S, nodes=nodes)
            return {one.node_id for one in msgspec.convert(told, _Described).nodes if one.state == "up"}
        except (ControlError, msgspec.ValidationError):
            return set()

    async def _nomfs(self, on: bool | None = None) -> bool:
        """Whether the export refuses the other nodes; set it where *on* is given.  Raises RemoteFailure."""
        arguments = {} if on is None else {"on": on}
        try:
            answer = await control.ask(self._run_dir / "export.sock", "nomfs", **arguments)
        except NotRunning:
            raise RemoteFailure(errno.ENOTCONN, "no omfs-export runs") from None
        except ControlError as error:
            raise RemoteFailure(errno.EIO, str(error)) from None
        return answer.get("on") is True

    # ------------------------------------------------------------ writing

    async def write(self, folder: str, number: int, name: str, value: Value) -> None:
        """Raises RemoteFailure; OSError where the value can't be kept."""
        if folder == "decay":
            raise RemoteFailure(errno.ENOSYS, "processes have no statistics yet")
        if folder == GUESTS:
            raise RemoteFailure(errno.ENOENT)
        match name:
            case "nomfs":
                await self._nomfs(bool(value))
            case "mospe":
                if value != self._standing.local.node_id:
                    raise RemoteFailure(errno.ENOSYS, "the node's id comes from the map; mount again to become another")
            case "expel" if value:
                await self._change(block=True)  # nobody comes back; and nobody is here who must leave
            case "bring" if value:
                await self._change(lstay=True)  # none of ours is away
            case "expel" | "bring":
                pass
            case "block" | "lstay" | "stay" | "quiet":
                await self._change(**{name: bool(value)})
            case _:
                await self._change(**{name: value})

    async def _change(self, **changes: object) -> None:
        async with self._one_writer:
            after = msgspec.structs.replace(self._store.values, **changes)
            if not after.fits:
                raise RemoteFailure(errno.EINVAL, "fastdecay is at most slowdecay")
            await trio.to_thread.run_sync(functools.partial(self._store.change, **changes))  # it waits for the disk
