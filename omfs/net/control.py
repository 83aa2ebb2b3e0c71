"""The control socket of a daemon: omfs-admin (and mignode) ask, the daemon answers.

A unix stream socket, mode 0600.  One connection carries one request and one reply, each a line of JSON:
`{"command": "status"}` and a reply struct below, or `{"error": "one line"}`.  Here: the socket, the lines, the
shapes both sides share.  Not here: what the commands do (handlers are the daemon's).  Invariants: requests and
replies are limited in size and time; a handler's failure becomes an error reply and never ends the daemon; a
socket file is removed only by who made it, or when nobody listens on it.  Called by daemon.py and omfs/cli/.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import trio

from omfs import wire
from omfs.errors import ConfigError, ControlError, NotRunning, OmfsError

REQUEST_MAX_BYTES: Final = 16 << 20  # commands are short, but for what mignode tells the mount: all places
REPLY_MAX_BYTES: Final = 64 << 20  # the status of 65535 nodes, with room
REQUEST_DEADLINE_S: Final = 10.0  # to send one line over a local socket
LISTEN_QUEUE: Final = 4096  # whoever finds it full is refused (EAGAIN): as many as may ask mignode at once
HANDLER_DEADLINE_S: Final = 120.0  # a ping waits `timeo` at most; this is against a handler that hangs
ASK_DEADLINE_S: Final = 60.0  # above the usual timeo, so that a slow node is reported and not guessed

Arguments: TypeAlias = dict[str, Any]
Handler: TypeAlias = Callable[[Arguments], Awaitable[object]]

log = logging.getLogger(__name__)


# ---------------------------------------------------------------- shapes


class ExportStatus(msgspec.Struct, frozen=True):
    """An exported subtree; *path* is decoded for display (backslashreplace)."""

    path: str
    read_only: bool = False
    root_squash: bool = False


def shown_exports(exports: Iterable[wire.ExportInfo]) -> tuple[ExportStatus, ...]:
    """Exports for display: paths are bytes, JSON is text."""
    return tuple(
        ExportStatus(one.path.decode(errors="backslashreplace"), one.read_only, one.root_squash) for one in exports
    )


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node as the mount sees it; counts are since the mount, seconds are None where nothing was measured.

    *state* is "self", "up", "connecting", "down" or "refused"; *reason* says why for the last two.  *addresses* are
    the map's, *address* is the one in use.  *epoch* counts how often the owner has lost our session,
    *lapses* how often our leases there lapsed; *leases*: those that this node holds there now.  *nomfs*: of the node
    that answers: its export lets no other node in.
    """

    node_id: int
    addresses: tuple[str, ...]
    address: str = ""
    state: str
    reason: str = ""
    software: str = ""
    round_trip_s: float | None = None
    silent_s: float | None = None
    exports: tuple[ExportStatus, ...] = ()
    requests: int = 0
    in_flight: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    epoch: int = 0
    lapses: int = 0
    leases: int = 0
    nomfs: bool = False


class LeasesStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The leases of a node's own objects, held by others; counts are since its omfs-export began.

    *refusals*: calls that had to be made again (ESTALE) because waiting for a recall could never have ended.
    *waiting*: requests that wait for recalls now.  *table_bytes*: the lease table on disk.  *recall_buckets*: recalls
    that took up to each of *recall_bounds_s* (and more than the one before), the last: more than all.
    """

    held: int
    grants: int = 0
    recalls: int = 0
    recalls_under_way: int = 0
    refusals: int = 0
    waiting: int = 0
    table_bytes: int = 0
    recall_bounds_s: tuple[float, ...] = ()
    recall_buckets: tuple[int, ...] = ()
    recall_sum_s: float = 0.0

    @property
    def recall_mean_s(self) -> float | None:
        """From sending to the answer; None before the first answer."""
        answered = sum(self.recall_buckets)
        return self.recall_sum_s / answered if answered else None


class HolderStatus(msgspec.Struct, frozen=True):
    """One session of another node at an export; *key*: its session's, in hexadecimal."""

    node_id: int
    key: str
    requests: int = 0
    leases: int = 0


class OwnerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an export tells of its work, in its answer to {"command": "status"} beside much else.

    *nomfs*: other nodes are refused; while they are among the *sessions* they are still giving back what they hold.
    """

    node_id: int
    software: str = ""
    exports: tuple[ExportStatus, ...] = ()
    sessions: tuple[HolderStatus, ...] = ()
    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    leases: LeasesStatus | None = None
    nomfs: bool = False


def peer_status(
    described: Mapping[str, Any], addresses: Iterable[str], exports: Iterable[ExportStatus] = (), leases: int = 0
) -> NodeStatus:
    """The NodeStatus of a peer: its Peer.describe(), the map's addresses, what it said it exports, what we hold."""
    state, reason, up = described["state"], described["refusal"], described["state"] == "up"
    if reason and not up:
        state = "refused"
    elif state == "down":
        reason = f"silent for {described['silent_s']:.0f} s"
    return NodeStatus(
        node_id=described["node"],
        addresses=tuple(addresses),
        address=described["address"],
        state=state,
        reason="" if up else reason,
        software=described["software"],
        round_trip_s=described["round_trip_us"] / 1e6 if up and described["round_trip_us"] else None,
        silent_s=described["silent_s"],
        exports=tuple(exports),
        requests=described["requests"],
        in_flight=described["in_flight"],
        bytes_in=described["bytes_in"],
        bytes_out=described["bytes_out"],
        epoch=described["epoch"],
        lapses=described["lapses"],
        leases=leases,
    )


class StatusReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to {"command": "status"}: *node_id* is the node that answers."""

    node_id: int
    nodes: tuple[NodeStatus, ...]
    software: str = ""
    mount_point: str = ""
    pid: int = 0
    reloads: int = 0  # times the map was read again (SIGHUP)
    leases: LeasesStatus | None = None  # of our own objects; None: no export answers here
    counters: dict[str, int] = {}  # of the mount's caches (mount/counters.py)


class PingReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to {"command": "ping", "node": N}; *round_trip_s* is None when there was no answer, *reason* says why."""

    node_id: int
    address: str = ""
    round_trip_s: float | None = None
    reason: str = ""


class NodeTold(msgspec.Struct, frozen=True):
    """What a node told about itself (None: no answer), and this node's clock before and after; *state*: NodeStatus."""

    node_id: int
    state: str
    reason: str
    described: wire.NodeDescribed | None
    asked_ns: int
    answered_ns: int


class DescribeReply(msgspec.Struct, frozen=True):
    """A mount's answer to {"command": "describe", "nodes": [N...], "accounts": BOOL}; *node_id*: who answers."""

    node_id: int
    nodes: tuple[NodeTold, ...]


class BrokenGuard(msgspec.Struct, frozen=True):
    """A file whose data these *nodes* may cache, and whose kernel lease is not as it should be: *state* says how."""

    handles: tuple[bytes, ...]
    state: str
    nodes: tuple[int, ...] = ()


class WhereReply(msgspec.Struct, frozen=True):
    """A mount's answer to {"command": "where", "path": PATH, "pid": PID}: PATH is absolute, below the mount point.

    *node* is whose tree the path is in for that process, 0 for /mfs itself; *name* the magic name in it, if there is
    one; *path* the same without it.
    """

    node: int
    path: str
    name: str = ""
    why: str = ""


class NamesReply(msgspec.Struct, frozen=True):
    """A mount's answer to {"command": "where", "pid": PID}: each magic name's node, and why it is that one."""

    names: dict[str, tuple[int, str]]


class GuardsReply(msgspec.Struct, frozen=True):
    """An export's answer to {"command": "guards"}."""

    broken: tuple[BrokenGuard, ...]


class HeldToldReply(msgspec.Struct, frozen=True):
    """A mount's answer to "tell_held" and "ask_held" {"node": N, "part": P, "parts": PARTS}; without *told*, why."""

    told: wire.HeldTold | None
    reason: str = ""


