"""Classes known from few rows: the nearest class mean at each width (table 15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka import metrics, truncate

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

SHOTS = (1, 3, 5, 7, 9)


def measure(
    bench: Bench, system: str, seed: int, *, shots: Sequence[int] = SHOTS, draws: int = 10, most_rows: int = 2000
) -> dict[str, Any]:
    """Return the accuracy of nearest class means by shots and width, with its deviation over draws of the shots.

    The shots are calibration rows, which training has not seen, normalised at each width. Every system is given the
    same draws, in which the first row of a class is among its first three, and so on.

    Raises
    ------
    ValueError
        A class has fewer calibration rows than `shots` asks for.
    """
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    rng = np.random.default_rng(seed)
    judged = rng.permutation(len(split.test))[:most_rows]
    drawn = [_ranks(split.calibration.labels, rng) for _ in range(draws)]
    rarest = int(np.bincount(split.calibration.labels, minlength=bench.dataset.n_classes).min())
    if max(shots) > rarest:
        msg = (
            f"`shots` must be at most the {rarest} calibration rows of the rarest class, got {max(shots)}; lower them."
        )
        raise ValueError(msg)
    accuracies = np.empty((len(shots), len(outputs.dims), draws))
    for column, dim in enumerate(outputs.dims):
        known = truncate(outputs.embed("calibration", dim), dim)
        queries = truncate(outputs.embed("test", dim)[judged], dim)
        for line, n_shots in enumerate(shots):
            for draw, ranks in enumerate(drawn):
                rows = np.flatnonzero(ranks < n_shots)
                accuracies[line, column, draw] = metrics.nearest_class_mean_accuracy(
                    known[rows], split.calibration.labels[rows], queries, split.test.labels[judged]
                )
    return {
        "dims": list(outputs.dims),
        "shots": list(shots),
        "draws": draws,
        "n_rows": len(judged),
        "accuracy": accuracies.mean(-1).tolist(),
        "deviation": accuracies.std(-1).tolist(),
    }


def _ranks(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the place of each row (n,) in a random order of the rows of its class."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ranks = np.empty(len(labels), dtype=np.int64)
    starts = np.searchsorted(labels[by_class], labels[by_class])
    ranks[by_class] = np.arange(len(labels)) - starts
    return ranks
