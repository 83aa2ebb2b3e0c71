"""Real guests below the real filter, and the router: each class of calls, failures, bounds, and deaths."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from dfsa.callnumbers import NUMBERS
from dfsa.guestfilter import program as program_for
from dfsa.router import Answer, Call, Descriptor, Proceed, Router, Value
from dfsa.verdict import VERDICTS, Verdict, Where, judged, named
from omfs.config import GUEST_CALLS_MAX
from omfs.errors import NodeDown, StaleHandle
from omfs.kernel.processes import read_memory
from tests.unit.guests import MACHINE, ROOT, Guest, served

REFUSED = [name for name in NUMBERS[MACHINE] if VERDICTS[name].where is Where.REFUSED]


async def test_what_is_here_asks_nobody(tmp_path: Path) -> None:
    program = f"""
os.chdir({str(tmp_path)!r})
with open("made", "w") as made: made.write("by a guest")
say(os.stat("made").st_size)
thread = threading.Thread(target=lambda: say(os.uname().nodename)); thread.start(); thread.join()
child = os.fork()
if child == 0: os.execv("/usr/bin/grep", ["grep", "-q", "by a guest", "made"])
say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with Guest(program) as guest:
        router = Router(guest.listener(), {})
        assert await served(guest, router) == [10, os.uname().nodename, 0]
    assert (dict(router.asked), dict(router.refused)) == ({}, {})


async def test_what_is_refused_has_its_errno_and_is_counted() -> None:
    with Guest(f"for name in {REFUSED!r}: say([name, call(name, 0, 0, 0, 0, 0, 0)])") as guest:
        router = Router(guest.listener(), {})
        said = await served(guest, router)
    assert said == [[name, -VERDICTS[name].errno] for name in REFUSED]
    assert router.refused == dict.fromkeys(REFUSED, 1)


async def test_namespaces_unknown_calls_and_calls_of_other_machines_are_refused() -> None:
    program = """
say(call("unshare", CLONE_NEWUTS)); say(call("unshare", 0x400)); say(call("clone", CLONE_NEWNS | 17, 0, 0, 0, 0))
say([call(600), call(600), call(0x3fffffff)])
say(call(0x40000000 | 39))
"""
    with Guest(program) as guest:
        router = Router(guest.listener(), {})
        said = await served(guest, router)
    assert said == [-errno.EPERM, 0, -errno.EPERM, [-errno.ENOSYS] * 3, -errno.ENOSYS]
    assert router.refused == {"unshare": 1, "clone": 1, "call 600": 2, f"call {0x3FFFFFFF}": 1}


async def test_children_and_what_they_execute_are_below_the_filter() -> None:
    program = """
inner = '''
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if os.fork(): os.wait()
else: os.write(1, b"[%d, %d]" % (libc.sethostname(b"x", 1), ctypes.get_errno()))
'''
child = os.fork()
if child == 0: os.execv(sys.executable, ["python3", "-c", inner])
os.waitpid(child, 0)
"""
    with Guest(program) as guest:
        router = Router(guest.listener(), {})
        assert await served(guest, router) == [[-1, errno.EPERM]]
    assert router.refused == {"sethostname": 1}


class Answers:
    """Handlers that answer with what they are given, and keep what they were asked."""

    def __init__(self, *answers: Answer | BaseException) -> None:
        self.answers = list(answers)
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> Answer:
        self.calls.append(call)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


async def test_answers_arrive(caplog: pytest.LogCaptureFixture) -> None:
    answers = Answers(
        Value(4711), Value(2**40), PermissionError(errno.EPERM, "no"), StaleHandle("gone"), RuntimeError("a bug"),
        OSError("without a number"), Proceed(),
    )  # fmt: skip
    with Guest("say([call('getsid', n) for n in range(7)]); say(os.getpid())") as guest:
        router = Router(guest.listener(), {"getsid": answers})
        numbers, pid = await served(guest, router)
    failures = [-errno.EPERM, -errno.ESTALE, -errno.EIO, -errno.EIO]
    assert numbers == [4711, 2**40, *failures, -errno.ESRCH if numbers[6] < 0 else numbers[6]]
    assert [call.arguments[0] for call in answers.calls] == list(range(7))
    assert {call.thread for call in answers.calls} == {pid}
    assert router.asked == {"getsid": 7}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == (
        ["the handler of getsid failed"] * 2
    )


