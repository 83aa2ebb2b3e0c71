"""A file unlinked while open lives on: unlinked.py DIR; prints ok."""

import os
import sys


def main() -> None:
    path = os.path.join(sys.argv[1], "unlinked")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, b"before")
    os.unlink(path)
    assert not os.path.exists(path)
    os.write(fd, b" after")
    assert os.pread(fd, 100, 0) == b"before after"
    assert os.fstat(fd).st_size == 12, os.fstat(fd)
    assert os.fstat(fd).st_nlink == 0, os.fstat(fd)
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o640)
    assert os.pread(fd, 100, 0) == b"bef"
    assert os.fstat(fd).st_mode & 0o777 == 0o640
    other = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(other, b"new")
    os.unlink(path)
    assert os.pread(fd, 100, 0) == b"bef"
    os.close(fd)
    os.close(other)
    print("ok")


main()
