"""Rerank lists of candidates at ever wider prefixes, each adding its columns to the sums of the one before."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from matryoshka._array import row_blocks
from matryoshka._threads import each
from matryoshka._typing import Array, Namespace
from matryoshka.retrieval._rows import HostRows, Rows
from matryoshka.retrieval._scores import Sums, lengths, sums
from matryoshka.retrieval._top_k import keep_best, take_along, top_k

Result = TypeVar("Result")

_NUMBERS = 1 << 19
"""Numbers gathered at once: 2 MiB in float32, so that they are still in the cache when they are summed."""


def rerank(
    rows: Rows, metric: str, queries: Array, ids: Array, dims: Sequence[int], lists: Sequence[int]
) -> tuple[Array, Array]:
    """Score candidates at dims[0] and keep the best lists[0], add the columns up to dims[1], keep lists[1], and so on.

    Parameters
    ----------
    rows : Rows
        The corpus.
    metric : str
        The similarity.
    queries : array (n_queries, dim)
        At full width, of unit length under "cosine".
    ids : array (n_queries, m)
        In ascending order; -1 is padding.
    dims, lists : sequence of int
        Widths, and how many candidates each leaves.

    Returns
    -------
    scores, ids : array (n_queries, at most lists[-1])
        Best first, equal scores by id.
    """
    if queries.shape[0] == 1:
        return _descend(rows, metric, queries, ids, dims, lists)
    widths = [dim - start for start, dim in itertools.pairwise((0, *dims))]
    widest = max(m * width for m, width in zip((ids.shape[1], *lists), widths, strict=False))

    def descend(part: slice) -> tuple[Array, Array]:
        return _descend(rows, metric, queries[part, :], ids[part, :], dims, lists)

    parts = _in_parts(descend, rows, queries.shape[0], widest)
    if len(parts) == 1:
        return parts[0]
    scores, best = (rows.xp.concat(arrays) for arrays in zip(*parts, strict=True))
    return scores, best


def _in_parts(work: Callable[[slice], Result], rows: Rows, n_queries: int, numbers: int) -> list[Result]:
    """Apply `work` to a few queries at a time, each of which gathers so many numbers."""
    parts = row_blocks(n_queries, max(1, _NUMBERS // max(1, numbers)))
    return each(work, parts) if isinstance(rows, HostRows) else [work(part) for part in parts]


def score(rows: Rows, metric: str, queries: Array, ids: Array, dim: int) -> Array:
    """Return the scores (n_queries, m) of candidates at one width."""
    return _sums(rows, metric, queries, ids, slice(0, dim)).scores(lengths_of(queries, dim, metric, rows.xp), rows.xp)


def _descend(
    rows: Rows, metric: str, queries: Array, ids: Array, dims: Sequence[int], lists: Sequence[int]
) -> tuple[Array, Array]:
    xp, total, start = rows.xp, None, 0
    # on a device, nobody waits to look
    padded = not isinstance(ids, np.ndarray) or bool(ids.size and ids[:, 0].min() < 0)
    for dim, count in zip(dims, lists, strict=True):
        taken = xp.where(ids < 0, xp.zeros_like(ids), ids) if padded else ids
        total = _sums(rows, metric, queries, taken, slice(start, dim), total)
        scores = total.scores(lengths_of(queries, dim, metric, xp), xp)
        if padded:
            scores = xp.where(ids < 0, xp.full_like(scores, -xp.inf), scores)
        best = (top_k if dim == dims[-1] else keep_best)(scores, min(count, ids.shape[1]), xp)
        ids, start = take_along(ids, best, xp), dim
        if dim < dims[-1]:
            total = total.take(best, xp)
    return take_along(scores, best, xp), ids


def add_columns(rows: Rows, metric: str, queries: np.ndarray, ids: np.ndarray, columns: slice, before: Sums) -> Sums:
    """Return the sums of candidates up to the end of `columns`, given those up to their start, if there are any.

    What -1, which is padding, adds up to means nothing.
    """
    taken = np.maximum(ids, 0)

    def add(part: slice) -> Sums:
        return _sums(rows, metric, queries[part], taken[part], columns, before.of(part) if columns.start else None)

    parts = _in_parts(add, rows, len(queries), ids.shape[1] * (columns.stop - columns.start))
    return parts[0] if len(parts) == 1 else Sums.join(parts, np, axis=0)


def _sums(rows: Rows, metric: str, queries: Array, ids: Array, columns: slice, before: Sums | None = None) -> Sums:
    """Add columns to the sums `before`; the squares of whole rows are known and need no sum."""
    xp, known = rows.xp, None
    if metric == "cosine" and columns.stop == rows.shape[1]:
        known = xp.reshape(xp.take(rows.squares, xp.reshape(ids, (-1,))), ids.shape)

    def add(some: Array) -> Sums:
        taken = rows.take(some, columns)
        return sums(metric, queries[:, columns], taken, xp, squares=metric == "cosine" and known is None)

    step = max(1, 4 * _NUMBERS // max(1, queries.shape[0] * (columns.stop - columns.start)))
    if ids.shape[1] <= step:
        added = add(ids)
    else:
        added = Sums.join([add(ids[:, block]) for block in row_blocks(ids.shape[1], step)], xp, axis=1)
    total = added if before is None else before.plus(added)
    return total if known is None else Sums(total.products, known)


def lengths_of(queries: Array, dim: int, metric: str, xp: Namespace) -> Array | None:
    """Return the lengths (n_queries,) of prefixes of queries, if scores need them."""
    return lengths(queries[:, :dim], xp) if metric == "cosine" else None
