"""Certified cascades: exact statistics, the tested paths, what a certificate says, and that promises are kept."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import Library
from hypothesis import given
from hypothesis import strategies as st

from matryoshka import Cascade
from matryoshka.cascade import Certificate, _certify, _paths
from matryoshka.cascade._evaluation import Prices

DIMS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@cache
def population(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 20 classes whose prefixes lose noise as they widen: accuracies 0.54, 0.63, 0.69, 0.71, 0.72, 0.73, ..."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(20, size=n)
    clean = 2.6 * rng.gamma(1.6, 1.0, size=(n, 1)) * np.eye(20)[labels] + rng.normal(size=(n, 20))
    noise = 1.3 * 0.62 ** np.arange(9)[:, None, None] * rng.normal(size=(9, n, 20))
    powers = np.exp(clean + 0.9 * np.cumsum(noise[::-1], axis=0)[::-1])
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32), labels


class Truth:
    """Gap and mean exit dimension over a whole population, computed apart from the library."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        second, first = np.sort(probabilities, axis=-1)[..., -2:].transpose(2, 0, 1)
        self.confidence = {"max_probability": first, "margin": first - second}
        self.right = probabilities.argmax(-1) == labels

    def of(self, cascade: Cascade, rows: Any = slice(None)) -> tuple[float, float]:
        confidence, right = self.confidence[cascade.confidence][:, rows], self.right[:, rows]
        waiting = np.ones(right.shape[1], bool)
        broken = total = 0
        for i, dim in enumerate(DIMS):
            out = waiting & (confidence[i] > cascade.thresholds[i]) if i < 8 else waiting
            broken += int((out & right[-1] & ~right[i]).sum())
            total += dim * int(out.sum())
            waiting = waiting & ~out
        return broken / right.shape[1], total / right.shape[1]


def test_promises_are_kept_where_tuning_breaks_them() -> None:
    """300 draws of 500 rows: a promise may break with probability 0.1, so in at most 30 + 3 sd = 45 draws."""
    probabilities, labels = population(20_000, 1)
    truth, rng = Truth(probabilities, labels), np.random.default_rng(5)
    broken = {"certified": 0, "published": 0, "tuned": 0}
    for _ in range(300):
        rows = rng.integers(len(labels), size=500)
        drawn = probabilities[:, rows], labels[rows]
        certified = Cascade.certify(*drawn, nesting=DIMS, max_gap=0.01, delta=0.1)
        broken["certified"] += truth.of(certified)[0] > 0.01
        broken["published"] += truth.of(Cascade.calibrate(*drawn, nesting=DIMS))[0] > 0.01
        shared = [Cascade(DIMS, (t / 25,) * 8) for t in range(25, -1, -1)]
        tuned = [cascade for cascade in shared if truth.of(cascade, rows)[0] <= 0.01][-1]
        broken["tuned"] += truth.of(tuned)[0] > 0.01
    assert broken["certified"] <= 45
    assert broken["published"] > 240
    assert broken["tuned"] > 120


def test_with_many_rows_the_certified_cascade_is_cheaper_than_the_published_one() -> None:
    probabilities, labels = population(40_000, 2)
    truth, rng = Truth(probabilities, labels), np.random.default_rng(3)
    certified, published = [], []
    for _ in range(5):
        rows = rng.permutation(len(labels))[:10_000]
        drawn = probabilities[:, rows], labels[rows]
        cascade = Cascade.certify(*drawn, nesting=DIMS)
        assert cascade.certificate is not None
        assert cascade.certificate.path == "fitted"
        assert (cascade.certificate.n_rows, cascade.certificate.n_fit_rows) == (5000, 5000)
        certified.append(truth.of(cascade)[1])
        published.append(truth.of(Cascade.calibrate(*drawn, nesting=DIMS))[1])
    assert np.mean(certified) < np.mean(published)


def test_the_fitted_path_keeps_its_promise_too() -> None:
    """50 draws of 900 rows, half of them tested: at most 5 + 3 sd = 11 draws may break the promise."""
    probabilities, labels = population(20_000, 1)
    truth, rng = Truth(probabilities, labels), np.random.default_rng(6)
    broken = 0
    for _ in range(50):
        rows = rng.integers(len(labels), size=900)
        cascade = Cascade.certify(probabilities[:, rows], labels[rows], nesting=DIMS, max_gap=0.02, path="fitted")
        broken += truth.of(cascade)[0] > 0.02
    assert broken <= 11


@pytest.mark.parametrize(("n", "n_fit"), [(0, 0), (1, 0), (2, 1), (7, 3), (7, 0), (7, 7)])
def test_no_row_both_fits_and_tests(n: int, n_fit: int) -> None:
    known = np.arange(n) != 2
    fit, test = _certify.split(known, n_fit, 3)
    assert sorted([*fit, *test]) == list(range(n))
    assert len(fit) == n_fit
    assert (2 in fit) == (n > 2 and n_fit > 0)  # the row without a label fits first
    assert sorted(fit) == fit.tolist()
    assert n_fit in (0, n) or n < 7 or fit.tolist() != _certify.split(known, n_fit, 4)[0].tolist()


def test_half_of_the_rows_fit_or_all_without_a_label_where_many_have_one() -> None:
    promise = _certify.Promise(0.01, None, None, 0.1)  # 2,300 are many
    for known, unknown, n_fit in (
        (300, 0, 150),
        (301, 5000, 2650),
        (2299, 5000, 3649),
        (2300, 5000, 5000),
        (9000, 5, 4502),
    ):
        mask = np.arange(known + unknown) < known
        assert promise.n_fit("fitted", mask) == n_fit
        assert promise.n_fit("tapered", mask) == promise.n_fit("shared", mask) == 0


