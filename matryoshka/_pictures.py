"""What all figures and tables share: colours and marks, axes and their style, aligned columns, tables in HTML.

What a figure shows is defined beside the thing that it shows. Figures need the extra `cli`, tables nothing.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from matryoshka import _checks
from matryoshka._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

BLUE, RED, GREEN, VIOLET, OCHRE, GREY = "#1f6fb4", "#d1495b", "#2a9d5c", "#8a5cb8", "#c98b1b", "#7f7f7f"
"""Colours in the order in which they are used; grey is for what others are compared with."""

COLUMNS = 100
"""How wide a printed line may be."""

NO_BREAK = "\xa0"
"""A space at which no line is broken; it is printed as any other."""

_BELOW = 0.7
"""How far below the axes a legend stands, in inches: turned tick labels and a name of the axis fit in between."""
_TICKS, _EDGE, _LEAST, _OVERHANG = 0.45, 0.05, 0.35, 1.15
"""Inches below axes that ticks and names take anyhow, and that stay clear at the edge of a figure; the part of their
height that axes keep; and how much wider than the axes a legend may be."""

MARKERS = {"full": "*", "prefix": "o", "adaptive": "s", "funnel": "v", "bits": "P", "calibrated": "D"}
"""Markers of the kinds of search plans."""
MEANINGS = {
    "full": "the full width alone",
    "prefix": "so many columns alone",
    "adaptive": "a prefix, then the full width",
    "funnel": "a prefix, then wider and wider ones",
    "bits": "a prefix in bits, then the full width",
    "calibrated": "a funnel certified for its recall",
}


def new(width: float, height: float, *, purpose: str) -> Any:
    """Return an empty figure of this size in inches; without matplotlib, the error says that `purpose` needs it."""
    require("matplotlib", extra="cli", purpose=purpose)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


class Display:
    """A picture drawn on the caller's axes or on new ones; like a display of scikit-learn, it keeps the last ones."""

    ax_: Axes
    figure_: Figure | SubFigure

    def _on(self, ax: Axes | None, *, purpose: str) -> Axes:
        """Return the axes to draw on: those given, or one of a new figure of pyplot, which a notebook shows."""
        require("matplotlib", extra="cli", purpose=purpose)
        from matplotlib.axes import Axes

        if ax is None:
            from matplotlib import pyplot as plt

            _, ax = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
        elif not isinstance(ax, Axes):
            msg = f"`ax` must be Axes of matplotlib, got {_checks.describe(ax)}; pass one, or None for a new figure."
            raise TypeError(msg)
        self.ax_, self.figure_ = ax, ax.figure
        return ax


