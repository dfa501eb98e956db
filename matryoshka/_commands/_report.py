"""What a benchmark prints, row by row as they are found, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matryoshka._commands import _advice, _picture
from matryoshka._commands._measure import Measured, Plan
from matryoshka._pictures import COLUMNS, table, wrapped


@dataclass(frozen=True)
class Report:
    """All that was measured, and on what."""

    settings: dict[str, Any]
    measured: list[Measured]
    notes: list[str]

    def to_json(self) -> str:
        """Return everything as JSON text."""
        record = {"kind": "benchmark", "version": 1, **self.settings, "notes": self.notes}
        return json.dumps(record | {"plans": [row.to_record() for row in self.measured]})

    def figure(self) -> Any:
        """Draw it with matplotlib."""
        return _picture.figure(self.settings, self.measured)

    def closing(self) -> str:
        """Return what follows the table."""
        meaning = [
            "theory: how many times fewer multiply-adds than the exact search, or fewer bytes where bits are searched",
            "clock = exact / ms; exact: the median ms of the exact search that ran in turn with this plan",
            "",
        ]
        return "\n".join(("", *wrapped([*meaning, *_advice.sentences(self.settings, self.measured), *self.notes])))

    def __str__(self) -> str:
        rows = self.measured
        labelled = rows[0].mean_average_precision is not None
        layout = Layout(self.settings, [row.engine for row in rows], [row.plan for row in rows], labelled=labelled)
        return "\n".join((opening(self.settings), *layout.head(), *map(layout.line, rows), self.closing()))


def opening(settings: dict[str, Any]) -> str:
    """Say what is searched, and where it lies."""
    threads = settings["threads"]
    title = (
        f"{settings['source']}: {settings['n']:,} rows of {settings['dim']:,} columns, {settings['metric']}; "
        f"{settings['n_queries']:,} queries, {threads} thread{'s' * (threads != 1)}; counts and times are per query"
    )
    size = f"{settings['rows_bytes'] / 1e6:,.1f} MB"
    where = f"{size} in memory"
    if settings["mapped"]:
        where = f"{size} mapped from their file (--in-memory reads them first); in memory: what searches start with"
    lines = [title, f"rows: {where}"]
    if settings["dtype"] == "float16":  # nothing else that is read is narrower than float32
        lines.append(
            "rows are float16: each exact search converts them all; as float32 it is faster and the gains below are "
            "smaller"
        )
    if settings["rotation"] is not None:
        lines.append(
            f"rows are rotated by {settings['rotation']}; to rotate a query is part of each count and time but at "
            "the full width, which needs none"
        )
    return "\n".join((*wrapped(lines), ""))


class Layout:
    """The columns of the table, wide enough for all plans before any is measured; a row takes the lines it needs."""

    def __init__(
        self, settings: dict[str, Any], engines: Sequence[str], plans: Iterable[Plan], *, labelled: bool
    ) -> None:
        k, batches, dim = settings["k"], settings["batches"], settings["dim"]
        calibrated = f"calibrated bits {dim} > {dim} > {dim}"
        clocks = [[f"ms, batch {batch}", "p95", "exact", "clock"] for batch in batches]
        found = [f"recall@{k}", *([f"mAP@{k}"] if labelled else [])]
        self.header = [["engine"], ["plan"], ["multiply-adds", "MB read", "theory", *found], *clocks]
        most = settings["n"] * settings["dim"]
        self.widest = [
            [max(engines, key=len)],
            [max(*map(str, plans), calibrated, key=len)],
            [f"{2 * most:,}", f"{16 * most / 1e6:,.2f}", f"{settings['n']:,} x", *["0.000"] * len(found)],
            *[["9999.9", "9999.9", "9999.9", "999.9 x"]] * len(batches),
        ]

    def head(self) -> list[str]:
        """Return the names of the columns, in one line or more."""
        return self._lines(self.header)

    def line(self, row: Measured) -> str:
        """Return the cells of one plan, in as many lines."""
        counts = ["-"] * 3 if row.multiply_adds is None else [f"{row.multiply_adds:,.0f}"]
        counts += [] if row.bytes is None else [f"{row.bytes / 1e6:,.2f}", _factor(row.theory)]
        counts.append(f"{row.recall:.3f}")
        counts += [f"{row.mean_average_precision:.3f}"] if row.mean_average_precision is not None else []
        clocks = [
            [*map(_advice.milliseconds, (times.median, times.p95, times.exact)), f"{times.speedup:.1f} x"]
            for times in row.times
        ]
        return "\n".join(self._lines([[row.engine], [str(row.plan)], counts, *clocks]))

    def _lines(self, groups: list[list[str]]) -> list[str]:
        """Put groups of cells side by side, as many into a line as fit; others follow below, indented."""
        lines = [""]
        for i, (cells, *wide) in enumerate(zip(groups, self.header, self.widest, strict=True)):
            *others, shown = table([*wide, cells], left=(0,) if i < 2 else ())
            width = max(map(len, others))
            if i and len(lines[-1]) + 2 + width > COLUMNS:
                lines.append("    " + shown.ljust(width))
            else:
                lines[-1] += "  " * (i > 0) + shown.ljust(width)
        return [line.rstrip() for line in lines]


def _factor(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:,.{0 if factor >= 100 else 1}f} x"
