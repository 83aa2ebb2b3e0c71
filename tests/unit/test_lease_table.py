"""The lease table against a dict, over restarts and kills, with a reader in another process, and when it is damaged."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from omfs.cache import table
from omfs.cache.owner import Change
from omfs.cache.table import LeaseReader, LeaseTable, SessionNote, read_boot_id
from omfs.wiretypes import Mode

BOOT = "7e6bd9d5-0000-4000-8000-000000000001"
ANNA, BERT = b"a" * 16, b"b" * 16
S, X, NONE = Mode.SHARED, Mode.EXCLUSIVE, Mode.NONE

KEYS = st.sampled_from([bytes([number]) * 16 for number in range(4)])
HANDLES = st.sampled_from([b"h", b"ha", b"hat", b"\0", b"\0\0\0\0\0", b"\xff" * 255, bytes(44)])
CHANGES = st.lists(st.builds(Change, KEYS, HANDLES, st.sampled_from(Mode), st.integers(0, 2**64 - 1)), max_size=6)


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[LeaseTable]:
    with LeaseTable.open(tmp_path / "leases", BOOT) as opened:
        opened.note_session(ANNA, 1, "omfs 0.1.0", 111)
        opened.note_session(BERT, 2, "omfs 0.2.0", 222)
        yield opened


def reopened(path: Path, boot_id: str = BOOT) -> LeaseTable:
    return LeaseTable.open(path, boot_id)


def shown(leases: LeaseReader) -> dict[tuple[bytes, bytes], tuple[Mode, int]]:
    return {(one.session, one.handle): (one.mode, one.serial) for one in leases.leases()}


# ---------------------------------------------------------------- against a dict


class Model(NamedTuple):
    sessions: dict[bytes, SessionNote]
    leases: dict[tuple[bytes, bytes], tuple[Mode, int]]


class TableMachine(RuleBasedStateMachine):
    """Whatever is done to the table is done to two dicts."""

    @initialize()
    def start(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="omfs-table-"))
        self.table = LeaseTable.open(self.path, BOOT)
        self.model = Model({}, {})

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.table.close()
            shutil.rmtree(self.path)

    @rule(key=KEYS, node_id=st.integers(1, 65535), software=st.text(max_size=9), heard=st.integers(0, 2**63))
    def session(self, key: bytes, node_id: int, software: str, heard: int) -> None:
        self.table.note_session(key, node_id, software, heard)
        self.model.sessions[key] = SessionNote(key, node_id, software, heard)

    @rule(key=KEYS, heard=st.integers(0, 2**63))
    def heard(self, key: bytes, heard: int) -> None:
        self.table.note_heard({key: heard})
        if key in self.model.sessions:
            self.model.sessions[key] = self.model.sessions[key]._replace(heard_ns=heard)

    @rule(changes=CHANGES)
    def note(self, changes: list[Change]) -> None:
        wrong = any(change.session not in self.model.sessions and change.mode for change in changes)
        if wrong:
            with pytest.raises(ValueError, match="not noted"):
                self.table.note(changes)
            return
        self.table.note(changes)
        for session, handle, mode, serial in changes:
            if mode:
                self.model.leases[session, handle] = (mode, serial)
            else:
                self.model.leases.pop((session, handle), None)

    @rule(key=KEYS, ended=st.booleans())
    def forget(self, key: bytes, ended: bool) -> None:
        if ended:
            self.table.forget_session(key)
            self.model.sessions.pop(key, None)
        else:
            self.table.forget_leases(key)
        for each in [each for each in self.model.leases if each[0] == key]:
            del self.model.leases[each]

    @rule(most=st.integers(1, 3))
    def sweep(self, most: int) -> None:
        assert 0 <= self.table.sweep(most) <= most

    @rule(same_boot=st.integers(0, 4))
    def restart(self, same_boot: int) -> None:
        self.table.close()
        self.table = LeaseTable.open(self.path, BOOT if same_boot else BOOT[:-1] + "2")
        assert self.table.was_dropped == (not same_boot)
        if not same_boot:
            self.model = Model({}, {})
            self.table.end_grace()
            self.table.close()
            self.table = LeaseTable.open(self.path, BOOT[:-1] + "2")  # this boot's own
            assert not self.table.was_dropped
            self.table.close()
            shutil.rmtree(self.path)
            self.table = LeaseTable.open(self.path, BOOT)

    @rule(key=KEYS, handle=HANDLES)
    def ask(self, key: bytes, handle: bytes) -> None:
        by_handle = {one.session for one in self.table.leases(handle=handle)}
        assert by_handle == {session for session, each in self.model.leases if each == handle}
        by_session = {one.handle for one in self.table.leases(session=key)}
        assert by_session == {each for session, each in self.model.leases if session == key}
        both = list(self.table.leases(handle, key))
        assert len(both) == ((key, handle) in self.model.leases)

    @invariant()
    def is_alike(self) -> None:
        if hasattr(self, "table"):
            assert shown(self.table) == self.model.leases
            assert {note.key: note for note in self.table.sessions()} == self.model.sessions


TestAgainstDicts = TableMachine.TestCase
TestAgainstDicts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# ---------------------------------------------------------------- one by one


def test_what_is_noted_is_told(leases: LeaseTable) -> None:
    assert leases.was_made
    assert not leases.was_dropped
    leases.note([Change(ANNA, b"one", S, 7), Change(BERT, b"one", X, 8)], now_ns=5)
    assert list(leases.leases()) == [(ANNA, b"one", S, 7, 5), (BERT, b"one", X, 8, 5)]
    assert sorted(leases.sessions()) == [(ANNA, 1, "omfs 0.1.0", 111), (BERT, 2, "omfs 0.2.0", 222)]


def test_more_than_fits_into_one_read(leases: LeaseTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_BATCH", 4)
    for count in (3, 4, 5, 8, 9):
        handles = [b"%d" % number for number in range(count)]
        leases.note([Change(key, handle, S, 1) for handle in handles for key in (ANNA, BERT)])
        assert len(list(leases.leases())) == 2 * count
        assert sorted(one.handle for one in leases.leases(session=BERT)) == handles


def test_leases_may_change_while_they_are_read(leases: LeaseTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_BATCH", 2)
    monkeypatch.setattr(table, "MAP_BYTES", 1 << 16)
    leases.note([Change(ANNA, b"%d" % number, S, 1) for number in range(6)])
    reading = leases.leases()
    assert next(reading).handle == b"0"
    leases.note([Change(ANNA, b"%d" % number, NONE, 2) for number in range(6) if number != 3])
    leases._grow()  # not possible while a transaction is open
    assert [one.handle for one in reading] == [b"1", b"3"]


def test_a_transaction_is_all_or_nothing(leases: LeaseTable) -> None:
    with pytest.raises(ValueError, match="not noted"):
        leases.note([Change(ANNA, b"one", S, 1), Change(b"c" * 16, b"one", S, 1)])
    for handle in (b"", b"x" * 256):
        with pytest.raises(ValueError, match="takes 1 to 255"):
            leases.note([Change(ANNA, b"one", S, 1), Change(ANNA, handle, S, 1)])
        with pytest.raises(ValueError, match="takes 1 to 255"):
            list(leases.leases(handle))
    assert shown(leases) == {}
    with pytest.raises(ValueError, match="16 bytes"):
        leases.note_session(b"short", 1, "", 0)


def test_a_forgotten_session_that_comes_back_holds_nothing(leases: LeaseTable) -> None:
    leases.note([Change(ANNA, b"%d" % number, S, 1) for number in range(7)])
    leases.note([Change(BERT, b"0", S, 1)])
    leases.forget_session(ANNA)
    assert shown(leases) == {(BERT, b"0"): (S, 1)}
    leases.note_session(ANNA, 1, "omfs 0.1.0", 333)
    leases.note([Change(ANNA, b"0", S, 2)])
    leases.close()
    with reopened(leases.path) as again:  # sweeps what the one before left
        assert [again.sweep(3), again.sweep(3), again.sweep(3), again.sweep(3)] == [3, 3, 1, 0]
        assert shown(again) == {(ANNA, b"0"): (S, 2), (BERT, b"0"): (S, 1)}
        with again._env.begin() as txn:
            assert txn.stat(again._handles)["entries"] == txn.stat(again._holders)["entries"] == 2


def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAP_BYTES", 1 << 16)
    with LeaseTable.open(tmp_path, BOOT) as leases:
        leases.note_session(ANNA, 1, "", 0)
        for start in range(0, 5000, 500):
            leases.note([Change(ANNA, b"%200d" % number, S, number) for number in range(start, start + 500)])
        assert (tmp_path / "data.mdb").stat().st_size > 10 << 16
        assert len(list(leases.leases())) == 5000
    with reopened(tmp_path) as leases:
        assert not leases.was_dropped
        assert len(list(leases.leases())) == 5000


# ---------------------------------------------------------------- other processes

WRITER = """
import sys
from pathlib import Path
from omfs.cache import table
from omfs.cache.owner import Change
table.MAP_BYTES = 1 << 17  # so that it grows many times
leases = table.LeaseTable.open(Path(sys.argv[1]), sys.argv[2])
leases.note_session(b"a" * 16, 1, "omfs", 0)
for number in range(int(sys.argv[3])):
    made = [Change(b"a" * 16, b"%d %d" % (number, part), table.Mode.SHARED, number) for part in range(3)]
    gone = [Change(b"a" * 16, b"%d 0" % (number - 1), table.Mode.NONE, number)] if number else []
    leases.note(made + gone)
    print(number, flush=True)
