"""Images that say they have more rights than their user are told from those that have not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mignode.criuimages import field_of, message_of, number_of
from mignode.rights import are_only, has_only
from omfs.errors import WireError

USER, GROUP, OTHER = 1001, 1002, 2000
IDS = {1: USER, 2: GROUP, 3: USER, 4: GROUP, 5: USER, 6: GROUP, 7: USER, 8: GROUP}
MTYPE = number_of(1, 1)


def creds(fields: Mapping[int, int] = IDS, more: bytes = b"") -> bytes:
    """A field of thread_core_entry."""
    return field_of(10, b"".join(number_of(number, value) for number, value in fields.items()) + more)


def core(*threads: bytes) -> bytes:
    return bytes(8) + message_of(MTYPE + b"".join(field_of(5, thread) for thread in threads))


def is_users(image: bytes) -> bool:
    return has_only(image, USER, GROUP, (OTHER,))


def test_a_users_thread_and_a_zombie() -> None:
    groups = number_of(14, OTHER) + number_of(14, GROUP)
    bounding = number_of(12, 0xFFFFFFFF) + number_of(13, 0)
    no_capabilities = number_of(10, 0) + number_of(11, 0)
    assert is_users(core(number_of(3, 0) + creds(more=groups + bounding + no_capabilities)))
    assert is_users(core())


@pytest.mark.parametrize("number", range(1, 9))
def test_any_other_id(number: int) -> None:
    assert not is_users(core(creds({**IDS, number: 0})))
    assert not is_users(core(creds({**IDS, number: OTHER})))
    assert not is_users(core(creds({other: value for other, value in IDS.items() if other != number})))
    assert not is_users(core(creds(more=number_of(number, 0)))), "the later one of two would count"
    assert not is_users(core(creds({**IDS, number: IDS[number] + 2**32}))), "CRIU would take 32 bits of it"


@pytest.mark.parametrize("more", [number_of(9, 1), number_of(10, 0) + number_of(10, 1), number_of(11, 1 << 21)])
def test_a_capability(more: bytes) -> None:
    assert not is_users(core(creds(more=more)))


def test_a_group_of_others() -> None:
    assert not is_users(core(creds(more=number_of(14, 0))))


def test_what_could_be_understood_in_two_ways() -> None:
    assert not is_users(core(creds() + creds({1: 0})))
    assert not is_users(core(creds(), creds({1: 0})))
    assert not is_users(core(b""))
    with pytest.raises(WireError):
        is_users(core(creds(more=field_of(10, b"\x01"))))
    with pytest.raises(WireError):
        is_users(core(creds()) + message_of(b""))
    with pytest.raises(WireError):
        is_users(b"nothing")


def test_all_images_of_a_dump(tmp_path: Path) -> None:
    for name, image in (("core-1.img", core(creds())), ("core-2.img", core(creds())), ("pages-1.img", b"x")):
        (tmp_path / name).write_bytes(image)
    assert are_only(tmp_path, USER, GROUP, ())
    assert not are_only(tmp_path, OTHER, GROUP, ())
    assert are_only(tmp_path, 0, 0, ())
    (tmp_path / "creds-1.img").write_bytes(core())
    assert not are_only(tmp_path, USER, GROUP, ())
    (tmp_path / "creds-1.img").unlink()
    (tmp_path / "core-3.img").write_bytes(core(creds({**IDS, 3: 0})))
    assert not are_only(tmp_path, USER, GROUP, ())
