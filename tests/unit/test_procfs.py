"""What files of /proc/<pid> say: any name a program may give itself, 64- and 32-bit vectors, and nonsense."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from omfs.kernel.procfs import (
    ProcessStat,
    ProcessStatus,
    auxiliary,
    foreground_group,
    is_narrow,
    parse_stat,
    parse_status,
)

numbers = st.integers(0, (1 << 63) - 1)
ids = st.integers(0, (1 << 32) - 1)
names = st.lists(st.sampled_from([b")", b"(", b" ", b"\n", b"R", b"1", b"\xff", b"x", b"\\", b"Tgid:\t7"])).map(
    b"".join
)
AT_PAGESZ, AT_RANDOM = 6, 25


def stat_line(pid: int, name: bytes, state: bytes, parent: int, start_ticks: int, exit_signal: int, rest: int) -> bytes:
    """Fields as proc(5) numbers them."""
    fields = [b"%d" % rest] * 53
    fields[1], fields[2], fields[3], fields[4] = b"%d" % pid, b"(" + name + b")", state, b"%d" % parent
    fields[22], fields[38] = b"%d" % start_ticks, b"%d" % exit_signal
    return b" ".join(fields[1:]) + b"\n"


@given(ids, names | st.binary(max_size=64), st.sampled_from("RSDZTtXxKWPI"), ids, numbers, st.integers(-1, 64), numbers)
@example(7, b"a) S 1 (b", "Z", 1, 5, 17, 0)
@example(7, b"", "S", 0, 0, -1, 0)
def test_a_stat_of_any_name(
    pid: int, name: bytes, state: str, parent: int, start_ticks: int, exit_signal: int, rest: int
) -> None:
    line = stat_line(pid, name, state.encode(), parent, start_ticks, exit_signal, rest)
    assert parse_stat(line) == ProcessStat(pid, name, state, parent, start_ticks, leads=exit_signal >= 0)


@given(st.binary() | names)
@example(b"")
@example(b"1 (x) S 1")
@example(b"1) S " + b"1 " * 60)
@example(b"1 (x) SS " + b"1 " * 60)
@example(b"1 (x) S " + b"x " * 60)
@example(b"1 () \xff " + b"1 " * 60)
def test_what_is_no_stat(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the line itself is in it, or what int() says
        parse_stat(text)


def status_text(status: ProcessStatus, name: bytes, real: int) -> bytes:
    """As fs/proc/array.c writes it: in a name only newlines and backslashes are escaped."""
    shown = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    lines = [
        b"Name:\t" + shown, b"Umask:\t0022", b"State:\tS (sleeping)", b"Tgid:\t%d" % status.thread_group, b"Ngid:\t0",
        b"Pid:\t%d" % real, b"PPid:\t%d" % status.parent, b"TracerPid:\t%d" % real,
        b"Uid:\t%d\t%d\t%d\t%d" % (real, status.uid, real, real),
        b"Gid:\t%d\t%d\t%d\t%d" % (real, status.gid, real, real), b"Groups:\t0 ",
    ]  # fmt: skip
    if status.namespace_pids:
        lines.append(b"NSpid:\t" + b"\t".join(b"%d" % pid for pid in status.namespace_pids))
    return b"\n".join([*lines, b"Kthread:\t0", b"VmPeak:\t    3060 kB", b""])


@given(st.builds(ProcessStatus, ids, ids, ids, ids, st.lists(ids, max_size=32).map(tuple)), names, ids)
def test_a_status_of_any_name(status: ProcessStatus, name: bytes, real: int) -> None:
    assert parse_status(status_text(status, name, real)) == status


@pytest.mark.parametrize("lost", [b"Tgid", b"PPid", b"Uid", b"Gid"])
def test_a_status_that_lacks_something(lost: bytes) -> None:
    text = status_text(ProcessStatus(1, 2, 3, 4, (5,)), b"x", 6)
    with pytest.raises(ValueError, match=lost.decode()):
        parse_status(text.replace(lost, b"X"))
    with pytest.raises(ValueError):  # noqa: PT011  of which none says the same
        parse_status(text.replace(lost + b":\t", lost + b":\tx\tx\t"))


@given(st.binary() | names)
@example(b"Uid:\t1")
def test_what_is_no_status(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_status(text)


def words(kind: str, pairs: dict[int, int]) -> bytes:
    return b"".join(struct.pack(f"={kind}{kind}", *pair) for pair in pairs.items()) + bytes(struct.calcsize(kind) * 2)


@given(st.dictionaries(st.integers(1, 64), st.integers(0, (1 << 64) - 1)))
def test_a_vector(pairs: dict[int, int]) -> None:
    assert auxiliary(words("Q", pairs)) == pairs
    assert not is_narrow(words("Q", pairs))


@given(st.dictionaries(st.integers(1, 64), ids))
def test_a_vector_of_a_32_bit_program(pairs: dict[int, int]) -> None:
    pairs[AT_PAGESZ] = 4096
    assert auxiliary(words("I", pairs)) == pairs
    assert is_narrow(words("I", pairs))


@given(st.binary())
@example(b"x" * 13)
def test_any_vector_is_words_or_nonsense(vector: bytes) -> None:
    if len(vector) % 8:
        with pytest.raises(ValueError, match="bytes"):
            auxiliary(vector)
    else:
        assert len(auxiliary(vector)) <= len(vector) // 8


def test_our_own() -> None:
    own = Path("/proc/self")
    stat, status = parse_stat((own / "stat").read_bytes()), parse_status((own / "status").read_bytes())
    assert stat[:4] == (os.getpid(), (own / "comm").read_bytes()[:-1], "R", os.getppid())
    assert status[:4] == (os.getpid(), os.getppid(), os.geteuid(), os.getegid())
    assert status.namespace_pids[0] == os.getpid()
    vector = auxiliary((own / "auxv").read_bytes())
    assert vector[AT_PAGESZ] == os.sysconf("SC_PAGESIZE")
    assert vector[AT_RANDOM]


def test_the_group_in_the_foreground_or_its_own() -> None:
    line = b"7 (a name) S 1 70 70 34816 %d 0 " + b"0 " * 43
    assert foreground_group(line % 77) == 77
    assert foreground_group(line % -1) == 70, "without a terminal"
    with pytest.raises(ValueError, match="not a line"):
        foreground_group(b"7 (a name) S 1")
