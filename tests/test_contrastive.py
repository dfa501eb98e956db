"""InfoNCE: degenerate batches, properties and errors, beyond what holds for every loss, on every array library."""

from __future__ import annotations

import math
from typing import Any

import cases
import numpy as np
import oracles
import pytest
from cases import KINDS, N_KEYS, N_QUERIES, NESTING, call
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import Nesting, info_nce, info_nce_with_grad

PAIRS = KINDS["info-nce"]
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["one-way", "symmetric"])


def test_the_default_temperature_is_that_of_clip_training() -> None:
    np.testing.assert_allclose(
        info_nce(*PAIRS.arrays(), nesting=NESTING), PAIRS.oracle(PAIRS.arrays(), temperature=0.05)[0], rtol=1e-12
    )


# Degenerate batches


@SYMMETRIC
def test_a_zero_row_has_similarity_0_and_no_gradient(library: Library, symmetric: bool) -> None:
    queries, keys = PAIRS.arrays()
    queries[1], keys[2] = 0.0, 0.0
    options = {"temperature": 0.3, "symmetric": symmetric}
    total, gradients = info_nce_with_grad(library.array(queries), library.array(keys), nesting=NESTING, **options)
    library.assert_close(total, PAIRS.oracle((queries, keys), **options)[0])
    slopes = cases.slopes("info-nce", (queries, keys), **options)
    slopes[0][1], slopes[1][2] = 0.0, 0.0
    library.assert_close(gradients.queries, slopes[0], rtol=max(library.rtol, 1e-8))
    library.assert_close(gradients.keys, slopes[1], rtol=max(library.rtol, 1e-8))
    assert not library.to_numpy(gradients.queries)[1].any()
    assert not library.to_numpy(gradients.keys)[2].any()


def test_a_zero_prefix_has_the_gradient_of_the_wider_ones(library: Library) -> None:
    queries, keys = PAIRS.arrays()
    queries[1, :2] = 0.0
    total, gradients = info_nce_with_grad(library.array(queries), library.array(keys), nesting=NESTING)
    library.assert_close(total, PAIRS.oracle((queries, keys))[0])
    wider = Nesting(NESTING.dims, importance=(0.0, *NESTING.importance[1:]))
    slope = oracles.losses_slope(lambda: PAIRS.oracle((queries, keys), nesting=wider)[0], queries)
    library.assert_close(gradients.queries[1, :], slope[1], rtol=max(library.rtol, 1e-7))


@SYMMETRIC
@pytest.mark.parametrize("n_keys", [0, 3])
def test_no_queries_have_loss_0_with_zero_gradients(library: Library, n_keys: int, symmetric: bool) -> None:
    arrays = library.array(np.zeros((0, 7))), library.array(PAIRS.arrays()[1][:n_keys])
    options = {"nesting": NESTING, "symmetric": symmetric, "label_smoothing": 0.1}
    (total, parts), gradients = info_nce_with_grad(*arrays, return_parts=True, **options)
    library.assert_close(total, np.array(0.0), atol=0)
    library.assert_close(parts, np.zeros(3), atol=0)
    for gradient, shape in zip(gradients, [(0, 7), (n_keys, 7), ()], strict=True):
        library.assert_close(gradient, np.zeros(shape), atol=0)
    library.assert_close(info_nce(*arrays, reduction="none", **options), np.zeros(0))


def test_a_single_pair_has_nothing_to_tell_apart(eager_library: Library) -> None:
    queries, keys = PAIRS.arrays()
    total, gradients = info_nce_with_grad(
        eager_library.array(queries[:1]), eager_library.array(keys[:1]), nesting=NESTING, symmetric=True
    )
    eager_library.assert_close(total, np.array(0.0))
    for gradient in gradients:
        eager_library.assert_close(gradient, np.zeros(gradient.shape))


