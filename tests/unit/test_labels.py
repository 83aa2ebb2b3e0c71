"""What is said of SELinux labels: who has none anywhere says so, and `ls` asks once; who has met one does not."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from omfs.mount import lowlevel_abi as abi
from omfs.mount.xattrs import missing_errno
from omfs.wiretypes import Bare
from tests.unit.twonodes import node, other, place, room
from tests.unit.wholemount import Node

__all__ = ["node", "other", "place", "room"]

LABEL = b"security.selinux"
VALUE = b"system_u:object_r:etc_t:s0\0"


@pytest.mark.parametrize(
    ("bare", "name", "has_labels", "number"),
    [
        (Bare.OF_ALL, LABEL, False, errno.EOPNOTSUPP),
        (Bare.OF_ALL, LABEL, True, errno.ENODATA),
        (Bare.OF_ALL, b"security.other", False, errno.ENODATA),
        (Bare.OF_ALL, b"user.k", False, errno.ENODATA),
        (Bare.OF_ALL, b"system.posix_acl_access", False, errno.ENODATA),
        (Bare.OF_ALL, b"system.nonsense", False, 0),
        (Bare.OF_ACCESS, LABEL, False, 0),
        (Bare.OF_ACCESS, LABEL, True, 0),
        (Bare.OF_ACCESS, b"security.capability", False, errno.ENODATA),
        (Bare.OF_ACCESS, b"user.k", False, 0),
        (Bare.UNKNOWN, LABEL, False, 0),
        (Bare.UNKNOWN, b"security.capability", False, 0),
    ],
)
def test_what_is_answered_unasked(bare: Bare, name: bytes, has_labels: bool, number: int) -> None:
    assert missing_errno(bare, name, has_labels) == number


async def label_of(node: Node, number: int) -> bytes | int:
    """The label, or the errno."""
    try:
        return await node.kernel.ask(abi.GETXATTR, number, struct.pack("<II", 0, 0) + LABEL + b"\0")
    except OSError as error:
        return error.errno or 0


async def listed(node: Node, place: Path) -> tuple[int, int]:
    """A file without attributes and one with, of which a listing told that."""
    top = await node.kernel.walk(place)
    await node.kernel.list_long(top)
    numbers = [await node.kernel.look_up(top, name) for name in (b"plain", b"labelled")]
    return numbers[0], numbers[1]


async def _looked_at(node: Node, labelled: int) -> None:
    assert await label_of(node, labelled) == VALUE


async def _listed(node: Node, labelled: int) -> None:
    assert LABEL in await node.operations.listxattr(labelled, cast(Any, node.hook))


async def _set(node: Node, labelled: int) -> None:
    await node.operations.setxattr(labelled, LABEL, VALUE, cast(Any, node.hook))


@pytest.mark.parametrize("meet", [_looked_at, _listed, _set])
async def test_until_a_label_was_met_there_are_none(
    node: Node, place: Path, meet: Callable[[Node, int], Awaitable[None]]
) -> None:
    (place / "plain").touch()
    (place / "labelled").touch()
    os.setxattr(place / "labelled", LABEL, VALUE)
    plain, labelled = await listed(node, place)
    node.asked()
    assert await label_of(node, plain) == errno.EOPNOTSUPP
    assert node.asked() == {}
    await meet(node, labelled)
    assert await label_of(node, plain) == errno.ENODATA
    assert await label_of(node, labelled) == VALUE


async def test_who_sets_a_label_finds_it(node: Node, place: Path) -> None:
    (place / "plain").touch()
    (place / "labelled").touch()
    plain, _ = await listed(node, place)
    assert await label_of(node, plain) == errno.EOPNOTSUPP
    await _set(node, plain)
    assert await label_of(node, plain) == VALUE
    assert os.getxattr(place / "plain", LABEL) == VALUE
