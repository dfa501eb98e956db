"""What the suite `retrieval` compares: rows of unit length with most of them in their leading columns, and searchers.

Every searcher is a function of queries that returns ids (n_queries, k). Data is made up: time depends on its size, and
recall, which does depend on it, is there to show that no way cheats.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import torch
from usearch.index import MetricKind
from usearch.index import search as usearch_search

from benchmarks.conftest import THREADS
from matryoshka import Corpus, Funnel

Searcher = Callable[[np.ndarray], np.ndarray]

SHORT = 16
SHORTLIST = 200
BLOCK = 4096
_DECAY = 0.8
_ROWS_AT_ONCE = 50_000

faiss.omp_set_num_threads(THREADS)
torch.set_num_threads(THREADS)


@dataclass(frozen=True)
class Data:
    """Rows to search and queries, of unit length in float32."""

    rows: np.ndarray
    queries: np.ndarray
    _known: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return self.rows.shape[0]

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    def exact(self, k: int) -> np.ndarray:
        """Return the ids of the true neighbours, as faiss finds them."""
        if k not in self._known:
            self._known[k] = faiss.knn(self.queries, self.rows, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
        return self._known[k]


def make(n: int, dim: int, n_queries: int = 128) -> Data:
    """Draw rows and queries whose columns shrink like (column + 1)^-0.8."""
    rows = np.empty((n, dim), np.float32)
    fill(rows)
    return Data(rows, draw_queries(n, dim, n_queries))


def fill(rows: np.ndarray) -> None:
    """Write rows to memory or to a file, a block at a time."""
    n, dim = rows.shape
    for start in range(0, n, _ROWS_AT_ONCE):
        block = np.random.default_rng((dim, start)).standard_normal((min(_ROWS_AT_ONCE, n - start), dim), np.float32)
        rows[start : start + _ROWS_AT_ONCE] = unit(block * _scale(dim))


def draw_queries(n: int, dim: int, n_queries: int) -> np.ndarray:
    """Draw queries of the same kind, none of which is a row."""
    return unit(np.random.default_rng((dim, n, 1)).standard_normal((n_queries, dim), np.float32) * _scale(dim))


def _scale(dim: int) -> np.ndarray:
    return ((1.0 + np.arange(dim)) ** -_DECAY).astype(np.float32)


@lru_cache(maxsize=1)
def data_of(n: int, dim: int) -> Data:
    """Return the data of the current group; only one is held, since some fill half the memory."""
    return make(n, dim)


def recall(ids: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of the exact neighbours that were found."""
    return float(np.mean([np.isin(best, row[row >= 0]).mean() for row, best in zip(ids, exact, strict=True)]))


# Exact searches at the width of the data.


def ours(data: Data, k: int, funnel: Funnel | None = None) -> Searcher:
    """This library; "ip", since the rows have unit length, except where prefixes must be brought to it."""
    corpus = Corpus(data.rows, metric="cosine" if funnel else "ip", search_dims=funnel.dims[:1] if funnel else ())
    return lambda queries: corpus.search(queries, k, funnel=funnel)[1]


def faiss_flat(data: Data, k: int) -> Searcher:
    """faiss, without a second copy of the rows: what IndexFlatIP runs."""
    index = faiss.IndexFlatIP(data.dim)
    if data.rows.nbytes < 1 << 30:
        index.add(data.rows)
        return lambda queries: index.search(queries, k)[1]
    return lambda queries: faiss.knn(queries, data.rows, k, metric=faiss.METRIC_INNER_PRODUCT)[1]


def usearch_exact(data: Data, k: int) -> Searcher:
    """usearch's exhaustive search."""

    def search(queries: np.ndarray) -> np.ndarray:
        found = usearch_search(data.rows, queries, k, MetricKind.IP, exact=True, threads=THREADS)
        return np.asarray(found.keys).reshape(len(queries), k).astype(np.int64)

    return search


def torch_top_k(data: Data, k: int) -> Searcher:
    """One product and one topk in PyTorch."""
    rows = torch.from_numpy(data.rows)
    return lambda queries: (torch.from_numpy(queries) @ rows.T).topk(k).indices.numpy()


def numpy_partition(data: Data, k: int) -> Searcher:
    """One product and one partition in NumPy."""

    def search(queries: np.ndarray) -> np.ndarray:
        scores = queries @ data.rows.T
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return search


def bare_product(data: Data) -> Searcher:
    """Only the products, in blocks that stay in the cache: a bound for every exact search by matrix products."""

    def search(queries: np.ndarray) -> np.ndarray:
        scores = np.empty((BLOCK, len(queries)), np.float32)
        for start in range(0, data.n, BLOCK):
            block = data.rows[start : start + BLOCK]
            np.matmul(block, queries.T, out=scores[: len(block)])
        return np.empty((len(queries), 0), np.int64)

    return search


