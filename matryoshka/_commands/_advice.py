"""What to take from a benchmark, in a few sentences that rest on measured figures only.

Which plan to use is a matter of what it finds and of the clock; of plans that do as well, the simplest is named. A plan
that takes longer than the exact search, or than a wider one, is explained where something measured explains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from matryoshka._commands._measure import MOST_TIES, Measured

AS_FAST = 0.9
"""Share of the speed of the fastest plan from which on another is as fast."""

AS_GOOD = 0.005
"""How far below that of the full width the mAP of a plan is as good."""

PROMISED = 2.0
"""Speed-up in theory from which on a plan that is slower than the exact search is explained."""

UNSTEADY = 1.5
"""Ratio of two medians of the exact search from which on the machine was not left alone."""

MANY = 2
"""Near-ties, as a multiple of k, that explain a slow choice among them."""


def sentences(settings: dict[str, Any], measured: Sequence[Measured]) -> list[str]:
    """Return the lines that follow the table."""
    recall, k = settings["recall"], settings["k"]
    goals = [_Goal(f"recall@{k} >= {recall:g}", lambda row: row.recall, recall)]
    labelled = [row for row in measured if row.plan.kind == "full" and row.mean_average_precision is not None]
    if labelled:
        whole = max(map(_map, labelled))
        goals.append(_Goal(f"mAP@{k} >= {whole - AS_GOOD:.3f} (full width: {whole:.3f})", _map, whole - AS_GOOD))
    every = range(len(settings["batches"]))
    lines = [line for i in every for line in _unsteady(i, settings, measured)]
    for goal in goals:
        lines += _recommended(goal, settings["batches"], measured)
    for i in every:
        lines += [*_slow_stages(i, settings, measured), *_slow_prefixes(i, settings, measured)]
    return lines


class _Goal(NamedTuple):
    """What a plan has to reach."""

    text: str
    quality: Callable[[Measured], float]
    least: float


def _map(row: Measured) -> float:
    return row.mean_average_precision or 0.0


def _recommended(goal: _Goal, batches: Sequence[int], measured: Sequence[Measured]) -> list[str]:
    """Name the fastest plan that reaches the goal, and the simplest that is as fast, for each batch size."""
    good = [row for row in measured if goal.quality(row) >= goal.least]
    if not good:
        best = max(measured, key=goal.quality)
        return [f"nothing reached {goal.text}; {best.engine}, {best.plan} came closest: {goal.quality(best):.3f}."]
    lines = []
    for i, batch in enumerate(batches):
        fastest = max(good, key=lambda row: row.times[i].speedup)
        at_least = AS_FAST * fastest.times[i].speedup
        simplest = min((row for row in good if row.times[i].speedup >= at_least), key=lambda row: _effort(row, i))
        line = f"fastest with {goal.text} at batch {batch}: {_described(fastest, i)}"
        if _is_exact(fastest):
            line += ", the exact search itself"
        elif at_least <= 1:
            line += "; the exact search does as well"
        elif _effort(simplest, i)[:-1] < _effort(fastest, i)[:-1]:
            line += f"; as fast within {1 - AS_FAST:.0%} and simpler: {_described(simplest, i)}"
        lines.append(f"{line}.")
    return lines


def _effort(row: Measured, i: int) -> tuple[bool, bool, int, bool, float]:
    """Return how much there is to a plan: an index, stages, a code; of equal ones the faster comes first."""
    funnel = row.plan.funnel
    kind = not _is_exact(row), row.engine != "exact", len(funnel.dims), funnel.code != "float"
    return *kind, -row.times[i].speedup


def _is_exact(row: Measured) -> bool:
    """Tell whether a plan is the exact search, and not an index of the full width."""
    return row.plan.kind == "full" and row.engine == "exact"


def _described(row: Measured, i: int) -> str:
    counted = "count" if row.plan.funnel.code == "float" else "bytes"
    theory = "" if row.theory is None else f", {row.theory:.1f} x by {counted}"
    return f"{row.engine}, {row.plan}: {row.times[i].speedup:.1f} x on the clock{theory}"


def _unsteady(i: int, settings: dict[str, Any], measured: Sequence[Measured]) -> list[str]:
    """Warn of a clock that did not go evenly: plans that were timed apart are then not to be compared."""
    exact = [row.times[i].exact for row in measured]
    if max(exact) <= UNSTEADY * min(exact):
        return []
    line = (
        f"at batch {settings['batches'][i]} the exact search took {_span(exact)} ms, more beside some plans than "
        "beside others: something else kept the machine busy; measure again."
    )
    return [line]


def _slow_stages(i: int, settings: dict[str, Any], measured: Sequence[Measured]) -> list[str]:
    """Explain plans in stages that are slower than the exact search although they count for less: by the reranking."""
    alone = {(row.engine, row.plan.funnel.dims): row for row in measured if row.plan.kind == "prefix"}
    staged = [
        (row, alone[start])
        for row in measured
        if row.plan.funnel.keep and (start := (row.engine, row.plan.funnel.dims[:1])) in alone
        if row.plan.funnel.code == "float"
    ]
    slow = [
        (row, first)
        for row, first in staged
        if row.theory is not None and row.theory >= PROMISED and row.times[i].speedup < AS_FAST
        if first.times[i].median < row.times[i].median / 2
    ]
    if not slow:
        return []
    line = (
        f"slower than the exact search at batch {settings['batches'][i]} "
        f"({_span(row.times[i].exact for row, _ in slow)} ms): {len(slow)} of {len(staged)} plans in stages; longer "
        "lists and reranking take most of their "
        f"{_span(row.times[i].median for row, _ in slow)}, since searching the prefix alone takes "
        f"{_span(first.times[i].median for _, first in slow)}"
    )
    if settings["mapped"]:
        line += "; candidates are gathered from the mapped file: compare --in-memory"
    return [f"{line}."]


def milliseconds(seconds: float) -> str:
    """Return a time as it is printed, in few characters."""
    return f"{1e3 * seconds:.3f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def _span(seconds: Iterable[float]) -> str:
    """Return the least and the most of some times, in milliseconds."""
    shown = list(map(milliseconds, sorted(seconds)))
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


def _slow_prefixes(i: int, settings: dict[str, Any], measured: Sequence[Measured]) -> list[str]:
    """Explain prefixes that are slower than a wider one: by rows that score the same."""
    k, lines = settings["k"], []
    prefixes = [(row, row.near_ties) for row in measured if row.near_ties is not None]
    for row, ties in prefixes:
        wider = [other for other, _ in prefixes if other.plan.funnel.dims > row.plan.funnel.dims]
        faster = min(wider, key=lambda other: other.times[i].median, default=row)
        if faster.times[i].median < AS_FAST * row.times[i].median and ties >= MANY * k:
            more = "at least " * (ties >= MOST_TIES)
            lines.append(
                f"at batch {settings['batches'][i]}, {row.plan} is slower than {faster.plan}, "
                f"{milliseconds(row.times[i].median)} against {milliseconds(faster.times[i].median)} ms: "
                f"{more}{ties:,.0f} rows score like the last of the best {k} to six digits, and are to be told apart."
            )
    return lines
