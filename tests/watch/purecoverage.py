"""--pure-coverage: branch coverage of the pure modules; the run fails where it is below 100 %.

A pure module has no I/O, so every branch can be reached by a unit test, and one that can't should not be there.
Measured by `make test`, over the whole run, and with `ARGS='-m "not lab"'` in a few minutes; where workers
(pytest-xdist) do the tests, each sends what it has to who leads the run.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import coverage
import pytest

ROOT: Final = Path(__file__).parent.parent.parent
PURE: Final = (
    "dfsa/callnumbers.py",
    "dfsa/fusewords.py",
    "dfsa/hints.py",
    "dfsa/guestfilter.py",
    "dfsa/proctree.py",
    "dfsa/verdict.py",
    "mignode/book.py",
    "mignode/criuimages.py",
    "mignode/criurpc.py",
    "mignode/eligible.py",
    "mignode/eligiblefiles.py",
    "mignode/deputywords.py",
    "mignode/discovery.py",
    "mignode/discoverywords.py",
    "mignode/facts.py",
    "mignode/journey.py",
    "mignode/filewords.py",
    "mignode/mosrunoptions.py",
    "mignode/gossip.py",
    "mignode/gossipwords.py",
    "mignode/handover.py",
    "mignode/imagefile.py",
    "mignode/reasons.py",
    "mignode/relay.py",
    "mignode/stops.py",
    "mignode/nodeinfo.py",
    "mignode/ownfilter.py",
    "mignode/policy.py",
    "mignode/simulate.py",
    "mignode/simulation.py",
    "mignode/strategies.py",
    "mignode/tuning.py",
    "mignode/weighing.py",
    "mignode/words.py",
    "mignode/ownsession.py",
    "omfs/cache/holder.py",
    "omfs/cache/circles.py",
    "omfs/cache/latency.py",
    "omfs/cache/owner.py",
    "omfs/cache/parts.py",
    "omfs/cache/rules.py",
    "omfs/errors.py",
    "omfs/export/ranges.py",
    "omfs/export/trees.py",
    "omfs/kernel/bpf.py",
    "omfs/kernel/mounttable.py",
    "omfs/kernel/procfs.py",
    "omfs/kernel/procobjects.py",
    "omfs/lab/topology.py",
    "omfs/magic/names.py",
    "omfs/magic/places.py",
    "omfs/magic/controlfiles.py",
    "omfs/mount/controltree.py",
    "omfs/mount/dirty.py",
    "omfs/mount/justtold.py",
    "omfs/mount/options.py",
    "omfs/mount/ranges.py",
    "omfs/net/bundle.py",
    "omfs/net/frames.py",
    "omfs/net/hello.py",
    "omfs/net/nodemap.py",
    "omfs/net/pings.py",
    "omfs/net/term.py",
    "omfs/wire.py",
)

PURE_RINGS: Final = "not lab"  # as -m has it: all that is needed to see whether what follows is covered

_measuring = pytest.StashKey[coverage.Coverage]()
_report = pytest.StashKey[str]()
_OUTPUT: Final = "pure coverage"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pure-coverage", action="store_true", help="fail unless the pure modules are covered wholly")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pure-coverage"):
        measuring = coverage.Coverage(
            data_file=None, config_file=False, branch=True, include=[str(ROOT / path) for path in PURE]
        )
        measuring.exclude("if TYPE_CHECKING:")
        if getattr(config.option, "dist", "no") == "no":  # else the workers do
            measuring.start()
        config.stash[_measuring] = measuring


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended; one that crashed has sent nothing."""
    measuring = node.config.stash.get(_measuring, None)
    if measuring is not None and (output := getattr(node, "workeroutput", {}).get(_OUTPUT)):
        of_worker = coverage.CoverageData(no_disk=True)
        of_worker.loads(output)
        measuring.get_data().update(of_worker)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    measuring = session.config.stash.get(_measuring, None)
    if measuring is None:
        return
    measuring.stop()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_OUTPUT] = measuring.get_data().dumps()
        return
    option = session.config.option
    if (
        option.keyword
        or option.markexpr not in ("", PURE_RINGS)
        or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    ):
        return  # only some of the tests ran
    text = io.StringIO()
    try:
        total = measuring.report(show_missing=True, skip_covered=True, file=text)
    except coverage.exceptions.NoDataError:
        total = 0.0
    if total < 100:
        session.config.stash[_report] = text.getvalue() or "nothing of the pure modules was run"
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)  # what made the run fail is what its last lines say
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    text = terminalreporter.config.stash.get(_report, "")
    if text:
        terminalreporter.section("pure modules not covered wholly", red=True)
        terminalreporter.write(text)
