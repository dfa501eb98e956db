"""audit: the verdict on embeddings of known structure, the figures against loops, the rule, the report, bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from commands import unwrapped
from conftest import Library, load

from matryoshka import Funnel, Nesting, Rotation, audit, costs
from matryoshka.audit import Audit, AuditRow, _neighbours, _rotation, _rule, _sample


def nested(rng: np.random.Generator, n: int = 200, dim: int = 48, decay: float = 0.93) -> np.ndarray:
    """Embeddings whose columns matter less and less."""
    return rng.normal(size=(n, dim)) * decay ** np.arange(dim)


def shuffle(rows: np.ndarray, seed: int) -> np.ndarray:
    return rows[:, np.random.default_rng(seed).permutation(rows.shape[1])]


def test_a_falling_spectrum_truncates(rng: np.random.Generator) -> None:
    report = audit(nested(rng))
    assert report.truncates
    assert report.smallest_dim == 12
    assert report.ladder == (12, 24, 48)
    assert report.verdict.startswith("Yes: truncates down to 12 of 48 columns")
    assert report.funnel is not None
    assert report.funnel.dims[-1] == 48


@pytest.mark.parametrize("seed", range(5))
def test_the_same_columns_shuffled_do_not(rng: np.random.Generator, seed: int) -> None:
    report = audit(shuffle(nested(rng), seed))
    assert not report.truncates
    assert (report.smallest_dim, report.ladder, report.funnel) == (None, (48,), None)
    assert report.verdict == "No: the leading columns are no better than random ones."


@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not(seed: int) -> None:
    assert not audit(np.random.default_rng(seed).normal(size=(200, 48))).truncates


def test_the_wrong_end_first_does_not(rng: np.random.Generator) -> None:
    report = audit(nested(rng)[:, ::-1])
    assert not report.truncates
    assert report.rows[-2].last > report.rows[-2].random > report.rows[-2].kept


def test_order_without_quality_does_not() -> None:
    rng = np.random.default_rng(3)
    report = audit(nested(rng, dim=64, decay=0.99), dims=(4, 8))
    assert any(row.beats_random for row in report.rows)
    assert report.verdict.startswith("No: the leading columns are better than random ones, but no prefix keeps half")


def test_a_trained_network_truncates_and_its_shuffled_columns_do_not() -> None:
    torch = load("torch")
    from matryoshka.torch import MRLHead

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(12, 20))
    labels = rng.integers(0, 12, size=400)
    inputs = torch.tensor(centers[labels] + 0.5 * rng.normal(size=(400, 20)), dtype=torch.float32)
    targets = torch.tensor(labels)
    network, head = torch.nn.Linear(20, 32), MRLHead((4, 8, 16, 32), 12)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        head(network(inputs), targets).backward()
        optimizer.step()
    embeddings = network(inputs).detach()
    report = audit(embeddings, labels=targets, dims=(4, 8, 16))
    assert report.truncates
    assert report.rows[0].nearest_class_mean_accuracy > 0.8
    columns = torch.tensor(np.random.default_rng(1).permutation(32))
    assert not audit(embeddings[:, columns], dims=(4, 8, 16)).truncates


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def kept_oracle(rows: np.ndarray, columns: np.ndarray, k: int, n_queries: int) -> float:
    """Neighbours by sorted float64 cosines, one query at a time."""
    total = 0
    for query in range(n_queries):
        lists = []
        for chosen in (np.arange(rows.shape[1]), columns):
            cosine = unit(rows[:, chosen]) @ unit(rows[query : query + 1, chosen])[0]
            lists.append(sorted((row for row in range(len(rows)) if row != query), key=lambda row: -cosine[row])[:k])
        total += len(set(lists[0]) & set(lists[1]))
    return total / (k * n_queries)


def test_figures_against_loops(rng: np.random.Generator) -> None:
    rows = nested(rng, n=60, dim=12) + 0.3
    report = audit(rows, dims=(3, 7), k=4)
    centred = unit(rows) - unit(rows).mean(axis=0)
    directions = np.linalg.svd(centred)[2].T
    for row in report.rows:
        assert row.kept == pytest.approx(kept_oracle(rows, np.arange(row.dim), 4, 60))
        assert row.last == pytest.approx(kept_oracle(rows, np.arange(12 - row.dim, 12), 4, 60))
        assert row.pca == pytest.approx(kept_oracle(unit(rows) @ directions, np.arange(row.dim), 4, 60))
        assert row.energy == pytest.approx(np.mean(np.sum(unit(rows)[:, : row.dim] ** 2, axis=1)))
        assert row.random_low <= row.random <= row.random_high
        assert row.kept_low <= row.kept <= row.kept_high
    assert [row.dim for row in report.rows] == [3, 7, 12]
    assert (report.rows[-1].kept, report.rows[-1].random, report.rows[-1].worth) == pytest.approx((1.0, 1.0, 1.0))


def test_principal_directions_keep_every_product(rng: np.random.Generator) -> None:
    for shape in ((30, 8), (8, 30)):
        rows = rng.normal(size=shape) + 1.0
        rotated = _neighbours.principal(rows)
        np.testing.assert_allclose(rotated @ rotated.T, rows @ rows.T, atol=1e-9)
        spread = rotated.var(axis=0)
        assert (np.diff(spread[: min(shape)]) < 1e-9).all()


def test_places_count_from_one_and_ties_share(rng: np.random.Generator) -> None:
    scores = np.array([[9.0, 5.0, 5.0, 5.0, 1.0]], dtype=np.float32)
    own = np.array([[9.0, 5.0]], dtype=np.float32)
    assert _neighbours._kept(scores, own, 2)[0] == pytest.approx((1 + 1 / 3) / 2)
    sample = draw(rng.normal(size=(30, 4)))
    exact = _neighbours.neighbours(sample, 3)
    places = _neighbours.survival(sample, (2, 4), exact).places
    assert sorted(places[-1, 0].tolist()) == [1, 2, 3]
    assert places.min() >= 1
    assert places.max() <= 29


def draw(embeddings: Any, labels: Any = None, **options: Any) -> _sample.Sample:
    settings = {"k": 3, "max_rows": 100, "max_queries": 50, "rng": np.random.default_rng(0), "xp": np} | options
    return _sample.draw(embeddings, labels, **settings)


def test_a_sample_keeps_labels_with_their_rows(rng: np.random.Generator) -> None:
    labels = np.arange(500)
    angle = labels / 500
    rows = np.stack((np.cos(angle), np.sin(angle)), axis=1) * rng.uniform(1, 2, size=(500, 1))
    sample = draw(rows, labels)
    assert sample.rows.shape == (100, 2)
    assert (sample.n_queries, sample.n_total, sample.n_duplicates) == (50, 500, 0)
    np.testing.assert_allclose(np.arctan2(sample.rows[:, 1], sample.rows[:, 0]) * 500, sample.labels, atol=1e-3)
    assert (np.diff(sample.labels) < 0).any()


def test_rows_of_one_direction_are_audited_once(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(40, 6)).astype(np.float32)
    doubled = np.concatenate((rows, rows[:25] / np.float32(3)))  # rounded: no longer quite the same direction
    sample = draw(doubled)
    assert (len(sample.rows), sample.n_duplicates) == (40, 25)
    report = audit(doubled)
    assert "25 rows were dropped" in unwrapped(report)


def test_large_inputs_are_sampled_and_say_so(rng: np.random.Generator) -> None:
    report = audit(nested(rng, n=400), max_rows=150, max_queries=70)
    assert (report.n_rows, report.n_audited, report.n_queries) == (400, 150, 70)
    assert "A sample: 150 of 400 rows." in unwrapped(report)
    assert "A sample" not in str(audit(nested(rng, n=150)))


def test_a_memory_map_is_read_by_rows(rng: np.random.Generator, tmp_path: Any) -> None:
    np.save(tmp_path / "rows.npy", nested(rng))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert audit(mapped, max_rows=120) == audit(np.array(mapped), max_rows=120)


def test_one_seed_gives_one_result(rng: np.random.Generator) -> None:
    rows = nested(rng)
    assert audit(rows, seed=4) == audit(rows, seed=4)
    assert audit(rows, seed=4).rows != audit(rows, seed=5).rows


def test_every_library_gives_the_same(library: Library, rng: np.random.Generator) -> None:
    rows = nested(rng, n=80, dim=16).astype(np.float32)
    labels = rng.integers(0, 3, size=80)
    expected = audit(rows, labels=labels, max_rows=60)
    assert audit(library.array(rows), labels=library.array(labels), max_rows=60) == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64])
def test_half_precision_and_integers_are_read_as_numbers(rng: np.random.Generator, dtype: type) -> None:
    rows = np.round(30 * nested(rng, n=80, dim=16)).astype(dtype)
    assert audit(rows) == audit(rows.astype(np.float64))


def test_tiny_and_huge_rows_count_alike(rng: np.random.Generator) -> None:
    rows = nested(rng, n=80, dim=16)
    scaled = rows * 10.0 ** rng.integers(-200, 200, size=(80, 1))
    assert audit(scaled).rows[0].kept == pytest.approx(audit(rows).rows[0].kept)


def test_zero_rows_are_no_obstacle(rng: np.random.Generator) -> None:
    rows = nested(rng, n=80, dim=16)
    rows[[3, 9]] = 0.0
    rows[20:40, :4] = 0.0
    report = audit(rows, dims=(2, 4, 8))
    assert report.n_duplicates == 1
    assert all(np.isfinite(row[:12]).all() for row in report.rows)


# The rule


def test_columns_without_order_pass_one_time_in_a_hundred() -> None:
    rng = np.random.default_rng(7)
    draws, passed = 4000, 0
    for _ in range(draws):
        common = rng.normal(size=(100, 1))
        passed += bool((_rule.order_test(common + rng.gamma(1.0, size=(100, 6))) <= 0.01).any())
    assert abs(passed / draws - 0.01) < 0.005


def test_order_test_by_hand() -> None:
    kept = np.zeros((5, 2))
    kept[0] = 4.0, 0.0  # leads at the first width, and is level with all but one at the second
    kept[1, 1] = 4.0
    assert _rule.order_test(kept).tolist() == [0.4, 1.0]  # the lead at width 1 equals that of order 1 at width 2
    kept[1, 1] = 0.0
    assert _rule.order_test(kept).tolist() == [0.2, 1.0]


def test_worth_counts_random_columns() -> None:
    random = np.array([0.2, 0.4, 1.0])
    assert _rule.worth(np.array([0.4, 0.4, 1.0]), random, (4, 8, 16)).tolist() == pytest.approx([2.0, 1.0, 1.0])
    assert _rule.worth(np.array([0.3, 0.4, 1.0]), random, (4, 8, 16))[0] == pytest.approx(2**0.5)
    falling = np.array([0.4, 0.3, 1.0])
    assert _rule.worth(np.array([0.5, 0.4, 1.0]), falling, (4, 8, 16))[0] == pytest.approx(2 ** (7 / 6))
    assert _rule.worth(np.array([0.1, 0.4, 1.0]), random, (4, 8, 16))[0] == pytest.approx(0.5)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        kept = rng.binomial(10, 0.7, size=(1, 80)) / 10
        low, high = _rule.interval(kept, rng)
        covered += low[0] <= 0.7 <= high[0]
    assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize("shape", [(12, 150, 5), (3, 40, 12)])
def test_a_recommended_funnel_keeps_99_percent_and_costs_least(
    rng: np.random.Generator, shape: tuple[int, int, int]
) -> None:
    n_widths, n_queries, k = shape
    n = 200_000
    dims = tuple(4 * 2**i for i in range(n_widths))
    places = np.stack([rng.integers(1, 2000 // 3**i + k + 1, size=(n_queries, k)) for i in range(n_widths)])
    funnel = _rule.cheapest_funnel(places, dims, n, n)
    stages = [dims.index(dim) for dim in funnel.dims]
    lists = (*funnel.keep, n)
    survive = np.all([places[stage] <= length for stage, length in zip(stages[:-1], lists, strict=False)], axis=0)
    assert np.mean(survive) >= 0.99
    assert funnel.multiply_adds(n) < costs.search(n, dims[-1])
    direct = max(k, int(np.quantile(places[0], 0.99, method="higher")))
    assert funnel.multiply_adds(n, executed=True) <= costs.funnel(n, (dims[0], dims[-1]), (direct,), executed=True)


def test_plans_whose_lists_would_grow_are_tried_with_longer_ones() -> None:
    places = np.stack([np.full((50, 4), place) for place in (5, 9, 4)])
    assert _rule.cheapest_funnel(places, (2, 32, 64), 1000, 1000) == Funnel((2, 64), (5,))


def test_fewer_stages_may_lose_more_each() -> None:
    places = np.full((3, 250, 4), 4)
    places[0].flat[:8] = 90  # more than half of one percent, less than one
    assert _rule.cheapest_funnel(places, (2, 32, 64), 9000, 9000) == Funnel((2, 64), (4,))


def test_lists_grow_with_the_rows_that_were_not_audited() -> None:
    places = np.full((2, 50, 4), 7)
    assert _rule.cheapest_funnel(places, (2, 64), 1000, 1000).keep == (7,)
    assert _rule.cheapest_funnel(places, (2, 64), 10_000, 1000).keep == (70,)
    assert _rule.cheapest_funnel(np.ones((2, 50, 4), int), (2, 64), 1000, 1000).keep == (4,)
    assert _rule.cheapest_funnel(np.full((2, 50, 4), 100), (63, 64), 10_000, 10_000).keep in ((100,), ())


def test_no_list_is_longer_than_a_hundredth_of_the_rows() -> None:
    places = np.stack([np.full((50, 4), place) for place in (300, 90, 4)])
    assert _rule.cheapest_funnel(places, (2, 32, 64), 30_000, 30_000) == Funnel((2, 32, 64), (300, 90))
    assert _rule.cheapest_funnel(places, (2, 32, 64), 29_999, 29_999) == Funnel((32, 64), (90,))
    assert _rule.cheapest_funnel(places, (2, 32, 64), 8999, 8999) == Funnel((64,), ())


def test_the_funnel_starts_on_the_ladder(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def leap(places: np.ndarray, dims: tuple[int, ...], *_: int) -> Funnel:
        assert len(places) == len(dims)
        assert (places[-1] <= 1).all()  # at full width the nearest row stays the nearest
        return Funnel((dims[0], dims[-1]), (9,))

    monkeypatch.setattr(_rule, "cheapest_funnel", leap)
    report = audit(nested(rng, decay=0.85), dims=(2, 12, 24), k=1)
    assert (report.smallest_dim, report.funnel) == (12, Funnel((12, 48), (9,)))


# The report


def row(dim: int, **values: float) -> AuditRow:
    names = ("energy", "kept", "kept_low", "kept_high", "random", "random_low", "random_high", "last", "pca")
    return AuditRow(dim=dim, **dict.fromkeys(names, 0.6) | {"worth": 1.2, "p_value": 0.01} | values)


def report_of(*rows: AuditRow) -> Audit:
    return Audit(rows, None, k=5, n_rows=9, n_audited=9, n_queries=9, n_duplicates=0, orders=99, seed=0)


@pytest.mark.parametrize(
    ("values", "smallest", "verdict"),
    [
        ({}, 4, "Yes: truncates down to 4 of 8 columns, which keep 60 %"),
        ({"p_value": 0.02}, None, "No: the leading columns are no better than random ones."),
        ({"worth": 1.05}, None, "No: the leading columns are hardly better than random ones."),
        (
            {"kept_low": 0.49},
            None,
            "No: the first 4 columns are better than random ones, but keep 60 % of the 5 nearest ",
        ),
        (
            {"kept": 0.4, "kept_low": 0.3},
            None,
            "No: the leading columns are better than random ones, but no prefix keeps half of the 5 nearest ",
        ),
        ({"p_value": 0.02, "kept": 0.7}, None, "No: the first 4 columns keep more than random ones, but not surely."),
    ],
)
def test_every_part_of_the_rule_decides(values: dict[str, float], smallest: int | None, verdict: str) -> None:
    report = report_of(row(4, **values), row(8))
    assert report.smallest_dim == smallest
    assert report.truncates is (smallest is not None)
    assert report.verdict.startswith(verdict)


@pytest.mark.parametrize(("dim", "dims"), [(2, (1, 2)), (3, (1, 3)), (12, (6, 12)), (40, (10, 20, 40))])
def test_widths_are_halved_down_to_a_half_or_to_8(rng: np.random.Generator, dim: int, dims: tuple[int, ...]) -> None:
    assert tuple(row.dim for row in audit(rng.normal(size=(200, dim))).rows) == dims


def test_the_full_width_never_makes_a_yes() -> None:
    assert not report_of(row(4, p_value=1.0), row(8)).truncates


def cells(rng: np.random.Generator, dim: int) -> AuditRow:
    """A row as no embeddings would give it, near the bounds of the rule more often than not."""
    kept = rng.choice([rng.uniform(), rng.normal(0.5, 0.01)])
    low, high = np.clip(kept + np.array([-1, 1]) * rng.exponential(0.03), 0, 1)
    random_low, random, random_high = np.sort(np.clip(kept + rng.normal(0, 0.1, size=3), 0, 1))
    p_value, worth = rng.choice([0.01, 0.011, 0.3]), max(0.5, rng.normal(1.1, 0.2))
    return row(
        dim,
        kept=kept,
        kept_low=low,
        kept_high=high,
        p_value=p_value,
        worth=worth,
        random=random,
        random_low=random_low,
        random_high=random_high,
    )


def is_true(verdict: str, rows: list[AuditRow]) -> bool:
    """Read a verdict, and compare each of its claims with the one row that it names, or with all if it names none."""
    numbers = re.search(r"(?:down to|the first) (\d+)", verdict)
    of = [each for each in rows if numbers is None or each.dim == int(numbers[1])]
    clearly = [each.p_value <= 0.01 and each.worth >= 1.1 for each in of]
    claims = [len(of) == 1 if numbers else len(of) == len(rows)]
    if (share := re.search(r"keep (?:only )?(\d+) %", verdict)) is not None:
        claims.append(share[1] == f"{100 * of[0].kept:.0f}")
    if verdict.startswith("Yes"):
        many = float(re.search(r"as many as ([\d.,]+) random", verdict)[1].replace(",", ""))
        claims += [clearly[0], of[0].kept_low >= 0.5, many > of[0].dim]
        claims.append(not any(each.passes for each in rows if each.dim < of[0].dim))
    else:
        claims.append(not any(each.passes for each in rows))
    if "are better than random ones, but" in verdict and "hardly" not in verdict:
        claims += [clearly[0], of[0].kept_low < 0.5]
    if "no prefix keeps half" in verdict:
        claims.append(all(f"{100 * each.kept:.0f}" < "50" or each.kept < 0.1 for each in rows))
    if "keep only" in verdict:
        claims.append(int(share[1]) < 50)
    if "not surely half" in verdict:
        claims.append(int(share[1]) >= 50)
    if "hardly" in verdict:
        claims += [any(each.p_value <= 0.01 and each.worth < 1.1 for each in of), not any(clearly)]
    if "keep more than random ones, but not surely" in verdict:
        claims += [of[0].kept > of[0].random_high, of[0].p_value > 0.01]
    if "no better than random ones" in verdict:
        claims += [each.p_value > 0.01 and each.kept <= each.random_high for each in of]
    return all(claims)


def test_no_verdict_contradicts_its_table() -> None:
    rng, seen = np.random.default_rng(5), set()
    for _ in range(5_000):
        dims = np.sort(rng.choice(np.arange(1, 200), size=rng.integers(1, 6), replace=False)).tolist()
        rows = [cells(rng, dim) for dim in dims]
        verdict = report_of(*rows, row(256)).verdict
        assert is_true(verdict, rows), (verdict, rows)
        seen.add(re.sub(r"[\d.,]+", "", verdict))
    assert len(seen) == 8  # every wording was tried


def test_a_narrow_lead_does_not_hide_that_wider_prefixes_keep_half(rng: np.random.Generator) -> None:
    rows = (row(4, kept=0.33, kept_low=0.3), row(8, kept=0.6, p_value=0.4), row(16))
    assert report_of(*rows).verdict == (
        "No: the first 4 columns are better than random ones, but keep only 33 % of the 5 nearest neighbours."
    )


# The rotation


def turned(rng: np.random.Generator, n: int, dim: int = 24, decay: float = 0.8) -> np.ndarray:
    """Rows around a mean, whose spectrum no column shows."""
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return (rng.normal(size=(n, dim)) * decay ** np.arange(dim)) @ turn + 0.2


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Rows that the audit fits rotations on, while the test runs."""
    found = []

    class Recorder(Rotation):
        @classmethod
        def fit(cls, embeddings: Any, **options: Any) -> Rotation:
            found.append(np.array(embeddings))
            return Rotation.fit(embeddings, **options)

    monkeypatch.setattr(_rotation, "Rotation", Recorder)
    return found


