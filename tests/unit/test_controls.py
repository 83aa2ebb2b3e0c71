"""The values of /mfs/proc as openMosix had them: ranges, who may, errno, and that a refusal changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from mignode import moves, processfiles
from mignode.adminvalues import AdminStore, AdminValues
from mignode.book import Settings as ProcessSettings
from mignode.nodefacts import measured_speed
from mignode.reasons import Kind, Reason
from omfs.config import SOFTWARE
from omfs.errors import ConfigError, ControlError
from omfs.kernel import processes
from omfs.kernel.forkevents import ForkEvents
from omfs.magic import controlfiles
from omfs.net import control
from tests.unit.controlroom import NOBODY, OWN, SELF, Answer, Room, refused, room
from tests.unit.holders import holding
from tests.unit.puppets import Puppets, puppets

OTHER, UNKNOWN = 3, 9
DECAYS = tuple(file.name for file in controlfiles.OF_DECAY)


@pytest.fixture
def tree() -> Iterator[Puppets]:
    with puppets() as made:
        yield made


@pytest.fixture(autouse=True)
def no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """They make no difference here, and listening costs a fork of the whole test run."""

    def refuse() -> ForkEvents:
        raise OSError(errno.EOPNOTSUPP, "not wanted")

    monkeypatch.setattr(ForkEvents, "open", refuse)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power, and a busy disk takes a tenth of a second for each of thousands of writes."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@contextlib.asynccontextmanager
async def listening(path: Path, **answers: Callable[[Answer], Answer]) -> AsyncIterator[None]:
    """A daemon that knows these commands."""

    def handler(answer: Callable[[Answer], Answer]) -> Callable[[Answer], Awaitable[object]]:
        async def handle(arguments: Answer) -> object:
            return answer(arguments)

        return handle

    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, path, {name: handler(answer) for name, answer in answers.items()})
        yield
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- the specification

DEFAULTS = {
    "admin/block": "0", "admin/lstay": "0", "admin/stay": "0", "admin/quiet": "0", "admin/mospe": "2",
    "admin/sspeed": "15000", "admin/decayinterval": "2", "admin/slowdecay": "975", "admin/fastdecay": "926",
    "admin/decay-interval": "2", "admin/slow-decay": "975", "admin/fast-decay": "926",
    "admin/overheads": " ".join(["0"] * 14), "admin/mfscosts": " ".join(["0"] * 6), "admin/gateways": "0",
    "goto": "0", "migrate": "0", "where": "0", "lock": "0", "nmigs": "0", "selected": "0",
    "cantmove": Kind.NO_GUEST.value,
    "migfilter": "0", "migpolicy": "0", "mignodes": "00000000", "decay": "default",
    **{f"decay/{name}": str(int(name == "inherit")) for name in DECAYS},
    "nodes/1/status": "1", "nodes/1/cpus": "-101", "nodes/2/status": "3",
}  # fmt: skip


async def test_what_is_read_before_anybody_wrote(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        found = {file: (await here.read(file))["text"] for file in DEFAULTS}
        assert found == {file: text + "\n" for file, text in DEFAULTS.items()}
        assert (await here.read("admin/dfsalinks"))["text"] == (await here.read("journey"))["text"] == ""
        assert (await here.read("admin/version"))["text"] == f"{SOFTWARE}\nDFSA is enabled\n"
        assert (await here.read("admin/config"))["text"] == "1 192.0.2.1 1\n2 127.0.0.1 1\n3 192.0.2.3 1\n"
        assert (await here.read("admin/speed"))["text"] == f"{measured_speed()}\n"
        assert (await here.read("remote"))["text"] == ""
        text = (await here.read("info"))["text"].splitlines()
        assert text[0].startswith("node=2 status=3 cpus=")
        assert text[1:] == ["node=1 status=1", "node=3 status=1"]


async def test_every_file_answers(tmp_path: Path) -> None:
    """Whatever the tree shows can be asked for, with a value or an errno of the list."""
    allowed = {errno.ENOSYS, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENODATA}
    paths = [file.name for file in controlfiles.OF_PROCESS]
    paths += [f"admin/{file.name}" for file in controlfiles.OF_ADMIN]
    paths += [f"decay/{file.name}" for file in controlfiles.OF_DECAY]
    paths += [f"nodes/{node}/{file.name}" for node in (OWN, OTHER) for file in controlfiles.OF_NODE]
    async with room(tmp_path) as here:
        for path in paths:
            file = controlfiles.find("hpc" if "/" in path else "process", path).file
            answer = await here.read(path)
            if not file.is_readable:
                assert answer["errno"] == errno.EACCES, path
            else:
                assert "text" in answer or answer["errno"] in allowed, path


WRITABLE = [
    *[(f"admin/{name}", st.integers(0, 1).map(str)) for name in ("block", "lstay", "stay", "quiet")],
    *[(f"admin/{name}", st.integers(1, 65535).map(str)) for name in ("speed", "sspeed", "decayinterval")],
    ("admin/slowdecay", st.integers(926, 1000).map(str)),
    ("admin/fastdecay", st.integers(0, 975).map(str)),
    ("admin/gateways", st.integers(0, 2).map(str)),
    ("admin/overheads", st.lists(st.integers(0, 10**9), min_size=14, max_size=14).map(lambda n: " ".join(map(str, n)))),
    ("admin/mfscosts", st.lists(st.integers(0, 10**9), min_size=6, max_size=6).map(lambda n: " ".join(map(str, n)))),
    *[(name, st.integers(0, 1).map(str)) for name in ("lock", "migfilter", "migpolicy")],
    ("selected", st.integers(0, 65535).map(str)),
    ("mignodes", st.integers(0, 2**200).map(lambda mask: f"{mask:08x}")),
]


@given(st.data())
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_was_written_is_read_also_after_a_restart(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file, values = data.draw(st.sampled_from(WRITABLE))
    text = data.draw(values)
    place = tmp_path_factory.mktemp("node")

    async def scenario() -> None:
        async with room(place) as here:
            assert await here.write(file, text + data.draw(st.sampled_from(["", "\n"]))) == {}
            assert (await here.read(file))["text"] == text + "\n"
        if file.startswith("admin/"):
            async with room(place) as again:
                assert (await again.read(file))["text"] == text + "\n"

    trio.run(scenario)


MALFORMED = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.sampled_from(["", "\n", " 1", "1 ", "+1", "1\n\n", "0x1", "1.0", "1\0", "١", "-1", "2", "-2", "65536", "1 2"]),
)


@given(st.lists(st.tuples(st.sampled_from([file for file, _ in WRITABLE]), MALFORMED), min_size=5, max_size=40))
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_malformed_writes_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, str]]
) -> None:
    async def scenario() -> None:
        async with room(tmp_path_factory.mktemp("node")) as here:
            for file, text in writes:
                before = here.everything()
                answer = await here.write(file, text)
                if answer:
                    assert answer["errno"] == errno.EINVAL
                    assert here.everything() == before
                else:  # by chance it was a value: then it holds, as it was written
                    parsed = controlfiles.find("hpc" if "/" in file else "process", file).file.kind
                    assert (await here.read(file))["text"] == parsed.format(parsed.parse(text))

    trio.run(scenario)


# ---------------------------------------------------------------- admin


async def test_a_fast_decay_is_at_most_the_slow_one(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        assert refused(errno.EINVAL)(await here.write("admin/fastdecay", "976"))
        assert refused(errno.EINVAL)(await here.write("admin/slowdecay", "925"))
        assert here.store.values == AdminValues()
        assert await here.write("admin/slowdecay", "926") == await here.write("admin/fastdecay", "926") == {}


async def test_expel_implies_block_and_bring_lstay(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        assert await here.write("admin/expel", "0") == await here.write("admin/bring", "0") == {}
        assert here.store.values == AdminValues()
        assert await here.write("admin/expel", "1") == {}
        assert here.store.values == AdminValues(block=True)
        assert await here.write("admin/bring", "1\n") == {}
        assert here.store.values == AdminValues(block=True, lstay=True)
        await here.write("admin/quiet", "1")
        await here.write("admin/stay", "1")
        assert (await here.read("nodes/2/status"))["text"] == f"{1 + 2 + 4 + 8 + 0x10 + 0x20}\n"


async def test_only_root_writes_what_is_the_nodes(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        for file in ("admin/block", "admin/expel", "admin/speed", "admin/nomfs", "admin/mospe"):
            assert refused(errno.EPERM)(await here.write(file, "1", uid=NOBODY))
        assert refused(errno.EPERM)(await here.write("admin/block", "nonsense", uid=NOBODY))
        assert here.store.values == AdminValues()


async def test_the_id_is_the_maps(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        assert await here.write("admin/mospe", "2") == {}
        assert refused(errno.ENOSYS)(await here.write("admin/mospe", "1"))
        assert refused(errno.EINVAL)(await here.write("admin/mospe", "65536"))


async def test_nomfs_is_the_exports(tmp_path: Path) -> None:
    state = {"on": False}

    def nomfs(arguments: Answer) -> Answer:
        state.update(arguments)
        return state

    async with room(tmp_path) as here:
        assert refused(errno.ENOTCONN)(await here.read("admin/nomfs"))
        async with listening(tmp_path / "export.sock", nomfs=nomfs):
            assert (await here.read("admin/nomfs"))["text"] == "0\n"
            assert await here.write("admin/nomfs", "1") == {}
            assert state == {"on": True}
            assert (await here.read("nodes/2/status"))["text"] == f"{3 + 0x40}\n"
            assert await here.write("admin/nomfs", "0") == {}
            assert state == {"on": False}


async def test_what_the_mount_says_of_other_nodes(tmp_path: Path) -> None:
    def describe(arguments: Answer) -> Answer:
        return {
            "node_id": OWN,
            "nodes": [{"node_id": node, "state": "up"} for node in arguments["nodes"] if node == OTHER],
        }

    async with room(tmp_path) as here, listening(tmp_path / "mount.sock", describe=describe):
        assert [(await here.read(f"nodes/{node}/status"))["text"] for node in (1, 2, 3)] == ["1\n", "3\n", "3\n"]
        assert refused(errno.ENODATA)(await here.read("nodes/3/load"))
        assert refused(errno.ENODATA)(await here.read("nodes/3/CPUs"))
        assert refused(errno.EHOSTDOWN)(await here.read("nodes/1/load"))
        assert (await here.read("nodes/1/CPUs"))["text"] == "-101\n"
        assert (await here.read("info"))["text"].splitlines()[1:] == ["node=1 status=1", "node=3 status=3"]


async def test_what_is_not_there(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        for file in (
            "admin/nonsense",
            "nodes/9/load",
            "nodes/0/load",
            "remote/1/stats",
            "nonsense",
            "decay/",
            "info/x",
        ):
            assert refused(errno.ENOENT)(await here.read(file)), file
            assert (await here.write(file, "1"))["errno"] in (errno.ENOENT, errno.EACCES), file
        assert refused(errno.ENOENT)(await here.write("remote/1/goto", "1"))
        assert refused(errno.EACCES)(await here.write("nodes/2/speed", "1"))
        for request in ({}, {"scope": "process"}, {"scope": "hpc", "file": 3}, {"scope": 1, "file": "lock"}):
            with pytest.raises(ControlError, match="bad request"):
                await here.controls.handlers["read_control"](dict(request))


async def test_values_that_can_not_be_kept_do_not_hold(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        (tmp_path / "state").write_text("a file, where a directory ought to be")
        assert (await here.write("admin/block", "1"))["errno"] == errno.EEXIST
        assert here.store.values == AdminValues()
        assert (await here.read("admin/block"))["text"] == "0\n"


@pytest.mark.parametrize("text", ["{", '{"block": 3}', '{"nonsense": true}', ""])
def test_a_broken_file_is_not_taken_for_the_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / "mignode.json").write_text(text)
    with pytest.raises(ConfigError, match=r"mignode\.json: .*remove it to begin with the defaults"):
        AdminStore(tmp_path)


# ---------------------------------------------------------------- processes


async def test_the_owner_and_root_write(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        assert refused(errno.EPERM)(await here.write("lock", "1", uid=NOBODY))
        assert refused(errno.EPERM)(await here.write("goto", "nonsense", uid=NOBODY))
        assert here.everything()[1] == []
        assert await here.write("lock", "1", uid=os.geteuid()) == {}
        assert (await here.read("lock"))["text"] == "1\n"
        for name in ("where", "nmigs", "cantmove", "journey"):
            assert refused(errno.EACCES)(await here.write(name, "1"))


async def test_why_it_stays_in_detail_is_its_owners(tmp_path: Path) -> None:
    """What files somebody uses is not for others to read."""
    with holding("os.setresuid(65534, 65534, 65534); kept = open('/dev/null'); os.chdir('/sys')\nready()") as holder:
        pid = holder.identity.pid
        async with room(tmp_path) as here:
            for uid in (0, NOBODY):
                assert "works in /sys that" in (await here.read("cantmove", pid, uid))["text"]
            for uid in (1, -1):
                text = (await here.read("cantmove", pid, uid))["text"]
                assert "uses a file that only this machine has" in text
                assert "/sys" not in text
                assert "descriptor" not in text


async def test_a_look_that_has_to_wait_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may be in an execve that waits for a silent node; other processes are looked at all the same."""
    held = threading.Event()

    def wait(process: processes.Identity) -> list[Reason]:
        if process.pid == SELF:
            held.wait()
        return []

    monkeypatch.setattr(moves, "why", wait)

    async def give_up(here: Room) -> None:
        with monkeypatch.context() as hurry:
            hurry.setattr(processfiles, "LOOK_WITHIN_S", 0.02)
            assert (await here.read("cantmove"))["text"] == "could not be looked at\n"

    try:
        async with room(tmp_path) as here:
            for _ in range(moves.LOOKS_MAX - 1):
                await give_up(here)
            assert (await here.read("cantmove", os.getppid()))["text"] == ""
            for _ in range(3):  # no more threads than that are left waiting
                await give_up(here)
            they = here.controls._of_processes.moves
            assert they is not None
            assert they.looks.borrowed_tokens == moves.LOOKS_MAX
    finally:
        held.set()


