"""Ports for daemons of tests that run on the machine itself, beside those of other workers and whatever else."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

LOWEST: Final = 10_000
EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Of TCP and UDP, which nobody has; and the kernel gives it to nobody who asks for any, before a daemon has it."""
    first_ephemeral = int(EPHEMERAL.read_text().split()[0])
    while True:
        port = random.randrange(LOWEST, first_ephemeral)
        if _is_free(port, socket.SOCK_STREAM) and _is_free(port, socket.SOCK_DGRAM):
            return port


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(type=kind) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
