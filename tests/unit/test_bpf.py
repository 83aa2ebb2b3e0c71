"""The assembler: whatever the tree, the program decides as the tree does."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, strategies as st

from omfs.kernel.bpf import ARGUMENTS_MAX, Action, Decision, Test, Tree, argument, assemble
from tests.unit import bpfmachine

WORDS = st.integers(0, 2**32 - 1)
PLACES = st.sampled_from(range(0, 64, 4))
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.builds(Action, WORDS),
    lambda trees: st.builds(Decision, PLACES, st.sampled_from(Test), WORDS | st.integers(0, 9), trees, trees),
    max_leaves=60,
)


def decided(tree: Tree, words: list[int]) -> int:
    while isinstance(tree, Decision):
        word = words[tree.place // 4]
        holds = {
            Test.EQUAL: word == tree.operand, Test.AT_LEAST: word >= tree.operand,
            Test.ANY_BIT: word & tree.operand != 0,
        }[tree.test]  # fmt: skip
        tree = tree.then if holds else tree.otherwise
    return tree.value


@given(TREES, st.lists(WORDS | st.integers(0, 9), min_size=16, max_size=16))
def test_a_program_decides_as_its_tree(tree: Tree, words: list[int]) -> None:
    assert bpfmachine.run(assemble(tree), struct.pack("=16I", *words)).action == decided(tree, words)


def chain(values: range) -> Tree:
    """Word 0 is compared with one value after another; all of the rest is in the branch that is jumped over."""
    tree: Tree = Action(0)
    for value in reversed(values):
        tree = Decision(0, Test.EQUAL, value, Action(value + 1), tree)
    return tree


@pytest.mark.parametrize("length", [126, 127, 128, 129, 400])
def test_branches_longer_than_a_jump_are_passed_over(length: int) -> None:
    whole = assemble(Decision(4, Test.EQUAL, 1, chain(range(length)), Action(7)))
    for call, other, wanted in [(0, 1, 1), (length - 1, 1, length), (length, 1, 0), (0, 0, 7)]:
        assert bpfmachine.run(whole, bpfmachine.shown(call, other)).action == wanted


@given(TREES)
def test_no_word_is_loaded_twice_in_a_row(tree: Tree) -> None:
    loads = bpfmachine.run(assemble(tree), bytes(64)).loads
    assert all(one != following for one, following in itertools.pairwise(loads))


def full(depth: int) -> Tree:
    return Decision(0, Test.ANY_BIT, 1 << depth, full(depth - 1), full(depth - 1)) if depth else Action(0)


def test_what_no_kernel_takes_is_refused() -> None:
    assert len(assemble(full(10))) <= 8 * 4096
    with pytest.raises(ValueError, match="the kernel takes 4096"):
        assemble(full(11))  # 4,096 with the one load, and the jumps over its long branches
    with pytest.raises(ValueError, match="no word"):
        assemble(Action(2**32))
    with pytest.raises(ValueError, match="no argument 6"):
        argument(ARGUMENTS_MAX)


def test_the_halves_of_an_argument() -> None:
    data = bpfmachine.shown(0, 0, (0, 0, 0x1122334455667788, 0, 0, 0))
    low = Decision(argument(2), Test.EQUAL, 0x55667788, Action(1), Action(0))
    high = Decision(argument(2, high=True), Test.EQUAL, 0x11223344, low, Action(0))
    assert bpfmachine.run(assemble(high), data).action == 1