def directions(rows: np.ndarray) -> set[bytes]:
    return {direction.tobytes() for direction in np.round(unit(rows.astype(np.float64)), 5) + 0.0}


@pytest.mark.parametrize(("n", "n_fitted", "n_rotated"), [(400, 96, 60), (90, 30, 60), (60, 30, 30), (83, 53, 30)])
def test_the_rotation_is_measured_on_rows_that_did_not_fit_it(
    rng: np.random.Generator, fitted: list[np.ndarray], n: int, n_fitted: int, n_rotated: int
) -> None:
    rows = turned(rng, n)
    report = audit(rows, max_rows=60, k=4, dims=(3, 7))
    assert (report.n_audited, report.n_fitted, report.n_rotated) == (60, n_fitted, n_rotated)
    (used,) = fitted
    assert len(used) == len(directions(used)) == n_fitted
    assert directions(used) < directions(rows)
    sample = draw(rows, max_rows=60, max_queries=400, k=4)
    measured = sample.rows[:n_rotated].astype(np.float64)
    assert not directions(used) & directions(measured)
    matrix = np.linalg.svd(used)[2].T
    for each in report.rows:
        kept = kept_oracle(measured @ matrix, np.arange(each.dim), 4, n_rotated)
        plain = kept_oracle(measured, np.arange(each.dim), 4, n_rotated)
        assert each.rotated == pytest.approx(kept)
        assert each.gain == pytest.approx(kept - plain, abs=1e-9)
        assert each.gain_low <= each.gain <= each.gain_high
    where = "that are neither queries nor candidates" if n_rotated == 60 else "others; among more rows fewer"
    assert f"fitted on {n_fitted} {'rows ' if n_rotated == 60 else ''}{where}" in unwrapped(report)


