"""Choose the best of each row without sorting the rest, in the way of each array library.

Order is always by value, largest first, and equal values by position, lowest first.
"""

from __future__ import annotations

import importlib

import numpy as np

from matryoshka._array import arange, is_jax_array, is_torch_array
from matryoshka._typing import Array, Namespace


def top_k(values: Array, k: int, xp: Namespace) -> Array:
    """Return the positions of the `k` largest of each row, best first.

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
    array (n_rows, k)
        Positions, by value and then by position.
    """
    on_host = isinstance(values, np.ndarray)
    if on_host and (k == values.shape[1] or values.shape[1] <= _FEW):
        return np.argsort(-values, axis=-1, kind="stable")[:, :k]
    if k < values.shape[1] and (on_host or is_torch_array(values)):
        positions = keep_best(values, k, xp)
        return take_along(positions, top_k(take_along(values, positions, xp), k, xp), xp)
    if is_jax_array(values):
        return importlib.import_module("jax.lax").top_k(values, k)[1]  # equal values come by position
    return xp.argsort(values, axis=-1, descending=True, stable=True)[:, :k]


def keep_best(values: Array, k: int, xp: Namespace) -> Array:
    """Return the positions of the `k` largest of each row, as `top_k` does, but in ascending order."""
    if k == values.shape[1]:
        positions = arange(k, like=values, xp=xp)[None, :]
        return xp.broadcast_to(positions, (values.shape[0], k))
    if isinstance(values, np.ndarray) and values.shape[1] > _FEW:
        return _numpy(values, k)
    if is_torch_array(values):
        return _torch(values, k, xp)
    return xp.sort(top_k(values, k, xp), axis=-1)


_FEW = 512
"""Numbers that are sorted sooner than they are parted."""


def take_along(array: Array, positions: Array, xp: Namespace) -> Array:
    """Pick array[i, positions[i, j]] for each i, j."""
    if isinstance(array, np.ndarray):
        if array.shape[0] == 1:
            return array.take(positions[0], axis=1)
        return array[np.arange(array.shape[0])[:, None], positions]
    return xp.take_along_axis(array, positions, axis=-1)


def _numpy(values: np.ndarray, k: int) -> np.ndarray:
    n_rows, n = values.shape
    least = np.partition(values, n - k, axis=-1)[:, n - k, None]
    chosen = values >= least
    surplus = np.count_nonzero(chosen, axis=-1) - k
    for row in np.flatnonzero(surplus):
        equal = np.flatnonzero(values[row] == least[row])
        chosen[row, equal[equal.size - surplus[row] :]] = False
    return np.nonzero(chosen)[1].reshape(n_rows, k)


def _torch(values: Array, k: int, xp: Namespace) -> Array:
    """Choose everything above the k-th value, and of what equals it the first, without waiting for the device."""
    least = xp.topk(values, k, dim=-1, sorted=True).values[:, -1:]
    above, equal = values > least, values == least
    room = k - xp.sum(above, axis=-1, keepdims=True, dtype=xp.int64)
    chosen = above | (equal & (xp.cumulative_sum(xp.astype(equal, xp.int64), axis=-1) <= room))
    # k of each row are chosen: the descending sort of the marks, kept stable, puts their positions first
    return xp.argsort(xp.astype(chosen, xp.int8), axis=-1, descending=True, stable=True)[:, :k]
