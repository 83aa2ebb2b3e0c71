"""What one processor has and another lacks, as programs see it."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest

from mignode.faultpoints import FAULT, FaultPoints
from mignode.processor import Processor, pack, processor_of, read_processor, unpack, what_is_missing, without
from omfs.errors import WireError

X86 = """\
processor\t: 0
flags\t\t: fpu vme sse2 avx2 avx512f avx512_new hypervisor smep xsaves constant_tsc sha_ni
bugs\t\t: spectre_v1

processor\t: 1
flags\t\t: fpu
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\n"
FRAMES = struct.pack("@LLLLLL", 6, 4096, 51, 3376, 0, 0)


def of_x86(*names: str, frame: int = 3376) -> Processor:
    return Processor("x86_64", frozenset(names), frame)


def test_what_linux_says() -> None:
    assert processor_of("x86_64", X86.splitlines(True), FRAMES) == of_x86(
        "fpu", "sse2", "avx2", "avx512f", "avx512_new", "sha_ni"
    )
    assert processor_of("aarch64", ARM.splitlines(True), b"") == Processor(
        "aarch64", frozenset({"fp", "asimd", "sve"}), 0
    )
    assert processor_of("riscv64", ["isa : rv64\n"], FRAMES) == Processor("riscv64", frozenset(), 3376)


def test_this_one_is_read() -> None:
    here = read_processor()
    assert here.machine == platform.machine()
    assert what_is_missing(here, here) == ""
    assert unpack(pack(here)) == here
    if here.machine in ("x86_64", "aarch64"):
        assert {"sse2", "fp"} & here.instructions
        assert 1000 < here.signal_frame_bytes < 100_000


@pytest.mark.parametrize(
    ("there", "here", "missing"),
    [
        (of_x86("sse2"), of_x86("sse2", "avx2"), ""),
        (of_x86("sse2"), of_x86("sse2", frame=9000), ""),
        (
            of_x86("sse2", "avx512f", "avx2"),
            of_x86("sse2"),
            "its processor lacks avx2, avx512f, which programs may use",
        ),
        (
            of_x86(*(f"avx{n}" for n in range(1, 12))),
            of_x86(),
            "its processor lacks avx1, avx10, avx11, avx2, avx3, avx4, avx5, avx6 and 3 more, which programs may use",
        ),
        (
            of_x86("sse2"),
            of_x86("sse2", frame=2000),
            "its processor has fewer registers to save: 2000 bytes for a signal, 3376 where the program runs",
        ),
        (of_x86(), Processor("aarch64", frozenset()), "its processor is aarch64, the program's x86_64"),
    ],
)
def test_what_is_missing(there: Processor, here: Processor, missing: str) -> None:
    assert what_is_missing(there, here) == missing


def test_what_is_none() -> None:
    for data in (b"", b"\xc1", pack(of_x86("x" * 33)), pack(of_x86(frame=-1))):
        with pytest.raises(WireError, match="what is said of a processor"):
            unpack(data)


def test_a_lack_that_a_test_plants(tmp_path: Path) -> None:
    points, file = FaultPoints(tmp_path), tmp_path / FAULT
    assert points.lacking() == frozenset()
    file.write_text("lacks avx2 sse2\n")
    points.at("lacks")
    assert without(of_x86("sse2", "avx2", "fpu"), points.lacking()) == of_x86("fpu")
    file.write_text("dumped stop\n")
    assert points.lacking() == frozenset()