@pytest.mark.parametrize("n", [400, 60])
def test_accuracy_after_the_rotation_against_loops(rng: np.random.Generator, fitted: list[np.ndarray], n: int) -> None:
    rows = turned(rng, n)
    labels = (rows[:, :2] @ [2.0, 1.0] > 0.6) + 2 * rng.integers(0, 2, size=n)
    report = audit(rows, labels=labels, max_rows=60, max_queries=25, k=4, dims=(2, 5))
    (used,) = fitted
    sample = draw(rows, labels, max_rows=60, max_queries=25, k=4)
    measured, classes = sample.rows[: report.n_rotated].astype(np.float64), sample.labels[: report.n_rotated]
    assert len(measured) == (60 if n == 400 else 30)
    matrix = np.linalg.svd(used)[2].T
    for each in report.rows:
        right = 0
        for query in range(25):
            turn = unit((measured @ matrix)[:, : each.dim])
            others = [other for other in range(len(measured)) if other != query]
            right += classes[max(others, key=lambda other: turn[other] @ turn[query])] == classes[query]
        assert each.rotated_nearest_neighbor_accuracy == pytest.approx(right / 25)
    found = [each.rotated_nearest_neighbor_accuracy for each in report.rows]
    assert len({*found}) > 1
    whole = report.rows[-1].nearest_neighbor_accuracy
    assert (found[-1] == whole) is (n == 400)  # at full width a rotation changes nothing: only fewer rows do
    assert [entry["rotated_nearest_neighbor_accuracy"] for entry in json.loads(report.to_json())["rows"]] == found
    table = str(report).partition("rotated 1-NN\n")[2].splitlines()
    assert [line.split()[-2] for line in table[:3]] == [f"{100 * share:.1f}" for share in found]
    assert audit(rows, max_rows=60).rows[0].rotated_nearest_neighbor_accuracy is None
    few = audit(rows[:23], labels=labels[:23], k=4)
    assert few.rows[0].rotated_nearest_neighbor_accuracy is None
    assert str(few).partition("rotated 1-NN\n")[2].splitlines()[0].count("%") == 2


