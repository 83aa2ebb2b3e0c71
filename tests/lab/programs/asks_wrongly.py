"""A node of the cluster that shows forged handles and asks for what is no name; prints what became of each.

Arguments: the node to ask.  Run with the daemons' own Python.
"""

import errno
import os
import sys
from pathlib import Path

import trio

from omfs import wire
from omfs.config import DEFAULT_CONFIG, load_settings
from omfs.errors import RemoteFailure
from omfs.mount.callers import ROOT
from omfs.net.peer import Peer
from omfs.standing import Standing


async def main(node: int) -> None:
    settings = load_settings(Path(DEFAULT_CONFIG))
    standing = Standing(settings)
    standing.mounted_with(True)
    addresses = standing.node_map.nodes[node]
    async with trio.open_nursery() as nursery:
        peer = Peer(node, addresses, settings.port, standing.local, settings, standing.identity.client_context)
        nursery.start_soon(peer.run)
        root = await peer.call(wire.AttachTree(ROOT), wire.Found)
        for forged in (b"", b"short", os.urandom(40), root.handle[:-1] + bytes([root.handle[-1] ^ 1])):
            try:
                await peer.call(wire.GetAttributes(forged), wire.AttributesGot)
            except RemoteFailure as error:
                print(errno.errorcode[error.errno])
        await peer.call(wire.GetAttributes(root.handle), wire.AttributesGot)
        print("connected")
        for name in (b"..", b"etc/passwd"):
            with trio.move_on_after(3) as patience:  # the peer connects again and asks again
                await peer.call(wire.LookUp(root.handle, name, ROOT), wire.Found)
            print("no answer" if patience.cancelled_caught else "answered")
        nursery.cancel_scope.cancel()


trio.run(main, int(sys.argv[1]))
