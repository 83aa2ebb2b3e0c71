"""A guest's init with real programs: what it starts, sees end, relays and survives, in namespaces of its own.

The functions named `inside_...` run in there.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Final

import pytest
import trio

from mignode import body, bodywords as words, guestinit
from omfs.errors import BodyLost
from tests.lab.criuroom import DEADLINE_S, run, run_inside
from tests.lab.guestroom import (
    AT_HOME,
    PID,
    PLAN,
    Guests,
    ask,
    heard,
    line,
    output,
    program,
    touch,
)  # fmt: skip
from tests.lab.movedprograms import PYTHON, SUM

REAL_CAT: Final = os.path.realpath("/bin/cat")


# ---------------------------------------------------------------- its program


async def inside_exec_errors() -> None:
    run("sh", "-c", "echo 'echo $0 $1' > /run/script; chmod 755 /run/script")
    touch("/run/data")
    async with Guests() as guests:
        one = await guests.hatch()
        for argv, number in (
            (("no-such-program",), errno.ENOENT),
            (("/run/data",), errno.EACCES),
            (("/run/data/below",), errno.ENOTDIR),
            (("",), errno.ENOENT),
            ((PYTHON, "x" * 200_000), errno.E2BIG),
        ):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                await one.run(program(*argv), PLAN)
            assert caught.value.errno == number, f"{argv[0]}: {caught.value}"
        with pytest.raises(FileNotFoundError, match="/run/no directory"):
            await one.run(program(PYTHON, directory="/run/no directory"), PLAN)
        with pytest.raises(FileExistsError):
            await one.run(program(PYTHON, pid=1), PLAN)
        arguments = ["y" * 100_000] * 5  # more than a packet holds
        await one.run(program("/run/script", "first", *arguments), PLAN)
        one.way_is_open()
        assert await output(one) == "/run/script first\n"
        with pytest.raises(OSError, match="has a program"):
            await one.run(program(PYTHON), PLAN)


def test_what_can_not_be_executed_says_why_and_harms_nobody() -> None:
    run_inside(inside_exec_errors)


async def inside_ends() -> None:
    async with Guests() as guests:
        # a grandchild that outlives the root and its own parent
        text = "import os, time\nif os.fork() == 0:\n if os.fork() == 0:\n  os.read(0, 1); os.write(1, b'last')\n os._exit(0)\nos.wait()\nos._exit(7)"
        one = await guests.run(PYTHON, "-c", text)
        with trio.fail_after(DEADLINE_S):
            assert os.waitstatus_to_exitcode(await one.wait_root_ended()) == 7
        (last,) = set(await one.all_pids())
        assert last != PID
        one.send_frame(b"x")
        assert await heard(one) == [b"e%d" % (7 << 8), b"last", b""]
        await one.wait_gone()
        with pytest.raises(ProcessLookupError):
            await one.outer_root()


def test_the_roots_end_and_the_last_ones() -> None:
    run_inside(inside_ends)


async def inside_signals() -> None:
    async with Guests() as guests:
        one = await guests.run("/bin/cat")
        assert await ask(one, "there") == "there"
        assert os.readlink(f"/proc/{await one.outer_root()}/exe") == REAL_CAT
        for number, said in ((signal.SIGSTOP, b"s19"), (signal.SIGCONT, b"c")):
            one.send_frame(b"!%d" % number)
            with trio.fail_after(DEADLINE_S):
                assert await one.frames.receive() == said
        with pytest.raises(ProcessLookupError):
            await one.signal(77, signal.SIGTERM)
        await one.signal(PID, signal.SIGTERM)
        assert await heard(one) == [b"", b"e15"] or one.root_status == signal.SIGTERM
        assert one.root == 0


def test_signals_stops_and_continuations() -> None:
    run_inside(inside_signals)


ON_TERMINAL: Final = """
import os, signal, tty
tty.setcbreak(0)  # no echo
mine = os.open("/dev/tty", os.O_RDWR)
is_in_front = os.tcgetpgrp(mine) == os.getpgrp() == os.getpid() and os.getsid(0) == 1
print(os.ttyname(mine) == "/dev/tty", is_in_front, os.isatty(2), flush=True)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(mine, os.getpid())
    print("in front", flush=True)
    signal.pause()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


