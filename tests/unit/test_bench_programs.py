"""The benchmark's own programs, natively: their inputs are the same every time, and a stale answer ends a ping-pong."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench import pingpong, programs

PINGPONG = [sys.executable, "-I", pingpong.__file__]
SMALL = programs.Sizes(archived=150, tracked=20, commits=10)


def test_inputs_are_always_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        programs.make_archive(str(tmp_path / f"{name}.tar"), SMALL.archived)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        sizes = [entry.size for entry in archive]
    assert len(sizes) == SMALL.archived
    assert min(sizes) >= 200
    assert max(sizes) <= 20_000
    assert list(programs.commits(20, 10)) == list(programs.commits(20, 10))


def test_the_archive_and_the_repository_can_be_taken_out(tmp_path: Path) -> None:
    inputs = str(tmp_path / "inputs")
    os.mkdir(inputs)
    programs.make_archive(f"{inputs}/archive.tar", SMALL.archived)
    programs.make_repository(f"{inputs}/repository", SMALL.tracked, SMALL.commits)
    assert programs.tar_x(str(tmp_path / "tar"), inputs, SMALL) > 0
    clone = tmp_path / "clone"
    assert programs.git_clone(str(clone), inputs) > 0
    assert len(list(clone.glob("part*/file*.txt"))) == SMALL.tracked + SMALL.commits - 1
    assert programs.git(None, "-C", str(clone), "rev-list", "--count", "HEAD").strip() == str(SMALL.commits)
    assert programs.git_status(str(clone)) > 0


def test_less_done_than_told_is_an_error(tmp_path: Path) -> None:
    programs.make_archive(str(tmp_path / "archive.tar"), SMALL.archived - 1)
    with pytest.raises(programs.ProgramError, match="149 files instead of 150"):
        programs.tar_x(str(tmp_path / "tar"), str(tmp_path), SMALL)
    clone = tmp_path / "clone"
    programs.git(None, "init", "--quiet", str(clone))
    (clone / "new").touch()
    with pytest.raises(programs.ProgramError, match="not clean"):
        programs.git_status(str(clone))


def play(lead: Path, follow: Path, turn: str) -> list[tuple[int, str]]:
    """Exit status and stderr of the two programs, each looking at a directory of its own."""
    to_lead, to_follow = os.pipe(), os.pipe()
    started = [
        subprocess.Popen(
            [*PINGPONG, role, str(place), "--turn", turn, "--rounds", "5"],
            stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True,
        )
        for role, place, stdin, stdout in (
            ("lead", lead, to_lead[0], to_follow[1]), ("follow", follow, to_follow[0], to_lead[1]),
        )
    ]  # fmt: skip
    for fd in (*to_lead, *to_follow):
        os.close(fd)
    said = [process.communicate(timeout=60)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.parametrize("turn", pingpong.PINGPONG)
def test_turns_on_one_directory_are_timed(tmp_path: Path, turn: str) -> None:
    pingpong.prepare(str(tmp_path / "x"))
    (status, figure), follower = play(tmp_path / "x", tmp_path / "x", turn)
    assert status == 0
    assert float(figure) > 0
    assert follower == (0, "")


@pytest.mark.parametrize("turn", pingpong.PINGPONG)
def test_a_stale_answer_ends_both(tmp_path: Path, turn: str) -> None:
    """Two directories that know nothing of each other are a cache that is never told."""
    for name in ("x", "y"):
        pingpong.prepare(str(tmp_path / name))
    first, (status, said) = play(tmp_path / "x", tmp_path / "y", turn)
    assert first == (1, "lead: the other program has ended\n")
    assert status == pingpong.STALE_STATUS
    assert said.startswith("follow: turn 2: ")
