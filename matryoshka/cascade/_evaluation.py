"""How a cascade does on given rows: how often it is right, where rows exit, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from matryoshka import _checks, _pictures
from matryoshka._promises.binomial import interval
from matryoshka.cascade._outputs import Scored

COSTS = ("expected_dim", "cumulative_dim")


@dataclass(frozen=True)
class CascadeEvaluation:
    """Accuracy and cost of a cascade on given rows; printed, a table.

    Attributes
    ----------
    dims : tuple of int
        Widths at which a row may exit; the last one is the cap.
    thresholds : tuple of float
        What the confidence had to exceed at each width but the last.
    n_rows, n_classes : int
        Number of rows evaluated, and of classes.
    accuracy : float or None
        Share of rows that the cascade answers correctly. None without labels, as is everything that needs them.
    gap : float or None
        Share of rows that the cascade answers wrongly although the full width is right: what `certify` bounds.
    disagreement : float
        Share of rows that the cascade answers otherwise than the full width, which needs no labels.
    expected_dim : float
        Mean width at which rows exit, sum over m of p_m * m: what a tied head (MRL-E) costs, whose logits are running
        sums over prefixes.
    cumulative_dim : float
        Mean sum of the widths that a row visits, sum over m of p_m * (m_1 + … + m): what separate heads (MRL) cost. A
        width with a threshold of 1 or above, which no confidence exceeds, is passed over and costs nothing.
    exit_shares : tuple of float
        Share of rows that exit at each width; they sum to 1.
    exit_accuracy : tuple of (float or None)
        Accuracy among the rows that exit at each width; None where no row does.
    prefix_accuracy : tuple of float, or None
        Accuracy of each width if it answered every row alone.
    prefix_disagreement : tuple of float
        Share of rows that each width alone answers otherwise than the full width.
    """

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]
    n_rows: int
    n_classes: int
    accuracy: float | None
    gap: float | None
    disagreement: float
    expected_dim: float
    cumulative_dim: float
    exit_shares: tuple[float, ...]
    exit_accuracy: tuple[float | None, ...]
    prefix_accuracy: tuple[float, ...] | None
    prefix_disagreement: tuple[float, ...]

    @property
    def tied_multiply_adds(self) -> float:
        """Multiply-adds per row of one tied head: expected_dim * n_classes."""
        return self.expected_dim * self.n_classes

    @property
    def separate_multiply_adds(self) -> float:
        """Multiply-adds per row of separate heads: cumulative_dim * n_classes."""
        return self.cumulative_dim * self.n_classes

    @property
    def full_multiply_adds(self) -> int:
        """Multiply-adds per row of the head at the last width, answering every row alone."""
        return self.dims[-1] * self.n_classes

    @property
    def fixed_dim(self) -> int | None:
        """Narrowest width that, alone, is as good as the cascade on these rows: the yardstick for savings.

        Its accuracy is at least that of the cascade; without labels, its disagreement is at most that of the cascade.
        It may be the last width, compared with which there may be nothing to save; None if no width is as accurate.
        It is chosen on these rows, which makes it look slightly better than it is.
        """
        if self.accuracy is None or self.prefix_accuracy is None:
            enough = [share <= self.disagreement for share in self.prefix_disagreement]
        else:
            enough = [share >= self.accuracy for share in self.prefix_accuracy]
        return next((dim for dim, is_enough in zip(self.dims, enough, strict=True) if is_enough), None)

    def speedup(self, cost: str = "expected_dim", *, of: str = "full") -> float | None:
        """Say how many times fewer multiply-adds the cascade takes than one width alone.

        Parameters
        ----------
        cost : {"expected_dim", "cumulative_dim"}, default "expected_dim"
            The cost of the cascade: with a tied head (MRL-E), or with separate heads (MRL).
        of : {"full", "fixed"}, default "full"
            The width to compare it with: the last one, or `fixed_dim`.

        Returns
        -------
        float or None
            Below 1 if the cascade takes more; None if `fixed_dim` is None.
        """
        _checks.choice(cost, "cost", COSTS)
        dim = self.dims[-1] if _checks.choice(of, "of", ("full", "fixed")) == "full" else self.fixed_dim
        return None if dim is None else float(dim / getattr(self, cost))

    def __str__(self) -> str:
        table, rates, costs = _pictures.table(self._cells()), _aligned(self._rates()), _aligned(self._costs())
        return "\n".join([self._title(), "", *table, "", *rates, "", *costs])

    def _repr_html_(self) -> str:
        """Return what is printed, as HTML for a notebook."""
        sums = [*self._rates(), *self._costs()]
        tables = _pictures.html_table(self._cells()), _pictures.html_table(sums, header=False)
        return "\n".join((_pictures.html_lines([self._title()]), *tables))

    def _title(self) -> str:
        known = "" if self.accuracy is not None else ", without labels: held against the answers of the full width"
        return f"{self.n_rows:,} rows of {self.n_classes:,} classes{known}."

    def _cells(self) -> list[list[str]]:
        """Return a header, and a row for each width: how many rows exit, and how good it is there and alone."""
        alone = "as the full width if alone" if self.prefix_accuracy is None else "right if alone"
        cells = [["width".rjust(8), "threshold", "rows exiting", "right among them", alone]]
        goods = self._goods()
        for i, (dim, share, there) in enumerate(zip(self.dims, self.exit_shares, self.exit_accuracy, strict=True)):
            threshold = f"{self.thresholds[i]:.4f}" if i < len(self.thresholds) else "-"
            exiting = f"{share:.1%}" if i == len(self.thresholds) or can_exit(self.thresholds[i]) else "passed over"
            among = "-" if there is None else _rate(there, round(share * self.n_rows))
            cells.append([str(dim), threshold, exiting, among, _rate(goods[i], self.n_rows)])
        return [[*row[:3], row[4]] for row in cells] if self.prefix_accuracy is None else cells

    def _rates(self) -> list[tuple[str, str, str]]:
        """Return for each share of rows its name, the share with its interval, and what it means."""
        lines = []
        if self.accuracy is not None and self.gap is not None and self.prefix_accuracy is not None:
            lines = [
                ("accuracy", _rate(self.accuracy, self.n_rows), ""),
                (f"width {self.dims[-1]}", _rate(self.prefix_accuracy[-1], self.n_rows), ""),
                ("gap", _rate(self.gap, self.n_rows), "wrong where the full width is right"),
            ]
        disagreement = _rate(self.disagreement, self.n_rows)
        return [*lines, ("disagreement", disagreement, "answered otherwise than by the full width")]

    def _costs(self) -> list[tuple[str, str, str]]:
        """Return the same for what the cascade costs, and for the narrowest width alone that is as good."""
        fixed, lines = self.fixed_dim, []
        for name, cost, work, head in (
            ("expected dim", "expected_dim", self.tied_multiply_adds, "a tied head"),
            ("cumulative dim", "cumulative_dim", self.separate_multiply_adds, "separate heads"),
        ):
            dim = getattr(self, cost)
            found = f"{_compared(self.dims[-1] / dim)} {self.dims[-1]}"
            if fixed is not None and fixed < self.dims[-1]:
                found += f", {_compared(fixed / dim)} a fixed {fixed}"
            counted = f"{work:,.0f} multiply-adds of {head}".replace(" ", _pictures.NO_BREAK)
            lines.append((name, f"{dim:7.1f}", f"{found}; {counted}"))
        return [*lines, ("fixed width", f"{fixed or 'none':>7}", self._fixed())]

    def _goods(self) -> tuple[float, ...]:
        """Return for each width how good it is alone: the share right, or without labels that of the full width."""
        return self.prefix_accuracy or tuple(1.0 - share for share in self.prefix_disagreement)

    def _fixed(self) -> str:
        """Say what `fixed_dim` is, and how close the best other width comes if it is none that saves anything."""
        good = "is right" if self.accuracy is not None else "agrees with the full width"
        fixed, goods = self.fixed_dim, self._goods()
        if fixed is not None and (fixed < self.dims[-1] or len(goods) == 1):
            return f"the narrowest width that, alone, {good} as often"
        others = goods if fixed is None else goods[:-1]
        best = max(range(len(others)), key=others.__getitem__)
        lacking = (1.0 - self.disagreement if self.accuracy is None else self.accuracy) - others[best]
        which = "no width" if fixed is None else "no narrower width"
        return f"{which}, alone, {good} as often; {self.dims[best]} columns lack {lacking:.2%}"


def _aligned(lines: Sequence[tuple[str, str, str]]) -> list[str]:
    whole = (f"{name:<14}  {value}  {told}".rstrip() for name, value, told in lines)
    return _pictures.wrapped(whole, indent=25)


def _rate(share: float, n: int) -> str:
    """Return a share of n rows with its 95 % interval (Wilson)."""
    low, high = interval(round(share * n), n)
    return f"{share:7.2%} [{low:7.2%}, {high:7.2%}]"


def _compared(speedup: float) -> str:
    """Say how much less, or more, is needed than by what follows."""
    if 0.95 < speedup < 1.05:
        return "as much as"
    return f"{speedup:.1f} x less than" if speedup > 1.0 else f"{1.0 / speedup:.1f} x more than"


def can_exit(threshold: float) -> bool:
    """Tell whether any row can exit at a threshold: no confidence exceeds 1."""
    return threshold < 1.0


def exits(confidences: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return the stage (n,) at which each row exits: the first one with confidence > threshold, or the last."""
    stage = np.full(confidences.shape[1], len(thresholds))
    for i in reversed(range(len(thresholds))):
        stage[confidences[i] > thresholds[i]] = i
    return stage


