"""Rows that lie with the workers of Dask as a corpus: every stage of a funnel runs where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka import _checks, _files
from matryoshka._optional import require
from matryoshka.retrieval.engine import Stages
from matryoshka.retrieval.shards import Candidates, Shard, ShardedCorpus

dask = require("dask", extra="dask", purpose="`matryoshka.dask`")
da = require("dask.array", extra="dask", purpose="`matryoshka.dask`")

__all__ = ["DaskCorpus"]

_MERGED = 8
"""Lists that are merged at once."""


class DaskCorpus(ShardedCorpus):
    """A corpus in chunks of rows, each of them searched by the worker that holds it.

    Parameters
    ----------
    rows : dask.array.Array (n, dim) or path
        Cut along its rows only, into few large chunks: each of them must find all candidates of a query. The chunks
        are computed once and stay in the memory of the workers. Or a folder, whose .npy files, in the order of their
        names, are the chunks: each is opened by a worker, which reads of it what it needs.
    metric : {"cosine", "ip", "l2"}, default "cosine"
        The similarity.
    search_dims : sequence of int, default ()
        Widths at which funnels will start: workers build their blocks of prefixes now, otherwise at the first search.

    Raises
    ------
    TypeError
        `rows` is neither, or holds no floating-point numbers of NumPy.
    ValueError
        `rows` is cut along its columns, has chunks of unknown sizes, no rows, or numbers that are not finite; or an
        argument does not fit.
    FileNotFoundError
        A worker does not see the folder, or there is no .npy file in it.

    Notes
    -----
    Work goes to the scheduler that Dask has when the corpus is built: a ``distributed.Client`` if there is one, else
    threads of this process. A search asks that one, whatever else was started since. Of a search, queries go to the
    workers, ids and sums from worker to worker, 12 bytes for each candidate in float32 and 16 under "cosine", and what
    comes back are results: those of a `Corpus` of the same rows, to the last bit.

    A worker that is lost takes its chunks with it: Dask computes them anew on the others, and the search goes on.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from matryoshka import Funnel
    >>> embeddings = np.random.default_rng(0).normal(size=(500, 64)) * 0.9 ** np.arange(64)
    >>> corpus = DaskCorpus(da.from_array(embeddings, chunks=(250, 64)), search_dims=(16,))
    >>> scores, ids = corpus.search(embeddings[:2], k=3, funnel=Funnel((16, 64), (50,)))
    >>> ids.shape, ids[:, 0]
    ((2, 3), array([0, 1]))
    """

    def __init__(self, rows: Any, *, metric: str = "cosine", search_dims: Iterable[int] = ()) -> None:
        metric = _checks.choice(metric, "metric", _checks.METRICS)
        dims = tuple(_checks.sequence(search_dims, "search_dims", "integers", "for instance (8, 16, 32)"))
        dims = _checks.dims(dims, "search_dims") if dims else ()
        chunks = _chunks_of_array(rows) if isinstance(rows, da.Array) else _files_of(rows)
        make = dask.delayed(_shard, pure=False)
        shards = dask.persist(*(make(chunk, metric, dims) for chunk in chunks))
        outlines = dask.compute(*(shard.outline for shard in shards))
        super().__init__(outlines, metric=metric)
        if metric == "cosine" and not all(outline.safe for outline in outlines):
            shards = dask.persist(*(shard.scaled() for shard in shards))
        self._shards, self._scheduler = shards, dask.base.get_scheduler() or "threads"

    def _run(self, queries: np.ndarray, stages: Stages, given: Candidates | None) -> tuple[np.ndarray, np.ndarray]:
        if getattr(getattr(self._scheduler, "__self__", None), "status", "") == "closed":
            msg = "`rows` must lie with a client that is open, got a closed one; build the corpus anew with another."
            raise ConnectionError(msg)
        asked = dask.delayed(queries, pure=False)
        found: Any = None if given is None else dask.delayed(given, pure=False, traverse=False)
        done = 0
        shards = tuple(zip(self._shards, self._starts, strict=True))
        for dim, keep in zip(*stages, strict=True):
            if found is None:
                lists = [shard.search(asked, dim, keep, start, pure=False) for shard, start in shards]
            else:
                lists = [shard.rerank(asked, found, (done, dim), keep, start, pure=False) for shard, start in shards]
            found, done = _merged(lists, keep), dim
        result: tuple[np.ndarray, np.ndarray] = found.ranked(stages.lists[-1]).compute(scheduler=self._scheduler)
        return result


def _merged(lists: Sequence[Any], keep: int) -> Any:
    """Merge neighbouring lists, and then what came of them, until one is left."""
    merge = dask.delayed(_merge, pure=False)
    while len(lists) > 1:
        lists = [merge(lists[i : i + _MERGED], keep) for i in range(0, len(lists), _MERGED)]
    return lists[0]


def _merge(lists: Sequence[Candidates], keep: int) -> Candidates:
    return Candidates.join(lists).best(keep)


def _shard(chunk: np.ndarray | str, metric: str, search_dims: tuple[int, ...]) -> Shard:
    """Make a shard, on the worker that is to hold it."""
    if isinstance(chunk, str):
        return Shard(_files.load_array(chunk, "rows", mmap=True), metric=metric, search_dims=search_dims, name=chunk)
    return Shard(chunk, metric=metric, search_dims=search_dims)


def _chunks_of_array(rows: Any) -> list[Any]:
    """Check how an array is cut, and return its chunks without computing them."""
    _checks.ndim(rows, "rows", 2, "(n, dim)")
    if rows.dtype.kind != "f":
        msg = f"`rows` must hold floating-point numbers, got dtype {rows.dtype}; cast it, for instance to float32."
        raise TypeError(msg)
    if any(np.isnan(size) for axis in rows.chunks for size in axis):
        msg = "`rows` must have chunks of known sizes, got unknown ones; call rows.compute_chunk_sizes() first."
        raise ValueError(msg)
    _checks.not_empty(rows, "rows")
    _checks.not_empty(rows, "rows", axis=1)
    if rows.numblocks[1] > 1:
        msg = (
            f"`rows` must be cut along its rows only, got columns cut into {rows.chunks[1]}; "
            f"pass rows.rechunk(({max(rows.chunks[0])}, -1))."
        )
        raise ValueError(msg)
    chunks = rows.to_delayed().ravel().tolist()
    return [chunk for chunk, size in zip(chunks, rows.chunks[0], strict=True) if size]


def _files_of(folder: Any) -> list[str]:
    if not isinstance(folder, str | os.PathLike):
        kind = type(folder).__name__
        msg = f"`rows` must be a dask array or the path of a folder, got {kind}; pass dask.array.from_array(...)."
        raise TypeError(msg)
    found: list[str] = dask.delayed(_listed, pure=False)(os.fsdecode(folder)).compute()
    return found


def _listed(path: str) -> list[str]:
    """Name the files of a folder as a worker sees them."""
    found = sorted(str(file) for file in Path(path).absolute().glob("*.npy"))
    if not found:
        msg = f"`rows` must be a folder that workers see, with .npy files in it, got {path!r} without any; check it."
        raise FileNotFoundError(msg)
    return found
