"""mignode/reach.py, on real processes: what their user could not open himself is found; and whose limits hold."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from mignode import birthright
from mignode.birthright import Birthright
from mignode.reach import check_reach, hold_to
from omfs.errors import RemoteFailure
from omfs.kernel.credentials import ROOT, Identity

USER = Identity(1001, 1001, ())


@contextmanager
def process_with(*files: int, cwd: str = "/") -> Iterator[int]:
    """One of root's that has these open."""
    null = subprocess.DEVNULL
    process = subprocess.Popen(["/bin/sleep", "1000"], pass_fds=files, stdin=null, stdout=null, stderr=null, cwd=cwd)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def opened() -> Iterator[list[int]]:
    fds: list[int] = []
    yield fds
    for fd in fds:
        os.close(fd)


def check(pid: int, user: Identity = USER) -> None:
    check_reach(pid, [pid], user)


def test_what_everybody_may_read_is_fine(opened: list[int]) -> None:
    opened += [os.open("/etc/passwd", os.O_RDONLY), *os.pipe()]
    with process_with(*opened) as pid:
        check(pid)


@pytest.mark.parametrize("mode", [os.O_WRONLY, os.O_RDWR])
def test_what_he_may_not_write_is_found(mode: int, opened: list[int]) -> None:
    opened.append(os.open("/etc/passwd", mode))
    with process_with(*opened) as pid:
        with pytest.raises(RemoteFailure, match="/etc/passwd open, which its user may not open"):
            check(pid)
        check(pid, ROOT)


def test_what_lies_where_he_can_not_go_is_found(tmp_path: Path, opened: list[int]) -> None:
    """Though he might read the file itself."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    (locked / "file").write_text("")
    (locked / "file").chmod(0o666)
    opened.append(os.open(locked / "file", os.O_RDONLY))
    with process_with(*opened) as pid, pytest.raises(RemoteFailure, match="locked/file"):
        check(pid)
    with process_with(cwd=str(locked)) as pid, pytest.raises(RemoteFailure, match="locked open"):
        check(pid)


def test_a_file_without_a_name_must_be_his_or_open_to_him(tmp_path: Path, opened: list[int]) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    opened.append(fd)
    os.unlink(tmp_path / "file")
    with process_with(fd) as pid:
        with pytest.raises(RemoteFailure, match="deleted"):
            check(pid)
        os.fchown(fd, USER.uid, USER.gid)
        check(pid)


def rights(**changes: object) -> Birthright:
    return msgspec.structs.replace(birthright.read(os.getpid(), os.geteuid(), os.getegid()), **changes)


def test_narrower_limits_hold() -> None:
    own = rights()
    files = resource.RLIMIT_NOFILE
    soft, hard = own.limits[files]
    limits = tuple((100, 200) if number == files else limit for number, limit in enumerate(own.limits))
    with process_with() as pid:
        hold_to(own, [pid])
        assert resource.prlimit(pid, files) == (soft, hard)
        hold_to(rights(limits=limits, nice=own.nice + 3), [pid])
        assert resource.prlimit(pid, files) == (min(soft, 200), 200)
        assert os.getpriority(os.PRIO_PROCESS, pid) == own.nice + 3
        hold_to(own, [pid])  # wider ones give nothing
        assert resource.prlimit(pid, files) == (min(soft, 200), 200)
        assert os.getpriority(os.PRIO_PROCESS, pid) == own.nice + 3
