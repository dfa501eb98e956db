"""The part of the array API that losses use, for TensorFlow, which has no such namespace of its own.

Pass this module to a loss as `xp`. It supports axes whose length a graph leaves open (None), and ignores `device`,
because TensorFlow places tensors itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from matryoshka._hooks import tensorflow as row_hook

__all__ = [
    "abs",
    "arange",
    "astype",
    "concat",
    "exp",
    "float32",
    "full",
    "isdtype",
    "log",
    "matrix_transpose",
    "max",
    "mean",
    "ones_like",
    "permute_dims",
    "reshape",
    "row_hook",
    "shape",
    "softmax",
    "sqrt",
    "stack",
    "sum",
    "take_along_axis",
    "where",
    "zeros_like",
]

float32 = tf.float32
abs, exp, log, shape, sqrt, where = tf.abs, tf.exp, tf.math.log, tf.shape, tf.sqrt, tf.where
softmax, matrix_transpose, permute_dims = tf.nn.softmax, tf.linalg.matrix_transpose, tf.transpose


def isdtype(dtype: Any, kind: str) -> bool:
    """Tell whether a dtype is of the kind "bool", "integral" or "real floating"."""
    return bool({"bool": dtype.is_bool, "integral": dtype.is_integer, "real floating": dtype.is_floating}[kind])


def astype(x: Any, dtype: Any, *, copy: bool = True) -> Any:
    """Return `x` in `dtype`."""
    return tf.cast(x, dtype)


def arange(stop: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """Return 0 … stop - 1, by default as int64: on a GPU, TensorFlow keeps int32 on the host."""
    return tf.range(tf.cast(stop, dtype or tf.int64))


def full(shape: Sequence[Any], value: float, *, dtype: Any, device: Any = None) -> Any:
    """Return an array of one value."""
    return tf.fill(shape, tf.constant(value, dtype))


def zeros_like(x: Any, *, dtype: Any = None) -> Any:
    """Return zeros in the shape of `x`."""
    return tf.zeros_like(x, dtype)


def ones_like(x: Any, *, dtype: Any = None) -> Any:
    """Return ones in the shape of `x`."""
    return tf.ones_like(x, dtype)


def reshape(x: Any, shape: Sequence[int | None]) -> Any:
    """Return `x` in another shape, in which one axis may be open (-1 or None)."""
    return tf.reshape(x, [-1 if length is None else length for length in shape])


def concat(arrays: Sequence[Any], *, axis: int = 0) -> Any:
    """Join arrays along an axis."""
    return tf.concat(arrays, axis)


def stack(arrays: Sequence[Any], *, axis: int = 0) -> Any:
    """Join arrays along a new axis."""
    return tf.stack(arrays, axis)


def take_along_axis(x: Any, indices: Any, *, axis: int) -> Any:
    """Return the entries of `x` at `indices`, which have as many axes, along the last axis."""
    return tf.gather(x, indices, axis=axis, batch_dims=len(x.shape) - 1)


def sum(x: Any, *, axis: int | None = None, keepdims: bool = False) -> Any:
    """Return the sum."""
    return tf.reduce_sum(x, axis, keepdims)


def mean(x: Any, *, axis: int | None = None, keepdims: bool = False) -> Any:
    """Return the mean."""
    return tf.reduce_mean(x, axis, keepdims)


def max(x: Any, *, axis: int | None = None, keepdims: bool = False) -> Any:
    """Return the largest entry."""
    return tf.reduce_max(x, axis, keepdims)
