"""sshfs: an sshd of our own in node 2, and its directory mounted in node 1.

Keys and configuration are made for the run and live inside the nodes; the machine's own ssh is not touched.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from bench import nodes
from bench.nodes import CLIENT, SERVER

PORT: Final = 22022
HOME: Final = "/run/bench-ssh"
MOUNT: Final = "/run/bench-sshfs"
DIRECTORY: Final = f"{nodes.DISK}/sshfs"

_SSHD_CONFIG: Final = f"""
Port {PORT}
HostKey {HOME}/host
AuthorizedKeysFile {HOME}/authorized
PidFile {HOME}/pid
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
Subsystem sftp /usr/lib/openssh/sftp-server
"""


class Sshfs:
    name = "sshfs"
    note = "caches attributes and listings for 20 s (dcache_timeout) and reads ahead; ssh's default cipher"

    def start(self) -> None:
        host, host_public = _make_key()
        user, user_public = _make_key()
        nodes.write(SERVER, f"{HOME}/host", host)
        nodes.write(SERVER, f"{HOME}/authorized", user_public)
        nodes.write(SERVER, f"{HOME}/config", _SSHD_CONFIG)
        nodes.write(CLIENT, f"{HOME}/user", user)
        nodes.write(CLIENT, f"{HOME}/known", f"[{nodes.address(SERVER)}]:{PORT} {host_public}")
        nodes.on(SERVER, "mkdir", "-p", "/run/sshd", DIRECTORY)
        nodes.on(SERVER, "/usr/sbin/sshd", "-f", f"{HOME}/config", "-E", f"{HOME}/log")
        nodes.on(CLIENT, "mkdir", "-p", MOUNT)
        nodes.on(
            CLIENT, "sshfs", f"root@{nodes.address(SERVER)}:{DIRECTORY}", MOUNT, "-p", str(PORT), "-F", "/dev/null",
            "-o", f"IdentityFile={HOME}/user,IdentitiesOnly=yes,UserKnownHostsFile={HOME}/known,BatchMode=yes",
        )  # fmt: skip

    def software(self) -> str:
        versions = nodes.on(CLIENT, "sh", "-c", "sshfs --version 2>&1; ssh -V 2>&1").splitlines()
        return ", ".join(line for line in versions if "SSH" in line)

    def origin(self) -> tuple[int, str]:
        return SERVER, DIRECTORY

    def seen_at(self) -> str:
        return MOUNT

    def seen_by_another(self) -> None:
        return None


def _make_key() -> tuple[str, str]:
    """A new ed25519 key: private part, public part."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "key")
        nodes.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(path)])
        return path.read_text(), path.with_suffix(".pub").read_text()
