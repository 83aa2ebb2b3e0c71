"""What else may fail in a migration: CRIU, the network, a whole node, memory for images, an image; one copy runs on.

Or none, only where its node died after the commit; then mosrun says so.  mignode itself is killed in
test_handover_faults.py.
"""

from __future__ import annotations

import signal
from typing import Final

import pytest

from mignode.processor import read_processor
from tests.lab.cluster import Cluster
from tests.lab.countingguest import HOME, CountingGuest

KILLS: Final = 6
_IMPATIENT: Final = """
grep -q guest_timeout_s /etc/omfs/omfs.toml && exit
printf '%s\n' 'guest_timeout_s = 10.0' 'images_max_bytes = 67108864' >> /etc/omfs/omfs.toml
kill {pid}
while kill -0 {pid} 2>/dev/null; do sleep 0.05; done
mignode
"""
_KILL_CRIU: Final = "pkill -9 -f 'criu: '"
_IMAGES: Final = """
for one in /proc/{pid}/fd/*; do
    [ "$(readlink $one)" = / ] && [ "$(stat -fLc %T $one/)" = tmpfs ] && images=$one
done
cd $images/
"""
"""Into the tmpfs of mignode's images, which has no place of its own."""
_CUT: Final = f"{_IMAGES} for image in */core-*.img; do truncate -s 50 $image; done"
_FILL: Final = f"{_IMAGES} fallocate -l $(($(stat -fc '%a * %S' .) - (1 << 20))) filler"
_EMPTY: Final = f"{_IMAGES} rm -f filler"


@pytest.fixture
def guest(cluster: Cluster) -> CountingGuest:
    """Where nodes give up a guest after some seconds."""
    for node in (1, 2, 3):
        cluster.run(node, _IMPATIENT.format(pid=cluster.ask(node, "mignode")["pid"]))
        if node != HOME:
            cluster.wait_up(node, HOME)
    return CountingGuest(cluster)


def test_criu_is_killed_at_the_source(cluster: Cluster, guest: CountingGuest) -> None:
    """Also behind the commit: then it is of no use any more."""
    for point, node in (("dumped", HOME), ("kept", HOME), ("committed", 2)):
        with guest.standing_at(HOME, point, 2) as moving:
            cluster.run(HOME, _KILL_CRIU)
        if node == HOME:
            assert "criu" in guest.refusal_of(moving, HOME), point
        else:
            assert guest.end_of(moving) == (0, "")
            assert guest.check() == node


def test_criu_is_killed_at_any_moment(cluster: Cluster, guest: CountingGuest) -> None:
    """Of few moments the program dies by SIGTRAP, as its own code runs in there: then nobody says that it stays."""
    killed = 0
    for _ in range(KILLS):
        killer = cluster.start_program(HOME, "criukiller.py")
        killer.wait_line("ready")
        status, said = guest.end_of(guest.start_move(2))
        killed += killer.next_line() == "killed"
        if status == 0:
            assert guest.check() == 2
            guest.move(HOME)
        elif "stays where it is" in said:
            assert guest.check() == HOME
        else:
            assert said.startswith(f"migrate: process {guest.pid} ")
            assert said.endswith((" has ended\n", "it has ended (SIGTRAP): criu was killed while it was dumped\n"))
            assert guest.wait_status() == str(128 + signal.SIGTRAP)
            guest = CountingGuest(cluster)
    assert killed


def test_criu_is_killed_at_the_destination(cluster: Cluster, guest: CountingGuest) -> None:
    """Behind the commit its node gives the guest back."""
    for point in ("held", "decided"):
        with guest.standing_at(2, point, 2) as moving:
            cluster.run(2, _KILL_CRIU)
        guest.refusal_of(moving, HOME)


def test_an_image_is_damaged(cluster: Cluster, guest: CountingGuest) -> None:
    pid = guest.mignode(2)
    with guest.standing_at(2, "received", 2) as moving:
        cluster.run(2, _CUT.format(pid=pid))
    assert "node 2" in guest.refusal_of(moving, HOME)


def test_a_processor_lacks_what_programs_may_use(cluster: Cluster, guest: CountingGuest) -> None:
    """It is asked before anything is frozen; where the guest comes from as well, if that is not as good any more."""
    name = max(read_processor().instructions)
    for node in (2, HOME):
        cluster.run(node, f"echo lacks {name} > /run/omfs/fault")
        try:
            said = guest.fail_to_move(node)
            assert said.endswith(f": node {node}: its processor lacks {name}, which programs may use")
            assert "dumped" not in cluster.run(HOME, f"cat /mfs/proc/{guest.pid}/journey")
        finally:
            cluster.run(node, "rm /run/omfs/fault")
        guest.move(node)


def test_memory_for_images_is_full(cluster: Cluster, guest: CountingGuest) -> None:
    for node, point in ((HOME, "prepared"), (2, "hatched")):
        pid = guest.mignode(node)
        with guest.standing_at(node, point, 2) as moving:
            cluster.run(node, _FILL.format(pid=pid))
        try:
            said = guest.refusal_of(moving, HOME)
        finally:
            cluster.run(node, _EMPTY.format(pid=pid))
        assert "No space left" in said or "agreed upon" in said, said