@SYMMETRIC
def test_equal_rows_are_a_guess_among_all(library: Library, symmetric: bool) -> None:
    rows = np.tile(PAIRS.arrays()[0][:1], (N_KEYS, 1))
    total, gradients = info_nce_with_grad(
        library.array(rows[:N_QUERIES]), library.array(2 * rows), nesting=NESTING, symmetric=symmetric
    )
    ways = [math.log(N_KEYS), math.log(N_QUERIES)][: 1 + symmetric]
    library.assert_close(total, np.array(2.5 * sum(ways) / len(ways)))
    library.assert_close(gradients.queries, np.zeros((N_QUERIES, 7)), atol=10 * library.rtol)


def test_a_tiny_temperature_stays_finite(library: Library) -> None:
    queries, keys = PAIRS.arrays()
    options = {"temperature": 1e-4}  # similarities of ±1e4
    total, gradients = info_nce_with_grad(library.array(queries), library.array(keys), nesting=NESTING, **options)
    library.assert_close(total, PAIRS.oracle((queries, keys), **options)[0])
    assert all(np.isfinite(library.to_numpy(gradient)).all() for gradient in gradients)


def test_half_precision_survives_long_rows(half: Library) -> None:
    """Dot products of rows this long overflow float16, their similarities do not."""
    arrays = [half.array(300 * array) for array in PAIRS.arrays()]
    queries, keys = (half.to_numpy(array).astype(np.float64) for array in arrays)
    total, gradients = info_nce_with_grad(*arrays, nesting=NESTING, temperature=0.3)
    np.testing.assert_allclose(half.to_numpy(total), PAIRS.oracle((queries, keys), temperature=0.3)[0], rtol=half.rtol)
    assert all(np.isfinite(half.to_numpy(gradient).astype(np.float32)).all() for gradient in gradients)


def test_bfloat16_survives_rows_whose_inverse_length_is_infinite() -> None:
    torch = load("torch")
    queries, keys, negatives = (torch.tensor(array, dtype=torch.bfloat16) for array in KINDS["info-nce-hard"].arrays())
    short = [rows * 1e-39 for rows in (queries, keys, negatives)]
    expected = info_nce(*(rows.double() for rows in short[:2]), nesting=NESTING, negatives=short[2].double())
    found = info_nce(*short[:2], nesting=NESTING, negatives=short[2])
    assert float(found) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize("temperature", [0.3, np.float32(0.3), np.array(0.3)], ids=repr)
def test_masks_and_targets_that_leave_nothing_to_find_are_no_plausible_number(
    eager_library: Library, temperature: Any
) -> None:
    """Where they cannot be read, that is; errors for those that can stand below."""
    if eager_library.name != "array_api_strict":
        pytest.skip("where it is an error")
    arrays = cases.put(eager_library, PAIRS.arrays())
    temperature = cases.put(eager_library, temperature) if isinstance(temperature, np.ndarray) else temperature
    mask, targets = cases.MASK.copy(), cases.TAUGHT.copy()
    mask[2, 2], targets[3] = False, 0.0
    for options, bad in (({"mask": mask}, 2), ({"targets": targets}, 3)):
        options = {"nesting": NESTING, "temperature": temperature, **cases.put(eager_library, options)}
        rows = eager_library.to_numpy(info_nce(*arrays, reduction="none", **options))
        assert np.isnan(rows).tolist() == [row == bad for row in range(N_QUERIES)]
        assert math.isnan(float(eager_library.to_numpy(info_nce_with_grad(*arrays, **options)[0])))


def test_a_share_of_what_is_excluded_as_small_as_rounding_counts_nothing(library: Library) -> None:
    arrays, given = cases.put(library, PAIRS.arrays()), cases.put(library, {"mask": cases.MASK})
    dirty = np.where(cases.MASK, cases.TAUGHT, 2e-4 * (np.arange(N_KEYS) == 3))  # as a teacher's softmax gives it
    found, expected = (
        info_nce_with_grad(*arrays, nesting=NESTING, targets=library.array(targets), **given)
        for targets in (dirty, cases.TAUGHT)
    )
    for one, other in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        np.testing.assert_array_equal(library.to_numpy(one), library.to_numpy(other))


