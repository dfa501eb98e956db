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
_MARKERS = {"full": "*", "prefix": "o", "adaptive": "s", "funnel": "v", "bits": "P", "calibrated": "D"}
_AROUND = (1, -1), (-1, 1), (1, 1), (-1, -1), (1, 0), (-1, 0), (0, -1), (0, 1)
"""Where the label of a point may stand: to its right and below it, ..."""
_MEANINGS = {
    "full": "the full width alone",
    "prefix": "so many columns alone",
    "adaptive": "a prefix, then the full width",
    "funnel": "a prefix, then wider and wider ones",
    "bits": "a prefix in bits, then the full width",
    "calibrated": "a funnel certified for its recall",
}


def figure(settings: dict[str, Any], measured: Sequence[Measured]) -> Any:
    """Draw a column for each batch size and one for theory, a row for each kind of quality."""
    k = settings["k"]
    heights: list[tuple[str, Callable[[Measured], float]]] = [(f"recall@{k} against exact search", lambda m: m.recall)]
    if measured[0].mean_average_precision is not None:
        heights.append((f"mAP@{k}", lambda m: m.mean_average_precision or 0.0))
    costs = _costs(settings["batches"], measured)
    canvas = _pictures.new(4.6 * len(costs), 4.1 * len(heights) + 1.2, purpose="the figure of a benchmark")
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
    canvas.legend(handles=_legend(colours, kinds), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
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
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1000 else f"{x:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.tick_params(axis="x", labelrotation=30)
    _pictures.light_frame(axes)
    for engine, colour in colours.items():
        own = [point for point in points if point[2].engine == engine]
        for x, y, row in own:
            axes.plot(x, y, _MARKERS[row.plan.kind], color=colour, ms=11 if row.plan.kind == "full" else 6, alpha=0.75)
        front = pareto_front(own, lambda point: point[:2])
        axes.step([x for x, _, _ in front], [y for _, y, _ in front], where="post", color=colour, lw=1.5)


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
        *(Line2D([], [], color="0.3", marker=_MARKERS[k], ls="", label=f"{k}: {_MEANINGS[k]}") for k in kinds),
    ]