def falling(path: list[tuple[float, ...]]) -> bool:
    return all(all(b <= a for a, b in zip(p, q, strict=True)) for p, q in itertools.pairwise(path))


def test_no_threshold_rises_along_a_path() -> None:
    probabilities, labels = population(2000, 4)
    scored = probabilities.max(-1), probabilities.argmax(-1) != labels
    for path in (_paths.shared(8), _paths.tapered(DIMS), _paths.fitted(*scored, Prices.of(DIMS, "expected_dim"))):
        assert len(path) > 50
        assert falling(path)
        assert all(len(policy) == 8 and policy != (1.0,) * 8 for policy in path)
    alone = (scored[0][:1], scored[1][:1], Prices.of((8,), "expected_dim"))
    assert _paths.shared(0) == _paths.tapered((8,)) == _paths.fitted(*alone) == []


@pytest.mark.parametrize("cost", ["expected_dim", "cumulative_dim"])
def test_cost_only_falls_along_a_fitted_path(cost: str) -> None:
    """On the rows that it was fitted to, where prefixes at which no row can exit are passed over."""
    probabilities, labels = population(2000, 4)
    path = _paths.fitted(probabilities.max(-1), probabilities.argmax(-1) != labels, Prices.of(DIMS, cost))
    costs = [getattr(Cascade(DIMS, policy).evaluate(probabilities, labels), cost) for policy in path]
    assert falling(path)
    assert max(costs) <= 2048
    assert costs == sorted(costs, reverse=True)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.0, 0.5, 2.0]))
def test_a_cut_is_the_best_of_all_thresholds(seed: int, n: int, fees: float) -> None:
    rng = np.random.default_rng(seed)
    confidences = np.sort(rng.integers(1, 5, size=n))[::-1] / 8
    change = rng.integers(-3, 4, size=n) / 4

    def total(threshold: float) -> tuple[float, int]:
        """What a cut adds, fees if any row exits, and how many do: of equals the fewest."""
        exiting = [c for v, c in zip(confidences, change, strict=True) if v > threshold]
        return sum(exiting) + fees * bool(exiting), len(exiting)

    assert total(_paths._best_cut(confidences, change, fees)) == min(total(t / 8) for t in range(9))


