"""`openmosix start|stop|restart|status`: the service script of the original, over this node's daemons.

stop sends all guests home before anything ends, and leaves what the administrator had set as it was: expel sets block,
which must not hold after the next start.
With systemd its units are started and stopped (nodeservice.py), so either may be used.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mignode.adminvalues import AdminStore
from mignode.cli import nodeservice
from mignode.cli.mapinforce import as_data, in_force, sentences
from mignode.cli.parser import EXIT_INTERRUPTED, EXIT_NOT_RUNNING, EXIT_REFUSED, Parser, complain
from omfs.config import DEFAULT_CONFIG, Settings, load_settings
from omfs.errors import ConfigError, NotRunning, OmfsError, RemoteFailure

ABOUT: Final = """\
Let this node take part in the cluster, or not.
  start    mount /mfs, as /etc/fstab says, and run mignode
  stop     send all guests home, then unmount /mfs and end mignode; refused while programs of mosrun would be lost
  restart  stop, then start
  status   print this node's id and the map in force
Exit status: 0 done, 1 it could not be done (one line says why), 2 wrong usage, 3 (status) this node is in no cluster.
"""


def build_parser() -> Parser:
    parser = Parser("openmosix", ABOUT)
    parser.add_argument("action", metavar="{start|stop|restart|status}", choices=("start", "stop", "restart", "status"))
    parser.add_argument("--force", action="store_true", help="stop, although programs are lost by it")
    parser.add_argument("--json", action="store_true", help="status as JSON")
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULT_CONFIG, help="settings (%(default)s)")
    parser.add_argument("--mfs", metavar="DIR", type=Path, help="where the cluster's files are (default /mfs)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.action == "status":
            return _status(arguments.mfs, as_json=arguments.json)
        if os.geteuid() != 0:
            raise ConfigError("only root may do that")
        settings = load_settings(arguments.config)
        if arguments.action != "start":
            was_on = _stop(settings, arguments.mfs, by_force=arguments.force)
            print("this node has left the cluster" if was_on else "this node was in no cluster")
        if arguments.action != "stop":
            nodeservice.turn_on(settings, arguments.config)
            print("this node takes part in the cluster")
    except (OmfsError, OSError) as error:
        return complain("openmosix", nodeservice.explained(error), EXIT_REFUSED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _status(mount: Path | None, *, as_json: bool) -> int:
    try:
        now = in_force(mount)
    except (NotRunning, OSError) as error:
        return complain("openmosix", nodeservice.explained(error), EXIT_NOT_RUNNING)
    print(json.dumps(as_data(now), indent=2) if as_json else "\n".join(sentences(now)))
    return 0


def _stop(settings: Settings, mount: Path | None, *, by_force: bool) -> bool:
    """Whether anything ran.  Raises OmfsError, OSError, and then the node goes on as before."""
    if not by_force:
        nodeservice.refuse_loss(settings)
    if "mignode" not in nodeservice.running(settings):
        return nodeservice.turn_off(settings, mount)
    blocked = nodeservice.read_flag(settings, "block")
    try:
        _expel(settings, by_force=by_force)
        was_on = nodeservice.turn_off(settings, mount)
    except BaseException:
        if "mignode" in nodeservice.running(settings):
            nodeservice.write_flag(settings, "block", blocked)
        raise
    AdminStore(Path(settings.state_dir)).change(block=blocked)  # only now, when nobody can come any more
    return was_on


def _expel(settings: Settings, *, by_force: bool) -> None:
    try:
        nodeservice.write_flag(settings, "expel", True)
    except RemoteFailure as error:
        if error.errno != errno.EBUSY:
            raise
        if not by_force:
            raise ConfigError("some guests can't leave (mosctl expel says which); --force ends them") from None


if __name__ == "__main__":
    sys.exit(main())
