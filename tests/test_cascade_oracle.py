"""The oracle's routing, the trends of classes, and temperatures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import Library

from matryoshka import Cascade, metrics
from matryoshka.cascade import class_trends, oracle_routing, smallest_correct_dim

DIMS = (2, 3, 10)


def predicted(answers: list[list[int]], n_classes: int) -> np.ndarray:
    """Probabilities (G, n, c) that give these answers."""
    rows = np.full((*np.shape(answers), n_classes), 0.4 / (n_classes - 1))
    np.put_along_axis(rows, np.asarray(answers)[..., None], 0.6, axis=-1)
    return rows


ANSWERS = [[0, 1, 1, 2, 0, 0], [0, 2, 2, 2, 0, 1], [1, 2, 2, 0, 1, 1]]
LABELS = [0, 1, 2, 2, 2, 1]  # right from: 2, 2, 3, 2, never, 3


def test_oracle_routing_counts_by_hand(library: Library) -> None:
    probabilities, labels = library.array(predicted(ANSWERS, 3)), library.array(np.array(LABELS))
    library.assert_close(smallest_correct_dim(probabilities, labels, nesting=DIMS), [2, 2, 3, 2, 0, 3], atol=0)
    oracle = oracle_routing(probabilities, labels, nesting=DIMS)
    assert (oracle.dims, oracle.n_rows) == (DIMS, 6)
    assert oracle.accuracy == pytest.approx(5 / 6)
    assert oracle.shares == pytest.approx((3 / 6, 2 / 6, 0))
    assert oracle.never_right == pytest.approx(1 / 6)
    assert oracle.only_shorter == pytest.approx(3 / 6)
    assert oracle.expected_dim_right == pytest.approx(12 / 5)
    assert oracle.expected_dim_all == pytest.approx(22 / 6)
    assert oracle.disagreement == pytest.approx((1, 3 / 6, 0))
    assert sum(oracle.shares) + oracle.never_right == pytest.approx(1.0)


def test_the_oracle_agrees_with_the_metric_and_bounds_every_cascade(rng: np.random.Generator) -> None:
    logits = rng.normal(size=(3, 200, 4))
    labels = rng.integers(4, size=200)
    oracle = oracle_routing(logits, labels, nesting=DIMS, from_logits=True)
    assert oracle.accuracy == pytest.approx(metrics.oracle_accuracy(logits.argmax(-1), labels))
    cascade = Cascade.calibrate(logits, labels, nesting=DIMS, from_logits=True)
    assert cascade.evaluate(logits, labels, from_logits=True).accuracy <= oracle.accuracy


def test_rows_that_no_prefix_gets_right_have_no_mean_width() -> None:
    oracle = oracle_routing(predicted([[0, 0], [0, 0]], 2), np.array([1, 1]), nesting=(1, 5))
    assert oracle.expected_dim_right is None
    assert oracle.expected_dim_all == 5.0


def test_trends_of_classes() -> None:
    """Four rows of each class, of which so many are right at the four prefixes."""
    right = {0: (1, 2, 2, 4), 1: (1, 4, 4, 3), 2: (1, 4, 2, 1), 3: (3, 1, 1, 2), 4: (1, 3, 1, 3), 5: (2, 2, 2, 2)}
    labels = np.repeat(sorted(right), 4)
    answers = [[label if i < right[label][g] else 6 for label in right for i in range(4)] for g in range(4)]
    probabilities = predicted(answers, 7)
    trends = class_trends(probabilities, labels, nesting=(1, 2, 4, 8), dip=0.25)
    assert (trends.rises, trends.dips, trends.recovers, trends.unclear, trends.unseen) == (
        (0, 5), (1,), (3,), (2, 4), (6,),
    )  # fmt: skip
    lax = class_trends(probabilities, labels, nesting=(1, 2, 4, 8), dip=0.25, tolerance=0.3)
    assert 1 in lax.rises
    with pytest.raises(ValueError, match="`dip` must be finite"):
        class_trends(probabilities, labels, nesting=(1, 2, 4, 8), dip=1.01)
    for tolerance in (-0.01, 1.01):
        with pytest.raises(ValueError, match="`tolerance` must be finite"):
            class_trends(probabilities, labels, nesting=(1, 2, 4, 8), tolerance=tolerance)
    assert class_trends(probabilities, labels, nesting=(1, 2, 4, 8), dip=1.0).dips == (1, 2)
    assert class_trends(probabilities, labels, nesting=(1, 2, 4, 8), tolerance=1.0).rises == (0, 1, 2, 3, 4, 5)


def likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        scaled = [z / temperature for z in row]
        total += scaled[label] - math.log(sum(math.exp(z) for z in scaled))
    return total


def test_a_temperature_makes_the_labels_likeliest(library: Library, rng: np.random.Generator) -> None:
    labels = rng.integers(5, size=80)
    logits = rng.normal(size=(3, 80, 5)) + 1.5 * np.eye(5)[labels]
    logits *= np.array([0.2, 1.0, 6.0])[:, None, None]
    cascade = Cascade.calibrate(
        library.array(logits), library.array(labels), nesting=DIMS, temperature=True, from_logits=True
    )
    assert cascade.temperatures is not None
    assert cascade.temperatures[0] < 0.5 < cascade.temperatures[1] < 2 < cascade.temperatures[2]
    for rows, temperature in zip(logits, cascade.temperatures, strict=True):
        best = likelihood(rows, labels, temperature)
        for factor in (0.99, 1.01):
            assert best >= likelihood(rows, labels, temperature * factor)
    powers = np.exp(logits)
    again = Cascade.calibrate(
        powers / powers.sum(-1, keepdims=True), labels, nesting=DIMS, temperature=True
    ).temperatures
    assert again == pytest.approx(cascade.temperatures, rel=1e-2 if library.dtype_name == "float32" else 1e-3)


def test_temperatures_grow_with_the_logits(rng: np.random.Generator) -> None:
    labels = rng.integers(5, size=80)
    logits = rng.normal(size=(80, 5)) + 1.5 * np.eye(5)[labels]
    scales = np.array([0.05, 1.0, 40.0])
    cascade = Cascade.calibrate(
        logits * scales[:, None, None], labels, nesting=DIMS, temperature=True, from_logits=True
    )
    assert cascade.temperatures is not None
    np.testing.assert_allclose(cascade.temperatures / scales, cascade.temperatures[1], rtol=3e-4)


@pytest.mark.parametrize(("n_classes", "share"), [(1000, 0.01), (3, 0.6), (10, 0.99)])
def test_a_temperature_that_is_known_in_closed_form(n_classes: int, share: float) -> None:
    """One class stands out in every row, and is right in a share of them: so likely it has to become."""
    right = round(share * 1000)
    labels = np.repeat([0, 1], [right, 1000 - right])
    logits = np.zeros((1000, n_classes))
    logits[:, 0] = 4.0
    cascade = Cascade.calibrate(
        [logits, logits], labels, nesting=(2, 3), temperature=True, from_logits=True, grid=(0.5,)
    )
    odds = share / (1 - share) * (n_classes - 1)
    assert cascade.temperatures == pytest.approx([4.0 / math.log(odds)] * 2, rel=3e-4)


def test_temperatures_of_degenerate_rows_are_bounded() -> None:
    labels = np.array([0, 1, 0, 1])
    certain = np.eye(2)[labels]
    coin = np.full((4, 2), 0.5)
    cascade = Cascade.calibrate([certain, coin, certain], labels, nesting=DIMS, temperature=True)
    assert cascade.temperatures is not None
    assert all(0.01 <= temperature <= 100 for temperature in cascade.temperatures)
    wrong = Cascade.calibrate([certain[::-1], coin, certain], labels, nesting=DIMS, temperature=True)
    assert wrong.temperatures is not None
    assert wrong.temperatures[0] == pytest.approx(100, rel=0.01)


def test_calibrate_reads_logits_as_their_softmax(library: Library, rng: np.random.Generator) -> None:
    labels = rng.integers(5, size=60)
    logits = 2 * rng.normal(size=(3, 60, 5)) + 2 * np.eye(5)[labels]
    powers = np.exp(logits)
    probabilities = powers / powers.sum(-1, keepdims=True)
    given_as = library.array(logits), library.array(labels)
    cascade = Cascade.calibrate(*given_as, nesting=DIMS, from_logits=True)
    assert cascade == Cascade.calibrate(probabilities, labels, nesting=DIMS)
    assert cascade.evaluate(*given_as, from_logits=True) == cascade.evaluate(probabilities, labels)
    assert cascade.curve(*given_as, from_logits=True) == cascade.curve(probabilities, labels)
    huge = library.array(logits * 1e4)  # exp of it overflows unless the largest logit is taken off first
    assert cascade.predict(huge, from_logits=True)[1].shape == (60,)
    broken = logits.copy()
    broken[1, 3:5, 2] = math.inf
    with pytest.raises(
        ValueError,
        match=r"`probabilities\[1\]` .* must hold finite logits, got NaN or infinity in 2 of 60 rows \(first: 3\)",
    ):
        cascade.predict(library.array(broken), from_logits=True)
