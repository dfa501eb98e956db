"""A collection of Qdrant as a corpus: every stage of a funnel runs in the engine, in this process or on a server."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from matryoshka import _checks, _qdrant
from matryoshka._optional import require
from matryoshka._typing import Array
from matryoshka.embeddings import truncate
from matryoshka.nesting import Nesting
from matryoshka.retrieval import Funnel, engine

__all__ = ["QdrantCorpus"]

_BATCH_NUMBERS = 1 << 18
"""Numbers that are uploaded, or asked with, at once: some 5 MB of JSON, where a server takes 32."""

_WIDEST = 65_536
"""Columns of a vector in Qdrant at most."""

_DISTANCES = {"cosine": "Cosine", "ip": "Dot", "l2": "Euclid"}
_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10}
"""Of the engine, but for the threshold: what is indexed is searched by the index."""

_BITS = {"binary": {"always_ram": True}}
_EXACT = {"exact": True, "quantization": {"ignore": True}}
"""A stage that uses neither index nor bits."""


@dataclass(frozen=True)
class _Layout:
    """Metric, stored widths, those that funnels start at, and whether these have an index, and bits."""

    metric: str
    dims: tuple[int, ...]
    search_dims: tuple[int, ...]
    index: bool
    bits: bool

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in vars(self).items())

    def vectors(self) -> dict[str, _qdrant.Json]:
        """Return the named vectors of a collection."""
        return {
            str(dim): {
                "size": dim,
                "distance": _DISTANCES[self.metric],
                "on_disk": dim not in self.search_dims,
                "hnsw_config": _HNSW | {"m": _HNSW["m"] if self.index and dim in self.search_dims else 0},
                "quantization_config": _BITS if self.bits and dim in self.search_dims else None,
            }
            for dim in self.dims
        }

    @classmethod
    def of(cls, vectors: dict[str, _qdrant.Json], address: str) -> _Layout:
        """Return what the named vectors of a collection say of it."""
        sizes = {vector["size"]: vector for vector in vectors.values()}
        kinds = {vector["distance"] for vector in vectors.values()}
        metric = next((metric for metric, distance in _DISTANCES.items() if {distance} == kinds), None)
        if metric is None or set(map(str, sizes)) != set(vectors):
            got = f"{', '.join(map(repr, vectors)) or 'none'} ({', '.join(sorted(kinds))})"
            rule = "`name` must be a collection of vectors named by their widths, of one metric"
            msg = f"{rule}, got from {address}: {got}; `create` one."
            raise ValueError(msg)
        starts = tuple(dim for dim in sorted(sizes) if not sizes[dim].get("on_disk"))
        index = any((sizes[dim].get("hnsw_config") or _HNSW).get("m") != 0 for dim in starts)
        bits = any(sizes[dim].get("quantization_config") for dim in starts)
        return cls(metric, tuple(sorted(sizes)), starts, index, bits)


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
        self._layout, self._n = _Layout.of(vectors, self._engine.address), self._engine.count()

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
        same embeddings compares the checksums of the rows that are there, and uploads those that are not. Checksums
        are formed first, so that numbers that are not finite are found before any row is uploaded: `embeddings` are
        read twice. A bar shows how far it is where standard error is a terminal.
        """
        _checks.choice(metric, "metric", _DISTANCES)
        dim = engine.width(embeddings, _WIDEST)
        index, bits = _checks.flag(index, "index"), _checks.flag(bits, "bits")
        starts = None if search_dims is None else _checks.dims(search_dims, "search_dims", most=dim)
        widths = (
            Nesting.halving(dim, smallest=min(8, dim)).dims if dims is None else _checks.dims(dims, "dims", most=dim)
        )
        widths = tuple(sorted({*widths, *(starts or ()), dim}))
        starts = widths[:-1] if starts is None else starts
        layout = _Layout(metric, widths, starts, index and bool(starts), bits and bool(starts))
        made = _qdrant.engine(client_or_path, name)
        if made.vectors() is None:
            made.create(layout.vectors())
        corpus = cls(client_or_path, name)
        if corpus._layout != layout:
            rule = "`name` must be new or a collection of these arguments"
            msg = f"{rule}, got at {made.address} {corpus._layout}; choose another name."
            raise ValueError(msg)
        corpus._fill(embeddings)
        return corpus

    @property
    def client(self) -> Any:
        """The client, or the shard of the engine in this process: for filters, payloads and whatever else it does."""
        return self._engine.client

    @property
    def metric(self) -> str:
        """The similarity: "cosine", "ip" or "l2"."""
        return self._layout.metric

    @property
    def dims(self) -> tuple[int, ...]:
        """Widths that are stored, which stages may have."""
        return self._layout.dims

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.dims[-1]

    @property
    def search_dims(self) -> tuple[int, ...]:
        """Widths at which funnels start."""
        return self._layout.search_dims

    @property
    def index(self) -> bool:
        """Whether funnels in numbers start with an HNSW index."""
        return self._layout.index

    @property
    def codes(self) -> tuple[str, ...]:
        """How a first stage may compare: in numbers, and in bits where these are kept."""
        return ("float", "bits") if self._layout.bits else ("float",)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"QdrantCorpus({self._engine.address}, {len(self)} x {self.dim}, {self._layout})"

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
        asked, starts = engine.queries_in_float32(queries, self.dim, self.metric), self.search_dims
        stages = engine.stages(
            self.dim, len(asked), k, dim=dim, funnel=funnel, codes=self.codes, starts=starts, stored=self.dims
        )
        if funnel is None:
            return self._run(queries, asked, stages, _EXACT)
        coded, near = funnel.code == "bits", self._layout.index and stages.dims[0] in starts
        if coded and len(stages.dims) == 1:
            stages = engine.Stages(stages.dims * 2, stages.lists * 2)
        first = {"exact": not (near or coded), "quantization": {"ignore": not coded, "rescore": False}}
        return self._run(queries, asked, stages, first)

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
        asked = engine.queries_in_float32(queries, self.dim, self.metric)
        stages = engine.stages(self.dim, len(asked), k, dim=dim, funnel=funnel, given=True, stored=self.dims)
        return self._run(queries, asked, stages.later, _EXACT, engine.candidate_ids(ids, queries))

    def close(self) -> None:
        """Close the folder, so that another process may open it; a client stays open.

        A search after this opens the folder again. A corpus that is gone has closed it too.
        """
        self._engine.close()

    def _fill(self, embeddings: Array) -> None:
        """Compare the rows that are there, then upload those that are not."""
        n, size = embeddings.shape[0], max(1, _BATCH_NUMBERS // sum(self.dims))
        blocks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
        every = (row for block in blocks for row in engine.rows_in_float32(embeddings, block))
        checksums, new = np.fromiter((zlib.crc32(row.tobytes()) for row in every), np.int64, n), np.ones(n, bool)
        for i, checksum in self._engine.checksums():
            if not isinstance(i, int) or i >= n or checksum != checksums[i]:
                rule = "`name` must be new or a collection of rows of `embeddings`"
                msg = f"{rule}, got others at {self._engine.address}; choose another name."
                raise ValueError(msg)
            new[i] = False
        tqdm = require("tqdm", extra="qdrant", purpose="the progress bar")
        with tqdm.tqdm(total=n, unit="row", disable=None) as bar:
            for block in blocks:
                ids = np.flatnonzero(new[block]) + block.start
                if len(ids):
                    vectors = self._prefixes(engine.rows_in_float32(embeddings, block)[new[block]], self.dims)
                    self._engine.upsert(ids.tolist(), vectors, checksums[ids].tolist())
                bar.update(block.stop - block.start)
        self._engine.finish()
        self._n = self._engine.count()

    def _prefixes(self, rows: np.ndarray, dims: tuple[int, ...]) -> list[_qdrant.Vectors]:
        """Give the prefixes of each row as the metric compares them: the engine leaves short vectors as they are."""
        wide, unit = rows.astype(np.float64), self.metric == "cosine"
        prefixes = (truncate(wide, dim, normalize=unit).astype(np.float32).tolist() for dim in dims)
        return [dict(zip(map(str, dims), row, strict=True)) for row in zip(*prefixes, strict=True)]

    def _run(
        self, queries: Array, asked: np.ndarray, stages: engine.Stages, first: _qdrant.Json, ids: Array | None = None
    ) -> tuple[Array, Array]:
        """Run stages for a batch of queries; return the best in the library of the queries."""
        answers: list[tuple[int, int, float]] = []
        size = max(1, _BATCH_NUMBERS // sum(stages.dims))
        for start in range(0, len(asked), size):
            vectors = enumerate(self._prefixes(asked[start : start + size], stages.dims), start)
            requests = [_request(row, stages, first, None if ids is None else ids[i].tolist()) for i, row in vectors]
            for i, found in enumerate(self._engine.query(requests), start):
                for row, _ in found:
                    if not isinstance(row, int) or row > _checks.LARGEST_INTEGER:
                        rule = "`name` must be a collection with integers for ids"
                        msg = f"{rule}, got from {self._engine.address} {row!r}; number the points below 2 ** 63."
                        raise ValueError(msg)
                ranked = sorted((score**2 if self.metric == "l2" else -score, row) for row, score in found)
                answers += [(i, row, -cost) for cost, row in ranked]
        return engine.results(answers, queries, stages.lists[-1])


def _request(
    vectors: _qdrant.Vectors, stages: engine.Stages, first: _qdrant.Json, ids: list[int] | None
) -> _qdrant.Json:
    """Return one query, each stage of it a prefetch of the next; the first is run as `first` says, among `ids`."""
    request: _qdrant.Json = {}
    for dim, count in zip(*stages, strict=True):
        among = None if request or ids is None else sorted({i for i in ids if i >= 0})
        request = {
            "query": vectors[str(dim)],
            "using": str(dim),
            "limit": count,
            "params": _EXACT if request else first,
            "prefetch": [request] if request else [],
            "filter": None if among is None else {"must": [{"has_id": among}]},
        }
    return request
