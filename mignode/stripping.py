"""Makes the images in a directory fit to be restored here.

What is ours, not the guest's, is taken out (ownfilter.py, ownsession.py); what CRIU loses is put right (mending.py).
Called by receive.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mignode.mending import calls_restarted, timers_wound_up
from mignode.ownfilter import core_without, ours_in
from mignode.ownsession import TERMINALS, terminals_without

_FILTERS: Final = "seccomp.img"
_FILES: Final = "files.img"


def strip(images: Path) -> None:
    """For worker threads.  Raises OSError, WireError."""
    _change(images / TERMINALS, terminals_without)
    _change(images / _FILES, timers_wound_up)
    filters = images / _FILTERS
    ours = ours_in(filters.read_bytes()) if filters.exists() else {}
    for core in sorted(images.glob("core-*.img")):
        _change(core, lambda image: core_without(calls_restarted(image), ours))


def _change(image: Path, change: Callable[[bytes], bytes]) -> None:
    if image.exists():
        before = image.read_bytes()
        after = change(before)
        if after != before:
            image.write_bytes(after)
