"""Images on their way over a line: streamed while they grow, checked, and nothing but plain files at the other end."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from mignode import images as images_module
from mignode.images import PIECE_BYTES, ImageRoom, Images
from mignode.line import Line
from mignode.words import Discard, Image, ImagePiece, ImagesSent, Word
from omfs.errors import ImagesDamaged, WireError
from omfs.net.transport import memory_transports

DEADLINE_S = 60.0
LIMIT_BYTES = 64 << 20


@pytest.fixture
async def lines() -> tuple[Line, Line]:
    ends = memory_transports()
    for line in (made := (Line(ends[0]), Line(ends[1]))):
        line.admit()
    return made


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Images, Images]]:
    """Where they come from, and where they go."""
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    made = Images(tmp_path / "from"), Images(tmp_path / "to")
    yield made
    for one in made:
        one.discard()


def contents(images: Images) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in images.path.iterdir()}


async def transfer(
    lines: tuple[Line, Line], folders: tuple[Images, Images], write: Callable[[], Awaitable[None]]
) -> tuple[Word, int]:
    """Send while *write* runs; what the other end says of it."""
    is_written = trio.Event()
    result: list[tuple[Word, int]] = []

    async def receive() -> None:
        result.append(await folders[1].receive(lines[1], LIMIT_BYTES, DEADLINE_S))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(folders[0].send, lines[0], is_written, DEADLINE_S)
        await write()
        is_written.set()
    return result[0]


async def test_what_was_written_comes_whole(lines: tuple[Line, Line], folders: tuple[Images, Images]) -> None:
    made = {
        "core-1.img": random.randbytes(3000),
        "pages-1.img": random.randbytes(3 * PIECE_BYTES + 17),
        "empty.img": b"",
        "one.img": b"x",
    }
    for name, data in made.items():
        (folders[0].path / name).write_bytes(data)

    async def nothing_more() -> None:
        pass

    word, size_bytes = await transfer(lines, folders, nothing_more)
    assert isinstance(word, ImagesSent)
    assert size_bytes == sum(map(len, made.values()))
    assert contents(folders[1]) == made
    assert {path.stat().st_mode & 0o777 for path in folders[1].path.iterdir()} == {0o600}
    sent = (folders[0].path / "pages-1.img").stat()
    assert sent.st_size == len(made["pages-1.img"])
    assert sent.st_blocks <= 4096 // 512, "its room was not given back, but for the page at the end"


async def test_pages_go_out_while_they_are_written(lines: tuple[Line, Line], folders: tuple[Images, Images]) -> None:
    """All but the end of them is there before the dump is over; a core image is not, as it may change."""
    data = random.randbytes(5 * PIECE_BYTES + 100)

    async def write() -> None:
        (folders[0].path / "core-1.img").write_bytes(b"at first")
        growing = os.open(folders[0].path / "pages-1.img", os.O_WRONLY | os.O_CREAT)
        for offset in range(0, len(data), 1_000_000):
            os.write(growing, data[offset : offset + 1_000_000])
            await trio.lowlevel.checkpoint()
        os.close(growing)
        arrived = folders[1].path / "pages-1.img"
        with trio.fail_after(DEADLINE_S):
            while True:
                if arrived.exists() and arrived.stat().st_size >= 5 * PIECE_BYTES:
                    break
                await trio.sleep(0.001)
        assert sorted(contents(folders[1])) == ["pages-1.img"]
        (folders[0].path / "core-1.img").write_bytes(b"changed at last")

    await transfer(lines, folders, write)
    assert contents(folders[1]) == {"pages-1.img": data, "core-1.img": b"changed at last"}


async def test_progress_is_told(lines: tuple[Line, Line], folders: tuple[Images, Images], nursery: Any) -> None:
    (folders[0].path / "pages-1.img").write_bytes(bytes(2 * PIECE_BYTES))
    is_written, sent, come = trio.Event(), [], []  # type: ignore[var-annotated]
    is_written.set()
    nursery.start_soon(folders[0].send, lines[0], is_written, DEADLINE_S, sent.append)
    await folders[1].receive(lines[1], LIMIT_BYTES, DEADLINE_S, come.append)
    assert sent == [PIECE_BYTES, 2 * PIECE_BYTES]
    assert come == sorted(come)


def piece(name: str, offset: int, data: bytes, crc32: int | None = None) -> tuple[Word, bytes]:
    return ImagePiece(name, offset, zlib.crc32(data) if crc32 is None else crc32), data


BAD: list[tuple[list[tuple[Word, bytes]], type[Exception], str]] = [
    ([piece("a", 0, b"abc", crc32=1)], ImagesDamaged, "a was damaged on its way, at byte 0"),
    ([(ImagePiece("a", 0, None), b"abc")], ImagesDamaged, "a was damaged"),
    ([piece("a", 1, b"abc")], WireError, "a piece of a at byte 1, but 0 are here"),
    ([piece("a", 0, b"abc"), piece("a", 0, b"abc")], WireError, "at byte 0, but 3 are here"),
    ([piece("a", 0, b"")], WireError, "a piece of a"),
    ([piece("a", 0, b"abc"), (ImagesSent((Image("a", 4),)), b"")], ImagesDamaged, "not those that were sent"),
    ([piece("a", 0, b"abc"), (ImagesSent(()), b"")], ImagesDamaged, "not those that were sent"),
    ([(ImagesSent((Image("a", 1),)), b"")], ImagesDamaged, "not those that were sent"),
    ([(ImagesSent((Image("a", 0), Image("a", 0))), b"")], ImagesDamaged, "not those that were sent"),
    ([piece("a", 0, bytes(600)), piece("b", 0, bytes(401))], OSError, "more than the 1000 bytes"),
    ([piece(name, 0, b"x") for name in "abcd"], WireError, "more than 3 images"),
    ([(ImagesSent(tuple(Image(name, 0) for name in "abcd")), b"")], WireError, "more than 3 images"),
    ([piece("link", 0, b"x")], FileExistsError, "link"),
]


@pytest.mark.parametrize(("said", "error", "reason"), BAD, ids=[reason for _, _, reason in BAD])
async def test_what_does_not_fit_is_refused(
    lines: tuple[Line, Line], folders: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch,
    said: list[tuple[Word, bytes]], error: type[Exception], reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(images_module, "FILES_MAX", 3)
    (folders[1].path / "link").symlink_to("outside")
    for word, data in said:
        await lines[0].send(word, data, deadline_s=DEADLINE_S)
    with pytest.raises(error, match=reason):
        await folders[1].receive(lines[1], 1000, DEADLINE_S)
    assert not (folders[1].path / "outside").exists()


async def test_tls_needs_no_other_sum(
    lines: tuple[Line, Line], folders: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "is_authenticated", True)
    (folders[0].path / "core-1.img").write_bytes(b"abc")
    is_written = trio.Event()
    is_written.set()
    await folders[0].send(lines[0], is_written, DEADLINE_S)
    assert await lines[1].receive(DEADLINE_S) == (ImagePiece("core-1.img", 0, None), b"abc")
    sent, _ = await lines[1].receive(DEADLINE_S)
    assert isinstance(sent, ImagesSent)
    await lines[0].send(ImagePiece("core-1.img", 0, None), b"abc", deadline_s=DEADLINE_S)
    await lines[0].send(sent, deadline_s=DEADLINE_S)
    assert await folders[1].receive(lines[1], 1000, DEADLINE_S) == (sent, 3)


async def test_the_source_may_say_something_else(lines: tuple[Line, Line], folders: tuple[Images, Images]) -> None:
    await lines[0].send(*piece("a", 0, b"abc"), deadline_s=DEADLINE_S)
    await lines[0].send(Discard("criu could not dump"), deadline_s=DEADLINE_S)
    assert await folders[1].receive(lines[1], 1000, DEADLINE_S) == (Discard("criu could not dump"), 3)


async def test_a_lost_line_is_one_error(lines: tuple[Line, Line], folders: tuple[Images, Images]) -> None:
    (folders[0].path / "pages-1.img").write_bytes(bytes(2 * PIECE_BYTES))
    lines[1].close()
    with pytest.raises(OSError, match="closed"):
        await folders[0].send(lines[0], trio.Event(), DEADLINE_S)
    with pytest.raises(OSError, match="closed"):
        await folders[1].receive(lines[1], 1000, DEADLINE_S)


def test_the_room_is_for_root_only_and_has_an_end(tmp_path: Path) -> None:
    room = ImageRoom(tmp_path, 1 << 20)
    room.open()
    try:
        assert room.path.stat().st_mode & 0o7777 == 0o700
        assert room.room_for(1 << 20)
        assert not room.room_for((1 << 20) + 1)
        images = room.make("1.2.3")
        with pytest.raises(OSError, match="No space left"):
            (images.path / "pages-1.img").write_bytes(bytes(2 << 20))
        assert not room.room_for(1 << 20)
        images.discard()
        images.discard()
        assert room.room_for(1 << 20)
        (room.make("1.2.3").path / "left").write_bytes(b"by a mignode that was killed")
        again = room.make("1.2.3")
        assert os.listdir(again.fd) == []
        again.discard()
        assert list(tmp_path.iterdir()) == [], "nothing that a mignode that is killed would leave"
        room.close()
        room.open()
        assert os.listdir(room.path) == []
    finally:
        room.close()
