"""Random changes of a small directory, and what everybody must see after each of them.

A model of the directory, kept outside of any file system, is changed along; `expected` says what a look must show.
Used by test_coherence.py and test_coherence_native.py, which say who changes, who looks and when.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.lab.agents import Call

NAMES: Final = tuple(f"n{number}" for number in range(8))
CHILD: Final = "child"  # the one name that each directory may hold
SIZES: Final = (0, 1, 40, 4095, 4096, 4097, 9000)
SHOWN_LENGTH: Final = 40
MODES: Final = (0o600, 0o644, 0o640, 0o755, 0o444)

Facts = dict[str, Any]
NOTHING: Final[Facts] = {"kind": "nothing"}


@dataclass(eq=False)
class Thing:
    """A file, a link or a directory, by whatever names."""

    kind: str
    mode: int
    data: str = ""
    target: str = ""
    links: int = 1
    mtime: int | None = None  # nanoseconds, where somebody has set it
    xattrs: dict[str, str] = field(default_factory=dict)
    names: dict[str, Thing] = field(default_factory=dict)

    def facts(self) -> Facts:
        seen: Facts = {"kind": self.kind, "mode": self.mode}
        if self.kind == "directory":
            return seen | {"names": sorted(self.names), "xattrs": dict(sorted(self.xattrs.items()))}
        seen["nlink"] = self.links
        if self.mtime is not None:
            seen["mtime"] = self.mtime
        if self.kind == "link":
            return seen | {"target": self.target, "size": len(self.target), "xattrs": {}}
        return seen | {"data": self.data, "size": len(self.data), "xattrs": dict(sorted(self.xattrs.items()))}


@dataclass(frozen=True)
class Change:
    """Calls for programs/calls.py, and the paths at which they can be noticed."""

    kind: str
    calls: list[Call]
    paths: tuple[str, ...]
    only_data: bool = False  # content of a file that has the same names before and after

    def __str__(self) -> str:
        """For people: long content is cut."""
        calls = (", ".join(repr(one)[:SHOWN_LENGTH] for one in arguments) for _, *arguments in self.calls)
        return "; ".join(f"{call[0]}({arguments})" for call, arguments in zip(self.calls, calls, strict=True))


class Model:
    """The directory as it must be; paths are "." or "name" or "name/child"."""

    def __init__(self, rng: random.Random) -> None:
        self.top = Thing("directory", 0o777)
        self._rng = rng
        self._serial = 0

    # ------------------------------------------------------------ what is there

    def at(self, path: str) -> Thing | None:
        """What the path leads to."""
        if path == ".":
            return self.top
        name, _, child = path.partition("/")
        thing = self.top.names.get(name)
        return thing.names.get(child) if thing is not None and child else thing

    def expected(self, path: str) -> Facts:
        thing = self.at(path)
        return NOTHING if thing is None else thing.facts()

    def paths(self) -> Iterator[tuple[str, Thing]]:
        for name, thing in self.top.names.items():
            yield name, thing
            for child, below in thing.names.items():
                yield f"{name}/{child}", below

    def paths_of(self, thing: Thing) -> tuple[str, ...]:
        return tuple(path for path, one in self.paths() if one is thing)

    # ------------------------------------------------------------ changes

    def change(self, kinds: tuple[str, ...] = ()) -> Change:
        """Change the model at random; the calls that do the same to a real directory."""
        while True:
            kind = self._rng.choice(kinds or KINDS)
            change: Change | None = getattr(self, "_" + kind)()
            if change is not None:
                return change

    def _fresh(self, size: int) -> str:
        self._serial += 1
        tag = f"<{self._serial}>"
        return (tag * (size // len(tag) + 1))[:size]

    def _some(self, kind: str) -> tuple[str, Thing] | None:
        found = [(path, thing) for path, thing in self.paths() if thing.kind == kind]
        return self._rng.choice(found) if found else None

    def _free(self) -> str | None:
        """A path that leads to nothing, in a directory that exists."""
        free = [name for name in NAMES if name not in self.top.names]
        free += [f"{name}/{CHILD}" for name, one in self.top.names.items() if one.kind == "directory" and not one.names]
        return self._rng.choice(free) if free else None

    def _put(self, path: str, thing: Thing) -> None:
        name, _, child = path.partition("/")
        (self.top.names[name].names if child else self.top.names)[child or name] = thing

    def _take(self, path: str) -> Thing:
        name, _, child = path.partition("/")
        return self.top.names[name].names.pop(child) if child else self.top.names.pop(name)

    @staticmethod
    def _parent(path: str) -> str:
        return path.rpartition("/")[0] or "."

    # ---- content

    def _data(self, kind: str, text: str, call: Call, thing: Thing) -> Change:
        thing.data, thing.mtime = text, None
        return Change(kind, [call], self.paths_of(thing), only_data=True)

    def _write(self) -> Change | None:
        """In place, mostly without a change of size; across a page's border where the file is long enough."""
        if (found := self._some("file")) is None:
            return None
        path, thing = found
        offset = self._rng.choice([at for at in (0, 10, 4000, 4090) if at <= len(thing.data)])
        text = self._fresh(min(max(len(thing.data) - offset, 1), 200))
        whole = thing.data[:offset] + text + thing.data[offset + len(text) :]
        return self._data("write", whole, ("write", path, text, offset), thing)

    def _replace(self) -> Change | None:
        if (found := self._some("file")) is None:
            return None
        path, thing = found
        text = self._fresh(self._rng.choice([*SIZES, len(thing.data)]))
        return self._data("replace", text, ("replace", path, text), thing)

    def _append(self) -> Change | None:
        if (found := self._some("file")) is None or len(found[1].data) > 20_000:
            return None
        path, thing = found
        text = self._fresh(self._rng.choice(SIZES[1:]))
        return self._data("append", thing.data + text, ("append", path, text), thing)

    def _truncate(self) -> Change | None:
        if (found := self._some("file")) is None:
            return None
        path, thing = found
        size = self._rng.choice([size for size in SIZES if size != len(thing.data)])
        return self._data("truncate", thing.data[:size].ljust(size, "\0"), ("truncate", path, size), thing)

    def _store(self) -> Change | None:
        """Through a mapping."""
        if (found := self._some("file")) is None or not found[1].data:
            return None
        path, thing = found
        text = self._fresh(min(len(thing.data), 100))
        return self._data("store", text + thing.data[len(text) :], ("store", path, text), thing)

    # ---- attributes

    def _times(self) -> Change | None:
        if (found := self._some("file")) is None:
            return None
        path, thing = found
        thing.mtime = self._rng.randrange(10**18, 2 * 10**18)
        return Change("times", [("change_times", path, thing.mtime)], self.paths_of(thing))

    def _chmod(self) -> Change | None:
        if (found := self._some(self._rng.choice(("file", "file", "directory")))) is None:
            return None
        path, thing = found
        thing.mode = self._rng.choice([mode for mode in MODES if mode != thing.mode])
        return Change("chmod", [("chmod", path, thing.mode)], self.paths_of(thing))

    def _set_xattr(self) -> Change | None:
        if (found := self._some(self._rng.choice(("file", "file", "directory")))) is None:
            return None
        path, thing = found
        name, value = f"user.{self._rng.choice('xyz')}", self._fresh(self._rng.choice((5, 100)))
        thing.xattrs[name] = value
        return Change("set_xattr", [("set_xattr", path, name, value)], self.paths_of(thing))

    def _remove_xattr(self) -> Change | None:
        found = [(path, thing) for path, thing in self.paths() if thing.xattrs]
        if not found:
            return None
        path, thing = self._rng.choice(found)
        name = self._rng.choice(sorted(thing.xattrs))
        del thing.xattrs[name]
        return Change("remove_xattr", [("remove_xattr", path, name)], self.paths_of(thing))

    # ---- names

    def _create(self) -> Change | None:
        if (path := self._free()) is None:
            return None
        text = self._fresh(self._rng.choice(SIZES))
        self._put(path, Thing("file", 0o644, text))
        return Change("create", [("create", path, text)], (path, self._parent(path)))

    def _symlink(self) -> Change | None:
        if (path := self._free()) is None:
            return None
        target = self._fresh(self._rng.choice((3, 30)))
        self._put(path, Thing("link", 0o777, target=target))
        return Change("symlink", [("symlink", target, path)], (path, self._parent(path)))

    def _change_symlink(self) -> Change | None:
        """As ln -sf does: another link under the same name."""
        if (found := self._some("link")) is None:
            return None
        path, _ = found
        target = self._fresh(30)  # as long as the old one may be
        self._put(path, Thing("link", 0o777, target=target))
        calls: list[Call] = [("symlink", target, "fresh"), ("rename", "fresh", path)]
        return Change("change_symlink", calls, (path, self._parent(path), "fresh"))

    def _link(self) -> Change | None:
        found, path = self._some("file"), self._free()
        if found is None or path is None:
            return None
        old, thing = found
        thing.links += 1
        self._put(path, thing)
        return Change("link", [("link", old, path)], (*self.paths_of(thing), self._parent(path)))

    def _unlink(self) -> Change | None:
        found = self._some(self._rng.choice(("file", "link")))
        if found is None:
            return None
        path, thing = found
        self._take(path)
        thing.links -= 1
        return Change("unlink", [("unlink", path)], (path, *self.paths_of(thing), self._parent(path)))

    def _mkdir(self) -> Change | None:
        path = self._free()
        if path is None or "/" in path or sum(one.kind == "directory" for one in self.top.names.values()) > 2:
            return None
        self._put(path, Thing("directory", 0o755))
        return Change("mkdir", [("mkdir", path)], (path, ".", f"{path}/{CHILD}"))

    def _rmdir(self) -> Change | None:
        found = self._some("directory")
        if found is None or found[1].names:
            return None
        self._take(found[0])
        return Change("rmdir", [("rmdir", found[0])], (found[0], ".", f"{found[0]}/{CHILD}"))

    def _rename(self) -> Change | None:
        """Of anything to a free name; a directory stays at the top."""
        found, new = self._some(self._rng.choice(("file", "link", "directory"))), self._free()
        if found is None or new is None or (found[1].kind == "directory" and "/" in new):
            return None
        old, thing = found
        self._put(new, self._take(old))
        below = (f"{old}/{CHILD}", f"{new}/{CHILD}") if thing.kind == "directory" else ()
        return Change("rename", [("rename", old, new)], (old, new, self._parent(old), self._parent(new), *below))

    def _rename_over(self) -> Change | None:
        """Of a file over another."""
        found, other = self._some("file"), self._some("file")
        if found is None or other is None or found[1] is other[1]:
            return None
        (old, thing), (new, lost) = found, other
        lost.links -= 1
        self._put(new, self._take(old))
        paths = (old, new, *self.paths_of(lost), *self.paths_of(thing), self._parent(old), self._parent(new))
        return Change("rename_over", [("rename", old, new)], paths)


DATA_KINDS: Final = ("write", "replace", "append", "truncate", "store")
KINDS: Final = (
    *DATA_KINDS, "times", "chmod", "set_xattr", "remove_xattr", "create", "create", "symlink", "change_symlink", "link",
    "unlink", "mkdir", "rmdir", "rename", "rename_over",
)  # fmt: skip
