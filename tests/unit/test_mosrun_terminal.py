"""mosrun on a terminal, under an interactive shell: job control, window size, keys, type-ahead."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.deputyroom import PROMPT, User, room, user, wait_until

SIZED = """
import os, sys
print("ready", flush=True)
for line in sys.stdin:
    print(f"<{line.strip()} {os.get_terminal_size(0).columns}>", flush=True)
"""
SHELL = "PS1='guest''> ' mosrun bash --norc --noprofile --noediting -i"


@pytest.fixture
def ann(tmp_path: Path) -> Iterator[User]:
    with room(tmp_path) as made, user(made) as somebody:
        yield somebody


def test_the_terminal_is_as_without(ann: User) -> None:
    ann.resize(33, 111)
    ann.types(
        "mosrun sh -c 'tty; stty size; stty -a | grep -wo -e -icanon -e icanon -e echo; test -t 0 -a -t 2; echo t$?'\n"
    )
    ann.reads(r"/dev/pts/\d+\n33 111\nicanon\necho\nt0\n")
    ann.reads(PROMPT)
    assert not ann.is_raw()


def test_what_is_typed_is_shown_once_and_keys_work(ann: User) -> None:
    ann.types("mosrun cat; echo status $?\n")
    wait_until(ann.is_raw)
    ann.types("one\n")
    ann.reads("one\none\n")
    ann.types("wrongx\b\b\b\b\b\b\x15right\n\x04")
    ann.reads("right\nright\n")
    ann.reads("status 0\n")
    ann.reads(PROMPT)
    assert not ann.is_raw()


def test_an_interrupt(ann: User) -> None:
    """Of one process: a shell that has not begun a program yet would wait for it, as without mosrun."""
    ann.types("mosrun sh -c 'echo ready; exec sleep 1000'\n")
    ann.reads("\nready\n")
    ann.types("\x03")
    ann.reads(PROMPT)
    ann.says("echo status $?", "\nstatus 130\n")


def test_stop_and_continue_in_foreground_and_background(ann: User) -> None:
    ann.types("mosrun sh -c 'echo ready; while read line; do echo got $line; done'\n")
    ann.reads("\nready\n")
    ann.types("first\n")
    ann.reads("got first\n")
    ann.types("\x1a")
    ann.reads(r"Stopped")
    ann.reads(PROMPT)
    assert not ann.is_raw()
    ann.says("jobs", r"\[1\]\+  Stopped")
    ann.types("fg\n")
    wait_until(ann.is_raw)
    ann.types("second\n")
    ann.reads("got second\n")
    ann.types("\x1a")
    ann.reads(PROMPT)
    ann.says("bg", r"\[1\]\+ mosrun")
    ann.says("jobs", "Running")
    ann.types("fg\n")
    wait_until(ann.is_raw)
    ann.types("third\n")
    ann.reads("got third\n")
    ann.types("\x04")
    ann.reads(PROMPT)


def test_stopped_by_kill_it_finds_the_terminal_again(ann: User) -> None:
    """It could not release it: the shell has taken it."""
    ann.types("mosrun sh -c 'echo $$; while read line; do echo got $line; done'\n")
    mosrun = int(ann.reads(r"\n(\d+)\n")[1])
    wait_until(ann.is_raw)
    for _ in range(2):
        os.kill(mosrun, signal.SIGSTOP)
        ann.reads("Stopped")
        ann.reads(PROMPT)
        assert not ann.is_raw()
        ann.types("fg\n")
        wait_until(ann.is_raw)
        ann.types("line\n")
        ann.reads("got line\n")
    os.kill(mosrun, signal.SIGSTOP)
    ann.reads(PROMPT)
    ann.says("bg", r"\[1\]\+ mosrun")
    ann.reads(PROMPT)
    ann.types("fg\n")
    wait_until(ann.is_raw)
    ann.types("\x04")
    ann.reads(PROMPT)
    assert not ann.is_raw()


def test_in_the_background_it_leaves_the_terminal_alone(ann: User) -> None:
    ann.types("mosrun sh -c 'echo ready; read line; echo got $line' &\n")
    ann.reads("ready\n")
    ann.says("echo typed for the shell", "\ntyped for the shell\n")
    ann.says("jobs", "Running")
    assert not ann.is_raw()
    ann.types("fg\n")
    wait_until(ann.is_raw)
    ann.types("for it\n")
    ann.reads("got for it\n")


def test_a_shell_with_jobs_of_its_own(ann: User) -> None:
    ann.types(SHELL + "\n")
    ann.reads("guest> ")
    ann.types("cat\n")
    ann.types("line\n")
    ann.reads("line\nline\n")
    ann.types("\x1a")
    ann.reads("Stopped")
    ann.reads("guest> ")
    ann.says("fg", "\ncat\n")
    ann.types("more\n")
    ann.reads("more\nmore\n")
    ann.types("\x03")
    ann.reads("guest> ")
    ann.types("exit 5\n")
    ann.reads(PROMPT)
    ann.says("echo status $?", "\nstatus 5\n")


def test_the_window_may_change(ann: User) -> None:
    """The key comes when stty has ended: a shell that waits for a program which survives it goes on, too."""
    ann.types("mosrun bash -c 'trap \"stty size; echo changed\" WINCH; echo ready; while :; do read -t 0.1; done'\n")
    ann.reads("\nready\n")
    ann.resize(40, 132)
    ann.reads("40 132\nchanged\n")
    ann.types("\x03")
    ann.reads(PROMPT)


def test_what_is_typed_into_a_new_window_finds_its_size(ann: User) -> None:
    """Also where mosrun sees both at once, as on a busy machine; it may find a newer one."""
    (ann.room.folder / "sized.py").write_text(SIZED)
    ann.types("mosrun python3 sized.py\n")
    ann.reads("ready\n")
    for first in range(100, 600, 50):
        for columns in range(first, first + 50):
            ann.resize(24, columns)
            ann.types(f"{columns}\n")
        for columns in range(first, first + 50):
            assert int(ann.reads(rf"<{columns} (\d+)>")[1]) >= columns
    ann.types("\x04")
    ann.reads(PROMPT)


def test_the_terminal_is_given_back_when_mignode_gives_up(ann: User) -> None:
    ann.types("mosrun sh -c 'echo $$; sleep 1000'; echo status $?\n")
    ann.reads(r"\n\d+\n")
    wait_until(ann.is_raw)
    assert ann.room.init
    ann.room.init.send_signal(signal.SIGUSR1)  # it says Lost
    ann.reads("mosrun.*: its node is gone\n")
    ann.reads("status 137\n")
    assert not ann.is_raw()


@pytest.mark.parametrize("freezes", [0.0, 0.05])
def test_type_ahead_is_kept_and_shown_once(tmp_path: Path, freezes: float) -> None:
    with room(tmp_path, freeze_each_s=freezes) as made, user(made) as ann:
        (tmp_path / "go").touch()
        ann.types("rm go; mosrun sh -c 'echo ready; until test -e go; do :; done; head -n 3 | cat -A; echo done'\n")
        ann.reads("\nready\n")
        ann.types("one\ntwo\nthr")
        ann.reads("one\ntwo\nthr")
        for _ in range(10 if freezes else 0):
            ann.types("")
        (tmp_path / "go").touch()
        ann.types("ee\n")
        assert ann.reads(r"(?s)^(.*)done\n")[1] == "ee\none$\ntwo$\nthree$\n"
        ann.reads(PROMPT)


def test_a_terminal_that_is_hung_up(ann: User) -> None:
    """The program reads an end of file; SIGHUP comes when the shell sends it, before or after that."""
    program = "trap '' HUP; echo ready; while read x; do :; done; echo end >> said"
    ann.types(f'mosrun bash -c "{program}"\n')
    ann.reads("\nready\n")
    ann.hang_up()
    said = ann.room.folder / "said"
    wait_until(lambda: said.exists() and said.read_text() == "end\n")


def test_the_keys_are_for_a_script_around_it_too(ann: User) -> None:
    (ann.room.folder / "script").write_text(
        "mosrun sh -c 'echo ready; while read x; do echo got $x; done'; echo after\n"
    )
    ann.types("bash ./script\n")
    ann.reads("ready\n")
    wait_until(ann.is_raw)
    ann.types("\x1a")
    ann.reads("Stopped")
    ann.says("fg", "script\n")
    wait_until(ann.is_raw)
    ann.types("it\n")
    ann.reads("got it\n")
    ann.types("\x03")
    assert "after" not in ann.reads(r"(?s).*" + PROMPT)[0]
    assert not ann.is_raw()


def test_only_the_output_is_a_terminal(ann: User) -> None:
    ann.types("echo given | mosrun sh -c 'cat; test -t 0; echo in$?; test -t 1; echo out$?'\n")
    ann.reads("\ngiven\nin1\nout0\n")


def test_only_the_input_is_a_terminal(ann: User) -> None:
    ann.types("mosrun sort -r 2>&1 | cat\n")
    ann.types("a\nb\n\x04")
    ann.reads("a\nb\nb\na\n")
    ann.reads(PROMPT)
