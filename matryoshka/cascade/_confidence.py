"""How sure a prefix is: three measures, and the temperature that makes the labels most likely.

A row of c classes is represented by the unnormalised probability mass of each class, the largest mass and the total, so
that the probability of a class is mass / total. Probabilities are masses as they are; for logits the masses are
exp((logits - max) / temperature).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from matryoshka._algebra import exp_
from matryoshka._array import accumulator_dtype, arange, as_indices, is_torch_array
from matryoshka._typing import Array, Namespace

Mass: TypeAlias = tuple[Array, Array, Array]
"""The mass of every class (n, c), the largest of each row (n,), and their total (n,)."""

_LARGEST_TEMPERATURE = 100.0
_STEPS = 50
_TOLERANCE = 1e-4


def mass_of_probabilities(rows: Array, largest: Array, temperature: float, xp: Namespace) -> Mass:
    """Return the masses of probabilities (n, c), given the largest (n,); a temperature acts as it would on logits."""
    dtype = accumulator_dtype(rows, xp)
    wide, largest = xp.astype(rows, dtype, copy=False), xp.astype(largest, dtype, copy=False)
    if temperature == 1.0:
        return wide, largest, xp.ones_like(largest)
    mass = (wide / largest[:, None]) ** (1.0 / temperature)
    return mass, xp.ones_like(largest), xp.sum(mass, axis=-1)


def mass_of_logits(rows: Array, temperature: float, xp: Namespace, *, out: Array | None = None) -> Mass:
    """Return the masses of logits (n, c), written to `out` if it is given."""
    wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
    if is_torch_array(wide):  # its softmax is one pass, faster than its exp alone
        mass = xp.softmax(wide if temperature == 1.0 else wide / temperature, -1, out=out)
        largest = xp.max(mass, axis=-1)
        return mass, largest, xp.ones_like(largest)
    shift = xp.max(wide, axis=-1, keepdims=True)
    shifted = wide - shift if out is None else xp.subtract(wide, shift, out=out)
    if temperature != 1.0:
        shifted /= temperature
    mass = exp_(shifted, xp)
    return mass, xp.ones_like(mass[:, 0]), xp.sum(mass, axis=-1)


def _max_probability(mass: Mass, xp: Namespace) -> Array:
    _, largest, total = mass
    return largest / total


def _margin(mass: Mass, xp: Namespace) -> Array:
    classes, largest, total = mass
    winner = arange(classes.shape[1], like=classes, xp=xp)[None, :] == xp.argmax(classes, axis=-1, keepdims=True)
    second = xp.max(xp.where(winner, xp.zeros_like(classes), classes), axis=-1)
    return (largest - second) / total


def _entropy(mass: Mass, xp: Namespace) -> Array:
    classes, largest, total = mass
    if classes.shape[1] == 1:
        return xp.ones_like(largest)
    logs = xp.log(xp.where(classes > 0, classes, xp.ones_like(classes)))
    entropy = xp.log(total) - xp.sum(classes * logs, axis=-1) / total
    return 1.0 - entropy / math.log(classes.shape[1])


Measure: TypeAlias = Callable[[Mass, Namespace], Array]
"""Maps masses to numbers (n,) within [0, 1], except for rounding."""

MEASURES: dict[str, Measure] = {
    "max_probability": _max_probability,
    "margin": _margin,
    "entropy": _entropy,
}


PRECOMPUTED = "precomputed"
"""Instead of a measure: the caller passes the confidences as an array."""


def fit_temperature(mass: Mass, labels: Array, xp: Namespace) -> float:
    """Return the temperature within [1/100, 100] that makes the labels most likely, to about 1 in 10,000.

    Temperature scaling, one scalar per prefix (Guo et al., 2017). With the logarithms z of the masses, the mean
    negative log-likelihood is convex in b = 1 / temperature, with slope mean(E[z] - z_label) and curvature
    mean(Var[z]): Newton's method, safeguarded by bisection. Logarithms are at least that of the smallest normal number,
    so that a label of probability 0 costs much, but not infinitely much.
    """
    classes, largest, _ = mass
    smallest = float(xp.finfo(classes.dtype).smallest_normal)
    logs = xp.log(xp.clip(classes / largest[:, None], smallest, 1.0))
    of_labels = xp.take_along_axis(logs, as_indices(labels, xp)[:, None], axis=-1)[:, 0]
    high = math.log(_LARGEST_TEMPERATURE)
    low, b = -high, 0.0  # logarithms of b = 1 / temperature
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
    mass = xp.exp(logs * b)
    total = xp.sum(mass, axis=-1)
    first = xp.sum(mass * logs, axis=-1) / total
    second = xp.sum(mass * logs * logs, axis=-1) / total
    return float(xp.mean(first - of_labels)), float(xp.mean(second - first * first))
