"""Sandboxes and segments, which no dump holds: a real program at home that makes them, below home's filter."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dfsa.callnumbers import NUMBERS
from dfsa.guestfilter import filter_at_home
from dfsa.router import Router
from dfsa.verdict import LASTING, judged_at_home
from mignode.guestfolder import GuestFolder
from mignode.lasting import Rooted, check_mobile, handlers, reasons_for
from mignode.reasons import Kind
from omfs.errors import RemoteFailure
from omfs.kernel.libc import system_call
from tests.unit.guests import MACHINE, Guest, served

CONFINE = """
import struct
rules = call('landlock_create_ruleset', struct.pack('=Q', 1 << 1), 8, 0)  # writes nowhere
call('prctl', 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
say(call('landlock_restrict_self', rules, 0))
try:
    open('/dev/null', 'w').close()
    say('free')
except PermissionError:
    say('confined')
"""
with_landlock = pytest.mark.skipif(
    system_call(NUMBERS[MACHINE]["landlock_create_ruleset"], None, 0, 1) < 0, reason="this kernel has no Landlock"
)


async def outcome(program: str, noted: list[str]) -> list[object]:
    with Guest(program, filter_=filter_at_home(MACHINE)) as guest:
        router = Router(guest.listener(), handlers(noted.append), judge=judged_at_home)
        return await served(guest, router)


@with_landlock
async def test_who_confines_itself_does_and_is_noted() -> None:
    noted: list[str] = []
    assert await outcome(CONFINE, noted) == [0, "confined"]
    assert noted == ["landlock_restrict_self"]


@pytest.mark.skipif(MACHINE != "x86_64", reason="no other machine has segments")
async def test_segments_are_noted_when_they_are_set() -> None:
    look, noted = "say(call('modify_ldt', 0, ctypes.create_string_buffer(64), 64))\n", list[str]()
    assert await outcome(look, noted) == [0]
    assert noted == []
    for number in (1, 0x11, 1 << 32 | 1):  # the upper half is nothing to the kernel
        made = f"say(call('modify_ldt', {number}, (ctypes.c_uint * 4)(0, 4096, 0xfffff, 0x51), 16))\n"
        assert await outcome(made + look, noted) == [0, 64]
        assert noted.pop() == "modify_ldt"


@with_landlock
async def test_what_can_not_be_noted_is_not_done() -> None:
    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Guest(CONFINE, filter_=filter_at_home(MACHINE)) as guest:
        router = Router(guest.listener(), handlers(full), judge=judged_at_home)
        assert await served(guest, router) == [-errno.ENOSPC, "free"]


def test_what_is_noted_is_found_again_and_goes_with_the_guest(tmp_path: Path) -> None:
    folder = GuestFolder(tmp_path, "1.2.3")
    folder.make()
    assert folder.rooted is None
    folder.rooted = Rooted(("modify_ldt",))
    assert GuestFolder(tmp_path, "1.2.3").rooted == Rooted(("modify_ldt",))
    folder.remove()
    assert folder.rooted is None


def test_each_has_its_reason() -> None:
    assert {one.kind for one in reasons_for(LASTING)} == {Kind.SANDBOX, Kind.SEGMENTS}
    check_mobile(())
    with pytest.raises(RemoteFailure, match="has confined itself"):
        check_mobile(["landlock_restrict_self"])
