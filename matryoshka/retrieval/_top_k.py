"""Choose the best of each row without sorting the rest, in the way of each array library.

Order is always by value, largest first, and equal values by position, lowest first.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from matryoshka._array import is_jax_array, is_numpy_array, is_torch_array
from matryoshka._typing import Array, Namespace


def top_k(values: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
    """Return the `k` largest of each row and their positions.

    Parameters
    ----------
    values : array (n_rows, n)
        Real numbers, none of them NaN.
    k : int
        At most n.
    xp : namespace
        The library of `values`.

    Returns
    -------
    values, positions : array (n_rows, k)
        Largest first, equal values by position.
    """
    if k in (0, values.shape[-1]) or values.shape[0] == 0:
        return _sorted(values, k, xp)
    if is_numpy_array(values):
        return _partition(values, k)
    if is_torch_array(values):
        return _torch(values, k, xp)
    if is_jax_array(values):
        best: tuple[Array, Array] = _jax_lax().top_k(values, k)  # equal values come by position
        return best
    return _sorted(values, k, xp)


def ranking(scores: Array, ids: Array, k: int, xp: Namespace) -> Array:
    """Return the positions (n_rows, k) of the best of scored candidates (n_rows, n), equal scores by id."""
    by_id = xp.argsort(ids, axis=-1, stable=True)
    _, positions = top_k(take_along(scores, by_id, xp), k, xp)
    return take_along(by_id, positions, xp)


def take_along(array: Array, positions: Array, xp: Namespace) -> Array:
    """Pick array[i, positions[i, j]] for each i, j."""
    if hasattr(xp, "take_along_axis"):
        return xp.take_along_axis(array, positions, axis=-1)
    return xp.take_along_dim(array, positions, -1)  # torch's name for it, under older array-api-compat


def _sorted(values: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
    positions = xp.argsort(values, axis=-1, descending=True, stable=True)[:, :k]
    return take_along(values, positions, xp), positions


def _partition(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    positions = np.argpartition(values, values.shape[-1] - k, axis=-1)[:, -k:]
    least = np.take_along_axis(values, positions, axis=-1).min(axis=-1, keepdims=True)
    for row in np.flatnonzero(np.count_nonzero(values >= least, axis=-1) > k):
        candidates = np.flatnonzero(values[row] >= least[row])
        positions[row] = candidates[np.argsort(-values[row, candidates], kind="stable")[:k]]
    positions.sort(axis=-1)
    best = np.take_along_axis(values, positions, axis=-1)
    order = np.argsort(-best, axis=-1, kind="stable")
    return np.take_along_axis(best, order, axis=-1), np.take_along_axis(positions, order, axis=-1)


def _torch(values: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
    best, positions = xp.topk(values, k, dim=-1)
    # topk takes any of the values that equal the last one: count those above it and refill with the first that equal it
    least = best[:, -1:]
    lowest = xp.where(values == least, -xp.arange(values.shape[-1], device=values.device), -values.shape[-1])
    first_equal = -xp.topk(lowest, k, dim=-1).values
    above = xp.sum(best > least, axis=-1, keepdims=True, dtype=xp.int64)
    rank = xp.arange(k, device=values.device)[None, :] - above
    refilled = take_along(first_equal, xp.clip(rank, 0, None), xp)
    positions = xp.sort(xp.where(rank >= 0, refilled, positions), axis=-1)
    return _sorted_at(values, positions, xp)


def _sorted_at(values: Array, positions: Array, xp: Namespace) -> tuple[Array, Array]:
    best, order = _sorted(take_along(values, positions, xp), positions.shape[-1], xp)
    return best, take_along(positions, order, xp)


def _jax_lax() -> Any:
    return importlib.import_module("jax.lax")
