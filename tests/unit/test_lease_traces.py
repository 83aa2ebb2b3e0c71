"""Ways to break the promise that random runs do not find, step by step."""

from __future__ import annotations

import pytest

from tests.unit.leasemodel import Broken, Call, Rules, World
from tests.unit.leasenode import Node


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
