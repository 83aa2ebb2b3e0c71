"""A /mfs/proc of plain files for the tests of openMosix's tools: node 2 of a cluster of four."""

from __future__ import annotations

from pathlib import Path

MAP = "1 127.0.0.1 2\n7 192.0.2.7 1\n7 192.0.2.70 0\n2780 192.168.10.220 1\n"


def make_hpc(mfs: Path) -> Path:
    """hpc/ below *mfs*."""
    hpc = mfs / "proc" / "hpc"
    (hpc / "admin").mkdir(parents=True)
    for name, text in (("mospe", "2\n"), ("config", MAP), ("gateways", "0\n")):
        (hpc / "admin" / name).write_text(text)
    return hpc
