"""Work at random on shared objects and record it: history.py DIR WHO NUMBER SEED THING...

A line "keep" on standard input has it open everything for reading, and read it; it prints null, and uses those descriptors
from then on.  It works from a line "go" to a line "stop", and then prints what it did since "go" as one line of JSON:
[thing, who, called, returned, action, argument, result] for each operation; times of CLOCK_MONOTONIC, which all
nodes of a lab share; null as the result of a change that failed without saying whether it happened.

Things in DIR: r* is a file that is written whole, log* one that is appended to, files* and links* are directories of
names.  Writers of r0 and log0 stay open now and then, others not; of r*data and log*data only the data are looked at.  NUMBER (0 to 8, another for each program) keeps what the programs make apart.  The actions and results are
those of the specifications in tests/linearizability.py.
"""

import contextlib
import ctypes
import errno
import json
import os
import random
import select
import stat
import sys
import time
import zlib

REGISTER_LENGTH = 16  # in one cache line: a longer write can be seen half done on any local file system (ext4, xfs)
RECORD_LENGTH = 32
NAMES = ("a", "b", "c", "d")
LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE = 1
MODES_EACH = 56  # of the 512 that nine programs share
# What a call may say when a daemon died: honest, but not whether it was done.
HONEST = {errno.EIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.ESTALE, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ENODEV}


def fill(tag: str) -> bytes:
    return tag.ljust(REGISTER_LENGTH, ";").encode()


class Commands:
    """Lines of standard input, of which nothing is hidden in a buffer: two may have come before the first is read."""

    def __init__(self) -> None:
        self.text = b""
        self.is_over = False

    def has_come(self) -> bool:
        """Whether `next` returns at once."""
        return b"\n" in self.text or self.is_over or bool(select.select([0], [], [], 0)[0])

    def next(self) -> str:
        """The next line without its end; "" at the end of all."""
        while b"\n" not in self.text and not self.is_over:
            more = os.read(0, 4096)
            self.text += more
            self.is_over = not more
        line, _, self.text = self.text.partition(b"\n")
        return line.decode()


