"""What one node says of itself, as the others know it: the record that gossip spreads and that decisions read.

Data only.  Units are openMosix's (openmosix-interfaces.md "Control files"): a load of 100 is one standard CPU fully
busy, of all the node's processors together (it is not divided by `cpus`); a speed of 10000 is a Pentium III of 1 GHz.
Between nodes the standard is STANDARD_SPEED, whatever yardstick (admin/sspeed) each shows loads by: `shown_load`.
Records of one node are ordered by (incarnation, seq); no clocks are compared, only the age goes along.  A quiet node
says that it is there and what it is, but not how busy: look at `tells_load` before load, memory and util.
Made by gossip.py and load.py, read by hpcfiles.py and the policy.
"""

from __future__ import annotations

from typing import Final

import msgspec

CONFIGURED: Final = 1  # bits of `status`, as nodes/<n>/status has them
UP: Final = 2
STAY: Final = 4  # nobody leaves by balancing
LSTAY: Final = 8  # its own processes stay at home
BLOCK: Final = 0x10  # no guests may come
QUIET: Final = 0x20
NOMFS: Final = 0x40
SWITCHES: Final = {"stay": STAY, "lstay": LSTAY, "block": BLOCK, "quiet": QUIET, "nomfs": NOMFS}
"""What the administrator sets, as `mosctl` calls it."""
STANDARD_SPEED: Final = 15000  # admin/sspeed, where nobody has set another


class NodeInfo(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """*incarnation*: of its mignode, it rises with each start; *seq*: with each period.  *age_s*: since it was true.

    *frozen*: what the load would be more if nobody stood still to be moved or saved.
    *mem_free*: bytes that programs could get; *mem_raw_free*: bytes used for nothing at all; *util*: percent.
    """

    node: int
    incarnation: int
    seq: int
    age_s: float = 0.0
    load: int = 0
    frozen: int = 0
    speed: int = 10000
    cpus: int = 1
    mem_free: int = 0
    mem_raw_free: int = 0
    mem_total: int = 0
    util: int = 100
    status: int = CONFIGURED | UP
    version: str = ""

    @property
    def is_up(self) -> bool:
        return bool(self.status & UP)

    @property
    def tells_load(self) -> bool:
        """Whether load, frozen, memory and util are said; they are 0 otherwise."""
        return self.is_up and not self.status & QUIET


def shown_load(load: int, sspeed: int) -> int:
    """A load, as it is shown where the standard CPU has this speed."""
    return round(load * sspeed / STANDARD_SPEED)


def running(info: NodeInfo) -> float:
    """How many threads there run or want to."""
    return info.load / 100 * info.speed / STANDARD_SPEED
