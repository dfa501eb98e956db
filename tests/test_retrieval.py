"""Corpus: exact search, reranking and funnels against plain loops, and everything it refuses."""

from __future__ import annotations

import copy
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import retrieval_funnel, retrieval_rank

from matryoshka import Corpus, Funnel
from matryoshka._array import from_numpy, namespace, to_numpy
from matryoshka.retrieval import _rerank

METRICS = ("cosine", "ip", "l2")


def everything(corpus: np.ndarray, queries: np.ndarray) -> list[list[int]]:
    return [list(range(len(corpus))) for _ in queries]


def lopsided(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Rows of unequal lengths, whose first columns carry most."""
    return rng.normal(size=(n, dim)) * np.exp(-np.arange(dim) / dim) * rng.uniform(0.2, 5.0, size=(n, 1))


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    corpus, queries = lopsided(rng, 311, 23), lopsided(rng, 7, 23)
    corpus[17] = 0.0
    corpus[40, :6] = 0.0
    corpus[[200, 9, 305]] = corpus[101]
    queries[2] = corpus[101] * 3.0
    queries[5] = 0.0
    return corpus, queries


@pytest.mark.parametrize("metric", METRICS)
def test_exact_search(library: Library, data: tuple[np.ndarray, np.ndarray], metric: str) -> None:
    corpus, queries = data
    found = Corpus(library.array(corpus), metric=metric).search(library.array(queries), 12)
    library.assert_found(found, retrieval_rank(queries, corpus, everything(corpus, queries), 12, 23, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_search_at_a_prefix(library: Library, data: tuple[np.ndarray, np.ndarray], metric: str) -> None:
    corpus, queries = data
    found = Corpus(library.array(corpus), metric=metric).search(library.array(queries), 12, funnel=Funnel((6,), ()))
    library.assert_found(found, retrieval_rank(queries, corpus, everything(corpus, queries), 12, 6, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_a_plain_cut(library: Library, data: tuple[np.ndarray, np.ndarray], metric: str) -> None:
    corpus, queries = data
    searched, asked = Corpus(library.array(corpus), metric=metric), library.array(queries)
    found = searched.search(asked, 12, dim=6)
    library.assert_found(found, retrieval_rank(queries, corpus, everything(corpus, queries), 12, 6, metric))
    assert searched.search_dims == (6,)
    for plain, plan in ((found, Funnel((6,))), (searched.search(asked, 12, dim=23), None)):
        for one, other in zip(plain, searched.search(asked, 12, funnel=plan), strict=True):
            np.testing.assert_array_equal(library.to_numpy(one), library.to_numpy(other))


def test_a_plain_cut_behind_an_index_of_your_own(data: tuple[np.ndarray, np.ndarray]) -> None:
    corpus, queries = data
    searched, asked = Corpus(corpus), []

    def find(prefixes: np.ndarray, count: int) -> np.ndarray:
        asked.append((prefixes.shape, count))
        return np.tile(np.arange(20, 20 + count), (len(prefixes), 1))

    found = searched.search(queries, 5, dim=6, first_stage=find)
    np.testing.assert_array_equal(np.sort(found[1]), np.tile(np.arange(20, 25), (7, 1)))
    assert asked == [((7, 6), 5)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, ValueError, r"`dim` must be an integer in \[1, 23\], got 0"),
        ({"dim": 24}, ValueError, r"`dim` must be an integer in \[1, 23\], got 24"),
        ({"dim": -1}, ValueError, r"`dim` must be an integer in \[1, 23\], got -1"),
        ({"dim": 6.0}, TypeError, "`dim` must be an integer, got float 6.0"),
        ({"dim": True}, TypeError, "`dim` must be an integer, got bool True"),
        ({"dim": 6, "funnel": Funnel((6,))}, TypeError, "at most one of `dim` and `funnel` may be given, got both"),
    ],
)
def test_a_wrong_cut_is_refused(
    data: tuple[np.ndarray, np.ndarray], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    searched = Corpus(data[0])
    with pytest.raises(error, match=message):
        searched.search(data[1], 3, **options)
    assert searched.search_dims == ()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("declared", [(), (5, 9)])
def test_funnel(library: Library, data: tuple[np.ndarray, np.ndarray], metric: str, declared: tuple[int, ...]) -> None:
    corpus, queries = data
    plan = Funnel((5, 8, 14, 23), (60, 20, 11))
    searched = Corpus(library.array(corpus), metric=metric, search_dims=declared)
    found = searched.search(library.array(queries), 10, funnel=plan)
    library.assert_found(found, retrieval_funnel(queries, corpus, 10, plan.dims, plan.keep, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_rerank(library: Library, data: tuple[np.ndarray, np.ndarray], metric: str, rng: np.random.Generator) -> None:
    corpus, queries = data
    ids = np.stack([rng.permutation(len(corpus))[:30] for _ in queries])
    ids[:, 4] = -1
    ids[3] = -1
    found = Corpus(library.array(corpus), metric=metric).rerank(library.array(queries), library.array(ids), 29, dim=11)
    library.assert_found(found, retrieval_rank(queries, corpus, ids.tolist(), 29, 11, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_rerank_through_the_rest_of_a_funnel(
    library: Library, data: tuple[np.ndarray, np.ndarray], metric: str, rng: np.random.Generator
) -> None:
    corpus, queries = data
    ids = np.stack([rng.permutation(len(corpus))[:50] for _ in queries])
    ids[2, 7:] = -1
    plan = Funnel((4, 8, 14, 23), (50, 20, 11))
    found = Corpus(library.array(corpus), metric=metric).rerank(
        library.array(queries), library.array(ids), 10, funnel=plan
    )
    candidates = ids.tolist()
    for dim, count in zip(plan.dims[1:], (*plan.keep[1:], 10), strict=True):
        expected = retrieval_rank(queries, corpus, candidates, count, dim, metric)
        candidates = expected[1].tolist()
    library.assert_found(found, expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("numbers", [1, 60, 700])
def test_parts_of_long_lists_do_not_show(
    data: tuple[np.ndarray, np.ndarray], metric: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, queries = data
    plan = Funnel((5, 8, 14, 23), (60, 20, 11))
    searched = Corpus(corpus, metric=metric)
    whole = searched.search(queries, 10, funnel=plan)
    monkeypatch.setattr(_rerank, "_NUMBERS", numbers)
    for one, other in zip(whole, searched.search(queries, 10, funnel=plan), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole[1], retrieval_funnel(queries, corpus, 10, plan.dims, plan.keep, metric)[1])


def test_rerank_through_a_single_shot_is_a_rerank(rng: np.random.Generator) -> None:
    corpus, queries, ids = rng.normal(size=(50, 6)), rng.normal(size=(3, 6)), rng.integers(0, 50, (3, 9))
    searched = Corpus(corpus)
    one, other = searched.rerank(queries, ids, 4, dim=5), searched.rerank(queries, ids, 4, funnel=Funnel((5,), ()))
    np.testing.assert_array_equal(one[1], other[1])


def test_more_results_than_rows_are_padded(library: Library, data: tuple[np.ndarray, np.ndarray]) -> None:
    corpus, queries = data[0][:4], data[1]
    for plan in (None, Funnel((3, 23), (50,))):
        scores, ids = Corpus(library.array(corpus)).search(library.array(queries), 9, funnel=plan)
        assert tuple(scores.shape) == tuple(ids.shape) == (7, 9)
        assert (library.to_numpy(ids)[:, 4:] == -1).all()
        assert (library.to_numpy(scores)[:, 4:] == -math.inf).all()
        assert (np.sort(library.to_numpy(ids)[:, :4]) == np.arange(4)).all()


def test_rerank_pads_where_candidates_run_out(library: Library, data: tuple[np.ndarray, np.ndarray]) -> None:
    corpus, queries = data
    given_ids = library.array(np.array([[5, -1]] * 7))
    scores, ids = Corpus(library.array(corpus)).rerank(library.array(queries), given_ids, 4, dim=23)
    assert library.to_numpy(ids).tolist() == [[5, -1, -1, -1]] * 7
    assert (library.to_numpy(scores)[:, 1:] == -math.inf).all()
    nothing = library.array(np.zeros((7, 0), dtype=np.int64))
    scores, ids = Corpus(library.array(corpus)).rerank(library.array(queries), nothing, 2, dim=3)
    assert library.to_numpy(ids).tolist() == [[-1, -1]] * 7


def test_no_queries_give_no_rows(library: Library, data: tuple[np.ndarray, np.ndarray]) -> None:
    corpus, queries = data
    for plan in (None, Funnel((3, 23), (50,))):
        scores, ids = Corpus(library.array(corpus)).search(library.array(queries[:0]), 3, funnel=plan)
        assert tuple(scores.shape) == tuple(ids.shape) == (0, 3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [50, 5000])
def test_equal_rows_come_in_id_order(library: Library, rng: np.random.Generator, metric: str, n: int) -> None:
    corpus = np.tile(rng.normal(size=(1, 19)), (n, 1))
    corpus[n // 2] = corpus[0] * -1.0
    scores, ids = Corpus(library.array(corpus), metric=metric).search(library.array(corpus[:2]), 45)
    assert library.to_numpy(ids)[0].tolist() == [i for i in range(46) if i != n // 2][:45]
    assert len(np.unique(library.to_numpy(scores))) == 1


def test_ties_at_the_end_of_the_list_keep_the_lowest_ids(library: Library) -> None:
    corpus = np.zeros((400, 3))
    corpus[:, 0] = 1.0
    corpus[350, 0], corpus[399, 0] = 5.0, 7.0
    _, ids = Corpus(library.array(corpus), metric="ip").search(library.array(np.ones((1, 3))), 6)
    assert library.to_numpy(ids).tolist() == [[399, 350, 0, 1, 2, 3]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 70), st.sampled_from(METRICS), st.integers(0, 10**6))
def test_a_funnel_that_drops_nothing_is_exact(n: int, dim: int, k: int, metric: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corpus = rng.integers(-2, 3, size=(n, dim)).astype(float)
    queries = rng.normal(size=(3, dim))
    plan = Funnel(range(1, dim + 1), [max(n, k)] * (dim - 1))
    searched = Corpus(corpus, metric=metric)
    exact, staged = searched.search(queries, k), searched.search(queries, k, funnel=plan)
    np.testing.assert_allclose(staged[0], exact[0], atol=1e-9)
    if metric == "ip":
        np.testing.assert_array_equal(staged[1], exact[1])


def test_arguments_are_not_written_to(data: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> None:
    corpus, queries = data
    ids = rng.integers(-1, len(corpus), size=(7, 30))
    before = corpus.copy(), queries.copy(), ids.copy()
    for array in (corpus, queries, ids):
        array.flags.writeable = False
    for metric in METRICS:
        searched = Corpus(corpus, metric=metric, search_dims=(4,))
        searched.search(queries, 5)
        searched.search(queries, 5, funnel=Funnel((4, 9, 23), (30, 6)))
        searched.rerank(queries, ids, 5, dim=9)
    for array, kept in zip((corpus, queries, ids), before, strict=True):
        np.testing.assert_array_equal(array, kept)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_lengths_keep_their_cosines(rng: np.random.Generator, scale: float) -> None:
    corpus, queries = lopsided(rng, 60, 12), lopsided(rng, 3, 12)
    plan = Funnel((4, 12), (60,))
    big = (corpus * np.where(np.arange(60) % 2, scale, 1.0)[:, None]).astype(np.float32)
    for chosen in (None, plan):
        expected = Corpus(corpus).search(queries, 8, funnel=chosen)
        scores, ids = Corpus(big).search((queries * scale).astype(np.float32), 8, funnel=chosen)
        np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
        np.testing.assert_array_equal(ids, expected[1])


@pytest.mark.parametrize("module", ["numpy", "torch"])
@pytest.mark.parametrize("metric", METRICS)
def test_half_precision_is_computed_in_float32(module: str, metric: str, rng: np.random.Generator) -> None:
    library = load(module)
    half = library.float16 if module == "numpy" else library.bfloat16
    corpus = library.asarray(rng.normal(size=(90, 16)), dtype=library.float32)
    queries = library.asarray(rng.normal(size=(4, 16)), dtype=library.float32)
    narrow, wide = (a.astype(half) if module == "numpy" else a.to(half) for a in (corpus, queries))
    exact = narrow.astype(library.float32) if module == "numpy" else narrow.to(library.float32)
    for plan in (None, Funnel((5, 16), (30,))):
        expected = Corpus(exact, metric=metric).search(queries, 6, funnel=plan)
        scores, ids = Corpus(narrow, metric=metric).search(queries, 6, funnel=plan)
        assert scores.dtype == library.float32
        np.testing.assert_allclose(np.asarray(scores), np.asarray(expected[0]), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(ids), np.asarray(expected[1]))
    assert Corpus(narrow, metric=metric).search(wide, 6)[0].dtype == library.float32


def test_a_corpus_describes_itself(rng: np.random.Generator) -> None:
    corpus = Corpus(rng.normal(size=(12, 8)), metric="l2", search_dims=(4, 8))
    assert (len(corpus), corpus.dim, corpus.metric, corpus.search_dims) == (12, 8, "l2", (4, 8))
    corpus.search(np.ones((1, 8)), 1, funnel=Funnel((2, 8), (3,)))
    assert corpus.search_dims == (2, 4, 8)
    assert repr(corpus) == "Corpus(12 x 8, metric='l2', search_dims=(2, 4, 8))"


def test_rows_of_zeros_are_all_alike() -> None:
    for metric in METRICS:
        assert Corpus(np.zeros((4, 3)), metric=metric).search(np.full((1, 3), 0.1), 4)[1].tolist() == [[0, 1, 2, 3]]


def test_a_copy_shares_the_rows_and_builds_blocks_of_its_own(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(40, 8))
    corpus = Corpus(rows, search_dims=(4,))
    twin, plan = copy.copy(corpus), Funnel((2, 8), (9,))
    for found, expected in zip(
        twin.search(rows, 3, funnel=plan), Corpus(rows).search(rows, 3, funnel=plan), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert (corpus.search_dims, twin.search_dims) == ((4,), (2, 4))
    assert twin._rows is corpus._rows


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_of_ones_own(library: Library, data: tuple[np.ndarray, np.ndarray], metric: str) -> None:
    rows, queries = data
    corpus, plan = Corpus(library.array(rows), metric=metric), Funnel((6, 12, 23), (60, 20))
    blocks = list(corpus.prefixes(6))
    index = np.concatenate([np.asarray(to_numpy(prefixes)) for _, prefixes in blocks])
    assert [at.start for at, _ in blocks] == [0, *(at.stop for at, _ in blocks[:-1])]
    assert index.shape == (311, 6)
    asked: list[tuple[tuple[int, ...], int]] = []

    def find(prefixes: Any, count: int) -> Any:
        asked.append((tuple(prefixes.shape), count))
        host = to_numpy(prefixes)
        near = -((host[:, None] - index) ** 2).sum(-1) if metric == "l2" else host @ index.T
        ids = np.argsort(-near, axis=1, kind="stable")[:, :count]
        return from_numpy(ids, like=prefixes, xp=namespace(("prefixes", prefixes)))

    found = corpus.search(library.array(queries), 9, funnel=plan, first_stage=find)
    assert asked == [((7, 6), 60)]
    library.assert_found(found, retrieval_funnel(queries, rows, 9, plan.dims, plan.keep, metric))


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (np.zeros((2, 3)), TypeError, "`ids` must hold integers, got dtype float64"),
        (np.zeros((1, 3), int), ValueError, r"`ids` must have shape \(n_queries, m\) = \(2, 3\), got \(1, 3\)"),
        (np.full((2, 3), 40), ValueError, r"`ids` must lie within \[-1, 40\), got 40 to 40"),
        ([[1], [2]], TypeError, "`ids` must be an array"),
    ],
)
def test_an_index_that_returns_something_else_is_refused(
    rng: np.random.Generator, found: Any, error: type[Exception], message: str
) -> None:
    rows = rng.normal(size=(40, 8))
    with pytest.raises(error, match=message):
        Corpus(rows).search(rows[:2], 3, funnel=Funnel((4, 8), (9,)), first_stage=lambda prefixes, count: found)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [-300, -160, -80, -25, -19, -15, 0, 15, 18, 19, 25, 37, 80, 160, 300])
@pytest.mark.parametrize("asked", [-30, -10, 0, 10, 30])
def test_numbers_of_any_size_are_ordered_correctly_or_refused(
    rng: np.random.Generator, metric: str, dtype: type, size: int, asked: int
) -> None:
    """A search ends, whatever finite numbers it gets: with the order of exact numbers, or with a range to keep."""
    rows, queries = rng.normal(size=(200, 8)), rng.normal(size=(3, 8))
    with np.errstate(all="ignore"):
        large, larger = (rows * 10.0**size).astype(dtype), (queries * 10.0 ** min(size + asked, 300)).astype(dtype)
    if not (np.isfinite(large).all() and np.isfinite(larger).all()):
        return
    try:
        _, ids = Corpus(large, metric=metric).search(larger, 5)
    except ValueError as error:
        assert re.match("`(embeddings|queries)` must ", str(error))  # noqa: PT017 (either may happen)
        assert metric != "cosine"
        assert abs(size) > 9 or abs(asked) > 9
        return
    exact = [[Fraction(float(x)) for x in row] for row in large]
    for query, found in zip(larger, ids.tolist(), strict=True):
        q = [Fraction(float(x)) for x in query]
        if metric == "l2":
            scores = [-sum((a - b) ** 2 for a, b in zip(q, x, strict=True)) for x in exact]
        else:
            scores = [sum(a * b for a, b in zip(q, x, strict=True)) for x in exact]
        if metric == "cosine":
            scores = [
                s * abs(s) / max(sum(a * a for a in x), Fraction(1, 10**700))
                for s, x in zip(scores, exact, strict=True)
            ]
        best = sorted(scores, reverse=True)[:5]
        spread = max(map(abs, best))
        assert all(abs(scores[i] - b) <= spread / 10**4 for i, b in zip(found, best, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted(library: Library, rng: np.random.Generator, bad: float) -> None:
    corpus = rng.normal(size=(30, 4))
    corpus[[3, 8, 8, 20], [1, 0, 2, 3]] = bad
    with pytest.raises(ValueError, match=r"`embeddings` must be finite, got .* 3 of 30 rows \(first: 3, 8, 20\)"):
        Corpus(library.array(corpus))
    with pytest.raises(ValueError, match="`queries` must be finite, got .* 3 of 30 rows"):
        Corpus(library.array(np.ones((5, 4)))).search(library.array(corpus), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": [[1.0]]}, TypeError, "`embeddings` must be an array"),
        ({"embeddings": np.ones((3, 2), dtype=int)}, TypeError, "`embeddings` must hold floating-point numbers"),
        ({"embeddings": np.ones(3)}, ValueError, r"`embeddings` must have shape \(n, dim\), got \(3,\)"),
        ({"embeddings": np.ones((0, 3))}, ValueError, "`embeddings` must have at least one row"),
        ({"embeddings": np.ones((3, 0))}, ValueError, "`embeddings` must have at least one column"),
        ({"metric": "dot"}, ValueError, "`metric` must be one of 'cosine', 'ip', 'l2', got 'dot'"),
        ({"search_dims": (2, 9)}, ValueError, r"`search_dims` must lie within \[1, 4\]"),
        ({"search_dims": (2, 2)}, ValueError, "`search_dims` must be positive and strictly increasing"),
        ({"search_dims": 2}, TypeError, "`search_dims` must be a sequence of integers"),
    ],
)
def test_a_bad_corpus_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    arguments = {"embeddings": np.ones((3, 4)), **arguments}
    with pytest.raises(error, match=message):
        Corpus(arguments.pop("embeddings"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": np.ones(4)}, ValueError, r"dim\), got \(4,\); for one row pass queries\[None\]"),
        ({"queries": np.ones((2, 5))}, ValueError, r"`queries` must have shape .* = \(2, 4\), got \(2, 5\)"),
        ({"queries": np.ones((2, 4), dtype=np.float32)}, TypeError, "`queries` must have the dtype of the corpus"),
        ({"queries": np.ones((2, 4), dtype=int)}, TypeError, "`queries` must hold floating-point numbers"),
        ({"queries": [[1.0] * 4]}, TypeError, "`queries` must be an array"),
        ({"k": 0}, ValueError, "`k` must be an integer >= 1, got 0"),
        ({"k": 1.0}, TypeError, "`k` must be an integer"),
        ({"k": 3, "funnel": Funnel((2, 4), (2,))}, ValueError, "`k` must be at most the last list of the funnel, 2"),
        ({"funnel": Funnel((2, 5), (2,))}, ValueError, r"`funnel.dims` must lie within \[1, 4\]"),
        ({"funnel": (2, 4)}, TypeError, "`funnel` must be a Funnel, got tuple"),
    ],
)
def test_a_bad_search_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    arguments = {"queries": np.ones((2, 4)), "k": 2, **arguments}
    with pytest.raises(error, match=message):
        Corpus(np.ones((3, 4))).search(arguments.pop("queries"), arguments.pop("k"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": np.zeros((2, 3))}, TypeError, "`ids` must hold integers, got dtype float64"),
        ({"ids": np.zeros(2, dtype=int)}, ValueError, r"`ids` must have shape \(n_queries, m\), got \(2,\)"),
        ({"ids": np.zeros((3, 2), dtype=int)}, ValueError, r"`ids` must have shape .* = \(2, 2\), got \(3, 2\)"),
        ({"ids": np.full((2, 2), 3)}, ValueError, r"`ids` must lie within \[-1, 3\), got 3 to 3"),
        ({"ids": np.full((2, 2), -2)}, ValueError, r"`ids` must lie within \[-1, 3\), got -2 to -2"),
        ({"k": 0}, ValueError, "`k` must be an integer >= 1"),
        ({"dim": 5}, ValueError, r"`dim` must be an integer in \[1, 4\], got 5"),
        ({"dim": 0}, ValueError, r"`dim` must be an integer in \[1, 4\], got 0"),
        ({"queries": np.ones((2, 5))}, ValueError, "`queries` must have shape"),
        ({"dim": None}, TypeError, "exactly one of `dim` and `funnel` must be given"),
        ({"funnel": Funnel((2, 4), (2,))}, TypeError, "exactly one of `dim` and `funnel` must be given"),
        ({"dim": None, "funnel": Funnel((2, 4), (1,))}, ValueError, "`k` must be at most the last list"),
        ({"dim": None, "funnel": Funnel((2, 5), (2,))}, ValueError, r"`funnel.dims` must lie within"),
    ],
)
def test_a_bad_rerank_is_refused(arguments: dict, error: type[Exception], message: str) -> None:
    arguments = {"queries": np.ones((2, 4)), "ids": np.zeros((2, 2), dtype=int), "k": 2, "dim": 4, **arguments}
    with pytest.raises(error, match=message):
        Corpus(np.ones((3, 4))).rerank(arguments.pop("queries"), arguments.pop("ids"), arguments.pop("k"), **arguments)


def test_two_libraries_are_refused() -> None:
    torch = load("torch")
    with pytest.raises(TypeError, match="`embeddings` and `queries` must come from one array library"):
        Corpus(np.ones((3, 4))).search(torch.ones((1, 4), dtype=torch.float64), 1)
    with pytest.raises(TypeError, match="`embeddings` and `ids` must come from one array library"):
        Corpus(np.ones((3, 4))).rerank(np.ones((1, 4)), torch.zeros((1, 2), dtype=torch.int64), 1, dim=4)
    strict = load("array_api_strict")
    elsewhere = strict.ones((1, 4), device=strict.Device("device1"))
    with pytest.raises(ValueError, match="`embeddings` and `queries` must lie on one device"):
        Corpus(strict.ones((3, 4))).search(elsewhere, 1)


def test_more_results_than_one_call_may_return_are_refused() -> None:
    corpus = Corpus(np.eye(4))
    with pytest.raises(ValueError, match="`k` must ask for at most 2147483648 results in one call"):
        corpus.search(np.eye(4), 2**40)
    with pytest.raises(ValueError, match="`k` must ask for at most"):
        corpus.rerank(np.eye(4), np.zeros((4, 2), int), 2**40, dim=2)


def test_a_corpus_of_zeros_takes_any_query() -> None:
    assert Corpus(np.zeros((2, 2)), metric="ip").search(np.array([[0.1, 0.2]]), 2)[0].tolist() == [[0.0, 0.0]]
