"""What one would use instead: faiss, hnswlib, usearch, PyTorch, NumPy.

Each function builds outside of the clock and returns a search: queries in, ids (n_queries, k) out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import torch
from usearch.index import MetricKind, ScalarKind
from usearch.index import search as usearch_search

from benchmarks.retrieval.data import Data, pack, unit
from matryoshka._threads import n_threads

Search = Callable[[np.ndarray], np.ndarray]
Build = Callable[[Data, int], Search]

CANDIDATES = 200
BLOCK = 4096
FOLDER = "RETRIEVAL_GRAPHS"
"""Names the environment variable with the folder of the graphs, which take minutes: the second process reads them."""
_AT_ONCE = 50_000

faiss.omp_set_num_threads(n_threads())
torch.set_num_threads(n_threads())


# Exact.


def faiss_flat(data: Data, k: int) -> Search:
    """faiss' exact search of all columns."""
    return lambda queries: data.flat.search(queries, k)[1]


def faiss_panorama(data: Data, k: int) -> Search:
    """faiss' exact search that stops reading a row when its prefix rules it out."""
    index = faiss.IndexFlatIPPanorama(data.dim, 8)
    _add(index, data.rows)
    return lambda queries: index.search(queries, k)[1]


def usearch_exact(data: Data, k: int) -> Search:
    """usearch's exhaustive search."""
    return _usearch(data.rows, k, MetricKind.IP, ScalarKind.F32, lambda queries: queries)


def torch_top_k(data: Data, k: int) -> Search:
    """One product and one topk in PyTorch."""
    rows = torch.from_numpy(data.rows)
    return lambda queries: (torch.from_numpy(queries) @ rows.T).topk(k).indices.numpy()


def numpy_partition(data: Data, k: int) -> Search:
    """One product and one partition in NumPy."""

    def search(queries: np.ndarray) -> np.ndarray:
        scores = queries @ data.rows.T
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return search


def bare_product(data: Data, _: int) -> Search:
    """Only the products, in blocks that stay in the cache: a bound for every exact search by matrix products."""

    def search(queries: np.ndarray) -> np.ndarray:
        scores = np.empty((BLOCK, len(queries)), np.float32)
        for start in range(0, data.n, BLOCK):
            block = data.rows[start : start + BLOCK]
            np.matmul(block, queries.T, out=scores[: len(block)])
        return np.empty((len(queries), 0), np.int64)

    return search


# In fewer columns or coarser numbers.


def cut(build: Build, width: int) -> Build:
    """Do the same on the first columns, brought to unit length."""

    def built(data: Data, k: int) -> Search:
        short = Data.empty(data.n, width)
        short.rows[:] = unit(data.rows[:, :width])
        search = build(short, k)
        return lambda queries: search(unit(queries[:, :width]))

    return built


def faiss_refine(width: int, count: int = CANDIDATES) -> Build:
    """faiss' chain: a flat index on the leading columns, whose candidates are refined at full width."""

    def built(data: Data, k: int) -> Search:
        leading = faiss.LinearTransform(data.dim, width, False)
        faiss.copy_array_to_vector(np.eye(width, data.dim, dtype=np.float32).ravel(), leading.A)
        leading.is_trained = True
        return _refined(faiss.IndexPreTransform(leading, faiss.IndexFlatIP(width)), data, k, count, leading)

    return built


