"""What the administrator set on this node (/mfs/proc/hpc/admin), kept over a restart.

A frozen struct with the original's defaults, and a store that replaces one small file before it lets the new values
hold: after a crash it is the old file or the new one.  What it does not do: parse what is written (controlfiles), act
on it, or keep nomfs (that is the export's).  Called by hpcfiles.py.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from mignode.nodeinfo import STANDARD_SPEED
from omfs.errors import ConfigError

FILE: Final = "mignode.json"


class AdminValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Names, ranges and defaults as openmosix-interfaces.md "Control files" has them."""

    block: bool = False  # no guests may come
    lstay: bool = False  # our own processes stay at home
    stay: bool = False  # nobody leaves by himself
    quiet: bool = False  # no load information is sent
    speed: int = 0  # 0: as measured (nodefacts)
    sspeed: int = STANDARD_SPEED
    decayinterval: int = 2  # seconds
    slowdecay: int = 975  # thousandths of the old statistics that stay after an interval
    fastdecay: int = 926
    overheads: tuple[int, ...] = (0,) * 14  # microseconds; 0: nobody has measured it
    mfscosts: tuple[int, ...] = (0,) * 6
    gateways: int = 0
    dfsalinks: str = ""

    @property
    def fits(self) -> bool:
        """What no value can say alone: a fast decay keeps no more than a slow one."""
        return self.fastdecay <= self.slowdecay


class AdminStore:
    """The values that hold, and the file that keeps them."""

    def __init__(self, state_dir: Path) -> None:
        """Raises ConfigError where the file can't be read: values that protect the node must not get lost silently."""
        self._path = state_dir / FILE
        try:
            self.values = msgspec.json.decode(self._path.read_bytes(), type=AdminValues)
        except FileNotFoundError:
            self.values = AdminValues()
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}") from None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self._path}: {error}; remove it to begin with the defaults") from None

    def change(self, **changes: object) -> None:
        """Set fields, on the disk first.  Raises OSError, and then nothing has changed."""
        values = msgspec.structs.replace(self.values, **changes)
        if values != self.values:
            replace_file(self._path, msgspec.json.encode(values) + b"\n")
            self.values = values


def replace_file(path: Path, data: bytes) -> None:
    """The new content, or the old one: whatever happens in between.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
