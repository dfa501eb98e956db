"""A collection of Qdrant as a corpus: every stage of a funnel runs in the engine, in this process or on a server."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from matryoshka import _checks, _qdrant
from matryoshka._array import from_numpy, is_integer, namespace, to_numpy
from matryoshka._optional import require
from matryoshka._typing import Array
from matryoshka.embeddings import truncate
from matryoshka.nesting import Nesting
from matryoshka.retrieval import Funnel

__all__ = ["QdrantCorpus"]

_BATCH_NUMBERS = 1 << 18
"""Numbers that are uploaded, or asked with, at once: some 5 MB of JSON, where a server takes 32."""

_WIDEST = 65_536
"""Columns of a vector in Qdrant at most."""

_LARGEST_ID = 2**63 - 1
"""Of what NumPy counts with; Qdrant has UUIDs, and integers of 64 bits without a sign."""

_DISTANCES = {"cosine": "Cosine", "ip": "Dot", "l2": "Euclid"}
_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10}
"""Of the engine, but for the threshold: what is indexed is searched by the index."""

_Layout = tuple[str, tuple[int, ...], tuple[int, ...], bool, bool]
"""Metric, stored widths, those that funnels start at, and whether these have an index, and bits."""
_Stages = list[tuple[int, int]]
"""Widths of stages, and how many rows each leaves."""


class QdrantCorpus:
    """A collection with a named vector for each width, searched and reranked by its engine.

    Parameters
    ----------
    client_or_path : path or qdrant_client.QdrantClient
        A folder of collections, for the engine in this process (qdrant-edge-py), or a client of a server.
    name : str
        Name of the collection, one that `create` made.

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        There is no such collection, or its vectors are not prefixes named by their widths, or the server refuses.
    ConnectionError
        The server cannot be reached, or does not answer in the time that the client waits; or the folder is damaged or
        open in another process. This and every other error names the address, and never a password or a key.

    Notes
    -----
    Scores are those of a `Corpus` of the same rows in float32, and so are ids where no rows are equal and all lie on
    one shard: among equal scores at the end of a list the engine chooses, and each shard makes lists of its own, so
    that more shards find more. Results are ordered by score, then by id. A batch of queries is one request, each a
    nested prefetch: a search at the first width, and the later stages on what it found.

    A row is stored once for each width, so that stages may have no other widths than these. Those that only rerank
    lie on the disk, without an index. What is exact uses neither index nor bits. A collection may change: `len` is
    that at construction.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from matryoshka import Funnel
    >>> embeddings = np.random.default_rng(0).normal(size=(500, 64)) * 0.9 ** np.arange(64)
    >>> corpus = QdrantCorpus.create(tempfile.mkdtemp(), "items", embeddings, dims=(16, 64))
    >>> scores, ids = corpus.search(embeddings[:2], k=3, funnel=Funnel((16, 64), (50,)))
    >>> ids.shape, ids[:, 0]
    ((2, 3), array([0, 1]))
    """

    def __init__(self, client_or_path: Any, name: str) -> None:
        self._engine = _qdrant.engine(client_or_path, name)
        vectors = self._engine.vectors()
        if vectors is None:
            msg = f"`name` must be a collection, got none at {self._engine.address}; check it, or `create` one."
            raise ValueError(msg)
        self._metric, self._dims, self._search_dims, self._indexed, self._bits = self._read(vectors)
        self._n = self._engine.count()

    @classmethod
    def create(
        cls,
        client_or_path: Any,
        name: str,
        embeddings: Array,
        *,
        metric: str = "cosine",
        dims: Iterable[int] | None = None,
        search_dims: Iterable[int] | None = None,
        index: bool = False,
        bits: bool = False,
    ) -> QdrantCorpus:
        """Make a collection of embeddings, or go on where an upload of them was interrupted.

        Parameters
        ----------
        client_or_path, name
            As for the class; a folder is made where there is none.
        embeddings : array (n, dim), floating
            One row per item, stored in float32; its number is its id. At most 65,536 columns.
        metric : {"cosine", "ip", "l2"}, default "cosine"
            The similarity.
        dims : sequence of int, optional
            Widths that stages may have; the full width is added. By default halved from there down to 8, which
            `Funnel.calibrate` tries by default.
        search_dims : sequence of int, optional
            Widths at which funnels start, kept in memory, and added to `dims`. By default all but the full width.
        index : bool, default False
            Build an HNSW index of each of these, for funnels to start with; otherwise they start with an exact search.
        bits : bool, default False
            Keep each of these in one bit a column too, the sign: funnels may start with ``code="bits"``.

        Returns
        -------
        QdrantCorpus
            Of the collection.

        Raises
        ------
        TypeError
            An argument is of the wrong kind.
        ValueError
            Numbers are not finite in float32, an argument does not fit, or the collection exists with other widths,
            another metric or other content, of which nothing is changed; or the server refuses.
        ConnectionError
            As for the class.

        Notes
        -----
        A batch of rows that was acknowledged is there to stay, even if the process is killed. A second call with the
        same embeddings compares the checksums of the rows that are there, and uploads those that are not. A bar shows
        how far it is where standard error is a terminal.
        """
        _checks.choice(metric, "metric", _DISTANCES)
        _checks.floating(embeddings, "embeddings", namespace(("embeddings", embeddings)))
        _checks.ndim(embeddings, "embeddings", 2, "(n, dim)")
        dim = _checks.integer(embeddings.shape[1], "embeddings.shape[1]", minimum=1, maximum=_WIDEST)
        index, bits = _checks.flag(index, "index"), _checks.flag(bits, "bits")
        starts = None if search_dims is None else _widths(search_dims, "search_dims", dim)
        widths = Nesting.halving(dim, smallest=min(8, dim)).dims if dims is None else _widths(dims, "dims", dim)
        widths = tuple(sorted({*widths, *(starts or ()), dim}))
        starts = widths[:-1] if starts is None else starts
        layout = (metric, widths, starts, index and bool(starts), bits and bool(starts))
        engine = _qdrant.engine(client_or_path, name)
        if engine.vectors() is None:
            engine.create(_vectors(layout))
        corpus = cls(client_or_path, name)
        found = (corpus._metric, corpus._dims, corpus._search_dims, corpus._indexed, corpus._bits)
        if found != layout:
            msg = (
                f"`name` must be new or a collection of these arguments, got at {engine.address} metric {found[0]!r}, "
                f"dims={found[1]}, search_dims={found[2]}, index={found[3]}, bits={found[4]}; choose another name."
            )
            raise ValueError(msg)
        corpus._fill(embeddings)
        return cls(client_or_path, name)

    @property
    def client(self) -> Any:
        """The client, or the shard of the engine in this process: for filters, payloads and whatever else it does."""
        return self._engine.client

    @property
    def metric(self) -> str:
        """The similarity: "cosine", "ip" or "l2"."""
        return self._metric

    @property
    def dims(self) -> tuple[int, ...]:
        """Widths that are stored, which stages may have."""
        return self._dims

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._dims[-1]

    @property
    def search_dims(self) -> tuple[int, ...]:
        """Widths at which funnels start."""
        return self._search_dims

    @property
    def codes(self) -> tuple[str, ...]:
        """How a first stage may compare: in numbers, and in bits where these are kept."""
        return ("float", "bits") if self._bits else ("float",)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        what = f"{self._engine.address}, {len(self)} x {self.dim}, metric={self.metric!r}, dims={self.dims}"
        return f"QdrantCorpus({what}, search_dims={self.search_dims}, index={self._indexed}, bits={self._bits})"

    def search(
        self, queries: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Find the `k` rows most similar to each query, in the engine.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            Of any array library; compared in float32.
        k : int
            Results per query, at least 1, and at most the last list of the funnel.
        dim : int, optional
            Compare the first `dim` columns only, exactly; one of `dims`.
        funnel : Funnel, optional
            Search at its first width, one of `search_dims`, by the index if there is one, and rerank at the others.
            With neither this nor `dim` the search is exact at full width; so it is with the full width alone, unless
            `search_dims` names that.

        Returns
        -------
        scores : array (n_queries, k)
            As for `Corpus.search`, in float32 and in the library of `queries`.
        ids : array (n_queries, k)
            Ids of the rows; where fewer were found, the rest has id -1 and score -inf.

        Raises
        ------
        TypeError, ValueError
            As for `Corpus.search`, or the collection has no such widths or no bits.
        ConnectionError
            As for the class.
        """
        if dim is not None and funnel is not None:
            msg = "at most one of `dim` and `funnel` may be given, got both; leave one out."
            raise TypeError(msg)
        asked, stages, code = self._asked(queries, k, dim, funnel)
        start, starts = stages[0][0], self.search_dims
        whole = len(stages) == 1 and start == self.dim and code == "float"
        if funnel is not None and start not in starts and not whole:
            msg = f"`funnel` must start at one of the `search_dims`, {starts}, got {start}; change one."
            raise ValueError(msg)
        if code == "bits" and len(stages) == 1:
            stages *= 2
        near = code == "bits" or (funnel is not None and self._indexed and start in starts)
        return self._run(queries, asked, stages, code=code, near=near)

    def rerank(
        self, queries: Array, ids: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Order candidates by their similarity to the query, in the engine.

        Parameters
        ----------
        queries, k, dim, funnel
            As for `Corpus.rerank`; at widths among `dims`.
        ids : array (n_queries, m), integer
            Candidates of each query, in any order; -1 and whatever else is no id of the collection is passed over.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `search`. An id that was given twice is returned once.

        Raises
        ------
        TypeError, ValueError, ConnectionError
            As for `search` and `Corpus.rerank`.
        """
        if (dim is None) == (funnel is None):
            msg = "exactly one of `dim` and `funnel` must be given, got both or neither; leave one out."
            raise TypeError(msg)
        asked, stages, _ = self._asked(queries, k, dim, funnel)
        if not is_integer(ids, namespace(("queries", queries), ("ids", ids))):
            msg = f"`ids` must hold integers, got dtype {ids.dtype}; pass the ids that a search returned."
            raise TypeError(msg)
        _checks.ndim(ids, "ids", 2, "(n_queries, m)")
        _checks.shape(ids, "ids", (len(asked), ids.shape[1]), "(n_queries, m)")
        return self._run(queries, asked, stages[1:] or stages, ids=to_numpy(ids))

    def close(self) -> None:
        """Close the folder, so that another process may open it; a client stays open.

        A search after this opens the folder again. A corpus that is gone has closed it too.
        """
        self._engine.close()

    def _read(self, vectors: dict[str, _qdrant.Json]) -> _Layout:
        """Return what the named vectors of a collection say of it."""
        sizes, names = (
            {vector["size"]: vector for vector in vectors.values()},
            {str(v["size"]) for v in vectors.values()},
        )
        kinds = {vector["distance"] for vector in vectors.values()}
        metric = next((metric for metric, distance in _DISTANCES.items() if {distance} == kinds), None)
        if metric is None or names != set(vectors):
            got = f"{', '.join(map(repr, vectors)) or 'none'} ({', '.join(sorted(kinds))})"
            rule = "`name` must be a collection of vectors named by their widths, of one metric"
            msg = f"{rule}, got from {self._engine.address}: {got}; `create` one."
            raise ValueError(msg)
        dims = tuple(sorted(sizes))
        starts = tuple(dim for dim in dims if not sizes[dim].get("on_disk"))
        indexed = any((sizes[dim].get("hnsw_config") or _HNSW).get("m") != 0 for dim in starts)
        return metric, dims, starts, indexed, any(sizes[dim].get("quantization_config") for dim in starts)

    def _fill(self, embeddings: Array) -> None:
        """Compare the rows that are there, then upload those that are not."""
        n, size = embeddings.shape[0], max(1, _BATCH_NUMBERS // sum(self._dims))
        there = np.full(n, -1)
        same = True
        for i, checksum in self._engine.checksums():
            same = same and isinstance(i, int) and isinstance(checksum, int) and i < n
            if same:
                there[i] = checksum
        blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        for block in blocks if same else ():
            held = there[block] >= 0
            same = same and (not held.any() or bool((_checksums(_rows(embeddings, block)) == there[block])[held].all()))
        if not same:
            msg = (
                f"`name` must be new or a collection of rows of `embeddings`, got others at {self._engine.address}; "
                "choose another name."
            )
            raise ValueError(msg)
        tqdm = require("tqdm", extra="qdrant", purpose="the progress bar")
        with tqdm.tqdm(total=n, unit="row", disable=None) as bar:
            for block in blocks:
                new = np.flatnonzero(there[block] < 0)
                if len(new):
                    rows = _rows(embeddings, block)[new]
                    vectors = {str(dim): values for dim, values in self._prefixes(rows, self._dims)}
                    self._engine.upsert((new + block.start).tolist(), vectors, _checksums(rows).tolist())
                bar.update(block.stop - block.start)
        self._engine.finish()

    def _prefixes(self, rows: np.ndarray, dims: Iterable[int]) -> Iterator[tuple[int, list[list[float]]]]:
        """Give prefixes as the metric compares them: the engine leaves short vectors as long as they are."""
        wide = rows.astype(np.float64)
        for dim in dims:
            prefixes = truncate(wide, dim, normalize=self.metric == "cosine")
            yield dim, prefixes.astype(np.float32).tolist()

    def _asked(self, queries: Array, k: int, dim: int | None, funnel: Funnel | None) -> tuple[np.ndarray, _Stages, str]:
        """Check what is asked; return the queries, the stages, and the code of the first."""
        _checks.floating(queries, "queries", namespace(("queries", queries)))
        _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
        _checks.shape(queries, "queries", (queries.shape[0], self.dim), "(n_queries, dim)")
        with np.errstate(over="ignore"):
            rows = to_numpy(queries).astype(np.float64 if self.metric == "cosine" else np.float32)
        _checks.finite_rows(rows, "queries", np)
        k = _checks.integer(k, "k", minimum=1)
        _checks.result_size(len(rows), k)
        if funnel is None:
            funnel = Funnel((self.dim if dim is None else _checks.integer(dim, "dim", minimum=1, maximum=self.dim),))
        if not isinstance(funnel, Funnel):
            msg = f"`funnel` must be a Funnel, got {type(funnel).__name__}; pass Funnel(dims, keep)."
            raise TypeError(msg)
        _checks.dims_within(funnel.dims, self.dim, "funnel.dims")
        if not {*funnel.dims} <= {*self.dims}:
            name, got = ("funnel.dims", funnel.dims) if dim is None else ("dim", dim)
            msg = f"`{name}` must be of the widths that are stored, {self.dims}, got {got}; `create` it with these."
            raise ValueError(msg)
        if funnel.code not in self.codes:
            msg = f"`funnel.code` must be one of {self.codes}, got {funnel.code!r}; `create` with bits=True."
            raise ValueError(msg)
        if funnel.keep and k > funnel.keep[-1]:
            msg = f"`k` must be at most the last list of the funnel, {funnel.keep[-1]}, got {k}; keep more."
            raise ValueError(msg)
        return rows, list(zip(funnel.dims, (*funnel.keep, k), strict=True)), funnel.code

    def _run(
        self,
        queries: Array,
        asked: np.ndarray,
        stages: _Stages,
        *,
        code: str = "float",
        near: bool = False,
        ids: np.ndarray | None = None,
    ) -> tuple[Array, Array]:
        """Run stages for a batch of queries; return the best in the library of the queries."""
        best, xp = np.full((len(asked), stages[-1][1]), -1), namespace(("queries", queries))
        scores, size = np.full(best.shape, -np.inf, np.float32), max(1, _BATCH_NUMBERS // sum(dim for dim, _ in stages))
        for start in range(0, len(asked), size):
            prefixes = dict(self._prefixes(asked[start : start + size], {dim for dim, _ in stages}))
            requests = []
            for i in range(len(asked[start : start + size])):
                vectors = {dim: rows[i] for dim, rows in prefixes.items()}
                given = None if ids is None else sorted({row for row in ids[start + i].tolist() if row >= 0})
                requests.append(_request(vectors, stages, code=code, near=near, ids=given))
            for i, found in enumerate(self._engine.query(requests), start):
                self._check_ids(row for row, _ in found)
                ranked = sorted((s if self.metric == "l2" else -s, row) for row, s in found)
                for place, (cost, row) in enumerate(ranked):
                    scores[i, place], best[i, place] = -cost * abs(cost) if self.metric == "l2" else -cost, row
        return from_numpy(scores, like=queries, xp=xp), from_numpy(best, like=queries, xp=xp)

    def _check_ids(self, ids: Iterable[Any]) -> None:
        other = next((row for row in ids if not isinstance(row, int) or row > _LARGEST_ID), None)
        if other is not None:
            rule = "`name` must be a collection with integers for ids"
            msg = f"{rule}, got from {self._engine.address} {other!r}; number the points below 2 ** 63."
            raise ValueError(msg)


def _request(
    vectors: dict[int, list[float]], stages: _Stages, *, code: str, near: bool, ids: list[int] | None
) -> _qdrant.Json:
    """Return one query, each stage of it a prefetch of the next."""
    request: _qdrant.Json = {}
    for dim, count in stages:
        first = not request
        coded = first and code == "bits"
        request = {
            "query": vectors[dim],
            "using": str(dim),
            "limit": count,
            "params": {"exact": not (first and near), "quantization": {"ignore": not coded, "rescore": False}},
            "prefetch": [] if first else [request],
            "filter": {"must": [{"has_id": ids}]} if first and ids is not None else None,
        }
    return request


def _vectors(layout: _Layout) -> dict[str, _qdrant.Json]:
    """Return the named vectors of a collection."""
    metric, dims, starts, index, bits = layout
    return {
        str(dim): {
            "size": dim,
            "distance": _DISTANCES[metric],
            "on_disk": dim not in starts,
            "hnsw_config": _HNSW | {"m": _HNSW["m"] if index and dim in starts else 0},
            "quantization_config": {"binary": {"always_ram": True}} if bits and dim in starts else None,
        }
        for dim in dims
    }


def _widths(values: Iterable[int], name: str, most: int) -> tuple[int, ...]:
    found = _checks.dims(values, name)
    _checks.dims_within(found, most, name)
    return found


def _rows(embeddings: Array, block: slice) -> np.ndarray:
    """Return a block of rows in float32, which are finite there."""
    with np.errstate(over="ignore"):
        rows = to_numpy(embeddings[block, :]).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1)) + block.start
    _checks.no_bad_rows(bad.tolist(), embeddings.shape[0], "embeddings")
    return rows


def _checksums(rows: np.ndarray) -> np.ndarray:
    return np.array([zlib.crc32(row.astype("<f4").tobytes()) for row in rows], np.int64)
