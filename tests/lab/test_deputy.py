"""mosrun at home while its program is on another node: as if it were the program."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import signal
import threading

import pytest

from tests.lab.askedguest import ALICE, AskedGuest
from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab
PIECE_BYTES = 1 << 16
STREAM_BYTES = 50 << 20
HOPS = 100
PAGER = """
import os, pty, sys
keys = "import os; own = os.open('/dev/tty', os.O_RDWR)\\nwhile True: os.write(own, b'heard ' + os.read(own, 100))"
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("mosrun", ["mosrun", "python3", "-c", keys])
print(pid, flush=True)
for line in sys.stdin:  # what is typed
    os.write(terminal, line.encode())
    shown = b""
    while b"heard " + line.strip().encode() not in shown:
        shown += os.read(terminal, 4096)
    print("shown", flush=True)
os.kill(pid, 9)
os.waitpid(pid, 0)
"""
SHELL = """
import fcntl, os, pty, re, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
for line in sys.stdin:  # columns and rows, what is typed, and a pattern of what is to be shown then
    columns, rows, keys, wanted = eval(line)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    os.write(terminal, keys)
    shown = b""
    while not (found := re.search(wanted, shown)):
        shown += os.read(terminal, 4096)
    print(found[found.lastindex or 0], flush=True)
os.close(terminal)  # the shell ends by SIGHUP
os.waitpid(pid, 0)
"""
SIZED = """
import os, sys
print("guest", os.getpid(), flush=True)
for line in sys.stdin:
    print(f"<{line.strip().upper()} {os.get_terminal_size(0).columns}x{os.get_terminal_size(0).lines}>", flush=True)
"""
PARENT = """
import os, subprocess, sys
mosrun = subprocess.Popen(
    ["mosrun", "sh", "-c", "while :; do echo one; sleep 0.01; done"], stdin=subprocess.DEVNULL, stdout=open("{output}", "w")
)
print(mosrun.pid, flush=True)
for line in sys.stdin:  # signals for it; what its parent sees of each
    os.kill(mosrun.pid, int(line))
    seen = os.waitid(os.P_PID, mosrun.pid, os.WSTOPPED | os.WCONTINUED | os.WEXITED)
    print(seen.si_code, seen.si_status, flush=True)
