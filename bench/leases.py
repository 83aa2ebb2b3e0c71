"""What leases cost an owner: `python -m bench.leases`, 100,000 of them by default; needs neither root nor a lab.

Measured: the machine (cache/owner.py) and the table (cache/table.py) by themselves, each in a fresh process.  A grant
in the table is one transaction, as when every reply grants one thing; `in 16s` is a listing.  The recall is the
machine's part alone: no network, no holder.  Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from omfs.cache.owner import Change, Need, Owner
from omfs.cache.rules import Use
from omfs.cache.table import LeaseTable, read_boot_id
from omfs.wiretypes import Mode

HANDLE_HEAD: Final = bytes(18)  # as sealed handles of one ext4: this, inode and generation, and a seal of 16 bytes
SESSIONS: Final = 20
LISTING: Final = 16
RECALLS: Final = 200  # rounds of the recall, the median counts

Figures = dict[str, float]


def rss_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def each_us(work: Callable[[], object], count: int) -> float:
    begun_s = time.perf_counter()
    work()
    return (time.perf_counter() - begun_s) * 1e6 / count


def made(count: int) -> tuple[list[bytes], list[bytes]]:
    """Handles and the session of each."""
    keys = [os.urandom(16) for _ in range(SESSIONS)]
    return [handle_of(inode) for inode in range(count)], [random.choice(keys) for _ in range(count)]


def handle_of(inode: int) -> bytes:
    return HANDLE_HEAD + inode.to_bytes(4, "little") + os.urandom(20)


def measure_owner(count: int) -> Figures:
    """The pure machine, one lease after the other."""
    handles, sessions = made(count)
    owner = Owner()
    before = rss_bytes()

    def grant() -> None:
        for handle, session in zip(handles, sessions, strict=True):
            owner.grant(session, (handle,), 1.0)
        owner.changes.clear()

    def look() -> None:
        for handle, session in zip(handles, reversed(sessions), strict=True):
            owner.is_free(session, (Need(handle, Use.LOOK),))

    def release() -> None:
        for handle, session in zip(handles, sessions, strict=True):
            owner.give_back(session, handle, count + 1)
        owner.changes.clear()

    grant_us = each_us(grant, count)
    per_lease = (rss_bytes() - before) / count
    return {
        "machine: grant, us": grant_us,
        "machine: is a look free, us": each_us(look, count),
        "machine: memory per lease, bytes": per_lease,
        "machine: release, us": each_us(release, count),
    }


def measure_recall(holders: int) -> Figures:
    """One object that many hold is changed: recalls made, answers taken, ready."""
    owner, handle, me = Owner(), handle_of(1), os.urandom(16)
    sessions = [os.urandom(16) for _ in range(holders)]
    rounds_us = []
    for number in range(RECALLS):
        for session in sessions:
            owner.grant(session, (handle,), float(number))
        begun_s = time.perf_counter()
        ticket, recalls = owner.begin(me, (Need(handle, Use.CHANGE),), float(number))
        for recall in recalls:
            owner.returned(recall.session, recall.serial)
        assert ticket in owner.ready()
        owner.end(ticket)
        rounds_us.append((time.perf_counter() - begun_s) * 1e6)
        assert len(recalls) == holders
        owner.changes.clear()
    return {f"machine: recall at {holders} holders, us": sorted(rounds_us)[len(rounds_us) // 2]}


def measure_table(count: int, directory: str) -> Figures:
    """The LMDB table by itself."""
    path = Path(directory, "leases")
    handles, sessions = made(count)
    before = rss_bytes()
    leases = LeaseTable.open(path, read_boot_id())
    for key in set(sessions):
        leases.note_session(key, 1, "omfs", time.time_ns())
    changes = [Change(key, handle, Mode.SHARED, 1) for handle, key in zip(handles, sessions, strict=True)]
    gone = [change._replace(mode=Mode.NONE) for change in changes]

    def note_each(noted: list[Change]) -> None:
        for change in noted:
            leases.note((change,))

    def note_listings(noted: list[Change]) -> None:
        for start in range(0, count, LISTING):
            leases.note(noted[start : start + LISTING])

    def reopen() -> LeaseTable:
        leases.close()
        return LeaseTable.open(path, read_boot_id())

    def sweep_all() -> None:
        for key in set(sessions):
            leases.forget_session(key)
        while leases.sweep():
            pass

    figures = {"table: grant, us": each_us(lambda: note_each(changes), count)}
    figures["table: memory per lease, bytes"] = (rss_bytes() - before) / count
    figures["table: file per lease, bytes"] = (path / "data.mdb").stat().st_size / count
    begun_s = time.perf_counter()
    leases = reopen()
    figures["table: restart, ms"] = (time.perf_counter() - begun_s) * 1e3
    begun_s = time.perf_counter()
    assert sum(1 for _ in leases.leases()) == count
    figures["table: read all, ms"] = (time.perf_counter() - begun_s) * 1e3
    figures["table: release, us"] = each_us(lambda: note_each(gone), count)
    figures[f"table: grant in {LISTING}s, us"] = each_us(lambda: note_listings(changes), count)
    figures["table: forgotten and swept, us"] = each_us(sweep_all, count)
    leases.close()
    return figures


def measure(count: int, holders: int, directory: str) -> Figures:
    """Each in a process of its own, for the sake of its memory."""
    figures: Figures = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for future in (
            pool.submit(measure_owner, count),
            pool.submit(measure_recall, holders),
            pool.submit(measure_table, count, directory),
        ):
            figures |= future.result()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.leases", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--leases", type=int, default=100_000, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--holders", type=int, default=200, metavar="N", help="of the recalled object (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.leases < 1 or arguments.holders < 1:
        parser.error("give a number of 1 or more")
    directory = tempfile.mkdtemp(prefix="omfs-bench-")
    try:
        figures = measure(arguments.leases, arguments.holders, directory)
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        print(json.dumps({"leases": arguments.leases, "figures": figures}, indent=2))
        return 0
    table = Table("WHAT", title=f"{arguments.leases} leases of {SESSIONS} sessions")
    table.add_column("FIGURE", justify="right")
    table.add_column("UNIT")
    for name, figure in figures.items():
        what, _, unit = name.rpartition(", ")
        table.add_row(what, f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}", unit)
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
