"""A few rows by which a search sets its thresholds: they decide how fast it is and never what it finds."""

from __future__ import annotations

import math

import numpy as np


def draw(n: int, size: int) -> np.ndarray:
    """Return the ids (size,), ascending, of one row from each of many equal shares of `n`, the same in each run."""
    starts = np.arange(size + 1) * n // size
    return starts[:-1] + (np.random.default_rng(0).random(size) * np.diff(starts)).astype(np.intp)


def rank(k: int, size: int, n: int) -> int:
    """Return which of the sampled rows to take as threshold, so that fewer than k of `n` reach it very rarely."""
    expected = k * size / n
    return k if size == n else math.ceil(expected + 3 * math.sqrt(expected) + 4)
