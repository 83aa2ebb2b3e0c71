"""Splitting and replacing POSIX locks, against byte-wise truth."""

from __future__ import annotations

import fcntl

from hypothesis import given, strategies as st

from omfs.mount.ranges import Range, changed, requests_for

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
    assert kinds(held) == truth


@given(st.lists(requests, max_size=6), st.lists(requests, max_size=6), requests)
def test_a_doubt_is_settled_whatever_the_owner_holds(asked: list[Range], unheard: list[Range], doubt: Range) -> None:
    held: tuple[Range, ...] = ()
    for new in asked:
        held = changed(held, new)
    at_owner = held
    for new in unheard:  # only there is anything unknown
        start, end = max(new.start, doubt.start), min(new.end, doubt.end)
        if start <= end:
            at_owner = changed(at_owner, new._replace(start=start, end=end))
    for request in requests_for(3, 11, doubt, held):
        assert (request.open_id, request.owner, request.wait) == (3, 11, False)
        at_owner = changed(at_owner, Range(request.start, request.end, request.kind, request.pid))
        for have, want in zip(kinds(at_owner), kinds(held), strict=True):
            assert want == fcntl.F_UNLCK or have != fcntl.F_UNLCK or unheard, "given up what is held"
    assert kinds(at_owner) == kinds(held)


def kinds(held: tuple[Range, ...]) -> list[int]:
    """By byte; the last one stands for everything beyond."""
    found = [fcntl.F_UNLCK] * (SIZE + 2)
    for lock in held:
        assert lock.start <= lock.end
        for byte in range(len(found)):
            if lock.start <= byte <= lock.end:
                assert found[byte] == fcntl.F_UNLCK, "two locks on one byte"
                found[byte] = lock.kind
    return found
