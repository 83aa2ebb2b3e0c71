"""Whose pipes are: read from a real process, and given back to the same after they were root's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mignode.pipeowners import FILE, give_back, note
from omfs.errors import WireError
from omfs.kernel.credentials import ROOT

PROGRAM = "import sys; print('ready', flush=True); sys.stdin.read()"
INSIDE = 7
ALICE, BOB = (1001, 1002), (1003, 1004)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Its standard input and output are pipes, 5 leads to the same as 0."""
    with ROOT:  # another test of this worker may have left its group behind: pipes would be that group's
        reading, writing = os.pipe()
    with subprocess.Popen(
        ["sh", "-c", f'exec 5<&0; exec "{sys.executable}" -c "$0"', PROGRAM],
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()
        os.close(reading)
        os.close(writing)


def own(process: subprocess.Popen[bytes], descriptor: int, owner: tuple[int, int]) -> None:
    os.chown(f"/proc/{process.pid}/fd/{descriptor}", *owner)


def owner(process: subprocess.Popen[bytes], descriptor: int) -> tuple[int, int]:
    status = os.stat(f"/proc/{process.pid}/fd/{descriptor}")
    return status.st_uid, status.st_gid


@pytest.mark.parametrize(("uid", "second"), [(0, BOB), (1001, (0, 0))])
def test_a_user_gets_his_own_back_and_root_all(
    tmp_path: Path, process: subprocess.Popen[bytes], uid: int, second: tuple[int, int]
) -> None:
    pids = [(INSIDE, process.pid)]
    own(process, 0, ALICE)
    own(process, 1, BOB)
    note(tmp_path, pids)
    for descriptor in (0, 1):
        own(process, descriptor, (0, 0))
    give_back(tmp_path, [(INSIDE + 1, process.pid)], uid)
    assert owner(process, 0) == (0, 0), "another process's"
    give_back(tmp_path, pids, uid)
    assert [owner(process, descriptor) for descriptor in (0, 5, 1)] == [ALICE, ALICE, second]


def test_each_pipe_is_noted_once_and_roots_not_at_all(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    own(process, 0, ALICE)
    note(tmp_path, [(INSIDE, process.pid)])
    ((number, descriptor, *of),) = msgspec.msgpack.decode((tmp_path / FILE).read_bytes())
    assert (number, tuple(of)) == (INSIDE, ALICE)
    assert descriptor in (0, 5)


def test_only_pipes_are_given_to_anybody(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    """Whoever forged the image may have named a descriptor of a file."""
    target = tmp_path / "file"
    target.touch()
    with target.open() as file, subprocess.Popen(["sleep", "60"], stdin=file) as reader:
        (tmp_path / FILE).write_bytes(msgspec.msgpack.encode([(INSIDE, 0, *ALICE)]))
        give_back(tmp_path, [(INSIDE, reader.pid)], 0)
        reader.kill()
    assert target.stat().st_uid == 0


def test_who_has_ended_an_image_without_it_and_one_that_is_forged(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    give_back(tmp_path, [(1, gone.pid)], 0)
    note(tmp_path, [(1, gone.pid)])
    assert msgspec.msgpack.decode((tmp_path / FILE).read_bytes()) == []
    give_back(tmp_path, [(1, gone.pid)], 0)
    for forged in (b"", b"\xc0", msgspec.msgpack.encode([(1, 0, (1 << 32) - 1, 0)])):
        (tmp_path / FILE).write_bytes(forged)
        with pytest.raises(WireError, match=FILE):
            give_back(tmp_path, [], 0)
