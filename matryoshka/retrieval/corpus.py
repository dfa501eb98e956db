"""Rows to search, at any prefix of their width."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, arange, from_numpy, full, is_floating, is_integer, namespace, to_numpy
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval import _device, _scan, _stages
from matryoshka.retrieval._host import Sliceable, is_remote, is_sliceable, view, widen
from matryoshka.retrieval._prefix import Prefix, build, inspect
from matryoshka.retrieval._rows import DeviceRows, HostRows, Rows
from matryoshka.retrieval._scores import METRICS
from matryoshka.retrieval.funnel import Funnel

__all__ = ["Corpus"]

_QUERIES = 128
"""Queries that are searched for at once: enough to use each row that is read many times."""

_CANDIDATES = 1 << 22


class Corpus:
    """Embeddings to search exactly, at full width or through a funnel.

    Parameters
    ----------
    embeddings : array (n, dim), floating
        One row per item. Kept as it is, neither copied nor written to; do not change it afterwards. It may be
        memory-mapped, or no array at all but something with a shape and a dtype that gives slices of rows as NumPy
        arrays (an HDF5 or Zarr data set): then only lengths and prefixes stay in memory.
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
    1e-5 for float32 rows of unit length. Equal rows score exactly equal; neither the batch nor the number of threads
    shows in a result.

    Everything follows `embeddings`: library, device and dtype. NumPy arrays, and PyTorch and JAX arrays on the CPU,
    share one engine without copies, on as many threads as OMP_NUM_THREADS says, or else as there are CPUs. Elsewhere
    the library of the array does the work; queries are not checked for NaN there, because that would wait for the
    device, and of more than 32 rows that a matrix product cannot tell from the last result any may be returned.

    A corpus takes one pass over the rows to build, for a length per row and the blocks of `search_dims`, n x width
    numbers each in float32 or float64.

    Examples
    --------
    >>> import numpy as np
    >>> corpus = Corpus(np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.6, 0.8]]))
    >>> scores, ids = corpus.search(np.array([[0.0, 2.0, 0.0]]), k=2)
    >>> scores, ids
    (array([[0.8, 0.6]]), array([[1, 2]]))
    """

    def __init__(
        self, embeddings: Array | Sliceable, *, metric: str = "cosine", search_dims: Iterable[int] = ()
    ) -> None:
        like = np.empty(0, embeddings.dtype) if is_sliceable(embeddings) else embeddings
        xp = namespace(("embeddings", like))
        _checks.floating(like, "embeddings", xp)
        _checks.ndim(embeddings, "embeddings", 2, "(n, dim)")
        _checks.not_empty(embeddings, "embeddings")
        _checks.not_empty(embeddings, "embeddings", axis=1)
        self._metric = _checks.choice(metric, "metric", METRICS)
        widths = _search_dims(search_dims, embeddings.shape[1])
        self._like, self._xp = like, xp
        self._rows = _rows_of(embeddings, xp)
        self._rows.check()
        self._prefixes = inspect(self._rows, widths, metric)

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
        self._rows.check()
        prefix = self._prefix(plan.dims[0])
        step = max(1, min(_QUERIES, _CANDIDATES // lists[0]))
        found = []
        for start in range(0, max(1, queries.shape[0]), step):
            part = queries[start : min(start + step, queries.shape[0]), :]
            ids = self._first_stage(prefix, part, lists[0])
            found.append(_stages.rerank(self._rows, self.metric, part, ids, plan.dims, lists))
        return self._results(found, k)

    def rerank(
        self, queries: Array, ids: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Order candidates by their similarity to the query at one width, or through the later stages of a funnel.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            As for `search`.
        ids : array (n_queries, m), integer
            Candidates of each query, in any order. -1 is padding and is passed over. Never written to.
        k : int
            Results per query, at least 1; where fewer candidates were given, the rest has id -1 and score -inf.
        dim : int, optional
            Width of the prefix, at most that of the corpus. Give either this or `funnel`.
        funnel : Funnel, optional
            Take the candidates for what a search at its first width found (an approximate index, say), and rerank
            them at its second width, keep as many as it says, and so on.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `search`. An id that was given twice is returned twice.

        Raises
        ------
        TypeError
            As for `search`, or `ids` holds no integers, or not exactly one of `dim` and `funnel` is given.
        ValueError
            As for `search`, or `ids` has not one row per query, or holds an id outside [-1, n).
        """
        queries = self._queries(queries)
        ids = self._candidates(ids, queries.shape[0])
        k = _checks.integer(k, "k", minimum=1)
        if (dim is None) == (funnel is None):
            msg = "exactly one of `dim` and `funnel` must be given, got both or neither; leave one out."
            raise TypeError(msg)
        if funnel is None:
            dims: tuple[int, ...] = (_checks.integer(dim, "dim", minimum=1, maximum=self.dim),)
            lists: tuple[int, ...] = (k,)
        else:
            plan = self._plan(funnel, k)
            dims, lists = (plan.dims[1:], (*plan.keep[1:], k)) if plan.keep else (plan.dims, (k,))
        self._rows.check()
        return self._results([_stages.rerank(self._rows, self.metric, queries, ids, dims, lists)], k)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the corpus to a folder: rows, lengths and the prefixes built so far.

        Parameters
        ----------
        path : path
            The folder: new, empty, or one that this method wrote, which is replaced when the new one is whole; an error
            leaves it as it was.

        Raises
        ------
        OSError
            The folder cannot be written, or holds other things.
        """
        self._rows.check()
        from matryoshka.retrieval import _store

        _store.save(path, self._rows, self._prefixes, self.metric)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, like: Array | None = None) -> Corpus:
        """Read a corpus from the folder that `save` wrote.

        Parameters
        ----------
        path : path
            The folder.
        mmap : bool, default False
            Leave the rows in their file and read only those that are needed; prefixes are read either way.
        like : array, optional
            Any array of the library and on the device that queries will come from; NumPy by default.

        Returns
        -------
        Corpus
            With the prefixes that were saved. bfloat16, which NumPy lacks, takes float32 queries there.

        Raises
        ------
        FileNotFoundError
            There is no such folder.
        ValueError
            The folder holds no corpus, or a damaged one.
        """
        from matryoshka.retrieval import _store  # with what it needs of the standard library, slow to load

        record, arrays = _store.load(path, mmap=mmap)
        like = np.empty(0) if like is None else like
        corpus = cls.__new__(cls)
        corpus._xp = xp = namespace(("like", like))
        dtype = getattr(xp, record["dtype"], xp.float32)
        corpus._like = xp.astype(from_numpy(np.empty(0, np.float32), like=like, xp=xp), dtype, copy=False)
        corpus._metric = record["metric"]
        if view(like) is None:
            rows = arrays.pop("embeddings")
            moved = {name: from_numpy(array, like=like, xp=xp) for name, array in arrays.items()}
            rows = xp.astype(from_numpy(widen(rows), like=like, xp=xp), dtype, copy=False)
            corpus._rows, arrays = DeviceRows(rows, xp), moved
        else:
            corpus._rows = HostRows(arrays["embeddings"])
        corpus._prefixes = _store.restore(record, arrays, corpus._rows)
        return corpus

    def _scores_at(self, queries: Array, ids: Array, dims: Sequence[int]) -> list[np.ndarray]:
        """Return the scores (n_queries, m) of candidates without padding at several widths, in NumPy."""
        queries, ids = self._queries(queries), self._own(ids)
        return [to_numpy(scores) for scores in _stages.scores_at(self._rows, self.metric, queries, ids, dims)]

    def _cut(self, rows: Array, dim: int) -> Array:
        """Return prefixes as the metric compares them."""
        return truncate(rows, dim, normalize=self.metric == "cosine")

    def _cut_blocks(self, dim: int) -> Iterator[tuple[slice, Array]]:
        """Give the prefixes of all rows, a block at a time."""
        self._rows.check()
        return ((block, self._cut(self._rows.read(block, dim), dim)) for block in self._rows.blocks())

    def _forget(self, keep: Iterable[int]) -> None:
        """Drop the blocks of all widths but these."""
        self._prefixes = {dim: prefix for dim, prefix in self._prefixes.items() if dim in set(keep)}

    def _first_stage(self, prefix: Prefix, queries: Array, k: int) -> Array:
        """Return candidates that hold the best `k` of each query."""
        prepared = prefix.queries(queries)
        if isinstance(self._rows, DeviceRows):
            return _device.candidates(prefix, prepared, k, self._rows.xp)
        rows, metric = self._rows, self.metric

        def score(query: int, ids: np.ndarray) -> np.ndarray:
            scores: np.ndarray = _stages.score(rows, metric, queries[query : query + 1], ids[None, :], prefix.dim)[0]
            return scores

        return _scan.candidates(prefix, prepared, k, score)

    def _results(self, found: Sequence[tuple[Array, Array]], k: int) -> tuple[Array, Array]:
        """Join parts, cut or pad them to `k`, and give them back in the library of the corpus."""
        xp = self._rows.xp
        scores, ids = (parts[0] if len(parts) == 1 else xp.concat(parts) for parts in zip(*found, strict=True))
        scores, ids = _cut_or_pad(scores, ids, k, xp)
        if isinstance(self._rows, HostRows):
            scores, ids = (from_numpy(array, like=self._like, xp=self._xp) for array in (scores, ids))
        return scores, ids

    def _prefix(self, dim: int) -> Prefix:
        if dim not in self._prefixes:
            self._prefixes[dim] = build(self._rows, dim, self.metric)
        return self._prefixes[dim]

    def _queries(self, queries: Array) -> Array:
        """Check queries and return them as they are computed with: at unit length under "cosine"."""
        namespace(("embeddings", self._like), ("queries", queries))
        _checks.floating(queries, "queries", self._xp)
        if queries.dtype not in (self._like.dtype, accumulator_dtype(self._like, self._xp)):
            msg = f"`queries` must have the dtype of the corpus, {self._like.dtype}, got {queries.dtype}; cast them."
            raise TypeError(msg)
        _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
        _checks.shape(queries, "queries", (queries.shape[0], self.dim), "(n_queries, dim)")
        rows = self._own(queries)
        if not is_remote(rows):
            _checks.finite_rows(rows, "queries", namespace(("queries", rows)))
        return self._cut(rows, self.dim)

    def _own(self, array: Array) -> Array:
        """Bring an argument to where the rows are computed with."""
        if isinstance(self._rows, DeviceRows):
            wide = is_floating(array, self._xp)
            return self._xp.astype(array, self._rows.dtype, copy=False) if wide else array
        return widen(view(array)) if is_floating(array, self._xp) else view(array)

    def _candidates(self, ids: Array, n_queries: int) -> Array:
        """Check candidates and return them sorted."""
        namespace(("embeddings", self._like), ("ids", ids))
        if not is_integer(ids, self._xp):
            msg = f"`ids` must hold integers, got dtype {ids.dtype}; pass the ids that a search returned."
            raise TypeError(msg)
        _checks.ndim(ids, "ids", 2, "(n_queries, m)")
        _checks.shape(ids, "ids", (n_queries, ids.shape[1]), "(n_queries, m)")
        ids = self._own(ids)
        xp = namespace(("ids", ids))
        if 0 not in ids.shape and not is_remote(ids):
            least, most = int(xp.min(ids)), int(xp.max(ids))
            if least < -1 or most >= len(self):
                msg = (
                    f"`ids` must lie within [-1, {len(self)}), got {least} to {most}; "
                    "pass row numbers of this corpus, or -1 for padding."
                )
                raise ValueError(msg)
        return xp.sort(xp.astype(ids, arange(1, like=ids, xp=xp).dtype, copy=False), axis=-1)

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


def _rows_of(embeddings: Array | Sliceable, xp: Namespace) -> Rows:
    host = embeddings if is_sliceable(embeddings) else view(embeddings)
    return DeviceRows(embeddings, xp) if host is None else HostRows(host)


def _search_dims(values: Iterable[int], dim: int) -> tuple[int, ...]:
    if isinstance(values, Sequence) and not values:
        return ()
    widths = _checks.dims(values, "search_dims")
    _checks.dims_within(widths, dim, "search_dims")
    return widths


def _cut_or_pad(scores: Array, ids: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
    missing = k - ids.shape[1]
    if missing <= 0:
        return scores[:, :k], ids[:, :k]
    pad = (ids.shape[0], missing)
    return (
        xp.concat([scores, full(pad, -xp.inf, like=scores, xp=xp)], axis=-1),
        xp.concat([ids, full(pad, -1, like=ids, xp=xp)], axis=-1),
    )
