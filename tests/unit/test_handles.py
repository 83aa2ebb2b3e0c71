"""Sealed handles: what comes back is what was sealed, and nothing else is ever opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from omfs.errors import BadHandle, ConfigError
from omfs.export.handles import HANDLE_MAX_BYTES, KEY_BYTES, KEY_FILE, Sealer, Unsealed, load_key

SEALER = Sealer(bytes(range(KEY_BYTES)))
CONTENTS = st.builds(
    Unsealed,
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 15),
    st.integers(-(2**31), 2**31 - 1),
    st.binary(min_size=1, max_size=128),
)


@given(CONTENTS)
def test_what_was_sealed_comes_back(contents: Unsealed) -> None:
    handle = SEALER.seal(*contents)
    assert SEALER.unseal(handle) == contents
    assert SEALER.seal(*contents) == handle
    assert len(handle) <= HANDLE_MAX_BYTES


@given(st.binary(max_size=2 * HANDLE_MAX_BYTES))
def test_garbage_is_no_handle(garbage: bytes) -> None:
    with pytest.raises(BadHandle):
        SEALER.unseal(garbage)


@given(CONTENTS, st.data())
def test_a_changed_handle_is_no_handle(contents: Unsealed, data: st.DataObject) -> None:
    handle = SEALER.seal(*contents)
    at = data.draw(st.integers(0, len(handle) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = [
        handle[:at] + bytes([handle[at] ^ flip]) + handle[at + 1 :],
        handle[:at],
        handle[at + 1 :],
        handle + bytes([flip]),
        handle[:at] + bytes([flip]) + handle[at:],
    ]
    for forged in changed:
        if forged == handle:
            continue
        with pytest.raises(BadHandle):
            SEALER.unseal(forged)


@given(CONTENTS, st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
def test_another_nodes_handle_is_no_handle(contents: Unsealed, key: bytes) -> None:
    handle = Sealer(key).seal(*contents)
    if key == bytes(range(KEY_BYTES)):
        return
    with pytest.raises(BadHandle):
        SEALER.unseal(handle)


def test_a_key_has_its_length() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(b"short")


def test_the_key_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    state = tmp_path / "var" / "omfs"
    key = load_key(state)
    assert len(key) == KEY_BYTES
    assert load_key(state) == key
    assert stat.S_IMODE((state / KEY_FILE).stat().st_mode) == 0o600
    assert os.listdir(state) == [KEY_FILE]


def test_a_key_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    key = load_key(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    assert load_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", bytes(KEY_BYTES + 1)])
def test_a_broken_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"handle\.key: not a key"):
        load_key(tmp_path)


def test_a_link_in_the_keys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(bytes(KEY_BYTES))
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"handle\.key"):
        load_key(tmp_path)


def test_a_state_dir_that_can_not_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        load_key(tmp_path / "file" / "state")
