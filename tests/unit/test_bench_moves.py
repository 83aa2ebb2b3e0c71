"""What bench/moves.py makes of its figures: the least of each against the same path outside."""

from __future__ import annotations

from bench.moves import AIM_OF_CALLS, AIMS, CALLS, shown

PLACES = ("by_short_path", "outside_away", "guest_away", "outside_home", "guest_home")


def figures(guest_ns: float) -> dict[str, list[float]]:
    found = {row: [2 * aim, aim / 2, aim / 2] for row, aim in AIMS.items()}
    found |= {row: [1.0] for row in ("start_native", "start", "read_remote", "read_there")}
    found |= {f"{place}_{call}": [5000.0, 1000.0] for place in PLACES for call in CALLS}
    return found | {f"guest_{where}_{call}": [2 * guest_ns, guest_ns] for where in ("home", "away") for call in CALLS}


def test_the_least_of_a_call_counts_and_the_median_of_a_move() -> None:
    lines = shown(figures(1090))
    assert not [line for line in lines if line.endswith("NO |")]
    assert "| stat in a guest at home | 1090 ns, outside 1000 ns: +9.0 % | 10 % ok |" in lines
    assert len([line for line in lines if "10 % ok" in line]) == 2 * len(AIM_OF_CALLS)


def test_what_misses_its_aim_says_so() -> None:
    lines = shown(figures(1110))
    assert [line.split(" in ")[0] for line in lines if line.endswith("10 % NO |")] == [
        "| open+close", "| open+close", "| stat", "| stat",
    ]  # fmt: skip


def test_what_another_process_answers_is_no_percentage() -> None:
    (line, _) = (line for line in shown(figures(50_000)) if line.startswith("| getppid"))
    assert line == "| getppid in a guest at home | 50000 ns, outside 1000 ns |  |"
