"""Parts of the training rows that a system may be limited to: a long tail of classes, or some classes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

SMALLEST = 0.02
"""Share of its rows that the rarest class of a long tail keeps; the most frequent one keeps all."""

UNSEEN_SHARE = 0.3
"""Share of the classes that training does not see."""


def everything(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return True for each row."""
    del seed
    return np.ones(len(labels), dtype=bool)


def long_tail(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows (n,) stay if the class of rank r keeps a share r ** -a of its rows, as in Zipf's law.

    The exponent a is such that the rarest class keeps `SMALLEST`: 0.78 with 150 classes, 1.7 with 10.
    """
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(labels))
    shares = SMALLEST ** (np.log(np.arange(1, len(classes) + 1)) / np.log(len(classes)))
    kept = np.zeros(len(labels), dtype=bool)
    for label, share in zip(classes, shares, strict=True):
        rows = rng.permutation(np.flatnonzero(labels == label))
        kept[rows[: max(1, round(share * len(rows)))]] = True
    return kept


def thirds(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the classes of the "head", the "middle" and the "tail": thirds of the classes, by number of rows."""
    classes, counts = np.unique(labels, return_counts=True)
    ranked = classes[np.argsort(-counts, kind="stable")]
    return dict(zip(("head", "middle", "tail"), np.array_split(ranked, 3), strict=True))


def seen(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows (n,) are of the classes that training sees, seven in ten."""
    classes = np.random.default_rng(seed).permutation(np.unique(labels))
    return ~np.isin(labels, classes[: max(1, round(UNSEEN_SHARE * len(classes)))])


SELECTIONS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "everything": everything,
    "long tail": long_tail,
    "seen classes": seen,
}
