"""Funnel.calibrate and Funnel.pareto: a valid test, a sensible choice, and a certificate that says what it is about."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from conftest import load

from matryoshka import Corpus, Funnel, Searchable
from matryoshka.retrieval import FunnelPoint, _calibration


def nested(rng: np.random.Generator, n: int, dim: int = 32) -> np.ndarray:
    """Rows whose leading columns carry most, as training leaves them."""
    return rng.normal(size=(n, dim)) * np.exp(-np.arange(dim) / 6.0)


def recall(corpus: Corpus, queries: np.ndarray, k: int, plan: Funnel) -> np.ndarray:
    found, exact = corpus.search(queries, k, funnel=plan)[1], corpus.search(queries, k)[1]
    return np.array([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True)])


def test_a_certified_funnel(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 3000)), nested(rng, 800)
    plan = Funnel.calibrate(corpus, queries, 10, recall=0.95, delta=0.1)
    certificate = plan.certificate
    assert certificate is not None
    assert plan.speedup(3000) > 2
    assert recall(corpus, nested(rng, 2000), 10, plan).mean() >= 0.95
    assert (certificate.dims, certificate.keep) == (plan.dims, plan.keep)
    assert (certificate.k, certificate.n_rows, certificate.metric) == (10, 3000, "cosine")
    assert (certificate.n_queries, certificate.n_choice_queries) == (400, 400)
    assert certificate.chosen is not None
    assert certificate.p_values[certificate.chosen] <= 0.1
    assert all(p <= 0.1 for p in certificate.p_values[:-1])
    assert len(certificate.recalls) == len(certificate.p_values)
    assert certificate.chosen in (len(certificate.p_values) - 1, len(certificate.p_values) - 2)
    # the numbers are those of the tested half
    half = queries[np.random.default_rng(0).permutation(800)[400:]]
    assert recall(corpus, half, 10, plan).mean() == pytest.approx(certificate.recalls[certificate.chosen])
    assert "expected recall@10 >= 0.95 with probability >= 0.9 over 400 queries" in str(certificate)
    assert corpus.search_dims in ((plan.dims[0], 32), (plan.dims[0],))


def test_the_same_queries_give_the_same_funnel(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 800)), nested(rng, 300)
    plans = [Funnel.calibrate(corpus, queries, 5, recall=0.9) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].certificate == plans[1].certificate


def test_too_few_queries_give_the_exact_search(rng: np.random.Generator) -> None:
    corpus = Corpus(nested(rng, 400))
    plan = Funnel.calibrate(corpus, nested(rng, 60), 5, recall=0.99)
    assert plan == Funnel((32,), ())
    assert plan.certificate is not None
    assert plan.certificate.chosen is None
    assert plan.certificate.queries_needed == 232
    assert "only the exact search could be certified (at least 232 are needed, so 464 in all)" in str(plan.certificate)


@pytest.mark.parametrize("module", ["torch", "jax.numpy"])
def test_calibration_on_other_libraries(rng: np.random.Generator, module: str) -> None:
    library = load(module)
    rows, queries = nested(rng, 500).astype(np.float32), nested(rng, 200).astype(np.float32)
    plan = Funnel.calibrate(Corpus(library.asarray(rows)), library.asarray(queries), 5, recall=0.9)
    assert plan == Funnel.calibrate(Corpus(rows), queries, 5, recall=0.9)


def test_the_promise_is_kept_as_often_as_promised() -> None:
    """Over many draws of queries, a funnel below the promised recall is certified with probability at most delta."""
    rng = np.random.default_rng(3)
    corpus, population = Corpus(nested(rng, 300, 16)), nested(rng, 800, 16)
    broken = 0
    for seed in range(30):
        queries = population[rng.choice(800, 160)]
        plan = Funnel.calibrate(corpus, queries, 3, recall=0.9, delta=0.2, dims=(2, 4, 8, 16), seed=seed)
        broken += recall(corpus, population, 3, plan).mean() < 0.9
    assert broken <= 30 * 0.2


def test_pareto_lists_what_nothing_beats(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 1000), search_dims=(16,)), nested(rng, 150)
    points = Funnel.pareto(corpus, queries, 5, dims=(4, 8, 16, 32), longest=300)
    assert corpus.search_dims == (16,)  # what was built on the way is gone
    assert points[-1] == FunnelPoint(Funnel((32,), ()), 1.0, 32_000)
    assert len(points) > 4
    for cheap, dear in itertools.pairwise(points[:-1]):
        assert cheap.multiply_adds < dear.multiply_adds
        assert cheap.recall < dear.recall
    for point in points:
        assert point.multiply_adds == point.funnel.multiply_adds(1000)
        assert set(point.funnel.dims) <= {4, 8, 16, 32}
        assert max(point.funnel.keep, default=0) <= 300
        assert recall(corpus, queries, 5, point.funnel).mean() == pytest.approx(point.recall, abs=1e-3)


def test_a_corpus_smaller_than_the_lists(rng: np.random.Generator) -> None:
    corpus = Corpus(nested(rng, 30))
    assert all(max(point.funnel.keep, default=0) <= 30 for point in Funnel.pareto(corpus, nested(rng, 40), 30))


def test_certificates_travel_with_the_funnel(rng: np.random.Generator) -> None:
    plan = Funnel.calibrate(Corpus(nested(rng, 300)), nested(rng, 100), 5, recall=0.8)
    loaded = Funnel.from_json(plan.to_json())
    assert loaded == plan == Funnel(plan.dims, plan.keep)
    assert loaded.certificate == plan.certificate
    assert Funnel(plan.dims, plan.keep).certificate is None
    with pytest.raises(ValueError, match="`certificate` must be about this funnel"):
        Funnel((8, 32), (77,), certificate=plan.certificate)
    with pytest.raises(TypeError, match=r"`certificate` must be what `Funnel.calibrate` made, got str"):
        Funnel(plan.dims, plan.keep, certificate="certified")  # type: ignore[arg-type]
    record = json.loads(plan.to_json())
    with pytest.raises(ValueError, match="`text` must be the JSON of a funnel: `keep` must "):
        Funnel.from_json(json.dumps(record | {"keep": "all"}))
    record["certificate"].pop("delta")
    with pytest.raises(ValueError, match="`certificate` must hold exactly the fields"):
        Funnel.from_json(json.dumps(record))


class Elsewhere:
    """A corpus that shares nothing with `Corpus` but the names of `Searchable`, and may start at some widths only."""

    def __init__(self, corpus: Corpus, search_dims: tuple[int, ...] | None, missing: float = 0.0) -> None:
        self.search_dims, self.dim, self.metric = search_dims, corpus.dim, corpus.metric
        self.codes = ("float",)
        self._corpus, self._missing, self.plans = corpus, missing, set[Funnel]()

    def __len__(self) -> int:
        return len(self._corpus)

    def search(self, queries: np.ndarray, k: int, *, funnel: Funnel | None = None) -> tuple[np.ndarray, np.ndarray]:
        scores, ids = self._corpus.search(queries, k, funnel=funnel)
        if funnel is not None:
            self.plans.add(funnel)
            lost = np.sort(np.random.default_rng(0).random(ids.shape) < self._missing, axis=1)
            scores, ids = np.where(lost, -np.inf, scores), np.where(lost, -1, ids)
        return scores, ids

    def rerank(self, queries: np.ndarray, ids: np.ndarray, k: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        return self._corpus.rerank(queries, ids, k, **options)


def test_anything_searchable_is_calibrated_like_a_corpus(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 900)), nested(rng, 300)
    assert isinstance(Elsewhere(corpus, None), Searchable)
    plan = Funnel.calibrate(corpus, queries, 5, recall=0.9)
    assert plan.keep
    other = Funnel.calibrate(Elsewhere(corpus, None), queries, 5, recall=0.9)
    assert (other, other.certificate) == (plan, plan.certificate)
    assert Funnel.pareto(Elsewhere(corpus, None), queries, 5) == Funnel.pareto(corpus, queries, 5)


def test_funnels_start_where_the_corpus_may(rng: np.random.Generator) -> None:
    corpus, queries = Elsewhere(Corpus(nested(rng, 900)), (6, 12)), nested(rng, 300)
    points = Funnel.pareto(corpus, queries, 5)  # whose widths are among those tried by default
    assert len(points) > 1
    assert {point.funnel.dims[0] for point in points[:-1]} <= {6, 12}
    assert {plan.dims[0] for plan in corpus.plans} <= {6, 12, 32}
    with pytest.raises(ValueError, match=r"`dims` must hold a width at which `corpus` may start, of \(6, 12\), got"):
        Funnel.calibrate(corpus, queries, 5, dims=(8, 32))


def test_what_an_index_misses_counts_against_the_promise(rng: np.random.Generator) -> None:
    queries, rows = nested(rng, 300), nested(rng, 900)
    whole, leaky = (Elsewhere(Corpus(rows), None, missing) for missing in (0.0, 0.3))
    certificates = [Funnel.calibrate(corpus, queries, 5, recall=0.9).certificate for corpus in (whole, leaky)]
    assert certificates[0].chosen is not None
    assert certificates[1].chosen is None
    assert all(recall < 0.85 for recall in certificates[1].recalls)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recall": 0.0}, ValueError, r"`recall` must be finite and in \(0, 1\), got 0.0"),
        ({"recall": 1.0}, ValueError, "`recall` must be finite"),
        ({"delta": 1.0}, ValueError, r"`delta` must be finite and in \(0, 1\)"),
        ({"k": 0}, ValueError, r"`k` must be an integer in \[1, 40\], got 0"),
        ({"k": 41}, ValueError, r"`k` must be an integer in \[1, 40\], got 41"),
        ({"longest": 4}, ValueError, "`longest` must be an integer >= 5, got 4"),
        ({"dims": (8, 64)}, ValueError, r"`dims` must lie within \[1, 32\]"),
        ({"dims": (8, 16)}, ValueError, r"`dims` must end with the width of the corpus, 32, got \(8, 16\)"),
        ({"queries": np.ones((1, 32))}, ValueError, "`queries` must be at least 2"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"queries": np.ones((9, 31))}, ValueError, "`queries` must have shape"),
        ({"corpus": np.ones((40, 32))}, TypeError, "`corpus` must be a Corpus, got ndarray"),
    ],
)
def test_bad_calibrations_are_refused(
    rng: np.random.Generator, arguments: dict, error: type[Exception], message: str
) -> None:
    arguments = {"corpus": Corpus(nested(rng, 40)), "queries": nested(rng, 20), "k": 5, **arguments}
    with pytest.raises(error, match=message):
        Funnel.calibrate(arguments.pop("corpus"), arguments.pop("queries"), arguments.pop("k"), **arguments)


def test_bad_queries_are_named_as_they_were_passed(rng: np.random.Generator) -> None:
    queries = nested(rng, 300)
    queries[37] = np.nan
    with pytest.raises(ValueError, match=r"`queries` must be finite, got .* 1 of 300 rows \(first: 37\)"):
        Funnel.calibrate(Corpus(nested(rng, 100)), queries, 5)


def test_a_corpus_that_finds_too_few_is_refused(rng: np.random.Generator) -> None:
    corpus = Elsewhere(Corpus(nested(rng, 40)), None)
    corpus.search = lambda queries, k, funnel=None: (np.zeros((len(queries), k)), np.full((len(queries), k), -1))
    with pytest.raises(ValueError, match="`corpus` must find 5 rows for each query in an exact search"):
        Funnel.calibrate(corpus, nested(rng, 20), 5)


def test_ranks_are_places_in_the_new_order() -> None:
    ids, ordered = np.array([[7, 3, 9, 4], [5, -1, 2, -1]]), np.array([[9, 4, 7, 3], [2, 5, -1, -1]])
    ranks = _calibration._ranks(ids, ordered)
    assert ranks[0].tolist() == [2, 3, 0, 1]
    assert ranks[1, [0, 2]].tolist() == [1, 0]
    assert sorted(ranks[1, [1, 3]]) == [2, 3]


def test_padding_is_nobodys_neighbour() -> None:
    found, exact = np.array([[2, -1], [-1, 0]]), np.array([[2, 1], [3, 0]])
    assert _calibration._members(found, exact).tolist() == [[True, False], [False, True]]
    assert _calibration._members(np.array([[2, -1]]), np.array([[2, 0]])).tolist() == [[True, False]]


def test_a_neighbour_of_one_query_is_none_of_the_next() -> None:
    members = _calibration._members(np.array([[2, 0], [0, 2]]), np.array([[2, 1], [1, 0]]))
    np.testing.assert_array_equal(members, [[True, False], [True, False]])
    members = _calibration._members(np.array([[2, 0], [0, 2]]), np.array([[2, 1], [1, 2]]))
    np.testing.assert_array_equal(members, [[True, False], [False, True]])


def test_lists_lose_no_more_than_their_budget() -> None:
    ranks = np.array([[0, 1, 2, 3, 4, 5, 6, 7]])
    relevant = np.array([[True, False, True, False, False, True, False, True]])
    assert _calibration._lists([ranks], relevant, 0.0, 4) == (8,)
    assert _calibration._lists([ranks], relevant, 0.25, 4) == (6,)
    assert _calibration._lists([ranks], relevant, 0.3, 4) == (6,)
    assert _calibration._lists([ranks], relevant, 0.9, 4) == (4,)  # never fewer than k
    assert _calibration._lists([ranks[:, ::-1], ranks], relevant[:, ::-1], 0.25, 4) == (6, 6)
    best_first = np.array([[0, 4, 1, 5, 6, 2, 7, 3]])
    assert _calibration._lists([best_first, ranks], relevant, 0.0, 4) == (4, 4)  # a list cannot grow again
    assert _calibration._lists([ranks], relevant, 0.1, 5) is None  # one of five true neighbours is not in the table
