"""What a cascade does on given rows: how often it is correct, where rows exit, and what that costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matryoshka import _checks
from matryoshka.cascade._outputs import Scored

COSTS = ("expected_dim", "cumulative_dim")


@dataclass(frozen=True)
class CascadeEvaluation:
    """Accuracy and cost of a cascade on given rows.

    Attributes
    ----------
    dims : tuple of int
        Widths a row may exit at; the last one is the cap.
    n_rows, n_classes : int
        How many rows were evaluated, and how many classes they choose from.
    accuracy : float
        Share of rows that the cascade answers correctly.
    gap : float
        Share of rows that the cascade answers wrongly although the full width is right: what `certify` bounds.
    expected_dim : float
        Mean width at which rows exit, sum over m of p_m * m: what a tied head (MRL-E) pays, since its logits
        accumulate from prefix to prefix.
    cumulative_dim : float
        Mean sum of the widths that a row visits, sum over m of p_m * (m_1 + … + m): what separate heads (MRL) pay. A
        prefix with a threshold of 1 counts as visited, although `classify` passes over it.
    exit_shares : tuple of float
        Share of rows that exit at each width; they sum to 1.
    exit_accuracy : tuple of (float or None)
        Accuracy among the rows that exit at each width; None where none does.
    prefix_accuracy : tuple of float
        Accuracy of each width if it answered every row alone.
    """

    dims: tuple[int, ...]
    n_rows: int
    n_classes: int
    accuracy: float
    gap: float
    expected_dim: float
    cumulative_dim: float
    exit_shares: tuple[float, ...]
    exit_accuracy: tuple[float | None, ...]
    prefix_accuracy: tuple[float, ...]

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
        """Multiply-adds per row of the head at the last width, which answers every row at once."""
        return self.dims[-1] * self.n_classes


def exits(confidences: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return the stage (n,) at which each row exits: the first whose confidence exceeds its threshold, or the last."""
    stage = np.full(confidences.shape[1], len(thresholds))
    for i in reversed(range(len(thresholds))):
        stage[confidences[i] > thresholds[i]] = i
    return stage


def evaluate(scored: Scored, dims: Sequence[int], thresholds: Sequence[float]) -> CascadeEvaluation:
    """Evaluate the first len(dims) prefixes of `scored`; the gap is against its last prefix."""
    n = scored.n_rows
    stage = exits(scored.confidences, thresholds)
    correct = scored.correct[stage, np.arange(n)]
    counts = np.bincount(stage, minlength=len(dims))
    hits = np.bincount(stage[correct], minlength=len(dims))
    visited = list(itertools.accumulate(dims))
    return CascadeEvaluation(
        dims=tuple(dims),
        n_rows=n,
        n_classes=scored.n_classes,
        accuracy=int(hits.sum()) / n,
        gap=int((scored.correct[-1] & ~correct).sum()) / n,
        expected_dim=sum(int(count) * dim for count, dim in zip(counts, dims, strict=True)) / n,
        cumulative_dim=sum(int(count) * total for count, total in zip(counts, visited, strict=True)) / n,
        exit_shares=tuple(int(count) / n for count in counts),
        exit_accuracy=tuple(int(hit) / int(count) if count else None for hit, count in zip(hits, counts, strict=True)),
        prefix_accuracy=tuple(int(row.sum()) / n for row in scored.correct[: len(dims)]),
    )


def cost_shares(dims: tuple[int, ...], cost: str) -> list[float]:
    """Return what an exit at each width costs, as a share of an exit at the last."""
    _checks.choice(cost, "cost", COSTS)
    costs = list(dims) if cost == "expected_dim" else list(itertools.accumulate(dims))
    return [value / costs[-1] for value in costs]
