"""Figures of the study: panels side by side, a curve a system, means with their spread, each labelled where it starts.

Colours are those of Okabe and Ito, which the colour-blind tell apart; every curve also has a marker of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.study.page.series import Curve, mean, spread
from matryoshka._pictures import light_frame, new, rendered

BLUE, SKY, RED, GREEN, PINK, ORANGE, GREY, BLACK = (
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#7f7f7f",
    "#222222",
)
STYLE = {
    "MRL": (BLUE, "o"),
    "MRL-E": (SKY, "s"),
    "FF": (RED, "D"),
    "SVD": (GREEN, "^"),
    "PCA": (PINK, "v"),
    "Rand": (GREY, "X"),
    "Slim": (ORANGE, "P"),
    "rotation": (BLACK, ">"),
    "raw": (GREY, "h"),
    "raw rotation": ("#6a4c93", "<"),
}
"""Colour and marker of a system, or of the first system whose name begins so."""

OTHERS = tuple(STYLE.values())

ROOM_ABOVE = 0.004
"""Added to 100 % before the logarithm is taken, so that a perfect score has a place on a stretched axis."""

TICKS = (0, 50, 100, 20, 40, 60, 80, 90, 95, 98, 99, 10, 30, 70, 85, 97, 96, 94, 92, 88, 75, 65, 99.5, 98.5, 99.8)
"""Percents that may be marked, those first that are wanted most."""

FEWEST_TICKS = 4

PANEL, HEIGHT, DPI = 4.4, 4.0, 110
LABEL = 8.5
"""Size of labels in points; two of them are kept one and a half sizes apart."""


@dataclass(frozen=True)
class Line:
    """A curve: what it is called, its points, how it is drawn, and whether its points are joined: "-", "--" or "none".

    `style` is a key of `STYLE`, by default the name.
    """

    name: str
    points: Curve
    style: str = ""
    joined: str = "-"


@dataclass(frozen=True)
class Panel:
    """Axes with a title and curves; `ticks` are the values to mark below, if not matplotlib's."""

    title: str
    lines: Sequence[Line]
    ticks: Sequence[float] = ()


def curves(
    panels: Sequence[Panel], *, xlabel: str, ylabel: str, log: bool = True, share: bool = True, labels: str = "start"
) -> bytes:
    """Draw panels side by side and return a PNG.

    Parameters
    ----------
    panels
        Those without a curve are left out.
    xlabel, ylabel
        What stands below and beside.
    log
        Whether a doubling is a step of the horizontal axis.
    share
        Whether values are shares, drawn in percent on an axis that stretches towards 100 %.
    labels
        Where curves are labelled: at their "start" or their "end".
    """
    shown = [panel for panel in panels if any(line.points for line in panel.lines)]
    figure = new(PANEL * max(len(shown), 1.4), HEIGHT, purpose="figures of the study")
    for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        lines = [line for line in panel.lines if line.points]
        if log:
            axes.set_xscale("log", base=2)
        axes.set_title(panel.title, fontsize=10.5)
        if share:
            _share_axis(axes, lines)
        for i, line in enumerate(lines):
            _draw(axes, line, i)
        _horizontal(axes, panel, lines, log=log, labels=labels)
        light_frame(axes)
        axes.tick_params(labelsize=8.5)
    figure.supxlabel(xlabel, fontsize=9.5)
    figure.supylabel(ylabel, fontsize=9.5)
    figure.draw_without_rendering()  # fixes the layout, and with it what is where
    for axes, panel in zip(figure.axes, shown, strict=True):
        _label(axes, [line for line in panel.lines if line.points], labels)
    return rendered(figure, dpi=DPI)


@dataclass(frozen=True)
class Bar:
    """A row of `dots`: what it is, and a value (or None) for each series."""

    name: str
    values: Sequence[float | None]


