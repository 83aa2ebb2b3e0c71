"""The values of /mfs/proc/hpc: what the administrator sets, what the nodes are, and what is not known yet.

admin/ is kept by adminvalues.py, nodes/<own id>/ comes from load.py, and what is known of other nodes from gossip.  Of
a node that gossip has never heard of the mount may know that it is up; how busy that or a quiet one is nobody says
(ENODATA).  remote/ is guestfiles.py's, bring and expel are done by homeward.py, decay/ is processfiles.py's.
What it does not do: parse, format, or look who may (controls.py).  nomfs is the export's, which is asked.
Called by controls.py.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from mignode.adminvalues import AdminStore
from mignode.guestfiles import GuestFiles
from mignode.homeward import Homeward
from mignode.load import OwnState
from mignode.nodeinfo import CONFIGURED, UP, NodeInfo, shown_load
from omfs.config import SOFTWARE
from omfs.errors import ControlError, NotRunning, RemoteFailure
from omfs.magic.controlfiles import GUESTS, Value
from omfs.net import control
from omfs.standing import Standing

ASK_WITHIN_S: Final = 3.0  # the mount may ask the node in turn, for 2 s
OWN_WITHIN_S: Final = 0.5  # a period of gossip is 1 s
DEAD: Final = -101  # cpus of a node that is in the map and does not answer
_NOMFS_HELD_S: Final = 5.0  # the export is asked so often; what is written here holds at once
_FIELDS: Final = {
    "status": "status", "cpus": "cpus", "speed": "speed", "load": "load", "mem": "mem_free", "rmem": "mem_raw_free",
    "tmem": "mem_total", "util": "util",
}  # fmt: skip
_OF_LOAD: Final = ("load", "frozen", "mem", "rmem", "util")
_LOADS: Final = ("load", "frozen")
_SAID: Final = (*_FIELDS, "frozen")


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
        self.strangers: GuestFiles | None = None  # both set when guests may come
        self.leaving: Homeward | None = None
        self._one_writer = trio.Lock()
        self._own_state = OwnState(standing.local.node_id, store)
        self.frozen: Callable[[], float] = lambda: 0.0  # threads that would run: balance.py's
        self.others: Callable[[int], NodeInfo | None] = lambda node: None  # gossip's, when that runs
        self._refuses, self._refuses_until_s = False, 0.0

    # ------------------------------------------------------------ reading

    async def read(self, folder: str, number: int, name: str) -> Value:
        """Raises RemoteFailure."""
        match folder:
            case "admin":
                return await self._admin(name)
            case "nodes":
                return await self._of_node(number, name)
            case "info":
                return await self._info()
        if self.strangers is None:
            raise RemoteFailure(errno.ENOENT)
        return await self.strangers.read(number, name)

    async def guests(self) -> str:
        """The pids under remote/, one a line."""
        pids = await self.strangers.pids() if self.strangers is not None else []
        return "".join(f"{pid}\n" for pid in pids)

    async def _admin(self, name: str) -> Value:
        match name:
            case "mospe":
                return self._standing.local.node_id
            case "speed":
                return self._own_state.speed
            case "nomfs":
                return int(await self._nomfs(deadline_s=ASK_WITHIN_S))
            case "version":
                return f"{SOFTWARE}\nDFSA is {'enabled' if self._standing.local.dfsa else 'disabled'}"
            case "config":
                return "\n".join(f"{one.node_id} {one.address} {one.count}" for one in self._standing.node_map.entries)
        value: Value = getattr(self._store.values, name)
        return int(value) if isinstance(value, bool) else value

    async def _of_node(self, node: int, name: str) -> Value:
        if node not in self._standing.node_map.nodes:
            raise RemoteFailure(errno.ENOENT)
        if node == self._standing.local.node_id:
            return self._shown(await self.own(), name)
        info = self.others(node)
        if info is not None and info.is_up and (name not in _OF_LOAD or info.tells_load):
            return self._shown(info, name)
        is_up = info.is_up if info is not None else node in await self._up([node])
        if name == "status":
            return CONFIGURED | (UP if is_up else 0)
        if is_up:
            raise RemoteFailure(errno.ENODATA, "it is quiet" if info else "it has told nothing yet")
        if name == "cpus":
            return DEAD
        raise RemoteFailure(errno.EHOSTDOWN)

    async def tell(self) -> NodeInfo:
        """What gossip says of this node, every second: not how busy it is where that is not to be told."""
        self._own_state.look(trio.current_time(), self.frozen())
        info = await self.own()
        if self._store.values.quiet:
            info = msgspec.structs.replace(info, load=0, frozen=0, mem_free=0, mem_raw_free=0, util=0)
        return info

    async def own(self) -> NodeInfo:
        """As it is, told or not.  Soon: who waits for this is gossip, and a node that is silent is taken for dead."""
        if trio.current_time() >= self._refuses_until_s:
            self._refuses_until_s = trio.current_time() + _NOMFS_HELD_S  # nobody else asks meanwhile
            try:
                self._refuses = await self._nomfs(deadline_s=OWN_WITHIN_S)
            except RemoteFailure as error:
                self._refuses &= error.errno != errno.ENOTCONN  # no export, nobody to refuse; one that is silent does
        return self._own_state.info(self._refuses)

    async def _info(self) -> str:
        """A line for each node of the map: what can be said of it now."""
        own_id, nodes = self._standing.local.node_id, sorted(self._standing.node_map.nodes)
        told = {node: info for node in nodes if node != own_id and (info := self.others(node)) is not None}
        up = await self._up([node for node in nodes if node != own_id and node not in told])
        lines = [self._line(await self.own())]
        for node in nodes:
            if node in told:
                lines.append(self._line(told[node]))
            elif node != own_id:
                lines.append(f"node={node} status={CONFIGURED | (UP if node in up else 0)}")
        return "\n".join(lines)

    def _shown(self, info: NodeInfo, name: str) -> int:
        value = getattr(info, _FIELDS.get(name, name))
        assert isinstance(value, int)
        return shown_load(value, self._store.values.sspeed) if name in _LOADS else value

    def _line(self, info: NodeInfo) -> str:
        """(beyond) *frozen*: the load that stands still; *age*: in seconds, of what the node said; *version*: of its

        software.
        """
        names = [name for name in _SAID if name not in _OF_LOAD or info.tells_load] if info.is_up else ["status"]
        said = " ".join(f"{name}={self._shown(info, name)}" for name in names)
        version = f" version={info.version}" if info.version else ""
        return f"node={info.node} {said} age={info.age_s:.1f}{version}"

    async def _up(self, nodes: list[int]) -> set[int]:
        """Which of these other nodes are up, as the mount says; without one, nobody here has heard of them."""
        if not nodes:
            return set()
        try:
            told = await control.ask(self._run_dir / "mount.sock", "describe", deadline_s=ASK_WITHIN_S, nodes=nodes)
            return {one.node_id for one in msgspec.convert(told, _Described).nodes if one.state == "up"}
        except (ControlError, msgspec.ValidationError):
            return set()

    async def _nomfs(self, on: bool | None = None, deadline_s: float = control.ASK_DEADLINE_S) -> bool:
        """Whether the export refuses the other nodes; set it where *on* is given, which takes what their leases take.

        Raises RemoteFailure.
        """
        arguments = {} if on is None else {"on": on}
        try:
            answer = await control.ask(self._run_dir / "export.sock", "nomfs", deadline_s=deadline_s, **arguments)
        except NotRunning:
            raise RemoteFailure(errno.ENOTCONN, "no omfs-export runs") from None
        except ControlError as error:
            raise RemoteFailure(errno.EIO, str(error)) from None
        return answer.get("on") is True

    # ------------------------------------------------------------ writing

    async def write(self, folder: str, number: int, name: str, value: Value, by: int = 0) -> None:
        """*by*: the thread that writes.  Raises OmfsError; OSError where the value can't be kept."""
        if folder == GUESTS:
            await self._send(number, value, by)
            return
        match name:
            case "nomfs":
                await self._nomfs(bool(value))
                self._refuses_until_s = 0.0
            case "mospe":
                if value != self._standing.local.node_id:
                    raise RemoteFailure(errno.ENOSYS, "the node's id comes from the map; mount again to become another")
            case "expel" if value:
                await self._change(block=True)  # first, or somebody would come behind our back
                await self._leaving().expel()
            case "bring" if value:
                await self._change(lstay=True)
                await self._leaving().bring()
            case "expel" | "bring":
                pass
            case "block" | "lstay" | "stay" | "quiet":
                await self._change(**{name: bool(value)})
            case _:
                await self._change(**{name: value})

    async def _send(self, number: int, value: Value, by: int) -> None:
        if self.strangers is None:
            raise RemoteFailure(errno.ENOENT)
        assert isinstance(value, int)
        await self.strangers.write(number, value, by)

    def _leaving(self) -> Homeward:
        if self.leaving is None:
            raise RemoteFailure(errno.EAGAIN, "mignode has only just started")
        return self.leaving

    async def _change(self, **changes: object) -> None:
        async with self._one_writer:
            after = msgspec.structs.replace(self._store.values, **changes)
            if not after.fits:
                raise RemoteFailure(errno.EINVAL, "fastdecay is at most slowdecay")
            await trio.to_thread.run_sync(functools.partial(self._store.change, **changes))  # it waits for the disk
