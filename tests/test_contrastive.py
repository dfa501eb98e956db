"""InfoNCE: values, gradients, options, degenerate batches and errors on every array library."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import Nesting, info_nce, info_nce_with_grad

NESTING = Nesting((2, 3, 7), importance=(2.0, 0.0, 0.5))
N_QUERIES, N_KEYS = 5, 7
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0.3},
    "smoothed": {"temperature": 0.3, "label_smoothing": 0.2},
    "symmetric": {"temperature": 0.3, "symmetric": True},
    "all-options": {"temperature": 2.5, "label_smoothing": 0.1, "symmetric": True},
}
ALL_OPTIONS = pytest.mark.parametrize("options", OPTIONS)
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["one-way", "symmetric"])


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Queries and more keys, of many lengths: nothing here is normalised."""
    rng = np.random.default_rng(21)
    queries = rng.normal(size=(N_QUERIES, NESTING.dim)) * np.array([[0.5], [1.0], [3.0], [20.0], [2.0]])
    return queries, rng.normal(size=(N_KEYS, NESTING.dim)) * np.linspace(0.5, 4.0, N_KEYS)[:, None]


def oracle(queries: np.ndarray, keys: np.ndarray, *, nesting: Nesting = NESTING, **options: Any) -> Any:
    return oracles.losses_info_nce(queries, keys, nesting.dims, importance=nesting.importance, **options)


@functools.cache
def expected_gradients(options: str, reduction: str) -> list[np.ndarray]:
    """Slopes in the queries, the keys and the temperature."""
    queries, keys = pairs()
    keywords = {**OPTIONS[options], "reduction": reduction}
    temperature = np.array(keywords.pop("temperature"))
    return [
        oracles.losses_slope(lambda: oracle(queries, keys, temperature=float(temperature), **keywords)[0], array)
        for array in (queries, keys, temperature)
    ]


@ALL_OPTIONS
def test_the_loss_is_the_sum_over_prefixes(eager_library: Library, options: str) -> None:
    queries, keys = pairs()
    on_library = eager_library.array(queries), eager_library.array(keys)
    for reduction in ("mean", "sum", "none"):
        keywords = {**OPTIONS[options], "reduction": reduction}
        expected, expected_parts = oracle(queries, keys, **keywords)
        total, parts = info_nce(*on_library, nesting=NESTING, return_parts=True, **keywords)
        eager_library.assert_close(total, expected)
        eager_library.assert_close(parts, expected_parts)
        eager_library.assert_close(info_nce(*on_library, nesting=NESTING, **keywords), expected)


@ALL_OPTIONS
@pytest.mark.parametrize("kind", ["float", "array"])
def test_gradients_are_the_slopes_of_the_loss(eager_library: Library, options: str, kind: str) -> None:
    """The gradient in the temperature comes whether it is a float or an array, which may be learned."""
    queries, keys = pairs()
    for reduction in ("mean", "sum"):
        keywords = {**OPTIONS[options], "reduction": reduction}
        expected, expected_parts = oracle(queries, keys, **keywords)
        if kind == "array":
            keywords["temperature"] = eager_library.array(np.array(keywords["temperature"]))
        (total, parts), gradients = info_nce_with_grad(
            eager_library.array(queries), eager_library.array(keys), nesting=NESTING, return_parts=True, **keywords
        )
        eager_library.assert_close(total, expected)
        eager_library.assert_close(parts, expected_parts)
        assert gradients._fields == ("queries", "keys", "temperature")
        for actual, slope in zip(gradients, expected_gradients(options, reduction), strict=True):
            eager_library.assert_close(actual, slope, rtol=max(eager_library.rtol, 1e-8))


def test_the_default_temperature_is_that_of_clip_training() -> None:
    np.testing.assert_allclose(info_nce(*pairs(), nesting=NESTING), oracle(*pairs(), temperature=0.05)[0], rtol=1e-12)


@SYMMETRIC
def test_row_blocks_change_nothing(eager_library: Library, symmetric: bool) -> None:
    queries, keys = pairs()
    options = {"temperature": 0.3, "symmetric": symmetric}
    slopes = expected_gradients("symmetric" if symmetric else "plain", "mean")
    for row_block in (1, 3, N_QUERIES, 100):
        total, gradients = info_nce_with_grad(
            eager_library.array(queries), eager_library.array(keys), nesting=NESTING, row_block=row_block, **options
        )
        eager_library.assert_close(total, oracle(queries, keys, **options)[0])
        for actual, slope in zip(gradients, slopes, strict=True):
            eager_library.assert_close(actual, slope, rtol=max(eager_library.rtol, 1e-8))
    rows = info_nce(
        eager_library.array(queries),
        eager_library.array(keys),
        nesting=NESTING,
        row_block=3,
        reduction="none",
        **options,
    )
    eager_library.assert_close(rows, oracle(queries, keys, reduction="none", **options)[0])


