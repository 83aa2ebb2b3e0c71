"""Many processes and threads use the magic names at once: magiccalls.py OWN DIRECTORY PROCESSES THREADS CALLS NODE...

Each process selects a node of its own choice, now and then another one, and its threads look where the names lead.
DIRECTORY exists on every NODE, with the node's id in its file `id`, and everybody may write there.  Prints as JSON how
many calls were made and, at most ten, which answers were wrong.
"""

import json
import os
import random
import sys
import threading

OWN, DIRECTORY = sys.argv[1:3]
PROCESSES, THREADS, CALLS = map(int, sys.argv[3:6])
NODES = sys.argv[6:]
ROUNDS = 4  # a process selects another node after each


def select(node: str) -> None:
    with open("/mfs/proc/self/selected", "w") as file:
        file.write(node + "\n")


def read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def make_and_remove(path: str) -> str:
    """The idiom of temporary files."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.unlink(path)
        os.write(fd, b"kept")
        return os.pread(fd, 10, 0).decode()
    finally:
        os.close(fd)


def look(rng: random.Random, selected: str) -> tuple[str, str, str]:
    """One call: what it was, its answer, and the right one."""
    name = rng.choice(("selected", "selected", "here", "home", "lastexec", "magic"))
    right = selected if name == "selected" else OWN
    kind = rng.randrange(4)
    if kind == 0:
        return f"readlink {name}", os.readlink(f"/mfs/{name}"), right
    if kind == 1:
        return f"read {name}", read(f"/mfs/{name}{DIRECTORY}/id"), right
    if kind == 2:
        there = os.stat(f"/mfs/{name}{DIRECTORY}/id")
        plain = os.stat(f"/mfs/{right}{DIRECTORY}/id")
        return f"stat {name}", f"{there.st_ino} {there.st_dev}", f"{plain.st_ino} {plain.st_dev}"
    unique = f"{os.getpid()}.{threading.get_ident()}.{rng.random()}"
    return f"make in {name}", make_and_remove(f"/mfs/{name}{DIRECTORY}/{unique}"), "kept"


def work(seed: int) -> dict:
    rng = random.Random(seed)
    wrong: list[str] = []
    calls = 0
    for _ in range(ROUNDS):
        selected = rng.choice(NODES)
        select(selected)
        threads = [
            threading.Thread(target=look_often, args=(random.Random(rng.random()), selected, wrong))
            for _ in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        calls += THREADS * (CALLS // ROUNDS)
    return {"calls": calls, "wrong": wrong[:10]}


def look_often(rng: random.Random, selected: str, wrong: list[str]) -> None:
    for _ in range(CALLS // ROUNDS):
        try:
            what, answer, right = look(rng, selected)
        except OSError as error:
            what, answer, right = "a call", repr(error), "no error"
        if answer != right:
            wrong.append(f"{what}: {answer}, not {right} (selected {selected})")


def main() -> None:
    pipes = []
    for number in range(PROCESSES):
        reading, writing = os.pipe()
        if not os.fork():
            os.write(writing, json.dumps(work(number)).encode())
            os._exit(0)
        os.close(writing)
        pipes.append(reading)
    calls, wrong = 0, []
    for pipe in pipes:
        with open(pipe) as file:
            done = json.loads(file.read())
        calls += done["calls"]
        wrong += done["wrong"]
    for _ in pipes:
        assert os.wait()[1] == 0
    print(json.dumps({"calls": calls, "wrong": wrong[:10]}))


main()
