"""The images of TCP connections: what came late is put in, what was not sent is taken for lost."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mignode.criuimages import MAGIC_BYTES, as_number, fields_of, message_of, messages_of, number_of
from mignode.tcpstreams import fitting
from omfs.errors import MoveFailed
from omfs.kernel.tcpqueue import Received

MAGIC = b"\x12\x34\x56\x78TCPS"
SEQUENCES = st.integers(0, (1 << 32) - 1)
BYTES = st.binary(max_size=40)


def image(inside: bytes, next_in: int, outside: bytes, unsent: int) -> bytes:
    """Fields 1 in_bytes, 2 in_next, 3 out_bytes, 4 out_next, 5-7 options, 12 unsent_bytes."""
    values = {1: len(inside), 2: next_in, 3: len(outside), 4: 77, 5: 3, 6: 10, 7: 65495, 12: unsent, 13: 5}
    return MAGIC + message_of(b"".join(number_of(*field) for field in values.items())) + inside + outside


def taken_apart(whole: bytes) -> tuple[dict[int, int], bytes]:
    entry = next(messages_of(whole))
    fields = {field.number: as_number(field.value) for field in fields_of(entry)}
    return fields, whole[MAGIC_BYTES + len(message_of(entry)) :]


@given(BYTES, BYTES, BYTES, SEQUENCES, st.data())
def test_what_came_late_is_in_it(inside: bytes, late: bytes, outside: bytes, next_in: int, data: st.DataObject) -> None:
    unsent = data.draw(st.integers(0, len(outside)))
    now = Received((next_in + len(late)) % (1 << 32), inside + late)
    before, after = image(inside, next_in, outside, unsent), fitting(image(inside, next_in, outside, unsent), now)
    old, _ = taken_apart(before)
    new, queues = taken_apart(after)
    assert new == {**old, 1: len(inside + late), 2: now.next_sequence, 12: 0}
    assert queues == inside + late + outside
    assert after[:MAGIC_BYTES] == MAGIC


@given(BYTES, SEQUENCES)
def test_what_fits_stays_byte_by_byte(inside: bytes, next_in: int) -> None:
    before = image(inside, next_in, b"out", 0)
    assert fitting(before, Received(next_in, inside)) == before


def test_a_fin_that_came_late_is_not_lost() -> None:
    with pytest.raises(MoveFailed, match="being closed; try again"):
        fitting(image(b"in", 4, b"", 0), Received(5, b"in"))
