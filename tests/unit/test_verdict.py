"""The table of verdicts and the filter that follows from it, call by call."""

from __future__ import annotations

import errno
import platform
import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from dfsa.callnumbers import NUMBERS
from dfsa.guestfilter import ARCHITECTURES, ASK, PASS, filter_at_home, filter_for, program
from dfsa.verdict import LASTING, ROWS, UNKNOWN, VALUES_ONLY, VERDICTS, Verdict, Where, judged, judged_at_home, named
from tests.unit import bpfmachine

MACHINES = sorted(NUMBERS)
FILTERS = {machine: filter_for(machine) for machine in MACHINES}
ENOSYS = 0x00050000 | errno.ENOSYS
WORDS = st.integers(0, 2**32 - 1)
ARGUMENTS = st.tuples(*[st.integers(0, 2**64 - 1)] * 6)

# In the kernel's list of functions a call has the name of the function, which is not always that of the table.
FUNCTION_NAMES = {
    "newstat": "stat", "newfstat": "fstat", "newlstat": "lstat", "newuname": "uname", "sendfile64": "sendfile",
    "umount": "umount2",
}  # fmt: skip
# Functions that are in the tables of 32-bit programs (arch/x86/entry/syscalls/syscall_32.tbl) and other machines only.
ELSEWHERE = re.compile(
    r"\w+(16|32|_time32)|ia32_\w+|old\w+|old_\w+|s390_\w+|pciconfig_\w+|spu_\w+|rtas|ni_syscall|gethostname|ipc|llseek"
    r"|mmap_pgoff|nice|recv|send|sgetmask|ssetmask|signal|sigpending|sigprocmask|sigsuspend|socketcall|stime"
    r"|statfs64|fstatfs64|fadvise64_64|subpage_prot|sync_file_range2|vm86|vm86old|waitpid"
)


def wanted(verdict: Verdict, first: int) -> int:
    passes = verdict.where is Where.HERE and not first & verdict.flags
    return PASS.value if passes else ASK.value


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_gets_what_the_table_says(machine: str) -> None:
    for number, name in named(machine).items():
        for first in (0, 0x11, 0x00020000, 0x10000000, 0x7E020080, 1 << 40):
            data = bpfmachine.shown(number, ARCHITECTURES[machine], (first, 0, 0, 0, 0, 0))
            assert bpfmachine.run(FILTERS[machine], data).action == wanted(judged(name), first), name


@pytest.mark.parametrize("machine", MACHINES)
@given(number=WORDS | st.integers(0, 600), arguments=ARGUMENTS)
def test_any_number_gets_what_the_table_says(machine: str, number: int, arguments: tuple[int, ...]) -> None:
    outcome = bpfmachine.run(FILTERS[machine], bpfmachine.shown(number, ARCHITECTURES[machine], arguments))
    if number >= 0x40000000:
        assert outcome.action == ENOSYS
    else:
        name = named(machine).get(number)
        assert outcome.action == wanted(judged(name) if name else UNKNOWN, arguments[0])


@pytest.mark.parametrize("machine", MACHINES)
@given(number=WORDS | st.integers(0, 600), architecture=WORDS | st.sampled_from([0x40000003, *ARCHITECTURES.values()]))
def test_calls_of_another_machine_type_are_refused(machine: str, number: int, architecture: int) -> None:
    outcome = bpfmachine.run(FILTERS[machine], bpfmachine.shown(number, architecture))
    if architecture != ARCHITECTURES[machine]:
        assert outcome.action == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@given(number=WORDS | st.integers(0, 600), architecture=WORDS | st.sampled_from([0x40000003, *ARCHITECTURES.values()]))
def test_at_home_only_what_home_answers_or_lasts_is_stopped(machine: str, number: int, architecture: int) -> None:
    outcome = bpfmachine.run(filter_at_home(machine), bpfmachine.shown(number, architecture))
    name = named(machine).get(number, "") if architecture == ARCHITECTURES[machine] else ""
    assert outcome.action == (ASK if judged(name).where is Where.HOME or name in LASTING else PASS).value
    assert len(outcome.loads) <= 2  # so the kernel knows beforehand what passes