def width_axis(axes: Any, dims: Sequence[int]) -> None:
    """Let the horizontal axis show widths, on a scale of base 2, with a tick for each."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims], rotation=45 if len(dims) > 7 else 0)
    axes.minorticks_off()


def cost_axis(axes: Any) -> None:
    """Let the horizontal axis show costs, on a logarithmic scale with plain numbers."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1000 else f"{x:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.tick_params(axis="x", labelrotation=30)


def mark(axes: Any, x: float, y: float, kind: str, colour: str, *, label: str | None = None) -> None:
    """Draw the marker of a plan of this kind."""
    size = 11 if kind == "full" else 6
    axes.plot(x, y, MARKERS[kind], color=colour, ms=size, alpha=0.75, label=label)


def front(axes: Any, points: Sequence[tuple[float, float]], colour: str) -> None:
    """Draw a Pareto front, cheapest point first, as a staircase: between two points, the cheaper one is the best."""
    axes.step([x for x, _ in points], [y for _, y in points], where="post", color=colour, lw=1.5)


def ink(axes: Any) -> Any:
    """Return the colour of text: dark on a light background, light in a dark style of the caller."""
    return axes.xaxis.label.get_color()


def light_frame(axes: Any) -> None:
    """Draw a pale grid behind the curves, and only the left and lower spines."""
    axes.grid(color=ink(axes), alpha=0.1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Any, *entries: Sequence[Any], ncols: int = 2) -> None:
    """Put the legend below the axes, where it covers no curve; one as wide as the axes, or else a single column.

    `entries` are as matplotlib takes them. A layout of the figure makes room for it; without one, these axes give up
    some of their height, unless something else says where they are drawn.
    """
    from matplotlib.transforms import ScaledTranslation

    below = axes.transAxes + ScaledTranslation(0, -_BELOW, axes.figure.dpi_scale_trans)
    at: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    style: dict[str, Any] = {"fontsize": 9, "frameon": False, "borderaxespad": 0}
    drawn = axes.legend(*entries, **at, **style, ncols=ncols)
    if ncols > 1 and drawn.get_window_extent().width > _OVERHANG * axes.bbox.width:
        drawn = axes.legend(*entries, **at, **style)
    if axes.figure.get_layout_engine() is None and axes.get_axes_locator() is None:
        axes.set_axes_locator(_AboveLegend(axes))


class _AboveLegend:
    """Says where to draw axes that have a legend below them: where they stand, but so much shorter.

    It is asked at each drawing, and shortens nothing once the figure has a layout: that finds axes as they were. For
    the same reason it says to which place in a grid they belong.
    """

    def __init__(self, axes: Any) -> None:
        self._axes = axes

    def __call__(self, axes: Any, renderer: Any) -> Any:
        from matplotlib.transforms import Bbox

        place, drawn = axes.get_position(original=True), axes.get_legend()
        if drawn is None or axes.figure.get_layout_engine() is not None:
            return place
        inches = axes.figure.bbox.height / axes.figure.dpi
        taken = drawn.get_window_extent(renderer).height / axes.figure.dpi + _BELOW
        floor = max(place.y0 - _TICKS / inches, _EDGE / inches) + taken / inches
        return Bbox.from_extents(place.x0, min(floor, place.y1 - _LEAST * place.height), place.x1, place.y1)

    def get_subplotspec(self) -> Any:
        return self._axes.get_subplotspec()


def rendered(figure: Any, *, dpi: int = 150, kind: str = "png") -> bytes:
    """Return the figure as the bytes of a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi)
    return buffer.getvalue()


def wrapped(lines: Iterable[str], *, indent: int = 4) -> list[str]:
    """Break lines that are wider than COLUMNS between words, and indent what follows below."""
    import textwrap  # whose patterns would slow down every import

    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    joined = (line.replace(" %", f"{NO_BREAK}%") for line in lines)
    fitted = (textwrap.wrap(line, COLUMNS, subsequent_indent=" " * indent, **whole) or [""] for line in joined)
    return [part.replace(NO_BREAK, " ") for parts in fitted for part in parts]


def table(rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> list[str]:
    """Align cells to the right, those of the columns `left` to the left; return a line for each row."""
    columns = enumerate(zip(*rows, strict=True))
    formats = [f"{'<' if i in left else '>'}{max(map(len, cells))}" for i, cells in columns]
    return ["  ".join(map(format, row, formats)).rstrip() for row in rows]


def html_table(rows: Sequence[Sequence[str]], *, header: bool = True) -> str:
    """Return a table for a notebook: with `header`, the first row names the columns, else the first column the rows.

    It has no colours, so that it takes those of the page, dark or light.
    """
    names, body = (rows[0], rows[1:]) if header else ((), rows)
    head = "".join(f"<th>{_escaped(name)}</th>" for name in names)
    lines = [f"<thead><tr>{head}</tr></thead>"] if header else []
    left = "" if header else ' style="text-align: left"'
    lines.append("<tbody>")
    for first, *others in body:
        cells = "".join(f"<td{left}>{_escaped(cell)}</td>" for cell in others)
        lines.append(f"<tr><th{left}>{_escaped(first)}</th>{cells}</tr>")
    return "\n".join(("<table>", *lines, "</tbody>", "</table>"))


def html_lines(lines: Sequence[str]) -> str:
    """Return lines of text as a paragraph for a notebook."""
    return f"<p>{'<br>'.join(map(_escaped, lines))}</p>"


def _escaped(text: str) -> str:
    from html import escape  # whose table of names would slow down every import

    return escape(text.strip())
