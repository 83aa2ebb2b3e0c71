"""Points in a handover at which a test has mignode die or stand still; nothing where no test asks for it.

Root writes "<point> kill" or "<point> stop" into <run>/fault; when mignode comes to that point it removes the file and
sends itself SIGKILL or SIGSTOP (it goes on with SIGCONT).  So tests of what may fail need no sleeps
(tests/lab/test_handover_faults.py).  The file is looked for a dozen times per migration, which costs some microseconds.

"lacks <names>" stays there until the test removes it: so long, this node's processor has none of these instructions.

The points, in their order:

    source        began, prepared, dumped, sent, restored, kept, barred, committed, ran
    destination   arrived, hatched, received, rebuilt, held, decided, written, let-run

Called by migrate.py and receive.py.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Final

FAULT: Final = "fault"
_LACKS: Final = "lacks"
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

log: Final = logging.getLogger(__name__)


class FaultPoints:
    """Of this node."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FAULT

    def at(self, point: str) -> None:
        """We are there."""
        words = self._words()
        if len(words) == 2 and words[0] == point and words[1] in _SIGNALS:
            self._path.unlink(missing_ok=True)
            log.warning("a test has mignode %s at %r", words[1], point)
            os.kill(os.getpid(), _SIGNALS[words[1]])

    def lacking(self) -> frozenset[str]:
        """Instructions (processor.py) that are not to be found here."""
        first, *names = self._words() or [""]
        return frozenset(names) if first == _LACKS else frozenset()

    def _words(self) -> list[str]:
        try:
            return self._path.read_text().split()
        except OSError:
            return []
