"""From the figures of a run to its page: one table for each question, a row for each case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.losses.cases import ARRAYS
from benchmarks.table import lines, measured

NAMES = {"torch": "torch", "jax": "JAX", "numpy": "NumPy", "sentence-transformers": "sentence-transformers"}
Row = dict[str, Any]
Cell = Callable[[Row], str]

RATIOS = """### Time, × one full-width loss

CPU time of one thread / wall clock of two. **Bold**: CPU time above the bar. Limit: from multiply-adds at the rate of a
large product, and one exponential per logit at its rate, for torch on one thread. Goal: what the project aims at. The
cached step is compared with the same step around one full-width loss; the two largest cases, for which one full-width
loss takes some 10 GB, with the same loss at batch 4,096, and at 10,000 classes, by the time per multiply-add."""
LOOP = """### Times as fast as a loop over prefixes

CPU time of one thread / wall clock of two. **Bold**: slower than the loop in CPU time. In theory: multiply-adds of the
loop over ours."""
MILLISECONDS = """### Milliseconds of one thread

CPU time of ours, the limit in parentheses; multiply-adds in billions."""
MEMORY = """### Memory above inputs and gradients, in MB

Ours / one full-width loss / the loop, at the peak of a step. For JAX it is what the compiler plans."""
WHOLE = """### Whole steps

`train_on_batch` of Keras beside a plain `Dense` head, the optimizer included, and `MultipleNegativesRankingLoss` alone
and inside `MatryoshkaLoss`, pooling included. CPU time of one thread / wall clock of two, bars as above."""


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of a run as Markdown."""
    rows = result["rows"]
    arrays = [row for row in rows if row["framework"] in ARRAYS]
    looped = [row for row in arrays if "loop" in row["cpu"]["ways"]]
    whole = [row for row in rows if row["framework"] not in ARRAYS]
    parts = [
        measured(result),
        RATIOS,
        _table(arrays, {"bar": _wanted("bar"), "goal": _wanted("goal"), "limit": _limit}, _ratio),
        LOOP,
        _table(looped, {"in theory": _fewer}, _speed),
        MILLISECONDS,
        _table(arrays, {"multiply-adds": lambda row: _three(row["multiply_adds"]["ours"] / 1e9)}, _milliseconds),
        MEMORY,
        _table(arrays, {"bar": _wanted("memory_bar"), "goal": _wanted("memory_goal")}, _memory),
    ]
    if whole:
        header = ("work", "framework", "× one full-width loss", "× as fast as the loop")
        cells = [(row["case"], framework(row), _ratio(row), _speed(row)) for row in whole]
        parts += [WHOLE, "\n".join(lines(header, cells))]
    return "\n\n".join(parts) + "\n"


def line(row: Row) -> str:
    """Return a row as a line of progress."""
    return f"{row['case']}: {framework(row)}: {_ratio(row)} × full, {_speed(row)} × as fast as the loop"


def framework(row: Row) -> str:
    """Return the name of a row's framework as its users write it."""
    name = row["framework"]
    return NAMES[name] if name in NAMES else f"Keras, {name.removeprefix('keras-')}"


def _table(rows: list[Row], first: dict[str, Cell], cell: Cell) -> str:
    """Return a table with a line for each case, with columns of the case and then a column for each framework."""
    frameworks = [name for name in ARRAYS if any(row["framework"] == name for row in rows)]

    def cells() -> Iterator[list[str]]:
        for case in dict.fromkeys(row["case"] for row in rows):
            own = {row["framework"]: row for row in rows if row["case"] == case}
            any_row = next(iter(own.values()))
            yield [
                case,
                *(column(any_row) for column in first.values()),
                *(cell(own[name]) if name in own else "" for name in frameworks),
            ]

    return "\n".join(lines(("work", *first, *(NAMES[name] for name in frameworks)), cells()))


def _wanted(name: str) -> Cell:
    return lambda row: "" if row[name] is None else f"{row[name]}"


def _limit(row: Row) -> str:
    ways, count = row["cpu"]["ways"], row["multiply_adds"]
    if "limit_s" not in ways["ours"]:
        return ""
    ratio = ways["ours"]["limit_s"] / ways["full"]["limit_s"]
    return f"{ratio * count['full'] / count['ours'] if row['per_multiply_add'] else ratio:.2f}"


def _fewer(row: Row) -> str:
    return f"{row['multiply_adds']['loop'] / row['multiply_adds']['ours']:.1f}"


def _ratio(row: Row) -> str:
    cpu, wall = (f"{row[clock]['ways']['ours']['ratio']:.2f}" for clock in ("cpu", "wall"))
    missed = row["bar"] is not None and row["cpu"]["ways"]["ours"]["ratio"] > row["bar"]
    return f"{f'**{cpu}**' if missed else cpu} / {wall}"


def _speed(row: Row) -> str:
    if "loop" not in row["cpu"]["ways"]:
        return ""
    cpu, wall = (row[clock]["ways"]["ours"]["faster_than_loop"] for clock in ("cpu", "wall"))
    return f"{f'{cpu:.1f}' if cpu >= 1.0 else f'**{cpu:.2f}**'} / {wall:.1f}"


def _milliseconds(row: Row) -> str:
    ours = row["cpu"]["ways"]["ours"]
    return _three(1e3 * ours["s"]) + (f" ({_three(1e3 * ours['limit_s'])})" if "limit_s" in ours else "")


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory(row: Row) -> str:
    of_ways = (row["memory"][way] for way in ("ours", "full", "loop") if way in row["memory"])
    return " / ".join(f"{n_bytes / 1e6:,.0f}" for n_bytes in of_ways)
