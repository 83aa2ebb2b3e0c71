"""Signals, parents, groups and sessions of a real guest in a PID namespace, with a home that keeps what it is asked."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

import pytest
import trio

from dfsa.guestfilter import filter_at_home
from dfsa.outside import Outside
from dfsa.router import Call, Router
from dfsa.verdict import VERDICTS, Where
from tests.unit.guests import MACHINE, Guest, served

OUT = 400000000 % 4194304 - 1  # a pid that the namespace has not given to anybody
Asked = tuple[int, str, tuple[int, ...]]


class FakeHome:
    """Answers by call, or with an error; keeps who asked what."""

    def __init__(self, answers: Mapping[str, int] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[Asked] = []

    async def ask(self, process: int, call: str, arguments: tuple[int, ...]) -> int:
        self.asked.append((process, call, arguments))
        await trio.lowlevel.checkpoint()
        answer = self.answers.get(call, 0)
        if answer < 0:
            raise OSError(-answer, os.strerror(-answer))
        return answer


async def outcome(program: str, home: FakeHome) -> list[object]:
    """What the guest says; it is process 2 of its namespace."""
    with Guest(program, namespace=True) as guest:
        outside = Outside(home, guest.proc, 2, os.getuid())
        return await served(guest, Router(guest.listener(), outside.handlers()))


async def test_every_call_that_is_homes_has_an_answer() -> None:
    assert Outside(FakeHome(), -1, 2, 0).handlers().keys() == {
        name for name, verdict in VERDICTS.items() if verdict.where is Where.HOME
    }


async def test_a_signal_inside_is_the_kernels_and_one_outside_is_homes() -> None:
    home = FakeHome()
    program = f"""
signal.signal(10, lambda *_: say("got it"))
child = os.fork()
if child == 0:
    os.kill(2, 10)
    os._exit(0)
os.waitpid(child, 0)
say([call("kill", {OUT}, 15), call("kill", 1, 0), call("kill", child, 0)])
"""
    said = await outcome(program, home)
    assert said == ["got it", [0, 0, 0]]
    assert home.asked == [(2, "kill", (OUT, 15)), (2, "kill", (1, 0)), (2, "kill", (3, 0))]  # the child is gone by then


@pytest.mark.parametrize("number", [errno.EPERM, errno.ESRCH, errno.EINVAL])
async def test_what_home_refuses_is_refused(number: int) -> None:
    home = FakeHome(dict.fromkeys(("kill", "getpgid", "getsid"), -number))
    said = await outcome(f"say([call('kill', {OUT}, 9), call('getpgid', {OUT}), call('getsid', {OUT})])", home)
    assert said == [[-number] * 3]


async def test_a_thread_and_a_child_ask_in_the_name_of_their_process() -> None:
    home = FakeHome({"getppid": 4711})
    program = """
thread = threading.Thread(target=lambda: say(call("getppid"))); thread.start(); thread.join()
child = os.fork()
if child == 0:
    say(call("getppid"))
    call("kill", 999999, 0)
    os._exit(0)
os.waitpid(child, 0)
say(child)
"""
    said = await outcome(program, home)
    child = said[-1]
    assert said == [4711, 2, child]  # the child's parent is inside
    assert home.asked == [(2, "getppid", ()), (child, "kill", (999999, 0))]


async def test_groups_and_sessions_inside_are_told_here_and_others_by_home() -> None:
    home = FakeHome({"getpgid": 70, "getsid": 80})
    said = await outcome(
        f"""
say([os.getpgrp(), call("getpgid", 0), call("getpgid", 2), call("getsid", 0), call("getsid", 2)])
say([call("getpgid", {OUT}), call("getsid", {OUT}), call("getsid", 1), call("getpgid", -1)])
""",
        home,
    )
    assert said == [[2] * 5, [70, 80, 80, 70]]
    assert home.asked == [
        (2, "getpgid", (OUT,)), (2, "getsid", (OUT,)), (2, "getsid", (1,)), (2, "getpgid", (-1,)),
    ]  # fmt: skip


async def test_job_control_is_the_kernels_own() -> None:
    home = FakeHome()
    program = """
child = os.fork()
if child == 0:
    os.setsid()
    say([os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()])
    os._exit(0)