def evaluate(
    scored: Scored, dims: Sequence[int], thresholds: Sequence[float], *, labelled: bool = True
) -> CascadeEvaluation:
    """Evaluate a cascade of the first len(dims) prefixes of `scored`, against the last of all; with labels or not."""
    n, rows = scored.n_rows, np.arange(scored.n_rows)
    stage = exits(scored.confidences, thresholds)
    correct = scored.correct[stage, rows]
    counts = [int(count) for count in np.bincount(stage, minlength=len(dims))]
    hits = [int(count) for count in np.bincount(stage[correct], minlength=len(dims))]
    return CascadeEvaluation(
        dims=tuple(dims),
        thresholds=tuple(thresholds),
        n_rows=n,
        n_classes=scored.n_classes,
        accuracy=sum(hits) / n if labelled else None,
        gap=int((scored.correct[-1] & ~correct).sum()) / n if labelled else None,
        disagreement=int((~scored.agrees[stage, rows]).sum()) / n,
        expected_dim=_total(counts, dims) / n,
        cumulative_dim=_total(counts, _exit_costs(dims, dims, thresholds)) / n,
        exit_shares=tuple(count / n for count in counts),
        exit_accuracy=tuple(
            hit / count if labelled and count else None for hit, count in zip(hits, counts, strict=True)
        ),
        prefix_accuracy=tuple(int(row.sum()) / n for row in scored.correct[: len(dims)]) if labelled else None,
        prefix_disagreement=tuple(int((~row).sum()) / n for row in scored.agrees[: len(dims)]),
    )


