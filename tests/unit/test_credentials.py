"""Acting as others: what one thread becomes, what the rest of the process stays, and what no user may gain."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from omfs.kernel.credentials import ROOT, Identity
from tests.unit.exportroom import refused

pytestmark = pytest.mark.lab


def status_of_thread() -> dict[str, list[str]]:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def run_apart(program: str) -> str:
    """Run *program* in a Python of its own: it does what can not be undone."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout


def test_a_thread_becomes_somebody_and_itself_again() -> None:
    with Identity(1000, 1001, (1001, 50, 7)):
        status = status_of_thread()
        assert status["Uid"] == ["0", "0", "0", "1000"]
        assert status["Gid"][3] == "1001"
        assert sorted(status["Groups"]) == ["1001", "50", "7"]
        overriding = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4  # CAP_CHOWN .. CAP_FSETID
        assert not int(status["CapEff"][0], 16) & overriding
    assert status_of_thread()["Uid"] == ["0", "0", "0", "0"]
    with ROOT:
        status = status_of_thread()
        assert (status["Uid"][3], status["Gid"][3]) == ("0", "0")
        assert int(status["CapEff"][0], 16) & overriding == overriding


def test_other_threads_stay_who_they_are() -> None:
    found: list[str] = []

    def look() -> None:
        found.append(status_of_thread()["Groups"][0] if status_of_thread()["Groups"] else "")
        found.extend(status_of_thread()["Uid"])

    before = threading.Thread(target=look)
    gate = threading.Barrier(2)
    thread = threading.Thread(target=lambda: (gate.wait(), look(), gate.wait()))
    thread.start()
    before.start()
    before.join()
    with Identity(1000, 1000, (4242,)):
        gate.wait()
        gate.wait()
    thread.join()
    assert found[0] == found[5] != "4242"
    assert found[6:] == ["0", "0", "0", "0"]


def test_an_error_inside_does_not_leave_us_changed() -> None:
    with pytest.raises(ZeroDivisionError), Identity(1000, 1000):
        _ = 1 // 0
    assert status_of_thread()["Uid"][3] == "0"


@pytest.mark.parametrize(("uid", "gid", "groups"), [(-1, 0, ()), (0, 2**32 - 1, ()), (2**32, 0, ()), (1, 1, (-1,))])
def test_impossible_ids(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    with refused(errno.EINVAL):
        Identity(uid, gid, groups)


def test_an_id_that_does_not_exist_here_is_refused_instead_of_staying_root() -> None:
    """setfsuid tells no errors: in a user namespace without the uid, the thread would remain root."""
    program = """
from omfs.kernel import credentials, namespaces
import pathlib
namespaces.unshare(namespaces.CLONE_NEWUSER)  # now: from inside, the files of other users can't be read any more
pathlib.Path("/proc/self/uid_map").write_text("0 0 1")
credentials._thread.groups = ()  # setgroups is forbidden there, and its error would come first
try:
    with credentials.Identity(1000, 0):
        print("acted")
except OSError as error:
    print(error.errno, pathlib.Path("/proc/thread-self/status").read_text().split("Uid:")[1].split()[:4])
"""
    told = run_apart(program)
    assert told == f"{errno.EPERM} ['0', '0', '0', '0']\n"


def test_the_owner_gives_up_what_would_pass_quotas() -> None:
    program = """
from omfs.export.service import prepare_process
from omfs.kernel.credentials import Identity
import pathlib, resource, threading
prepare_process()
def capable():
    effective = pathlib.Path("/proc/thread-self/status").read_text().split("CapEff:")[1].split()[0]
    return int(effective, 16) >> 24 & 1
found = [capable()]
with Identity(1000, 1000):
    pass
found.append(capable())
thread = threading.Thread(target=lambda: found.append(capable()))
thread.start()
thread.join()
print(found, resource.getrlimit(resource.RLIMIT_NOFILE)[0] == resource.getrlimit(resource.RLIMIT_NOFILE)[1])
"""
    assert run_apart(program) == "[0, 0, 0] True\n"


def test_only_root_serves() -> None:
    program = """
import os
from omfs.errors import ConfigError
from omfs.export.service import prepare_process
os.seteuid(1000)
try:
    prepare_process()
except ConfigError as error:
    print(error)
"""
    assert run_apart(program) == "omfs-export: the owner's side must run as root\n"
