"""Exact searches pruned by bounds: bit for bit those of the full pass, and left to it where bounds do not pay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from oracles import retrieval_rank

from matryoshka import Corpus
from matryoshka.retrieval import _bounds, _scan

METRICS = ["cosine", "ip", "l2"]
DIM, SHORT = 40, 7


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let corpora of any size be pruned, and long lists be read on."""
    monkeypatch.setattr(_bounds, "_NUMBERS", 1 << 10)
    monkeypatch.setattr(_bounds, "_GATHERED", DIM)
    monkeypatch.setattr(_bounds, "_MOST_GATHERED", 2 * DIM)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note for how many queries a full pass was made."""
    noted: list[int] = []
    scan = _scan.candidates

    def noting(prefix: object, queries: np.ndarray, k: int, score: Callable[..., np.ndarray]) -> np.ndarray:
        noted.append(len(queries))
        return scan(prefix, queries, k, score)  # type: ignore[arg-type]

    monkeypatch.setattr(_scan, "candidates", noting)
    return noted


def falling(rng: np.random.Generator, n: int, dim: int = DIM) -> np.ndarray:
    return rng.normal(size=(n, dim)) * 0.8 ** np.arange(dim) * rng.uniform(0.5, 2, size=(n, 1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("n_queries", [1, 9])
def test_results_are_those_of_the_full_pass(
    rng: np.random.Generator, passes: list[int], n_queries: int, dtype: type, metric: str
) -> None:
    rows, queries = falling(rng, 900).astype(dtype), falling(rng, n_queries).astype(dtype)
    full = Corpus(rows, metric=metric).search(queries, 12)
    passes.clear()
    found = Corpus(rows, metric=metric, search_dims=(SHORT,)).search(queries, 12)
    assert sum(passes) < n_queries / 2
    for got, expected in zip(found, full, strict=True):
        np.testing.assert_array_equal(got, expected)
    expected_ids = retrieval_rank(queries, rows, [list(range(900))] * n_queries, 12, DIM, metric)[1]
    np.testing.assert_array_equal(found[1], expected_ids)


@pytest.mark.parametrize("metric", METRICS)
def test_every_query_is_answered_pruned_or_not(rng: np.random.Generator, passes: list[int], metric: str) -> None:
    rows, queries = falling(rng, 900), falling(rng, 21)
    queries[::3] = rng.normal(size=(7, DIM)) * np.where(np.arange(DIM) < SHORT, 1e-3, 3)  # their prefixes say little
    queries[1] = rows[-1]
    corpus = Corpus(rows, metric=metric, search_dims=(SHORT,))
    _, ids = corpus.search(queries, 5)
    assert 0 < sum(passes) < 21
    np.testing.assert_array_equal(ids, Corpus(rows, metric=metric).search(queries, 5)[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shift", [0.0, 3.0, 1e3])
def test_near_ties_and_rows_far_from_the_origin(rng: np.random.Generator, shift: float, metric: str) -> None:
    """Bounds are rounded too: rows that differ by less than that must all be read."""
    few = falling(rng, 30)
    rows = (few[rng.integers(0, 30, 900)] + 1e-7 * rng.normal(size=(900, DIM)) + shift).astype(np.float32)
    rows[5] = rows[700]
    rows[11] = 0.0
    queries = (few[:6] + shift).astype(np.float32)
    pruned, full = (Corpus(rows, metric=metric, search_dims=dims).search(queries, 40) for dims in ((SHORT,), ()))
    for got, expected in zip(pruned, full, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("metric", METRICS)
def test_a_rest_below_the_rounding_of_lengths(rng: np.random.Generator, metric: str) -> None:
    """Of squared lengths in float32 nothing is left of these columns, which the query alone is about."""
    rows = rng.normal(size=(900, DIM)).astype(np.float32) * np.where(np.arange(DIM) < SHORT, 1, 1e-4).astype(np.float32)
    queries = (rng.normal(size=(4, DIM)) * (np.arange(DIM) >= SHORT)).astype(np.float32)
    pruned, full = (Corpus(rows, metric=metric, search_dims=dims).search(queries, 10) for dims in ((SHORT,), ()))
    for got, expected in zip(pruned, full, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("factor", [1e-25, 1e-12, 1e12, 1e25])
def test_rows_of_any_length(rng: np.random.Generator, factor: float) -> None:
    rows, queries = (falling(rng, n).astype(np.float32) for n in (900, 6))
    rows[::2] *= np.float32(factor)
    pruned, full = (Corpus(rows, search_dims=dims).search(queries, 15) for dims in ((SHORT,), ()))
    for got, expected in zip(pruned, full, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 899, 900, 950])
def test_lists_of_any_length_and_equal_rows(rng: np.random.Generator, metric: str, k: int) -> None:
    rows = np.tile(falling(rng, 3), (300, 1))
    queries = falling(rng, 4)
    pruned, full = (Corpus(rows, metric=metric, search_dims=dims).search(queries, k) for dims in ((SHORT,), ()))
    for got, expected in zip(pruned, full, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_prefix_that_holds_everything(rng: np.random.Generator, passes: list[int]) -> None:
    rows = np.pad(rng.normal(size=(900, SHORT)), ((0, 0), (0, DIM - SHORT)))
    corpus = Corpus(rows, search_dims=(SHORT,))
    np.testing.assert_array_equal(corpus.search(rows[:9], 1)[1][:, 0], np.arange(9))
    assert not sum(passes)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note for how many queries bounds were tried."""
    noted: list[int] = []
    pruned = _bounds.Bounds._pruned

    def noting(bounds: _bounds.Bounds, queries: np.ndarray, k: int) -> list[np.ndarray | None]:
        noted.append(len(queries))
        return pruned(bounds, queries, k)

    monkeypatch.setattr(_bounds.Bounds, "_pruned", noting)
    return noted


