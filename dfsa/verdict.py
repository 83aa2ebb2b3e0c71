"""What becomes of each system call of a guest that is away from home: done here, answered by home, or refused; and why.

A guest lives in mount, UTS, IPC and PID namespaces whose / is its home's tree, so a path, a host name, an IPC key and a
pid of its own group mean what they mean at home, and nearly every call is the local kernel's (HERE).  What concerns
processes outside its group is answered by home (HOME).  Refused is what would change or show the wrong machine, and
what would keep the guest from ever moving again; with the errno by which programs know that a kernel has no such thing
or does not allow it, so that they go on without.

Rules that the tests hold:

* every call that a kernel knows has exactly one row; what has none is refused with ENOSYS;
* all arguments of a HOME call are values.  So the router may tell the kernel to go on with it after a look at them,
  which with a path or a structure would let another thread change it after the look (seccomp_unotify(2));
* at home nothing is refused, only HOME is the same: eligible may find that the process can't move because of what it
  did there.  What nobody could find afterwards is LASTING: done, and noted.

Pure: data, and how to look it up.  What becomes of the verdicts: a filter (guestfilter.py), and answers (router.py).
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from dfsa.callnumbers import NUMBERS


class Where(enum.Enum):
    """Who does the call."""

    HERE = "here"
    HOME = "home"
    REFUSED = "refused"


class Verdict(NamedTuple):
    """*errno*: of a refusal, or, with *flags*, of a call HERE whose first argument has any of these bits set."""

    where: Where
    reason: str
    errno: int = 0
    flags: int = 0


_NEW_NAMESPACE: Final = 0x80 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
"""CLONE_NEWTIME, NS, CGROUP, UTS, IPC, USER, PID and NET (include/uapi/linux/sched.h).

NEWTIME is for unshare only; in the flags of clone(2) its bit belongs to the signal's number, where it is never set.
"""

_HERE: Final = {
    "paths mean the same: / is home's tree": """
        open openat openat2 creat stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat
        rename renameat renameat2 link linkat unlink unlinkat symlink symlinkat mkdir mkdirat rmdir mknod mknodat
        chmod fchmodat fchmodat2 chown lchown fchownat utime utimes futimesat utimensat truncate chdir getcwd chroot
        statfs setxattr lsetxattr getxattr lgetxattr listxattr llistxattr removexattr lremovexattr setxattrat getxattrat
        listxattrat removexattrat file_getattr file_setattr inotify_add_watch execve execveat statmount listmount
        ustat sysfs""",
    "open files move with the guest": """
        read write close fstat lseek pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 sendfile dup dup2
        dup3 fcntl flock fsync fdatasync ftruncate getdents getdents64 fchdir fchmod fchown fstatfs readahead fsetxattr
        fgetxattr flistxattr fremovexattr fadvise64 sync_file_range fallocate copy_file_range splice tee vmsplice sync
        syncfs close_range ioctl cachestat umask""",
    "pipes, events and polls move with the guest": """
        poll select pselect6 ppoll pipe pipe2 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
        eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime inotify_init inotify_init1
        inotify_rm_watch io_setup io_destroy io_getevents io_pgetevents io_submit io_cancel""",
    "the network is that of the node where it runs": """
        socket connect accept accept4 sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown bind listen getsockname
        getpeername socketpair setsockopt getsockopt""",
    "its memory is here": """
        mmap mprotect munmap brk mremap msync mincore madvise process_madvise mlock mlock2 munlock mlockall munlockall
        remap_file_pages mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages memfd_create
        membarrier pkey_mprotect pkey_alloc pkey_free mseal map_shadow_stack""",
    "System V and POSIX IPC is the group's own: an IPC namespace": """
        shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink
        mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
    "threads and children are in the group, and no others are seen: a PID namespace": """
        fork vfork exit exit_group wait4 waitid getpid gettid set_tid_address tkill tgkill rt_sigqueueinfo
        rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd process_mrelease process_vm_readv process_vm_writev
        kcmp ptrace futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list rseq
        restart_syscall uprobe uretprobe""",
    "a C library makes threads and children with it; a namespace made so is found by eligible": "clone3",
    "signals are delivered here": """
        rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause""",
    "clocks are the cluster's, timers move with the guest": """
        nanosleep clock_nanosleep getitimer setitimer alarm gettimeofday time times clock_gettime clock_getres
        timer_create timer_settime timer_gettime timer_getoverrun timer_delete""",
    "the host name is home's: a UTS namespace": "uname",
    "it concerns the machine where it runs": """
        sysinfo getcpu sched_yield sched_setparam sched_getparam sched_setscheduler sched_getscheduler
        sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_setaffinity sched_getaffinity
        sched_setattr sched_getattr getpriority setpriority ioprio_set ioprio_get getrandom lsm_get_self_attr
        lsm_set_self_attr lsm_list_modules""",
    "its group is one of the guest's, since the root leads one": "getpgrp setpgid setsid",
    "a process's own attributes move with it": """
        getrlimit setrlimit prlimit64 getrusage getuid getgid setuid setgid geteuid getegid setreuid setregid getgroups
        setgroups setresuid getresuid setresgid getresgid setfsuid setfsgid capget capset personality prctl arch_prctl
        seccomp set_thread_area get_thread_area""",
}

