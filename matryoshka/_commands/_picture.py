"""The benchmark as a picture: quality against measured time, and beside it against what the count promises."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matryoshka._commands._measure import Measured
from matryoshka._optional import require

_COLOURS = ("#1f6fb4", "#d1495b", "#2a9d5c", "#8a5cb8", "#c98b1b")
_MARKERS = {"full": "*", "prefix": "o", "adaptive": "s", "funnel": "v", "calibrated": "D"}
_AROUND = (1, -1), (-1, 1), (1, 1), (-1, -1), (1, 0), (-1, 0), (0, -1), (0, 1)
"""Where the label of a point may stand: to its right and below it, ..."""
_MEANINGS = {
    "full": "the full width alone",
    "prefix": "so many columns alone",
    "adaptive": "a prefix, then the full width",
    "funnel": "a prefix, then wider and wider ones",
    "calibrated": "a funnel certified for its recall",
}


def draw(settings: dict[str, Any], measured: Sequence[Measured]) -> bytes:
    """Return the picture as PNG."""
    buffer = io.BytesIO()
    figure(settings, measured).savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def figure(settings: dict[str, Any], measured: Sequence[Measured]) -> Any:
    """Draw a column for each batch size and one for theory, a row for each kind of quality."""
    matplotlib = require("matplotlib.figure", extra="cli", purpose="the figure of a benchmark")
    k, batches = settings["k"], settings["batches"]
    quality: list[tuple[str, Callable[[Measured], float]]] = [(f"recall@{k} against exact search", lambda m: m.recall)]
    if measured[0].mean_average_precision is not None:
        quality.append((f"mAP@{k}", lambda m: m.mean_average_precision or 0.0))
    costs: list[tuple[str, str, Callable[[Measured], float | None]]] = [
        (f"clock, {batch} at once" if batch > 1 else "clock, one by one", "ms per query", _milliseconds(i))
        for i, batch in enumerate(batches)
    ]
    uncounted = dict.fromkeys(row.engine for row in measured if row.multiply_adds is None)
    theory = f"theory (does not count: {', '.join(uncounted)})" if uncounted else "theory"
    costs.append((theory, "multiply-adds per query", lambda m: m.multiply_adds))
    canvas = matplotlib.Figure(figsize=(4.6 * len(costs), 4.1 * len(quality) + 1.2), layout="constrained")
    grid = canvas.subplots(len(quality), len(costs), sharey="row", sharex="col", squeeze=False)
    for row, (label, height) in zip(grid, quality, strict=True):
        row[0].set_ylabel(label)
        row[0].margins(y=0.08)
        for axes, (_, _, cost) in zip(row, costs, strict=True):
            _panel(axes, measured, cost, height)
    for axes, (title, _, _) in zip(grid[0], costs, strict=True):
        axes.set_title(title, fontsize=11)
    for axes, (_, unit, _) in zip(grid[-1], costs, strict=True):
        axes.set_xlabel(unit)
    canvas.legend(handles=_legend(measured), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    canvas.suptitle(
        f"What prefixes save and lose: {settings['n']:,} rows of {settings['dim']:,} columns, up and left is better",
        fontweight="bold",
    )
    canvas.draw_without_rendering()  # now it is known where points lie
    for row, (_, height) in zip(grid, quality, strict=True):
        for axes, (_, _, cost) in zip(row, costs, strict=True):
            _label(axes, measured, cost, height)
    canvas.set_layout_engine("none")
    return canvas


def _milliseconds(i: int) -> Callable[[Measured], float]:
    return lambda row: 1e3 * row.times[i].median


def _panel(
    axes: Any,
    measured: Sequence[Measured],
    cost: Callable[[Measured], float | None],
    height: Callable[[Measured], float],
) -> None:
    ticker = require("matplotlib.ticker", extra="cli", purpose="the figure of a benchmark")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1000 else f"{x:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.tick_params(axis="x", labelrotation=30)
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for engine, colour in _engines(measured).items():
        points = [(x, height(row), row) for row in measured if row.engine == engine and (x := cost(row)) is not None]
        for x, y, row in points:
            axes.plot(x, y, _MARKERS[row.plan.kind], color=colour, ms=11 if row.plan.kind == "full" else 6, alpha=0.75)
        front = _front([(x, y) for x, y, _ in points])
        axes.step([x for x, _ in front], [y for _, y in front], where="post", color=colour, lw=1.5)


def _label(
    axes: Any,
    measured: Sequence[Measured],
    cost: Callable[[Measured], float | None],
    height: Callable[[Measured], float],
) -> None:
    """Write its width beside each prefix, clear of all points and other labels; without room, leave it out."""
    shown = [(x, height(row), row) for row in measured if (x := cost(row)) is not None]
    places = axes.transData.transform([(x, y) for x, y, _ in shown]) * 72 / axes.figure.dpi
    taken = [(left, low, 3.5, 3.5) for left, low in places]
    for (x, y, row), (left, low) in zip(shown, places, strict=True):
        text = str(row.plan.funnel.dims[0])
        half = 2.4 * len(text)
        for right, up in _AROUND if row.plan.kind == "prefix" else ():
            shift = right * (half + 4.5 - 1.5 * abs(up)), 8.0 * up
            box = left + shift[0], low + shift[1], half, 3.5
            if not any(abs(box[0] - b[0]) < box[2] + b[2] and abs(box[1] - b[1]) < box[3] + b[3] for b in taken):
                taken.append(box)
                colour, styles = (
                    _engines(measured)[row.engine],
                    {"fontsize": 7, "ha": "center", "va": "center_baseline"},
                )
                axes.annotate(text, (x, y), shift, textcoords="offset points", color=colour, **styles)
                break


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one beats in both, from the cheapest on."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _engines(measured: Sequence[Measured]) -> dict[str, str]:
    names = dict.fromkeys(row.engine for row in measured)
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def _legend(measured: Sequence[Measured]) -> list[Any]:
    line = require("matplotlib.lines", extra="cli", purpose="the figure of a benchmark").Line2D
    kinds = dict.fromkeys(row.plan.kind for row in measured)
    lines = [line([], [], color=colour, label=f"{name}: best plans") for name, colour in _engines(measured).items()]
    return lines + [
        line([], [], color="0.3", marker=_MARKERS[kind], ls="", label=f"{kind}: {_MEANINGS[kind]}") for kind in kinds
    ]
