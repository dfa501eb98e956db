"""Temperature scaling (Guo et al., 2017): one scalar per prefix, fitted by the likelihood of the labels."""

from __future__ import annotations

import math

from matryoshka._array import index_dtype
from matryoshka._typing import Array, Namespace
from matryoshka.cascade._confidence import Weights

_LARGEST = 100.0
_STEPS = 50
_TOLERANCE = 1e-4


def fit(weights: Weights, labels: Array, xp: Namespace) -> float:
    """Return the temperature within [1/100, 100] at which the labels are likeliest, to about 1 in 10,000.

    The mean negative log-likelihood is convex in b = 1 / temperature, with slope mean(E[z] - z_label) and curvature
    mean(Var[z]), z being the logarithms of the weights: Newton's method, kept within a bracket by bisection. Logarithms
    end at that of the smallest normal number, so that a label of probability 0 costs much but not everything.
    """
    rows, largest, _ = weights
    smallest = float(xp.finfo(rows.dtype).smallest_normal)
    logs = xp.log(xp.clip(rows / largest[:, None], smallest, 1.0))
    of_labels = xp.take_along_axis(logs, xp.astype(labels, index_dtype(xp), copy=False)[:, None], axis=-1)[:, 0]
    low, high, b = -math.log(_LARGEST), math.log(_LARGEST), 0.0  # logarithms of b = 1 / temperature
    for _ in range(_STEPS):
        slope, curvature = _derivatives(logs, of_labels, math.exp(b), xp)
        low, high = (low, b) if slope > 0 else (b, high)
        # In log b the first derivative is slope * b, and the second about curvature * b ** 2 near the minimum.
        step = -slope / (curvature * math.exp(b)) if curvature > 0 else math.inf
        following = b + max(-1.0, min(1.0, step))
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - b) < _TOLERANCE:
            return math.exp(-following)
        b = following
    return math.exp(-b)


def _derivatives(logs: Array, of_labels: Array, b: float, xp: Namespace) -> tuple[float, float]:
    weights = xp.exp(logs * b)
    total = xp.sum(weights, axis=-1)
    first = xp.sum(weights * logs, axis=-1) / total
    second = xp.sum(weights * logs * logs, axis=-1) / total
    return float(xp.mean(first - of_labels)), float(xp.mean(second - first * first))
