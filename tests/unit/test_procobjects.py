"""What files of /proc/<pid> say of what a process holds: any names and numbers, nonsense, and our own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from omfs.kernel.kcmp import share_files
from omfs.kernel.mounttable import is_answered_here
from omfs.kernel.pipeends import is_other_end_held
from omfs.kernel.procobjects import (
    Address,
    DescriptorInfo,
    InetSocket,
    Rights,
    ShownLock,
    Standing,
    inet_table,
    lockable_bytes,
    mapped_names,
    parse_fdinfo,
    parse_rights,
    parse_standing,
    shown_flocks,
    shown_locks,
)
from omfs.kernel.socketpeers import SocketPeers, UnixSocket, parse_answer, protocol_of

KINDS = ("FLOCK", "POSIX", "OFDLCK", "LEASE", "DELEG")
names = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
optional = st.none() | st.integers(0, 1 << 22)


# ---------------------------------------------------------------- descriptors


@given(
    st.integers(0, 0o7777777), st.integers(0, 1 << 30), st.lists(st.sampled_from(KINDS), max_size=3),
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1)), max_size=3), optional, optional,
    st.integers(-1, (1 << 63) - 1),
)  # fmt: skip
def test_an_fdinfo(
    flags: int,
    mount: int,
    locks: list[str],
    watched: list[tuple[int, int]],
    tty: int | None,
    process: int | None,
    position: int,
) -> None:
    text = f"pos:\t{position}\nflags:\t0{flags:o}\nmnt_id:\t{mount}\nino:\t7\n"
    text += "".join(f"lock:\t{n}: {kind:6} ADVISORY  WRITE 1 fe:00:7 0 EOF\n" for n, kind in enumerate(locks, 1))
    for major, minor in watched:
        text += (
            f"inotify wd:1 ino:3f7e8 sdev:{major << 20 | minor:x} mask:2 ignored_mask:0 fhandle-bytes:8 f_handle:00\n"
        )
    text += f"tty-index:\t{tty}\n" if tty is not None else ""
    text += f"Pid:\t{process}\nNSpid:\t{process}\n" if process is not None else ""
    found = parse_fdinfo(text.encode())
    shown = tuple(f"{major}:{minor}" for major, minor in watched)
    assert found == DescriptorInfo(flags, mount, tuple(locks), shown, tty, process, 7, position)


@given(st.binary())
def test_what_is_no_fdinfo(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the text itself is in it, or what int() says
        parse_fdinfo(text)


def test_which_ends() -> None:
    both = [(DescriptorInfo(flags).reads, DescriptorInfo(flags).writes) for flags in (0, 1, 2, 3)]
    assert both == [(True, False), (False, True), (True, True), (False, False)]


def test_locks_are_those_of_ranges() -> None:
    """As /proc/locks shows them, then as an fdinfo does; leases and flock(2) are no ranges."""
    table = (
        b"1: POSIX  ADVISORY  WRITE 7 fe:00:12 0 EOF\n1: -> POSIX  ADVISORY  READ 8 fe:00:12 5 9\n"
        b"2: OFDLCK ADVISORY  READ -1 fe:00:12 1 1\n3: FLOCK  ADVISORY  WRITE 7 fe:00:12 0 EOF\n"
        b"4: LEASE  ACTIVE    READ 7 fe:00:12 0 EOF\n"
    )
    assert list(shown_locks(table)) == [
        ShownLock(is_waiting=False, kind=1, pid=7, file=b"fe:00:12", start=0, end=(1 << 63) - 1),
        ShownLock(is_waiting=True, kind=0, pid=8, file=b"fe:00:12", start=5, end=9),
        ShownLock(is_waiting=False, kind=0, pid=-1, file=b"fe:00:12", start=1, end=1),
    ]
    of_descriptor = b"pos:\t0\nlock:\t1: POSIX  ADVISORY  READ 7 fe:00:12 2 3\n"
    assert [(one.start, one.end) for one in shown_locks(of_descriptor)] == [(2, 3)]
    assert list(shown_locks(b"")) == []


def test_locks_by_flock_are_those_that_somebody_has() -> None:
    table = (
        b"1: FLOCK  ADVISORY  WRITE 7 fe:00:12 0 EOF\n1: -> FLOCK  ADVISORY  READ 8 fe:00:12 0 EOF\n"
        b"2: POSIX  ADVISORY  WRITE 9 fe:00:13 0 EOF\n"
    )
    assert shown_flocks(table) == [(7, b"fe:00:12")]
    assert shown_flocks(b"pos:\t0\nlock:\t1: FLOCK  ADVISORY  READ 0 fe:00:12 0 EOF\n") == [(0, b"fe:00:12")]


def test_an_fdinfo_of_ours() -> None:
    with tempfile.TemporaryFile() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = parse_fdinfo(Path(f"/proc/self/fdinfo/{file.fileno()}").read_bytes())
        assert found.reads
        assert found.locks == ("FLOCK",)


# ---------------------------------------------------------------- memory, rights


@given(st.lists(st.one_of(st.just(""), names.map(str.lstrip)), max_size=20))
def test_maps(mapped: list[str]) -> None:
    text = "".join(
        f"{n:08x}-{n + 1:08x} rw-p 00000000 fe:00 {n}   {name}".rstrip(" ") + "\n" for n, name in enumerate(mapped)
    )
    assert mapped_names(text) == list(dict.fromkeys(name.rstrip(" ") for name in mapped if name.rstrip(" ")))


@pytest.mark.parametrize("text", ["x", "1-2 rw-p 0 fe:00", "1-2 rwxz 0 fe:00 7 /x", "1-2 rw-p 0 fe:00 7 /a\n\nfalse"])
def test_what_are_no_maps(text: str) -> None:
    with pytest.raises(ValueError, match="maps"):
        mapped_names(text)


def test_maps_of_ours() -> None:
    found = mapped_names(os.fsdecode(Path("/proc/self/maps").read_bytes()))
    assert {"[stack]", os.path.realpath("/proc/self/exe")} <= set(found)
    assert len(set(found)) == len(found)


@given(
    st.integers(0, 1 << 22), st.tuples(*[st.integers(0, 1 << 31)] * 4), st.integers(0, (1 << 41) - 1),
    st.integers(0, 1 << 40), st.integers(0, 9), st.integers(0, 2),
)  # fmt: skip
def test_rights(
    tracer: int, uids: tuple[int, ...], capabilities: int, locked_kib: int, filters: int, mode: int
) -> None:
    said = "\t".join(map(str, uids))
    text = f"Name:\tx\nTracerPid:\t{tracer}\nUid:\t{said}\n"
    text += f"VmLck:\t  {locked_kib} kB\nCapEff:\t{capabilities:016x}\nSeccomp:\t{mode}\nSeccomp_filters:\t{filters}\n"
    expected = Rights(tracer, uids, capabilities, locked_kib * 1024, max(filters, mode > 0))
    assert parse_rights(text.encode()) == expected


def test_rights_of_what_has_no_memory_and_of_old_kernels() -> None:
    text = b"TracerPid:\t0\nUid:\t1\t2\t3\t4\nCapEff:\tff\n"
    assert parse_rights(text) == Rights(0, (1, 2, 3, 4), 255, 0, 0)
    assert parse_rights(text + b"Seccomp:\t2\n").filters == 1
    for lost in (b"TracerPid", b"Uid", b"CapEff"):
        with pytest.raises(ValueError, match=lost.decode()):
            parse_rights(text.replace(lost, b"X"))


def test_rights_of_ours() -> None:
    found = parse_rights(Path("/proc/self/status").read_bytes())
    assert found.tracer == 0
    assert found.uids[:3] == os.getresuid()


@given(
    names, st.integers(0, 1 << 22), st.tuples(st.integers(0, 4095), st.integers(0, 255)), st.booleans(), st.booleans()
)
def test_a_standing(name: str, session: int, terminal: tuple[int, int], kernel: bool, ending: bool) -> None:
    flags = 0x400000 | kernel * 0x200000 | ending * 4
    line = f"7 ({name}) S 1 2 {session} {os.makedev(*terminal)} -1 {flags} 0 0"
    assert parse_standing(line.encode()) == Standing(session, terminal, kernel, ending)


def test_what_is_no_standing() -> None:
    assert parse_standing(b"7 (x) S 1 2 3 -1 4 0 0").terminal == (0, 0)
    with pytest.raises(ValueError, match="stat"):
        parse_standing(b"7 (x) S 1 2")
    assert parse_standing(Path("/proc/self/stat").read_bytes()).session == os.getsid(0)


def test_limits() -> None:
    line = b"Max locked memory         %b              unlimited            bytes     \n"
    assert lockable_bytes(b"Limit   Soft\n" + line % b"65536") == 65536
    assert lockable_bytes(line % b"unlimited") > 1 << 60
    with pytest.raises(ValueError, match="locked"):
        lockable_bytes(b"Limit\n")
    assert lockable_bytes(Path("/proc/self/limits").read_bytes()) >= 0


# ---------------------------------------------------------------- sockets

hosts = st.ip_addresses(v=4) | st.ip_addresses(v=6).filter(lambda host: getattr(host, "ipv4_mapped", None) is None)
addresses = st.builds(Address, hosts.map(lambda host: canonical(str(host))), st.integers(0, 65535))


def canonical(host: str) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, host))


def shown(address: Address, wide: bool) -> str:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address.host else socket.AF_INET, address.host)
    packed = bytes(10) + b"\xff\xff" + packed if wide and len(packed) == 4 else packed
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(packed) // 4}I", packed)) + f":{address.port:04X}"


@given(st.dictionaries(st.integers(0, 1 << 32), st.tuples(addresses, addresses, st.booleans()), max_size=8))
def test_a_table_of_sockets(table: dict[int, tuple[Address, Address, bool]]) -> None:
    text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    for inode, (local, remote, wide) in table.items():
        text += f"   0: {shown(local, wide)} {shown(remote, wide)} 01 0:0 00:0 0     0        0 {inode} 1 0 20\n"
    expected = {
        inode: InetSocket(local, remote if remote.port else None)
        for inode, (local, remote, _) in table.items()
        if inode
    }
    assert inet_table(text) == expected


@pytest.mark.parametrize(
    "field", ["0100007F:1F90 0 01", "0100007:1F90 00000000:0000 01 0:0 00:0 0 0 0 7", "0100007F:1 x"]
)
def test_what_is_no_table(field: str) -> None:
    with pytest.raises(ValueError, match="/proc/net"):
        inet_table(
            f"header\n 0: {field} 1 1 1 1 1 1 1 1\n" if " x" in field or "0:0" in field else f"header\n 0: {field}\n"
        )


def test_addresses_are_written_as_people_do() -> None:
    assert [str(Address("127.0.0.1", 80)), str(Address("::1", 80))] == ["127.0.0.1:80", "[::1]:80"]


def test_the_other_end_of_a_unix_socket(tmp_path: Path) -> None:
    with SocketPeers() as peers, socket.socket(socket.AF_UNIX) as service, socket.socket(socket.AF_UNIX) as caller:
        inodes = [os.fstat(one.fileno()).st_ino for one in (service, caller)]
        assert peers.find(inodes[0]) == UnixSocket()
        service.bind(f"{tmp_path}/x")
        service.listen()
        caller.connect(f"{tmp_path}/x")
        assert peers.find(inodes[0]) == UnixSocket(f"{tmp_path}/x", listens=True, waiting=(inodes[1],))
        assert peers.find(inodes[1]) == UnixSocket(is_connected=True)
        here, _ = service.accept()
        with here:
            inode = os.fstat(here.fileno()).st_ino
            assert peers.find(inodes[1]) == UnixSocket(peer=inode, is_connected=True)
            assert peers.find(inode) == UnixSocket(f"{tmp_path}/x", inodes[1], is_connected=True)
        assert peers.find(inodes[1]) == UnixSocket(is_connected=True, is_over=True)
        assert peers.find(inode) is None
        assert protocol_of(f"/proc/self/fd/{caller.fileno()}").startswith("UNIX")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract, SocketPeers() as peers:
        abstract.bind("")
        found = peers.find(os.fstat(abstract.fileno()).st_ino)
        assert found is not None
        assert found.name == f"@{os.fsdecode(abstract.getsockname()[1:])}"


@given(st.binary(min_size=16, max_size=80))
def test_any_answer_is_one_or_nonsense(body: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert parse_answer(body).listens == (body[2] == 10)


# ---------------------------------------------------------------- asked of the kernel


def test_the_other_end_of_a_pipe() -> None:
    for end in (0, 1):
        ends = os.pipe()
        inode = os.fstat(ends[0]).st_ino
        assert is_other_end_held(os.getpid(), ends[end], inode)
        assert not is_other_end_held(os.getpid(), ends[end], inode + 1)
        os.close(ends[1 - end])
        assert not is_other_end_held(os.getpid(), ends[end], inode)
        os.close(ends[end])
    with pytest.raises(OSError, match="Bad file descriptor"):
        is_other_end_held(os.getpid(), 1 << 20, inode)


def test_who_shares_descriptors() -> None:
    assert share_files(os.getpid(), os.getpid())
    assert not share_files(os.getpid(), os.getppid())
    assert share_files(os.getpid(), 1 << 30)  # there is none


def test_who_answers_a_stat() -> None:
    here = [b"ext4", b"tmpfs", b"proc", b"devtmpfs", b"overlay", b"fuseblk", b"sysfs"]
    assert [kind for kind in here if not is_answered_here(kind)] == []
    assert [kind for kind in (b"fuse", b"fuse.omfs", b"nfs4", b"cifs", b"9p") if is_answered_here(kind)] == []
