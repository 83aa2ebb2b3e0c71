"""The FUSE handlers of one mount: the families put together, and what changes while it runs.

names: operations_names.py; open files: operations_files.py; attributes: operations_attributes.py; what pyfuse3 does
not know: takenops.py.  Built by session.py.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping

import pyfuse3
import trio

from omfs.mount.inodes import ROOT_ID, directory_id
from omfs.mount.loop import Loop, Waiting
from omfs.mount.operations_attributes import AttributeOperations
from omfs.mount.remote import RemoteNode
from omfs.net.peer import Linger

log = logging.getLogger(__name__)


class Operations(AttributeOperations):
    """All handlers."""

    _linger: Linger | None = None

    def watched_by(self, loop: Loop) -> None:
        """Run every handler so that *loop* knows when it waits; the peers may let it wait for quick replies."""
        self._linger = loop.linger
        for node in self.nodes.values():
            node.peer.linger = loop.linger
        for name, handler in inspect.getmembers(self, inspect.iscoroutinefunction):
            if name in vars(pyfuse3.Operations) and name != "forget":
                setattr(self, name, loop.watched(handler))

    def interrupt(self, waiting: Waiting) -> None:
        """A process was signalled while its request waits for a node."""

        def still_wanted() -> bool:
            return not self.callers.is_being_killed(waiting.pid)

        for node in self.nodes.values():
            node.interrupt(waiting.task, still_wanted)

    async def nodes_changed(self, nodes: Mapping[int, RemoteNode]) -> None:
        """The map was read again: show these nodes.  A node that stays keeps its RemoteNode and its open files.

        A node that left keeps answering for what is still open there, as long as its peer runs.
        """
        gone = [number for number in self.nodes if number not in nodes]
        left = [self.nodes[number] for number in gone]
        added = [number for number in nodes if number not in self.nodes]
        for number in gone:
            del self.nodes[number]
            self.inodes.remove_directory(number)
        for number in added:
            self.nodes[number] = nodes[number]
            nodes[number].peer.linger = self._linger
            self.inodes.add_directory(nodes[number])
            self.recaller.serve(nodes[number])
        if gone or added:
            self.listings.stale(ROOT_ID)
            # From a thread: the kernel may wait there for a look-up that this task must answer.
            await trio.to_thread.run_sync(_tell_kernel, gone)
        for node in left:  # nothing of it will be recalled any more
            await self.recaller.forget_node(node)


def _tell_kernel(gone: list[int]) -> None:
    try:
        pyfuse3.invalidate_inode(ROOT_ID)
    except OSError as error:
        log.debug("/mfs was not cached: %s", error)
    for number in gone:
        try:
            pyfuse3.invalidate_inode(directory_id(number))
            pyfuse3.invalidate_entry(ROOT_ID, b"%d" % number)
        except OSError as error:
            log.debug("/mfs/%d was not cached: %s", number, error)
