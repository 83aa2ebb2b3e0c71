"""mignode/mosrunoptions.py: the command lines of mosrun and its wrappers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, strategies as st

from mignode.mosrunoptions import WRAPPERS, Checkpoints, Decay, Job, Lock, Options, Parsed, parse, words_of
from omfs.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", Options()),
        ("-h", Options(nodes=((0, 0),), lock=Lock.LOCK)),
        ("-3", Options(nodes=((3, 3),), lock=Lock.LOCK)),
        ("3", Options(nodes=((3, 3),), lock=Lock.LOCK)),
        ("1,5", Options(nodes=((1, 1), (5, 5)), lock=Lock.LOCK)),
        ("-j1-4,7", Options(nodes=((1, 4), (7, 7)), lock=Lock.LOCK)),
        ("-j 1-4", Options(nodes=((1, 4),), lock=Lock.LOCK)),
        ("-3 -F -l", Options(nodes=((3, 3),), may_fall_back=True, lock=Lock.UNLOCK)),
        ("-3 -k", Options(nodes=((3, 3),), lock=Lock.KEEP)),
        ("-b", Options(at_best=True)),
        ("-L", Options(lock=Lock.LOCK)),
        ("-cl", Options(job=Job.CPU, lock=Lock.UNLOCK)),
        ("-i", Options(job=Job.IO)),
        ("-n", Options(decay_kind=Decay.NONE)),
        ("-s", Options(decay_kind=Decay.SLOW)),
        ("-f", Options(decay_kind=Decay.FAST)),
        ("-i -s", Options(job=Job.IO, decay_kind=Decay.SLOW)),
        ("-d900 -t 3", Options(decay_kind=Decay.OWN, decay=900, interval_s=3)),
        ("-eR", Options(keeps_on_exec=True, children_inherit=False)),
        ("-Er", Options()),
        ("-L --", Options(lock=Lock.LOCK)),
    ],
)
def test_what_it_says(line: str, options: Options) -> None:
    assert parse([*line.split(), "prog", "-h", "x"]) == Parsed(options, "prog", ("prog", "-h", "x"))


def test_the_arguments_may_begin_with_the_name() -> None:
    assert parse(["-z", "prog", "called", "x"]).arguments == ("called", "x")
    assert parse(["-z", "prog"]).arguments == ("prog",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "no program given"),
        ("-q prog", "unknown option -q"),
        ("-h -3 prog", "several places"),
        ("-b -3 prog", "-b and -h contradict"),
        ("-lL prog", "-l and -L contradict"),
        ("-c -i prog", "-c and -i contradict"),
        ("-s -f prog", "-s and -f contradict"),
        ("-d 900 -s prog", "-d and -s contradict"),
        ("-eE prog", "-e and -E contradict"),
        ("-rR prog", "-r and -R contradict"),
        ("-t 3 prog", "-t goes with -d"),
        ("-F prog", "-F goes with a node"),
        ("-d 1001 prog", "no number from 0 to 1000"),
        ("-j4-1 prog", "4-1 is no range"),
        ("-j0-3 prog", "0-3 is no range"),
        ("-jx prog", 'a node: "x"'),
        ("-70000 prog", "from 0 to 65535"),
        ("-d", "-d needs a value"),
        ("--checkpoint", "--checkpoint needs a value"),
        ("--checkpoint 5d prog", '"5d" is no time'),
        ("--checkpoint -5 prog", '"-5" is no time'),
        ("--every 5 prog", "unknown option --every"),
        ("--image x prog", "--image goes with --checkpoint"),
        ("--restart x prog", "prog is too much"),
        ("--show x prog", "--show goes alone"),
        ("--show x --restart y", "--show goes alone"),
        ("--checkpoint 5", "no program given"),
    ],
)
def test_what_it_refuses(line: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse(line.split())


@pytest.mark.parametrize(
    ("line", "checkpoints"),
    [
        ("--checkpoint 90", Checkpoints(90)),
        ("--checkpoint=5m", Checkpoints(300)),
        ("--checkpoint 2h --image /mfs/3/tmp/x", Checkpoints(7200, "/mfs/3/tmp/x")),
        ("--checkpoint 0", Checkpoints(0)),
    ],
)
def test_what_it_says_of_checkpoints(line: str, checkpoints: Checkpoints) -> None:
    assert parse(["-L", *line.split(), "prog", "x"]) == Parsed(
        Options(lock=Lock.LOCK), "prog", ("prog", "x"), checkpoints
    )


@pytest.mark.parametrize(
    ("line", "checkpoints"),
    [
        ("--restart x", Checkpoints(restart="x")),
        ("--restart x --checkpoint 0", Checkpoints(0, restart="x")),
        ("--image=y --restart=x", Checkpoints(image="y", restart="x")),
        ("--show x", Checkpoints(show="x")),
    ],
)
def test_an_image_says_what_the_program_is(line: str, checkpoints: Checkpoints) -> None:
    assert parse(line.split()) == Parsed(Options(), "", (), checkpoints)


@pytest.mark.parametrize(
    ("wrapper", "line", "options"),
    [
        ("nomig", "prog", Options(nodes=((0, 0),), lock=Lock.LOCK)),
        ("runhome", "prog", Options(nodes=((0, 0),), lock=Lock.LOCK)),
        ("runon", "2 prog", Options(nodes=((2, 2),), lock=Lock.LOCK)),
        ("cpujob", "-2 prog", Options(nodes=((2, 2),), lock=Lock.LOCK, job=Job.CPU)),
        ("iojob", "-h prog", Options(nodes=((0, 0),), lock=Lock.LOCK, job=Job.IO)),
        ("nodecay", "prog", Options(decay_kind=Decay.NONE)),
        ("slowdecay", "prog", Options(decay_kind=Decay.SLOW)),
        ("fastdecay", "-z prog", Options(decay_kind=Decay.FAST, is_named=True)),
    ],
)
def test_wrappers(wrapper: str, line: str, options: Options) -> None:
    assert wrapper in WRAPPERS
    assert parse(words_of(wrapper, line.split())).options == options


def test_runon_wants_a_node() -> None:
    for words in ([], ["prog"]):
        with pytest.raises(ConfigError, match="runon NODE program"):
            words_of("runon", words)


@given(st.lists(st.text("-hjFlLkcinsfdteErRz0123456789,p", max_size=6), max_size=5))
def test_anything_is_understood_or_refused(words: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        assert parse(words).arguments
