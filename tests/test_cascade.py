"""Cascade: the policy, the published rule, what is measured, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import Library
from hypothesis import given
from hypothesis import strategies as st

from matryoshka import Cascade, Nesting

DIMS = (3, 5, 8, 20)
N_CLASSES = 6


def population(rng: np.random.Generator, n: int, n_classes: int = N_CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (4, n, c) of prefixes that grow more accurate and more certain, and labels (n,)."""
    labels = rng.integers(n_classes, size=n)
    signal = np.eye(n_classes)[labels] * rng.uniform(0.0, 3.0, size=(n, 1))
    noise = rng.normal(size=(4, n, n_classes))
    logits = np.stack([(i + 1) * signal * 0.6 + noise[: i + 1].mean(0) for i in range(4)])
    powers = np.exp(logits)
    return powers / powers.sum(-1, keepdims=True), labels


def expected_of(walk: list[tuple[int, int, list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([answer for answer, _, _ in walk]), np.array([dim for _, dim, _ in walk])


@pytest.mark.parametrize("confidence", ["max_probability", "margin", "entropy"])
@pytest.mark.parametrize("temperatures", [None, (1.2, 1.0, 1.6, 0.2)])
def test_predict_follows_each_row_through_the_ladder(
    library: Library, rng: np.random.Generator, confidence: str, temperatures: tuple[float, ...] | None
) -> None:
    probabilities, _ = population(rng, 40)
    thresholds = []
    for stage in range(3):
        temperature = 1.0 if temperatures is None else temperatures[stage]
        sure = sorted(oracles.cascade_confidence(row, confidence, temperature) for row in probabilities[stage])
        thresholds.append((sure[24] + sure[25]) / 2)
    cascade = Cascade(DIMS, thresholds, confidence=confidence, temperatures=temperatures)
    walk = oracles.cascade_walk(probabilities, DIMS, cascade.thresholds, confidence, temperatures)
    answers, exit_dims = expected_of(walk)
    assert len(set(exit_dims.tolist())) == 4
    for given_as in (library.array(probabilities), [library.array(rows) for rows in probabilities]):
        labels, dims = cascade.predict(given_as)
        library.assert_close(labels, answers, atol=0)
        library.assert_close(dims, exit_dims, atol=0)


@pytest.mark.parametrize("confidence", ["max_probability", "margin", "entropy"])
@pytest.mark.parametrize("temperatures", [None, (0.5, 2.0)])
def test_classes_of_probability_zero(library: Library, confidence: str, temperatures: tuple[float, ...] | None) -> None:
    short = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.75, 0.25], [0.25, 0.25, 0.5]])
    probabilities = np.stack([short, short[:, ::-1]])
    cascade = Cascade((2, 4), (0.3,), confidence=confidence, temperatures=temperatures)
    answers, exit_dims = expected_of(
        oracles.cascade_walk(probabilities, (2, 4), cascade.thresholds, confidence, temperatures)
    )
    labels, dims = cascade.predict(library.array(probabilities))
    library.assert_close(labels, answers, atol=0)
    library.assert_close(dims, exit_dims, atol=0)


