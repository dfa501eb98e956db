"""The tables of the study, made from its record: one form for the console, one for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.demo.accuracy import METHODS
from benchmarks.table import lines

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells of text under a header; all columns but the first are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table with aligned columns, for a terminal or a pipe."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        rule = ["-" * width for width in widths]
        aligned = ["  ".join(_aligned(cells, widths)).rstrip() for cells in (self.header, rule, *self.rows)]
        return "\n".join([self.title, *aligned])

    def markdown(self) -> str:
        """Return the table, without its title, in Markdown."""
        return "\n".join(lines(self.header, self.rows))


def accuracy(record: Record, judge: str, title: str) -> Table:
    """Return accuracy in percent: a row for each width, a column for each method."""
    found = record[judge]
    rows = [[dim, *(percent(found[method][dim]) for method in METHODS)] for dim in found["MRL"]]
    return Table(title, ["dim", *METHODS], rows)


def cascades(record: Record) -> Table:
    """Return what each cascade reaches and what it costs."""
    header = ["network", "thresholds", "accuracy %", "full width %", "expected dim", "saved", "summed dim", "saved"]
    full = max(record["settings"]["dims"])
    rows = [
        [
            found["network"],
            found["calibration"],
            percent(found["accuracy"]),
            percent(found["full_accuracy"]),
            f"{found['expected_dim']['mean']:.2f}",
            times(full / found["expected_dim"]["mean"]),
            f"{found['cumulative_dim']['mean']:.2f}",
            times(full / found["cumulative_dim"]["mean"]),
        ]
        for found in record["cascades"]
    ]
    return Table("Cascade: the shortest prefix that is sure enough answers", header, rows)


def retrieval(record: Record, size: str, title: str) -> Table:
    """Return mAP@10, counts and seconds of each plan in the corpus named `size` ("small" or "large")."""
    header = ["plan", "mAP@10 %", "multiply-adds", "KiB read", "theory", "µs alone", "clock", "µs in batch", "clock"]
    plans = record["plans"][size]
    full = full_width(plans)
    rows = [
        [
            name(plan),
            percent(plan["map"]),
            f"{plan['multiply_adds']:,}",
            f"{plan['bytes'] / 1024:,.0f}",
            times(full["multiply_adds"] / plan["multiply_adds"]),
            *_clock(plan, full, "alone"),
            *_clock(plan, full, "batch"),
        ]
        for plan in plans
    ]
    return Table(title, header, rows)


def full_width(plans: Sequence[Record]) -> Record:
    """Return the plan that all others are compared with: exact search at full width."""
    return max((plan for plan in plans if plan["kind"] == "exact"), key=lambda plan: plan["dims"])


def name(plan: Record) -> str:
    """Return the name of a plan: its kind and its widths."""
    return f"{plan['kind']} {' > '.join(map(str, plan['dims']))}"


def times(factor: float) -> str:
    """Return how many times less or faster."""
    return f"{factor:.1f} x"


def percent(found: Record | float) -> str:
    """Return a share, or the mean and standard deviation of one over the runs, in percent."""
    if isinstance(found, float):
        return f"{100 * found:.1f}"
    spread = "" if found["sd"] is None else f" ± {100 * found['sd']:.1f}"
    return f"{100 * found['mean']:.1f}{spread}"


def faster(full: Record, plan: Record, way: str) -> float:
    """Return how many times faster than `full` a plan is, asked "alone" or in a "batch"."""
    return full["seconds"][way] / plan["seconds"][way]


def _clock(plan: Record, full: Record, way: str) -> list[str]:
    return [f"{1e6 * plan['seconds'][way]:,.0f}", times(faster(full, plan, way))]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    pairs = list(zip(cells, widths, strict=True))
    return [pairs[0][0].ljust(pairs[0][1]), *(cell.rjust(width) for cell, width in pairs[1:])]
