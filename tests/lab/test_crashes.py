"""kill -9 of the daemons: programs go on or get an honest error, and never less data than they were told."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab


COPY = """
import os, sys
source, target = os.open("{source}", os.O_RDONLY), os.open("{target}", os.O_WRONLY | os.O_CREAT)
at_end = False
for part in range(5):
    print("part", part, flush=True); sys.stdin.readline()
    for _ in range(100):
        at_end = at_end or not (block := os.read(source, 1 << 20))  # and then for good, as to cp
        while not at_end and block: block = block[os.write(target, block):]
assert at_end
os.fsync(target); os.close(target)
"""


KILLER = "import os, sys; print('ready', flush=True); sys.stdin.readline(); os.kill({pid}, 9)"


@pytest.mark.parametrize("is_read", [False, True])
def test_the_export_is_killed_in_the_middle_of_a_copy(cluster: Cluster, is_read: bool) -> None:
    """Copied to the owner, and from it: a reader must not take what is lost for the end of the file."""
    near, far = cluster.fresh_dir(1), cluster.fresh_dir(2)
    source, target = (far.remote, near.native) if is_read else (near.native, far.remote)
    cluster.run(2 if is_read else 1, f"head -c 400M /dev/urandom > {(far if is_read else near).native}/file")
    copy = cluster.start_python(1, COPY.format(source=f"{source}/file", target=f"{target}/file"))
    for part in range(3):
        copy.wait_line(f"part {part}", timeout_s=120)
        before = cluster.export_pid(2)
        killer = cluster.start_python(2, KILLER.format(pid=before))
        killer.wait_line("ready")
        copy.send_line("")
        killer.send_line("")  # at once, so that requests are under way
        killer.finish()
        cluster.wait_new_export(2, before)
    for part in (3, 4):
        copy.wait_line(f"part {part}", timeout_s=120)
        copy.send_line("")
    copy.wait_success(timeout_s=240)
    sums = {cluster.run(node, f"sha256sum {place.native}/file").split()[0] for node, place in ((1, near), (2, far))}
    sums.add(cluster.run(3, f"sha256sum {far.remote}/file").split()[0])
    assert len(sums) == 1


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