def test_a_query_without_any_negative_has_loss_0() -> None:
    one = [array[:1] for array in PAIRS.arrays()]
    assert info_nce(*one, nesting=NESTING, mask=np.array([[True]])) == 0.0
    rows = info_nce(*PAIRS.arrays(), nesting=NESTING, mask=cases.MASK, reduction="none")
    assert rows[1] == 0.0
    assert (np.delete(rows, 1) > 0).all()


def test_no_hard_negatives_are_as_good_as_none() -> None:
    queries, keys = PAIRS.arrays()
    without = info_nce(queries, keys, nesting=NESTING)
    assert info_nce(queries, keys, nesting=NESTING, negatives=np.ones((N_QUERIES, 0, 7))) == without


def test_a_mask_may_speak_of_the_hard_negatives_too(eager_library: Library) -> None:
    hard, mask = KINDS["info-nce-hard"], np.concatenate([cases.MASK, np.ones((N_QUERIES, 2), bool)], axis=1)
    mask[[0, 3], [N_KEYS, N_KEYS + 1]] = False
    for more in ({}, {"symmetric": True, "label_smoothing": 0.1}, {"targets": cases.TAUGHT}):
        options: dict[str, Any] = {"temperature": np.array(0.3), "mask": mask, **more}
        loss, gradients = hard.with_grad(cases.put(eager_library, hard.arrays()), **cases.put(eager_library, options))
        eager_library.assert_close(loss, hard.oracle(hard.arrays(), **options)[0])
        slopes = cases.slopes("info-nce-hard", hard.arrays(), **options)
        for found, slope in zip(gradients, slopes, strict=True):
            eager_library.assert_close(found, slope, rtol=max(eager_library.rtol, 1e-8))
        assert not eager_library.to_numpy(gradients[2])[[0, 3], [0, 1]].any()


def test_a_temperature_may_be_in_half_precision(half: Library) -> None:
    arrays = [half.array(array) for array in PAIRS.arrays()]
    loss = info_nce(*arrays, nesting=NESTING, temperature=half.array(np.array(0.5)))
    np.testing.assert_allclose(half.to_numpy(loss), PAIRS.oracle(PAIRS.arrays(), temperature=0.5)[0], rtol=3e-2)
    with pytest.raises(ValueError, match="`temperature` must be finite and in"):
        info_nce(*arrays, nesting=NESTING, temperature=half.array(np.array(-0.5)))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_none_is_no_plausible_number(eager_library: Library, value: float) -> None:
    arrays, temperature = cases.put(eager_library, PAIRS.arrays()), eager_library.array(np.array(value))
    if eager_library.name == "numpy" or eager_library.device == "cpu":
        with pytest.raises(ValueError, match="`temperature` must be finite and in"):
            info_nce(*arrays, nesting=NESTING, temperature=temperature)
        return
    assert math.isnan(float(eager_library.to_numpy(info_nce(*arrays, nesting=NESTING, temperature=temperature))))


def test_nt_xent_of_simclr_is_a_mask(rng: np.random.Generator) -> None:
    """Chen et al. (2020), equation 1: two views of each image, the partner among all others but oneself."""
    one, two = rng.normal(size=(2, 4, 7))
    queries, keys = np.concatenate([one, two]), np.concatenate([two, one])
    mask = ~np.roll(np.eye(8, dtype=bool), 4, axis=1)  # oneself stands half a batch further among the keys
    expected = 0.0
    for c, m in zip(NESTING.importance, NESTING, strict=True):
        unit = queries[:, :m] / np.linalg.norm(queries[:, :m], axis=1, keepdims=True)
        s = unit @ unit.T / 0.5
        for i in range(8):
            others = [math.exp(s[i, j]) for j in range(8) if j != i]
            expected += c * -math.log(math.exp(s[i, (i + 4) % 8]) / sum(others)) / 8
    np.testing.assert_allclose(info_nce(queries, keys, nesting=NESTING, temperature=0.5, mask=mask), expected)


# Properties


