"""The frame reader: pieces of any size, bulk data of their own, limits (messages themselves: test_wire.py)."""

from __future__ import annotations

import pytest

from omfs import wire
from omfs.config import BULK_MAX_BYTES, META_MAX_BYTES
from omfs.errors import WireError
from omfs.net.frames import BUFFER_BYTES, HEADER, REPLY_BIT, Frame, FrameReader, encode

WRITE = wire.WriteBlocks(open_id=7, offset=0)


def feed(reader: FrameReader, data: bytes) -> list[Frame]:
    """All of *data*, as much at a time as the reader has room for."""
    frames = []
    while data:
        buffer = reader.buffer()
        size_bytes = min(len(buffer), len(data))
        buffer[:size_bytes] = data[:size_bytes]
        frames += reader.received(size_bytes)
        data = data[size_bytes:]
    return frames


def test_several_frames_in_one_piece_come_in_order() -> None:
    frames = [(number, wire.CancelRequest(request_id=number), b"") for number in range(1, 200)]
    data = b"".join(bytes(encode(number, message)) for number, message, _ in frames)
    assert feed(FrameReader(), data) == frames


def test_a_frame_byte_by_byte() -> None:
    reader = FrameReader()
    data = bytes(encode(9 | REPLY_BIT, wire.BlocksRead(), 3)) + b"abc"
    for byte in data[:-1]:
        assert feed(reader, bytes([byte])) == []
    assert feed(reader, data[-1:]) == [(9 | REPLY_BIT, wire.BlocksRead(), b"abc")]


def test_bulk_data_are_received_straight_into_their_own_buffer() -> None:
    reader = FrameReader()
    assert feed(reader, bytes(encode(1, WRITE, BULK_MAX_BYTES)) + b"begin") == []
    assert reader.in_bulk
    rest = reader.buffer()
    assert len(rest) == BULK_MAX_BYTES - 5
    rest[-3:] = b"end"
    [(_, message, bulk)] = reader.received(len(rest))
    assert message == WRITE
    assert isinstance(bulk, bytearray)
    assert len(bulk) == BULK_MAX_BYTES
    assert bulk.startswith(b"begin")
    assert bulk.endswith(b"end")
    del rest
    bulk.clear()  # it is the consumer's: the reader keeps no view of it
    assert feed(reader, bytes(encode(2, wire.Ping()))) == [(2, wire.Ping(), b"")]


def test_two_frames_do_not_share_bulk_data() -> None:
    data = bytes(encode(1, WRITE, 2)) + b"ab" + bytes(encode(2, WRITE, 2)) + b"cd"
    first, second = feed(FrameReader(), data)
    assert (first[2], second[2]) == (b"ab", b"cd")


def test_a_message_larger_than_the_buffer() -> None:
    reader = FrameReader()
    large = wire.SetXattr(handle=b"h", name=b"n", value=bytes(3 * BUFFER_BYTES), flags=0, caller=wire.Caller(0, 0))
    data = bytes(encode(1, wire.Ping())) + bytes(encode(2, large)) + bytes(encode(3, wire.Ping()))
    assert [(number, type(message)) for number, message, _ in feed(reader, data)] == [
        (1, wire.Ping),
        (2, wire.SetXattr),
        (3, wire.Ping),
    ]
    assert len(reader.buffer()) == BUFFER_BYTES  # the larger buffer is given back


def test_frames_that_do_not_end_with_the_buffer() -> None:
    message = wire.GetXattr(handle=b"h" * 333, name=b"user.name", caller=wire.Caller(0, 0))
    count = 4 * BUFFER_BYTES // 333
    data = b"".join(bytes(encode(number, message)) for number in range(count))
    assert [number for number, _, _ in feed(FrameReader(), data)] == list(range(count))


def test_a_stranger_gets_less() -> None:
    reader = FrameReader(meta_max=100, bulk_max=0)
    with pytest.raises(WireError, match="refused a frame of 101 bytes with 0"):
        feed(reader, HEADER.pack(101, 0, 1))
    with pytest.raises(WireError, match="with 1 bytes of bulk"):
        feed(FrameReader(meta_max=100, bulk_max=0), HEADER.pack(10, 1, 1))


def test_limits_can_be_raised_between_frames() -> None:
    reader = FrameReader(meta_max=100, bulk_max=0)
    assert len(feed(reader, bytes(encode(1, wire.Ping())))) == 1
    reader.bulk_max = 10
    assert feed(reader, bytes(encode(2, WRITE, 3)) + b"abc") == [(2, WRITE, b"abc")]


def test_a_tls_client_is_recognised() -> None:
    client_hello = bytes.fromhex("16030102000100")
    with pytest.raises(WireError, match="it looks like TLS, so its sec= differs from ours"):
        feed(FrameReader(), client_hello.ljust(64, b"\1"))


def test_what_no_reader_would_take_is_not_encoded() -> None:
    with pytest.raises(WireError, match="XattrGot is too large to send"):
        encode(1 | REPLY_BIT, wire.XattrGot(value=bytes(META_MAX_BYTES)))
    with pytest.raises(WireError, match="and 4194305 of bulk"):
        encode(1, WRITE, BULK_MAX_BYTES + 1)
