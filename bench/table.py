"""Medians, ratios, aims and the table, on the terminal or as Markdown.  Pure, but for the printing.

Called by run.py; `python -m bench.table FILE...` prints what `bench.run --json` wrote once more, or with --into puts it
into docs/PERFORMANCE.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.table import Table

from bench.aims import AIMS, AT_MOST, NATIVE, ROWS

Rounds: TypeAlias = dict[str, dict[str, list[float]]]  # contender -> row -> a figure per round
Medians: TypeAlias = dict[str, dict[str, float]]

OMFS: Final = "oMFS"
WIDTH: Final = 140  # columns of the printed table and notes
BEGIN: Final = "<!-- figures: written by bench.table --into -->"
END: Final = "<!-- end of the figures -->"
CAPTION: Final = (
    f"x {NATIVE}: how many times as long as native oMFS takes, less is better; / sshfs: how many times as fast as "
    "sshfs it is, more is better; aims are meant in the same way"
)


def medians(rounds: Rounds) -> Medians:
    return {
        contender: {row: statistics.median(figures) for row, figures in measured.items()}
        for contender, measured in rounds.items()
    }


def rows_of(figures: Medians) -> dict[str, tuple[str, str]]:
    """The rows that anybody has a figure for, in the order of ROWS."""
    measured = {row for one in figures.values() for row in one}
    return {row: facts for row, facts in ROWS.items() if row in measured}


def speed(row: str, figure: float, against: float) -> float:
    """How fast *figure* is compared with *against*: 2.0 = twice as fast, whatever the unit."""
    return figure / against if ROWS[row][1] == "MB/s" else against / figure


def speeds(figures: Medians, of: str, against: str) -> dict[str, float]:
    """speed of every row that both contenders have."""
    mine, theirs = figures.get(of, {}), figures.get(against, {})
    return {row: speed(row, mine[row], theirs[row]) for row in ROWS if row in mine and row in theirs}


def ratios(figures: Medians) -> dict[str, dict[str, float]]:
    """The ratio columns, heading -> row -> ratio: times native's time, and the speed against the others."""
    columns = {}
    for other in figures:
        against = speeds(figures, OMFS, other)
        if other == NATIVE and against:
            columns[f"x {other}"] = {row: 1 / value for row, value in against.items()}
        elif other != OMFS and against:
            columns[f"/ {other}"] = against
    return columns


def aim_met(figures: Medians, row: str, against: str) -> bool | None:
    """Whether oMFS reaches an aim; None where one of the two was not measured."""
    aim = AIMS[row][against]
    if against == AT_MOST:
        return figures[OMFS][row] <= aim if row in figures.get(OMFS, {}) else None
    ratio = speeds(figures, OMFS, against).get(row)
    if ratio is None:
        return None
    return 1 / ratio <= aim if against == NATIVE else ratio >= aim


def aims_met(figures: Medians) -> dict[str, dict[str, bool]]:
    """row -> against -> whether; only what was measured."""
    judged = {row: {other: aim_met(figures, row, other) for other in AIMS.get(row, {})} for row in rows_of(figures)}
    known = {row: {other: met for other, met in each.items() if met is not None} for row, each in judged.items()}
    return {row: each for row, each in known.items() if each}


def aim_text(figures: Medians, row: str) -> str:
    """For example "native 1.5 ok, sshfs 8 NO"; nothing is said of what was not measured."""
    words = {True: " ok", False: " NO", None: ""}
    return ", ".join(
        f"{against} {aim:g}{words[aim_met(figures, row, against)]}" for against, aim in AIMS.get(row, {}).items()
    )


def lines(figures: Medians) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: a row per workload, a column per contender, the ratios, the aims."""
    columns = ratios(figures)
    cells = [
        [
            f"{text}, {unit}",
            *(_short(measured.get(row)) for measured in figures.values()),
            *(_short(values.get(row)) for values in columns.values()),
            aim_text(figures, row),
        ]
        for row, (text, unit) in rows_of(figures).items()
    ]
    return ["median of the rounds", *figures, *columns, "aim"], cells


def show(figures: Medians, notes: dict[str, str], title: str) -> None:
    """Print the table and who took part."""
    headings, cells = lines(figures)
    table = Table(title=title, caption=CAPTION if ratios(figures) else None)
    for number, heading in enumerate(headings):
        last = number == len(headings) - 1
        table.add_column(heading, justify="left" if last or not number else "right", no_wrap=not last)
    for row in cells:
        table.add_row(*row)
    console = Console(width=WIDTH)
    console.print(table)
    for contender, note in notes.items():
        console.print(f"{contender}: {note}", highlight=False)


def markdown(facts: dict[str, Any]) -> str:
    """What `bench.run --json` wrote, as a Markdown table with its title and notes."""
    figures: Medians = facts["medians"]
    headings, cells = lines(figures)
    machine = facts["machine"]
    rule = ["---", *("---:" for _ in headings[2:]), "---"]
    return "\n".join([
        f"**{facts['title']}** (Linux {machine['kernel']}, {machine['cpus']} CPUs, Python {machine['python']})",
        "",
        *(f"| {' | '.join(row)} |" for row in (headings, rule, *cells)),
        "",
        *(f"- {contender}: {note}" for contender, note in facts["contenders"].items()),
        "",
    ])  # fmt: skip


def put_into(document: str, text: str) -> str:
    """*document* with *text* between its marks.  Raises ValueError where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END}")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"


def _short(figure: float | None) -> str:
    """Three digits or so."""
    if figure is None:
        return "-"
    decimals = 0 if figure >= 100 else 1 if figure >= 10 else 2 if figure >= 1 else 3
    return f"{figure:.{decimals}f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.table", description="Print what `bench.run --json FILE` wrote.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--markdown", action="store_true", help="as Markdown")
    parser.add_argument("--into", type=Path, metavar="DOCUMENT", help="as Markdown, between the marks of this file")
    arguments = parser.parse_args()
    all_facts = [json.loads(path.read_text()) for path in arguments.files]
    text = "\n".join(markdown(facts) for facts in all_facts)
    if arguments.into:
        try:
            arguments.into.write_text(put_into(arguments.into.read_text(), text))
        except ValueError as error:
            parser.error(f"{arguments.into}: {error}")
    elif arguments.markdown:
        print(text)
    else:
        for facts in all_facts:
            show(facts["medians"], facts["contenders"], facts["title"])


if __name__ == "__main__":
    main()
