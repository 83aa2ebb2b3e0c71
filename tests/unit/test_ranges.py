"""Splitting and replacing POSIX locks, against byte-wise truth."""

from __future__ import annotations

import fcntl

from hypothesis import given
from hypothesis import strategies as st

from omfs.mount.ranges import Range, changed

SIZE = 12
END = 2**63 - 1

requests = st.builds(
    lambda start, length, kind: Range(start, END if start + length > SIZE else start + length, kind, 7),
    st.integers(0, SIZE),
    st.integers(0, SIZE),
    st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK]),
)


@given(st.lists(requests, max_size=12))
def test_every_byte_has_the_kind_that_was_asked_last(asked: list[Range]) -> None:
    held: tuple[Range, ...] = ()
    truth = [fcntl.F_UNLCK] * (SIZE + 1) + [fcntl.F_UNLCK]  # the last one stands for everything beyond
    for new in asked:
        held = changed(held, new)
        for byte in range(len(truth)):
            if new.start <= byte <= new.end:
                truth[byte] = new.kind
    found = [fcntl.F_UNLCK] * len(truth)
    for lock in held:
        assert lock.start <= lock.end
        for byte in range(len(found)):
            if lock.start <= byte <= lock.end:
                assert found[byte] == fcntl.F_UNLCK, "two locks on one byte"
                found[byte] = lock.kind
    assert found == truth
