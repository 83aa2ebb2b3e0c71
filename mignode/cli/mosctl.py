"""`mosctl`: what this node takes part in, and what is known of it and the others.

Each subcommand reads or writes control files in /mfs/proc/hpc, so who may is said there.  Changing something says in a
sentence what holds now, and whether it did already.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from mignode.cli import controlfile, decisions
from mignode.cli.answers import Refused, Told, WrongValue
from mignode.cli.parser import EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_REFUSED, Parser, complain, whole
from mignode.nodeinfo import SWITCHES, UP
from omfs.errors import MapError, NotRunning
from omfs.magic.controlfiles import NODE_MAX
from omfs.net.nodemap import NodeMap, parse_map

_PROCESSOR: Final = re.compile(r"(?:PIII|P3)/([0-9]{1,4})", re.IGNORECASE)


class Switch(NamedTuple):
    """Two subcommands: *name* (1) and no*name* (0); what then holds, as the end of a sentence."""

    on: str
    off: str


_SWITCHES: Final = {
    "stay": Switch("no process leaves this node by balancing", "processes may leave this node by balancing"),
    "lstay": Switch("processes of this node stay at home", "processes of this node may run elsewhere"),
    "block": Switch("no guests may come to this node", "guests may come to this node"),
    "quiet": Switch("this node does not tell others its load", "this node tells others its load"),
    "nomfs": Switch("other nodes do not see this node's files", "other nodes see this node's files"),
}
_GETTERS: Final = {
    "getload": (("load",), "load={}"),
    "getspeed": (("speed",), "speed={}"),
    "getmem": (("mem", "tmem"), "free memory = {} of {}"),
    "getfree": (("rmem", "tmem"), "raw free memory = {} of {}"),
    "getutil": (("util",), "Utilizability = {}%"),
}

ABOUT: Final = """\
Say what this node takes part in (root only), or show what is known of a node.
  stay nostay       processes don't leave it by balancing; they may
  lstay nolstay     its own processes stay at home; they may leave
  block noblock     no guests may come; they may
  quiet noquiet     it does not tell others its load; it does
  nomfs mfs         others do not see its files; they do
  expel             all guests go home, and none may come; ends when they have gone
  bring             all its own processes come home, and stay; ends when they are here
  setspeed N        it counts as so fast (1 to 65535; a Pentium III of 1 GHz is 10000)
  setyard TYPE|ID|this
                    the speed of the standard processor, which a load of 100 keeps busy: PIII/MHZ, or that of a node
  setdecay SECONDS SLOW FAST
                    each SECONDS a process keeps SLOW or FAST thousandths of what is known of its past
  gettune getyard getdecay
                    what `tune` measured, in microseconds; what setyard and setdecay set
  status [ID]       up or down, and what of the above holds
  isup [ID]         yes or no
  getload getspeed getmem getfree getutil [ID]
                    load, speed, memory, processor in use
  whois [ID|HOST]   which node that is; without one, this node
  why PID           where a program of mosrun would best run, and why it is moved or not
  simulate TRACE    what would be decided in a cluster that a file describes
