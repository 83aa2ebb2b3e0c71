"""The keeper of kernel leases: over a kill -9 of the one who took them, and over its own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs.export import keeperprocess, leasekeeper
from omfs.export.localchanges import Change, ChangeKind
from tests.unit.localwatch import WRITE, Daemon, Program, Watch, program

NAMES, DATA = ChangeKind.NAMES, ChangeKind.DATA


@pytest.fixture
def watch(room: Path, tmp_path: Path) -> Iterator[Watch]:
    watch = Watch(room, tmp_path)
    yield watch
    watch.close()


@pytest.fixture
def file(watch: Watch) -> Path:
    path = watch.top / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def daemon(room: Path, tmp_path: Path) -> Iterator[Daemon]:
    for name in ("file", "other"):
        (room / name).write_bytes(b"content")
    daemon = Daemon(room, tmp_path, "file", "other")
    yield daemon
    daemon.end()


def test_a_kill_loses_no_guard_and_no_event(room: Path, tmp_path: Path, daemon: Daemon) -> None:
    daemon.kill()
    early = Program(room / "file", WRITE)  # while nobody watches
    try:
        early.wait_blocked()
        subprocess.run(["mkdir", room / "made-meanwhile"], check=True)
        watch = Watch(room, tmp_path)
        try:
            file, other, top = watch.cache("file"), watch.cache("other"), watch.cache(".")
            assert watch.changes.in_grace
            assert Change(NAMES, top, frozenset({b"made-meanwhile"})) in watch.drained()
            assert not early.is_in
            assert not watch.changes.is_guarded(other)
            assert not watch.changes.guard_data(file, watch.opener("file"))
            assert watch.changes.guard_data(other, watch.opener("other"))
            with program(room / "other", WRITE) as late:
                assert Change(DATA, other) in watch.wait_told()
                watch.changes.unguard(other)  # what the killed one granted may be cached still
                assert not late.is_in
                watch.changes.end_grace()
                assert not watch.changes.in_grace
                early.wait_in()
                late.wait_in()
            assert watch.changes.guard_data(other, watch.opener("other"))
        finally:
            watch.close()
        daemon.wait_keeper_ended()
        assert not (tmp_path / leasekeeper.SOCKET_NAME).exists()
    finally:
        early.end()


def test_a_kill_while_a_writer_waits(room: Path, tmp_path: Path, daemon: Daemon) -> None:
    with program(room / "file", WRITE) as writer:
        writer.wait_blocked()
        daemon.kill()
        for _ in range(2):  # and again, before the grace has ended
            again = Daemon(room, tmp_path)
            assert again.keeper_pid is None  # it found the one that was there
            again.end()
        watch = Watch(room, tmp_path)
        try:
            assert watch.changes.in_grace
            assert not writer.is_in
            watch.changes.end_grace()
            writer.wait_in()
        finally:
            watch.close()


def test_guards_that_were_granted_on_again_outlive_the_grace(room: Path, tmp_path: Path, daemon: Daemon) -> None:
    daemon.kill()
    watch = Watch(room, tmp_path)
    try:
        key = watch.guard("file")
        watch.changes.end_grace()
        assert watch.changes.is_guarded(key)
        with program(room / "other", WRITE) as free, program(room / "file", WRITE) as guarded:
            free.wait_in()
            assert watch.wait_told() == [Change(DATA, key)]
            assert not guarded.is_in
            watch.changes.unguard(key)
            guarded.wait_in()
    finally:
        watch.close()


def test_many_guards_come_back(room: Path, tmp_path: Path) -> None:
    names = [str(number) for number in range(3 * keeperprocess.DESCRIPTORS_MAX + 1)]
    for name in names:
        (room / name).touch()
    daemon = Daemon(room, tmp_path, *names)
    try:
        daemon.kill()
        watch = Watch(room, tmp_path)
        try:
            keys = [watch.guard(name) for name in names]
            watch.changes.end_grace()
            assert all(watch.changes.is_guarded(key) for key in keys)
            with pytest.raises(BlockingIOError):
                os.open(room / names[-1], os.O_WRONLY | os.O_NONBLOCK)
            assert watch.wait_told() == [Change(DATA, keys[-1])]
        finally:
            watch.close()
    finally:
        daemon.end()


def test_without_a_daemon_the_keeper_ends(room: Path, tmp_path: Path) -> None:
    (room / "file").touch()
    daemon = Daemon(room, tmp_path, "file", linger_s=0.2)
    try:
        with program(room / "file", WRITE) as writer:
            writer.wait_blocked()
            daemon.kill()
            daemon.wait_keeper_ended()
            writer.wait_in()
        assert not (tmp_path / leasekeeper.SOCKET_NAME).exists()
    finally:
        daemon.end()


def test_an_orderly_end_ends_the_keeper(room: Path, tmp_path: Path) -> None:
    (room / "file").touch()
    watch = Watch(room, tmp_path)
    watch.guard("file")
    watch.close()
    assert not (tmp_path / leasekeeper.SOCKET_NAME).exists()
    with program(room / "file", WRITE) as writer:
        writer.wait_in()
    again = Watch(room, tmp_path)
    assert not again.changes.in_grace
    again.close()


def test_the_keepers_directory_is_made(room: Path, tmp_path: Path) -> None:
    watch = Watch(room, tmp_path / "run" / "omfs")
    watch.close()
    assert os.listdir(tmp_path / "run" / "omfs") == []


def test_a_keeper_that_dies_is_replaced(watch: Watch, file: Path) -> None:
    (watch.top / "other").touch()
    before = watch.keeper._process
    assert before is not None
    watch.guard("file")
    before.kill()
    before.wait()
    watch.guard("other")
    after = watch.keeper._process
    assert after is not None
    assert after.pid != before.pid
    assert after.poll() is None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with connection:
        connection.connect(str(watch.keeper._path))
        connection.send(keeperprocess.RECOVER)
        kinds = []
        while (packet := connection.recv(1 << 16)) != keeperprocess.END:  # the descriptors are not taken
            kinds.append((packet[:1], len(keeperprocess.unpack_keys(packet))))
        connection.send(keeperprocess.END)  # it listens to the last one who came
    assert kinds == [(keeperprocess.HOLD, 2), (keeperprocess.WATCH, 0)]


def test_without_a_keeper_nothing_is_guarded(
    watch: Watch, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert watch.keeper._process is not None
    watch.keeper._process.kill()
    watch.keeper._process.wait()
    monkeypatch.setattr(watch.keeper, "_path", Path("/proc/nowhere/socket"))
    assert not watch.changes.guard_data(watch.cache("file"), watch.opener("file"))
    assert "there is no lease keeper" in caplog.text
    with program(file, WRITE) as writer:
        writer.wait_in()


# ---------------------------------------------------------------- files that are open for writing


def test_a_keeper_that_does_not_answer_is_replaced(
    watch: Watch, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = watch.top / "other"
    other.touch()
    fd = os.open(file, os.O_RDWR)
    try:
        key, kept = watch.cache("file"), watch.guard("other")
        assert watch.changes.guard_exclusive(key, fd)
        watch.changes.keep()
        assert watch.keeper._process is not None
        watch.keeper._process.kill()
        watch.changes.unguard(key)
        assert set(watch.keeper._kept) == {kept}
        assert watch.changes.guard_exclusive(key, fd)
        with program(other, WRITE) as writer:
            assert Change(DATA, kept) in watch.wait_told()
            watch.changes.unguard(kept)
            writer.wait_in()
    finally:
        watch.changes.unguard(key)
        os.close(fd)
    assert "starting another" in caplog.text
