"""Choose thresholds on labelled rows, without a promise: by the published rule, or the whole Pareto frontier."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable

import numpy as np

from matryoshka import _checks
from matryoshka._values import pareto_front
from matryoshka.cascade import _paths
from matryoshka.cascade._evaluation import CascadeEvaluation, Prices, evaluate
from matryoshka.cascade._outputs import Scored
from matryoshka.cascade._paths import EVERY_ROW, FULL_WIDTH, Policy

VARIANTS = {"code": (0.1, 1.0), "paper": (0.0, 1.0)}


def published(scored: Scored, grid: np.ndarray, variant: str) -> Policy:
    """Choose for each pair of neighbouring prefixes the smallest grid value with the pair's best accuracy."""
    compared = grid.astype(scored.confidences.dtype)
    if variant == "paper":
        # A row exits where confidence >= t, which is where confidence > the next smaller number.
        compared = np.nextafter(compared, compared.dtype.type(-math.inf))
        grid = compared.astype(np.float64)
    chosen = []
    for confidence, (here, after) in zip(scored.confidences, itertools.pairwise(scored.correct), strict=False):
        # A row takes the shorter prefix at every grid value below its confidence, which changes the hits by its gain.
        passed = np.searchsorted(compared, confidence, side="left")
        gain = here.astype(np.int64) - after.astype(np.int64)
        steps = np.bincount(passed, weights=gain, minlength=len(grid) + 1)
        relative = np.cumsum(steps[::-1])[::-1][1:]
        chosen.append(float(grid[int(np.argmax(relative))]))
    return tuple(chosen)


def as_grid(grid: Iterable[float] | None, variant: str) -> np.ndarray:
    """Return the thresholds to choose from, sorted; without `grid`, those of the variant."""
    if grid is None:
        return np.linspace(*VARIANTS[variant], 100)
    found = _checks.sequence(grid, "grid", "numbers", "for instance (0.5, 0.7, 0.9)", unordered=True)
    values = [_checks.real(value, f"grid[{i}]") for i, value in enumerate(found)]
    if not values:
        msg = "`grid` must hold at least one threshold, got none; leave it out for the published grid."
        raise ValueError(msg)
    return np.unique(np.asarray(values))


def frontier(
    scored: Scored, dims: tuple[int, ...], prices: Prices, path: str, cost: str
) -> list[tuple[Policy, CascadeEvaluation]]:
    """Return policies of a path with their evaluations, cheapest first, each more accurate than those before it."""
    ends: list[Policy] = [(threshold,) * (len(dims) - 1) for threshold in (FULL_WIDTH, EVERY_ROW)]
    policies = ends + _paths.policies(path, scored.confidences, ~scored.correct, prices)
    points = [(policy, evaluate(scored, dims, policy)) for policy in policies]
    return pareto_front(points, lambda point: operator.attrgetter(cost, "accuracy")(point[1]))
