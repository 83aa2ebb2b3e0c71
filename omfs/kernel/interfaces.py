"""This machine's network interfaces: which one leads out, which address one has, and multicast on them.

IPv4 only, as the cluster map.  An interface's address is its first one.  Sources: netdevice(7), ip(7), proc_net(5).
Called by mignode/discoveryport.py and omfs-admin.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from omfs.errors import ConfigError

ROUTES: Final = Path("/proc/net/route")
_SIOCGIFADDR: Final = 0x8915
_NAME_BYTES_MAX: Final = 15
_UP: Final = 0x1  # RTF_UP


def default_interface(routes: str) -> str:
    """The interface of the default route with the lowest metric, of the text of ROUTES; "" where there is none."""
    found = []
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == fields[7] == "00000000" and int(fields[3], 16) & _UP:
            found.append((int(fields[6]), fields[0]))
    return min(found)[1] if found else ""


def chosen_interfaces(named: tuple[str, ...]) -> tuple[str, ...]:
    """Those, or else that of the default route.  Raises ConfigError."""
    if named:
        return named
    try:
        found = default_interface(ROUTES.read_text())
    except OSError as error:
        raise ConfigError(f"{ROUTES}: {error.strerror}; name the interface: -i eth0") from None
    if not found:
        raise ConfigError("there is no default route, so nobody knows where the other nodes are; name it: -i eth0")
    return (found,)


def address_of(interface: str) -> str:
    """Raises ConfigError where there is no such interface, or it has no address."""
    name = os.fsencode(interface)
    if not 0 < len(name) <= _NAME_BYTES_MAX:
        raise ConfigError(f'"{interface}" is no name of a network interface; ip -brief address shows them')
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise ConfigError(f"{interface}: there is no such interface; ip -brief address shows them") from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"{interface} has no IPv4 address yet; give it one, or name another interface"
                ) from None
            raise ConfigError(f"{interface}: {error.strerror}") from None
    return socket.inet_ntoa(answer[20:24])


def open_multicast(port: int, ttl: int) -> socket.socket:
    """A socket that sends to groups, and hears those that it joins.  Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # who has just come is told of everybody
        sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock


def join_group(sock: socket.socket, group: str, address: str) -> None:
    """On the interface that has *address*; once more does no harm.  Raises OSError."""
    membership = socket.inet_aton(group) + socket.inet_aton(address)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise


def send_from(sock: socket.socket, address: str) -> None:
    """What goes to a group goes out by the interface that has *address* from now on.  Raises OSError."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
