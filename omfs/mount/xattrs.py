"""The extended attributes of one object as they are known under its lease: values, names, and that one is missing.

The kernel asks for some again and again (security.capability at every exec, system.posix_acl_* at permission checks)
and keeps none but ACLs.  What root gets to see may differ from what others do (trusted.*, a squashed root), so it is
kept apart.  Whether an answer may be kept is the caller's to know (`Inode.hold`).  Pure; bounded.
"""

from __future__ import annotations

import errno
from typing import Final

from omfs.wiretypes import Bare

KEPT_MAX: Final = 32  # answers, of one object
VALUE_MAX_BYTES: Final = 4096
KEPT_ERRORS: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP})
ACL_NAMES: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


_OF_ACCESS: Final = ACL_NAMES | {b"security.capability"}
LABEL: Final = b"security.selinux"
_TOLD: Final = (b"user.", b"trusted.", b"security.")  # of other kinds the owner may say EOPNOTSUPP


def missing_errno(bare: Bare, name: bytes, has_labels: bool) -> int:
    """What getxattr(2) says of an object of which this is known, if it does not have the attribute; 0: it may have it.

    *has_labels*: this mount has met an SELinux label, of any object.  Until then it is a file system without: ls asks
    such a one once, and each other one for each file.  Only a node without SELinux asks at all: elsewhere the kernel
    answers by itself.
    """
    if bare is Bare.OF_ALL and name == LABEL and not has_labels:
        return errno.EOPNOTSUPP
    if name in _OF_ACCESS and bare is not Bare.UNKNOWN:
        return errno.ENODATA
    return errno.ENODATA if bare is Bare.OF_ALL and name.startswith(_TOLD) else 0


class Xattrs:
    """Answers by (root asked, name)."""

    __slots__ = ("_lists", "_values")

    def __init__(self) -> None:
        self._values: dict[tuple[bool, bytes], bytes | int] = {}
        self._lists: dict[bool, tuple[bytes, ...]] = {}

    def value(self, by_root: bool, name: bytes) -> bytes | int | None:
        """The value, or the errno that the owner answered; None: not known."""
        return self._values.get((by_root, name))

    def keep_value(self, by_root: bool, name: bytes, answer: bytes | int) -> None:
        """*answer*: a value or one of KEPT_ERRORS."""
        if isinstance(answer, bytes) and len(answer) > VALUE_MAX_BYTES:
            return
        if len(self._values) >= KEPT_MAX:
            self._values.clear()
        self._values[by_root, name] = answer

    def names(self, by_root: bool) -> tuple[bytes, ...] | None:
        return self._lists.get(by_root)

    def keep_names(self, by_root: bool, names: tuple[bytes, ...]) -> None:
        if sum(map(len, names)) <= VALUE_MAX_BYTES:
            self._lists[by_root] = names
