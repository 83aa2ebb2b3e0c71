"""Dumps and restores trees of processes; the only caller of CRIU.

Each call starts one CRIU, asks it one thing (criutalk.py) and waits for its end.  Dump and restore come in two halves,
for a handover that never has zero copies nor two: `dump` gives control back while the tree is dumped and frozen,
`restore` while it is there and does not run yet.  `finish` makes it final; who leaves the context without that has the
dumped tree go on as if nothing had happened, the restored one vanish.

Where CRIU runs is the business of who gives a Start: it has to be inside the namespaces that the tree shares with
nobody else (there it takes them for granted, dumps no mounts and finds files by path), so usually that is the guest's
init.  There must be a /proc of its PID namespace, a /tmp to write to, and in its network namespace an `lo` that is up:
CRIU tries the kernel with them.  /run should be a tmpfs: it keeps in /run/criu.kdat what it found out, only on a tmpfs,
and finding it out again costs 80 ms each time (all on 6.18).  Libraries it brings along.

Every wait has a deadline, and CRIU is killed when it passes.  What that leaves is said at errors.CriuEnded.  What this
room does not know: which processes can't be moved (eligible), what becomes of the images.  Called by migrate and
receive.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NamedTuple

from msgspec.structs import replace

from mignode.criurpc import Answer, CgroupMode, Features, InheritedFile, Kind, NetworkLock, Options, request
from mignode.criutalk import FIRST_INHERITED, IMAGES, Start, Talk, opened, start_here, talk_with
from omfs.errors import CheckpointError
from omfs.kernel.criuprogram import CriuProgram

_LOG_WARNINGS: Final = 2


class Tree(NamedTuple):
    """What a tree may have that is not all its own; told alike to the dump and to the restore.

    *external* names what is not dumped, but is there, or given, at the other end: "mnt[/dev]:dev", "pipe[4026]",
    the keys of criukeys.py (criu(8), --external).  *orphan_terminals*: a terminal whose master is outside comes back
    with a new master, which Restored has.
    """

    external: tuple[str, ...] = ()
    tcp_established: bool = False
    network_lock: NetworkLock = NetworkLock.SKIP  # both ends are in the tree, and frozen
    shell_job: bool = False  # its session or group leader is outside
    outside_unix_sockets: bool = False
    file_locks: bool = True
    orphan_terminals: bool = False
    ghost_limit_bytes: int = 1 << 30  # unlinked files that are still open; images are limited anyway

    def options(self, deadline_s: float) -> Options:
        return Options(
            images_dir=f"/proc/self/fd/{IMAGES}",
            log_to_stderr=True,
            log_level=_LOG_WARNINGS,
            notify_scripts=True,
            timeout=math.ceil(deadline_s),
            manage_cgroups_mode=CgroupMode.IGNORE,
            link_remap=True,
            external=self.external,
            tcp_established=self.tcp_established,
            network_lock=self.network_lock,
            shell_job=self.shell_job,
            ext_unix_sk=self.outside_unix_sockets,
            file_locks=self.file_locks,
            orphan_pts_master=self.orphan_terminals,
            ghost_limit=self.ghost_limit_bytes,
        )


class After(enum.Enum):
    """What becomes of a tree when its dump is finished."""

    KILLED = enum.auto()
    STOPPED = enum.auto()  # as by SIGSTOP
    RUNNING = enum.auto()


class Frozen:
    """A tree that is dumped and does not run."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    @property
    def socket(self) -> int:
        """A descriptor: who has a duplicate keeps it frozen when we are killed (criutalk.decide_kept)."""
        return self._talk.socket

    async def finish(self) -> None:
        """The point of no return: let become of it what was said.  Raises CheckpointError, CriuEnded."""
        await self._talk.finish()


class Restored(Frozen):
    """A tree that is there again and does not run yet; `finish` lets it run."""

    pid: int  # of its root, as CRIU's PID namespace has it
    terminal_masters: tuple[int, ...] = ()  # descriptors; closed with the context, so duplicate what you need


