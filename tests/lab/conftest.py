"""Fixtures of the fourth ring: a real lab per test module, stacks of what hangs, nothing left behind.

A module may say how its lab is made: LAB_OPTIONS = ("--sec", "none"), LAB_NODES = 2.  Nobody is moved by balancing,
but where it says BALANCES = True: a test knows where its guests are.  The deadline itself is in
tests/watch/deadline.py; shortly before it, the stacks of everything in the lab are taken, while it still hangs.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator, Iterator
from typing import Final

import pytest

from tests.lab.cluster import Cluster
from tests.lab.livelab import Lab
from tests.watch.deadline import timeout_of
from tests.watch.leftovers import lab_prefix

STACKS_BEFORE_DEADLINE_S: Final = 10.0
_stacks: Final = pytest.StashKey[str]()


@pytest.fixture(scope="module")
def module_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of this module's own, up; afterwards it is down, and nothing of it may be left."""
    module = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    lab = Lab(f"{lab_prefix()}{re.sub('[^a-z0-9]', '-', module.lower())}"[:32])
    interfaces = os.listdir("/sys/class/net")
    lab.up(*getattr(request.module, "LAB_OPTIONS", ()), nodes=getattr(request.module, "LAB_NODES", 3))
    try:
        if not getattr(request.module, "BALANCES", False):
            for node in range(1, lab.nodes + 1):
                lab.out(node, "test ! -d /mfs/proc || mosctl stay")  # a module may mount by itself
        yield lab
    finally:
        lab.down()
    assert lab.remains() == []
    assert sorted(os.listdir("/sys/class/net")) == sorted(interfaces)


@pytest.fixture
def lab(module_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The module's lab with all nodes up and no cut; what the test started and broke is put right after it."""
    item = request.node

    def take_stacks() -> None:
        item.stash[_stacks] = module_lab.stacks()

    timer = threading.Timer(max(timeout_of(item) - STACKS_BEFORE_DEADLINE_S, 1.0), take_stacks)
    timer.start()
    try:
        yield module_lab
    finally:
        timer.cancel()
        timer.join()
    if _stacks in item.stash:
        module_lab.reboot()
    else:
        module_lab.restore()


@pytest.fixture
def cluster(lab: Lab) -> Cluster:
    """The same in the words of the tests of real programs."""
    return Cluster(lab)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the nodes logged, and where everything was when it took too long."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        if _stacks in item.stash:
            report.sections.append(("stacks in the lab", item.stash[_stacks]))
        elif lab.paths.directory.exists():
            report.sections.append(("logs of the lab", lab.logs()))
    return report
