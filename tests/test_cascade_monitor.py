"""Monitors: the betting test against a game played row by row, its false alarms and its delays, and saved states."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Library
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import Cascade, Nesting
from matryoshka._promises import sequential
from matryoshka.cascade import CascadeMonitor

ODDS = (1.125, 1.25, 1.5, 2, 3, 5, 9, 17, 33, 65)
PROMISES = ("max_gap", "max_error", "max_disagreement")


def certified(seed: int = 0, **bounds: float) -> Cascade:
    rng = np.random.default_rng(seed)
    labels = np.arange(800) % 2
    short, full = (np.where(labels[:, None] == np.arange(2), p, 1 - p) for p in (0.9, 0.99))
    short[rng.permutation(800)[:20]] = (0.3, 0.7)
    return Cascade.certify([short, full], labels, nesting=(8, 16), **bounds)


def a_monitor(bound: float = 0.01, delta: float = 0.05) -> CascadeMonitor:
    return CascadeMonitor(promise="max_error", bound=bound, delta=delta, cascade=7)


def naive_capital(failures: Sequence[bool], bound: float) -> list[float]:
    """Play row by row: every gambler's every share a number of its own, by the probabilities that he bets on.

    What is held after a row includes what still waits.
    """
    odds = bound / (1 - bound)
    bets = [r * odds / (1 + r * odds) for r in ODDS]

    def shares(k: int) -> list[list[float]]:
        return [[bet, (1 / math.log(math.e + k) - 1 / math.log(math.e + k + 1)) / len(bets)] for bet in bets]

    capital, seen, history = shares(0), 0, []
    for failed in failures:
        for share in capital:
            share[1] *= share[0] / bound if failed else (1 - share[0]) / (1 - bound)
        if failed:
            seen += 1
            capital += shares(seen)
        history.append(sum(money for _, money in capital) + 1 / math.log(math.e + seen + 1))
    return history


@pytest.mark.parametrize(("bound", "rate"), [(0.01, 0.06), (0.2, 0.3), (0.2, 0.1), (0.7, 0.9), (1e-6, 0.1)])
def test_the_p_value_is_that_of_a_game_played_row_by_row(bound: float, rate: float) -> None:
    failures = np.random.default_rng(3).random(160) < rate
    capital, monitor = naive_capital(failures.tolist(), bound), a_monitor(bound)
    for i, failed in enumerate(failures):
        monitor.update(np.array([failed]))
        assert monitor.p_value == pytest.approx(1 / max(1.0, *capital[: i + 1]), rel=1e-9)
    assert (monitor.n_rows, monitor.n_failures) == (160, failures.sum())


@pytest.mark.parametrize("sizes", [[0, 3000, 0], [1] * 3000, [7, 0, 1, 1, 991, 2000], [2999, 1]])
def test_rows_in_batches_of_any_size_leave_the_same_state(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    failures = np.random.default_rng(4).random(3000) < np.where(np.arange(3000) // 1000 == 1, 0.35, 0.15)
    whole = a_monitor(0.2)
    whole.update(failures)
    assert whole.alarm
    monkeypatch.setattr(sequential, "_FAILURES_AT_ONCE", 64)
    parts = a_monitor(0.2)
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        parts.update(failures[start : start + size])
    assert (parts.n_rows, parts.n_failures) == (whole.n_rows, whole.n_failures)
    assert [parts.p_value, *parts.stakes] == pytest.approx([whole.p_value, *whole.stakes], rel=1e-12)


def test_an_alarm_within_a_batch_is_seen_and_stays() -> None:
    monitor = a_monitor(0.1)
    monitor.update(np.array([True] * 12 + [False] * 5000))
    assert monitor.alarm
    p_value = monitor.p_value
    monitor.update(np.zeros(5000, bool))
    assert (monitor.alarm, monitor.p_value, monitor.n_rows) == (True, p_value, 10_012)


def test_before_any_failure_nothing_was_shown() -> None:
    monitor = a_monitor(0.9)
    monitor.update(np.zeros(0, bool))
    monitor.update(np.zeros(10_000, bool))
    assert (monitor.p_value, monitor.alarm, monitor.n_failures) == (1.0, False, 0)


def test_the_alarm_is_raised_at_delta_itself() -> None:
    failures = np.ones(6, bool)
    p_value = 1 / naive_capital([True] * 6, 0.3)[-1]
    for delta, alarm in ((p_value * 1.0001, True), (p_value * 0.9999, False)):
        monitor = a_monitor(0.3, delta)
        monitor.update(failures)
        assert monitor.alarm is alarm
    monitor = a_monitor(0.3, monitor.p_value)
    monitor.update(failures)
    assert monitor.alarm


@pytest.mark.parametrize("bound", [0.01, 0.3, 0.8])
def test_false_alarms_are_bounded_by_counting_every_course(bound: float) -> None:
    """Of all courses of 11 rows, each with its probability at the bound: those that ever reach 1/p weigh at most p."""
    reached = []
    for course in itertools.product((False, True), repeat=11):
        capital, _ = sequential.play(np.array(course), bound, n_rows=0, n_failures=0, stakes=sequential.opening())
        reached.append((math.exp(-capital), bound ** sum(course) * (1 - bound) ** (11 - sum(course))))
    assert math.fsum(weight for _, weight in reached) == pytest.approx(1.0)
    for p in {p for p, _ in reached if p < 1}:
        assert math.fsum(weight for q, weight in reached if q <= p) <= p


def most_against(course: Sequence[bool], bound: float) -> float:
    """Return the most that any last rows say against the bound: log of their likelihood ratio at their own rate."""
    most, failures = 0.0, 0
    for n, failed in enumerate(reversed(course), start=1):
        failures += failed
        if failures > bound * n:
            rest = (n - failures) * math.log((n - failures) / (n - n * bound)) if failures < n else 0.0
            most = max(most, failures * math.log(failures / (n * bound)) + rest)
    return most


@settings(deadline=None, max_examples=100)
@given(st.lists(st.booleans(), max_size=40), st.sampled_from((0.01, 0.2, 0.5, 0.9)), st.floats(0.001, 0.5))
def test_there_is_no_alarm_before_a_stretch_of_rows_speaks_for_it(
    course: list[bool], bound: float, delta: float
) -> None:
    """However failures are placed: shares of gamblers, each staked once, win no more than the best from its start."""
    monitor, against = a_monitor(bound, delta), 0.0
    for i, failed in enumerate(course):
        monitor.update(np.array([failed]))
        against = max(against, most_against(course[: i + 1], bound))
        assert monitor.p_value >= math.exp(-against) * (1 - 1e-9)
        assert not monitor.alarm or against >= math.log(1 / delta) - 1e-9


def test_a_game_at_the_bound_is_fair() -> None:
    """What is expected to be held at last is the capital of the beginning."""
    for n in (1, 4, 9):
        courses = itertools.product((False, True), repeat=n)
        held = [naive_capital(c, 0.3)[-1] * 0.3 ** sum(c) * 0.7 ** (n - sum(c)) for c in courses]
        assert math.fsum(held) == pytest.approx(1.0)


def first_alarm(failures: np.ndarray, *, after: int = 0) -> float:
    """Return how many rows after `after` the alarm came, within 20 rows; infinity for never."""
    monitor = a_monitor()
    monitor.update(failures[:after])
    assert not monitor.alarm
    for start in range(after, len(failures), 20):
        monitor.update(failures[start : start + 20])
        if monitor.alarm:
            return start + 20 - after
    return math.inf


def test_two_points_above_the_bound_are_found_within_a_thousand_rows() -> None:
    rng = np.random.default_rng(1)
    assert np.median([first_alarm(rng.random(4000) < 0.03) for _ in range(200)]) <= 500


def test_drift_after_a_long_good_time_is_found() -> None:
    rng = np.random.default_rng(2)
    rows = [np.concatenate([rng.random(100_000) < 0.005, rng.random(6000) < 0.03]) for _ in range(20)]
    found = [first_alarm(row, after=100_000) for row in rows]
    assert np.median(found) <= 1500
    assert max(found) <= 4000


def test_at_the_bound_few_monitors_ever_alarm() -> None:
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(200):
        monitor = a_monitor()
        monitor.update(rng.random(100_000) < 0.01)
        alarms += monitor.alarm
    assert alarms <= 10


def test_nothing_but_failures_overflows_nothing() -> None:
    monitor = a_monitor(1e-12)
    monitor.update(np.ones(20_000, bool))
    assert monitor.p_value == 0.0
    assert all(map(math.isfinite, monitor.stakes))
    monitor.update(np.arange(2_000_000) % 2 == 0)
    assert CascadeMonitor.from_json(monitor.to_json()) == monitor


@pytest.mark.parametrize("promise", PROMISES)
def test_what_counts_as_a_failure(library: Library, promise: str) -> None:
    rng = np.random.default_rng(5)
    answers, full, labels = rng.integers(3, size=(3, 60))
    expected = []
    for answer, widest, label in zip(answers.tolist(), full.tolist(), labels.tolist(), strict=True):
        expected.append(
            {
                "max_gap": answer != label and widest == label,
                "max_error": answer != label,
                "max_disagreement": answer != widest,
            }[promise]
        )
    monitor = CascadeMonitor(promise=promise, bound=0.2, delta=0.05, cascade=7)
    failures = monitor.failures(*map(library.array, (answers, full, labels)))
    assert library.to_numpy(failures).tolist() == expected
    monitor.update(failures)
    assert (monitor.n_rows, monitor.n_failures) == (60, sum(expected))


def test_only_what_a_promise_needs_has_to_be_given() -> None:
    answers, full, labels = np.array([0, 1, 2]), np.array([0, 2, 1]), np.array([0, 2, 2])
    needed = {"max_gap": (full, labels), "max_error": (None, labels), "max_disagreement": (full, None)}
    for promise, (their_full, their_labels) in needed.items():
        monitor = CascadeMonitor(promise=promise, bound=0.2, delta=0.05, cascade=7)
        everything = monitor.failures(answers, full, labels)
        np.testing.assert_array_equal(monitor.failures(answers, their_full, their_labels), everything)
        for name, left in (("full_answers", (None, labels)), ("labels", (full, None))):
            given = their_full if name == "full_answers" else their_labels
            if given is not None:
                with pytest.raises(ValueError, match=f"`{name}` must be given to watch `{promise}`, got None"):
                    monitor.failures(answers, *left)
    with pytest.raises(ValueError, match="`labels` must have one class id per row"):
        monitor.failures(answers, full, labels[:2])
    with pytest.raises(ValueError, match=r"`answers` must have shape \(rows,\), got \(1, "):
        monitor.failures(answers[None], full[None], labels[None])
    with pytest.raises(TypeError, match="`full_answers` must hold integer class ids, got dtype float64"):
        monitor.failures(answers, full / 1.0)


@pytest.mark.parametrize("promise", PROMISES)
def test_rows_without_a_label_are_refused_where_labels_count(library: Library, promise: str) -> None:
    answers, full, labels = map(library.array, np.array([[0, 1, 2, 1], [0, 2, 2, 1], [0, -1, 2, -1]]))
    monitor = CascadeMonitor(promise=promise, bound=0.2, delta=0.05, cascade=7)
    if promise == "max_disagreement":
        assert library.to_numpy(monitor.failures(answers, full, labels)).tolist() == [False, True, False, False]
        return
    with pytest.raises(ValueError, match="`labels` must be known for every row, got 2 of 4 below 0; leave these rows"):
        monitor.failures(answers, full, labels)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.array([0, 1]), TypeError, "`failures` must hold booleans, got dtype int64"),
        (np.array([0.0, math.nan]), TypeError, "`failures` must hold booleans, got dtype float64"),
        (np.array([True, None]), TypeError, "`failures`"),
        (np.array([[True, False]]), ValueError, r"`failures` must have shape \(rows,\), got \(1, 2\)"),
        (np.array(True), ValueError, r"`failures` must have shape \(rows,\), got \(\)"),
        ([True, False], TypeError, "`failures`"),
        (True, TypeError, "`failures`"),
        (None, TypeError, "`failures`"),
    ],
)
def test_failures_that_are_none_are_refused_and_change_nothing(bad: Any, error: type, message: str) -> None:
    monitor = a_monitor()
    monitor.update(np.array([True, False, True]))
    before = monitor.to_json()
    with pytest.raises(error, match=message):
        monitor.update(bad)
    assert monitor.to_json() == before


def test_a_state_saved_between_processes_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    cascade = certified(max_gap=0.05)
    failures = np.random.default_rng(6).random(1200) < 0.09
    straight, broken_off = cascade.monitor(), cascade.monitor()
    straight.update(failures)
    path = tmp_path / "monitor.json"
    for start in range(0, 1200, 300):
        broken_off.update(failures[start : start + 300])
        broken_off.save(path)
        restored = CascadeMonitor.load(path, cascade=Cascade.from_json(cascade.to_json()))
        assert (restored, restored.alarm) == (broken_off, broken_off.alarm)
        broken_off = CascadeMonitor.from_json(restored.to_json(), cascade=cascade)
    assert broken_off == straight
    assert len(straight.to_json()) < 600


def test_a_state_of_another_cascade_or_promise_is_refused(tmp_path: Path) -> None:
    cascade = certified(max_gap=0.05)
    monitor = cascade.monitor()
    monitor.save(tmp_path / "monitor.json")
    others = (
        certified(max_gap=0.06),
        certified(max_disagreement=0.05),
        certified(max_gap=0.05, delta=0.2),
        Cascade(cascade.dims, cascade.thresholds),
        Nesting((8, 16)),
    )
    for other in others:
        with pytest.raises(ValueError, match="`cascade` must be the one that the monitor was made for"):
            CascadeMonitor.from_json(monitor.to_json(), cascade=other)
        with pytest.raises(ValueError, match="`cascade` must be the one that the monitor was made for"):
            CascadeMonitor.load(tmp_path / "monitor.json", cascade=other)
    with pytest.raises(TypeError, match="`cascade` must be a Cascade, got str"):
        CascadeMonitor.from_json(monitor.to_json(), cascade="cascade.json")  # type: ignore[arg-type]


def test_monitors_go_on_though_cascades_have_gained_fields_since() -> None:
    """What was written in 2026: a field that is added later belongs into `_before` of Cascade, or this fails."""
    cascade = Cascade.from_json(
        '{"kind": "cascade", "version": 1, "dims": [8, 16, 32], "thresholds": [0.6, 0.25], "confidence": "margin", '
        '"temperatures": null, "certificate": {"thresholds": [0.6, 0.25], "max_gap": 0.02, "max_error": null, '
        '"delta": 0.1, "path": "tapered", "n_rows": 900, "n_fit_rows": 0, "p_values": [0.01, 0.03, 0.2], "chosen": 1, '
        '"rows_needed": 114, "max_disagreement": 0.05, "n_unlabelled": 40}}'
    )
    stakes = ", ".join(["-3.735815348885527"] * 10)
    monitor = CascadeMonitor.from_json(
        '{"kind": "cascade monitor", "version": 1, "promise": "max_gap", "bound": 0.02, "delta": 0.05, '
        f'"cascade": 4068152087, "n_rows": 0, "n_failures": 0, "p_value": 1.0, "stakes": [{stakes}]}}',
        cascade=cascade,
    )
    assert monitor == cascade.monitor(promise="max_gap")


NO_COUNTS = (None, "5", True, -1, 2.5, 2**53 + 1, [5])
NO_SHARES = (None, "0.1", True, -0.1, 0.0, 1.0, 2, math.nan, [0.1])
BROKEN = {
    "promise": (None, "gap", 1, ["max_gap"]),
    "bound": NO_SHARES,
    "delta": NO_SHARES,
    "cascade": (None, "7", -1, 2.5),
    "n_rows": NO_COUNTS,
    "n_failures": (*NO_COUNTS, 401),
    "p_value": (None, "0.1", -0.1, 1.1, math.nan, []),
    "stakes": ("", 1.0, [], [0.0] * 9, [0.0] * 11, [None] * 10, ["0"] * 10, [math.nan] * 10, [math.inf] * 10, {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_state_that_was_changed_is_refused(name: str) -> None:
    monitor = certified(max_gap=0.05).monitor()
    monitor.update(np.arange(400) % 40 == 0)
    record = json.loads(monitor.to_json())
    assert set(record) == {"kind", "version", *BROKEN}
    for bad in BROKEN[name]:
        with pytest.raises(ValueError, match=f"`text` must be the JSON of a cascade monitor: `{name}"):
            CascadeMonitor.from_json(json.dumps(record | {name: bad}))
    del record[name]
    with pytest.raises(ValueError, match=f"without {name}"):
        CascadeMonitor.from_json(json.dumps(record))


def test_a_monitor_holds_the_promise_of_the_certificate() -> None:
    for promise, bound in zip(PROMISES, (0.05, 0.06, 0.07), strict=True):
        monitor = certified(**{promise: bound}).monitor(delta=0.2)
        assert (monitor.promise, monitor.bound, monitor.delta) == (promise, bound, 0.2)
    several = certified(max_gap=0.05, max_disagreement=0.07)
    with pytest.raises(ValueError, match="`promise` must be named .*, got None with max_gap, max_disagreement"):
        several.monitor()
    assert several.monitor(promise="max_gap").bound == 0.05
    assert several.monitor(promise="max_disagreement").bound == 0.07
    with pytest.raises(ValueError, match="`promise` must be one of 'max_gap', 'max_disagreement', got 'max_error'"):
        several.monitor(promise="max_error")
    with pytest.raises(ValueError, match="`certificate` must be there .* `Cascade.certify`"):
        Cascade((8, 16), (0.5,)).monitor()
    with pytest.raises(ValueError, match="`delta` must be finite"):
        several.monitor(promise="max_gap", delta=1.0)


def test_counts_and_checksums_of_every_size() -> None:
    monitor = CascadeMonitor(promise="max_error", bound=0.2, delta=0.05, cascade=0, n_rows=2**53, n_failures=2**53)
    assert CascadeMonitor.from_json(monitor.to_json()) == monitor
    with pytest.raises(ValueError, match=rf"`n_rows` must be an integer in \[0, {2**53}\], got {2**53 + 1}"):
        CascadeMonitor(promise="max_error", bound=0.2, delta=0.05, cascade=0, n_rows=2**53 + 1)


def test_a_monitor_says_how_it_stands() -> None:
    monitor = certified(max_gap=0.05).monitor()
    monitor.update(np.arange(400) % 40 == 0)
    assert str(monitor) == "P(wrong, full width right) <= 0.05 stands: 10 of 400 rows failed, p = 0.473"
    monitor.update(np.ones(50, bool))
    assert repr(monitor).startswith("<CascadeMonitor: P(wrong, full width right) <= 0.05 has been broken: 60 of 450 ")
    shown = f"smallest p = {monitor.p_value:.3g}"
    monitor.update(np.zeros(9550, bool))  # the rate falls to 0.6 %, far below the bound; the alarm stays
    assert str(monitor) == (
        f"P(wrong, full width right) <= 0.05 has been broken: 60 of 10000 rows failed in all, {shown}; the alarm, once "
        "raised, stays until a new cascade is certified"
    )
    assert str(CascadeMonitor.from_json(monitor.to_json())) == str(monitor)
