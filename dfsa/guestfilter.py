"""The filter that follows from the verdicts: a program of BPF that lets pass what is HERE and stops the rest.

What is stopped waits for the router, refused calls too: so they are counted by name, and CRIU can be let through while
it restores a guest below the filter.  Calls of another machine type (32-bit, x32) fail with ENOSYS at once: the
numbers mean other calls there.

The kernel asks the program beforehand which calls pass whatever their arguments are, and then doesn't run it for them
(seccomp_cache_prepare in kernel/seccomp.c, since Linux 5.11); it can do so as long as nothing but the number and the
machine decides.  So only calls with *flags* in their verdict load an argument.  For all others, and older kernels, the
numbers are in a tree of ranges: some seven comparisons.

At its end stands MARK, which nothing reaches: by it mignode knows the filter in the images of a dump, and leaves it out
(mignode/ownfilter.py), since the guest gets a new one wherever it goes on.

Pure.  Called by what starts or restores a guest.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Final, NamedTuple

from dfsa.verdict import UNKNOWN, Verdict, Where, judged, judged_at_home, named
from omfs.kernel.bpf import ARCHITECTURE, CALL, Action, Decision, Test, Tree, argument, assemble

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_... (include/uapi/linux/audit.h), by machine."""

PASS: Final = Action(0x7FFF0000)  # SECCOMP_RET_ALLOW
ASK: Final = Action(0x7FC00000)  # SECCOMP_RET_USER_NOTIF
_NO_SUCH_CALL: Final = Action(0x00050000 | errno.ENOSYS)  # SECCOMP_RET_ERRNO
_X32_FROM: Final = 0x40000000  # __X32_SYSCALL_BIT; no machine has numbers that high


MARK: Final = assemble(Action(0x6F6D6673))  # "omfs"


class _Range(NamedTuple):
    """From *first* on, to where the next one begins."""

    first: int
    tree: Tree


def filter_for(machine: str) -> bytes:
    """The program for guests on *machine* (platform.machine()).  KeyError: no guest may run there."""
    return program(machine, {number: judged(name) for number, name in named(machine).items()})


def filter_at_home(machine: str) -> bytes:
    """The same for guests at home, which are to see what they see elsewhere, and may do all that this node allows.

    Programs for another machine type get the kernel's own answers.
    """
    verdicts = {number: judged_at_home(name) for number, name in named(machine).items()}
    asked = {number: verdict for number, verdict in verdicts.items() if verdict.where is Where.HOME}
    return program(machine, asked, Verdict(Where.HERE, "it is at home"), PASS)


def program(
    machine: str, verdicts: Mapping[int, Verdict], unknown: Verdict = UNKNOWN, foreign: Action = _NO_SUCH_CALL
) -> bytes:
    """The same for other *verdicts*, by number; *foreign*: for calls of another machine type."""
    numbers = _search(list(_ranges(verdicts, unknown)))
    ours = Decision(CALL, Test.AT_LEAST, _X32_FROM, foreign, numbers)
    return assemble(Decision(ARCHITECTURE, Test.EQUAL, ARCHITECTURES[machine], ours, foreign)) + MARK


def _tree(verdict: Verdict) -> Tree:
    if verdict.where is not Where.HERE:
        return ASK
    if not verdict.flags:
        return PASS
    return Decision(argument(0), Test.ANY_BIT, verdict.flags, ASK, PASS)


def _ranges(verdicts: Mapping[int, Verdict], unknown: Verdict) -> Iterator[_Range]:
    """What becomes of the numbers from 0 on, neighbours joined; those without a verdict are unknown."""
    end = max(verdicts, default=-1) + 2  # one more, so that what lies above is the last range
    trees = (_Range(number, _tree(verdicts.get(number, unknown))) for number in range(end))
    for _, same in groupby(trees, key=lambda one: one.tree):
        yield next(same)


def _search(ranges: list[_Range]) -> Tree:
    if len(ranges) == 1:
        return ranges[0].tree
    middle = len(ranges) // 2
    return Decision(
        CALL, Test.AT_LEAST, ranges[middle].first, _search(ranges[middle:]), _search(ranges[:middle])
    )  # fmt: skip
