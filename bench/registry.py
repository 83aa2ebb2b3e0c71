"""What the process registry costs: memory and descriptors of an entry, and how many events it takes a second.

The registry has a process of its own, as in mignode but without the other rooms; so have a mount that keeps what it is
told, and the processes, which do nothing.  Figures are those of the registry's process alone.
`python -m bench.registry`, as root.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import trio

from mignode.registry import FORKS_GATHER_S, Registry
from omfs.kernel import processes
from omfs.kernel.processes import Identity
from omfs.net import control

NODE: Final = 1
TIMES: Final = 2000  # that one process selects a node, and that one forks
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def child(work: Callable[[], object]) -> Iterator[Identity]:
    """A process that does this, until it ends or is ended."""
    pid = os.fork()
    if not pid:
        work()
        os._exit(0)
    try:
        process = processes.identify(pid)
        assert process is not None
        yield process
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def sleeper() -> Iterator[Identity]:
    """A process that does nothing.  Thousands that share our memory would make each fork slow."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        try:
            identity = processes.identify(process.pid)
            assert identity is not None
            yield identity
        finally:
            process.kill()


class Mount:
    """It answers at once; what it was told, the next registry takes back."""

    def __init__(self, run_dir: Path) -> None:
        self._socket = run_dir / "mount.sock"
        self._places: dict[tuple[int, int], object] = {}

    async def _place(self, arguments: control.Arguments) -> dict[str, object]:
        if arguments["all"]:
            self._places.clear()
        for place in arguments["places"]:
            self._places[place["pid"], place["start_ticks"]] = place
        for pid, start_ticks in arguments["gone"]:
            self._places.pop((pid, start_ticks), None)
        return {}

    async def _tell(self, _: control.Arguments) -> dict[str, object]:
        return {"places": list(self._places.values())}

    def serve(self) -> None:
        handlers: dict[str, control.Handler] = {"place": self._place, "places": self._tell}
        trio.run(control.serve, self._socket, handlers)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def measure(run_dir: Path, those: Sequence[Identity]) -> None:
    registry = Registry(NODE, run_dir)
    print(f"{len(those)} entries; fork events: {'yes' if registry.has_fork_events else 'no'}")
    async with trio.open_nursery() as running:
        await running.start(registry.run)
        await select_all(registry, those)
        await select_again(registry, those[0])
        if registry.has_fork_events:
            await fork_children(registry)
        running.cancel_scope.cancel()
    registry.close()
    await take_back(run_dir)


async def select_all(registry: Registry, those: Sequence[Identity]) -> None:
    before_bytes, before_descriptors = resident_bytes(), descriptors()
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    for process in those:
        await registry.select(process, 2)
    took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    each_bytes = (resident_bytes() - before_bytes) / len(those)
    each_descriptors = (descriptors() - before_descriptors) / len(those)
    print(f"  {before_bytes / 2**20:.0f} MiB without any")
    print(f"  an entry: {each_bytes:.0f} bytes, {each_descriptors:.2f} descriptors")
    print(f"  each selects: {len(those) / took_s:.0f}/s, {cpu_s / len(those) * 1e6:.0f} us of processor")


async def select_again(registry: Registry, process: Identity) -> None:
    begun_s = time.perf_counter()
    for number in range(TIMES):
        await registry.select(process, 3 + number % 2)
    print(f"  one selects again and again: {TIMES / (time.perf_counter() - begun_s):.0f}/s")


async def fork_children(registry: Registry) -> None:
    """Of a process without an entry, and of one with, whose children get theirs and lose them.

    Others' forks on this machine are told, too, and counted.
    """
    for what, has_entry in (("an ordinary process", False), ("one with an entry", True)):
        waiting, go = os.pipe()
        with child(lambda waiting=waiting: fork_many(waiting)) as process:  # type: ignore[misc]
            if has_entry:
                await registry.select(process, 2)
            before, begun_cpu_s = registry.describe()["forks"], time.process_time()
            os.write(go, b"x")
            await trio.to_thread.run_sync(os.waitid, os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            await trio.sleep(2 * FORKS_GATHER_S)
            told, cpu_s = registry.describe()["forks"] - before, time.process_time() - begun_cpu_s
        print(f"  a fork of {what}: {cpu_s / told * 1e6:.0f} us of processor")
        os.close(waiting)
        os.close(go)


def fork_many(waiting: int) -> None:
    os.read(waiting, 1)
    for _ in range(TIMES):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)


async def take_back(run_dir: Path) -> None:
    begun_s = time.perf_counter()
    registry = Registry(NODE, run_dir)
    async with trio.open_nursery() as running:
        await running.start(registry.run)
        took_s = time.perf_counter() - begun_s
        print(f"  a new one has taken {registry.describe()['processes']} back in {took_s:.2f} s")
        running.cancel_scope.cancel()
    registry.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.registry", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1000], metavar="N")
    arguments = parser.parse_args()
    most = max(arguments.entries)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1000, most + 1000))
    for entries in arguments.entries:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as ended:
            ended.enter_context(child(Mount(Path(folder)).serve))
            those = [ended.enter_context(sleeper()) for _ in range(entries)]
            while not Path(folder, "mount.sock").exists():
                time.sleep(0.1)
            trio.run(measure, Path(folder), those)
    return 0


if __name__ == "__main__":
    sys.exit(main())
