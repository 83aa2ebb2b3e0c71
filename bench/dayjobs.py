"""The jobs of bench/day.py, and who starts them: what runs inside the nodes, with the standard library only.

`python dayjobs.py inputs DIRECTORY` makes what they read on node 1, from a fixed seed; `python dayjobs.py data
DIRECTORY MIB` what is scanned on the other nodes.  `python dayjobs.py run DIRECTORY PART` starts all of them at once by
mosrun, each in a directory of its own, and prints one JSON object: job -> [seconds until it had ended, pid].  A job
that failed or left no result ends it.  PART 5 does a fifth of the work.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

FUNCTIONS, WORDS, SPHERES = 400, 1_600_000, 40
SCANNED_FILES = 16
COMPILERS, COMPRESSORS, RENDERERS = 4, 3, 2
SCANNED_NODES = (2, 3)
DEADLINE_S = 1800

FUNCTION = """
double part{n}(const double *a, double *b, int n) {{
    double s = {n};
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++) {{
            s += a[i] * a[j] - b[(i * {n} + j) % n];
            b[j] = s / (1.0 + a[i] * {n});
            if (s > {n} * 3) s -= a[j];
        }}
    return s;
}}
"""
SCENE = """
camera {{ location <0, 3, -8> look_at <0, 1, 0> }}
light_source {{ <10, 20, -10> rgb 1 area_light <5, 0, 0>, <0, 5, 0>, 4, 4 adaptive 1 }}
plane {{ y, 0 pigment {{ checker rgb 1 rgb 0.2 }} finish {{ reflection 0.3 }} }}
#declare I = 0;
#while (I < {spheres})
    sphere {{
        <sin(I) * I / 8, 0.5 + mod(I, 5) / 2, cos(I) * I / 8>, 0.4
        pigment {{ rgb <mod(I, 3) / 2, mod(I, 7) / 6, mod(I, 2)> }} finish {{ reflection 0.4 phong 1 }}
    }}
    #declare I = I + 1;
#end
"""


def make_inputs(directory: Path) -> None:
    directory.mkdir(parents=True)
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(4000)]
    (directory / "text").write_text(" ".join(chance.choices(words, k=WORDS)))
    (directory / "part.c").write_text("".join(FUNCTION.format(n=number) for number in range(1, FUNCTIONS)))
    (directory / "scene.pov").write_text(SCENE.format(spheres=SPHERES))


def make_data(directory: Path, mib: int) -> None:
    directory.mkdir(parents=True)
    for number in range(SCANNED_FILES):
        with (directory / f"part{number}").open("wb") as file:
            for _ in range(mib // SCANNED_FILES):
                file.write(os.urandom(1 << 20))


def jobs(directory: Path, part: int) -> dict[str, tuple[str, str]]:
    """The command of each for /bin/sh, and what it leaves.  *directory* is the same one on all nodes."""
    inputs, times = directory / "inputs", max(1, round(3 / part))
    compile_all = f"for n in $(seq {times}); do gcc -O2 -c -o part$n.o {inputs}/part.c || exit; done"
    compress = f"head -c {10_000_000 // part} {inputs}/text | xz -T1 -6 > text.xz"
    size = f"+W{640 if part == 1 else 288} +H{480 if part == 1 else 216}"
    render = f"povray +I{inputs}/scene.pov +Oscene.png {size} +A0.1 +WT1 -D 2> log || {{ cat log >&2; exit 1; }}"
    found = {f"compile {number}": (compile_all, f"part{times}.o") for number in range(1, COMPILERS + 1)}
    found |= {f"compress {number}": (compress, "text.xz") for number in range(1, COMPRESSORS + 1)}
    if shutil.which("povray"):
        found |= {f"render {number}": (render, "scene.png") for number in range(1, RENDERERS + 1)}
    for node in SCANNED_NODES:
        found[f"scan node {node}"] = (f"sha256sum /mfs/{node}{directory}/data/part* > sums", "sums")
    return found


def run(directory: Path, part: int) -> dict[str, tuple[float, int]]:
    started: dict[int, tuple[str, Path, subprocess.Popen[bytes]]] = {}
    found = {}
    begin_s = time.monotonic()
    try:
        for name, (command, result) in jobs(directory, part).items():
            place = directory / name.replace(" ", "-")
            place.mkdir()
            process = subprocess.Popen(["mosrun", "/bin/sh", "-c", command], cwd=place, stdin=subprocess.DEVNULL)
            started[process.pid] = (name, place / result, process)
        while started:
            if time.monotonic() - begin_s > DEADLINE_S:
                sys.exit(f"no end after {DEADLINE_S} s: {', '.join(name for name, _, _ in started.values())}")
            time.sleep(0.05)
            for pid, (name, left, process) in list(started.items()):
                if process.poll() is None:
                    continue
                found[name] = (time.monotonic() - begin_s, pid)
                del started[pid]
                if process.returncode or not left.stat().st_size:
                    sys.exit(f"{name} ended with {process.returncode}")
    finally:
        for _, _, process in started.values():
            process.kill()
            process.wait()
    return found


def main() -> None:
    what, directory, *rest = sys.argv[1:]
    if what == "inputs":
        make_inputs(Path(directory, "inputs"))
    elif what == "data":
        make_data(Path(directory, "data"), int(rest[0]))
    else:
        print(json.dumps(run(Path(directory), int(rest[0]))))


if __name__ == "__main__":
    main()
