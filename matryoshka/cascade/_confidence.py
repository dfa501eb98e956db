"""How sure a prefix is: three measures, formed from probabilities or from logits by one formula each.

A row of c classes is given as non-negative weights, their largest and their total, so that the probability of a class
is weight / total. Probabilities are such weights already; of logits, exp((logits - max) / temperature) are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from matryoshka._array import accumulator_dtype, arange, exp_, is_torch_array
from matryoshka._typing import Array, Namespace

Weights: TypeAlias = tuple[Array, Array, Array]
"""Weights (n, c), the largest of each row (n,), and their total (n,)."""


def weights_of_probabilities(rows: Array, temperature: float, xp: Namespace) -> Weights:
    """Weigh the classes by probabilities (n, c); a temperature acts as it would on their logits."""
    wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
    largest = xp.max(wide, axis=-1)
    if temperature == 1.0:
        return wide, largest, xp.ones_like(largest)
    weights = (wide / largest[:, None]) ** (1.0 / temperature)
    return weights, xp.ones_like(largest), xp.sum(weights, axis=-1)


def weights_of_logits(rows: Array, temperature: float, xp: Namespace) -> Weights:
    """Weigh the classes by logits (n, c)."""
    wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
    if is_torch_array(wide):  # its softmax is one pass, faster than its exp alone
        weights = xp.softmax(wide if temperature == 1.0 else wide / temperature, -1)
        largest = xp.max(weights, axis=-1)
        return weights, largest, xp.ones_like(largest)
    shifted = wide - xp.max(wide, axis=-1, keepdims=True)
    if temperature != 1.0:
        shifted /= temperature
    weights = exp_(shifted, xp)
    return weights, xp.ones_like(weights[:, 0]), xp.sum(weights, axis=-1)


def _max_probability(weights: Weights, xp: Namespace) -> Array:
    _, largest, total = weights
    return largest / total


def _margin(weights: Weights, xp: Namespace) -> Array:
    rows, largest, total = weights
    winner = arange(rows.shape[1], like=rows, xp=xp)[None, :] == xp.argmax(rows, axis=-1, keepdims=True)
    second = xp.max(xp.where(winner, xp.zeros_like(rows), rows), axis=-1)
    return (largest - second) / total


def _entropy(weights: Weights, xp: Namespace) -> Array:
    rows, largest, total = weights
    if rows.shape[1] == 1:
        return xp.ones_like(largest)
    logs = xp.log(xp.where(rows > 0, rows, xp.ones_like(rows)))
    entropy = xp.log(total) - xp.sum(rows * logs, axis=-1) / total
    return 1.0 - entropy / math.log(rows.shape[1])


MEASURES: dict[str, Callable[[Weights, Namespace], Array]] = {
    "max_probability": _max_probability,
    "margin": _margin,
    "entropy": _entropy,
}
"""Each maps weights to numbers (n,) within [0, 1], but for rounding."""
