"""What a guest is said to be, and how fast its past is forgotten: mosrun's -c -i -n -s -f -d, and hpc/decay; pure.

In each interval so many thousandths are kept of what is known of its files (dfsa/hints.py).  What is said:

    slow, fast         the node's slowdecay or fastdecay is kept each decayinterval (admin); slow where nothing is said
    own:DEC:SECONDS    DEC thousandths each SECONDS (0: the node's interval); behind one of the others: for later
    nodecay            nothing is forgotten
    cpujob             it computes: its files do not count when it is decided where it should run
    iojob              it reads and writes: what it computes does not count; fast, unless another is said
    exec, execonce     that holds when its program executes another one, too; once
    noinherit          it does not hold for what it starts

A guest is judged as a whole, so it has one class (guestsettings.py), and its program is its first process's.  Which
program that was when the class was set, is in the class, as a *mark*: so whoever looks later, on whatever node, sees
whether another was executed.  A mark says nothing of what it was made of.

Called by book.py, guestsettings.py, decayfiles.py, firstplace.py and balance.py.
"""

from __future__ import annotations

import enum
import hashlib
import re
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from mignode.mosrunoptions import DECAY_MAX, SECONDS_MAX, Decay, Job, Options
from mignode.weighing import Demand

_WHOLE: Final = 1000  # thousandths
_DEFAULT: Final = "default"
_OWN: Final = re.compile(r"own:([0-9]{1,4}):([0-9]{1,5})", re.ASCII)
_MARK: Final = re.compile(r"of:([0-9a-f]{16})", re.ASCII)


class OnExec(enum.IntEnum):
    """What becomes of the class when the program executes another one."""

    ENDS = 0
    ONCE = 1
    HOLDS = 2


class DecayClass(msgspec.Struct, frozen=True):
    """*kept*, *interval_s*: own ones; *has_own*: there are.  *mark*: of the program, "" where none counts."""

    job: Job = Job.UNKNOWN
    kind: Decay = Decay.DEFAULT
    kept: Annotated[int, msgspec.Meta(ge=0, le=DECAY_MAX)] = 0
    interval_s: Annotated[int, msgspec.Meta(ge=0, le=SECONDS_MAX)] = 0
    has_own: bool = False
    on_exec: OnExec = OnExec.ENDS
    inherits: bool = True
    mark: Annotated[str, msgspec.Meta(max_length=16)] = ""

    @property
    def says_something(self) -> bool:
        return replace(self, mark="") != DecayClass()

    def passed_on(self) -> DecayClass:
        """What a child has."""
        return self if self.inherits else DecayClass()


# ---------------------------------------------------------------- what it means


class Admin(NamedTuple):
    """admin/decayinterval, slowdecay, fastdecay."""

    interval_s: int = 2
    slow: int = 975
    fast: int = 926


class Pace(NamedTuple):
    """*kept*, above 0 and at most 1, of what was is left after *interval_s*, above 0."""

    interval_s: int
    kept: float


def pace(one: DecayClass, admin: Admin) -> Pace:
    """How fast it forgets on a node where the administrator has set this."""
    match one.kind:
        case Decay.NONE:
            return Pace(admin.interval_s, 1.0)
        case Decay.OWN:
            return _pace(one.interval_s or admin.interval_s, one.kept)
        case Decay.FAST:
            return _pace(admin.interval_s, admin.fast)
        case Decay.DEFAULT if one.job is Job.IO:
            return _pace(admin.interval_s, admin.fast)
    return _pace(admin.interval_s, admin.slow)


def _pace(interval_s: int, kept: int) -> Pace:
    return Pace(interval_s, max(1, kept) / _WHOLE)  # nothing kept at all: as good as nothing


def weighed(one: DecayClass, demand: Demand) -> Demand:
    """What of its demand counts for who decides."""
    match one.job:
        case Job.CPU:
            return demand._replace(files={})
        case Job.IO:
            return demand._replace(cpu=0.0)
    return demand


_JOBS_FOR_PEOPLE: Final = {
    Job.CPU: "cpujob (its files do not count)", Job.IO: "iojob (what it computes does not count)",
}  # fmt: skip


def for_people(one: DecayClass, admin: Admin) -> str:
    """As `mosctl why` says it."""
    interval_s, kept = pace(one, admin)
    job = _JOBS_FOR_PEOPLE.get(one.job, "any job")
    if kept == 1.0:
        return f"{job}, nothing forgotten"
    return f"{job}, {round(kept * _WHOLE)}/{_WHOLE} of its past kept every {interval_s} s"


