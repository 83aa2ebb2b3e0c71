"""mignode/oldfiles.py: which files of an image may have changed since, and what is said of the others."""

from __future__ import annotations

import os

import pytest

from mignode.criuimages import field_of, message_of, number_of
from mignode.oldfiles import forget_sizes, reason_of, without_sizes
from omfs.errors import WireError

MAGIC = b"\x54\x56\x43\x44magi"


def opened(name: bytes, flags: int, size: int | None) -> bytes:
    regular = number_of(1, 7) + number_of(2, flags) + number_of(3, 60) + field_of(5, b"") + field_of(6, name)
    regular += (number_of(8, size) if size is not None else b"") + number_of(10, 0o100644)
    return number_of(1, 1) + number_of(2, 7) + field_of(3, regular)


def image(*messages: bytes) -> bytes:
    return MAGIC + b"".join(map(message_of, messages))


def test_what_it_wrote_may_have_grown() -> None:
    pipe = number_of(1, 3) + field_of(18, number_of(1, 22))
    before = image(opened(b"/a", os.O_RDWR, 5), opened(b"/a", os.O_RDONLY, 5), opened(b"/lib", os.O_RDONLY, 5), pipe)
    after = image(opened(b"/a", os.O_RDWR, None), opened(b"/a", 0, None), opened(b"/lib", 0, 5), pipe)
    assert without_sizes(before) == after
    assert without_sizes(after) == after


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(WireError):
        without_sizes(MAGIC + b"\xff\xff\xff\xff")


def test_the_image_is_changed_in_its_directory(tmp_path: os.PathLike[str]) -> None:
    path = tmp_path / "files.img"  # type: ignore[operator]
    path.write_bytes(image(opened(b"/a", os.O_WRONLY, 5)))
    forget_sizes(tmp_path)  # type: ignore[arg-type]
    assert path.read_bytes() == image(opened(b"/a", os.O_WRONLY, None))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "criu could not restore: Can't open file tmp/c/numbers on restore: No such file or directory; Unable to "
            "open fd=3 id=0x18; Restoring FAILED.",
            "it had /tmp/c/numbers open, which is not to be opened here: No such file or directory",
        ),
        (
            "criu could not restore: File usr/bin/a b has bad size 17 (expect 18); Restoring FAILED.",
            "it had /usr/bin/a b open, which is another one here: its size is 17, and was 18",
        ),
        (
            "criu could not restore: File usr/lib/x has bad build-ID",
            "it had /usr/lib/x open, which is another one here: its build-ID differs",
        ),
        ("criu could not restore: anything else", "criu could not restore: anything else"),
    ],
)
def test_the_user_is_told_which_file(said: str, told: str) -> None:
    assert reason_of(said) == told
