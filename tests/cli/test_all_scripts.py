"""Every command of ours: --help on stdout with status 0, a wrong option on stderr with the status of wrong usage."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mignode.mosrunoptions import WRAPPERS

SCRIPTS: dict[str, str] = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "scripts"
]
AS_MOUNT = {"omfs", "mount.fuse.omfs", "umount.fuse.omfs"}  # mount(8), umount(8): 1 is wrong usage
AS_ENV = {"mosrun", *WRAPPERS}  # env(1), nice(1), timeout(1): below that are the program's own


def wrong_usage(script: str) -> int:
    if script in AS_ENV:
        return 125
    return 1 if script in AS_MOUNT else 2


def run(script: str, word: str) -> subprocess.CompletedProcess[str]:
    module, function = SCRIPTS[script].split(":")
    call = f"import sys; from {module} import {function}; sys.argv[0] = {script!r}; sys.exit({function}())"
    return subprocess.run(
        [sys.executable, "-c", call, word], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_help_and_a_wrong_option(script: str) -> None:
    helped = run(script, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: " in helped.stdout.lower()
    refused = run(script, "--nonsense")
    assert (refused.returncode, refused.stdout) == (wrong_usage(script), ""), refused.stderr
    assert script in refused.stderr or "usage: " in refused.stderr
    assert "Traceback" not in refused.stderr
