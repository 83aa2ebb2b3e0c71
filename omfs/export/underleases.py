"""The owner's door for requests: what others hold is recalled first, then the request is executed, then granted.

    free   nobody is in the way (nearly always): executed at once, in the reader task
    else   a ticket: recalls, wait, look again at what is concerned (a name may mean another object by then), execute

What a request does is service.py's; who is in the way, cache/owner.py's.  A slow request keeps its ticket until it is
executed, so that nothing is granted of what it changes meanwhile.  The reply is completed with the grants in the same
step in which it is made: a recall that comes later has a higher serial.

Called by net/server.py; built by daemon.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

from omfs import wire
from omfs.cache.owner import Need
from omfs.cache.rules import Use
from omfs.errors import OpenLost
from omfs.export.guards import Guards
from omfs.export.leasing import Leasing
from omfs.export.needs import NEEDS, whole_data
from omfs.export.service import ExportService, Holder, MaybeSlow
from omfs.net.server import Answer, Buffer, Session
from omfs.wiretypes import Mode

_OPENS: Final = frozenset({wire.OpenFile, wire.CreateFile, wire.SetAttributes})


class UnderLeases:
    """The service of net/server.py."""

    def __init__(self, inner: ExportService, leasing: Leasing, guards: Guards) -> None:
        self.leasing = leasing
        self._inner = inner
        self._guards = guards
        inner.grant = leasing.grant

    # ------------------------------------------------------------ for net/server.py

    def answer(self, session: Session, request: wire.Request, bulk: Buffer) -> MaybeSlow:
        """The reply, or a coroutine that returns it.  OSError, OmfsError."""
        kind = type(request)
        if session.data is None:
            self._inner.begin_session(session)
            self.leasing.begin_session(session)
        if isinstance(request, wire.ReturnLeases):
            self.leasing.returned(session.key, request)
            return wire.Done(), b""
        needs: tuple[Need, ...] = ()
        if kind in NEEDS:
            guarded = self._guarded(request)
            cached_as = self._guards.cached_as(guarded) if guarded is not None else []
            if cached_as or self.leasing.may_be_in_the_way(session.key):
                needs = self._needs(session, request, cached_as)
            if needs and not self.leasing.owner.is_free(session.key, needs):
                return self._when_recalled(session, request, bulk, needs)
            if guarded is not None:
                self._guards.remove(guarded)
        try:
            answer = self._inner.answer(session, request, bulk)
        except FileNotFoundError as error:
            if isinstance(request, wire.LookUp) and error.errno == errno.ENOENT:
                return self._missing(session, request), b""
            raise
        if isinstance(answer, tuple):
            grant = _GRANTS.get(kind)
            return answer if grant is None else (grant(self, session, request, answer[0]), answer[1])
        if kind in NEEDS:
            return self._when_recalled(session, request, bulk, needs or self._needs(session, request, []), answer)
        return answer

    def given_up(self, session: Session, reply: wire.Message) -> None:
        self._inner.given_up(session, reply)

    def session_ended(self, session: Session) -> None:
        self._inner.session_ended(session)
        self.leasing.session_ended(session.key, session.heard_s)

    # ------------------------------------------------------------ changes

    def _guarded(self, request: Any) -> bytes | None:
        """The object whose data nobody may have cached while the request is executed."""
        if type(request) in _OPENS and self._guards.any:
            return whole_data(request, self._inner.disk)
        return None

    def _needs(self, session: Session, request: Any, cached_as: list[bytes]) -> tuple[Need, ...]:
        holder: Holder | None = session.data
        if holder is None:
            raise OpenLost("the session ended")
        needs = NEEDS[type(request)](self._inner.disk, holder.files, request)
        return (*needs, *(Need(handle, Use.CHANGE, everybody=True) for handle in cached_as))

    async def _when_recalled(
        self,
        session: Session,
        request: Any,
        bulk: Buffer,
        needs: tuple[Need, ...],
        work: Coroutine[Any, Any, Answer] | None = None,
    ) -> Answer:
        """Execute the request, or the *work* that it turned out to be, when nobody is in the way any more."""
        try:
            while True:
                async with self.leasing.recalled(session.key, needs):
                    guarded = self._guarded(request)
                    if work is None:
                        cached_as = self._guards.cached_as(guarded) if guarded is not None else []
                        again = self._needs(session, request, cached_as)
                        if not set(again) <= set(needs) and not self.leasing.owner.is_free(session.key, again):
                            needs = again
                            continue
                    if guarded is not None:
                        self._guards.remove(guarded)
                    answer = self._inner.answer(session, request, bulk) if work is None else work
                    work = None
                    if not isinstance(answer, tuple):
                        return await answer  # others may have changed the object since its attributes were read
                grant = _GRANTS.get(type(request))
                return answer if grant is None else (grant(self, session, request, answer[0]), answer[1])
        finally:
            if work is not None:
                work.close()

    # ------------------------------------------------------------ grants

    def _missing(self, session: Session, request: wire.LookUp) -> wire.Message:
        serial, (mode,) = self.leasing.grant(session.key, (request.parent,))
        if mode is Mode.NONE:
            return wire.Failed(errno.ENOENT)
        return wire.NameMissing(serial, mode)

    def _grant_found(self, session: Session, request: Any, reply: wire.Found) -> wire.Found:
        serial, (mode, parent_mode) = self.leasing.grant(session.key, (reply.handle, request.parent))
        if not serial:
            return reply
        return wire.Found(reply.handle, reply.attributes, serial, mode, parent_mode, reply.parent, reply.lists_all)

    def _grant_changed(
        self, session: Session, request: wire.RemoveName | wire.RenameName, reply: wire.NamesChanged
    ) -> wire.NamesChanged:
        parents: tuple[bytes, ...] = (request.parent,)
        if isinstance(request, wire.RenameName) and request.new_parent != request.parent:
            parents = (request.parent, request.new_parent)
        serial, modes = self.leasing.grant(session.key, parents)
        return wire.NamesChanged(reply.parents, serial, tuple(modes))

    def _grant_root(self, session: Session, request: wire.AttachTree, reply: wire.Found) -> wire.Found:
        serial, (mode,) = self.leasing.grant(session.key, (reply.handle,))
        return wire.Found(reply.handle, reply.attributes, serial, mode)

    def _grant_attributes(self, session: Session, request: Any, reply: wire.AttributesGot) -> wire.AttributesGot:
        serial, (mode,) = self.leasing.grant(session.key, (request.handle,))
        return wire.AttributesGot(reply.attributes, serial, mode) if serial else reply

    def _grant_open(self, session: Session, request: wire.OpenFile, reply: wire.FileOpened) -> wire.FileOpened:
        # Guarded first: what a native program wrote before is recalled by then, so that no old size is granted.
        holder: Holder = session.data
        opened = holder.files.get(reply.open_id)
        may_cache = not opened.is_writable and self._guards.put(opened.place, opened.fd)
        serial, (mode,) = self.leasing.grant(session.key, (request.handle,))
        return wire.FileOpened(reply.open_id, serial, mode, may_cache and mode is not Mode.NONE)

    def _grant_created(self, session: Session, request: wire.CreateFile, reply: wire.FileCreated) -> wire.FileCreated:
        serial, (mode, parent_mode) = self.leasing.grant(session.key, (reply.handle, request.parent))
        return wire.FileCreated(
            reply.open_id, reply.handle, reply.attributes, serial, mode, parent_mode, False, reply.bare, reply.parent
        )


Grant: TypeAlias = Callable[[UnderLeases, Session, Any, Any], wire.Message]

_GRANTS: Final[dict[type[Any], Grant]] = {
    wire.AttachTree: UnderLeases._grant_root,
    wire.LookUp: UnderLeases._grant_found,
    wire.MakeNode: UnderLeases._grant_found,
    wire.MakeDirectory: UnderLeases._grant_found,
    wire.MakeSymlink: UnderLeases._grant_found,
    wire.MakeLink: UnderLeases._grant_found,
    wire.RemoveName: UnderLeases._grant_changed,
    wire.RenameName: UnderLeases._grant_changed,
    wire.GetAttributes: UnderLeases._grant_attributes,
    wire.SetAttributes: UnderLeases._grant_attributes,
    wire.OpenFile: UnderLeases._grant_open,
    wire.CreateFile: UnderLeases._grant_created,
}
