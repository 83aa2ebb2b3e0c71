"""What a node has written down of a guest, and what is left of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mignode.guestfolder import GuestFolder, folders
from mignode.handover import Phase, Record, Stay
from mignode.traits import Traits

NAME = "1.4242.99"
TRAITS = Traits(NAME, 1, 4242, 1001, 1001, (), "one", b"prog", b"", 4242)


def made(run_dir: Path, name: str = NAME) -> GuestFolder:
    folder = GuestFolder(run_dir, name)
    folder.make()
    folder.traits, folder.stay = TRAITS, Stay(Phase.HERE, 1)
    (folder.path / "root").mkdir()
    (folder.path / "body.sock").touch()
    return folder


def test_another_mignode_finds_what_is_written(tmp_path: Path) -> None:
    folder = made(tmp_path)
    folder.record = Record(1)
    again = GuestFolder(tmp_path, NAME)
    assert (again.traits, again.stay, again.record) == (TRAITS, Stay(Phase.HERE, 1), Record(1))
    assert again.path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        again.make()


def test_home_keeps_what_it_knows_of_a_guest_that_has_left(tmp_path: Path) -> None:
    folder = made(tmp_path)
    folder.record = Record(2, 2, 2)
    folder.leave()
    assert (folder.traits, folder.stay, folder.record) == (TRAITS, None, Record(2, 2, 2))
    assert sorted(path.name for path in folder.path.iterdir()) == ["record", "traits"]
    folder.leave()
    folder.remove()
    assert not folder.path.exists()


def test_another_node_keeps_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path)
    folder.leave()
    assert list((tmp_path / "guests").iterdir()) == []
    folder.remove()


def test_which_guests_are_known(tmp_path: Path) -> None:
    assert list(folders(tmp_path)) == []
    for name in ("3.7.7", NAME):
        made(tmp_path, name)
    (tmp_path / "guests" / "no guest").mkdir()
    assert [folder.name for folder in folders(tmp_path)] == [NAME, "3.7.7"]


@pytest.mark.parametrize("name", ["../etc", "1.2", "a.b.c", "", "1.2.3/4"])
def test_what_is_no_guests_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no guest's name"):
        GuestFolder(tmp_path, name)
