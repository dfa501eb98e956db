"""matryoshka.retrieval.shards: rows in parts find what all rows find, wherever they are cut and whatever is equal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import Corpus, Funnel
from matryoshka.retrieval import shards
from matryoshka.retrieval._scores import Sums
from matryoshka.retrieval.engine import Stages
from matryoshka.retrieval.shards import Candidates, Outline, Shard, ShardedCorpus

METRICS = ("cosine", "ip", "l2")


class Parts(ShardedCorpus):
    """Shards in this process, merged two by two and from the right."""

    def __init__(self, parts: Sequence[np.ndarray], *, metric: str = "cosine", search_dims: Sequence[int] = ()) -> None:
        self._shards = [Shard(part, metric=metric, search_dims=search_dims) for part in parts]
        outlines = [shard.outline for shard in self._shards]
        super().__init__(outlines, metric=metric)
        if metric == "cosine" and not all(outline.safe for outline in outlines):
            self._shards = [shard.scaled() for shard in self._shards]

    def _run(self, queries: np.ndarray, stages: Stages, given: Candidates | None) -> tuple[np.ndarray, np.ndarray]:
        found, done = given, 0
        for dim, keep in zip(*stages, strict=True):
            lists = [
                shard.search(queries, dim, keep, start)
                if found is None
                else shard.rerank(queries, found, (done, dim), keep, start)
                for shard, start in zip(self._shards, self._starts, strict=True)
            ]
            while len(lists) > 1:
                lists[-2:] = [Candidates.join(lists[-2:]).best(keep)]
            found, done = lists[0], dim
        assert found is not None
        return found.ranked(stages.lists[-1])


def assert_same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    for array, other in zip(found, expected, strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int], Funnel, int]:
    """Rows of few different numbers, so that many are equal, queries, where to cut, a funnel and a number of results.

    Each row is some column times a power of two: sums of such products are exact, and equal rows score the same.
    """
    dim, n = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    rows = rng.integers(-1, 2, size=(n, dim)) * 2.0 ** rng.integers(-3, 4, size=dim)
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=6))) if n > 1 else []
    dims = sorted(draw(st.sets(st.integers(1, dim), min_size=1, max_size=3)))
    keep = sorted(draw(st.lists(st.integers(1, 50), min_size=len(dims) - 1, max_size=len(dims) - 1)), reverse=True)
    k = draw(st.integers(1, keep[-1] if keep else 50))
    return rows, rng.integers(-2, 3, size=(4, dim)) * 1.0, cuts, Funnel(dims, keep), k


@settings(deadline=None, max_examples=80)
@given(problems(), st.sampled_from(METRICS), st.sampled_from((np.float32, np.float64)))
def test_parts_find_what_all_rows_find(problem: tuple[Any, ...], metric: str, dtype: type) -> None:
    rows, queries, cuts, plan, k = problem
    rows, queries = rows.astype(dtype), queries.astype(dtype)
    whole, parts = Corpus(rows, metric=metric), Parts(np.split(rows, cuts), metric=metric, search_dims=plan.dims[:1])
    for options in ({}, {"dim": plan.dims[0]}, {"funnel": plan}):
        assert_same(parts.search(queries, k, **options), whole.search(queries, k, **options))
    ids = np.random.default_rng(len(rows)).integers(-1, len(rows), size=(4, 9))
    for options in ({"dim": plan.dims[-1]}, {"funnel": plan}):
        assert_same(parts.rerank(queries, ids, k, **options), whole.rerank(queries, ids, k, **options))


@settings(deadline=None, max_examples=40)
@given(problems(), st.sampled_from(("ip", "l2")))
def test_it_is_the_search_of_loops(problem: tuple[Any, ...], metric: str) -> None:
    rows, queries, cuts, plan, k = problem
    expected = oracles.retrieval_funnel(queries, rows, k, plan.dims, plan.keep, metric)
    assert_same(Parts(np.split(rows, cuts), metric=metric).search(queries, k, funnel=plan), expected)


@settings(deadline=None, max_examples=40)
@given(problems(), st.sampled_from(METRICS))
def test_a_funnel_that_drops_nothing_is_exact(problem: tuple[Any, ...], metric: str) -> None:
    rows, queries, cuts, _, k = problem
    corpus, dim = Parts(np.split(rows, cuts), metric=metric), rows.shape[1]
    plan = Funnel(range(1, dim + 1), [max(len(rows), k)] * (dim - 1))
    exact, staged = corpus.search(queries, k), corpus.search(queries, k, funnel=plan)
    np.testing.assert_allclose(staged[0], exact[0], rtol=1e-12, atol=1e-12)
    if metric != "cosine":
        np.testing.assert_array_equal(staged[1], exact[1])


def test_rows_that_cannot_be_squared_in_one_part_only(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(20, 5)).astype(np.float32)
    rows[3], rows[17] = rows[3] * np.float32(1e-30), rows[17] * np.float32(1e30)
    queries = rng.normal(size=(3, 5)).astype(np.float32)
    assert_same(Parts(np.split(rows, [4, 9])).search(queries, 20), Corpus(rows).search(queries, 20))
    with pytest.raises(ValueError, match="`rows` must"):
        Parts(np.split(rows, [4, 9]), metric="ip")


def test_many_queries_go_in_parts(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = rng.normal(size=(30, 6)), rng.normal(size=(50, 6))
    ids = rng.integers(-1, 30, size=(50, 8))
    corpus, whole, sizes = Parts(np.split(rows, [11])), Corpus(rows), []
    monkeypatch.setattr(shards, "_CANDIDATES", 70)
    run = corpus._run
    monkeypatch.setattr(corpus, "_run", lambda asked, *rest: sizes.append(len(asked)) or run(asked, *rest))
    plan = Funnel((2, 6), (9,))
    assert_same(corpus.search(queries, 4, funnel=plan), whole.search(queries, 4, funnel=plan))
    assert sizes == [7] * 7 + [1]  # of 9 candidates each, the first list
    sizes.clear()
    assert_same(corpus.rerank(queries, ids, 4, dim=5), whole.rerank(queries, ids, 4, dim=5))
    assert sizes == [8] * 6 + [2]
    sizes.clear()
    monkeypatch.setattr(shards, "_NUMBERS", 18)
    assert_same(corpus.search(queries, 1), whole.search(queries, 1))
    assert sizes == [3] * 16 + [2]  # of 6 numbers each
    sizes.clear()
    monkeypatch.setattr(shards, "_NUMBERS", 1)
    assert_same(corpus.search(queries[:4], 1), whole.search(queries[:4], 1))
    assert sizes == [1] * 4


def test_outlines_are_joined_in_order() -> None:
    float32 = np.dtype(np.float32)
    one = Outline((5, 3), float32, 2.0, True, [4], 1)
    two = Outline((7, 3), float32, 9.0, False, [0, 2, 3, 5, 6], 6)
    assert Outline.join([one, two]) == Outline((12, 3), float32, 9.0, False, [4, 5, 7, 8, 10], 7)
    assert Outline.join([two, one]) == Outline((12, 3), float32, 9.0, False, [0, 2, 3, 5, 6], 7)
    for other, found in (
        (two._replace(shape=(7, 4)), "3 columns of float32 and 4 columns of float32"),
        (two._replace(dtype=np.dtype(np.float64)), "3 columns of float32 and 3 columns of float64"),
    ):
        with pytest.raises(ValueError, match=f"`rows` must have one width and one dtype in all parts, got {found}; "):
            Outline.join([one, other, one])


def test_an_outline_says_what_rows_are_like(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(9, 4))
    rows[5] = (3, 4, 0, 12)
    assert Shard(rows, metric="l2").outline == Outline((9, 4), np.dtype(np.float64), 169.0, True, [], 0)
    rows[[0, 1, 2, 4, 6, 8], 1] = np.nan
    outline = Shard(rows).outline
    assert (outline.bad, outline.n_bad) == ([0, 1, 2, 4, 6], 6)
    with pytest.raises(ValueError, match=r"`rows` must be finite, got .* in 12 of 18 rows \(first: 0, 1, 2, 4, 6"):
        Parts([rows, rows])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[1.0]], TypeError, "`part` must be NumPy arrays in all parts, got list"),
        (np.ones((2, 3), int), TypeError, "`part` must hold floating-point numbers"),
        (np.ones((2, 3), np.longdouble), TypeError, "`part` must "),
        (np.ones(3), ValueError, r"`part` must have shape \(n, dim\), got \(3,\)"),
        (np.ones((2, 3, 1)), ValueError, r"`part` must have shape \(n, dim\), got \(2, 3, 1\)"),
        (np.ones((0, 3)), ValueError, "`part` must"),
        (np.ones((2, 0)), ValueError, "`part` must"),
    ],
)
def test_rows_that_no_shard_takes(rows: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Shard(rows, name="part")


def test_candidates_are_ranked_by_score_and_then_by_id() -> None:
    found = Candidates(np.array([[-1, 2, 5, 7, 9]]), Sums(np.array([[0.0, 0.25, 0.5, 0.5, 0.125]])))
    for k, ids in ((2, [5, 7]), (4, [5, 7, 2, 9]), (5, [5, 7, 2, 9, -1]), (8, [5, 7, 2, 9, -1])):
        scores, ranked = found.ranked(k)
        assert ranked.tolist() == [ids]
        assert scores.tolist() == [[0.5, 0.5, 0.25, 0.125, -np.inf][: len(ids)]]
    assert found.best(3).ids.tolist() == [[2, 5, 7]]
    assert found.within(5, 9).ids.tolist() == [[0, 2]]


def test_a_file_that_became_shorter_is_not_read(rng: np.random.Generator, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rng.normal(size=(4000, 8)))
    shard = Shard(np.load(tmp_path / "rows.npy", mmap_mode="r"), metric="ip")
    queries = rng.normal(size=(2, 8))
    found = shard.search(queries, 8, 5, 100)
    os.truncate(tmp_path / "rows.npy", 4096)
    with pytest.raises(ValueError, match="must keep the file it is mapped from, 256128 bytes, got 4096"):
        shard.search(queries, 8, 5, 100)
    with pytest.raises(ValueError, match="must keep the file it is mapped from, 256128 bytes, got 4096"):
        shard.rerank(queries, found, (0, 8), 5, 100)


def test_what_it_says_of_itself(rng: np.random.Generator) -> None:
    corpus = Parts(np.split(rng.normal(size=(30, 6)), [4, 9]), metric="l2")
    assert (len(corpus), corpus.dim, corpus.metric, corpus.search_dims, corpus.codes) == (30, 6, "l2", None, ("float",))
    assert repr(corpus) == "Parts(30 x 6 in 3 shards, metric='l2')"
    with pytest.raises(ValueError, match="`funnel.code` must be 'float' here"):
        corpus.search(rng.normal(size=(1, 6)), 3, funnel=Funnel((4, 6), (9,), code="bits"))
