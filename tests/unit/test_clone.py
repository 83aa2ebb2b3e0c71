"""fork with a pid of one's choice and in new namespaces, exactly the wanted descriptors, and what passes an execve."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

import pytest

from omfs.kernel import carried, clone, descriptors
from omfs.kernel.libc import call_number, system_call
from omfs.kernel.namespaces import CLONE_NEWPID, CLONE_NEWUTS
from omfs.kernel.procfs import foreground_group

TESTED = 22  # the status of a child whose assertions held


def forked(namespaces: int = 0, pid: int = 0) -> int:
    """As it is meant to be called, by who has no other threads: a worker of the tests has one, for which the child
    would wait as soon as that one wanted the interpreter."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        time.sleep(0.02)  # whoever waits with the old interval has had it
        return clone.fork(namespaces, pid)
    finally:
        sys.setswitchinterval(interval)


def in_child(test: Callable[[], None], namespaces: int = 0) -> None:
    child = forked(namespaces)
    if child == 0:
        status = 1
        try:
            test()
            status = TESTED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == TESTED


def test_a_child_in_namespaces_of_its_own() -> None:
    ours = socket.gethostname()

    def inside() -> None:
        assert os.getpid() == 1
        socket.sethostname("another")
        assert os.waitstatus_to_exitcode(os.system("exit 3")) == 3  # it is a Python that works

    in_child(inside, CLONE_NEWPID | CLONE_NEWUTS)
    assert socket.gethostname() == ours


def test_a_child_with_the_pid_that_was_wanted() -> None:
    def inside() -> None:
        child = forked(pid=4242)
        if child == 0:
            os._exit(os.getpid() == 4242)
        assert child == 4242
        with pytest.raises(FileExistsError):
            clone.fork(pid=4242)  # nobody has waited for it
        assert os.waitpid(child, 0)[1] == 1 << 8

    in_child(inside, CLONE_NEWPID)


def test_a_pid_that_can_not_be() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        clone.fork(pid=1 << 30)


def test_exactly_these_descriptors() -> None:
    def inside() -> None:
        reading, writing = os.pipe()
        os.dup2(reading, 7)
        last = descriptors.have_exactly({1: 7, 7: 1, 9: writing}, besides=writing)
        assert sorted(map(int, os.listdir("/proc/self/fd")))[:4] == [1, 7, 9, last] or last > 9
        assert [os.get_inheritable(fd) for fd in (1, 7, 9, last)] == [True, True, True, False]
        os.write(9, b"x")
        os.write(last, b"y")
        assert os.read(1, 10) == b"xy"
        assert not any(os.path.exists(f"/proc/self/fd/{fd}") for fd in (0, 2, 3, 4, 5, 6, 8))
        assert descriptors.have_exactly({}) == -1
        assert os.open("/", os.O_RDONLY) == 0

    in_child(inside)


def test_capabilities_and_what_else_passes_an_execve() -> None:
    chown, kill = 1 << 0, 1 << 5

    def inside() -> None:
        effective, permitted, _ = carried.capabilities()
        assert effective & chown
        carried.set_capabilities(effective, permitted, chown)
        carried.set_ambient(chown)
        carried.bound_capabilities(chown | kill)
        with pytest.raises(PermissionError):
            carried.set_ambient(kill)  # it is not inheritable
        carried.set_ambient(chown)
        carried.set_io_priority(2 << 13 | 5)
        assert carried.io_priority(os.getpid()) == 2 << 13 | 5
        carried.set_personality(0x0040000)
        carried.set_timer_slack(12345)
        of_others = system_call(call_number("keyctl"), 0, -3, 0)  # KEYCTL_GET_KEYRING_ID of the session's
        carried.begin_session_keyring()
        assert system_call(call_number("keyctl"), 0, -3, 0) not in (of_others, -1)
        carried.keep_capabilities(True)
        carried.keep_capabilities(False)
        carried.take_root_no_capabilities()
        carried.gain_nothing_new()
        found = dict(line.split(":\t") for line in os.popen("/bin/cat /proc/self/status").read().splitlines())
        assert int(found["CapPrm"], 16) == chown  # the ambient one; root is a user like any other now
        assert int(found["CapBnd"], 16) == chown | kill
        assert found["NoNewPrivs"] == "1"
        with open("/proc/self/personality") as text:
            assert int(text.read(), 16) == 0x0040000

    in_child(inside)


def test_the_group_that_a_terminal_is_for() -> None:
    def inside() -> None:
        with open("/proc/self/stat", "rb") as text:
            assert foreground_group(text.read()) == os.getpgrp(), "without a terminal"
        os.setsid()
        _, slave = os.openpty()
        os.close(os.open(os.ttyname(slave), os.O_RDWR))  # it becomes ours
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(slave, os.getpid())
            signal.pause()
        while os.tcgetpgrp(slave) != child:
            os.sched_yield()
        with open("/proc/self/stat", "rb") as text:
            assert foreground_group(text.read()) == child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)  # the master stays open: its end would be ours

    in_child(inside)