sys.stdin.read()
"""


def writer(path: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), BOOT, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def written(count: int) -> set[bytes]:
    """The handles after *count* transactions of WRITER."""
    made = {b"%d %d" % (number, part) for number in range(count) for part in range(3)}
    return made - {b"%d 0" % number for number in range(count - 1)}


@pytest.mark.parametrize("after", [1, 40, 700])
def test_a_killed_writer_loses_nothing(tmp_path: Path, after: int) -> None:
    with writer(tmp_path, 1_000_000) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < after:
            pass
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout if line.endswith("\n")]
    done = max(told, default=after) + 1
    with reopened(tmp_path) as leases:
        assert not leases.was_dropped
        handles = {one.handle for one in leases.leases()}
        assert handles in (written(done), written(done + 1))  # killed before it could tell
        leases.note([Change(ANNA, b"%d" % number, S, 1) for number in range(500)])
        assert len(handles) + 500 == len(list(leases.leases()))


def test_a_reader_beside_the_writer_and_without_it(tmp_path: Path) -> None:
    with writer(tmp_path, 3000) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "0\n"
        with LeaseReader.read(tmp_path) as leases:
            before = len(list(leases.leases()))
            for line in process.stdout:
                if int(line) == 2999:
                    break
            assert {one.handle for one in leases.leases()} == written(3000)  # its map has grown, ours must follow
            assert before < len(written(3000))
        process.stdin.close()
    with LeaseReader.read(tmp_path) as leases:
        assert leases.boot_id == BOOT
        assert [note.node_id for note in leases.sessions()] == [1]
        assert len(list(leases.leases(session=ANNA))) == len(written(3000))


def test_nothing_to_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(OSError, match="no lease table"):
            LeaseReader.read(path)


# ---------------------------------------------------------------- what can't be trusted


def filled(path: Path, count: int = 300) -> None:
    with LeaseTable.open(path, BOOT) as leases:
        leases.note_session(ANNA, 1, "omfs", 0)
        leases.note([Change(ANNA, b"%d" % number, S, 1) for number in range(count)])


def test_another_boot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    with caplog.at_level(logging.INFO), reopened(tmp_path, "another") as leases:
        assert leases.was_dropped
        assert shown(leases) == {}
        assert leases.sessions() == []
    assert "before the last boot" in caplog.text
    assert not (tmp_path / "damaged.mdb").exists()
    with reopened(tmp_path, "another") as leases:
        assert leases.was_dropped, "the daemon before it ended in its grace"
        leases.end_grace()
    with reopened(tmp_path, "another") as leases:
        assert not leases.was_dropped


def cut_to_two_pages(path: Path) -> None:
    os.truncate(path / "data.mdb", 8192)


def cut_in_the_middle(path: Path) -> None:
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size // 8192 * 4096)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path / "data.mdb", 0)


def lose_the_file(path: Path) -> None:
    (path / "data.mdb").unlink()


def fill_with_rubbish(path: Path) -> None:
    (path / "data.mdb").write_bytes(os.urandom(1 << 16))


def lose_the_label(path: Path) -> None:
    """What is left when a table kills whoever examines it."""
    (path / "about").unlink()


def spoil_the_label(path: Path) -> None:
    (path / "about").write_text("format one\n")


def make_it_newer(path: Path) -> None:
    (path / "about").write_text(f"format 2\nboot {BOOT}\n")


def lose_a_holder(path: Path) -> None:
    with LeaseTable.open(path, BOOT) as leases, leases._env.begin(write=True) as txn:
        txn.delete(b"\0\0\0\0" + b"7", db=leases._holders)


def lose_a_lease(path: Path) -> None:
    with LeaseTable.open(path, BOOT) as leases, leases._env.begin(write=True) as txn:
        txn.delete(b"\x017\0\0\0\0", db=leases._handles)


def shorten_a_lease(path: Path) -> None:
    with LeaseTable.open(path, BOOT) as leases, leases._env.begin(write=True) as txn:
        txn.put(b"\x017\0\0\0\0", b"short", db=leases._handles)


def count_from_zero(path: Path) -> None:
    with LeaseTable.open(path, BOOT) as leases, leases._env.begin(write=True) as txn:
        txn.put(b"next number", bytes(4), db=leases._meta)


@pytest.mark.parametrize(
    "spoil",
    [
        cut_to_two_pages, cut_in_the_middle, cut_to_nothing, lose_the_file, fill_with_rubbish, lose_the_label,
        spoil_the_label, make_it_newer, lose_a_holder, lose_a_lease, shorten_a_lease, count_from_zero,
    ],
)  # fmt: skip
def test_damage_is_set_aside(tmp_path: Path, spoil: object, caplog: pytest.LogCaptureFixture) -> None:
    assert callable(spoil)
    filled(tmp_path)
    spoil(tmp_path)
    with reopened(tmp_path) as leases:
        assert leases.was_dropped
        assert shown(leases) == {}
        leases.note_session(ANNA, 1, "omfs", 0)
        leases.note([Change(ANNA, b"one", S, 1)])
        leases.end_grace()
    assert "set aside" in caplog.text
    assert (tmp_path / "damaged.mdb").exists()
    with reopened(tmp_path) as leases:
        assert not leases.was_dropped
        assert shown(leases) == {(ANNA, b"one"): (S, 1)}


def test_a_full_disk_changes_nothing(leases: LeaseTable, monkeypatch: pytest.MonkeyPatch) -> None:
    leases.note([Change(ANNA, b"one", S, 1)])

    def full(*_: object) -> None:
        raise table.lmdb.DiskError("mdb_txn_commit: No space left on device")

    monkeypatch.setattr(leases, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        leases.note([Change(ANNA, b"two", S, 1)])
    monkeypatch.undo()
    assert shown(leases) == {(ANNA, b"one"): (S, 1)}
    leases.note([Change(ANNA, b"two", S, 1)])


def test_the_boot_id_is_the_kernels() -> None:
    assert len(read_boot_id()) == 36
    assert read_boot_id() == read_boot_id()
