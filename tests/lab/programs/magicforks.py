"""Who has which /mfs/selected after forks and execs: magicforks.py ROUNDS NODE NODE...

In each round a process selects a node, forks, selects another one, forks again; the children look, fork and execute.
Prints the answers that were wrong, one a line, and "done".
"""

import os
import random
import subprocess
import sys

ROUNDS, NODES = int(sys.argv[1]), sys.argv[2:]


def select(node: str) -> None:
    with open("/mfs/proc/self/selected", "w") as file:
        file.write(node)


def check(what: str, right: str) -> None:
    for asked, answer in (("itself", os.readlink("/mfs/selected")), ("executed", executed())):
        if answer != right:
            print(f"{what}, {asked}: {answer}, not {right}", flush=True)


def executed() -> str:
    return subprocess.run(["readlink", "/mfs/selected"], check=True, capture_output=True, text=True).stdout.strip()


def fork(what: str, right: str, depth: int, may_look: int) -> int:
    """A child that looks when told, and has a child that does."""
    pid = os.fork()
    if pid:
        return pid
    os.read(may_look, 1)
    check(what, right)
    if depth:
        os.waitpid(fork(f"{what}'s child", right, depth - 1, may_look), 0)
    os._exit(0)


def main() -> None:
    rng = random.Random(0)
    for _ in range(ROUNDS):
        first, second = rng.sample(NODES, 2)
        may_look, go = os.pipe()
        children = []
        select(first)
        children.append(fork("forked before the second", first, 1, may_look))
        select(second)
        children.append(fork("forked after the second", second, 1, may_look))
        check("the parent", second)
        os.write(go, b"x" * 100)
        for child in children:
            os.waitpid(child, 0)
        os.close(may_look)
        os.close(go)
    print("done")


main()
