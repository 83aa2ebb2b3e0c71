"""Real programs, timed: what runs inside a node for `make bench ARGS=--programs`, with the standard library only.

`inputs` makes, natively in node 1, what the programs read: an archive and a git repository, always the same ones
(SEED).  `prepare DIR` makes DIR where the files are stored, with the Python sources that compileall takes; `measure
DIR` runs every program through the file system under test and prints one JSON object: row -> seconds, or MB/s.  A time
is that of the whole program, from its start to its end, without a sync; the kernel's dirty pages are written between
the programs, untimed.  Called by bench/suites.py through `omfs-lab exec`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SEED = 20030
DBENCH_LOAD = "/usr/share/dbench/client.txt"
PACKAGES = ("postmark", "dbench")  # Debian's, besides git and tar; a row whose program is missing is left out
AGAIN = 5  # timed runs of git status, and pairs of runs of PostMark on the own tree; the median counts

# name -> (what it is, unit); the order of the table
PROGRAMS = {
    "postmark": ("PostMark", "s"),
    "postmark_own": ("PostMark, on the node's own tree", "s"),
    "tar_x": ("tar x", "s"),
    "git_clone": ("git clone", "s"),
    "git_status": ("git status, clean, again", "s"),
    "compileall": ("python -m compileall", "s"),
    "dbench_1": ("dbench 1", "MB/s"),
    "dbench_4": ("dbench 4", "MB/s"),
}

SOURCES = ("asyncio", "email", "encodings", "http", "importlib", "json", "multiprocessing", "unittest", "urllib", "xml")


class Sizes(NamedTuple):
    """How much there is to do."""

    postmark_files: int = 2000
    postmark_transactions: int = 5000
    archived: int = 3000  # files
    tracked: int = 800  # files of the first commit
    commits: int = 300
    dbench_s: int = 10

    def shared(self, by: int) -> Sizes:
        """A part of it, for --quick."""
        return Sizes(*(max(1, size // by) for size in self))


class ProgramError(Exception):
    """A program that failed, or did less than it was told to."""


def is_here(row: str) -> bool:
    program = row.partition("_")[0]
    return program not in PACKAGES or shutil.which(program) is not None


# ---------------------------------------------------------------- what the programs read


def make_archive(path: str, files: int) -> None:
    """Small files in directories of a hundred, sizes 200 bytes to 20 KiB, most of them small."""
    chance = random.Random(SEED)
    with tarfile.open(path, "w") as archive:
        for number in range(files):
            data = chance.randbytes(int(200 * 100 ** chance.random()))
            entry = tarfile.TarInfo(f"{number // 100:03}/{number:06}")
            entry.size, entry.mtime = len(data), 1_000_000_000 + number
            archive.addfile(entry, io.BytesIO(data))


def commits(tracked: int, count: int) -> Iterator[bytes]:
    """A history for git fast-import: *tracked* files at first, then commits that change three and add one."""
    chance = random.Random(SEED)
    words = [chance.randbytes(chance.randint(1, 4)).hex().encode() for _ in range(500)]
    names = [f"part{number % 40:02}/file{number:05}.txt".encode() for number in range(tracked + count)]
    for number in range(count):
        chosen = names[:tracked] if number == 0 else [*chance.sample(names[:tracked], 3), names[tracked + number - 1]]
        yield b"commit refs/heads/main\ncommitter Bench <bench@example.org> %d +0000\n" % (1_000_000_000 + 60 * number)
        yield b"data 6\nchange\n"
        for name in chosen:
            lines = (b" ".join(chance.choices(words, k=8)) for _ in range(chance.randint(5, 120)))
            text = b"\n".join(lines) + b"\n"
            yield b"M 644 inline %s\ndata %d\n%s\n" % (name, len(text), text)


def make_repository(path: str, tracked: int, count: int) -> None:
    git(None, "init", "--quiet", "--bare", "--initial-branch=main", path)
    git(b"".join(commits(tracked, count)), "-C", path, "fast-import", "--quiet")


def copy_sources(directory: str) -> int:
    """A part of this Python's standard library, without what is compiled of it; the number of files."""
    library = Path(sysconfig.get_path("stdlib"))
    count = 0
    for source in sorted(
        [*library.glob("*.py"), *(path for part in SOURCES for path in library.glob(f"{part}/**/*.py"))]
    ):
        target = Path(directory, source.relative_to(library))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        count += 1
    return count


# ---------------------------------------------------------------- running


def run(argv: list[str], text: bytes | None = None) -> str:
    """The output of a program, free of whoever's settings.  Raises ProgramError with what it said."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(argv, input=text or b"", capture_output=True, env=environment)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ProgramError(f"{' '.join(argv)} ended with {done.returncode}: {said[-1000:]}")
    return done.stdout.decode(errors="replace")


def git(text: bytes | None, *argv: str) -> str:
    return run(["git", *argv], text)


def timed(argv: list[str], text: bytes | None = None) -> tuple[float, str]:
    """Seconds and output, after the dirty pages of what was before are written."""
    os.sync()
    start = time.perf_counter()
    output = run(argv, text)
    return time.perf_counter() - start, output


def postmark(directory: str, sizes: Sizes) -> float:
    """Seconds of creating, reading, appending and removing; sizes 500 bytes to 10 kB, all else PostMark's default."""
    os.mkdir(directory)
    orders = (
        f"set location {directory}\nset number {sizes.postmark_files}\nset transactions {sizes.postmark_transactions}\n"
        "set size 500 10000\nrun\nquit\n"
    )
    seconds, output = timed(["postmark"], orders.encode())
    created = re.search(r"Creation alone: (\d+) files", output)
    left = os.listdir(directory)
    if "Error" in output or created is None or int(created[1]) != sizes.postmark_files or left:
        raise ProgramError(f"postmark in {directory}: {len(left)} files left: {output[-1000:]}")
    os.rmdir(directory)
    return seconds