def test_arguments_are_left_as_they_were(eager_library: Library) -> None:
    handed_in = [eager_library.array(array) for array in (*pairs(), np.array(0.3))]
    queries, keys, temperature = handed_in
    for function in (info_nce, info_nce_with_grad):
        function(queries, keys, temperature=temperature, nesting=NESTING, symmetric=True)
    for array, original in zip(handed_in, (*pairs(), np.array(0.3)), strict=True):
        np.testing.assert_array_equal(
            eager_library.to_numpy(array), eager_library.to_numpy(eager_library.array(original))
        )


def test_importance_0_contributes_nothing_and_is_reported() -> None:
    heavy = Nesting(NESTING.dims, importance=(2.0, 1.0, 0.5))
    total, parts = info_nce(*pairs(), nesting=NESTING, return_parts=True)
    _, all_parts = info_nce(*pairs(), nesting=heavy, return_parts=True)
    np.testing.assert_allclose(parts, all_parts, rtol=1e-14)
    np.testing.assert_allclose(total, 2.0 * parts[0] + 0.5 * parts[2], rtol=1e-14)


# Degenerate batches


@SYMMETRIC
def test_a_zero_row_has_similarity_0_and_no_gradient(library: Library, symmetric: bool) -> None:
    queries, keys = pairs()
    queries[1], keys[2] = 0.0, 0.0
    options = {"temperature": 0.3, "symmetric": symmetric}
    total, gradients = info_nce_with_grad(library.array(queries), library.array(keys), nesting=NESTING, **options)
    library.assert_close(total, oracle(queries, keys, **options)[0])
    slopes = [oracles.losses_slope(lambda: oracle(queries, keys, **options)[0], array) for array in (queries, keys)]
    slopes[0][1], slopes[1][2] = 0.0, 0.0
    library.assert_close(gradients.queries, slopes[0], rtol=max(library.rtol, 1e-8))
    library.assert_close(gradients.keys, slopes[1], rtol=max(library.rtol, 1e-8))
    assert not library.to_numpy(gradients.queries)[1].any()
    assert not library.to_numpy(gradients.keys)[2].any()


def test_a_zero_prefix_has_the_gradient_of_the_wider_ones(library: Library) -> None:
    queries, keys = pairs()
    queries[1, :2] = 0.0
    total, gradients = info_nce_with_grad(library.array(queries), library.array(keys), nesting=NESTING)
    library.assert_close(total, oracle(queries, keys)[0])
    wider = Nesting(NESTING.dims, importance=(0.0, *NESTING.importance[1:]))
    slope = oracles.losses_slope(lambda: oracle(queries, keys, nesting=wider)[0], queries)
    library.assert_close(gradients.queries[1, :], slope[1], rtol=max(library.rtol, 1e-7))


@SYMMETRIC
@pytest.mark.parametrize("n_keys", [0, 3])
def test_no_queries_have_loss_0_with_zero_gradients(library: Library, n_keys: int, symmetric: bool) -> None:
    arrays = library.array(np.zeros((0, 7))), library.array(pairs()[1][:n_keys])
    options = {"nesting": NESTING, "symmetric": symmetric, "label_smoothing": 0.1}
    (total, parts), gradients = info_nce_with_grad(*arrays, return_parts=True, **options)
    library.assert_close(total, np.array(0.0), atol=0)
    library.assert_close(parts, np.zeros(3), atol=0)
    for gradient, shape in zip(gradients, [(0, 7), (n_keys, 7), ()], strict=True):
        library.assert_close(gradient, np.zeros(shape), atol=0)
    library.assert_close(info_nce(*arrays, reduction="none", **options), np.zeros(0))


def test_a_single_pair_has_nothing_to_tell_apart(eager_library: Library) -> None:
    queries, keys = pairs()
    total, gradients = info_nce_with_grad(
        eager_library.array(queries[:1]), eager_library.array(keys[:1]), nesting=NESTING, symmetric=True
    )
    eager_library.assert_close(total, np.array(0.0))
    for gradient in gradients:
        eager_library.assert_close(gradient, np.zeros(gradient.shape))


@SYMMETRIC
def test_equal_rows_are_a_guess_among_all(library: Library, symmetric: bool) -> None:
    rows = np.tile(pairs()[0][:1], (N_KEYS, 1))
    total, gradients = info_nce_with_grad(
        library.array(rows[:N_QUERIES]), library.array(2 * rows), nesting=NESTING, symmetric=symmetric
    )
    ways = [math.log(N_KEYS), math.log(N_QUERIES)][: 1 + symmetric]
    library.assert_close(total, np.array(2.5 * sum(ways) / len(ways)))
    library.assert_close(gradients.queries, np.zeros((N_QUERIES, 7)), atol=10 * library.rtol)


