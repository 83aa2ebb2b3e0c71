"""Medians, ratios and the table.  Pure, but for the printing; called by run.py."""

from __future__ import annotations

import statistics
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from bench.workloads import WORKLOADS

Rounds: TypeAlias = dict[str, dict[str, list[float]]]  # contender -> workload -> a figure per round
Medians: TypeAlias = dict[str, dict[str, float]]


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
    ratios = {
        f"over {other}": values
        for other in figures
        if other != "oMFS" and (values := speeds(figures, "oMFS", other))
    }  # fmt: skip
    table = Table(title=title, caption="the last columns: speed of oMFS over theirs, 1.00 = the same, more is better")
    table.add_column("median of the rounds", no_wrap=True)
    for heading in [*figures, "", *ratios]:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, (text, unit) in WORKLOADS.items():
        row = [f"{figures[contender][name]:,.1f}" for contender in figures]
        table.add_row(text, *row, unit, *(f"{values[name]:.2f}" for values in ratios.values()))
    console = Console(width=110)
    console.print(table)
    for contender, note in notes.items():
        console.print(f"{contender}: {note}", highlight=False)
