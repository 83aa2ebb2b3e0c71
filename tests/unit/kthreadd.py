"""Which process the kernel's own threads have as their parent, where they are shown: in a container none is."""

from __future__ import annotations

from pathlib import Path

from omfs.kernel.processes import Identity


def is_kthreadd(process: Identity) -> bool:
    """In a container somebody else may have its number."""
    return process.pid == 2 and Path("/proc/2/comm").read_text() == "kthreadd\n"
