"""The images in a directory, made fit for their new node: each as it needs, and only where it must be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mignode import stripping
from mignode.criuimages import field_of, image_of, message_of, number_of
from mignode.ownsession import TERMINALS
from mignode.stripping import strip
from omfs.errors import WireError
from tests.unit.test_mending import MAGIC, REGISTERS, core, files, timer
from tests.unit.test_ownfilter import OURS, seccomp_image
from tests.unit.test_ownsession import ENTRY, OTHERS


def below(filters: bytes) -> bytes:
    """The image of a thread that is below these."""
    return MAGIC + message_of(number_of(1, 1) + field_of(5, filters + b"\x69" + bytes(8)))


def written_by(folder: Path) -> set[str]:
    """The images that `strip` writes anew."""
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    strip(folder)
    return {path.name for path in folder.iterdir() if path.stat().st_mtime != 1}


def test_each_image_is_changed_as_it_needs(tmp_path: Path) -> None:
    made = {
        TERMINALS: image_of(MAGIC, [ENTRY, OTHERS]),
        "files.img": files(timer(3, (0, 0), (0, 7_000_000))),
        "seccomp.img": seccomp_image([(OURS, None)]),
        "core-1.img": below(number_of(11, 2) + number_of(12, 0)),
        "core-2.img": below(b""),
        "pages-1.img": b"no image at all",
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    assert written_by(tmp_path) == {TERMINALS, "files.img", "core-1.img"}
    assert (tmp_path / "core-1.img").read_bytes() == below(b"")
    assert written_by(tmp_path) == set(), "once is enough"


def test_both_changes_of_a_core_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its filter, which needs seccomp.img, and its interrupted call, which does not."""
    monkeypatch.setattr(stripping, "calls_restarted", lambda image: image + b"restarted")
    monkeypatch.setattr(stripping, "core_without", lambda image, ours: image + repr(ours).encode())
    (tmp_path / "core-1.img").write_bytes(b"")
    strip(tmp_path)
    assert (tmp_path / "core-1.img").read_bytes() == b"restarted{}"


def test_no_images(tmp_path: Path) -> None:
    strip(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "core-1.img").write_bytes(core(REGISTERS)[:-1])
    with pytest.raises(WireError):
        strip(tmp_path)
