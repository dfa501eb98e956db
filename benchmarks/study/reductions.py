"""Fewer numbers from a trained embedding, and linear classifiers on them: what one may do instead of nested training.

Each function that fits returns another, which turns rows (n, d) into rows (n, d) whose first m columns are the
reduction to m numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Reduction = Callable[[np.ndarray], np.ndarray]


def svd(features: np.ndarray) -> Reduction:
    """Project on the right singular vectors of `features`, leading ones first."""
    singular = _right_singular_vectors(features)
    return lambda rows: rows @ singular


def pca(features: np.ndarray) -> Reduction:
    """Project on the principal components: as `svd` with the mean removed first."""
    mean = features.mean(axis=0)
    principal = _right_singular_vectors(features - mean)
    return lambda rows: (rows - mean) @ principal


def random_columns(features: np.ndarray, seed: int) -> Reduction:
    """Take the columns in an order drawn by `seed`."""
    columns = np.random.default_rng(seed).permutation(features.shape[1])
    return lambda rows: rows[:, columns]


def low_rank_logits(weight: np.ndarray, bias: np.ndarray, rank: int, features: np.ndarray) -> np.ndarray:
    """Return the logits (n, n_classes) on whole features of a head whose weight is truncated to `rank`."""
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    return features @ ((left[:, :rank] * values[:rank]) @ right[:rank]).T + bias


def probe(features: np.ndarray, labels: np.ndarray, n_classes: int) -> Reduction:
    """Fit a linear classifier and return what gives its logits (n, n_classes): -inf for classes it was not shown.

    Of two classes, the first has logit 0.
    Features are standardised; stopping early is good enough for a baseline.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation == 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=200).fit((features - mean) / deviation, labels)

    def logits(rows: np.ndarray) -> np.ndarray:
        found = np.full((len(rows), n_classes), -np.inf, dtype=features.dtype)
        known = fitted.decision_function((rows - mean) / deviation)
        found[:, fitted.classes_] = known if known.ndim == 2 else np.stack([np.zeros_like(known), known], axis=1)
        return found

    return logits


def _right_singular_vectors(features: np.ndarray) -> np.ndarray:
    """Return them as columns, leading ones first: all of them, even where there are fewer rows than columns."""
    wide = features.astype(np.float64)
    return np.linalg.eigh(wide.T @ wide)[1][:, ::-1].astype(features.dtype)
