"""Who may move what, and that a guest has its user's rights and no more wherever it runs."""

from __future__ import annotations

import ast
import sys
from typing import Final

import pytest

from tests.lab.askedguest import ALICE, BOB, AskedGuest
from tests.lab.cluster import PROGRAMS, Cluster, wait_until
from tests.lab.test_bad_peers import AS_A_PEER, GARBAGE

pytestmark = pytest.mark.lab

_STATUS: Final = ("Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
LIMITS: Final = (
    "sorted((n, resource.getrlimit(getattr(resource, n))) for n in dir(resource) if n.startswith('RLIMIT_'))"
)
ATTRIBUTES: Final = (
    f"[line for line in open('/proc/self/status') if line.split(':')[0] in {_STATUS}]",
    LIMITS,
    "[os.getresuid(), os.getresgid(), sorted(os.getgroups()), os.umask(os.umask(0))]",
    "[os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.sched_getparam(0).sched_priority]",
    "open('/proc/self/oom_score_adj').read().strip()",
    "[sorted(os.sched_getaffinity(0)), libc.syscall(252, 1, 0), libc.prctl(30), libc.prctl(3)]",  # I/O, slack, dumpable
    "open('/proc/self/coredump_filter').read().strip()",
)
OTHERWISE: Final = (
    "[os.sched_setaffinity(0, {0}), libc.syscall(251, 1, 0, 2 << 13 | 6), libc.prctl(29, 123456),"
    " open('/proc/self/coredump_filter', 'w').write('0x7f')][1:3]"
)


@pytest.mark.parametrize("user", [ALICE, "0:0"], ids=["user", "root"])
def test_after_two_hops_it_has_what_its_user_has(cluster: Cluster, user: str) -> None:
    before = (
        "umask 0027; ulimit -n 300; ulimit -Sc 0; ulimit -St 5000; ulimit -f 100000; ulimit -l 64; renice -n 7 $$ >&2"
    )
    plain = AskedGuest(cluster, user=user, before=before, by="")
    guest = AskedGuest(cluster, user=user, before=before)
    assert guest.ask(OTHERWISE) == plain.ask(OTHERWISE) == "[0, 0]"
    for node in (2, 3):
        guest.move(node)
        for expression in ATTRIBUTES:
            assert guest.ask(expression) == plain.ask(expression), f"on {node}: {expression}"
    assert ast.literal_eval(guest.ask(ATTRIBUTES[3]))[0] == 7
    assert plain.end() == guest.end() == "status 0"


def test_groups_of_who_started_mignode_are_not_the_guests(cluster: Cluster) -> None:
    """As sudo's root has some; CRIU left them to a guest of root without any."""
    pid = cluster.ask(2, "mignode")["pid"]
    cluster.run(2, f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.05; done; setpriv --groups 0,2000 mignode")
    cluster.wait_up(2, 1)
    guest = AskedGuest(cluster, user="0:0")
    assert guest.ask("os.getgroups()") == "[]"
    guest.move(2)
    assert guest.ask("os.getgroups()") == "[]"
    assert guest.end() == "status 0"


def test_who_changes_what_is_behind_a_path_gains_nothing(cluster: Cluster) -> None:
    """CRIU opens files as root, by their paths, when its user has had time to put another one there."""
    place = cluster.fresh_dir(1).native
    cluster.run(1, f"cd {place}; mkdir -m 700 private; mkdir -m 777 open; echo secret > private/mine")
    cluster.run(1, f"cd {place}/open; echo myself > mine", user=ALICE)
    guest = AskedGuest(cluster, user=ALICE)
    guest.ask(f"files.append(open('{place}/open/mine'))")
    mignode = cluster.ask(2, "mignode")["pid"]
    cluster.run(2, "echo received stop > /run/omfs/fault")
    moving = cluster.lab.popen(1, f"migrate {guest.pid} 2", user=ALICE)
    try:
        cluster.run(2, f"until grep -q '^State:.T' /proc/{mignode}/status; do sleep 0.02; done")
        cluster.run(1, f"cd {place}/open; mv mine other; ln -s ../private/mine mine", user=ALICE)
    finally:
        cluster.lab.exec(2, f"rm -f /run/omfs/fault; kill -CONT {mignode}")
    said = moving.communicate(timeout=120)[1]
    assert (moving.returncode, "private/mine open, which its user may not open" in said) == (1, True), said
    assert guest.where() == 0
    assert guest.ask("[files[0].read()]") == "['myself\\n']"
    guest.move(2)  # by the name that it has now
    assert guest.ask("[files[0].seek(0), files[0].read()]") == "[0, 'myself\\n']"
    assert guest.end() == "status 0"


def test_only_its_user_and_root_move_it(cluster: Cluster) -> None:
    guest = AskedGuest(cluster, user=ALICE)
    for _ in ("at home", "away"):
        refused = cluster.try_run(1, f"migrate {guest.pid} 3", user=BOB)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "not yours" in refused.stderr
        for file, value in (("goto", "3"), ("migrate", "3"), ("lock", "1"), ("mignodes", "2"), ("selected", "1")):
            written = cluster.try_run(1, f"echo {value} > /mfs/proc/{guest.pid}/{file}", user=BOB)
            assert written.returncode != 0, file
            assert "ermission denied" in written.stderr, written.stderr
        cluster.run(1, f"migrate {guest.pid} 2")  # root may
        assert guest.where() == 2
    assert guest.ask("os.getresuid()") == "(1001, 1001, 1001)"
    assert guest.end() == "status 0"


def test_what_a_user_writes_moves_only_guests(cluster: Cluster) -> None:
    daemon = cluster.ask(1, "mignode")["pid"]
    for pid in (1, daemon):
        assert "not yours" in cluster.try_run(1, f"migrate {pid} 2", user=ALICE).stderr
    not_a_guest = cluster.try_run(1, "sleep 60 & s=0; migrate $! 2 || s=$?; kill $!; exit $s", user=ALICE)
    assert (not_a_guest.returncode, not_a_guest.stderr.count("\n")) == (1, 1)
    assert "can't move: was not started by mosrun" in not_a_guest.stderr
    for file in ("expel", "bring", "block", "mospe"):
        assert cluster.try_run(1, f"echo 1 > /mfs/proc/hpc/admin/{file}", user=ALICE).returncode != 0
    assert cluster.ask(1, "mignode")["pid"] == daemon


@pytest.mark.parametrize("uid", [0, 1002], ids=["root's", "another user's"])
def test_forged_images_are_refused(cluster: Cluster, uid: int) -> None:
    done = cluster.lab.exec(1, [sys.executable, str(PROGRAMS / "forger.py"), "2", str(uid)], check=True)
    prepared, answer = done.stdout.split("\n")[:2]
    assert prepared == "Prepared"
    assert "its images have rights that its user has not" in answer
    wait_until(lambda: cluster.run(2, "ls /run/omfs/guests") == "", "all of it is gone")
    wait_until(lambda: "omfs-guest" not in cluster.run(2, "ps -eo comm"), "its init, too")


def test_root_squash_keeps_roots_guests_away(cluster: Cluster) -> None:
    with cluster.export_configured(2, '\n[[trees]]\npath = "/"\nroot_squash = true\n'):
        restart_mignode(cluster, 2)
        root, alice = AskedGuest(cluster, user="0:0"), AskedGuest(cluster, user=ALICE)
        refused = cluster.try_run(1, f"migrate {root.pid} 2")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "root_squash" in refused.stderr
        assert root.where() == 0
        root.move(3)
        alice.move(2)
        assert root.end() == alice.end() == "status 0"
    restart_mignode(cluster, 2)


def test_a_stranger_gets_nothing_from_the_migration_port(cluster: Cluster) -> None:
    guest = AskedGuest(cluster)
    guest.move(2)
    for node in (1, 2):
        garbage, peer = (
            text.replace("723", "4660").format(address=cluster.address(node)) for text in (GARBAGE, AS_A_PEER)
        )
        assert cluster.python(3, garbage, timeout_s=120) == "refused\n"
        assert cluster.python(3, peer, timeout_s=180) == "closed\n"  # a node of the cluster, but no words
    cluster.run(3, "omfs-admin init --config-dir /tmp/other --node 3")
    other = AS_A_PEER.replace("/etc/omfs", "/tmp/other").replace("723", "4660").format(address=cluster.address(2))
    result = cluster.try_run(3, f"python3 -c '{other}'; rm -rf /tmp/other")
    assert "CERTIFICATE_VERIFY_FAILED" in result.stderr
    assert guest.ask("os.getpid()") == str(guest.pid)
    guest.move(3)
    assert guest.end() == "status 0"


def restart_mignode(cluster: Cluster, node: int) -> None:
    """As its unit would, with the settings as they are now."""
    pid = cluster.ask(node, "mignode")["pid"]
    cluster.run(node, f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done; mignode")


def test_mignode_goes_before_programs_and_guests_do_not(cluster: Cluster) -> None:
    """Else nobody would get away from a crowded node in time."""
    for node in (1, 2):
        assert set(cluster.run(node, "ps -C mignode -o ni=").split()) == {"-10"}
    process = cluster.lab.popen(1, "mosrun sh -c 'nice -n 3 sleep 1000 & sleep 1000' < /dev/null & echo $!; wait")
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    try:
        for node in (1, 2):
            cluster.run(1, f"migrate {pid} {node if node > 1 else 'home'}")
            wait_until(
                lambda node=node: sorted(cluster.run(node, "ps -C sleep -o ni= || :").split()) == ["0", "3"],
                f"they have their own priority on node {node}",
            )
    finally:
        cluster.try_run(1, f"kill -9 {pid}")
        cluster.lab.end(process)
