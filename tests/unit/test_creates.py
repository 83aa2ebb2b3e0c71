"""Whether a thread that waits for a LOOKUP creates: real calls into a mount that asks at once, before it answers."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from omfs.kernel import callers, namespaces as ns, processes
from omfs.kernel.callers import asks_xattrs, creates, only_looks
from omfs.kernel.libc import libc, system_call
from tests.unit.askedmount import AskedMount
from tests.unit.test_fusenotify import wait_stuck

IS_X86_64: Final = platform.machine() == "x86_64"
AT_FDCWD: Final = -100


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[AskedMount]:
    mount = AskedMount(tmp_path, creates)
    try:
        tmp_path.stat()  # answered once INIT was
        yield mount
    finally:
        mount.may_flush.set()
        ns.unmount(str(tmp_path), ns.MNT_DETACH)
        mount.thread.join()
        os.close(mount.fd)


def in_child(call: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            call()
        os._exit(0)
    os.waitpid(child, 0)


def call_openat2(path: str, flags: int) -> None:
    how = struct.pack("=3Q", flags, 0o600 if flags & (os.O_CREAT | os.O_TMPFILE) else 0, 0)
    system_call(ctypes.c_long(437), ctypes.c_int(AT_FDCWD), os.fsencode(path), how, ctypes.c_size_t(len(how)))


def call_open(path: str, flags: int) -> None:
    """open(2) itself, which no C library calls any more."""
    system_call(ctypes.c_long(2), os.fsencode(path), ctypes.c_int(flags), ctypes.c_int(0o600))


def opened(flags: int) -> Callable[[str], object]:
    return lambda path: os.open(path, flags)


CALLS: Final[dict[str, tuple[Callable[[str], object], bool]]] = {
    "open": (opened(os.O_RDONLY), False),
    "open to write": (opened(os.O_WRONLY | os.O_TRUNC), False),
    "open to create": (opened(os.O_WRONLY | os.O_CREAT | os.O_EXCL), True),
    "open a directory": (opened(os.O_DIRECTORY), False),
    "open a temporary file": (opened(os.O_RDWR | os.O_TMPFILE), True),
    "open to find, which ignores O_CREAT": (opened(os.O_PATH | os.O_CREAT), False),
    "below it": (lambda path: os.open(f"{path}/x", os.O_RDWR | os.O_CREAT), True),
    "below it, read": (lambda path: os.open(f"{path}/x", os.O_RDONLY), False),
    "creat": (lambda path: libc.creat(os.fsencode(path), 0o600), True),
    "openat2": (lambda path: call_openat2(path, os.O_RDONLY), False),
    "openat2 to create": (lambda path: call_openat2(path, os.O_WRONLY | os.O_CREAT), True),
    "openat2 of a temporary file": (lambda path: call_openat2(path, os.O_RDWR | os.O_TMPFILE), True),
    "mkdir": (os.mkdir, False),
    "stat": (os.stat, False),
    "unlink": (os.unlink, False),
    "rename": (lambda path: os.rename(path, f"{path}-2"), False),
    "symlink": (lambda path: os.symlink("x", path), False),
    "truncate": (lambda path: os.truncate(path, 0), False),
    "chdir": (os.chdir, False),
    "execve": (lambda path: in_child(lambda: os.execv(path, [path])), False),
}
if IS_X86_64:
    CALLS["open itself"] = (lambda path: call_open(path, os.O_RDONLY), False)
    CALLS["open itself to create"] = (lambda path: call_open(path, os.O_WRONLY | os.O_CREAT), True)


@pytest.mark.parametrize("name", CALLS)
def test_a_thread_that_waits_in(name: str, mounted: AskedMount) -> None:
    call, expected = CALLS[name]
    with suppress(OSError):
        call(str(mounted.top / "new"))
    assert mounted.seen[b"new"] == [expected]


def narrow_program(number: int, path: Path, flags: int) -> bytes:
    """A 32-bit ELF file that does one call: open (5), creat (8), openat (295), openat2 (437) or stat (106)."""
    base, head_bytes = 0x10000, 52 + 32
    named = os.fsencode(path) + b"\0"
    data = base + head_bytes
    how, code = data + len(named), data + len(named) + 24
    first = AT_FDCWD if number in (295, 437) else data
    arguments = {295: (data, flags), 437: (data, how)}.get(number, (flags, 0o600))
    registers = b"".join(
        bytes([opcode]) + struct.pack("<I", value & 0xFFFFFFFF)
        for opcode, value in zip(b"\xb8\xbb\xb9\xba\xbe", (number, first, *arguments, 24), strict=True)
    )
    text = registers + b"\xcd\x80" + b"\xb8\1\0\0\0\x31\xdb\xcd\x80"  # and exit(0)
    body = named + struct.pack("<3Q", flags, 0o600 if flags & os.O_CREAT else 0, 0) + text
    size = head_bytes + len(body)
    head = b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, code, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return head + struct.pack("<8I", 1, 0, base, base, size, size, 7, 4096) + body


def run_or_refused(program: Path) -> bool:
    """Whether the kernel has no 32-bit programs."""
    try:
        subprocess.run([program], check=True)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return True
    return False


@pytest.mark.parametrize(
    ("number", "flags", "expected"),
    [
        (5, os.O_CREAT | os.O_WRONLY, True), (5, os.O_RDONLY, False), (8, 0o600, True), (106, 0, False),
        (295, os.O_CREAT, True), (295, os.O_WRONLY, False), (437, os.O_CREAT, True), (437, os.O_RDONLY, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("question", [creates, only_looks])
def test_a_32_bit_program(
    number: int,
    flags: int,
    expected: bool,
    question: Callable[[int], bool],
    mounted: AskedMount,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its numbers mean other calls: what is open to it is fstat to others."""
    mounted.look = question
    program = tmp_path_factory.mktemp("narrow") / "program"
    program.write_bytes(narrow_program(number, mounted.top / "new", flags))
    program.chmod(0o700)
    if run_or_refused(program):
        return  # this machine runs none, so nobody asks so
    only_opens = number in (5, 295) and not flags & os.O_CREAT  # the only ones that are known for certain to look
    assert mounted.seen[b"new"] == [expected if question is creates else only_opens]


