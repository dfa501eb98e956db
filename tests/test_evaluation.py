"""evaluate: against loops over queries and ranks; grades, ties, queries without an answer, model cards, errors."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import Library
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import Corpus, Evaluation, audit, evaluate, metrics

N_ROWS, N_QUERIES, DIM, DIMS = 30, 9, 7, (1, 3, 7)
MEASURES = ("ndcg@5", "ndcg@100", "mrr@4", "map@5", "map@100", "recall@5", "precision@5", "precision@100", "accuracy@2")


@pytest.fixture
def case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of which some are equal, and grades (queries, rows) of which a column, a row and a query have none."""
    rows = rng.normal(size=(N_ROWS, DIM))
    rows[20] = rows[4]
    queries = rng.normal(size=(N_QUERIES, DIM))
    queries[1] = rows[4] + 0.01
    grades = rng.integers(1, 4, size=(N_QUERIES, N_ROWS)) * (rng.random((N_QUERIES, N_ROWS)) < 0.2)
    grades[1, [4, 20]] = 3, 0
    grades[0, 0], grades[-1, -1] = 2, 1
    grades[3] = 0
    return {"rows": rows, "queries": queries, "grades": grades}


def qrels_of(grades: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the judgements in any order, some of them that a row is not relevant."""
    pairs = [(q, i, grades[q, i]) for q, i in np.ndindex(grades.shape) if grades[q, i] or (q + i) % 5 == 0]
    return rng.permutation(np.array(pairs))


def measured(measure: str, ids: list[int], grades: list[int]) -> float:
    """Measure one list, from the definition of each measure."""
    name, _, count = measure.partition("@")
    k, gains = int(count), [grades[i] if i >= 0 else 0 for i in ids]
    hits, n_relevant = [gain > 0 for gain in gains], sum(grade > 0 for grade in grades)
    padded = (hits + [False] * k)[:k]
    if name == "ndcg":
        return oracles.metrics_dcg(gains, k) / oracles.metrics_dcg(sorted(grades, reverse=True), k)
    if name == "mrr":
        return oracles.metrics_reciprocal_rank(padded, k)
    if name == "map":
        return oracles.metrics_average_precision(padded, k, min(k, n_relevant))
    found = padded.count(True)
    return {"recall": found / n_relevant, "precision": found / k, "accuracy": float(found > 0)}[name]


def expected(case: dict[str, np.ndarray], metric: str, measures: tuple[str, ...] = MEASURES) -> dict[int, Any]:
    scores: dict[int, Any] = {}
    everything = [list(range(N_ROWS))] * N_QUERIES
    for dim in DIMS:
        _, ids = oracles.retrieval_rank(case["queries"], case["rows"], everything, N_ROWS, dim, metric)
        answered = [(found, of) for found, of in zip(ids.tolist(), case["grades"].tolist(), strict=True) if any(of)]
        scores[dim] = {name: np.mean([measured(name, *pair) for pair in answered]) for name in measures}
    return scores


def assert_scores(found: Evaluation, scores: dict[int, Any], rtol: float = 1e-6) -> None:
    assert found.dims == tuple(scores)
    for dim, of in scores.items():
        assert found.scores[dim] == pytest.approx(of, rel=rtol)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_every_measure_at_every_width_is_what_loops_give(
    library: Library, case: dict[str, np.ndarray], rng: np.random.Generator, metric: str
) -> None:
    arrays = [library.array(case[name]) for name in ("rows", "queries")]
    qrels = library.array(qrels_of(case["grades"], rng))
    found = evaluate(*arrays, qrels=qrels, dims=DIMS, measures=MEASURES, metric=metric)
    assert_scores(found, expected(case, metric))
    assert (found.n_rows, found.n_queries, found.metric) == (N_ROWS, N_QUERIES - 1, metric)
    assert found.measures == MEASURES


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 25), st.integers(1, 5), st.integers(1, 30), st.integers(0, 10**6))
def test_a_width_is_metrics_of_an_exact_search_of_the_cut(n: int, dim: int, k: int, seed: int) -> None:
    """Rows of few different numbers, so that many score the same."""
    rng = np.random.default_rng(seed)
    rows, queries = (rng.integers(-1, 2, size=(m, dim)).astype(float) for m in (n, 6))
    labels, query_labels = rng.integers(0, 3, size=n), rng.integers(0, 3, size=6)
    query_labels[0] = labels[0]
    names = [f"{name}@{k}" for name in ("mrr", "map", "recall", "precision", "accuracy")]
    found = evaluate(
        rows, queries, labels=labels, query_labels=query_labels, dims=range(1, dim + 1), measures=names, metric="ip"
    )
    n_relevant = (query_labels[:, None] == labels).sum(axis=1)
    asked = n_relevant > 0
    for d in range(1, dim + 1):
        _, ids = Corpus(rows[:, :d], metric="ip").search(queries[asked][:, :d], k)
        right = metrics.relevance(ids, labels, query_labels[asked])
        expected = [
            metrics.mean_reciprocal_rank(right, k),
            metrics.mean_average_precision(right, k, n_relevant=n_relevant[asked]),
            metrics.label_recall_at_k(right, k, n_relevant[asked]),
            metrics.precision_at_k(right, k),
            metrics.hit_rate_at_k(right, k),
        ]
        assert [found.scores[d][name] for name in names] == pytest.approx(expected, rel=1e-12)


def test_pairs_without_grades_are_grades_of_1(case: dict[str, np.ndarray]) -> None:
    case["grades"] = np.minimum(case["grades"], 1)
    pairs = np.argwhere(case["grades"]).astype(np.int32)
    found = evaluate(case["rows"], case["queries"], qrels=pairs, dims=DIMS, measures=MEASURES)
    assert_scores(found, expected(case, "cosine"))


def test_labels_are_judgements_of_all_rows_of_a_label(library: Library, case: dict[str, np.ndarray]) -> None:
    labels, query_labels = np.arange(N_ROWS) % 4 + 2047, np.arange(N_QUERIES) % 5 + 2046
    case["grades"] = (query_labels[:, None] == labels).astype(int)
    arrays = [library.array(values) for values in (case["rows"], case["queries"], labels, query_labels)]
    found = evaluate(*arrays[:2], labels=arrays[2], query_labels=arrays[3], dims=DIMS, measures=MEASURES)
    assert_scores(found, expected(case, "cosine"))
    assert found.n_queries == sum(case["grades"].any(axis=1)) == N_QUERIES - 2


def test_widths_and_measures_have_defaults(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(12, 40))
    found = evaluate(rows, rows, labels=np.arange(12), query_labels=np.arange(12))
    assert found.dims == (10, 20, 40)
    assert found.measures == ("ndcg@10", "mrr@10", "map@100", "recall@100")
    assert set(found.scores[40].values()) == {1.0}
    narrow = evaluate(rows[:, :3], rows[:, :3], qrels=np.array([[0, 0]]))
    assert narrow.dims == (3,)


def test_mapped_rows_are_read_from_their_file(case: dict[str, np.ndarray], tmp_path: Any) -> None:
    np.save(tmp_path / "rows.npy", case["rows"])
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    qrels = np.argwhere(case["grades"])
    assert evaluate(rows, case["queries"], qrels=qrels, dims=DIMS) == evaluate(
        case["rows"], case["queries"], qrels=qrels, dims=DIMS
    )


def test_an_evaluation_prints_a_table_and_is_json() -> None:
    scores = {8: {"ndcg@10": 0.25, "accuracy@1": 0.0}, 16: {"ndcg@10": 0.5, "accuracy@1": 1.0}}
    found = Evaluation(scores, "l2", 1234, 56)
    lines = str(found).splitlines()
    assert lines[0] == "56 queries among 1,234 rows, by Euclidean distance."
    assert lines[2:] == [
        "dim  nDCG@10  accuracy@1     kept",
        "  8   0.2500      0.0000   50.0 %",
        " 16   0.5000      1.0000  100.0 %",
    ]
    written = json.loads(found.to_json())
    assert (written["kind"], written["version"], written["n_queries"]) == ("evaluation", 1, 56)
    assert written["scores"]["8"] == scores[8]
    nothing = Evaluation({8: {"mrr@1": 0.0}}, "ip", 1, 1)
    assert math.isnan(nothing.kept[8])
    assert "nan" in str(nothing)


def test_a_section_for_a_model_card(rng: np.random.Generator) -> None:
    found = Evaluation({16: {"ndcg@10": 0.25}, 64: {"ndcg@10": 0.5}}, "cosine", 1234, 56)
    section = found.to_markdown()
    assert section.startswith("## Matryoshka dimensions\n\n")
    assert section.endswith("```\n")
    assert "| dim | nDCG@10 | kept |\n| ---: | ---: | ---: |\n| 16 | 0.2500 | 50.0 % |\n| 64 | 0.5000 |" in section
    assert "unit length" in section
    assert "unit length" not in Evaluation(found.scores, "ip", 1, 1).to_markdown()
    entries = re.search(r"```json\n(.*)\n```", section)
    assert entries is not None
    assert json.loads(entries[1]) == {"is_matryoshka": True, "matryoshka_dimensions": [16, 64]}
    nested = rng.normal(size=(500, 64)) * 0.95 ** np.arange(64)
    yes, no = audit(nested), audit(nested[:, rng.permutation(64)])
    assert (yes.truncates, no.truncates) == (True, False)
    assert f"Audit of 500 embeddings without labels. {yes.verdict}\n\nIn `config.json`" in found.to_markdown(yes)
    refused = found.to_markdown(no)
    assert no.verdict in refused
    assert "matryoshka_dimensions" not in refused
    with pytest.raises(TypeError, match="`audit` must be what `matryoshka.audit` returned, got str 'yes'; pass that"):
        found.to_markdown("yes")  # type: ignore[arg-type]


ONE = np.array([[0, 0]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "`qrels`, or both `labels` and `query_labels`, must say what is relevant, got neither"),
        ({"labels": np.zeros(4, int)}, TypeError, "`qrels`, or both `labels` and `query_labels`, must say"),
        ({"qrels": ONE, "query_labels": np.zeros(2, int)}, TypeError, "`qrels` must stand alone, got `labels` or"),
        ({"qrels": [[0, 0]]}, TypeError, "`qrels` must be an array"),
        ({"qrels": ONE * 1.0}, TypeError, "`qrels` must hold integers, .* got dtype float64; cast it"),
        ({"qrels": ONE[0]}, ValueError, r"`qrels` must have shape \(m, 2\) or \(m, 3\), .* got \(2,\)"),
        ({"qrels": np.zeros((1, 4), int)}, ValueError, r"`qrels` must have shape .* got \(1, 4\); give these columns"),
        ({"qrels": ONE[:0]}, ValueError, "`qrels` must"),
        ({"qrels": np.array([[2, 0]])}, ValueError, r"`qrels` must name queries within \[0, 2\), got 1 outside it"),
        ({"qrels": np.array([[-1, 0]])}, ValueError, r"`qrels` must name queries within \[0, 2\), got 1 outside it"),
        ({"qrels": np.array([[0, 4]])}, ValueError, r"`qrels` must name rows of `embeddings` within \[0, 4\), got 1"),
        ({"qrels": np.array([[0, 1, -1]])}, ValueError, "`qrels` must hold grades of at least 0, got 1 below"),
        ({"qrels": np.array([[0, 1, 0]])}, ValueError, "`qrels` must make a row relevant to at least one query"),
        ({"qrels": np.array([[0, 1], [1, 1], [0, 1]])}, ValueError, "`qrels` must judge each pair .* once, got 1"),
        (
            {"labels": np.zeros(4, int), "query_labels": np.ones(2, int)},
            ValueError,
            "`labels` must make a row relevant",
        ),
        ({"labels": np.zeros(2, int), "query_labels": np.ones(2, int)}, ValueError, "`labels` must have one class id"),
        ({"qrels": ONE, "measures": ()}, ValueError, "`measures` must hold at least one name, got none"),
        ({"qrels": ONE, "measures": "ndcg@10"}, TypeError, "`measures` must be a sequence of names, got str"),
        ({"qrels": ONE, "measures": ["ndcg"]}, ValueError, r"`measures\[0\]` must be one of ndcg, .*, got str 'ndcg'"),
        ({"qrels": ONE, "measures": ["map@1", "map@0"]}, ValueError, r"`measures\[1\]` must be one of"),
        ({"qrels": ONE, "measures": ["nDCG@10"]}, ValueError, r"`measures\[0\]` must be one of"),
        ({"qrels": ONE, "dims": (2, 4)}, ValueError, r"`dims` must lie within \[1, 3\]"),
        ({"qrels": ONE, "metric": "dot"}, ValueError, "`metric` must be one of 'cosine', 'ip', 'l2', got 'dot'"),
    ],
)
def test_what_does_not_fit_is_an_error(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(np.ones((4, 3)), np.ones((2, 3)), **options)


@pytest.mark.parametrize(
    "queries", [np.ones((2, 2)), np.ones(3), np.array(1.0), np.ones((2, 3), np.float32), np.full((2, 3), np.nan)]
)
def test_queries_that_do_not_fit_are_an_error(queries: np.ndarray) -> None:
    with pytest.raises((TypeError, ValueError), match="`queries`"):
        evaluate(np.ones((4, 3)), queries, qrels=ONE)
