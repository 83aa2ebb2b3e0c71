"""mignode as a process: what it says when it can't serve, what it tells systemd, its end, and what a kill loses."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from omfs.config import SOFTWARE, load_settings
from omfs.kernel.processes import identify
from omfs.magic.places import Place
from omfs.net import control
from tests.cli.listeningsystemd import ListeningSystemd
from tests.cli.test_export import end
from tests.freeports import free_port
from tests.unit.fakemount import mounted
from tests.unit.puppets import Puppets, puppets

pytestmark = pytest.mark.lab

COMMAND = (sys.executable, "-m", "mignode.cli.mignode")


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, env=os.environ | environment)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """omfs.toml of a one-node cluster, with ports that no other worker's mignode has."""
    (tmp_path / "map").write_text("1 127.0.0.1 1\n")
    path = tmp_path / "omfs.toml"
    path.write_text(
        f'map = "{tmp_path}/map"\naddress = "127.0.0.1"\nsec = "none"\n'
        f"migration_port = {free_port()}\ngossip_port = {free_port()}\n"
        f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\nconfig_dir = "{tmp_path}/etc"\n'
    )
    return path


@pytest.fixture
def tree() -> Iterator[Puppets]:
    with puppets() as made:
        yield made


def ask(config: Path, command: str, **arguments: object) -> dict[str, Any]:
    return trio.run(partial(control.ask, config.parent / "run" / "mignode.sock", command, **arguments))


