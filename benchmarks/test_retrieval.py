"""Suite `retrieval`: exact search, reranking and funnels beside what one would use instead, theory beside clock.

Each row names what it computes, what that costs in theory per query, and, where it searches, its recall@10 or @200
against the exact neighbours. The searchers themselves are in `benchmarks.retrieval`. The bars of the project:

- the exact first stage, at least 1.5 times as fast as faiss;
- the exact search at full width, at most 1.25 times the bare products;
- a funnel, at least 40 times as fast as our own exact search for one query and 12 times for 64;
- a short HNSW and a funnel, at least 4 times as fast as an HNSW at full width;
- reranking, no slower than NumPy's gather and product.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import retrieval as way
from benchmarks.retrieval import SHORT, SHORTLIST, Data, Searcher
from matryoshka import Corpus, Funnel, costs

K = 10
FULL = 2048
GIB = 1 << 30
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - 3 * GIB


def measure(
    benchmark: Any,
    group: str,
    row: str,
    build: Callable[[], Searcher],
    data: Data,
    batch: int,
    *,
    reference: bool = False,
    multiply_adds: float | None = None,
    k: int | None = None,
    rounds: int = 7,
) -> None:
    """Time one batch of queries; build outside the clock and check recall on the same batch."""
    benchmark.group = group
    queries = data.queries[:batch]
    search = build()
    ids = search(queries)
    benchmark.extra_info |= {"row": row, "reference": reference}
    if multiply_adds is not None:
        benchmark.extra_info |= {"multiply_adds": multiply_adds, "bytes": 4 * multiply_adds}
    if k is not None:
        benchmark.extra_info[f"recall@{k}"] = round(way.recall(ids, data.exact(k)[:batch]), 4)
    benchmark.pedantic(search, args=(queries,), rounds=rounds, warmup_rounds=1)


FIRST_STAGE = {
    "faiss IndexFlatIP": way.faiss_flat,
    "matryoshka": way.ours,
    "usearch, exact": way.usearch_exact,
    "torch, product and topk": way.torch_top_k,
    "NumPy, product and argpartition": way.numpy_partition,
}


@pytest.mark.parametrize("row", [*FIRST_STAGE, "only the products"])
@pytest.mark.parametrize("batch", [1, 64, 128])
def test_first_stage(benchmark: Any, batch: int, row: str) -> None:
    group = f"First stage: 1,000,000 x {SHORT}, best {SHORTLIST}, batch {batch}"
    exact(benchmark, group, row, way.data_of(1_000_000, SHORT), SHORTLIST, batch, reference="faiss IndexFlatIP")


@pytest.mark.parametrize("row", ["only the products", "matryoshka", "faiss IndexFlatIP", "torch, product and topk"])
@pytest.mark.parametrize("batch", [1, 64])
def test_full_width(benchmark: Any, batch: int, row: str) -> None:
    group = f"Full width: 200,000 x 1,024, best {K}, batch {batch}"
    exact(benchmark, group, row, way.data_of(200_000, 1024), K, batch, reference="only the products")


def exact(benchmark: Any, group: str, row: str, data: Data, k: int, batch: int, *, reference: str) -> None:
    """Time an exact search of all columns, or only its products, which find nothing."""
    search = FIRST_STAGE.get(row)
    measure(
        benchmark,
        group,
        row,
        lambda: search(data, k) if search else way.bare_product(data),
        data,
        batch,
        reference=row == reference,
        multiply_adds=costs.search(data.n, data.dim),
        k=k if search else None,
    )


FUNNELS: dict[str, Callable[[int], Funnel]] = {
    "matryoshka, funnel": lambda dim: Funnel.halving(dim, smallest=SHORT),
    "matryoshka, adaptive": lambda dim: Funnel((SHORT, dim), (SHORTLIST,)),
}
OTHERS: dict[str, Callable[[Data, int], Searcher]] = {
    "matryoshka, exact": way.ours,
    "faiss, exact": way.faiss_flat,
    "faiss Panorama, exact": way.faiss_panorama,
    "faiss refine": way.faiss_refine,
    "PCA to 16, exact": way.pca,
}


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("row", [*FUNNELS, *OTHERS])
@pytest.mark.parametrize(("n", "dim"), [(100_000, 768), (100_000, FULL), (1_000_000, 768), (1_000_000, FULL)])
def test_funnel(benchmark: Any, n: int, dim: int, row: str, batch: int) -> None:
    """Compare with the neighbours at full width; the adaptive plan and faiss's chain rerank 200 rows at once."""
    copies = 2 if row in ("faiss Panorama, exact", "faiss refine") else 1
    if 4 * n * dim * copies + 2 * GIB > MEMORY:
        pytest.skip(f"needs {copies} times {4 * n * dim / GIB:.1f} GiB of memory")
    if row.startswith("PCA") and n > 100_000:
        pytest.skip("the smaller corpus says the same of PCA")
    data = way.data_of(n, dim)
    plan = FUNNELS[row](dim) if row in FUNNELS else None
    measure(
        benchmark,
        f"Funnel: {n:,} x {dim:,}, best {K}, batch {batch}",
        row,
        lambda: way.ours(data, K, plan) if plan else OTHERS[row](data, K),
        data,
        batch,
        reference=row == "matryoshka, exact",
        multiply_adds=plan.multiply_adds(n, executed=True) if plan else theory(row, n, dim),
        k=K,
        rounds=9 if plan else 3,
    )


