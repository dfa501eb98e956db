"""The audit as a picture: what prefixes keep beside random, last and principal columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from matryoshka._optional import require
from matryoshka.audit._rule import KEPT

if TYPE_CHECKING:
    from matryoshka.audit._report import Audit

_PREFIX, _RANDOM, _PCA = "#1f6fb4", "#7f7f7f", "#2a9d5c"
_BELOW: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.16),
    "ncols": 2,
    "fontsize": 9,
    "frameon": False,
}
"""Where a legend covers no curve."""


def figure(audit: Audit) -> Any:
    """Draw neighbours kept, and beside it accuracy where labels were given, energy where not."""
    matplotlib = require("matplotlib.figure", extra="cli", purpose="the figure of an audit")
    canvas = matplotlib.Figure(figsize=(11, 5.5), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(3, 2))
    _kept(left, audit)
    if audit.rows[0].nearest_neighbor_accuracy is None:
        _energy(right, audit)
    else:
        _accuracy(right, audit)
    dims = [row.dim for row in audit.rows]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(dims, [str(dim) for dim in dims], rotation=45 if len(dims) > 7 else 0)
        axes.minorticks_off()
        axes.set_xlabel(f"columns compared, of {audit.dim:,}")
        axes.set_ylim(0, 102)
        axes.grid(color="#e5e5e5")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.suptitle(textwrap.fill(audit.verdict, 100), fontsize=12, fontweight="bold")
    return canvas


def _kept(axes: Any, audit: Audit) -> None:
    rows, dims = audit.rows, [row.dim for row in audit.rows]
    axes.set_ylabel(f"of the {audit.k} nearest neighbours at full width, kept (%)")
    axes.set_title(f"{audit.n_queries:,} queries among {audit.n_audited:,} rows", fontsize=10)
    axes.plot(
        dims, [100 * row.pca for row in rows], "--", color=_PCA, lw=1.2, label="principal directions of these rows"
    )
    axes.fill_between(
        dims, [100 * row.random_low for row in rows], [100 * row.random_high for row in rows], color=_RANDOM, alpha=0.25
    )
    random = [100 * row.random for row in rows]
    axes.plot(dims, random, color=_RANDOM, label=f"random columns (mean and range of {audit.orders} orders)")
    axes.plot(dims, [100 * row.last for row in rows], ":", color="black", lw=1.2, label="last columns")
    kept = [100 * row.kept for row in rows]
    below = [100 * (row.kept - row.kept_low) for row in rows]
    above = [100 * (row.kept_high - row.kept) for row in rows]
    axes.errorbar(
        dims, kept, yerr=(below, above), fmt="-o", color=_PREFIX, capsize=3, lw=2, label="first columns (95 % interval)"
    )
    axes.axhline(100 * KEPT, color="black", lw=0.8, alpha=0.6)
    axes.text(dims[-1], 100 * KEPT + 1, "half", va="bottom", ha="right", fontsize=9)
    if audit.smallest_dim is not None:
        axes.axvline(audit.smallest_dim, color=_PREFIX, lw=1, alpha=0.6)
        axes.text(audit.smallest_dim, 2, " truncates down to here", rotation=90, color=_PREFIX, ha="right", fontsize=9)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], **_BELOW)


def _accuracy(axes: Any, audit: Audit) -> None:
    dims = [row.dim for row in audit.rows]
    axes.plot(dims, [100 * (row.nearest_neighbor_accuracy or 0) for row in audit.rows], "-o", color=_PREFIX)
    axes.plot(dims, [100 * (row.nearest_class_mean_accuracy or 0) for row in audit.rows], "--s", color=_PCA)
    axes.legend(["nearest neighbour", "nearest class mean"], **_BELOW)
    axes.set_ylabel("accuracy of the first columns (%)")
    axes.set_title("against the labels", fontsize=10)


def _energy(axes: Any, audit: Audit) -> None:
    dims = [row.dim for row in audit.rows]
    axes.plot(dims, [100 * row.energy for row in audit.rows], "-o", color=_PREFIX)
    axes.plot(dims, [100 * dim / audit.dim for dim in dims], color=_RANDOM)
    axes.legend(["first columns", "no order: in proportion"], **_BELOW)
    axes.set_ylabel("share of squared length (%)")
    axes.set_title("energy", fontsize=10)
