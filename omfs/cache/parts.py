"""Leases are compared part by part: which part a lease is in, the same for the owner and for the holder.

Neither keeps anything between two parts, and what is granted or given back meanwhile moves nothing else.  Pure.
Called by mount/telling.py and export/dropping.py, for omfs-admin check.
"""

from __future__ import annotations

import zlib


def is_in_part(handle: bytes, part: int, parts: int) -> bool:
    """Whether the lease on this object is in *part* of *parts*, counted from 0."""
    return zlib.crc32(handle) % parts == part
