"""Holds one of each kind of thing that moves; for each line of its input it looks whether it still has them, and uses
them: holdsall.py WATCHED...

It answers with its pid first, then "ok" each time, or a line of what was wrong.  Each thing is a function that makes it,
and gives one that raises if it is not as it was.  Runs in an empty directory; *WATCHED*: others, of whichever node.
docs/migration.md has the functions' names.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable

Check = Callable[[], object]
Thing = Callable[[], Check]

libc = ctypes.CDLL(None, use_errno=True)
WAIT_S = 20.0  # for what is there at once, on whatever machine
EVERY_NS = 5_000_000
THINGS: dict[str, Thing] = {}
CHILDREN: list[int] = []


def thing(make: Thing) -> Thing:
    THINGS[make.__name__] = make
    return make


def same(found: object, wanted: object) -> None:
    assert found == wanted, f"{found!r} instead of {wanted!r}"


def is_readable(fd: int, within_s: float = WAIT_S) -> bool:
    return bool(select.select([fd], [], [], within_s)[0])


def done(result: int) -> int:
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result


# ---------------------------------------------------------------- processes (first: they inherit nothing of the others)


def child(then: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        then()
        os._exit(0)
    return pid


def living_child() -> int:
    CHILDREN.append(child(signal.pause))
    return CHILDREN[-1]


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@thing
def zombie() -> Check:
    pid = child(lambda: os._exit(7))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def check() -> None:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        same(ended and ended.si_status, 7)

    return check


@thing
def stopped() -> Check:
    pid = living_child()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    return lambda: same(state_of(pid), "T")


@thing
def pidfd() -> Check:
    """Of itself, of a child, and of one that has ended."""
    living, ended = living_child(), child(lambda: None)
    all_ = [os.pidfd_open(pid) for pid in (os.getpid(), living, ended)]
    os.waitpid(ended, 0)

    def check() -> None:
        for one in all_[:2]:
            signal.pidfd_send_signal(one, 0)
        same([is_readable(one, 0) for one in all_], [False, False, True])

    return check


@thing
def threads() -> Check:
    own = threading.local()
    asked, answered, told = threading.Event(), threading.Event(), []

    def run() -> None:
        own.value = 42
        while asked.wait():
            asked.clear()
            told.append(own.value)
            answered.set()

    threading.Thread(target=run, daemon=True).start()

    def check() -> None:
        asked.set()
        assert answered.wait(WAIT_S)
        answered.clear()
        same(told.pop(), 42)

    return check


# ---------------------------------------------------------------- objects of the kernel


@thing
def eventfd() -> Check:
    fd = os.eventfd(5)

    def check() -> None:
        same(os.eventfd_read(fd), 5)
        os.eventfd_write(fd, 5)

    return check


@thing
def epoll() -> Check:
    poll, counter = select.epoll(), os.eventfd(0)
    read, write = os.pipe()
    poll.register(read, select.EPOLLIN | select.EPOLLET)
    poll.register(counter, select.EPOLLIN)

    def check() -> None:
        poll.poll(0)  # a restored one tells of the edge once more
        os.write(write, b"x")
        same(poll.poll(WAIT_S), [(read, select.EPOLLIN)])
        os.eventfd_write(counter, 1)
        same(poll.poll(WAIT_S), [(counter, select.EPOLLIN)])
        os.eventfd_read(counter)

    return check


@thing
def signalfd() -> Check:
    """With a signal that waits."""
    mask = struct.pack("=Q", 1 << signal.SIGUSR1 - 1).ljust(128, b"\0")
    fd = done(libc.signalfd(-1, mask, 0))
    signal.raise_signal(signal.SIGUSR1)

    def check() -> None:
        assert is_readable(fd)
        same(struct.unpack_from("=I", os.read(fd, 128))[0], signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)

    return check


@thing
def timerfd() -> Check:
    fd = done(libc.timerfd_create(1, 0))
    done(libc.timerfd_settime(fd, 0, struct.pack("4q", 0, EVERY_NS, 0, EVERY_NS), None))

    def check() -> None:
        os.read(fd, 8)
        assert is_readable(fd)

    return check


def ticking(number: int, begin: Callable[[], object]) -> Check:
    ticks: list[int] = []
    signal.signal(number, lambda number, _: ticks.append(number))
    begin()

    def check() -> None:
        ticks.clear()
        deadline = time.monotonic() + WAIT_S
        while not ticks:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    return check


@thing
def interval_timer() -> Check:
    return ticking(signal.SIGALRM, lambda: signal.setitimer(signal.ITIMER_REAL, EVERY_NS / 1e9, EVERY_NS / 1e9))


@thing
def posix_timer() -> Check:
    timer = ctypes.c_void_p()
    event = struct.pack("=QiiQ", 0, signal.SIGRTMIN, 0, 0) + bytes(40)

    def begin() -> None:
        done(libc.timer_create(1, event, ctypes.byref(timer)))
        done(libc.timer_settime(timer, 0, struct.pack("4q", 0, EVERY_NS, 0, EVERY_NS), None))

    return ticking(signal.SIGRTMIN, begin)


@thing
def inotify() -> Check:
    """One without watches; one of each directory that it was told."""
    idle = done(libc.inotify_init())
    watches = {path: done(libc.inotify_init()) for path in sys.argv[1:]}
    for path, fd in watches.items():
        same(done(libc.inotify_add_watch(fd, path.encode(), 0x100)), 1)  # IN_CREATE
    made = 0

    def check() -> None:
        nonlocal made
        made += 1
        assert not is_readable(idle, 0)
        for path, fd in watches.items():
            with open(f"{path}/file{made}", "w"):
                assert is_readable(fd), f"heard nothing of {path}"
            assert f"file{made}\0".encode() in os.read(fd, 4096)

    return check


# ---------------------------------------------------------------- memory and devices


@thing
def memfd() -> Check:
    fd = os.memfd_create("kept")
    os.ftruncate(fd, 8192)
    mapped = mmap.mmap(fd, 8192)
    mapped[5000:5003] = b"abc"

    def check() -> None:
        same(os.pread(fd, 3, 5000), b"abc")
        mapped[0:1] = b"z"
        same(os.pread(fd, 1, 0), b"z")

    return check


@thing
def unlinked_posix_memory() -> Check:
    path = f"/dev/shm/{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"shm")
    mapped = mmap.mmap(fd, 0)
    os.unlink(path)

    def check() -> None:
        same(os.pread(fd, 3, 0), b"shm")
        mapped[0:3] = b"shm"

    return check


@thing
def system_v() -> Check:
    """Memory, a semaphore, and a queue."""
    libc.shmat.restype = ctypes.c_void_p
    memory = libc.shmat(done(libc.shmget(0, 4096, 0o1600)), None, 0)
    ctypes.memmove(memory, b"kept", 4)
    done(libc.semctl(done(libc.semget(77, 1, 0o1600)), 0, 16, 3))  # SETVAL
    done(libc.msgsnd(done(libc.msgget(78, 0o1600)), struct.pack("l4s", 1, b"word"), 4, 0))

    def check() -> None:
        same(ctypes.string_at(memory, 4), b"kept")
        same(libc.semctl(done(libc.semget(77, 1, 0)), 0, 12), 3)  # GETVAL
        room = ctypes.create_string_buffer(16)
        same(libc.msgrcv(done(libc.msgget(78, 0)), room, 4, 0, 0o4000), 4)  # IPC_NOWAIT
        done(libc.msgsnd(libc.msgget(78, 0), room, 4, 0))
        same(room.raw[8:12], b"word")

    return check


@thing
def devices() -> Check:
    null, zero, full, random, urandom = (
        os.open(f"/dev/{name}", os.O_RDWR) for name in ("null", "zero", "full", "random", "urandom")
    )
    private = mmap.mmap(zero, 4096, mmap.MAP_PRIVATE)
    private[3:4] = b"q"

    def check() -> None:
        same((os.read(null, 1), os.write(null, b"x"), os.read(zero, 2), private[3:5]), (b"", 1, b"\0\0", b"q\0"))
        same((len(os.read(random, 1)), len(os.read(urandom, 1))), (1, 1))
        with contextlib.suppress(OSError):
            raise AssertionError(f"/dev/full took {os.write(full, b'x')}")

    return check


@thing
def own_terminal() -> Check:
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 12, 34, 0, 0))
    os.write(master, b"typed\n")

    def check() -> None:
        same(os.get_terminal_size(slave), (34, 12))
        same(os.read(slave, 99), b"typed\n")
        os.write(master, b"typed\n")

    return check


# ---------------------------------------------------------------- pipes and sockets


def with_something_unread(read: int, write: int) -> Check:
    os.write(write, b"unread")

    def check() -> None:
        same(os.read(read, 99), b"unread")
        os.write(write, b"unread")

    return check


@thing
def pipe() -> Check:
    return with_something_unread(*os.pipe())


@thing
def pipe_without_a_writer() -> Check:
    read, write = os.pipe()
    os.close(write)
    return lambda: same(os.read(read, 9), b"")


@thing
def fifo() -> Check:
    os.mkfifo("fifo")
    read = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    return with_something_unread(read, os.open("fifo", os.O_WRONLY))


@thing
def fifo_both_ways() -> Check:
    os.mkfifo("both ways")
    fd = os.open("both ways", os.O_RDWR)
    return with_something_unread(fd, fd)


def talking(one: socket.socket, other: socket.socket) -> Check:
    """They have said something to each other that neither has heard."""
    for end in (one, other):
        end.settimeout(WAIT_S)
        end.send(b"unread")

    def check() -> None:
        same((one.recv(99), other.recv(99)), (b"unread", b"unread"))
        one.send(b"unread")
        other.send(b"unread")

    return check


@thing
def unix_stream() -> Check:
    return talking(*socket.socketpair(type=socket.SOCK_STREAM))


@thing
def unix_datagrams() -> Check:
    return talking(*socket.socketpair(type=socket.SOCK_DGRAM))


@thing
def unix_packets() -> Check:
    return talking(*socket.socketpair(type=socket.SOCK_SEQPACKET))


@thing
def unix_whose_other_end_is_closed() -> Check:
    one, other = socket.socketpair()
    other.send(b"last")
    other.close()
    return lambda: same(one.recv(9, socket.MSG_PEEK), b"last")


@thing
def unix_of_a_closed_listener() -> Check:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("listener")
        listener.listen()
        near = socket.socket(socket.AF_UNIX)
        near.connect("listener")
        return talking(near, listener.accept()[0])


@thing
def descriptor_on_its_way() -> Check:
    one, other = socket.socketpair()
    with open("on its way", "w+b", 0) as file:
        file.write(b"in flight")
        socket.send_fds(one, [b"x"], [file.fileno()])

    def check() -> None:
        assert is_readable(other.fileno())
        _, (fd,), _, _ = socket.recv_fds(other, 9, 1)
        same(os.pread(fd, 99, 0), b"in flight")
        socket.send_fds(one, [b"x"], [fd])
        os.close(fd)

    return check


@thing
def udp() -> Check:
    one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for end in (one, other):
        end.bind(("127.0.0.1", 0))
        end.settimeout(WAIT_S)
    one.connect(other.getsockname())
    other.connect(one.getsockname())

    def check() -> None:  # what is unread when a host ends is lost in any case
        for sender, reader in ((one, other), (other, one)):
            sender.send(b"here")
            same(reader.recv(99), b"here")

    return check


@thing
def tcp() -> Check:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return talking(near, listener.accept()[0])


@thing
def sockets_without_a_port() -> Check:
    kinds = [(f, k) for f in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) for k in (1, 2)]
    all_ = [socket.socket(*kind) for kind in kinds]
    return lambda: same(
        [(one.getsockopt(1, socket.SO_DOMAIN), one.getsockopt(1, socket.SO_TYPE)) for one in all_], kinds
    )


# ---------------------------------------------------------------- files


@thing
def files_of_where_it_runs_are_the_nodes_own() -> Check:
    """With dfsa=1: /mfs/<where it runs> is that node's own file system, all other nodes are the mount's."""

    def check() -> None:
        mount = os.stat("/mfs").st_dev
        with open("/mfs/here/etc/hostname") as file:
            here = file.read().strip().removeprefix("node")
        same([node for node in "123" if os.stat(f"/mfs/{node}/etc").st_dev != mount], [here])

    return check


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # in all threads
    checks = {name: make() for name, make in THINGS.items()}
    print(os.getpid(), flush=True)
    for _ in sys.stdin:
        wrong = []
        for name, check in checks.items():
            try:
                check()
            except (AssertionError, OSError) as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
        print("; ".join(wrong) or "ok", flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a tick may give a kill EINTR (LIMITS.md)
    for pid in CHILDREN:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


main()
