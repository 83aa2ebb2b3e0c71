"""A classic BPF machine for tests: runs the bytes of a filter on the words a kernel would show it, and counts steps."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

SHOWN: Final = struct.Struct("=IIQ6Q")  # struct seccomp_data
_INSTRUCTION: Final = struct.Struct("=HBBI")


class Outcome(NamedTuple):
    """*loads*: the places that were looked at, in order."""

    action: int
    steps: int
    loads: list[int]


def shown(call: int, architecture: int, arguments: Sequence[int] = (0,) * 6) -> bytes:
    return SHOWN.pack(call, architecture, 0, *arguments)


def run(program: bytes, data: bytes) -> Outcome:
    """As net/core/filter.c does; ValueError for what its checker (bpf_check_classic) or seccomp's would refuse."""
    code = list(_INSTRUCTION.iter_unpack(program))
    accumulator, at, steps = 0, 0, 0
    loads: list[int] = []
    while True:
        if not at < len(code):
            raise ValueError("it runs past its end")
        operation, then, otherwise, operand = code[at]
        at, steps = at + 1, steps + 1
        match operation:
            case 0x20:
                if operand % 4 or operand >= SHOWN.size:
                    raise ValueError(f"no word at {operand}")
                accumulator = int(struct.unpack_from("=I", data, operand)[0])
                loads.append(operand)
            case 0x15 | 0x35 | 0x45:
                holds = {
                    0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)
                }[operation]  # fmt: skip
                at += then if holds else otherwise
            case 0x05:
                at += operand
            case 0x06:
                return Outcome(operand, steps, loads)
            case _:
                raise ValueError(f"no such instruction: {operation:#x}")
