"""What is written down of guests: it is the old or the new, and nobody's name is a path."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest

from mignode.handover import Phase, Record, Stay
from mignode.record import guest_name, home_of, is_guest_name, records, stays

GUEST = guest_name(1, 4242, 998877)


def test_what_was_written_is_found_by_the_next_mignode(tmp_path: Path) -> None:
    record = Record(2, epoch=3, issued=4, destination=5, source=1)
    stay = Stay(Phase.LEAVING, 3, attempt=4, stopped=(17,))
    records(tmp_path).write(GUEST, Record(1))
    records(tmp_path).write(GUEST, record)
    stays(tmp_path).write(GUEST, stay)
    assert list(records(tmp_path).all()) == [(GUEST, record)]
    assert list(stays(tmp_path).all()) == [(GUEST, stay)]
    assert sorted(os.listdir(tmp_path / "guests" / GUEST)) == ["record", "stay"]
    assert (tmp_path / "guests" / GUEST / "record").stat().st_mode & 0o077 == 0


def test_a_folder_goes_with_its_last_file(tmp_path: Path) -> None:
    records(tmp_path).write(GUEST, Record(1))
    stays(tmp_path).write(GUEST, Stay(Phase.HERE, 1))
    records(tmp_path).forget(GUEST)
    assert (records(tmp_path).read(GUEST), stays(tmp_path).read(GUEST)) == (None, Stay(Phase.HERE, 1))
    for _ in range(2):
        stays(tmp_path).forget(GUEST)
    assert os.listdir(tmp_path / "guests") == []


def test_nothing_was_ever_written(tmp_path: Path) -> None:
    assert list(records(tmp_path).all()) == []
    assert records(tmp_path).read(GUEST) is None
    records(tmp_path).forget(GUEST)


def test_what_is_not_ours_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "guests" / GUEST
    folder.mkdir(parents=True)
    (folder / "record").write_text('{"node": 2, "beyond": 1}')
    (tmp_path / "guests" / "notes").mkdir()
    assert list(records(tmp_path).all()) == []
    assert "taken as not there" in caplog.text


@pytest.mark.parametrize(
    "name", ["", ".", "..", "1.2", "1.2.3/..", "../1.2.3", "1.2.3\n", "01.2.3", "1.0.3", "1.2.3.4"]
)
def test_what_is_no_name_is_no_path(name: str, tmp_path: Path) -> None:
    assert not is_guest_name(name)
    with pytest.raises(ValueError, match="no guest's name"):
        records(tmp_path).write(name, Record(1))


def test_the_name_tells_the_home() -> None:
    assert is_guest_name(GUEST)
    assert home_of(GUEST) == 1


def test_a_full_disk_leaves_the_old_one(tmp_path: Path) -> None:
    kept = records(tmp_path)
    kept.write(GUEST, Record(1))
    (tmp_path / "guests" / GUEST / "record.new").mkdir()  # it can't be made
    with pytest.raises(OSError, match="directory"):
        kept.write(GUEST, Record(2))
    assert kept.read(GUEST) == Record(1)


def test_a_kill_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    """A writer that is killed at some moment, again and again."""
    kept = records(tmp_path)
    kept.write(GUEST, Record(1, epoch=1, issued=1))
    for turn in range(20):
        child = os.fork()
        if not child:
            for epoch in itertools.count(2):
                kept.write(GUEST, Record(1, epoch=epoch, issued=epoch))
        try:
            seen = [kept.read(GUEST) for _ in range(1 + turn * 5)]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert all(record is not None and record.epoch == record.issued for record in [*seen, kept.read(GUEST)])
