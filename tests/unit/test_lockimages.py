"""CRIU's image of file locks: read, made, and made longer."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mignode.lockimages import Held, held_in, image_with
from omfs.errors import WireError
from omfs.kernel.filelocks import RANGE_END

# A write lock of bytes 10 to 14, and a read lock from byte 20 to the end, of process 42 through descriptor 3.
BYTES = bytes.fromhex(
    "19435654 16363254 0c000000 08011001182a2003280a3005 0c000000 08011000182a200328143000"
)  # images/file-lock.proto of CRIU 4.2
LOCKS = [Held(42, 3, 1, 10, 14), Held(42, 3, 0, 20, RANGE_END)]


def test_the_bytes_are_criu_s() -> None:
    assert image_with(b"", LOCKS) == BYTES
    assert held_in(BYTES) == LOCKS


def test_a_lock_without_a_field_is_none() -> None:
    with pytest.raises(WireError, match="without its field"):
        held_in(BYTES[:8] + b"\x02\0\0\0" + b"\x08\x01")


places = st.integers(0, RANGE_END)
locks = st.builds(
    lambda process, descriptor, kind, ends: Held(process, descriptor, kind, min(ends), max(ends)),
    st.integers(1, 1 << 22), st.integers(0, 1 << 20), st.integers(0, 1), st.tuples(places, places),
)  # fmt: skip


@given(st.lists(locks, unique=True), st.lists(locks, unique=True))
def test_what_is_written_is_read(some: list[Held], more: list[Held]) -> None:
    image = image_with(b"", some)
    assert held_in(image) == some
    longer = image_with(image, more)
    assert longer.startswith(image)
    assert held_in(longer) == list(dict.fromkeys([*some, *more]))
