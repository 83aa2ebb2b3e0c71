"""kernel/abilities.py: what the kernel says, and questions that are asked in a child."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

import pytest

from omfs.kernel import abilities, namespaces
from omfs.kernel.abilities import FUSE_PASSTHROUGH, FuseGreeting, parse_fuse_greeting


def greeting(opcode: int = 26, flags: int = 0, upper: int = 0) -> bytes:
    return struct.pack("=IIQQIIIHH", 104, opcode, 1, 0, 0, 0, 0, 0, 0) + struct.pack("=IIIII", 7, 38, 0, flags, upper)


def test_upper_flags_count_only_where_they_are_announced() -> None:
    assert parse_fuse_greeting(greeting(flags=1 << 30, upper=1 << 5)) == FuseGreeting(
        (7, 38), FUSE_PASSTHROUGH | 1 << 30
    )
    assert parse_fuse_greeting(greeting(flags=1, upper=1 << 5)) == FuseGreeting((7, 38), 1)


@pytest.mark.parametrize("request_", [b"", greeting()[:50], greeting(opcode=3)])
def test_what_is_no_greeting(request_: bytes) -> None:
    with pytest.raises(OSError, match="Protocol error"):
        parse_fuse_greeting(request_)


def test_this_kernel() -> None:
    """All that omfs can't do without; the other questions at least have an answer."""
    before = os.readlink("/proc/self/ns/mnt"), os.listdir("/proc/self/fd")
    assert abilities.fuse_greeting().version >= (7, 31)
    for kind in abilities.NAMESPACES.values():
        abilities.try_namespace(kind)
    abilities.try_seccomp_notification()
    abilities.try_fanotify()
    assert abilities.has_soft_dirty() in (True, False)
    assert (os.readlink("/proc/self/ns/mnt"), os.listdir("/proc/self/fd")) == before
    assert "omfs-doctor" not in Path("/proc/self/mountinfo").read_text()


def test_a_refusal_in_the_child_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: int) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(namespaces, "unshare", refuse)
    with pytest.raises(PermissionError):
        abilities.try_namespace(namespaces.CLONE_NEWPID)


def test_a_child_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "unshare", lambda kind: time.sleep(1000))
    monkeypatch.setattr(abilities, "_ANSWER_S", 0.1)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    with pytest.raises(TimeoutError):
        abilities.try_namespace(namespaces.CLONE_NEWPID)
    assert children.read_text() == before
