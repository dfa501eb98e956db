"""nested_loss: any loss over prefixes of its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import NESTING
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st

from matryoshka import nested_loss
from matryoshka._array import namespace


def mse(a: Any, b: Any) -> Any:
    xp = namespace(("a", a))
    return xp.mean((a - b) ** 2)


def cosine(a: Any, b: Any) -> Any:
    """One number a row."""
    xp = namespace(("a", a))
    norms = xp.sqrt(xp.sum(a * a, axis=-1)) * xp.sqrt(xp.sum(b * b, axis=-1))
    return 1 - xp.sum(a * b, axis=-1) / norms


def triplet(anchor: Any, positive: Any, negative: Any) -> Any:
    xp = namespace(("anchor", anchor))
    gap = xp.sum((anchor - positive) ** 2, axis=-1) - xp.sum((anchor - negative) ** 2, axis=-1)
    return xp.mean(xp.where(gap > -1, gap + 1, 0 * gap))


def loop_mse(a: np.ndarray, b: np.ndarray) -> float:
    squares = [(float(x) - float(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    return sum(squares) / len(squares)


def loop_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array(
        [
            1 - sum(x * y for x, y in zip(p, q, strict=True)) / math.hypot(*p) / math.hypot(*q)
            for p, q in zip(a.tolist(), b.tolist(), strict=True)
        ]
    )


def loop_triplet(anchor: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    hinges = []
    for a, p, n in zip(anchor, positive, negative, strict=True):
        hinges.append(max(0.0, math.dist(a, p) ** 2 - math.dist(a, n) ** 2 + 1))
    return sum(hinges) / len(hinges)


def prefix(rows: np.ndarray, width: int, normalize: bool) -> np.ndarray:
    cut = [row[:width] for row in rows.tolist()]
    return np.array([[x / math.hypot(*row) for x in row] if normalize else row for row in cut])


@pytest.mark.parametrize("normalize", [False, True], ids=["as-is", "normalized"])
@pytest.mark.parametrize(
    ("loss", "loop", "n_arrays"),
    [(mse, loop_mse, 2), (cosine, loop_cosine, 2), (triplet, loop_triplet, 3)],
    ids=["mse", "cosine", "triplet"],
)
def test_any_loss_is_summed_over_prefixes_of_all_its_arrays(
    library: Library,
    rng: np.random.Generator,
    loss: Callable[..., Any],
    loop: Callable[..., Any],
    n_arrays: int,
    normalize: bool,
) -> None:
    arrays = [rng.normal(size=(5, 7)) * scale for scale in (1.0, 2.0, 0.5)[:n_arrays]]
    expected_parts = np.array([loop(*(prefix(rows, m, normalize) for rows in arrays)) for m in NESTING])
    on_library = [library.array(rows) for rows in arrays]
    options = {"nesting": NESTING, "normalize": normalize}
    total, parts = nested_loss(loss, *on_library, return_parts=True, **options)
    library.assert_close(parts, expected_parts)
    library.assert_close(total, 2.0 * expected_parts[0] + 0.5 * expected_parts[2])
    library.assert_close(nested_loss(loss, *on_library, **options), 2.0 * expected_parts[0] + 0.5 * expected_parts[2])


def test_a_teacher_can_be_reached_at_every_prefix_only_if_renormalised(
    library: Library, rng: np.random.Generator
) -> None:
    """Its owner normalised it at full width; the student repeats it, at another length."""
    teacher = rng.normal(size=(5, 7))
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    student = 4.0 * teacher  # a power of two: the same prefixes to the last bit
    total, parts = nested_loss(
        mse, library.array(student), library.array(teacher), nesting=NESTING, normalize=True, return_parts=True
    )
    library.assert_close(parts, np.zeros(3), atol=0)
    library.assert_close(total, np.array(0.0), atol=0)
    assert nested_loss(mse, prefix(teacher, 7, True), teacher / 2, nesting=NESTING) > 0.01


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sets(st.integers(1, 9), min_size=1), st.integers(-20, 20))
def test_a_perfect_student_has_no_distillation_loss_at_any_prefix(seed: int, dims: set[int], exponent: int) -> None:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(3, max(dims)))
    student = teacher * 2.0**exponent
    _, parts = nested_loss(mse, student, teacher, nesting=sorted(dims), normalize=True, return_parts=True)
    assert parts.tolist() == [0.0] * len(dims)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_one_full_width_prefix_is_the_plain_loss(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4, dim))
    assert nested_loss(mse, a, b, nesting=(dim,)) == mse(a, b)


def test_leading_axes_reach_the_loss() -> None:
    seen = []
    nested_loss(lambda a: seen.append(a.shape) or a.sum(), np.ones((2, 3, 7)), nesting=NESTING)
    assert seen == [(2, 3, 2), (2, 3, 3), (2, 3, 7)]


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_row_with_a_zero_prefix_has_a_finite_gradient(name: str) -> None:
    """As a ReLU makes them; where the prefix is zero, unit length has no slope, and the gradient there is 0."""
    library = load(name)
    rows = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]], "float32")
    teacher = np.array([[0.3, -1.0, 2.0], [1.0, 0.5, 1.0], [2.0, 1.0, 0.0]], "float32")

    def loss(student: Any, target: Any) -> Any:
        return nested_loss(mse, student, target, nesting=(2, 3), normalize=True)

    if name == "torch":
        student = library.tensor(rows, requires_grad=True)
        loss(student, library.tensor(teacher)).backward()
        gradient = student.grad.numpy()
    else:
        gradient = np.asarray(library.grad(loss)(library.numpy.asarray(rows), library.numpy.asarray(teacher)))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0
    step = np.zeros((3, 3))
    step[0, 0] = 1e-3
    above, below = (float(loss(rows.astype(float) + sign * step, teacher.astype(float))) for sign in (1, -1))
    assert gradient[0, 0] == pytest.approx((above - below) / 2e-3, rel=1e-3)


def test_a_loss_with_a_number_for_each_column_is_refused(library: Library) -> None:
    rows = library.array(np.ones((3, 7)))
    with pytest.raises(ValueError, match=r"`loss` must return one number, .* got shapes \(3, 2\) and \(3, 7\)"):
        nested_loss(lambda a, b: (a - b) ** 2, rows, rows, nesting=NESTING)


def test_half_precision_is_left_to_the_loss(half: Library, rng: np.random.Generator) -> None:
    seen = []
    nested_loss(lambda a: seen.append(a.dtype) or a.sum(), half.array(rng.normal(size=(2, 7))), nesting=(7,))
    assert seen == [half.dtype]


def test_importance_0_contributes_nothing_even_where_its_loss_is_infinite() -> None:
    total, parts = nested_loss(
        lambda a: a.sum() if a.shape[-1] != 3 else np.float64(np.inf),
        np.ones((1, 7)),
        nesting=NESTING,
        return_parts=True,
    )
    assert (float(total), parts.tolist()) == (2 * 2 + 0.5 * 7, [2.0, np.inf, 7.0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((mse,), ValueError, "`arrays` must hold at least one array of embeddings, got none"),
        (("mse", np.ones((2, 7))), TypeError, "`loss` must be callable, got str 'mse'"),
        ((np.ones((2, 7)), np.ones((2, 7))), TypeError, "`loss` must be callable, got ndarray"),
        (
            (mse, np.ones((2, 7)), np.ones((2, 8))),
            ValueError,
            r"the last axis of `arrays\[1\]` .*, 7, got shape \(2, 8\)",
        ),
        ((mse, np.ones((2, 6))), ValueError, r"the last axis of `arrays\[0\]` must be as wide as the nesting"),
        ((mse, np.ones((2, 7), int)), TypeError, r"`arrays\[0\]` must hold floating-point numbers, got dtype int64"),
        ((mse, np.ones((2, 7)), [[1.0] * 7]), TypeError, r"`arrays\[1\]` must be an array"),
        ((mse, None), TypeError, r"`arrays\[0\]` must be an array"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nested_loss(*arguments, nesting=NESTING)


def test_arrays_of_two_libraries_or_devices_are_refused() -> None:
    strict = load("array_api_strict")
    elsewhere = strict.ones((2, 7), device=strict.Device("device1"))
    with pytest.raises(TypeError, match=r"`arrays\[0\]` and `arrays\[1\]` must come from one array library"):
        nested_loss(mse, np.ones((2, 7)), elsewhere, nesting=NESTING)
    with pytest.raises(ValueError, match=r"`arrays\[0\]` and `arrays\[1\]` must lie on one device"):
        nested_loss(mse, strict.ones((2, 7)), elsewhere, nesting=NESTING)
