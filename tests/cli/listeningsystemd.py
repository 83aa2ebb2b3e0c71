"""The other end of sd_notify(3), for tests of the daemons."""

from __future__ import annotations

import socket


class ListeningSystemd:
    """Listens as systemd does; every message comes after the one before it."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(60)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hear(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        self._socket.close()

    def has_heard_all(self) -> bool:
        """Nothing more was told, by who has ended since."""
        self._socket.setblocking(False)
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return True
        return False
