"""Words and descriptors over a seqpacket socket: long ones, many of them, and what is none."""

from __future__ import annotations

import os
import socket

import pytest
from msgspec.structs import replace

from mignode import bodywords as words
from mignode.bodysocket import BodySocket
from omfs.errors import WireError

FRAME = words.Frame(bytes(range(256)) * 256)


@pytest.fixture
def pair() -> tuple[BodySocket, BodySocket]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return BodySocket(near), BodySocket(far)


def close(*ends: BodySocket) -> None:
    for end in ends:
        end.close()


def test_words_arrive_as_they_were_with_their_descriptors(pair: tuple[BodySocket, BodySocket]) -> None:
    near, far = pair
    with pytest.raises(BlockingIOError):
        far.receive()
    reading, writing = os.pipe()
    near.send(words.Keep(7, "some"), [reading])
    os.close(reading)
    near.send(FRAME)
    received = far.receive()
    assert received is not None
    word, (descriptor,) = received
    assert word == words.Keep(7, "some")
    os.write(writing, b"x")
    assert os.read(descriptor, 10) == b"x"
    assert not os.get_inheritable(descriptor)
    assert far.receive() == (FRAME, [])
    os.close(descriptor)
    os.close(writing)
    near.close()
    assert far.receive() is None
    far.close()


def test_a_word_that_is_too_long_for_a_packet_goes_as_a_file(pair: tuple[BodySocket, BodySocket]) -> None:
    near, far = pair
    long = replace(FRAME, data=bytes(3 << 20))
    reading, writing = os.pipe()
    near.send(long, [writing])
    received = far.receive()
    assert received is not None
    assert received[0] == long
    (descriptor,) = received[1]
    os.write(descriptor, b"x")
    assert os.read(reading, 10) == b"x"
    for each in (reading, writing, descriptor):
        os.close(each)
    close(near, far)


def test_what_the_socket_does_not_take_goes_later_and_in_order(pair: tuple[BodySocket, BodySocket]) -> None:
    near, far = pair
    reading, writing = os.pipe()
    count = 0
    while not near.is_behind:
        near.send(FRAME)
        count += 1
    near.send(words.Keep(1, "last"), [reading])
    os.close(reading)  # it has its own meanwhile
    near.flush()
    assert near.is_behind, "nobody has read anything"
    for _ in range(count):
        assert far.receive() == (FRAME, [])
        near.flush()
    assert not near.is_behind
    received = far.receive()
    assert received is not None
    assert received[0] == words.Keep(1, "last")
    os.write(writing, b"x")
    assert os.read(received[1][0], 10) == b"x"
    os.close(received[1][0])
    os.close(writing)
    close(near, far)


def test_what_waits_when_it_is_closed_leaves_nothing_behind(pair: tuple[BodySocket, BodySocket]) -> None:
    near, far = pair
    reading, writing = os.pipe()
    while not near.is_behind:
        near.send(FRAME, [writing])
    os.close(writing)
    close(near, far)
    assert os.read(reading, 1) == b"", "somebody still has the other end"
    os.close(reading)


def test_nobody_there_is_an_error(pair: tuple[BodySocket, BodySocket]) -> None:
    near, far = pair
    far.close()
    with pytest.raises(BrokenPipeError):
        near.send(FRAME)
    near.close()


@pytest.mark.parametrize("packet", [b"w", b"f", b"x", b"wnonsense", b"w" + bytes(200_000)])
def test_what_is_no_word_is_refused_and_its_descriptors_closed(
    pair: tuple[BodySocket, BodySocket], packet: bytes
) -> None:
    near, far = pair
    reading, writing = os.pipe()
    socket.send_fds(near.sock, [packet], [writing] if packet != b"f" else [])
    os.close(writing)
    with pytest.raises(WireError):
        far.receive()
    assert os.read(reading, 1) == b""
    os.close(reading)
    close(near, far)


def test_unknown_fields_are_refused() -> None:
    packet = words.encoded(words.SetLastPid(1, 2)).replace(b"\x83", b"\x84") + b"\xa1x\x01"
    with pytest.raises(WireError, match="unknown field"):
        words.decoded(packet)