@given(st.dictionaries(st.integers(0, 700), st.sampled_from([*VERDICTS.values(), UNKNOWN]), max_size=80), WORDS)
def test_the_filter_follows_any_table(verdicts: dict[int, Verdict], first: int) -> None:
    whole = program("x86_64", verdicts)
    for number in range(702):
        data = bpfmachine.shown(number, ARCHITECTURES["x86_64"], (first, 0, 0, 0, 0, 0))
        assert bpfmachine.run(whole, data).action == wanted(verdicts.get(number, UNKNOWN), first)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_kernel_can_tell_beforehand_what_passes(machine: str) -> None:
    """As seccomp_is_const_allow: only the number and the machine may be looked at, or the filter runs at each call."""
    for number, name in named(machine).items():
        outcome = bpfmachine.run(FILTERS[machine], bpfmachine.shown(number, ARCHITECTURES[machine]))
        looks = len(outcome.loads) > 2
        assert looks == bool(judged(name).flags), name
        assert outcome.steps <= 14, name  # without that bitmap, too, a call costs some comparisons only


def test_every_call_of_every_machine_has_one_row_and_no_row_is_for_nothing() -> None:
    assert set().union(*NUMBERS.values()) == VERDICTS.keys()
    assert len(ROWS) == len(VERDICTS)


def test_every_verdict_is_whole() -> None:
    for name, verdict in VERDICTS.items():
        assert verdict.reason, name
        refuses = verdict.where is Where.REFUSED or bool(verdict.flags)
        assert bool(verdict.errno) == refuses, name
        assert not verdict.flags or verdict.where is Where.HERE, name
    assert UNKNOWN.errno == errno.ENOSYS


def test_what_lasts_is_refused_away_and_done_at_home() -> None:
    assert {judged(name).where for name in LASTING} == {Where.REFUSED}
    assert {judged_at_home(name).where for name in LASTING} == {Where.HOME}
    assert all(judged_at_home(name) == judged(name) for name in VERDICTS.keys() - LASTING)


def test_calls_that_home_answers_take_nothing_but_values() -> None:
    assert {name for name, verdict in VERDICTS.items() if verdict.where is Where.HOME} == VALUES_ONLY


@pytest.mark.parametrize(
    ("names", "where"),
    [
        ("open openat read write stat statx fork execve wait4 mmap futex socket uname sysinfo getrandom", Where.HERE),
        (
            "clock_gettime sched_setaffinity tgkill ptrace clone clone3 unshare shmget setpgid setsid getpgrp",
            Where.HERE,
        ),
        ("kill getppid getpgid getsid", Where.HOME),
        ("settimeofday clock_settime reboot mount umount2 finit_module swapon bpf perf_event_open", Where.REFUSED),
        ("io_uring_setup userfaultfd keyctl quotactl open_by_handle_at setns pivot_root", Where.REFUSED),
    ],
)
def test_some_verdicts_by_hand(names: str, where: Where) -> None:
    assert {judged(name).where for name in names.split()} == {where}


def test_a_call_of_a_later_kernel_is_refused() -> None:
    assert judged("a_call_of_linux_9") == UNKNOWN


def test_the_running_kernel_knows_no_call_without_a_row() -> None:
    """The functions behind calls are named for the machine in /proc/kallsyms."""
    prefix = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}[platform.machine()]
    functions = set(re.findall(rf" [tT] {prefix}(\w+)$", Path("/proc/kallsyms").read_text(), re.MULTILINE))
    names = {FUNCTION_NAMES.get(name, name) for name in functions if not ELSEWHERE.fullmatch(name)}
    assert names - VERDICTS.keys() == set()


def test_numbers_are_those_of_the_headers() -> None:
    """Where the kernel's headers are installed: what they define (an older kernel's, perhaps) is numbered the same."""
    found = {}
    for header in Path("/usr/include").glob(f"{platform.machine()}-linux-gnu/asm/unistd_64.h"):
        found = {
            name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", header.read_text(), re.M)
        }
    numbers = NUMBERS[platform.machine()]
    assert {name: number for name, number in found.items() if numbers.get(name) != number} == {}


def test_the_document_tells_every_call_that_is_not_here() -> None:
    document = (Path(__file__).parent.parent.parent / "docs/dfsa.md").read_text()
    for name, verdict in VERDICTS.items():
        if verdict.where is Where.HOME:
            assert f"`{name}`" in document
        elif verdict.where is Where.REFUSED:
            told = f"| {errno.errorcode[verdict.errno]} | {verdict.reason} |"
            assert any(f"`{name}`" in line and told in line for line in document.splitlines()), name