def test_evaluate_and_curve_count_every_row(library: Library, rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 60)
    cascade = Cascade(DIMS, (0.5, 0.55, 0.6))
    full = probabilities[-1].argmax(-1) == labels
    curve = cascade.curve(library.array(probabilities), library.array(labels))
    assert [point.dims for point in curve] == [DIMS[:2], DIMS[:3], DIMS]
    assert curve[-1] == cascade.evaluate(library.array(probabilities), library.array(labels))
    for point in curve:
        walk = oracles.cascade_walk(probabilities, point.dims, cascade.thresholds)
        answers, exit_dims = expected_of(walk)
        assert point.n_rows == 60
        assert point.n_classes == N_CLASSES
        assert point.accuracy == pytest.approx(np.mean(answers == labels))
        assert point.gap == pytest.approx(np.mean((answers != labels) & full))
        assert point.expected_dim == pytest.approx(np.mean(exit_dims))
        assert point.cumulative_dim == pytest.approx(np.mean([sum(visited) for _, _, visited in walk]))
        assert point.exit_shares == pytest.approx([np.mean(exit_dims == dim) for dim in point.dims])
        for dim, accuracy in zip(point.dims, point.exit_accuracy, strict=True):
            there = exit_dims == dim
            assert accuracy == (pytest.approx(np.mean(answers[there] == labels[there])) if there.any() else None)
        assert point.prefix_accuracy == pytest.approx(
            [np.mean(rows.argmax(-1) == labels) for rows in probabilities[: len(point.dims)]]
        )
        assert point.tied_multiply_adds == pytest.approx(point.expected_dim * N_CLASSES)
        assert point.separate_multiply_adds == pytest.approx(point.cumulative_dim * N_CLASSES)
        assert point.thresholds == cascade.thresholds[: len(point.dims) - 1]
        assert point.disagreement == pytest.approx(np.mean(answers != probabilities[-1].argmax(-1)))
        assert point.prefix_disagreement == pytest.approx(
            [np.mean(rows.argmax(-1) != probabilities[-1].argmax(-1)) for rows in probabilities[: len(point.dims)]]
        )
        numbers = (
            point.accuracy,
            point.gap,
            point.disagreement,
            point.expected_dim,
            point.cumulative_dim,
            *point.exit_shares,
        )
        assert all(type(number) is float for number in numbers)


def test_a_stage_without_exits_has_no_accuracy(rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 10)
    evaluation = Cascade(DIMS, (1.0, -0.1, 0.5)).evaluate(probabilities, labels)
    assert evaluation.exit_shares == (0.0, 1.0, 0.0, 0.0)
    assert evaluation.exit_accuracy[0] is None
    assert evaluation.expected_dim == 5.0
    assert evaluation.cumulative_dim == 5.0  # nobody asks the first


@pytest.mark.parametrize("first", [1.0, 3.0])
def test_a_width_that_is_passed_over_costs_nothing(rng: np.random.Generator, first: float) -> None:
    """Its head is never read: it may hold anything."""
    embeddings, labels = rng.normal(size=(50, 20)), rng.integers(N_CLASSES, size=50)
    heads = [(rng.normal(size=(N_CLASSES, dim)), rng.normal(size=N_CLASSES)) for dim in DIMS]
    logits = np.stack([embeddings[:, :dim] @ weight.T + bias for dim, (weight, bias) in zip(DIMS, heads, strict=True)])
    cascade = Cascade(DIMS, (first, 0.8, 1.0))
    evaluation = cascade.evaluate(logits, labels, from_logits=True)
    heads[0][0][:], heads[2][1][:] = np.nan, np.nan
    exit_dims = cascade.classify(embeddings, heads)[1]
    assert set(exit_dims.tolist()) == {5, 20}
    assert evaluation.cumulative_dim == pytest.approx(np.where(exit_dims == 5, 5, 5 + 20).mean())
    assert evaluation.expected_dim == pytest.approx(exit_dims.mean())
    cells = [line.split()[1:3] for line in str(evaluation).splitlines() if line.split()[:1] in (["3"], ["8"])]
    assert cells == [[f"{first:.4f}", "passed"], ["1.0000", "passed"]]


def rows_of(*prefixes: tuple[str, float | list[float]]) -> np.ndarray:
    """Probabilities (G, n, 3) of prefixes that answer with these digits, as sure as that."""
    stacked = []
    for answers, sure in prefixes:
        top = np.broadcast_to(sure, len(answers))[:, None]
        picked = np.array([int(answer) for answer in answers])
        stacked.append(np.where(np.eye(3, dtype=bool)[picked], top, (1 - top) / 2))
    return np.stack(stacked)