@st.composite
def problems(draw: st.DrawFn) -> tuple[Nesting, np.ndarray, np.ndarray, dict[str, Any]]:
    nesting = draw(cases.nestings())
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
        (
            {"negatives": np.ones((5, 2, 8))},
            ValueError,
            "the last axis of `negatives` must be as wide as the nesting, 7",
        ),
        ({"negatives": np.ones((5, 7))}, ValueError, r"`negatives` must have shape \(n, h, dim\), got \(5, 7\)"),
        (
            {"negatives": np.ones((4, 2, 7))},
            ValueError,
            r"`negatives` must have shape .* = \(5, 2, 7\), got \(4, 2, 7\)",
        ),
        ({"negatives": np.ones((5, 2, 7), "f")}, TypeError, "`queries` and `negatives` must have one dtype"),
        ({"negatives": np.ones((5, 2, 7), int)}, TypeError, "`negatives` must hold floating-point numbers"),
        ({"mask": np.ones((5, 7))}, TypeError, "`mask` must be boolean, got dtype float64; make it True"),
        ({"mask": np.ones((5, 5), bool)}, ValueError, r"`mask` must have shape \(n, n_keys\) = \(5, 7\), got \(5, 5\)"),
        ({"mask": ~np.eye(5, 7, dtype=bool)}, ValueError, "every row of `mask` must leave its positive, got 5 of 5"),
        (
            {"mask": np.eye(5, 7, dtype=bool)},
            ValueError,
            "`mask` must leave a negative to some query, got one of shape",
        ),
        ({"targets": np.eye(5)}, ValueError, r"`targets` must have shape \(n, n_keys\) = \(5, 7\), got \(5, 5\)"),
        ({"targets": np.eye(5, 7, dtype=int)}, TypeError, "`targets` must hold floating-point numbers"),
        (
            {"targets": np.ones((5, 7))},
            ValueError,
            "every row of `targets` must be shares >= 0 that sum to one over .*, got 5 of 5 that do",
        ),
        (
            {"targets": np.eye(5, 7), "mask": cases.MASK ^ np.eye(5, 7, dtype=bool)},
            ValueError,
            "every row of `targets`",
        ),
        ({"nesting": (3, 2)}, ValueError, "`nesting` must be positive and strictly increasing"),
        ({"nesting": 7}, TypeError, "`nesting` must be a sequence of integers, got int 7"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    for method in ("loss", "with_grad"):
        with pytest.raises(error, match=message):
            call("info-nce", method, **changes)


EXTREME = {"float32": (1e19, 1e30, 1e-19, 1e-22, 1e-30), "float64": (1e19, 1e200, 1e-22, 1e-200)}


@pytest.mark.parametrize("side", ["queries", "keys", "one row"])
def test_the_length_of_rows_does_not_matter(library: Library, side: str) -> None:
    plain = [np.asarray(array, np.float32).astype(np.float64) for array in PAIRS.arrays()]
    expected, gradients = info_nce_with_grad(*map(library.array, plain), nesting=NESTING)
    for factor in EXTREME[library.dtype_name]:
        queries, keys = (array.copy() for array in plain)
        scaled = keys if side == "keys" else queries
        scaled[slice(1) if side == "one row" else slice(None)] *= factor
        total, found = info_nce_with_grad(library.array(queries), library.array(keys), nesting=NESTING)
        library.assert_close(total, library.to_numpy(expected), rtol=max(library.rtol, 1e-6))
        library.assert_close(
            found.keys if side == "one row" else found.temperature,
            library.to_numpy(gradients.keys if side == "one row" else gradients.temperature),
            rtol=max(10 * library.rtol, 1e-5),
        )
        if side == "queries":
            slopes = library.to_numpy(found.queries).astype(np.float64) * factor
            np.testing.assert_allclose(slopes, library.to_numpy(gradients.queries), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_beside_extreme_ones_keep_every_digit(dtype: str) -> None:
    queries, keys = (array.astype(dtype) for array in PAIRS.arrays())
    before = info_nce(queries, keys, nesting=NESTING, reduction="none")
    queries[-1] *= np.asarray(2.0**80, dtype)
    after = info_nce(queries, keys, nesting=NESTING, reduction="none")
    assert before.tolist() == after.tolist()
