"""Whatever a stranger or a broken peer sends: a log line and a closed connection, nothing else disturbed."""

from __future__ import annotations

import re
import sys

import pytest

from tests.lab.cluster import PROGRAMS, Cluster

pytestmark = pytest.mark.lab

GARBAGE = """
import os, socket, ssl, struct, sys
address = ("{address}", 723)
def closed(sock):
    sock.settimeout(30)
    try:
        while sock.recv(4096): pass
    except (ConnectionError, ssl.SSLError): pass
    sock.close()
for first in (b"GET / HTTP/1.0\\r\\n\\r\\n", os.urandom(4096), struct.pack("<IIQ", 2**32 - 1, 2**32 - 1, 1), b"\\x16\\x03\\x01\\xff\\xff"):
    sock = socket.create_connection(address)
    sock.sendall(first)
    try: sock.shutdown(socket.SHUT_WR)
    except OSError: pass  # refused and closed already
    closed(sock)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
try: closed(context.wrap_socket(socket.create_connection(address)))
except (ConnectionError, ssl.SSLError): pass
print("refused")
"""
AS_A_PEER = """
import os, socket, ssl, struct, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); context.check_hostname = False
context.load_verify_locations("/etc/omfs/ca.pem"); context.load_cert_chain("/etc/omfs/node.pem", "/etc/omfs/node.key")
for first in (struct.pack("<IIQ", 2**31, 0, 1), struct.pack("<IIQ", 5, 0, 1) + b"\\xff" * 5, struct.pack("<IIQ", 9, 0, 1) + b"\\x91\\xa7Unknown",
              struct.pack("<IIQ", 100, 0, 1) + b"short"):
    with context.wrap_socket(socket.create_connection(("{address}", 723))) as sock:
        sock.sendall(first)
        sock.settimeout(30)
        try:
            while sock.recv(4096): pass
        except (ConnectionError, ssl.SSLError): pass
print("closed")
"""


def test_strangers_and_broken_peers_disturb_nobody(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    busy = cluster.start_program(1, "appender.py", f"{here.remote}/log", "node1", "300")
    before = cluster.export_pid(2)
    address = cluster.address(2)
    assert cluster.python(3, GARBAGE.format(address=address), timeout_s=120) == "refused\n"
    assert cluster.python(3, AS_A_PEER.format(address=address), timeout_s=120) == "closed\n"
    busy.wait_success(timeout_s=120)
    assert cluster.program(3, "check_records.py", f"{here.remote}/log", "300", "node1") == "ok\n"
    assert cluster.export_pid(2) == before
    log = cluster.log(2)
    assert "TLS handshake failed" in log
    assert "connection closed" in log


def test_a_node_that_forges_handles_or_asks_for_what_is_no_name(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    busy = cluster.start_program(1, "appender.py", f"{here.remote}/log", "node1", "300")
    before = len(cluster.log(2))
    told = cluster.lab.exec(3, [sys.executable, str(PROGRAMS / "asks_wrongly.py"), "2"], check=True).stdout.split("\n")
    assert told == [*["ESTALE"] * 4, "connected", "no answer", "no answer", ""]
    log = cluster.log(2)[before:]
    assert log.count("answered with ESTALE") == 1
    for name in (b"..", b"etc/passwd"):
        assert re.search(rf"node 3 \(.*\): asked for {re.escape(str(name))}, which is not .*; connection closed", log)
    busy.wait_success(timeout_s=120)
    assert cluster.program(3, "check_records.py", f"{here.remote}/log", "300", "node1") == "ok\n"


def test_a_peer_of_another_cluster_is_refused(cluster: Cluster) -> None:
    cluster.run(3, "omfs-admin init --config-dir /tmp/other --node 3")
    other = AS_A_PEER.replace("/etc/omfs", "/tmp/other").format(address=cluster.address(2))
    result = cluster.try_run(3, f"python3 -c '{other}'")
    assert result.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in result.stderr
    cluster.run(3, "rm -rf /tmp/other")