def theory(row: str, n: int, dim: int) -> int:
    """Count the multiply-adds of another way; what Panorama skips is not known beforehand."""
    if row == "faiss refine":
        return costs.funnel(n, (SHORT, dim), (SHORTLIST,))
    return costs.search(n, SHORT if row.startswith("PCA") else dim)


@pytest.mark.parametrize(
    "row",
    [
        "faiss HNSW at 2,048",
        "faiss HNSW at 16, funnel",
        "hnswlib at 2,048",
        "hnswlib at 16, funnel",
        "matryoshka, funnel",
    ],
)
@pytest.mark.parametrize("batch", [1, 64])
def test_hnsw(benchmark: Any, batch: int, row: str) -> None:
    data = way.data_of(100_000, FULL)
    measure(
        benchmark,
        f"HNSW: 100,000 x {FULL:,}, {SHORTLIST} candidates, batch {batch}",
        row,
        lambda: graph(row, data),
        data,
        batch,
        reference=row == "faiss HNSW at 2,048",
        k=K,
    )


_GRAPHS: dict[str, Searcher] = {}


def graph(row: str, data: Data) -> Searcher:
    """Build a graph once for all batches: that takes minutes."""
    if row not in _GRAPHS:
        plan = Funnel.halving(FULL)
        kind = way.hnswlib_hnsw if row.startswith("hnswlib") else way.faiss_hnsw
        if "HNSW" not in row and "hnswlib" not in row:
            _GRAPHS[row] = way.ours(data, K, plan)
        elif "funnel" in row:
            short = kind(way.unit(data.rows[:, :SHORT]), SHORTLIST, SHORTLIST)
            _GRAPHS[row] = way.then_funnel(short, data, K, plan)
        else:
            full = kind(data.rows, SHORTLIST, SHORTLIST)
            _GRAPHS[row] = lambda queries: full(queries)[:, :K]
    return _GRAPHS[row]


@pytest.mark.parametrize("row", ["NumPy, gather and product", "matryoshka, cosine", "matryoshka, ip"])
@pytest.mark.parametrize("batch", [1, 64])
def test_rerank(benchmark: Any, batch: int, row: str) -> None:
    data = way.data_of(100_000, FULL)
    ids = way.candidates(data, batch)
    measure(
        benchmark,
        f"Rerank: {SHORTLIST} candidates at {FULL:,}, best {K}, batch {batch}",
        row,
        lambda: (
            way.our_rerank(data, ids, K, row.rpartition(" ")[2])
            if "matryoshka" in row
            else way.gather_and_product(data, ids, K)
        ),
        data,
        batch,
        reference="NumPy" in row,
        multiply_adds=costs.rerank(SHORTLIST, FULL),
        rounds=21,
    )


@pytest.mark.parametrize("batch", [1, 64])
def test_memory_mapped(benchmark: Any, mapped: Path, batch: int) -> None:
    """Search rows that stay in an 8 GB file, which the system has read before; a process of its own tells memory."""
    command = [sys.executable, "-m", "benchmarks.retrieval", str(mapped), str(batch)]
    private = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = np.load(mapped, mmap_mode="r")
    plan, queries = Funnel.halving(FULL), way.draw_queries(*rows.shape, batch)
    corpus = Corpus(rows, search_dims=(SHORT,))
    benchmark.group = f"Memory-mapped: {len(rows):,} x {FULL:,}, funnel, best {K}"
    benchmark.extra_info |= {
        "row": f"matryoshka, batch {batch}",
        "multiply_adds": plan.multiply_adds(len(rows), executed=True),
        "bytes": 4 * plan.multiply_adds(len(rows), executed=True),
        "private memory (MiB)": round(private / 2**20),
        "of it the prefix (MiB)": round(4 * len(rows) * SHORT / 2**20),
    }
    benchmark.pedantic(corpus.search, args=(queries, K), kwargs={"funnel": plan}, rounds=9, warmup_rounds=2)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    way.data_of.cache_clear()
    path = tmp_path_factory.mktemp("mapped") / "rows.npy"
    way.fill(np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1_000_000, FULL)))
    yield path
    path.unlink()