def test_rows_without_an_order_are_left_to_the_full_pass(
    rng: np.random.Generator, passes: list[int], tries: list[int]
) -> None:
    rows, queries = rng.normal(size=(900, DIM)), rng.normal(size=(130, DIM))
    corpus, plain = Corpus(rows, search_dims=(SHORT,)), Corpus(rows)
    for query in queries:
        np.testing.assert_array_equal(corpus.search(query[None], 5)[1], plain.search(query[None], 5)[1])
    assert len(tries) == 7  # two at first, and then one in every 23: 64 times twice 7 of 40 columns
    assert sum(passes) == 2 * 130


def test_a_batch_that_is_not_pruned_costs_a_full_pass(rng: np.random.Generator, tries: list[int]) -> None:
    corpus = Corpus(rng.normal(size=(900, DIM)), search_dims=(SHORT,))
    for _ in range(66):
        corpus.search(rng.normal(size=(20, DIM)), 5)
    assert sum(tries) == 2 * 20  # the first, and after 64 others


def test_batches_do_not_speak_for_single_queries(rng: np.random.Generator, tries: list[int]) -> None:
    corpus = Corpus(rng.normal(size=(900, DIM)), search_dims=(SHORT,))
    for _ in range(3):
        corpus.search(rng.normal(size=(20, DIM)), 5)
    corpus.search(rng.normal(size=(1, DIM)), 5)
    assert tries[-1] == 1


def test_what_is_pruned_pays_for_what_is_not(rng: np.random.Generator, tries: list[int]) -> None:
    corpus = Corpus(falling(rng, 900), search_dims=(SHORT,))
    lost = rng.normal(size=(1, DIM)) * np.where(np.arange(DIM) < SHORT, 1e-3, 3)
    for search in range(40):
        corpus.search(falling(rng, 1) if search % 3 else lost, 5)
    assert len(tries) == 40
    for _ in range(40):
        corpus.search(lost, 5)
    assert 40 < len(tries) < 50  # what was saved long ago pays for few


