"""A mount whose daemon was killed and can not end: who waits there gets an error, and a living one is left alone."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from omfs.kernel.fuseabort import abort_connection
from omfs.kernel.mounting import mount_at
from omfs.mount import deadmount
from tests.unit.test_fusenotify import Served, served  # noqa: F401  (a fixture)


class Caller(threading.Thread):
    """Makes a directory in the mount, and is not answered."""

    def __init__(self, mount: Served) -> None:
        super().__init__(daemon=True)
        self.mount = mount
        self.error: int | None = None
        self.start()
        assert mount.is_making.wait(60)

    def run(self) -> None:
        try:
            (self.mount.top / "new").mkdir()
        except OSError as error:
            self.error = error.errno

    def outcome(self) -> int | None:
        self.join(60)
        assert not self.is_alive()
        return self.error


def note(run_dir: Path, mount: Path, pid: int, started: str | None) -> None:
    (run_dir / deadmount.NOTE).write_text(json.dumps({"mountpoint": str(mount), "pid": pid, "started": started}))


def ended_process() -> tuple[int, str]:
    """A process that is a zombie, as a killed daemon with a stuck thread is."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = deadmount.identity(process.pid)
    assert started is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert deadmount.identity(process.pid) is None
    process.communicate()
    return process.pid, started


def test_an_aborted_connection_fails_who_waits(served: Served) -> None:  # noqa: F811
    caller = Caller(served)
    line = mount_at(os.fsencode(served.top))
    assert line is not None
    abort_connection(line.device)
    assert caller.outcome() in (errno.ECONNABORTED, errno.ENOTCONN)
    served.may_make.set()


def test_there_may_be_no_such_connection() -> None:
    with pytest.raises(FileNotFoundError):
        abort_connection(b"0:999999")


def test_a_dead_daemon_is_told_from_a_living_one(
    served: Served,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    monkeypatch.setattr(deadmount, "OMFS_TYPE", b"fuse")
    assert not deadmount.abort_if_dead(run_dir)  # nobody left a note
    caller = Caller(served)
    note(run_dir, served.top, os.getpid(), deadmount.identity(os.getpid()))
    assert not deadmount.abort_if_dead(run_dir)
    assert caller.is_alive()
    pid, started = ended_process()
    note(run_dir, served.top, pid, started)
    assert deadmount.abort_if_dead(run_dir)
    assert caller.outcome() in (errno.ECONNABORTED, errno.ENOTCONN)
    served.may_make.set()


def test_an_unmounted_one_needs_nothing(tmp_path: Path) -> None:
    pid, started = ended_process()
    note(tmp_path, tmp_path, pid, started)
    assert not deadmount.abort_if_dead(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"pid": "x", "started": 1, "mountpoint": "/mfs"}'])
def test_a_note_that_says_nothing_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / deadmount.NOTE).write_text(text)
    assert not deadmount.abort_if_dead(tmp_path)
