"""Confidences of the user's own: an array (G, n) in place of a measure of the probabilities."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import Library
from test_cascade import DIMS, population

from matryoshka import Cascade


def measured(probabilities: np.ndarray, name: str = "margin") -> np.ndarray:
    """Compute one of the library's measures apart from it, as if it were the user's own."""
    return np.array([[oracles.cascade_confidence(row, name) for row in rows] for rows in probabilities])


CHOOSE: dict[str, Callable[..., Any]] = {
    "calibrate": lambda *a, **k: Cascade.calibrate(*a, nesting=DIMS, **k),
    "certify": lambda *a, **k: Cascade.certify(*a, nesting=DIMS, max_gap=0.2, delta=0.4, **k),
    "certify, fitted": lambda *a, **k: Cascade.certify(*a, nesting=DIMS, max_gap=0.2, path="fitted", **k),
    "certify, no labels": lambda p, _, **k: Cascade.certify(p, nesting=DIMS, max_disagreement=0.3, **k),
    "certify, groups": lambda p, y, groups, **k: Cascade.certify(p, y, nesting=DIMS, max_gap=0.3, groups=groups, **k),
    "frontier": lambda *a, **k: Cascade.frontier(*a, nesting=DIMS, **k),
    "within_budget": lambda *a, **k: Cascade.within_budget(*a, nesting=DIMS, budget=10, **k),
}


@pytest.mark.parametrize("way", CHOOSE)
def test_thresholds_are_chosen_by_what_is_given(library: Library, rng: np.random.Generator, way: str) -> None:
    """A measure given as numbers chooses the thresholds that the measure itself does."""
    probabilities, labels = population(rng, 300)
    confidence = measured(probabilities).astype(np.float32)
    arrays = [library.array(array) for array in (probabilities, labels)]
    groups = [library.array(np.arange(300) % 2)] if "groups" in way else []
    given = CHOOSE[way](*arrays, *groups, confidence=library.array(confidence))
    expected = CHOOSE[way](*arrays, *groups, confidence="margin")
    for cascade, twin in zip(cascades(given), cascades(expected), strict=True):
        assert cascade.thresholds == pytest.approx(twin.thresholds, abs=1e-5)
        assert cascade.confidence == "precomputed"
        assert Cascade.from_json(cascade.to_json()) == cascade
    assert len({cascade.thresholds for cascade in cascades(given)} - {(1.0,) * 3}) >= 1


def cascades(found: Any) -> list[Cascade]:
    if isinstance(found, Cascade):
        return [found]
    return list(found.values()) if isinstance(found, dict) else [cascade for cascade, _ in found]


def test_rows_exit_by_what_is_given(library: Library, rng: np.random.Generator) -> None:
    """Numbers that have nothing to do with the probabilities."""
    probabilities, labels = population(rng, 60)
    confidence = rng.random((4, 60)).astype(np.float32)
    cascade = Cascade(DIMS, (0.8, 0.5, 1.0), confidence="precomputed")
    stages = [next((i for i in range(3) if confidence[i, row] > cascade.thresholds[i]), 3) for row in range(60)]
    assert set(stages) == {0, 1, 3}
    answers = np.array([int(np.argmax(probabilities[stage, row])) for row, stage in enumerate(stages)])
    given: dict[str, Any] = {"confidence": library.array(confidence)}
    found, exit_dims = cascade.predict(library.array(probabilities), **given)
    library.assert_close(found, answers, atol=0)
    library.assert_close(exit_dims, np.array(DIMS)[stages], atol=0)
    evaluation = cascade.evaluate(library.array(probabilities), library.array(labels), **given)
    assert evaluation.accuracy == pytest.approx(np.mean(answers == labels))
    assert evaluation.disagreement == pytest.approx(np.mean(answers != probabilities[-1].argmax(-1)))
    assert evaluation.expected_dim == pytest.approx(np.mean(np.array(DIMS)[stages]))
    assert cascade.curve(library.array(probabilities), library.array(labels), **given)[-1] == evaluation
    assert cascade.evaluate(library.array(probabilities), **given).disagreement == evaluation.disagreement


def test_scores_that_are_no_probabilities_will_do(rng: np.random.Generator) -> None:
    """Only the largest entry counts, so `from_logits` takes whatever scores a stage gives."""
    scores, confidence = rng.normal(size=(2, 9, 4)), rng.random((2, 9))
    cascade = Cascade((8, 16), (0.5,), confidence="precomputed")
    answers, _ = cascade.predict(scores, confidence=confidence, from_logits=True)
    np.testing.assert_array_equal(answers, np.where(confidence[0] > 0.5, scores[0].argmax(-1), scores[1].argmax(-1)))


def test_models_instead_of_prefixes_are_known_by_what_they_cost(rng: np.random.Generator) -> None:
    """A ladder is a list of costs: of models that start anew, a row pays for all it asks."""
    probabilities, labels = population(rng, 200)
    millions = (23, 110, 335, 1500)
    cascade = Cascade.certify(
        probabilities, labels, nesting=millions, max_gap=0.1, path="fitted", cost="cumulative_dim",
        confidence=measured(probabilities),
    )  # fmt: skip
    confidence = measured(probabilities)
    paid = []
    for row in range(200):
        asked = [i for i in range(4) if i == 3 or cascade.thresholds[i] < 1]
        stop = next(i for i in asked if i == 3 or confidence[i, row] > cascade.thresholds[i])
        paid.append(sum(millions[i] for i in asked if i <= stop))
    evaluation = cascade.evaluate(probabilities, labels, confidence=confidence)
    assert evaluation.cumulative_dim == pytest.approx(np.mean(paid))
    assert evaluation.cumulative_dim < 1500


P = np.array([[[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]] * 2)
Y = np.array([0, 1, 1])
OWN = np.array([[0.9, 0.2, 0.5], [1.0, 0.0, 0.5]])
GIVEN = Cascade((8, 16), (0.5,), confidence="precomputed")
PLAIN = Cascade((8, 16), (0.5,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GIVEN.predict(P), "must be an array (prefixes, rows) with precomputed confidences, got None"),
        (lambda: GIVEN.evaluate(P, Y), "must be an array (prefixes, rows) with precomputed confidences"),
        (lambda: GIVEN.curve(P, Y, confidence="margin"), "must be an array (prefixes, rows) with precomputed"),
        (lambda: PLAIN.predict(P, confidence=OWN), "must be None with max_probability, got "),
        (lambda: PLAIN.evaluate(P, confidence="margin"), "must be None with max_probability, got "),
        (lambda: GIVEN.predict(P, confidence=OWN[:, :2]), "must have shape (prefixes, rows) = (2, 3), got (2, 2)"),
        (lambda: GIVEN.predict(P, confidence=OWN.T), "must have shape (prefixes, rows) = (2, 3), got (3, 2)"),
        (lambda: GIVEN.predict(P, confidence=OWN + 0.1), "must lie within [0, 1], got 1 numbers that do not"),
        (lambda: GIVEN.predict(P, confidence=OWN - 0.3), "must lie within [0, 1], got 2 numbers that do not"),
        (lambda: GIVEN.predict(P, confidence=OWN * np.nan), "must lie within [0, 1], got 6 numbers that do not"),
        (lambda: GIVEN.predict(P, confidence=Y[None]), "must hold floating-point numbers"),
        (lambda: Cascade.calibrate(P, Y, nesting=(8, 16), confidence="precomputed"), "of your own, got str 'precomp"),
        (lambda: Cascade.certify(P, Y, nesting=(8, 16), confidence="other"), "must be one of 'max_probability'"),
        (lambda: Cascade.calibrate(P, Y, nesting=(8, 16), confidence=OWN.tolist()), "of your own, got list; pass them"),
        (lambda: GIVEN.classify(np.ones((2, 16)), (np.ones((2, 16)), None)), "of a cascade that classifies must be"),
        (lambda: GIVEN.classifier((np.ones((2, 16)), None)), "of a cascade that classifies must be"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape("`confidence` ") + ".*" + re.escape(message)):
        call()


@pytest.mark.parametrize("way", ["calibrate", "certify"])
def test_no_temperature_acts_on_what_is_given(way: str) -> None:
    with pytest.raises(ValueError, match="`temperature` must be False where `confidence` is an array"):
        getattr(Cascade, way)(P, Y, nesting=(8, 16), confidence=OWN, temperature=True)
    with pytest.raises(ValueError, match="`temperatures` must be None with precomputed confidences"):
        Cascade((8, 16), (0.5,), confidence="precomputed", temperatures=(1.0, 1.0))
