"""The export trees: which part of the node's tree is served with which options.  Pure.

There is always the tree "/"; settings.trees adds options for subtrees, and the nearest ancestor's entry holds.  An
export tree's id goes into every handle.  It is made of its path and of the paths cut out of it, so a changed
configuration makes the handles of the trees concerned stale instead of letting old ones reach what is hidden now.

Whether a name *is* the top of an export tree needs the disk: `maybe_tops` and `maybe_guarded` only say which trees
could be meant by a name, export/disk.py compares.  Called by export/disk.py, export/service.py.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable
from typing import Final

from omfs import wire
from omfs.config import Tree
from omfs.errors import ConfigError, StaleHandle
from omfs.export.handles import TREE_ID_BYTES
from omfs.kernel.credentials import Identity

_IDENTITIES_KEPT: Final = 4096
_GROUPS_KEPT_MAX: Final = 256  # 65,536 would be allowed: 4096 of those take gigabytes


class ExportTree:
    """One subtree and its options."""

    def __init__(self, options: Tree, inner: tuple[bytes, ...] = ()) -> None:
        """*inner*: the paths of the export trees inside this one."""
        self.path = os.fsencode(options.path)
        self.parent_path, self.name = posixpath.split(self.path)
        self.read_only = options.read_only
        self.root_squash = options.root_squash
        self.hidden = options.hidden
        self.id = hashlib.blake2b(b"\0".join((self.path, *sorted(inner))), digest_size=TREE_ID_BYTES).digest()
        self._anonymous = Identity(options.anon_uid, options.anon_gid)
        self._identities: dict[wire.Caller, Identity] = {}

    def identity_of(self, caller: wire.Caller) -> Identity:
        """Whom to act as for *caller* here: where root is squashed, neither root nor root's group is obeyed.

        OSError EINVAL for impossible ids.
        """
        if len(caller.groups) > _GROUPS_KEPT_MAX:
            return self._make_identity(caller)
        identity = self._identities.get(caller)
        if identity is None:
            if len(self._identities) >= _IDENTITIES_KEPT:
                self._identities.clear()
            identity = self._identities[caller] = self._make_identity(caller)
        return identity

    def _make_identity(self, caller: wire.Caller) -> Identity:
        if not self.root_squash:
            return Identity(caller.uid, caller.gid, caller.groups)
        if caller.uid == 0:
            return self._anonymous
        gid = caller.gid or self._anonymous.gid
        return Identity(caller.uid, gid, tuple(group for group in caller.groups if group != 0))


class ExportTrees:
    """All export trees of a node, by id and by the names that their tops have."""

    def __init__(self, trees: tuple[Tree, ...], real_path: Callable[[str], str] = posixpath.normpath) -> None:
        """*real_path*: os.path.realpath, so that links in the configured paths do not matter.  Raises ConfigError."""
        options = {"/": Tree("/")}
        seen = set()
        for tree in trees:
            path = _checked_path(tree, real_path)
            if path in seen:
                raise ConfigError(f'trees: two entries for "{path}"')
            seen.add(path)
            options[path] = Tree(path, tree.read_only, tree.root_squash, tree.hidden, tree.anon_uid, tree.anon_gid)
        self.trees = tuple(
            ExportTree(options[path], tuple(os.fsencode(other) for other in options if _is_below(other, path)))
            for path in sorted(options)
        )
        self.root = self.trees[0]
        self._check_hidden()
        self._by_id = {tree.id: tree for tree in self.trees}
        self._tops: dict[bytes, list[ExportTree]] = {}
        self._guarded: dict[bytes, set[bytes]] = {}
        for top in self.trees[1:]:
            self._tops.setdefault(top.name, []).append(top)
            guarded = top.path
            while guarded != b"/":
                self._guarded.setdefault(posixpath.basename(guarded), set()).add(guarded)
                guarded = posixpath.dirname(guarded)

    def _check_hidden(self) -> None:
        if self.root.hidden:
            raise ConfigError('trees: "/" can not be hidden; stop omfs-export instead')
        hidden = [os.fsdecode(tree.path) for tree in self.trees if tree.hidden]
        for tree in self.trees:
            path = os.fsdecode(tree.path)
            if not tree.hidden and any(_is_below(path, outer) for outer in hidden):
                raise ConfigError(f'trees: "{path}" lies in a hidden tree and could not be reached')

    def by_id(self, tree_id: bytes) -> ExportTree:
        """StaleHandle when the configuration changed since the handle was issued."""
        tree = self._by_id.get(tree_id)
        if tree is None:
            raise StaleHandle("the export trees of this node were changed")
        return tree

    def maybe_tops(self, name: bytes) -> list[ExportTree]:
        """The trees whose top has this name (almost always none)."""
        return self._tops.get(name, [])

    def maybe_guarded(self, name: bytes) -> set[bytes]:
        """Paths with this last name on the way to a tree's top: who renamed one would carry its options away."""
        return self._guarded.get(name, set())

    def describe(self) -> tuple[wire.ExportInfo, ...]:
        """For omfs-admin status."""
        return tuple(
            wire.ExportInfo(tree.path, tree.read_only, tree.root_squash) for tree in self.trees if not tree.hidden
        )


def _checked_path(tree: Tree, real_path: Callable[[str], str]) -> str:
    if not tree.path.startswith("/") or "\0" in tree.path or ".." in tree.path.split("/"):
        raise ConfigError(f'trees: "{tree.path}" must be an absolute path without ".."')
    for number in (tree.anon_uid, tree.anon_gid):
        if not 0 < number < (1 << 32) - 1:
            raise ConfigError(f'trees: "{tree.path}": {number} can not be an anonymous user or group')
    return "/" + real_path(tree.path).strip("/")


def _is_below(path: str, ancestor: str) -> bool:
    return path != ancestor and path.startswith(ancestor.rstrip("/") + "/")


def is_shown(mode: int) -> bool:
    """Whether objects of this type are shown at all: everything but devices."""
    return not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode))
