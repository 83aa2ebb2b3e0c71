"""What programs of tests/unit/holders.py do before they are looked at (test_cantmove.py).

`sys.argv[1]` is a directory of their own, `sys.argv[2]` a file of /dev/shm; they import what holders.PROLOGUE imports.
"""

from __future__ import annotations

from mignode.reasons import Kind

ALL_THAT_MOVES = r"""
place = sys.argv[1]
kept = [open(f"{place}/file", "w+"), open(f"{place}/gone", "w+"), open(f"{place}/unlocked", "w+")]
os.unlink(f"{place}/gone")
for operation in (fcntl.LOCK_EX, fcntl.LOCK_UN):
    fcntl.flock(kept[0], operation)
    fcntl.lockf(kept[2], operation, 10)
fcntl.lockf(kept[2], fcntl.LOCK_EX, 5, 20)
fcntl.flock(kept[2], fcntl.LOCK_SH)
fcntl.fcntl(kept[0], 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
kept += [os.pipe() for _ in range(3)]
kept.append(select.epoll())
kept[-1].register(kept[3][0])
timers = [call(number, *arguments) for number, *arguments in (
    (283, 1, 0),                                        # timerfd_create
    (290, 0, 0),                                        # eventfd2
    (289, -1, ctypes.byref(ctypes.c_ulong(0)), 8, 0),   # signalfd4
)]
memory = os.memfd_create("memory")
os.ftruncate(memory, 4096)
maps = [mmap.mmap(memory, 4096), mmap.mmap(-1, 4096), mmap.mmap(kept[0].fileno(), 0) if kept[0].truncate(4096) else 0]
libc.inotify_init()
os.chdir(place)
devices = [open(f"/dev/{name}", "rb") for name in ("null", "zero", "full", "random", "urandom")]
private = mmap.mmap(devices[1].fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
master, slave = os.openpty()
directory, statm = os.open(place, os.O_RDONLY), os.open("/proc/self/statm", os.O_RDONLY)
signal.setitimer(signal.ITIMER_REAL, 10000)
shared = libc.shmget(0, 4096, 0o1600)
libc.shmat.restype = ctypes.c_void_p
assert libc.shmat(shared, None, 0)
for _ in range(5):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
ends = socket.socketpair(), socket.socketpair(type=socket.SOCK_DGRAM), socket.socketpair(type=socket.SOCK_SEQPACKET)
loose = [socket.socket(family, kind) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) for kind in (1, 2)]
listener = socket.create_server(("127.0.0.1", 0))
there = socket.create_connection(listener.getsockname())
here, _ = listener.accept()
listener.close()
half, other = socket.socketpair()
other.close()
reader, writer = os.pipe()
os.close(writer)
os.pidfd_open(os.getpid())
children = [forked(lambda: None) for _ in range(3)]
os.kill(children[0], signal.SIGSTOP)
os.kill(children[1], signal.SIGKILL)
os.waitid(os.P_PID, children[1], os.WEXITED | os.WNOWAIT)
ready()
"""

