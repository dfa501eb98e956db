"""What promises rest on: exact and betting tests, and the walk from the safest plan to the cheapest that passes."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matryoshka import Cascade, Corpus, Funnel
from matryoshka._promises import betting, binomial
from matryoshka._promises.walk import walk


@pytest.mark.parametrize(
    ("p_values", "tested", "chosen"),
    [
        ([], (), None),
        ([0.3, 0.01], (0.3,), None),
        ([0.1], (0.1,), 0),  # at the level itself a plan passes
        ([0.01, 0.2], (0.01, 0.2), 0),
        ([0.01, 0.05, 0.2, 0.01], (0.01, 0.05, 0.2), 1),
        ([0.01, 0.0], (0.01, 0.0), 1),
    ],
)
def test_a_walk_ends_at_the_first_that_fails(
    p_values: list[float], tested: tuple[float, ...], chosen: int | None
) -> None:
    assert walk(p_values, lambda p: p, 0.1) == (tested, chosen)


@given(st.integers(1, 400), st.fractions(Fraction(1, 1000), Fraction(999, 1000), max_denominator=1000), st.data())
def test_the_binomial_tail_is_exact(n: int, rate: Fraction, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    expected = oracles.promises_tail(count, n, rate)
    assert binomial.lower_tail(count, n, float(rate)) == pytest.approx(float(expected), rel=1e-10, abs=1e-300)


def test_the_binomial_tail_holds_far_out() -> None:
    assert binomial.lower_tail(0, 100_000, 0.01) == pytest.approx(0.99**100_000, rel=1e-8)
    assert binomial.lower_tail(0, 10_000_000, 0.5) == 0.0
    assert binomial.lower_tail(7, 7, 0.3) == 1.0
    # Symmetry at one half: P(X <= n/2 - 1) + P(X <= n/2) = 1.
    total = binomial.lower_tail(499_999, 1_000_000, 0.5) + binomial.lower_tail(500_000, 1_000_000, 0.5)
    assert total == pytest.approx(1.0, rel=1e-7)


@pytest.mark.parametrize(("rate", "delta", "rows"), [(0.01, 0.1, 230), (0.5, 0.5, 1), (0.9, 0.9, 1), (0.02, 0.05, 149)])
def test_rows_needed(rate: float, delta: float, rows: int) -> None:
    assert binomial.rows_needed(rate, delta) == rows
    assert (1 - rate) ** rows <= delta < (1 - rate) ** (rows - 1)


def test_intervals_hold_the_share_and_stay_within_bounds() -> None:
    low, high = binomial.interval(40, 50)  # Wilson's interval of 0.8 at n = 50
    assert (low, high) == (pytest.approx(0.6696, abs=1e-4), pytest.approx(0.8876, abs=1e-4))
    assert binomial.interval(0, 10)[0] == 0.0
    assert binomial.interval(10, 10)[1] == 1.0


@given(st.integers(1, 10**6), st.data())
def test_an_interval_ends_where_the_normal_test_rejects(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    low, high = binomial.interval(count, n)
    assert 0 <= low <= count / n <= high <= 1
    for end in (low, high):  # each a rate of which this share is 1.96 standard deviations away
        if 0 < end < 1:
            away = 1.959963984540054 * math.sqrt(end * (1 - end) / n)
            assert abs(count / n - end) == pytest.approx(away, rel=1e-6)


NO_SHARES = (None, "0.1", True, -0.1, 0.0, 1.0, 2, math.nan, math.inf, [0.1], {})
NO_COUNTS = (None, "5", True, -1, 0, 2.0, math.nan, [5], {})
BROKEN = {
    "thresholds": ("all", [None], ["0.5"], [math.nan], [], {}),
    "max_gap": NO_SHARES[1:],
    "max_error": NO_SHARES[1:],
    "max_disagreement": NO_SHARES[1:],
    "delta": NO_SHARES,
    "path": (None, "auto", "", 3, []),
    "n_rows": NO_COUNTS,
    "n_fit_rows": (None, "5", True, -1, 2.0, 7, [0]),
    "p_values": (None, "", 0.1, [], [None], ["0.01"], [2.0], [-1.0], [math.nan], [0.5, 0.01]),
    "chosen": (None, True, "3", -1, 0, 3, 10**9, 1.0, [1]),
    "rows_needed": NO_COUNTS,
    "n_unlabelled": (None, "5", True, -1, 2.0, 601, [0]),
    "dims": (None, "8", [], [8.0, 32], [32, 8], [8, 32, 64]),
    "keep": (None, [], [0], ["50"], [50, 60]),
    "recall": NO_SHARES,
    "k": NO_COUNTS,
    "metric": (None, "dot", 1, []),
    "n_queries": NO_COUNTS,
    "n_choice_queries": NO_COUNTS,
    "recalls": (None, [], [None], [2.0], [math.nan], [0.9] * 50),
    "queries_needed": NO_COUNTS,
    "code": (None, 1, "", "bit", "BITS", ["bits"]),
    "cost": (None, "clock", "time", 1, []),
    "batch_size": (1, "5", True, -1, 2.0, [5], {}),
}
"""What no certificate holds, by field."""


def certified() -> list[Cascade | Funnel]:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    short, full = (np.where(labels[:, None] == np.arange(2), p, 1 - p) for p in (0.9, 0.99))
    short[:40] = short[:40, ::-1]
    rows, queries = (rng.normal(size=(n, 32)) * 0.8 ** np.arange(32) for n in (500, 400))
    return [
        Cascade.certify([short, full], labels, nesting=(8, 16), max_gap=0.1),
        Funnel.calibrate(Corpus(rows), queries, 5, recall=0.9, cost="multiply_adds"),
    ]


CERTIFIED = certified()
FIELDS = [(value, name) for value in CERTIFIED for name in json.loads(value.to_json())["certificate"]]


@pytest.mark.parametrize(("value", "name"), FIELDS, ids=lambda part: part if isinstance(part, str) else "")
def test_a_certificate_that_was_changed_is_refused(value: Cascade | Funnel, name: str) -> None:
    record = json.loads(value.to_json())
    assert type(value).from_json(json.dumps(record)) == value
    for broken in BROKEN[name]:
        changed = record | {"certificate": record["certificate"] | {name: broken}}
        with pytest.raises(ValueError, match=r"`certificate"):
            type(value).from_json(json.dumps(changed))


@pytest.mark.parametrize("value", CERTIFIED)
def test_a_certificate_travels_without_its_plan_too(value: Cascade | Funnel) -> None:
    certificate = value.certificate
    assert certificate is not None
    record = json.loads(json.dumps(certificate.to_record()))
    assert record.keys() == {field.name for field in dataclasses.fields(certificate)}
    assert type(certificate).from_record(record) == certificate


def test_a_certificate_without_a_code_is_of_a_funnel_that_searches_numbers() -> None:
    plan = CERTIFIED[1]
    assert isinstance(plan, Funnel)
    record = json.loads(plan.to_json())
    assert "code" not in record["certificate"]
    assert Funnel.from_json(json.dumps(record)).certificate == plan.certificate
    coded = dataclasses.replace(plan.certificate, code="bits")  # type: ignore[type-var]
    assert Funnel(plan.dims, plan.keep, code="bits", certificate=coded).certificate == coded
    again = Funnel.from_json(Funnel(plan.dims, plan.keep, code="bits", certificate=coded).to_json())
    assert (again.code, again.certificate) == ("bits", coded)
    with pytest.raises(ValueError, match="`certificate` must be about this funnel, .* with float, got .* with bits"):
        Funnel(plan.dims, plan.keep, certificate=coded)


@pytest.mark.parametrize("bad", [None, "0.9", 2.0, -0.1, math.nan])
def test_each_of_the_recalls_is_a_share(bad: object) -> None:
    record = json.loads(CERTIFIED[1].to_json())
    record["certificate"]["recalls"][-1] = bad
    with pytest.raises(ValueError, match=r"`certificate.recalls\["):
        Funnel.from_json(json.dumps(record))


def test_where_nothing_passed_the_plan_is_the_full_width() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(10) % 2
    probabilities = [np.full((10, 2), 0.5)] * 2
    cascade = Cascade.certify(probabilities, labels, nesting=(8, 16), max_gap=0.1)
    funnel = Funnel.calibrate(
        Corpus(rng.normal(size=(60, 32))), rng.normal(size=(10, 32)), 5, recall=0.9, cost="multiply_adds"
    )
    for plan, change in ((cascade, {"thresholds": [0.5]}), (funnel, {"dims": [8, 32], "keep": [20]})):
        record = json.loads(plan.to_json())
        assert record["certificate"]["chosen"] is None
        assert type(plan).from_json(json.dumps(record)) == plan
        changed = record | change | {"certificate": record["certificate"] | change}
        with pytest.raises(ValueError, match=rf"`certificate.{list(change)[-1]}` must be"):
            type(plan).from_json(json.dumps(changed))


def test_the_fewest_rows_are_those_of_a_power() -> None:
    for rate in (0.001, 0.02, 0.3, 0.5, 0.9, 0.999):
        for delta in (0.5, 0.1, 0.01):
            rows = binomial.rows_needed(rate, delta)
            assert rows == next(n for n in range(1, 10_000) if (1 - rate) ** n <= delta)


@pytest.mark.parametrize("delta", [1e-300, 1e-3, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("rate", [1e-12, 1e-17, 7e-25, 1e-300, 5e-324])
def test_rows_needed_for_bounds_that_no_number_of_rows_can_show(rate: float, delta: float) -> None:
    """Where rows are too many for a float to count one by one, to search for the first that is enough must end, too."""
    rows = binomial.rows_needed(rate, delta)
    exact = math.ceil(min(2.0**63, -math.log(delta) / rate))
    assert rows == pytest.approx(exact, rel=1e-6)
    assert rows < 2**63


def test_a_cascade_is_not_certified_for_a_bound_too_small_to_show() -> None:
    rows = np.tile([[0.9, 0.1], [0.1, 0.9]], (50, 1))
    cascade = Cascade.certify([rows, rows], nesting=(8, 16), max_disagreement=1e-30)
    assert cascade.certificate is not None
    assert cascade.certificate.chosen is None
    assert "at least 9223372036854775807 tested rows are needed" in str(cascade.certificate)
    assert Cascade.from_json(cascade.to_json()) == cascade


def test_what_was_certified_passed_something() -> None:
    for value in CERTIFIED:
        assert value.certificate is not None
        assert value.certificate.chosen is not None


class TestBetting:
    def naive(self, losses: list[float], bound: float, delta: float) -> float:
        """Play the game bet by bet."""
        capital = best = 1.0
        seen: list[float] = []
        spread, variance = 0.25, 0.25
        for loss in losses:
            stake = min(1.0, math.sqrt(2 * math.log(1 / delta) / (len(losses) * variance)))
            capital *= 1 - stake * (loss - bound)
            best = max(best, capital)
            seen.append(loss)
            mean = (0.5 + sum(seen)) / (1 + len(seen))
            spread += (loss - mean) ** 2
            variance = spread / (1 + len(seen))
        return min(1.0, 1 / best)

    @pytest.mark.parametrize("bound", [0.02, 0.3])
    def test_against_a_game_played_bet_by_bet(self, rng: np.random.Generator, bound: float) -> None:
        for mean in (0.0, 0.01, 0.2, 0.9):
            losses = (rng.random(80) < mean) * rng.random(80)
            expected = self.naive(losses.tolist(), bound, 0.1)
            assert betting.p_value(losses, bound, 0.1) == pytest.approx(expected, rel=1e-9)

    def test_false_claims_are_as_rare_as_promised(self, rng: np.random.Generator) -> None:
        """With a mean just above the bound, p <= 0.1 happens with probability at most 0.1."""
        claims = sum(
            betting.p_value((rng.random(300) < 0.14) * rng.choice([0.5, 1.0], 300), 0.1, 0.1) <= 0.1
            for _ in range(1000)
        )
        assert claims <= 100

    def test_no_loss_needs_the_stated_number_of_draws(self) -> None:
        for bound, delta in ((0.01, 0.1), (0.05, 0.05), (0.2, 0.01), (0.03, 0.5), (0.9, 0.9)):
            needed = betting.draws_needed(bound, delta)
            passing = [n for n in range(1, 2 * needed) if self.naive([0.0] * n, bound, delta) <= delta * (1 + 1e-9)]
            assert passing == list(range(needed, 2 * needed))

    def test_the_stated_number_for_small_bounds(self) -> None:
        for bound, delta in ((1e-5, 0.1), (1e-4, 1e-9)):
            needed = betting.draws_needed(bound, delta)
            assert betting.p_value(np.zeros(needed), bound, delta) <= delta
            assert betting.p_value(np.zeros(int(0.99 * needed)), bound, delta) > delta
        assert 1 <= betting.draws_needed(1e-16, 1e-300) / 6.9077e18 < 1.02

    def test_only_losses_prove_nothing(self) -> None:
        assert betting.p_value(np.ones(50), 0.1, 0.1) == 1.0