@pytest.mark.parametrize(("dim", "k"), [(24, 3), (24, 20), (300, 3)])
def test_too_few_rows_leave_the_column_empty_and_are_told(rng: np.random.Generator, dim: int, k: int) -> None:
    rows = turned(rng, 700, dim)
    few = audit(rows[: 2 * k + 1], k=k, max_rows=400)
    assert all(each.rotated is each.gain is each.gain_low is each.gain_high is None for each in few.rows)
    assert (few.n_fitted, few.n_rotated) == (0, 0)
    assert f"rotated: not measured: a Rotation is fitted on at least {dim} rows" in str(few)
    needed = int(re.search(r"would help takes (\d+) rows of different directions to tell", few.recommendation)[1])
    assert audit(rows[: needed - 2], k=k).rows[0].rotated is None
    assert audit(rows[:needed], k=k, max_rows=400).rows[0].rotated is not None


def test_copies_of_audited_rows_fit_nothing(rng: np.random.Generator, fitted: list[np.ndarray]) -> None:
    few = turned(rng, 70)
    copies = few[rng.integers(0, 70, size=3000)] * rng.uniform(1, 3, size=(3000, 1))
    report = audit(np.concatenate((copies, np.zeros((500, 24)))), max_rows=2000, k=3)
    assert report.n_rotated == report.n_audited // 2
    (used,) = fitted
    assert len(used) == report.n_audited - report.n_rotated


