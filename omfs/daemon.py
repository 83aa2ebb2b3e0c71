"""Builds the objects of a daemon and opens its one nursery: `run_export` for omfs-export, `run_mount` for omfs.

Here is the only place that knows all rooms: the map says who we are, the identity who may talk to us, then either
server and service, or peers and session.  SIGHUP reads the map and the certificates again; a refused map changes
nothing.  SIGTERM and SIGINT end it cleanly.  What it does not do: parse words (cli), serve files (export, mount).
Called by cli/export.py and cli/mount.py, which turn a ConfigError into one line and an exit status.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from omfs import wire
from omfs.cache.table import DIRECTORY
from omfs.config import SOFTWARE, Settings
from omfs.errors import ConfigError, ControlError, NodeDown, OmfsError
from omfs.export.dropping import Dropper
from omfs.export.guards import Guards, guards_max
from omfs.export.leasekeeper import LeaseKeeper
from omfs.export.leasing import Leasing, open_table
from omfs.export.localchanges import LocalChanges
from omfs.export.movinglocks import MovingLocks
from omfs.export.nomfs import Nomfs
from omfs.export.service import ExportService
from omfs.export.underleases import UnderLeases
from omfs.kernel import utab
from omfs.kernel.mounting import mount_at
from omfs.mount import selfbind
from omfs.mount.controlsource import ControlSource
from omfs.mount.counters import Counters
from omfs.mount.deadmount import watch_mount
from omfs.mount.exportprocess import ExportProcess
from omfs.mount.lowlevel import Hook
from omfs.mount.operations import Operations
from omfs.mount.options import MountOptions
from omfs.mount.remote import RemoteNode
from omfs.mount.replica import Replica
from omfs.mount.session import Session, check_mountpoint, wait_until_answering
from omfs.mount.telling import Teller
from omfs.mount.usage import Usage
from omfs.mount.virtual import VirtualTree
from omfs.net import control, metricsport
from omfs.net.accepting import listen
from omfs.net.peer import Peer
from omfs.net.server import Server
from omfs.notify import READY, tell_service_manager
from omfs.standing import Reload, Standing, errors_unwrapped, heed_signals, prepare_process

DESCRIBE_WITHIN_S = 2.0  # omfs-admin status: a node that is slower shows what the mount knows without it

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- the owner's side


def run_export(settings: Settings, report_ready: Callable[[], None], *, by_mount: bool = False) -> None:
    """Serve this node's tree until SIGTERM.  *by_mount*: a mount started it and will end it.  Raises ConfigError."""
    with errors_unwrapped():
        trio.run(_export, settings, report_ready, by_mount)


