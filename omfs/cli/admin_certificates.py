"""omfs-admin init, join and cert: the cluster's certificates, made, carried to other nodes, shown and renewed."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from rich.table import Table

from omfs.cli.admin_options import console, node_number, own_id, settings_of, written_map_of
from omfs.config import Settings
from omfs.errors import ConfigError, MapError
from omfs.net import authority, tls
from omfs.net.bundle import BUNDLE_MAX_BYTES, pack_bundle, unpack_bundle
from omfs.net.nodemap import own_node

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

INIT = """\
Make the cluster's certificate authority on this node, and this node's certificate.
Run it once per cluster, on one node.  ca.key stays on this node: whoever has it can be any node.
Then give every other node its certificate with omfs-admin join.
"""

JOIN = """\
Give another node its certificate.  Either carry a file:

    on the node where omfs-admin init ran:  omfs-admin join 2 -o node2.tar
    (carry it there: scp, a USB stick; it contains node 2's private key, so delete it afterwards)
    on node 2:                              omfs-admin join --bundle node2.tar

or, where the new node can reach the first one by ssh, in one step and without a file:

    on node 2:                              omfs-admin join --from root@node1

Joining again renews the node's certificate and key.
"""

CERT = """\
Show this node's certificates and when they expire; exit status 1 if one is expired or they don't fit together.
--renew signs this node's key anew; it works where ca.key is.  On every other node renew by joining again
(omfs-admin join --help).  A running mount goes on with the old one until it is started again or gets SIGHUP.
"""


def add_commands(commands: Commands) -> None:
    """Define `init`, `join` and `cert`."""
    raw = argparse.RawDescriptionHelpFormatter
    init = commands.add_parser("init", help="make the CA and the first node", description=INIT, formatter_class=raw)
    init.add_argument("--map", metavar="FILE", type=Path, help="the cluster map")
    init.add_argument(
        "--node", metavar="N", type=node_number, help="this node's id (default: by the map, or else its address)"
    )
    init.add_argument("--force", action="store_true", help="replace an existing CA: every node must join again")
    init.set_defaults(run=_init)

    join = commands.add_parser("join", help="give a node its certificate", description=JOIN, formatter_class=raw)
    join.add_argument("node", metavar="NODE", nargs="?", type=node_number, help="the new node's id (as init --node)")
    join.add_argument(
        "-o", "--output", metavar="FILE", help="the bundle to write (default omfs-node-N.tar; - = stdout)"
    )
    join.add_argument("--bundle", metavar="FILE", help="install this bundle here (- = stdin)")
    join.add_argument("--from", metavar="[USER@]HOST", dest="source", help="fetch a bundle from there and install it")
    join.add_argument("--ssh", metavar="COMMAND", default="ssh", help='for --from; e.g. "ssh -p 2222"')
    join.add_argument("--remote", metavar="COMMAND", default="omfs-admin", help='for --from; e.g. "sudo omfs-admin"')
    join.add_argument("--map", metavar="FILE", type=Path, help="the cluster map")
    join.add_argument("--force", action="store_true", help="install even over another cluster's or node's certificate")
    join.set_defaults(run=_join, usage_error=join.error)

    cert = commands.add_parser("cert", help="show or renew certificates", description=CERT, formatter_class=raw)
    cert.add_argument("--renew", action="store_true", help="make this node's certificate anew")
    cert.add_argument("--json", action="store_true", help="print JSON")
    cert.set_defaults(run=_cert)

    for parser in (init, join, cert):
        parser.add_argument("--config-dir", metavar="DIR", type=Path, help="where the certificates are")
        if parser is not cert:
            parser.add_argument("--days", metavar="N", type=_days, default=authority.NODE_DAYS, help="validity in days")
    cert.add_argument("--days", metavar="N", type=_days, default=authority.NODE_DAYS, help="for --renew: validity")


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= authority.CA_DAYS:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of days (1..{authority.CA_DAYS})')
    return int(text)


def _config_dir(arguments: argparse.Namespace, settings: Settings) -> Path:
    return arguments.config_dir or Path(settings.config_dir)


# ---------------------------------------------------------------- init


def _init(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    config_dir = _config_dir(arguments, settings)
    node_map = written_map_of(arguments.map, settings)
    node_id = arguments.node or own_id(node_map, settings)
    if node_map is not None and node_id not in node_map.nodes:
        raise ConfigError(f"{node_map.path}: node {node_id} is not in the map")
    made = authority.make_authority(config_dir, force=arguments.force)
    authority.install_credentials(config_dir, made.issue(node_id, arguments.days))
    certificate = tls.check_credentials(config_dir)
    print(
        f"made the CA of cluster {made.cluster} in {config_dir} (keep {tls.CA_KEY_FILE} secret, and a copy of it safe)"
    )
    print(f"node {node_id}: certificate valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    if node_map is None:
        print("next, as there is no cluster map: omfs-admin join on the other nodes, then omdiscd on all of them")
    elif others := [str(other) for other in node_map.nodes if other != node_id]:
        few = ", ".join(others[:8]) + (" ..." if len(others) > 8 else "")
        print(f"next, for each of the other nodes ({few}): omfs-admin join N")
    return 0


# ---------------------------------------------------------------- join


def _join(arguments: argparse.Namespace) -> int:
    ways = [arguments.bundle is not None, arguments.source is not None, arguments.output is not None]
    if sum(ways) > 1:
        arguments.usage_error("use one of --bundle, --from and -o")
    if arguments.bundle is not None:
        if arguments.node is not None:
            arguments.usage_error("--bundle says itself for which node it is; leave NODE out")
        return _install(arguments, _read_bundle(arguments.bundle), arguments.bundle)
    if arguments.source is not None:
        return _fetch(arguments)
    if arguments.node is None:
        arguments.usage_error("say which node joins (NODE), or install with --bundle FILE or --from HOST")
    return _write_bundle(arguments)


def _write_bundle(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    node_id = arguments.node
    if arguments.output == "-" and sys.stdout.isatty():
        arguments.usage_error("a bundle is not for a terminal; send it to a file or a pipe")
    node_map = written_map_of(arguments.map, settings)
    if node_map is not None and node_id not in node_map.nodes:
        raise ConfigError(f"{node_map.path}: node {node_id} is not in the map; add it there first, on all nodes")
    issuer = authority.load_authority(_config_dir(arguments, settings))
    bundle = pack_bundle(issuer.issue(node_id, arguments.days))
    if arguments.output == "-":
        sys.stdout.buffer.write(bundle)
        return 0
    path = Path(arguments.output or f"omfs-node-{node_id}.tar")
    authority.write_whole(path, bundle, mode=0o600)
    print(f"wrote {path} for node {node_id}; it contains that node's private key: carry it there safely, run")
    print(f"    omfs-admin join --bundle {path.name}")
    print("there, and delete it")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    if arguments.source.startswith("-") or not arguments.source:
        arguments.usage_error(f'"{arguments.source}" is not a host name')
    settings = settings_of(arguments)
    node_id = arguments.node or own_id(written_map_of(arguments.map, settings), settings)
    # days is passed on so that the new node can ask for a shorter life; the other side checks its range
    remote = [*shlex.split(arguments.remote), "join", str(node_id), "-o", "-", "--days", str(arguments.days)]
    command = [*shlex.split(arguments.ssh), arguments.source, shlex.join(remote)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=False
        )  # stderr and the password prompt show through
    except OSError as error:
        raise ConfigError(f"{command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise ConfigError(f"{arguments.source} gave no bundle ({shlex.join(command)} ended with {done.returncode})")
    return _install(arguments, done.stdout, f"bundle from {arguments.source}")


def _read_bundle(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read(BUNDLE_MAX_BYTES + 1)
    try:
        with open(name, "rb") as file:
            return file.read(BUNDLE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from None


def _install(arguments: argparse.Namespace, data: bytes, name: str) -> int:
    settings = settings_of(arguments)
    config_dir = _config_dir(arguments, settings)
    credentials, cluster, node_id = unpack_bundle(data, name)
    if not arguments.force:
        _check_same_cluster(config_dir, credentials)
        _check_own_id(arguments, settings, node_id, name)
    authority.install_credentials(config_dir, credentials)
    expires = tls.check_credentials(config_dir).not_valid_after_utc
    print(
        f"this is node {node_id} of cluster {cluster} now; certificate in {config_dir}, valid until {expires:%Y-%m-%d}"
    )
    return 0


def _check_same_cluster(config_dir: Path, credentials: authority.Credentials) -> None:
    path = config_dir / tls.CA_FILE
    if path.exists() and tls.read_certificate(path) != tls.parse_certificate(credentials.ca, tls.CA_FILE):
        raise ConfigError(f"{path}: this machine belongs to another cluster; with --force it leaves that one")


def _check_own_id(arguments: argparse.Namespace, settings: Settings, node_id: int, name: str) -> None:
    try:
        node_map = written_map_of(arguments.map, settings)
        own = node_id if node_map is None else own_node(node_map, settings.address)
    except MapError as error:
        print(f"omfs-admin: note: can't check that this is node {node_id}: {error}", file=sys.stderr)
        return
    if own != node_id:
        raise ConfigError(f"{name}: is for node {node_id}, but by the map this is node {own}")


# ---------------------------------------------------------------- cert


def _cert(arguments: argparse.Namespace) -> int:
    config_dir = _config_dir(arguments, settings_of(arguments))
    if arguments.renew:
        if not (config_dir / tls.CA_KEY_FILE).exists():
            raise ConfigError(
                f"{config_dir / tls.CA_KEY_FILE}: not on this node; renew by joining again: omfs-admin join "
                "--from HOST, with the host where omfs-admin init ran (or --bundle, see omfs-admin join --help)"
            )
        authority.renew_certificate(config_dir, arguments.days)
    now = datetime.datetime.now(datetime.UTC)
    rows = []
    for file in (tls.CA_FILE, tls.NODE_FILE):
        certificate = tls.read_certificate(config_dir / file)
        rows.append(
            {
                "file": str(config_dir / file),
                "subject": certificate.subject.rfc4514_string().removeprefix("CN="),
                "expires": certificate.not_valid_after_utc.isoformat(),
                "days_left": (certificate.not_valid_after_utc - now).days,
                "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        table = Table("FILE", "SUBJECT", "EXPIRES", "DAYS LEFT", "SHA256", box=None, pad_edge=False)
        for row in rows:
            expires = str(row["expires"])[:10]
            table.add_row(
                str(row["file"]), str(row["subject"]), expires, str(row["days_left"]), str(row["sha256"])[:16]
            )
        console().print(table)
    tls.check_credentials(config_dir)
    return 0
