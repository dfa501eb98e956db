"""Funnels as a picture: what they find against what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matryoshka import _checks, _pictures
from matryoshka._promises.certificates import RecallCertificate
from matryoshka._values import pareto_front
from matryoshka.retrieval.funnel import Funnel, FunnelPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FunnelDisplay"]


_ROOM = 0.06
"""How far apart names stand, as a part of what costs spread over and of recall."""


@dataclass(repr=False)
class FunnelDisplay(_pictures.Display):
    """The picture of funnels: recall against the time or the multiply-adds of a query, and those that nothing beats.

    Parameters
    ----------
    points : sequence of FunnelPoint
        What `Funnel.pareto` gives, the exact search last.
    certificate : RecallCertificate, optional
        That of a funnel from `Funnel.calibrate`: the recall it promises is drawn as a line.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes that `plot` drew on last.
    figure_ : matplotlib.figure.Figure
        The figure of these axes.

    Raises
    ------
    TypeError
        An argument is not what these methods give.
    ValueError
        There are no points, or only some of them were timed.

    Notes
    -----
    A stage is named by its width; b stands for bits. The name stands where a funnel starts otherwise than the one
    before it.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import Corpus, Funnel
    >>> from matryoshka.retrieval import FunnelDisplay
    >>> rows = np.random.default_rng(0).normal(size=(400, 16)) * 0.8 ** np.arange(16)
    >>> points = Funnel.pareto(Corpus(rows), rows[:50] + 0.01, k=5, cost="multiply_adds")
    >>> display = FunnelDisplay(points).plot()
    >>> display.ax_.get_xlabel()
    'million multiply-adds per query'
    """

    points: Sequence[FunnelPoint]
    certificate: RecallCertificate | None = None

    def __post_init__(self) -> None:
        self.points = _checks.instances(self.points, "points", FunnelPoint, "what `Funnel.pareto` gives")
        if len({point.seconds is None for point in self.points}) > 1:
            msg = "`points` must all be timed, or none, got both; draw one result of `Funnel.pareto`."
            raise ValueError(msg)
        RecallCertificate.check(self.certificate)

    def plot(self, ax: Axes | None = None) -> FunnelDisplay:
        """Draw it, without showing it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, by default on a new figure of pyplot. The legend stands below the axes: if the figure has no
            layout, such as ``layout="constrained"``, they give up some of their height for it.

        Returns
        -------
        FunnelDisplay
            Itself, with `ax_` and `figure_`.

        Raises
        ------
        TypeError
            `ax` is no Axes.
        ImportError
            matplotlib is not installed.
        """
        axes = self._on(ax, purpose="the picture of funnels")
        timed = self.points[0].seconds is not None
        places = [(1e3 * p.seconds if p.seconds is not None else 1e-6 * p.multiply_adds, p.recall) for p in self.points]
        _pictures.cost_axis(axes)
        _pictures.light_frame(axes)
        axes.margins(0.08)
        _pictures.front(axes, pareto_front(places, lambda place: place), _pictures.BLUE)
        full = max(point.funnel.dims[-1] for point in self.points)
        kinds = [_kind(point.funnel, full) for point in self.points]
        named: set[str] = set()
        for place, kind in zip(places, kinds, strict=True):
            _pictures.mark(axes, *place, kind, _pictures.BLUE, label="" if kind in named else _pictures.MEANINGS[kind])
            named.add(kind)
        self._name(axes, places)
        if self.certificate is not None:
            found = self.certificate
            label = f"certified: at least {found.recall:g} on average,\nwith probability {1 - found.delta:g}"
            axes.axhline(found.recall, linestyle="-.", color=_pictures.RED, label=label)
        axes.set_xlabel("ms per query" if timed else "million multiply-adds per query")
        axes.set_ylabel("recall against exact search")
        _pictures.legend(axes)
        return self

    def _name(self, axes: Any, places: Sequence[tuple[float, float]]) -> None:
        """Name the first stage of each funnel that starts otherwise than the one before it, where there is room."""
        last, taken = "", list[tuple[float, float]]()
        cheapest, dearest = min(places)[0], max(places)[0]
        spread = math.log(dearest / cheapest) or 1.0
        for point, (cost, recall) in zip(self.points, places, strict=True):
            start = f"{point.funnel.dims[0]}{'b' if point.funnel.code == 'bits' else ''}"
            at = math.log(cost / cheapest) / spread, recall
            if start != last and not any(abs(at[0] - x) < _ROOM and abs(at[1] - y) < _ROOM for x, y in taken):
                style = {"textcoords": "offset points", "color": _pictures.BLUE, "fontsize": 8, "va": "top"}
                axes.annotate(start, (cost, recall), (4, -4), **style)
                taken.append(at)
            last = start


def _kind(funnel: Funnel, full: int) -> str:
    """Return by which mark a funnel is known, as a benchmark marks it."""
    if funnel.code == "bits":
        return "bits"
    if len(funnel.dims) == 1:
        return "full" if funnel.dims[0] == full else "prefix"
    return "adaptive" if len(funnel.dims) == 2 else "funnel"
