"""mosrun with pipes and files: a program behind it looks to the shell as if there were no mosrun.

Its mignode and init are tests/unit/fakeinit.py; the terminal is in test_mosrun_terminal.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.deputyroom import DEADLINE_S, MOSRUN, ROOT, Room, room, wait_until


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Room]:
    with room(tmp_path) as made:
        yield made


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_is_lost_or_repeated(tmp_path: Path, seed: int) -> None:
    """While the connection is cut at random and the program frozen and thawed."""
    data = random.Random(seed).randbytes(3_000_000)
    with room(tmp_path, freeze_each_s=0.02, cut_each=37) as made:
        done = made.run("mosrun tee /dev/stderr", data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.stderr == data


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("true", 0),
        ("sh -c 'exit 7'", 7),
        ("sh -c 'kill -TERM $$'", 128 + signal.SIGTERM),
        ("sh -c 'kill -SEGV $$'", 128 + signal.SIGSEGV),
        ("sh -c 'kill -KILL $$'", 128 + signal.SIGKILL),
        ("nosuchprogram", 127),
        ("./nosuchprogram", 127),
        ("/etc/passwd", 126),
    ],
)
def test_the_status_is_the_programs(alone: Room, program: str, status: int) -> None:
    assert alone.run(f"mosrun {program}").returncode == status


def test_arguments_environment_and_directory(alone: Room) -> None:
    done = alone.run("export SAID='a b'; mosrun sh -c 'echo \"$0,$1,$SAID,$PWD\"' one 'two  three'")
    assert done.stdout.decode() == f"one,two  three,a b,{alone.folder}\n"


def test_a_directory_that_is_no_more(alone: Room) -> None:
    done = alone.run("mkdir gone; cd gone; rmdir ../gone; mosrun true; echo $?")
    assert done.stdout == b"125\n"
    assert done.stderr.endswith(b": the directory that you are in has been removed; cd to another one\n")


def test_outputs_that_are_one_file_keep_their_order(alone: Room) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; echo err$i >&2; done"
    done = alone.run(f"mosrun sh -c '{script}' > both 2>&1; cat both")
    assert done.stdout.decode().split() == [word for i in range(1, 10) for word in (str(i), f"err{i}")]


def test_who_reads_no_more_ends_the_program(alone: Room) -> None:
    done = alone.run("mosrun yes | head -1; echo ${PIPESTATUS[0]}")
    assert done.stdout.decode().split() == ["y", str(128 + signal.SIGPIPE)]


def test_an_output_that_the_program_closes_ends_for_its_reader(alone: Room) -> None:
    """cat ends while the program runs, and only then lets the program go on."""
    done = alone.run("mkfifo go; mosrun sh -c 'echo said; exec >&-; cat go >&2' | { cat; echo now > go; }")
    assert (done.stdout, done.stderr) == (b"said\n", b"now\n")


def test_an_input_that_nobody_reads_ends_for_its_writer(alone: Room) -> None:
    done = alone.run("mkfifo go; { yes; echo now > go; } 2>&- | mosrun sh -c 'exec <&-; cat go'")
    assert done.stdout == b"now\n"


def test_a_file_as_input_is_where_the_program_left_it(alone: Room) -> None:
    (alone.folder / "lines").write_text("".join(f"{number:7d}\n" for number in range(100_000)))
    done = alone.run("{ mosrun dd bs=1 count=12 status=none; cat; } < lines | head -c 24")
    assert done.stdout == b"      0\n      1\n      2\n"


def test_without_input_or_output(alone: Room) -> None:
    done = alone.run("mosrun sh -c 'readlink /proc/self/fd/0 >&2' </dev/null >&-; echo $? >&2")
    assert done.stderr == b"/dev/null\n0\n"


def test_who_ends_does_not_wait_for_its_children(alone: Room) -> None:
    """The child writes after mosrun has ended, and its reader gets that."""
    done = alone.run("mkfifo go; { mosrun sh -c '{ cat go; echo late; } & echo first'; echo $?; echo > go; } | cat")
    assert done.stdout.decode().split() == ["first", "0", "late"]


def test_signals_come_through(alone: Room) -> None:
    program = "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready; while :; do read x; done"
    alone.serve()
    command = [*MOSRUN.split(), "bash", "-c", program]
    process = subprocess.Popen(
        command, env=alone.environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "usr1\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "term\n"
    assert process.wait(DEADLINE_S) == 3
    assert process.stdin
    process.stdin.close()
    process.stdout.close()


def test_it_stops_with_the_program_and_goes_on_with_it(alone: Room) -> None:
    alone.serve()
    process = subprocess.Popen(
        [*MOSRUN.split(), "cat"], env=alone.environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        process_group=0,  # in ours nobody could stop it where we lead the session: it would be orphaned (setpgid(2))
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"one\n"
    process.send_signal(signal.SIGTSTP)
    stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert stopped
    assert stopped.si_status == signal.SIGTSTP
    process.send_signal(signal.SIGCONT)
    process.stdin.write(b"two\n")
    process.stdin.close()
    assert process.stdout.read() == b"two\n"
    assert process.wait(DEADLINE_S) == 0
    process.stdout.close()


def test_a_mosrun_that_is_killed_takes_the_program_along(alone: Room) -> None:
    alone.serve()
    process = subprocess.Popen(
        [*MOSRUN.split(), "sh", "-c", "echo $$; sleep 1000"], env=alone.environment, cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_lost_mignode_is_said_once(alone: Room) -> None:
    alone.serve()
    start = (
        "import sys, mignode.deputyloop as loop; loop.DEPUTY_ALONE_S = 0.5; sys.argv[0] = 'mosrun'\n"
        "from mignode.cli.mosrun import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, "sh", "-c", "echo $$; exec sleep 1000"],
        env=alone.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    pid = int(process.stdout.readline())
    alone.end()
    os.kill(pid, signal.SIGKILL)  # an init would have seen to that
    _, said = process.communicate(timeout=DEADLINE_S)
    assert said == "mosrun: mignode has ended, and with it the program\n"
    assert process.returncode == -signal.SIGKILL


def test_outside_a_cluster_it_becomes_the_program(tmp_path: Path) -> None:
    (tmp_path / "omfs.toml").write_text(f'run_dir = "{tmp_path}"\n')
    (tmp_path / "noformat").write_text("echo ran $1; kill -PIPE $$")
    (tmp_path / "noformat").chmod(0o755)
    environment = {**os.environ, "OMFS_CONFIG": str(tmp_path / "omfs.toml"), "PYTHONPATH": str(ROOT)}

    def ran(*words: str) -> tuple[int, str, str]:
        done = subprocess.run([*MOSRUN.split(), *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    assert ran("-3", "sh", "-c", "echo $0", "named") == (0, "named\n", "")
    assert ran("./noformat", "it") == (-signal.SIGPIPE, "ran it\n", "")
    assert ran("nosuch") == (127, "", "mosrun.py: nosuch: command not found\n")
    assert ran("./nosuch") == (127, "", "mosrun.py: ./nosuch: No such file or directory\n")
    assert ran("/etc/passwd") == (126, "", "mosrun.py: /etc/passwd: Permission denied\n")
    assert ran("-q", "true")[0] == 125
    assert ran("-z", "sh", "called", "-c", "echo $0") == (0, "called\n", "")
    assert ran("--help")[1].startswith("usage: mosrun ")
