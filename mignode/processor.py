"""What programs may find out about a node's processor, and whether another one has all of it.

A program asks what the processor can do (the C library when it starts, others when they are loaded or first need it)
and goes by that for ever: on a processor that lacks one of these instructions it would end with SIGILL.  When it has
asked, nobody can tell.  So a guest may only go where all is that its node has; as that was so each time when it moved
before, this covers every node on which it has been.  What comes from a better processor therefore can't go back to
where it began: `processor_check = false` in omfs.toml there lets it come, at its own risk.

Linux's own list is taken (/proc/cpuinfo), not CRIU's image of the processor: it has names to say, leaves out what the
kernel has switched off, is there for every machine, and costs no start of CRIU while somebody waits.  An old kernel
does not name what it does not know: then a guest stays without need.  What a signal puts on a program's stack
(AT_MINSIGSTKSZ) must fit as well: where it doesn't, Linux restores half of the registers behind a handler.

Pure but for `read_processor`.  Called by migrate (what is here) and receive (the same, and what was there).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Annotated, Final

import msgspec

from omfs.errors import WireError
from omfs.kernel.procfs import auxiliary

CPUINFO: Final = "/proc/cpuinfo"
AUXV: Final = "/proc/self/auxv"
_NAMED_MAX: Final = 8
_LISTS: Final = ("flags", "Features")  # x86, ARM
_MINSIGSTKSZ: Final = 51  # include/uapi/linux/auxvec.h
_X86: Final = "x86_64"
_X86_FAMILIES: Final = ("3dnow", "amx", "apx", "avx", "bmi", "fma", "mmx", "movdir", "sha", "sm3", "sm4", "sse", "ssse")
"""Beginnings of names: what is new in a family counts without being listed."""
_X86_OTHERS: Final = {
    "abm", "adx", "aes", "clflush", "clflushopt", "cldemote", "clwb", "clzero", "cmov", "cmpccxadd", "cx16", "cx8",
    "enqcmd", "f16c", "fpu", "fsgsbase", "fxsr", "gfni", "hle", "lahf_lm", "lm", "lwp", "misalignsse", "movbe",
    "mwaitx", "ospke", "pclmulqdq", "pku", "pni", "popcnt", "ptwrite", "raoint", "rdpid", "rdpru", "rdrand", "rdseed",
    "rdtscp", "rtm", "serialize", "syscall", "tbm", "tsc", "tsxldtrk", "uintr", "user_shstk", "vaes", "vpclmulqdq",
    "waitpkg", "xgetbv1", "xop", "xsave", "xsavec", "xsaveopt",
}  # fmt: skip
"""Of arch/x86/include/asm/cpufeatures.h, what a program may execute; the rest is the kernel's, or only about speed."""


class Processor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """*instructions*: sets of them, as Linux calls them.  *signal_frame_bytes*: 0 where the kernel does not say."""

    machine: Annotated[str, msgspec.Meta(max_length=32)]
    instructions: frozenset[Annotated[str, msgspec.Meta(max_length=32)]]
    signal_frame_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)] = 0


_decoder: Final = msgspec.msgpack.Decoder(Processor)


@lru_cache(maxsize=1)
def read_processor() -> Processor:
    """This node's.  Raises OSError."""
    with open(CPUINFO) as cpuinfo, open(AUXV, "rb") as auxv:
        return processor_of(platform.machine(), cpuinfo, auxv.read())


def processor_of(machine: str, cpuinfo: Iterable[str], auxv: bytes) -> Processor:
    """From Linux's texts; of the first processor, Linux allows for no other ones beside it."""
    names: list[str] = []
    for line in cpuinfo:
        title, _, value = line.partition(":")
        if title.strip() in _LISTS:
            names = value.split()
            break
    found = frozenset(name for name in names if machine != _X86 or _is_for_programs(name))
    return Processor(machine, found, auxiliary(auxv).get(_MINSIGSTKSZ, 0))


def _is_for_programs(name: str) -> bool:
    return name in _X86_OTHERS or name.startswith(_X86_FAMILIES)


def without(processor: Processor, names: frozenset[str]) -> Processor:
    """As if it lacked these."""
    return msgspec.structs.replace(processor, instructions=processor.instructions - names)


def pack(processor: Processor) -> bytes:
    return msgspec.msgpack.encode(processor)


def unpack(packed: bytes) -> Processor:
    """Raises WireError."""
    try:
        return _decoder.decode(packed)
    except msgspec.MsgspecError as error:
        raise WireError(f"what is said of a processor: {error}") from None


def what_is_missing(there: Processor, here: Processor) -> str:
    """Why a program that has run *there* can't run *here*, in words; "" where it can."""
    return "; ".join(_missing(there, here))


def _missing(there: Processor, here: Processor) -> Iterator[str]:
    if there.machine != here.machine:
        yield f"its processor is {here.machine}, the program's {there.machine}"
    elif lacking := sorted(there.instructions - here.instructions):
        more = f" and {len(lacking) - _NAMED_MAX} more" if len(lacking) > _NAMED_MAX else ""
        yield f"its processor lacks {', '.join(lacking[:_NAMED_MAX])}{more}, which programs may use"
    elif there.signal_frame_bytes > here.signal_frame_bytes:
        yield (
            f"its processor has fewer registers to save: {here.signal_frame_bytes} bytes for a signal, "
            f"{there.signal_frame_bytes} where the program runs"
        )
