"""mignode/criurpc.py: the wire rules of protocol buffers, and CRIU's messages in them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as st

from mignode.criurpc import (
    Answer,
    CgroupMode,
    Features,
    Fields,
    InheritedFile,
    Kind,
    NetworkLock,
    Notice,
    Options,
    Value,
    decode,
    encode,
    notice_answer,
    parse_answer,
    request,
)
from omfs.errors import WireError

NUMBERS = st.integers(1, (1 << 29) - 1)
VALUES = st.integers(0, (1 << 64) - 1) | st.binary(max_size=300)


# ---------------------------------------------------------------- the wire rules


@pytest.mark.parametrize(
    ("fields", "data"),
    [  # the first three from protobuf.dev, "Encoding"; the others by its rules, by hand
        ([(1, 150)], "08 96 01"),
        ([(2, "testing")], "12 07 74 65 73 74 69 6e 67"),
        ([(3, encode([(1, 150)]))], "1a 03 08 96 01"),
        ([(1, -1)], "08 ff ff ff ff ff ff ff ff ff 01"),
        ([(1, True), (1, False)], "08 01 08 00"),
        ([(16, b"")], "82 01 00"),
        ([((1 << 29) - 1, 0)], "f8 ff ff ff 0f 00"),
        ([(9, "\u00e9")], "4a 02 c3 a9"),
        ([], ""),
    ],
)
def test_bytes_as_every_protobuf_makes_them(fields: list[tuple[int, Value | str]], data: str) -> None:
    assert encode(fields) == bytes.fromhex(data)


@given(st.lists(st.tuples(NUMBERS, VALUES)))
def test_what_is_encoded_is_decoded(fields: list[tuple[int, Value]]) -> None:
    expected: Fields = {}
    for number, value in fields:
        expected.setdefault(number, []).append(value)
    assert decode(encode(fields)) == expected


@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    """And what is decoded means the same when it is encoded again; varints may have had more bytes than needed."""
    try:
        fields = decode(data)
        parse_answer(data)
    except WireError:
        return
    again = [(number, value) for number, values in fields.items() for value in values]
    assert decode(encode(again)) == fields


@given(st.lists(st.tuples(NUMBERS, VALUES), min_size=1), st.data())
def test_a_message_that_is_cut_off_is_refused_or_shorter(fields: list[tuple[int, Value]], data: st.DataObject) -> None:
    whole = encode(fields)
    cut = data.draw(st.integers(0, len(whole) - 1))
    ends = {len(encode(fields[:count])) for count in range(len(fields))}
    if cut in ends:
        assert sum(map(len, decode(whole[:cut]).values())) < len(fields)
    else:
        with pytest.raises(WireError):
            decode(whole[:cut])


def test_fixed_sizes_are_kept_and_need_all_their_bytes() -> None:
    data = b"\x0d" + struct.pack("<I", 7) + b"\x11" + struct.pack("<d", 1.5)
    assert decode(data) == {1: [struct.pack("<I", 7)], 2: [struct.pack("<d", 1.5)]}
    with pytest.raises(WireError, match="cut off"):
        decode(data[:-1])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("0b", "wire type 3"),  # a group begins
        ("0c", "wire type 4"),
        ("0e", "wire type 6"),
        ("00 00", "field number 0"),
        ("08 ff ff ff ff ff ff ff ff ff ff 01", "does not end"),
        ("80 80 80 80 80 80 80 80 80 80 01", "does not end"),
        ("f8 ff ff ff 1f 00", "field number"),
    ],
)
def test_what_no_encoder_makes_is_refused(data: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode(bytes.fromhex(data))


# ---------------------------------------------------------------- requests


def test_a_bare_request() -> None:
    assert request(Kind.VERSION) == bytes.fromhex("08 0a")
    assert decode(request(Kind.FEATURE_CHECK)) == {1: [9], 5: [bytes.fromhex("08 01 10 01 18 01")]}
    assert notice_answer(True) == bytes.fromhex("08 06 18 01")
    assert notice_answer(False) == bytes.fromhex("08 06 18 00")


def test_options_have_the_numbers_of_rpc_proto() -> None:
    """All of them, so a number can't change by mistake."""
    options = Options(
        images_dir="i", pid=2, leave_running=True, ext_unix_sk=True, tcp_established=True, shell_job=True,
        file_locks=True, log_level=9, notify_scripts=True, parent_img="p", track_mem=True, link_remap=False,
        rst_sibling=True, inherit_fd=(InheritedFile("pipe:[7]", 6), InheritedFile("k", 7)),
        manage_cgroups_mode=CgroupMode.IGNORE, ghost_limit=35, external=("a", "b"), timeout=45, orphan_pts_master=True,
        network_lock=NetworkLock.SKIP, leave_stopped=True, log_to_stderr=True,
    )  # fmt: skip
    kind, sent = decode(request(Kind.DUMP, options)).values()
    assert kind == [Kind.DUMP]
    assert isinstance(sent[0], bytes)
    assert decode(sent[0]) == {
        1: [(1 << 64) - 1], 2: [2], 3: [1], 4: [1], 5: [1], 7: [1], 8: [1], 9: [9], 12: [1], 14: [b"p"], 15: [1],
        18: [0], 26: [1], 27: [b"\x0a\x08pipe:[7]\x10\x06", b"\x0a\x01k\x10\x07"], 34: [0], 35: [35], 37: [b"a", b"b"],
        45: [45], 50: [1], 64: [3], 68: [b"i"], 69: [1], 71: [1],
    }  # fmt: skip


def test_what_is_not_said_is_not_sent() -> None:
    assert decode(request(Kind.CHECK, Options())) == {1: [3], 2: [encode([(1, -1)])]}


# ---------------------------------------------------------------- answers


def test_answers() -> None:
    assert parse_answer(encode([(1, 1), (2, True)])) == Answer(Kind.DUMP, True)
    restored = encode([(1, 2), (2, True), (4, encode([(1, 4242)]))])
    assert parse_answer(restored) == Answer(Kind.RESTORE, True, pid=4242)
    failed = encode([(1, 2), (2, False), (4, encode([(1, -1)])), (7, 17), (9, "Error (x.c:1): why")])
    assert parse_answer(failed) == Answer(Kind.RESTORE, False, pid=-1, errno=17, message="Error (x.c:1): why")
    notice = encode([(1, 6), (2, True), (5, encode([(1, "post-restore"), (2, 9)]))])
    assert parse_answer(notice) == Answer(Kind.NOTIFY, True, notice=Notice("post-restore", 9))
    features = encode([(1, 9), (2, True), (8, encode([(1, False), (2, True), (3, True)]))])
    assert parse_answer(features).features == Features(False, True, True)
    version = encode([(1, 10), (2, True), (10, encode([(1, 4), (2, 2), (4, 1), (6, "name")]))])
    assert parse_answer(version).version == (4, 2, 1)


def test_the_last_of_a_field_counts_and_unknown_ones_do_not() -> None:
    assert parse_answer(encode([(99, b"new"), (2, False), (1, 1), (2, True)])) == Answer(Kind.DUMP, True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([(1, 1)], "without type or result"),
        ([(2, 1)], "without type or result"),
        ([(1, b"x"), (2, 1)], "field 1 .* not a number"),
        ([(1, 1), (2, 1), (9, 5)], "field 9 .* not a string"),
        ([(1, 1), (2, 1), (5, 5)], "field 5 .* not a string"),
    ],
)
def test_answers_of_another_shape_are_refused(fields: list[tuple[int, Value]], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        parse_answer(encode(fields))
