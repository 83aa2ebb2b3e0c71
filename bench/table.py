"""Medians, ratios and the table.  Pure, but for the printing; called by run.py."""

from __future__ import annotations

import statistics
from typing import Final, TypeAlias

from rich.console import Console
from rich.table import Table

from bench.workloads import WORKLOADS

Rounds: TypeAlias = dict[str, dict[str, list[float]]]  # contender -> workload -> a figure per round
Medians: TypeAlias = dict[str, dict[str, float]]

WIDTH: Final = 110  # columns of the printed table and notes


def medians(rounds: Rounds) -> Medians:
    return {
        contender: {workload: statistics.median(figures) for workload, figures in measured.items()}
        for contender, measured in rounds.items()
    }


def speed(workload: str, figure: float, against: float) -> float:
    """How fast *figure* is compared with *against*: 2.0 = twice as fast, whatever the unit."""
    return figure / against if WORKLOADS[workload][1] == "MB/s" else against / figure


def speeds(figures: Medians, of: str, against: str) -> dict[str, float]:
    """speed of every workload of contender *of*; empty where one of the two was not measured."""
    if of not in figures or against not in figures:
        return {}
    return {name: speed(name, figures[of][name], figures[against][name]) for name in WORKLOADS}


def show(figures: Medians, notes: dict[str, str], title: str) -> None:
    """Print the table: a row per workload, a column per contender, then oMFS's speed against the others."""
    others = [other for other in figures if other != "oMFS" and "oMFS" in figures]
    ratios = {f"/ {other}": speeds(figures, "oMFS", other) for other in others}
    caption = "/ x: the speed of oMFS divided by that of x; 1 = the same, 2 = twice as fast" if ratios else None
    table = Table(title=title, caption=caption)
    table.add_column("median of the rounds", no_wrap=True)
    for heading in [*figures, *ratios]:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, (text, unit) in WORKLOADS.items():
        row = [_short(figures[contender][name]) for contender in figures]
        table.add_row(f"{text}, {unit}", *row, *(f"{values[name]:.2g}" for values in ratios.values()))
    console = Console(width=WIDTH)
    console.print(table)
    for contender, note in notes.items():
        console.print(f"{contender}: {note}", highlight=False)


def _short(figure: float) -> str:
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}"
