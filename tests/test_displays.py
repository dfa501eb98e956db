"""What is drawn from Python: the numbers of the results, on whose axes, and what a notebook shows of a value."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import load

from matryoshka import Cascade, Corpus, Evaluation, Funnel, _pictures, audit
from matryoshka._commands import calibrate
from matryoshka.audit import Audit, AuditDisplay
from matryoshka.cascade import CascadeDisplay, CascadeEvaluation, Certificate, oracle_routing
from matryoshka.evaluation import EvaluationDisplay
from matryoshka.retrieval import FunnelDisplay, FunnelPoint

DIMS = (8, 24, 64)
Display = AuditDisplay | CascadeDisplay | FunnelDisplay | EvaluationDisplay


@pytest.fixture(autouse=True)
def plt() -> Iterator[Any]:
    load("matplotlib").use("agg")
    pyplot = load("matplotlib.pyplot")
    pyplot.close("all")  # those of examples that ran before
    yield pyplot
    pyplot.close("all")


@pytest.fixture(scope="module")
def report() -> Audit:
    rng = np.random.default_rng(1)
    return audit(rng.normal(size=(200, 48)) * 0.93 ** np.arange(48), labels=rng.integers(0, 4, size=200))


def probabilities(n: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Three prefixes, the wider the surer."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, size=n)
    logits = rng.normal(size=(3, n, 5)) + np.array([2.0, 3.0, 5.0])[:, None, None] * (np.arange(5) == labels[:, None])
    shares = np.exp(logits)
    return shares / shares.sum(axis=2, keepdims=True), labels


P, Y = probabilities()
CASCADE = Cascade.certify(P[:, :600], Y[:600], nesting=DIMS, max_gap=0.05)
CURVE = CASCADE.curve(P[:, 600:], Y[600:])
BLIND = CASCADE.curve(P[:, 600:])
POINTS = [
    FunnelPoint(Funnel((8,)), 0.5, 800, 1e-3),
    FunnelPoint(Funnel((8, 64), (20,)), 0.7, 2080, 2e-3),
    FunnelPoint(Funnel((64, 64), (9,), code="bits"), 0.9, 576, 3e-3),
    FunnelPoint(Funnel((64,)), 1.0, 6400, 9e-3),
]
CUT = Evaluation({m: {"ndcg@10": m / 99, "mrr@5": m / 70} for m in DIMS}, "cosine", 1234, 56)
ROTATED = Evaluation({m: {"map@9": 0.1, "mrr@5": m / 65, "ndcg@10": m / 66} for m in (8, 16, 64)}, "cosine", 1234, 56)


def displays(report: Audit) -> list[Display]:
    return [AuditDisplay(report), CascadeDisplay(CURVE), FunnelDisplay(POINTS), EvaluationDisplay({"cut": CUT})]


def lines(display: Display) -> dict[str, Any]:
    """Return the lines by what the legend says of them."""
    handles, names = display.ax_.get_legend_handles_labels()
    return dict(zip(names, handles, strict=True))


def line(display: Display, start: str) -> np.ndarray:
    """Return the points (2, n) of the only line whose name begins like this."""
    (found,) = [handle for name, handle in lines(display).items() if name.startswith(start)]
    return np.array((found.lines[0] if hasattr(found, "lines") else found).get_data(), dtype=float)


# Where


@pytest.mark.parametrize("i", range(4))
def test_draws_on_the_axes_of_the_caller_and_on_none_else(report: Audit, plt: Any, i: int) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    display = displays(report)[i]
    assert display.plot(right) is display
    assert display.ax_ is right
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert right.has_data()
    assert not left.has_data()
    assert display.plot(left).ax_ is left


@pytest.mark.parametrize("i", range(4))
def test_without_axes_a_figure_of_pyplot_is_made_but_not_shown(
    report: Audit, plt: Any, monkeypatch: pytest.MonkeyPatch, i: int
) -> None:
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    display = displays(report)[i].plot()
    assert plt.get_fignums() == [display.figure_.number]
    assert display.figure_.axes == [display.ax_]


@pytest.mark.parametrize("i", range(4))
@pytest.mark.parametrize("layout", [None, "constrained", "tight", "called later"])
def test_legend_is_below_whatever_the_layout(report: Audit, plt: Any, i: int, layout: str | None) -> None:
    later = layout == "called later"
    figure, grid = plt.subplots(1, 2, figsize=(11, 5), layout=None if later else layout)
    other = grid[0].get_position().bounds
    for _ in range(2):  # drawn again, axes give up nothing more
        grid[1].clear()
        displays(report)[i].plot(grid[1])
        if later:
            figure.tight_layout()
        figure.draw_without_rendering()
        axes, legend = grid[1].get_window_extent(), grid[1].get_legend().get_window_extent()
        assert 0 < legend.y0 < legend.y1 < grid[1].xaxis.label.get_window_extent().y0
        assert axes.height > 0.4 * figure.bbox.height
        assert abs((legend.x0 + legend.x1) - (axes.x0 + axes.x1)) < 2
        assert legend.width < 1.3 * axes.width
    if layout is None:
        assert grid[0].get_position().bounds == other
        assert grid[1].get_position().y1 == grid[0].get_position().y1


def test_legend_leaves_small_axes_some_height(report: Audit, plt: Any) -> None:
    figure = plt.figure(figsize=(3, 1.5))
    axes = figure.add_axes((0.3, 0.4, 0.6, 0.5))
    AuditDisplay(report).plot(axes)
    figure.draw_without_rendering()
    assert axes.get_position().height == pytest.approx(0.35 * 0.5)
    axes.get_legend().remove()
    figure.draw_without_rendering()
    assert axes.get_position().height == pytest.approx(0.5)


def test_axes_that_are_placed_otherwise_stay(report: Audit, plt: Any) -> None:
    figure, outer = plt.subplots()
    axes = outer.inset_axes((0.5, 0.5, 0.4, 0.4))
    AuditDisplay(report).plot(axes)
    figure.draw_without_rendering()
    assert axes.get_window_extent().height == pytest.approx(0.4 * outer.get_window_extent().height)


@pytest.mark.parametrize("i", range(4))
def test_axes_that_are_none_are_refused_before_a_figure_is_made(report: Audit, plt: Any, i: int) -> None:
    _, grid = plt.subplots(1, 2)
    with pytest.raises(TypeError, match=r"`ax` must be Axes of matplotlib, got ndarray; pass one"):
        displays(report)[i].plot(grid)
    with pytest.raises(TypeError, match="`ax` must be Axes"):
        displays(report)[i].plot(grid[0].figure)
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("i", range(4))
def test_without_matplotlib_the_extra_is_named(report: Audit, monkeypatch: pytest.MonkeyPatch, i: int) -> None:
    display = displays(report)[i]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "matryoshka-mrl\[cli\]"'):
        display.plot()


# What


def test_audit_draws_its_rows(report: Audit, plt: Any) -> None:
    kept = AuditDisplay(report).plot()
    dims = [12, 24, 48]
    for name, column in (("first columns (95", "kept"), ("random", "random"), ("last", "last")):
        xs, ys = line(kept, name)
        assert xs.tolist()[-3:] == dims
        np.testing.assert_allclose(ys, [100 * getattr(row, column) for row in report.rows])
    assert line(kept, "truncates down to 12 columns")[0].tolist() == [12, 12]
    assert line(kept, "half")[1].tolist() == [50, 50]
    energy = AuditDisplay(report).plot(kind="energy")
    np.testing.assert_allclose(energy.ax_.lines[0].get_ydata(), [100 * row.energy for row in report.rows])
    accuracy = AuditDisplay(report).plot(kind="accuracy")
    expected = [100 * (row.nearest_class_mean_accuracy or 0.0) for row in report.rows]
    np.testing.assert_allclose(accuracy.ax_.lines[1].get_ydata(), expected)
    rotated = [100 * (row.rotated_nearest_neighbor_accuracy or 0.0) for row in report.rows]
    np.testing.assert_allclose(accuracy.ax_.lines[2].get_ydata(), rotated)
    blind = replace(report, rows=tuple(row._replace(nearest_neighbor_accuracy=None) for row in report.rows))
    with pytest.raises(ValueError, match="`kind` must be 'kept' or 'energy' for an audit without labels"):
        AuditDisplay(blind).plot(kind="accuracy")
    assert len(plt.get_fignums()) == 3


def said(display: Display) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


@pytest.mark.parametrize("kind", ["kept", "energy", "accuracy"])
def test_axes_of_an_audit_say_what_they_show(report: Audit, kind: str) -> None:
    display = AuditDisplay(report).plot(kind=kind)
    axes = display.ax_
    assert (axes.get_xscale(), axes.get_xticks().tolist()) == ("log", [row.dim for row in report.rows])
    assert axes.get_ylim() == (0, 102)
    assert axes.get_xlabel() == "columns compared, of 48"
    assert (
        axes.get_ylabel()
        == {
            "kept": "nearest neighbours kept (%)",
            "energy": "share of squared length (%)",
            "accuracy": "accuracy of the first columns (%)",
        }[kind]
    )
    assert (
        said(display)
        == {
            "kept": [
                "first columns (95 % interval)",
                *([f"truncates down to {report.smallest_dim} columns"] if report.smallest_dim else []),
                "half, which the rule asks for",
                "last columns",
                f"random columns (mean and range of {report.orders} orders)",
                *([f"rotated first columns (fitted on {report.n_fitted:,} others)"] if report.n_fitted else []),
            ],
            "energy": ["first columns", "no order: in proportion"],
            "accuracy": ["nearest neighbour", "nearest class mean", "nearest neighbour, rotated"],
        }[kind]
    )


def test_intervals_and_half_of_an_audit_are_drawn(report: Audit) -> None:
    axes = AuditDisplay(report).plot().ax_
    (bars,) = [found for found in axes.containers if hasattr(found, "has_yerr")]
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[100 * row.kept_low, 100 * row.kept_high] for row in report.rows])
    ranges = axes.collections[0].get_paths()[0].vertices[:, 1]
    low, high = (100 * fold(getattr(row, name) for row in report.rows) for fold, name in
                 ((min, "random_low"), (max, "random_high")))  # fmt: skip
    assert (ranges.min(), ranges.max()) == (pytest.approx(low), pytest.approx(high))
    energy = AuditDisplay(report).plot(kind="energy").ax_
    np.testing.assert_allclose(energy.lines[1].get_ydata(), [100 * row.dim / 48 for row in report.rows])


def test_axes_of_cascades_and_funnels_say_what_they_show() -> None:
    cascade, funnels = CascadeDisplay(CURVE).plot(), FunnelDisplay(POINTS).plot()
    assert (cascade.ax_.get_xscale(), cascade.ax_.get_xticks().tolist()) == ("log", list(DIMS))
    assert said(cascade) == ["one width alone", "cascade, capped at each width"]
    assert funnels.ax_.get_xscale() == "log"
    funnels.figure_.draw_without_rendering()
    ticks = [label.get_text() for label in funnels.ax_.get_xticklabels() if label.get_text()]
    assert {"1", "2", "5"} <= set(ticks)
    for display in (cascade, funnels):
        assert display.ax_.get_legend() is not None
        assert [spine for spine in display.ax_.spines if display.ax_.spines[spine].get_visible()] == ["left", "bottom"]


def test_audit_figure_is_two_of_its_panels(report: Audit) -> None:
    left, right = report.figure().axes
    for axes, kind in ((left, "kept"), (right, "accuracy")):
        own = AuditDisplay(report).plot(kind=kind).ax_
        assert [entry.get_xydata().tolist() for entry in axes.lines] == [
            entry.get_xydata().tolist() for entry in own.lines
        ]


@pytest.mark.parametrize("cost", ["expected_dim", "cumulative_dim"])
def test_cascade_draws_curve_frontier_and_router(cost: str) -> None:
    frontier = Cascade.frontier(P[:, :600], Y[:600], nesting=DIMS)
    oracle = oracle_routing(P[:, 600:], Y[600:], nesting=DIMS)
    display = CascadeDisplay(CURVE, frontier=frontier, oracle=oracle).plot(cost=cost)
    expected = [[getattr(e, cost), 100 * (e.accuracy or 0.0)] for e in CURVE]
    np.testing.assert_allclose(line(display, "cascade").T, expected)
    np.testing.assert_allclose(
        line(display, "frontier").T, [[getattr(e, cost), 100 * (e.accuracy or 0.0)] for _, e in frontier]
    )
    alone = [100 * (P[i, 600:].argmax(axis=1) == Y[600:]).mean() for i in range(3)]
    np.testing.assert_allclose(line(display, "one width"), [DIMS, alone])
    right = (P[:, 600:].argmax(axis=2) == Y[600:]).any(axis=0).mean()
    np.testing.assert_allclose(line(display, "perfect router")[1], 100 * right)
    assert display.ax_.get_ylabel() == "accuracy (%)"
    assert display.ax_.get_xlabel().startswith(cost.replace("_dim", " dimension"))
    assert len(lines(display)) == 4


def test_cascade_without_labels_draws_agreement() -> None:
    frontier = Cascade.frontier(P[:, :600], Y[:600], nesting=DIMS)
    display = CascadeDisplay(BLIND, frontier=frontier).plot()
    assert display.ax_.get_ylabel() == "agreement with the full width (%)"
    np.testing.assert_allclose(line(display, "cascade")[1], [100 * (1 - e.disagreement) for e in CURVE])
    np.testing.assert_allclose(line(display, "frontier")[1], [100 * (1 - e.disagreement) for _, e in frontier])
    answers = P[:, 600:].argmax(axis=2)
    np.testing.assert_allclose(line(display, "one width")[1], 100 * (answers == answers[-1]).mean(axis=1))


@pytest.mark.parametrize(
    ("bounds", "curve", "named", "floor"),
    [
        ({"max_gap": 0.05}, CURVE, "a gap of at most 0.05", "full"),
        ({"max_gap": 0.05, "max_disagreement": 0.04}, CURVE, "a disagreement of at most 0.04", "full"),
        ({"max_error": 0.02}, CURVE, "an error of at most 0.02", 98.0),
        ({"max_disagreement": 0.07}, BLIND, "a disagreement of at most 0.07", 93.0),
        ({"max_error": 0.02, "max_disagreement": 0.07}, BLIND, "a disagreement of at most 0.07", 93.0),
        ({"max_gap": 0.05}, BLIND, None, None),
    ],
)
def test_certificate_is_drawn_as_the_highest_floor_it_lays(
    bounds: dict[str, float], curve: list[CascadeEvaluation], named: str | None, floor: Any
) -> None:
    assert CASCADE.certificate is not None
    none = {"max_gap": None, "max_error": None, "max_disagreement": None}
    certificate = replace(CASCADE.certificate, **(none | bounds), p_values=(0.01, 0.02), chosen=1, delta=0.2)
    if "max_error" in bounds:  # tests the full width first
        certificate = replace(certificate, p_values=(0.01, 0.02, 0.02), chosen=2)
    display = CascadeDisplay(curve, certificate=certificate).plot()
    if named is None:
        assert not any(name.startswith("certified") for name in lines(display))
        return
    (name,) = [name for name in lines(display) if name.startswith("certified")]
    assert name == f"certified: {named},\nwith probability 0.8"
    full = 100 * float((P[2, 600:].argmax(axis=1) == Y[600:]).mean())
    expected = full - 100 * min(bounds.values()) if floor == "full" else floor
    np.testing.assert_allclose(line(display, "certified")[1], expected)


def test_cascade_refuses_what_belongs_to_others() -> None:
    other = Cascade((8, 64), (0.5,))
    frontier = Cascade.frontier(P[:2, :600], Y[:600], nesting=(8, 64))
    oracle = oracle_routing(P[:, 600:], Y[600:], nesting=DIMS)
    certificate = Cascade.certify(P[:, :600], Y[:600], nesting=DIMS, max_gap=0.2).certificate
    assert certificate is not None
    assert certificate.thresholds != CASCADE.thresholds
    calls: list[tuple[dict[str, Any], str]] = [
        ({"curve": []}, "`curve` must hold at least one CascadeEvaluation, got none"),
        ({"curve": [CURVE[0], other]}, "`curve` must hold nothing but CascadeEvaluation, got Cascade among them"),
        ({"curve": CURVE[0]}, "`curve` must be a sequence of CascadeEvaluation, got CascadeEvaluation"),
        ({"frontier": frontier}, r"`frontier` must be of the widths of the curve, \(8, 24, 64\), got \(8, 64\)"),
        ({"frontier": [(other, other)]}, r"`frontier` must hold pairs \(Cascade, CascadeEvaluation\)"),
        ({"oracle": replace(oracle, dims=(8, 64))}, "`oracle` must be of the widths of the curve"),
        ({"oracle": oracle, "curve": BLIND}, "`oracle` must be None for a curve without labels"),
        ({"certificate": certificate}, "`certificate` must be about these thresholds"),
    ]
    for arguments, message in calls:
        with pytest.raises((TypeError, ValueError), match=message):
            CascadeDisplay(**({"curve": CURVE} | arguments))


def test_command_draws_what_the_display_draws() -> None:
    oracle = oracle_routing(P[:, 600:], Y[600:], nesting=DIMS)
    (axes,) = calibrate.figure(CASCADE, CURVE, oracle).axes
    own = CascadeDisplay(CURVE, oracle=oracle, certificate=CASCADE.certificate).plot().ax_
    assert [entry.get_xydata().tolist() for entry in axes.lines] == [entry.get_xydata().tolist() for entry in own.lines]
    assert len(axes.lines) == 4


@pytest.mark.parametrize("timed", [True, False])
def test_funnels_are_marked_and_joined(timed: bool) -> None:
    beaten = FunnelPoint(Funnel((8, 24, 64), (9, 5)), 0.6, 9999, 8e-3)
    points = [*POINTS, beaten] if timed else [replace(point, seconds=None) for point in (*POINTS, beaten)]
    display = FunnelDisplay(points).plot()
    step, *marks = display.ax_.lines
    costs = [1e3 * (p.seconds or 0.0) if timed else p.multiply_adds / 1e6 for p in points]
    np.testing.assert_allclose(
        [mark.get_xydata()[0] for mark in marks], [(c, p.recall) for c, p in zip(costs, points, strict=True)]
    )
    assert [mark.get_marker() for mark in marks] == ["o", "s", "P", "*", "v"]
    front = [i for i, p in enumerate(points) if not any(costs[j] < costs[i] and points[j].recall >= p.recall
                                                        for j in range(5))]  # fmt: skip
    np.testing.assert_allclose(sorted(step.get_ydata()), sorted(points[i].recall for i in front))
    assert display.ax_.get_xlabel() == ("ms per query" if timed else "million multiply-adds per query")
    assert [text.get_text() for text in display.ax_.texts] == ["8", "64b", "64", "8"]


def test_names_of_funnels_leave_each_other_room() -> None:
    points = [FunnelPoint(Funnel((dim, 64), (9,)), 0.9 + dim / 1000, 1000 + dim) for dim in range(1, 40)]
    display = FunnelDisplay([*points, FunnelPoint(Funnel((64,)), 1.0, 64000)]).plot()
    assert [text.get_text() for text in display.ax_.texts] == ["1", "64"]
    spread = [FunnelPoint(Funnel((dim, 64), (9,)), 0.9, cost) for dim, cost in ((1, 1000), (2, 1600), (3, 10_000))]
    display = FunnelDisplay([*spread, FunnelPoint(Funnel((64,)), 1.0, 10**9)]).plot()
    assert [text.get_text() for text in display.ax_.texts] == ["1", "3", "64"]


def test_certificate_of_a_funnel_is_a_line() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 16)) * 0.8 ** np.arange(16)
    found = Funnel.calibrate(Corpus(rows), rows[::2] + 0.01, 3, recall=0.7, delta=0.2, cost="multiply_adds")
    display = FunnelDisplay(POINTS, certificate=found.certificate).plot()
    np.testing.assert_allclose(line(display, "certified: at least 0.7 on average,\nwith probability 0.8")[1], 0.7)
    with pytest.raises(TypeError, match=r"`certificate` must be what `Funnel.calibrate` made, got Certificate"):
        FunnelDisplay(POINTS, certificate=CASCADE.certificate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`points` must all be timed, or none, got both"):
        FunnelDisplay([POINTS[0], replace(POINTS[1], seconds=None)])


def test_evaluations_are_drawn_by_name() -> None:
    display = EvaluationDisplay({"cut": CUT, "rotated": ROTATED}).plot()
    np.testing.assert_allclose(line(display, "cut"), [DIMS, [m / 99 for m in DIMS]])
    np.testing.assert_allclose(line(display, "rotated"), [(8, 16, 64), [m / 66 for m in (8, 16, 64)]])
    assert display.ax_.get_xticks().tolist() == [8, 16, 24, 64]
    assert display.ax_.get_ylabel() == "nDCG@10"
    assert display.ax_.get_title() == "56 queries among 1,234 rows, by cosine similarity"
    other = EvaluationDisplay({"rotated": ROTATED, "cut": replace(CUT, n_rows=9)})
    for measure, name, by in (("mrr@5", "MRR@5", 70), ("ndcg@10", "nDCG@10", 99), (None, "MRR@5", 70)):
        np.testing.assert_allclose(line(other.plot(measure=measure), "cut")[1], [m / by for m in DIMS])
        assert other.ax_.get_ylabel() == name
        assert other.ax_.get_title() == ""
    alone = EvaluationDisplay(CUT).plot().ax_
    np.testing.assert_allclose(alone.lines[0].get_ydata(), [m / 99 for m in DIMS])
    assert alone.get_legend() is None


def test_evaluations_of_other_kinds_are_refused() -> None:
    calls: list[tuple[Any, str]] = [
        ([CUT], "`evaluations` must be an Evaluation or a dict of them, got list; pass what `evaluate` returns"),
        ({}, "`evaluations` must hold at least one Evaluation, got none"),
        ({"cut": CUT, "other": CUT.scores}, "`evaluations` must hold nothing but Evaluation, got dict among them"),
        ({16: CUT}, "`evaluations` must be a string, got int"),
        (
            {"cut": CUT, "other": Evaluation({8: {"recall@1": 1.0}}, "ip", 2, 1)},
            "`evaluations` must have a measure in common, got none; evaluate all with the same `measures`",
        ),
    ]
    for given, message in calls:
        with pytest.raises((TypeError, ValueError), match=message):
            EvaluationDisplay(given)
    with pytest.raises(ValueError, match=r"`measure` must be one of 'mrr@5', 'ndcg@10', got 'map@9'"):
        EvaluationDisplay({"rotated": ROTATED, "cut": CUT}).plot(measure="map@9")


# In a notebook


def words(text: str) -> list[str]:
    """Return the words of a table or a sentence, however they are laid out."""
    return re.sub(r"[\[\],:;]|with probability|over|promise|outcome", " ", text).split()


def shown(value: Any) -> str:
    """Return what a notebook shows as text, after a look at the tags."""
    source = value._repr_html_()
    assert set(re.findall(r"<(/?\w+)", source)) <= {
        f"{end}{tag}" for tag in ("p", "br", "table", "thead", "tbody", "tr", "th", "td") for end in ("", "/")
    }
    assert "color" not in source
    for tag in ("p", "table", "thead", "tbody", "tr", "th", "td"):
        assert len(re.findall(rf"<{tag}\b", source)) == source.count(f"</{tag}>")
    return html.unescape(re.sub(r"<[^>]*>", " ", source))


def test_a_notebook_shows_what_is_printed(report: Audit) -> None:
    assert CASCADE.certificate is not None
    for value in (report, CURVE[-1], BLIND[-1], CASCADE.certificate, CUT):
        assert words(shown(value)) == words(str(value))


def test_the_first_row_of_a_table_names_its_columns_by_default() -> None:
    rows = [("width", "kept"), ("8", "0.5")]
    named = "<thead><tr><th>width</th><th>kept</th></tr></thead>"
    assert named in _pictures.html_table(rows)
    assert _pictures.html_table(rows) == _pictures.html_table(rows, header=True)
    assert "thead" not in _pictures.html_table(rows, header=False)


def test_a_notebook_shows_text_as_text() -> None:
    class Width(int):
        def __str__(self) -> str:
            return "<script>&"

    evil = replace(CURVE[-1], dims=(*DIMS[:2], Width(64)))
    assert "<script" not in evil._repr_html_()
    assert "&lt;script&gt;&amp;" in evil._repr_html_()
    assert "P(wrong, full width right) &lt;= 0.05" in CASCADE.certificate._repr_html_()  # type: ignore[union-attr]


def test_a_certificate_of_recall_is_shown_too() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 4))
    found = Funnel.calibrate(Corpus(rows), rows[:20], 2, cost="multiply_adds").certificate
    assert found is not None
    assert words(shown(found)) == words(str(found))
    assert not isinstance(found, Certificate)
