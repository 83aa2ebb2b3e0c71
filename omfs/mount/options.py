"""What `mount -o` may say to omfs.

Text in, MountOptions out (and Settings: the only file read here is omfs.toml); an unknown word is a ConfigError that
names it.  Words come from the command line, fstab and, at a remount, from the kernel's own list of the running
mount.  Called by cli/mount.py, session.py and remount.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from omfs.config import Settings, load_settings
from omfs.errors import ConfigError

_KERNEL_WORDS: Final = {
    "ro": "ro", "rw": "rw", "suid": "suid", "nosuid": "nosuid", "exec": "exec", "noexec": "noexec",
    "atime": "atime", "noatime": "noatime", "diratime": "diratime", "nodiratime": "nodiratime",
    "relatime": "relatime", "norelatime": "norelatime", "strictatime": "strictatime",
    "nostrictatime": "nostrictatime", "sync": "sync", "async": "async", "dirsync": "dirsync",
    "lazytime": "lazytime", "nolazytime": "nolazytime", "nosymfollow": "nosymfollow", "symfollow": "symfollow",
    "dev": "nodev", "nodev": "nodev",  # devices of another machine never mean ours
}  # fmt: skip
"""Words about the kernel's own flags, and what they are taken for."""

_IGNORED_WORDS: Final = frozenset({
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group", "silent", "loud",
    "iversion", "noiversion", "mand", "nomand", "allow_other", "bg", "fg",
})  # fmt: skip
"""fstab's words for mount(8), and what always holds here."""

_IGNORED_NAMES: Final = frozenset({
    "fsname", "subtype", "user", "uhelper", "helper", "comment", "user_id", "group_id", "rootmode", "fd", "max_read",
    "blksize",
})  # fmt: skip
"""Names with a value that mount(8) or the kernel's list of mounts adds."""

MS_FLAGS: Final = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "nosymfollow": 256,
    "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21, "strictatime": 1 << 24, "lazytime": 1 << 25,
}  # fmt: skip
"""mount(2)'s flags."""

_OPPOSITES: Final = {
    "rw": "ro", "suid": "nosuid", "exec": "noexec", "async": "sync", "atime": "noatime", "diratime": "nodiratime",
    "norelatime": "relatime", "nostrictatime": "strictatime", "nolazytime": "lazytime", "symfollow": "nosymfollow",
}  # fmt: skip


@dataclass(frozen=True)
class MountOptions:
    """One mount as it was asked for.  None leaves a setting to omfs.toml; *timeo_s* is seconds."""

    spec: str = "mfs_mnt"
    mountpoint: str = ""
    dfsa: bool | None = None
    hard: bool = False
    timeo_s: float | None = None
    port: int | None = None
    sec: str | None = None
    map: str | None = None
    config: str | None = None
    run_dir: str | None = None
    state_dir: str | None = None
    address: str | None = None
    remount: bool = False
    foreground: bool = False
    debug: bool = False
    kernel_words: tuple[str, ...] = ()
    given: frozenset[str] = field(default=frozenset(), compare=False)  # names of ours that were said

    @property
    def read_only(self) -> bool:
        return bool(self.kernel_flags & MS_FLAGS["ro"])

    @property
    def kernel_flags(self) -> int:
        """The words as mount(2) flags; the last one counts.  nosuid and nodev hold unless said otherwise."""
        flags = MS_FLAGS["nosuid"] | MS_FLAGS["nodev"]
        for word in self.kernel_words:
            if word in MS_FLAGS:
                flags |= MS_FLAGS[word]
            else:
                flags &= ~MS_FLAGS[_OPPOSITES[word]]
        return flags

    def own(self) -> dict[str, object]:
        """What only a new mount can change, by option name (compared at a remount)."""
        return {name: getattr(self, _FIELDS.get(name, name)) for name in OWN_NAMES}