class LockedRange(msgspec.Struct, frozen=True):
    """A POSIX lock of [start, end], as wire.LockRange has it, on a file of *node*; *pid*: here, who took it."""

    node: int
    inode: int
    pid: int
    kind: int
    start: int
    end: int


class LockedReply(msgspec.Struct, frozen=True):
    """A mount's answer to "locked": what programs of this node have locked through it.

    *inodes*: the numbers of files with locks of open files, or where that is in doubt.  *ranges*: also those of open
    files of which the mount has not been shown that (`MarkedReply`).  *unsure*: processes that may have others.
    """

    inodes: tuple[int, ...]
    ranges: tuple[LockedRange, ...] = ()
    unsure: tuple[int, ...] = ()


class MarkedOpen(msgspec.Struct, frozen=True):
    """An open file, by the marks that it was shown with: a probe (F_OFD_GETLK) of the byte *mark* each.

    *flock*: LOCK_SH 1, LOCK_EX 2 or 0; None: in doubt.  *ranges*: (kind, start, end) of its OFD locks.
    """

    marks: tuple[int, ...]
    flock: int | None
    ranges: tuple[tuple[int, int, int], ...]


class MarkedReply(msgspec.Struct, frozen=True):
    """A mount's answer to "marked" {"marks": [...]}, as "expect_marks" had them."""

    opens: tuple[MarkedOpen, ...]


class UsageReply(msgspec.Struct, frozen=True):
    """A mount's answer to "usage": (PID namespace, owner, bytes read, bytes written, requests) of guests here."""

    counts: tuple[tuple[int, int, int, int, int], ...]


class HeldAuditedReply(msgspec.Struct, frozen=True):
    """A mount's answer to "audit", "ask_audit" {"node": N, and as wire.AuditHeld}; as above."""

    told: wire.HeldAudited | None
    reason: str = ""


class Owned(msgspec.Struct, frozen=True):
    """A lease as its owner knows it.  *data*: a guard keeps native writers waiting; *recalled*: under way."""

    handle: bytes
    serial: int
    mode: wire.Mode
    data: bool
    recalled: bool


class OwnedReply(msgspec.Struct, frozen=True):
    """An export's answer to "owned" {"session": KEY, "part": P, "parts": PARTS}."""

    leases: tuple[Owned, ...]


# ---------------------------------------------------------------- asking


