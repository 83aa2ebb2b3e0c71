"""mignode/imagekeeper.py and imagegiver.py: what mosrun does with files of images; mignode is a thread of the test."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from mignode import imagekeeper
from mignode.deputywords import DeputyWord, ImageBytes, ImageTaken, NotKept, Refused, TakeImage, Words, pack
from mignode.filewords import FilesPlan, Kind, without_input
from mignode.imagefile import Seal, Writer
from mignode.imagegiver import OpenImage, plan_for
from mignode.imagekeeper import ImageKeeper, check_place, place
from omfs.errors import ConfigError
from tests.unit.test_imagefile import HEAD

DEADLINE_S = 60
GUEST = "1.4242.99"
PIPES, TTYS, NULLS = ((kind,) * 3 for kind in (Kind.PIPE, Kind.TERMINAL, Kind.NULL))


class Mignode:
    """Answers each connection with what is next in `answers`, the last again and again; hears what is said then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: list[tuple[DeputyWord, ...]] = []
        self.heard: list[DeputyWord] = []
        self.asked = threading.Semaphore(0)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            line, _ = self._listener.accept()
            with line:
                words = Words()
                while not (found := list(words.arrived(data := line.recv(65536)))) and data:
                    pass
                if not found:
                    return
                self.heard += found
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                with suppress(ConnectionError):  # a keeper whose test is over waits for no answer
                    line.sendall(b"".join(map(pack, answer)))
                    while data := line.recv(65536):
                        self.heard += words.arrived(data)
                self.asked.release()

    def wait_asked(self) -> None:
        assert self.asked.acquire(timeout=DEADLINE_S)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._thread.join(DEADLINE_S)
        self._listener.close()


@pytest.fixture
def mignode(tmp_path: Path) -> Iterator[Mignode]:
    one = Mignode(tmp_path / "guests.sock")
    yield one
    one.close()


class Kept:
    """A keeper whose time is always come."""

    def __init__(self, mignode: Mignode, file: Path) -> None:
        self.said: list[str] = []
        self.is_kept, self.is_said = threading.Semaphore(0), threading.Semaphore(0)
        self.keeper = ImageKeeper(mignode.path, GUEST, os.fsencode(file), 1, self.say)
        self.keeper.kept = self.is_kept.release
        self.keeper.pause_s = 0.01

    def say(self, text: str) -> None:
        self.said.append(text)
        self.is_said.release()

    def wait_said(self) -> None:
        assert self.is_said.acquire(timeout=DEADLINE_S)

    def wait_kept(self) -> None:
        assert self.is_kept.acquire(timeout=DEADLINE_S)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagekeeper, "_AGAIN_S", 0.01)


@pytest.fixture
def kept(mignode: Mignode, tmp_path: Path, hurry: None) -> Iterator[Callable[[Path], Kept]]:
    made = []

    def make(file: Path) -> Kept:
        made.append(Kept(mignode, file))
        made[-1].keeper.start()
        return made[-1]

    yield make
    for one in made:
        one.keeper.stop(is_needed=True)


WHOLE = (ImageBytes(b"one"), ImageBytes(b" two"), ImageTaken(0.1))


def test_an_image_is_its_users_alone_and_whole(mignode: Mignode, kept: Callable[[Path], Kept], tmp_path: Path) -> None:
    mignode.answers = [WHOLE]
    file = tmp_path / "image"
    one = kept(file)
    one.wait_kept()
    assert mignode.heard[0] == TakeImage(GUEST, 1)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"one two", 0o600)
    one.keeper.stop(is_needed=True)
    assert [path.name for path in tmp_path.glob("image*")] == ["image"]
    assert one.said == []


def test_who_ends_by_himself_leaves_none(mignode: Mignode, kept: Callable[[Path], Kept], tmp_path: Path) -> None:
    mignode.answers = [WHOLE]
    one = kept(tmp_path / "image")
    one.wait_kept()
    one.keeper.stop(is_needed=False)
    assert list(tmp_path.glob("image*")) == []


def test_the_last_good_one_stays_and_a_fault_is_said_once(
    mignode: Mignode, kept: Callable[[Path], Kept], tmp_path: Path
) -> None:
    half = (ImageBytes(b"half"), Refused(errno.ENOSPC, "no room"))
    mignode.answers = [WHOLE, half, (Refused(errno.ENOSPC, "no room"),), WHOLE, half]
    one = kept(tmp_path / "image")
    one.wait_said()
    assert (tmp_path / "image").read_bytes() == b"one two"
    one.wait_kept()
    one.wait_kept()
    one.wait_said()
    for _ in range(6):
        mignode.wait_asked()
    one.keeper.stop(is_needed=True)
    assert one.said == ["no checkpoint: no room; tried again every 1 s"] * 2
    assert [path.name for path in tmp_path.glob("image*")] == ["image"]


def test_who_is_on_his_way_is_asked_again(mignode: Mignode, kept: Callable[[Path], Kept], tmp_path: Path) -> None:
    mignode.answers = [(Refused(errno.EAGAIN, "on its way"),), (Refused(errno.EAGAIN, "on its way"),), WHOLE]
    one = kept(tmp_path / "image")
    one.wait_kept()
    assert one.said == []


