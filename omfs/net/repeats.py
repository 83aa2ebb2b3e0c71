"""Which requests may be executed twice, and which must not: after a reconnect the holder sends again what is open.

Called by session.py, server.py (the owner remembers the replies of ONCE_ONLY) and peer.py (the holder repeats).
"""

from __future__ import annotations

from typing import Final

from omfs import wire

ONCE_ONLY: Final[frozenset[type[wire.Message]]] = frozenset({
    wire.MakeNode, wire.MakeDirectory, wire.MakeSymlink, wire.MakeLink, wire.RemoveName, wire.RenameName,
    wire.SetXattr, wire.RemoveXattr, wire.CreateFile, wire.AppendBlocks, wire.CopyRange, wire.OpenFile,
    wire.OpenDirectory, wire.CloseFile, wire.AllocateSpace, wire.SetAttributes,
})  # fmt: skip
"""Must not be executed twice: the owner keeps their replies for replay within the session."""

REPEATABLE_AFTER_RESTART: Final[frozenset[type[wire.Message]]] = frozenset({
    wire.OpenFile, wire.OpenDirectory, wire.CloseFile, wire.AllocateSpace, wire.SetAttributes,
})  # fmt: skip
"""Of ONCE_ONLY, those that do no harm when sent again to an owner that forgot the session."""
