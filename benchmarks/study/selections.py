"""Parts of the training rows that a system may be limited to: a long tail of classes, or some classes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

LARGEST, SMALLEST = 1.0, 0.02
"""Share of its rows that the most frequent class keeps, and the rarest at least, in a long tail."""

UNSEEN_SHARE = 0.2


def everything(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return True for each row."""
    del seed
    return np.ones(len(labels), dtype=bool)


def long_tail(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows (n,) stay if the class of rank r keeps a share 1 / r of its rows: Zipf's law."""
    rng = np.random.default_rng(seed)
    kept = np.zeros(len(labels), dtype=bool)
    for rank, label in enumerate(rng.permutation(np.unique(labels)), start=1):
        rows = rng.permutation(np.flatnonzero(labels == label))
        kept[rows[: max(1, round(max(LARGEST / rank, SMALLEST) * len(rows)))]] = True
    return kept


def seen(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows (n,) are of the four classes in five that training sees."""
    classes = np.random.default_rng(seed).permutation(np.unique(labels))
    return ~np.isin(labels, classes[: max(1, round(UNSEEN_SHARE * len(classes)))])


SELECTIONS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "everything": everything,
    "long tail": long_tail,
    "seen classes": seen,
}