class Worker:
    def __init__(self) -> None:
        self.directory, self.who, self.number = sys.argv[1], sys.argv[2], int(sys.argv[3])
        self.rng = random.Random(sys.argv[4])
        self.things = sys.argv[5:]
        self.top = -1
        self.kept: dict[tuple[str, int], int] = {}
        self.made = self.files = 0
        self.done: list[list] = []
        self.commands = Commands()

    # ------------------------------------------------------------ running

    def run(self) -> None:
        """Until "stop"; after an error of the mount, on with new descriptors as soon as there is a mount again."""
        while not self.commands.has_come():
            try:
                if self.top < 0:
                    self.connect()
                self.step(self.rng.choice(self.things))
            except OSError as error:
                if error.errno not in HONEST:
                    raise
                self.disconnect()
        self.commands.next()
        print(json.dumps(self.done), flush=True)
        self.done = []

    def keep(self) -> None:
        """Read files through descriptors that stay open."""
        self.connect()
        for thing in self.things:
            self.kept[thing, os.O_RDONLY] = fd = os.open(thing, os.O_RDONLY, dir_fd=self.top)
            os.pread(fd, 1 << 20, 0)
        print("null", flush=True)

    def connect(self) -> None:
        """A new descriptor of DIR: what is looked up from it lies in the mount that was there then, or nowhere."""
        try:
            self.top = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # between the dead mount and the next
            time.sleep(0.02)
        except OSError:
            time.sleep(0.02)
            raise

    def disconnect(self) -> None:
        for fd in (self.top, *self.kept.values()):
            with contextlib.suppress(OSError):
                os.close(fd)
        self.top = -1
        self.kept = {}

    def step(self, thing: str) -> None:
        if self.top < 0:
            return
        if thing.startswith("r"):
            others = (self.read,) if thing.endswith("data") else (self.look_time,)
            self.rng.choice((self.write, self.read, self.read, self.read, *others))(thing)
        elif thing.startswith("log"):
            others = (self.read_log,) if thing.endswith("data") else (self.count, self.count)
            self.rng.choice((self.append, self.read_log, *others))(thing)
        else:
            self.name(thing)

    def record(self, thing: str, action: str, argument: object, call: object, *, looks: bool = False) -> None:
        """Do *call*; its value is the result.  A look that fails tells nothing, a change that fails may have happened."""
        called = time.monotonic()
        try:
            result = call()
        except OSError as error:
            returned = time.monotonic()
            if error.errno in (errno.EEXIST, errno.ENOENT) and not looks:
                result = errno.errorcode[error.errno]
            elif error.errno == errno.ENOENT and action == "look":
                result = None
            else:
                # ENOTCONN: the mount was dead already, so nothing was sent; what was under way then gets ECONNABORTED.
                if error.errno in HONEST and error.errno != errno.ENOTCONN and not looks:
                    self.done.append([thing, self.who, called, returned, action, argument, "?"])
                raise
        else:
            returned = time.monotonic()
            result = result if looks else "ok"
        self.done.append([thing, self.who, called, returned, action, argument, result])

    def open(self, path: str, flags: int) -> int:
        """One that was kept, or a new one; both kinds are used."""
        if self.rng.random() < 0.5 and (flags == os.O_RDONLY or "0" in path):
            if (path, flags) not in self.kept:
                self.kept[path, flags] = os.open(path, flags, dir_fd=self.top)
            return self.kept[path, flags]
        return os.open(path, flags, dir_fd=self.top)

    def close(self, fd: int) -> None:
        if fd not in self.kept.values():
            os.close(fd)

    def fresh(self) -> int:
        self.made += 1
        return self.made

    # ------------------------------------------------------------ files

    def write(self, thing: str) -> None:
        tag = f"{self.who}.{self.fresh()}"
        fd = self.open(thing, os.O_WRONLY)
        self.record(thing, "write", tag, lambda: os.pwrite(fd, fill(tag), 0))
        self.close(fd)

    def read(self, thing: str) -> None:
        def look() -> str:
            fd = self.open(thing, os.O_RDONLY)
            text = os.pread(fd, 2 * REGISTER_LENGTH, 0)
            self.close(fd)
            tag = text.partition(b";")[0].decode()
            return tag if text == fill(tag) else text.decode()

        self.record(thing, "read", None, look, looks=True)

    def look_time(self, thing: str) -> None:
        self.record(
            f"{thing} times", "look", None, lambda: os.stat(thing, dir_fd=self.top).st_mtime_ns, looks=True
        )  # fmt: skip

    def append(self, thing: str) -> None:
        text = f"{self.who}.{self.fresh()}"
        fd = self.open(thing, os.O_WRONLY | os.O_APPEND)
        self.record(thing, "append", text, lambda: os.write(fd, text.ljust(RECORD_LENGTH - 1).encode() + b"\n"))
        self.close(fd)

    def count(self, thing: str) -> None:
        self.record(
            thing, "count", None, lambda: os.stat(thing, dir_fd=self.top).st_size / RECORD_LENGTH, looks=True
        )  # fmt: skip

    def read_log(self, thing: str) -> None:
        """The result is the number of bytes and their digest: the test knows what they must be."""

        def look() -> list:
            fd = self.open(thing, os.O_RDONLY)
            text, more = b"", b"?"
            while more:
                more = os.pread(fd, 1 << 20, len(text))
                text += more
            self.close(fd)
            return [len(text), zlib.crc32(text)]

        self.record(thing, "read", None, look, looks=True)

    # ------------------------------------------------------------ names

    def name(self, thing: str) -> None:
        name, other = self.rng.sample(NAMES, 2)
        path = f"{thing}/{name}"
        action = self.rng.choice(("make", "put", "remove", "move", "look", "look", "look", "look"))
        if action == "look":
            self.record(thing, "look", name, lambda: self.identity(thing, path), looks=True)
        elif action == "remove":
            self.record(thing, "remove", name, lambda: os.unlink(path, dir_fd=self.top))
        elif action == "move":
            # Not in place of what is there: the kernel looks both names up, one after the other, and calls it done when
            # they lead to the same object, as they seem to when another node does the same rename in between.
            self.record(thing, "move_to_free", [name, other], lambda: self.rename_to_free(path, f"{thing}/{other}"))
        elif action == "make" and self.rng.random() < 0.5:
            self.make(thing, name, path)
        else:
            self.make_aside(thing, action, name, path)

    def make(self, thing: str, name: str, path: str) -> None:
        """By the call that makes a new object; what can be told of it in one call is its mode, or where it points."""
        if thing.startswith("links"):
            identity = f"{self.who}.{self.fresh()}"
            self.record(thing, "make", [name, identity], lambda: os.symlink(identity, path, dir_fd=self.top))
            return
        mode = self.number * MODES_EACH + self.fresh() % MODES_EACH
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self.record(
            thing, "make", [name, f"mode {mode:o}"], lambda: os.close(os.open(path, flags, mode, dir_fd=self.top))
        )  # fmt: skip

    def make_aside(self, thing: str, action: str, name: str, path: str) -> None:
        """Made elsewhere, then given the name; a file is known by its size."""
        aside = f"aside/{self.who}.{self.fresh()}"
        if thing.startswith("links"):
            identity: object = aside
            os.symlink(aside, aside, dir_fd=self.top)
        else:
            self.files += 1
            identity = self.files * 9 + self.number
            fd = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=self.top)
            os.write(fd, b"x" * identity)
            os.close(fd)
        if action == "put":
            self.record(thing, "put", [name, identity], lambda: self.rename(aside, path))
        else:
            self.record(
                thing, "make", [name, identity],
                lambda: os.link(aside, path, src_dir_fd=self.top, dst_dir_fd=self.top, follow_symlinks=False),
            )  # fmt: skip
            os.unlink(aside, dir_fd=self.top)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self.top, dst_dir_fd=self.top)

    def rename_to_free(self, old: str, new: str) -> None:
        if LIBC.renameat2(self.top, old.encode(), self.top, new.encode(), RENAME_NOREPLACE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def identity(self, thing: str, path: str) -> object:
        """Which object the name leads to, told by one call."""
        if thing.startswith("links"):
            return os.readlink(path, dir_fd=self.top)
        if self.rng.random() < 0.5:
            status = os.stat(path, dir_fd=self.top)
        else:
            fd = os.open(path, os.O_RDONLY, dir_fd=self.top)
            status, text = os.fstat(fd), os.read(fd, 1 << 20)
            os.close(fd)
            if text != b"x" * status.st_size:
                return f"{status.st_size} bytes by stat, {len(text)} by read"
        return status.st_size or f"mode {stat.S_IMODE(status.st_mode):o}"


def main() -> None:
    os.umask(0)
    worker = Worker()
    while line := worker.commands.next():
        worker.keep() if line == "keep" else worker.run()


main()
