"""How a request that was taken out of pyfuse3's stream is answered, also when its handler fails.

An OmfsError becomes its errno, anything else a logged EIO, as `answering` does for pyfuse3's handlers (handlers.py).
Used by takenops.py and takenlistings.py.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from pyfuse3 import FUSEError

from omfs.errors import OmfsError
from omfs.mount import lowlevel_abi as abi
from omfs.mount.lowlevel import Hook, Taker

log = logging.getLogger(__name__)


def taker(name: str, handler: Callable[[memoryview, int], Awaitable[bytes]]) -> Taker:
    """*handler*: (request, unique) -> the answer; *name* for the log."""

    async def answer(hook: Hook, request: memoryview, unique: int) -> None:
        try:
            message = await handler(request, unique)
        except (OmfsError, FUSEError) as error:
            message = abi.error_reply(unique, error.errno)
        except Exception:
            log.exception("%s failed", name)
            message = abi.error_reply(unique, errno.EIO)
        except BaseException:  # the mount ends
            hook.answer(abi.error_reply(unique, errno.EINTR))
            raise
        hook.answer(message)

    def take(hook: Hook, request: memoryview) -> Coroutine[Any, Any, None]:
        return answer(hook, request, hook.unique)

    return take
