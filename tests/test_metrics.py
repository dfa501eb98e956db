"""metrics: against loops on every array library; padding, repeated ids, queries without an answer, errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import pytest
from conftest import Library, load
from hypothesis import given
from hypothesis import strategies as st

from matryoshka import metrics, truncate

N_CORPUS, N_QUERIES, WIDTH = 40, 13, 9
CLASSES = np.array([-7, 3, 3000, 2049, 2050])  # the last three are 3000, 2048 and 2050 in float16


@pytest.fixture
def case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Lists with padding at their ends, a query with an empty list, a repeated id, a label the corpus lacks."""
    ids = np.stack([rng.permutation(N_CORPUS)[:WIDTH] for _ in range(N_QUERIES)])
    ids[1, 4:], ids[2] = -1, -1
    corpus_labels = CLASSES[rng.integers(0, len(CLASSES), size=N_CORPUS)]
    query_labels = CLASSES[rng.integers(0, len(CLASSES), size=N_QUERIES)]
    query_labels[1] = query_labels[2] = corpus_labels[-1] = corpus_labels[0]  # padding read as a row would be a hit
    query_labels[3] = 99
    query_labels[0], ids[0, 5] = corpus_labels[ids[0, 2]], ids[0, 2]
    reference = np.stack([rng.permutation(N_CORPUS)[:WIDTH] for _ in range(N_QUERIES)])
    reference[:, :4] = ids[:, 2:6]
    reference[5], reference[6, 3:] = -1, -1
    return {"ids": ids, "corpus_labels": corpus_labels, "query_labels": query_labels, "reference": reference}


def hits_of(case: dict[str, np.ndarray]) -> list[list[bool]]:
    return oracles.metrics_hits(case["ids"], case["corpus_labels"], case["query_labels"])


def on(library: Library, case: dict[str, np.ndarray], *names: str) -> tuple[object, ...]:
    return tuple(library.array(case[name]) for name in names)


def test_relevance(library: Library, case: dict[str, np.ndarray]) -> None:
    found = metrics.relevance(*on(library, case, "ids", "corpus_labels", "query_labels"))
    library.assert_close(found, np.array(hits_of(case)))
    assert not library.to_numpy(found)[0, 5]


def test_the_first_row_of_the_corpus_counts_once_too() -> None:
    found = metrics.relevance(np.array([[0, 1, 0]]), np.array([7, 5]), np.array([7]))
    np.testing.assert_array_equal(found, [[True, False, False]])


def test_count_relevant(library: Library, case: dict[str, np.ndarray]) -> None:
    counts = metrics.count_relevant(*on(library, case, "corpus_labels", "query_labels"))
    expected = [case["corpus_labels"].tolist().count(label) for label in case["query_labels"].tolist()]
    assert expected[3] == 0 < max(expected)
    library.assert_close(counts, np.array(expected))


@pytest.mark.parametrize("k", [1, 2, 5, WIDTH])
def test_rates_at_k(library: Library, case: dict[str, np.ndarray], k: int) -> None:
    hits = hits_of(case)
    n_relevant = np.array([case["corpus_labels"].tolist().count(label) for label in case["query_labels"].tolist()])
    found = library.array(np.array(hits))
    counts = [line[:k].count(True) for line in hits]
    published = [oracles.metrics_average_precision(line, k, k) for line in hits]
    known = [q for q in range(N_QUERIES) if n_relevant[q] > 0]
    complete = [oracles.metrics_average_precision(hits[q], k, min(k, n_relevant[q])) for q in known]
    recalls = [counts[q] / n_relevant[q] for q in known]
    assert len(known) < N_QUERIES
    close = {"rel": 2e-6 if library.name == "jax" else 1e-12}
    of_queries = library.array(n_relevant)
    for actual, expected in (
        (metrics.mean_average_precision(found, k), np.mean(published)),
        (metrics.mean_average_precision(found, k, n_relevant=of_queries), np.mean(complete)),
        (metrics.mean_average_precision(found, k, n_relevant=100), np.mean(published)),
        (metrics.precision_at_k(found, k), np.mean(counts) / k),
        (metrics.label_recall_at_k(found, k, of_queries), np.mean(recalls)),
        (metrics.label_recall_at_k(found, k, 20), np.mean(counts) / 20),
        (metrics.hit_rate_at_k(found, k), np.mean([count > 0 for count in counts])),
    ):
        assert type(actual) is float
        assert actual == pytest.approx(float(expected), **close)


