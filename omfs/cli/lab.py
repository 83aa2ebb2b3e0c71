"""omfs-lab: a cluster on one machine, for trying out, for the tests and for the benchmarks.

Only argument parsing and printing; the work is in omfs/lab.  Exit status: 0 done, 1 could not, 2 wrong usage, 130
interrupted; `exec` and `shell` end as their command did.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from omfs.errors import ConfigError
from omfs.lab import topology
from omfs.lab.topology import LabPaths, LabPlan

if TYPE_CHECKING:
    from rich.console import Console

    from omfs.lab.node import Boot

_DESCRIPTION: Final = """\
A cluster on one machine.  Every node has a root, an address, a host name and daemons of its own; /mfs/<N> on each of
them is node N's tree.  Nothing of it shows on the machine itself, and `omfs-lab down` removes all of it, also after a
crash."""

_EXAMPLES: Final = """\
examples:
  omfs-lab up -n 3                                  three nodes, with /mfs mounted on each
  omfs-lab shell 1                                  a shell on node 1; try: ls /mfs/2
  omfs-lab exec 2 -- cp /etc/motd /mfs/3/tmp/       one command on node 2
  omfs-lab exec 1 --user 1000:1000 -- id            as another user
  omfs-lab kill 3; omfs-lab start 3                 a power cut, and the node comes back
  omfs-lab cut 1 2; omfs-lab heal                   a network fault, and its repair
  omfs-lab down"""


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # `up` takes down what it has begun
    try:
        status = _COMMANDS[options.command](options)
    except ConfigError as error:
        print(f"omfs-lab: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("omfs-lab: interrupted", file=sys.stderr)
        status = 130
    return status


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


# ---------------------------------------------------------------- usage


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omfs-lab", description=_DESCRIPTION, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    name = argparse.ArgumentParser(add_help=False)
    default = os.environ.get("OMFS_LAB", topology.DEFAULT_NAME)
    name.add_argument(
        "--name", metavar="LAB", default=default, help=f"which lab (default: $OMFS_LAB or {topology.DEFAULT_NAME!r})"
    )

    def command(verb: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".", parents=[name])

    _add_up(command("up", "make a cluster and wait until every node is up"))
    _add_exec(command("exec", "run a command on a node; its exit status and stdio pass through"))
    shell = command("shell", "an interactive shell on a node")
    shell.add_argument("node", type=int, metavar="N")
    shell.add_argument("--user", metavar="UID[:GID[,GROUP...]]", help="as this user, not as root")
    status = command("status", "show the nodes")
    status.add_argument("--json", action="store_true", help="machine-readable")
    for verb, text in (
        ("kill", "power cut: everything on the node dies at once; its disk stays"),
        ("start", "boot a killed node again, on the disk it had"),
    ):
        command(verb, text).add_argument("node", type=int, metavar="N")
    for verb, text, count in (
        ("cut", "cut the network between two nodes: packets vanish, nothing is reset", None),
        ("heal", "repair the network between two nodes, or everywhere", "?"),
    ):
        pair = command(verb, text)
        pair.add_argument("one", type=int, metavar="A", nargs=count)
        pair.add_argument("other", type=int, metavar="B", nargs=count)
    demo = "bring three nodes up, show a few real commands across them, and take them down"
    commands.add_parser("demo", help=demo, description=demo[0].upper() + demo[1:] + ".")
    command("down", "remove the cluster and everything that is left of it; fine where there is nothing")
    return parser


def _add_up(up: argparse.ArgumentParser) -> None:
    up.add_argument(
        "-n", dest="nodes", type=int, default=topology.DEFAULT_NODES, metavar="N", help="nodes (default: 3)"
    )
    up.add_argument(
        "--sec", choices=("tls", "none"), default="tls", help="how nodes authenticate (default: tls; none = not at all)"
    )
    up.add_argument(
        "--dfsa", type=int, choices=(0, 1), default=1,
        help="1: a node's own /mfs/<N> is a bind mount, at native speed (default); 0: it goes through FUSE too",
    )  # fmt: skip
    up.add_argument(
        "--size", default=topology.DEFAULT_SIZE, help="of each node's disk, sparse (default: %(default)s; e.g. 64M)"
    )
    up.add_argument("--memory", default="0", metavar="SIZE", help="a node's processes may have so much (e.g. 512M)")
    up.add_argument(
        "--processors",
        type=float,
        default=0.0,
        metavar="N",
        help="and use so many processors' time together (e.g. 0.6)",
    )
    up.add_argument("--no-mount", action="store_true", help="start the nodes only, without /mfs and daemons")


def _add_exec(execute: argparse.ArgumentParser) -> None:
    execute.usage = "omfs-lab exec [--name LAB] N [--user UID[:GID[,GROUP...]]] -- CMD [ARG...]"
    execute.add_argument("node", type=int, metavar="N")
    execute.add_argument("--user", metavar="UID[:GID[,GROUP...]]", help="as this user, not as root; names or numbers")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD", help="the command and its arguments")


# ---------------------------------------------------------------- commands


def _up(options: argparse.Namespace) -> int:
    from omfs.lab import cluster  # `exec` should start quickly, so each command loads its own

    plan = LabPlan(
        name=options.name, nodes=options.nodes, sec=options.sec, dfsa=bool(options.dfsa),
        size_bytes=topology.parse_size(options.size), mount=not options.no_mount,
        memory_bytes=topology.parse_size(options.memory), processors=options.processors,
    )  # fmt: skip
    plan.check()
    console = _console(stderr=True)
    stages: dict[int, str] = {}
    with console.status(f"bringing up lab {plan.name!r} ...") as spinner:

        def on_change(boot: Boot) -> None:
            stages[boot.node] = boot.result or boot.stage
            spinner.update("  ".join(f"node{node}: {stage}" for node, stage in sorted(stages.items())))

        cluster.up(plan, LabPaths(plan.name), on_change)
    named = "" if plan.name == topology.DEFAULT_NAME else f" --name {plan.name}"
    console.print(f"lab {plan.name!r} is up: {plan.nodes} nodes.  Try: omfs-lab shell{named} 1", highlight=False)
    return 0


def _exec(options: argparse.Namespace) -> int:
    from omfs.lab import enter

    argv = _command_of(options)
    if not argv:
        print("omfs-lab exec: give a command: omfs-lab exec N -- CMD [ARG...]", file=sys.stderr)
        return 2
    user = enter.parse_user(options.user) if options.user else None
    return enter.run(LabPaths(options.name), options.node, argv, user)


def _command_of(options: argparse.Namespace) -> list[str]:
    """The command of `exec`; options of ours between N and "--", which argparse left to it, are taken in."""
    argv: list[str] = options.argv
    if argv and argv[0].startswith("-") and "--" in argv:
        end = argv.index("--")
        ours = argparse.ArgumentParser(prog="omfs-lab exec", add_help=False)
        ours.add_argument("--user")
        ours.add_argument("--name", default=options.name)
        ours.parse_args(argv[:end], options)
        argv = argv[end + 1 :]
    return argv


def _shell(options: argparse.Namespace) -> int:
    from omfs.lab import enter

    user = enter.parse_user(options.user) if options.user else enter.User()
    return enter.run(LabPaths(options.name), options.node, [os.environ.get("SHELL", "/bin/bash")], user, home=True)


def _status(options: argparse.Namespace) -> int:
    from omfs.lab import cluster, state

    paths = LabPaths(options.name)
    nodes = cluster.status(paths)
    if options.json:
        value = {"lab": state.load_plan(paths), "nodes": nodes}
        print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
        return 0
    from rich.table import Table

    table = Table(title=f"lab {options.name}", title_justify="left")
    for heading in ("node", "address", "state", "/mfs", "processes", "disk", "cut from"):
        table.add_column(heading)
    for node in nodes:
        table.add_row(
            node.hostname, node.address, "[green]up[/]" if node.running else "[red]off[/]",
            "mounted" if node.mounted else "-", str(node.processes), f"{node.disk_used_bytes / (1 << 20):.1f} MiB",
            ", ".join(topology.hostname(other) for other in node.cut_from) or "-",
        )  # fmt: skip
    _console().print(table)
    return 0


def _kill(options: argparse.Namespace) -> int:
    from omfs.lab import faults

    faults.kill_node(LabPaths(options.name), options.node)
    return 0


def _start(options: argparse.Namespace) -> int:
    from omfs.lab import faults

    console = _console(stderr=True)
    with console.status(f"starting node {options.node} ...") as spinner:
        faults.start_node(
            LabPaths(options.name), options.node,
            lambda boot: spinner.update(f"node{boot.node}: {boot.result or boot.stage}"),
        )  # fmt: skip
    return 0


def _cut(options: argparse.Namespace) -> int:
    from omfs.lab import faults

    faults.cut(LabPaths(options.name), options.one, options.other)
    return 0


def _heal(options: argparse.Namespace) -> int:
    from omfs.lab import faults

    if options.one is not None and options.other is None:
        print("omfs-lab heal: give two nodes, or none to heal everything", file=sys.stderr)
        return 2
    for one, other in faults.heal(LabPaths(options.name), options.one, options.other):
        print(f"node{one} and node{other} reach each other again")
    return 0


def _down(options: argparse.Namespace) -> int:
    from omfs.lab import cluster, state

    paths = LabPaths(options.name)
    with _console(stderr=True).status(f"taking down lab {options.name!r} ..."):
        found = cluster.down(paths)
    print(f"lab {options.name!r} is gone" if found else f"there is no lab {options.name!r}; nothing to do")
    if not found:  # a demo that was killed leaves one that nobody has named
        for name in state.existing_labs():
            print(f"there is lab {name!r}: omfs-lab down --name {name}")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from omfs.cli import demo

    return demo.run()


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


_COMMANDS: Final = {
    "up": _up, "exec": _exec, "shell": _shell, "status": _status, "kill": _kill, "start": _start,
    "cut": _cut, "heal": _heal, "demo": _demo, "down": _down,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
