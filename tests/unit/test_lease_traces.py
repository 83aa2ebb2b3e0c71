"""Ways to break the promise that random runs do not find, or seldom, step by step."""

from __future__ import annotations

import pytest

from tests.unit.leasedisk import Call
from tests.unit.leasemodel import TERM_S, Rules, World
from tests.unit.leasenode import Node
from tests.unit.leaserun import open_first
from tests.unit.leasewrites import Broken


class Steps:
    """A world of two nodes in which the test says what happens next."""

    def __init__(self, rules: Rules) -> None:
        self.world = World(Node, 2, rules)
        self.a, self.b = self.world.nodes

    def run(self) -> None:
        """As far as it goes."""
        while self.world.step(0):
            pass

    def go_on(self, node: Node, steps: int) -> None:
        for _ in range(steps):
            self.world.step(0, only=node)

    def until_sent(self, node: Node) -> None:
        """The node's change of a name in D is sent, and keeps D locked there."""
        while not node.changing[b"D"]:
            self.world.step(0, only=node)

    def owner(self) -> None:
        """The owner does what it can."""
        world = self.world
        while tasks := [task for task in world.tasks if task.whose == world.epoch and task.is_ready()]:
            try:
                tasks[0].until = next(tasks[0].steps)
            except StopIteration:
                world.tasks.remove(tasks[0])

    def hear(self, node: Node) -> None:
        """What the node has sent arrives at the owner, and what the owner has sent there."""
        while node.up:
            self.world._hear(node, node.up.popleft())
        self.owner()
        while node.down:
            node.hear(node.down.popleft())


def who_looks_beside_one_who_has_the_directory_locked(rules: Rules) -> None:
    """A's recall of x was answered early; then another call of A has the lock, and asks, and so does who looks at x."""
    at = Steps(rules)
    a, b, world = at.a, at.b, at.world
    for node in (a, b):
        for name in (b"x", b"y"):
            node.call(Call("look", b"D", name))
        at.run()
    a.kernel.known.add(b"g")
    a._lease(b"g")
    a.call(Call("link", b"D", b"y", b"f"))
    at.until_sent(a)
    at.go_on(a, 5)
    a.call(Call("unlink", b"D", b"y"))  # waits for the lock
    at.go_on(a, 20)
    b.call(Call("unlink", b"D", b"x"))
    at.until_sent(b)
    world._hear(b, b.up.popleft())
    world._hear(a, a.up.popleft())
    at.owner()
    while a.down:
        a.hear(a.down.popleft())
    at.go_on(a, 10)
    at.hear(a)
    while b.down:
        b.hear(b.down.popleft())
    at.go_on(b, 20)  # b's unlink of x returns
    while b.up:
        world._hear(b, b.up.popleft())
    at.owner()
    while a.down:
        a.hear(a.down.popleft())
    at.go_on(a, 6)
    at.hear(a)
    a.call(Call("look", b"D", b"x"))
    at.go_on(a, 20)
    looker = [task for task in world.tasks if task.is_call][-1]
    for other in [task for task in world.tasks if task.is_call and task is not looker]:
        other.is_frozen = True
    world.moment += 2
    at.run()
    world.thaw()
    at.run()
    world.settle()


def test_who_only_looks_waits_until_the_names_are_forgotten() -> None:
    who_looks_beside_one_who_has_the_directory_locked(Rules())
    with pytest.raises(Broken):
        who_looks_beside_one_who_has_the_directory_locked(Rules(knows_lookers=False))


class Writing(Steps):
    """A has the first file open for writing, with the EXCLUSIVE lease."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        open_first(self.world)

    def buffer(self, kind: str = "write") -> None:
        """A's write returns, and the owner does not have it."""
        calls = self.world.writes.early_of(b"f")
        self.a.is_stalled = True
        self.a.call(Call(kind, b"f"))
        while self.world.writes.early_of(b"f") == calls:
            self.world.step(0, only=self.a)

    def restart_owner(self, is_power_cut: bool = False) -> None:
        """It comes back to A only after 7 s, by when most of A's term is over, and what A sends then gets nowhere."""
        self.world.restart_owner(is_power_cut)
        self.world.pass_time(7)
        self.a.connect()
        self.a.is_stalled = True


def a_restarted_owner_that_hears_nothing_more(rules: Rules) -> None:
    at = Writing(rules)
    at.buffer()
    at.restart_owner()
    at.world.pass_time(int(TERM_S) - 7)
    at.b.connect()
    at.b.call(Call("read", b"f"))
    at.world.settle()


def test_what_is_buffered_is_dropped_when_the_former_owners_term_is_over() -> None:
    """The new one counts from its own start: what it answers before all is given back makes that no longer."""
    a_restarted_owner_that_hears_nothing_more(Rules())
    with pytest.raises(Broken):
        a_restarted_owner_that_hears_nothing_more(Rules(keeps_deadline=False))


def an_owner_that_restarts_in_its_grace(rules: Rules) -> None:
    at = Writing(rules)
    at.buffer()
    at.world.restart_owner(is_power_cut=True)
    at.world.restart_owner()
    at.b.connect()
    at.b.call(Call("read", b"f"))
    at.run()
    at.world.settle()


def test_a_grace_is_not_over_because_the_owner_restarts() -> None:
    an_owner_that_restarts_in_its_grace(Rules())
    with pytest.raises(Broken):
        an_owner_that_restarts_in_its_grace(Rules(remembers_grace=False))


def a_write_that_arrives_after_the_term(rules: Rules) -> None:
    at = Writing(rules)
    at.buffer()
    at.run()  # it is sent, and on its way for long
    at.world.pass_time(int(TERM_S) + 1)
    at.b.ping()
    at.run()
    at.b.call(Call("open", b"f"))
    at.run()
    at.b.call(Call("write", b"f"))
    at.b.call(Call("fsync", b"f"))
    at.run()
    late, newer = at.world.writes.all
    assert newer.executed
    at.world.settle()
    assert not late.executed


def test_a_write_that_comes_after_the_term_does_nothing() -> None:
    a_write_that_arrives_after_the_term(Rules())
    with pytest.raises(Broken):
        a_write_that_arrives_after_the_term(Rules(fences=False))


@pytest.mark.parametrize("is_power_cut", [False, True])
@pytest.mark.parametrize("is_behind", [False, True])
def test_no_restart_of_the_owner_loses_a_buffered_write(is_power_cut: bool, is_behind: bool) -> None:
    at = Writing(Rules())
    at.world.is_behind = is_behind
    for _ in range(3):
        at.buffer()
    at.world.restart_owner(is_power_cut)
    at.world.settle()
    assert [bool(write.executed) for write in at.world.writes.all] == [True] * 3
