"""How good each prefix is by itself: accuracy of a linear head and of the nearest neighbour, beside the alternatives.

The alternatives all start from FF at the full width, a network trained without nesting:

- SVD, linear: its head is replaced by the truncation to rank m; its features stay whole, so this is no embedding of m
  numbers, and above the number of classes it changes nothing. 1-NN: its features are projected on the m leading right
  singular vectors of the training features.
- PCA: as SVD with the mean removed first; linear: a new linear classifier is fitted on the projections.
- random columns: m of its columns; linear: a new linear classifier is fitted on them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.study import reductions
from benchmarks.study.data import Rows, Split
from benchmarks.study.networks import Network
from benchmarks.study.tasks.accuracy import nearest_neighbor as nearest_rows
from benchmarks.study.tasks.accuracy import share_right

METHODS = ("MRL", "MRL-E", "FF", "SVD", "PCA", "random columns")

Accuracies = dict[str, dict[int, float]]
"""Accuracy of each method at each width."""


def measure(
    nested: dict[str, Network], fixed: dict[int, Network], split: Split, seed: int
) -> tuple[Accuracies, Accuracies]:
    """Return the accuracy on the test rows of each width: of a linear classifier, and of the nearest training row.

    The nearest row is that by cosine.
    """
    dims, test = tuple(fixed), split.test
    linear: Accuracies = {}
    nearest: Accuracies = {}
    systems = {name: {dims: network} for name, network in nested.items()}
    systems["FF"] = {(dim,): network for dim, network in fixed.items()}
    for name, networks in systems.items():
        linear[name], nearest[name] = {}, {}
        for widths, network in networks.items():
            queries, logits = network.outputs(test.features)
            shares = [share_right(answers, test.labels) for answers in logits.argmax(-1)]
            linear[name] |= dict(zip(widths, shares, strict=True))
            nearest[name] |= _one_nn(network.embed(split.train.features), queries, split, widths)
    full = fixed[dims[-1]]
    features, queries = full.embed(split.train.features), full.embed(test.features)
    for name, reduce in _reductions(features, seed).items():
        learned, asked = reduce(features), reduce(queries)
        nearest[name] = _one_nn(learned, asked, split, dims)
        if name == "SVD":
            linear[name] = {dim: _low_rank_head(full, dim, test) for dim in dims}
        else:
            linear[name] = {dim: _probed(learned[:, :dim], asked[:, :dim], split) for dim in dims}
    return linear, nearest


def _one_nn(features: np.ndarray, queries: np.ndarray, split: Split, dims: tuple[int, ...]) -> dict[int, float]:
    labels = split.train.labels, split.test.labels
    return dict(zip(dims, nearest_rows(features, queries, labels, dims), strict=True))


def _reductions(features: np.ndarray, seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return, by name, how rows are reduced, as learned from the training features."""
    return {
        "SVD": reductions.svd(features),
        "PCA": reductions.pca(features),
        "random columns": reductions.random_columns(features, seed),
    }


def _low_rank_head(network: Network, rank: int, test: Rows) -> float:
    logits = reductions.low_rank_logits(*network.only_classifier(), rank, network.embed(test.features))
    return share_right(logits.argmax(-1), test.labels)


def _probed(features: np.ndarray, queries: np.ndarray, split: Split) -> float:
    labels = split.train.labels
    logits = reductions.probe(features, labels, int(labels.max()) + 1)(queries)
    return share_right(logits.argmax(-1), split.test.labels)
