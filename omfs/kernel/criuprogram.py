"""Where CRIU is on this machine, and how it is started so that it runs in any root directory.

Two places: a private prefix inside the Python environment, into which tools/criu.py unpacks Debian's packages where the
distribution's CRIU is too old, and the distribution's own (PATH).  omfs.toml may name another program.

CRIU works inside a guest's namespaces, where / is another machine's tree with libraries of its own.  So it is always
started by its own loader with its own libraries, all of them named through a descriptor of the prefix (or of this
machine's /, for the distribution's): /proc/self/fd/N leads there from any root.  The libraries of the system around are
never used for it, nor its for anything else: --library-path holds for this one program, not for what it starts.

Called by mignode/checkpoint.py, `omfs-admin doctor` and tools/criu.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final, NamedTuple

from omfs.errors import ConfigError

OLDEST: Final = (4, 2)
"""Before it, pidfds and the system calls of Linux 6.x are not all known to it."""

PRIVATE_PREFIX: Final = Path(sys.prefix, "criu")
_PROGRAM: Final = "usr/sbin/criu"
_ANSWER_S: Final = 20.0
_MEND: Final = "`make install` (or any other target) puts a private CRIU in place where the distribution's is too old"


class CriuProgram(NamedTuple):
    """CRIU, and the tree that it finds its loader and libraries in: "/" for the distribution's."""

    prefix: Path
    program: str  # below prefix, without a leading slash
    loader: str
    libraries: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.prefix / self.program

    @property
    def is_private(self) -> bool:
        return self.prefix != Path("/")

    def command(self, *arguments: str, through: int | None = None) -> list[str]:
        """To start it; *through* is the number of a descriptor of `prefix` that it will have."""
        prefix = self.prefix if through is None else Path(f"/proc/self/fd/{through}")
        libraries = ":".join(str(prefix / folder) for folder in self.libraries)
        loader = [str(prefix / self.loader), "--inhibit-cache", "--library-path", libraries]
        return [*loader, str(prefix / self.program), *arguments]


def find_criu(named: str = "") -> CriuProgram:
    """The program *named* in omfs.toml, else the private one, else the first in PATH.

    Does not start it: whether it works and is new enough is said by `version_of`.  Raises ConfigError.
    """
    if named:
        return _below_root(Path(named))
    if (PRIVATE_PREFIX / _PROGRAM).exists():
        return installed_in(PRIVATE_PREFIX)
    found = shutil.which("criu", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise ConfigError(f"there is no CRIU on this machine: {_MEND}")
    return _below_root(Path(found))


def installed_in(prefix: Path, program: str = _PROGRAM) -> CriuProgram:
    """The one in the tree *prefix*.  Raises ConfigError where it or its loader is missing."""
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    folders = [f"usr/lib/{triplet}", "usr/lib64", "usr/lib"]  # Debian's, then the others'
    loader = next((path for folder in folders for path in sorted((prefix / folder).glob("ld-linux*.so.*"))), None)
    if loader is None:
        raise ConfigError(f"{prefix}: no dynamic loader in {', '.join(folders)}: {_MEND}")
    if not (prefix / program).is_file():
        raise ConfigError(f"{prefix / program}: no such program: {_MEND}")
    libraries = tuple(folder for folder in folders if (prefix / folder).is_dir())
    return CriuProgram(prefix, program, str(loader.relative_to(prefix)), libraries)


def _below_root(path: Path) -> CriuProgram:
    try:
        resolved = path.resolve(strict=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return installed_in(Path("/"), str(resolved.relative_to("/")))


def version_of(criu: CriuProgram) -> tuple[int, ...]:
    """As it says itself.  Raises ConfigError where it can't be started."""
    return parse_version(run(criu, "--version").stdout, criu.path)


def parse_version(said: str, path: Path) -> tuple[int, ...]:
    """Of what `criu --version` printed.  Raises ConfigError."""
    found = re.search(r"^Version: (\d+(?:\.\d+)*)", said, re.MULTILINE)
    if found is None:
        raise ConfigError(f"{path} does not say its version")
    return tuple(map(int, found[1].split(".")))


def run(criu: CriuProgram, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start it here and wait.  Raises ConfigError where it can't be started or does not end."""
    try:
        return subprocess.run(
            criu.command(*arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_ANSWER_S
        )
    except OSError as error:
        raise ConfigError(f"{criu.path}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{criu.path} {' '.join(arguments)}: no answer within {_ANSWER_S:.0f} s") from None