def test_a_tiny_temperature_stays_finite(library: Library) -> None:
    queries, keys = pairs()
    options = {"temperature": 1e-4}  # similarities of ±1e4
    total, gradients = info_nce_with_grad(library.array(queries), library.array(keys), nesting=NESTING, **options)
    library.assert_close(total, oracle(queries, keys, **options)[0])
    assert all(np.isfinite(library.to_numpy(gradient)).all() for gradient in gradients)


@SYMMETRIC
def test_half_precision_gives_a_float32_loss(half: Library, symmetric: bool) -> None:
    arrays = [half.array(array) for array in pairs()]
    queries, keys = (half.to_numpy(array).astype(np.float64) for array in arrays)
    options = {"temperature": 0.3, "symmetric": symmetric}
    total, gradients = info_nce_with_grad(*arrays, nesting=NESTING, **options)
    assert str(total.dtype).endswith("float32")
    np.testing.assert_allclose(half.to_numpy(total), oracle(queries, keys, **options)[0], rtol=half.rtol)
    for gradient, array in zip(gradients, (queries, keys), strict=False):
        assert gradient.dtype == arrays[0].dtype
        slope = oracles.losses_slope(lambda: oracle(queries, keys, **options)[0], array)
        values = half.to_numpy(gradient).astype(np.float64)
        np.testing.assert_allclose(values, slope, rtol=2 * half.rtol, atol=half.rtol * np.abs(slope).max())


def test_half_precision_survives_long_rows(half: Library) -> None:
    """Dot products of rows this long overflow float16, their similarities do not."""
    arrays = [half.array(300 * array) for array in pairs()]
    queries, keys = (half.to_numpy(array).astype(np.float64) for array in arrays)
    total, gradients = info_nce_with_grad(*arrays, nesting=NESTING, temperature=0.3)
    np.testing.assert_allclose(half.to_numpy(total), oracle(queries, keys, temperature=0.3)[0], rtol=half.rtol)
    assert all(np.isfinite(half.to_numpy(gradient).astype(np.float32)).all() for gradient in gradients)


# Properties