async def ask(path: Path, command: str, /, *, deadline_s: float = ASK_DEADLINE_S, **arguments: object) -> Arguments:
    """Send one command to the daemon that listens on *path* and return its reply.

    Raises NotRunning if nobody listens, ControlError if the daemon refuses, is silent for *deadline_s* seconds
    or does not speak the protocol.
    """
    line = msgspec.json.encode({"command": command, **arguments}) + b"\n"
    try:
        with trio.fail_after(deadline_s):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(line)
                answer = await _receive_line(stream, REPLY_MAX_BYTES)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NotRunning(f"{path}: nobody listens here") from None
    except trio.TooSlowError:
        raise ControlError(f"{path}: no answer within {deadline_s:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise ControlError(f"{path}: {getattr(error, 'strerror', None) or 'the connection broke'}") from None
    except ValueError as error:
        raise ControlError(f"{path}: bad answer: {error}") from None
    reply = _decode(answer)
    if reply is None:
        raise ControlError(f"{path}: bad answer: not a JSON object")
    if isinstance(reply.get("error"), str):
        raise ControlError(reply["error"])
    return reply


async def _receive_line(stream: trio.abc.ReceiveStream, limit_bytes: int) -> bytes:
    """One line without its newline; raises ValueError when it is longer than the limit or cut off."""
    line = bytearray()
    while True:
        chunk = await stream.receive_some(65536)
        if not chunk:
            raise ValueError("the line was cut off")
        start = len(line)
        line += chunk
        end = line.find(b"\n", start)
        if end > limit_bytes or (end < 0 and len(line) > limit_bytes):
            raise ValueError(f"the line is longer than {limit_bytes} bytes")
        if end >= 0:
            return bytes(line[:end])


def _decode(line: bytes) -> Arguments | None:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None


# ---------------------------------------------------------------- answering


async def serve(
    path: Path, handlers: Mapping[str, Handler], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer commands on *path* until cancelled; started (task_status) once asking works.

    A handler gets the request's other fields and returns a Struct or a dict.  Raises ConfigError when another
    daemon listens on *path*, or the socket can't be made.
    """
    listener = open_listener(path)
    made = os.stat(path)
    try:
        async with trio.open_nursery() as nursery:
            answer = functools.partial(_answer, handlers)
            await nursery.start(trio.serve_listeners, answer, [trio.SocketListener(listener)])
            task_status.started()
    finally:
        with contextlib.suppress(OSError):
            now = os.stat(path)
            if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                os.unlink(path)


def open_listener(path: Path) -> trio.socket.SocketType:
    """A listening socket at *path*, mode 0600; a dead daemon's socket file is replaced.  Raises ConfigError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file this mode in bind, so it is never open wider
        with _directory_locked(path.parent):
            _remove_stale(path)
            listener.bind(str(path))
            listener.listen(LISTEN_QUEUE)
    except OSError as error:
        listener.close()
        text = error.strerror or str(error)  # "AF_UNIX path too long" has no errno
        raise ConfigError(f"{path}: can't listen here: {text}") from None
    except BaseException:
        listener.close()
        raise
    return trio.socket.from_stdlib_socket(listener)


@contextlib.contextmanager
def _directory_locked(directory: Path) -> Iterator[None]:
    """Two daemons that start at once must not remove each other's fresh socket."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for microseconds; ends with the descriptor
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove a socket file nobody listens on; raises ConfigError where somebody does, or it is no socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path}: is in the way and not a socket; remove it or choose another run_dir")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener with a full queue answers EAGAIN, and is alive
        if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
            os.unlink(path)
            return
    raise ConfigError(f"{path}: another daemon is running and listens here")


async def _answer(handlers: Mapping[str, Handler], stream: trio.abc.Stream) -> None:
    async with stream:
        try:
            with trio.fail_after(REQUEST_DEADLINE_S):
                line = await _receive_line(stream, REQUEST_MAX_BYTES)
        except (trio.TooSlowError, trio.BrokenResourceError, OSError):
            return
        except ValueError as error:
            line = b""
            reply: object = {"error": f"bad request: {error}"}
        else:
            reply = await _reply(handlers, line)
        with trio.move_on_after(REQUEST_DEADLINE_S), contextlib.suppress(trio.BrokenResourceError, OSError):
            await stream.send_all(_encode(reply) + b"\n")


async def _reply(handlers: Mapping[str, Handler], line: bytes) -> object:
    request = _decode(line)
    command = request.pop("command", None) if request is not None else None
    if request is None or not isinstance(command, str):
        return {"error": 'bad request: expected a JSON object with "command"'}
    handler = handlers.get(command)
    if handler is None:
        return {"error": f'unknown command "{command[:64]}"; this daemon knows {", ".join(sorted(handlers))}'}
    try:
        with trio.fail_after(HANDLER_DEADLINE_S):
            return await handler(request)
    except trio.TooSlowError:
        return {"error": f"{command} did not finish within {HANDLER_DEADLINE_S:g} s"}
    except OmfsError as error:
        return {"error": str(error) or type(error).__name__}
    except Exception:
        log.exception("control command %s failed", command)
        return {"error": f"{command} failed inside the daemon; its log says more"}


def _encode(reply: object) -> bytes:
    try:
        return msgspec.json.encode(reply)
    except (TypeError, ValueError):  # ValueError covers text that UTF-8 can't carry
        log.exception("a control reply can't be written as JSON")
        return b'{"error":"the daemon\'s answer can\'t be written as JSON; its log says more"}'
