"""A cascade as a picture: its accuracy against its cost, beside single widths, other cascades and the promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matryoshka import _checks, _pictures
from matryoshka._promises.certificates import Certificate
from matryoshka.cascade._evaluation import COSTS, CascadeEvaluation
from matryoshka.cascade._oracle import OracleRouting
from matryoshka.cascade._policy import Cascade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CascadeDisplay"]

_LABELS = {
    "expected_dim": "expected dimension (what a tied head pays)",
    "cumulative_dim": "cumulative dimension (what separate heads pay)",
}


@dataclass(repr=False)
class CascadeDisplay(_pictures.Display):
    """The picture of a cascade: accuracy, or without labels agreement with the full width, against what it costs.

    Parameters
    ----------
    curve : sequence of CascadeEvaluation
        What `Cascade.curve` gives: a point for each cap. The last one is the cascade itself; it alone will do.
    frontier : sequence of (Cascade, CascadeEvaluation), optional
        What `Cascade.frontier` gives for the same widths. It is optimistic, since its rows chose the thresholds.
    oracle : OracleRouting, optional
        What a perfect router reaches on the rows of the curve, if these have labels.
    certificate : Certificate, optional
        That of the cascade: the lowest accuracy, or agreement, that it allows is drawn as a line, if it bounds what is
        drawn. A gap or a disagreement is subtracted from what the full width reaches on the rows of the curve.

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
        The curve is empty, the others are of other widths or thresholds, or an oracle comes without labels.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import Cascade
    >>> from matryoshka.cascade import CascadeDisplay
    >>> probabilities, labels = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 99)), np.arange(99) % 3
    >>> cascade = Cascade((8, 16), thresholds=(0.7,))
    >>> display = CascadeDisplay(cascade.curve(probabilities, labels)).plot()
    >>> display.ax_.get_ylabel()
    'accuracy (%)'
    """

    curve: Sequence[CascadeEvaluation]
    frontier: Sequence[tuple[Cascade, CascadeEvaluation]] | None = None
    oracle: OracleRouting | None = None
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        self.curve = _checks.instances(self.curve, "curve", CascadeEvaluation, "what `Cascade.curve` gives")
        whole = self.curve[-1]
        if self.frontier is not None:
            self.frontier = _pairs(self.frontier)
            for _, point in self.frontier:
                _check_dims(point.dims, whole.dims, "frontier")
        if self.oracle is not None:
            if not isinstance(self.oracle, OracleRouting):
                got = _checks.describe(self.oracle)
                msg = f"`oracle` must be an OracleRouting, got {got}; pass what `oracle_routing` gives."
                raise TypeError(msg)
            _check_dims(self.oracle.dims, whole.dims, "oracle")
            if not self._labelled:
                msg = "`oracle` must be None for a curve without labels, got one; draw the curve with labels."
                raise ValueError(msg)
        Certificate.check(self.certificate, thresholds=whole.thresholds)

    def plot(self, ax: Axes | None = None, *, cost: str = "expected_dim") -> CascadeDisplay:
        """Draw it, without showing it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, by default on a new figure of pyplot. The legend stands below the axes: if the figure has no
            layout, such as ``layout="constrained"``, they give up some of their height for it.
        cost : {"expected_dim", "cumulative_dim"}, default "expected_dim"
            The cost of the cascade: with a tied head (MRL-E), or with separate heads (MRL).

        Returns
        -------
        CascadeDisplay
            Itself, with `ax_` and `figure_`.

        Raises
        ------
        TypeError
            `ax` is no Axes.
        ValueError
            There is no such cost.
        ImportError
            matplotlib is not installed.
        """
        cost = _checks.choice(cost, "cost", COSTS)
        axes = self._on(ax, purpose="the picture of a cascade")
        whole = self.curve[-1]
        alone = [100 * share for share in self._alone(whole)]
        axes.plot(whole.dims, alone, "s--", color=_pictures.GREY, label="one width alone")
        if self.frontier is not None:
            points = [(getattr(found, cost), self._reached(found)) for _, found in self.frontier]
            label = "frontier, on the rows that chose it"
            axes.plot(*zip(*points, strict=True), "-", color=_pictures.GREEN, lw=1.2, label=label)
        points = [(getattr(found, cost), self._reached(found)) for found in self.curve]
        label = "cascade, capped at each width"
        axes.plot(*zip(*points, strict=True), "o-", color=_pictures.BLUE, label=label)
        if self.oracle is not None:
            axes.axhline(100 * self.oracle.accuracy, linestyle=":", color=_pictures.ink(axes), label="perfect router")
        if (promised := self._promised(whole)) is not None:
            height, label = promised
            axes.axhline(height, linestyle="-.", color=_pictures.RED, label=label)
        _pictures.width_axis(axes, whole.dims)
        _pictures.light_frame(axes)
        axes.set_xlabel(_LABELS[cost])
        axes.set_ylabel("accuracy (%)" if self._labelled else "agreement with the full width (%)")
        _pictures.legend(axes, ncols=1)
        return self

    @property
    def _labelled(self) -> bool:
        return all(point.accuracy is not None for point in self.curve)

    def _reached(self, found: CascadeEvaluation) -> float:
        """Return the height of a point, in percent."""
        agrees = 1.0 - found.disagreement
        return 100 * (found.accuracy if self._labelled and found.accuracy is not None else agrees)

    def _alone(self, whole: CascadeEvaluation) -> Sequence[float]:
        """Return what each width reaches by itself."""
        agree = [1.0 - share for share in whole.prefix_disagreement]
        return whole.prefix_accuracy if self._labelled and whole.prefix_accuracy is not None else agree

    def _promised(self, whole: CascadeEvaluation) -> tuple[float, str] | None:
        """Return the highest lower bound that follows from the certificate, in percent, and its label."""
        if self.certificate is None:
            return None
        full = self._alone(whole)[-1]
        found = [("a disagreement", full, self.certificate.max_disagreement)]
        if self._labelled:  # or else a disagreement is all that is seen
            found += [("a gap", full, self.certificate.max_gap), ("an error", 1.0, self.certificate.max_error)]
        floors = [(start - bound, name, bound) for name, start, bound in found if bound is not None]
        if not floors:
            return None
        height, name, bound = max(floors)
        told = f"certified: {name} of at most {bound:g},\nwith probability {1 - self.certificate.delta:g}"
        return 100 * height, told


def _pairs(values: object) -> tuple[tuple[Cascade, CascadeEvaluation], ...]:
    """Check that this is what `Cascade.frontier` gives."""
    pairs = _checks.instances(values, "frontier", tuple, "what `Cascade.frontier` gives")
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], Cascade) or not isinstance(pair[1], CascadeEvaluation):
            msg = (
                "`frontier` must hold pairs (Cascade, CascadeEvaluation), got others; pass what `Cascade.frontier` "
                "gives."
            )
            raise TypeError(msg)
    return pairs


def _check_dims(dims: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    if dims != expected:
        msg = f"`{name}` must be of the widths of the curve, {expected}, got {dims}; use one ladder."
        raise ValueError(msg)
