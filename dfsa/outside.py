"""The calls that concern processes outside a guest's group: signals, parents, groups and sessions.

A guest sees its own group only, by the numbers that its processes have at home: what is inside is answered by the
kernel here, the rest by home, which knows the deputy.  A signal to several processes (kill(2) of 0, -1 or the group
that the root leads) reaches those at home, but for the deputy, and those here; other groups of the guest are here only.

Process 1 of the guest's PID namespace is mignode's own, and counts as outside: the number is that of home's init.  Who
has it as its parent has lost its own, but for the root: only the root's parent is home's to tell.  A process in a PID
namespace that the guest has made (at home it may) means that one's numbers: the kernel answers it.

Nearly all calls are inside, and a shell makes some at each start: so they are answered by as few looks into /proc as
will do, at once.  What waits is a coroutine.  What it does not do: reach home.  `Home` is what the caller has for that;
its errors become the call's.  Of /proc only `status` is read (kernel/processes.py says why).  Called by mignode, for a
Router.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from dfsa.router import Answer, Call, Handler, Proceed, Value
from omfs.kernel.processes import read_file

_INIT: Final = 1
_READ_BYTES: Final = 4096
_NUMBERS: Final = re.compile(rb"\n(Tgid|Uid|NStgid|NSpgid|NSsid):([\t\d]+)")
_LEVELS: Final = 2  # of PID namespaces: ours and the guest's


class Home(Protocol):
    """The guest's home node."""

    async def ask(self, process: int, call: str, arguments: tuple[int, ...]) -> int:
        """Do the *call* as *process*, which is its deputy there; what it returns.

        Numbers are those of home.  kill of 0, -1 or a group passes by the deputies of the guest's group.  Raises
        OSError as the call would, or OmfsError.
        """


class _Numbers(NamedTuple):
    """A process as the guest's namespace numbers it; 0 for a group or session that is not in there.

    *number*: as the /proc has it that it was read from.  *users*: its real and effective uid, by which the kernel says
    whom it may signal.  *levels*: of PID namespaces, from that of this /proc to its own.
    """

    number: int
    process: int
    group: int
    session: int
    users: frozenset[int]
    levels: int


