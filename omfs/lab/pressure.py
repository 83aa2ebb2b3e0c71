"""Whether this machine has processors left for what is measured on it.  Called by the demo and the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SHORT_PERCENT: Final = 90.0  # what is measured may well take half of that itself
_FILE: Final = Path("/proc/pressure/cpu")


def are_processors_short(text: str | None = None) -> bool:
    """For nearly all of the last ten seconds somebody waited for one.  *text*: of /proc/pressure/cpu.

    Sources: Documentation/accounting/psi.rst.  Where the kernel does not count that, more want to run than there are.
    """
    try:
        text = _FILE.read_text() if text is None else text
        return float(text.split()[1].removeprefix("avg10=")) >= SHORT_PERCENT
    except OSError:
        return os.getloadavg()[0] > (os.cpu_count() or 1)