os.waitpid(child, 0)
"""
    assert await outcome(program, home) == [[True, True]]
    assert home.asked == []


@pytest.mark.parametrize(
    ("target", "at_home", "wanted", "signals"),
    [
        pytest.param("0", 0, 0, 1, id="its own group, everywhere"),
        pytest.param("0", -errno.ESRCH, 0, 1, id="its own group, only here"),
        pytest.param("-2", -errno.EPERM, 0, 1, id="its own group by number"),
        pytest.param("-77", 0, 0, 0, id="a group at home"),
        pytest.param("-77", -errno.ESRCH, -errno.ESRCH, 0, id="a group that is nowhere"),
        pytest.param("-1", 0, 0, 0, id="all, and only home has others"),
        pytest.param("-1", -errno.ESRCH, -errno.ESRCH, 0, id="all, and there are none"),
        pytest.param("0", -errno.EIO, -errno.EIO, 0, id="home fails"),
    ],
)
async def test_a_signal_to_several(target: str, at_home: int, wanted: int, signals: int) -> None:
    home = FakeHome({"kill": at_home})
    program = f"""
got = []
signal.signal(10, lambda *_: got.append(1))
result = call("kill", {target}, 10)
say([result, len(got)])
"""
    assert await outcome(program, home) == [[wanted, signals]]
    assert home.asked == [(2, "kill", (int(target), 10))]


async def test_a_group_of_the_guests_own_is_no_group_at_home() -> None:
    """Some process at home may lead one of the same number."""
    home = FakeHome({"kill": -errno.EIO})
    program = """
leader = os.fork()
if leader == 0:
    os.setpgid(0, 0)
    signal.signal(10, lambda *_: say("own"))
    say([call("kill", 0, 10)])
    member = os.fork()
    if member == 0: time.sleep(60)
    say(member)
    os._exit(0)
os.waitpid(leader, 0)
say([call("kill", -leader, 0), call("kill", -leader, 9)])  # its leader has ended, a member has not
"""
    said = await outcome(program, home)
    assert [one for one in said if not isinstance(one, int)] == ["own", [0], [0, 0]]
    assert home.asked == []


async def test_who_has_lost_its_parent_has_init_as_everywhere() -> None:
    home = FakeHome({"getppid": 4711})
    program = """
until_its_end, held = os.pipe()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        while call("getppid") != 1: time.sleep(0.01)
        say("orphan")
    os._exit(0)
os.waitpid(child, 0)
os.close(held)
os.read(until_its_end, 1)
say(call("getppid"))
"""
    assert await outcome(program, home) == ["orphan", 4711]
    assert home.asked == [(2, "getppid", ())]


async def test_numbers_in_a_namespace_of_the_guests_own_are_the_kernels() -> None:
    """At home it may make one; there 1 is its own."""
    home = FakeHome(dict.fromkeys(("getppid", "getpgid", "getsid", "kill"), -errno.EIO))
    program = """
unshare(CLONE_NEWPID)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        say([os.getpid(), call("getppid"), call("getpgid", 0), call("getsid", 1), call("kill", 1, 0)])
        os._exit(0)
    os.wait()
    os._exit(0)
os.wait()
"""
    with Guest(program, namespace=True, filter_=filter_at_home(MACHINE)) as guest:
        outside = Outside(home, guest.proc, 2, os.getuid())
        assert await served(guest, Router(guest.listener(), outside.handlers())) == [[2, 1, 1, 1, 0]]
    assert home.asked == []


async def test_a_signal_to_all_reaches_the_others_here() -> None:
    home = FakeHome()
    program = """
child = os.fork()
if child == 0: time.sleep(60)
say(call("kill", -1, 9))
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert await outcome(program, home) == [0, -9]


async def test_the_call_of_somebody_who_is_gone_is_no_other_processs() -> None:
    """By the time its number is looked up, it may be another one's."""
    with Guest("sys.stdin.read()", namespace=True) as guest:
        handler = Outside(FakeHome(), guest.proc, 2, 0).handlers()["getppid"]
        for call in (
            Call("getppid", (0,) * 6, guest.process.pid, lambda: False),
            Call("getppid", (0,) * 6, 0, lambda: True),
        ):
            with pytest.raises(ProcessLookupError, match="has ended"):
                await handler(call)
        os.close(guest.descriptor)


async def test_who_is_another_user_than_its_deputy_signals_nobody_outside() -> None:
    home = FakeHome()
    program = f"""
os.setresuid(1002, 1002, 1002)
say([call("kill", {OUT}, 9), call("kill", -1, 0), call("kill", 0, 0)])
"""
    assert await outcome(program, home) == [[-errno.EPERM, -errno.ESRCH, 0]]
    assert home.asked == []
