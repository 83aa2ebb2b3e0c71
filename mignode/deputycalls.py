"""The system calls of a guest that only its deputy can do, as the process that it is (mosrun): signals.

The kernel decides, as for any process of this user: whoever mosrun may not signal, the guest may not either.  The
deputy itself is passed by: it stands for the guest's root, which is signalled where it runs.

Called by deputyloop.py; which calls come here, and for whom, mignode knows (dfsa/outside.py, deputies.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

_ALL: Final = -1
_GROUP_FIELD: Final = 2  # of /proc/<pid>/stat behind the name, which may have any characters: proc(5)


def call_done(call: str, arguments: tuple[int, ...]) -> int:
    """What it returns, in mosrun.  Raises OSError as the call would; ENOSYS for a call that is not the deputy's."""
    match call, arguments:
        case "kill", (target, number):
            _kill(target, number)
            return 0
        case _:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _kill(target: int, number: int) -> None:
    if target > 0:
        if target != os.getpid():
            os.kill(target, number)
        return
    if target == _ALL:
        os.kill(_ALL, number)  # the kernel itself leaves out who calls
        return
    group = -target or os.getpgrp()
    if group != os.getpgrp():
        os.killpg(group, number)
        return
    failures: list[OSError] = []
    reached = 0
    for member in _members(group):
        try:
            os.kill(member, number)
            reached += 1
        except OSError as error:
            failures.append(error)
    if not reached:
        raise failures[0] if failures else ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def _members(group: int) -> Iterator[int]:
    """Of the deputy's own group, but for the deputy."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b") ")[2].split()[_GROUP_FIELD]) == group:
                    yield int(name)