@pytest.mark.parametrize(
    ("prefixes", "thresholds", "fixed", "unlabelled"),
    [
        # right on 1, 4 and 5 rows of 6, otherwise than the last on 4 and 2; the second answers all
        ((("000120", 0.9), ("012000", 0.9), ("012022", 0.9)), (1, 0), 4, 4),
        # right on 4, 4 and 5, otherwise on 3 and 2: a tie is enough, where other rows are right too
        ((("112011", 0.9), ("012000", 0.9), ("012022", 0.9)), (1, 0), 2, 4),
        # right on 4, 4 and 6, otherwise on 2 and 2: a tie of the disagreement
        ((("010010", 0.9), ("012111", 0.9), ("012012", 0.9)), (1, 0), 2, 2),
        # the first is better than the last and never asked
        ((("012010", 0.9), ("000000", 0.9), ("012110", 0.9)), (1, 1), 2, 8),
        # the first is right where it is sure and the last on the others: no width is so alone
        ((("012111", [0.9] * 3 + [0.4] * 3), ("000000", 0.4), ("111012", 0.9)), (0.5, 0.5), None, 8),
    ],
)
def test_the_yardstick_is_the_narrowest_width_that_loses_no_more(
    prefixes: Any, thresholds: tuple[float, ...], fixed: int | None, unlabelled: int
) -> None:
    probabilities, labels = rows_of(*prefixes), np.array([0, 1, 2, 0, 1, 2])
    cascade = Cascade((2, 4, 8), thresholds)
    evaluation = cascade.evaluate(probabilities, labels)
    assert evaluation.fixed_dim == fixed
    assert cascade.evaluate(probabilities).fixed_dim == unlabelled
    for cost in ("expected_dim", "cumulative_dim"):
        assert evaluation.speedup(cost) == pytest.approx(8 / getattr(evaluation, cost))
        over_fixed = None if fixed is None else pytest.approx(fixed / getattr(evaluation, cost))
        assert evaluation.speedup(cost, of="fixed") == over_fixed
    for wrong in ({"cost": "dim"}, {"of": "narrow"}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be one of"):
            evaluation.speedup(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperatures", [None, (1.2, 1.0, 1.6, 0.2)])
def test_without_labels_all_that_needs_none_is_the_same(
    library: Library, rng: np.random.Generator, temperatures: tuple[float, ...] | None
) -> None:
    probabilities, labels = population(rng, 60)
    cascade = Cascade(DIMS, (0.5, 0.55, 0.6), temperatures=temperatures)
    given_as = library.array(probabilities)
    labelled = [*cascade.curve(given_as, library.array(labels)), cascade.evaluate(given_as, library.array(labels))]
    for known, point in zip(labelled, [*cascade.curve(given_as), cascade.evaluate(given_as)], strict=True):
        unknown = {"accuracy": None, "gap": None, "prefix_accuracy": None, "exit_accuracy": (None,) * len(point.dims)}
        assert point == dataclasses.replace(known, **unknown)
        assert point.prefix_disagreement[point.dims.index(point.fixed_dim)] <= point.disagreement
    assert point.fixed_dim is not None
    assert labelled[-1].disagreement > 0
    with pytest.raises(ValueError, match="`probabilities` must have at least one row"):
        cascade.evaluate(library.array(probabilities[:, :0]))


def test_an_evaluation_prints_its_table(rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 1200)
    cascade = Cascade(DIMS, (0.9, 1.0, 0.6))
    found, unlabelled = cascade.evaluate(probabilities, labels), cascade.evaluate(probabilities)
    for evaluation in (found, unlabelled):
        text = str(evaluation)
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 110
        lines = {line.split()[0]: line for line in text.splitlines()[2:] if line}
        assert re.fullmatch(rf" +3 +0.9000 +{100 * found.exit_shares[0]:.1f}% .*", lines["3"])
        assert "passed over" in lines["5"]
        assert f"{found.disagreement:.2%} [" in lines["disagreement"]
        assert f" {found.expected_dim:.1f}  {20 / found.expected_dim:.1f} x less than 20" in lines["expected"]
        assert f"; {found.separate_multiply_adds:,.0f} multiply-adds of separate heads" in lines["cumulative"]
        assert f" {evaluation.fixed_dim}  " in lines["fixed"]
    assert str(found).startswith("1,200 rows of 6 classes.\n\n")
    assert str(unlabelled).startswith("1,200 rows of 6 classes, without labels: held against")
    assert f" {found.exit_accuracy[3]:.2%} [" in str(found)
    assert f" {found.prefix_accuracy[1]:.2%} [" in str(found)
    assert f" {1 - found.prefix_disagreement[1]:.2%} [" in str(unlabelled)
    assert "right" not in str(unlabelled)
    assert str(unlabelled).splitlines()[7:9] == ["", next(x for x in str(found).splitlines() if x.startswith("dis"))]


def test_the_printed_factors_say_less_or_more_and_of_what() -> None:
    labels, short, full = np.array([0, 1, 2, 0]), ("0120", 0.9), ("0110", 0.9)
    for prefixes, threshold, expected, fixed in (
        (
            (short, full),
            0.5,
            "2.0 x less than 8, as much as a fixed 4;",
            "4  the narrowest width that, alone, is right as often",
        ),
        (
            (full, short),
            1.0,
            "  as much as 8;",
            "8  no narrower width, alone, is right as often; 4 columns lack 25.00%",
        ),
        ((short, full), 1.0, "  as much as 8, 2.0 x more than a fixed 4;", "4  the narrowest width that, alone, is"),
    ):
        text = str(Cascade((4, 8), (threshold,)).evaluate(rows_of(*prefixes), labels))
        assert expected in text
        assert re.search(rf"\nfixed width +{fixed}", text)


def test_the_closest_width_is_named_where_none_is_as_good() -> None:
    found = Cascade((4, 8, 16), (0.5, 0.5)).evaluate(
        rows_of(("0120", 0.9), ("0110", 0.9), ("0000", 0.9)), np.array([0, 1, 2, 0])
    )
    better = dataclasses.replace(found, accuracy=0.75, prefix_accuracy=(0.5, 0.7, 0.6))
    assert re.search(r"\nfixed width +none  no width, alone, is right as often; 8 columns lack 5.00%$", str(better))
    alone = dataclasses.replace(
        better, accuracy=None, prefix_accuracy=None, disagreement=0.125, prefix_disagreement=(0.5, 0.25, 0.0)
    )
    closest = "fixed width 16 no narrower width, alone, agrees with the full width as often; 8 columns lack 12.50%"
    assert " ".join(str(alone).split()).endswith(closest)


@given(st.integers(0, 10_000))
def test_the_cumulative_size_of_a_halving_ladder_is_twice_the_expected_less_its_start(seed: int) -> None:
    """E_cum = 2 E - 8 for 8, 16, ...: how the paper's 35.29 expected dimensions become its 62.6."""
    probabilities, labels = population(np.random.default_rng(seed), 9)
    evaluation = Cascade((8, 16, 32, 64), (0.4, 0.5, 0.6)).evaluate(probabilities, labels)
    assert evaluation.cumulative_dim == pytest.approx(2 * evaluation.expected_dim - 8)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_calibrate_is_the_published_loop(library: Library, rng: np.random.Generator, variant: str) -> None:
    probabilities, labels = population(rng, 80)
    grid = np.linspace(0.1 if variant == "code" else 0.0, 1.0, 100)
    expected = oracles.cascade_published(probabilities, labels, grid, inclusive=variant == "paper")
    cascade = Cascade.calibrate(
        library.array(probabilities), library.array(labels), nesting=Nesting(DIMS), variant=variant
    )
    assert cascade.dims == DIMS
    assert cascade.thresholds == pytest.approx(expected, rel=0, abs=1e-7)
    if variant == "code":
        assert cascade.thresholds == tuple(expected)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_a_prefix_that_is_surely_wrong_gets_the_highest_threshold(variant: str) -> None:
    labels = np.arange(200) % 2
    short = np.where(labels[:, None] == np.arange(2), 0.005, 0.995)
    cascade = Cascade.calibrate([short, 1 - short], labels, nesting=(8, 16), variant=variant)
    assert cascade.thresholds[0] == pytest.approx(1.0)
    assert cascade.evaluate([short, 1 - short], labels).accuracy == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_confidences_on_the_grid_tell_the_variants_apart(dtype: type) -> None:
    """Confidence 0.75 is a grid value: the code's > refuses it at 0.75, the paper's >= accepts it."""
    short = np.array([[0.75, 0.25], [0.5, 0.5]], dtype=dtype)
    full = np.array([[0.25, 0.75], [0.0, 1.0]], dtype=dtype)
    labels = np.array([0, 1])
    for variant, grid, dims in (("code", (0.5, 0.75), [8, 16]), ("paper", (0.5, 0.75, 1.0), [8, 16])):
        cascade = Cascade.calibrate([short, full], labels, nesting=(8, 16), grid=grid, variant=variant)
        assert cascade.predict([short, full])[1].tolist() == dims
        assert cascade.thresholds[0] == pytest.approx(0.5 if variant == "code" else 0.75, abs=1e-6)


def test_ties_take_the_smallest_threshold_and_the_grid_may_be_unsorted(rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 30)
    same = np.stack([probabilities[0], probabilities[0]])
    assert Cascade.calibrate(same, labels, nesting=(1, 2), grid=[0.9, 0.3, 0.3, 0.5]).thresholds == (0.3,)
    shuffled = rng.permutation(np.linspace(0.1, 1.0, 100))
    assert Cascade.calibrate(probabilities, labels, nesting=DIMS, grid=shuffled) == Cascade.calibrate(
        probabilities, labels, nesting=DIMS
    )


@given(st.integers(0, 10_000), st.floats(1.0, 5.0))
def test_thresholds_of_one_leave_everything_to_the_full_width(seed: int, threshold: float) -> None:
    probabilities, labels = population(np.random.default_rng(seed), 12)
    cascade = Cascade(DIMS, (threshold,) * 3)
    answers, exit_dims = cascade.predict(probabilities)
    assert answers.tolist() == probabilities[-1].argmax(-1).tolist()
    assert set(exit_dims.tolist()) == {20}
    assert cascade.evaluate(probabilities, labels).gap == 0.0


def test_certain_rows_do_not_pass_a_threshold_of_one() -> None:
    rows = np.array([[1.0 + 1e-5, 0.0]], dtype=np.float32)
    assert Cascade((1, 2), (1.0,)).predict([rows, rows])[1].tolist() == [2]


def test_degenerate_shapes() -> None:
    one_class = np.ones((2, 3, 1))
    for confidence in ("max_probability", "margin", "entropy"):
        assert Cascade((1, 2), (0.9,), confidence=confidence).predict(one_class)[1].tolist() == [1, 1, 1]
    labels, dims = Cascade((1, 2), (0.9,)).predict(np.ones((2, 0, 3)))
    assert labels.shape == dims.shape == (0,)
    single = Cascade((4,), ())
    assert single.predict(np.full((1, 2, 2), 0.5))[1].tolist() == [4, 4]
    assert single.curve(np.full((1, 2, 2), 0.5), np.array([0, 1])) == []
    assert Cascade.calibrate(np.full((1, 2, 2), 0.5), np.array([0, 1]), nesting=(4,)) == single


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_in_float32(dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    probabilities, labels = population(rng, 50)
    half = torch.as_tensor(probabilities).to(getattr(torch, dtype))
    cascade = Cascade(DIMS, (0.4, 0.5, 0.6))
    answers, exit_dims = cascade.predict(half)
    walk = oracles.cascade_walk(half.double().numpy(), DIMS, cascade.thresholds)
    assert (answers.tolist(), exit_dims.tolist()) == tuple(part.tolist() for part in expected_of(walk))
    truth = torch.as_tensor(labels)
    grid = np.linspace(0.1, 1.0, 100).astype(np.float32)
    expected = oracles.cascade_published(half.float().numpy(), labels, grid.tolist())
    assert Cascade.calibrate(half, truth, nesting=DIMS).thresholds == pytest.approx(expected, abs=1e-7)


def test_a_cascade_is_a_value(tmp_path: Path) -> None:
    plain = Cascade([8, 16], [0.5])
    rich = Cascade((8, 16), (0.5,), confidence="margin", temperatures=(1, 2))
    assert plain == Cascade((8, 16), (0.5,))
    assert plain != rich
    assert len({plain, rich, Cascade((8, 16), (0.5,))}) == 2
    for cascade in (plain, rich):
        assert eval(repr(cascade)) == cascade
        assert Cascade.from_json(cascade.to_json()) == cascade
        cascade.save(tmp_path / "cascade.json")
        assert Cascade.load(tmp_path / "cascade.json") == cascade
        assert Cascade.load(tmp_path / "cascade.json", nesting=Nesting((8, 16))) == cascade
    with pytest.raises(AttributeError):
        plain.thresholds = (0.1,)  # type: ignore[misc]


def test_a_file_of_another_ladder_or_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cascade.json"
    Cascade((8, 16), (0.5,)).save(path)
    with pytest.raises(ValueError, match=r"must hold a cascade for \(8, 32\), got one for \(8, 16\); calibrate one"):
        Cascade.load(path, nesting=(8, 32))
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"version": 2}))
    with pytest.raises(ValueError, match="must be version 1 of a cascade, got 2"):
        Cascade.load(path)
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "thresholds"}))
    with pytest.raises(ValueError, match="a cascade without thresholds"):
        Cascade.load(path)
    path.write_text(Nesting((8, 16)).to_json())
    with pytest.raises(ValueError, match="must be the JSON of a cascade, got 'nesting'"):
        Cascade.load(path)
    for damaged in ({"thresholds": ["high"]}, {"thresholds": [0.5, 0.6]}, {"dims": [16, 8]}, {"confidence": 3}):
        path.write_text(json.dumps(record | damaged))
        (key,) = damaged
        with pytest.raises(ValueError, match=rf"`.*cascade\.json` must be the JSON of a cascade: `{key}.*must "):
            Cascade.load(path)
    with pytest.raises(FileNotFoundError):
        Cascade.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Cascade((8, 16), (0.5, 0.5)), ValueError, "`thresholds` must hold one number for every prefix but"),
        (lambda: Cascade((8, 16), ()), ValueError, "the last, 1, got 0"),
        (lambda: Cascade((8, 16), (math.nan,)), ValueError, r"`thresholds\[0\]` must be finite"),
        (lambda: Cascade((8, 16), ("a",)), TypeError, r"`thresholds\[0\]` must be a number"),
        (lambda: Cascade((8, 16), 0.5), TypeError, "`thresholds` must be a sequence of numbers, got float 0.5"),
        (lambda: Cascade((16, 8), (0.5,)), ValueError, "`dims` must be positive and strictly increasing"),
        (lambda: Cascade((8, 16), (0.5,), confidence="x"), ValueError, "`confidence` must be one of 'max_probability'"),
        (lambda: Cascade((8, 16), (0.5,), temperatures=(1.0,)), ValueError, "`temperatures` must hold one number for"),
        (lambda: Cascade((8, 16), (0.5,), temperatures=(1.0, 0.0)), ValueError, r"`temperatures\[1\]` must be finite"),
    ],
)
def test_bad_cascades_are_refused(build: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_what_is_no_probability_is_refused(library: Library, rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 20)
    cascade = Cascade(DIMS, (0.5, 0.5, 0.5))
    shift = np.array([2.0, -2.0, 0.0, 0.0, 0.0, 0.0])  # still sums to one
    for change in (lambda rows: rows * 1.1, lambda rows: rows + shift, lambda rows: rows * math.nan):
        bad = probabilities.copy()
        bad[2, 4:7] = change(bad[2, 4:7])
        with pytest.raises(ValueError, match=r"`probabilities\[2\]` \(the prefix of width 8\) must hold .*got 3 of 20"):
            cascade.predict(library.array(bad))
        with pytest.raises(ValueError, match=r"`probabilities\[2\]`"):
            cascade.evaluate(library.array(bad), library.array(labels))
        with pytest.raises(ValueError, match=r"`probabilities\[2\]`"):
            Cascade.calibrate(library.array(bad), library.array(labels), nesting=DIMS)


def test_labels_out_of_range_are_refused_everywhere(library: Library, rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 20)
    for outside in (-1, N_CLASSES):
        wrong = labels.copy()
        wrong[3] = outside
        rule = (
            r"`labels` must lie within \[0, 6\), got 1 outside it, such as [^,]*, and leave out rows without a label\.$"
        )
        with pytest.raises(ValueError, match=rule):
            Cascade(DIMS, (0.5, 0.5, 0.5)).evaluate(library.array(probabilities), library.array(wrong))


def test_wrong_shapes_and_kinds_are_refused(rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 20)
    cascade = Cascade(DIMS, (0.5, 0.5, 0.5))
    refused: list[tuple[object, object, type[Exception], str]] = [
        (probabilities[:3], labels, ValueError, r"`probabilities` must hold one \(rows, classes\) array per prefix, 4"),
        (probabilities[0], labels, ValueError, r"`probabilities` must have shape \(prefixes, rows, classes\)"),
        (3.0, labels, TypeError, "`probabilities` must be an array"),
        ([[0.5], [0.5], [0.5], [0.5]], labels, TypeError, r"`probabilities\[0\]` must be an array"),
        ([*probabilities[:3], probabilities[3, :5]], labels, ValueError, r"`probabilities\[3\]` must have shape"),
        ([*probabilities[:3], probabilities[3].astype("f4")], labels, TypeError, "must have one dtype"),
        ((probabilities * 0).astype(int), labels, TypeError, "must hold floating-point numbers"),
        (probabilities[:, :, :0], labels, ValueError, "must have at least one class"),
        (probabilities, labels[:5], ValueError, r"`labels` must have one class id per row, shape \(20,\), got \(5,\)"),
        (probabilities, labels * 1.0, TypeError, "`labels` must hold integer class ids"),
        (probabilities, labels.tolist(), TypeError, "`labels` must be an array"),
        (probabilities[:, :0], labels[:0], ValueError, "`probabilities` must have at least one row"),
    ]
    for rows, truth, error, message in refused:
        with pytest.raises(error, match=message):
            cascade.evaluate(rows, truth)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="`probabilities` and `labels` must come from one array library"):
        cascade.evaluate(probabilities, torch.as_tensor(labels))


