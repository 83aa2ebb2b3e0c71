"""A node of the cluster that says a guest is a user's, and sends images of which a thread is root's; prints the answer.

Arguments: the node to send it to, and the uid that the images have.  Run with the daemons' own Python.
"""

import os
import sys
import tempfile
from pathlib import Path

import trio

from mignode.criuimages import field_of, message_of, number_of
from mignode.images import Images
from mignode.line import dial_line
from mignode.past import Past
from mignode.processor import pack, read_processor
from mignode.words import Arrive, State
from omfs.config import DEFAULT_CONFIG, load_settings
from omfs.kernel.processes import identify
from omfs.standing import Standing

USER = 1001


def core(uid: int) -> bytes:
    """core-1.img: magic, then core_entry with a thread_core whose creds have this uid."""
    creds = b"".join(number_of(n, uid if n % 2 else USER) for n in range(1, 9)) + number_of(13, 0)
    return bytes(8) + message_of(number_of(1, 1) + field_of(5, field_of(10, creds)))


async def forge(node: int, images: Images) -> None:
    settings = load_settings(Path(DEFAULT_CONFIG))
    standing = Standing(settings)
    pid, ticks = identify(os.getpid())
    name = f"{standing.local.node_id}.{pid}.{ticks}"
    line = await dial_line(standing, settings, node, 20)
    arrive = Arrive(
        guest=name, attempt=2, epoch=1, home=standing.local.node_id, hostname="node", command=b"forged", uid=USER,
        gid=USER, groups=(), processes=1, memory_bytes=4096, processor=pack(read_processor()), plan=b"",
        root=pid, past=Past(),
    )  # fmt: skip
    await line.send(arrive, deadline_s=20)
    print(type((await line.receive(60))[0]).__name__)
    is_written = trio.Event()
    is_written.set()
    await images.send(line, is_written, 20)
    await line.send(State(), b"", deadline_s=20)
    print((await line.receive(60))[0])


with tempfile.TemporaryDirectory() as folder:
    Path(folder, "core-1.img").write_bytes(core(int(sys.argv[2])))
    trio.run(forge, int(sys.argv[1]), Images(Path(folder)))
