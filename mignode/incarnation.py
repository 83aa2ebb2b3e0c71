"""The number of this life of mignode, higher than that of every earlier one; kept on disk.

The time of day is where it begins, so that it rises even when the file was lost; the file makes it rise when the clock
was set back.  Where both were, others who remember tell us (gossip.py), and what they say is kept here too.
Called by gossipport.py.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from mignode.adminvalues import replace_file

FILE: Final = "mignode.incarnation"
_MAX: Final = 2**48

log = logging.getLogger(__name__)


def next_incarnation(state_dir: Path, now_s: float) -> int:
    """*now_s*: of the clock.  Where it can't be kept that is logged: the clock is what is left."""
    try:
        kept = int((state_dir / FILE).read_text())
    except (OSError, ValueError):
        kept = 0
    number = max(int(now_s), kept + 1 if 0 <= kept < _MAX else 1)
    keep_incarnation(state_dir, number)
    return number


def keep_incarnation(state_dir: Path, number: int) -> None:
    try:
        replace_file(state_dir / FILE, b"%d\n" % number)
    except OSError as error:
        log.error("%s: %s; if the clock is set back, others will not believe us for a while", state_dir / FILE, error)
