"""How good each prefix is by itself: accuracy of a linear head and of the nearest neighbour, beside the alternatives.

The alternatives all start from FF at the full width, a network trained without nesting:

- SVD, linear: its head is replaced by the truncation to rank m; its features stay whole, so this is no embedding of m
  numbers, and above the number of classes it changes nothing. 1-NN: its features are projected on the m leading right
  singular vectors of the training features.
- PCA: as SVD with the mean removed first; linear: a new linear classifier is fitted on the projections.
- random columns: m of its columns; linear: a new linear classifier is fitted on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from benchmarks.study.data import Rows, Split
from benchmarks.study.networks import Network
from matryoshka import Corpus, Funnel, metrics

METHODS = ("MRL", "MRL-E", "FF", "SVD", "PCA", "random columns")

Accuracies = dict[str, dict[int, float]]
"""Accuracy of each method at each width."""


def linear(nested: dict[str, Network], fixed: dict[int, Network], split: Split, seed: int) -> Accuracies:
    """Return the accuracy on the test rows of a linear classifier on each width."""
    dims, test = tuple(fixed), split.test
    found: Accuracies = {}
    for name, network in nested.items():
        answers = network.probabilities(test.features).argmax(-1)
        found[name] = {dim: _share(answer, test.labels) for dim, answer in zip(dims, answers, strict=True)}
    found["FF"] = {
        dim: _share(network.probabilities(test.features)[0].argmax(-1), test.labels) for dim, network in fixed.items()
    }
    full = fixed[dims[-1]]
    found["SVD"] = {dim: _low_rank_head(full, dim, test) for dim in dims}
    features, queries = full.embed(split.train.features), full.embed(test.features)
    for name, reduce in _reductions(features, seed).items():
        if name != "SVD":
            found[name] = {
                dim: _probe(reduce(features, dim), split.train.labels, reduce(queries, dim), test.labels)
                for dim in dims
            }
    return found


def nearest_neighbor(nested: dict[str, Network], fixed: dict[int, Network], split: Split, seed: int) -> Accuracies:
    """Return the share of test rows whose nearest training row, by cosine at each width, has their label."""
    dims = tuple(fixed)
    found: Accuracies = {}
    for name, network in nested.items():
        found[name] = _one_nn(network.embed(split.train.features), network.embed(split.test.features), split, dims)
    found["FF"] = {}
    for dim, network in fixed.items():
        found["FF"] |= _one_nn(network.embed(split.train.features), network.embed(split.test.features), split, (dim,))
    full = fixed[dims[-1]]
    features, queries = full.embed(split.train.features), full.embed(split.test.features)
    for name, reduce in _reductions(features, seed).items():
        found[name] = _one_nn(reduce(features, dims[-1]), reduce(queries, dims[-1]), split, dims)
    return found


def _one_nn(features: np.ndarray, queries: np.ndarray, split: Split, dims: tuple[int, ...]) -> dict[int, float]:
    corpus = Corpus(features)
    found = {}
    for dim in dims:
        _, ids = corpus.search(queries, 1, funnel=Funnel((dim,), ()))
        found[dim] = metrics.nearest_neighbor_accuracy(ids, split.train.labels, split.test.labels)
    return found


def _reductions(features: np.ndarray, seed: int) -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """Return, by name, how rows are reduced to m numbers, as learned from the training features."""
    mean = features.mean(axis=0)
    singular, principal = _right_singular_vectors(features), _right_singular_vectors(features - mean)
    columns = np.random.default_rng(seed).permutation(features.shape[1])
    return {
        "SVD": lambda rows, dim: rows @ singular[:, :dim],
        "PCA": lambda rows, dim: (rows - mean) @ principal[:, :dim],
        "random columns": lambda rows, dim: rows[:, columns[:dim]],
    }


def _right_singular_vectors(features: np.ndarray) -> np.ndarray:
    """Return them as columns, leading ones first: all of them, even where there are fewer rows than columns."""
    wide = features.astype(np.float64)
    return np.linalg.eigh(wide.T @ wide)[1][:, ::-1].astype(features.dtype)


def _low_rank_head(network: Network, rank: int, test: Rows) -> float:
    weight, bias = network.only_classifier()
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    logits = network.embed(test.features) @ ((left[:, :rank] * values[:rank]) @ right[:rank]).T + bias
    return _share(logits.argmax(-1), test.labels)


def _probe(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray) -> float:
    """Fit a linear classifier on standardised features; stopping early is good enough for a baseline."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation == 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=200).fit((features - mean) / deviation, labels)
    return _share(fitted.predict((queries - mean) / deviation), query_labels)


def _share(answers: np.ndarray, labels: np.ndarray) -> float:
    return float((answers == labels).mean())
