"""A node is away: nothing hangs, the right errno comes, and everything works again without remounting."""

from __future__ import annotations

import time

import pytest

from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab

TIMEO_S = 3.0
STAT_ERRNO = """
import os, sys, errno
try: os.stat("{path}")
except OSError as error: print(errno.errorcode[error.errno])
else: print("ok")
"""


def stat_errno(cluster: Cluster, node: int, path: str, timeout_s: float = 60) -> str:
    return cluster.python(node, STAT_ERRNO.format(path=path), timeout_s=timeout_s).strip()


def test_a_dead_node_gives_ehostdown_and_comes_back(cluster: Cluster) -> None:
    here = cluster.fresh_dir(3)
    cluster.run(3, f"echo before > {here.native}/file; sync")
    with cluster.mounted(1, f"dfsa=1,timeo={TIMEO_S:g}"):
        reader = cluster.start_python(
            1,
            f"import sys\nf = open('{here.remote}/file')\nprint('open', flush=True)\nsys.stdin.readline()\nprint(f.read())",
        )
        reader.wait_line("open")
        cluster.kill(3)
        try:
            assert {"1", "2", "3"} <= set(cluster.run(1, "ls /mfs").split())
            assert cluster.run(1, "ls -l /mfs >/dev/null && echo listed") == "listed\n"
            # Until it counts as down, what is cached is good.
            wait_until(
                lambda: stat_errno(cluster, 1, f"{here.remote}/file") == "EHOSTDOWN", "node 3 is known to be down"
            )
            asked = cluster.requests_to(1, 3)
            assert stat_errno(cluster, 1, f"{here.remote}/file") == "EHOSTDOWN"
            assert cluster.requests_to(1, 3) == asked, "known to be down: nobody is asked, so nobody is waited for"
            assert cluster.run(1, "ls /mfs/2/etc >/dev/null && echo fine") == "fine\n"
            assert cluster.try_run(1, "omfs-admin status").returncode == 1
        finally:
            cluster.start(3)
        cluster.wait_up(1, 3)
        assert cluster.run(1, f"cat {here.remote}/file") == "before\n"
        reader.send_line("")
        reader.wait_line("before")
        reader.finish()


def test_a_cut_stalls_and_heals(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(2, f"echo x > {here.native}/file")
    with cluster.mounted(1, f"dfsa=1,timeo={TIMEO_S:g}"):
        cluster.run(1, f"cat {here.remote}/file")
        with cluster.cut(1, 2):
            wait_until(lambda: stat_errno(cluster, 1, f"{here.remote}/file") == "EHOSTDOWN", "node 2 is silent")
            assert stat_errno(cluster, 3, f"{here.remote}/file") == "ok", "the others are not concerned"
        cluster.wait_up(1, 2)
        assert cluster.run(1, f"cat {here.remote}/file") == "x\n"


def test_requests_in_flight_over_a_short_cut_are_done_once(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    script = f"""
import os, sys
fd = os.open("{here.remote}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for n in range(3000):
    os.write(fd, b"%d\\n" % n)
    if n % 10 == 0: os.mkdir("{here.remote}/d%d" % n)
    if n == 200: print("going", flush=True)
print("done", flush=True)
"""
    writer = cluster.start_python(1, script)
    writer.wait_line("going")
    for _ in range(3):
        with cluster.cut(1, 2):
            time.sleep(0.7)  # shorter than timeo: what was under way is repeated, and must not be done twice
        time.sleep(0.2)
    writer.wait_success(timeout_s=240)
    lines = cluster.run(2, f"cat {here.native}/log").split()
    assert lines == [str(n) for n in range(3000)]
    assert cluster.run(2, f"ls -d {here.native}/d* | wc -l").strip() == "300"


def test_hard_waits_and_can_be_killed(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(2, f"cd {here.native}; for name in file a b; do echo x > $name; done")
    with cluster.mounted(1, f"dfsa=1,hard,timeo={TIMEO_S:g}"):
        cluster.run(1, f"cat {here.remote}/file")
        with cluster.cut(1, 2):
            # What nobody has looked at: a file that was quiet for long enough is read from the cache.  Two files: whoever
            # looks up a name that another process is just looking up waits in the kernel, and can't be killed there.
            script = f"print('go', flush=True); print(open('{here.remote}/{{}}').read())"
            killed = cluster.start_python(1, script.format("a"))
            patient = cluster.start_python(1, script.format("b"))
            for program in (killed, patient):
                program.wait_line("go")
            assert not patient.has_line(within_s=3 * TIMEO_S)
            killed.kill()
            assert killed.wait() != 0
        patient.wait_line("x", timeout_s=60)
        patient.finish()


XATTR_ERRNO = """
import os, errno
try: os.{call}
except OSError as error: print(errno.errorcode[error.errno])
else: print("answered")
"""


def test_hard_does_not_make_ls_wait_at_the_top_but_a_user_on_the_way_below(cluster: Cluster) -> None:
    """`ls -l /mfs` asks for the ACL of each node's root, and so does the kernel where an ordinary user walks through."""
    here = cluster.fresh_dir(2)
    cluster.run(2, f"echo x > {here.native}/file")
    with cluster.mounted(1, f"dfsa=1,hard,timeo={TIMEO_S:g}"):
        assert cluster.run(1, f"cat {here.remote}/file", user="1001:1001") == "x\n"
        with cluster.cut(1, 2):
            # Also what was cached of it is void then, so that the kernel asks for its ACL again.
            wait_until(lambda: cluster.try_run(1, "omfs-admin status").returncode == 1, "node 2 is away")
            assert "2" in cluster.run(1, "timeout 10 ls -l /mfs 2>&1 && timeout 10 ls -l /mfs 2>&1")
            for call in (
                "getxattr('/mfs/2', 'system.posix_acl_access')",
                "getxattr('/mfs/2', 'user.x')",
                "listxattr('/mfs/2')",
            ):
                assert cluster.python(1, XATTR_ERRNO.format(call=call), timeout_s=10) == "EHOSTDOWN\n", call
            script = f"print('go', flush=True); print(open('{here.remote}/file').read())"
            patient = cluster.start_python(1, script, user="1001:1001")
            patient.wait_line("go")
            assert not patient.has_line(within_s=2 * TIMEO_S)
        patient.wait_line("x", timeout_s=60)
        patient.finish()
        assert (
            cluster.python(1, XATTR_ERRNO.format(call="getxattr('/mfs/2', 'system.posix_acl_access')")) == "ENODATA\n"
        )


def test_a_removed_object_is_stale(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    script = f"""
import os, sys, errno
os.chdir("{here.remote}/d")
print("in", flush=True); sys.stdin.readline()
try: os.stat("."); os.listdir(".")
except OSError as error: print(errno.errorcode[error.errno], flush=True)
else: print("ok", flush=True)
"""
    cluster.run(2, f"mkdir {here.native}/d")
    inside = cluster.start_python(1, script)
    inside.wait_line("in")
    cluster.run(2, f"rmdir {here.native}/d; echo 3 > /proc/sys/vm/drop_caches || true")
    inside.send_line("")
    inside.wait_line("ESTALE")
    inside.finish()