async def test_a_process_that_has_ended(tmp_path: Path, tree: Puppets) -> None:
    child = tree.fork(tree.first)
    tree.end(child)
    async with room(tmp_path) as here:
        for file in controlfiles.OF_PROCESS:
            assert refused(errno.ESRCH)(await here.read(file.name, pid=child))
            if file.is_writable:
                assert refused(errno.ESRCH)(await here.write(file.name, "1", pid=child))
        assert refused(errno.ESRCH)(await here.read("lock", pid=0))
        thread = await trio.to_thread.run_sync(threading.get_native_id)  # it stays for some seconds
        assert refused(errno.ESRCH)(await here.read("lock", pid=thread))


async def test_another_process_with_its_pid_is_another(tmp_path: Path) -> None:
    key = processes.identify(SELF)
    assert key is not None
    async with room(tmp_path) as here:
        for ticks, answers in ((0, True), (key.start_ticks, True), (key.start_ticks - 1, False)):
            one = {"scope": "process", "file": "lock", "pid": SELF, "start_ticks": ticks, "uid": 0, "text": "1"}
            for command in ("write_control", "read_control"):
                answer = await here.controls.handlers[command](dict(one))
                assert isinstance(answer, dict)
                assert answer.get("errno", 0) == (0 if answers else errno.ESRCH)