Exit status: 0 done, 1 it could not be done (one line says why), 2 wrong usage, 3 this node is in no cluster now.
"""


def build_parser() -> Parser:
    parser = Parser("mosctl", ABOUT)
    parser.add_argument("command", metavar="COMMAND", choices=sorted(_commands()), help="see above")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="a node, a host, numbers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_intermixed_args(argv)  # options may stand among the words
    command = _commands()[arguments.command]
    if not command.least <= len(arguments.arguments) <= command.most:
        parser.error(f"{arguments.command} takes {_amount(command)}")
    try:
        places = (controlfile.find_mount(arguments.mfs) / "proc" / "hpc",) if command.in_cluster else ()
        answer = command.do(*places, *arguments.arguments)
        told = Told(answer, {"said": answer}) if isinstance(answer, str) else answer
        print(json.dumps(told.data) if arguments.json else told.text)
    except NotRunning as error:
        return _complain(str(error), EXIT_NOT_RUNNING)
    except WrongValue as error:
        parser.error(str(error))
    except Refused as error:
        return _complain(str(error), EXIT_REFUSED)
    except OSError as error:
        return _complain(_why(error), EXIT_NOT_RUNNING if error.errno == errno.ENOTCONN else EXIT_REFUSED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


class _Command(NamedTuple):
    """With how many arguments, at least and at most; whether it is about the cluster that this node is in."""

    do: Callable[..., str | Told]
    least: int = 0
    most: int = 0
    in_cluster: bool = True


def _amount(command: _Command) -> str:
    if command.most == 0:
        return "no argument"
    amount = "one argument" if command.most == 1 else f"{command.most} arguments"
    return amount if command.least == command.most else f"{amount} at most"


def _commands() -> dict[str, _Command]:
    switches: dict[str, _Command] = {}
    for name, said in _SWITCHES.items():
        switches[name] = _Command(partial(_switch, name=name, value=1, said=said.on))
        opposite = name[2:] if name.startswith("no") else f"no{name}"
        switches[opposite] = _Command(partial(_switch, name=name, value=0, said=said.off))
    getters = {
        name: _Command(partial(_get, files=files, text=text), most=1) for name, (files, text) in _GETTERS.items()
    }
    return {
        **switches, **getters, "expel": _Command(_expel), "bring": _Command(_bring),
        "setspeed": _Command(_set_speed, 1, 1), "status": _Command(_status, most=1),
        "isup": _Command(_is_up, most=1), "whois": _Command(_whois, most=1),
        "gettune": _Command(_get_tune), "getyard": _Command(_get_yard), "getdecay": _Command(_get_decay),
        "setyard": _Command(_set_yard, 1, 1), "setdecay": _Command(_set_decay, 3, 3),
        "why": _Command(decisions.why, 1, 1), "simulate": _Command(decisions.simulated, 1, 1, in_cluster=False),
    }  # fmt: skip


def _complain(text: str, status: int) -> int:
    return complain("mosctl", text, status)


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "only root may do that"
        case errno.ENOTCONN:
            return controlfile.MIGNODE_IS_OFF
        case errno.ENODATA:
            return "the node does not tell its load: it is quiet, or has just started, or udp port 5428 is closed"
        case errno.EHOSTDOWN:
            return "the node is down"
    return error.strerror or str(error)


# ---------------------------------------------------------------- what this node does


def _switch(hpc: Path, *, name: str, value: int, said: str) -> str:
    file = hpc / "admin" / name
    before = controlfile.read(file)
    controlfile.write(file, value)
    return f"{'as before' if before == str(value) else 'from now on'}, {said}"


def _expel(hpc: Path) -> str:
    try:
        controlfile.write(hpc / "admin" / "expel", 1)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise Refused(f"some guests can't leave, and none may come: {_who_stays(hpc)}") from None
    return "all guests have gone home, and none may come until noblock"


def _who_stays(hpc: Path) -> str:
    said = []
    for pid in sorted(map(int, os.listdir(hpc / "remote"))):
        with contextlib.suppress(OSError):
            reasons = controlfile.read(controlfile.of_process(hpc.parent.parent, pid, "cantmove"))
            said.append(f"{pid}{f' ({reasons})' if reasons else ''}")
    return ", ".join(said) or "they have just left"


def _bring(hpc: Path) -> str:
    try:
        controlfile.write(hpc / "admin" / "bring", 1)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise Refused("some processes can't come home; mps shows where they are, and mignode's log says why") from None
    return "all processes of this node are at home, and stay until nolstay"


def _set_speed(hpc: Path, text: str) -> str:
    speed = _number(text, 1, 65535)
    controlfile.write(hpc / "admin" / "speed", speed)
    return f"from now on, this node's speed is {speed}"


def _set_yard(hpc: Path, text: str) -> str:
    """*text*: a type of processor, a node whose speed it is to be, or this one."""
    processor = _PROCESSOR.fullmatch(text)
    if processor:
        speed = 10 * _number(processor[1], 1, 6553)  # a Pentium III of 1 GHz is 10000
    else:
        speed = int(controlfile.read(_node(hpc, "" if text == "this" else text) / "speed"))
    controlfile.write(hpc / "admin" / "sspeed", speed)
    return f"from now on, a load of 100 is a processor of speed {speed} kept busy"


def _set_decay(hpc: Path, interval: str, slow: str, fast: str) -> str:
    seconds, slower = _number(interval, 1, 65535), _number(slow, 0, 1000)
    faster = _number(fast, 0, slower)
    admin = hpc / "admin"
    values = [("slowdecay", slower), ("fastdecay", faster)]
    if slower < int(controlfile.read(admin / "fastdecay")):
        values.reverse()  # fast is slow at most, at any time
    for name, value in (*values, ("decayinterval", seconds)):
        controlfile.write(admin / name, value)
    return f"from now on, {_get_decay(hpc).text}"


def _number(text: str, low: int, high: int) -> int:
    """Raises WrongValue."""
    try:
        return whole(text, low, high)
    except ValueError as error:
        raise WrongValue(str(error)) from None


# ---------------------------------------------------------------- what is known


def _node(hpc: Path, text: str) -> Path:
    """The directory of a node: by its number or host; "": this one."""
    number = _number_of(hpc, text)
    if not (hpc / "nodes" / str(number)).is_dir():
        raise Refused(f"{text} is not in the map of this cluster")
    return hpc / "nodes" / str(number)


def _number_of(hpc: Path, text: str) -> int:
    """Raises Refused."""
    if not text:
        return int(controlfile.read(hpc / "admin" / "mospe"))
    if text.isascii() and text.isdigit():
        with contextlib.suppress(ValueError):  # no node has such a number
            return whole(text, 1, NODE_MAX)
    try:
        addresses = {text, *(str(found[4][0]) for found in socket.getaddrinfo(text, None, socket.AF_INET))}
    except (OSError, UnicodeError):  # there is no such host, and can be none
        addresses = {text}
    for number, known in _map(hpc).nodes.items():
        if addresses.intersection(known):
            return number
    raise Refused(f"{text} is not in the map of this cluster")


def _map(hpc: Path) -> NodeMap:
    try:
        return parse_map(controlfile.read(hpc / "admin" / "config"), "config")
    except MapError as error:
        raise Refused(str(error)) from None


def _status(hpc: Path, text: str = "") -> Told:
    bits = int(controlfile.read(_node(hpc, text) / "status"))
    holding = {name: bool(bits & bit) for name, bit in SWITCHES.items()}
    said = ",".join(["up" if bits & UP else "down", *(name for name, holds in holding.items() if holds)])
    return Told(said, {"up": bool(bits & UP), **holding})


def _is_up(hpc: Path, text: str = "") -> Told:
    try:
        is_up = bool(int(controlfile.read(_node(hpc, text) / "status")) & UP)
    except OSError as error:
        if error.errno not in (errno.ETIMEDOUT, errno.EHOSTDOWN):
            raise
        return Told("no (it seems)", {"up": None})
    return Told("yes" if is_up else "no", {"up": is_up})


def _get(hpc: Path, node: str = "", *, files: Sequence[str], text: str) -> Told:
    folder = _node(hpc, node)
    values = {name: int(controlfile.read(folder / name)) for name in files}
    return Told(text.format(*values.values()), values)


def _whois(hpc: Path, text: str = "") -> Told:
    number = _number_of(hpc, text)
    addresses = _map(hpc).nodes.get(number)
    if addresses is None:
        raise Refused(f"{text} is not in the map of this cluster")
    data = {"node": number, "addresses": addresses}
    if not text:
        return Told(f"This is openMosix #{number}", data)
    return Told(addresses[0] if text.isdigit() else f"{text} is openMosix #{number}", data)


def _get_tune(hpc: Path) -> Told:
    values = {name: controlfile.read(hpc / "admin" / name) for name in ("overheads", "mfscosts")}
    text = "\n".join(f"{name}: {value}" for name, value in values.items())
    return Told(text, {name: [int(one) for one in value.split()] for name, value in values.items()})


def _get_yard(hpc: Path) -> Told:
    speed = int(controlfile.read(hpc / "admin" / "sspeed"))
    return Told(f"yardstick={speed}", {"sspeed": speed})


def _get_decay(hpc: Path) -> Told:
    names = ("decayinterval", "slowdecay", "fastdecay")
    values = {name: int(controlfile.read(hpc / "admin" / name)) for name in names}
    interval, slow, fast = values.values()
    return Told(f"decay interval = {interval} seconds, slow decay = {slow}/1000, fast decay = {fast}/1000", values)


if __name__ == "__main__":
    sys.exit(main())
