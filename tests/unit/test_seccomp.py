"""The listener by itself, with real threads that wait below a filter."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

import pytest

from dfsa.callnumbers import NUMBERS
from omfs.kernel.bpf import Action, assemble
from omfs.kernel.seccomp import Listener, Notification, install
from tests.unit.guests import MACHINE, Guest


def next_of(listener: Listener) -> Notification:
    select.select([listener.descriptor], [], [], 20)
    found = listener.receive()
    assert found is not None
    return found


def test_a_call_is_told_with_all_its_arguments() -> None:
    with Guest("say(call('mount', 1, 2**63 - 1, -1, 4, 5, 6))") as guest:
        listener = guest.listener()
        asked = next_of(listener)
        assert (asked.thread, asked.call) == (guest.process.pid, NUMBERS[MACHINE]["mount"])
        assert asked.arguments == (1, 2**63 - 1, 2**64 - 1, 4, 5, 6)
        assert listener.waits(asked.id)
        assert listener.receive() is None  # nobody else
        assert listener.answer(asked.id, 12)
        assert not listener.answer(asked.id, 13)
        assert guest.said() == [12]
        assert not listener.waits(asked.id)
        assert listener.is_deserted()
        listener.close()
        listener.close()


def test_a_descriptor_is_put_in_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("mine")
    program = """
descriptor = os.open("/", os.O_RDONLY)
say(descriptor)
say([call("mount"), os.read(descriptor, 10).decode(), os.get_inheritable(descriptor)])
"""
    with Guest(program) as guest, (tmp_path / "one").open("rb") as one:
        listener = guest.listener()
        asked = next_of(listener)
        assert listener.put(asked.id, one.fileno(), guest.heard(), close_on_exec=True)
        assert listener.waits(asked.id)
        with pytest.raises(OSError, match="Bad file descriptor"):
            listener.put(asked.id, -1, 0, close_on_exec=True)
        assert listener.fail(asked.id, errno.ENODEV)
        assert not listener.put(asked.id, one.fileno(), 0, close_on_exec=True)
        assert guest.said() == [[-errno.ENODEV, "mine", False]]
        listener.close()


def test_who_dies_before_it_is_received_is_not_waited_for() -> None:
    with Guest("call('mount')") as guest:
        listener = guest.listener()
        select.select([listener.descriptor], [], [], 20)
        guest.process.kill()
        guest.process.wait()
        assert listener.receive() is None
        assert listener.is_deserted()
        listener.close()


def test_a_32_bit_call_does_not_get_through() -> None:
    """int 0x80 takes other numbers: its 20 is getpid, which is 39 here.  Only x86 has it."""
    if MACHINE != "x86_64":
        return
    program = """
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53b814000000cd805bc3"))  # push rbx; mov eax, 20; int 0x80; pop rbx; ret
say(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
    with Guest(program) as guest:
        assert guest.said() == [-errno.ENOSYS]
        os.close(guest.descriptor)


@pytest.mark.parametrize("program", [b"", b"\6\0\0\0\0\0\0", assemble(Action(0x7FFF0000))[:4]])
def test_what_is_no_filter_is_refused(program: bytes) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        install(program)
