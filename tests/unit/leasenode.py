"""A node of leasemodel.py: its mount daemon (leasedaemon.py), and the processes that make calls.

A reply that was taken and written may be processed much later by the process that waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from omfs.cache.holder import Lease
from omfs.wiretypes import Mode
from tests.unit.leasebehind import OpenFile
from tests.unit.leasedaemon import Daemon
from tests.unit.leasedisk import CHANGES_OF_DATA, DATA, DIRECTORIES, LOOKS, WRITES, Call, Register, Reply
from tests.unit.leasekernel import Dentry
from tests.unit.leasemodel import Steps


class Node(Daemon):
    # ------------------------------------------------------------ processes and the daemon's side of their calls

    def call(self, call: Call) -> None:
        self.pids += 1
        if call.kind in LOOKS:
            self.looking.add(self.pids)
        self.world.spawn(self._process(call._replace(pid=self.pids)), self, is_call=True)

    def _process(self, call: Call) -> Steps:
        returned, world = self.world.returned, self.world
        if call.kind in ("open", "ask", "fsync", "close"):
            yield from self._use_open_file(call)
            return
        write = None
        if call.kind in CHANGES_OF_DATA:
            open_file = self.behind.open_of(call.handle, call.pid) if call.kind in WRITES else None
            if open_file is None and call.kind in WRITES:
                return
            write = world.writes.begin(call.kind, call.handle, self.key, open_file.number if open_file else 0)
            call = call._replace(open_file=write.open_file, writes=(write.number,))
            if open_file is not None:
                open_file.users += 1
        for anew in (False, True):  # as the VFS's retry_estale
            registers: dict[str, Register] = {"look": (call.handle, call.name), "read": (call.handle, DATA)}
            register = registers.get(call.kind, call.handle)
            floor, early = returned.get(register, 0), world.writes.early_of(call.handle)
            made = {"stat": self._stat, "look": self._look, "read": self._read, "list": self._list}.get(
                call.kind, self._change
            )
            reply: Reply = yield from made(call, anew)
            if reply.result != "refused":
                break
            world.refusals += 1
        else:
            world.refused_twice += 1
        if call.kind in LOOKS and reply.result not in ("failed", "refused"):
            world.saw(register, reply.version, floor)
            world.writes.saw(register, reply.version, early if call.kind != "look" else ())
        if write is not None and reply.result == "ok":
            world.writes.returned(write)
        world.call_returned(reply.changed)
        if write is not None and open_file is not None:
            open_file.users -= 1

    def _use_open_file(self, call: Call) -> Steps:
        behind, writes = self.behind, self.world.writes
        if call.kind == "open":
            if call.handle in self.kernel.known:
                yield from self._open(call)
            return
        began = writes.tick()
        open_file = behind.open_of(call.handle, call.pid)
        if open_file is None:
            return
        if call.kind == "ask":
            yield from self._ask_lease(call._replace(open_file=open_file.number))
            return
        if call.kind == "close":
            open_file.is_closing = True
            yield lambda: not open_file.users
        if self.world.rules.drains_before_sync:
            yield from behind.drain(call.handle)
        if not self._reports(open_file):
            writes.synced(open_file.number, began)
        if call.kind == "close":
            del behind.opens[open_file.number]
            if not behind.is_open(call.handle):
                lease = self._lease(call.handle)
                lease.mode = min(lease.mode, Mode.SHARED)
            yield from self.ask(call._replace(open_file=open_file.number))

    def _reports(self, open_file: OpenFile) -> bool:
        """Whether this call has to tell that something was lost."""
        has_failed, open_file.has_failed = open_file.has_failed, False
        if has_failed:
            self.world.writes.reported(open_file.number)
        return has_failed

    def _open(self, call: Call) -> Steps:
        yield from self.behind.drain(call.handle)
        asked_in, number = self.round, self.world.writes.tick()
        reply = yield from self.ask(call._replace(open_file=number))
        if reply.result == "ok":
            self.behind.opens[number] = OpenFile(number, call.handle)
            if self._counts(asked_in):
                self.holder.granted(self._lease(call.handle), reply.serial, reply.mode)

    def _ask_lease(self, call: Call) -> Steps:
        asked_in = self.round
        reply = yield from self.ask(call)
        if reply.result == "ok" and self._counts(asked_in):
            self.holder.granted(self._lease(call.handle), reply.serial, reply.mode)

    def close_all(self) -> None:
        """As when all processes end."""
        for open_file in self.behind.opens.values():
            if not open_file.is_closing:
                self.call(Call("close", open_file.file))

    def _lease(self, handle: bytes) -> Lease:
        lease = self.leases.get(handle)
        if lease is None:
            lease = self.leases[handle] = self.holder.new_lease(handle)
        return lease

    def _counts(self, asked_in: int) -> bool:
        """Whether what was asked for in this round may be cached."""
        return asked_in == self.round or not self.world.rules.counts_rounds

    def _process_reply(self, handle: bytes) -> Steps:
        """The reply is written; what comes then is done by the process when it runs."""
        self.written[handle] = self.written.get(handle, 0) + 1
        yield None
        self.written[handle] -= 1

    def _permit(self, directory: bytes, pid: int) -> Steps:
        """As the kernel checks before it looks at any name there, and again with the directory locked."""
        reply = yield from self._stat(Call("stat", directory, pid=pid))
        return reply

    def _permit_all(self, directories: Iterable[bytes], pid: int) -> Steps:
        for directory in directories:
            reply = yield from self._permit(directory, pid)
            if reply.result != "ok":
                return reply
        return Reply("ok")

    def _stat(self, call: Call, anew: bool = False) -> Steps:
        kernel, handle = self.kernel, call.handle
        if handle not in kernel.known:
            return Reply("failed")
        if handle in kernel.attributes:
            return Reply("ok", kernel.attributes[handle])
        clock = kernel.clock
        if handle in DIRECTORIES:
            if (version := self._known(handle, handle)) and self._tell_known(handle):
                yield from self._process_reply(handle)
                kernel.learn(handle, version, True, clock)
                return Reply("ok", version)
            yield from self._wait_forgotten(handle, call.pid)
        elif self.world.rules.drains_before_looking:
            yield from self.behind.drain(handle)
        asked_in = self.round
        reply = yield from self.ask(call)
        lease = self._lease(handle)
        told = self._counts(asked_in) and self.holder.granted(lease, reply.serial, reply.mode) is not Mode.NONE
        yield from self._process_reply(handle)
        if reply.result == "ok" and handle in kernel.known:
            kernel.learn(handle, reply.version, told, clock)
        return reply

    def _look(self, call: Call, anew: bool) -> Steps:
        """*anew*: what is cached does not count (LOOKUP_REVAL)."""
        kernel, name = self.kernel, (call.handle, call.name)
        permitted = yield from self._permit(call.handle, call.pid)
        if permitted.result != "ok":
            return permitted
        dentry = kernel.dentries.get(name)
        if dentry and dentry.file and (anew or not dentry.cached):
            self.revalidating.append(name)
            reply = yield from self._look_up(call, dentry)
            self.revalidating.remove(name)
            return reply
        lock = kernel.locks[call.handle]
        if anew or not (dentry and dentry.cached):
            me = yield from lock.take(exclusive=False)
            dentry = kernel.dentries.get(name)
            reply = Reply("ok")
            is_cached = dentry is not None and dentry.cached and not anew
            if not is_cached:
                reply = yield from self._look_up(call, None)
            lock.inside.remove(me)
            if not is_cached:
                return reply
            assert dentry is not None
        return Reply("ok", dentry.version)

    def _look_up(self, call: Call, dentry: Dentry | None) -> Steps:
        """*dentry*: one that is there already and revalidated, without the lock."""
        kernel, name = self.kernel, (call.handle, call.name)
        while True:
            clock, asked_in, dirty = kernel.clock, self.round, self.behind.dirty()
            version = self._known(call.handle, name)
            if version and self._tell_known(call.handle, call.name):
                reply, counts, may_name = Reply("ok", version), False, True
                break
            reply = yield from self.ask(call)
            if reply.result == "failed":
                return reply
            if reply.file not in dirty or not self.world.rules.looks_again:
                counts, lease = self._counts(asked_in), self._lease(call.handle)
                may_name = counts and self.holder.may_name(lease, reply.serial, reply.parent_mode, call.name)
                break
            yield from self.behind.drain(reply.file)
        told = False
        if reply.file:
            lease = self._lease(reply.file)
            told = counts and self.holder.granted(lease, reply.serial, reply.mode) is not Mode.NONE
        yield from self._process_reply(reply.file or call.handle)
        if reply.file:
            kernel.learn(reply.file, reply.file_version, told, clock)
        if dentry is None:
            if reply.file or may_name:
                kernel.dentries[name] = Dentry(reply.version, reply.file, may_name)
        elif dentry.file == reply.file:
            dentry.version, dentry.cached = reply.version, may_name
        elif kernel.dentries.get(name) is dentry:
            del kernel.dentries[name]
        return reply

    def _read(self, call: Call, anew: bool) -> Steps:
        kernel, file = self.kernel, call.handle
        yield lambda: file not in kernel.reading
        if file not in kernel.known:
            return Reply("failed")
        if file in kernel.pages:
            return Reply("ok", kernel.pages[file])
        kernel.reading.add(file)
        if self.world.rules.drains_before_looking:
            yield from self.behind.drain(file)
        lease = self._lease(file)
        was_held, void, asked_in = lease.is_held and self.holder.valid, lease.void, self.round
        reply = yield from self.ask(call)
        keeps = was_held and asked_in == self.round and self.leases.get(file) is lease
        keeps = keeps and ((lease.is_held and lease.void == void) or lease.recalls > 0)
        if not self.world.rules.reads_under_lease:
            keeps = lease.is_held
        if keeps:
            lease.told = True
        yield None
        if reply.result == "ok" and keeps:
            kernel.pages[file] = reply.version
        kernel.reading.remove(file)
        return reply

    # ------------------------------------------------------------ what is known without asking

    def _is_held(self, lease: Lease) -> bool:
        is_held = lease.is_held if self.world.rules.holds_anew else lease.mode is not Mode.NONE and not lease.recalls
        return self.holder.valid and is_held

    def _held(self, directory: bytes) -> tuple[int, int] | None:
        lease = self._lease(directory)
        return (self.round, lease.void) if self._is_held(lease) else None

    def _list(self, call: Call, anew: bool) -> Steps:
        """LISTXATTR: nothing is granted with it, and the kernel keeps nothing of it."""
        handle = call.handle

        def held() -> tuple[int, int] | None:
            return (self.round, self.breaks[handle]) if self._is_held(self._lease(handle)) else None

        before = held()
        listed_at, version = self.listed.get(handle, (None, 0))
        if before is not None and listed_at == before:
            return Reply("ok", version)
        reply = yield from self.ask(call)
        if reply.result == "ok" and before is not None and held() == before:
            self.listed[handle] = before, reply.version
        return reply

    def _known(self, directory: bytes, register: Register) -> int:
        """The version of its attributes, or of a name that is absent; 0: not known."""
        held, version = self.known.get(register, (None, 0))
        is_held = held is not None and held == self._held(directory)
        return version if is_held or not self.world.rules.knows_while_held else 0

    def _tell_known(self, directory: bytes, name: bytes | None = None) -> bool:
        lease = self._lease(directory)
        if name is None:
            return self.holder.tell_unasked(lease)
        return self.holder.may_name_unasked(lease, name)

    def _keep_known(self, call: Call, reply: Reply, granted: bool) -> None:
        """Our own change was answered: what it says of the directory, and that a name is gone."""
        if call.kind not in ("unlink", "link", "rename") or not granted:
            return
        changed, held = dict(reply.changed), self._held(call.handle)
        if call.kind == "rename" and call.other != call.handle:
            changed.pop(call.other, None)  # nothing was granted on it
        for register in (call.handle, *([(call.handle, call.name)] if call.kind == "unlink" else ())):
            if register in changed:
                self.known[register] = held, changed[register]

    def _find_names(self, call: Call, anew: bool) -> Steps:
        """As the VFS does before an unlink or a rename, with the directories locked."""
        reply = Reply("ok")
        names = {"unlink": [(call.handle, call.name)], "rename": [(call.handle, call.name), call[3:5]]}
        for at, name in enumerate(names.get(call.kind, ())):
            dentry = self.kernel.dentries.get(name)
            if (anew or not (dentry and dentry.cached)) and reply.result == "ok":
                found = yield from self._look_up(Call("look", *name), None)
                reply = found if found.result == "failed" or at == 0 else reply
        return reply

    def _change(self, call: Call, anew: bool) -> Steps:
        kernel, rules = self.kernel, self.world.rules
        file = call.handle if call.kind in CHANGES_OF_DATA else call.other if call.kind == "link" else None
        if file and file not in kernel.known:
            return Reply("failed")
        directories = [one for one in sorted({call.handle, call.other}) if one in DIRECTORIES]
        reply = yield from self._permit_all(directories, call.pid)
        if reply.result != "ok":
            return reply
        locks = [kernel.locks[one] for one in sorted({call.handle, call.other} - {b""})]
        inside = []
        for lock in locks:
            inside.append((yield from lock.take(exclusive=True)))
        reply = yield from self._find_names(call, anew)
        if reply.result == "ok":
            reply = yield from self._permit_all(directories if call.kind != "chmod" else (), call.pid)
        asked_in = self.round
        if reply.result == "ok":
            change = self._write(call) if file else self._ask_to_change(call, directories)
            reply = yield from change
        told = may_name = False
        if reply.result == "ok":
            subject = call.other if call.kind == "link" else call.handle
            lease = self._lease(subject)
            if self._counts(asked_in):
                told = self.holder.granted(lease, reply.serial, reply.mode) is not Mode.NONE
                if call.kind == "link":
                    directory = self._lease(call.handle)
                    may_name = self.holder.may_name(directory, reply.serial, reply.parent_mode, call.name)
            self._keep_known(call, reply, may_name if call.kind == "link" else told)
            yield from self._outdate(call, reply)
            keeps = call.kind == "rename" and self._moved(call)
            yield from self._process_reply(subject)
            self._apply(call, reply, subject, told and not rules.changes_time_out, may_name, keeps)
        elif reply.result in ("missing", "failed"):
            yield None
            kernel.dentries.pop((call.handle, call.name), None)  # as for ENOENT, EEXIST and EINTR
        for lock, me in zip(locks, inside, strict=True):
            lock.inside.remove(me)
        return reply

    def _write(self, call: Call) -> Steps:
        """Of data, or of what is shown with them."""
        behind, file = self.behind, call.other if call.kind == "link" else call.handle
        open_file = behind.opens.get(call.open_file)
        if open_file is not None and self._reports(open_file):
            return Reply("lost")
        if open_file is not None and behind.may_buffer(file):
            behind.add(self.world.writes.all[call.writes[0]])
            return Reply("ok")
        if self.world.rules.writes_in_order:
            yield from behind.drain(file)
        reply = yield from self._ask_to_change(call, [call.handle] if call.kind == "link" else [])
        return reply

    def _ask_to_change(self, call: Call, directories: list[bytes]) -> Steps:
        """Its directories stay locked until it is answered."""
        locked = directories if call.kind != "chmod" or self.world.rules.chmods_count else ()
        for register in (*directories, (call.handle, call.name), (call.other, call.other_name)):
            self.known.pop(register, None)
        for directory in locked:
            self.changing[directory] += 1
        for directory in directories:
            self.breaks[directory] += 1
        reply = yield from self.ask(call)
        for directory in directories:
            self.breaks[directory] += 1
        for directory in locked:
            self.changing[directory] -= 1
            if self.world.rules.outdates_parents:
                self.kernel.outdate(directory)
        return reply

    def _outdate(self, call: Call, reply: Reply) -> Steps:
        """What the mount tells the kernel before it answers a change."""
        kernel, rules = self.kernel, self.world.rules
        if call.kind in CHANGES_OF_DATA and rules.drops_pages:
            yield lambda: call.handle not in kernel.reading
            kernel.pages.pop(call.handle, None)
        if call.kind in ("unlink", "link", "rename") and rules.outdates_parents:
            for register, _ in reply.changed:
                if not isinstance(register, tuple):
                    kernel.outdate(register)

    def _moved(self, call: Call) -> bool:
        """A RENAME is being answered: the kernel takes what it knows of the name along.  Whether it may keep it."""
        lease = self._lease(call.other)
        lease.told = True
        if not (lease.is_held and self.holder.valid):
            return not self.world.rules.forgets_moved
        if self.world.rules.forgets_moved:
            lease.names = {call.other_name, *(lease.names or ())}
        return True

    def _apply(
        self, call: Call, reply: Reply, subject: bytes, told: bool, may_name: bool, keeps: bool
    ) -> None:  # fmt: skip
        """What the kernel makes of the reply of a change."""
        kernel, changed = self.kernel, dict(reply.changed)
        for register in changed:
            if not isinstance(register, tuple):
                kernel.attributes.pop(register, None)
        match call.kind:
            case "change" | "seize" | "write" | "append" | "chmod" | "link":
                kernel.known.add(subject)
                kernel.outdate(subject)
                if told:
                    kernel.attributes[subject] = reply.version
                if call.kind == "link":
                    entry = Dentry(changed[call.handle, call.name], call.other, may_name)
                    kernel.dentries[call.handle, call.name] = entry
            case "unlink":
                kernel.dentries.pop((call.handle, call.name), None)
            case "rename":
                kernel.dentries.pop((call.other, call.other_name), None)
                moved = kernel.dentries.pop((call.handle, call.name), None)
                if moved and keeps:
                    moved.version = changed[call.other, call.other_name]
                    kernel.dentries[call.other, call.other_name] = moved
