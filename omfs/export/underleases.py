"""The owner's door for requests: what others hold is recalled first, then the request is executed, then granted.

    free   nobody is in the way (nearly always): executed at once, in the reader task
    else   a ticket: recalls, wait, look again at what is concerned (a name may mean another object by then), execute

What a request does is service.py's; who is in the way, cache/owner.py's.  A slow request keeps its ticket until it is
executed, so that nothing is granted of what it changes meanwhile.  The reply is completed with the grants in the same
step in which it is made: a recall that comes later has a higher serial.

EXCLUSIVE is granted with an open for writing, or when it is asked for, where nobody else holds anything and the file is
open nowhere else (guards.py); it is over when the file is closed.  Requests that only look cost two tests more while
nobody holds anything so.  A write that its program believes done (*behind*) is refused if the lease is lost: others may
have written since.

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
from omfs.export.files import Opened, SessionFiles
from omfs.export.guards import Guards
from omfs.export.leasing import Leasing
from omfs.export.needs import NEEDS, looked_at, opens
from omfs.export.service import ExportService, Holder, MaybeSlow
from omfs.net.server import Answer, Buffer, Session
from omfs.wiretypes import Mode

_CLOSES: Final = (wire.CloseFile, wire.CloseFiles)
_OPENING: Final = frozenset({wire.OpenFile, wire.CreateFile, wire.SetAttributes})  # where guards may be in the way
_WRITES: Final = frozenset({wire.WriteBlocks, wire.AppendBlocks})


class UnderLeases:
    """The service of net/server.py."""

    def __init__(self, inner: ExportService, leasing: Leasing, guards: Guards) -> None:
        self.leasing = leasing
        self._inner = inner
        self._guards = guards
        inner.leases = leasing

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
        if kind in NEEDS:
            return self._change(session, request, bulk)
        owner = self.leasing.owner
        if owner.exclusive or owner.in_grace:
            return self._look(session, request, bulk)
        answer = self._execute(session, request, bulk)
        return self._granted(session, request, answer) if isinstance(answer, tuple) else answer

    def given_up(self, session: Session, reply: wire.Message) -> None:
        if session.data is not None and isinstance(reply, wire.FileOpened | wire.FileCreated):
            self._share_closed(session, wire.CloseFile(reply.open_id))
        self._inner.given_up(session, reply)

    def session_ended(self, session: Session) -> None:
        self._inner.session_ended(session)
        self.leasing.session_ended(session.key, session.heard_s)

    def _change(self, session: Session, request: Any, bulk: Buffer) -> MaybeSlow:
        needs: tuple[Need, ...] = ()
        if (type(request) in _OPENING and self._guards.any) or self.leasing.may_be_in_the_way(session.key):
            needs = self._needs(session, request)
            if not self.leasing.owner.is_free(session.key, needs, _goes_first(request)):
                return self._when_recalled(session, request, bulk, needs)
            self._guards.make_way(needs)
        answer = self._execute(session, request, bulk)
        if isinstance(answer, tuple):
            return self._granted(session, request, answer)
        return self._when_recalled(session, request, bulk, needs or self._needs(session, request), answer)

    def _look(self, session: Session, request: Any, bulk: Buffer) -> MaybeSlow:
        """What changes nothing, while somebody may have newer data than the disk."""
        is_look_up = type(request) is wire.LookUp
        if isinstance(request, _CLOSES):
            self._share_closed(session, request)
        elif not is_look_up and (needs := self._needs(session, request)):
            return self._when_recalled(session, request, bulk, needs)
        answer = self._execute(session, request, bulk)
        if not isinstance(answer, tuple):
            return answer
        if is_look_up and isinstance(answer[0], wire.Found):
            needs = self.leasing.newer_elsewhere(session.key, (answer[0].handle,))
            if needs:
                return self._when_recalled(session, request, bulk, needs)
        return self._granted(session, request, answer)

    # ------------------------------------------------------------ who is in the way

    def _files(self, session: Session) -> SessionFiles:
        holder: Holder | None = session.data
        if holder is None:
            raise OpenLost("the session ended")
        return holder.files

    def _needs(self, session: Session, request: Any) -> tuple[Need, ...]:
        if type(request) not in NEEDS:
            return self._needs_to_look(session, request)
        files = self._files(session)
        needs = NEEDS[type(request)](self._inner.disk, files, request)
        if self._guards.any:
            if type(request) is wire.CreateFile:
                opened = needs[0][:2] if needs and needs[0].use is not Use.NAME else None
            else:
                opened = opens(request, files)
            if opened is not None:
                needs += self._guards.in_the_way(*opened)
        return needs

    def _needs_to_look(self, session: Session, request: Any) -> tuple[Need, ...]:
        if type(request) is wire.LockRange:  # a descriptor of its own is opened for the lock
            opened = opens(request, self._files(session))
            return () if opened is None else self._guards.in_the_way(*opened)
        handle = looked_at(request, self._inner.disk)
        if handle is None:
            return ()
        return self.leasing.newer_elsewhere(session.key, (handle,))

    def _share_closed(self, session: Session, request: wire.CloseFile | wire.CloseFiles) -> None:
        """Before it is closed: nobody has it EXCLUSIVE any more, and its guard ends."""
        ids = (request.open_id,) if isinstance(request, wire.CloseFile) else request.open_ids
        for opened in self._files(session).known(ids).values():
            if opened.is_writable:
                self.leasing.share(session.key, opened.place.handle)

    # ------------------------------------------------------------ executing

    def _execute(self, session: Session, request: Any, bulk: Buffer) -> MaybeSlow:
        self._check_behind(session, request)
        if type(request) is wire.OpenFile and request.reclaim:
            return self._reopen(session, request)
        try:
            return self._inner.answer(session, request, bulk)
        except FileNotFoundError as error:
            if isinstance(request, wire.LookUp) and error.errno == errno.ENOENT:
                return self._missing(session, request), b""
            raise

    def _check_behind(self, session: Session, request: Any) -> None:
        """OSError EIO for a write that its program believes done, if others may have written since."""
        if _goes_first(request):
            opened = self._files(session).get(request.open_id)
            if not self.leasing.may_write_behind(session.key, opened.place.handle):
                raise OSError(errno.EIO, "the lease was lost")

    def _reopen(self, session: Session, request: wire.OpenFile) -> MaybeSlow:
        """After a restart: whoever held the file EXCLUSIVE gets the very descriptor that others are kept off by."""
        if self.leasing.may_write_behind(session.key, request.handle):
            fd = self._guards.claim(request.handle, request.flags)
            if fd >= 0:
                return self._inner.reopen_file(session, request, fd)
        return self._inner.answer(session, request, b"")

    async def _when_recalled(
        self,
        session: Session,
        request: Any,
        bulk: Buffer,
        needs: tuple[Need, ...],
        work: Coroutine[Any, Any, Answer] | None = None,
    ) -> Answer:
        """Execute the request, or the *work* that it turned out to be, when nobody is in the way any more."""
        key = session.key
        first, is_look_up = _goes_first(request), type(request) is wire.LookUp
        try:
            while True:
                async with self.leasing.recalled(key, needs, first, is_look_up):
                    if work is None:
                        again = self._needs(session, request)
                        if not set(again) <= set(needs) and not self.leasing.owner.is_free(key, again, first):
                            needs = again
                            continue
                        self._guards.make_way(again)
                    else:
                        self._check_behind(session, request)
                    answer = self._execute(session, request, bulk) if work is None else work
                    work = None
                    if not isinstance(answer, tuple):
                        answer = await answer
                        if type(request) is not wire.OpenFile:
                            return answer  # others may have changed the object since its attributes were read
                return self._granted(session, request, answer)
        finally:
            if work is not None:
                work.close()

    # ------------------------------------------------------------ grants

    def _granted(self, session: Session, request: Any, answer: Answer) -> Answer:
        grant = _GRANTS.get(type(request))
        if grant is None or isinstance(answer[0], wire.NameMissing | wire.Failed):
            return answer
        reply = grant(self, session, request, answer[0])
        if isinstance(reply, wire.FileOpened) and reply.data and request.wants_data:  # what is read now is guarded
            return reply, self._inner.whole_file(self._files(session).get(reply.open_id))
        return reply, answer[1]

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
        opened = self._files(session).get(reply.open_id)
        if opened.is_writable:
            serial, (mode,) = self._grant_writable(session, opened, ())
            return wire.FileOpened(reply.open_id, serial, mode)
        may_cache = self._guards.put(opened.place, opened.fd)
        serial, (mode,) = self.leasing.grant(session.key, (request.handle,))
        return wire.FileOpened(reply.open_id, serial, mode, may_cache and mode is not Mode.NONE)

    def _grant_created(self, session: Session, request: wire.CreateFile, reply: wire.FileCreated) -> wire.FileCreated:
        opened = self._files(session).get(reply.open_id)
        serial, (mode, parent_mode) = self._grant_writable(session, opened, (request.parent,))
        return wire.FileCreated(
            reply.open_id, reply.handle, reply.attributes, serial, mode, parent_mode, False, reply.bare, reply.parent
        )

    def _grant_asked(self, session: Session, request: wire.AskLease, reply: wire.LeaseGranted) -> wire.LeaseGranted:
        serial, (mode,) = self._grant_writable(session, self._files(session).get(request.open_id), ())
        return wire.LeaseGranted(serial, mode)

    def _grant_writable(self, session: Session, opened: Opened, others: tuple[bytes, ...]) -> tuple[int, list[Mode]]:
        """The open file, EXCLUSIVE where that is possible, and others that the reply carries."""
        handle, key = opened.place.handle, session.key
        handles = (handle, *others)
        if not opened.is_writable or not self.leasing.may_be_exclusive(key, handle):
            return self.leasing.grant(key, handles)
        if not self._guards.put_exclusive(opened.place, opened.fd):
            return self.leasing.grant(key, handles)
        granted = self.leasing.grant(key, handles, Mode.EXCLUSIVE)
        if granted[1][0] is not Mode.EXCLUSIVE:  # a native change was told just now
            self._guards.shared_again(handle)
        return granted


def _goes_first(request: Any) -> bool:
    """Whether this was written before a restart, perhaps: holders come back when all of it is here."""
    return type(request) in _WRITES and bool(request.behind)


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
    wire.AskLease: UnderLeases._grant_asked,
    wire.CreateFile: UnderLeases._grant_created,
}
