"""The benchmark as a picture: quality against measured time, and beside it against the bytes that a count promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from matryoshka import _pictures
from matryoshka._commands._measure import Measured
from matryoshka._values import pareto_front

Cost: TypeAlias = Callable[[Measured], float | None]
Point: TypeAlias = tuple[float, float, Measured]
"""Where a plan stands in a panel: what it costs, what it reaches."""

_COLOURS = (_pictures.BLUE, _pictures.RED, _pictures.GREEN, _pictures.VIOLET, _pictures.OCHRE)
_WIDEST_ENTRY = 3.2
"""Inches that a column of the legend takes."""
_AROUND = (1, -1), (-1, 1), (1, 1), (-1, -1), (1, 0), (-1, 0), (0, -1), (0, 1)
"""Where the label of a point may stand: to its right and below it, ..."""


def figure(settings: dict[str, Any], measured: Sequence[Measured]) -> Any:
    """Draw a column for each batch size and one for theory, a row for each kind of quality."""
    k = settings["k"]
    heights: list[tuple[str, Callable[[Measured], float]]] = [(f"recall@{k} against exact search", lambda m: m.recall)]
    if measured[0].mean_average_precision is not None:
        heights.append((f"mAP@{k}", lambda m: m.mean_average_precision or 0.0))
    costs = _costs(settings["batches"], measured)
    width = 4.6 * len(costs)
    canvas = _pictures.new(width, 4.1 * len(heights) + 1.2, purpose="the figure of a benchmark")
    grid = canvas.subplots(len(heights), len(costs), sharey="row", sharex="col", squeeze=False)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(dict.fromkeys(m.engine for m in measured))}
    panels: list[tuple[Any, list[Point]]] = []
    for row, (label, height) in zip(grid, heights, strict=True):
        row[0].set_ylabel(label)
        row[0].margins(y=0.08)
        for axes, (_, _, cost) in zip(row, costs, strict=True):
            panels.append((axes, [(x, height(m), m) for m in measured if (x := cost(m)) is not None]))
    for top, bottom, (title, unit, _) in zip(grid[0], grid[-1], costs, strict=True):
        top.set_title(title, fontsize=11)
        bottom.set_xlabel(unit)
    for axes, points in panels:
        _draw(axes, points, colours)
    kinds = dict.fromkeys(m.plan.kind for m in measured)
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": min(4, int(width / _WIDEST_ENTRY))}
    canvas.legend(handles=_legend(colours, kinds), **place, fontsize=9, frameon=False)
    canvas.suptitle(
        f"What prefixes save and lose: {settings['n']:,} rows of {settings['dim']:,} columns, up and left is better",
        fontweight="bold",
    )
    canvas.draw_without_rendering()  # now it is known where points lie
    for axes, points in panels:
        _label(axes, points, colours)
    canvas.set_layout_engine("none")
    return canvas


def _costs(batches: Sequence[int], measured: Sequence[Measured]) -> list[tuple[str, str, Cost]]:
    """Return the title of each column, its unit, and what it reads from a plan."""
    clocks = [
        (f"clock, {batch} at once" if batch > 1 else "clock, one by one", "ms per query", _milliseconds(i))
        for i, batch in enumerate(batches)
    ]
    uncounted = dict.fromkeys(m.engine for m in measured if m.bytes is None)
    theory = f"theory (does not count: {', '.join(uncounted)})" if uncounted else "theory"
    return [*clocks, (theory, "MB read per query", lambda m: None if m.bytes is None else m.bytes / 1e6)]


def _milliseconds(i: int) -> Cost:
    return lambda m: 1e3 * m.times[i].median


def _draw(axes: Any, points: Sequence[Point], colours: Mapping[str, str]) -> None:
    """Mark every plan, and join those of each engine that no other one beats."""
    _pictures.cost_axis(axes)
    _pictures.light_frame(axes)
    for engine, colour in colours.items():
        own = [point for point in points if point[2].engine == engine]
        for x, y, row in own:
            _pictures.mark(axes, x, y, row.plan.kind, colour)
        _pictures.front(axes, [point[:2] for point in pareto_front(own, lambda point: point[:2])], colour)


def _label(axes: Any, points: Sequence[Point], colours: Mapping[str, str]) -> None:
    """Write its width beside each prefix, also in bits, clear of points and labels; without room, leave it out."""
    places = axes.transData.transform([(x, y) for x, y, _ in points]) * 72 / axes.figure.dpi
    taken = [(left, low, 3.5, 3.5) for left, low in places]
    for (x, y, row), (left, low) in zip(points, places, strict=True):
        text = str(row.plan.funnel.dims[0])
        half = 2.4 * len(text)
        for right, up in _AROUND if row.plan.kind in ("prefix", "bits") else ():
            shift = right * (half + 4.5 - 1.5 * abs(up)), 8.0 * up
            box = left + shift[0], low + shift[1], half, 3.5
            if not any(abs(box[0] - b[0]) < box[2] + b[2] and abs(box[1] - b[1]) < box[3] + b[3] for b in taken):
                taken.append(box)
                style = {"color": colours[row.engine], "fontsize": 7, "ha": "center", "va": "center_baseline"}
                axes.annotate(text, (x, y), shift, textcoords="offset points", **style)
                break


def _legend(colours: Mapping[str, str], kinds: Iterable[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        *(Line2D([], [], color=colour, label=f"{engine}: best plans") for engine, colour in colours.items()),
        *(
            Line2D([], [], color="0.3", marker=_pictures.MARKERS[k], ls="", label=f"{k}: {_pictures.MEANINGS[k]}")
            for k in kinds
        ),
    ]
