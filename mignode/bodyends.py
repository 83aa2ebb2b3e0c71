"""What a guest's init wants of the standard files that it holds, and what it does for them.

`Files` is what mignode/bodyfiles.py has; a `MakeFiles` makes one, and is given to the hatchery.  Called by
guestinit.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from mignode.ownproc import own_proc
from omfs.kernel.procfs import foreground_group


class Files(Protocol):
    """The inner ends of the standard files.  None of its calls waits."""

    @property
    def guest_ends(self) -> Mapping[int, int]: ...
    @property
    def has_terminal(self) -> bool: ...
    @property
    def external(self) -> tuple[str, ...]: ...
    @property
    def is_finished(self) -> bool: ...
    def inherited(self) -> Mapping[str, int]: ...
    def given(self) -> None: ...
    def descriptors(self) -> Iterable[tuple[int, int]]: ...
    def ready(self, fd: int, events: int) -> None: ...
    def received(self, frame: bytes) -> None: ...
    def connected(self) -> None: ...
    def disconnected(self) -> None: ...
    def freeze(self) -> bytes: ...
    def thaw(self) -> None: ...
    def deputy_stopped(self) -> None: ...
    def stopped(self, number: int) -> None: ...
    def continued(self) -> None: ...
    def ended(self, status: int) -> None: ...
    def close(self) -> None: ...


class Act:
    """What the files have done to the root for its deputy."""

    def __init__(self, root: Callable[[], int]) -> None:
        self._root = root

    def signal(self, number: int, group: bool) -> None:
        """To the root; or to the foreground group of its terminal, without one to the root's own group."""
        root = self._root()
        if not root:
            return
        with contextlib.suppress(OSError):  # it has ended; or there is no such signal
            if group:
                os.killpg(foreground_group(own_proc.read(f"{root}/stat")), number)
            else:
                os.kill(root, number)


MakeFiles = Callable[[bytes, Callable[[bytes], None], Act, bytes, tuple[int, int] | None], Files]
"""Of a plan, a way to send frames, what to do for the deputy, a state or b"", and the program's uid and gid or None."""
