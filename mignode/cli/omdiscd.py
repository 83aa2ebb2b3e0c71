"""`omdiscd`: finds the other nodes of the cluster; its systemd unit starts it.

Without -n it goes behind, and the command ends with 0 once the first map is in force, or prints the one line that says
why it can't and ends with 1.  What the daemon does is in mignode/discoverer.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio

from mignode.cli.parser import EXIT_NOT_RUNNING, EXIT_REFUSED, Parser, complain, number_from
from omfs.cli.behind import READY, Report, serve_behind, serving
from omfs.cli.daemonlog import log_behind, log_to_stderr
from omfs.config import DEFAULT_CONFIG, Settings, load_settings
from omfs.errors import ConfigError, NotRunning, OmfsError
from omfs.magic.controlfiles import NODE_MAX
from omfs.net import control

TTL_MAX: Final = 255

ABOUT: Final = """\
Find the other nodes of the cluster, so that nobody writes a map: each node says on the network that it is there, and
what all have said is this node's map (showmap shows it), put in force while everything runs.  With sec=tls only
statements that are signed by a node of the cluster count, and the certificate says which node this is; with sec=none
that is -p, or the low 16 bits of the address.  SIGTERM: this node leaves the map of all others.
  -i IF[,IF]   the interfaces on which the others are (default: that of the default route); the first one's address
               is the node's address, the others' are more addresses of it
  -m TTL       how many routers the datagrams may pass (default 1: none)
  --forget ID  tell all that node ID has left; one that has not says so, and stays
Exit status: 0, 1 it could not be done (one line says why), 2 wrong usage, 3 omdiscd does not run (--status, --forget).
"""


def build_parser() -> Parser:
    parser = Parser("omdiscd", ABOUT)
    parser.add_argument("-i", dest="interfaces", metavar="IF[,IF]", type=_interfaces, default=(), help="where to look")
    parser.add_argument("-n", "--foreground", action="store_true", help="do not go behind; log to stderr")
    parser.add_argument(
        "-m", dest="ttl", metavar="TTL", type=number_from(1, TTL_MAX), default=1, help="time to live of the datagrams"
    )
    parser.add_argument(
        "-p", dest="node", metavar="ID", type=number_from(1, NODE_MAX), default=0, help="this node's id"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--status", action="store_true", help="what the running one knows")
    what.add_argument(
        "--forget", metavar="ID", type=number_from(1, NODE_MAX), help="take a node that is gone out of the map of all"
    )
    parser.add_argument("--json", action="store_true", help="for --status: print JSON")
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULT_CONFIG, help="settings")
    return parser


def _interfaces(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f'"{text}" is no list of interfaces like eth0,eth1')
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.json and not arguments.status:
        parser.error("--json is for --status")
    if arguments.status or arguments.forget:
        return _ask(arguments)
    serve = functools.partial(_serve, arguments)
    if arguments.foreground:
        log_to_stderr()
        return serve(Report(-1))
    return serve_behind("omdiscd", serve, Report(-1))


def _serve(arguments: argparse.Namespace, report: Report) -> int:
    """Serve until SIGTERM; the exit status."""
    return serving("omdiscd", lambda: _run(arguments, report), report)


def _run(arguments: argparse.Namespace, report: Report) -> None:
    """Raises ConfigError."""
    settings = load_settings(arguments.config)
    if os.geteuid() != 0:
        raise ConfigError("must run as root: it writes the map and reads this node's key")
    if report.is_awaited:
        log_behind("omdiscd", Path(settings.run_dir))
    # everything heavy, after the words were understood
    from mignode.cli.discoveredmap import put_in_force, refuse_written_map
    from mignode.discoverer import Wanted, run_omdiscd

    refuse_written_map(settings)
    wanted = Wanted(arguments.interfaces, arguments.ttl, arguments.node)
    run_omdiscd(settings, wanted, functools.partial(put_in_force, settings), lambda: report.tell(READY))


# ---------------------------------------------------------------- one that runs


def _ask(arguments: argparse.Namespace) -> int:
    try:
        settings = load_settings(arguments.config)
        if arguments.forget:
            _answer(settings, "forget", node=arguments.forget)
            return 0
        status = _answer(settings, "status")
    except NotRunning:
        return complain("omdiscd", "it does not run on this node; start it: systemctl start omdiscd", EXIT_NOT_RUNNING)
    except OmfsError as error:
        return complain("omdiscd", str(error), EXIT_REFUSED)
    print(json.dumps(status, indent=2) if arguments.json else "\n".join(_lines(status)))
    return 0


def _answer(settings: Settings, command: str, **more: Any) -> dict[str, Any]:
    path = Path(settings.run_dir) / "omdiscd.sock"
    return dict(trio.run(functools.partial(control.ask, path, command, **more)))


def _lines(status: dict[str, Any]) -> list[str]:
    here = "" if status["here"] else ", and asks who else is there"
    lines = [f"This is node {status['node_id']} at {', '.join(status['addresses'])}{here}"]
    lines += [f"node {node} is silent" for node in status["silent"]] + list(status["conflicts"])
    counts = ", ".join(f"{name} {count}" for name, count in sorted(status["counts"].items()))
    return [*lines, f"Datagrams: {counts}"]


if __name__ == "__main__":
    sys.exit(main())
