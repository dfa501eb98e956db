"""truncate: prefixes of unit length on every array library."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Library
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from matryoshka import truncate


def oracle(rows: np.ndarray, dim: int) -> np.ndarray:
    out = np.zeros((len(rows), dim))
    for i, row in enumerate(rows.astype(np.float64)):
        norm = sum(float(x) ** 2 for x in row[:dim]) ** 0.5
        if norm > 0:
            out[i] = row[:dim] / norm
    return out


def test_each_prefix_has_unit_length(library: Library, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(5, 7)) * [[1.0], [10.0], [0.1], [3.0], [0.0]]
    for dim in (1, 3, 7):
        library.assert_close(truncate(library.array(rows), dim), oracle(rows, dim))


def test_leading_axes_are_kept(library: Library, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(2, 3, 5))
    expected = oracle(rows.reshape(6, 5), 4).reshape(2, 3, 4)
    library.assert_close(truncate(library.array(rows), 4), expected)


def test_without_normalisation_only_cuts(library: Library, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(3, 6))
    library.assert_close(truncate(library.array(rows), 2, normalize=False), rows[:, :2])


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30])
def test_extreme_lengths_neither_vanish_nor_overflow(scale: float) -> None:
    rows = np.array([[3.0, 4.0, 0.0]]) * scale
    np.testing.assert_allclose(truncate(rows.astype(np.float32), 2), [[0.6, 0.8]], rtol=1e-4)
    uneven = np.array([[4.0, 1e-25, 3.0]]) * scale
    np.testing.assert_allclose(truncate(uneven.astype(np.float32), 3), oracle(uneven, 3), atol=1e-5)


def test_one_embedding_without_an_axis_of_rows() -> None:
    np.testing.assert_allclose(truncate(np.array([3.0, 4.0, 12.0]), 2), [0.6, 0.8])


@given(
    hnp.arrays(np.float64, (3, 6), elements=st.floats(-1e3, 1e3, allow_subnormal=False)),
    st.integers(1, 6),
)
def test_normalising_first_changes_nothing(rows: np.ndarray, dim: int) -> None:
    rows[np.abs(rows) < 1e-100] = 0.0
    np.testing.assert_allclose(truncate(truncate(rows, 6), dim), truncate(rows, dim), rtol=1e-9, atol=1e-12)


def test_half_precision_sums_in_float32() -> None:
    rows = np.full((1, 4096), 8.0, dtype=np.float16)  # the squared norm, 262,144, overflows float16
    out = truncate(rows, 4096)
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, 1 / 64, rtol=1e-3)


@pytest.mark.parametrize("dim", [0, 8, -1])
def test_dim_outside_the_width_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=r"`dim` must be an integer in \[1, 7\], got"):
        truncate(np.ones((2, 7)), dim)


def test_wrong_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="`dim` must be an integer, got float"):
        truncate(np.ones((2, 7)), 3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`embeddings` must hold floating-point numbers, got dtype int64"):
        truncate(np.ones((2, 7), dtype=np.int64), 3)
    with pytest.raises(TypeError, match="`embeddings` must be an array"):
        truncate([[1.0, 2.0]], 1)
    with pytest.raises(ValueError, match=r"`embeddings` must have shape \(\.\.\., width\)"):
        truncate(np.float64(3.0) * np.ones(()), 1)
