"""What mosctl's subcommands answer with: something for people and for programs, or the one line why not."""

from __future__ import annotations

from typing import Any, NamedTuple


class Told(NamedTuple):
    """In openMosix's words, and for --json."""

    text: str
    data: dict[str, Any]


class Refused(Exception):
    """The one line for who asked."""


class WrongValue(Exception):
    """What was given can mean nothing, whatever the cluster is like: wrong usage."""
