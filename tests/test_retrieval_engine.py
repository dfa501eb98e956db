"""matryoshka.retrieval.engine: what engines with some widths or codes are asked and answer, beside `Corpus`'s tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import load

from matryoshka import Funnel
from matryoshka.retrieval import engine

SOME: dict[str, Any] = {"starts": (6, 12), "stored": (6, 12, 18, 24)}


@pytest.mark.parametrize(
    ("dim", "funnel", "given", "expected"),
    [
        (None, None, False, ((24,), (5,))),
        (18, None, False, ((18,), (5,))),
        (None, Funnel((6, 18, 24), (60, 20)), False, ((6, 18, 24), (60, 20, 5))),
        (None, Funnel((12, 12), (60,), code="bits"), False, ((12, 12), (60, 5))),
        (None, Funnel((24,)), False, ((24,), (5,))),
        (None, Funnel((18, 24), (60,)), True, ((18, 24), (60, 5))),
        (None, Funnel((24,), code="bits"), True, ((24,), (5,))),
    ],
)
def test_stages_where_some_widths_are_stored(dim: Any, funnel: Any, given: bool, expected: Any) -> None:
    assert engine.stages(24, 2, 5, dim=dim, funnel=funnel, given=given, **SOME) == expected


@pytest.mark.parametrize(
    ("dim", "funnel", "given", "message"),
    [
        (7, None, False, r"`dim` must be of the widths that are stored, \(6, 12, 18, 24\), got 7; choose among these"),
        (None, Funnel((6, 8, 24), (60, 20)), False, "`funnel.dims` must be of the widths that are stored, .*, got 8; "),
        (None, Funnel((6, 8), (60,)), True, "`funnel.dims` must be of the widths that are stored"),
        (None, Funnel((18, 24), (60,)), False, r"`funnel` must start at one of the `search_dims`, \(6, 12\), got 18; "),
        (None, Funnel((24,), code="bits"), False, "`funnel` must start at one of the `search_dims`, .*, got 24; "),
    ],
)
def test_other_widths_are_refused(dim: Any, funnel: Any, given: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.stages(24, 2, 5, dim=dim, funnel=funnel, given=given, **SOME)


@pytest.mark.parametrize("k", [0, -1])
def test_nothing_is_no_number_of_results_or_columns(k: int) -> None:
    with pytest.raises(ValueError, match=f"`k` must be an integer >= 1, got {k}"):
        engine.stages(24, 2, k, dim=None, funnel=None)
    with pytest.raises(ValueError, match=rf"`dim` must be an integer in \[1, 24\], got {k}"):
        engine.stages(24, 2, 5, dim=k, funnel=None)


def test_funnels_stay_within_the_width() -> None:
    with pytest.raises(ValueError, match=r"`funnel.dims` must lie within \[1, 24\]"):
        engine.stages(24, 2, 5, dim=None, funnel=Funnel((6, 25), (60,)))


def test_by_default_any_width_serves() -> None:
    assert engine.stages(24, 2, 5, dim=None, funnel=Funnel((7, 9), (60,), code="bits")).dims == (7, 9)
    assert engine.stages(24, 2, 5, dim=7, funnel=None).dims == (7,)


def test_candidates_are_one_row_of_integers_for_each_query() -> None:
    ids = np.array([[3, -1], [0, 9]])
    assert engine.candidate_ids(ids, np.zeros((2, 6))).tolist() == ids.tolist()
    assert engine.candidate_ids(ids[:, :0], np.zeros((2, 6))).shape == (2, 0)
    for bad, error, message in (
        (ids * 1.0, TypeError, "`ids` must hold integers, got dtype float64; pass the ids that a search returned"),
        (ids[0], ValueError, r"`ids` must have shape \(n_queries, m\), got \(2,\)"),
        (ids[:1], ValueError, r"`ids` must have shape \(n_queries, m\) = \(2, 2\), got \(1, 2\)"),
    ):
        with pytest.raises(error, match=message):
            engine.candidate_ids(bad, np.zeros((2, 6)))


def test_queries_are_compared_in_float32_at_unit_length_under_cosine_only() -> None:
    queries = np.array([[3e-30, 4e-30, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    for metric in ("ip", "l2"):
        found = engine.queries_in_float32(queries, 3, metric)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, queries.astype(np.float32))
    found = engine.queries_in_float32(queries, 3, "cosine")
    np.testing.assert_allclose(found, [[0.6, 0.8, 0.0], [0.0, 0.0, 0.0], [1 / 3, 2 / 3, 2 / 3]], rtol=1e-7)
    for bad, error, message in (
        (queries.astype(int), TypeError, "`queries` must hold floating-point numbers"),
        (queries[0], ValueError, r"`queries` must have shape \(n_queries, dim\), got \(3,\)"),
        (queries[:, :2], ValueError, r"`queries` must have shape \(n_queries, dim\) = \(3, 3\), got \(3, 2\)"),
        (queries * 1e39, ValueError, r"`queries` must be finite, got .* in 1 of 3 rows \(first: 2\)"),
    ):
        with pytest.raises(error, match=message):
            engine.queries_in_float32(bad, 3, "ip")


def test_the_width_that_an_engine_stores() -> None:
    assert (engine.width(np.zeros((0, 6)), 6), engine.width(np.zeros((3, 1)), 6)) == (6, 1)
    for bad, error, message in (
        (np.zeros((2, 7)), ValueError, r"`embeddings.shape\[1\]` must be an integer in \[1, 6\], got 7"),
        (np.zeros((2, 0)), ValueError, r"`embeddings.shape\[1\]` must be an integer in \[1, 6\], got 0"),
        (np.zeros(6), ValueError, r"`embeddings` must have shape \(n, dim\), got \(6,\)"),
        (np.zeros((2, 6), int), TypeError, "`embeddings` must hold floating-point numbers"),
    ):
        with pytest.raises(error, match=message):
            engine.width(bad, 6)


def test_what_was_found_is_laid_out_by_query() -> None:
    found = [(0, 7, 0.5), (0, 2, 0.25), (2, 9, 1.0), (2, 1, 0.5), (2, 3, 0.5)]
    scores, ids = engine.results(found, np.zeros((4, 6)), 3)
    assert ids.tolist() == [[7, 2, -1], [-1] * 3, [9, 1, 3], [-1] * 3]
    assert scores.tolist() == [[0.5, 0.25, -np.inf], [-np.inf] * 3, [1, 0.5, 0.5], [-np.inf] * 3]
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
    assert engine.results([], np.zeros((0, 6)), 3)[1].shape == (0, 3)


def test_ids_that_the_library_of_the_queries_does_not_hold_are_refused() -> None:
    queries = load("jax.numpy").zeros((1, 6))  # whose integers have 32 bits unless more are asked for
    assert engine.results([(0, 2**31 - 1, 0.5)], queries, 1)[1].tolist() == [[2**31 - 1]]
    with pytest.raises(ValueError, match="`queries` must come from a library that holds the ids, up to 1099511627783"):
        engine.results([(0, 2**40 + 7, 0.5)], queries, 1)
    assert engine.results([(0, 2**40 + 7, 0.5)], np.zeros((1, 6)), 1)[1].tolist() == [[2**40 + 7]]


def test_rows_are_stored_in_float32_and_named_where_they_are_not_finite() -> None:
    rows = np.arange(24.0).reshape(8, 3)
    stored = engine.rows_in_float32(rows, slice(2, 5))
    assert (stored.dtype, stored.tolist()) == (np.dtype("<f4"), rows[2:5].tolist())
    rows[7, 1] = 1e39  # which float32 does not hold
    with pytest.raises(ValueError, match=r"`embeddings` must be finite, got .* in 1 of 8 rows \(first: 7\)"):
        engine.rows_in_float32(rows, slice(5, 8))
