"""Find and replace the addresses through which a loaded shared object calls into another one (its GOT).

`lowlevel.py` uses this to put functions of ours between pyfuse3's extension module, libfuse and libc.  Only ELF64
on x86-64 and AArch64, little endian; anything else raises NotPatchable and the mount runs without the hook.
Nothing here knows FUSE.  Source: the System V gABI (dynamic section, relocations) and the GNU symbol versions
(LSB "Symbol Versioning").
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PT_LOAD: Final = 1
_PT_DYNAMIC: Final = 2
_DT_STRTAB: Final = 5
_DT_SYMTAB: Final = 6
_RELOCATION_TABLES: Final = ((23, 2), (7, 8))  # (DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)
_DT_VERSYM: Final = 0x6FFFFFF0
_DT_VERNEED: Final = 0x6FFFFFFE
_DT_VERNEEDNUM: Final = 0x6FFFFFFF
_SLOT_RELOCATIONS: Final = {62: (6, 7), 183: (1025, 1026)}  # machine -> (GLOB_DAT, JUMP_SLOT)

_libc = ctypes.CDLL(None, use_errno=True)


class NotPatchable(Exception):
    """This object's calls can't be redirected; the text says why."""


def loaded_object(part_of_name: str) -> Path:
    """The file of the loaded shared object whose name contains *part_of_name*; NotPatchable if there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and part_of_name in fields[5].rsplit("/", 1)[-1]:
            return Path(fields[5])
    raise NotPatchable(f"{part_of_name} is not loaded")


class LoadedObject:
    """One shared object of this process: its imported symbols and where their addresses are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.read_bytes()
        if self._data[:6] != b"\x7fELF\x02\x01":
            raise NotPatchable(f"{path} is not a 64-bit little-endian ELF file")
        machine = struct.unpack_from("<H", self._data, 18)[0]
        if machine not in _SLOT_RELOCATIONS:
            raise NotPatchable(f"{path} is for an unknown machine ({machine})")
        self._relocations = _SLOT_RELOCATIONS[machine]
        self._base = self._load_address()
        self._segments: list[tuple[int, int, int]] = []  # (virtual address, file offset, size in the file)
        self._tags = self._dynamic_tags()
        self.slots: dict[str, int] = {}
        self.versions: dict[str, str] = {}
        for name, version, address in self._imports():
            self.slots.setdefault(name, address)
            self.versions.setdefault(name, version)

    def _load_address(self) -> int:
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == str(self.path) and int(fields[2], 16) == 0:
                return int(fields[0].split("-")[0], 16)
        raise NotPatchable(f"{self.path} is not loaded")

    def _dynamic_tags(self) -> dict[int, int]:
        data = self._data
        (table,) = struct.unpack_from("<Q", data, 32)
        entry_bytes, entries = struct.unpack_from("<HH", data, 54)
        dynamic = None
        for index in range(entries):
            kind, _, offset, address, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", data, table + index * entry_bytes)
            if kind == _PT_LOAD:
                self._segments.append((address, offset, size))
            elif kind == _PT_DYNAMIC:
                dynamic = (offset, size)
        if dynamic is None:
            raise NotPatchable(f"{self.path} is not dynamically linked")
        tags: dict[int, int] = {}
        for position in range(dynamic[0], dynamic[0] + dynamic[1], 16):
            tag, value = struct.unpack_from("<QQ", data, position)
            if tag == 0:
                break
            tags[tag] = value
        return tags

    def _offset(self, address: int) -> int:
        for start, offset, size in self._segments:
            if start <= address < start + size:
                return address - start + offset
        raise NotPatchable(f"{self.path}: address {address:#x} is outside the file")

    def _string(self, position: int) -> str:
        start = self._offset(self._tags[_DT_STRTAB]) + position
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _version_names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        if _DT_VERNEED not in self._tags:
            return names
        need = self._offset(self._tags[_DT_VERNEED])
        for _ in range(self._tags[_DT_VERNEEDNUM]):
            _, count, _, first, following = struct.unpack_from("<HHIII", self._data, need)
            item = need + first
            for _ in range(count):
                _, _, number, name, after = struct.unpack_from("<IHHII", self._data, item)
                names[number] = self._string(name)
                item += after
            need += following
        return names

    def _imports(self) -> Iterator[tuple[str, str, int]]:
        version_names = self._version_names()
        symbols = self._offset(self._tags[_DT_SYMTAB])
        for table_tag, size_tag in _RELOCATION_TABLES:
            if table_tag not in self._tags:
                continue
            start = self._offset(self._tags[table_tag])
            for position in range(start, start + self._tags[size_tag], 24):
                address, info = struct.unpack_from("<QQ", self._data, position)
                if info & 0xFFFFFFFF not in self._relocations:
                    continue
                index = info >> 32
                name = self._string(struct.unpack_from("<I", self._data, symbols + index * 24)[0])
                version = ""
                if _DT_VERSYM in self._tags:
                    (number,) = struct.unpack_from("<H", self._data, self._offset(self._tags[_DT_VERSYM]) + 2 * index)
                    version = version_names.get(number & 0x7FFF, "")
                yield name, version, self._base + address

    def address_of(self, name: str, library: ctypes.CDLL) -> int:
        """The address that this object's calls of *name* lead to: in *library*, with the version it was linked for.

        Not read from the slot: with lazy binding that still points at the resolver, which would overwrite our patch.
        """
        lookup = _libc.dlvsym if self.versions.get(name) else _libc.dlsym
        lookup.restype = ctypes.c_void_p
        arguments = [ctypes.c_void_p(library._handle), name.encode()]
        if self.versions.get(name):
            arguments.append(self.versions[name].encode())
        address = lookup(*arguments)
        if not address:
            raise NotPatchable(f"{name} {self.versions.get(name, '')} not found in {library._name}")
        return int(address)

    def redirect(self, name: str, address: int) -> None:
        """Make this object's calls of *name* go to *address* from now on; NotPatchable if it does not import it."""
        if name not in self.slots:
            raise NotPatchable(f"{self.path} does not call {name}")
        slot = self.slots[name]
        page = slot & ~(mmap.PAGESIZE - 1)
        # Full RELRO makes the table read-only after start-up.
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
            raise NotPatchable(f"{self.path}: mprotect of the table with {name} failed")
        ctypes.c_uint64.from_address(slot).value = address
