"""The control files as data: values come back as they were, malformed text is refused, names are the original's."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from omfs.magic import controlfiles
from omfs.magic.controlfiles import HPC, PROCESS, ControlFile, Mask, Number, Numbers, Text, Trigger, Value, find

# As openmosix-interfaces.md has them: path, aliases' path, smallest and largest value that may be there.
NUMBERS = [
    (PROCESS, "goto", "", -1, 65535),
    (PROCESS, "migrate", "", -1, 65535),
    (PROCESS, "where", "", 0, 65535),
    (PROCESS, "lock", "", 0, 1),
    (PROCESS, "nmigs", "", 0, 2**63 - 1),
    (PROCESS, "selected", "", 0, 65535),
    (PROCESS, "migfilter", "", 0, 1),
    (PROCESS, "migpolicy", "", 0, 1),
    *((HPC, f"admin/{name}", "", 0, 1) for name in ["block", "bring", "expel", "lstay", "stay", "quiet", "nomfs"]),
    (HPC, "admin/mospe", "", 0, 65535),
    (HPC, "admin/speed", "", 1, 65535),
    (HPC, "admin/sspeed", "", 1, 65535),
    (HPC, "admin/decayinterval", "admin/decay-interval", 1, 65535),
    (HPC, "admin/slowdecay", "admin/slow-decay", 0, 1000),
    (HPC, "admin/fastdecay", "admin/fast-decay", 0, 1000),
    (HPC, "admin/gateways", "", 0, 2),
    (HPC, "nodes/2/cpus", "nodes/2/CPUs", -101, 65535),
    (HPC, "nodes/65535/load", "", 0, 2**63 - 1),
    *((HPC, f"nodes/1/{name}", "", 0, 2**63 - 1) for name in ("mem", "rmem", "tmem")),
    (HPC, "nodes/7/speed", "", 1, 65535),
    (HPC, "nodes/7/status", "", 0, 127),
    (HPC, "nodes/7/util", "", 0, 100),
    (HPC, "remote/4194304/goto", "", -1, 65535),
]
DECAYS = ["clear", "cpujob", "iojob", "slow", "fast", "own", "inherit", "exec", "execonce"]
TEXTS = [
    *((PROCESS, name) for name in ("cantmove", "decay", "decision", "journey")),
    *((HPC, f"admin/{name}") for name in ("dfsalinks", "config", "version")),
    *((HPC, f"remote/12/{name}") for name in ("from", "statm", "stats", "identity")),
    (HPC, "info"),
]
ABSENT = [
    (PROCESS, "Lock"), (PROCESS, ""), (PROCESS, "admin/speed"), (HPC, "lock"), (HPC, "admin"), (HPC, "admin/nothing"),
    (HPC, "admin/speed/"), (HPC, "nodes/0/load"), (HPC, "nodes/02/load"), (HPC, "nodes/65536/load"), (HPC, "nodes/1"),
    (HPC, "nodes/٣/load"), (HPC, "nodes//load"), (HPC, "nodes/-1/load"), (HPC, "remote/4194305/from"), (HPC, "info/x"),
    (HPC, "nodes/1\n/load"), ("other", "lock"), (HPC, "decay/decay-interval"), (HPC, ""),
]  # fmt: skip


def file_at(scope: str, path: str) -> ControlFile:
    return find(scope, path).file


@pytest.mark.parametrize(("scope", "path", "alias", "low", "high"), NUMBERS, ids=lambda part: str(part))
def test_numbers(scope: str, path: str, alias: str, low: int, high: int) -> None:
    kind = file_at(scope, path).kind
    for value in (low, high):
        assert kind.parse(kind.format(value)) == kind.parse(str(value)) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match="not an integer from"):
            kind.format(value)
        with pytest.raises(ValueError, match=r"not an? "):
            kind.parse(str(value))
    if alias:
        assert find(scope, alias) == find(scope, path)


@pytest.mark.parametrize("name", DECAYS)
def test_decays_are_triggered_by_anybody(name: str) -> None:
    file = file_at(HPC, f"decay/{name}")
    assert file.mode == 0o666
    assert file.kind.parse("1\n") == 1
    assert file.kind.format(0) == "0\n"
    for text in ("0", "2", "", "on"):
        with pytest.raises(ValueError, match=r"not an? "):
            file.kind.parse(text)


@pytest.mark.parametrize(("scope", "path"), TEXTS)
def test_texts(scope: str, path: str) -> None:
    kind = file_at(scope, path).kind
    assert isinstance(kind, Text)
    assert kind.format("") == ""
    assert kind.format("a, b") == "a, b\n"


@pytest.mark.parametrize(("scope", "path"), ABSENT)
def test_what_is_not_there(scope: str, path: str) -> None:
    with pytest.raises(KeyError):
        find(scope, path)


def test_the_number_of_a_node_or_guest() -> None:
    assert find(HPC, "nodes/12/load").number == 12
    assert find(HPC, "remote/4711/statm").number == 4711
    assert find(HPC, "admin/stay").number == find(PROCESS, "lock").number == 0


def test_every_file_is_in_one_of_these_lists() -> None:
    there = {(PROCESS, file.name) for file in controlfiles.OF_PROCESS} | {(HPC, "info")}
    for folder, files in (("admin", controlfiles.OF_ADMIN), ("decay", controlfiles.OF_DECAY)):
        there |= {(HPC, f"{folder}/{file.name}") for file in files}
    there |= {(HPC, f"nodes/N/{file.name}") for file in controlfiles.OF_NODE}
    there |= {(HPC, f"remote/N/{file.name}") for file in controlfiles.OF_GUEST}
    known = {(scope, path) for scope, path, *_ in NUMBERS} | set(TEXTS) | {(HPC, f"decay/{name}") for name in DECAYS}
    known |= {(PROCESS, "mignodes"), (HPC, "admin/overheads"), (HPC, "admin/mfscosts")}
    assert there == {(scope, _anonymous(path)) for scope, path in known}


def _anonymous(path: str) -> str:
    return "/".join("N" if part.isdigit() else part for part in path.split("/"))


def test_modes() -> None:
    modes = {file.name: file.mode for file in controlfiles.OF_PROCESS}
    told = {"where", "nmigs", "cantmove", "decision", "journey"}
    assert {name for name, mode in modes.items() if mode == 0o444} == told
    assert {mode for name, mode in modes.items() if name not in told} == {0o644}
    for name in ("bring", "expel"):
        file = file_at(HPC, f"admin/{name}")
        assert (file.mode, file.is_readable, file.is_writable, file.blocks) == (0o200, False, True, True)
    assert {file.mode for file in controlfiles.OF_ADMIN if not file.blocks} == {0o644, 0o444}
    assert {file.mode for file in controlfiles.OF_NODE} == {0o444}
    assert not file_at(PROCESS, "where").is_writable
    assert file_at(PROCESS, "where").is_readable


# ---------------------------------------------------------------- any value, any text

KINDS = [Number(-1, 65535), Number(1, 2), Trigger(), Numbers(14, 2**31 - 1), Mask(32), Mask(65535), Text(), Text(3)]


def values_of(kind: object) -> st.SearchStrategy[Value]:
    match kind:
        case Number(low, high):
            return st.integers(low, high)
        case Numbers(amount, high):
            return st.lists(st.integers(0, high), min_size=amount, max_size=amount).map(tuple)
        case Mask(bits):
            return st.integers(0, (1 << bits) - 1)
        case Text(most):
            return st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=min(most, 40))
    return st.just(1)


@given(st.data())
def test_what_is_shown_can_be_written(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    value = data.draw(values_of(kind))
    text = kind.format(value)
    assert kind.parse(text) == value
    assert text.endswith("\n") or text == ""
    if not isinstance(kind, Text):
        assert kind.parse(text[:-1]) == value


@given(st.sampled_from(KINDS[:-2]), st.text() | st.text("0123456789-+ x_a\n\t", max_size=12))
def test_other_text_is_refused(kind: controlfiles.Kind, text: str) -> None:
    """What is taken is ASCII, of digits, with one newline at the end at most; and it means itself."""
    try:
        value = kind.parse(text)
    except ValueError:
        return
    line = text.removesuffix("\n")
    assert line.isascii()
    match kind:
        case Mask():
            assert value == int(line, 16)
            assert set(line) <= set("0123456789abcdefABCDEFxX")
        case Numbers():
            assert value == tuple(map(int, line.split(" ")))
        case _:
            assert value == int(line)
            assert set(line) <= set("0123456789-")


@pytest.mark.parametrize(
    "text", ["", "\n", " 1", "1 ", "+1", "1_0", "1\n\n", "1\0", "0x1", "--1", "1.0", "٣", "1" * 21]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="not a decimal integer"):
        Number(-1, 65535).parse(text)


@pytest.mark.parametrize("text", ["", "0x", "g", "-1", "1 2", "1" * 16385, "100000000"])
def test_what_is_no_mask_of_32_nodes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        Mask(32).parse(text)


def test_masks_are_hexadecimal() -> None:
    assert Mask(32).format(0) == "00000000\n"
    assert Mask(65535).format(1 << 39) == "8000000000\n"
    assert Mask(32).parse("10") == Mask(32).parse("0x10\n") == 16
    widest = Mask(65535).format((1 << 65535) - 1)
    assert len(widest) <= 16386
    assert Mask(65535).parse(widest) == (1 << 65535) - 1


@pytest.mark.parametrize("text", ["1 2", "1 2 3 4", "1  2 3", "1 2 3 ", "1\t2\t3", "1 2 -3", "1 2 101", ""])
def test_what_are_not_three_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        Numbers(3, 100).parse(text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Number(0, 9), "1"), (Number(0, 9), (1,)), (Trigger(), 2), (Numbers(2, 9), 1), (Numbers(2, 9), (1,)),
        (Numbers(2, 9), (1, 10)), (Mask(4), 16), (Mask(4), "f"), (Text(3), 1), (Text(3), "abcd"), (Text(), "a\0b"),
    ],
)  # fmt: skip
def test_values_that_a_file_cannot_have(kind: controlfiles.Kind, value: Value) -> None:
    with pytest.raises(ValueError, match=r"."):
        kind.format(value)


@pytest.mark.parametrize("files", [controlfiles.OF_PROCESS, controlfiles.OF_ADMIN, controlfiles.OF_DECAY])
def test_what_would_come_in_pieces_is_refused(files: tuple[ControlFile, ...]) -> None:
    """128 KiB is the least that the kernel sends in one piece."""
    for file in files:
        for text in ("1" * (128 << 10), "1 " * (64 << 10), " " * (128 << 10), "0" * (128 << 10)):
            if file.is_writable:
                with pytest.raises(ValueError, match=r"."):
                    file.kind.parse(text)


def test_long_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 3"):
        Text(3).parse("abcd\n")
    assert Text(3).parse("abc\n") == "abc"
