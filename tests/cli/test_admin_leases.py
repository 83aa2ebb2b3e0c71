"""omfs-admin leases on a table with real handles, and drop against a daemon of canned answers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs.cache.owner import Change
from omfs.cache.table import LeaseTable, read_boot_id
from omfs.cli import admin
from omfs.cli.objects import Objects
from omfs.config import Settings
from omfs.errors import ControlError
from omfs.export.disk import Disk
from omfs.export.handles import Sealer, load_key
from omfs.export.mounts import Mounts
from omfs.export.trees import ExportTrees
from omfs.kernel.credentials import Identity
from omfs.net.control import Arguments
from omfs.wiretypes import Mode
from tests.cli.test_admin_status import mount

ANNA, BERT = b"a" * 16, b"b" * 16
ROOT = Identity(0, 0, ())


class Owner:
    """An export's handles and table, without the export."""

    def __init__(self, path: Path) -> None:
        self.state_dir = path / "state"
        self.config = path / "omfs.toml"
        self.config.write_text(f'state_dir = "{self.state_dir}"\nrun_dir = "{path}"\n')
        self.mounts = Mounts()
        self.disk = Disk(Sealer(load_key(self.state_dir)), ExportTrees((), os.path.realpath), self.mounts)
        self.table = LeaseTable.open(self.state_dir / "leases", read_boot_id())
        self.table.note_session(ANNA, 2, "omfs 0.1.0", time.time_ns())
        self.table.note_session(BERT, 3, "omfs 0.1.0", time.time_ns())

    def handle_of(self, path: Path) -> bytes:
        """As a holder gets it: name by name from the root."""
        handle, _ = self.disk.attach()
        for name in path.parts[1:]:
            parent = self.disk.locate(handle)
            fd = self.disk.open(parent)
            try:
                handle, _ = self.disk.look_up(fd, parent, os.fsencode(name), ROOT)
            finally:
                os.close(fd)
        return handle

    def grant(self, key: bytes, path: Path, mode: Mode = Mode.SHARED, age_s: float = 0) -> None:
        now_ns = time.time_ns() - int(age_s * 1e9)
        self.table.note([Change(key, self.handle_of(path), mode, 1)], now_ns)

    def close(self) -> None:
        self.table.close()
        self.mounts.close()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    made = Owner(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tree(any_tree: Path, owner: Owner) -> Path:
    for name in ("one", "other", "deep/er/file"):
        (any_tree / name).parent.mkdir(parents=True, exist_ok=True)
        (any_tree / name).write_text(name)
    owner.grant(ANNA, any_tree / "one", age_s=300)
    owner.grant(BERT, any_tree / "one")
    owner.grant(ANNA, any_tree / "other", Mode.EXCLUSIVE, age_s=5)
    owner.grant(BERT, any_tree / "deep/er/file")
    owner.grant(BERT, any_tree / "deep")
    owner.table.close()  # LMDB opens a table once per process; the daemon is another one
    return any_tree


@pytest.fixture
def any_tree(tmp_path: Path) -> Path:
    made = tmp_path / "served"
    made.mkdir()
    return made


def leases(owner: Owner, capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> list[str]:
    assert admin.main(["leases", "--config", str(owner.config), *map(str, arguments)]) == status
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_who_holds_what(owner: Owner, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heading, *rows = leases(owner, capsys)
    assert heading == "NODE MODE AGE OBJECT"
    assert sorted(rows) == sorted(
        [
            f"2 shared 5 min {tree}/one",
            f"3 shared 0 s {tree}/one",
            f"2 exclusive 5 s {tree}/other",
            f"3 shared 0 s {tree}/deep/er/file",
            f"3 shared 0 s {tree}/deep",
        ]
    )


def test_of_one_object_and_below(owner: Owner, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, *rows = leases(owner, capsys, tree / "one")
    assert sorted(row.split()[0] for row in rows) == ["2", "3"]
    _, row = leases(owner, capsys, tree / "deep")
    assert row.endswith("/deep")
    _, *rows = leases(owner, capsys, "-r", tree / "deep")
    assert sorted(row.rpartition(" ")[2] for row in rows) == [f"{tree}/deep", f"{tree}/deep/er/file"]
    (tree / "link").symlink_to(tree / "one")
    assert leases(owner, capsys, tree / "link") == ["no leases"]
    assert len(leases(owner, capsys, "-r", "/")) == 6


def test_a_limit_says_how_many_more(owner: Owner, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = leases(owner, capsys, "--limit", 2)
    assert len(lines) == 4
    assert lines[3] == "and 3 more (--limit 0 shows all)"
    assert len(leases(owner, capsys, "--limit", 0)) == 6


def test_json(owner: Owner, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tree / os.fsdecode(b"\xff\n")
    odd.touch()
    owner.table = LeaseTable.open(owner.state_dir / "leases", read_boot_id())
    owner.grant(ANNA, odd)
    owner.table.close()
    assert admin.main(["leases", "--json", "--config", str(owner.config)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["boot_id"] == read_boot_id()
    assert told["more"] == 0
    assert {one["path"] for one in told["leases"]} >= {f"{tree}/one", f"{tree}/\\xff\\n"}
    one = next(one for one in told["leases"] if one["mode"] == "exclusive")
    assert (one["node_id"], one["session"], bytes.fromhex(one["handle"])) == (
        2, ANNA.hex(), owner.handle_of(tree / "other"),
    )  # fmt: skip


def test_what_has_no_name(owner: Owner, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = owner.handle_of(tree / "other").hex()
    with (tree / "other").open():
        (tree / "other").unlink()
        assert f"2 exclusive 5 s {handle} (removed)" in leases(owner, capsys)
    assert f"2 exclusive 5 s {handle} (gone)" in leases(owner, capsys)
    (owner.state_dir / "handle.key").write_bytes(bytes(32))
    assert all(line.endswith("(not issued with this node's key)") for line in leases(owner, capsys)[1:])


def test_a_name_is_only_believed_if_it_leads_there(owner: Owner, tree: Path) -> None:
    handle = owner.handle_of(tree / "one")
    with (tree / "one").open(), Objects(Settings(state_dir=str(owner.state_dir))) as objects:
        assert objects.find(handle).path == f"{tree}/one"
        (tree / "one").rename(tree / "uno")
        assert objects.find(handle).path == f"{tree}/uno"
        os.link(tree / "uno", tree / "two")
        (tree / "uno").unlink()
        (tree / "uno").touch()
        assert objects.find(handle).path in ("", f"{tree}/two")


def test_nothing_held(owner: Owner, any_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner.table.close()
    assert leases(owner, capsys) == ["no leases"]
    assert leases(owner, capsys, any_tree) == ["no leases"]


def test_a_table_of_before_the_boot(owner: Owner, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (owner.state_dir / "leases" / "about").write_text("format 1\nboot another\n")
    assert admin.main(["leases", "--config", str(owner.config)]) == 0
    assert "before the last boot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["/no/such/path"], "/no/such/path: No such file or directory"),
        (["/proc/self/stat"], "can't be exported"),
        (["/dev/null/x"], "Not a directory"),
    ],
)
def test_wrong_paths(
    owner: Owner, tree: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert admin.main(["leases", "--config", str(owner.config), *arguments]) == 1
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1


def test_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "omfs.toml"
    config.write_text(f'state_dir = "{tmp_path}"\n')
    assert admin.main(["leases", "--config", str(config)]) == 1
    err = capsys.readouterr().err
    assert "no lease table; has omfs-export run here?" in err
    assert err.count("\n") == 1
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / "about").write_text("format 7\nboot 1\n")
    assert admin.main(["leases", "--config", str(config)]) == 1
    assert "a lease table of format 7, not 1" in capsys.readouterr().err


# ---------------------------------------------------------------- drop


async def drop(arguments: Arguments) -> object:
    if arguments.get("node") == 9:
        raise ControlError("node 9 is not in the map")
    return {"recalled": 1 if "path" in arguments else 12}


def test_drop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Arguments] = []

    async def note(arguments: Arguments) -> object:
        asked.append(arguments)
        return await drop(arguments)

    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "3").symlink_to("nowhere")
    (tmp_path / "way").symlink_to("real")
    with mount(tmp_path, socket="export.sock", drop=note):
        for what in (f"{tmp_path}/way/3", "3"):
            assert admin.main(["drop", what, "--run-dir", str(tmp_path)]) == 0
    assert asked == [{"path": f"{tmp_path}/real/3"}, {"node": 3}]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/way/3: 1 lease recalled",
        "node 3: 12 leases recalled",
    ]


@pytest.mark.parametrize(
    ("what", "status", "text"),
    [
        ("/no/such/path", 1, "/no/such/path: No such file or directory"),
        ("9", 1, "node 9 is not in the map"),
        ("0", 1, "a file of this name is ./0"),
        ("70000", 1, '"70000" is not a node id'),
        ("7" * 5000, 1, "is not a node id"),
    ],
)
def test_drop_refused(what: str, status: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mount(tmp_path, socket="export.sock", drop=drop):
        assert admin.main(["drop", what, "--run-dir", str(tmp_path)]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert captured.err.count("\n") == 1


def test_drop_without_an_export_or_with_an_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert admin.main(["drop", "3", "--run-dir", str(tmp_path)]) == 3
    assert "no omfs-export is running on this node" in capsys.readouterr().err

    async def odd(_: Arguments) -> object:
        return {"recalled": "some"}

    with mount(tmp_path, socket="export.sock", drop=odd):
        assert admin.main(["drop", "3", "--run-dir", str(tmp_path)]) == 1
    assert "speaks another version" in capsys.readouterr().err
    with mount(tmp_path, socket="export.sock"):
        assert admin.main(["drop", "3", "--run-dir", str(tmp_path)]) == 1
    assert 'unknown command "drop"' in capsys.readouterr().err


def test_a_name_that_json_cannot_carry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / os.fsdecode(b"\xff")
    odd.touch()
    with mount(tmp_path, socket="export.sock", drop=drop):
        assert admin.main(["drop", str(odd), "--run-dir", str(tmp_path)]) == 1
    assert "\\xff: only names in UTF-8 can be dropped" in capsys.readouterr().err
