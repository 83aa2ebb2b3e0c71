"""--pure-coverage: branch coverage of the pure modules; the run fails where it is below 100 %.

A pure module has no I/O, so every branch can be reached by a unit test, and one that can't should not be there.
Measured only by `make test`, over the whole run.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import coverage
import pytest

ROOT: Final = Path(__file__).parent.parent.parent
PURE: Final = (
    "mignode/book.py",
    "omfs/cache/holder.py",
    "omfs/cache/circles.py",
    "omfs/cache/latency.py",
    "omfs/cache/owner.py",
    "omfs/cache/parts.py",
    "omfs/cache/rules.py",
    "omfs/errors.py",
    "omfs/export/ranges.py",
    "omfs/export/trees.py",
    "omfs/kernel/mounttable.py",
    "omfs/kernel/procfs.py",
    "omfs/lab/topology.py",
    "omfs/magic/names.py",
    "omfs/magic/places.py",
    "omfs/magic/controlfiles.py",
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

_measuring = pytest.StashKey[coverage.Coverage]()
_report = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pure-coverage", action="store_true", help="fail unless the pure modules are covered wholly")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pure-coverage"):
        measuring = coverage.Coverage(
            data_file=None, config_file=False, branch=True, include=[str(ROOT / path) for path in PURE]
        )
        measuring.exclude("if TYPE_CHECKING:")
        measuring.start()
        config.stash[_measuring] = measuring


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    measuring = session.config.stash.get(_measuring, None)
    if measuring is None:
        return
    measuring.stop()
    option = session.config.option
    if option.keyword or option.markexpr or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    text = terminalreporter.config.stash.get(_report, "")
    if text:
        terminalreporter.section("pure modules not covered wholly", red=True)
        terminalreporter.write(text)
