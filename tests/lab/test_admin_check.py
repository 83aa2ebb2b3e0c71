"""omfs-admin check and drop on a real cluster: nothing is found in a good one, and what is planted is."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.cluster import Cluster, Place, wait_until

Finding = dict[str, Any]


# How many files of node 1 this node's mount believes to have cached with their data.
WITH_DATA = """
import json, socket
with socket.socket(socket.AF_UNIX) as s:
    s.connect("/run/omfs/mount.sock")
    s.sendall(b'{"command": "tell_held", "node": 1, "part": 0, "parts": 1}\\n')
    _, _, leases, _ = json.loads(s.makefile().readline())["told"]
print(sum(with_data for _, _, _, with_data in leases))
"""
WRITER = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
fd = os.open(sys.argv[1], os.O_WRONLY)
print("in", flush=True)
sys.stdin.readline()
"""
BREAK_TIME = Path("/proc/sys/fs/lease-break-time")  # of the whole machine
LOCKS = Path("/proc/locks")


def check(cluster: Cluster, node: int, options: str = "") -> list[Finding]:
    """What omfs-admin check finds, and whether its exit status says the same."""
    result = cluster.try_run(node, f"omfs-admin check --json {options}", timeout_s=90)
    wrong = [one for one in json.loads(result.stdout)["findings"] if one["result"] != "ok"]
    assert result.returncode == (1 if wrong else 0), result
    return wrong


def test_a_good_cluster(cluster: Cluster) -> None:
    for node in (1, 2, 3):
        for other in {1, 2, 3} - {node}:
            cluster.wait_up(node, other)
        assert check(cluster, node) == []


def test_names_with_other_numbers(cluster: Cluster) -> None:
    for node, number in ((1, 4242), (2, 4242), (3, 4243)):
        cluster.run(node, f"echo 'zoe:x:{number}:{number}:::' >> /etc/passwd")
    try:
        (found,) = check(cluster, 1)
        assert (found["check"], found["node_id"], found["text"]) == ("users", 3, "zoe is 4243, here 4242")
        assert {one["node_id"] for one in check(cluster, 3)} == {1, 2}
    finally:
        for node in (1, 2, 3):
            cluster.run(node, "sed -i /^zoe:/d /etc/passwd")
    assert check(cluster, 1) == []


def test_another_map(cluster: Cluster) -> None:
    cluster.run(3, "cp /etc/openmosix.map /tmp/map; echo '99 192.0.2.99 1' >> /etc/openmosix.map")
    cluster.hang_up(3)
    try:
        (found,) = [one for one in check(cluster, 1) if one["check"] == "map"]
        assert (found["node_id"], found["result"]) == (3, "FAULT")
    finally:
        cluster.run(3, "cp /tmp/map /etc/openmosix.map")
        cluster.hang_up(3)
    assert check(cluster, 1) == []


def test_without_a_mount(cluster: Cluster) -> None:
    cluster.run(1, "umount /mfs")
    try:
        result = cluster.try_run(1, "omfs-admin check")
        assert (result.returncode, result.stdout) == (2, "")
        assert "must run on this node" in result.stderr
    finally:
        cluster.run(1, "mount /mfs", timeout_s=60)


def test_drop_of_what_is_not_there(cluster: Cluster) -> None:
    result = cluster.try_run(1, "omfs-admin drop /no/such/path")
    assert result.returncode == 1, result
    assert result.stderr == "omfs-admin: /no/such/path: No such file or directory\n"


# ---------------------------------------------------------------- what others have cached


def wait_cached(cluster: Cluster, node: int, place: Place, files: int) -> None:
    """Until *node* has so many files of the place with their data: not before they were left alone for a moment."""

    def are_cached() -> bool:
        cluster.run(node, f"cat {place.remote}/* > /dev/null")
        return int(cluster.python(node, WITH_DATA)) >= files

    wait_until(are_cached, f"{files} files cached on node {node}")