# What it does; why that can't move; what is said of it.
STAYS = {
    "io_uring": (
        "fd = call(425, 4, ctypes.create_string_buffer(200))",
        Kind.KERNEL_OBJECT, "uses io_uring (descriptor 3)",
    ),
    "io_uring without its descriptor": (
        """
fd = call(425, 4, parameters := ctypes.create_string_buffer(200))
mapped(fd, 4096)
os.close(fd)""",
        Kind.MAPPING, "uses io_uring",
    ),
    "perf events": (
        """
attribute = ctypes.create_string_buffer(128)
struct.pack_into("=IIQ", attribute, 0, 1, 128, 0)   # software, its clock
struct.pack_into("=Q", attribute, 40, 0x21)         # disabled, without the kernel
fd = call(298, attribute, 0, -1, -1, 0)""",
        Kind.KERNEL_OBJECT, "counts performance events (descriptor 3)",
    ),
    "userfaultfd": ("call(323, 1)", Kind.KERNEL_OBJECT, "handles page faults itself (userfaultfd) (descriptor 3)"),
    "fanotify": ("call(300, 0, 0)", Kind.KERNEL_OBJECT, "watches files by fanotify (descriptor 3)"),
    "secret memory": (
        "call(447, 0)",
        Kind.KERNEL_OBJECT, "has memory that nobody may read (memfd_secret) (descriptor 3)",
    ),
    "secret memory without its descriptor": (
        "fd = call(447, 0); os.ftruncate(fd, 4096); mapped(fd, 4096); os.close(fd)",
        Kind.MAPPING, "has memory that nobody may read (memfd_secret)",
    ),
    "a mount that is being made": (
        "call(430, b'tmpfs', 0)", Kind.KERNEL_OBJECT, "holds the kernel object [fscontext] (descriptor 3)",
    ),
    "a mount of its own": (
        "call(428, -100, b'/tmp', 1)", Kind.PLACE, "has / open that is outside its tree of files (descriptor 3)",
    ),
    "a BPF map": (
        "call(321, 0, ctypes.create_string_buffer(struct.pack('=IIIII', 2, 4, 4, 1, 0), 72), 72)",
        Kind.KERNEL_OBJECT, "holds a BPF map (descriptor 3)",
    ),
    "a device": (
        "kept = open('/dev/fuse', 'rb')", Kind.DEVICE, "has the device /dev/fuse open (descriptor 3)",
    ),
    "the kernel's log": (
        "kept = os.open('/dev/kmsg', os.O_RDONLY)", Kind.DEVICE, "has the device /dev/kmsg open (descriptor 3)",
    ),
    "a network interface": (
        "kept = open('/dev/net/tun', 'rb')", Kind.DEVICE, "has the device /dev/net/tun open (descriptor 3)",
    ),
    "a namespace": (
        "kept = open('/proc/self/ns/net')", Kind.NAMESPACE, "holds a net namespace open (descriptor 3)",
    ),
    "what the machine tells": (
        "kept = open('/sys/kernel/mm/transparent_hugepage/enabled')",
        Kind.PLACE,
        "has /sys/kernel/mm/transparent_hugepage/enabled open that only this machine has (descriptor 3)",
    ),
    "a directory that was removed": (
        "os.mkdir(sys.argv[1] + '/x'); kept = os.open(sys.argv[1] + '/x', os.O_RDONLY); "
        "os.rmdir(sys.argv[1] + '/x')",
        Kind.REMOVED, "has the directory {place}/x open that was removed (descriptor 3)",
    ),
    "a working directory that was removed": (
        "os.mkdir(sys.argv[1] + '/x'); os.chdir(sys.argv[1] + '/x'); os.rmdir(sys.argv[1] + '/x')",
        Kind.REMOVED, "works in the directory {place}/x that was removed",
    ),
    "its working directory": (
        "os.chdir('/sys/kernel')", Kind.PLACE, "works in /sys/kernel that only this machine has",
    ),
    "a message queue": (
        """
name = ctypes.create_string_buffer(b"omfs-" + os.urandom(8).hex().encode())
call(240, name, os.O_CREAT | os.O_RDWR, 0o600, None)
call(241, name)""",
        Kind.PLACE, None,
    ),
    "a flock on an unlinked file": (
        "kept = open(f'{sys.argv[1]}/locked', 'w'); fcntl.flock(kept, fcntl.LOCK_SH); os.unlink(kept.name)",
        Kind.LOCK, "holds a lock on the file {place}/locked (deleted) (descriptor 3)",
    ),
    "a flock on a directory": (
        "kept = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(kept, fcntl.LOCK_SH)",
        Kind.LOCK, "holds a lock on the file {place} (descriptor 3)",
    ),
    "a POSIX lock on an unlinked file": (
        "kept = open(f'{sys.argv[1]}/locked', 'w'); fcntl.lockf(kept, fcntl.LOCK_EX, 10); os.unlink(kept.name)",
        Kind.LOCK, "holds a lock on the file {place}/locked (deleted) (descriptor 3)",
    ),
    "a lease": (
        "kept = open(f'{sys.argv[1]}/leased', 'w'); fcntl.fcntl(kept, fcntl.F_SETLEASE, fcntl.F_WRLCK)",
        Kind.LEASE, "holds a lease on the file {place}/leased (descriptor 3)",
    ),
    "inotify": (
        "libc.inotify_add_watch(libc.inotify_init(), sys.argv[1].encode(), 2)",
        Kind.WATCH, "watches files of this node by inotify (descriptor 3)",
    ),
    "one end of a FIFO": (
        "os.mkfifo(f'{sys.argv[1]}/fifo'); os.open(f'{sys.argv[1]}/fifo', os.O_RDONLY | os.O_NONBLOCK)",
        Kind.FIFO, "holds only one end of the FIFO {place}/fifo (descriptor 3)",
    ),
    "netlink": (
        "kept = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        Kind.SOCKET, "holds a socket of the kind NETLINK (descriptor 3)",
    ),
    "packets": (
        "kept = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        Kind.SOCKET, "holds a socket of the kind PACKET (descriptor 3)",
    ),
    "packets that are mapped": (
        """
kept = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
kept.setsockopt(263, 5, struct.pack("=IIII", 4096, 1, 2048, 2))  # PACKET_RX_RING
mapped(kept.fileno(), 4096)
kept.close()""",
        Kind.MAPPING, "has the buffers of a socket mapped",
    ),
    "a raw socket": (
        "kept = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        Kind.SOCKET, "holds a socket of the kind RAW (descriptor 3)",
    ),
    "a TCP port": (
        "kept = socket.create_server(('127.0.0.1', 0)); said = kept.getsockname()[1]",
        Kind.PORT, "listens at the TCP port 127.0.0.1:{said} (descriptor 3)",
    ),
    "a TCP port of IPv6": (
        "kept = socket.create_server(('::1', 0), family=socket.AF_INET6); said = kept.getsockname()[1]",
        Kind.PORT, "listens at the TCP port [::1]:{said} (descriptor 3)",
    ),
    "a UDP port": (
        "kept = socket.socket(type=socket.SOCK_DGRAM); kept.bind(('127.0.0.1', 0)); said = kept.getsockname()[1]",
        Kind.PORT, "listens at the UDP port 127.0.0.1:{said} (descriptor 3)",
    ),
    "a unix socket with a name": (
        "kept = socket.socket(socket.AF_UNIX); kept.bind(f'{sys.argv[1]}/socket'); kept.listen()",
        Kind.PORT, "can be reached at the unix socket {place}/socket (descriptor 3)",
    ),
    "a unix socket with an abstract name": (
        "kept = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); kept.bind('')",
        Kind.PORT, None,
    ),
    "a debugger": (
        "forked(lambda: libc.ptrace(0, 0, 0, 0))", Kind.TRACED, None,
    ),
    "rights of two users": (
        "os.setresuid(65534, 0, 0)", Kind.RIGHTS, "has the rights of several users: 0 and 65534",
    ),
    "a filter of system calls": (
        """
allow = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(allow)
program = struct.pack("@HP", 1, ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0 == libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0)""",
        Kind.FILTER, "filters its system calls (seccomp)",
    ),
    "more locked memory than it may have": (
        """
import resource
kept = mmap.mmap(-1, 1 << 20)
assert libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(kept))), ctypes.c_size_t(1 << 20)) == 0
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))
os.setresuid(65534, 65534, 65534)""",
        Kind.LOCKED_MEMORY, "has 1024 KiB of memory locked, and may have 64",
    ),
    "huge pages": (
        """
libc.mmap.restype = ctypes.c_void_p
assert libc.mmap(None, ctypes.c_size_t(2 << 20), 3, 0x22 | 0x40000 | 0x4000, -1, 0) != 2**64 - 1""",
        Kind.MAPPING, "uses huge pages",
    ),
    "asynchronous I/O of the kernel": (
        "call(206, 8, ctypes.byref(ctypes.c_ulong(0)))", Kind.MAPPING, "uses the kernel's asynchronous I/O",
    ),
    "named POSIX memory": (
        """
file = open(sys.argv[2], "r+b")
mapped(file.fileno(), 4096)
file.close()""",
        Kind.PLACE, "has {memory} mapped that only this machine has",
    ),
    "threads with descriptors of their own": (
        """
done = threading.Event()
threading.Thread(target=lambda: (libc.unshare(0x400), done.set(), time.sleep(1000)), daemon=True).start()
done.wait()""",
        Kind.THREADS, "has threads that don't share their descriptors",
    ),
    "threads in different namespaces": (
        """
done = threading.Event()
threading.Thread(target=lambda: (libc.unshare(0x04000000), done.set(), time.sleep(1000)), daemon=True).start()
done.wait()""",
        Kind.NAMESPACE, "has threads in different namespaces: uts",
    ),
    "another user namespace": ("assert libc.unshare(0x10000000) == 0", Kind.NAMESPACE, "is in another namespace: user"),
    "another network namespace": (
        "assert libc.unshare(0x40000000) == 0", Kind.NAMESPACE, "is in another namespace: net",
    ),
    "another PID namespace for its children": (
        "assert libc.unshare(0x20000000) == 0", Kind.NAMESPACE, "is in another namespace: pid_for_children",
    ),
    "another time namespace for its children": (
        "assert libc.unshare(0x80) == 0", Kind.NAMESPACE, "is in another namespace: time_for_children",
    ),
    "a first thread that has ended": (  # exit(2)
        """
def half():
    while open("/proc/1/stat").read().split()[2] != "Z":
        os.sched_yield()
    ready()
threading.Thread(target=half).start()
call(60, 0)""",
        Kind.HALF_ENDED, None,
    ),
}  # fmt: skip
