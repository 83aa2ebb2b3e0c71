"""mosctl why PID, in a /mfs that is a directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from mignode import journey
from mignode.cli import mosctl
from mignode.journey import Journey, State
from mignode.policy import Decision, Option, told

LAST = Decision("1.42.7", 2, 2, "no other node is better", 0.4, 7.0, 0.0, (Option(2, 0.16), Option(1, 0.16, 5.65)))
BEGAN = Decision(
    "1.42.7", 1, 2, "it costs least there", 0.35, 3.0, 6.0,
    (Option(2, 1.0), Option(1, 3.0), Option(3, refused="block")), is_first=True,
)  # fmt: skip
AT_HOME = replace(BEGAN, target=1, reason="no other node is better")


def say(mount: Path, decision: str, *words: str, last: Journey | None = None) -> int:
    (mount / "proc" / "hpc").mkdir(parents=True, exist_ok=True)
    (mount / "proc" / "42").mkdir(exist_ok=True)
    (mount / "proc" / "42" / "decision").write_text(decision)
    (mount / "proc" / "42" / "journey").write_text(journey.told(last))
    return mosctl.main(["--mfs", str(mount), "why", *words])


@pytest.mark.parametrize(
    ("decision", "first_lines"),
    [
        (LAST, ["process 42 on node 2 stays: no other node is better", "it is expected to go on for 7 s"]),
        (replace(LAST, target=1), ["process 42 on node 2 goes to node 1: no other node is better", "it is expected"]),
        (
            BEGAN,
            ["process 42 began on node 2: it costs least there (1.00 s for a second of computing; at home 3.00 s)",
             "it is expected to go on for 3 s; a move would take 0.3 s and save 6.0 s", "a second of computing would"],
        ),
        (AT_HOME, ["process 42 began at home: no other node is better", "it is expected"]),
        (
            replace(LAST, began=BEGAN),
            ["process 42 on node 2 stays: no other node is better",
             "it began on node 2: it costs least there (1.00 s for a second of computing; at home 3.00 s)",
             "it is expected to go on for 7 s", "its last second would take, in seconds:", "  node      cpu",
             "     2     0.16"],
        ),
    ],
    ids=["stays", "goes", "began elsewhere", "began at home", "stays where it began"],
)  # fmt: skip
def test_it_is_told(
    decision: Decision, first_lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(tmp_path, told(decision), "42") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[: len(begin)] for line, begin in zip(lines, first_lines, strict=False)] == first_lines
    assert lines[-1].split()[0] == str(decision.options[-1].node)


CAME = Journey(1, 2, State.ARRIVED, age_s=4.25)


@pytest.mark.parametrize(
    ("last", "came_after_s"),
    [
        (CAME, 4.25),
        (replace(CAME, target=3), None),
        (replace(CAME, state=State.STAYED), None),
        (replace(CAME, age_s=0.0), None),
        (None, None),
    ],
    ids=["it came", "it came elsewhere", "it stayed where it was", "nobody knows", "it never moved"],
)
def test_when_it_came_there(
    last: Journey | None, came_after_s: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(tmp_path, told(LAST), "42", last=last) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "after its start" in line]
    assert said == ([] if came_after_s is None else ["it came to node 2 4.2 s after its start"])
    assert say(tmp_path, told(LAST), "42", "--json", last=last) == 0
    assert json.loads(capsys.readouterr().out)["came_after_s"] == came_after_s


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(tmp_path, told(replace(LAST, began=BEGAN)), "42", "--json") == 0
    assert json.loads(capsys.readouterr().out)["began"]["target"] == 2


@pytest.mark.parametrize(
    ("decision", "pid", "said"),
    [
        ("", "42", "nothing has been decided"),
        ("", "43", "there is no process 43"),
    ],
)
def test_where_there_is_nothing_to_tell(
    decision: str, pid: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(tmp_path, decision, pid) == 1
    told_to_user = capsys.readouterr()
    assert said in told_to_user.err
    assert told_to_user.err.count("\n") == 1