def test_rows_of_zeros_fit_nothing(rng: np.random.Generator) -> None:
    rows = turned(rng, 80)
    sample = draw(rows, max_rows=30)
    others = np.setdiff1d(np.arange(80), sample.ids)
    rows[others[7:]] = 0.0
    found = _sample.draw_others(rows, sample, 99, rng=rng, xp=np)
    np.testing.assert_array_equal(found, rows[others[:7]])


def test_what_does_not_help_is_not_recommended() -> None:
    for seed in range(5):
        rows = np.random.default_rng(seed).normal(size=(1500, 24))
        report = audit(rows, max_rows=500)
        assert max(each.gain for each in report.rows) < 0.05
        assert report.recommendation == "Do not cut; a rotation fitted on 96 other rows hardly helps."
    sorted_already = audit(np.random.default_rng(0).normal(size=(1500, 24)) * 0.7 ** np.arange(24), max_rows=500)
    assert sorted_already.recommendation.startswith(
        "Cut to 12 columns; a rotation fitted on 96 other rows hardly helps."
    )


def test_a_rotation_that_helps_is_recommended(rng: np.random.Generator) -> None:
    report = audit(turned(rng, 3000), max_rows=800, dims=(3, 6, 12))
    assert not report.truncates
    named = next(each for each in report.rows if each.rotation_helps and each.rotated >= 0.5)
    assert report.recommendation.startswith(
        f"Rotate first: after a rotation fitted on 96 other rows, {named.dim} columns keep {100 * named.rotated:.0f} % "
        f"of the 10 nearest neighbours (prefix: {100 * named.kept:.0f} %, both among 800 rows); "
        "matryoshka audit EMB.npy --rotation DIR writes one."
    )
    assert unwrapped(report).startswith(f"{report.verdict}\n{report.recommendation}\n\n")


