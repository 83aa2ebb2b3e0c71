"""What is measured: one program that runs inside a node, with the standard library only.

`prepare DIR` is run where the files are stored, natively, so that the file system under test has never seen them;
`measure DIR` is run through it and prints one JSON object: workload -> microseconds a call, or MB/s.  Nothing is
timed but the calls named; removing what was made comes after.  Called by bench/run.py through `omfs-lab exec`.

"Uncached" means: this mount touches this name for the first time.  The serving kernel has the files in its page
cache, so what is compared is what the file systems cost, not the disk.  Names are those of the working directory, so a
call is about one name; only stat_path walks down from the mount.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable

BLOCK = 4096
CHUNK = 1 << 20
REST_S = 3.0  # the files have not just been written; oMFS does not keep data within two seconds of a change

# name -> (what it is, unit); the order of the table
WORKLOADS = {
    "stat_uncached": ("stat, uncached", "us"),
    "stat_warm": ("stat, warm", "us"),
    "stat_path": ("stat, warm, of a long path", "us"),
    "stat_missing": ("stat of a missing name, warm", "us"),
    "open_read_close": ("open-read-close, uncached", "us"),
    "open_read_close_warm": ("open-read-close, warm", "us"),
    "create_4k": ("create + 4 KiB", "us"),
    "rename": ("rename, just created", "us"),
    "unlink": ("unlink, just created", "us"),
    "unlink_uncached": ("unlink, uncached", "us"),
    "list_long": ("ls -l, per entry", "us"),
    "list_warm": ("readdir + stat, warm, per entry", "us"),
    "read_sequential": ("sequential read", "MB/s"),
    "read_again": ("sequential re-read", "MB/s"),
    "write_sequential": ("sequential write", "MB/s"),
    "write_small": ("sequential write of 4 KiB each", "MB/s"),
    "read_random": ("random read of 4 KiB", "us"),
}


def prepare(directory: str, files: int, big_mib: int) -> None:
    """Make what `measure` uses: sets of small files that nothing has touched since, and a big one."""
    for part in ("stat", "open", "gone", "list", "fresh"):
        os.makedirs(f"{directory}/{part}")
        for number in range(0 if part == "fresh" else files):
            write_file(f"{directory}/{part}/{number:06}", os.O_EXCL, BLOCK)
    write_file(f"{directory}/big", os.O_EXCL, big_mib << 20)
    os.sync()
    time.sleep(REST_S)


def write_file(path: str, flags: int, size_bytes: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    block = os.urandom(min(size_bytes, CHUNK))
    for _ in range(size_bytes // len(block)):
        os.write(fd, block)
    os.close(fd)


def each(call: Callable[[str], object], paths: Iterable[str], count: int) -> float:
    """Microseconds a call."""
    start = time.perf_counter_ns()
    for path in paths:
        call(path)
    return (time.perf_counter_ns() - start) / count / 1000


def open_read_close(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    if len(os.read(fd, BLOCK)) != BLOCK:
        raise OSError(f"{path}: short read")
    os.close(fd)


def create_4k(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, bytes(BLOCK))
    os.close(fd)


def list_long(files: int) -> float:
    """Microseconds an entry of the real `ls -l` in the working directory, its start included."""
    start = time.perf_counter_ns()
    listed = subprocess.run(["ls", "-l"], capture_output=True, check=True, env={"LC_ALL": "C"})
    elapsed_ns = time.perf_counter_ns() - start
    if listed.stdout.count(b"\n") != files + 1:
        raise OSError(f"{os.getcwd()}: ls does not list {files} entries")
    return elapsed_ns / files / 1000


def list_in_process(files: int) -> float:
    """Microseconds an entry of reading the working directory and a stat of each name, as find or git status do."""
    start = time.perf_counter_ns()
    with os.scandir(".") as entries:
        listed = sum(1 for entry in entries if os.lstat(entry.name))
    elapsed_ns = time.perf_counter_ns() - start
    if listed != files:
        raise OSError(f"{os.getcwd()}: {listed} entries instead of {files}")
    return elapsed_ns / files / 1000


def exists_not(path: str) -> None:
    if os.path.exists(path):
        raise OSError(f"{path}: it exists")


def read_sequential(path: str, big_mib: int) -> float:
    """MB/s (10**6 bytes) with 1 MiB reads."""
    buffer = bytearray(CHUNK)
    total = 0
    start = time.perf_counter_ns()
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    elapsed_ns = time.perf_counter_ns() - start
    if total != big_mib << 20:
        raise OSError(f"{path}: {total} bytes read")
    return total * 1000 / elapsed_ns


def write_sequential(path: str, size_mib: int, block_bytes: int) -> float:
    """MB/s with writes of *block_bytes*, until close has returned (as cp does: no fsync)."""
    block = os.urandom(block_bytes)
    start = time.perf_counter_ns()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for _ in range((size_mib << 20) // block_bytes):
        if os.write(fd, block) != block_bytes:
            raise OSError(f"{path}: short write")
    os.close(fd)
    return (size_mib << 20) * 1000 / (time.perf_counter_ns() - start)


def read_random(path: str, big_mib: int, count: int) -> float:
    """Microseconds a pread of 4 KiB; no offset twice."""
    offsets = random.sample(range((big_mib << 20) // BLOCK), count)
    fd = os.open(path, os.O_RDONLY)
    start = time.perf_counter_ns()
    for offset in offsets:
        os.pread(fd, BLOCK, offset * BLOCK)
    elapsed_ns = time.perf_counter_ns() - start
    os.close(fd)
    return elapsed_ns / count / 1000


def measure(directory: str, files: int, big_mib: int) -> dict[str, float]:
    """Every workload once, in the order of WORKLOADS."""
    gc.disable()
    names = [f"{number:06}" for number in range(files)]
    renamed = [f"{name}.renamed" for name in names]
    targets = iter(renamed)
    figures = {}
    os.chdir(f"{directory}/stat")
    figures["stat_uncached"] = each(os.stat, names, files)
    figures["stat_warm"] = each(os.stat, names, files)
    figures["stat_path"] = each(os.stat, [f"{directory}/stat/{name}" for name in names], files)
    missing = [f"{name}.missing" for name in names]
    each(exists_not, missing, files)
    figures["stat_missing"] = each(exists_not, missing, files)
    os.chdir(f"{directory}/open")
    figures["open_read_close"] = each(open_read_close, names, files)
    figures["open_read_close_warm"] = each(open_read_close, names, files)
    os.chdir(f"{directory}/fresh")
    figures["create_4k"] = each(create_4k, names, files)
    figures["rename"] = each(lambda name: os.rename(name, next(targets)), names, files)
    figures["unlink"] = each(os.unlink, renamed, files)
    os.chdir(f"{directory}/gone")
    figures["unlink_uncached"] = each(os.unlink, names, files)
    os.chdir(f"{directory}/list")
    figures["list_long"] = list_long(files)
    figures["list_warm"] = list_in_process(files)
    os.chdir(directory)
    figures["read_sequential"] = read_sequential("big", big_mib)
    figures["read_again"] = read_sequential("big", big_mib)
    figures["write_sequential"] = write_sequential("written", big_mib, CHUNK)
    figures["write_small"] = write_sequential("small", max(1, big_mib // 16), BLOCK)
    figures["read_random"] = read_random("big", big_mib, min(files, (big_mib << 20) // BLOCK))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("prepare", "measure", "remove"))
    parser.add_argument("directory")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--big-mib", type=int, default=1024)
    arguments = parser.parse_args()
    if arguments.action == "prepare":
        prepare(arguments.directory, arguments.files, arguments.big_mib)
    elif arguments.action == "measure":
        print(json.dumps(measure(arguments.directory, arguments.files, arguments.big_mib)))
    else:
        shutil.rmtree(arguments.directory)
        os.sync()


if __name__ == "__main__":
    main()