def write_below(cluster: Cluster, path: str, text: str) -> None:
    """Change a file of node 1 under its file system, in the upper layer of its overlay: no lease, no event tells it."""
    disk = cluster.lab.paths.node(1).disk
    loop = subprocess.run(["losetup", "-nO", "NAME", "-j", str(disk)], capture_output=True, text=True, check=True)
    script = 'mount -t ext4 "$1" "$2" && printf %s "$4" > "$2/upper/$3"'
    arguments = [loop.stdout.split()[0], "/mnt", path.lstrip("/"), text]
    subprocess.run(["unshare", "-m", "sh", "-ec", script, "sh", *arguments], check=True)


@contextlib.contextmanager
def break_time(seconds: int) -> Iterator[None]:
    """As short as can be: other labs' holders have no longer either.  It counts when an open begins to wait."""
    before = BREAK_TIME.read_text()
    BREAK_TIME.write_text(str(seconds))
    try:
        yield
    finally:
        BREAK_TIME.write_text(before)


def test_what_is_cached_and_changed_all_the_time(cluster: Cluster) -> None:
    place = cluster.fresh_dir(1)
    cluster.run(1, f"cd {place.native}; for n in $(seq 40); do echo $n > $n; done")
    for node in (2, 3):
        wait_cached(cluster, node, place, 40)
    change = "import os, sys\nwhile True:\n for n in range(1, 20): open(f'{sys.argv[1]}/{n}', 'a').write('x')"
    programs = [
        cluster.start_python(1, change.replace("sys.argv[1]", repr(place.native))),
        cluster.start_python(2, change.replace("sys.argv[1]", repr(place.remote))),
        cluster.start_python(3, f"import subprocess\nwhile True: subprocess.run('cat {place.remote}/*', shell=True,"
                                " stdout=subprocess.DEVNULL)"),
    ]  # fmt: skip
    try:
        for _ in range(3):
            assert check(cluster, 1, "--sample 40") == []
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert check(cluster, 1) == []


def test_old_data_are_found_and_mended(cluster: Cluster) -> None:
    place = cluster.fresh_dir(1)
    cluster.run(1, f"echo old > {place.native}/file")
    before = int(cluster.python(2, WITH_DATA))
    wait_cached(cluster, 2, place, before + 1)
    write_below(cluster, f"{place.native}/file", "NEW\n")
    assert cluster.run(1, f"cat {place.native}/file") == "NEW\n"
    assert cluster.run(2, f"cat {place.remote}/file") == "old\n"
    (found,) = check(cluster, 1, "--sample 100000")
    assert (found["check"], found["node_id"], found["result"]) == ("audit", 2, "FAULT")
    assert f"{place.native}/file (" in found["text"]
    assert "data)" in found["text"]
    assert check(cluster, 1, "--sample 100000 --repair") == []
    assert cluster.run(2, f"cat {place.remote}/file") == "NEW\n"


def test_a_kernel_lease_that_ran_out_and_a_holder_that_hangs(cluster: Cluster) -> None:
    place = cluster.fresh_dir(1)
    cluster.run(1, f"echo old > {place.native}/file")
    before = int(cluster.python(2, WITH_DATA))
    wait_cached(cluster, 2, place, before + 1)
    mount = cluster.mount_pid(2)
    cluster.run(2, f"kill -STOP {mount}")
    try:
        writer = cluster.start_python(1, WRITER.replace("sys.argv[1]", repr(f"{place.native}/file")))
        writer.wait_line("ready")
        with break_time(1):
            writer.send_line("")
            wait_until(lambda: "BREAKING" in LOCKS.read_text() or writer.has_line(0), "it waits for the lease")
        writer.wait_line("in")
        found = {one["check"]: one for one in check(cluster, 1, "--sample 0")}
        assert found["guards"]["text"] == f"kernel lease gone, node 2 may read old data: {place.native}/file"
        assert found["holders"]["node_id"] == 2
        assert "did not tell" in found["holders"]["text"]
    finally:
        cluster.run(2, f"kill -CONT {mount}")
    writer.finish()
    cluster.wait_up(2, 1)
    left: list[dict[str, Any]] = []

    def is_well() -> bool:
        left[:] = check(cluster, 1)
        return not left

    try:
        wait_until(is_well, "all is well again")
    except AssertionError:
        raise AssertionError(left) from None
