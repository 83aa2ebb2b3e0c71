"""mignode/ownsession.py on an image that CRIU 4.2.1 wrote, and criuimages.py, which takes it apart."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mignode.criuimages import MAGIC_BYTES, fields_of, image_of, messages_of
from mignode.ownsession import terminals_without
from omfs.errors import WireError

MAGIC = bytes.fromhex("1943565436304559")
# of a pty with the session 1, up to its attributes
ENTRY = bytes.fromhex("08ea0f1005180020002800300138a11f40809002")
OTHERS = bytes.fromhex("08ea0f1005180020002800308a0138a11f")


def entries(image: bytes) -> list[list[tuple[int, int | bytes]]]:
    return [[(field.number, field.value) for field in fields_of(message)] for message in messages_of(image)]


def test_only_the_inits_session_is_taken_out() -> None:
    image = image_of(MAGIC, [ENTRY, OTHERS])
    changed = terminals_without(image)
    assert changed[:MAGIC_BYTES] == MAGIC
    before, after = entries(image), entries(changed)
    assert after[0] == [(number, 0 if number == 6 else value) for number, value in before[0]]
    assert (6, 1) in before[0]
    assert after[1] == before[1]
    assert terminals_without(changed) == changed


def test_no_terminals() -> None:
    assert terminals_without(MAGIC) == MAGIC


@pytest.mark.parametrize("end", [b"\1", b"\1\0\0\0", b"\2\0\0\0\x08"])
def test_what_is_no_image_is_refused(end: bytes) -> None:
    with pytest.raises(WireError):
        terminals_without(MAGIC + end)


@given(st.lists(st.binary(max_size=20)))
def test_what_is_put_together_comes_apart(messages: list[bytes]) -> None:
    assert list(messages_of(image_of(MAGIC, messages))) == messages
