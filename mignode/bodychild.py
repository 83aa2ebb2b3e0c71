"""What a child of a guest's init does between its fork and its execve: becoming the guest's program, or a command.

Both end in an execve or tell the init why not, over a *channel*, a packet socket that closes with the execve.  Neither
returns.  A program gets its birthright, its standard files and nothing else; a command root's effective ids, exactly
the descriptors that it needs, the node's IPC namespace, and a filter of system calls if wanted.

Why the node's: CRIU dumps System V memory only if it is in another IPC namespace than the guest (4.2.1, Linux 6.18).

Called by guestinit.py.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Mapping
from typing import Final, NoReturn

from mignode import birthright
from mignode.bodywords import Program, StartCommand
from mignode.guestterminal import enter_foreground
from omfs.kernel import seccomp
from omfs.kernel.descriptors import have_exactly, receive_with
from omfs.kernel.namespaces import CLONE_NEWIPC, set_namespace

_ERRNO: Final = struct.Struct("=i")
_LISTENER: Final = b"listener"
_PACKET_MAX_BYTES: Final = 4096
_FAILED: Final = 127
_DEFAULT_PATH: Final = b"/bin:/usr/bin"  # of execvp(3), without PATH
_SHELL: Final = b"/bin/sh"
_NOT_HERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT)


class Outcome:
    """What came over a channel until it was closed."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self.channel = channel
        self.error: OSError | None = None
        self.listener = -1

    def is_known(self) -> bool:
        """Read what is there; True when the child has executed, or ended."""
        while True:
            try:
                packet, descriptors, _ = receive_with(self.channel, _PACKET_MAX_BYTES, 1)
            except BlockingIOError:
                return False
            if not packet:
                self.channel.close()
                return True
            if packet == _LISTENER:
                (self.listener,) = descriptors
            else:
                (number,) = _ERRNO.unpack_from(packet)
                self.error = OSError(number, packet[_ERRNO.size :].decode(errors="replace"))


def become_program(
    program: Program, filter_: bytes, ends: Mapping[int, int], has_terminal: bool, channel: socket.socket
) -> NoReturn:
    """Execute it.  *ends*: the descriptors that become 0, 1 and 2; what is missing is closed there."""
    said = channel.fileno()
    try:
        _forget_the_init()
        os.setpgid(0, 0)  # in the init's session: guestterminal.py says why
        said = have_exactly(ends, besides=channel.fileno())
        if has_terminal:
            enter_foreground(next(fd for fd in ends if os.isatty(fd)))
        _enter_filter(filter_, said)  # what is done from here on it lets pass; only root may
        birthright.apply(program.birthright)
        _enter_directory(program.directory)
        environment = dict(_pair(entry) for entry in program.environment if not entry.startswith(b"="))
        birthright.set_signals(program.birthright)
        _execute(program.file, program.argv, environment)
    except BaseException as error:
        _tell(said, error)
    os._exit(_FAILED)


def become_command(asked: StartCommand, descriptors: list[int], node_ipc: int, channel: socket.socket) -> NoReturn:
    """Execute it, as the leader of a process group."""
    said = channel.fileno()
    try:
        _forget_the_init()
        os.setpgid(0, 0)
        set_namespace(node_ipc, CLONE_NEWIPC)
        said = have_exactly(dict(zip(asked.numbers, descriptors, strict=True)), besides=channel.fileno())
        os.setresgid(asked.real_gid, 0, 0)
        os.setresuid(asked.real_uid, 0, 0)
        # SIGPIPE stays ignored, as in Python: CRIU then fails in order, and undoes things, when nobody hears it
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _enter_filter(asked.filter, said)  # the last thing: what we do ourselves from here on, it lets pass
        os.execve(asked.command[0], asked.command, os.environ)
    except BaseException as error:
        _tell(said, error)
    os._exit(_FAILED)


def _enter_filter(filter_: bytes, channel: int) -> None:
    if filter_:
        listener = seccomp.install(filter_)
        with socket.socket(fileno=os.dup(channel)) as way:
            socket.send_fds(way, [_LISTENER], [listener])
        os.close(listener)


def _forget_the_init() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _tell(channel: int, error: BaseException) -> None:
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    text = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
    os.write(channel, _ERRNO.pack(number) + text.encode()[:1000])


def _enter_directory(path: bytes) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise OSError(error.errno, f"{os.fsdecode(path)}: {error.strerror}") from None


def _pair(entry: bytes) -> tuple[bytes, bytes]:
    name, _, value = entry.partition(b"=")
    return name, value


def _execute(name: bytes, argv: tuple[bytes, ...], environment: Mapping[bytes, bytes]) -> NoReturn:
    """As execvp(3): found by the program's own PATH, a file without a format given to the shell."""
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if b"/" in name:
        _execute_file(name, argv, environment)
    failed: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for folder in environment.get(b"PATH", _DEFAULT_PATH).split(b":"):
        try:
            _execute_file(os.path.join(folder, name), argv, environment)  # no folder: the current one
        except PermissionError as error:  # another may be found; if not, this is the reason
            failed = error
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    raise failed


def _execute_file(path: bytes, argv: tuple[bytes, ...], environment: Mapping[bytes, bytes]) -> NoReturn:
    try:
        os.execve(path, argv, environment)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    os.execve(_SHELL, (_SHELL, path, *argv[1:]), environment)