def test_rows_that_calibrate_nothing_are_refused(rng: np.random.Generator) -> None:
    probabilities, labels = population(rng, 20)
    probabilities[:, np.arange(20), labels] = 0.0
    probabilities /= probabilities.sum(-1, keepdims=True)
    with pytest.raises(ValueError, match="`labels` must agree with some prediction, got 20 rows of which no prefix"):
        Cascade.calibrate(probabilities, labels, nesting=DIMS)
    probabilities, labels = population(rng, 5)
    with pytest.warns(UserWarning, match="Calibrating on 5 rows for 6 classes") as caught:
        Cascade.calibrate(probabilities, labels, nesting=DIMS)
    assert caught[0].filename == __file__
    for options, message in (
        ({"grid": ()}, "`grid` must hold at least one threshold"),
        ({"grid": (0.1, math.inf)}, r"`grid\[1\]` must be finite"),
        ({"variant": "x"}, "`variant` must be one of 'code', 'paper'"),
        ({"confidence": "x"}, "`confidence` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            Cascade.calibrate(probabilities, labels, nesting=DIMS, **options)


def test_separate_heads_pass_over_a_width_that_does_not_pay(rng: np.random.Generator) -> None:
    """Widths this close save a tied head something, and separate heads nothing unless most are passed over."""
    probabilities, labels = population(rng, 6000)
    found = {}
    for cost in ("expected_dim", "cumulative_dim"):
        options = {"nesting": (12, 15, 17, 20), "max_gap": 0.05, "cost": cost, "path": "fitted"}
        cascade = Cascade.certify(probabilities[:, :3000], labels[:3000], **options)
        found[cost] = cascade.evaluate(probabilities[:, 3000:], labels[3000:])
    tied, separate = found["expected_dim"], found["cumulative_dim"]
    assert max(tied.thresholds) < 1.0
    assert tied.expected_dim < 20 < tied.cumulative_dim
    assert 1.0 in separate.thresholds
    assert separate.cumulative_dim <= 20
