#!/usr/bin/env python3
"""Puts CRIU >= 4.2 in place: the distribution's where that is new enough, else Debian's own package, for us alone.

For the second, apt fetches criu and everything that it needs (its C library too) from a newer release of the same
mirror, with its usual checks of signatures and checksums, but with a state of its own: sources, lists, cache and a dpkg
status in which nothing is installed are all below .venv/criu.  What it fetched is unpacked there and nowhere else.  No
package of the system is touched, no configuration of its apt is changed, and no program but CRIU sees these libraries
(omfs/kernel/criuprogram.py says how it is started).

Called by bootstrap.py, with the interpreter of .venv, each time; with nothing to do it takes a tenth of a second.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from omfs.config import load_settings
from omfs.errors import ConfigError
from omfs.kernel.criuprogram import OLDEST, PRIVATE_PREFIX, find_criu, installed_in, version_of

SUITES = ("forky", "sid")  # releases of Debian that have it, the steadier one first; not in trixie (4.1) and older
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
OS_RELEASE = Path("/etc/os-release")
OLDEST_TEXT = ".".join(map(str, OLDEST))
BY_HAND = f"or install CRIU >= {OLDEST_TEXT} yourself and name it in omfs.toml: criu = '/path/of/criu'"


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def give_up(what: str, advice: str) -> NoReturn:
    print(f"criu: {what}\ncriu: {advice}", file=sys.stderr)
    raise SystemExit(1)


def is_new_enough() -> bool:
    """Whether the CRIU that omfs would use is there, starts, and is new enough."""
    try:
        return version_of(find_criu(load_settings().criu)) >= OLDEST
    except ConfigError:
        return False


# ---------------------------------------------------------------- the distribution's


def candidate_version() -> tuple[int, ...]:
    """Of the criu that this machine's own apt would install; () where it knows none."""
    asked = subprocess.run(["apt-cache", "policy", "criu"], capture_output=True, text=True, env=plain_environment())
    for line in asked.stdout.splitlines():
        label, _, version = line.strip().partition(": ")
        if label == "Candidate" and version[:1].isdigit():
            return tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdigit())
    return ()


def install_distribution_package() -> None:
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    command = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive"]
    command += ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0", "install", "-y", "--no-install-recommends", "criu"]
    say(shlex.join(command))
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
        give_up("apt-get failed, see the lines above", f"`apt-get install criu` by hand must work; {BY_HAND}")


# ---------------------------------------------------------------- Debian's, in a prefix


def plain_environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def mirrors() -> list[str]:
    """Where this machine has its Debian from, as apt itself says: packages of any release are there."""
    release = dict(line.split("=", 1) for line in OS_RELEASE.read_text().splitlines() if "=" in line)
    if release.get("ID", "").strip('"') != "debian":
        return []
    codename = release.get("VERSION_CODENAME", "").strip('"')
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True, text=True, env=plain_environment(),
    )  # fmt: skip
    rows = [line.split() for line in asked.stdout.splitlines()]
    named = [row[0] for row in rows if len(row) == 3 and row[2] == "main" and row[1] in (codename, *SUITES)]
    return list(dict.fromkeys(named))


def apt(prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """apt-get with everything that it reads and writes below *prefix*; of the system only how it reaches a mirror."""
    state = prefix / "apt"
    places = {
        "Dir::Etc::SourceList": state / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null", "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": state, "Dir::State::Lists": state / "lists", "Dir::State::Status": state / "status",
        "Dir::Cache": state, "Dir::Cache::Archives": state / "archives", "Dir::Log": state,
        "APT::Default-Release": "", "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # its usual one may not enter a checkout below somebody's home
    }  # fmt: skip
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in places.items()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=plain_environment())


def fetch(prefix: Path, mirror: str, suite: str) -> str:
    """Fetch criu and all that it depends on into prefix/apt/archives; "" or why that failed."""
    state = prefix / "apt"
    shutil.rmtree(state, ignore_errors=True)
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    for step in (["update"], ["install", "-y", "--download-only", "--no-install-recommends", "criu"]):
        # with -y apt refuses what is not signed; an update that only warns of a list that it can't get has failed, too
        done = apt(prefix, *step)
        if done.returncode != 0 or done.stderr.startswith(("E:", "W:")):
            return f"apt-get {step[0]} ({suite}): {' '.join(done.stderr.split())[-300:]}"
    return ""


def unpack(prefix: Path) -> None:
    packages = sorted((prefix / "apt/archives").glob("*.deb"))
    for package in packages:
        done = subprocess.run(["dpkg-deb", "-x", package, prefix], capture_output=True, text=True)
        if done.returncode != 0:
            give_up(f"{package.name} can't be unpacked: {done.stderr.strip()}", "free some space, then repeat")
    say(f"{len(packages)} packages unpacked")


def install_privately() -> None:
    """Make PRIVATE_PREFIX anew; all of it or nothing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        give_up(f"CRIU >= {OLDEST_TEXT} is missing, and this is not a Debian", BY_HAND)
    if not KEYRING.exists():
        give_up(f"{KEYRING} is missing", f"`apt-get install debian-archive-keyring`, then repeat; {BY_HAND}")
    found = mirrors()
    if not found:
        give_up("apt has no source of Debian's own packages here", f"add one (sources.list(5)), then repeat; {BY_HAND}")
    fresh = PRIVATE_PREFIX.with_name("criu.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    faults = []
    try:
        for mirror, suite in ((mirror, suite) for suite in SUITES for mirror in found):
            say(f"CRIU from Debian {suite}, unpacked in .venv/criu; the system's own packages stay as they are")
            fault = fetch(fresh, mirror, suite)
            if not fault:
                unpack(fresh)
                break
            faults.append(fault)
        else:
            give_up("\ncriu: ".join(faults), f"check the network and the package sources, then repeat; {BY_HAND}")
        check_and_put_in_place(fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_and_put_in_place(fresh: Path) -> None:
    shutil.rmtree(fresh / "apt")
    shutil.rmtree(fresh / "usr/share", ignore_errors=True)  # manual pages and the like
    try:
        version = version_of(installed_in(fresh))
    except ConfigError as error:
        give_up(f"what was unpacked does not run: {error}", BY_HAND)
    if version < OLDEST:
        give_up(f"that is only {'.'.join(map(str, version))}; needed: {OLDEST_TEXT}", BY_HAND)
    shutil.rmtree(PRIVATE_PREFIX, ignore_errors=True)
    fresh.rename(PRIVATE_PREFIX)
    say(f"CRIU {'.'.join(map(str, version))} is ready: .venv/criu")


def main() -> None:
    if is_new_enough():
        return
    if candidate_version() >= OLDEST:
        install_distribution_package()
    else:
        install_privately()


if __name__ == "__main__":
    main()
