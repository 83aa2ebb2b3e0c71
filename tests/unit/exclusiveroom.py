"""An owner whose watch over native programs is real, and what tests of EXCLUSIVE leases do with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omfs import wire
from omfs.export.leasekeeper import LeaseKeeper
from omfs.export.localchanges import LocalChanges
from omfs.wiretypes import Mode
from tests.unit.exportroom import ROOT, Asker, serving
from tests.unit.leaseroom import HoldingSession, Room, leasing_room

READ = "os.open(PATH, os.O_RDONLY)"
KEEPERS: list[subprocess.Popen[bytes]] = []  # which those that were killed have left


def reap_keepers() -> None:
    while KEEPERS:
        KEEPERS.pop().wait()


@contextmanager
def owner_of(state: Path, run_dir: Path, boot_id: str = "boot") -> Iterator[Room]:
    """An owner with a real watch; a later one takes over what this one leaves, unless all is given back."""
    with serving(state) as service, leasing_room(state, service, boot_id=boot_id) as room:
        guards = room.under._guards
        changes = LocalChanges(guards.told, room.leasing.index.is_of_interest, LeaseKeeper(run_dir, 20.0), 1000)
        room.changes = changes
        guards.watch(changes)
        try:
            yield room
        finally:
            if room.is_killed:
                as_if_killed(changes)
            else:
                changes.close()


def as_if_killed(changes: LocalChanges) -> None:
    """All descriptors are closed without a word, as when the process is killed."""
    keeper = changes._keeper
    assert keeper._socket is not None
    keeper._socket.close()
    if keeper._process is not None:
        KEEPERS.append(keeper._process)
    for fd in changes._by_fd:
        os.close(fd)
    os.close(changes._leases.descriptor)
    if changes._watcher is not None:
        changes._watcher.close()


async def held(owner: Room, path: Path, node_id: int = 1) -> tuple[Asker, HoldingSession, bytes, int]:
    """A holder that has the file EXCLUSIVE: (asker, its session, handle, open id)."""
    asker, session = owner.holder(node_id)
    handle = (await asker.walk(path)).handle
    opened = await asker.get(wire.OpenFile(handle, os.O_RDWR, ROOT), wire.FileOpened)
    assert opened.mode is Mode.EXCLUSIVE
    assert not opened.data
    return asker, session, handle, opened.open_id


async def mode_asked_for(asker: Asker, open_id: int) -> Mode:
    return (await asker.get(wire.AskLease(open_id), wire.LeaseGranted)).mode
