"""The values of /mfs/proc/<pid>/: what a process has set, where it is, and what may be asked of it.

Each is read from the registry as it is now.  goto and migrate are checked and then refused with ENOSYS, unless the
process is where it is asked to go: nothing can move yet, which `cantmove` says too.
What it does not do: parse, format, or look who may (controls.py).  Called by controls.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from typing import Final

from mignode.registry import Registry
from omfs.errors import RemoteFailure
from omfs.kernel import processes
from omfs.kernel.processes import Identity
from omfs.magic.controlfiles import Value

NOT_BUILT: Final = "migration is not there yet"
_SETTINGS: Final = frozenset({"lock", "migfilter", "migpolicy"})
_NOWHERE: Final = 0  # goto: home, and nobody has asked for anything else
_BALANCE: Final = -1


class ProcessFiles:
    """Reads and changes what is known of one process."""

    def __init__(self, registry: Registry, nodes: Callable[[], Collection[int]]) -> None:
        """*nodes*: the ids of the map, as it is now."""
        self._registry = registry
        self._nodes = nodes

    def find(self, pid: int, start_ticks: int = 0) -> Identity:
        """The process; *start_ticks*, unless 0, tells it from others that got its pid.  Raises RemoteFailure(ESRCH)."""
        found = processes.identify(pid)
        if found is None or found.pid != pid or start_ticks not in (0, found.start_ticks):
            raise RemoteFailure(errno.ESRCH)
        return found

    def owner_of(self, process: Identity) -> int:
        """Its effective uid.  Raises RemoteFailure(ESRCH)."""
        try:
            return processes.owner_of(process)[0]
        except ProcessLookupError:
            raise RemoteFailure(errno.ESRCH) from None

    def read(self, process: Identity, name: str) -> Value:
        """As it is now."""
        place, settings = self._registry.entry_of(process)
        match name:
            case "where":
                return 0 if place.here == place.home else place.here
            case "selected":
                return place.selected
            case "goto" | "migrate":
                return _NOWHERE
            case "cantmove":
                return NOT_BUILT
        return int(getattr(settings, name))

    async def write(self, process: Identity, name: str, value: Value) -> None:
        """Raises RemoteFailure; OSError where a setting can't be kept."""
        assert isinstance(value, int)
        if name == "selected":
            await self._registry.select(process, value)
        elif name == "mignodes":
            await self._registry.set_settings(process, mignodes=value)
        elif name in _SETTINGS:
            await self._registry.set_settings(process, **{name: bool(value)})
        else:
            self._send(process, value)

    def _send(self, process: Identity, node: int) -> None:
        """goto: 0 is home, -1 lets balancing choose."""
        place = self._registry.entry_of(process).place
        wanted = place.home if node == 0 else node
        if wanted != _BALANCE and wanted not in self._nodes():
            raise RemoteFailure(errno.EINVAL, f"node {wanted} is not in the map")
        if wanted != place.here:
            raise RemoteFailure(errno.ENOSYS, NOT_BUILT)
