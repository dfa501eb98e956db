"""The arithmetic of losses: softmax and products, in place where a library allows it, and means."""

from __future__ import annotations

import numpy as np

from matryoshka._array import arange, can_write, length, library, row_blocks
from matryoshka._typing import Array, Namespace


def softmax(logits: Array, xp: Namespace, *, scale: float = 1.0, overwrite: bool = False) -> tuple[Array, Array, Array]:
    """Return the softmax p over the last axis (r, c) times `scale`, the largest logits (r,), and log(1 / max p) (r,).

    Each logit is exponentiated once. The last two results add up to the logarithm of the sum of the exponentials; kept
    apart, they preserve the digits of a small loss beside large logits. With `overwrite`, p may replace the logits.
    """
    largest = xp.max(logits, axis=-1)
    if hasattr(xp, "softmax") and not overwrite:  # a single pass over memory
        p = xp.softmax(logits, -1)
        log_sum = -xp.log(xp.max(p, axis=-1))
        if scale != 1.0:
            p *= scale
        return p, largest, log_sum
    if overwrite:
        logits -= largest[..., None]
    else:
        logits = logits - largest[..., None]
    p = exp_(logits, xp)
    total = xp.sum(p, axis=-1)
    p *= (scale / total)[..., None]
    return p, largest, xp.log(total)


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
    hit = arange(length(matrix, 1, xp), like=matrix, xp=xp, dtype=columns.dtype)[None, :] == columns[:, None]
    return xp.where(hit, matrix - amount, matrix)


def add_product(total: Array | None, left: Array, right: Array, *, dtype: object, xp: Namespace) -> Array:
    """Return total + left @ right in `dtype`, written over `total` where its library can; None stands for zero."""
    if total is None:
        return xp.astype(_product(left, right, xp), dtype, copy=False)
    if library(xp) == "torch" and left.dtype == total.dtype:
        return _torch_add_product(total, left, right, keep=1, xp=xp)
    total += xp.astype(_product(left, right, xp), dtype, copy=False)
    return total


def write_product(target: Array, left: Array, right: Array, *, keep: bool, xp: Namespace) -> None:
    """Write left @ right to `target`, or with `keep` add it, in a library whose arrays can be written to."""
    if library(xp) == "torch" and left.dtype == target.dtype:
        _torch_add_product(target, left, right, keep=int(keep), xp=xp)
    elif keep:  # in pieces that stay in the cache
        for rows in row_blocks(left.shape[0], max(1, _PRODUCT_SIZE // max(1, right.shape[1]))):
            target[rows, :] += _product(left[rows, :], right, xp)
    elif left.dtype == target.dtype:
        xp.matmul(left, right, out=target)
    else:
        target[...] = _product(left, right, xp)


def add_transposed_product(total: Array | None, left: Array, right: Array, *, dtype: object, xp: Namespace) -> Array:
    """Return total + left.T @ right (c, k) in `dtype`, for left (r, c) and right (r, k); None stands for zero."""
    if library(xp) == "jax" and right.shape[1] <= left.shape[0]:
        from jax import lax  # loaded already, with the arrays

        # XLA would first copy `left` transposed, which takes longer than a product with few columns. The barrier keeps
        # it from rewriting this product into that one.
        product = xp.matrix_transpose(lax.optimization_barrier(xp.matrix_transpose(right) @ left))  # type: ignore[no-untyped-call]
        product = xp.astype(product, dtype, copy=False)
        return product if total is None else total + product
    return add_product(total, xp.matrix_transpose(left), right, dtype=dtype, xp=xp)


def settled(array: Array, xp: Namespace) -> Array:
    """Return `array`, and make XLA store it, which otherwise recomputes a sum wherever it is used.

    XLA removes optimisation barriers before it fuses operations, but does not fuse across a conditional, even one that
    always takes the same branch.
    """
    if library(xp) != "jax" or 0 in array.shape:
        return array
    from jax import lax  # loaded already, with the arrays

    first = xp.reshape(array, (-1,))[0]
    return lax.cond((first > 0) & (first < 0), lambda sum_: -sum_, lambda sum_: sum_, array)


_PRODUCT_SIZE = 2**20
"""Size of the pieces in which a product is added, in numbers."""

# With fewer columns than this, a CPU product of PyTorch takes up to ten times as long as its transpose. `addmm_` on a
# transposed view does not help, so the transposed product is formed by itself and then copied or added.
_NARROW = 16


def _product(left: Array, right: Array, xp: Namespace) -> Array:
    if library(xp) == "torch" and right.shape[1] < _NARROW:
        return (right.T @ left.T).T
    return left @ right


def _torch_add_product(target: Array, left: Array, right: Array, *, keep: int, xp: Namespace) -> Array:
    if right.shape[1] < _NARROW:
        product = _product(left, right, xp)
        return target.add_(product) if keep else target.copy_(product)
    return target.addmm_(left, right, beta=keep)


def midway(one: Array | tuple[Array, ...], other: Array | tuple[Array, ...]) -> Array | tuple[Array, ...]:
    """Return the mean of two arrays, or of each of two tuples of arrays."""
    if isinstance(one, tuple):
        return tuple(midway(left, right) for left, right in zip(one, other, strict=True))
    return (one + other) / 2
