"""`mosrun --checkpoint` and `--restart` for real: what was killed, or lost with its node, goes on with its image.

The program counts and adds up until it is told to stop; what it printed after a restart must follow from its image.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab

ALICE, BOB = "1001:1001", "1002:1002"
ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = """
import os, sys, time
notes, other = open("notes", "w"), open("other")
n = total = 0
while not os.path.exists("stop"):
    n += 1
    total += n
    notes.write(f"{n}\\n")
    notes.flush()
    # a line at once: print() writes each part where PYTHONUNBUFFERED is set, and an image may be of any moment between
    print(f"{n} {total}\\n", end="", flush=True)
    time.sleep(0.02)
print("heard", sys.stdin.read(), flush=True)
"""
FORGE: Final = """
import sys, zlib
import msgspec
from mignode.imagefile import Head, ImagePiece, Reader, Seal, Writer
old, new, kind = sys.argv[1:]
data = open(old, "rb").read()
writer = Writer()
with open(new, "wb") as file:
    for found in Reader().arrived(data):
        record, bulk = found.record, found.data
        if isinstance(record, ImagePiece) and record.name.startswith("core-"):
            bulk = bulk.replace(b"\\xe9\\x07", b"\\x80\\x00")  # uid 1001 becomes 0, of the same length
            record = msgspec.structs.replace(record, crc32=zlib.crc32(bulk))
        if isinstance(record, Seal):
            record = Seal(writer.digest(), *((b"", b"") if kind == "unsigned" else (record.signature, record.certificate)))
        file.write(writer.head_of(record, len(bulk)) + bulk)
        writer.passed(bulk)
