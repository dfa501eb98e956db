"""Funnel.calibrate and Funnel.pareto: a valid test, a sensible choice, and a certificate that says what it is about."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from typing import Any

import numpy as np
import pytest
from conftest import load

from matryoshka import Corpus, Funnel, Searchable
from matryoshka.retrieval import FunnelPoint, RecallCertificate, _calibration, _candidates, _clock, _question


def nested(rng: np.random.Generator, n: int, dim: int = 32) -> np.ndarray:
    """Rows whose leading columns carry most, as training leaves them."""
    return rng.normal(size=(n, dim)) * np.exp(-np.arange(dim) / 6.0)


def clustered(rng: np.random.Generator, n: int, dim: int = 64) -> np.ndarray:
    """Rows around a few centres, in columns that all weigh the same, as signs like them."""
    centres = np.random.default_rng(0).normal(size=(40, dim))
    return centres[rng.integers(40, size=n)] + 0.5 * rng.normal(size=(n, dim))


def recall(corpus: Corpus, queries: np.ndarray, k: int, plan: Funnel) -> np.ndarray:
    found, exact = corpus.search(queries, k, funnel=plan)[1], corpus.search(queries, k)[1]
    return np.array([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True)])


def test_a_certified_funnel(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 3000)), nested(rng, 800)
    plan = Funnel.calibrate(corpus, queries, 10, recall=0.95, delta=0.1, cost="multiply_adds")
    assert corpus.search_dims == (plan.dims[0],)  # built on the way, and kept
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


def test_the_full_width_alone_leaves_the_exact_search(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 200)), nested(rng, 60)
    options: dict[str, Any] = {"dims": (32,), "cost": "multiply_adds"}
    plan = Funnel.calibrate(corpus, queries, 5, recall=0.9, **options)
    assert plan == Funnel((32,))
    assert plan.certificate is not None
    assert (plan.certificate.p_values, plan.certificate.chosen) == ((), None)
    assert [point.funnel for point in Funnel.pareto(corpus, queries[:1], 5, **options)] == [Funnel((32,))]
    with pytest.raises(ValueError, match="`queries` must be at least 2, got 1; pass more"):
        Funnel.calibrate(corpus, queries[:1], 5, recall=0.9, **options)
    with pytest.raises(ValueError, match="`queries` must be at least 1, got 0; pass more"):
        Funnel.pareto(corpus, queries[:0], 5, **options)


def seconds(clock: _clock.Clock, name: tuple[Any, ...], *_: object) -> float:
    """Stand for what is measured: nanoseconds per number multiplied, and more for each that is gathered."""
    n, dim = len(clock._corpus), clock._corpus.dim
    if name[0] == "exact":
        return 1e-9 * n * dim
    if name[0] == "stages":
        return 3e-6
    if name[0] == "rerank":
        return 2e-6 + 3e-9 * name[1] * name[2]
    width, code, count = name
    return 1e-9 * n * width / (16 if code == "bits" else 1) + 2e-9 * count * (10 + width)


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clock.Clock, "_time", seconds)


def test_the_same_queries_give_the_same_funnel(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 800)), nested(rng, 300)
    plans = [Funnel.calibrate(corpus, queries, 5, recall=0.9) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].certificate == plans[1].certificate


def test_too_few_queries_give_the_exact_search(rng: np.random.Generator) -> None:
    corpus = Corpus(nested(rng, 400))
    plan = Funnel.calibrate(corpus, nested(rng, 60), 5, recall=0.99, cost="multiply_adds")
    assert plan == Funnel((32,), ())
    assert plan.certificate is not None
    assert plan.certificate.chosen is None
    assert plan.certificate.queries_needed == 238
    assert str(plan.certificate).endswith(
        "over 30 queries (30 others chose the candidates): only the exact search could be certified (the safest "
        "funnel: recall 1.0000; a perfect one takes 238 tested queries, 476 with those that choose)"
    )


@pytest.mark.parametrize(("recall", "helps"), [(0.9, "more queries, or a lower recall,"), (0.98, "a lower recall")])
def test_a_failed_test_says_what_might_pass(recall: float, helps: str) -> None:
    fields = {"dims": (32,), "keep": (), "k": 5, "n_rows": 400, "metric": "cosine", "n_choice_queries": 300}
    fields |= {"recall": recall, "delta": 0.1, "n_queries": 300, "queries_needed": 238}
    certificate = RecallCertificate(**fields, p_values=(0.2,), recalls=(0.95,), chosen=None)
    assert str(certificate).endswith(
        f"only the exact search could be certified (the safest funnel: recall 0.9500; {helps} might certify one)"
    )


REACHED = "no funnel reached recall 0.95 (best 0.9446) in less than the exact search takes by"
REMEDY = "with an index in front, let it look at more (efSearch, nprobe)"


def test_a_recall_out_of_reach_is_told_from_funnels_that_are_too_slow() -> None:
    fields = {"dims": (32,), "keep": (), "k": 5, "n_rows": 400, "metric": "cosine", "n_choice_queries": 300}
    fields |= {"recall": 0.95, "delta": 0.1, "n_queries": 300, "queries_needed": 238}
    none: dict[str, Any] = fields | {"p_values": (), "recalls": (), "chosen": None}
    assert str(RecallCertificate(**none)).endswith(": no funnel beats the exact search here by multiply-adds")
    told = RecallCertificate(**none, best_recall=0.9446, cost="time", batch_size=64)
    assert str(told).endswith(f": {REACHED} the clock, 64 queries at once; {REMEDY}")
    assert Funnel.from_json(Funnel((32,), certificate=told).to_json()).certificate == told
    assert "best_recall" not in Funnel((32,), certificate=RecallCertificate(**none)).to_json()  # as older files
    with pytest.raises(ValueError, match=r"`certificate.best_recall` must be finite and in \[0, 0.95\], got 0.96"):
        RecallCertificate(**none, best_recall=0.96)
    with pytest.raises(ValueError, match=r"`certificate.p_values` must be \(\), as nothing found enough to be tested"):
        RecallCertificate(**fields, p_values=(0.2,), recalls=(0.9,), chosen=None, best_recall=0.9)


@pytest.mark.parametrize("module", ["torch", "jax.numpy"])
def test_calibration_on_other_libraries(rng: np.random.Generator, module: str) -> None:
    library = load(module)
    rows, queries = nested(rng, 500).astype(np.float32), nested(rng, 200).astype(np.float32)
    plan = Funnel.calibrate(
        Corpus(library.asarray(rows)), library.asarray(queries), 5, recall=0.9, cost="multiply_adds"
    )
    assert plan == Funnel.calibrate(Corpus(rows), queries, 5, recall=0.9, cost="multiply_adds")


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("cost", ["time", "multiply_adds"])
def test_the_promise_is_kept_as_often_as_promised(cost: str) -> None:
    """Over many draws of queries, a funnel below the promised recall is certified with probability at most delta."""
    rng = np.random.default_rng(3)
    corpus, population = Corpus(nested(rng, 300, 16)), nested(rng, 800, 16)
    broken = cheaper = 0
    for seed in range(30):
        queries = population[rng.choice(800, 160)]
        plan = Funnel.calibrate(corpus, queries, 3, recall=0.9, delta=0.2, dims=(2, 4, 8, 16), cost=cost, seed=seed)
        broken += recall(corpus, population, 3, plan).mean() < 0.9
        cheaper += plan != Funnel((16,))
    assert broken <= 30 * 0.2
    assert cheaper > 20


def test_pareto_lists_what_nothing_beats(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(nested(rng, 1000), search_dims=(16,)), nested(rng, 150)
    points = Funnel.pareto(corpus, queries, 5, dims=(4, 8, 16, 32), longest=300, cost="multiply_adds")
    assert corpus.search_dims == (16,)  # what was built on the way is gone
    assert points[-1] == FunnelPoint(Funnel((32,), ()), 1.0, 32_000)
    assert len(points) > 4
    assert Funnel((4,)) in [point.funnel for point in points]  # a plain cut
    for cheap, dear in itertools.pairwise(points[:-1]):
        assert cheap.multiply_adds < dear.multiply_adds
        assert cheap.recall < dear.recall
    for point in points:
        assert point.multiply_adds == point.funnel.multiply_adds(1000)
        assert set(point.funnel.dims) <= {4, 8, 16, 32}
        assert point.seconds is None
        assert max(point.funnel.keep, default=0) <= 300
        assert recall(corpus, queries, 5, point.funnel).mean() == pytest.approx(point.recall, abs=1e-3)


def test_a_corpus_smaller_than_the_lists(rng: np.random.Generator) -> None:
    corpus = Corpus(nested(rng, 30))
    assert all(
        max(point.funnel.keep, default=0) <= 30
        for point in Funnel.pareto(corpus, nested(rng, 40), 30, cost="multiply_adds")
    )


def test_certificates_travel_with_the_funnel(rng: np.random.Generator) -> None:
    plan = Funnel.calibrate(Corpus(nested(rng, 300)), nested(rng, 100), 5, recall=0.8, cost="multiply_adds")
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
    plan = Funnel.calibrate(corpus, queries, 5, recall=0.9, cost="multiply_adds")
    assert plan.keep
    other = Funnel.calibrate(Elsewhere(corpus, None), queries, 5, recall=0.9, cost="multiply_adds")
    assert (other, other.certificate) == (plan, plan.certificate)
    points = [
        Funnel.pareto(searched, queries, 5, cost="multiply_adds") for searched in (Elsewhere(corpus, None), corpus)
    ]
    assert points[0] == points[1]


def test_funnels_start_where_the_corpus_may(rng: np.random.Generator) -> None:
    corpus, queries = Elsewhere(Corpus(nested(rng, 900)), (6, 12)), nested(rng, 300)
    points = Funnel.pareto(corpus, queries, 5, cost="multiply_adds")  # whose widths are among those tried by default
    assert len(points) > 1
    assert {point.funnel.dims[0] for point in points[:-1]} <= {6, 12}
    assert {plan.dims[0] for plan in corpus.plans} <= {6, 12, 32}
    with pytest.raises(ValueError, match=r"`dims` must hold a width at which `corpus` may start, of \(6, 12\), got"):
        Funnel.calibrate(corpus, queries, 5, dims=(8, 32))


def test_what_an_index_misses_counts_against_the_promise(rng: np.random.Generator) -> None:
    queries, rows = nested(rng, 300), nested(rng, 900)
    whole, leaky = (Elsewhere(Corpus(rows), None, missing) for missing in (0.0, 0.3))
    certificates = [
        Funnel.calibrate(corpus, queries, 5, recall=0.9, cost="multiply_adds").certificate for corpus in (whole, leaky)
    ]
    assert certificates[0].chosen is not None
    assert certificates[1].chosen is None
    assert all(recall < 0.85 for recall in certificates[1].recalls)


@pytest.mark.parametrize("step", [1, 4, 10])
def test_what_an_index_never_finds_is_named_as_the_reason(rng: np.random.Generator, step: int) -> None:
    """Of ids that `step` divides, none is found by a funnel, however long its lists."""

    class Blind(Elsewhere):
        def search(self, queries: np.ndarray, k: int, *, funnel: Funnel | None = None) -> tuple[np.ndarray, np.ndarray]:
            scores, ids = super().search(queries, k, funnel=funnel)
            hidden = (ids % step == 0) & (funnel is not None)
            return np.where(hidden, -np.inf, scores), np.where(hidden, -1, ids)

    queries, rows = nested(rng, 300), nested(rng, 900)
    certificate = Funnel.calibrate(Blind(Corpus(rows), None), queries, 5, recall=0.95, cost="multiply_adds").certificate
    assert certificate is not None
    assert certificate.recalls == ()
    assert certificate.best_recall == pytest.approx(1 - 1 / step, abs=0.06)
    shown = f"recall 0.95 (best {certificate.best_recall:.4f}) in less than the exact search takes by multiply-adds"
    assert str(certificate).endswith(f"no funnel reached {shown}; {REMEDY}")


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
        ({"cost": "clock"}, ValueError, "`cost` must be one of 'time', 'multiply_adds', got 'clock'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1, got 0"),
        ({"progress": 3}, TypeError, "`progress` must be callable, got int 3; pass a function of two integers"),
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
    ranks = _candidates._ranks(ids, ordered)
    assert ranks[0].tolist() == [2, 3, 0, 1]
    assert ranks[1, [0, 2]].tolist() == [1, 0]
    assert sorted(ranks[1, [1, 3]]) == [2, 3]


def test_padding_is_nobodys_neighbour() -> None:
    found, exact = np.array([[2, -1], [-1, 0]]), np.array([[2, 1], [3, 0]])
    assert _candidates.members(found, exact).tolist() == [[True, False], [False, True]]
    assert _candidates.members(np.array([[2, -1]]), np.array([[2, 0]])).tolist() == [[True, False]]


def test_a_neighbour_of_one_query_is_none_of_the_next() -> None:
    members = _candidates.members(np.array([[2, 0], [0, 2]]), np.array([[2, 1], [1, 0]]))
    np.testing.assert_array_equal(members, [[True, False], [True, False]])
    members = _candidates.members(np.array([[2, 0], [0, 2]]), np.array([[2, 1], [1, 2]]))
    np.testing.assert_array_equal(members, [[True, False], [False, True]])


def test_neighbours_of_databases_that_number_their_rows_up_to_2_to_the_63() -> None:
    found = 2**63 - 1 - np.arange(300) - np.zeros((32, 1), np.int64)
    exact = np.broadcast_to(np.arange(300), found.shape).copy()
    exact[0, ::2] = found[0, ::2]  # of the first query alone, and so many that they are not looked for one by one
    assert _candidates.members(found, exact).sum(axis=1).tolist() == [150] + [0] * 31


def test_lists_lose_no_more_than_their_budget() -> None:
    ranks = np.array([[0, 1, 2, 3, 4, 5, 6, 7]])
    relevant = np.array([[True, False, True, False, False, True, False, True]])
    assert _candidates._lists([ranks], relevant, 0.0, 4) == (8,)
    assert _candidates._lists([ranks], relevant, 0.25, 4) == (6,)
    assert _candidates._lists([ranks], relevant, 0.3, 4) == (6,)
    assert _candidates._lists([ranks], relevant, 0.9, 4) == (4,)  # never fewer than k
    assert _candidates._lists([ranks[:, ::-1], ranks], relevant[:, ::-1], 0.25, 4) == (6, 6)
    best_first = np.array([[0, 4, 1, 5, 6, 2, 7, 3]])
    assert _candidates._lists([best_first, ranks], relevant, 0.0, 4) == (4, 4)  # a list cannot grow again
    assert _candidates._lists([ranks], relevant, 0.1, 5) is None  # one of five true neighbours is not in the table


def test_a_place_in_a_code_is_that_of_the_list_which_holds_it_first(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(clustered(rng, 900)), clustered(rng, 70)
    question = _question.Question(corpus, 5, (32, 64), 300, "time", 1, None)
    options = {"lost": (0.0, 0.0, 0.6), "enough": 1.0, "cost": lambda funnel: 0.0, "limit": 1.0}
    shaping = _candidates.Shaping(question, queries, corpus.search(queries, 5)[1], **options)
    table = shaping._first_stage(32, "bits", (32,))
    assert table is not None
    lists = np.unique(table.ranks) + 1
    assert len(lists) > 1
    assert set(lists) <= {10, 20, 40, 80, 160, 300}
    for count in lists:
        found = corpus.search(queries, int(count), funnel=Funnel((32,), code="bits"))[1]
        for ids, ranks, held in zip(table.ids, table.ranks, found, strict=True):
            assert set(ids[ranks < count].tolist()) == set(held.tolist())
    assert (np.diff(table.ranks, axis=1) >= 0).all()


def test_members_are_those_of_sets(rng: np.random.Generator) -> None:
    wanted = np.full((2, 65), 1)
    wanted[1, 0] = -1  # is not the largest id of the query before
    assert _candidates.members(np.array([[5, 1], [0, -1]]), wanted).tolist() == [[False, True], [False, False]]
    for width in (3, 64, 65, 90):
        ids, wanted = (rng.integers(-1, 200, size=(7, m)) for m in (40, width))
        expected = [[i >= 0 and i in set(row) for i in some] for some, row in zip(ids, wanted.tolist(), strict=True)]
        np.testing.assert_array_equal(_candidates.members(ids, wanted), expected)


@pytest.mark.usefixtures("virtual")
class TestTime:
    def test_the_fastest_funnel_that_keeps_the_promise(self, rng: np.random.Generator) -> None:
        corpus, queries = Corpus(clustered(rng, 3000)), clustered(rng, 800)
        plan = Funnel.calibrate(corpus, queries, 10, recall=0.95, batch_size=7)
        certificate = plan.certificate
        assert certificate is not None
        assert (certificate.cost, certificate.batch_size) == ("time", 7)
        assert plan.code == certificate.code == "bits"  # sixteen columns of them cost as much as one in numbers
        assert plan.keep
        assert recall(corpus, clustered(rng, 2000), 10, plan).mean() >= 0.95
        assert corpus.search_dims == (plan.dims[0],)
        assert Funnel.from_json(plan.to_json()).certificate == certificate

    def test_points_carry_their_times(self, rng: np.random.Generator) -> None:
        corpus, queries = Corpus(clustered(rng, 2000) * 0.97 ** np.arange(64)), clustered(rng, 300)
        points = Funnel.pareto(corpus, queries, 5)
        assert points[-1] == FunnelPoint(Funnel((64,)), 1.0, 128_000, 1e-9 * 2000 * 64)
        assert points[-2].funnel.code == "bits"
        for cheap, dear in itertools.pairwise(points):
            assert cheap.seconds < dear.seconds
            assert cheap.recall <= dear.recall
        assert points[-2].seconds < 0.9 * points[-1].seconds
        sample = queries[np.arange(256) * 300 // 256]
        for point in points:
            assert recall(corpus, sample, 5, point.funnel).mean() == pytest.approx(point.recall, abs=1e-3)

    def test_nothing_beats_the_exact_search(self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_clock.Clock, "_time", lambda *_: 1e-6)
        corpus = Corpus(nested(rng, 500))
        for size, asked in ((64, "64 queries at once"), (1, "one query at a time")):
            plan = Funnel.calibrate(corpus, nested(rng, 100), 5, recall=0.9, batch_size=size)
            assert plan == Funnel((32,))
            assert plan.certificate.best_recall is None
            assert str(plan.certificate).endswith(f": no funnel beats the exact search here by the clock, {asked}")
        assert Funnel.pareto(corpus, nested(rng, 100), 5) == [FunnelPoint(Funnel((32,)), 1.0, 16_000, 1e-6)]

    def test_whole_funnels_are_the_sum_of_their_parts(self, rng: np.random.Generator) -> None:
        corpus = Corpus(nested(rng, 2000, 64))
        clock = _clock.Clock(corpus, nested(rng, 20, 64), 3, 5, owner=corpus)

        def stage(count: int, columns: int) -> float:
            return 3e-9 * count * columns + 1e-6

        for count in (20, 64, 137, 1000):
            start = 1e-9 * 2000 * 16 + 2e-9 * count * 26
            whole = start + stage(count, 16) + stage(20, 32)
            assert clock.funnel(Funnel((16, 32, 64), (count, 20))) == pytest.approx(whole, rel=0.06)
            coded = 1e-9 * 2000 * 2 + 2e-9 * count * 42
            at_once = clock.funnel(Funnel((32, 64), (count,), code="bits"))
            assert at_once == pytest.approx(coded + stage(count, 32), rel=0.06)
            again = clock.funnel(Funnel((32, 32, 64), (count, 20), code="bits"))
            assert again == pytest.approx(coded + stage(20, 32), rel=0.06)
        assert clock.funnel(Funnel((16,))) == pytest.approx(1e-9 * 2000 * 16 + 2e-9 * 5 * 26, rel=0.06)
        assert clock.funnel(Funnel((16, 64), (2500,))) == clock.funnel(Funnel((16, 64), (2000,)))

    def test_an_index_of_codes_is_started_in_codes(self, rng: np.random.Generator) -> None:
        corpus, queries = Elsewhere(Corpus(clustered(rng, 900)), (64,)), clustered(rng, 300)
        corpus.codes = ("bits",)
        plan = Funnel.calibrate(corpus, queries, 5, recall=0.9)
        assert (plan.dims, plan.code) == ((64, 64), "bits")
        with pytest.raises(ValueError, match=r"`cost` must be 'time' for a `corpus` that starts in \('bits',\) only"):
            Funnel.calibrate(corpus, queries, 5, cost="multiply_adds")


def test_times_are_measured_once_and_kept_with_the_corpus(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(_clock.time, "perf_counter", lambda: next(ticks) * 1e-3)
    corpus, queries = Corpus(nested(rng, 400)), nested(rng, 100)
    plan = Funnel.calibrate(corpus, queries, 5, recall=0.9, batch_size=2)
    measured = next(ticks)
    assert measured > 0
    again = Funnel.calibrate(corpus, queries, 5, recall=0.9, batch_size=2)
    assert (next(ticks), again, again.certificate) == (measured + 1, plan, plan.certificate)
    Funnel.calibrate(corpus, queries, 5, recall=0.9, batch_size=3)
    assert next(ticks) > measured + 2
    owner = weakref.ref(corpus)
    assert owner() in _clock._KEPT
    del corpus
    gc.collect()
    assert owner() is None


@pytest.mark.parametrize("dims", [(4, 6, 12, 32), (6, 32)])
def test_only_widths_of_the_plan_are_timed(rng: np.random.Generator, dims: tuple[int, ...]) -> None:
    class Stored(Elsewhere):
        def rerank(self, queries: np.ndarray, ids: np.ndarray, k: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
            asked.update({options["dim"]} if "dim" in options else options["funnel"].dims)
            return super().rerank(queries, ids, k, **options)

    asked = set[int]()
    Funnel.pareto(Stored(Corpus(nested(rng, 900)), dims[:-1]), nested(rng, 40), 5, dims=dims)
    assert asked <= set(dims)
    assert dims[-1] in asked


def test_the_least_of_some_rounds_counts(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(nested(rng, 50))
    clock = _clock.Clock(corpus, nested(rng, 10), 4, 5, owner=corpus)
    now = itertools.accumulate([0.0, 9.0, 0.0, 2.0, 0.0, 3.0])
    monkeypatch.setattr(_clock.time, "perf_counter", lambda: next(now))
    assert clock.exact() == clock.exact() == 2.0 / 4


@pytest.mark.parametrize(("n_queries", "at_once"), [(10, 10), (300, 256)])
def test_more_at_once_than_make_a_difference_are_not_timed(
    rng: np.random.Generator, n_queries: int, at_once: int
) -> None:
    corpus = Corpus(nested(rng, 50))
    asked = _clock.Clock(corpus, nested(rng, n_queries), 2**40, 5, owner=corpus)._asked(0)
    assert asked.shape == (at_once, 32)


def test_what_cannot_be_referred_to_weakly_is_measured_anew(rng: np.random.Generator) -> None:
    class Slotted(Elsewhere):
        __hash__ = None  # type: ignore[assignment]

    corpus = Slotted(Corpus(nested(rng, 50)), None)
    assert _clock.Clock(corpus, nested(rng, 10), 2, 5, owner=corpus).exact() > 0
    assert Funnel.pareto(corpus, nested(rng, 10), 5)[-1].recall == 1.0


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("columns", [16, 24, 32])
def test_a_stage_takes_what_its_columns_take_less_a_call(rng: np.random.Generator, columns: int) -> None:
    """Where the time grows in proportion to the columns, as it does here, it is found between two widths."""
    corpus = Corpus(nested(rng, 2000))
    clock = _clock.Clock(corpus, nested(rng, 10), 2, 5, owner=corpus, dims=(8, 16, 32))
    count, one = _clock._STEP**3, 2e-6 + 3e-9 * 16
    expected = 2e-6 + 3e-9 * columns * count - one + (3e-6 - one)
    assert clock._stage(count, columns) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cost", ["time", "multiply_adds"])
def test_progress_is_told_to_its_end(rng: np.random.Generator, cost: str) -> None:
    corpus, queries, told = Corpus(nested(rng, 400)), nested(rng, 100), list[tuple[int, int]]()
    for find, most in ((Funnel.calibrate, 1 + 2 + 8), (Funnel.pareto, 1 + 2)):
        told.clear()
        find(corpus, queries, 5, cost=cost, progress=lambda done, total: told.append((done, total)))
        done, totals = zip(*told, strict=True)
        assert len(set(totals)) == 1
        assert list(done) == sorted(set(done))
        assert done[0] == 1
        assert done[-1] == totals[0]
        assert totals[0] == most or cost == "time"  # the exact search, starts at 8 and at 16, and what may be tested


def test_who_brings_as_many_queries_as_advised_gets_a_cheaper_funnel(rng: np.random.Generator) -> None:
    rows = np.concatenate([nested(rng, 200, 8), np.zeros((200, 24))], axis=1)
    queries = np.concatenate([nested(rng, 480, 8), np.zeros((480, 24))], axis=1)
    for bound, delta in ((0.99, 0.1), (0.95, 0.05)):
        certificate = Funnel.calibrate(
            Corpus(rows), queries[:20], 3, recall=bound, delta=delta, cost="multiply_adds"
        ).certificate
        for missing in (0, 2):
            asked = queries[: 2 * certificate.queries_needed - missing]
            plan = Funnel.calibrate(Corpus(rows), asked, 3, recall=bound, delta=delta, cost="multiply_adds")
            assert plan == (Funnel((32,)) if missing else Funnel((8,)))


def test_calibration_costs_few_exact_searches(rng: np.random.Generator) -> None:
    """Counted in multiply-adds, as executed, where nothing is measured by the clock."""
    rows, queries = nested(rng, 4000, 128), nested(rng, 1000, 128)
    corpus, spent = Elsewhere(Corpus(rows), None), list[int]()
    search, rerank = corpus.search, corpus.rerank

    def counted(queries: np.ndarray, k: int, *, funnel: Funnel | None = None) -> Any:
        plan = Funnel((128,)) if funnel is None else funnel
        spent.append(len(queries) * (plan.multiply_adds(4000, executed=True) + k * plan.dims[0]))
        return search(queries, k, funnel=funnel)

    def counted_rerank(queries: np.ndarray, ids: np.ndarray, k: int, *, dim: int) -> Any:
        spent.append(ids.size * dim)
        return rerank(queries, ids, k, dim=dim)

    corpus.search, corpus.rerank = counted, counted_rerank
    for bound in (0.9, 0.99):
        spent.clear()
        assert Funnel.calibrate(corpus, queries, 10, recall=bound, cost="multiply_adds").certificate.recalls
        assert sum(spent) < 1.5 * 1000 * 4000 * 128


def test_the_safest_funnels_are_tested_first_and_not_many() -> None:
    price = _calibration._Price(1000.0, lambda funnel: 10.0 + sum(funnel.keep), 900.0)
    found = [_candidates.Candidate(10.0 + m, 0.9 + m / 4000, Funnel((8, 32), (m,))) for m in range(10, 400, 5)]
    found.append(_candidates.Candidate(405.0, 1.0, Funnel((16, 32), (395,))))
    tested = _calibration._to_test(found, 0.93, price, 1000)
    lists = [funnel.keep[0] for funnel in tested]
    assert lists == sorted(lists, reverse=True)
    assert lists[:2] == [660, 330]
    assert len(lists) == 8
    assert (lists[2], lists[-1]) == (325, 120)
    costs = [10 + m for m in lists[2:]]
    assert all(1.1 < dear / cheap < 1.35 for dear, cheap in itertools.pairwise(costs))  # evenly, as 130 to 335 allows
    for limit in (600.0, 670.0):  # what twice the list costs
        dear = _calibration._Price(1000.0, price.of, limit)
        assert _calibration._to_test(found, 0.93, dear, 1000)[0].keep == (330,)
    assert _calibration._to_test([], 0.93, price, 1000) == []
    assert [funnel.keep for funnel in _calibration._to_test(found[:2], 0.99, price, 1000)] == [(30,), (15,)]