def test_vectors_that_can_be_cut_may_gain_too(rng: np.random.Generator) -> None:
    rows = turned(rng, 2000, 24, 0.75) @ np.diag(0.93 ** np.arange(24))
    report = audit(rows, max_rows=600)
    assert report.truncates
    assert report.recommendation.startswith("Rotate first all the same: ")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([(0.3, 0.06, 0.01), (0.55, 0.05, 0.04), (0.9, 0.06, 0.05)], 8),  # the narrowest that keeps half
        ([(0.3, 0.06, 0.01), (0.4, 0.06, 0.01), (0.9, 0.04, 0.03)], 8),  # the widest that helps
        ([(0.6, 0.06, -0.01), (0.6, 0.049, 0.04), (0.9, 0.04, 0.03)], None),
    ],
)
def test_the_rule_of_the_recommendation(values: list[tuple[float, ...]], named: int | None) -> None:
    rows = [
        row(dim, p_value=0.5, rotated=rotated, gain=gain, gain_low=low, gain_high=0.1)
        for dim, (rotated, gain, low) in zip((4, 8, 16), values, strict=True)
    ]
    report = replace(report_of(*rows, row(32)), n_fitted=99, n_rotated=9)
    expected = "Do not cut; a rotation fitted" if named is None else f"Rotate first: .* {named} columns keep "
    assert re.match(expected, report.recommendation)


def test_labels_name_a_width_first() -> None:
    names = ("nearest_neighbor_accuracy", "rotated_nearest_neighbor_accuracy", "gain_low")
    found = (300, 0.8, 0.899, 0.0), (600, 0.8, 0.9, 0.01), (2000, 0.8, 0.88, 0.0)
    rows = [row(dim, rotated=0.7, gain=0.06, **dict(zip(names, values, strict=True))) for dim, *values in found]
    report = replace(report_of(*(each._replace(p_value=0.5) for each in rows)), n_fitted=99, n_rotated=9)
    assert report.recommendation.startswith(
        "After a rotation 300 columns are right as often as all 2,000 (1-NN 89.9 % against 88.0 %), in 1,200 bytes a "
        "row instead of 8,000 (float32). Rotate first: after a rotation fitted on 99 other rows, 600 columns keep 70 %"
    )


@pytest.mark.parametrize(
    ("plain", "rotated", "gain", "starts"),
    [
        ((0.8, 0.8, 0.8), (0.87, 0.88, 0.88), 0.06, "After a rotation 8 columns are right"),
        ((0.8, 0.8, 0.8), (0.87, 0.87, 0.88), 0.06, "Rotate first"),
        ((0.7, 0.8, 0.8), (0.9, 0.9, 0.88), 0.0, "The first 8 columns are right"),
        ((0.9, 0.7, 0.8), (None, None, None), None, "The first 4 columns are right"),
        ((0.7, 0.7, 0.8), (0.9, 0.9, 0.88), 0.0, "Do not cut; "),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.06, "Rotate first"),  # every row a class of its own
        ((None, None, None), (None, None, None), 0.0, "Do not cut; "),
    ],
)
def test_labels_allow_the_narrowest_width_that_is_as_right(
    plain: tuple[Any, ...], rotated: tuple[Any, ...], gain: float | None, starts: str
) -> None:
    names = ("nearest_neighbor_accuracy", "rotated_nearest_neighbor_accuracy")
    rows = [
        row(dim, p_value=0.5, rotated=0.7, gain=gain, gain_low=gain, **dict(zip(names, shares, strict=True)))
        for dim, *shares in zip((4, 8, 16), plain, rotated, strict=True)
    ]
    advice = replace(report_of(*rows), n_fitted=99, n_rotated=9).recommendation
    assert advice.startswith(starts)
    assert ("By the neighbours kept, do not cut; a rotation" in advice) is starts.startswith("The first")
    passing = replace(report_of(*(each._replace(p_value=0.01) for each in rows)), n_fitted=99).recommendation
    assert ("By the neighbours kept, cut to 4 columns; a rotation" in passing) is starts.startswith("The first")


def test_a_no_without_labels_says_how_strict_it_is(rng: np.random.Generator) -> None:
    rows = turned(rng, 200)
    strict = "\nNeighbours kept is a strict measure: another neighbour is often as good; pass `labels` to see."
    no = audit(rows)
    assert (no.truncates, str(no).endswith(strict)) == (False, True)
    assert strict not in str(audit(rows, labels=rng.integers(0, 3, size=200)))
    assert strict not in str(audit(nested(rng)))


def test_rows_that_are_not_finite_are_named_wherever_they_are_read(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(300, 6))
    audited = draw(rows, k=10, max_rows=60).ids
    rows[np.setdiff1d(np.arange(300), audited)] = np.inf
    with pytest.raises(
        ValueError, match=r"`embeddings` must be finite, got NaN or infinity in 24 of 24 rows drawn from 300"
    ):
        audit(rows, max_rows=60)


# First stages


def bits_oracle(rows: np.ndarray, dim: int, k: int, length: int, n_queries: int) -> float:
    """The expected share of neighbours among the `length` of fewest differing bits, one query at a time."""
    prefixes = unit(rows[:, :dim])
    bits = prefixes > prefixes.mean(axis=0)
    total = 0.0
    for query in range(n_queries):
        cosine, others = unit(rows) @ unit(rows)[query], [i for i in range(len(rows)) if i != query]
        nearest = sorted(others, key=lambda i: -cosine[i])[:k]
        distance = {i: sum(bits[i] != bits[query]) for i in others}
        for i in nearest:
            nearer = sum(distance[j] < distance[i] for j in others)
            as_near = sum(distance[j] == distance[i] for j in others)
            total += min(1.0, max(0.0, (length - nearer) / as_near))
    return total / (k * n_queries)