def tar_x(directory: str, inputs: str, sizes: Sizes) -> float:
    os.mkdir(directory)
    seconds, _ = timed(["tar", "-x", "-f", f"{inputs}/archive.tar", "-C", directory])
    count = sum(len(names) for _, _, names in os.walk(directory))
    if count != sizes.archived:
        raise ProgramError(f"tar x: {count} files instead of {sizes.archived}")
    return seconds


def git_clone(directory: str, inputs: str) -> float:
    """By the pack protocol, as from elsewhere: no hard links, which only the native file system could have."""
    return timed(["git", "clone", "--quiet", f"file://{inputs}/repository", directory])[0]


def git_status(directory: str) -> float:
    """The first run refreshes the index; the median of those after it.

    The first one is a second after the clone: git compares whole seconds, and reads again what is not older than the
    index, each time (git's Documentation/technical/racy-git): more files of a quick clone than of a slow one.
    """
    argv = ["git", "-C", directory, "status", "--porcelain"]
    next_s = int(os.stat(f"{directory}/.git").st_mtime) + 1  # the index was given its name last
    while time.time() < next_s:
        time.sleep(next_s - time.time())
    run(argv)
    figures = []
    for _ in range(AGAIN):
        seconds, output = timed(argv)
        if output:
            raise ProgramError(f"git status: the clone is not clean: {output[:500]}")
        figures.append(seconds)
    return statistics.median(figures)


def compile_all(directory: str) -> float:
    """Sources that this mount has not seen; the compiled files are written beside them."""
    seconds, _ = timed([sys.executable, "-I", "-m", "compileall", "-q", directory])
    names = [name for _, _, found in os.walk(directory) for name in found]
    sources, compiled = (sum(name.endswith(end) for name in names) for end in (".py", ".pyc"))
    if sources != compiled or not sources:
        raise ProgramError(f"compileall: {compiled} compiled files of {sources}")
    return seconds


def dbench(directory: str, clients: int, seconds: int) -> float:
    """MB/s as dbench says, its own warm-up excluded."""
    os.mkdir(directory)
    argv = ["dbench", "-c", DBENCH_LOAD, "-D", directory, "-t", str(seconds), str(clients)]
    _, output = timed(argv)
    found = re.search(r"^Throughput ([0-9.]+) MB/sec", output, re.MULTILINE)
    if found is None or float(found[1]) == 0:
        raise ProgramError(f"dbench {clients}: no throughput: {output[-1000:]}")
    return float(found[1])


def measure(directory: str, inputs: str, sizes: Sizes) -> dict[str, float]:
    """Every program once, in the order of PROGRAMS; without those that are not installed."""
    figures = {}
    if is_here("postmark"):
        figures["postmark"] = postmark(f"{directory}/postmark", sizes)
    figures["tar_x"] = tar_x(f"{directory}/tar", inputs, sizes)
    figures["git_clone"] = git_clone(f"{directory}/clone", inputs)
    figures["git_status"] = git_status(f"{directory}/clone")
    figures["compileall"] = compile_all(f"{directory}/sources")
    if is_here("dbench"):
        figures["dbench_1"] = dbench(f"{directory}/dbench1", 1, sizes.dbench_s)
        figures["dbench_4"] = dbench(f"{directory}/dbench4", 4, sizes.dbench_s)
    return figures


def compare_own(native: str, own: str, sizes: Sizes) -> list[float]:
    """PostMark in *native* and in *own*, the same tree under two paths, in turn: two medians of seconds."""
    if not is_here("postmark_own"):
        return []
    figures: dict[str, list[float]] = {native: [], own: []}
    for number in range(AGAIN):
        for place in (native, own) if number % 2 else (own, native):
            figures[place].append(postmark(f"{place}/{number}", sizes))
    return [statistics.median(figures[place]) for place in (native, own)]


# ---------------------------------------------------------------- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("inputs", "prepare", "measure", "own", "remove"))
    parser.add_argument("directory")
    parser.add_argument("other", nargs="?", default="", help="measure: that of inputs; own: the other path")
    parser.add_argument("--part", type=int, default=1, metavar="N", help="an Nth of the work")
    arguments = parser.parse_args()
    directory, sizes = arguments.directory, Sizes().shared(arguments.part)
    try:
        if arguments.action == "inputs":
            os.makedirs(directory)
            make_archive(f"{directory}/archive.tar", sizes.archived)
            make_repository(f"{directory}/repository", sizes.tracked, sizes.commits)
        elif arguments.action == "prepare":
            os.makedirs(directory)
            copy_sources(f"{directory}/sources")
        elif arguments.action == "measure":
            print(json.dumps(measure(directory, arguments.other, sizes)))
        elif arguments.action == "own":
            print(json.dumps(compare_own(directory, arguments.other, sizes)))
        else:
            shutil.rmtree(directory)
            os.sync()
    except ProgramError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
