"""The figures of the report, each drawn from the record of the study and returned as the bytes of a PNG.

Colours are those of Okabe and Ito, which the colour-blind tell apart; every line also has a marker of its own and is
labelled where it stands. Shares are drawn on an axis that stretches towards 100 %, since that is where they differ.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.demo.tables import faster, full_width
from benchmarks.demo.tables import name as plan_name

Record = dict[str, Any]

STYLE = {
    "MRL": ("#0072B2", "o"),
    "MRL-E": ("#56B4E9", "s"),
    "FF": ("#D55E00", "D"),
    "SVD": ("#009E73", "^"),
    "PCA": ("#CC79A7", "v"),
    "random columns": ("#777777", "X"),
    "exact": ("#0072B2", "o"),
    "adaptive": ("#E69F00", "s"),
    "funnel": ("#009E73", "^"),
}
TICKS = [
    percent / 100
    for step, least in ((50, 0), (20, 0), (10, 0), (5, 0), (2, 80), (1, 85))
    for percent in range(least, 101, step)
]
"""Shares that may be marked on an axis, the roundest first."""

LINE_HEIGHT, LABEL_WIDTH = 13, 110  # points
ROOM_ABOVE = 0.004
"""Added to 100 % before the logarithm is taken, so that a perfect score has a place on the axis."""


def accuracy(record: Record) -> bytes:
    """Draw accuracy against width, linear head beside nearest neighbour."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"linear": "by a linear classifier", "nearest_neighbor": "by the nearest training row"}
    _share_axis(panels[0], [share for judge in titles for found in record[judge].values() for share in _means(found)])
    for axes, (judge, title) in zip(panels, titles.items(), strict=True):
        _width_axis(axes, record["settings"]["dims"], room=4.5)
        axes.set(xlabel="numbers kept of each embedding", title=f"Accuracy {title}")
        lines = [
            _line(axes, method, method, [int(dim) for dim in found], _means(found))
            for method, found in record[judge].items()
        ]
        _label(axes, lines, beside=(-9, 0), grow=1)
    panels[0].set_ylabel("test rows classified correctly (%, stretched axis)")
    return _png(figure)