def test_what_somebody_else_has_put_there_stays(mignode: Mignode, kept: Callable[[Path], Kept], tmp_path: Path) -> None:
    mignode.answers = [WHOLE, (Refused(errno.ENOSPC, "no room"),)]
    file = tmp_path / "image"
    one = kept(file)
    one.wait_said()  # from here on it does nothing
    (tmp_path / "other").write_bytes(b"dear to me")
    os.rename(tmp_path / "other", file)
    mignode.answers = [WHOLE]
    refusal = NotKept(f"{file}: somebody else has put a file there")
    while refusal not in mignode.heard:
        mignode.wait_asked()
    one.keeper.stop(is_needed=False)
    assert file.read_bytes() == b"dear to me"


def test_mignode_hears_what_could_not_be_written(
    mignode: Mignode, kept: Callable[[Path], Kept], tmp_path: Path
) -> None:
    mignode.answers = [WHOLE]
    one = kept(tmp_path / "nowhere" / "image")
    one.wait_said()
    one.keeper.stop(is_needed=True)
    reason = f"{tmp_path}/nowhere/image: No such file or directory"
    assert mignode.heard[:2] == [TakeImage(GUEST, 1), NotKept(reason)]
    assert one.said == [f"no checkpoint: {reason}; tried again every 1 s"]


def test_a_place_is_looked_at_before(tmp_path: Path) -> None:
    file = tmp_path / "image"
    check_place(os.fsencode(file))
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match="exists"):
        check_place(os.fsencode(file))
    with pytest.raises(ConfigError, match="no image can be kept there: No such file"):
        check_place(os.fsencode(tmp_path / "nowhere" / "image"))
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


# ---------------------------------------------------------------- giving one


def an_image(file: Path) -> bytes:
    writer = Writer()
    data = writer.head_of(HEAD)
    data += writer.head_of(Seal(writer.digest(), b"", b""))
    file.write_bytes(data)
    return data


def test_an_image_is_given_as_it_is(tmp_path: Path) -> None:
    data = an_image(tmp_path / "image")
    image = OpenImage(str(tmp_path / "image"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        image.give(ours)
        ours.shutdown(socket.SHUT_WR)
        words = Words()
        heard = [word for piece in iter(lambda: theirs.recv(65536), b"") for word in words.arrived(piece)]
    assert heard == [ImageBytes(data), ImageBytes(b"")]
    assert (image.head, image.place) == (HEAD, place(os.stat(tmp_path / "image")))
    image.close()


def test_only_one_goes_on_with_it(tmp_path: Path) -> None:
    an_image(tmp_path / "image")
    image = OpenImage(str(tmp_path / "image"))
    with pytest.raises(ConfigError, match="another mosrun goes on with it"):
        OpenImage(str(tmp_path / "image"))
    OpenImage(str(tmp_path / "image"), is_locked=False).close()
    image.close()
    OpenImage(str(tmp_path / "image")).close()


@pytest.mark.parametrize(
    ("data", "reason"), [(None, "No such file"), (b"#!/bin/sh\n", "no image"), (b"omfs image 1\n", "cut short")]
)
def test_what_is_no_image_is_refused(data: bytes | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        OpenImage(str(file))


@pytest.mark.parametrize(
    ("its", "own", "stands"),
    [
        (PIPES, PIPES, PIPES),
        (PIPES, TTYS, PIPES),
        (PIPES, NULLS, NULLS),
        (PIPES, (Kind.CLOSED,) * 3, NULLS),
        (TTYS, TTYS, TTYS),
        (NULLS, PIPES, NULLS),
        ((Kind.PIPE, Kind.TERMINAL, Kind.CLOSED), TTYS, (Kind.PIPE, Kind.TERMINAL, Kind.CLOSED)),
    ],
)
def test_how_mosrun_stands_for_its_files(
    its: tuple[Kind, Kind, Kind], own: tuple[Kind, Kind, Kind], stands: tuple[Kind, Kind, Kind]
) -> None:
    head = msgspec.structs.replace(HEAD, plan=msgspec.msgpack.encode(FilesPlan(its, is_joined=True)))
    assert plan_for(head, FilesPlan(own)) == FilesPlan(stands, is_joined=True)


def test_a_terminal_needs_one() -> None:
    head = msgspec.structs.replace(HEAD, plan=msgspec.msgpack.encode(FilesPlan(TTYS)))
    with pytest.raises(ConfigError, match="a terminal as standard output"):
        plan_for(head, FilesPlan((Kind.TERMINAL, Kind.PIPE, Kind.TERMINAL)))
    with pytest.raises(ConfigError, match="damaged"):
        plan_for(HEAD, FilesPlan(TTYS))


def test_an_input_that_has_ended_is_not_read() -> None:
    assert without_input(FilesPlan(PIPES)).kinds == (Kind.NULL, Kind.PIPE, Kind.PIPE)
    assert without_input(FilesPlan(TTYS)).kinds == TTYS
