"""A guest that is away and the processes of its home: it sees them and signals them as its deputy could, no more."""

from __future__ import annotations

from typing import Final

import pytest

from tests.lab.askedguest import ALICE, BOB, AskedGuest
from tests.lab.cluster import Cluster, wait_until

pytestmark = pytest.mark.lab

RULES: Final = "libc.syscall(444, (2).to_bytes(8, 'little'), 8, 0)"  # who keeps them writes nowhere
CONFINE: Final = "[libc.prctl(38, 1, 0, 0, 0), libc.syscall(446, {}, 0)]"


def started(cluster: Cluster, user: str | None) -> int:
    """A process at home, until it is killed."""
    process = cluster.lab.popen(1, "echo $$; exec sleep 1000", user=user)
    assert process.stdout is not None
    return int(process.stdout.readline())


def runs(cluster: Cluster, pid: int) -> bool:
    return cluster.try_run(1, f"grep -q '^State:.[^Z]' /proc/{pid}/status").returncode == 0


def test_processes_at_home(cluster: Cluster) -> None:
    """The same at home, away and further on."""
    guest = AskedGuest(cluster)
    others, roots = started(cluster, BOB), started(cluster, None)
    session = cluster.run(1, f"ps -o sid= -p {guest.shell}").strip()
    for node in ("home", 2, 3, "home"):
        own = started(cluster, guest.user)
        guest.move(node)
        assert guest.ask("os.getpid()") == str(guest.pid)
        assert guest.ask("os.getppid()") == str(guest.shell)
        assert guest.ask("os.getpgrp() == os.getpgid(0) == os.getpid()") == "True"
        assert guest.ask(f"os.getpgid({own})") == cluster.run(1, f"ps -o pgid= -p {own}").strip()
        assert guest.ask(f"[os.getsid(0), os.getsid({guest.shell})]") == f"[{session}, {session}]"
        assert guest.ask(f"os.kill({own}, 0)") == "None"
        assert guest.ask(f"os.kill({own}, 999)") == "EINVAL"
        assert guest.ask("os.kill(4194000, 0)") == "ESRCH"
        for stranger in (others, roots, 1):
            assert guest.ask(f"os.kill({stranger}, signal.SIGKILL)") == "EPERM"
        assert guest.ask(f"os.kill({own}, signal.SIGTERM)") == "None"
        wait_until(lambda own=own: not runs(cluster, own), "the user's own process is killed")
    assert runs(cluster, others)
    assert runs(cluster, roots)
    assert guest.end() == "status 0"


def test_what_only_moving_forbids_works_at_home(cluster: Cluster) -> None:
    """Nothing but what home answers is stopped there: mounts, namespaces, programs of another machine type."""
    assert cluster.run(1, "mosrun sh -c 'mkdir -p /srv/m; mount -t tmpfs t /srv/m; touch /srv/m/x; ls /srv/m'") == "x\n"
    assert cluster.run(1, "mosrun unshare --user --map-root-user id -u", user=ALICE) == "0\n"


def test_calls_wait_for_a_mignode_that_is_started_again(cluster: Cluster) -> None:
    guest = AskedGuest(cluster)
    assert guest.ask("os.getppid()") == str(guest.shell)
    cluster.kill_daemon(1, cluster.ask(1, "mignode")["pid"])
    guest.say("[os.getppid(), os.getppid()]")
    cluster.run(1, "mignode")
    assert guest.line() == f"[{guest.shell}, {guest.shell}]"
    assert guest.end() == "status 0"


def test_a_sandbox_does_not_get_lost(cluster: Cluster) -> None:
    """CRIU would restore the program without it.  So who confines himself stays; who has moved can't, and moves on."""
    guest, other = AskedGuest(cluster), AskedGuest(cluster)
    rules = int(guest.ask(RULES))
    assert rules >= 0, "this kernel has no Landlock"
    other.move(2)
    assert [other.ask(RULES), other.ask(CONFINE.format(-1))] == ["-1", "[0, -1]"]
    other.move(3)
    cluster.kill_daemon(1, cluster.ask(1, "mignode")["pid"])
    guest.say(CONFINE.format(rules))  # waits for the next mignode, and the one after that knows it, too
    cluster.run(1, "mignode")
    assert guest.line() == "[0, 0]"
    cluster.kill_daemon(1, cluster.ask(1, "mignode")["pid"])
    cluster.run(1, "mignode")
    told = cluster.run(1, f"cat /mfs/proc/{guest.pid}/cantmove").strip()
    assert told == "has confined itself (Landlock)"
    refused = cluster.try_run(1, f"migrate {guest.pid} 2")
    assert (refused.returncode, told in refused.stderr) == (1, True)
    assert guest.ask("os.open('/dev/null', os.O_WRONLY)") == "EACCES"
    assert [guest.end(), other.end()] == ["status 0"] * 2


def test_a_signal_to_its_group_reaches_the_group_at_home(cluster: Cluster) -> None:
    folder = cluster.fresh_dir(1).native
    sibling = f"trap 'touch {folder}/sibling; exit' USR1; touch {folder}/ready; while :; do sleep 0.1; done"
    guest = AskedGuest(cluster, before=f"trap 'touch {folder}/shell' USR1; bash -c \"{sibling}\" &")
    wait_until(lambda: cluster.try_run(1, f"test -e {folder}/ready").returncode == 0, "the sibling waits")
    guest.move(2)
    assert guest.ask("os.kill(0, signal.SIGUSR1)") == "None"
    wait_until(lambda: cluster.try_run(1, f"test -e {folder}/sibling").returncode == 0, "the sibling has heard it")
    wait_until(lambda: guest.ask("heard") != "[]", "the guest itself has it")
    cluster.run(1, f"kill -USR2 {guest.pid}", user=guest.user)
    wait_until(lambda: guest.ask("12 in heard") == "True", "what comes later by the same way is there")
    assert guest.ask("heard") == "[10, 12]", "it had the other once"
    assert guest.end() == "status 0"
    wait_until(lambda: cluster.try_run(1, f"test -e {folder}/shell").returncode == 0, "its shell has heard it")


def test_who_has_given_up_rights_has_not_its_deputys(cluster: Cluster) -> None:
    """root's guest runs something as another user: that must not kill as root."""
    guest = AskedGuest(cluster, user="0:0")
    roots, bobs = started(cluster, None), started(cluster, BOB)
    guest.move(2)
    kill = "subprocess.run(['kill', '-KILL', '{}'], user=1002, stderr=subprocess.DEVNULL).returncode"
    assert guest.ask(kill.format(roots)) == "1"
    assert guest.ask(kill.format(bobs)) == "1"  # not even its own: the deputy has other rights
    assert runs(cluster, roots)
    assert guest.ask(f"os.kill({roots}, signal.SIGKILL)") == "None"
    wait_until(lambda: not runs(cluster, roots), "root's process is killed")
