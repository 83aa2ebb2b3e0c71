"""What `omfs-admin doctor` asks about this machine: one probe a row, each with what to do where the answer is no.

A probe only looks; what it needs of the kernel is in kernel/abilities.py.  NEEDED means that something of omfs does not
work without it, WANTED that something is slower or is done without.  Called by admin_doctor.py, as root.
"""

from __future__ import annotations

import enum
import os
import re
import resource
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NamedTuple

from omfs.config import Settings
from omfs.errors import ConfigError
from omfs.kernel import abilities
from omfs.kernel.credentials import CAP_SYS_RESOURCE
from omfs.kernel.criuprogram import OLDEST, CriuProgram, find_criu, run, version_of
from omfs.kernel.mounting import mounts

FUSE_OLDEST: Final = (7, 31)  # Linux 5.4: what libfuse 3.14 and the mount take for granted
NEW_KERNEL: Final = "a newer kernel, or one that is built with it"
OPEN_FILES_WANTED: Final = 65536  # mignode has one for each process that it knows, the export one for each open file
_LAST_LINES: Final = 3


class Weight(enum.Enum):
    NEEDED = "needed"
    WANTED = "wanted"


class Result(enum.Enum):
    YES = "yes"
    NO = "NO"


class Row(NamedTuple):
    """*used_for* completes "without it, no ..."; *remedy*: what to do where it is NO."""

    name: str
    weight: Weight
    used_for: str
    result: Result
    text: str
    remedy: str = ""

    @property
    def is_missed(self) -> bool:
        return self.result is Result.NO and self.weight is Weight.NEEDED


class Said(NamedTuple):
    """What a probe found: *remedy* is "" where all is well."""

    text: str
    remedy: str = ""


class Probe(NamedTuple):
    name: str
    weight: Weight
    used_for: str
    remedy: str  # where the kernel refuses
    ask: Callable[[Settings], Said]


def probe_all(settings: Settings) -> list[Row]:
    """Every row, in the order of the table."""
    return [_row(probe, settings) for probe in PROBES]


def _row(probe: Probe, settings: Settings) -> Row:
    try:
        said = probe.ask(settings)
    except OSError as error:
        said = Said(os.strerror(error.errno) if error.errno else str(error), probe.remedy)
    except ConfigError as error:
        said = Said(str(error), probe.remedy)
    result = Result.NO if said.remedy else Result.YES
    return Row(probe.name, probe.weight, probe.used_for, result, said.text, said.remedy)


# ---------------------------------------------------------------- CRIU


def _criu(settings: Settings) -> Said:
    criu = find_criu(settings.criu)
    found = version_of(criu)
    text = f"{'.'.join(map(str, found))}, {_place(criu)}"
    if found < OLDEST:
        return Said(f"{text}: older than {'.'.join(map(str, OLDEST))}", INSTALL_CRIU)
    return Said(text)


def _place(criu: CriuProgram) -> str:
    return f"private: {criu.prefix}" if criu.is_private else f"of the system: {criu.path}"


def _criu_check(settings: Settings) -> Said:
    """`criu check`: what it can't do without; --all: what some processes need."""
    criu = find_criu(settings.criu)
    with tempfile.TemporaryDirectory() as folder:
        checked = run(criu, "check", "--work-dir", folder)
        everything = run(criu, "check", "--all", "--work-dir", folder)
    if checked.returncode != 0:
        return Said(errors_of(checked.stderr), NEW_KERNEL)
    missing = errors_of(everything.stderr)
    return Said(f"looks good; missing for some processes: {missing}" if missing else "looks good")


def errors_of(log: str) -> str:
    """The messages of CRIU's last lines, without where in its source they are."""
    said = [re.sub(r"^.*?(?:Error|Warn) +\([^)]*\): *", "", line).strip() for line in log.splitlines()]
    told = [line for line in dict.fromkeys(said) if line and "kdat cache" not in line and "Looks good" not in line]
    return "; ".join(told[-_LAST_LINES:])


def _run_folder(_: Settings) -> Said:
    """CRIU writes what it learnt about the kernel to /run/criu.kdat, and only where /run is a tmpfs."""
    kind = next((line.fstype.decode() for line in reversed(mounts()) if line.mountpoint == b"/run"), "no mount")
    if kind != "tmpfs":
        return Said(
            f"/run is on disk ({kind}): each start of CRIU costs 80 ms", "mount a tmpfs on /run, as systemd does"
        )
    return Said("/run is a tmpfs")


def _soft_dirty(_: Settings) -> Said:
    if not abilities.has_soft_dirty():
        return Said("written pages are not marked", "a kernel with CONFIG_MEM_SOFT_DIRTY; without it nothing is wrong")
    return Said("written pages are marked")


def _userfaultfd(_: Settings) -> Said:
    abilities.try_userfaultfd()
    return Said("page faults can be answered")


# ---------------------------------------------------------------- FUSE


def _fuse(_: Settings) -> Said:
    greeting = abilities.fuse_greeting()
    text = f"protocol {_dotted(greeting.version)}"
    if greeting.version < FUSE_OLDEST:
        return Said(f"{text}: older than {_dotted(FUSE_OLDEST)}", NEW_KERNEL)
    lacking = [name for name, flag in abilities.FUSE_FLAGS.items() if not greeting.flags & flag]
    return Said(f"{text}, without {', '.join(lacking)}" if lacking else text)


