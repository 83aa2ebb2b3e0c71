"""Do file calls in a directory as they are told: calls.py DIR.

A line on standard input is a JSON list of calls, [name, argument...]; the line that answers it is the list of results, a
failed call as {"errno": NAME}.  Paths are relative to DIR.  It is what looks, and what changes, in tests/lab/rounds.py.
"""

import errno
import json
import mmap
import os
import stat
import sys
import time

kept: dict[str, int] = {}  # descriptors that stay open from one line to the next, by the name they were opened by
maps: dict[str, mmap.mmap] = {}


# ---------------------------------------------------------------- looks


def facts(path: str, *aspects: str) -> dict:
    """Everything a program can see of a path, each fact by its own call."""
    try:
        seen = _attributes(os.lstat(path))
    except FileNotFoundError:
        return {"kind": "nothing"}
    if seen["kind"] == "file" and "data" in aspects:
        seen["data"] = data(path)
    elif seen["kind"] == "link":
        seen["target"] = os.readlink(path)
    elif seen["kind"] == "directory":
        seen["names"] = sorted(os.listdir(path))
    if "xattrs" in aspects:
        names = os.listxattr(path, follow_symlinks=False)
        user = sorted(name for name in names if name.startswith("user."))
        seen["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).decode() for name in user}
    return seen


def data(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode()


def keep(path: str) -> None:
    kept[path] = os.open(path, os.O_RDONLY)


def kept_facts(path: str) -> dict:
    """The same of what was opened by keep, whatever its name is now; it is closed."""
    fd = kept.pop(path)
    seen = _attributes(os.fstat(fd))
    if seen["kind"] == "file":
        seen["data"] = os.pread(fd, 1 << 20, 0).decode()
    os.close(fd)
    return seen


def _attributes(status: os.stat_result) -> dict:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return {
        "kind": kinds[stat.S_IFMT(status.st_mode)], "mode": status.st_mode & 0o7777, "nlink": status.st_nlink,
        "size": status.st_size, "mtime": status.st_mtime_ns, "ctime": status.st_ctime_ns, "owner": status.st_uid,
    }  # fmt: skip


def many_facts(paths: list) -> dict:
    return {path: facts(path, "data", "xattrs") for path in paths}


def wait_facts(expected: dict, returned: float, give_up_s: float) -> dict:
    """Look again and again until all paths are as expected; how long after *returned* a look that saw the old began.

    late_s: 0 where none did.  The wrong facts, and no end, where they don't come.
    """
    late_s = 0.0
    while True:
        began = time.monotonic()
        wrong = {}
        for path, wanted in expected.items():
            try:
                seen = facts(path, "data", "xattrs")
            except OSError as error:  # a name that went away, or came, between two of its calls
                seen = {"errno": errno.errorcode[error.errno or 0]}
            if any(seen.get(key) != value for key, value in wanted.items()):
                wrong[path] = seen
        if not wrong:
            return {"late_s": late_s, "wrong": {}}
        late_s = began - returned
        if late_s > give_up_s:
            return {"late_s": late_s, "wrong": wrong}


# ---------------------------------------------------------------- changes


def write(path: str, text: str, offset: int) -> None:
    """In place, through a descriptor of its own."""
    _through(path, os.O_WRONLY, lambda fd: os.pwrite(fd, text.encode(), offset))


def replace(path: str, text: str) -> None:
    """As a shell's > does."""
    _through(path, os.O_WRONLY | os.O_TRUNC, lambda fd: os.write(fd, text.encode()))


def append(path: str, text: str) -> None:
    _through(path, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, text.encode()))


def create(path: str, text: str) -> None:
    _through(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, lambda fd: os.write(fd, text.encode()))


def store(path: str, text: str) -> None:
    """Through a mapping whose descriptor is closed before the store and not after it."""
    with open(path, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    mapping[: len(text)] = text.encode()
    mapping.flush()
    mapping.close()


def map_open(path: str) -> None:
    """A mapping that stays; no descriptor does."""
    with open(path, "r+b") as file:
        maps[path] = mmap.mmap(file.fileno(), 0)


def map_store(path: str, text: str) -> None:
    maps[path][: len(text)] = text.encode()


def map_close(path: str) -> None:
    maps.pop(path).close()


def open_writer(path: str) -> None:
    kept[path] = os.open(path, os.O_WRONLY)


def write_on(path: str, text: str) -> None:
    """Through the descriptor of open_writer, at the beginning."""
    os.pwrite(kept[path], text.encode(), 0)


def close_writer(path: str) -> None:
    os.close(kept.pop(path))


def change_times(path: str, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def set_xattr(path: str, name: str, value: str) -> None:
    os.setxattr(path, name, value.encode())


def _through(path: str, flags: int, act: object) -> None:
    fd = os.open(path, flags, 0o644)
    try:
        act(fd)
    finally:
        os.close(fd)


CALLS = {
    "facts": facts, "data": data, "keep": keep, "kept_facts": kept_facts, "many_facts": many_facts, "wait_facts": wait_facts,
    "write": write, "replace": replace, "append": append, "create": create, "store": store, "map_open": map_open,
    "map_store": map_store, "map_close": map_close, "open_writer": open_writer, "write_on": write_on,
    "close_writer": close_writer, "change_times": change_times, "set_xattr": set_xattr, "clock": time.monotonic, "wall_clock": time.time_ns,
    "truncate": os.truncate, "chmod": os.chmod, "remove_xattr": os.removexattr, "rename": os.rename, "link": os.link,
    "unlink": os.unlink, "symlink": os.symlink, "mkdir": os.mkdir, "rmdir": os.rmdir,
}  # fmt: skip


def main() -> None:
    os.chdir(sys.argv[1])
    for line in sys.stdin:
        results = []
        for name, *arguments in json.loads(line):
            try:
                results.append(CALLS[name](*arguments))
            except OSError as error:
                results.append({"errno": errno.errorcode[error.errno or 0]})
        print(json.dumps(results), flush=True)


main()
