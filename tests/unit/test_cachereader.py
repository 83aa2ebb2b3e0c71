"""What the audit's reader sees of a real FUSE mount that a thread of the test serves: the kernel's caches, unasked."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from omfs.kernel import namespaces as ns
from omfs.kernel.statx import status_of
from omfs.mount import cachereader
from omfs.mount.cachereader import WINDOW_BYTES, Seen, Wanted, digest_of
from tests.unit.test_fusenotify import CONTENT, FILE, GETATTR, TOP, Served

GENERATION = 1  # of Served's entries


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    mount = Served(tmp_path)
    try:
        tmp_path.stat()
        yield mount
    finally:
        ns.unmount(str(tmp_path), ns.MNT_DETACH)
        mount.thread.join()
        os.close(mount.fd)


def look(served: Served, *wanted: Wanted) -> list[Seen]:
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in wanted)
    command = [sys.executable, "-m", cachereader.__name__, str(served.top)]
    done = subprocess.run(command, input=lines, stdout=subprocess.PIPE, check=True, timeout=60)
    return [msgspec.json.decode(line, type=Seen) for line in done.stdout.splitlines()]


def test_what_is_cached_is_seen_without_a_question(served: Served) -> None:
    served.read()  # makes the kernel doubt the access time
    with served.asking():
        whole, attributes = look(served, Wanted(FILE, True, 0, GENERATION), Wanted(FILE, False, 0, GENERATION))
    assert whole.status is not None
    assert (whole.status.size_bytes, whole.status.nlink) == (len(CONTENT), 1)
    assert (whole.offset, whole.size_bytes, whole.digest) == (0, len(CONTENT), hashlib.sha256(CONTENT).digest())
    assert (attributes.status, attributes.digest) == (whole.status, b"")


def test_what_is_not_cached_any_more_is_asked_for(served: Served) -> None:
    served.read()
    assert served.notifier.inval_attributes(FILE)
    with served.asking((GETATTR, FILE, 0)):
        (seen,) = look(served, Wanted(FILE, False, 0, GENERATION))
    assert seen.errno == 0


def test_what_the_kernel_does_not_know_is_not_asked_for(served: Served) -> None:
    served.read()
    with served.asking():
        forgotten, other = look(served, Wanted(77, True, 0, GENERATION), Wanted(FILE, True, 0, GENERATION + 1))
    assert (forgotten, other) == (Seen(77, errno.ESTALE), Seen(FILE, errno.ESTALE))


def test_a_directory_has_no_data(served: Served) -> None:
    (seen,) = look(served, Wanted(TOP, True, 0, 0))
    assert seen.status is not None
    assert seen.digest == b""


def test_one_window_of_the_data(tmp_path: Path) -> None:
    path, size_bytes = tmp_path / "file", 2 * WINDOW_BYTES + 5
    with path.open("wb") as file:
        file.truncate(size_bytes)
        file.seek(2 * WINDOW_BYTES)
        file.write(b"tail.")
    with path.open("rb") as file:
        tail = (2 * WINDOW_BYTES, 5, hashlib.sha256(b"tail.").digest())
        assert digest_of(file.fileno(), size_bytes, 5) == tail
        assert digest_of(file.fileno(), size_bytes, 0)[:2] == (0, WINDOW_BYTES)
        assert digest_of(file.fileno(), 0, 3)[0] == 0


def test_status_is_as_stat_has_it(tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to("target")
    os.utime(path, ns=(1, 1_700_000_000_123_456_789), follow_symlinks=False)
    for place in (path, tmp_path, Path("/dev/null")):
        fd = os.open(place, os.O_PATH | os.O_NOFOLLOW)
        try:
            status, expected = status_of(fd), os.lstat(place)
        finally:
            os.close(fd)
        assert status == (
            expected.st_mode, expected.st_nlink, expected.st_uid, expected.st_gid, expected.st_rdev, expected.st_size,
            expected.st_mtime_ns, expected.st_ctime_ns, expected.st_ino,
        )  # fmt: skip
