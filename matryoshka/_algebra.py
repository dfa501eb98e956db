"""Products and exponentials, written over their arguments where a library can, and means: what losses compute with."""

from __future__ import annotations

import numpy as np

from matryoshka._array import arange, can_write, length, library
from matryoshka._typing import Array, Namespace


def log_softmax(logits: Array, xp: Namespace) -> Array:
    """Return the logarithm of the softmax over the last axis, as a new array; of no columns it is empty."""
    if logits.shape[-1] == 0:
        return xp.zeros_like(logits)
    if hasattr(xp, "log_softmax"):
        return xp.log_softmax(logits, -1)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    shifted -= xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
    return shifted


def exp_(array: Array, xp: Namespace) -> Array:
    """Return exp(array), written over `array` where its library can."""
    if library(xp) == "numpy":
        return np.exp(array, out=array)
    return array.exp_() if library(xp) == "torch" else xp.exp(array)


def subtract_at(matrix: Array, columns: Array, amount: float, xp: Namespace) -> Array:
    """Return `matrix` less `amount` at one column of each row, written over `matrix` where its library can."""
    if can_write(xp):
        matrix[arange(matrix.shape[0], like=matrix, xp=xp), columns] -= amount
        return matrix
    hit = arange(length(matrix, 1, xp), like=matrix, xp=xp, dtype=columns.dtype) == columns[:, None]
    return xp.where(hit, matrix - amount, matrix)


def add_product(total: Array | None, left: Array, right: Array, *, dtype: object, xp: Namespace) -> Array:
    """Return total + left @ right in `dtype`, written over `total` where its library can; None stands for zero."""
    if total is None:
        return xp.astype(_product(left, right, xp), dtype, copy=False)
    if library(xp) == "torch" and left.dtype == total.dtype:
        return _torch_add_product(total, left, right, keep=1)
    total += xp.astype(_product(left, right, xp), dtype, copy=False)
    return total


def write_product(target: Array, left: Array, right: Array, *, keep: bool, xp: Namespace) -> None:
    """Write left @ right to `target`, or with `keep` add it, in a library whose arrays can be written to."""
    if library(xp) == "torch" and left.dtype == target.dtype:
        _torch_add_product(target, left, right, keep=int(keep))
    elif keep:
        target += _product(left, right, xp)
    elif left.dtype == target.dtype:
        xp.matmul(left, right, out=target)
    else:
        target[...] = _product(left, right, xp)


# PyTorch's CPU products with fewer columns than this are several times slower than their transposes.
_NARROW = 12


def _product(left: Array, right: Array, xp: Namespace) -> Array:
    if library(xp) == "torch" and right.shape[1] < _NARROW:
        return (right.T @ left.T).T
    return left @ right


def _torch_add_product(target: Array, left: Array, right: Array, *, keep: int) -> Array:
    if right.shape[1] < _NARROW:
        target.T.addmm_(right.T, left.T, beta=keep)
        return target
    return target.addmm_(left, right, beta=keep)


def midway(one: Array | tuple[Array, ...], other: Array | tuple[Array, ...]) -> Array | tuple[Array, ...]:
    """Return the mean of two arrays, or of each of two tuples of arrays."""
    if isinstance(one, tuple):
        return tuple(midway(left, right) for left, right in zip(one, other, strict=True))
    return (one + other) / 2