@pytest.mark.parametrize("fees", [(0.0, 0.0, 0.0), (0.1, 0.4, 1.0), (0.05, 0.01, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_no_single_threshold_can_be_improved(seed: int, fees: tuple[float, ...]) -> None:
    rng = np.random.default_rng(seed)
    confidences = rng.permutation(120).reshape(3, 40) / 120
    failures, prices = rng.random((3, 40)) < [[0.3], [0.2], [0.0]], Prices((0.1, 0.4, 1.0), fees)

    def loss(thresholds: tuple[float, ...]) -> float:
        total = 0.0
        for row in range(40):
            stage = next((i for i in range(2) if confidences[i, row] > thresholds[i]), 2)
            asked = sum(fees[i] for i in range(stage) if thresholds[i] < 1.0)
            total += failures[stage, row] + 0.4 * (prices.exits[stage] + asked)
        return total

    order = np.argsort(-confidences, kind="stable")
    found = _paths._descend(confidences, order, failures, prices, 0.4, (1.0, 1.0))
    for candidate in np.arange(121) / 120:
        assert loss(found) <= loss((float(candidate), found[1])) + 1e-9
        assert loss(found) <= loss((found[0], float(candidate))) + 1e-9


@pytest.mark.parametrize("path", ["shared", "fitted"])
def test_a_certificate_says_what_was_tested(library: Library, path: str) -> None:
    probabilities, labels = population(3000, 6)
    given_as = library.array(probabilities), library.array(labels)
    cascade = Cascade.certify(*given_as, nesting=DIMS, max_gap=0.02, delta=0.2, path=path, seed=1)
    certificate = cascade.certificate
    assert certificate is not None
    assert (certificate.max_gap, certificate.max_error, certificate.delta) == (0.02, None, 0.2)
    assert (certificate.n_rows, certificate.n_fit_rows) == ((3000, 0) if path == "shared" else (1500, 1500))
    assert certificate.thresholds == cascade.thresholds
    assert certificate.chosen is not None
    assert all(p <= 0.2 for p in certificate.p_values[: certificate.chosen + 1])
    assert len(certificate.p_values) == certificate.chosen + 2
    assert certificate.p_values[-1] > 0.2
    if path == "shared":  # every row was tested: the p-value follows from the evaluation
        evaluation = cascade.evaluate(*given_as)
        assert len(set(cascade.thresholds)) == 1
        count = round(evaluation.gap * 3000)
        expected = float(oracles.promises_tail(count, 3000, Fraction(2, 100)))
        assert certificate.p_values[certificate.chosen] == pytest.approx(expected, rel=1e-6)
    assert "P(wrong, full width right) <= 0.02 with probability >= 0.8 over" in str(certificate)
    assert Cascade.from_json(cascade.to_json()) == cascade
    assert len({cascade, Cascade.from_json(cascade.to_json())}) == 1
    assert repr(cascade).endswith(f"certificate=<Certificate: {certificate}>)")


def test_too_few_rows_certify_the_full_width_only() -> None:
    labels = np.arange(229) % 5
    rows = np.where(labels[:, None] == np.arange(5), 0.96, 0.01)
    cascade = Cascade.certify([rows, rows], labels, nesting=(8, 16))
    assert cascade.certificate is not None
    assert (cascade.thresholds, cascade.certificate.chosen, cascade.certificate.rows_needed) == ((1.0,), None, 230)
    assert cascade.predict([rows, rows])[1].tolist() == [16] * 229
    assert str(cascade.certificate).endswith("certified (at least 230 tested rows are needed)")
    fitted = Cascade.certify([rows, rows], labels, nesting=(8, 16), path="fitted").certificate
    assert str(fitted).endswith("certified (at least 230 tested rows are needed, so 460 in all)")
    alone = Cascade.certify([np.tile(rows, (2, 1))], np.tile(labels, 2), nesting=(16,)).certificate
    assert str(alone).endswith("nothing but the full width could be certified")
    rows, labels = np.concatenate([rows, rows[:1]]), np.concatenate([labels, labels[:1]])
    assert Cascade.certify([rows, rows], labels, nesting=(8, 16)).thresholds == (0.0,)


def test_the_path_follows_from_the_number_of_rows() -> None:
    probabilities, labels = population(3000, 6)
    for n, options, path in (
        (2299, {}, "tapered"),
        (2300, {}, "fitted"),
        (1999, {"max_gap": 0.05}, "tapered"),
        (2000, {"max_gap": 0.05}, "fitted"),
        (600, {"temperature": True, "max_gap": 0.05}, "fitted"),
    ):
        cascade = Cascade.certify(probabilities[:, :n], labels[:n], nesting=DIMS, **options)  # type: ignore[arg-type]
        assert cascade.certificate is not None
        assert cascade.certificate.path == path
        assert (cascade.temperatures is not None) == bool(options.get("temperature"))


def test_an_absolute_error_is_promised_instead_or_besides() -> None:
    probabilities, labels = population(4000, 7)
    error = float(np.mean(probabilities[-1].argmax(-1) != labels))
    for n in (1000, 4000):  # both paths
        drawn = probabilities[:, :n], labels[:n]
        alone = Cascade.certify(*drawn, nesting=DIMS, max_error=error + 0.1).certificate
        both = Cascade.certify(*drawn, nesting=DIMS, max_error=error + 0.1, max_gap=0.01).certificate
        gap = Cascade.certify(*drawn, nesting=DIMS, max_gap=0.01).certificate
        assert alone is not None
        assert both is not None
        assert gap is not None
        assert (alone.max_gap, alone.max_error) == (None, pytest.approx(error + 0.1))
        assert alone.thresholds < both.thresholds  # a weaker promise is cheaper
        if n == 1000:
            assert both.thresholds == gap.thresholds  # the shared path is the same, and the gap is what binds
        assert "P(wrong) <= " in str(both)
        assert "full width right) <= 0.01 and P(wrong)" in str(both)
        evaluation = Cascade(DIMS, alone.thresholds, confidence="margin").evaluate(probabilities, labels)
        assert evaluation.accuracy > 1 - error - 0.1
    with pytest.raises(ValueError, match="`max_error` must be certifiable for the full width at least, got 0.05 where"):
        Cascade.certify(probabilities, labels, nesting=DIMS, max_error=0.05)


def test_the_full_width_alone_may_be_all_that_keeps_an_error() -> None:
    labels = np.arange(400) % 2
    full = np.where(labels[:, None] == np.arange(2), 0.9, 0.1)
    cascade = Cascade.certify([full[:, ::-1], full], labels, nesting=(8, 16), max_error=0.02)
    assert cascade.predict([full[:, ::-1], full])[1].tolist() == [16] * 400
    assert cascade.certificate is not None
    assert len(cascade.certificate.p_values) > 1


def test_a_ladder_of_one_width_has_nothing_to_certify() -> None:
    rows = np.full((1, 300, 2), 0.5)
    cascade = Cascade.certify(rows, np.zeros(300, int), nesting=(4,))
    assert cascade.certificate is not None
    assert (cascade.thresholds, cascade.certificate.p_values) == ((), ())


def test_the_cost_shapes_the_fitted_path_and_the_seed_the_halves() -> None:
    probabilities, labels = population(6000, 8)
    given_as: dict[str, Any] = {"nesting": range(100, 109), "max_gap": 0.03}  # on a halving ladder both costs agree
    tied = Cascade.certify(probabilities, labels, **given_as)
    assert tied == Cascade.certify(probabilities, labels, **given_as)
    assert tied != Cascade.certify(probabilities, labels, cost="cumulative_dim", **given_as)
    assert tied != Cascade.certify(probabilities, labels, seed=1, **given_as)


def test_sorted_rows_are_halved_at_random() -> None:
    probabilities, labels = population(4000, 9)
    order = np.argsort(labels, kind="stable")
    cascade = Cascade.certify(probabilities[:, order], labels[order], nesting=DIMS, max_gap=0.02)
    assert cascade.evaluate(probabilities, labels).gap < 0.03


def test_temperatures_are_fitted_on_the_rows_that_fit_the_path() -> None:
    probabilities, labels = population(3000, 10)
    rows = np.random.default_rng(0).permutation(3000)
    cascade = Cascade.certify(probabilities, labels, nesting=DIMS, temperature=True)
    changed = labels.copy()
    changed[rows[1500:]] = (changed[rows[1500:]] + 1) % 20  # the tested rows must not matter
    assert Cascade.certify(probabilities, changed, nesting=DIMS, temperature=True).temperatures == cascade.temperatures
    changed = labels.copy()
    changed[rows[:1500]] = (changed[rows[:1500]] + 1) % 20
    assert Cascade.certify(probabilities, changed, nesting=DIMS, temperature=True).temperatures != cascade.temperatures


@pytest.mark.filterwarnings("error")
def test_one_row_fits_no_temperature() -> None:
    """It may be all that there is of a group."""
    probabilities, labels = population(2500, 10)
    groups = np.arange(2500) // 2499
    many, one = Cascade.certify(probabilities, labels, nesting=DIMS, temperature=True, groups=groups).values()
    assert many.temperatures is not None
    assert (one.temperatures, set(one.thresholds)) == (None, {1.0})


def test_a_certificate_holds_for_its_own_cascade_only() -> None:
    probabilities, labels = population(500, 11)
    cascade = Cascade.certify(probabilities, labels, nesting=DIMS)
    with pytest.raises(ValueError, match="`certificate` must be about these thresholds, .* certified anew"):
        Cascade(DIMS, (0.5,) * 8, certificate=cascade.certificate)
    with pytest.raises(TypeError, match="`certificate` must be what `Cascade.certify` made, got dict"):
        Cascade(DIMS, (0.5,) * 8, certificate={})  # type: ignore[arg-type]
    record = json.loads(cascade.to_json())
    whole = record["certificate"]
    for damaged in ({**whole, "extra": 1}, {"thresholds": [0.5]}, {**whole, "p_values": None}, 3):
        with pytest.raises(ValueError, match="`certificate` must hold exactly the fields of a certificate"):
            Cascade.from_json(json.dumps(record | {"certificate": damaged}))
    record["thresholds"][0] = 0.5
    with pytest.raises(ValueError, match="`certificate` must be about these thresholds"):
        Cascade.from_json(json.dumps(record))
    assert isinstance(cascade.certificate, Certificate)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_gap": 0.0}, ValueError, r"`max_gap` must be finite and in \(0, 1\), got 0.0"),
        ({"max_gap": "a"}, TypeError, "`max_gap` must be a number"),
        ({"delta": 1.0}, ValueError, r"`delta` must be finite and in \(0, 1\)"),
        ({"max_error": -1}, ValueError, "`max_error` must be finite"),
        ({"max_disagreement": 1}, ValueError, r"`max_disagreement` must be finite and in \(0, 1\)"),
        ({"path": "x"}, ValueError, "`path` must be one of 'auto', 'shared', 'tapered', 'fitted'"),
        ({"cost": "x"}, ValueError, "`cost` must be one of 'expected_dim', 'cumulative_dim'"),
        ({"confidence": "x"}, ValueError, "`confidence` must be one of"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"path": "shared", "temperature": True}, ValueError, "`temperature` must be False with path='shared'"),
        ({"path": "tapered", "temperature": True}, ValueError, "`temperature` must be False with path='tapered'"),
        ({"nesting": (8, 16)}, ValueError, r"`probabilities` must hold one \(rows, classes\) array per prefix, 2"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    probabilities, labels = population(500, 11)
    with pytest.raises(error, match=message):
        Cascade.certify(probabilities, labels, **{"nesting": DIMS, **options})


def test_rows_that_certify_nothing_are_refused() -> None:
    probabilities, labels = population(500, 11)
    with pytest.warns(UserWarning, match="Calibrating on 15 rows for 20 classes") as caught:
        Cascade.certify(probabilities[:, :15], labels[:15], nesting=DIMS)
    assert caught[0].filename == __file__
    never = (probabilities.argmax(-1)[0] + 2) % 20
    keep = (probabilities.argmax(-1) != never).all(0)
    with pytest.raises(ValueError, match="`labels` must agree with some prediction"):
        Cascade.certify(probabilities[:, keep], never[keep], nesting=DIMS)


class TestWithoutLabels:
    """The full width's own answers take the labels' place: it may be contradicted on a share of rows."""

    @staticmethod
    def contradicted(probabilities: np.ndarray, thresholds: tuple[float, ...]) -> int:
        """Count row by row the answers that are not the full width's."""
        count = 0
        for row in range(probabilities.shape[1]):
            scores = [prefix[row].tolist() for prefix in probabilities]
            margins = [first - second for *_, second, first in map(sorted, scores)]
            stage = next((i for i, limit in enumerate(thresholds) if margins[i] > limit), len(thresholds))
            count += scores[stage].index(max(scores[stage])) != scores[-1].index(max(scores[-1]))
        return count

    @pytest.mark.parametrize(
        ("path", "draws", "n", "allowed"), [("shared", 300, 500, 45), ("fitted", 50, 900, 11), ("both", 50, 900, 11)]
    )
    def test_the_promise_is_kept(self, path: str, draws: int, n: int, allowed: int) -> None:
        """It may break with probability 0.1, so in at most a tenth of the draws + 3 sd; with labels beside it too."""
        probabilities, labels = population(20_000, 1)
        truth, rng = Truth(probabilities, probabilities[-1].argmax(-1)), np.random.default_rng(7)
        options: dict[str, Any] = {"nesting": DIMS, "max_disagreement": 0.02}
        options |= {"path": "fitted", "max_gap": 0.5} if path == "both" else {"path": path}
        broken, exit_dims = 0, []
        for _ in range(draws):
            rows = rng.integers(len(labels), size=n)
            held = (labels[rows],) if path == "both" else ()
            share, exit_dim = truth.of(Cascade.certify(probabilities[:, rows], *held, **options))
            broken += share > 0.02
            exit_dims.append(exit_dim)
        assert broken <= allowed
        assert np.mean(exit_dims) < 1600  # it does save something

    @pytest.mark.parametrize("path", ["shared", "fitted"])
    def test_the_certificate_counts_disagreements(self, library: Library, path: str) -> None:
        probabilities, labels = population(3000, 6)
        tested = np.arange(3000) if path == "shared" else np.random.default_rng(1).permutation(3000)[1500:]
        options: dict[str, Any] = {"nesting": DIMS, "max_disagreement": 0.03, "path": path, "seed": 1}
        cascade = Cascade.certify(library.array(probabilities), **options)
        certificate = cascade.certificate
        assert certificate is not None
        assert (certificate.max_gap, certificate.max_error, certificate.max_disagreement) == (None, None, 0.03)
        assert certificate.chosen is not None
        count = self.contradicted(probabilities[:, tested], cascade.thresholds)
        assert count > 10
        expected = float(oracles.promises_tail(count, len(tested), Fraction(3, 100)))
        assert certificate.p_values[certificate.chosen] == pytest.approx(expected, rel=1e-6)
        assert str(certificate).startswith("P(disagrees with the full width) <= 0.03 with probability >= 0.9 over")
        assert Cascade.from_json(cascade.to_json()) == cascade
        assert Cascade.certify(library.array(probabilities), library.array(labels), **options) == cascade
        assert cascade.evaluate(probabilities, labels).gap <= 0.03

    def test_labels_that_some_rows_lack_change_nothing(self) -> None:
        """Not even which rows test: that those with a label are drawn blindly is no matter here."""
        probabilities, labels = population(6000, 6)
        labels[3000:] = -1
        options: dict[str, Any] = {"nesting": DIMS, "max_disagreement": 0.02}
        assert Cascade.certify(probabilities, labels, **options) == Cascade.certify(probabilities, **options)

    def test_ties_go_to_the_lower_class(self, library: Library) -> None:
        short, full = np.tile([0.5, 0.5, 0.0], (300, 1)), np.tile([0.25, 0.5, 0.25], (300, 1))
        tied = np.tile([0.4, 0.2, 0.4], (300, 1))
        agreeing, contradicting = (library.array(np.stack([short, last])) for last in (tied, full))
        options: dict[str, Any] = {"nesting": (8, 16), "max_disagreement": 0.01, "confidence": "max_probability"}
        assert Cascade.certify(agreeing, **options).thresholds < (0.5,)
        assert Cascade.certify(contradicting, **options).thresholds >= (0.5,)

    def test_all_agree_or_none_does_or_there_is_one_width(self) -> None:
        full = np.where(np.arange(230)[:, None] % 2 == np.arange(2), 0.9, 0.1)
        options: dict[str, Any] = {"nesting": (8, 16), "max_disagreement": 0.01}
        assert Cascade.certify([full, full], **options).thresholds == (0.0,)
        few = Cascade.certify([full[1:], full[1:]], **options)
        assert few.thresholds == (1.0,)
        assert str(few.certificate).endswith("certified (at least 230 tested rows are needed)")
        none = Cascade.certify([full[:, ::-1], full], **options)
        assert none.predict([full[:, ::-1], full])[1].tolist() == [16] * 230
        fitted = Cascade.certify([full[:, ::-1], full], path="fitted", **options)
        assert fitted.predict([full[:, ::-1], full])[1].tolist() == [16] * 230
        alone = Cascade.certify(full[None], nesting=(16,), max_disagreement=0.01)
        assert alone.certificate is not None
        assert (alone.thresholds, alone.certificate.p_values) == ((), ())

    def test_beside_labels_the_smallest_bound_binds(self) -> None:
        probabilities, labels = population(4000, 7)
        gap = Cascade.certify(probabilities, labels, nesting=DIMS, max_gap=0.01)
        agreed = Cascade.certify(probabilities, nesting=DIMS, max_disagreement=0.02)
        loose = Cascade.certify(probabilities, labels, nesting=DIMS, max_gap=0.01, max_disagreement=0.5)
        tight = Cascade.certify(probabilities, labels, nesting=DIMS, max_gap=0.02, max_disagreement=0.02)
        error = Cascade.certify(probabilities, labels, nesting=DIMS, max_error=0.9, max_disagreement=0.02)
        assert loose.thresholds == gap.thresholds
        assert tight.thresholds == error.thresholds == agreed.thresholds
        assert "right) <= 0.02 and P(disagrees with the full width) <= 0.02 with" in str(tight.certificate)

    def test_temperatures_are_fitted_to_the_answers_of_the_full_width(self) -> None:
        probabilities, _ = population(3000, 10)
        full = probabilities[-1].argmax(-1)
        options: dict[str, Any] = {"nesting": DIMS, "temperature": True, "max_disagreement": 0.02}
        cascade = Cascade.certify(probabilities, **options)
        assert cascade == Cascade.certify(probabilities, full, **options)
        assert cascade.temperatures is not None
        assert cascade.temperatures[-1] == pytest.approx(0.01, rel=1e-3)

    @pytest.mark.parametrize(
        ("bounds", "got"),
        [
            ({}, "no bound"),
            ({"max_gap": 0.01}, "max_gap"),
            ({"max_error": 0.3}, "max_error"),
            ({"max_gap": 0.01, "max_disagreement": 0.01}, "max_gap and max_disagreement"),
        ],
    )
    def test_other_bounds_need_labels(self, bounds: dict[str, float], got: str) -> None:
        probabilities, _ = population(500, 11)
        message = f"`labels` must be given for any bound but `max_disagreement`, got None with {got}; pass labels"
        with pytest.raises(ValueError, match=message):
            Cascade.certify(probabilities, **{"nesting": DIMS, **bounds})  # type: ignore[arg-type]

    def test_rows_that_are_no_probabilities_are_refused(self) -> None:
        probabilities, labels = population(500, 11)
        options: dict[str, Any] = {"nesting": DIMS, "max_disagreement": 0.01}
        with pytest.raises(
            ValueError, match=r"`probabilities\[0\]` .* must hold probabilities, .* pass from_logits=True"
        ):
            Cascade.certify(probabilities * 2, **options)
        with pytest.raises(ValueError, match="`probabilities` must"):
            Cascade.certify(probabilities[:, :0], **options)
        with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments"):
            Cascade.certify(probabilities, labels, 0.01, **options)  # type: ignore[misc]
        with pytest.warns(UserWarning, match="Calibrating on 15 rows for 20 classes") as caught:
            Cascade.certify(probabilities[:, :15], **options)
        assert caught[0].filename == __file__

    def test_certificates_from_before_there_was_this_promise_load(self) -> None:
        probabilities, labels = population(500, 11)
        cascade = Cascade.certify(probabilities, labels, nesting=DIMS)
        record = json.loads(cascade.to_json())
        assert record["certificate"].pop("max_disagreement") is None
        assert Cascade.from_json(json.dumps(record)) == cascade
        record = json.loads(Cascade.certify(probabilities, nesting=DIMS, max_disagreement=0.1).to_json())
        del record["certificate"]["max_disagreement"]
        with pytest.raises(ValueError, match=r"`certificate.max_disagreement` must be given, got None for all"):
            Cascade.from_json(json.dumps(record))


class TestWithFewLabels:
    """A label of -1 stands for none: such a row fails wherever the cascade contradicts the full width."""

    def test_wider_prefixes_are_asked_for_less(self) -> None:
        for dims in (DIMS, (100, 110, 900), (3, 4)):
            path = _paths.tapered(dims)
            assert path[0][-1] == pytest.approx(1 - 1e-6, abs=1e-9)
            assert path[-1] == (0.0,) * (len(dims) - 1)
            for policy in path[:-1]:
                leads = [math.inf if t == 1 else math.log((1 + t) / (1 - t)) for t in policy]
                for lead, dim in zip(leads, dims, strict=False):
                    if lead < 30:  # beyond, the threshold is rounded to 1
                        assert lead * dim**0.75 == pytest.approx(leads[-1] * dims[-2] ** 0.75, rel=1e-3)

    def test_500_labels_go_far_and_further_with_rows_that_have_none(self) -> None:
        """A third of what one threshold leaves (1,280), and less than that beside 5,000 rows without a label."""
        probabilities, labels = population(20_000, 1)
        truth, rng = Truth(probabilities, labels), np.random.default_rng(8)
        few, helped, broken = [], [], 0
        for draw in range(60):
            rows = rng.integers(len(labels), size=5500)
            known = np.where(np.arange(5500) < 500, labels[rows], -1)
            few.append(truth.of(Cascade.certify(probabilities[:, rows[:500]], known[:500], nesting=DIMS)))
            broken += few[-1][0] > 0.01
            if draw % 3 == 0:
                helped.append(truth.of(Cascade.certify(probabilities[:, rows], known, nesting=DIMS)))
                broken += helped[-1][0] > 0.01
        assert broken <= 16  # 8 + 3 sd
        assert np.mean(few, axis=0)[1] < 400
        assert np.mean(helped, axis=0)[1] < 260

    @pytest.mark.parametrize("path", ["shared", "tapered", "fitted"])
    def test_the_certificate_counts_contradictions_of_rows_without_a_label(self, library: Library, path: str) -> None:
        probabilities, labels = population(3000, 6)
        known = np.where(np.arange(3000) % 3 == 0, labels, -1)
        options: dict[str, Any] = {"nesting": DIMS, "max_gap": 0.03, "path": path, "seed": 1}
        cascade = Cascade.certify(library.array(probabilities), library.array(known), **options)
        certificate = cascade.certificate
        assert certificate is not None
        n_rows, n_unlabelled = (1500, 500) if path == "fitted" else (3000, 2000)
        assert (certificate.n_rows, certificate.n_unlabelled) == (n_rows, n_unlabelled)
        assert "500 unlabelled, 1500 others" in str(certificate) or f"{n_rows} rows (2000 unlabelled)" in str(
            certificate
        )
        answers, _ = cascade.predict(probabilities)
        full = probabilities[-1].argmax(-1)
        failed = (answers != full) & ((known == -1) | (known == full))
        if path == "fitted":
            unknown = np.random.default_rng(1).permutation(3000)
            unknown = unknown[known[unknown] == -1][1500:]  # the first 1,500 fit
            failed[np.setdiff1d(np.flatnonzero(known == -1), unknown)] = False
        assert failed.sum() > 10
        assert certificate.chosen is not None
        expected = float(oracles.promises_tail(int(failed.sum()), n_rows, Fraction(3, 100)))
        assert certificate.p_values[certificate.chosen] == pytest.approx(expected, rel=1e-6)
        assert Cascade.from_json(cascade.to_json()) == cascade
        record = json.loads(cascade.to_json())
        del record["certificate"]["n_unlabelled"]  # as in files from before there were such rows
        assert Cascade.from_json(json.dumps(record)).certificate.n_unlabelled == 0  # type: ignore[union-attr]

    def test_labels_shape_no_path(self) -> None:
        """The fitted path of a gap follows disagreements: other labels on the rows that fit change nothing."""
        probabilities, labels = population(3000, 10)
        fit = np.random.default_rng(0).permutation(3000)[:1500]
        changed = labels.copy()
        changed[fit] = (changed[fit] + 1) % 20
        assert Cascade.certify(probabilities, changed, nesting=DIMS) == Cascade.certify(
            probabilities, labels, nesting=DIMS
        )

    def test_where_labels_are_many_rows_without_one_only_fit(self) -> None:
        probabilities, labels = population(8000, 14)
        known = np.where(np.arange(8000) < 2300, labels, -1)
        certificate = Cascade.certify(probabilities, known, nesting=DIMS).certificate
        assert certificate is not None
        assert (certificate.n_rows, certificate.n_fit_rows, certificate.n_unlabelled) == (2300, 5700, 0)

    def test_disagreement_needs_none_of_them(self) -> None:
        probabilities, labels = population(1000, 6)
        known = np.where(np.arange(1000) < 5, labels, -1)
        options: dict[str, Any] = {"nesting": DIMS, "max_disagreement": 0.03}
        assert Cascade.certify(probabilities, known, **options) == Cascade.certify(probabilities, **options)

    def test_labels_that_are_missing_or_wrong_are_refused(self, library: Library) -> None:
        probabilities, labels = population(500, 11)
        given_as = library.array(probabilities)
        known = np.where(np.arange(500) < 5, labels, -1)
        with pytest.raises(ValueError, match="`labels` must be known for some row, got -1 for all 500; leave them out"):
            Cascade.certify(given_as, library.array(np.full(500, -1)), nesting=DIMS)
        with pytest.raises(ValueError, match=r"`labels` must .* for every row with `max_error`, got -1 for 495 of 500"):
            Cascade.certify(given_as, library.array(known), nesting=DIMS, max_error=0.5)
        with pytest.raises(ValueError, match=r"`labels` must lie within \[0, 20\), .* -1 stands for a row without"):
            Cascade.certify(given_as, library.array(known - (known == -1)), nesting=DIMS)
        cascade = Cascade.certify(given_as, library.array(known), nesting=DIMS)
        with pytest.raises(ValueError, match=r"`labels` must lie within \[0, 20\)"):
            cascade.evaluate(given_as, library.array(known))

    def test_only_a_gap_takes_rows_without_a_label(self) -> None:
        probabilities, _ = population(500, 11)
        record = json.loads(Cascade.certify(probabilities, nesting=DIMS, max_disagreement=0.1).to_json())
        record["certificate"]["n_unlabelled"] = 3
        with pytest.raises(ValueError, match="`certificate.n_unlabelled` must be an integer"):
            Cascade.from_json(json.dumps(record))


def assert_the_same_but_for_the_others(cascade: Cascade, alone: Cascade, *, joint_delta: float) -> None:
    """Check that a group's cascade is the one that its rows would get alone, whose certificate knows of no others."""
    record, expected = (json.loads(each.to_json()) for each in (cascade, alone))
    assert record["certificate"].pop("joint_delta") == joint_delta
    assert record == expected
    assert "joint_delta" not in expected["certificate"]


class TestGroups:
    """A promise to each of several groups at once."""

    @staticmethod
    def grouped() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three unequal groups, the hard rows mostly in group 7."""
        probabilities, labels = population(20_000, 1)
        ease = probabilities[-1].max(-1) + np.random.default_rng(0).normal(scale=0.3, size=len(labels))
        return probabilities, labels, np.array([7, -2, 40])[np.searchsorted(np.quantile(ease, [0.2, 0.6]), ease)]

    def test_all_hold_at_once(self) -> None:
        """100 draws: some group's promise may be broken in a tenth of them + 3 sd = 19."""
        probabilities, labels, groups = self.grouped()
        rng, broken, exits = np.random.default_rng(9), 0, []
        truths = {group: Truth(probabilities[:, groups == group], labels[groups == group]) for group in (7, -2, 40)}
        for _ in range(100):
            rows = rng.integers(len(labels), size=1500)
            cascades = Cascade.certify(
                probabilities[:, rows], labels[rows], nesting=DIMS, max_gap=0.03, groups=groups[rows]
            )
            assert list(cascades) == [-2, 7, 40]
            found = {group: truths[group].of(cascade) for group, cascade in cascades.items()}
            broken += any(gap > 0.03 for gap, _ in found.values())
            exits.append([found[7][1], found[40][1]])
        assert 0 < broken <= 19
        assert np.mean(exits, axis=0)[1] < np.mean(exits, axis=0)[0] / 2  # the easy group pays for no other

    def test_each_is_certified_on_its_own_rows_at_its_share_of_delta(self, library: Library) -> None:
        probabilities, labels = population(3000, 6)
        groups = np.where(np.arange(3000) < 200, 5, np.where(np.arange(3000) % 3 == 0, 0, 9))
        options: dict[str, Any] = {"nesting": DIMS, "max_gap": 0.01}
        cascades = Cascade.certify(
            library.array(probabilities), library.array(labels), groups=library.array(groups), delta=0.2, **options
        )
        assert [type(group) for group in cascades] == [int] * 3
        # 200 rows cannot pass at 0.1 or at 0.2 / 3, so two groups share 0.2.
        for group, cascade in cascades.items():
            rows = groups == group
            alone = Cascade.certify(probabilities[:, rows], labels[rows], delta=0.1, **options)
            assert_the_same_but_for_the_others(cascade, alone, joint_delta=0.2)
        assert [group for group, cascade in cascades.items() if cascade.certificate.chosen is None] == [5]  # type: ignore[union-attr]
        assert cascades[5].thresholds == (1.0,) * 8
        assert str(cascades[5].certificate).endswith("(at least 230 tested rows are needed)")

    def test_one_group_is_no_group_and_none_can_pass_either(self) -> None:
        probabilities, labels = population(600, 6)
        options: dict[str, Any] = {"nesting": DIMS, "max_gap": 0.03}
        alone = Cascade.certify(probabilities, labels, groups=np.full(600, 3), **options)
        assert alone == {3: Cascade.certify(probabilities, labels, **options)}
        tiny = Cascade.certify(probabilities, labels, groups=np.arange(600), **options)
        assert len(tiny) == 600
        assert all(cascade.thresholds == (1.0,) * 8 for cascade in tiny.values())

    def test_a_certificate_tells_the_joint_promise(self) -> None:
        probabilities, labels = population(1500, 6)
        options: dict[str, Any] = {"nesting": DIMS, "max_gap": 0.03, "delta": 0.2}
        cascade = Cascade.certify(probabilities, labels, groups=np.arange(1500) % 2, **options)[1]
        assert str(cascade.certificate).startswith(
            "P(wrong, full width right) <= 0.03 in all groups at once with probability >= 0.8, in this one with "
            "probability >= 0.9 over 750 rows: p = "
        )
        assert Cascade.from_json(cascade.to_json()) == cascade
        record = json.loads(cascade.to_json())
        for joint, message in (
            (0.05, r"must be at least its share `delta`, 0\.1, got 0\.05"),
            (1.5, r"must be finite and in \(0, 1\)"),
        ):
            record["certificate"]["joint_delta"] = joint
            with pytest.raises(ValueError, match=rf"`certificate\.joint_delta` {message}"):
                Cascade.from_json(json.dumps(record))

    @pytest.mark.parametrize(
        ("sizes", "options", "parts"),
        [
            ([500, 500, 500], {}, 3),
            ([340, 340, 340], {}, 3),  # 339 are needed at 0.1 / 3
            ([300, 300, 300], {}, 3),  # enough for two shares only, which would be one too few
            ([300, 300, 200], {}, 2),
            ([230, 1, 1], {}, 1),
            ([460, 300], {"path": "fitted"}, 1),
            ([10, 10], {}, 1),
        ],
    )
    def test_groups_that_cannot_pass_take_no_share(self, sizes: list[int], options: dict[str, Any], parts: int) -> None:
        promise = _certify.Promise(0.01, None, None, 0.1)
        search = _certify.Search(DIMS, [1.0], options.get("path", "auto"), False, 0)
        share = promise.shared_by(sizes, search)
        assert share == promise._replace(delta=0.1 / parts)
        fits = options.get("path") == "fitted"
        assert sum((n - n // 2 if fits else n) >= share.rows_needed for n in sizes) <= parts

    def test_without_labels_too(self) -> None:
        probabilities, _ = population(2000, 6)
        groups = np.arange(2000) % 2
        cascades = Cascade.certify(probabilities, nesting=DIMS, max_disagreement=0.03, groups=groups)
        alone = Cascade.certify(probabilities[:, 1::2], nesting=DIMS, max_disagreement=0.03, delta=0.05)
        assert_the_same_but_for_the_others(cascades[1], alone, joint_delta=0.1)

    def test_bad_groups_are_refused(self, library: Library) -> None:
        probabilities, labels = population(500, 11)
        given_as = library.array(probabilities), library.array(labels)
        for groups, error, message in (
            (np.zeros(499, int), ValueError, r"`groups` must have shape \(rows,\) = \(500,\)"),
            (np.zeros((500, 1), int), ValueError, r"`groups` must have shape \(rows,\) = \(500,\)"),
            (np.zeros(500), TypeError, "`groups` must hold integer group ids, got dtype"),
            (np.zeros(500, bool), TypeError, "`groups` must hold integer group ids, got dtype"),
        ):
            with pytest.raises(error, match=message):
                Cascade.certify(*given_as, nesting=DIMS, groups=library.array(groups))
        with pytest.raises(TypeError, match="`groups`"):
            Cascade.certify(*given_as, nesting=DIMS, groups=["a"] * 500)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="for the full width at least in group 2, got 0.05 where"):
            Cascade.certify(*given_as, nesting=DIMS, max_error=0.05, groups=library.array(np.full(500, 2)))


def frontier_options() -> list[dict[str, str]]:
    return [
        {"path": path, "cost": cost} for path in ("fitted", "shared") for cost in ("expected_dim", "cumulative_dim")
    ]


@pytest.mark.parametrize("options", frontier_options(), ids=lambda options: "-".join(options.values()))
def test_the_frontier_trades_cost_for_accuracy(options: dict[str, str]) -> None:
    probabilities, labels = population(2000, 12)
    points = Cascade.frontier(probabilities, labels, nesting=DIMS, **options)  # type: ignore[arg-type]
    costs = [getattr(evaluation, options["cost"]) for _, evaluation in points]
    accuracies = [evaluation.accuracy for _, evaluation in points]
    assert costs == sorted(set(costs))
    assert accuracies == sorted(set(accuracies))
    assert costs[0] == 8.0
    assert accuracies[-1] >= np.mean(probabilities[-1].argmax(-1) == labels)
    for cascade, evaluation in points[:: len(points) // 4]:
        assert cascade.evaluate(probabilities, labels) == evaluation
    for budget in (8.0, 20.0, 100.0, 1e6):
        best = Cascade.within_budget(probabilities, labels, nesting=DIMS, budget=budget, **options)  # type: ignore[arg-type]
        evaluation = best.evaluate(probabilities, labels)
        assert getattr(evaluation, options["cost"]) <= budget
        affordable = [a for c, a in zip(costs, accuracies, strict=True) if c <= budget]
        assert evaluation.accuracy == max(affordable)


def test_the_fitted_frontier_is_ahead_of_one_threshold() -> None:
    probabilities, labels = population(5000, 13)
    best = {
        path: Cascade.within_budget(probabilities, labels, nesting=DIMS, budget=60, path=path)
        .evaluate(probabilities, labels)
        .accuracy
        for path in ("fitted", "shared")
    }
    assert best["fitted"] > best["shared"]


def test_budgets_below_the_cheapest_are_refused() -> None:
    probabilities, labels = population(500, 12)
    for budget in (7.5, 0.0):
        with pytest.raises(
            ValueError, match=f"`budget` must be at least 8, the cheapest `expected_dim`, got {budget:g}"
        ):
            Cascade.within_budget(probabilities, labels, nesting=DIMS, budget=budget)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: Cascade.within_budget(probabilities, labels, nesting=DIMS, budget=-1), "`budget` must be finite"),
        (lambda: Cascade.frontier(probabilities, labels, nesting=DIMS, path="auto"), "`path` must be one of"),
        (lambda: Cascade.frontier(probabilities, labels, nesting=DIMS, cost="x"), "`cost` must be one of"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
