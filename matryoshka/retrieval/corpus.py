"""Rows to search, at any prefix of their width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from matryoshka import _checks
from matryoshka._array import arange, full, is_integer, namespace
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval import _exact, _scores
from matryoshka.retrieval._rows import Rows
from matryoshka.retrieval._top_k import ranking, take_along
from matryoshka.retrieval.funnel import Funnel

__all__ = ["Corpus"]

_SAFE = 1e-15, 1e15
"""Lengths of rows whose squares neither vanish nor overflow in float32, with room for short prefixes."""

_PART_NUMBERS = 1 << 23


class Corpus:
    """Embeddings to search exactly, at full width or through a funnel.

    Parameters
    ----------
    embeddings : array (n, dim), floating
        One row per item. Kept as it is: neither copied nor written to.
    metric : {"cosine", "ip", "l2"}, default "cosine"
        Similarity of two prefixes. "cosine" brings each prefix to unit length first, as the paper does; "ip" (inner
        product) and "l2" (negative squared distance) take the vectors as they are.
    search_dims : sequence of int, default ()
        Widths at which funnels will start: a contiguous block of these prefixes is built now. For any other width it
        is built at the first search and kept.

    Raises
    ------
    TypeError
        `embeddings` is no floating-point array.
    ValueError
        `embeddings` has no rows, no columns, or numbers that are not finite; or `search_dims` or `metric` do not fit.

    Notes
    -----
    Scores grow with similarity, and a row whose prefix is all zeros scores 0 under "cosine". Results are ordered by
    score, equal scores by id. Half-precision embeddings are computed with in float32. Scores agree with float64 within
    1e-5 for float32 rows of unit length, and equal rows score exactly equal.

    Examples
    --------
    >>> import numpy as np
    >>> corpus = Corpus(np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.6, 0.8]]))
    >>> scores, ids = corpus.search(np.array([[0.0, 2.0, 0.0]]), k=2)
    >>> scores, ids
    (array([[0.8, 0.6]]), array([[1, 2]]))
    """

    def __init__(self, embeddings: Array, *, metric: str = "cosine", search_dims: Iterable[int] = ()) -> None:
        self._xp: Namespace = namespace(("embeddings", embeddings))
        _checks.floating(embeddings, "embeddings", self._xp)
        _checks.ndim(embeddings, "embeddings", 2, "(n, dim)")
        _checks.not_empty(embeddings, "embeddings")
        _checks.not_empty(embeddings, "embeddings", axis=1)
        self._metric = _checks.choice(metric, "metric", _scores.METRICS)
        widths = _search_dims(search_dims, embeddings.shape[1])
        _checks.finite_rows(embeddings, "embeddings", self._xp)
        self._rows = Rows(embeddings, self._xp)
        if metric == "cosine":
            self._rows = Rows(embeddings, self._xp, _scale_of(self._rows, self._xp))
        self._prefixes: dict[int, _exact.Prefix] = {}
        for width in widths:
            self._prefix(width)

    @property
    def metric(self) -> str:
        """The similarity: "cosine", "ip" or "l2"."""
        return self._metric

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._rows.shape[1]

    @property
    def search_dims(self) -> tuple[int, ...]:
        """Widths that are ready to search: those declared, and those searched since."""
        return tuple(sorted(self._prefixes))

    def __len__(self) -> int:
        return self._rows.shape[0]

    def __repr__(self) -> str:
        return f"Corpus({len(self)} x {self.dim}, metric={self.metric!r}, search_dims={self.search_dims})"

    def search(self, queries: Array, k: int, *, funnel: Funnel | None = None) -> tuple[Array, Array]:
        """Find the `k` rows most similar to each query.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            Of the library and on the device of the corpus, in its dtype or in the one it is computed with.
        k : int
            Results per query, at least 1, and at most the last list of the funnel.
        funnel : Funnel, optional
            Search at its first width and rerank at the others. None searches exactly at full width.

        Returns
        -------
        scores : array (n_queries, k)
            Best first, in the dtype of the corpus (float32 for half precision); at the last width of the funnel.
        ids : array (n_queries, k)
            Rows of the corpus, in the default integer dtype. Where `k` exceeds the corpus, the rest has id -1 and
            score -inf.

        Raises
        ------
        TypeError
            `queries` is of another library or dtype, `k` is no integer, or `funnel` no funnel.
        ValueError
            `queries` has another width or numbers that are not finite, lies on another device, or `k` or `funnel` do
            not fit.
        """
        queries = self._queries(queries)
        k = _checks.integer(k, "k", minimum=1)
        plan = Funnel((self.dim,), ()) if funnel is None else self._plan(funnel, k)
        lists = [min(count, len(self)) for count in (*plan.keep, k)]
        prefix = self._prefix(plan.dims[0])

        def answer(queries: Array) -> tuple[Array, Array]:
            ids = _exact.candidates(prefix, queries[:, : prefix.dim], lists[0], self._xp)
            return self._rerank(queries, ids, plan.dims, lists, k)

        return self._in_parts(answer, max(lists), self.dim, queries)

    def rerank(self, queries: Array, ids: Array, k: int, *, dim: int) -> tuple[Array, Array]:
        """Order candidates by their similarity to the query at one width.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            As for `search`.
        ids : array (n_queries, m), integer
            Candidates of each query, in any order. -1 is padding and is passed over. Never written to.
        k : int
            Results per query, at least 1; where fewer candidates were given, the rest has id -1 and score -inf.
        dim : int
            Width of the prefix, at most that of the corpus.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `search`. An id that was given twice is returned twice.

        Raises
        ------
        TypeError
            As for `search`, or `ids` holds no integers.
        ValueError
            As for `search`, or `ids` has not one row per query, or holds an id outside [-1, n).
        """
        queries = self._queries(queries)
        ids = self._candidates(ids, queries.shape[0])
        k = _checks.integer(k, "k", minimum=1)
        dim = _checks.integer(dim, "dim", minimum=1, maximum=self.dim)

        def answer(queries: Array, ids: Array) -> tuple[Array, Array]:
            return self._rerank(queries, ids, (dim,), [ids.shape[1]], k)

        return self._in_parts(answer, ids.shape[1], dim, queries, ids)

    def _in_parts(
        self, answer: Callable[..., tuple[Array, Array]], n_candidates: int, dim: int, *arrays: Array
    ) -> tuple[Array, Array]:
        """Apply `answer` to a few queries at a time, so that their candidates need little memory."""
        n_queries, step = arrays[0].shape[0], max(1, _PART_NUMBERS // max(1, n_candidates * dim))
        parts = [
            answer(*(array[start : min(start + step, n_queries), ...] for array in arrays))
            for start in range(0, max(n_queries, 1), step)
        ]
        scores, ids = zip(*parts, strict=True)
        return self._xp.concat(scores), self._xp.concat(ids)

    def _rerank(
        self, queries: Array, ids: Array, dims: Sequence[int], lists: Sequence[int], k: int
    ) -> tuple[Array, Array]:
        """Score `ids` at dims[0], keep the best lists[0], add the columns up to dims[1], keep lists[1], and so on."""
        xp, total, start = self._xp, None, 0
        for dim, count in zip(dims, lists, strict=True):
            columns = slice(start, dim)
            rows = self._rows.take(xp.where(ids < 0, xp.zeros_like(ids), ids), columns)
            total = _scores.sums(self.metric, queries[:, columns], rows, xp, total)
            scores = _scores.scores(total, self._query_lengths(queries, dim), xp)
            scores = xp.where(ids < 0, xp.full_like(scores, -xp.inf), scores)
            best = ranking(scores, ids, min(count, ids.shape[1]), xp)
            scores, ids, total = take_along(scores, best, xp), take_along(ids, best, xp), total.take(best, xp)
            start = dim
        return _cut_or_pad(scores, ids, k, xp)

    def _prefix(self, dim: int) -> _exact.Prefix:
        if dim not in self._prefixes:
            self._prefixes[dim] = _exact.prefix(self._rows, dim, self.metric, self._xp)
        return self._prefixes[dim]

    def _queries(self, queries: Array) -> Array:
        """Check queries and return them in the dtype of sums, under "cosine" brought to unit length."""
        xp = self._xp
        namespace(("embeddings", self._rows.array), ("queries", queries))
        _checks.floating(queries, "queries", xp)
        if queries.dtype not in (self._rows.array.dtype, self._rows.dtype):
            msg = (
                f"`queries` must have the dtype of the corpus, {self._rows.array.dtype}, got {queries.dtype}; "
                "cast them."
            )
            raise TypeError(msg)
        _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
        _checks.shape(queries, "queries", (queries.shape[0], self.dim), "(n_queries, dim)")
        _checks.finite_rows(queries, "queries", xp)
        queries = xp.astype(queries, self._rows.dtype, copy=False)
        return truncate(queries, self.dim) if self.metric == "cosine" else queries

    def _candidates(self, ids: Array, n_queries: int) -> Array:
        xp = self._xp
        namespace(("embeddings", self._rows.array), ("ids", ids))
        if not is_integer(ids, xp):
            msg = f"`ids` must hold integers, got dtype {ids.dtype}; pass the ids that a search returned."
            raise TypeError(msg)
        _checks.ndim(ids, "ids", 2, "(n_queries, m)")
        _checks.shape(ids, "ids", (n_queries, ids.shape[1]), "(n_queries, m)")
        if 0 not in ids.shape and (int(xp.min(ids)) < -1 or int(xp.max(ids)) >= len(self)):
            msg = (
                f"`ids` must lie within [-1, {len(self)}), got {int(xp.min(ids))} to {int(xp.max(ids))}; "
                "pass row numbers of this corpus, or -1 for padding."
            )
            raise ValueError(msg)
        return xp.astype(ids, arange(1, like=ids, xp=xp).dtype, copy=False)

    def _plan(self, funnel: Funnel, k: int) -> Funnel:
        if not isinstance(funnel, Funnel):
            msg = f"`funnel` must be a Funnel, got {type(funnel).__name__}; pass Funnel(dims, keep)."
            raise TypeError(msg)
        _checks.dims_within(funnel.dims, self.dim, "funnel.dims")
        if funnel.keep and k > funnel.keep[-1]:
            msg = (
                f"`k` must be at most the last list of the funnel, {funnel.keep[-1]}, got {k}; "
                "keep more or ask for fewer."
            )
            raise ValueError(msg)
        return funnel

    def _query_lengths(self, queries: Array, dim: int) -> Array | None:
        return _scores.lengths(queries[:, :dim], self._xp) if self.metric == "cosine" else None


def _search_dims(values: Iterable[int], dim: int) -> tuple[int, ...]:
    if isinstance(values, Sequence) and not values:
        return ()
    widths = _checks.dims(values, "search_dims")
    _checks.dims_within(widths, dim, "search_dims")
    return widths


def _scale_of(rows: Rows, xp: Namespace) -> Array | None:
    """Return what to divide rows by before their numbers are squared: their largest ones, or None if all are safe."""
    largest = xp.concat([xp.max(xp.abs(block), axis=-1) for _, block in rows.slices(rows.shape[1])])
    least, most = _SAFE
    if bool(xp.all((largest == 0) | ((largest > least) & (largest < most)))):
        return None
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def _cut_or_pad(scores: Array, ids: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
    missing = k - ids.shape[1]
    if missing <= 0:
        return scores[:, :k], ids[:, :k]
    pad = (ids.shape[0], missing)
    return (
        xp.concat([scores, full(pad, -xp.inf, like=scores, xp=xp)], axis=-1),
        xp.concat([ids, full(pad, -1, like=ids, xp=xp)], axis=-1),
    )