def _fuse_library(_: Settings) -> Said:
    try:
        text = f"pyfuse3 {version('pyfuse3')}"
    except PackageNotFoundError:
        return Said("pyfuse3 is not installed", "`make install`")
    import pyfuse3  # noqa: F401  (only to see which libfuse it brings)

    maps = Path("/proc/self/maps").read_text()
    found = re.search(r"/libfuse3\.so\.([0-9.]+)$", maps, re.MULTILINE)
    return Said(f"{text}, libfuse {found[1]}" if found else text)


def _passthrough(_: Settings) -> Said:
    if not abilities.fuse_greeting().flags & abilities.FUSE_PASSTHROUGH:
        return Said("not offered", "Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH; without it nothing is wrong")
    return Said("offered")


# ---------------------------------------------------------------- the rest of the kernel


def _fanotify(_: Settings) -> Said:
    abilities.try_fanotify()
    return Said("whole file systems can be watched")


def _file_leases(settings: Settings) -> Said:
    abilities.try_file_lease(Path(tempfile.gettempdir()))
    break_s = int(Path("/proc/sys/fs/lease-break-time").read_text())
    if break_s <= settings.lease_term_s:
        wanted = (
            f"`sysctl fs.lease-break-time=45`, or a smaller lease_term_s in omfs.toml (it is {settings.lease_term_s:g})"
        )
        return Said(f"broken after {break_s} s, before others have given theirs back", wanted)
    return Said(f"broken after {break_s} s")


def _seccomp(_: Settings) -> Said:
    killable = abilities.try_seccomp_notification()
    return Said("with killable waits" if killable else "without killable waits (Linux 5.19)")


def _namespaces(_: Settings) -> Said:
    refused = []
    for name, kind in abilities.NAMESPACES.items():
        try:
            abilities.try_namespace(kind)
        except OSError as error:
            refused.append(f"{name} ({error.strerror})")
    if refused:
        return Said(
            f"refused: {', '.join(refused)}", "look at /proc/sys/user/max_*_namespaces; give root its capabilities"
        )
    return Said(", ".join(abilities.NAMESPACES))


# ---------------------------------------------------------------- limits and the system


def _open_files(_: Settings) -> Said:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < OPEN_FILES_WANTED:
        return Said(f"{hard} at most", f"LimitNOFILE={OPEN_FILES_WANTED} or more (systemd), `ulimit -Hn` elsewhere")
    return Said("no limit" if hard < 0 else f"{hard} at most")


def _locked_memory(_: Settings) -> Said:
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if has_capability(CAP_SYS_RESOURCE, Path("/proc/self/status").read_text()):
        return Said("limits can be raised")
    text = "no limit" if hard < 0 else f"{hard >> 10} KiB at most"
    return Said(
        f"CAP_SYS_RESOURCE is missing; locked memory: {text}",
        "start the daemons with CAP_SYS_RESOURCE; without it a program with higher limits than theirs can't move here",
    )


def has_capability(number: int, status: str) -> bool:
    """Whether /proc/PID/status has it among the effective ones."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> number & 1)


def _systemd(_: Settings) -> Said:
    if not Path("/run/systemd/system").is_dir():
        return Said("another init runs", "start omfs-export and mignode from that init, or by hand")
    return Said("it runs")


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


LOCAL_TMP: Final = f"a local file system for {tempfile.gettempdir()}, or {NEW_KERNEL}"
INSTALL_CRIU: Final = "`make install` puts a private one in place; or install it and name it in omfs.toml: criu = ..."

PROBES: Final = (
    Probe("fuse", Weight.NEEDED, "mount", "load the module (`modprobe fuse`); /dev/fuse must exist", _fuse),
    Probe("fuse library", Weight.NEEDED, "mount", "`make install`", _fuse_library),
    Probe("fuse passthrough", Weight.WANTED, "native speed through FUSE", NEW_KERNEL, _passthrough),
    Probe("file leases", Weight.NEEDED, "caching by others", LOCAL_TMP, _file_leases),
    Probe("fanotify", Weight.NEEDED, "caching by others", "Linux 5.17 or newer with CONFIG_FANOTIFY", _fanotify),
    Probe("namespaces", Weight.NEEDED, "guests, no lab", NEW_KERNEL, _namespaces),
    Probe("seccomp notification", Weight.NEEDED, "guests", "Linux 5.0 or newer with CONFIG_SECCOMP_FILTER", _seccomp),
    Probe("criu", Weight.NEEDED, "migration", INSTALL_CRIU, _criu),
    Probe("criu check", Weight.NEEDED, "migration", INSTALL_CRIU, _criu_check),
    Probe("criu cache", Weight.WANTED, "quick start of CRIU", "", _run_folder),
    Probe("soft-dirty", Weight.WANTED, "pre-dump", NEW_KERNEL, _soft_dirty),
    Probe("userfaultfd", Weight.WANTED, "lazy pages", "a kernel with CONFIG_USERFAULTFD", _userfaultfd),
    Probe("open files", Weight.WANTED, "thousands of open files", "", _open_files),
    Probe("raising limits", Weight.WANTED, "guest with high limits", "", _locked_memory),
    Probe("systemd", Weight.WANTED, "start at boot", "", _systemd),
)  # fmt: skip