class Outside:
    """For one guest.  *proc*: a descriptor of a procfs of its PID namespace, which stays the caller's.

    *root*: its first process, as that namespace numbers it.  *uid*: of its deputy, with whose rights home does what it
    is asked.
    """

    def __init__(self, home: Home, proc: int, root: int, uid: int) -> None:
        self._home = home
        self._proc = proc
        self._root = root
        self._uid = uid
        self._root_outside = 0
        """As we number the root; 0: not known yet."""

    def handlers(self) -> Mapping[str, Handler]:
        """By name of the call; all that are HOME's."""
        return {
            "kill": self._kill,
            "getppid": self._parent,
            "getpgid": self._group,
            "getsid": self._session,
        }

    def _kill(self, call: Call) -> Answer | Awaitable[Answer]:
        target, number = (_signed(argument) for argument in call.arguments[:2])
        if target > 0 and self._is_inside(target):
            return Proceed()
        caller = self._caller(call)
        if caller.levels > _LEVELS or (target <= 0 and self._is_for_here(caller, target)):
            return Proceed()
        may = caller.users == {self._uid}
        if target > 0:
            if not may:  # one that has given up its deputy's rights must not signal with them
                raise PermissionError(errno.EPERM, "not with the rights of its deputy")
            return self._told(call, caller, target, number)
        return self._signal_several(call, caller, target, number) if may else Proceed()

    def _is_for_here(self, caller: _Numbers, target: int) -> bool:
        """Whether it is to one of the guest's own groups: at home that number is nobody's, or a stranger's."""
        if target == 0:
            return caller.group != self._root
        return target != -1 and -target != self._root and self._has_members(caller, target)

    async def _signal_several(self, call: Call, caller: _Numbers, target: int, number: int) -> Answer:
        try:
            await self._home.ask(caller.process, call.name, (target, number))
        except (ProcessLookupError, PermissionError):
            return Proceed()  # none at home
        return Proceed() if self._has_members(caller, target) else Value(0)

    def _parent(self, call: Call) -> Answer | Awaitable[Answer]:
        if self._root_outside and not os.path.exists(f"/proc/{self._root_outside}/task/{call.thread}"):
            return Proceed()
        caller = self._caller(call)
        if caller.levels > _LEVELS or caller.process != self._root:
            return Proceed()
        self._root_outside = caller.number
        return self._told(call, caller)

    def _group(self, call: Call) -> Answer | Awaitable[Answer]:
        """Whoever is inside is in a group that is, since the root leads one."""
        asked = _signed(call.arguments[0])
        if asked == 0 or self._is_inside(asked):
            return Proceed()
        caller = self._caller(call)
        return Proceed() if caller.levels > _LEVELS else self._told(call, caller, asked)

    def _session(self, call: Call) -> Answer | Awaitable[Answer]:
        """Whoever has made none is in one of home's."""
        caller, asked = self._caller(call), _signed(call.arguments[0])
        if caller.levels > _LEVELS:
            return Proceed()
        found = caller if asked == 0 else self._numbers(asked) if asked > _INIT else None
        if found is not None and found.session > _INIT:
            return Value(found.session)
        return self._told(call, caller, asked)

    async def _told(self, call: Call, caller: _Numbers, *arguments: int) -> Answer:
        """By home."""
        return Value(await self._home.ask(caller.process, call.name, arguments))

    def _caller(self, call: Call) -> _Numbers:
        try:
            text = read_file(f"/proc/{call.thread}/status")
        except (FileNotFoundError, ProcessLookupError):
            text = b""
        if not text or not call.waits():  # else the thread's number may be another's by now
            raise ProcessLookupError(errno.ESRCH, "the caller has ended")
        return _status(text, _LEVELS - 1)

    def _is_inside(self, number: int) -> bool:
        """Of a process, or of a thread, which kill(2) takes as well."""
        try:
            return number > _INIT and bool(os.stat(str(number), dir_fd=self._proc))
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _has_members(self, caller: _Numbers, target: int) -> bool:
        """Whether the kernel here finds anybody for a kill of 0, of -1, which leaves out the caller, or of a group."""
        if target == -1:
            return any(one.process not in (_INIT, caller.process) for one in self._all())
        group = -target or caller.group
        leader = self._numbers(group)
        return (leader is not None and leader.group == group) or any(one.group == group for one in self._all())

    def _all(self) -> Iterator[_Numbers]:
        for name in os.listdir(self._proc):
            if name.isdigit() and (numbers := self._numbers(int(name))) is not None:
                yield numbers

    def _numbers(self, number: int) -> _Numbers | None:
        """None: the guest has no process, or thread, of that number."""
        try:
            descriptor = os.open(f"{number}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        except (FileNotFoundError, ProcessLookupError):
            return None
        try:
            return _status(os.read(descriptor, _READ_BYTES), 0)
        except ProcessLookupError:
            return None
        finally:
            os.close(descriptor)


def _status(text: bytes, level: int) -> _Numbers:
    """/proc/<pid>/status (proc(5)), where *level* is the guest's; in the name the kernel escapes newlines."""
    found = {key: [int(number) for number in values.split()] for key, values in _NUMBERS.findall(text)}
    processes = found[b"NStgid"]
    return _Numbers(
        number=found[b"Tgid"][0],
        process=processes[level],
        group=found[b"NSpgid"][level],
        session=found[b"NSsid"][level],
        users=frozenset(found[b"Uid"][:2]),
        levels=len(processes),
    )


def _signed(argument: int) -> int:
    """A pid or a signal number: an int, so the upper half of the argument is nothing."""
    return ((argument & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
