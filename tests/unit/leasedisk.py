"""The disk of the owner in leasemodel.py: what calls need of its objects, and what they do to them.

Every object, every name and the data of every file have a version.  A file is open for writing or it is not: the
kernel's write lease, without which nobody gets EXCLUSIVE, is there only while it is open once.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from omfs.cache.owner import Need
from omfs.cache.rules import Use
from omfs.wiretypes import Mode

FILES: Final = (b"f", b"g")
DIRECTORIES: Final = (b"D", b"E")
NAMES: Final = (b"x", b"y")
DATA: Final = b"/data"
LOOKS: Final = frozenset({"stat", "look", "read", "list"})  # list: of extended attributes, here a directory's
WRITES: Final = frozenset({"write", "append"})  # through an open file
CHANGES_OF_DATA: Final = WRITES | {"behind", "change", "seize"}

Register = Any  # a handle, for the attributes, (directory, name), or (file, DATA)


class Call(NamedTuple):
    kind: str
    handle: bytes
    name: bytes = b""
    other: bytes = b""  # the file to link, or the directory to rename into
    other_name: bytes = b""
    pid: int = 0
    open_file: int = 0
    writes: tuple[int, ...] = ()  # numbers of leasewrites.py


class Reply(NamedTuple):
    """*changed*: what the call changed; *result*: "ok", "missing", "refused", "failed" (nobody knows), or
    "lost" (writes that had returned).
    """

    result: str
    version: int = 0  # of the object, or of the name
    file: bytes | None = None
    file_version: int = 0
    changed: tuple[tuple[Register, int], ...] = ()
    serial: int = 0
    mode: Mode = Mode.NONE
    parent_mode: Mode = Mode.NONE


class Disk:
    def __init__(self) -> None:
        self.versions: dict[bytes, int] = dict.fromkeys((*FILES, *DIRECTORIES), 1)
        self.data = dict.fromkeys(FILES, 1)
        self.names: dict[tuple[bytes, bytes], tuple[int, bytes | None]] = {
            (directory, name): (1, FILES[0] if name == NAMES[0] else None)
            for directory in DIRECTORIES
            for name in NAMES
        }
        self.opens: dict[bytes, set[tuple[bytes, int]]] = {file: set() for file in FILES}  # (session, number)

    def version(self, register: Register) -> int:
        if isinstance(register, tuple):
            return self.data[register[0]] if register[1] == DATA else self.names[register][0]
        return self.versions[register]

    def needs(self, call: Call) -> tuple[Need, ...]:
        match call.kind:
            case "stat" | "read" if call.handle in self.data:
                return (Need(call.handle, Use.LOOK),)
            case "look" if file := self.names[call.handle, call.name][1]:
                return (Need(file, Use.LOOK),)
            case "open" if self.opens[call.handle]:  # the kernel's write lease, if there is one, must go
                return Need(call.handle, Use.CHANGE), Need(call.handle, Use.LOOK, everybody=True)
            case "open" | "ask" | "write" | "append":
                return (Need(call.handle, Use.CHANGE),)
            case "change" | "seize":
                return (Need(call.handle, Use.CHANGE, everybody=call.kind == "seize"),)
            case "chmod":
                return (Need(call.handle, Use.CHANGE_DIRECTORY),)
            case "link" if self.names[call.handle, call.name][1] is None:
                return Need(call.handle, Use.NAME, call.name), Need(call.other, Use.CHANGE)
            case "unlink" if file := self.names[call.handle, call.name][1]:
                return Need(call.handle, Use.NAME, call.name), Need(file, Use.CHANGE)
            case "rename" if file := self.names[call.handle, call.name][1]:
                victim = self.names[call.other, call.other_name][1]
                names = Need(call.handle, Use.NAME, call.name), Need(call.other, Use.NAME, call.other_name)
                return (*names, *(Need(one, Use.CHANGE) for one in dict.fromkeys((file, victim)) if one))
        return ()

    def execute(self, call: Call) -> Reply:
        if call.kind in LOOKS:
            if call.kind == "read":
                return Reply("ok", self.data[call.handle])
            if call.kind in ("stat", "list"):
                return Reply("ok", self.versions[call.handle])
            version, file = self.names[call.handle, call.name]
            return Reply("ok" if file else "missing", version, file, self.versions[file] if file else 0)
        if call.kind in ("open", "ask", "close"):
            return Reply("ok", self.versions[call.handle])
        needs = self.needs(call)
        if not needs and call.kind != "behind":
            return Reply("missing")
        if call.kind == "rename":
            file = self.names[call.handle, call.name][1]
            self._name(call.handle, call.name, None)
            self._name(call.other, call.other_name, file)
        elif call.kind in ("link", "unlink"):
            self._name(call.handle, call.name, call.other or None)
        registers: dict[Register, None] = {}
        if call.kind in CHANGES_OF_DATA:
            self.data[call.handle] += 1
            registers[call.handle, DATA] = None
        if call.kind == "behind":
            self.versions[call.handle] += 1
            registers[call.handle] = None
        for need in needs:
            self.versions[need.handle] += 1
            registers[need.handle] = None
            if need.name:
                registers[need.handle, need.name] = None
        changed = tuple((register, self.version(register)) for register in registers)
        return Reply("ok", self.versions[call.other if call.kind == "link" else call.handle], changed=changed)

    def _name(self, directory: bytes, name: bytes, file: bytes | None) -> None:
        self.names[directory, name] = (self.names[directory, name][0] + 1, file)
