"""mosctl why and mosctl simulate: their tables and their JSON, and what they refuse; mignode's answer is a file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from mignode.cli import mosctl
from mignode.policy import Decision, Option
from mignode.strategies import STRATEGIES

DECISION = Decision(
    guest="2.31.7", here=2, target=7, reason="its files are on node 7", moving_s=0.52, life_s=31.4, gain_s=12.25,
    options=(
        Option(7, cpu_s=1.0, files_s=0.25),
        Option(2, cpu_s=1.0, files_s=0.875, memory_s=0.5),
        Option(1, refused="takes no guests (block)"),
    ),
    judged_as="any job",
)  # fmt: skip
TABLE = """\
process 31 on node 2 goes to node 7: its files are on node 7
it is expected to go on for 31 s; a move would take 0.5 s and save 12.2 s
it is judged as any job
its last second would take, in seconds:
  node      cpu    files   memory   in all
     7     1.00     0.25     0.00     1.25
     2     1.00     0.88     0.50     2.38
     1 takes no guests (block)
"""
TRACE = """\
node 1
node 2
network bytes=50M
job seldom home=1 cpu=40 memory=10M reads=2:40M:400
expect seldom stays
"""


@pytest.fixture
def mfs(tmp_path: Path) -> Path:
    """Process 31 has been decided about, 32 not."""
    (tmp_path / "proc" / "hpc").mkdir(parents=True)
    for pid, said in ((31, msgspec.json.encode(DECISION)), (32, b"")):
        (tmp_path / "proc" / str(pid)).mkdir()
        (tmp_path / "proc" / str(pid) / "decision").write_bytes(said + b"\n")
    return tmp_path


def test_why_it_goes(mfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mosctl.main(["why", "31", "--mfs", str(mfs)]) == 0
    assert capsys.readouterr().out == TABLE


def test_why_it_goes_for_programs(mfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mosctl.main(["why", "31", "--json", "--mfs", str(mfs)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert msgspec.convert(told, Decision) == DECISION
    assert told["options"][2]["refused"] == "takes no guests (block)"


def test_why_it_stays(mfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stays = msgspec.structs.replace(DECISION, target=2, reason="it is better off nowhere", gain_s=-3.0, judged_as="")
    (mfs / "proc" / "31" / "decision").write_bytes(msgspec.json.encode(stays))
    assert mosctl.main(["why", "31", "--mfs", str(mfs)]) == 0
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first == "process 31 on node 2 stays: it is better off nowhere"
    assert second.endswith("and save 0.0 s")
    assert third == "its last second would take, in seconds:"


@pytest.mark.parametrize(
    ("pid", "text"),
    [
        ("33", "there is no process 33"),
        ("32", "nothing has been decided about process 32: it is no guest, or has just begun"),
    ],
)
def test_nothing_to_tell(mfs: Path, pid: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mosctl.main(["why", pid, "--mfs", str(mfs)]) == 1
    assert capsys.readouterr() == ("", f"mosctl: {text}\n")


def test_simulate_needs_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What becomes of the job, and then a line for each strategy."""
    (tmp_path / "trace").write_text(TRACE)
    assert mosctl.main(["simulate", str(tmp_path / "trace"), "--mfs", str(tmp_path / "nowhere")]) == 0
    lines = capsys.readouterr().out.splitlines()
    heading = lines.index("mean slowdown".ljust(32) + " moves")
    assert "seldom ends on node 1, " in lines[heading - 1]
    said = "\n".join(lines[heading + 1 :])
    assert [name for name in (*STRATEGIES, "the best without moves") if f"{name:24} " not in said] == []
    assert mosctl.main(["simulate", "--json", str(tmp_path / "trace")]) == 0
    assert json.loads(capsys.readouterr().out) == {"lines": lines}


def test_simulate_tells_what_is_not_as_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace").write_text(TRACE.replace("seldom stays", "seldom on 2 by 30"))
    assert mosctl.main(["simulate", str(tmp_path / "trace")]) == 0
    assert capsys.readouterr().out.endswith("\nnot as expected: seldom is on node 1 after 30 s\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe", "it is no text"),
        (b"node 1\njob a home=1 at=now\n", 'line 2: "now" is no amount (like 0.5, 20M or 4G)'),
        (b"node 1\n", "a trace has at least one node and one job"),
    ],
    ids=["missing", "binary", "bad", "empty"],
)
def test_simulate_refuses(tmp_path: Path, content: bytes | None, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace"
    if content is not None:
        trace.write_bytes(content)
    assert mosctl.main(["simulate", str(trace)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"mosctl: {trace}")
    assert err.endswith(f"{text}\n")