"""


def state(cluster: Cluster, pid: int, node: int = 1) -> str:
    """S, T ... of a process of that node; "" where it has none."""
    return cluster.try_run(node, f"awk '/^State/ {{print $2}}' /proc/{pid}/status").stdout.strip()


def guests_on(cluster: Cluster, node: int) -> list[str]:
    """What is below inits of ours there."""
    return cluster.run(node, "for p in $(pgrep -x omfs-guest); do pgrep -P $p -a || true; done").split("\n")[:-1]


def state_of_guest(cluster: Cluster, node: int) -> str:
    """Of the program of the only one there."""
    return cluster.run(node, "ps -o state= -p $(pgrep -P $(pgrep -x omfs-guest))").strip()


def wait_nothing_left(cluster: Cluster) -> None:
    for node in (1, 2, 3):
        wait_until(lambda node=node: guests_on(cluster, node) == [], f"no guest on node {node}")


def test_it_ends_stops_and_goes_on_as_its_program(cluster: Cluster) -> None:
    guest = AskedGuest(
        cluster, by="perl -e 'setpgrp; exec @ARGV' mosrun"
    )  # where nobody watches, nothing stops by TSTP
    guest.move(2)
    cluster.run(1, f"kill -USR1 {guest.pid}", user=ALICE)
    wait_until(lambda: guest.ask("heard") == "[10]", "the guest hears a signal of its user's")
    cluster.run(1, f"kill -TSTP {guest.pid}", user=ALICE)
    wait_until(lambda: state(cluster, guest.pid) == "T", "mosrun stops with it")
    cluster.run(1, f"kill -CONT {guest.pid}", user=ALICE)
    wait_until(lambda: state(cluster, guest.pid) == "S", "mosrun goes on")
    assert guest.ask("os.getpid()") == str(guest.pid)
    cluster.run(1, f"kill -TERM {guest.pid}", user=ALICE)
    assert guest.line() == "status 143"
    for ending, status in (("os._exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("os.abort()", 134)):
        guest = AskedGuest(cluster)
        guest.move(2)
        assert guest.ask(ending) == f"status {status}"
    wait_nothing_left(cluster)


def test_children_outlive_it(cluster: Cluster) -> None:
    script = """
    mosrun sh -c 'echo $$; read line; sleep 1000 > /dev/null 2>&1 < /dev/null & echo $!'
    echo status $?
    """
    process = cluster.lab.popen(1, script, user=ALICE)
    assert process.stdin is not None
    assert process.stdout is not None
    mosrun = process.stdout.readline().strip()
    cluster.run(1, f"migrate {mosrun} 2", user=ALICE)
    process.stdin.write("go on\n")
    process.stdin.flush()
    child = process.stdout.readline().strip()
    assert process.stdout.readline() == "status 0\n"
    find = "pgrep -fx 'sleep 1000'"
    wait_until(lambda: cluster.try_run(2, f"{find} | wc -l").stdout == "1\n", f"{child} has become a sleep")
    assert cluster.try_run(1, find).returncode == 1
    cluster.run(2, f"kill $({find})")
    wait_nothing_left(cluster)


def test_killed_it_takes_its_program_along(cluster: Cluster) -> None:
    guest = AskedGuest(cluster)
    guest.move(2)
    cluster.run(1, f"kill -KILL {guest.pid}", user=ALICE)
    assert guest.line() == "status 137"
    wait_nothing_left(cluster)


def test_stopped_by_kill_it_stops_its_program(cluster: Cluster) -> None:
    """At home and away, and it may move meanwhile; its parent sees nothing else than it would of the program."""
    output = f"{cluster.fresh_dir(1).native}/output"
    parent = cluster.start_python(1, PARENT.format(output=output), user=ALICE)
    mosrun = int(parent.next_line())

    def kill(number: int, seen: str) -> None:
        parent.send_line(str(number))
        parent.wait_line(seen)

    def wait_output() -> None:
        cluster.run(1, f"was=$(wc -l < {output}); until [ $(wc -l < {output}) -gt $((was + 20)) ]; do sleep 0.02; done")

    wait_output()
    for node, then in ((1, 2), (2, 3), (3, 1)):
        kill(signal.SIGSTOP, "5 19")
        wait_until(lambda node=node: state_of_guest(cluster, node) == "T", "the program stops")
        cluster.run(1, f"migrate {mosrun} {then}", user=ALICE)
        wait_until(lambda then=then: state_of_guest(cluster, then) == "T", "it is stopped there, too")
        kill(signal.SIGCONT, "6 18")
        wait_output()
        assert state(cluster, mosrun) not in ("", "T")
    kill(signal.SIGKILL, "2 9")
    wait_nothing_left(cluster)


def test_its_terminal_is_also_the_one_that_the_program_opens_by_name(cluster: Cluster) -> None:
    user = cluster.start_python(1, PAGER, user=ALICE)
    mosrun = user.next_line()
    for node in ("2", "3", "home"):
        for _ in range(2):
            user.send_line(f"before {node}")
            user.wait_line("shown")
        cluster.run(1, f"migrate {mosrun} {node}", user=ALICE)
    user.send_line("at the end")
    user.finish()
    wait_nothing_left(cluster)


def test_a_shell_stops_it_and_takes_it_to_the_foreground_while_it_is_away(cluster: Cluster) -> None:
    """And it hears how large the window is now: in the foreground, and when it comes back to it."""
    directory = cluster.fresh_dir(1).native
    cluster.run(1, f"cat > {directory}/sized.py <<'THE END'\n{SIZED}\nTHE END")
    shell = cluster.start_python(1, SHELL, user=ALICE)

    def types(columns: int, keys: str, wanted: str) -> str:
        shell.send_line(repr((columns, 24, keys.encode(), wanted.encode())))
        return ast.literal_eval(shell.next_line()).decode()

    mosrun = types(80, f"mosrun python3 {directory}/sized.py\n", r"guest (\d+)\r\n")
    types(80, "at home\n", "<AT HOME 80x24>")
    for columns, node in ((100, 2), (120, 3)):
        cluster.run(1, f"migrate {mosrun} {node}", user=ALICE)
        types(columns, "there\n", f"<THERE {columns}x24>")
        types(columns, "\x1a", "Stopped")
        wait_until(lambda node=node: state_of_guest(cluster, node) == "T", "it is stopped where it runs")
        types(columns + 1, "fg\n", "mosrun python3")
        types(columns + 1, "again\n", f"<AGAIN {columns + 1}x24>")
    types(80, "\x1a", "Stopped")
    cluster.run(1, f"migrate {mosrun} home", user=ALICE)  # it is stopped there, too
    assert state_of_guest(cluster, 1) == "T"
    types(90, "fg\n", "mosrun python3")
    types(90, "at home\n", "<AT HOME 90x24>")
    types(90, "\x04", r"\$ ")
    types(90, "echo it was $?\n", "it was 0")
    shell.finish()
    wait_nothing_left(cluster)


@pytest.mark.timeout(600)
def test_a_stream_through_it_while_it_hops(cluster: Cluster) -> None:
    """Not a byte lost or repeated; and none is made up.  In all three: what comes in goes out, and is told as error."""
    directory = cluster.fresh_dir(1).native
    cluster.run(1, f"chmod 777 {directory}")
    told = f"{directory}/told"
    script = f"mosrun tee /dev/stderr <&0 2> >(sha256sum > {told}) & echo $! >&2; wait $!; echo status $? >&2"
    process = cluster.lab.popen(1, script, user=ALICE)
    given, got = hashlib.sha256(), hashlib.sha256()
    sizes = {"got": 0}
    is_enough = threading.Event()

    def give() -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError), process.stdin.buffer as pipe:  # it is ended by a test that fails
            size = 0
            while size < STREAM_BYTES or not is_enough.is_set():
                piece = os.urandom(PIECE_BYTES)
                given.update(piece)
                pipe.write(piece)
                size += len(piece)

    def take() -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            while piece := process.stdout.buffer.read(PIECE_BYTES):
                got.update(piece)
                sizes["got"] += len(piece)

    threads = [threading.Thread(target=give, daemon=True), threading.Thread(target=take, daemon=True)]
    assert process.stderr is not None
    mosrun = process.stderr.readline().strip()
    wait_until(lambda: cluster.run(1, f"cat /mfs/proc/{mosrun}/cantmove") == "", "it is a guest")
    for thread in threads:
        thread.start()
    try:
        for hop in range(HOPS):
            cluster.run(1, f"migrate {mosrun} {(2, 3, 'home')[hop % 3]}", user=ALICE)
    finally:
        is_enough.set()
    for thread in threads:
        thread.join(60)
    assert process.stderr.readline() == "status 0\n"
    assert sizes["got"] >= STREAM_BYTES
    assert got.digest() == given.digest()
    assert cluster.run(1, f"until [ -s {told} ]; do sleep 0.1; done; cat {told}").split()[0] == given.hexdigest()
    wait_nothing_left(cluster)
