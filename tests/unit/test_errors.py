"""Exceptions that carry more than their errno."""

from __future__ import annotations

import errno

from omfs.errors import NameAbsent, RemoteFailure
from omfs.wiretypes import Mode


def test_an_absent_name_is_enoent_with_what_was_granted() -> None:
    error = NameAbsent(7, Mode.SHARED)
    assert isinstance(error, RemoteFailure)
    assert (error.errno, error.serial, error.parent_mode) == (errno.ENOENT, 7, Mode.SHARED)
