"""What all figures and tables share: colours, a new figure, its axis of widths and its legend, and aligned columns.

What a figure shows stands with what it is of. Figures need the extra `cli`, tables nothing.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from typing import Any

from matryoshka._optional import require

BLUE, RED, GREEN, VIOLET, OCHRE, GREY = "#1f6fb4", "#d1495b", "#2a9d5c", "#8a5cb8", "#c98b1b", "#7f7f7f"
"""Colours of what is drawn, in the order in which they are given out; grey is for what others are compared with."""


def new(width: float, height: float, *, purpose: str) -> Any:
    """Return an empty figure, in inches; `purpose` says what needs matplotlib if there is none."""
    require("matplotlib", extra="cli", purpose=purpose)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def width_axis(axes: Any, dims: Sequence[int]) -> None:
    """Let the horizontal axis show widths: a doubling is a step, and every width has its tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims], rotation=45 if len(dims) > 7 else 0)
    axes.minorticks_off()


def light_frame(axes: Any) -> None:
    """Draw a pale grid behind the curves, and spines only where the ticks are."""
    axes.grid(color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Any, *entries: Sequence[Any]) -> None:
    """Put the legend below the axes, where it covers no curve; `entries` as matplotlib takes them."""
    axes.legend(*entries, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9, frameon=False)


def rendered(figure: Any, *, dpi: int = 150, kind: str = "png") -> bytes:
    """Return the figure as the bytes of a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi)
    return buffer.getvalue()


def table(rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> list[str]:
    """Align cells to the right, those of the columns `left` to the left, and return a line for each row."""
    columns = enumerate(zip(*rows, strict=True))
    formats = [f"{'<' if i in left else '>'}{max(map(len, cells))}" for i, cells in columns]
    return ["  ".join(map(format, row, formats)).rstrip() for row in rows]
