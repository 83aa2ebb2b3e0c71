"""The images of a dump without the session of the guest's init, which CRIU would look for and not find.

A guest's init leads the guest's session and has its terminal as the controlling one (guestterminal.py says why), but
is not dumped.  CRIU notes of an external terminal whose session's it is, and at the restore refuses one whose leader is
not in the tree (criu/tty.c, tty_find_restoring_task), though a "shell job" is to have what it finds.  Where that is not
noted, it takes the terminal that it is given and leaves the rest to who gives it, which is what we want: the new init
leads a session with the new terminal, and what CRIU restores is in that session by being its child.

A session that the guest made itself, with a pty of its own, has its leader in the tree, and stays.

Pure: bytes in, bytes out; WireError for what is no image.  To be called by migrate, between the dump and the sending.
"""

from __future__ import annotations

from typing import Final

from mignode.criuimages import MAGIC_BYTES, fields_of, image_of, messages_of, number_of

TERMINALS: Final = "tty-info.img"
_SESSION: Final = 6  # of tty_info_entry (images/tty.proto, CRIU 4.2)
_INIT: Final = 1  # the pid of the guest's init, in there


def terminals_without(terminals: bytes) -> bytes:
    """tty-info.img: terminals of the init's session have none."""
    return image_of(terminals[:MAGIC_BYTES], map(_without, messages_of(terminals)))


def _without(terminal: bytes) -> bytes:
    return b"".join(
        number_of(_SESSION, 0) if (field.number, field.value) == (_SESSION, _INIT) else field.raw
        for field in fields_of(terminal)
    )
