"""The published calibration: one threshold per pair of neighbouring prefixes, chosen greedily."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from matryoshka import _checks
from matryoshka.cascade._stages import Scored

VARIANTS = {"code": (0.1, 1.0), "paper": (0.0, 1.0)}


def thresholds(scored: Scored, candidates: np.ndarray, variant: str) -> tuple[float, ...]:
    """Choose for each pair the smallest grid value that reaches the pair's best accuracy on all rows."""
    compared = candidates.astype(scored.confidences.dtype)
    if variant == "paper":
        # A row exits where confidence >= t, which is where confidence > the next smaller number.
        compared = np.nextafter(compared, compared.dtype.type(-math.inf))
        candidates = compared.astype(np.float64)
    chosen = []
    for confidence, (here, after) in zip(scored.confidences, itertools.pairwise(scored.correct), strict=False):
        # A row takes the shorter prefix at every candidate below its confidence; that changes the count by its gain.
        passed = np.searchsorted(compared, confidence, side="left")
        gain = here.astype(np.int64) - after.astype(np.int64)
        steps = np.bincount(passed, weights=gain, minlength=len(candidates) + 1)
        relative = np.cumsum(steps[::-1])[::-1][1:]
        chosen.append(float(candidates[int(np.argmax(relative))]))
    return tuple(chosen)


def candidates(grid: Iterable[float] | None, variant: str) -> np.ndarray:
    """Return the thresholds to choose from, sorted; without `grid` those of the variant."""
    if grid is None:
        return np.linspace(*VARIANTS[variant], 100)
    values = [_checks.real(value, f"grid[{i}]") for i, value in enumerate(grid)]
    if not values:
        msg = "`grid` must hold at least one threshold, got none; leave it out for the published grid."
        raise ValueError(msg)
    return np.unique(np.asarray(values))