def dots(panels: Sequence[tuple[str, Sequence[Bar]]], series: Sequence[str], *, xlabel: str) -> bytes:
    """Draw a row for each bar with a dot for each of `series` on an axis of factors (log), and return a PNG."""
    shown = [(title, bars) for title, bars in panels if bars]
    longest = max(len(bars) for _, bars in shown)
    figure = new(PANEL * max(len(shown), 1.6) + 1, 0.24 * longest + 1.7, purpose="figures of the study")
    for axes, (title, bars) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        heights = range(len(bars), 0, -1)
        for i, name in enumerate(series):
            known = [(bar.values[i], y) for bar, y in zip(bars, heights, strict=True) if bar.values[i] is not None]
            colour, marker = (GREY, BLUE, RED, GREEN)[i], "Dos^"[i]
            axes.scatter(*zip(*known, strict=True), color=colour, marker=marker, s=38, label=name, zorder=2)
        axes.axvline(1, color="#555555", linewidth=1, zorder=1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
        axes.set_yticks(heights, [bar.name for bar in bars], fontsize=8.5)
        axes.set_title(title, fontsize=10.5)
        light_frame(axes)
        axes.tick_params(axis="x", labelsize=8.5)
    figure.supxlabel(xlabel, fontsize=9.5)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return rendered(figure, dpi=DPI)


def style(line: Line, i: int) -> tuple[str, str]:
    """Return colour and marker of the `i`th curve."""
    name = line.style or line.name
    return STYLE.get(name) or OTHERS[i % len(OTHERS)]


def _draw(axes: Any, line: Line, i: int) -> None:
    colour, marker = style(line, i)
    x = list(line.points)
    middle = np.array([mean(seeds) for seeds in line.points.values()])
    around = np.nan_to_num([spread(seeds) for seeds in line.points.values()])
    axes.plot(
        x,
        middle,
        color=colour,
        marker=marker,
        markersize=5.5 if len(x) < 20 else 3.5,
        linewidth=1.6,
        linestyle=line.joined,
        markerfacecolor=colour if line.joined != "none" else "white",
        markeredgecolor="white" if line.joined != "none" else colour,
        markeredgewidth=0.6 if line.joined != "none" else 1.2,
        zorder=3,
    )
    if line.joined == "none":
        return
    axes.fill_between(x, middle - around, middle + around, color=colour, alpha=0.1, linewidth=0, zorder=2)


def _horizontal(axes: Any, panel: Panel, lines: Sequence[Line], *, log: bool, labels: str) -> None:
    """Mark the ticks, and leave room for the labels."""
    x = [value for line in lines for value in line.points]
    low, high = min(x), max(x)
    wide = (0.55 * LABEL * max(len(line.name) for line in lines) + 12) / 72  # of the longest label, in inches
    room = 1.05 * wide / (PANEL - 0.7 - wide)
    before, behind = (room, 0.05) if labels == "start" else (0.05, room)
    if log:
        span = max(np.log2(high / low), 1.0)
        axes.set_xlim(low / 2 ** (before * span), high * 2 ** (behind * span))
    else:
        span = max(high - low, 1e-9)
        axes.set_xlim(low - before * span, high + behind * span)
    if panel.ticks:
        many = len(panel.ticks) > 7
        axes.set_xticks(list(panel.ticks), [f"{tick:g}" for tick in panel.ticks], rotation=45 if many else 0)
    if panel.ticks or log:
        axes.minorticks_off()
    if log and not panel.ticks:
        axes.locator_params(axis="x", numticks=6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _label(axes: Any, lines: Sequence[Line], labels: str) -> None:
    """Write names in a column before or behind the curves, apart from each other, in the order in which they stand."""
    scale, end = 72 / axes.figure.dpi, 0 if labels == "start" else -1
    places = []
    for i, line in enumerate(lines):
        x, seeds = list(line.points.items())[end]
        places.append((*(axes.transData.transform((x, mean(seeds))) * scale)[::-1], i, line, (x, mean(seeds))))
    places.sort(key=lambda place: place[0])
    column = min(place[1] for place in places) - 7 if end == 0 else max(place[1] for place in places) + 7
    for level, (y, x, i, line, at) in zip(apart([place[0] for place in places], 1.3 * LABEL), places, strict=True):
        colour, _ = style(line, i)
        axes.annotate(
            line.name,
            at,
            xytext=(column - x, level - y),
            textcoords="offset points",
            ha="right" if end == 0 else "left",
            va="center",
            fontsize=LABEL,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.5, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
            if abs(column - x) > 2 * LABEL
            else None,
        )


def apart(levels: Sequence[float], gap: float) -> list[float]:
    """Move ascending `levels` as little as may be so that neighbours are `gap` apart: groups that touch are centred."""
    groups: list[tuple[float, int]] = []  # middle, members
    for level in levels:
        groups.append((level, 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (first, n), (second, m) = groups[-2:]
            groups[-2:] = [((first * n + second * m) / (n + m), n + m)]
    return [middle + gap * (i - (n - 1) / 2) for middle, n in groups for i in range(n)]


def _share_axis(axes: Any, lines: Sequence[Line]) -> None:
    """Stretch the vertical axis, give all curves room with their spread, and mark round shares."""
    points = [(mean(seeds), np.nan_to_num(spread(seeds))) for line in lines for seeds in line.points.values()]
    least, most = min(middle - around for middle, around in points), max(middle + around for middle, around in points)
    low, high = stretch(np.array([max(least, 0.0), min(most, 1.0)]))
    room = 0.08 * max(high - low, 0.02)
    low, high = low - room, high + room
    axes.set_yscale("function", functions=(stretch, unstretch))
    axes.set_ylim(*unstretch(np.array([low, high])))
    chosen: list[float] = []
    for step in (None, 5, 2, 1, 0.5, 0.2, 0.1, 0.05):
        if len(chosen) < FEWEST_TICKS:
            for tick in TICKS if step is None else np.arange(0, 100 + step, step).tolist():
                apart_from = [abs(_place(tick) - _place(other)) for other in chosen]
                if low <= _place(tick) <= high and all(far > 0.075 * (high - low) for far in apart_from):
                    chosen.append(tick)
    axes.set_yticks([tick / 100 for tick in sorted(chosen)], [f"{tick:g}" for tick in sorted(chosen)])
    axes.minorticks_off()


def _place(percent: float) -> float:
    return float(stretch(np.array(percent / 100)))


def stretch(shares: np.ndarray) -> np.ndarray:
    """Return where shares stand on the axis: errors that halve are a step."""
    return -np.log10(1 + ROOM_ABOVE - np.minimum(shares, 1.0))


def unstretch(places: np.ndarray) -> np.ndarray:
    """Return the shares that stand at `places`."""
    return 1 + ROOM_ABOVE - 10.0 ** -np.asarray(places)