def test_images_that_are_too_large_are_refused_before(cluster: Cluster, guest: CountingGuest) -> None:
    for node in (HOME, 2):
        pid = guest.mignode(node)
        cluster.run(node, _FILL.format(pid=pid))
        try:
            said = guest.fail_to_move(2)
        finally:
            cluster.run(node, _EMPTY.format(pid=pid))
        assert "no room" in said


def test_the_network_is_cut_before_the_commit(cluster: Cluster, guest: CountingGuest) -> None:
    with guest.standing_at(HOME, "began", 2) as moving:
        cluster.lab.cut(HOME, 2)
    assert "node 2 is down or can't be reached" in guest.refusal_of(moving, HOME)


@pytest.mark.parametrize(("node", "point"), [(HOME, "dumped"), (2, "held")])
def test_the_network_is_cut_while_it_is_frozen(cluster: Cluster, guest: CountingGuest, node: int, point: str) -> None:
    """It goes on here, also when the copy there is whole and waits for what home says."""
    with guest.standing_at(node, point, 2) as moving:
        cluster.lab.cut(HOME, 2)
    status, said = guest.end_of(moving)
    assert (status, said.count("\n")) == (1, 1), said
    cluster.lab.heal()
    assert guest.check() == HOME


def test_the_network_is_cut_as_it_begins_to_run(cluster: Cluster, guest: CountingGuest) -> None:
    """Home has committed, so the other node runs it, however long nobody hears of that."""
    with guest.standing_at(2, "written", 2) as moving:
        cluster.lab.cut(HOME, 2)
    cluster.lab.heal()
    assert guest.end_of(moving) == (0, "")
    assert guest.check() == 2


def test_the_network_is_cut_as_it_commits(cluster: Cluster, guest: CountingGuest) -> None:
    """Home has written down that it is elsewhere, and its new node does not know until the network is there again."""
    with guest.standing_at(HOME, "barred", 2) as moving:
        cluster.lab.cut(HOME, 2)
    cluster.run(HOME, "until grep -q '\"node\":2' /run/omfs/guests/*/record; do sleep 0.05; done")
    cluster.lab.heal()
    assert guest.end_of(moving) == (0, "")
    assert guest.check() == 2


def test_the_network_between_source_and_home_is_cut_as_it_commits(cluster: Cluster, guest: CountingGuest) -> None:
    """Nobody can say where it is until home is found again."""
    guest.move(2)
    with guest.standing_at(2, "barred", 3) as moving:
        cluster.lab.cut(HOME, 2)
    cluster.run(HOME, f"kill -0 {guest.pid}")
    cluster.lab.heal()
    guest.end_of(moving)
    guest.check()


@pytest.mark.parametrize(("point", "node"), [("received", HOME), ("decided", 0)])
def test_the_destination_is_booted_again(cluster: Cluster, guest: CountingGuest, point: str, node: int) -> None:
    """Before the commit, and after it: then home hears of no guest there, and it is lost."""
    with guest.standing_at(2, point, 2) as moving:
        cluster.kill(2)
        cluster.start(2)
    if node:
        guest.refusal_of(moving, node)
    else:
        assert "node 2" in guest.wait_killed()


def test_the_destination_dies_before_the_commit(cluster: Cluster, guest: CountingGuest) -> None:
    with guest.standing_at(2, "held", 2) as moving:
        cluster.kill(2)
    guest.refusal_of(moving, HOME)


def test_the_destination_dies_after_the_commit(cluster: Cluster, guest: CountingGuest) -> None:
    """The one case where there is none: mosrun says so once, and ends as killed."""
    with guest.standing_at(2, "written", 2):
        cluster.kill(2)
    assert "node 2" in guest.wait_killed()


def test_the_node_dies_where_it_runs(cluster: Cluster, guest: CountingGuest) -> None:
    guest.move(3)
    cluster.kill(3)
    assert "node 3" in guest.wait_killed()


def test_home_dies(cluster: Cluster, guest: CountingGuest) -> None:
    """The body is ended, as the original did: nobody could hear it any more."""
    guest.move(2)
    cluster.kill(HOME)
    cluster.run(2, 'until ! pgrep -x omfs-guest && [ -z "$(ls -A /run/omfs/guests)" ]; do sleep 0.1; done')


def test_the_deputy_dies_while_mignode_is_away(cluster: Cluster, guest: CountingGuest) -> None:
    """Nothing is left of it, at home and where it ran."""
    guest.move(2)
    pid = guest.mignode(HOME)
    cluster.run(HOME, f"kill -{signal.SIGKILL.value} {pid} {guest.pid}; until mignode; do sleep 0.1; done")
    for node in (HOME, 2):
        cluster.run(node, 'until [ -z "$(ls -A /run/omfs/guests)" ]; do sleep 0.1; done')
