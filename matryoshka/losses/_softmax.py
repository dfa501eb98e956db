"""Softmax cross-entropy of one block of rows of logits: its value, and its gradient in the logits."""

from __future__ import annotations

from matryoshka._array import length, subtract_at
from matryoshka._typing import Array, Namespace


def at_labels(matrix: Array, labels: Array, xp: Namespace) -> Array:
    """Return the number at the label of each row, (r,)."""
    return xp.take_along_axis(matrix, labels[:, None], axis=-1)[:, 0]


def row_losses(log_p: Array, labels: Array, smoothing: float, xp: Namespace) -> Array:
    """Return -(1 - s) log p[label] - s mean(log p) for each row of log-probabilities (r, c)."""
    losses = -at_labels(log_p, labels, xp)
    return losses if smoothing == 0.0 else (1.0 - smoothing) * losses - smoothing * xp.mean(log_p, axis=-1)


def logit_gradients(p: Array, labels: Array, smoothing: float, importance: float, xp: Namespace) -> Array:
    """Return importance * (p - target), the gradient in the logits (r, c); overwrites `p` where it can."""
    gradients = p
    if smoothing != 0.0:
        gradients -= smoothing / length(gradients, 1, xp, dtype=gradients.dtype)
    gradients = subtract_at(gradients, labels, 1.0 - smoothing, xp)
    if importance != 1.0:
        gradients *= importance
    return gradients