"""


class Counting:
    """The program, in a directory of its own on *node*; its images in *image*."""

    def __init__(self, cluster: Cluster, node: int, image: str = "image", user: str = ALICE) -> None:
        self._cluster, self._node, self._user = cluster, node, user
        self.path = cluster.fresh_dir(node).native
        self.image = image if image.startswith("/") else f"{self.path}/{image}"
        cluster.run(node, f"chmod 777 {self.path}; echo 12345 > {self.path}/other; chmod 644 {self.path}/other")
        cluster.run(node, f"cat > {self.path}/count.py <<'END'\n{PROGRAM}\nEND")

    def start(self) -> None:
        """Returns when there is an image of it at work: the first may be of its beginning."""
        self.begin()
        self.wait_image()
        self.wait_image()

    def begin(self) -> None:
        self._begin("first", f"--checkpoint 1 --image {self.image} python3 count.py")

    def restart(self, name: str = "again", node: int = 0) -> None:
        self._node = node or self._node
        self._begin(name, f"--restart {self.image}")

    def _begin(self, name: str, words: str) -> None:
        """Its outputs are *name*.out and *name*.err, its status is in *name*.status."""
        script = (
            f"cd {self.path}; mosrun {words} > {name}.out 2> {name}.err < <(exec sleep 1000); echo $? > {name}.status"
        )
        self._cluster.lab.popen(self._node, script, user=self._user)
        self._cluster.run(
            self._node, f"cd {self.path}; until [ -s {name}.out ] || [ -s {name}.status ]; do sleep 0.1; done"
        )

    def refusal(self, *, user: str = ALICE, image: str = "", node: int = 0) -> str:
        """Of a restart; the line that mosrun says."""
        done = self._cluster.try_run(
            node or self._node,
            f"cd {self.path} 2>&- || :; mosrun --restart {image or self.image} < /dev/null",
            user=user,
        )
        assert done.returncode == 125, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def pid(self) -> int:
        """Of its mosrun."""
        return int(
            self._cluster.run(self._node, f"pgrep -u {self._user.partition(':')[0]} -f '^python3 count.py$' | head -1")
        )

    def wait_image(self, then: str = "") -> None:
        """One that is newer than now."""
        now = self._cluster.run(self._node, f"stat -c %i {self.image} 2>/dev/null || true").strip()
        script = (
            f"until [ $(stat -c %i {self.image} 2>/dev/null || echo {now or 0}) != {now or 0} ]; do sleep 0.1; done"
        )
        self._cluster.run(self._node, f"{script}; {then}")

    def kill(self) -> None:
        """mosrun, and the program with it; returns when home knows it, too."""
        pid = self.pid()
        gone = f"until [ -s first.status ] && ! ls -d /run/omfs/guests/*.{pid}.* 2>&-; do sleep 0.1; done"
        self._cluster.run(self._node, f"kill -9 {pid}; cd {self.path}; {gone}")

    def finish(self, name: str = "again") -> None:
        """It is told to stop, and ends by itself; what it said after its restart follows from its image."""
        script = f"""
        cd {self.path}; {self._counts_on(name)}; touch stop; until [ -s {name}.status ]; do pkill -xu {self._user.partition(":")[0]} sleep || :; sleep 0.1; done
        cat {name}.status {name}.err; tail -1 {name}.out
        """
        status, *said = self._cluster.run(self._node, script).splitlines()
        assert (status, said[-1]) == ("0", "heard "), said
        assert self.begun_at(name) <= self._numbers("first")[-1] + 1
        self._cluster.run(self._node, f"[ ! -e {self.image} ]")

    def begun_at(self, name: str = "again") -> int:
        """What it counted first; it has not begun at its beginning, and counts on."""
        self._cluster.run(self._node, f"cd {self.path}; {self._counts_on(name)}")
        numbers = self._numbers(name)
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[0] > 1
        return numbers[0]

    @staticmethod
    def _counts_on(name: str) -> str:
        return f"until [ $(wc -l < {name}.out) -gt 3 ] || [ -s {name}.status ]; do sleep 0.1; done"

    def _numbers(self, name: str) -> list[int]:
        lines = self._cluster.run(self._node, f"head -n -1 {self.path}/{name}.out").splitlines()
        assert all(len(line.split()) == 2 for line in lines), lines
        counted = [tuple(map(int, line.split())) for line in lines]
        assert all(total == n * (n + 1) // 2 for n, total in counted)
        return [n for n, _ in counted]


def test_it_goes_on_after_its_mosrun_was_killed(cluster: Cluster) -> None:
    """Also away, and by its user alone; nobody begins with it twice."""
    program = Counting(cluster, 1)
    program.start()
    assert "its program still runs: process" in program.refusal()
    again = cluster.try_run(1, f"mosrun --checkpoint 5 --image {program.image} true", user=ALICE)
    assert (again.returncode, "exists: if it is an image" in again.stderr) == (125, True)
    cluster.run(1, f"migrate {program.pid()} 2", user=ALICE)
    program.wait_image()
    shown = cluster.run(1, f"mosrun --show {program.image}", user=ALICE)
    assert "python3 count.py" in shown
    assert "on node 2; its home was node 1" in shown
    program.kill()
    assert "only that user can go on with it" in program.refusal(user="0:0")
    assert "Permission denied" in program.refusal(user=BOB)
    program.restart()
    assert "another mosrun" in (said := program.refusal()) or "still runs" in said
    cluster.run(1, f"migrate {program.pid()} 3; migrate {program.pid()} home", user=ALICE)
    cluster.run(1, f"kill -CONT {program.pid()}", user=ALICE)
    program.finish()


def test_an_image_that_nobody_of_us_made_is_refused(cluster: Cluster) -> None:
    """Other rights in it, or anything else: what is not sealed is not looked into."""
    program = Counting(cluster, 1)
    program.start()
    program.kill()
    for kind, reason in (("unsigned", "not made by a node"), ("signed", "not made by a node")):
        forged = f"{program.path}/{kind}"
        done = cluster.lab.exec(1, forge(program.image, forged, kind), user=ALICE)
        assert done.returncode == 0, done.stderr
        assert reason in program.refusal(image=forged)
    for script, reason in (
        ("head -c -100 image > cut", "cut short"),
        ("{ head -c 500000 image; echo; tail -c +500002 image; } > cut", "damaged"),
    ):
        cluster.run(1, f"cd {program.path}; {script}", user=ALICE)
        assert reason in program.refusal(image="cut")
    cluster.run(1, "mignode 2>/dev/null || true; pgrep -x omfs-guest && exit 1 || ls -A /run/omfs/guests | wc -l")


def forge(old: str, new: str, kind: str) -> list[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{FORGE}"
    return [sys.executable, "-c", code, old, new, kind]


def test_files_that_he_may_not_open_are_not_opened_for_him(cluster: Cluster) -> None:
    """CRIU would, as root: it finds another file of the same size and mode where the program's was."""
    program = Counting(cluster, 1)
    program.start()
    program.kill()
    secret = f"{cluster.fresh_dir(1).native}/secret"
    cluster.run(1, f"mkdir -m 700 {secret}; echo 54321 > {secret}/file; chmod 644 {secret}/file")
    cluster.run(1, f"cd {program.path}; mv other mine; ln -s {secret}/file other")
    assert f"{secret}/file open, which its user may not open" in program.refusal()
    cluster.run(1, f"cd {program.path}; rm other; echo more than it was > other")
    assert f"{program.path}/other open, which is another one here" in program.refusal()
    cluster.run(1, f"cd {program.path}; rm other")
    assert f"{program.path}/other open, which is not to be opened here" in program.refusal()
    cluster.run(1, f"cd {program.path}; mv mine other")
    program.restart()
    program.finish()