@dataclass(frozen=True, slots=True)
class OwnerSide:
    """Everything that serves this node's tree."""

    service: ExportService
    leasing: Leasing
    guards: Guards
    server: Server
    changes: LocalChanges
    nomfs: Nomfs
    moving_locks: MovingLocks

    @classmethod
    def build(cls, settings: Settings, standing: Standing) -> OwnerSide:
        """Raises ConfigError."""
        service = ExportService(settings, standing.local.node_id)
        leasing = Leasing(
            open_table(Path(settings.state_dir)), settings.lease_term_s, lambda *words: server.end_session(*words)
        )
        guards = Guards(service.disk, leasing)
        door = UnderLeases(service, leasing, guards)
        server = service.server = Server(standing.local, settings, door, standing.identity.server_context)
        try:
            keeper = LeaseKeeper(Path(settings.run_dir), settings.lease_term_s)
            changes = LocalChanges(guards.told, leasing.index.is_of_interest, keeper, guards_max())
        except OSError as error:
            raise ConfigError(f"{settings.run_dir}: can't start the lease keeper: {error.strerror}") from None
        changes.ignore(Path(settings.state_dir) / DIRECTORY / "data.mdb")
        guards.watch(changes)
        service.description.certificate_expires_s = standing.identity.expires_s
        nomfs = Nomfs(Path(settings.run_dir), server, leasing, settings.lease_term_s)
        moving_locks = MovingLocks(service.locks, server.end_session)
        return cls(service, leasing, guards, server, changes, nomfs, moving_locks)

    def start(self, nursery: trio.Nursery) -> None:
        leasing, guards = self.leasing, self.guards
        leases = (leasing.tend, leasing.writer.run, guards.run, guards.follow_mounts)
        for task in (self.service.tend, *leases, self.nomfs.run):
            nursery.start_soon(task)

    def describe(self) -> dict[str, Any]:
        """For omfs-admin status and the metrics; of the shape control.OwnerStatus, and more."""
        server = self.server
        return {
            "node_id": server.local.node_id,
            "software": SOFTWARE,
            "exports": control.shown_exports(self.service.exports()),
            "sessions": [
                {
                    "node_id": one.node_id,
                    "key": one.key.hex(),
                    "requests": one.requests,
                    "leases": self.leasing.owner.held_by(one.key),
                    "silent_s": round(trio.current_time() - one.heard_s, 3),
                }
                for one in server.sessions.values()
            ],
            "requests": server.requests,
            "bytes_in": server.bytes_in,
            "bytes_out": server.bytes_out,
            "leases": self.leasing.describe(),
            "nomfs": self.nomfs.is_on,
        }

    def snapshot(self) -> control.OwnerStatus:
        """For the metrics."""
        return msgspec.convert(self.describe(), control.OwnerStatus)


async def _export(settings: Settings, report_ready: Callable[[], None], by_mount: bool) -> None:
    parent = os.getppid()
    standing = Standing(settings)
    try:
        listener = listen("", settings.port)
    except OSError as error:
        raise ConfigError(f"port {settings.port}: {error.strerror}; is another omfs-export running?") from None
    metrics_socket = metricsport.open_listener(settings.metrics_address, settings.metrics_port_export)
    owner = OwnerSide.build(settings, standing)
    begun_s = time.monotonic()

    async def reload() -> None:
        if standing.reload():
            owner.server.local, owner.server.context = standing.local, standing.identity.server_context
            owner.service.description.certificate_expires_s = standing.identity.expires_s

    async def describe(arguments: control.Arguments) -> dict[str, wire.NodeDescribed]:
        return {"described": owner.service.describe(arguments.get("accounts") is True)}

    async def status(_: control.Arguments) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "by_mount": by_mount,
            "orphan": by_mount and os.getppid() != parent,  # the mount that started it is gone
            "dfsa": settings.dfsa,
            "sec": settings.sec,
            "map": settings.map,
            "port": settings.port,
            "uptime_s": round(time.monotonic() - begun_s, 3),
            "reloads": standing.reloads,
            **owner.describe(),
        }

    dropper = Dropper(owner.leasing, owner.guards)
    handlers: dict[str, control.Handler] = {
        "status": status, "describe": describe, "drop": dropper.drop, "forget": dropper.forget,
        "guards": dropper.guards, "owned": dropper.owned, "nomfs": owner.nomfs.switch,
        **owner.moving_locks.handlers,
    }  # fmt: skip
    async with trio.open_nursery() as nursery:
        if metrics_socket is not None:
            from omfs import metrics  # only where they are wanted: it costs 3 MB

            await nursery.start(metrics.serve_export, metrics_socket, owner.snapshot)
        await nursery.start(owner.moving_locks.run)
        await nursery.start(control.serve, Path(settings.run_dir) / "export.sock", handlers)
        await nursery.start(owner.server.run, [listener])
        owner.start(nursery)
        nursery.start_soon(watch_mount, Path(settings.run_dir))
        with trio.CancelScope() as until_told:
            await nursery.start(heed_signals, reload, until_told)
            prepare_process()
            log.info("node %d serves on port %d", standing.local.node_id, settings.port)
            report_ready()
            tell_service_manager(READY, f"STATUS=node {standing.local.node_id}")
            await trio.sleep_forever()
        await owner.guards.end()
        nursery.cancel_scope.cancel()
    owner.guards.close()
    owner.leasing.close()