def _total(counts: Sequence[int], costs: Sequence[float]) -> float:
    """Return what all rows cost together."""
    return sum(count * cost for count, cost in zip(counts, costs, strict=True))


def _exit_costs(exits: Sequence[float], fees: Sequence[float], thresholds: Sequence[float]) -> list[float]:
    """Return what an exit at each prefix costs, including the fees of the prefixes before it that are not skipped."""
    due = [fee if can_exit(threshold) else 0 for fee, threshold in zip(fees, thresholds, strict=False)]
    return [exit_at + sum(due[:i]) for i, exit_at in enumerate(exits)]


class Prices(NamedTuple):
    """What a row costs, as shares of the full width: at the prefix where it exits, and a fee at each one before."""

    exits: tuple[float, ...]
    fees: tuple[float, ...]

    @classmethod
    def of(cls, dims: tuple[int, ...], cost: str) -> Prices:
        """Return the prices of a tied head, whose logits are running sums over prefixes, or of separate heads."""
        _checks.choice(cost, "cost", COSTS)
        shares = tuple(dim / dims[-1] for dim in dims)
        return cls(shares, shares if cost == "cumulative_dim" else (0.0,) * len(dims))

    def exit_costs(self, thresholds: Sequence[float]) -> np.ndarray:
        """Return what an exit at each prefix (G,) costs; prefixes at which no row can exit have no fee."""
        return np.asarray(_exit_costs(self.exits, self.fees, thresholds))