def test_without_room_the_program_is_unharmed(cluster: Cluster) -> None:
    room = f"{cluster.fresh_dir(1).native}/room"
    cluster.run(1, f"mkdir {room}; mount -t tmpfs -o size=1m,mode=777 small {room}")
    try:
        program = Counting(cluster, 1, image=f"{room}/image")
        program.begin()
        cluster.run(1, f"cd {program.path}; until [ -s first.err ]; do sleep 0.1; done")
        cluster.run(
            1,
            f"ls -A {room} | wc -l; cd {program.path}; was=$(wc -l < first.out); until [ $(wc -l < first.out) -gt $((was + 60)) ]; do sleep 0.1; done",
        )
        said = cluster.run(1, f"cat {program.path}/first.err")
        assert said == f"mosrun: no checkpoint: {room}/image: No space left on device; tried again every 1 s\n"
        # or that mosrun does not listen any more, where it found that out first
        cluster.run(1, f"until grep -q 'No space left' /mfs/proc/{program.pid()}/journey; do sleep 0.1; done")
        cluster.run(1, f"mount -o remount,size=100m {room}")
        program.wait_image()
        program.kill()
        program.restart()
        program.finish()
    finally:
        cluster.run(1, f"umount -l {room}")


def test_mignode_is_killed_while_it_dumps(cluster: Cluster) -> None:
    """CRIU undoes its dump, and the program counts on; the next image is as good as any."""
    program = Counting(cluster, 1)
    program.start()
    pid = cluster.ask(1, "mignode")["pid"]
    cluster.run(1, "echo saving kill > /run/omfs/fault")
    cluster.run(1, f"until ! [ -e /run/omfs/fault ] && ! kill -0 {pid} 2>/dev/null; do sleep 0.05; done; mignode")
    program.wait_image()
    program.kill()
    assert "no checkpoint: mignode" in cluster.run(1, f"cat {program.path}/first.err")
    program.restart()
    program.finish()


def test_it_goes_on_elsewhere_when_its_home_is_lost(cluster: Cluster) -> None:
    """From an image on a third node; not while it may still run where it was."""
    cluster.run(3, "mkdir -m 777 -p /var/images")
    here, away = (Counting(cluster, 1, image=f"/mfs/3/var/images/{name}") for name in ("here", "away"))
    for program in (away, here):
        program.start()
        if program is away:
            cluster.run(1, f"migrate {program.pid()} 2", user=ALICE)
            program.wait_image()
    cluster.run(2, f"mkdir -m 777 {here.path}; cd /mfs/1{here.path}; cp -p count.py other notes {here.path}")
    cluster.kill(1)
    assert "still runs on node 2" in away.refusal(node=3)
    here.restart(node=2)
    said = cluster.run(2, f"cat {here.path}/again.err")
    assert "node 1 does not answer: if its program still runs there" in said
    assert here.begun_at() > 1
    cluster.run(2, "pkill -9 -u 1001 -f '^python3 count.py$'")  # home's end may not have ended the other one yet
