"""kill -9 of the daemons: programs go on or get an honest error, and never less data than they were told."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab


def test_the_export_is_killed_in_the_middle_of_a_copy(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    script = f"""
import hashlib, os
sent = hashlib.sha256()
fd = os.open("{here.remote}/copy", os.O_WRONLY | os.O_CREAT)
for n in range(400):
    block = os.urandom(1 << 20); sent.update(block)
    at = 0
    while at < len(block): at += os.write(fd, block[at:])
    if n == 60: print("going", flush=True)
os.fsync(fd); os.close(fd)
print(sent.hexdigest(), flush=True)
"""
    writer = cluster.start_python(1, script)
    writer.wait_line("going")
    for _ in range(3):
        before = cluster.export_pid(2)
        cluster.kill_daemon(2, before)
        cluster.wait_new_export(2, before)
    digest = writer.wait_success(timeout_s=240).split()[-1]
    assert cluster.run(2, f"sha256sum {here.native}/copy").split()[0] == digest
    assert cluster.run(3, f"sha256sum {here.remote}/copy").split()[0] == digest


def test_open_files_and_locks_survive_a_restart_of_the_export(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    script = f"""
import fcntl, os, sys
fd = os.open("{here.remote}/file", os.O_RDWR | os.O_CREAT, 0o444)
os.write(fd, b"kept")
fcntl.flock(fd, fcntl.LOCK_EX); fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
print("open", flush=True); sys.stdin.readline()
assert os.pread(fd, 10, 0) == b"kept"
os.pwrite(fd, b"!", 4)
print("written", flush=True); sys.stdin.readline()
"""
    attempt = f"""
import fcntl, os
fd = os.open("{here.remote}/file", os.O_RDONLY)
try: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
except BlockingIOError: print("refused")
else: print("granted")
"""
    cluster.run(2, f"chmod 777 {here.native}")
    program = cluster.start_python(1, script, user="1001:1001")
    program.wait_line("open")
    before = cluster.export_pid(2)
    cluster.kill_daemon(2, before)
    cluster.wait_new_export(2, before)
    program.send_line("")
    program.wait_line("written")
    assert cluster.python(3, attempt) == "refused\n"
    program.finish()
    wait_until(lambda: cluster.python(3, attempt) == "granted\n", "the lock is free")  # closing unlocks a moment later
    assert cluster.run(2, f"cat {here.native}/file") == "kept!"


def test_the_mount_is_killed_and_mounted_again(cluster: Cluster) -> None:
    cluster.kill_daemon(1, cluster.mount_pid(1))
    assert cluster.try_run(1, "ls /mfs").returncode != 0
    cluster.run(1, "mount /mfs", timeout_s=60)
    assert cluster.run(1, "cat /mfs/2/etc/hostname") == cluster.run(2, "cat /etc/hostname")
    assert cluster.run(2, "cat /mfs/1/etc/hostname") == cluster.run(1, "cat /etc/hostname")
    assert cluster.run(1, "cat /mfs/1/etc/hostname") == cluster.run(1, "cat /etc/hostname")
