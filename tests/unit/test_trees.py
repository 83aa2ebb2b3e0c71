"""Export trees: options, their inheritance, squashing, and what a changed configuration does to handles."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from omfs import wire
from omfs.config import Tree
from omfs.errors import ConfigError, StaleHandle
from omfs.export.trees import ExportTrees, is_shown


def test_everything_is_exported_by_default() -> None:
    trees = ExportTrees(())
    assert trees.describe() == (wire.ExportInfo(b"/", False, False),)
    assert trees.maybe_tops(b"home") == []
    assert trees.maybe_guarded(b"home") == set()


def test_options_belong_to_their_tree() -> None:
    trees = ExportTrees((Tree("/srv/data", read_only=True), Tree("/", root_squash=True), Tree("/secret", hidden=True)))
    assert trees.describe() == (wire.ExportInfo(b"/", False, True), wire.ExportInfo(b"/srv/data", True, False))
    (data,) = trees.maybe_tops(b"data")
    assert (data.path, data.parent_path, data.read_only) == (b"/srv/data", b"/srv", True)
    assert trees.maybe_guarded(b"srv") == {b"/srv"}
    assert trees.maybe_guarded(b"data") == {b"/srv/data"}
    assert trees.by_id(data.id) is data


def test_paths_are_made_real() -> None:
    trees = ExportTrees((Tree("/home/ann", read_only=True),), lambda path: path.replace("/home", "/data/home"))
    assert trees.describe()[1].path == b"/data/home/ann"
    assert ExportTrees((Tree("/home//ann/"),)).describe()[1].path == b"/home/ann"


@pytest.mark.parametrize(
    ("trees", "reason"),
    [
        ((Tree("srv"),), "absolute path"),
        ((Tree("/srv/../etc"),), "absolute path"),
        ((Tree("/a\0b"),), "absolute path"),
        ((Tree("/srv"), Tree("/srv/")), "two entries"),
        ((Tree("/", hidden=True),), "can not be hidden"),
        ((Tree("/a", hidden=True), Tree("/a/b")), "lies in a hidden tree"),
        ((Tree("/a", anon_uid=0),), "anonymous"),
        ((Tree("/a", anon_gid=2**32 - 1),), "anonymous"),
    ],
)
def test_nonsense_is_refused(trees: tuple[Tree, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ExportTrees(trees)


def test_a_hidden_tree_may_lie_in_a_hidden_tree() -> None:
    assert len(ExportTrees((Tree("/a", hidden=True), Tree("/a/b", hidden=True))).describe()) == 1


def test_changed_options_keep_handles_and_changed_trees_do_not() -> None:
    before = ExportTrees((Tree("/srv"),))
    other_options = ExportTrees((Tree("/srv", read_only=True),))
    with_hidden = ExportTrees((Tree("/srv"), Tree("/srv/secret", hidden=True)))
    (srv,) = before.maybe_tops(b"srv")
    assert other_options.by_id(srv.id).read_only
    assert with_hidden.by_id(ExportTrees((Tree("/srv/secret"), Tree("/srv"))).root.id) is with_hidden.root
    with pytest.raises(StaleHandle):
        with_hidden.by_id(srv.id)
    with pytest.raises(StaleHandle):
        with_hidden.by_id(before.root.id)


callers = st.builds(
    wire.Caller, st.integers(0, 2000), st.integers(0, 2000), st.lists(st.integers(0, 2000), max_size=5).map(tuple)
)


@given(callers)
def test_squashed_root_is_nobody_and_has_no_groups(caller: wire.Caller) -> None:
    tree = ExportTrees((Tree("/", root_squash=True, anon_uid=65000, anon_gid=65001),)).root
    identity = tree.identity_of(caller)
    assert 0 not in (identity.uid, identity.gid, *identity.groups)
    if caller.uid == 0:
        assert (identity.uid, identity.gid, identity.groups) == (65000, 65001, ())
    else:
        assert identity.uid == caller.uid
        assert identity.gid == (caller.gid or 65001)
    assert tree.identity_of(caller) is identity


@given(callers)
def test_without_squash_everybody_is_who_he_says(caller: wire.Caller) -> None:
    identity = ExportTrees(()).root.identity_of(caller)
    assert (identity.uid, identity.gid, identity.groups) == (caller.uid, caller.gid, caller.groups)


@pytest.mark.parametrize(
    "caller",
    [
        wire.Caller(-1, 0),
        wire.Caller(2**32, 0),  # would be root if it were cut to 32 bits
        wire.Caller(2**32 - 1, 0),  # would change nothing
        wire.Caller(1000, 2**32),
        wire.Caller(1000, 1000, (2**32,)),
        wire.Caller(1000, 1000, (1,) * 65537),
    ],
)
@pytest.mark.parametrize("squash", [False, True])
def test_impossible_ids_are_refused(caller: wire.Caller, squash: bool) -> None:
    tree = ExportTrees((Tree("/", root_squash=squash),)).root
    with pytest.raises(OSError, match="out of range"):
        tree.identity_of(caller)


def test_identities_are_not_kept_without_end() -> None:
    tree = ExportTrees(()).root
    first = tree.identity_of(wire.Caller(1, 1))
    for uid in range(5000):
        tree.identity_of(wire.Caller(uid, 1))
    assert tree.identity_of(wire.Caller(1, 1)) is not first


def test_devices_are_not_shown() -> None:
    assert [is_shown(kind << 12) for kind in (1, 2, 4, 6, 8, 10, 12)] == [True, False, True, False, True, True, True]


def test_callers_with_very_many_groups_are_not_kept() -> None:
    tree = ExportTrees(()).root
    caller = wire.Caller(1, 1, (5,) * 257)
    assert tree.identity_of(caller) is not tree.identity_of(caller)
