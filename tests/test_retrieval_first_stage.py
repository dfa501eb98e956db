"""The first stage: blocks, thresholds, floods of ties and threads never show in the result, on either engine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import Library, load
from oracles import retrieval_funnel, retrieval_rank, retrieval_similarity

from matryoshka import Corpus, Funnel, _threads
from matryoshka.retrieval import _device, _prefix, _sampling, _scan, corpus
from matryoshka.retrieval._rows import HostRows

METRICS = ("cosine", "ip", "l2")


@pytest.fixture(params=[0, 1 << 30], ids=["in-blocks", "at-once"])
def small_blocks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let a few thousand rows take every path that millions take."""
    monkeypatch.setattr(_scan, "_AT_ONCE", request.param)
    monkeypatch.setattr(_scan, "_SORTED", 64)
    monkeypatch.setattr(_scan, "_READ", 1 << 11)
    monkeypatch.setattr(_prefix, "_SAMPLED_ROWS", 64)
    monkeypatch.setattr(_prefix, "_SAMPLED_NUMBERS", 0)
    monkeypatch.setattr(_scan, "_SCORES", 512)
    monkeypatch.setattr(_scan, "_SERIAL_PRODUCT", 1 << 12)


def expected(rows: np.ndarray, queries: np.ndarray, k: int, dim: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    return retrieval_rank(queries, rows, [list(range(len(rows)))] * len(queries), k, dim, metric)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_queries", [1, 3, 8])
@pytest.mark.parametrize("n", [63, 64, 65, 1000])
def test_many_blocks(rng: np.random.Generator, n: int, n_queries: int, metric: str) -> None:
    rows, queries = rng.normal(size=(n, 11)), rng.normal(size=(n_queries, 11))
    for dim in (4, 11):
        scores, ids = Corpus(rows, metric=metric).search(queries, 9, funnel=Funnel((dim,), ()))
        expected_scores, expected_ids = expected(rows, queries, 9, dim, metric)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", range(256, 265))
def test_samples_of_any_size(rng: np.random.Generator, n: int) -> None:
    rows, queries = rng.normal(size=(n, 5)), rng.normal(size=(2, 5))
    np.testing.assert_array_equal(Corpus(rows).search(queries, 3)[1], expected(rows, queries, 3, 5, "cosine")[1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("order", ["rising", "falling", "periodic"])
def test_the_order_of_rows_does_not_matter(rng: np.random.Generator, order: str) -> None:
    quality = {"rising": np.arange(900), "falling": -np.arange(900), "periodic": np.arange(900) % 14}[order]
    rows = np.column_stack([quality, rng.normal(size=900)]) + rng.normal(size=(900, 2)) * 1e-3
    queries = np.array([[1.0, 0.0], [0.5, 1.0]])
    _, ids = Corpus(rows, metric="ip").search(queries, 20)
    np.testing.assert_array_equal(ids, expected(rows, queries, 20, 2, "ip")[1])


@pytest.mark.usefixtures("small_blocks")
def test_a_threshold_too_high_is_lowered(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scan, "_AT_ONCE", 0)
    monkeypatch.setattr(_sampling, "rank", lambda k, size, n: 1)
    passes: list[int] = []
    run = _scan._Search.run
    monkeypatch.setattr(_scan._Search, "run", lambda self: passes.append(self.floor.size) or run(self))
    rows, queries = rng.normal(size=(900, 5)), rng.normal(size=(6, 5))
    _, ids = Corpus(rows).search(queries, 120)
    np.testing.assert_array_equal(ids, expected(rows, queries, 120, 5, "cosine")[1])
    assert len(passes) > 2
    assert passes[0] == 6
    assert passes == sorted(passes, reverse=True)  # only the queries that need it are searched again


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("pending", [1, 200, 1 << 20])
@pytest.mark.parametrize("spare", [0, 1 << 12])
def test_floods_of_equal_rows(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, pending: int, spare: int
) -> None:
    monkeypatch.setattr(_scan, "_PENDING", pending)
    monkeypatch.setattr(_scan, "_SPARE", spare)
    rows = np.tile(rng.normal(size=(1, 6)), (1500, 1)).astype(np.float32)
    rows[::7] = rng.normal(size=6)
    rows[1200] *= 0.0
    queries = np.concatenate([rows[[3, 7]], np.zeros((1, 6), np.float32)])
    for metric in METRICS:
        scores, ids = Corpus(rows, metric=metric).search(queries, 30)
        equal = np.flatnonzero(np.arange(1500) % 7 != 0)
        equal = equal[equal != 1200][:30]
        best = expected(rows.astype(float), queries.astype(float), 1, 6, metric)[1][:, 0]
        if best[0] == 1:
            assert ids[0].tolist() == equal.tolist()
            assert len(set(scores[0].tolist())) == 1
        if metric == "cosine":
            assert ids[2].tolist() == list(range(30))  # a zero query scores 0 everywhere


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("pending", [300, 1 << 20])
def test_rounding_of_products_does_not_show(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, pending: int
) -> None:
    """Products that are off by as much as they may be, which is far more than the scores lie apart."""
    off, products, sampled = 0.05, _scan._Search.products, _prefix.Prefix.scores
    monkeypatch.setattr(_prefix.Prefix, "rounding", lambda self, queries: np.full(len(queries), off))

    def disturbed(scores: np.ndarray) -> np.ndarray:
        scores += rng.choice([-0.99 * off, 0.99 * off], scores.shape)
        return scores

    monkeypatch.setattr(_scan._Search, "products", lambda self, block: disturbed(products(self, block)))
    monkeypatch.setattr(_prefix.Prefix, "scores", lambda self, queries: disturbed(sampled(self, queries)))
    monkeypatch.setattr(_scan, "_PENDING", pending)
    rows, queries = rng.normal(size=(1500, 5)), rng.normal(size=(4, 5))
    rows[700:900] = rows[3]
    queries[1] = rows[3]
    for k in (1, 15, 100):
        _, ids = Corpus(rows).search(queries, k)
        np.testing.assert_array_equal(ids, expected(rows, queries, k, 5, "cosine")[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [3, 16, 700])
def test_products_are_as_exact_as_thresholds_expect(rng: np.random.Generator, metric: str, dim: int) -> None:
    rows = (rng.normal(size=(500, 700)) * rng.uniform(0.1, 10, size=(500, 1))).astype(np.float32)
    queries = rng.normal(size=(5, 700)).astype(np.float32)
    searched = Corpus(rows, metric=metric, search_dims=(dim,))
    prefix = searched._prefixes[dim]
    prepared = prefix.queries(searched._arguments.queries(queries))
    found = prefix.sample.scores(prepared).T
    exact = np.array([[retrieval_similarity(q, x, dim, metric) for x in rows] for q in queries])
    if metric == "l2":  # products leave out what is the same for all rows
        exact += (queries[:, :dim].astype(np.float64) ** 2).sum(axis=1)[:, None]
    assert (np.abs(found - exact).max(axis=1) < prefix.rounding(prepared)).all()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [500, 899, 900, 950])
def test_lists_nearly_as_long_as_the_corpus(rng: np.random.Generator, k: int) -> None:
    rows, queries = rng.normal(size=(900, 5)), rng.normal(size=(2, 5))
    scores, ids = Corpus(rows, metric="l2").search(queries, k)
    expected_scores, expected_ids = expected(rows, queries, k, 5, "l2")
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_batches_do_not_show(rng: np.random.Generator) -> None:
    rows, queries = (rng.normal(size=(n, 40)).astype(np.float32) for n in (700, 300))
    rows[350:] = rows[:350]
    for plan in (None, Funnel((8, 24, 40), (50, 20))):
        searched = Corpus(rows)
        scores, ids = searched.search(queries, 12, funnel=plan)
        one_by_one = [searched.search(query[None], 12, funnel=plan) for query in queries]
        np.testing.assert_array_equal(scores, np.concatenate([s for s, _ in one_by_one]))
        np.testing.assert_array_equal(ids, np.concatenate([i for _, i in one_by_one]))


def test_rows_that_are_not_contiguous(rng: np.random.Generator) -> None:
    wide = rng.normal(size=(400, 64))
    queries = rng.normal(size=(3, 32))
    for rows in (wide[:, :32], wide[:, ::2], np.asfortranarray(wide[:, 32:]), wide[::-1, :32]):
        plan = Funnel((8, 16, 32), (40, 15))
        scores, ids = Corpus(rows).search(queries, 6, funnel=plan)
        expected_scores, expected_ids = retrieval_funnel(queries, rows, 6, plan.dims, plan.keep, "cosine")
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-12)


@pytest.mark.parametrize("dim", [7, 12, 24, 64, 96])
def test_columns_are_gathered_from_any_place(rng: np.random.Generator, dim: int) -> None:
    array = rng.normal(size=(50, dim))
    rows, ids = HostRows(array), rng.integers(0, 50, (3, 4))
    for start in range(0, dim, 3):
        for stop in range(start + 1, dim + 1, 2):
            np.testing.assert_array_equal(rows.take(ids, slice(start, stop)), array[ids, start:stop])


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat all arrays as if they lay on an accelerator."""
    monkeypatch.setattr(corpus, "view", lambda array: None)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("metric", METRICS)
def test_the_engine_of_accelerators(library: Library, rng: np.random.Generator, metric: str) -> None:
    rows, queries = rng.normal(size=(211, 16)), rng.normal(size=(5, 16))
    rows[[90, 3, 200]] = rows[50]
    searched = Corpus(library.array(rows), metric=metric)
    for plan in (Funnel((16,), ()), Funnel((5, 9, 16), (70, 21))):
        found = searched.search(library.array(queries), 12, funnel=plan)
        library.assert_found(found, retrieval_funnel(queries, rows, 12, plan.dims, plan.keep, metric))
    given = np.stack([rng.permutation(211)[:20] for _ in queries])
    given[1, :6] = -1
    found = searched.rerank(library.array(queries), library.array(given), 18, dim=11)
    library.assert_found(found, retrieval_rank(queries, rows, given.tolist(), 18, 11, metric))


@pytest.mark.usefixtures("elsewhere")
def test_the_engine_of_accelerators_in_blocks(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    torch = load("torch")
    monkeypatch.setattr(_device, "_NUMBERS", 16 * 64)
    rows, queries = rng.normal(size=(1000, 16)), rng.normal(size=(5, 16))
    _, ids = Corpus(torch.tensor(rows)).search(torch.tensor(queries), 40)
    np.testing.assert_array_equal(ids.numpy(), expected(rows, queries, 40, 16, "cosine")[1])


@pytest.mark.usefixtures("elsewhere")
def test_rounding_does_not_show_on_the_engine_of_accelerators(rng: np.random.Generator) -> None:
    torch = load("torch")
    rows, queries = rng.normal(size=(300, 16)), rng.normal(size=(5, 16))
    rows[100:130] = rows[7]
    queries[2] = rows[7]
    searched = Corpus(torch.tensor(rows), search_dims=(16,))
    off = torch.tensor(1 + rng.uniform(-1e-6, 1e-6, 300))  # of products only, not of the scores summed afterwards
    prefix = searched._prefixes[16]
    searched._prefixes[16] = dataclasses.replace(prefix, factor=prefix.factor * off)
    _, ids = searched.search(torch.tensor(queries), 10)
    np.testing.assert_array_equal(ids.numpy(), expected(rows, queries, 10, 16, "cosine")[1])


@pytest.mark.usefixtures("elsewhere")
def test_half_precision_on_the_engine_of_accelerators(rng: np.random.Generator) -> None:
    torch = load("torch")
    rows = torch.tensor(rng.normal(size=(90, 16)), dtype=torch.bfloat16)
    queries = torch.tensor(rng.normal(size=(4, 16)), dtype=torch.float32)
    scores, ids = Corpus(rows).search(queries, 6, funnel=Funnel((4, 16), (30,)))
    plan = Funnel((4, 16), (30,))
    expected_scores, expected_ids = retrieval_funnel(
        queries.double().numpy(), rows.double().numpy(), 6, plan.dims, plan.keep, "cosine"
    )
    assert scores.dtype == torch.float32
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_allclose(scores.numpy(), expected_scores, rtol=1e-5)


class TestThreads:
    @pytest.fixture(autouse=True)
    def four_threads(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(_threads, "n_threads", lambda: 4)
        _threads._pool.cache_clear()
        yield
        _threads._pool().shutdown()
        _threads._pool.cache_clear()

    def test_results_come_in_order(self) -> None:
        assert _threads.each(lambda i: i * i, range(100)) == [i * i for i in range(100)]
        assert _threads.each(lambda i: i, []) == []

    def test_errors_come_through_and_stop_the_rest(self) -> None:
        done: list[int] = []

        def work(i: int) -> None:
            if i == 3:
                msg = "broken"
                raise IndexError(msg)
            done.append(i)

        with pytest.raises(IndexError, match="broken"):
            _threads.each(work, range(100_000))
        assert len(done) < 100_000

    def test_loops_within_loops(self) -> None:
        assert _threads.each(lambda i: sum(_threads.each(lambda j: i * j, range(5))), range(9)) == [
            10 * i for i in range(9)
        ]

    @pytest.mark.usefixtures("small_blocks")
    def test_threads_do_not_show(self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        rows, queries = (rng.normal(size=(n, 40)).astype(np.float32) for n in (3000, 70))
        plan = Funnel((8, 24, 40), (50, 20))
        together = Corpus(rows).search(queries, 12, funnel=plan)
        monkeypatch.setattr(_threads, "n_threads", lambda: 1)
        alone = Corpus(rows).search(queries, 12, funnel=plan)
        for left, right in zip(together, alone, strict=True):
            np.testing.assert_array_equal(left, right)


def test_as_many_threads_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    count: Any = _threads.n_threads.__wrapped__
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert count() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert count() == 5
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert count() >= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_searches_too() -> None:
    program = """
import os, numpy as np
from matryoshka import Corpus
rows = np.random.default_rng(0).normal(size=(300_000, 4))
corpus = Corpus(rows)
before = corpus.search(rows[:40], 3)[1]
child = os.fork()
if not child:
    os._exit(0 if (corpus.search(rows[:40], 3)[1] == before).all() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    environment = {"OMP_NUM_THREADS": "2", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, timeout=60, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dim", [11, 70])
@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize("factor", [1e25, 1e-25])
def test_queries_whose_squares_are_no_numbers(
    rng: np.random.Generator, factor: float, n_queries: int, dim: int
) -> None:
    """The room left for rounding is as wide as queries are long: infinite, it let places pass that hold no row."""
    rows = (rng.normal(size=(901, dim)) * (1 if factor > 1 else 1e15)).astype(np.float32)
    queries = (rng.normal(size=(n_queries, dim)) * factor).astype(np.float32)
    prefix = Corpus(rows, metric="ip", search_dims=(dim,))._prefixes[dim]
    lengths = np.linalg.norm(queries.astype(float), axis=1)
    np.testing.assert_allclose(prefix.rounding(queries) / lengths, (dim + 8) * 2.0**-23 * prefix.longest, rtol=1e-5)
    _, ids = Corpus(rows, metric="ip").search(queries, 9)
    np.testing.assert_array_equal(ids, expected(rows, queries, 9, dim, "ip")[1])


@pytest.mark.parametrize("k", [1, 10, 300])
def test_a_sample_seldom_asks_too_much_and_never_far_too_little(rng: np.random.Generator, k: int) -> None:
    n, size = 5000, 500
    rank = _sampling.rank(k, size, n)
    draws = [np.sort(rng.choice(n, size, replace=False))[rank - 1] + 1 for _ in range(1000)]  # rows that pass
    assert np.mean(np.array(draws) < k) < 0.005
    assert np.mean(draws) < 2.5 * k + 100
    assert _sampling.rank(k, n, n) == k


@pytest.mark.parametrize(("n", "size"), [(7, 7), (100, 7), (1001, 64)])
def test_a_sample_holds_one_row_of_each_share(n: int, size: int) -> None:
    ids, edges = _sampling.draw(n, size), [i * n // size for i in range(size + 1)]
    assert all(low <= i < high for low, i, high in zip(edges, ids.tolist(), edges[1:], strict=False))
    assert ids.tolist() == _sampling.draw(n, size).tolist()