async def inside_terminal() -> None:
    async with Guests() as guests:
        one = await guests.run(PYTHON, "-c", ON_TERMINAL, plan=b"terminal")
        assert (said := await line(one)) == "True True True", said
        assert (said := await line(one)) == "in front", said
        one.send_frame(b"!g%d" % signal.SIGUSR1)
        assert await line(one) == f"{-signal.SIGUSR1}"
        assert (await heard(one))[-1] in (b"e0", b"")


def test_a_terminal_is_its_own_and_signals_go_to_who_is_in_front() -> None:
    run_inside(inside_terminal)


# ---------------------------------------------------------------- who outlives whom


async def inside_first_mignode() -> None:
    """A mignode that hatches, runs, and is killed."""
    guests = Guests()
    async with guests:
        one = await guests.run(PYTHON, "-c", SUM)
        assert await ask(one, "5") == "5"
        kept, _ = os.pipe()
        os.write(_, b"kept")
        await one.keep("a pipe", [kept])
        os.kill(os.getpid(), signal.SIGKILL)


async def inside_second_mignode() -> None:
    text = f"import trio; from {__name__} import inside_first_mignode as first; trio.run(first)"
    first = await trio.run_process([sys.executable, "-c", text], check=False)
    assert first.returncode == -signal.SIGKILL
    async with Guests() as guests:
        one = await body.connect(guests.nursery, guests.folder())
        assert (one.root, one.root_status, one.kept) == (PID, None, {"a pipe"})
        one.way_is_open()
        assert await ask(one, "6") == "11", "it did not notice"
        (pipe,) = await one.fetch("a pipe")
        assert os.read(pipe, 100) == b"kept"
        await one.keep("a pipe", [])
        assert await one.fetch("a pipe") == []
        # a third one takes it over from the second
        other = guests.own(await body.connect(guests.nursery, guests.folder()))
        with trio.fail_after(DEADLINE_S):
            await one.wait_lost()
        with pytest.raises(BodyLost):
            await one.signal(PID, 0)
        other.way_is_open()
        assert await ask(other, "1") == "12"
        other.send_frame(b"")
        assert await heard(other) == [b"", b"e0"] or other.root_status == 0


def test_it_outlives_mignode_and_the_newest_connection_counts() -> None:
    run_inside(inside_second_mignode)


async def inside_nonsense() -> None:
    async with Guests() as guests:
        one = await guests.run(PYTHON, "-c", SUM)
        one._post(words.Gone())  # a word, but none for an init: it says so, to the log
        assert await ask(one, "5") == "5"
        with pytest.raises(OSError, match="has no standard files"):
            await (await guests.hatch(name="empty")).thaw_files()
        one._way.sock.send(b"nonsense")
        with trio.fail_after(DEADLINE_S):
            await one.wait_lost()
        again = guests.own(await body.connect(guests.nursery, guests.folder()))
        again.way_is_open()
        assert await ask(again, "6") == "11"


def test_nonsense_costs_the_connection_and_no_guest() -> None:
    run_inside(inside_nonsense)


async def inside_alone() -> None:
    guestinit.BODY_ALONE_S = 3.0  # type: ignore[misc]
    guests = Guests()  # with this in its inits, too
    async with trio.open_nursery() as nursery:
        guests.folder().mkdir()
        one = await body.hatch(guests.hatchery, nursery, guests.folder(), AT_HOME)
        await one.run(program("/bin/cat"), PLAN)
        pidfds = [os.pidfd_open(pid) for pid in (one.pid, await one.outer_root())]
        nursery.cancel_scope.cancel()  # which ends the connection
    for pidfd in pidfds:
        with trio.fail_after(DEADLINE_S):
            await trio.lowlevel.wait_readable(pidfd)
    guests.hatchery.close()


def test_alone_for_too_long_it_ends_with_all_that_is_inside() -> None:
    run_inside(inside_alone)


async def inside_hatchery_killed() -> None:
    async with Guests() as guests:
        one = await guests.run(PYTHON, "-c", SUM)
        pidfd = os.pidfd_open(guests.hatchery.pid)
        os.kill(guests.hatchery.pid, signal.SIGKILL)
        await trio.lowlevel.wait_readable(pidfd)
        assert await ask(one, "5") == "5"
        with pytest.raises(BodyLost, match="hatchery has ended"):
            await guests.hatch(name="second")


def test_guests_outlive_the_hatchery() -> None:
    run_inside(inside_hatchery_killed)