class Criu:
    """CRIU at one place."""

    def __init__(self, program: CriuProgram, start: Start = start_here) -> None:
        self._program = program
        self._start = start

    async def version(self, deadline_s: float) -> tuple[int, ...]:
        """(4, 2, 1).  Raises CheckpointError, as all that follow."""
        return (await self._ask("say its version", Kind.VERSION, None, None, deadline_s)).version

    async def features(self, deadline_s: float) -> Features:
        """What it can do on this kernel."""
        answer = await self._ask("say what it can do", Kind.FEATURE_CHECK, None, None, deadline_s)
        return answer.features or Features(False, False, False)

    async def check(self, deadline_s: float) -> None:
        """Whether this kernel has what CRIU can't do without."""
        with opened(str(self._program.prefix), os.O_DIRECTORY) as some:
            await self._ask("work on this kernel", Kind.CHECK, Tree().options(deadline_s), some, deadline_s)

    async def pre_dump(self, pid: int, images: int, tree: Tree, deadline_s: float, parent: str = "") -> None:
        """Write the memory of a running tree, of which a later dump writes only what has changed since.

        *parent*: path of the images of the one before, relative to these.
        """
        if not (await self.features(deadline_s)).memory_tracking:  # it would only say "BUG at mem.c"
            raise CheckpointError(
                f"criu could not pre-dump process {pid}: this kernel does not track what is written (soft-dirty)"
            )
        await self._ask(
            f"pre-dump process {pid}", Kind.PRE_DUMP, _dumping(tree, pid, deadline_s, parent), images, deadline_s
        )

    @asynccontextmanager
    async def dump(
        self, pid: int, images: int, tree: Tree, deadline_s: float, *, after: After = After.KILLED, parent: str = ""
    ) -> AsyncIterator[Frozen]:
        """Dump *pid* and its descendants into the directory *images*, and hold them frozen until `finish`."""
        options = _dumping(tree, pid, deadline_s, parent)
        if after is not After.KILLED:
            kept = {"leave_running" if after is After.RUNNING else "leave_stopped": True}
            options = replace(options, **kept)
        async with self._talk(f"dump process {pid}", images, (), deadline_s) as talk:
            await talk.begin(request(Kind.DUMP, options), "post-dump")
            yield Frozen(talk)

    @asynccontextmanager
    async def restore(
        self, images: int, tree: Tree, deadline_s: float, *, inherited: Mapping[str, int] | None = None
    ) -> AsyncIterator[Restored]:
        """Make the tree of *images* again and hold it until `finish`.

        *inherited*: our descriptors, by the keys of what they replace (criukeys.py) in the dump.  The root becomes a
        child of who started CRIU.
        """
        inherited = inherited or {}
        files = tuple(InheritedFile(key, FIRST_INHERITED + index) for index, key in enumerate(inherited))
        options = replace(tree.options(deadline_s), rst_sibling=True, inherit_fd=files)
        async with self._talk("restore", images, tuple(inherited.values()), deadline_s) as talk:
            notice = await talk.begin(request(Kind.RESTORE, options), "post-restore")
            restored = Restored(talk)
            restored.pid = notice.pid
            restored.terminal_masters = tuple(talk.received)
            yield restored

    async def _ask(
        self, what: str, kind: Kind, options: Options | None, images: int | None, deadline_s: float
    ) -> Answer:
        async with self._talk(what, images, (), deadline_s) as talk:
            return await talk.ask(request(kind, options))

    def _talk(
        self, what: str, images: int | None, inherited: Sequence[int], deadline_s: float
    ) -> AbstractAsyncContextManager[Talk]:
        return talk_with(self._program, self._start, what, images, inherited, deadline_s)


def _dumping(tree: Tree, pid: int, deadline_s: float, parent: str) -> Options:
    options = replace(tree.options(deadline_s), pid=pid)
    return replace(options, parent_img=parent, track_mem=True) if parent else options
