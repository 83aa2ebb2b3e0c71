"""omfs-lab itself: nodes with roots, addresses and processes of their own; faults; and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omfs.lab import cluster, state
from omfs.lab.state import LabError
from omfs.lab.topology import LabPlan
from tests.lab.livelab import COMMAND, Lab, wait_for
from tests.watch.leftovers import lab_prefix

pytestmark = pytest.mark.lab

LAB_OPTIONS = ("--no-mount", "--size", "1G")

ECHO_SERVER = """
import socket
with socket.create_server(("", 7000)) as listener:
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        while data := connection.recv(100):
            connection.sendall(data)
"""
# Sends each line it reads and prints the answer, or after 2 s without one the name of what happened.
ECHO_CLIENT = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7000), timeout=10)
connection.settimeout(2)
print("connected", flush=True)
for line in sys.stdin:
    try:
        connection.sendall(line.encode())
        print(connection.recv(100).decode().strip(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


# ---------------------------------------------------------------- what a node is


def test_nodes_have_names_addresses_and_processes_of_their_own(lab: Lab) -> None:
    for node in (1, 2, 3):
        assert lab.out(node, "hostname") == f"node{node}"
        assert lab.out(node, "cat /etc/hostname") == f"node{node}"
        assert str(lab.status()[node - 1]["address"]) in lab.out(node, "ip -4 -o addr show dev eth0")
        processes = lab.out(node, "ls /proc | grep -c '^[0-9]*$'")
        assert int(processes) <= 4  # PID 1, bash, ls, grep: nothing of the machine or of the other nodes
    assert "eth0" not in os.listdir("/sys/class/net") or "node1" not in os.listdir("/sys/class/net")


def test_nodes_have_roots_of_their_own(lab: Lab) -> None:
    lab.exec(1, "echo one >/srv/mine; echo x >>/etc/motd-of-lab", check=True)
    assert lab.out(1, "cat /srv/mine") == "one"
    assert lab.exec(2, "test -e /srv/mine").returncode == 1
    assert not Path("/srv/mine").exists()
    assert not Path("/etc/motd-of-lab").exists()
    for empty in ("/tmp", str(lab.paths.base), "/var/lib/omfs"):
        project = Path(__file__).resolve()  # is shown in the node wherever it lies
        expected = project.relative_to(empty).parts[0] if project.is_relative_to(empty) else ""
        assert lab.out(1, ["ls", "-A", empty]) == expected
    assert lab.out(1, "stat -c %a /tmp") == "1777"
    assert lab.out(1, "stat -f -c %S /; df --output=fstype / | tail -1").endswith("overlay")
    assert int(lab.out(1, "df --output=size -B1M / | tail -1")) < 1024  # the disk of the node, not of the machine


def test_roots_have_lasting_inode_numbers_and_handles(lab: Lab) -> None:
    script = "mkdir -p /srv/keep; stat -c %i / /etc /usr/bin /srv/keep /tmp"
    before = lab.out(1, script)
    lab.exec(1, "echo 2 >/proc/sys/vm/drop_caches")
    assert lab.out(1, script) == before
    options = lab.out(1, "grep ' / / ' /proc/self/mountinfo")
    assert "nfs_export=on" in options
    assert "index=on" in options


def test_nodes_have_what_a_real_one_would(lab: Lab) -> None:
    assert lab.out(2, "cat /etc/fstab") == "mfs_mnt /mfs fuse.omfs dfsa=1 0 0"
    assert lab.out(2, "cat /etc/openmosix.map").endswith(" 3")
    assert lab.out(2, "ls /etc/omfs").split() == ["ca.pem", "node.key", "node.pem", "omfs.toml"]
    assert lab.out(2, "stat -c %a /etc/omfs/node.key") == "600"
    assert lab.out(2, "test -d /mfs && test -x /sbin/mount.fuse.omfs && test -x /sbin/umount.fuse.omfs && echo yes")
    assert lab.out(2, "command -v omfs omfs-export omfs-admin").count("\n") == 2
    assert lab.out(2, "getent hosts node3").split() == [str(lab.status()[2]["address"]), "node3"]
    assert lab.exec(2, "echo x >/sys/kernel/uevent_helper").returncode != 0
    assert lab.out(2, "echo gone >/dev/null; head -c4 /dev/zero | wc -c; test -c /dev/fuse && echo fuse") == "4\nfuse"
    lab.exec(2, "dd if=/dev/urandom of=/dev/shm/x bs=1k count=1", check=True)
    lab.exec(2, ["python3", "-c", "import os; os.openpty()"], check=True)


def test_what_is_said_to_syslog_is_in_the_log_on_the_host(lab: Lab) -> None:
    lab.exec(1, ["logger", "-t", "somebody", "said this"], check=True)
    log = lab.paths.node(1).log
    assert state.wait_until(lambda: "somebody: said this" in log.read_text(), 60)


def test_orphans_are_reaped(lab: Lab) -> None:
    pid = lab.out(1, "(sh -c 'echo $$; exec sleep 0.2 >/dev/null' &)")
    assert state.wait_until(lambda: lab.exec(1, ["test", "-e", f"/proc/{pid}"]).returncode == 1, 60)


def test_a_small_disk_fills_up_alone(lab: Lab) -> None:
    done = lab.exec(3, "dd if=/dev/zero of=/srv/big bs=1M count=2000")
    assert done.returncode != 0
    assert "No space left" in done.stderr
    lab.exec(3, "rm /srv/big", check=True)
    lab.exec(2, "dd if=/dev/zero of=/srv/small bs=1M count=1", check=True)


# ---------------------------------------------------------------- exec


def test_exec_passes_status_stdio_and_environment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SETTING", "kept")
    done = lab.exec(1, "cat; echo err >&2; echo $SOME_SETTING; exit 7", input="hello\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello\nkept\n", "err\n")
    assert lab.exec(1, ["no-such-command"]).returncode == 127
    assert lab.exec(1, ["/etc/passwd"]).returncode == 126
    assert lab.exec(1, ["echo", "--user", "--", "-x"]).stdout == "--user -- -x\n"
    assert lab.exec(1, "kill -TERM $$").returncode == -signal.SIGTERM


def test_exec_takes_its_options_on_both_sides_of_the_node(lab: Lab) -> None:
    for arguments in (
        ["--name", lab.name, "--user", "5:6", "1", "--", "id", "-u"],
        ["1", "--user", "5:6", "--name", lab.name, "--", "id", "-u"],
        ["--name", lab.name, "1", "--user=5:6", "--", "id", "-u"],
    ):
        done = subprocess.run([*COMMAND, "exec", *arguments], capture_output=True, text=True, check=True)
        assert done.stdout == "5\n"
    assert subprocess.run([*COMMAND, "exec", "--name", lab.name, "1"], capture_output=True, check=False).returncode == 2


def test_exec_passes_signals(lab: Lab) -> None:
    process = lab.popen(1, "trap 'echo got; exit 3' TERM; echo ready; while :; do read -t 0.1 <>/dev/zero; done")
    wait_for(lab, process, "ready")
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "got\n")


def test_a_killed_exec_takes_its_command_with_it(lab: Lab) -> None:
    process = lab.popen(1, ["sh", "-c", "echo $$; exec sleep 1000"])
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    process.kill()
    process.wait()
    assert state.wait_until(lambda: lab.exec(1, ["test", "-e", f"/proc/{pid}"]).returncode == 1, 60)


def test_exec_as_another_user(lab: Lab) -> None:
    assert lab.out(1, "id -u; id -g; id -G", user="1000").split() == ["1000", "1000", "1000"]
    assert lab.out(1, "id -u; id -g; id -G", user="1000:100,27,30").split() == ["1000", "100", "100", "27", "30"]
    assert lab.out(1, "id -u; echo $USER", user="nobody").split() == ["65534", "nobody"]
    assert lab.exec(1, "cat /etc/omfs/node.key", user="1000").returncode == 1
    assert "no user" in lab.exec(1, "id", user="nosuchuser").stderr
    assert lab.exec(1, "id", user=":3").returncode == 1


def test_a_terminal_works_through_exec(lab: Lab) -> None:
    """An interactive shell with job control, and ^C that ends the command, not the shell."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(SHELL="/bin/bash", PS1="prompt> ", TERM="dumb")
        os.execv(COMMAND[0], [COMMAND[0], "shell", "--name", lab.name, "2"])
    with os.fdopen(fd, "r+b", buffering=0) as terminal:
        terminal.write(b"tty -s; echo tty=$?; echo 'jobs:' $-; echo begin; sleep 1000\n")
        seen = _read_until(terminal.fileno(), b"begin\r\n")
        assert b"tty=0" in seen
        assert b"no job control" not in seen
        assert state.wait_until(lambda: "sleep" in lab.out(2, "ps -A -o comm"), 60)
        terminal.write(b"\x03")
        terminal.write(b"hostname; exit 5\n")
        assert b"node2\r\n" in _read_until(terminal.fileno(), b"node2\r\n")
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while os.read(terminal.fileno(), 4096):
                pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5