def test_who_asks_for_attributes_and_who_walks(mounted: AskedMount) -> None:
    mounted.look = asks_xattrs
    code = """
import os, sys
for name, call in (("get", lambda path: os.getxattr(path, "user.x")), ("link", lambda path: os.getxattr(path, "user.x",
    follow_symlinks=False)), ("list", os.listxattr), ("stat", os.stat), ("open", os.open)):
    try: call(f"{sys.argv[1]}/{name}", *([os.O_RDONLY] if call is os.open else []))
    except OSError: pass
"""
    subprocess.run([sys.executable, "-SEc", code, str(mounted.top)], check=True)
    seen = {name: looks[0] for name, looks in mounted.seen.items()}
    assert seen == {b"get": True, b"link": True, b"list": True, b"stat": False, b"open": False}
    assert not asks_xattrs(0)


STORM: Final = """
import os, sys, threading
def run(name):
    for i in range(int(sys.argv[2])):
        creating = (i * 7 + ord(name)) % 3 == 0
        try:
            os.open(f"{sys.argv[1]}/{'creates' if creating else 'reads'}-{os.getpid()}-{name}-{i}",
                    os.O_RDWR | os.O_CREAT if creating else os.O_RDONLY)
        except OSError:
            pass
threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_no_wrong_answer_in_a_storm(mounted: AskedMount) -> None:
    """Asked at once, when a thread may still be on its way to sleep."""
    command = [sys.executable, "-SEc", STORM, str(mounted.top), "250"]
    programs = [subprocess.Popen(command) for _ in range(3)]
    assert [program.wait() for program in programs] == [0, 0, 0]
    asked = {name: said for name, said in mounted.seen.items() if b"-" in name}
    assert len(asked) == 3 * 2 * 250
    assert {name: said for name, said in asked.items() if said != [name.startswith(b"creates")]} == {}


def test_who_is_still_awake_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [b"running\n"] * 3 + [b"257 0xffffff9c 0x1 0x40 0x0 0x0 0x0 0x7fffffffffff 0x7fffffffffff\n"] * IS_X86_64
    said.append(b"56 0xffffff9c 0x1 0x40 0x0 0x0 0x0 0x7fffffffffff 0x7fffffffffff\n")
    monkeypatch.setattr(callers, "read_file", lambda path: said.pop(0))
    assert creates(1)


def test_who_does_not_sleep_or_is_in_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not creates(0)
    assert not creates(1 << 30)
    for text in b"running\n", b"-1 0x7fffffffffff 0x7fffffffffff\n":
        monkeypatch.setattr(callers, "read_file", lambda path, text=text: text)
        monkeypatch.setattr(callers, "ASLEEP_WITHIN_S", 0)
        assert not creates(1)
        assert not only_looks(1)


EXECS: Final = """
import os, sys
kept = os.open(sys.argv[1], os.O_RDONLY)
input()
os.execv(sys.executable, [sys.executable, "-SEc", "input()"])
"""


def test_nobody_looks_into_a_process_whose_execve_closes_files(mounted: AskedMount) -> None:
    """Why the thread that answers requests must not: the close waits for it."""
    process = subprocess.Popen([sys.executable, "-SEc", EXECS, str(mounted.top / "file")], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        identity = processes.identify(process.pid)
        assert identity is not None
        while b"file" not in mounted.seen:
            os.sched_yield()
        process.stdin.write(b"\n")
        process.stdin.flush()
        mounted.is_flushing.wait()
        images: list[str] = []
        looking = threading.Thread(target=lambda: images.append(processes.image_of(identity)))
        looking.start()
        wait_stuck(looking)
        assert images == []
        mounted.may_flush.set()
        looking.join()
        assert len(images) == 1
        assert processes.identify(process.pid) == identity
    finally:
        mounted.may_flush.set()
        process.kill()
        process.stdin.close()
        process.wait()
