"""A guest's tree and its birthright with real programs, each test in namespaces of its own.

The functions named `inside_...` run in there.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

import pytest
from msgspec.structs import replace

from mignode import birthright, body
from omfs.errors import BodyLost
from tests.lab.criuroom import run, run_inside
from tests.lab.guestroom import (
    AWAY,
    ELSEWHERE,
    PID,
    Guests,
    ask,
    line,
    make_elsewhere,
    output,
    same,
    text_of,
    touch,
)  # fmt: skip
from tests.lab.movedprograms import PYTHON

LOOKS: Final = """
import json, os, socket, sys
def errno_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0
def opened(path):
    os.close(os.open(path, os.O_RDWR))
def mounted():
    return [line.split()[4] for line in open("/proc/self/mountinfo")]
print(json.dumps({%s}))
"""


async def looks(guests: Guests, expressions: dict[str, str], **of: Any) -> dict[str, Any]:
    """What they are inside."""
    text = LOOKS % ", ".join(f"{name!r}: {expression}" for name, expression in expressions.items())
    one = await guests.run(PYTHON, "-c", text, **of)
    found: dict[str, Any] = json.loads(await output(one))
    return found


# ---------------------------------------------------------------- its tree


ALIKE: Final = {
    "descriptors": "sorted(map(int, os.listdir('/proc/self/fd')))",  # and the one that lists them
    "host": "socket.gethostname()",
    "pid": "os.getpid()",
    "pids": "[name for name in os.listdir('/proc') if name.isdigit()]",
    "devices": "sorted(os.listdir('/dev'))",
    "null": "errno_of(opened, '/dev/null')",
    "terminal": "[os.ttyname(os.openpty()[1]), os.listdir('/dev/pts')]",
    "memory": "os.listdir('/dev/shm')",
    "sys": "errno_of(os.mkdir, '/sys/fs/cgroup/new')",
    "directory": "os.getcwd()",
    "user": "os.path.exists('/etc/passwd') and os.path.exists('/usr/bin/env')",
    "run": "os.path.exists('/run/of the node')",
    "old root": "[path for path in mounted() if path.startswith('/run/guest')]",
}


def expected() -> dict[str, Any]:
    devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    return {
        "host": "first", "pid": PID, "pids": ["1", str(PID)], "devices": devices.split(), "null": 0,
        "terminal": ["/dev/pts/0", ["0", "ptmx"]], "memory": [], "sys": errno.EROFS,
        "descriptors": [0, 1, 2, 3], "directory": "/tmp", "user": True, "run": True, "old root": [],
    }  # fmt: skip


async def inside_home() -> None:
    touch("/run/of the node")
    run("mount", "--make-rshared", "/")  # as systemd does
    async with Guests() as guests:
        more = {"root": "errno_of(os.mkdir, '/run/new')", "procs": "mounted().count('/proc') + mounted().count('/dev')"}
        found = await looks(guests, {**ALIKE, **more}, directory="/tmp")
        same(found, {**expected(), "root": 0, "procs": 2})
    run("rmdir", "/run/new")  # what it makes is home's


def test_home_is_the_nodes_own_tree() -> None:
    run_inside(inside_home)


async def inside_later_mount() -> None:
    run("mount", "--make-rshared", "/")
    run("mkdir", "/run/there")
    async with Guests() as guests:
        one = await guests.run("/bin/sh", "-c", "read x; ls /run/there; mount -t tmpfs t /media; echo done; read x")
        run("mount", "-t", "tmpfs", "tmpfs", "/run/there")
        touch("/run/there/is later")
        assert await ask(one, "look") == "is later"
        assert await line(one) == "done"
        assert " /media " not in text_of("/proc/self/mountinfo")


def test_mounts_come_in_and_none_go_out() -> None:
    run_inside(inside_later_mount)


async def inside_away() -> None:
    make_elsewhere()
    touch("/run/of the node")
    run("mkdir", "/run/some")
    run("mount", "--bind", "/run/some", f"{ELSEWHERE}/home")
    touch("/run/some/of home")
    async with Guests() as guests:
        more = {
            "root": "errno_of(os.mkdir, '/new')",
            "home": "os.listdir('/home')",
            "entries": "sorted(os.listdir('/'))",
            "link": "os.path.islink('/bin')",
        }
        found = await looks(guests, {**ALIKE, **more}, directory="/tmp", world=AWAY)
    wanted = {
        **expected(), "root": errno.EROFS, "home": ["of home"], "entries": sorted(os.listdir(ELSEWHERE)),
        "link": (os.stat("/bin", follow_symlinks=False).st_mode & 0o170000) == 0o120000,
    }  # fmt: skip
    same(found, wanted)


def test_away_is_homes_tree_with_the_nodes_run() -> None:
    run_inside(inside_away)


async def inside_looking_into_init() -> None:
    """What root sees of it, and that a user does not see even that."""
    run("mkdir", "/run/secret")
    secret = os.open("/run/secret", os.O_RDONLY)  # such as mignode has
    os.set_inheritable(secret, True)
    paths = ["/proc/1/root", "/proc/1/cwd", "/proc/1/exe", "/proc/1/fd", "/proc/1/mem"]
    async with Guests() as guests:
        whole = {
            "files": "sorted(os.readlink('/proc/1/fd/' + name) for name in os.listdir('/proc/1/fd'))",
            "root": "[os.readlink('/proc/1/root'), os.readlink('/proc/1/cwd')]",
        }
        found = await looks(guests, whole)
        kinds = {name.split(":")[0] for name in found["files"]}
        assert kinds <= {"/dev/null", "/proc", "ipc", "socket", "pipe"}, found
        assert found["root"] == ["/", "/"]
    run("rm", "-r", "/run/guest")
    with Caller(user(1000)) as asking:
        async with Guests() as guests:
            refused = {path: f"errno_of(os.readlink, {path!r})" for path in paths[:3]}
            refused["/proc/1/fd"] = "errno_of(os.listdir, '/proc/1/fd')"
            refused["/proc/1/mem"] = "errno_of(opened, '/proc/1/mem')"
            found = await looks(guests, refused, of=birthright.read(asking.pid, 1000, 1000))
    same(found, dict.fromkeys(paths, errno.EACCES))


def test_an_init_has_nothing_of_the_old_world() -> None:
    run_inside(inside_looking_into_init)


async def inside_bad_world() -> None:
    async with Guests() as guests:
        guests.folder().mkdir()
        with pytest.raises(FileNotFoundError, match="/run/nowhere"):
            await body.hatch(guests.hatchery, guests.nursery, guests.folder(), replace(AWAY, root="/run/nowhere"))
        with pytest.raises(BodyLost):
            await body.connect(guests.nursery, guests.folder())


def test_a_tree_that_can_not_be_made_is_an_error_here() -> None:
    run_inside(inside_bad_world)


# ---------------------------------------------------------------- its birthright


def user(uid: int, *options: str) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", *(options or ["--clear-groups"])]


class Caller:
    """A process that asks for a guest, as mosrun would, and then executes `STATE` itself."""

    def __init__(self, how: Sequence[str], *, before: str = "") -> None:
        self._process = subprocess.Popen(
            [*how, "/bin/sh", "-c", f"{before} echo; read line; exec {STATE}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PATH": "/usr/bin:/bin"}, cwd="/",
        )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is what it is to be

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Caller:
        return self

    def said(self) -> str:
        return self._process.communicate("\n")[0]

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


_LINES: Final = "^(Uid|Gid|Groups|Cap...|NoNewPrivs|Umask|Sig...|Cpus_allowed|Seccomp|Max .*)[: ]"
STATE: Final = (
    f'/bin/sh -c \'grep -hE "{_LINES}" /proc/self/status /proc/self/limits; cd /proc/self;'
    " cat oom_score_adj personality coredump_filter; nice; ionice -p $$; chrt -p 0 | cut -d: -f2'"
)

CALLERS: Final = {
    "root": ([], ""),
    "user": (user(1000), ""),
    "groups": (user(1000, "--groups=4,20,1000"), ""),
    "different ids": (["setpriv", "--ruid=1000", "--euid=1001", "--rgid=1000", "--egid=1001", "--clear-groups"], ""),
    "limits": (["prlimit", "--nofile=100:200", "--nproc=5000", "--core=0:0", "--fsize=1000000", *user(1000)], ""),
    "manners": (
        ["nice", "-n", "7", "ionice", "-c", "2", "-n", "6", "taskset", "1", "setarch", "-R", "choom", "-n", "300", "--",
         *user(1000)],
        "umask 027; trap '' HUP USR2 QUIT;",
    ),
    "batch": (["chrt", "-b", "0", *user(1000)], ""),
    "real time": (["chrt", "-r", "3"], ""),
    "no new rights": (user(1000, "--clear-groups", "--no-new-privs", "--bounding-set=-net_raw,-sys_admin"), ""),
    "a right": (
        user(1000, "--clear-groups", "--inh-caps=+net_bind_service,+chown", "--ambient-caps=+net_bind_service"), ""
    ),
    "root without some": (["setpriv", "--bounding-set=-sys_module,-mknod"], ""),
    "root that is none": (["setpriv", "--securebits=+noroot,+noroot_locked", "--inh-caps=+chown"], ""),
}  # fmt: skip


async def inside_birthright() -> None:
    how, before = CALLERS[sys.argv[3]]
    with Caller(how, before=before) as asking:
        status = birthright.status_lines(text_of(f"/proc/{asking.pid}/status"))
        of = birthright.read(asking.pid, int(status["Uid"].split()[1]), int(status["Gid"].split()[1]))
        async with Guests() as guests:
            one = await guests.run("/bin/sh", "-c", f"exec {STATE}", of=of)
            same(await output(one), asking.said())


@pytest.mark.parametrize("name", CALLERS)
def test_a_guest_is_what_its_user_would_be(name: str) -> None:
    run_inside(inside_birthright, name)


FILTERED: Final = """
import time
from omfs.kernel.bpf import Action, assemble
from omfs.kernel.seccomp import install
install(assemble(Action(0x7FFF0000)))
print(flush=True)
time.sleep(1000)
"""


def refusal(*command: str) -> str:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        try:
            process.stdout.readline()
            with pytest.raises(PermissionError) as caught:
                birthright.read(process.pid, 0, 0)
        finally:
            process.kill()
    return str(caught.value.strerror)


async def inside_refused() -> None:
    make_elsewhere()
    sleep = ("/bin/sh", "-c", "echo; exec sleep 1000")
    for kind, option in (("user", "-U"), ("mnt", "-m"), ("net", "-n"), ("uts", "-u"), ("ipc", "-i"), ("cgroup", "-C")):
        assert f"another {kind} namespace" in refusal("unshare", option, *sleep)
    assert "another root directory" in refusal("chroot", ELSEWHERE, *sleep)
    assert "are filtered" in refusal(sys.executable, "-c", FILTERED)
    assert "another user's by now" in refusal(*user(1000), *sleep)
    with pytest.raises(ProcessLookupError):
        birthright.read(1 << 21, 0, 0)


def test_who_could_gain_is_refused() -> None:
    run_inside(inside_refused)