def _read_until(fd: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        seen += os.read(fd, 4096)
    return seen


# ---------------------------------------------------------------- faults


@pytest.fixture
def line(lab: Lab) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """An echo server on node 2, and on node 1 a client connected to it."""
    server = lab.popen(2, ["python3", "-c", ECHO_SERVER])
    wait_for(lab, server, "listening")
    client = lab.popen(1, ["python3", "-c", ECHO_CLIENT, str(lab.status()[1]["address"])])
    wait_for(lab, client, "connected")
    return server, client


def _ask(client: subprocess.Popen[str], text: str) -> str:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(text + "\n")
    client.stdin.flush()
    return client.stdout.readline().strip()


def test_a_cut_stalls_connections_and_heals(lab: Lab, line: tuple[subprocess.Popen[str], ...]) -> None:
    _, client = line
    assert _ask(client, "before") == "before"
    lab.cut(2, 1)
    assert [node["cut_from"] for node in lab.status()] == [[2], [1], []]
    assert _ask(client, "during") == "TimeoutError"
    assert lab.out(3, f"timeout 60 bash -c '</dev/tcp/{lab.status()[1]['address']}/7000' && echo open") == "open"
    lab.heal(1, 2)
    while (answer := _ask(client, "after")) == "TimeoutError":  # the longer it was cut the later it is repeated
        pass
    assert answer.startswith("during")  # what was sent arrives late, not never
    assert [node["cut_from"] for node in lab.status()] == [[], [], []]


def test_a_cut_holds_for_a_node_that_comes_back(lab: Lab) -> None:
    lab.cut(1, 2)
    lab.kill(2)
    lab.start(2)
    probe = f"bash -c '</dev/tcp/{lab.status()[1]['address']}/7000'"
    assert lab.exec(1, f"timeout 1 {probe}").returncode == 124  # silence
    lab.heal()
    assert lab.exec(1, f"timeout 60 {probe}").returncode == 1  # refused: it is reached, and nobody listens


def test_a_power_cut_tells_nobody_and_keeps_the_disk(lab: Lab, line: tuple[subprocess.Popen[str], ...]) -> None:
    server, client = line
    lab.exec(2, "echo kept >/srv/kept; sync", check=True)
    sleeper = lab.popen(2, "echo asleep; sleep 1000")
    wait_for(lab, sleeper, "asleep")
    lab.kill(2)
    assert server.wait(60) == sleeper.wait(60) == -signal.SIGKILL
    assert _ask(client, "hello?") == "TimeoutError"  # neither reset nor end of file
    assert [node["running"] for node in lab.status()] == [True, False, True]
    assert lab.exec(2, ["true"]).returncode == 1
    assert "is not running" in lab.command("kill", "2", check=False).stderr
    lab.start(2)
    assert lab.out(2, "cat /srv/kept; hostname") == "kept\nnode2"
    assert "is running already" in lab.command("start", "2", check=False).stderr
    # The new kernel does not know the old connection; what was sent meanwhile is repeated ever more seldom.
    assert state.wait_until(lambda: _ask(client, "hello!") in ("ConnectionResetError", "BrokenPipeError"), 120)


def test_wrong_use_is_refused_with_one_line(lab: Lab) -> None:
    for arguments, complaint in (
        (("up", "-n", "2"), "there is a lab"),
        (("exec", "9", "--", "true"), "has nodes 1 to 3, not 9"),
        (("cut", "1", "1"), "cut off from itself"),
        (("kill", "0"), "has nodes 1 to 3"),
    ):
        done = lab.command(*arguments, check=False)
        assert done.returncode == 1
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
    assert lab.command("heal", "1", check=False).returncode == 2


# ---------------------------------------------------------------- a lab that goes wrong


@pytest.fixture
def other() -> Iterator[Lab]:
    """The name of a lab that is not there yet; afterwards it is taken down, and nothing may be left."""
    other = Lab(f"{lab_prefix()}other")
    other.nodes = 3
    yield other
    other.down()
    assert other.remains() == []


def _begin_up(lab: Lab, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "up", "--name", lab.name, "-n", "3", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_lab_from_a_directory_that_is_closed_to_others(other: Lab) -> None:
    """As a checkout in somebody's home directory: a node's users run what is in it, and the machine's still can't."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as own:
        closed, link = Path(own, "closed"), Path(own, "link")
        closed.mkdir(0o700)
        link.symlink_to(closed)
        environment = link / "environment"
        environment.symlink_to(sys.prefix)
        command = [environment / "bin" / "python", environment / "bin" / "omfs-lab"]
        subprocess.run([*command, "up", "--name", other.name, "-n", "1", "--no-mount"], check=True, capture_output=True)
        other.nodes = 1
        other.note_namespaces()
        assert Path(other.out(1, "readlink /usr/local/bin/omfs-admin")).is_relative_to(link)
        assert other.out(1, "omfs-admin --help", user="1000")
        assert other.exec(1, ["ls", own], user="1000").returncode != 0
        assert [Path(one).stat().st_mode & 0o777 for one in (own, closed)] == [0o700, 0o700]


def test_labs_are_side_by_side(lab: Lab, other: Lab) -> None:
    other.up("--no-mount", "--sec", "none", "--dfsa", "0", nodes=1)
    assert other.out(1, "cat /etc/omfs/omfs.toml") == 'sec = "none"\ndfsa = false'
    assert other.out(1, "cat /etc/fstab").split()[3] == "dfsa=0"
    assert other.out(1, "ls /etc/omfs") == "omfs.toml"
    other.down()
    assert other.remains() == []
    assert lab.out(1, "hostname") == "node1"


@pytest.mark.parametrize(
    ("options", "fraction"),
    [((), 0.3), ((), 0.6), ((), 0.9), *((("--no-mount",), n / 6) for n in range(6))],
    ids=lambda value: f"{value:.2f}" if isinstance(value, float) else "".join(value) or "--mount",
)
def test_down_clears_what_a_killed_up_left(other: Lab, options: tuple[str, ...], fraction: float) -> None:
    """kill -9 at moments spread over the time that a whole `up` takes."""
    began = time.monotonic()
    other.up(*options)
    whole_s = time.monotonic() - began
    other.down()
    process = _begin_up(other, *options)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(whole_s * fraction)
    other.note_namespaces()
    process.kill()
    process.communicate()
    other.down()
    assert other.remains() == []
    assert "nothing to do" in other.command("down").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_takes_everything_down(other: Lab, number: signal.Signals) -> None:
    process = _begin_up(other, "--no-mount")
    assert state.wait_until(lambda: state.alive(other.paths.node(1).boot) is not None or process.poll() is not None, 60)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert other.remains() == []


def test_a_node_that_fails_is_named_and_everything_taken_down(other: Lab) -> None:
    with pytest.raises(LabError, match=r"node [12] failed at mount: .*nonsense"):
        cluster.up(LabPlan(name=other.name, nodes=2, settings="nonsense = 1"), other.paths)
    assert other.remains() == []


def test_down_also_after_a_node_ended_by_itself(other: Lab) -> None:
    other.up("--no-mount")
    init = state.alive(other.paths.node(2).init)
    assert init is not None
    init.kill()
    assert state.wait_until(lambda: not init.is_alive(), 60)
    assert [node["running"] for node in other.status()] == [True, False, True]
    other.start(2)
    assert other.out(2, "hostname") == "node2"


def test_kill_and_start_again_and_again(other: Lab) -> None:
    other.up("--no-mount", nodes=1)
    for count in range(5):
        other.exec(1, f"echo {count} >>/srv/counts", check=True)
        other.kill(1)
        other.start(1)
    assert other.out(1, "cat /srv/counts").split() == list("01234")
