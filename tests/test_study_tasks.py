"""The study's tasks 1 to 3 on made-up outputs: accuracy, cascades, retrieval and its clock, against naive loops."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks, load

import_benchmarks("torch", "sklearn", "tqdm")

from benchmarks.study import timing  # noqa: E402
from benchmarks.study.data import Rows, Split  # noqa: E402
from benchmarks.study.outputs import Outputs  # noqa: E402
from benchmarks.study.tasks import TASKS, TIMED, accuracy, cascade, clock, retrieval  # noqa: E402
from matryoshka import Cascade, Corpus, Funnel, metrics  # noqa: E402

DIMS = (2, 4, 8)
N_CLASSES = 5
SIZES = {"train": 90, "calibration": 300, "test": 40}


def bench(*, nested: bool = True, tied: bool = True, dims: tuple[int, ...] = DIMS, ladder: Any = DIMS) -> Any:
    """Rows around a point for each class, and the logits of a shared head; other columns if not nested."""
    rng = np.random.default_rng(5)
    centres, bias = rng.normal(size=(N_CLASSES, dims[-1])), rng.normal(size=N_CLASSES)
    labels = {part: rng.permutation(np.arange(n) % N_CLASSES) for part, n in SIZES.items()}
    whole = {
        part: (centres[of] + 0.9 * rng.normal(size=(len(of), dims[-1])) + 0.3).astype(np.float32)
        for part, of in labels.items()
    }
    logits = {
        part: np.stack([whole[part][:, :dim] @ centres[:, :dim].T + bias for dim in dims]).astype(np.float32)
        for part in ("calibration", "test")
    }
    apart = {part: {dim: rows[:, ::-1][:, :dim].copy() for dim in dims} for part, rows in whole.items()}
    embeddings = {part: {dims[-1]: rows} for part, rows in whole.items()} if nested else apart
    split = Split(*(Rows(whole[part], labels[part]) for part in SIZES))
    return SimpleNamespace(
        outputs=lambda system, seed: Outputs(dims, nested, embeddings, logits),
        split=lambda seed: split,
        grid=SimpleNamespace(dims=ladder, systems={"it": {"tied": tied}}),
        head=(centres, bias),
    )


def nearest(rows: np.ndarray, query: np.ndarray) -> list[int]:
    """Return all rows by cosine in float64, nearest first."""
    cosines = [
        float(np.dot(row, query) / np.sqrt(np.dot(row, row) * np.dot(query, query))) for row in rows.astype(float)
    ]
    return sorted(range(len(rows)), key=lambda i: -cosines[i])


def average_precision(found: list[int], labels: np.ndarray, label: int) -> float:
    hits, total = 0, 0.0
    for place, row in enumerate(found[:10], start=1):
        if labels[row] == label:
            hits += 1
            total += hits / place
    return total / 10


def test_the_tasks_are_registered() -> None:
    assert {"accuracy", "cascade", "retrieval", "clock"} <= set(TASKS)
    assert {"clock"} == TIMED


@pytest.mark.parametrize("nested", [True, False])
def test_accuracy_of_each_width(nested: bool) -> None:
    made = bench(nested=nested)
    found, outputs, split = accuracy.measure(made, "it", 0), made.outputs("it", 0), made.split(0)
    assert found["dims"] == [2, 4, 8]
    assert found["queries"] == 40
    for place, dim in enumerate(DIMS):
        rows, queries = outputs.embed("train", dim), outputs.embed("test", dim)
        right = [
            split.train.labels[nearest(rows, query.astype(float))[0]] == label
            for query, label in zip(queries, split.test.labels, strict=True)
        ]
        assert found["nearest_neighbor"][place] == pytest.approx(np.mean(right))
        answers = [int(np.argmax(row)) for row in outputs.logits["test"][place]]
        assert found["linear"][place] == pytest.approx(np.mean(answers == split.test.labels))
    assert ("untrained" in found) == nested


def test_accuracy_between_the_trained_widths() -> None:
    made = bench(ladder=(1, 4, 8, 16))
    found, (weight, bias), split = accuracy.measure(made, "it", 0), made.head, made.split(0)
    assert found["untrained"]["dims"] == [1, 3, 6]
    for place, dim in enumerate((1, 3, 6)):
        rows, queries = split.train.features[:, :dim], split.test.features[:, :dim]
        answers = (queries.astype(float) @ weight[:, :dim].T + bias).argmax(-1)
        assert found["untrained"]["linear"][place] == pytest.approx(np.mean(answers == split.test.labels))
        if dim > 1:  # a single column has no angles
            right = [split.train.labels[nearest(rows, query.astype(float))[0]] for query in queries]
            assert found["untrained"]["nearest_neighbor"][place] == pytest.approx(np.mean(right == split.test.labels))
    assert "linear" not in accuracy.measure(bench(tied=False), "it", 0)["untrained"]


def test_fewer_rows_may_ask() -> None:
    assert accuracy.measure(bench(), "it", 0, most_queries=7)["queries"] == 7
    chosen = accuracy.some(40, 7, 3)
    assert len(set(chosen.tolist())) == 7
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(accuracy.some(40, 7, 3), chosen)
    np.testing.assert_array_equal(accuracy.some(5, 7, 3), np.arange(5))


def test_a_shared_head_is_recovered_from_its_logits() -> None:
    made = bench()
    weight, bias = accuracy.shared_head(made.outputs("it", 0))
    np.testing.assert_allclose(weight, made.head[0], atol=1e-5)
    np.testing.assert_allclose(bias, made.head[1], atol=1e-5)


def test_logits_of_no_shared_head_are_refused() -> None:
    outputs = bench().outputs("it", 0)
    outputs.logits["test"][1] += 0.5 * outputs.logits["test"][2]
    with pytest.raises(ValueError, match=r"must be those of one shared head, got some that are off by .* at width 4"):
        accuracy.shared_head(outputs)


def test_how_the_widths_differ() -> None:
    made = bench()
    found, split = cascade.measure(made, "it", 0), made.split(0)
    answers = made.outputs("it", 0).logits["test"].argmax(-1)
    right = answers == split.test.labels
    for i, j in itertools.product(range(3), repeat=2):
        count = sum(bool(a and not b) for a, b in zip(right[i], right[j], strict=True))
        assert found["only_right"][i][j] == pytest.approx(count / 40)
    assert found["alone"] == pytest.approx(right.mean(axis=1))
    assert found["oracle"]["accuracy"] == pytest.approx(metrics.oracle_accuracy(answers, split.test.labels))
    assert found["oracle"]["disagreement"][0] == pytest.approx(np.mean(answers[0] != answers[2]))
    assert sum(found["trends"].values()) == N_CLASSES
    assert json.loads(json.dumps(found))["dims"] == [2, 4, 8]


def test_cascades_are_chosen_on_calibration_rows_and_judged_on_test_rows() -> None:
    made = bench()
    found, outputs, split = cascade.measure(made, "it", 0)["cascades"], made.outputs("it", 0), made.split(0)
    assert list(found) == ["published", "certified", "without labels"]
    held_out, labels = outputs.logits["calibration"], split.calibration.labels
    published = Cascade.calibrate(held_out, labels, nesting=DIMS, from_logits=True)
    assert found["published"]["thresholds"] == list(published.thresholds)
    assert found["published"]["holds"] is None
    for name in ("certified", "without labels"):
        assert found[name]["holds"] == (min(found[name]["thresholds"]) < 1)
    for chosen in found.values():
        logits = outputs.logits["test"].astype(float)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        hits, spent, visited = 0, 0, 0
        for row, label in enumerate(split.test.labels):
            ranked = np.sort(probabilities[:, row], axis=-1)
            sure = ranked[:, -1] if chosen["holds"] is None else ranked[:, -1] - ranked[:, -2]
            stage = next((i for i, limit in enumerate(chosen["thresholds"]) if sure[i] > limit), 2)
            hits += probabilities[stage, row].argmax() == label
            spent += DIMS[stage]
            asked = [dim for dim, limit in zip(DIMS, chosen["thresholds"], strict=False) if limit < 1]
            visited += sum(dim for dim in asked if dim < DIMS[stage]) + DIMS[stage]
        assert chosen["accuracy"] == pytest.approx(hits / 40)
        assert chosen["expected_dim"] == pytest.approx(spent / 40)
        assert chosen["cumulative_dim"] == pytest.approx(visited / 40)
        assert sum(chosen["exit_shares"]) == pytest.approx(1)
        assert [point["cap"] for point in chosen["curve"]] == [4, 8]
        assert chosen["curve"][-1]["accuracy"] == chosen["accuracy"]
        alone = cascade.measure(made, "it", 0)["alone"]
        enough = [dim for dim, share in zip(DIMS, alone, strict=True) if share >= chosen["accuracy"]]
        assert chosen["fixed_dim"] == (enough[0] if enough else None)


def test_networks_of_their_own_make_no_cascade() -> None:
    assert "cascades" not in cascade.measure(bench(nested=False), "it", 0)


@pytest.mark.parametrize("nested", [True, False])
def test_mean_average_precision_of_each_width(nested: bool) -> None:
    made = bench(nested=nested, tied=False)
    found, outputs, split = retrieval.measure(made, "it", 0), made.outputs("it", 0), made.split(0)
    assert (found["rows"], found["queries"]) == (90, 40)
    for place, dim in enumerate(DIMS):
        rows, queries = outputs.embed("train", dim), outputs.embed("test", dim).astype(float)
        precisions = [
            average_precision(nearest(rows, query), split.train.labels, label)
            for query, label in zip(queries, split.test.labels, strict=True)
        ]
        assert found["map"][place] == pytest.approx(np.mean(precisions), abs=1e-6)
        assert found["top_1"][place] == pytest.approx(accuracy.measure(made, "it", 0)["nearest_neighbor"][place])
    assert ("untrained" in found) == nested
    assert "adaptive" not in found


def test_plans_in_stages_find_what_their_funnels_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SHORTLIST", 20)
    monkeypatch.setattr(retrieval, "LENGTHS", (10, 30, 60))
    made = bench(dims=(2, 4, 8, 16))
    found, split = retrieval.measure(made, "it", 0, staged=["it"], most_queries=25), made.split(0)
    asked = accuracy.some(40, 25, 0)
    corpus = Corpus(split.train.features)
    pairs = [tuple(plan["dims"]) for plan in found["adaptive"]]
    assert pairs == [(2,), (2, 4), (2, 8), (2, 16), (4,), (4, 8), (4, 16), (8,), (8, 16), (16,)]
    assert [(*plan["dims"], *plan["keep"]) for plan in found["shortlists"]] == [
        (dim, 16, length) for dim in (2, 4, 8) for length in (10, 30, 60)
    ]
    assert [plan["dims"] for plan in found["bits"]] == [[2, 16], [4, 16], [8, 16], [16, 16]]
    assert [tuple(plan["keep"]) for plan in found["funnels"]] == [(20, 10), (20, 10), (60, 30, 10), (60, 30)]
    for kind in ("adaptive", "shortlists", "funnels", "bits"):
        for plan in found[kind]:
            funnel = Funnel(plan["dims"], plan["keep"], code="bits" if kind == "bits" else "float")
            _, ids = corpus.search(split.test.features[asked], 10, funnel=funnel)
            precisions = [
                average_precision(row, split.train.labels, split.test.labels[query])
                for row, query in zip(ids.tolist(), asked, strict=True)
            ]
            assert plan["map"] == pytest.approx(np.mean(precisions), abs=1e-6)
            first = 0 if kind == "bits" else 90 * plan["dims"][0]
            later = sum(k * dim for k, dim in zip(plan["keep"], plan["dims"][1:], strict=True))
            assert plan["multiply_adds"] == first + later
            assert plan["bytes"] == 4 * (first + later) + (90 * 8 if kind == "bits" else 0)


def test_the_record_of_the_widest_ladder_is_small() -> None:
    dims = tuple(2**power for power in range(1, 10))
    assert len(json.dumps(retrieval.measure(bench(dims=dims), "it", 0, staged=["it"]))) < 10_000
    assert len(json.dumps(cascade.measure(bench(dims=dims), "it", 0))) < 10_000


def test_ways_take_turns_and_are_held_against_the_first() -> None:
    asked: list[tuple[int, tuple[float, ...]]] = []

    def search(way: int) -> Any:
        return lambda rows: (asked.append((way, tuple(rows[:, 0].tolist()))), way)[1]

    def timer(step: Any) -> tuple[float, float]:
        return (took := (4.0, 1.0)[step()]), took

    found = timing.taken([search(0), search(1)], np.arange(3.0)[:, None], timer)
    assert found == [
        {"alone": {"seconds": 4.0, "faster": 1.0}, "batch": {"seconds": 0.0625, "faster": 1.0}},
        {"alone": {"seconds": 1.0, "faster": 4.0}, "batch": {"seconds": 0.01562, "faster": 4.0}},
    ]
    alone = [(way, rows) for way, rows in asked if len(rows) == 1]
    assert [way for way, _ in alone[:6]] == [0, 1, 0, 1, 1, 0]  # to warm up, and in turns
    assert [rows for way, rows in alone if way == 1][:4] == [(0.0,), (1.0,), (2.0,), (0.0,)]
    assert {rows for _, rows in asked if len(rows) > 1} == {tuple(float(i % 3) for i in range(64))}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time in this process, by a clock that says nothing."""
    load("faiss")

    def process(module: str, arguments: list[Any], threads: int, **env: str) -> Iterator[str]:
        assert module == "benchmarks.study.timing"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            timing.main([str(argument) for argument in arguments])
        yield from printed.getvalue().splitlines()

    monkeypatch.setattr(clock, "process", process)
    monkeypatch.setattr(timing, "timer", lambda threads: lambda step: (step(), (float(threads), 1.0))[1])


