"""How much memory a group of processes has that its images may hold, as /proc/<pid>/smaps_rollup tells (proc(5)).

What several processes share counts once in all (Pss), what is swapped out counts too: CRIU writes both.  Pages of files
that nobody has changed are counted and not written, so it is rather too much.  Called by migrate.py and saving.py, in
worker threads: the kernel walks through all of it, and waits for who changes his mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from omfs.kernel.processes import read_all

_PARTS: Final = re.compile(rb"^(?:Pss|SwapPss):\s+(\d+) kB$", re.MULTILINE)


def memory_bytes(pids: Iterable[int]) -> int:
    """Of all of them; who has ended has none."""
    return sum(map(_bytes_of, pids))


def _bytes_of(pid: int) -> int:
    try:
        return told_bytes(read_all(f"/proc/{pid}/smaps_rollup"))
    except OSError:
        return 0


def told_bytes(text: bytes) -> int:
    """By the text of the file.  Pure."""
    return sum(int(part) << 10 for part in _PARTS.findall(text))