def test_first_stages_against_loops(rng: np.random.Generator) -> None:
    rows = turned(rng, 120, 10, 0.9)
    sample = draw(rows, k=1, max_queries=7, max_rows=120)
    columns, stages = _rotation.measure(_rotation.Trial(sample, None, 0), (2, 5, 10), 1, rng)
    assert columns == {}
    found = {(stage.code, stage.dim): stage for stage in stages}
    assert len(found) == len(stages) == 5
    exact = sample.rows.astype(np.float64)
    for (code, dim), stage in found.items():
        assert (stage.candidates, stage.rotated, stage.bytes) == (10, False, 8 if code == "bits" else 4 * dim)
        if code == "bits":
            assert stage.kept == pytest.approx(bits_oracle(exact, dim, 1, 10, 7))
        else:
            best = [np.argsort(-(unit(exact[:, :dim]) @ unit(exact[q, None, :dim])[0]))[:11] for q in range(7)]
            nearest = [np.argsort(-(exact @ exact[q]))[1] for q in range(7)]
            assert stage.kept == pytest.approx(np.mean([i in ids for i, ids in zip(nearest, best, strict=True)]))
    _, few = _rotation.measure(_rotation.Trial(sample._replace(rows=sample.rows[:99]), None, 0), (2, 10), 1, rng)
    assert few == []


def test_the_cheapest_first_stage_holds_95_percent() -> None:
    def stage(size: int, kept: float, code: str = "float") -> _rule.FirstStage:
        return _rule.FirstStage(4, code, False, size, kept, 100)

    stages = [stage(64, 0.99), stage(32, 0.949), stage(48, 0.95), stage(48, 0.96)]
    assert _rule.cheapest_stage(stages) == stages[2]
    assert _rule.cheapest_stage(stages[1:2]) is _rule.cheapest_stage([]) is None