@pytest.mark.usefixtures("in_this_process")
def test_theory_and_clock_of_every_plan() -> None:
    made = bench()
    found, split = clock.measure(made, "it", 0, most_queries=30), made.split(0)
    assert (found["rows"], found["queries"]) == (90, 30)
    plans = {(plan["engine"], *plan["dims"]): plan for plan in found["plans"]}
    assert len(plans) == len(found["plans"]) == 11
    assert next(iter(plans)) == ("exact", 8)
    assert sorted(plans) == sorted(
        [
            *(("exact", 2), ("exact", 4), ("exact", 8), ("exact", 2, 8), ("exact", 4, 8), ("exact", 2, 4, 8)),
            *(("hnsw", 2), ("hnsw", 4), ("hnsw", 8), ("hnsw", 2, 8), ("hnsw", 4, 8)),
        ]
    )
    queries, labels = split.test.features[accuracy.some(40, 30, 0)], split.test.labels[accuracy.some(40, 30, 0)]
    for (engine, *dims), plan in plans.items():
        assert plan["cpu"]["alone"] == {"seconds": 1.0, "faster": 1.0}
        assert plan["wall"]["batch"] == {"seconds": round(2 / 64, 6), "faster": 1.0}
        keep = {1: (), 2: (200,), 3: (200, 100)}[len(dims)]
        _, ids = Corpus(split.train.features).search(queries, 10, funnel=Funnel(dims, keep))
        exact = metrics.mean_average_precision(metrics.relevance(ids, split.train.labels, labels), 10)
        assert plan["map"] == pytest.approx(exact, abs=1e-6 if engine == "exact" else 0.05)
        if engine == "exact":
            assert plan["multiply_adds"] == Funnel(dims, keep).multiply_adds(90)
        else:  # some rows were compared, and hardly one twice: on the way down the layers of the graph
            assert 10 * dims[0] <= plan["multiply_adds"] <= 95 * dims[0] + sum(90 * dim for dim in dims[1:])
    assert {plan["kind"] for plan in found["plans"]} == {"exact", "single", "adaptive", "funnel"}


def test_a_process_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)a process that takes the time failed: .*missing\.npz"):
        clock._printed(tmp_path / "missing.npz", 1)