_HERE_WITHOUT_NAMESPACES: Final = {
    "a guest in namespaces of its own could not move again": "clone unshare",
}

_HOME: Final = {
    "the process it names may be at home": "kill",
    "its parent, group or session may be at home": "getppid getpgid getsid",
}

_REFUSED: Final = {
    ("would change the clock of a machine that is not its home", errno.EPERM): """
        settimeofday clock_settime adjtimex clock_adjtime""",
    ("would change a machine that is not its home", errno.EPERM): """
        reboot kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff acct iopl ioperm
        sethostname setdomainname vhangup syslog bpf""",
    ("the tree is home's; mounts don't move with a guest", errno.EPERM): """
        mount umount2 pivot_root open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr""",
    ("namespaces of this node are not for guests", errno.EPERM): "setns",
    ("a file handle means another file, or none, on the next node", errno.EOPNOTSUPP): "name_to_handle_at",
    ("a file handle would pass by the tree", errno.EPERM): "open_by_handle_at",
    ("quotas are those of the owner's disks", errno.ENOSYS): "quotactl quotactl_fd",
    ("keys stay in a kernel", errno.ENOSYS): "add_key request_key keyctl",
    ("what it makes can't move: the kernel works on it meanwhile", errno.ENOSYS): """
        io_uring_setup io_uring_enter io_uring_register""",
    ("what it makes can't move: it counts one machine's events", errno.EACCES): "perf_event_open",
    ("what it makes can't move: nobody can copy it", errno.ENOSYS): """
        memfd_secret modify_ldt landlock_create_ruleset landlock_add_rule landlock_restrict_self""",
    ("what it makes can't move: it watches one machine", errno.ENOSYS): "fanotify_init fanotify_mark",
    ("what it makes can't move: page faults go to another process", errno.EPERM): "userfaultfd",
    ("no kernel has it any more", errno.ENOSYS): """
        uselib _sysctl create_module get_kernel_syms query_module nfsservctl getpmsg putpmsg afs_syscall tuxcall
        security lookup_dcookie epoll_ctl_old epoll_wait_old vserver""",
}

UNKNOWN: Final = Verdict(Where.REFUSED, "nobody has thought about this call yet", errno.ENOSYS)


def _rows() -> Iterator[tuple[str, Verdict]]:
    for reason, names in _HERE.items():
        yield from ((name, Verdict(Where.HERE, reason)) for name in names.split())
    for reason, names in _HERE_WITHOUT_NAMESPACES.items():
        yield from ((name, Verdict(Where.HERE, reason, errno.EPERM, _NEW_NAMESPACE)) for name in names.split())
    for reason, names in _HOME.items():
        yield from ((name, Verdict(Where.HOME, reason)) for name in names.split())
    for (reason, number), names in _REFUSED.items():
        yield from ((name, Verdict(Where.REFUSED, reason, number)) for name in names.split())


ROWS: Final = tuple(_rows())
VERDICTS: Final[Mapping[str, Verdict]] = MappingProxyType(dict(ROWS))
"""By name; for all machines."""


VALUES_ONLY: Final = frozenset({"kill", "getppid", "getpgid", "getsid"})
"""Calls without a pointer among their arguments, that the kernel may be told to go on with: all that are HOME's."""


def named(machine: str) -> Mapping[int, str]:
    """The names of *machine*'s calls by number.  KeyError: a machine that no guest may run on."""
    return MappingProxyType({number: name for name, number in NUMBERS[machine].items()})


LASTING: Final = frozenset({"landlock_restrict_self", "modify_ldt"})
"""What they leave in a process is in no file of /proc, and CRIU loses it without a word: a sandbox would be gone."""

_NOTED: Final = Verdict(Where.HOME, "it is noted that the process can't move any more")


def judged(name: str) -> Verdict:
    """What becomes of the call of this name, away."""
    return VERDICTS.get(name, UNKNOWN)


def judged_at_home(name: str) -> Verdict:
    """The same of a guest at home.  What is neither HOME nor noted the kernel answers there."""
    return _NOTED if name in LASTING else judged(name)
