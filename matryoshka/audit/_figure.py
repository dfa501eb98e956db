"""The audit as a picture: what prefixes keep beside random, last and rotated columns."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matryoshka import _checks, _pictures
from matryoshka.audit._report import Audit
from matryoshka.audit._rule import KEPT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PREFIX, _RANDOM, _OTHER = _pictures.BLUE, _pictures.GREY, _pictures.GREEN


@dataclass(repr=False)
class AuditDisplay(_pictures.Display):
    """The picture of an audit: what prefixes keep beside random, last and rotated columns, width by width.

    Parameters
    ----------
    audit : Audit
        What `audit` found.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        The axes that `plot` drew on last.
    figure_ : matplotlib.figure.Figure
        The figure of these axes.

    Raises
    ------
    TypeError
        `audit` is no Audit.

    See Also
    --------
    Audit.figure : Both panels, under the verdict.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import audit
    >>> from matryoshka.audit import AuditDisplay
    >>> rows = np.random.default_rng(0).normal(size=(500, 64)) * 0.95 ** np.arange(64)
    >>> display = AuditDisplay(audit(rows)).plot()
    >>> display.ax_.get_xlabel()
    'columns compared, of 64'
    """

    audit: Audit

    def __post_init__(self) -> None:
        if not isinstance(self.audit, Audit):
            msg = f"`audit` must be an Audit, got {_checks.describe(self.audit)}; pass what `audit(rows)` returns."
            raise TypeError(msg)

    def plot(self, ax: Axes | None = None, *, kind: str = "kept") -> AuditDisplay:
        """Draw one panel, without showing it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw, by default on a new figure of pyplot. The legend stands below the axes: if the figure has no
            layout, such as ``layout="constrained"``, they give up some of their height for it.
        kind : {"kept", "energy", "accuracy"}, default "kept"
            The share of nearest neighbours that is kept, the share of the squared length in the first columns, or, if
            labels were given, accuracy.

        Returns
        -------
        AuditDisplay
            Itself, with `ax_` and `figure_`.

        Raises
        ------
        TypeError
            `ax` is no Axes.
        ValueError
            There is no such panel, or that of accuracy is asked for without labels.
        ImportError
            matplotlib is not installed.
        """
        panels = {"kept": _kept, "energy": _energy, "accuracy": _accuracy}
        kind = _checks.choice(kind, "kind", panels)
        if kind == "accuracy" and self.audit.rows[0].nearest_neighbor_accuracy is None:
            msg = "`kind` must be 'kept' or 'energy' for an audit without labels, got 'accuracy'; audit with labels."
            raise ValueError(msg)
        axes = self._on(ax, purpose="the picture of an audit")
        panels[kind](axes, self.audit)
        _pictures.width_axis(axes, _dims(self.audit))
        _pictures.light_frame(axes)
        axes.set_xlabel(f"columns compared, of {self.audit.dim:,}")
        axes.set_ylim(0, 102)
        return self


def figure(audit: Audit) -> Any:
    """Draw, under the verdict, the neighbours kept, beside accuracy if labels were given, else beside energy."""
    canvas = _pictures.new(11, 5.5, purpose="the figure of an audit")
    left, right = canvas.subplots(1, 2, width_ratios=(3, 2))
    display = AuditDisplay(audit)
    display.plot(left)
    display.plot(right, kind="energy" if audit.rows[0].nearest_neighbor_accuracy is None else "accuracy")
    canvas.suptitle(textwrap.fill(audit.verdict, 100), fontsize=12, fontweight="bold")
    return canvas


def _kept(axes: Any, audit: Audit) -> None:
    dims, kept = _dims(audit), _percent(audit, "kept")
    axes.set_ylabel("nearest neighbours kept (%)")
    axes.set_title(f"the {audit.k} nearest of {audit.n_queries:,} queries among {audit.n_audited:,} rows", fontsize=10)
    if audit.n_fitted:
        label = f"rotated first columns (fitted on {audit.n_fitted:,} others)"
        axes.plot(dims, _percent(audit, "rotated"), "--", color=_OTHER, lw=1.2, label=label)
    axes.fill_between(dims, _percent(audit, "random_low"), _percent(audit, "random_high"), color=_RANDOM, alpha=0.25)
    random = f"random columns (mean and range of {audit.orders} orders)"
    axes.plot(dims, _percent(audit, "random"), color=_RANDOM, label=random)
    axes.plot(dims, _percent(audit, "last"), ":", color=_pictures.ink(axes), lw=1.2, label="last columns")
    below = [100 * (row.kept - row.kept_low) for row in audit.rows]
    above = [100 * (row.kept_high - row.kept) for row in audit.rows]
    axes.errorbar(
        dims, kept, yerr=(below, above), fmt="-o", color=_PREFIX, capsize=3, lw=2, label="first columns (95 % interval)"
    )
    axes.axhline(100 * KEPT, color=_pictures.ink(axes), lw=0.8, alpha=0.6, label="half, which the rule asks for")
    if audit.smallest_dim is not None:
        label = f"truncates down to {audit.smallest_dim:,} columns"
        axes.axvline(audit.smallest_dim, color=_PREFIX, lw=1, alpha=0.6, label=label)
    handles, names = axes.get_legend_handles_labels()
    _pictures.legend(axes, handles[::-1], names[::-1])


def _accuracy(axes: Any, audit: Audit) -> None:
    axes.plot(_dims(audit), _percent(audit, "nearest_neighbor_accuracy"), "-o", color=_PREFIX)
    axes.plot(_dims(audit), _percent(audit, "nearest_class_mean_accuracy"), ":s", color=_pictures.VIOLET)
    names = ["nearest neighbour", "nearest class mean"]
    if audit.rows[0].rotated_nearest_neighbor_accuracy is not None:
        axes.plot(_dims(audit), _percent(audit, "rotated_nearest_neighbor_accuracy"), "--o", color=_OTHER)
        names.append("nearest neighbour, rotated")
    _pictures.legend(axes, names)
    axes.set_ylabel("accuracy of the first columns (%)")
    axes.set_title("against the labels", fontsize=10)


def _energy(axes: Any, audit: Audit) -> None:
    axes.plot(_dims(audit), _percent(audit, "energy"), "-o", color=_PREFIX)
    axes.plot(_dims(audit), [100 * dim / audit.dim for dim in _dims(audit)], color=_RANDOM)
    _pictures.legend(axes, ["first columns", "no order: in proportion"])
    axes.set_ylabel("share of squared length (%)")
    axes.set_title("energy", fontsize=10)


def _dims(audit: Audit) -> list[int]:
    return [row.dim for row in audit.rows]


def _percent(audit: Audit, name: str) -> list[float]:
    """Return one share of every row, in percent."""
    return [100 * getattr(row, name) for row in audit.rows]