@pytest.mark.parametrize("k", [1, 3, WIDTH])
def test_mean_reciprocal_rank(library: Library, case: dict[str, np.ndarray], k: int) -> None:
    hits = hits_of(case)
    expected = np.mean([oracles.metrics_reciprocal_rank(line, k) for line in hits])
    found = metrics.mean_reciprocal_rank(library.array(np.array(hits)), k)
    assert type(found) is float
    assert 0 < found < 1
    assert found == pytest.approx(float(expected), rel=2e-6 if library.name == "jax" else 1e-12)


@pytest.fixture
def graded(case: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Gains of lists that end in padding, and of the whole corpus; a query for which nothing is worth anything."""
    grades = rng.choice([0.0, 0.0, 0.25, 1.0, 3.0], size=(N_QUERIES, N_CORPUS))
    ids = case["ids"].copy()
    ids[0, 5] = -1  # which repeated another
    grades[3] = 0.0
    grades[1, -1] = 7.0  # padding read as a row would be the best of all
    gains = np.where(ids >= 0, np.take_along_axis(grades, ids, axis=1), 0.0)
    return {"gains": gains, "ideal": grades}


@pytest.mark.parametrize("k", [1, 2, 5, WIDTH])
def test_ndcg(library: Library, graded: dict[str, np.ndarray], k: int) -> None:
    gains, grades = graded["gains"].tolist(), graded["ideal"].tolist()
    best = [oracles.metrics_dcg(sorted(line, reverse=True), k) for line in grades]
    assert [q for q in range(N_QUERIES) if not best[q]] == [3]
    complete = [oracles.metrics_dcg(gains[q], k) / best[q] for q in range(N_QUERIES) if best[q]]
    own = [oracles.metrics_dcg(sorted(line, reverse=True), k) for line in gains]
    of_list = [oracles.metrics_dcg(line, k) / most if most else 0.0 for line, most in zip(gains, own, strict=True)]
    found, everything = on(library, graded, "gains", "ideal")
    close = {"rel": 2e-6 if library.name == "jax" else 1e-12}
    largest = library.array(-np.sort(-graded["ideal"], axis=1)[:, :k])
    for actual, expected in (
        (metrics.ndcg_at_k(found, k, ideal=everything), np.mean(complete)),
        (metrics.ndcg_at_k(found, k, ideal=largest), np.mean(complete)),
        (metrics.ndcg_at_k(found, k), np.mean(of_list)),
    ):
        assert type(actual) is float
        assert 0 < actual < 1
        assert actual == pytest.approx(float(expected), **close)


def test_ndcg_of_scikit_learn(rng: np.random.Generator) -> None:
    ndcg_score = load("sklearn.metrics").ndcg_score
    grades, scores = rng.integers(0, 4, size=(9, 30)), rng.normal(size=(9, 30))
    grades[4] = 0
    ranked = np.take_along_axis(grades, np.argsort(-scores, axis=1), axis=1)
    for k in (1, 7, 30):
        expected = ndcg_score(grades, scores, k=k)
        assert metrics.ndcg_at_k(ranked, k) == pytest.approx(expected, rel=1e-12)
        with_gain = [q for q in range(9) if q != 4]
        expected = ndcg_score(grades[with_gain], scores[with_gain], k=k)
        assert metrics.ndcg_at_k(ranked[:, :k], k, ideal=grades) == pytest.approx(expected, rel=1e-12)
    exponential = metrics.ndcg_at_k(2.0**ranked - 1, 7)
    assert exponential == pytest.approx(ndcg_score(2.0**grades - 1, scores, k=7), rel=1e-12)


def test_ndcg_of_labels(library: Library, case: dict[str, np.ndarray]) -> None:
    n_relevant = np.array([case["corpus_labels"].tolist().count(label) for label in case["query_labels"].tolist()])
    expected = [
        oracles.metrics_dcg([float(hit) for hit in hits], 5) / oracles.metrics_dcg([1.0] * int(count), 5)
        for hits, count in zip(hits_of(case), n_relevant, strict=True)
        if count
    ]
    ideal = library.array(np.arange(5) < n_relevant[:, None])
    actual = metrics.ndcg_at_k(library.array(np.array(hits_of(case))), 5, ideal=ideal)
    assert actual == pytest.approx(float(np.mean(expected)), rel=2e-6 if library.name == "jax" else 1e-12)


def test_ndcg_of_few_large_and_small_gains() -> None:
    found = np.array([[0.0, 1.5e308, 1.5e308]])
    expected = oracles.metrics_dcg([0.0, 1.0, 1.0], 3) / oracles.metrics_dcg([1.0, 1.0], 3)
    assert metrics.ndcg_at_k(found, 3) == pytest.approx(expected)
    assert metrics.ndcg_at_k(found / 1.5e308 * 1e-320, 3) == pytest.approx(expected)
    assert metrics.ndcg_at_k(np.array([[2, 1, 0, 0]]), 4, ideal=np.array([[1, 2]])) == 1.0
    assert metrics.ndcg_at_k(np.zeros((2, 3)), 3) == 0.0
    halves = np.array([[1, 1, 0]], dtype=np.float16)
    assert metrics.ndcg_at_k(halves, 3, ideal=halves) == 1.0


def test_wrong_gains_are_refused() -> None:
    gains = np.array([[1.0, 0.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match="`gains` must be at least 0, got 1 below"):
        metrics.ndcg_at_k(gains - [[0.0, 0.5], [0.0, 0.0]], 2)
    with pytest.raises(ValueError, match="`ideal` must be at least 0, got 2 below"):
        metrics.ndcg_at_k(gains, 2, ideal=-gains)
    with pytest.raises(ValueError, match="`gains` must be finite, got NaN or infinity in 1 of 2 rows"):
        metrics.ndcg_at_k(np.where(gains == 2, np.nan, gains), 2)
    with pytest.raises(ValueError, match="`ideal` must hold every gain that was found, got less for 1 queries"):
        metrics.ndcg_at_k(gains, 2, ideal=np.array([[1.0, 0.0], [1.5, 1.5]]))
    with pytest.raises(ValueError, match="`ideal` must hold every gain that was found, got less for 1 queries"):
        metrics.ndcg_at_k(np.array([[1.0, 1.0]]), 2, ideal=np.array([[2.0]]))
    with pytest.raises(ValueError, match="`ideal` must be above 0 for at least one query"):
        metrics.ndcg_at_k(gains * 0, 2, ideal=gains * 0)
    with pytest.raises(ValueError, match=r"`ideal` must have shape \(n, m\) = \(2, 2\), got \(1, 2\)"):
        metrics.ndcg_at_k(gains, 2, ideal=gains[:1])
    with pytest.raises(ValueError, match=r"`gains` must have shape \(n, k or wider\), got \(2,\)"):
        metrics.ndcg_at_k(gains[0], 1)
    with pytest.raises(TypeError, match="`gains` and `ideal` must have one dtype, got float64 and float32"):
        metrics.ndcg_at_k(gains, 2, ideal=gains.astype(np.float32))
    with pytest.raises(TypeError, match="`gains` must hold numbers or booleans, got dtype complex128"):
        metrics.ndcg_at_k(gains.astype(complex), 2)


@pytest.mark.parametrize("k", [1, 3, WIDTH])
def test_overlap(library: Library, case: dict[str, np.ndarray], k: int) -> None:
    expected = oracles.metrics_overlap(case["ids"], case["reference"], k)
    overlap = metrics.overlap_at_k(*on(library, case, "ids", "reference"), k)
    assert type(overlap) is float
    assert overlap == pytest.approx(expected, rel=2e-6 if library.name == "jax" else 1e-12)


def test_overlap_counts_a_repeated_id_once_and_padding_never() -> None:
    exact = np.array([[4, 2, -1, -1]])
    assert metrics.overlap_at_k(np.array([[4, 4, 4, 4]]), exact, 4) == 0.5
    assert metrics.overlap_at_k(np.array([[-1, -1, -1, -1]]), exact, 4) == 0.0
    assert metrics.overlap_at_k(np.array([[2, 7, 4, -1, 5]]), exact, 4) == 1.0
    assert metrics.overlap_at_k(exact, np.array([[4, 4, 2, 2]]), 4) == 1.0


def test_nearest_neighbor_accuracy(library: Library, case: dict[str, np.ndarray]) -> None:
    accuracy = metrics.nearest_neighbor_accuracy(*on(library, case, "ids", "corpus_labels", "query_labels"))
    assert accuracy == pytest.approx(sum(line[0] for line in hits_of(case)) / N_QUERIES)


def test_nearest_class_mean_accuracy(
    library: Library, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics.classification, "_ROW_BLOCK", 16)  # several blocks, the last one short
    centers = rng.normal(size=(5, 6))
    labels, query_labels = rng.integers(0, 5, size=45), rng.integers(0, 5, size=37)
    labels[labels == 4] = 0  # a class that only queries have
    rows = centers[labels] + rng.normal(size=(45, 6))
    queries = centers[query_labels] + rng.normal(size=(37, 6))
    expected = oracles.metrics_nearest_class_mean(rows, CLASSES[labels], queries, CLASSES[query_labels])
    arrays = (library.array(a) for a in (rows, CLASSES[labels], queries, CLASSES[query_labels]))
    assert 0.3 < expected < 0.95
    assert metrics.nearest_class_mean_accuracy(*arrays) == pytest.approx(expected)


def test_half_precision_means_are_formed_in_float32() -> None:
    rows = np.full((1000, 1), 100.0, dtype=np.float16)  # the sum, 99,900, overflows float16
    labels = np.zeros(1000, dtype=np.int64)
    rows[999], labels[999] = 25.0, 1
    queries = np.array([[90.0]], dtype=np.float16)
    assert metrics.nearest_class_mean_accuracy(rows, labels, queries, np.array([0])) == 1.0


def test_a_tie_between_class_means_goes_to_the_lowest_label(library: Library) -> None:
    rows, labels = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([8, 2])
    arrays = [library.array(a) for a in (rows, labels, np.zeros((1, 2)))]
    assert metrics.nearest_class_mean_accuracy(*arrays, library.array(np.array([2]))) == 1.0


def test_oracle_accuracy(library: Library, rng: np.random.Generator) -> None:
    predictions, labels = rng.integers(-1, 4, size=(3, 30)), rng.integers(-1, 4, size=30)
    right = 0
    for row in range(30):
        right += any(predictions[g, row] == labels[row] != -1 for g in range(3))
    stacked = library.array(predictions)
    truth = library.array(labels)
    assert metrics.oracle_accuracy(stacked, truth) == pytest.approx(right / 30)
    assert metrics.oracle_accuracy([stacked[g, :] for g in range(3)], truth) == pytest.approx(right / 30)


def test_superclass_accuracy(library: Library, rng: np.random.Generator) -> None:
    superclasses = np.array([0, 0, 5, 5, 1])
    predictions, labels = rng.integers(-1, 5, size=30), rng.integers(0, 5, size=30)
    of = dict(enumerate(superclasses.tolist()))
    right = sum(of.get(p) == of[t] for p, t in zip(predictions.tolist(), labels.tolist(), strict=True))
    arrays = (library.array(a) for a in (predictions, labels, superclasses))
    assert metrics.superclass_accuracy(*arrays) == pytest.approx(right / 30)


def test_labels_that_float16_merges_stay_apart() -> None:
    assert np.float16(2049) == np.float16(2048)
    assert metrics.nearest_neighbor_accuracy(np.array([[0]]), np.array([2048]), np.array([2049])) == 0.0
    with pytest.raises(TypeError, match="`corpus_labels` must hold integer class ids, got dtype float16"):
        metrics.relevance(np.array([[0]]), np.array([2048], dtype=np.float16), np.array([2049]))


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(1, 4))
def test_average_precision_never_exceeds_precision(hits: list[bool], k: int) -> None:
    found = np.array([hits])
    assert metrics.mean_average_precision(found, k) <= metrics.precision_at_k(found, k) + 1e-15
    assert metrics.precision_at_k(found, k) <= metrics.hit_rate_at_k(found, k)


def test_everything_relevant_in_front_is_perfect_only_with_n_relevant() -> None:
    found = np.array([[True, True, False, False]])
    assert metrics.mean_average_precision(found, 4) == 0.5
    assert metrics.mean_average_precision(found, 4, n_relevant=2) == 1.0
    assert metrics.mean_average_precision(found, 4, n_relevant=np.array([2])) == 1.0


def test_queries_without_a_relevant_item_count_only_where_nothing_says_so() -> None:
    found = np.array([[True, False], [False, False]])
    assert metrics.mean_average_precision(found, 2) == 0.25
    assert metrics.hit_rate_at_k(found, 2) == 0.5
    assert metrics.mean_average_precision(found, 2, n_relevant=np.array([1, 0])) == 1.0
    assert metrics.label_recall_at_k(found, 2, np.array([1, 0])) == 1.0


def test_half_precision_prefixes_classify(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(20, 6)).astype(np.float16)
    labels = np.arange(20)
    prefix = truncate(rows, 3)
    assert metrics.nearest_class_mean_accuracy(prefix, labels, prefix, labels) == 1.0


HITS = np.array([[True, False], [False, True]])
AT_K: tuple[Callable[[np.ndarray, int], float], ...] = (
    metrics.mean_average_precision,
    metrics.precision_at_k,
    metrics.hit_rate_at_k,
    metrics.mean_reciprocal_rank,
    metrics.ndcg_at_k,
    lambda found, k: metrics.ndcg_at_k(found, k, ideal=found),
    lambda found, k: metrics.label_recall_at_k(found, k, 2),
    lambda found, k: metrics.overlap_at_k(found.astype(int), found.astype(int), k),
)


@pytest.mark.parametrize("k", [0, -1, 3])
@pytest.mark.parametrize("metric", AT_K)
def test_k_outside_the_list_is_refused(metric: Callable[[np.ndarray, int], float], k: int) -> None:
    with pytest.raises(ValueError, match=rf"`k` must be an integer in \[1, 2\], got {k}"):
        metric(HITS, k)


def test_wrong_relevance_is_refused() -> None:
    with pytest.raises(TypeError, match="`relevance` must hold booleans, got dtype int64"):
        metrics.precision_at_k(HITS.astype(np.int64), 1)
    with pytest.raises(ValueError, match=r"`relevance` must have shape \(n, k or wider\), got \(2,\)"):
        metrics.precision_at_k(HITS[0], 1)
    with pytest.raises(ValueError, match="`relevance` must have at least one row"):
        metrics.precision_at_k(HITS[:0], 1)
    with pytest.raises(TypeError, match="`relevance` must be an array"):
        metrics.precision_at_k([[True]], 1)
    with pytest.raises(TypeError, match="`k` must be an integer, got float 1.5"):
        metrics.precision_at_k(HITS, 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [metrics.mean_average_precision, metrics.label_recall_at_k])
def test_wrong_numbers_of_relevant_items_are_refused(metric: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="`n_relevant` must be at least .* got less for 1 queries"):
        metric(HITS, 2, n_relevant=np.array([0, 1]))
    with pytest.raises(ValueError, match="`n_relevant` must be an integer >= 0, got -1"):
        metric(HITS, 2, n_relevant=-1)
    with pytest.raises(ValueError, match="above 0 for at least one query"):
        metric(~(HITS | True), 2, n_relevant=0)
    with pytest.raises(ValueError, match=r"`n_relevant` must have shape \(n,\) = \(2,\), got \(3,\)"):
        metric(HITS, 2, n_relevant=np.array([1, 1, 1]))
    with pytest.raises(TypeError, match="`n_relevant` must be an integer, got float 2.0"):
        metric(HITS, 2, n_relevant=2.0)
    with pytest.raises(TypeError, match="`n_relevant` must hold integers, got dtype float64"):
        metric(HITS, 2, n_relevant=np.array([1.0, 1.0]))


def test_wrong_ids_are_refused() -> None:
    labels = np.array([1, 2, 3])
    with pytest.raises(ValueError, match=r"`ids` must lie within \[-1, 3\), got 2 outside it"):
        metrics.relevance(np.array([[0, 3], [-2, -1]]), labels, labels[:2])
    with pytest.raises(TypeError, match="`ids` must hold signed integers, -1 for padding, got dtype uint64"):
        metrics.relevance(np.array([[0]], dtype=np.uint64), labels, labels[:1])
    with pytest.raises(TypeError, match="`ids` must hold signed integers"):
        metrics.overlap_at_k(np.array([[0.0]]), np.array([[0]]), 1)
    with pytest.raises(ValueError, match=r"`ids` must have shape \(n, k\), got \(1,\)"):
        metrics.relevance(np.array([0]), labels, labels[:1])
    with pytest.raises(ValueError, match="`ids` must have at least one row"):
        metrics.relevance(np.zeros((0, 2), dtype=int), labels, labels[:0])
    with pytest.raises(ValueError, match=r"`query_labels` must have one class id per row, shape \(1,\), got \(2,\)"):
        metrics.relevance(np.array([[0]]), labels, labels[:2])
    with pytest.raises(ValueError, match="`corpus_labels` must have at least one row"):
        metrics.relevance(np.array([[0]]), labels[:0], labels[:1])
    with pytest.raises(ValueError, match=r"`corpus_labels` must have shape \(n_corpus,\), got \(1, 3\)"):
        metrics.relevance(np.array([[0]]), labels[None], labels[:1])
    with pytest.raises(ValueError, match="`reference_ids` must have shape"):
        metrics.overlap_at_k(np.zeros((2, 3), int), np.zeros((3, 3), int), 1)
    with pytest.raises(ValueError, match="`reference_ids` must hold a neighbour for at least one query"):
        metrics.overlap_at_k(np.zeros((1, 2), int), np.full((1, 2), -1), 1)


def test_wrong_predictions_are_refused() -> None:
    labels = np.array([0, 1])
    with pytest.raises(
        ValueError, match=r"`predictions\[0\]` must have one class id per row, shape \(2,\), got \(3,\)"
    ):
        metrics.oracle_accuracy(np.zeros((4, 3), int), labels)
    with pytest.raises(ValueError, match=r"`predictions` must have shape \(G, n\), got \(2,\)"):
        metrics.oracle_accuracy(labels, labels)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(n,\), got \(1, 2\)"):
        metrics.oracle_accuracy([labels[None]], labels[None])
    with pytest.raises(ValueError, match="`predictions` must hold at least one prefix"):
        metrics.oracle_accuracy([], labels)
    with pytest.raises(ValueError, match="`predictions` must hold at least one prefix"):
        metrics.oracle_accuracy(np.zeros((0, 2), int), labels)
    with pytest.raises(ValueError, match=r"`labels` must lie within \[0, 1\), got 1 outside it"):
        metrics.superclass_accuracy(labels, labels, np.array([0]))
    with pytest.raises(ValueError, match=r"`predictions` must lie within \[-1, 2\), got 1 outside it"):
        metrics.superclass_accuracy(np.array([0, 2]), labels, np.array([0, 0]))


def test_wrong_embeddings_are_refused(rng: np.random.Generator) -> None:
    rows, labels = rng.normal(size=(4, 3)), np.array([0, 1, 0, 1])
    with pytest.raises(TypeError, match="`embeddings` and `queries` must have one dtype"):
        metrics.nearest_class_mean_accuracy(rows, labels, rows.astype(np.float32), labels)
    with pytest.raises(ValueError, match=r"`queries` must have shape \(n_queries, dim\) = \(4, 3\), got \(4, 2\)"):
        metrics.nearest_class_mean_accuracy(rows, labels, rows[:, :2], labels)
    with pytest.raises(ValueError, match="`labels` must have one class id per row"):
        metrics.nearest_class_mean_accuracy(rows, labels[:3], rows, labels)
    with pytest.raises(ValueError, match="`embeddings` must have at least one row"):
        metrics.nearest_class_mean_accuracy(rows[:0], labels[:0], rows, labels)


def test_arrays_of_two_libraries_are_refused() -> None:
    foreign = load("array_api_strict").asarray([1])
    with pytest.raises(TypeError, match="`ids` and `corpus_labels` must come from one array library"):
        metrics.relevance(np.array([[0]]), foreign, np.array([1]))
    with pytest.raises(TypeError, match="`relevance` and `n_relevant` must come from one array library"):
        metrics.label_recall_at_k(np.array([[True]]), 1, foreign)


@pytest.mark.parametrize("bad", ["embeddings", "queries"])
def test_class_means_of_rows_that_are_not_finite_are_refused(library: Library, bad: str) -> None:
    rows = {"embeddings": np.ones((4, 3)), "queries": np.ones((2, 3))}
    rows[bad][1, 2] = np.nan
    arrays = {name: library.array(array) for name, array in rows.items()}
    labels, query_labels = library.array(np.array([0, 1, 0, 1])), library.array(np.array([0, 1]))
    with pytest.raises(ValueError, match=f"`{bad}` must be finite, got NaN or infinity in 1 of . rows"):
        metrics.nearest_class_mean_accuracy(arrays["embeddings"], labels, arrays["queries"], query_labels)


NARROW = ("int8", "uint8", "int16", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("dtype", NARROW)
def test_labels_of_any_integer_dtype(library: Library, dtype: str) -> None:
    """Of more rows and classes than the dtype counts: a comparison in that dtype would wrap around."""
    n = 300
    corpus, wanted = (np.arange(n) % 7).astype(dtype), np.array([5, 6, 3], dtype)
    ids = np.array([[5, 299, -1], [6, 0, 7], [4, 10, 2]])
    corpus_labels, query_labels, rows = map(library.array, (corpus, wanted, ids))
    found = metrics.relevance(rows, corpus_labels, query_labels)
    np.testing.assert_array_equal(library.to_numpy(found), np.where(ids >= 0, ids % 7 == wanted[:, None], False))
    counts = metrics.count_relevant(corpus_labels, query_labels)
    np.testing.assert_array_equal(library.to_numpy(counts), [43, 42, 43])
    of_other_dtype = metrics.count_relevant(library.array(corpus.astype(np.int64)), query_labels)
    np.testing.assert_array_equal(library.to_numpy(of_other_dtype), [43, 42, 43])
    n_relevant = library.array(np.array([9, 9, 9], dtype))
    published = metrics.mean_average_precision(found, 3)
    assert metrics.mean_average_precision(found, 3, n_relevant=n_relevant) == pytest.approx(published) != 0
    classes = library.array(np.arange(n) // 2)
    right = metrics.superclass_accuracy(library.array(np.array([4, 8, 1], dtype)), query_labels, classes)
    assert right == pytest.approx(1 / 3)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_ids_of_any_signed_dtype(library: Library, dtype: str) -> None:
    ids = library.array(np.array([[2, 0, -1]], dtype))
    found = metrics.relevance(ids, library.array(np.arange(1000) % 2), library.array(np.array([0])))
    np.testing.assert_array_equal(library.to_numpy(found), [[True, True, False]])


def test_class_means_of_rows_far_from_the_origin(library: Library, rng: np.random.Generator) -> None:
    labels = rng.integers(0, 3, size=90)
    rows = (rng.normal(size=(90, 5)) + 0.7 * labels[:, None] + 1000.0).astype(np.float32)
    centred = rows.astype(np.float64) - 1000.0
    means = np.stack([centred[labels == label].mean(axis=0) for label in range(3)])
    expected = np.mean(np.linalg.norm(centred[:, None] - means, axis=2).argmin(axis=1) == labels)
    if library.dtype_name in ("float32", "float64"):
        found = metrics.nearest_class_mean_accuracy(*map(library.array, (rows, labels, rows, labels)))
        assert found == pytest.approx(expected)