_FIELDS: Final = {"timeo": "timeo_s"}
OWN_NAMES: Final = ("dfsa", "hard", "timeo", "port", "sec", "map", "config", "run_dir", "state_dir", "address")


def parse(
    spec: str,
    mountpoint: str,
    texts: list[str],
    *,
    foreground: bool = False,
    debug: bool = False,
    sloppy: bool = False,
) -> MountOptions:
    """The options of one command line: each of *texts* is a comma-separated list; *sloppy* lets unknown words pass.

    Raises ConfigError, one line that names the option and what it may be.
    """
    values: dict[str, object] = {}
    given: set[str] = set()
    kernel: list[str] = []
    for word in (word for text in texts for word in text.split(",") if word):
        name, equals, value = word.partition("=")
        if word in _KERNEL_WORDS:
            kernel.append(_KERNEL_WORDS[word])
        elif word == "remount":
            values["remount"] = True
        elif word in ("hard", "soft"):
            values["hard"] = word == "hard"
            given.add("hard")
        elif word in _IGNORED_WORDS or word.startswith(("x-", "X-")) or (equals and name in _IGNORED_NAMES):
            continue
        elif name in _VALUES:
            if not equals or not value:
                raise ConfigError(f"option {name} needs a value: {name}={_VALUES[name][1]}")
            values[_FIELDS.get(name, name)] = _VALUES[name][0](name, value)
            given.add(name)
        elif not sloppy:
            raise ConfigError(f'unknown option "{word}"; known: {_known()}')
    return MountOptions(
        spec=spec,
        mountpoint=mountpoint,
        foreground=foreground,
        debug=debug,
        kernel_words=tuple(kernel),
        given=frozenset(given),
        **values,  # type: ignore[arg-type]
    )


def settings_for(options: MountOptions) -> Settings:
    """omfs.toml, overridden by what the mount's options say.  Raises ConfigError."""
    settings = load_settings(Path(options.config)) if options.config else load_settings()
    names = ("map", "port", "sec", "run_dir", "state_dir", "address", "timeo_s", "dfsa")
    said = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.timeo_s is not None:  # several pings must fit into the silence that means "down"
        said["ping_interval_s"] = min(settings.ping_interval_s, options.timeo_s / 5)
    return msgspec.structs.replace(settings, **said)


def refused_at_remount(wanted: MountOptions, running: dict[str, object] | None) -> str:
    """The first option of ours that a remount would change ("" if none); *running* is own() of the live mount."""
    own = wanted.own()
    for name in sorted(wanted.given):
        if running is None or own[name] != running.get(name):
            return name
    return ""


def _known() -> str:
    return "dfsa= hard soft timeo= port= sec= map= config= run_dir= state_dir= address= and mount(8)'s own"


def _flag(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise ConfigError(f'option {name} is 0 or 1, not "{value}"')
    return value == "1"


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise ConfigError(f'option {name} is a number of seconds from 0.1 to 86400, not "{value}"')
    return seconds


def _port(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value) < 65536):
        raise ConfigError(f'option {name} is a TCP port, 1 to 65535, not "{value}"')
    return int(value)


def _security(name: str, value: str) -> str:
    if value not in ("tls", "none"):
        raise ConfigError(f'option {name} is tls or none, not "{value}"')
    return value


def _path(name: str, value: str) -> str:
    if not os.path.isabs(value):
        raise ConfigError(f'option {name} is an absolute path, not "{value}"')
    return value


def _text(name: str, value: str) -> str:
    return value


_VALUES: Final = {
    "dfsa": (_flag, "0 or 1"),
    "timeo": (_seconds, "SECONDS"),
    "port": (_port, "PORT"),
    "sec": (_security, "tls or none"),
    "map": (_path, "FILE"),
    "config": (_path, "FILE"),
    "run_dir": (_path, "DIRECTORY"),
    "state_dir": (_path, "DIRECTORY"),
    "address": (_text, "ADDRESS"),
}