def test_the_first_stage_is_part_of_the_recommendation(rng: np.random.Generator) -> None:
    groups = np.repeat(rng.normal(size=(60, 64)), 40, axis=0)
    report = audit(groups + 0.2 * rng.normal(size=groups.shape), max_queries=100)
    stage = report.first_stage
    assert (stage.code, stage.candidates) == ("bits", 100)
    assert stage.kept >= 0.95
    assert stage.bytes == 8 * -(-stage.dim // 64)
    assert f"The cheapest first stage of a search is {stage.dim} columns in one bit each" in report.recommendation
    plan = f'search_dims=({stage.dim},), code="bits") with funnel=Funnel(({stage.dim}, 64), (100,), code="bits").'
    assert report.recommendation.endswith(f"Corpus(rows, {plan}")
    assert json.loads(report.to_json())["first_stage"] == stage._asdict()
    assert "the rotation" not in report.recommendation
    gained = tuple(each._replace(gain=0.1, gain_low=0.1) for each in report.rows)
    instead = f" writes one. Or, without a rotation: the cheapest first stage of a search is {stage.dim} columns in one"
    assert instead in replace(report, rows=gained).recommendation
    floats = report.first_stage._replace(code="float", rotated=True, bytes=4 * stage.dim)
    text = replace(report, rows=gained, first_stage=floats).recommendation
    then = f" writes one. Then, of rotated rows, the cheapest first stage of a search is {stage.dim} columns in float32"
    assert f"{then}, {4 * stage.dim} bytes a row" in text
    assert text.endswith(
        f"Corpus(rotation.apply(rows), search_dims=({stage.dim},)) with funnel=Funnel(({stage.dim}, 64), (100,))."
    )


@pytest.mark.parametrize("gain", [0.0, 0.06])
def test_rotated_stages_need_a_rotation_that_is_recommended(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    plain, rotated = (_rule.FirstStage(4, "float", size == 16, size, 0.99, 100) for size in (32, 16))
    columns = {name: np.full(3, gain) for name in ("rotated", "gain", "gain_low", "gain_high")}
    monkeypatch.setattr(_rotation, "measure", lambda *_: (columns, [plain, rotated]))
    assert audit(nested(rng)).first_stage == (rotated if gain else plain)


# A plain cut


def test_a_plain_cut_that_does_as_well_is_named() -> None:
    places = np.stack([np.full((50, 4), place) for place in (9, 4, 4)])
    funnel = Funnel((2, 64), (9,))
    assert _rule.plain_cut(places, (2, 32, 64), 1000, 1000, Funnel((64,))) == 32
    assert _rule.plain_cut(places, (2, 32, 64), 1000, 1000, funnel) is None  # the funnel costs less
    assert _rule.plain_cut(places, (2, 32, 64), 2000, 1000, Funnel((64,))) is None  # of more rows others come before
    places[1].flat[:2] = 5
    assert _rule.plain_cut(places, (2, 32, 64), 1000, 1000, Funnel((64,))) == 32
    places[1].flat[:3] = 5
    assert _rule.plain_cut(places, (2, 32, 64), 1000, 1000, Funnel((64,))) is None


def test_a_plain_cut_is_printed(rng: np.random.Generator) -> None:
    report = audit(nested(rng, decay=0.5))
    assert report.cut == 12
    assert "Plain cut: corpus.search(queries, 10, dim=12) does as well, at 4.0 x fewer multiply-adds" in unwrapped(
        report
    )
    assert "Plain cut" not in str(replace(report, cut=None))


def test_printed_and_as_json(rng: np.random.Generator) -> None:
    report = audit(nested(rng), labels=rng.integers(0, 4, size=200))
    text = str(report)
    assert unwrapped(report).splitlines()[0] == report.verdict
    assert text.isascii()
    assert "class mean" in text
    assert "passes" in text
    assert f"Ladder: {', '.join(map(str, report.ladder))}" in text
    assert all(line == line.rstrip() for line in text.splitlines())
    record = json.loads(report.to_json())
    assert (record["kind"], record["version"], record["truncates"]) == ("audit", 1, True)
    assert record["funnel"] == {"dims": list(report.funnel.dims), "keep": list(report.funnel.keep)}
    assert [entry["dim"] for entry in record["rows"]] == list(Nesting.halving(48).dims) == [12, 24, 48]
    assert record["rows"][0]["kept"] == report.rows[0].kept
    assert record["rows"][0]["rotated"] == report.rows[0].rotated
    assert record["recommendation"] == report.recommendation
    assert (record["n_fitted"], record["n_rotated"], record["first_stage"]) == (100, 100, None)
    assert json.loads(audit(shuffle(nested(rng), 0)).to_json())["funnel"] is None


def test_a_funnel_that_does_not_pay_is_not_recommended() -> None:
    report = replace(report_of(row(4), row(8)), funnel=Funnel((8,), ()))
    assert "Funnel: none pays for 9 rows: to lose at most 1 % of the neighbours, each would rerank" in unwrapped(report)
    funnel = Funnel((2, 4, 8), (9, 5))
    executed, published = funnel.speedup(9, executed=True), funnel.speedup(9)
    assert f"{executed:.1f}" != f"{published:.1f}"
    assert (
        f"Funnel: 2 > 4 > 8, keep 9, 5: {executed:.1f} x fewer multiply-adds over 9 rows as executed, "
        f"{published:.1f} x as the paper counts;"
    ) in unwrapped(replace(report, funnel=funnel))


def test_every_header_is_explained() -> None:
    lines = unwrapped(report_of(row(4), row(8))).splitlines()
    legend = "\n".join(lines[7:])
    for header in lines[4].split()[1:]:
        assert header in "kept random 95 %" or f"{header}: " in legend


@pytest.mark.parametrize("labelled", [False, True])
def test_the_figure_is_drawn(rng: np.random.Generator, tmp_path: Any, labelled: bool) -> None:
    load("matplotlib")
    report = audit(nested(rng), labels=rng.integers(0, 4, size=200) if labelled else None)
    figure = report.figure()
    figure.savefig(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 10_000
    left, right = figure.axes
    for axes in figure.axes:
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())
    assert left.get_legend().get_texts()[0].get_text().startswith("first columns")
    assert ("accuracy" if labelled else "squared length") in right.get_ylabel()
    assert "\n".join(figure.get_suptitle().split()) == "\n".join(report.verdict.split())


# Bad input


def test_bad_rows_of_a_sample_are_named_as_in_the_input(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(300, 6))
    rows[140:, 2] = np.nan
    with pytest.raises(ValueError, match=r"in \d+ of 60 rows drawn from 300 \(first: 1[4-9]\d, ") as raised:
        audit(rows, max_rows=60)
    first = [int(text) for text in str(raised.value).partition("first: ")[2].partition(")")[0].split(",")]
    assert all(not np.isfinite(rows[i]).all() for i in first)
    with pytest.raises(ValueError, match=r"in 160 of 300 rows \(first: 140, 141, 142, 143, 144\)"):
        audit(rows)


ROWS = np.random.default_rng(0).normal(size=(30, 6))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: audit(ROWS[0]), ValueError, r"`embeddings` must have shape \(n, dim\), got \(6,\)"),
        (lambda: audit(ROWS[:, :1]), ValueError, "`embeddings` must have at least 2 columns, got 1"),
        (lambda: audit(ROWS[:0]), ValueError, "`embeddings` must have at least one row"),
        (lambda: audit(ROWS[:20]), ValueError, "more than 2 k = 20 rows of different directions, got 20"),
        (lambda: audit(np.ones((50, 4))), ValueError, "rows of different directions, got 1"),
        (lambda: audit(ROWS.astype(object)), TypeError, "`embeddings` must hold"),
        (lambda: audit(ROWS.astype(np.uint8)), TypeError, "signed integers, got dtype uint8"),
        (lambda: audit(ROWS > 0), TypeError, "signed integers, got dtype bool"),
        (lambda: audit(ROWS + 0j), TypeError, "got dtype complex128"),
        (lambda: audit([[1.0, 2.0]]), TypeError, "`embeddings` must be an array"),
        (lambda: audit(np.where(ROWS > 1.9, np.nan, ROWS)), ValueError, "`embeddings` must be finite, got NaN"),
        (lambda: audit(ROWS, labels=np.arange(29)), ValueError, "`labels` must have one class id per row"),
        (lambda: audit(ROWS, labels=np.ones(30)), TypeError, "`labels` must hold integer class ids"),
        (lambda: audit(ROWS, dims=(2, 8)), ValueError, r"`dims` must lie within \[1, 6\]"),
        (lambda: audit(ROWS, dims=(6,)), ValueError, "`dims` must hold a width below the full one"),
        (lambda: audit(ROWS, dims=(4, 2)), ValueError, "`dims` must be positive and strictly increasing"),
        (lambda: audit(ROWS, k=0), ValueError, "`k` must be an integer >= 1"),
        (lambda: audit(ROWS, max_rows=20), ValueError, "`max_rows` must be an integer >= 21, got 20"),
        (lambda: audit(ROWS, max_queries=0), ValueError, "`max_queries` must be an integer >= 1"),
        (lambda: audit(ROWS, orders=98), ValueError, "`orders` must be an integer >= 99, got 98"),
        (lambda: audit(ROWS, seed=-1), ValueError, "`seed` must be an integer >= 0"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Audit], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
