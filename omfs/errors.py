"""Every exception omfs raises on purpose: its errno, and whether the outcome is known.

A *definite* error means the request was not carried out (or was refused).  An indefinite one means the
connection was lost after the request was sent and nobody can say any more whether the owner executed it;
such a request is never repeated blindly.  One decorator in mount/ turns these into errno for the kernel; the
export turns any OSError into a `wire.Failed`.  Nothing here imports anything of omfs.
"""

from __future__ import annotations

import errno as _errno
import os


class OmfsError(Exception):
    """Base of all: *errno* is what a program that called the kernel gets to see."""

    errno: int = _errno.EIO
    definite: bool = True


class RemoteFailure(OmfsError):
    """The owner executed the request and it failed there with *errno*."""

    def __init__(self, errno: int, text: str = "") -> None:
        super().__init__(text or os.strerror(errno))
        self.errno = errno


class NameAbsent(RemoteFailure):
    """The owner looked the name up and it is not there; what it grants with this answer (wire.NameMissing)."""

    def __init__(self, serial: int, parent_mode: int) -> None:
        super().__init__(_errno.ENOENT)
        self.serial = serial
        self.parent_mode = parent_mode


class NodeDown(OmfsError):
    """The node did not answer within `timeo`."""

    errno = _errno.EHOSTDOWN


class OutcomeUnknown(OmfsError):
    """The owner restarted while it held a request that must not be executed twice."""

    errno = _errno.EIO
    definite = False


class OpenLost(OmfsError):
    """The owner does not know this open id (it restarted); open the handle again and repeat."""

    errno = _errno.EBADF


class StaleHandle(OmfsError):
    """The handle's object no longer exists on the owner."""

    errno = _errno.ESTALE


class BadHandle(OmfsError):
    """A handle that this owner did not issue: forged, truncated, or of another cluster."""

    errno = _errno.ESTALE


class Interrupted(OmfsError):
    """The calling process was signalled while it waited."""

    errno = _errno.EINTR


class WireError(OmfsError):
    """The other side broke the protocol; its connection is closed."""

    errno = _errno.EPROTO


class RuleBroken(WireError):
    """A well-formed request that no honest mount makes; the connections of who made it are closed."""


class SessionEnded(OmfsError):
    """The holder was gone for too long, or we stop: it has nothing of ours any more, and will not answer."""

    errno = _errno.EHOSTDOWN


class HelloRefused(OmfsError):
    """The two nodes do not fit together (version, DFSA setting, map, identity); the text says what to do."""

    errno = _errno.EHOSTDOWN  # what programs understand; the reason is for the log and omfs-admin status


class NotServed(HelloRefused):
    """The node is up, and its administrator lets no other node use its files for now (nomfs).

    EACCES as where an NFS server does not export to this client: who waits or takes the node for dead would be wrong.
    """

    errno = _errno.EACCES


class ConfigError(OmfsError):
    """A wrong option, file or certificate; the text is one line that says where and what to do."""

    errno = _errno.EINVAL


class MapError(ConfigError):
    """A refused cluster map: names file, line and reason (openmosix-interfaces.md, "The cluster map")."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")
        self.path = path
        self.line = line
        self.reason = reason


class ControlError(OmfsError):
    """A daemon refused a command of its control socket, or could not be asked; the text is one line."""


class NotRunning(ControlError):
    """Nobody listens on the control socket."""

    errno = _errno.ECONNREFUSED


class LockLost(OmfsError):
    """The owner restarted and another process got the lock before it could be taken again."""


class CheckpointError(OmfsError):
    """CRIU could not do what it was asked for; the text is one line and has CRIU's own reason.

    A process that was to be dumped runs on, one that was to be restored does not exist.
    """

    errno = _errno.EBUSY  # for who asked for a migration: the process stays where it is


class CriuEnded(CheckpointError):
    """CRIU was killed, or ended by itself without an answer.

    A process that was being dumped runs on in nearly all cases, but a kill in the middle may have taken it along, and
    a dump that was being finished may have ended it: look.  What a restore had begun never runs, but lies there until
    its PID namespace ends.
    """

    definite = False


class BodyLost(OmfsError):
    """A guest's init, and with it the guest's processes on this node, has ended; or another mignode has it now."""

    errno = _errno.ESRCH


class StandstillFailed(OmfsError):
    """Somebody who has a file open can't be kept from its locks for a moment; the text says who, and why."""

    errno = _errno.EBUSY


class HandoverRefused(OmfsError):
    """A guest can't be moved from here now: it is elsewhere, or on its way; the text says which."""

    errno = _errno.EBUSY


class MoveFailed(OmfsError):
    """A migration did not come to its end, and the process runs on where it was; the text says why."""


class ImagesDamaged(OmfsError):
    """The images of a tree are not what was sent; the process stays where it is."""
