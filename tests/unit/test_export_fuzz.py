"""Whatever a peer asks, it gets an answer or an error of the kernel's kind: nothing else is disturbed."""

from __future__ import annotations

import os
import stat
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings, strategies as st

from omfs import wire
from omfs.errors import OmfsError
from omfs.export.handles import HANDLE_MAX_BYTES
from omfs.export.service import ANSWERED_ELSEWHERE, ExportService
from tests.unit.exportroom import ROOT, Asker, FakeSession, mounted, serving

pytestmark = pytest.mark.lab

MESSAGES = sorted(
    set(typing.get_args(wire.Request)) - ANSWERED_ELSEWHERE - {wire.AttachTree}, key=lambda kind: kind.__name__
)
EDGES = [-(2**63), -1, 0, 1, 2, 3, 4096, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
NAMES = [b"", b".", b"..", b"file", b"link", b"sub", b"fifo", b"a/b", b"/etc", b"a\0", b"n" * 255, b"n" * 256, b"\xff"]
XATTR_NAMES = [b"user.a", b"trusted.a", b"security.capability", b"system.posix_acl_access", b"x", b""]

numbers = st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), 2**64 - 1), st.integers(0, 10**6))
callers = st.one_of(
    st.sampled_from([ROOT, wire.Caller(1000, 1000), wire.Caller(0, 1000, (5,))]),
    st.builds(wire.Caller, numbers, numbers, st.lists(numbers, max_size=3).map(tuple)),
)


class OneOfOurs(int):
    """Stands for a handle or open id of the playground: which one there is depends on the requests before."""


ours = st.integers(0, 9).map(OneOfOurs)


def field_values(field: str, kind: Any) -> st.SearchStrategy[Any]:
    """What a field may hold: often what makes sense, always what its type allows."""
    if type(None) in typing.get_args(kind):
        return st.one_of(
            st.none(), field_values(field, next(one for one in typing.get_args(kind) if one is not type(None)))
        )
    if field in ("handle", "parent", "new_parent"):
        return st.one_of(ours, ours, st.binary(max_size=HANDLE_MAX_BYTES + 1))
    if field in ("open_id", "source_open_id", "target_open_id"):
        return st.one_of(ours, ours, numbers)
    if field == "open_ids":
        return st.lists(st.one_of(ours, numbers), max_size=3).map(tuple)
    if field == "wait":
        return st.just(False)
    if kind is wire.Moving:
        return st.builds(wire.Moving, st.sampled_from(["guest/2", ""]), numbers)
    if kind is wire.Caller:
        return callers
    if kind is bytes:
        return st.one_of(st.sampled_from(NAMES + XATTR_NAMES), st.binary(max_size=300))
    return st.booleans() if kind is bool else numbers


class Playground:
    """A service and a few objects on a small disk of their own, whose handles are all that the requests can name."""

    def __init__(self, service: ExportService, room: Path) -> None:
        self.service = service
        self.room = room
        self.asker = Asker(service, FakeSession())

    async def ask(self, kind: type[wire.Message], values: dict[str, Any], bulk: bytes) -> wire.Message:
        """One request, with the objects that there are now in place of OneOfOurs."""
        handles, opens = await self._objects()

        def real(field: str, value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(real(field, one) for one in value)
            if not isinstance(value, OneOfOurs):
                return value
            choice = opens if "open_id" in field else handles
            return choice[value % len(choice)]

        request = kind(**{field: real(field, value) for field, value in values.items()})
        reply, _ = await self.asker.ask(request, bulk)
        return reply

    def _refill(self) -> None:
        """Make again what requests may have taken away."""
        for name, make in (("file", Path.touch), ("sub", Path.mkdir), ("fifo", os.mkfifo)):
            if not os.path.lexists(self.room / name):
                make(self.room / name)
        if not os.path.lexists(self.room / "link"):
            (self.room / "link").symlink_to("/etc/passwd")

    async def _objects(self) -> tuple[list[bytes], list[int]]:
        """Handles and open ids of all that is there."""
        self._refill()
        top = (await self.asker.walk(self.room)).handle
        entries = list((await self.asker.list(top)).values())
        directory = await self.asker.get(wire.OpenDirectory(top, ROOT), wire.FileOpened)
        files = [entry.handle for entry in entries if stat.S_ISREG(entry.attributes.mode)]
        opens = [await self.asker.open(handle, flags) for handle in files for flags in (os.O_RDONLY, os.O_RDWR)]
        return [top, *(entry.handle for entry in entries)], [directory.open_id, *opens]


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    place = tmp_path_factory.mktemp("fuzz")
    with (
        mounted(place / "disk", "-t", "tmpfs", "-o", "size=1m", "omfs-test") as room,
        serving(place / "state") as service,
    ):
        yield Playground(service, room)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_request_is_answered(playground: Playground, kind: type[wire.Message], data: st.DataObject) -> None:
    fields = {field.name: field_values(field.name, field.type) for field in msgspec.structs.fields(kind)}
    values = data.draw(st.fixed_dictionaries(fields))
    bulk = data.draw(st.sampled_from([b"", b"data"]))
    try:
        reply = trio.run(playground.ask, kind, values, bulk)
    except OmfsError:
        return
    except OSError as error:
        if not error.errno:
            raise
        return
    finally:
        playground.asker.end()
        playground.asker = Asker(playground.service, FakeSession())
        uids = next(line for line in Path("/proc/thread-self/status").read_text().splitlines() if line[:4] == "Uid:")
        assert uids.split()[1:] == ["0", "0", "0", "0"]
    assert isinstance(reply, typing.get_args(wire.Reply))