@contextlib.contextmanager
def serving(config: Path, address: str = "") -> Iterator[subprocess.Popen[str]]:
    """In the foreground, ready; ended by SIGTERM if it still runs."""
    path = address or str(config.parent / "notify")
    manager = ListeningSystemd(path)
    process = subprocess.Popen(
        [*COMMAND, "--config", str(config), "--foreground"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NOTIFY_SOCKET": path},
    )
    try:
        assert manager.hear() == ["READY=1", "STATUS=node 1"]
        yield process
        if process.poll() is None:
            process.terminate()
            assert manager.hear() == ["STOPPING=1"]
        assert process.wait(60) in (0, -signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        manager.close()
        if not address:
            os.unlink(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("port = 1x", "omfs.toml:"),
        ("nonsense = 1", "nonsense"),
        ('map = "/nowhere"', "omfs.toml:"),
    ],
)
@pytest.mark.parametrize("words", [("--foreground",), ()])
def test_a_wrong_setting_is_one_line(config: Path, change: str, complaint: str, words: tuple[str, ...]) -> None:
    config.write_text(config.read_text() + change + "\n")
    ended = run("--config", str(config), *words)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("mignode: ")
    assert complaint in line


def test_its_words() -> None:
    assert run("--nonsense").returncode == 2
    shown = run("--help")
    assert shown.returncode == 0
    for word in ("--config", "--foreground", "/mfs/proc"):
        assert word in shown.stdout


def test_broken_admin_values_are_one_line(config: Path) -> None:
    (config.parent / "state").mkdir()
    (config.parent / "state" / "mignode.json").write_text("{")
    ended = run("--config", str(config))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "remove it to begin with the defaults" in ended.stderr


def test_it_goes_behind_and_a_second_one_is_refused(config: Path) -> None:
    ended = run("--config", str(config))
    assert (ended.returncode, ended.stderr) == (0, "")
    status = ask(config, "status")
    try:
        assert (status["node_id"], status["software"], status["processes"]) == (1, SOFTWARE, 0)
        assert status["memory_bytes"] > 1 << 20
        for words in ((), ("--foreground",)):
            again = run("--config", str(config), *words)
            assert again.returncode == 1
            (line,) = [line for line in again.stderr.splitlines() if line.startswith("mignode: ")]
            assert line == f"mignode: {config.parent}/run/mignode.sock: another daemon is running and listens here"
        assert ask(config, "status")["pid"] == status["pid"]
    finally:
        end(status["pid"])
    with pytest.raises(control.NotRunning):
        ask(config, "status")


@pytest.mark.parametrize("address", ["", "@omfs-test-{pid}"])
def test_it_tells_systemd(config: Path, address: str) -> None:
    with serving(config, address.format(pid=os.getpid())) as process:
        assert ask(config, "status")["pid"] == process.pid
    assert process.returncode == 0


def test_nobody_at_the_notify_socket_is_no_failure(config: Path) -> None:
    ended = run("--config", str(config), NOTIFY_SOCKET=str(config.parent / "nobody"))
    assert ended.returncode == 0
    end(ask(config, "status")["pid"])


def test_the_map_is_read_again(config: Path) -> None:
    with serving(config) as process:
        assert ask(config, "read_control", scope="hpc", file="nodes/2/status")["errno"] == 2
        (config.parent / "map").write_text("1 127.0.0.1 1\n2 192.0.2.2 1\n")
        process.send_signal(signal.SIGHUP)
        while ask(config, "status")["reloads"] == 0:
            pass
        assert ask(config, "read_control", scope="hpc", file="nodes/2/status")["text"] == "1\n"
        process.terminate()
        process.wait(60)


def test_its_metrics(config: Path) -> None:
    port = free_port()
    config.write_text(config.read_text() + f"metrics_port_mignode = {port}\n")
    with serving(config):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as told:
            text = told.read().decode()
        assert 'omfs_info{node="1",role="mignode",software=' in text
        assert 'omfs_gossip_heard_total{fate="forged"} 0.0' in text


def test_a_port_for_gossip_that_is_taken_is_one_line(config: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        port = load_settings(config).gossip_port
        sock.bind(("127.0.0.1", port))
        ended = run("--config", str(config), "--foreground")
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("mignode: ")]
    fault = f"gossip on 127.0.0.1 udp port {port}: Address already in use"
    assert line == f"mignode: {fault}; change gossip_port in omfs.toml on all nodes"


def test_admin_values_outlive_it(config: Path) -> None:
    for before, after in (("0\n", "1"), ("1\n", "0")):
        with serving(config) as process:
            assert ask(config, "read_control", scope="hpc", file="admin/block") == {"text": before}
            assert ask(config, "write_control", scope="hpc", file="admin/block", text=after, uid=0) == {}
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def serving_beside(config: Path) -> AsyncIterator[subprocess.Popen[str]]:
    """As `serving`, while other tasks run: the mount answers in one."""
    with contextlib.ExitStack() as stack:
        process = await trio.to_thread.run_sync(stack.enter_context, serving(config))
        yield process
        await trio.to_thread.run_sync(stack.close)


class Asker:
    """Asks the daemon as the mount does."""

    def __init__(self, run_dir: Path) -> None:
        self._socket = run_dir / "mignode.sock"

    async def tell(self, command: str, **arguments: Any) -> dict[str, Any]:
        return await control.ask(self._socket, command, **arguments)

    async def write(self, file: str, text: str, pid: int) -> None:
        assert await self.tell("write_control", scope="process", file=file, pid=pid, text=text, uid=0) == {}

    async def read(self, file: str, *pids: int) -> list[str]:
        answers = [await self.tell("read_control", scope="process", file=file, pid=pid) for pid in pids]
        return [answer["text"] for answer in answers]


async def test_a_killed_one_loses_nothing(config: Path, tree: Puppets) -> None:
    """What processes selected is in the mount, what they have set in run_dir."""
    mignode, child = Asker(config.parent / "run"), tree.fork(tree.first)
    async with mounted(config.parent / "run") as mount:
        async with serving_beside(config) as process:
            await mignode.write("selected", "2", tree.first)
            await mignode.write("selected", "3", child)
            await mignode.write("lock", "1", child)
            process.kill()
            process.wait()
        assert (mount.selected(tree.first), mount.selected(child)) == (2, 3)
        late = tree.fork(child)
        async with serving_beside(config):
            assert await mignode.read("selected", tree.first, child, late) == ["2\n", "3\n", "3\n"]
            assert await mignode.read("lock", tree.first, child, late) == ["0\n", "1\n", "1\n"]
            await mignode.write("selected", "4", child)
            assert [mount.selected(pid) for pid in (tree.first, child, late)] == [2, 4, 3]


async def test_what_the_mount_asks(config: Path, tree: Puppets) -> None:
    mignode, key = Asker(config.parent / "run"), identify(tree.first)
    assert key is not None
    async with mounted(config.parent / "run") as mount, serving_beside(config):
        one = {"pid": key.pid, "start_ticks": key.start_ticks}
        assert await mignode.tell("resolve", **one) == {"place": None}
        await mignode.write("selected", "4", key.pid)
        place = (await mignode.tell("resolve", **one))["place"]
        assert place == one | {"home": 1, "here": 1, "lastexec": 1, "image": "", "selected": 4, "magic": 0}
        assert await mignode.tell("created", **one, node=5) == {}
        assert [(known.selected, known.magic) for known in mount.places] == [(4, 5)]
        heard = len(mount.pushes)
        told = await mignode.tell("places")
        await mount.wait_until(lambda: any(push.all for push in mount.pushes[heard:]))  # nothing can get between
        assert told == {"places": [place | {"magic": 5}], "fork_events": told["fork_events"]}
        for command, arguments in (("resolve", {"pid": "x"}), ("created", {"pid": 1}), ("read_control", {})):
            with pytest.raises(control.ControlError, match="bad request"):
                await mignode.tell(command, **arguments)


async def test_how_it_is_mounted_the_mount_says(config: Path) -> None:
    """fstab may say what omfs.toml does not, and a later mount another thing than the first."""
    mignode = Asker(config.parent / "run")

    async def said() -> str:
        return str((await mignode.tell("read_control", scope="hpc", file="admin/version"))["text"])

    async with mounted(config.parent / "run") as mount:
        mount.dfsa = False
        async with serving_beside(config):
            assert "DFSA is disabled" in await said()
            await mignode.tell("places", dfsa=True)
            assert "DFSA is enabled" in await said()
    async with serving_beside(config):
        assert "DFSA is enabled" in await said(), "there is no mount, so what omfs.toml says"
        await mignode.tell("places", dfsa=False)
        assert "DFSA is disabled" in await said()


async def test_half_of_what_is_known_is_no_answer(config: Path, tree: Puppets) -> None:
    """Before the mount has told it, nobody is told that there is nothing."""
    mignode, key = Asker(config.parent / "run"), identify(tree.first)
    assert key is not None
    async with mounted(config.parent / "run", [Place(*key, 1, 1, 1, "", 6)]) as mount:
        mount.gate = trio.Event()
        process = await trio.lowlevel.open_process([*COMMAND, "--config", str(config), "--foreground"])
        try:
            while True:
                try:
                    await mignode.tell("places", deadline_s=0.2)
                except control.NotRunning:
                    await trio.sleep(0.01)
                except control.ControlError:
                    break  # it listens, and keeps us waiting
                else:
                    pytest.fail("it told what it did not know yet")
            mount.gate.set()
            assert [place["selected"] for place in (await mignode.tell("places"))["places"]] == [6]
        finally:
            process.terminate()
            await process.wait()