# Approximate ways to the neighbours at full width.


def faiss_refine(data: Data, k: int) -> Searcher:
    """faiss's chain: a flat index on the leading columns, refined at full width."""
    leading = faiss.LinearTransform(data.dim, SHORT, False)
    faiss.copy_array_to_vector(np.eye(SHORT, data.dim, dtype=np.float32).ravel(), leading.A)
    leading.is_trained = True
    base = faiss.IndexPreTransform(leading, faiss.IndexFlatIP(SHORT))
    index = faiss.IndexRefineFlat(base)
    for start in range(0, data.n, _ROWS_AT_ONCE):
        index.add(data.rows[start : start + _ROWS_AT_ONCE])
    index.k_factor = SHORTLIST / k
    index.own_fields = False
    search: Searcher = lambda queries, _keep=(leading, base): index.search(queries, k)[1]  # noqa: E731
    return search


def faiss_panorama(data: Data, k: int) -> Searcher:
    """faiss's exact search that stops reading a row when its prefix rules it out."""
    index = faiss.IndexFlatIPPanorama(data.dim, 8)
    for start in range(0, data.n, _ROWS_AT_ONCE):
        index.add(data.rows[start : start + _ROWS_AT_ONCE])
    return lambda queries: index.search(queries, k)[1]


def faiss_hnsw(rows: np.ndarray, k: int, ef: int) -> Searcher:
    """faiss's HNSW with 32 links, as the paper used it."""
    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    index.hnsw.efSearch = ef
    return lambda queries: index.search(queries, k)[1]


def hnswlib_hnsw(rows: np.ndarray, k: int, ef: int) -> Searcher:
    """hnswlib's HNSW with 32 links."""
    index = hnswlib.Index("ip", rows.shape[1])
    index.init_index(len(rows), M=32, ef_construction=40, random_seed=0)
    index.set_num_threads(THREADS)
    index.add_items(rows)
    index.set_ef(ef)
    return lambda queries: index.knn_query(queries, k)[0].astype(np.int64)


def then_funnel(short: Searcher, data: Data, k: int, funnel: Funnel) -> Searcher:
    """An index on short prefixes, then the later stages of a funnel."""
    corpus = Corpus(data.rows)

    def search(queries: np.ndarray) -> np.ndarray:
        ids: np.ndarray = corpus.rerank(queries, short(unit(queries[:, :SHORT])), k, funnel=funnel)[1]
        return ids

    return search


def unit(rows: np.ndarray) -> np.ndarray:
    """Return prefixes at unit length, contiguous."""
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def pca(data: Data, k: int) -> Searcher:
    """The first columns after a PCA, searched alone: truncation as it is done without nested training."""
    sample = data.rows[:: max(1, data.n // 20_000)]
    _, _, axes = np.linalg.svd(sample - sample.mean(axis=0), full_matrices=False)
    turned = Corpus(unit(data.rows @ axes[:SHORT].T))
    return lambda queries: turned.search(queries @ axes[:SHORT].T, k)[1]


# Reranking.


def candidates(data: Data, n_queries: int) -> np.ndarray:
    """Draw a shortlist for each query."""
    return np.random.default_rng(2).integers(0, data.n, (n_queries, SHORTLIST))


def gather_and_product(data: Data, ids: np.ndarray, k: int) -> Searcher:
    """NumPy's gather, batched product and partition."""

    def search(queries: np.ndarray) -> np.ndarray:
        scores = np.matmul(data.rows[ids], queries[:, :, None])[:, :, 0]
        best = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(ids, best, axis=1)

    return search


def our_rerank(data: Data, ids: np.ndarray, k: int, metric: str) -> Searcher:
    """This library's reranking at full width."""
    corpus = Corpus(data.rows, metric=metric)
    return lambda queries: corpus.rerank(queries, ids, k, dim=data.dim)[1]


# Rows in a file.


def private_bytes() -> int:
    """Return the memory that this process shares with no other and with no file it has not written to."""
    with Path("/proc/self/smaps_rollup").open() as lines:
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private"))


def main() -> None:
    """Print the most memory that funnel searches in a mapped file take: `python -m benchmarks.retrieval PATH BATCH`."""
    path, batch = Path(sys.argv[1]), int(sys.argv[2])
    before, seen, done = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = np.load(path, mmap_mode="r")
    corpus = Corpus(rows, search_dims=(SHORT,))
    queries = draw_queries(*rows.shape, 3 * batch)
    for start in range(0, 3 * batch, batch):
        corpus.search(queries[start : start + batch], 10, funnel=Funnel.halving(rows.shape[1], smallest=SHORT))
    done.set()
    watcher.join()
    print(max(seen) - before)


if __name__ == "__main__":
    main()