@pytest.mark.parametrize("metric", METRICS)
def test_no_queries(rng: np.random.Generator, metric: str) -> None:
    corpus = Corpus(falling(rng, 900), metric=metric, search_dims=(SHORT,))
    scores, ids = corpus.search(np.empty((0, DIM)), 5)
    assert scores.shape == ids.shape == (0, 5)


def test_what_is_pruned_by(rng: np.random.Generator) -> None:
    corpus = Corpus(falling(rng, 300), search_dims=(3, 8, 10, 11, 30))
    assert not corpus._bounds
    before = corpus.nbytes.lengths
    corpus.search(falling(rng, 1), 3)
    assert list(corpus._bounds) == [10]  # the widest of at most a quarter of the columns
    assert corpus.nbytes.lengths - before == 8 * 300 * (3 + 1)  # and cosines of the full width


@pytest.mark.parametrize(("metric", "kept"), [("cosine", 3 * 300), ("ip", 300 + 1), ("l2", 2 * 300 + 1)])
def test_what_bounds_keep_is_counted(rng: np.random.Generator, metric: str, kept: int) -> None:
    corpus = Corpus(falling(rng, 300), metric=metric, search_dims=(3, DIM))
    before = corpus.nbytes.lengths
    corpus.search(falling(rng, 1), 3)
    assert corpus.nbytes.lengths - before == 8 * kept


def test_only_the_widest_is_kept(rng: np.random.Generator) -> None:
    corpus, query = Corpus(falling(rng, 300), search_dims=(3,)), falling(rng, 1)
    for dim in (3, 8):
        corpus.search(query, 3, dim=dim)
        corpus.search(query, 3)
        assert list(corpus._bounds) == [dim]


def test_few_rows_are_not_worth_it(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bounds, "_NUMBERS", 300 * DIM + 1)
    corpus = Corpus(falling(rng, 300), search_dims=(3,))
    corpus.search(falling(rng, 1), 3)
    assert not corpus._bounds


@pytest.mark.parametrize("cost", [1, 900])
def test_rows_in_a_file(
    rng: np.random.Generator, passes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: int
) -> None:
    monkeypatch.setattr(_bounds, "_OF_FILE", cost)
    rows, queries = falling(rng, 900).astype(np.float32), falling(rng, 7).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = Corpus(np.load(tmp_path / "rows.npy", mmap_mode="r"), search_dims=(SHORT,))
    _, ids = mapped.search(queries, 9)
    assert (sum(passes) == 7) == (cost == 900)
    np.testing.assert_array_equal(ids, Corpus(rows).search(queries, 9)[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("n_queries", [1, 4])
def test_queries_whose_squares_are_no_numbers(
    rng: np.random.Generator, n_queries: int, long: bool, dtype: type
) -> None:
    """Inner products with the rows are, and so are lengths: bounds and thresholds rest on those."""
    step = np.finfo(dtype).max ** 0.35
    rows = (falling(rng, 900) * (1 if long else step)).astype(dtype)
    queries = (falling(rng, n_queries) * (step**2 if long else step**-2)).astype(dtype)
    with np.errstate(over="ignore"):
        assert not (0 < (queries * queries).max() < np.inf)
    expected = retrieval_rank(queries, rows, [list(range(900))] * n_queries, 15, DIM, "ip")[1]
    for dims in ((SHORT,), ()):
        np.testing.assert_array_equal(Corpus(rows, metric="ip", search_dims=dims).search(queries, 15)[1], expected)


def test_another_search_may_replace_the_bounds_meanwhile(rng: np.random.Generator) -> None:
    class Replaced(dict[int, _bounds.Bounds]):
        def __contains__(self, dim: object) -> bool:
            corpus._bounds = {}  # as a search on another thread does, for which a wider prefix is at hand
            return super().__contains__(dim)

    rows, queries = falling(rng, 900), falling(rng, 9)
    corpus = Corpus(rows, search_dims=(SHORT,))
    expected = corpus.search(queries, 5)
    corpus._bounds = Replaced(corpus._bounds)
    for got, wanted in zip(corpus.search(queries, 5), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