@st.composite
def problems(draw: st.DrawFn) -> tuple[Nesting, np.ndarray, np.ndarray, dict[str, Any]]:
    dims = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)))
    importance = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(dims), max_size=len(dims)))
    nesting = Nesting(dims, importance if any(importance) else None)
    n = draw(st.integers(1, 6))
    n_keys = n + draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    options = {
        "temperature": draw(st.sampled_from([0.05, 0.5, 2.0])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "symmetric": draw(st.booleans()),
        "row_block": draw(st.one_of(st.none(), st.integers(1, 9))),
    }
    return nesting, rng.normal(size=(n, nesting.dim)), rng.normal(size=(n_keys, nesting.dim)), options


@settings(max_examples=40)
@given(problems())
def test_one_full_width_prefix_is_the_plain_loss(problem: tuple[Any, ...]) -> None:
    _, queries, keys, options = problem
    n, s = len(queries), options["label_smoothing"]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, keys)]
    ways = [unit[0] @ unit[1].T, unit[1][:n] @ unit[0].T][: 2 if options["symmetric"] else 1]
    losses = []
    for similarities in ways:
        log_p = similarities / options["temperature"]
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        losses.append(-((1 - s) * np.diag(log_p) + s * log_p.mean(axis=1)).mean())
    nested = info_nce(queries, keys, nesting=(queries.shape[1],), **options)
    np.testing.assert_allclose(nested, np.mean(losses), rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(problems(), st.floats(1e-3, 1e3))
def test_lengths_do_not_matter(problem: tuple[Any, ...], scale: float) -> None:
    nesting, queries, keys, options = problem
    loss = info_nce(queries, keys, nesting=nesting, **options)
    np.testing.assert_allclose(
        info_nce(scale * queries, keys / scale, nesting=nesting, **options), loss, rtol=1e-9, atol=1e-9
    )


@settings(max_examples=40)
@given(problems())
def test_the_rows_of_none_sum_to_sum(problem: tuple[Any, ...]) -> None:
    nesting, queries, keys, options = problem
    rows, parts = info_nce(queries, keys, nesting=nesting, reduction="none", return_parts=True, **options)
    total, sums = info_nce(queries, keys, nesting=nesting, reduction="sum", return_parts=True, **options)
    np.testing.assert_allclose(rows.sum(), total, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(parts.sum(axis=1), sums, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.dot(nesting.importance, parts), rows, rtol=1e-10, atol=1e-12)


@settings(max_examples=40)
@given(problems())
def test_symmetric_without_extra_keys_is_the_same_both_ways(problem: tuple[Any, ...]) -> None:
    nesting, queries, keys, options = problem
    options, keys = {**options, "symmetric": True}, keys[: len(queries)]
    one = info_nce(queries, keys, nesting=nesting, **options)
    np.testing.assert_allclose(info_nce(keys, queries, nesting=nesting, **options), one, rtol=1e-10, atol=1e-12)


# Bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"queries": np.ones((5, 8))}, ValueError, r"the last axis of `queries` must be .*, 7, got shape \(5, 8\)"),
        ({"keys": np.ones((7, 8))}, ValueError, r"the last axis of `keys` must be .*, 7, got shape \(7, 8\)"),
        ({"keys": np.ones((7, 3))}, ValueError, r"the last axis of `keys` must be as wide as the nesting"),
        ({"queries": np.ones((2, 2, 7))}, ValueError, r"`queries` must have shape \(n, dim\), got \(2, 2, 7\)"),
        ({"keys": np.ones(7)}, ValueError, r"`keys` must have shape \(n, dim\), got \(7,\)"),
        ({"keys": np.ones((3, 7))}, ValueError, "`keys` must have a row for each of the 5 queries, got 3"),
        ({"queries": np.ones((5, 7), int)}, TypeError, "`queries` must hold floating-point numbers, got dtype int64"),
        (
            {"keys": np.ones((7, 7), "f")},
            TypeError,
            "`queries` and `keys` must have one dtype, got float64 and float32",
        ),
        ({"keys": [[1.0] * 7] * 7}, TypeError, "`keys` must be an array"),
        ({"temperature": 0.0}, ValueError, r"`temperature` must be finite and in \(0, inf\], got 0.0"),
        ({"temperature": -1}, ValueError, "`temperature` must be finite and in"),
        ({"temperature": np.nan}, ValueError, "`temperature` must be finite and in"),
        ({"temperature": np.array(0.0)}, ValueError, "`temperature` must be finite and in"),
        ({"temperature": np.array([0.1])}, ValueError, r"`temperature` must have shape \(\), got \(1,\)"),
        ({"temperature": np.array(1)}, TypeError, "`temperature` must hold floating-point numbers, got dtype int64"),
        ({"temperature": "0.1"}, TypeError, "`temperature` must be"),
        ({"temperature": True}, TypeError, "`temperature` must be"),
        ({"temperature": None}, TypeError, "`temperature` must be"),
        ({"label_smoothing": 2.0}, ValueError, r"`label_smoothing` must be finite and in \[0, 1\], got 2.0"),
        ({"reduction": "average"}, ValueError, "`reduction` must be one of 'mean', 'sum', 'none', got 'average'"),
        ({"row_block": -1}, ValueError, "`row_block` must be an integer >= 1, got -1"),
        ({"nesting": (3, 2)}, ValueError, "`nesting` must be positive and strictly increasing"),
        ({"nesting": 7}, TypeError, "`nesting` must be a sequence of integers, got int 7"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    queries, keys = pairs()
    for function in (info_nce, info_nce_with_grad):
        arguments = {"queries": queries, "keys": keys, "nesting": NESTING, **changes}
        with pytest.raises(error, match=message):
            function(arguments.pop("queries"), arguments.pop("keys"), **arguments)


def test_gradients_of_none_are_refused() -> None:
    with pytest.raises(ValueError, match="`reduction` must be one of 'mean', 'sum', got 'none'"):
        info_nce_with_grad(*pairs(), nesting=NESTING, reduction="none")


@pytest.mark.parametrize("name", ["keys", "temperature"])
def test_arrays_of_two_libraries_or_devices_are_refused(name: str) -> None:
    strict = load("array_api_strict")
    queries, keys = pairs()
    arrays = {"keys": keys, "temperature": np.array(0.1)}
    elsewhere = strict.asarray(arrays[name], device=strict.Device("device1"))
    mixed = {**arrays, name: elsewhere}
    with pytest.raises(TypeError, match=rf"`queries` and `{name}` must come from one array library, got numpy"):
        info_nce(queries, mixed.pop("keys"), nesting=NESTING, **mixed)
    here = {key: strict.asarray(value, device=strict.Device("CPU_DEVICE")) for key, value in arrays.items()}
    mixed = {**here, name: elsewhere}
    with pytest.raises(ValueError, match=rf"`queries` and `{name}` must lie on one device"):
        info_nce(
            strict.asarray(queries, device=strict.Device("CPU_DEVICE")), mixed.pop("keys"), nesting=NESTING, **mixed
        )