async def test_home_without_an_answer_is_a_node_that_is_down() -> None:
    async def never(_: Call) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    with Guest("say([call('getppid'), call('getsid', 0)])") as guest:
        router = Router(guest.listener(), {"getppid": never}, timeout_s=0.01)
        assert await served(guest, router) == [[-NodeDown.errno, -errno.ENOSYS]]  # getsid has no handler at all
    assert (router.asked, router.refused) == ({"getppid": 1}, {"getsid": 1})


async def test_more_calls_than_places_wait_in_the_kernel_and_none_is_lost() -> None:
    threads = GUEST_CALLS_MAX + 20
    under_way = most = 0
    is_full = trio.Event()

    async def answer(call: Call) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == GUEST_CALLS_MAX:
            is_full.set()
        await is_full.wait()
        await trio.lowlevel.checkpoint()
        under_way -= 1
        return Value(call.arguments[0] + 1000)

    program = f"""
found = {{}}
def ask(n): found[n] = call("getpgid", n)
threads = [threading.Thread(target=ask, args=(n,)) for n in range({threads})]
for thread in threads: thread.start()
for thread in threads: thread.join()
say([found[n] for n in range({threads})])
"""
    with Guest(program) as guest:
        router = Router(guest.listener(), {"getpgid": answer})
        assert await served(guest, router) == [[n + 1000 for n in range(threads)]]
    assert most == GUEST_CALLS_MAX