# ---------------------------------------------------------------- the holder's side


def run_mount(options: MountOptions, settings: Settings, report_ready: Callable[[], None]) -> None:
    """Mount, and answer until unmounted.  *report_ready* is called when programs can use it.  Raises ConfigError."""
    check_mountpoint(options.mountpoint, Path(settings.run_dir))
    standing = Standing(settings)
    with errors_unwrapped():
        trio.run(MountDaemon(options, settings, standing, report_ready).run)


def _owner_of(operations: Operations, number: int) -> int:
    """The node that has this object of a mount; 0: nobody is asked for it."""
    inode = operations.inodes.peek(number)
    return inode.owner.node_id if inode is not None else 0


class MountDaemon:
    """One mount: a peer per node, the FUSE session, the bind of the local tree, and the export beside it."""

    def __init__(
        self, options: MountOptions, settings: Settings, standing: Standing, report_ready: Callable[[], None]
    ) -> None:
        self._options = options
        self._settings = settings
        self._standing = standing
        self._report_ready = report_ready
        self._counters = Counters()
        self._nodes: dict[int, RemoteNode] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._export = ExportProcess(settings)
        mignode = Path(settings.run_dir) / "mignode.sock"
        mountpoint = os.path.realpath(options.mountpoint)
        self._replica = Replica(standing.local.node_id, mignode, mountpoint, dfsa=settings.dfsa)
        self._session_scope = trio.CancelScope(shield=True)
        self._served = trio.Event()

    async def run(self) -> None:
        """Until the file system is unmounted, or SIGTERM."""
        own_id = self._standing.local.node_id
        operations: Operations | None = None
        async with trio.open_nursery() as nursery:
            await self._serve_metrics(nursery)
            await nursery.start(self._export.run)
            self._follow_map(nursery)
            operations = Operations(Hook(), dict(self._nodes), own_id if self._settings.dfsa else None, self._counters)
            run_dir = Path(self._settings.run_dir)
            virtual = VirtualTree(ControlSource(run_dir), operations.node_ids)
            session = Session(self._options, operations, run_dir, self._replica, virtual)
            session.open()
            until_told = trio.CancelScope()
            try:
                with until_told:
                    await self._run_session(session, operations, nursery, until_told)
            finally:
                with trio.CancelScope(shield=True):
                    await self._end_session(session)
            nursery.cancel_scope.cancel()

    async def _run_session(
        self, session: Session, operations: Operations, nursery: trio.Nursery, until_told: trio.CancelScope
    ) -> None:
        """Until it is unmounted, or we are told to end."""
        nursery.start_soon(self._serve, session, until_told)
        await wait_until_answering(session.mountpoint)
        if self._settings.dfsa:
            await self._bind_self(session)
        usage = Usage(partial(_owner_of, operations))
        operations.hook.on_request = usage.seen
        handlers: dict[str, control.Handler] = {
            "usage": usage.tell,
            "status": self._status, "describe": self._describe_nodes, "ping": self._ping, "identify": self._identify,
            **Teller(self._nodes, operations.inodes, session.mountpoint).handlers, **self._replica.handlers,
            **operations.moving_locks.handlers,
        }  # fmt: skip
        await nursery.start(control.serve, Path(self._settings.run_dir) / "mount.sock", handlers)
        await nursery.start(heed_signals, self._reloader(nursery, operations), until_told)
        await self._replica.fetch()
        utab.note_mount(os.fsencode(self._options.spec), os.fsencode(session.mountpoint))
        prepare_process()
        log.info("node %d: %s is mounted", self._standing.local.node_id, session.mountpoint)
        self._report_ready()
        await trio.sleep_forever()

    async def _end_session(self, session: Session) -> None:
        """Nothing is cached any more afterwards, and the owners know it: nobody has to wait for our lease terms."""
        place = os.fsencode(session.mountpoint)
        if mount_at(place) is not None:  # we end first: nobody called umount
            await trio.to_thread.run_sync(selfbind.undo, place)
            utab.forget_mount(place)
        self._session_scope.cancel()
        await self._served.wait()  # nobody uses the session any more
        session.close()
        async with trio.open_nursery() as nursery:
            for node in self._nodes.values():
                nursery.start_soon(node.give_back_all)

    async def _bind_self(self, session: Session) -> None:
        """From a thread: its look-ups go through our own mount."""
        cover = os.fsencode(Path(self._settings.run_dir) / "refused")
        mountpoint, flags = os.fsencode(session.mountpoint), self._options.kernel_flags
        node_id = self._standing.local.node_id
        try:
            await trio.to_thread.run_sync(selfbind.bind_self, mountpoint, node_id, flags, cover)
        except OSError as error:
            raise ConfigError(f"{session.mountpoint}/{node_id}: can't bind the local tree: {error.strerror}") from None

    async def _serve(self, session: Session, stop: trio.CancelScope) -> None:
        try:
            with self._session_scope:  # outlives the others: taking the binds off looks names up in our own mount
                await session.run()
                log.info("unmounted")
        finally:
            self._served.set()
            stop.cancel()

    # ------------------------------------------------------------ the map

    def _follow_map(self, nursery: trio.Nursery) -> None:
        """A peer for each node of the map (without ourselves where our tree is a bind); nodes that stay keep theirs."""
        standing, settings = self._standing, self._settings
        wanted = dict(standing.node_map.nodes)
        if settings.dfsa:
            wanted.pop(standing.local.node_id, None)
        for gone in [node_id for node_id in self._nodes if node_id not in wanted]:
            del self._nodes[gone]
            self._scopes.pop(gone).cancel()
        for node_id, addresses in wanted.items():
            if node_id in self._nodes:
                peer = self._nodes[node_id].peer
                peer.local, peer.addresses, peer.context = standing.local, addresses, standing.identity.client_context
                continue
            peer = Peer(
                node_id,
                addresses,
                settings.port,
                standing.local,
                settings,
                standing.identity.client_context,
                hard=self._options.hard,
            )
            self._nodes[node_id] = RemoteNode(peer, self._counters)
            self._scopes[node_id] = trio.CancelScope()
            nursery.start_soon(self._keep_node, self._nodes[node_id], self._scopes[node_id])

    async def _keep_node(self, node: RemoteNode, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.peer.run)
                nursery.start_soon(node.tend)

    def _reloader(self, nursery: trio.Nursery, operations: Operations) -> Reload:
        async def reload() -> None:
            self._export.reload()
            if self._standing.reload():
                self._follow_map(nursery)
                await operations.nodes_changed(self._nodes)

        return reload

    # ------------------------------------------------------------ omfs-admin, metrics

    async def _serve_metrics(self, nursery: trio.Nursery) -> None:
        sock = metricsport.open_listener(self._settings.metrics_address, self._settings.metrics_port_mount)
        if sock is not None:
            from omfs import metrics  # only where they are wanted: it costs 3 MB

            await nursery.start(metrics.serve_mount, sock, self._counted, self._counters)

    async def _counted(self) -> control.StatusReply:
        """What is known here, without asking anybody."""
        statuses = []
        for node in list(self._nodes.values()):
            statuses.append(self._node_status(node))
            await trio.lowlevel.checkpoint()  # where much is held, counting takes milliseconds
        return self._reply({status.node_id: status for status in statuses}, None)

    async def _identify(self, _: control.Arguments) -> dict[str, Any]:
        """Who answers here, without asking any node."""
        return {"pid": os.getpid(), "mount_point": self._options.mountpoint}

    async def _status(self, _: control.Arguments) -> control.StatusReply:
        standing = self._standing
        described: dict[int, control.NodeStatus] = {}
        async with trio.open_nursery() as nursery:
            for node in self._nodes.values():
                nursery.start_soon(self._describe, node, described)
        own_id, owner = standing.local.node_id, await self._own_export()
        if own_id not in described:
            addresses, exports = standing.node_map.nodes.get(own_id, ()), owner.exports if owner else ()
            described[own_id] = control.NodeStatus(
                node_id=own_id, addresses=addresses, state="self", software=SOFTWARE, exports=exports
            )
        if owner is not None and owner.nomfs:
            described[own_id] = msgspec.structs.replace(described[own_id], nomfs=True)
        return self._reply(described, owner)

    def _reply(self, nodes: dict[int, control.NodeStatus], owner: control.OwnerStatus | None) -> control.StatusReply:
        return control.StatusReply(
            node_id=self._standing.local.node_id,
            nodes=tuple(nodes[node_id] for node_id in sorted(nodes)),
            software=SOFTWARE,
            mount_point=self._options.mountpoint,
            pid=os.getpid(),
            reloads=self._standing.reloads,
            leases=owner.leases if owner else None,
            counters=self._counters.describe(),
        )

    async def _own_export(self) -> control.OwnerStatus | None:
        try:
            status = await control.ask(Path(self._settings.run_dir) / "export.sock", "status")
            return msgspec.convert(status, control.OwnerStatus)
        except (OmfsError, msgspec.ValidationError):  # none runs, or one of another version
            return None

    async def _describe(self, node: RemoteNode, described: dict[int, control.NodeStatus]) -> None:
        exports: tuple[control.ExportStatus, ...] = ()
        if node.peer.state == "up":
            with trio.move_on_after(DESCRIBE_WITHIN_S), contextlib.suppress(OmfsError):
                exports = control.shown_exports((await node.peer.call(wire.DescribeNode(), wire.NodeDescribed)).exports)
        described[node.node_id] = self._node_status(node, exports)

    def _node_status(self, node: RemoteNode, exports: tuple[control.ExportStatus, ...] = ()) -> control.NodeStatus:
        addresses = self._standing.node_map.nodes.get(node.node_id, ())
        held = sum(lease.mode is not wire.Mode.NONE for lease in node.leases.all_leases())
        return control.peer_status(node.peer.describe(), addresses, exports, held)

    async def _describe_nodes(self, arguments: control.Arguments) -> control.DescribeReply:
        """What the other nodes tell about themselves, *nodes* or all; asked side by side."""
        wanted, accounts = arguments.get("nodes"), arguments.get("accounts") is True
        told: list[control.NodeTold] = []

        async def ask(node: RemoteNode) -> None:
            described, asked_ns = None, time.time_ns()
            if node.peer.state == "up":
                with trio.move_on_after(DESCRIBE_WITHIN_S), contextlib.suppress(OmfsError):
                    described = await node.peer.call(wire.DescribeNode(accounts), wire.NodeDescribed)
            answered_ns = time.time_ns()
            status = control.peer_status(node.peer.describe(), ())
            told.append(control.NodeTold(node.node_id, status.state, status.reason, described, asked_ns, answered_ns))

        async with trio.open_nursery() as nursery:
            for node in self._nodes.values():
                if not isinstance(wanted, list) or node.node_id in wanted:
                    nursery.start_soon(ask, node)
        told.sort(key=lambda one: one.node_id)
        return control.DescribeReply(self._standing.local.node_id, tuple(told))

    async def _ping(self, arguments: control.Arguments) -> control.PingReply:
        node_id = arguments.get("node")
        if node_id == self._standing.local.node_id and node_id not in self._nodes:
            return control.PingReply(node_id=node_id, address="localhost", round_trip_s=0.0)
        node = self._nodes.get(node_id) if isinstance(node_id, int) else None
        if node is None:
            raise ControlError(f"node {node_id} is not in the map {self._standing.node_map.path}")
        begun_s = trio.current_time()
        try:
            await node.peer.call(wire.Ping(), wire.Ponged)
        except NodeDown as error:
            return control.PingReply(node_id=node.node_id, address=node.peer.address, reason=str(error))
        return control.PingReply(
            node_id=node.node_id, address=node.peer.address, round_trip_s=trio.current_time() - begun_s
        )