def cascade(record: Record) -> bytes:
    """Draw accuracy of the capped cascades against expected width, beside networks of one fixed width."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    fixed, curves = record["linear"]["FF"], [found["curve"] for found in record["cascades"]]
    _share_axis(axes, [*_means(fixed), *(point["accuracy"]["mean"] for curve in curves for point in curve)])
    _width_axis(axes, record["settings"]["dims"], room=2.2)
    axes.set(
        xlabel="expected dimension: numbers used per row, on average\n"
        f"(points of a cascade: it stops at {_listed(record['settings']['dims'][1:])} at the latest)",
        ylabel="test rows classified correctly (%, stretched axis)",
        title="Cascades that stop early, against networks of one fixed width",
    )
    name = "one network per width (FF)"
    _label(axes, [_line(axes, "FF", name, [int(dim) for dim in fixed], _means(fixed))], beside=(10, -3), grow=-1)
    low, high = [], []
    for found, curve in zip(record["cascades"], curves, strict=True):
        reached = [point["accuracy"]["mean"] for point in curve]
        used = [point["expected_dim"]["mean"] for point in curve]
        name = f"{found['network']} cascade ({found['calibration']})"
        if found["calibration"] == "published":
            low.append(_line(axes, found["network"], name, used, reached))
        elif found["calibration"] == "certified":  # the one without labels lies so near that neither could be read
            line = _line(axes, found["network"], name, used, reached, filled=False)
            high.append(replace(line, point=max(zip(used, reached, strict=True), key=lambda point: point[1])))
    _label(axes, low, beside=(-9, 0), grow=-1)
    _label(axes, high, beside=(-9, 4), grow=1)
    return _png(figure)


def retrieval(record: Record) -> bytes:
    """Draw mAP@10 against multiply-adds per query, for each kind of plan and both corpora."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    plans, fixed = record["plans"], record["fixed_map"]
    _share_axis(panels[0], [*_means(fixed), *(_mean(plan["map"]) for size in plans for plan in plans[size])])
    titles = {
        "small": f"among the {record['data']['train']:,} training rows",
        "large": f"among {record['settings']['large']:,} mixtures of them",
    }
    for axes, (size, title) in zip(panels, titles.items(), strict=True):
        lines = _plan_lines(axes, plans[size])
        if size == "small":
            counts = [plan["multiply_adds"] for plan in plans[size] if plan["kind"] == "exact"]
            lines.append(_line(axes, "FF", "exact (FF)", counts, _means(fixed)))
        axes.set(xscale="log", title=f"Ten neighbours {title}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_minor_locator(NullLocator())
        first = min(line.point[0] for line in lines)
        axes.set_xlim(left=first / 2.6)
        _label(axes, [line for line in lines if line.point[0] < 1.2 * first], beside=(-9, 0), grow=1)
        _label(axes, [line for line in lines if line.point[0] >= 1.2 * first], beside=(4, -12), grow=-1)
    widths = _listed(record["settings"]["dims"])
    figure.supxlabel(
        f"multiply-adds per query; along each line the first comparison takes {widths} numbers", fontsize=10
    )
    panels[0].set_ylabel("mAP@10 (%, stretched axis)")
    return _png(figure)


def clock(record: Record) -> bytes:
    """Draw how many times faster than exact search each plan is in the large corpus, by count and by the clock."""
    plans = record["plans"]["large"]
    full = full_width(plans)
    plans = [plan for plan in plans if plan is not full]
    figure = Figure(figsize=(8, 0.33 * len(plans) + 2.0), layout="constrained")
    axes = figure.subplots()
    rows = range(len(plans), 0, -1)
    drawn = {
        "in theory (multiply-adds)": (
            "#999999",
            "D",
            [full["multiply_adds"] / plan["multiply_adds"] for plan in plans],
        ),
        "clock, one query at a time": ("#0072B2", "o", [faster(full, plan, "alone") for plan in plans]),
        "clock, 64 queries at once": ("#D55E00", "s", [faster(full, plan, "batch") for plan in plans]),
    }
    axes.hlines(
        rows,
        *np.array([[min(row), max(row)] for row in zip(*(x for *_, x in drawn.values()), strict=True)]).T,
        color="#DDDDDD",
        linewidth=3,
        zorder=1,
    )
    for name, (colour, marker, factors) in drawn.items():
        axes.scatter(factors, rows, color=colour, marker=marker, s=45, label=name, zorder=2)
    axes.axvline(1, color="#555555", linewidth=1, zorder=0)
    figure.suptitle(f"Search in {record['settings']['large']:,} rows: saved in theory and on the clock")
    axes.set(xscale="log", xlabel=f"times faster than exact search at {full['dims'][0]} dimensions (right is better)")
    axes.set_yticks(rows, [plan_name(plan) for plan in plans])
    axes.xaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda factor, _: f"{factor:g} ×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return _png(figure)


@dataclass(frozen=True)
class _Start:
    """Where a line is labelled: by default where it starts."""

    name: str
    colour: str
    point: tuple[float, float]


def _line(
    axes: Axes, style: str, name: str, x: Sequence[float], shares: Sequence[float], *, filled: bool = True
) -> _Start:
    colour, marker = STYLE[style]
    face, edge = (colour, "white") if filled else ("white", colour)
    options = {"markersize": 7, "linewidth": 1.8, "markerfacecolor": face, "markeredgecolor": edge}
    axes.plot(x, shares, color=colour, marker=marker, **options)
    return _Start(name, colour, (x[0], shares[0]))


def _plan_lines(axes: Axes, plans: Sequence[Record]) -> list[_Start]:
    kinds = {kind: [plan for plan in plans if plan["kind"] == kind] for kind in ("exact", "adaptive", "funnel")}
    return [
        _line(axes, kind, kind, [plan["multiply_adds"] for plan in some], [_mean(plan["map"]) for plan in some])
        for kind, some in kinds.items()
        if some
    ]


def _label(axes: Axes, starts: Sequence[_Start], *, beside: tuple[float, float], grow: int) -> None:
    """Write names beside where lines start (in points), moving those that would overlap up (grow 1) or down (-1)."""
    axes.figure.draw_without_rendering()  # fixes the layout, and with it what is where
    scale = 72 / axes.figure.dpi
    taken: list[tuple[float, float]] = []
    for start in sorted(starts, key=lambda start: grow * start.point[1]):
        x, y = axes.transData.transform(start.point) * scale
        level = y + beside[1]
        while any(abs(level - other) < LINE_HEIGHT and abs(x - left) < LABEL_WIDTH for left, other in taken):
            level += grow
        taken.append((x, level))
        axes.annotate(
            start.name,
            start.point,
            xytext=(beside[0], level - y),
            textcoords="offset points",
            ha="right" if beside[0] < 0 else "left",
            va="center",
            color=start.colour,
        )


def _width_axis(axes: Axes, dims: Sequence[int], *, room: float) -> None:
    """Give the axis of widths one step per doubling, and room for labels left of the first width."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(dims[0] / room, dims[-1] * 1.2)
    axes.xaxis.set_major_locator(FixedLocator(dims))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda dim, _: f"{dim:g}"))


def _share_axis(axes: Axes, shares: Sequence[float]) -> None:
    """Give the axis of shares room for all of them, stretched towards 100 %; panels that share it follow."""
    low, high = _stretch(np.array([min(shares), max(shares)]))
    room = max(high - low, 0.02)
    low, high = max(low - 0.07 * room, float(_stretch(np.array(0.0)))), high + 0.04 * room
    axes.set_yscale("function", functions=(_stretch, _unstretch))
    axes.set_ylim(*_unstretch(np.array([low, high])))
    axes.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))


def _ticks(low: float, high: float) -> list[float]:
    """Choose round shares to mark between two stretched ones, the roundest first, none too near another."""
    chosen: list[float] = []
    for share in TICKS:
        place = float(_stretch(np.array(share)))
        apart = all(abs(place - float(_stretch(np.array(other)))) > 0.06 * (high - low) for other in chosen)
        if low <= place <= high and apart:
            chosen.append(share)
    return sorted(chosen)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _means(found: Record) -> list[float]:
    return [_mean(summary) for summary in found.values()]


def _mean(found: Record | float) -> float:
    return found if isinstance(found, float) else found["mean"]


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if axes.get_yscale() == "function":
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _stretch(shares: np.ndarray) -> np.ndarray:
    return -np.log10(1 + ROOM_ABOVE - np.minimum(shares, 1.0))


def _unstretch(values: np.ndarray) -> np.ndarray:
    return 1 + ROOM_ABOVE - 10.0 ** -np.asarray(values)
