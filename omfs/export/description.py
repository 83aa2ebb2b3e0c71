"""What this node tells about itself: the answer to DescribeNode, for omfs-admin status and check.

Called by export/service.py; the daemon sets what only it knows.
"""

from __future__ import annotations

import socket
import time

from omfs import wire
from omfs.config import SOFTWARE
from omfs.export.accounts import GROUP, PASSWD, AccountFile
from omfs.net.server import Server


class Description:
    """*certificate_expires_s*: of the certificate in use, since the epoch; 0 under sec=none.  Set by the daemon."""

    def __init__(self, node_id: int) -> None:
        self.node_id = node_id
        self.certificate_expires_s = 0
        self._begun_s = time.monotonic()
        self._users, self._groups = AccountFile(PASSWD), AccountFile(GROUP)

    def tell(self, server: Server | None, exports: tuple[wire.ExportInfo, ...], accounts: bool) -> wire.NodeDescribed:
        """*accounts*: with this node's users and groups."""
        return wire.NodeDescribed(
            software=SOFTWARE,
            version=wire.PROTOCOL_VERSION,
            node_id=self.node_id,
            hostname=socket.gethostname(),
            uptime_s=time.monotonic() - self._begun_s,
            clock_ns=time.time_ns(),
            exports=exports,
            sessions=len(server.sessions) if server else 0,
            requests=server.requests if server else 0,
            bytes_in=server.bytes_in if server else 0,
            bytes_out=server.bytes_out if server else 0,
            standing=wire.Standing(
                map_digest=server.local.map_digest if server else b"",
                dfsa=server.local.dfsa if server else False,
                certificate_expires_s=self.certificate_expires_s,
                users_digest=self._users.digest,
                groups_digest=self._groups.digest,
                users=self._users.told() if accounts else (),
                groups=self._groups.told() if accounts else (),
            ),
        )
