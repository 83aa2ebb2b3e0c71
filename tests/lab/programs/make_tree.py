"""Make a directory with one of everything an archive must keep.  Run inside a node: make_tree.py DIR."""

import os
import subprocess
import sys


def main() -> None:
    root = sys.argv[1]
    os.makedirs(root)
    os.chdir(root)
    for number in range(40):
        os.makedirs(f"d{number % 7}/e{number % 3}", exist_ok=True)
        path = f"d{number % 7}/e{number % 3}/f{number}"
        with open(path, "wb") as file:
            file.write(os.urandom(number * 977))
        os.chmod(path, (0o400, 0o644, 0o755, 0o4755, 0o2711, 0o600)[number % 6])
        os.chown(path, 1000 + number % 3, 1000 + number % 2)
        os.chmod(path, (0o400, 0o644, 0o755, 0o4755, 0o2711, 0o600)[number % 6])
    os.link("d1/e1/f1", "hard1")
    os.link("d1/e1/f1", "d2/hard2")
    os.symlink("d1/e1/f1", "link-relative")
    os.symlink("/nonexistent/" + "x" * 200, "link-dangling")
    os.mkfifo("fifo", 0o640)
    os.mkdir("sticky", 0o1777)
    os.chmod("sticky", 0o1777)
    with open(b"name-\xff\xfe-bytes", "wb") as file:
        file.write(b"names are bytes")
    with open("sparse", "wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    with open("empty", "wb"):
        pass
    os.setxattr("hard1", "user.colour", b"blue\0green")
    os.setxattr("d3", "user.dir", b"x" * 300)
    subprocess.run(["setfacl", "-m", "u:1001:rwx,g:1002:r--", "d4"], check=True)
    subprocess.run(["setfacl", "-m", "d:u:1001:r-x", "d4"], check=True)
    subprocess.run(["setfacl", "-m", "u:1002:rw-", "empty"], check=True)
    when = 1_000_000_000_123_456_789
    for here, dirs, files in os.walk(".", topdown=False):
        for name in dirs + files:
            when += 1_234_567_891
            os.utime(os.path.join(here, name), ns=(when, when), follow_symlinks=False)


main()
