"""Print one JSON line per object below a directory: everything an archive should keep.  Run inside a node."""

import hashlib
import json
import os
import stat
import sys

SEEK_DATA_LIMIT = 1 << 20


def holes(fd: int, size: int) -> bool:
    """Does the file have a hole (is its allocation visibly smaller than its size)?"""
    return size > SEEK_DATA_LIMIT and os.fstat(fd).st_blocks * 512 < size // 2


def describe(path: bytes, root: bytes, groups: dict[int, bytes]) -> dict[str, object]:
    st = os.lstat(path)
    name = os.path.relpath(path, root)
    first = groups.setdefault(st.st_ino, name) if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode) else name
    entry: dict[str, object] = {
        "name": name.hex(),
        "mode": oct(st.st_mode),
        "uid": st.st_uid,
        "gid": st.st_gid,
        "mtime_ns": st.st_mtime_ns,
        "link_of": first.hex(),
        "xattrs": {
            k: os.getxattr(path, k, follow_symlinks=False).hex()
            for k in sorted(os.listxattr(path, follow_symlinks=False))
        },
    }
    if stat.S_ISLNK(st.st_mode):
        entry["target"] = os.readlink(path).hex()
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as file:
            entry["size"] = st.st_size
            entry["sparse"] = holes(file.fileno(), st.st_size)
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if not stat.S_ISDIR(st.st_mode):
        entry["nlink"] = st.st_nlink
    return entry


def main() -> None:
    root = os.fsencode(sys.argv[1])
    groups: dict[int, bytes] = {}
    paths = [os.path.join(here, name) for here, dirs, files in os.walk(root) for name in dirs + files]
    for path in sorted(paths):
        print(json.dumps(describe(path, root, groups), sort_keys=True))


main()
