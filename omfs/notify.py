"""Tells systemd that the daemon is ready, or ending: one datagram to $NOTIFY_SOCKET.

The protocol is sd_notify(3), which says that programs may speak it themselves: AF_UNIX, "@" for the abstract name
space, and nothing where the variable is not set.  The libraries for it on PyPI are either left alone for years or bind
libsystemd in C; these lines need neither.  standing.py tells what signals bring
about, each daemon that it is ready.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Final

READY: Final = "READY=1"
RELOADING: Final = "RELOADING=1"
STOPPING: Final = "STOPPING=1"

log = logging.getLogger(__name__)


def tell_service_manager(*lines: str) -> None:
    """Send the *lines*, if somebody asked for them; that nobody hears it is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
            sock.sendall("\n".join(lines).encode())
        except OSError as error:
            log.warning("%s: can't tell that %s: %s", address, lines[0], error.strerror)


def tell_reloading() -> None:
    """Send RELOADING with the moment at which it began, as sd_notify(3) wants it; READY says that it is over."""
    tell_service_manager(RELOADING, f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