# ---------------------------------------------------------------- how it is said

_JOBS: Final = {"cpujob": Job.CPU, "iojob": Job.IO}
_KINDS: Final = {"nodecay": Decay.NONE, "slow": Decay.SLOW, "fast": Decay.FAST}
_ON_EXEC: Final = {"exec": OnExec.HOLDS, "execonce": OnExec.ONCE}


def spelled(one: DecayClass) -> str:
    """One line; "default" where nothing is said."""
    said = [word for word, job in _JOBS.items() if job is one.job]
    said += [word for word, kind in _KINDS.items() if kind is one.kind]
    if one.has_own:
        said.append(f"own:{one.kept}:{one.interval_s}")
    said += [word for word, on_exec in _ON_EXEC.items() if on_exec is one.on_exec]
    if not one.inherits:
        said.append("noinherit")
    if one.mark:
        said.append(f"of:{one.mark}")
    return " ".join(said) or _DEFAULT


def understood(text: str) -> DecayClass:
    """The class that this says.  Raises ValueError."""
    found = DecayClass()
    for word in text.split():
        found = _with(found, word)
    if found.has_own and found.kind is Decay.DEFAULT:
        return replace(found, kind=Decay.OWN)
    return found


def _with(one: DecayClass, word: str) -> DecayClass:
    if (own := _OWN.fullmatch(word)) and int(own[1]) <= DECAY_MAX and int(own[2]) <= SECONDS_MAX:
        return replace(one, kept=int(own[1]), interval_s=int(own[2]), has_own=True)
    if mark := _MARK.fullmatch(word):
        return replace(one, mark=mark[1])
    if word in _JOBS:
        return replace(one, job=_JOBS[word])
    if word in _KINDS:
        return replace(one, kind=_KINDS[word])
    if word in _ON_EXEC:
        return replace(one, on_exec=_ON_EXEC[word])
    if word == "noinherit":
        return replace(one, inherits=False)
    if word == _DEFAULT:
        return one
    raise ValueError(f"{word[:40]!r} is no class of decay")


def chosen(options: Options, before: DecayClass) -> DecayClass:
    """What mosrun was told; *before*: what holds for who called it, where it was told nothing."""
    found = before
    if options.job is not Job.UNKNOWN or options.decay_kind is not Decay.DEFAULT:
        has_own = options.decay_kind is Decay.OWN
        found = DecayClass(options.job, options.decay_kind, options.decay, options.interval_s, has_own)
    if options.keeps_on_exec:
        found = replace(found, on_exec=OnExec.HOLDS)
    return found if options.children_inherit else replace(found, inherits=False)


# ---------------------------------------------------------------- hpc/decay: one file each, 1 is written


def triggered(one: DecayClass, name: str) -> DecayClass:
    """What holds when 1 was written to hpc/decay/*name*.  Raises ValueError: there are no own values."""
    match name:
        case "clear":
            return DecayClass()
        case "cpujob" | "iojob":
            return replace(one, job=_JOBS[name])
        case "slow" | "fast":
            return replace(one, kind=_KINDS[name])
        case "own" if one.has_own:
            return replace(one, kind=Decay.OWN)
        case "own":
            raise ValueError("it has no decay of its own yet: write own:DEC:SECONDS to its file decay")
        case "inherit":
            return replace(one, inherits=True)
    return replace(one, on_exec=_ON_EXEC[name])


def is_in_force(one: DecayClass, name: str) -> bool:
    """What hpc/decay/*name* reads as."""
    match name:
        case "cpujob" | "iojob":
            return one.job is _JOBS[name]
        case "slow" | "fast":
            return one.kind is _KINDS[name]
        case "own":
            return one.kind is Decay.OWN
        case "inherit":
            return one.inherits
        case "exec" | "execonce":
            return one.on_exec is _ON_EXEC[name]
    return False


# ---------------------------------------------------------------- the program


def mark_of(image: str) -> str:
    """*image*: what the program's process executes, as the kernel shows it, which is nobody else's to know."""
    return hashlib.sha256(image.encode()).hexdigest()[:16] if image else ""


def executed(one: DecayClass, mark: str) -> DecayClass:
    """The class that holds where the program has this mark now."""
    if not one.mark or not mark or mark == one.mark:
        return one
    match one.on_exec:
        case OnExec.HOLDS:
            return replace(one, mark=mark)
        case OnExec.ONCE:
            return replace(one, on_exec=OnExec.ENDS, mark=mark)
    return DecayClass()
