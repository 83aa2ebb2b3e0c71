#!/usr/bin/env python3
"""Makes a fresh Debian able to run this project: Debian packages, then .venv with the locked versions.

Needs only python3 (3.11 or newer) and its standard library.  It installs what is missing and nothing else: packages
are checked with dpkg-query, and a stamp in .venv (made of the lock file, pyproject.toml, this file and the place)
says that the environment is up to date, so the second run takes a fraction of a second.  Last comes CRIU (criu.py).  It
does not choose where packages come from: apt and pip are used as this machine has them set up.

Called by the Makefile: `tools/bootstrap.py [--with tests|bench|day|programs|peers] [--lock]`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
OLDEST_PYTHON = (3, 11)

BUILD = ("gcc", "libc6-dev", "libfuse3-dev", "pkg-config")  # pyfuse3 is compiled here, against this libfuse3
LAB = ("e2fsprogs", "fuse3", "iproute2", "mount", "nftables", "openssl", "procps", "systemd", "util-linux")
PROGRAMS = ("acl", "attr", "git", "perl", "rsync", "sqlite3", "tar")  # what demo and tests run on the mounts
PACKAGES = {
    "": (*BUILD, *LAB, *PROGRAMS),
    "tests": ("openssh-client", "openssh-server"),  # mosdo by ssh
    "bench": ("openssh-client", "openssh-server", "sshfs"),
    "programs": ("dbench", "postmark"),
    "day": ("povray", "xz-utils"),
    "peers": ("moosefs-chunkserver", "moosefs-client", "moosefs-master"),
}
DISTRIBUTION_BIN = "/usr/bin"
PYTHON_PACKAGES = ("python3-dev", "python3-venv")  # only if no python3 in PATH can make environments and compile

PROBE = """
import importlib.util, json, os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
print(json.dumps({
    "path": sys.executable, "version": list(sys.version_info[:3]), "headers": os.path.exists(header),
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""


class Python(NamedTuple):
    path: str
    version: tuple[int, ...]
    fault: str  # "" = it will do


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def give_up(what: str, advice: str) -> NoReturn:
    print(f"bootstrap: {what}\nbootstrap: {advice}", file=sys.stderr)
    raise SystemExit(1)


def run(command: list[str], advice: str, **environment: str) -> None:
    """Show and run *command*; where it fails, say what to do and stop."""
    say(shlex.join(command).replace(f"{ROOT}/", ""))
    finished = subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, stdin=subprocess.DEVNULL)
    if finished.returncode != 0:
        give_up(f"that failed with status {finished.returncode}: {shlex.join(command[:4])} ...", advice)


# ---------------------------------------------------------------- Debian packages


def missing_packages(names: tuple[str, ...]) -> list[str]:
    """Those of *names* that dpkg does not have installed."""
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    installed = {line.split()[0] for line in asked.stdout.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


INSTALL = """
set -e
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then  # a package that brings a daemon (sshd for the benchmark) must not start it
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > $policy
    chmod 755 $policy
fi
apt-get -qq update
apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@"
"""


def install_packages(names: tuple[str, ...]) -> None:
    """apt-get install what is missing of *names*; as an ordinary user through sudo."""
    if shutil.which("dpkg-query") is None:
        say(f"not a Debian: packages are not checked (needed: {' '.join(names)})")
        return
    missing = missing_packages(names)
    if not missing:
        return
    as_root: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            give_up(f"missing Debian packages: {' '.join(missing)}", "run this as root, or install sudo")
        as_root = ["sudo"]
    say(f"apt-get update, then apt-get install --no-install-recommends {' '.join(missing)}")
    command = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", INSTALL, "install", *missing]
    with subprocess.Popen(command, stdin=None if as_root else subprocess.DEVNULL, stdout=subprocess.DEVNULL) as apt:
        if apt.wait() != 0:
            give_up(
                "apt-get failed, see the lines above",
                "check the network and the package sources (`apt-get update` by hand must work), then repeat",
            )


# ---------------------------------------------------------------- Python


def examine(path: str) -> Python | None:
    """What the interpreter at *path* can do; None where it does not even run."""
    asked = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if asked.returncode != 0:
        return None
    facts = json.loads(asked.stdout)
    version = tuple(facts["version"])
    fault = ""
    if version < OLDEST_PYTHON:
        fault = f"is {'.'.join(map(str, version))}, older than {'.'.join(map(str, OLDEST_PYTHON))}"
    elif not facts["venv"]:
        fault = "has no venv module"
    elif not facts["headers"]:
        fault = "has no header files (Python.h)"
    return Python(facts["path"], version, fault)


def pythons_in_path() -> Iterator[Python]:
    """Every python3 in PATH, in order, but the distribution's first; this project's own virtual environment excepted.

    Distributions build theirs with profile-guided and link-time optimization, others (pyenv) mostly don't: with
    Debian's an uncached stat takes a fifth less time.
    """
    seen = set()
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for folder in sorted(folders, key=lambda folder: folder != DISTRIBUTION_BIN):
        path = Path(folder, "python3")
        if os.access(path, os.X_OK) and path.parent != VENV / "bin" and path.resolve() not in seen:
            seen.add(path.resolve())
            python = examine(str(path))
            if python is not None:
                yield python


def choose_python() -> Python | None:
    """The first of them that can make a virtual environment and compile extensions; None where none can."""
    for python in pythons_in_path():
        if not python.fault:
            return python
        say(f"{python.path} {python.fault}")
    return None


def usable_python() -> Python:
    """choose_python, but Debian's own packages for it are installed where that helps."""
    python = choose_python()
    if python is None:
        install_packages(PYTHON_PACKAGES)
        python = choose_python()
    if python is None:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        give_up("no usable python3", f"put a python3 >= {wanted} with venv and headers first in PATH, then repeat")
    return python


# ---------------------------------------------------------------- the environment


def digest_of(*paths: Path) -> str:
    """Changes with the content of *paths* and with the place of the project (scripts in .venv hold its path)."""
    digest = hashlib.sha256(os.fsencode(ROOT))
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def works(interpreter: Path) -> bool:
    """Whether .venv's interpreter still runs with its packages (its base may have been upgraded or removed)."""
    try:
        asked = subprocess.run([interpreter, "-c", "import pip"], capture_output=True, stdin=subprocess.DEVNULL)
    except OSError:
        return False
    return asked.returncode == 0


def make_environment() -> None:
    """(Re)make .venv with the locked versions and the project itself, editable; do nothing where it is up to date."""
    stamp = VENV / "bootstrap.stamp"
    packages, project = digest_of(LOCK, Path(__file__)), digest_of(ROOT / "pyproject.toml")
    before = stamp.read_text().split() if stamp.exists() else []
    usable = before[:1] == [packages] and works(VENV / "bin/python")
    if usable and before[1:] == [project]:
        return
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--progress-bar=off", "--no-input"]
    calm = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    advice = (
        "pip needs a working package index: check the network, then repeat. Where it was a compiler that failed, the "
        "lines above name the missing header; `make clean` starts afresh"
    )
    if not usable:
        python = usable_python()
        say(f"making .venv with {python.path} ({'.'.join(map(str, python.version))})")
        run([python.path, "-m", "venv", "--clear", str(VENV)], "see the message above; `make clean`, then repeat")
        run([*pip, "-r", str(LOCK)], advice, **calm)
    # compat: a path, not a finder that takes each start of Python 10 ms
    editable = ["--config-settings", "editable_mode=compat", "--editable", str(ROOT)]
    run([*pip, "--no-deps", "--no-build-isolation", *editable], advice, **calm)
    stamp.write_text(f"{packages}\n{project}\n")
    say("the environment is ready: .venv")


def lock_versions() -> None:
    """Write requirements.lock anew from the newest versions that pyproject.toml allows."""
    fresh = ROOT / "build" / "lock-venv"
    run([usable_python().path, "-m", "venv", "--clear", str(fresh)], "see the message above")
    pip = [str(fresh / "bin/python"), "-m", "pip", "--no-input"]
    online = "pip needs a working package index"
    run([*pip, "install", "--quiet", "--upgrade", f"{ROOT}[dev]", "setuptools"], online)
    frozen = subprocess.run([*pip, "freeze", "--exclude", "omfs", "--all"], capture_output=True, text=True, check=True)
    lines = [line for line in frozen.stdout.splitlines() if not line.startswith(("pip==", "wheel=="))]
    head = [line for line in LOCK.read_text().splitlines() if line.startswith("#")]
    LOCK.write_text("\n".join([*head, *lines, ""]))
    shutil.rmtree(fresh)
    say(f"{LOCK.name}: {len(lines)} versions")


def put_criu_in_place() -> None:
    """criu.py has a look, installs what is missing, and says by itself what fails."""
    command = [str(VENV / "bin/python"), str(ROOT / "tools/criu.py")]
    looked = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    if looked.returncode != 0:
        raise SystemExit(looked.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--with", dest="extras", action="append", default=[], choices=sorted(filter(None, PACKAGES)))
    parser.add_argument("--lock", action="store_true", help="write requirements.lock anew from pyproject.toml")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    install_packages(PACKAGES[""] + tuple(name for extra in arguments.extras for name in PACKAGES[extra]))
    if arguments.lock:
        lock_versions()
    make_environment()
    put_criu_in_place()


if __name__ == "__main__":
    main()
