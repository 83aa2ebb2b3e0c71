"""This node, as omfs-admin check asks it: where its daemons and its lease table are, and their answers as structs.

Called by admin_check.py, leasefacts.py and audit.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from omfs.cache.table import DIRECTORY
from omfs.config import Settings
from omfs.errors import ControlError
from omfs.net.control import ask

R = TypeVar("R")


@dataclass(frozen=True)
class OwnNode:
    """Where this node's daemons and files are."""

    settings: Settings
    run_dir: Path

    @property
    def mount(self) -> Path:
        return self.run_dir / "mount.sock"

    @property
    def export(self) -> Path:
        return self.run_dir / "export.sock"

    @property
    def table(self) -> Path:
        return Path(self.settings.state_dir) / DIRECTORY


async def ask_for(path: Path, shape: type[R], command: str, **arguments: Any) -> R:
    """Ask a daemon and have its answer as *shape*.  NotRunning, ControlError."""
    reply = await ask(path, command, **arguments)
    try:
        return msgspec.convert(reply, shape)
    except msgspec.ValidationError as error:
        raise ControlError(f"{path}: the daemon speaks another version: {error}") from None