async def test_a_descriptor_is_handed_over(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("here you are")
    opened: list[int] = []

    async def hand_over(call: Call) -> Answer:
        opened.append(os.open(tmp_path / "one", os.O_RDONLY))
        return Descriptor(opened[-1], close_on_exec=call.arguments[0] == 0)

    program = """
for n in (0, 1):
    descriptor = call("getsid", n)
    say([os.read(descriptor, 100).decode(), os.get_inheritable(descriptor)])
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
say(call("getsid", 0))
"""
    with Guest(program) as guest:
        router = Router(guest.listener(), {"getsid": hand_over})
        said = await served(guest, router)
    assert said == [["here you are", False], ["here you are", True], -errno.EMFILE]
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


async def test_a_signal_does_not_repeat_a_call_that_was_received() -> None:
    """Its effect at home must not happen twice; the signal is handled when the answer is there."""
    asked = 0
    with Guest("signal.signal(10, lambda *_: say('signal')); say(call('getsid', 5))") as guest:

        async def answer(call: Call) -> Answer:
            nonlocal asked
            asked += 1
            os.kill(call.thread, signal.SIGUSR1)
            await trio.sleep(0.05)  # what is to be shown is that nothing happens, so no event can tell
            assert call.waits()
            return Value(5)

        assert await served(guest, Router(guest.listener(), {"getsid": answer})) == ["signal", 5]
    assert asked == 1


async def test_the_death_of_the_guest_ends_the_router_in_the_middle_of_a_call() -> None:
    with Guest("call('getppid')") as guest:
        has_ended = False
        calls: list[Call] = []

        async def answer(call: Call) -> Answer:
            nonlocal has_ended
            calls.append(call)
            guest.process.kill()
            try:
                await trio.sleep_forever()
            finally:
                has_ended = True
            raise AssertionError

        listener = guest.listener()
        with trio.fail_after(60):
            await Router(listener, {"getppid": answer}, timeout_s=60).serve()
    assert has_ended
    assert listener.descriptor == -1


async def test_a_call_with_arguments_in_memory_never_proceeds(tmp_path: Path) -> None:
    """Whatever a handler says; its path might be another one by now."""
    home = Verdict(Where.HOME, "for this test")
    routed = {number: home if name == "mkdir" else judged(name) for number, name in named(MACHINE).items()}
    answers = Answers(Proceed())
    with Guest(
        f"say(call('mkdir', {os.fsencode(tmp_path / 'made')!r}, 0))", filter_=program_for(MACHINE, routed)
    ) as guest:
        router = Router(
            guest.listener(), {"mkdir": answers}, judge=lambda name: home if name == "mkdir" else judged(name)
        )
        assert await served(guest, router) == [-errno.EIO]
    assert len(answers.calls) == 1
    assert os.listdir(tmp_path) == []


async def test_while_a_guest_is_restored_all_calls_proceed() -> None:
    """Below the filter it is CRIU that calls until then."""
    with Guest("say(call('sethostname', b'mine', 4)); say(call('getppid')); sys.stdin.read(1)\n"
               "say(call('sethostname', b'other', 5)); say(os.uname().nodename)") as guest:  # fmt: skip
        answers = Answers(Value(77))
        router = Router(guest.listener(), {"getppid": answers}, restoring=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(router.serve)
            first = [await trio.to_thread.run_sync(guest.heard) for _ in range(2)]
            router.restored()
            guest.tell()
        last = guest.said()
    assert (first, last) == ([0, os.getpid()], [-errno.EPERM, "mine"])
    assert (router.refused, answers.calls) == ({"sethostname": 1}, [])


async def test_cancelled_it_leaves_nobody_waiting() -> None:
    async def cancel(_: Call) -> Answer:
        scope.cancel()
        await trio.sleep_forever()
        raise AssertionError

    with Guest("say([call('getppid'), call('getppid'), call('mount')])") as guest:
        with trio.CancelScope() as scope:
            await Router(guest.listener(), {"getppid": cancel}).serve()
        assert guest.said() == [[-errno.ENOSYS] * 3]


async def test_a_path_that_another_thread_changes_is_judged_and_opened_as_one(tmp_path: Path) -> None:
    """The handler reads it once and hands over what it opened itself: never the file that it would have refused."""
    (tmp_path / "mine").write_text("allowed")
    (tmp_path / "your").write_text("forbidden")
    home = Verdict(Where.HOME, "for this test")
    routed = {number: home if name == "openat" else judged(name) for number, name in named(MACHINE).items()}

    async def open_it(call: Call) -> Answer:
        path = read_memory(str(call.thread), call.arguments[1], 4096).partition(b"\0")[0]
        assert call.waits()
        await trio.lowlevel.checkpoint()  # time for the other thread
        if path.endswith(b"/your"):
            raise PermissionError(errno.EACCES, "not this one")
        return Descriptor(os.open(path, os.O_RDONLY), close_on_exec=True)

    program = f"""
path = ctypes.create_string_buffer({os.fsencode(tmp_path / "mine")!r})
end = ctypes.addressof(path) + len(path.value) - 4
is_over = False
def change():
    while not is_over: ctypes.memmove(end, b"your", 4); ctypes.memmove(end, b"mine", 4)
sys.setswitchinterval(1e-5)
thread = threading.Thread(target=change); thread.start()
found = set()
tries = 0
while tries < 200 or (len(found) < 2 and tries < 20000):
    tries += 1
    descriptor = call("openat", -100, path, 0)
    if descriptor < 0: found.add(descriptor)
    else: found.add(os.read(descriptor, 100).decode()); os.close(descriptor)
is_over = True
thread.join()
say(sorted(map(str, found)))
"""
    with Guest(program, filter_=program_for(MACHINE, routed)) as guest:
        router = Router(
            guest.listener(), {"openat": open_it}, judge=lambda name: home if name == "openat" else judged(name)
        )
        (found,) = await served(guest, router)
    # A path caught half changed is there for nobody (ENOENT): also as one.
    assert set(found) - {str(-errno.ENOENT)} == {str(-errno.EACCES), "allowed"}


ROUTER = """
import sys, trio
from dfsa.router import Router
from omfs.kernel.seccomp import Listener
async def answer(call):
    print("asked", flush=True)
    await trio.sleep_forever()
trio.run(Router(Listener(int(sys.argv[1])), {"getppid": answer}).serve)
"""


def test_a_router_that_is_killed_leaves_nobody_waiting() -> None:
    program = "thread = threading.Thread(target=lambda: say(call('getppid'))); thread.start(); thread.join()\n" \
              "say([call('getppid'), call('mount'), call(600), os.path.exists('/')])"  # fmt: skip
    with Guest(program) as guest:
        router = subprocess.Popen(
            [sys.executable, "-c", ROUTER, str(guest.descriptor)],
            pass_fds=[guest.descriptor], stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        os.close(guest.descriptor)
        assert router.stdout is not None
        try:
            assert router.stdout.readline() == b"asked\n"  # the first call is with it
        finally:
            router.kill()
            router.wait()
            router.stdout.close()
        assert guest.said() == [-errno.ENOSYS, [-errno.ENOSYS, -errno.ENOSYS, -errno.ENOSYS, True]]