def faiss_sq8(data: Data, k: int) -> Search:
    """faiss' exact search in eight bits a number."""
    index = faiss.IndexScalarQuantizer(data.dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(data.rows[:_AT_ONCE])
    _add(index, data.rows)
    return lambda queries: index.search(queries, k)[1]


def faiss_sq8_refine(count: int) -> Build:
    """The same, refined at full precision."""

    def built(data: Data, k: int) -> Search:
        index = faiss.IndexScalarQuantizer(data.dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        index.train(data.rows[:_AT_ONCE])
        return _refined(index, data, k, count)

    return built


def usearch_i8(data: Data, k: int) -> Search:
    """usearch's exhaustive search in eight bits a number."""
    scale = 127 / max(np.abs(data.rows).max(), np.abs(data.queries).max())

    def code(rows: np.ndarray) -> np.ndarray:
        return np.rint(rows * scale).astype(np.int8)

    rows = np.concatenate([code(data.rows[start : start + _AT_ONCE]) for start in range(0, data.n, _AT_ONCE)])
    return _usearch(rows, k, MetricKind.IP, ScalarKind.I8, code)


def faiss_binary(width: int) -> Build:
    """faiss' exact search in the signs of the first columns, less their mean."""

    def built(data: Data, k: int) -> Search:
        index = faiss.IndexBinaryFlat(width)
        index.add(np.ascontiguousarray(data.signs[:, : width // 8]))
        return lambda queries: index.search(pack(queries[:, :width] - data.mean[:width]), k)[1]

    return built


def usearch_b1(width: int) -> Build:
    """usearch's exhaustive search in the same signs."""

    def built(data: Data, k: int) -> Search:
        rows, mean = np.ascontiguousarray(data.signs[:, : width // 8]), data.mean[:width]
        return _usearch(rows, k, MetricKind.Hamming, ScalarKind.B1, lambda queries: pack(queries[:, :width] - mean))

    return built


def then_product(build: Build, count: int) -> Build:
    """Let candidates of a search be reranked by NumPy's gather and product."""

    def built(data: Data, k: int) -> Search:
        short = build(data, count)
        return lambda queries: _best(data.rows, queries, short(queries), k)

    return built


def pca(width: int) -> Build:
    """The first columns after a PCA, searched alone: truncation as it is done without nested training."""

    def built(data: Data, k: int) -> Search:
        sample = data.rows[:: max(1, data.n // 20_000)]
        _, _, axes = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)
        turned = Data.empty(data.n, width)
        turned.rows[:] = unit(data.rows @ axes[:width].T)
        search = faiss_flat(turned, k)
        return lambda queries: search(queries @ axes[:width].T)

    return built


# Graphs.


def faiss_hnsw(data: Data, k: int) -> Search:
    """faiss' HNSW with 32 links, as the paper used it; its candidates are 200."""
    path = _graph("faiss", data)
    if not path.exists():
        index = faiss.IndexHNSWFlat(data.dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.add(data.rows)
        faiss.write_index(index, str(path))
    index = faiss.read_index(str(path))
    index.hnsw.efSearch = CANDIDATES
    return lambda queries: index.search(queries, CANDIDATES)[1][:, :k]


def hnswlib_hnsw(data: Data, k: int) -> Search:
    """hnswlib's HNSW with 32 links; its candidates are 200."""
    path, index = _graph("hnswlib", data), hnswlib.Index("ip", data.dim)
    if path.exists():
        index.load_index(str(path))
    else:
        index.init_index(data.n, M=32, ef_construction=40, random_seed=0)
        index.set_num_threads(n_threads())
        index.add_items(data.rows)
        index.save_index(str(path))
    index.set_num_threads(n_threads())
    index.set_ef(CANDIDATES)
    return lambda queries: index.knn_query(queries, CANDIDATES)[0][:, :k].astype(np.int64)


# Reranking.


def shortlists(data: Data) -> np.ndarray:
    """Draw a shortlist for each query."""
    return np.random.default_rng(2).integers(0, data.n, (len(data.queries), CANDIDATES))


def gather_and_product(data: Data, k: int) -> Search:
    """NumPy's gather, product and sort of the next shortlists."""
    lists = taking_turns(shortlists(data))
    return lambda queries: _best(data.rows, queries, lists(len(queries)), k)


def taking_turns(array: np.ndarray) -> Callable[[int], np.ndarray]:
    """Return a function that gives the next rows of an array, as many as are asked for, over and over."""
    starts: dict[int, cycle[int]] = {}

    def following(count: int) -> np.ndarray:
        start = next(starts.setdefault(count, cycle(range(0, len(array) - count + 1, count))))
        return array[start : start + count]

    return following


def _best(rows: np.ndarray, queries: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    if len(ids) == 1:
        scores = (rows[ids[0]] @ queries[0])[None, :]
    else:
        scores = np.matmul(rows[ids], queries[:, :, None])[:, :, 0]
    return np.take_along_axis(ids, np.argsort(-scores, axis=1)[:, :k], axis=1)


def _add(index: faiss.Index, rows: np.ndarray) -> None:
    for start in range(0, len(rows), _AT_ONCE):
        index.add(rows[start : start + _AT_ONCE])


def _refined(base: faiss.Index, data: Data, k: int, count: int, *needed: object) -> Search:
    """Refine with the rows that are there: the index would take a copy."""
    index = faiss.IndexRefineFlat(base)
    _add(base, data.rows)
    index.refine_index, index.own_refine_index, index.own_fields = data.flat, False, False
    index.ntotal, index.k_factor = data.n, count / k
    search: Search = lambda queries, _keep=(base, needed): index.search(queries, k)[1]  # noqa: E731
    return search


def _usearch(rows: np.ndarray, k: int, metric: MetricKind, kind: ScalarKind, code: Search) -> Search:
    def search(queries: np.ndarray) -> np.ndarray:
        found = usearch_search(rows, code(queries), k, metric, exact=True, threads=n_threads(), dtype=kind)
        return np.asarray(found.keys).reshape(len(queries), k).astype(np.int64)

    return search


def _graph(library: str, data: Data) -> Path:
    return Path(os.environ[FOLDER]) / f"{library}-{data.n}-{data.dim}"
