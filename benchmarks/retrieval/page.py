"""From the figures of a run to its page: what was asked first, then a table for each case."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.table import lines, measured, seconds

Row = dict[str, Any]

BEFORE = Path(__file__).parents[1] / "results" / "retrieval-0.1.json"
"""The run that was stored with version 0.1: the wall clock of two threads, the same query over and over."""
LEAST_RECALL = 0.98
SLOWER = 1.1

INTRODUCTION = """Times are those of a whole batch: CPU time of one thread, which decides, and the wall clock of two
threads beside it. Each stands with its limit in parentheses, the longer one of the bytes of corpus that the batch needs
at the speed of reading so many bytes over and over, and of its multiply-adds at that of a large product. Multiply-adds
and bytes are per query, as executed. "×" is the median of the ratios to the first row, taken in rounds in which all
rows have their turn; each turn asks for other queries, so that candidates have to come from memory. Recall is that of
256 queries. Ways that skip what they can rule out have no count beforehand. "0.1" is the wall clock of that version, in
milliseconds and × the first row; **bold** there: × was less than now, by more than a tenth."""
ASKED = """### What was asked

× means the time of the one over that of the other, times as fast the inverse. **Bold**: misses the bar, in CPU time;
queries a second are those of two threads."""


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a run."""
    cells = [cells for row in result["rows"] for cells in _asked(row)]
    header = ("work", "asked", "bar", "goal", "CPU", "wall", "0.1 (wall)")
    parts = [measured(result), INTRODUCTION, ASKED, "\n".join(lines(header, cells))]
    return "\n\n".join([*parts, *map(section, result["rows"])]) + "\n"


def section(row: Row) -> str:
    """Return the table of a case."""
    header, cells = _file(row) if "plans" in row else _times(row)
    return f"### {row['title']}\n\n" + "\n".join(lines(header, cells))


def _times(row: Row) -> tuple[list[str], list[list[str]]]:
    found = "recall@" + str(row["k"]) if row["exact"] == row["k"] else f"{row['exact']} nearest among {row['k']}"
    columns = {
        "multiply-adds": lambda way: _count(row, way, "multiply_adds"),
        "bytes": lambda way: _count(row, way, "bytes"),
        found: lambda way: f"{_entry(row, 'cpu', way).get('recall', '')}",
        "queries/s": lambda way: f"{_rate(row, 'wall', way):,.0f}" if row["at_recall"] else "",
        "CPU": lambda way: _seconds(row, "cpu", way),
        "× CPU": lambda way: _ratio(row, "cpu", way),
        "wall": lambda way: _seconds(row, "wall", way),
        "× wall": lambda way: _ratio(row, "wall", way),
        "0.1": lambda way: _before(row, way),
    }
    ways = list(row["cpu"]["ways"])
    table = {title: [cell(way) for way in ways] for title, cell in columns.items()}
    table = {title: cells for title, cells in table.items() if any(cells)}
    return ["", *table], [[way, *cells] for way, *cells in zip(ways, *table.values(), strict=True)]


def _entry(row: Row, clock: str, way: str) -> dict[str, Any]:
    return dict(row.get(clock, {"ways": {}})["ways"].get(way, {}))


def _count(row: Row, way: str, name: str) -> str:
    value = _entry(row, "cpu", way).get(name)
    return f"{value:.3g}" if value else ""


def _seconds(row: Row, clock: str, way: str) -> str:
    entry = _entry(row, clock, way)
    limit = f" ({seconds(entry['limit_s'])})" if "limit_s" in entry else ""
    return f"{seconds(entry['s'])}{limit}" if entry else ""


def _ratio(row: Row, clock: str, way: str) -> str:
    entry = _entry(row, clock, way)
    return f"{entry['ratio']:.2f}" if entry else ""


def _rate(row: Row, clock: str, way: str) -> float:
    entry = _entry(row, clock, way)
    return float(row["batch"] / entry["s"]) if entry else 0.0


def _before(row: Row, way: str) -> str:
    old, first = _stored().get(row["title"], {}), next(iter(row["cpu"]["ways"]))
    if way not in old:
        return ""
    if first not in old:
        return seconds(old[way])
    ratio, now = old[way] / old[first], _entry(row, "wall", way).get("ratio", 0.0)
    mark = "**" if way.startswith("matryoshka") and now > SLOWER * ratio else ""
    return f"{seconds(old[way])}, {mark}{ratio:.2f}{mark}"


@cache
def _stored() -> dict[str, dict[str, float]]:
    """Return the seconds of version 0.1, by case and way."""
    found: dict[str, dict[str, float]] = {}
    for row in json.loads(BEFORE.read_text(encoding="utf-8"))["rows"]:
        found.setdefault(row["group"], {})[row["row"]] = row["median_s"]
    return found


def _asked(row: Row) -> Iterator[list[str]]:
    for i, wanted in enumerate(row.get("wanted", ())):
        way, than, faster = wanted["way"], wanted["than"], wanted["faster"]
        old = _stored().get(row["title"], {})
        known = old[way] / old[than] if way in old and than in old else None
        ratios = [row[clock]["asked"][i] if clock in row else None for clock in ("cpu", "wall")]
        shown = [None if r is None else 1 / r if faster else r for r in (*ratios, known)]
        bar, text = wanted["bar"], f"{way}, times as fast as {than}" if faster else f"{way} × {than}"
        missed = None not in (bar, shown[0]) and (shown[0] < bar if faster else shown[0] > bar)
        yield [row["title"], text, *_numbers(bar, wanted["goal"]), *_marked(missed, *_numbers(*shown))]
    if row.get("at_recall"):
        bar, goal = row["at_recall"]
        good = [way for way, entry in row["cpu"]["ways"].items() if entry.get("recall", 0) >= LEAST_RECALL]
        ours = [way for way in good if way.startswith("matryoshka")]
        cpu, wall = (max((_rate(row, clock, way) for way in ours), default=0.0) for clock in ("cpu", "wall"))
        text = f"queries a second of the best of ours at recall {LEAST_RECALL}"
        shown = _marked(wall < bar, f"{wall:,.0f}") if "wall" in row else [""]
        yield [row["title"], text, f"{bar:,}", f"{goal:,}", f"{cpu:,.0f}", *shown, ""]


def _numbers(*values: float | None) -> list[str]:
    return ["" if value is None else f"{value:.3g}" for value in values]


def _marked(missed: bool, first: str, *others: str) -> list[str]:
    return [f"**{first}**" if missed else first, *others]


def _file(row: Row) -> tuple[list[str], list[list[str]]]:
    plans = row["plans"]
    batches = list(plans[0]["seconds"])
    header = ["", "bytes", f"recall@{row['k']}", "private memory (MiB)", "of it the corpus (MiB)"]
    cells = [
        [
            plan["plan"],
            f"{plan['bytes']:.3g}",
            f"{plan['recall']}",
            f"{plan['private_bytes'] / 2**20:,.0f}",
            f"{plan['held_bytes'] / 2**20:,.0f}",
            *(seconds(plan["seconds"][batch]) for batch in batches),
        ]
        for plan in plans
    ]
    return [*header, *(f"batch {batch}" for batch in batches)], cells
