"""/mfs/proc, mounted: who writes is told to whoever takes the value."""

from __future__ import annotations

from pathlib import Path

from tests.unit.controlmount import ControlMount


def test_who_writes_need_not_be_who_it_is_about(tmp_path: Path) -> None:
    """Who waits in a write to goto can't be frozen to be moved, so mignode has to know."""
    mount = ControlMount(tmp_path)
    try:
        told = mount.run("echo $$; echo 1 > proc/self/goto; sh -c 'echo $$; echo 1 > proc/$PPID/goto'").stdout.split()
    finally:
        mount.end()
    assert mount.source.writers == [int(pid) for pid in told]
    assert [target.pid for target, *_ in mount.source.writes] == [int(told[0])] * 2
