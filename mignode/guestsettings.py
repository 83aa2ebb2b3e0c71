"""What is set for a guest as a whole: the lock, the cluster mask, its class of decay, how often it has moved.

A guest moves as a whole, so each of its processes stands for all, and so does its deputy.  The truth is in one place:
its home's registry has it, as the deputy's own.  A process that asks elsewhere has its node ask home over the guest's
link (links.py); what home has not heard is not set.  What a guest begins with, mosrun had from who called it.

    lock                       it is not moved by balancing; who names it and a node, is obeyed
    migfilter, migpolicy,      where it may run at all: not on the nodes of the mask, or (migpolicy 1) on these alone;
    mignodes                   home is always allowed.  Home looks when a move begins, whoever asked for it
    decay                      what it is said to be, and how fast its past is forgotten (decay.py)

What it does not do: know processes (moves.py), lines.  Called by processfiles.py, links.py and guesthouse.py.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from mignode import decay
from mignode.book import Settings
from mignode.decay import DecayClass
from mignode.traits import Traits, deputy_in
from omfs.errors import RemoteFailure, WireError
from omfs.magic import controlfiles
from omfs.magic.controlfiles import Value

if TYPE_CHECKING:
    from mignode.registry import Registry  # for `mosctl`, which would load all that mignode needs

OF_GUEST: Final = frozenset({"lock", "nmigs", "migfilter", "migpolicy", "mignodes", "decay"})
SELECTED: Final = "selected"
"""Not one of them: each process has its own, and its node keeps it.  By the deputy's pid it is that of the root."""
_FLAGS: Final = frozenset({"lock", "migfilter", "migpolicy"})


class GuestSettings:
    """Of the guests that are at home here."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def read(self, traits: Traits, name: str) -> Value:
        """One of OF_GUEST."""
        return value_of(self._of(traits), name)

    def whole(self, traits: Traits) -> Settings:
        return self._of(traits)

    async def change(self, traits: Traits, name: str, value: Value) -> None:
        """Raises OSError where it can't be kept, RemoteFailure(EINVAL)."""
        await self._registry.set_settings(deputy_in(traits.name), **{name: meant(name, value)})

    def why_not(self, traits: Traits, node: int) -> str:
        """Why it may not run there; "": it may."""
        if node == traits.home or allows(self._of(traits), node):
            return ""
        return f"node {node} is none of those where it may run (migfilter)"

    def _of(self, traits: Traits) -> Settings:
        return self._registry.entry_of(deputy_in(traits.name)).settings


def allows(settings: Settings, node: int) -> bool:
    """Whether the cluster mask lets it run there.  Pure."""
    is_in_mask = bool(settings.mignodes >> (node - 1) & 1)
    return not settings.migfilter or is_in_mask == settings.migpolicy


def value_of(settings: Settings, name: str) -> Value:
    """One of OF_GUEST, as its control file has it."""
    return decay.spelled(settings.decay) if name == "decay" else int(getattr(settings, name))


def meant(name: str, value: Value) -> bool | int | DecayClass:
    """What *value* of the control file sets.  Raises RemoteFailure(EINVAL)."""
    if name == "decay":
        try:
            return decay.understood(str(value))
        except ValueError as error:
            raise RemoteFailure(errno.EINVAL, str(error)) from None
    assert isinstance(value, int)
    return bool(value) if name in _FLAGS else value


def settings_from(values: Mapping[str, Value]) -> Settings:
    """Of all that OF_GUEST names, as they are read one by one.  Raises RemoteFailure(EINVAL)."""
    return Settings(**{name: meant(name, value) for name, value in values.items()})  # type: ignore[arg-type]


def spelled(name: str, value: Value) -> str:
    """As its control file shows it."""
    return controlfiles.find(controlfiles.PROCESS, name).file.kind.format(value)


def understood(name: str, text: str) -> Value:
    """What another node says of one of OF_GUEST.  Raises ValueError."""
    if name not in OF_GUEST:
        raise ValueError(f"{name[:32]!r} is nothing that is set for a guest")
    value = controlfiles.find(controlfiles.PROCESS, name).file.kind.parse(text)
    if name == "decay":
        decay.understood(str(value))
    return value


def selected_in(text: str) -> int:
    """A node, or 0, as another node says it.  Raises WireError."""
    try:
        value = controlfiles.find(controlfiles.PROCESS, SELECTED).file.kind.parse(text)
    except ValueError as error:
        raise WireError(f"{SELECTED}: {error}") from None
    assert isinstance(value, int)
    return value
