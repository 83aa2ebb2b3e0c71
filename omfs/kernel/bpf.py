"""Classic BPF as a tree of decisions, and its assembly into the instructions that seccomp(2) takes.

A `Tree` is an action, or a `Decision` on one 32-bit word of what the kernel shows a filter (struct seccomp_data).
`assemble` writes it in the order if, then, else: every jump goes forward, as the kernel demands, and none is to be
computed by hand.  A word is loaded again only where the last one loaded was another.

What it does not do: know system calls, or call the kernel (kernel/seccomp.py).  Pure.  Called by dfsa/guestfilter.py.
Sources: include/uapi/linux/bpf_common.h, filter.h and seccomp.h.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, TypeAlias

CALL: Final = 0  # where in struct seccomp_data the words are, in bytes
ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16  # six of 64 bits, little-endian on the machines we have tables for
ARGUMENTS_MAX: Final = 6

INSTRUCTIONS_MAX: Final = 4096  # BPF_MAXINSNS

_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_SKIP_MAX: Final = 255  # instructions that a conditional jump can pass over
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, then, else, operand


class Test(enum.IntEnum):
    """How a word is compared with the operand, both unsigned: BPF_JMP | ... | BPF_K."""

    EQUAL = 0x15
    AT_LEAST = 0x35
    ANY_BIT = 0x45

    __test__ = False  # pytest takes the name for a class of tests


class Action(NamedTuple):
    """What the kernel is to do with the call: SECCOMP_RET_... and its 16 bits of data."""

    value: int


class Decision(NamedTuple):
    """On the word at *place*."""

    place: int
    test: Test
    operand: int
    then: Tree
    otherwise: Tree


Tree: TypeAlias = Action | Decision
_Instruction: TypeAlias = tuple[int, int, int, int]


def argument(index: int, *, high: bool = False) -> int:
    """The place of the lower, or *high*er, half of a call's argument 0 to 5."""
    if not 0 <= index < ARGUMENTS_MAX:
        raise ValueError(f"a system call has no argument {index}")
    return _ARGUMENTS + 8 * index + 4 * high


def assemble(tree: Tree) -> bytes:
    """The program, as struct sock_filter[].  ValueError: too long for the kernel, or an operand above 32 bits."""
    instructions = _instructions(tree, None)
    if len(instructions) > INSTRUCTIONS_MAX:
        raise ValueError(f"a filter of {len(instructions)} instructions; the kernel takes {INSTRUCTIONS_MAX}")
    try:
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)
    except struct.error as error:
        raise ValueError(f"an operand that is no word: {error}") from None


def _instructions(tree: Tree, loaded: int | None) -> list[_Instruction]:
    if isinstance(tree, Action):
        return [(_RETURN, 0, 0, tree.value)]
    then = _instructions(tree.then, tree.place)
    otherwise = _instructions(tree.otherwise, tree.place)
    load = [(_LOAD_WORD, 0, 0, tree.place)] if loaded != tree.place else []
    if len(then) <= _SKIP_MAX:
        return [*load, (tree.test, 0, len(then), tree.operand), *then, *otherwise]
    return [*load, (tree.test, 1, 0, tree.operand), (_JUMP, 0, 0, len(then)), *then, *otherwise]
