"""Try what names and paths must be able to do below a directory: names.py DIR; prints ok."""

import errno
import os
import sys


def expect(code: int, call, *arguments) -> None:  # type: ignore[no-untyped-def]
    got = 0
    try:
        call(*arguments)
    except OSError as error:
        got = error.errno or 0
    assert got == code, f"{os.strerror(got)} instead of {os.strerror(code)}"


def main() -> None:
    os.chdir(sys.argv[1])
    raw = bytes(range(1, 256)).replace(b"/", b"")
    for name in (raw[:254], b"\xff" * 255, b" ", b"-rf", b"a\nb", "Größe".encode()):
        with open(name, "wb") as file:
            file.write(name)
        with open(name, "rb") as file:
            assert file.read() == name
        assert name in os.listdir(b".")
        os.unlink(name)
    expect(errno.ENAMETOOLONG, os.mkdir, b"x" * 256)
    expect(errno.ENOENT, os.stat, b"missing")
    here = os.open(".", os.O_RDONLY)
    depth = 0
    while depth * 201 + 201 < 3900:  # as deep as PATH_MAX allows from here
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = deeper
        depth += 1
    long_path = "/".join(["d" * 200] * depth)
    with open(long_path + "/leaf", "w") as file:
        file.write("deep")
    with open(long_path + "/leaf") as file:
        assert file.read() == "deep"
    expect(errno.ENAMETOOLONG, os.stat, long_path + "/." * 200)
    print("ok")


main()
