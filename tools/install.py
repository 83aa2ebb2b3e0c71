#!/usr/bin/env python3
"""Links this checkout's commands into the system, so that mount(8), fstab and systemd find them.

Only symbolic links, and only where nothing of another kind is in the way; `--remove` takes exactly those links away.
mount(8) looks for the helper of type fuse.omfs in /sbin, everything else goes to /usr/local/sbin.
Called by `make install` and `make uninstall`, as root.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELPERS = Path("/sbin")  # util-linux's default for mount.TYPE and umount.TYPE
COMMANDS = Path("/usr/local/sbin")
UNITS = Path("/etc/systemd/system")


def links() -> dict[Path, Path]:
    """Every link and what it points to."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    pairs = {
        (HELPERS if name.startswith(("mount.", "umount.")) else COMMANDS) / name: ROOT / ".venv/bin" / name
        for name in scripts
    }
    if UNITS.is_dir():
        pairs |= {UNITS / unit.name: unit for unit in sorted((ROOT / "systemd").glob("*.service"))}
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--remove", action="store_true", help="take the links away again")
    remove = parser.parse_args().remove
    for link, target in links().items():
        ours = link.is_symlink() and link.readlink() == target
        if remove and ours:
            link.unlink()
            print(f"==> removed {link}")
        elif not remove and not ours:
            if link.exists() or link.is_symlink():
                sys.exit(f"install: {link} exists and is not ours; move it away, then repeat")
            link.symlink_to(target)
            print(f"==> {link} -> {target}")


if __name__ == "__main__":
    main()