async def test_each_has_its_own_and_children_inherit(tmp_path: Path, tree: Puppets) -> None:
    async with room(tmp_path) as here:
        early = tree.fork(tree.first)
        for name, text in (
            ("lock", "1"),
            ("migfilter", "1"),
            ("migpolicy", "1"),
            ("mignodes", "f0"),
            ("selected", "3"),
        ):
            assert await here.write(name, text, pid=tree.first) == {}
        late = tree.fork(tree.first)
        for name, text in (
            ("lock", "1"),
            ("migfilter", "1"),
            ("migpolicy", "1"),
            ("mignodes", "000000f0"),
            ("selected", "3"),
        ):
            assert (await here.read(name, pid=late))["text"] == text + "\n"
            assert (await here.read(name, pid=early))["text"].strip("0\n") == ""
        key = processes.identify(tree.first)
        assert key is not None
        assert here.registry.entry_of(key).settings == ProcessSettings(True, True, True, 0xF0)


async def test_who_is_no_guest_stays(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        for name in ("goto", "migrate"):
            assert await here.write(name, "0") == {}  # it is at home
            assert await here.write(name, str(OWN)) == {}
            assert refused(errno.EROFS)(await here.write(name, str(OTHER)))
            assert refused(errno.EROFS)(await here.write(name, "-1"))
            assert refused(errno.EINVAL)(await here.write(name, str(UNKNOWN)))
            for text in ("-2", "65536", "home", ""):
                assert refused(errno.EINVAL)(await here.write(name, text))


async def test_many_at_once(tmp_path: Path) -> None:
    """Admin values are written one after the other: none gets lost."""
    async with room(tmp_path) as here, trio.open_nursery() as nursery:
        for name in ("block", "lstay", "stay", "quiet"):
            nursery.start_soon(partial(here.write, f"admin/{name}", "1"))
        nursery.start_soon(partial(here.write, "admin/speed", "12345"))
    assert AdminStore(tmp_path / "state").values == AdminValues(True, True, True, True, 12345)
