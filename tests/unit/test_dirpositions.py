"""How far a directory was read is a number of names on the way, and a position of the file system at both ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mignode.criuimages import MAGIC_BYTES, field_of, fields_of, image_of, messages_of, number_of
from mignode.dirpositions import make_portable, set_natively, with_positions
from omfs.kernel.directories import read_entries

MAGIC = b"\x12\x34\x56\x78FILE"
NAMES = 700  # several reads of 32 KiB
READER = """
import os, sys
sys.path.insert(0, sys.argv[3])
from omfs.kernel.directories import read_entries
directory = os.open(sys.argv[1], os.O_RDONLY)  # CRIU leaves O_DIRECTORY out
other = os.dup(directory)
told = [entry.name for entry in read_entries(directory)] if sys.argv[2] == "some" else []
os.lseek(directory, int(sys.argv[2]), os.SEEK_SET) if sys.argv[2].isdigit() else None
print(len(told), flush=True)
sys.stdin.readline()
while entries := read_entries(directory):
    told += [entry.name for entry in entries]
print(len(told), len(set(told)), flush=True)
"""


def regular(name: bytes, position: int) -> bytes:
    """A file_entry, its reg_file_entry with fields 1 id, 2 flags, 3 pos, 6 name."""
    inner = number_of(1, 5) + number_of(2, os.O_DIRECTORY) + number_of(3, position) + field_of(6, name)
    return number_of(1, 1) + number_of(2, 5) + field_of(3, inner)


def positions_in(image: bytes) -> list[int]:
    found = []
    for message in messages_of(image):
        for field in fields_of(message):
            if field.number == 3:
                assert isinstance(field.value, bytes)
                found += [one.value for one in fields_of(field.value) if one.number == 3]
    return [position for position in found if isinstance(position, int)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "many"
    place.mkdir()
    for number in range(NAMES):
        (place / f"{number:04}{'_' * 60}").touch()
    return place


@contextmanager
def reader(place: Path, begin: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has read some of a directory, or stands at a position; it goes on when it is told to."""
    root = str(Path(__file__).parent.parent.parent)
    command = [sys.executable, "-c", READER, str(place), begin, root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def finished(process: subprocess.Popen[str]) -> list[int]:
    out, _ = process.communicate("\n", timeout=60)
    return [int(word) for word in out.split()]


@given(
    st.lists(st.tuples(st.sampled_from([b"/a", b"/b", b"/c"]), st.integers(0, (1 << 63) - 1)), max_size=6),
    st.dictionaries(
        st.tuples(st.sampled_from([b"/a", b"/b"]), st.integers(0, (1 << 63) - 1)), st.integers(0, 99), max_size=3
    ),
)
def test_only_what_is_told_is_changed(files: list[tuple[bytes, int]], places: dict[tuple[bytes, int], int]) -> None:
    files += list(places)
    image = image_of(MAGIC, [number_of(1, 7), *(regular(*file) for file in files)])
    after = with_positions(image, places)
    assert after[:MAGIC_BYTES] == MAGIC
    assert positions_in(after) == [places.get(file, file[1]) for file in files]
    assert with_positions(image, {}) == image


def test_what_was_read_natively_becomes_a_number_of_names(place: Path, tmp_path: Path) -> None:
    with reader(place, "some") as process:
        assert process.stdout is not None
        told = int(process.stdout.readline())
        assert 0 < told < NAMES
        [line] = [
            line for line in Path(f"/proc/{process.pid}/fdinfo/3").read_text().splitlines() if line.startswith("pos")
        ]
        images = tmp_path / "images"
        images.mkdir()
        position = int(line.split()[1])
        (images / "files.img").write_bytes(
            image_of(MAGIC, [regular(os.fsencode(place), position), regular(b"/other", position)])
        )
        make_portable(images, [process.pid])
        assert positions_in((images / "files.img").read_bytes()) == [told + 2, position]
        assert finished(process) == [NAMES, NAMES]


def test_of_what_nobody_has_begun_no_image_is_touched(place: Path, tmp_path: Path) -> None:
    with reader(place, "0") as process:
        assert process.stdout is not None
        process.stdout.readline()
        make_portable(tmp_path / "none", [process.pid])
        set_natively([process.pid])
        assert finished(process) == [NAMES, NAMES]


@pytest.mark.parametrize("generation", [0, 1, 77])
@pytest.mark.parametrize("names", [0, 1, 300, NAMES, NAMES + 5])
def test_a_number_of_names_becomes_a_position(place: Path, names: int, generation: int) -> None:
    """Two descriptors of one opening are set once."""
    with reader(place, str(generation << 28 | names + 2)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        set_natively([process.pid])
        left = max(NAMES - names, 0)
        assert finished(process) == [left, left]


def test_there_and_back_every_name_comes_once(place: Path, tmp_path: Path) -> None:
    """What is read up to there, and from there on in a directory where as many names are before it."""
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        begun = {entry.name for entry in read_entries(directory)}
    finally:
        os.close(directory)
    with reader(place, str(len(begun) + 2)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        set_natively([process.pid])
        assert finished(process) == [NAMES - len(begun)] * 2
