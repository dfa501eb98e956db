"""Which nearest neighbours are kept when only some columns are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from matryoshka.audit._sample import Sample
from matryoshka.embeddings import truncate
from matryoshka.metrics import nearest_class_mean_accuracy, nearest_neighbor_accuracy


class Survival(NamedTuple):
    """What happens to the nearest neighbours of each query at each width (G widths, q queries)."""

    kept: np.ndarray
    """(G, q): share of the k neighbours at full width that are among the nearest k."""
    places: np.ndarray
    """(G, q, k): rank of each of these neighbours among all rows, counted from 1; tied rows have the last rank."""
    nearest: np.ndarray
    """(G, q): the nearest row."""


def neighbours(sample: Sample, k: int) -> np.ndarray:
    """Return the k nearest rows of each query at full width (q, k), in no order."""
    (scores,) = _scores(sample.rows, sample.n_queries, (sample.rows.shape[1],))
    return np.argpartition(scores, -k, axis=1)[:, -k:]


def survival(sample: Sample, dims: tuple[int, ...], exact: np.ndarray) -> Survival:
    """Measure the prefixes in detail."""
    kept, places, nearest = [], [], []
    for scores in _scores(sample.rows, sample.n_queries, dims):
        own = np.take_along_axis(scores, exact, axis=1)
        kept.append(_kept(scores, own, exact.shape[1]))
        places.append(np.stack([np.count_nonzero(scores >= own[:, i, None], axis=1) for i in range(own.shape[1])], 1))
        nearest.append(np.argmax(scores, axis=1))
    return Survival(np.stack(kept), np.stack(places), np.stack(nearest))


def mean_kept(rows: np.ndarray, dims: tuple[int, ...], exact: np.ndarray) -> np.ndarray:
    """Return the mean share of neighbours that the prefixes of `rows` keep (G,)."""
    return np.asarray(kept_among(rows, dims, exact, (exact.shape[1],))[0].mean(axis=1))


def nearest_rows(rows: np.ndarray, dims: tuple[int, ...], n_queries: int) -> np.ndarray:
    """Return the nearest other row of each query (G, q) by prefixes of `rows`."""
    return np.stack([np.argmax(scores, axis=1) for scores in _scores(rows, n_queries, dims)])


def kept_among(rows: np.ndarray, dims: tuple[int, ...], exact: np.ndarray, lists: Sequence[int]) -> np.ndarray:
    """Return the share of neighbours (lists, G, q) that prefixes of `rows` find in lists of these lengths."""
    return np.stack([_in_lists(scores, exact, lists) for scores in _scores(rows, len(exact), dims)], axis=1)


def kept_by_bits(rows: np.ndarray, dims: tuple[int, ...], exact: np.ndarray, length: int) -> np.ndarray:
    """Return the mean share of neighbours (G,) in lists of this length that are found by one bit per column.

    A bit tells whether a column of the normalised prefix exceeds its mean; rows are compared by the number of bits that
    they share. Tied rows share the places for which they tie.
    """
    shares = []
    for dim in dims:
        prefixes = truncate(rows, dim)
        signs = np.where(prefixes > prefixes.mean(axis=0), np.float32(1), np.float32(-1))
        scores = signs[: len(exact)] @ signs.T  # whole numbers, and so exact
        np.fill_diagonal(scores, -np.inf)
        shares.append(_in_lists(scores, exact, (length,)).mean())
    return np.array(shares)


def principal(rows: np.ndarray) -> np.ndarray:
    """Rotate rows so that their variance falls from column to column; lengths and products stay as they are."""
    centred = rows - rows.mean(axis=0)
    if len(rows) < rows.shape[1]:
        directions = np.linalg.svd(centred, full_matrices=False)[2].T
        rotated = rows @ directions
        # Only their mean lies outside these directions, so one more column preserves every product.
        rest = rows - rotated @ directions.T
        return np.concatenate((rotated, np.linalg.norm(rest, axis=1, keepdims=True)), axis=1)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    return np.asarray(rows @ directions)


def accuracies(
    sample: Sample, labels: np.ndarray, dims: tuple[int, ...], nearest: np.ndarray
) -> tuple[list[float], list[float]]:
    """Return 1-NN accuracy (of queries, among all other rows) and class-mean accuracy (of one half, by the other)."""
    half = len(labels) // 2
    by_mean = []
    for dim in dims:
        prefix = truncate(sample.rows, dim)
        by_mean.append(nearest_class_mean_accuracy(prefix[half:], labels[half:], prefix[:half], labels[:half]))
    return neighbour_accuracies(nearest, labels), by_mean


def neighbour_accuracies(nearest: np.ndarray, labels: np.ndarray) -> list[float]:
    """Return 1-NN accuracy at each width, from the nearest rows of the queries (G, q) and the labels of all rows."""
    return [nearest_neighbor_accuracy(ids[:, None], labels, labels[: len(ids)]) for ids in nearest]


def _scores(rows: np.ndarray, n_queries: int, dims: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield for each prefix the similarities of queries and rows (q, n), in one reused array; -inf to a query itself.

    Dot products and squared lengths are running sums over the prefixes. The length of the query itself is left out,
    which does not change the order of its neighbours.
    """
    products = np.zeros((n_queries, len(rows)), dtype=np.float32)
    squares = np.zeros(len(rows), dtype=np.float32)
    scores = np.empty_like(products)
    start = 0
    for dim in dims:
        block = rows[:, start:dim]
        products += block[:n_queries] @ block.T
        squares += np.einsum("ij,ij->i", block, block)
        np.multiply(products, 1.0 / np.sqrt(np.where(squares > 0, squares, np.inf)), out=scores)
        np.fill_diagonal(scores, -np.inf)
        yield scores
        start = dim


def _in_lists(scores: np.ndarray, exact: np.ndarray, lists: Sequence[int]) -> np.ndarray:
    own = np.take_along_axis(scores, exact, axis=1)
    return np.stack([_kept(scores, own, length) for length in lists])


def _kept(scores: np.ndarray, own: np.ndarray, length: int) -> np.ndarray:
    """Return the share of the scores `own` (q, k) that are among the best `length` of all (q,).

    Tied scores share the places that they tie for.
    """
    last = np.partition(scores, -length, axis=1)[:, -length, None]
    above = np.count_nonzero(scores > last, axis=1)
    tied = np.count_nonzero(scores == last, axis=1)
    at_last = np.count_nonzero(own == last, axis=1)
    return np.asarray((np.count_nonzero(own > last, axis=1) + at_last * (length - above) / tied) / own.shape[1])
