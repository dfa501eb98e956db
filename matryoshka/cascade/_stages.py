"""Heads prepared for a cascade: checked against its widths, and laid out by those at which rows can exit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, is_array, is_numpy_array, is_remote, is_torch_array, namespace
from matryoshka._typing import Array, Head, Namespace, NestedHead
from matryoshka.cascade._evaluation import can_exit


class Stage(NamedTuple):
    """One width at which rows are looked at: the columns it reads, their weight, and when a row exits."""

    dim: int
    columns: slice
    """If they do not start at 0, their product is added to the logits of the stage before."""
    factor: Array
    """(width, n_classes)"""
    transposed: Array
    """The same numbers (n_classes, width)."""
    bias: Array | None
    threshold: float
    """Rounded to the dtype of the confidences; NaN for the last stage, at which every row exits."""
    temperature: float


class Stages(NamedTuple):
    """The widths at which rows can exit, narrowest first, and the heads for them.

    A prefix at which no row can exit is skipped: its columns are read with those of the next one.
    """

    stages: list[Stage]
    measure: str
    dtype: Any
    """The dtype of logits."""
    place: str
    """"numpy"; "host" or "device" for PyTorch."""
    xp: Namespace

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.stages[0].factor.shape[1])

    @classmethod
    def of(
        cls,
        heads: Sequence[Head] | Head | NestedHead,
        dims: tuple[int, ...],
        thresholds: Sequence[float],
        measure: str,
        temperatures: Sequence[float] | None,
        *,
        copy: bool,
    ) -> Stages:
        """Check the heads; with `copy`, give each stage a contiguous copy of what it reads."""
        if isinstance(heads, NestedHead):
            heads = _pairs_of(heads, dims)
        tied = isinstance(heads, list | tuple) and len(heads) == 2 and is_array(heads[0])
        pairs, xp = _checked([heads] if tied else heads, dims, tied=tied)
        last = len(thresholds)
        visited = [i for i in range(last) if can_exit(thresholds[i])] + [last]
        starts = [0, *(dims[i] if tied else 0 for i in visited)]
        dtype = accumulator_dtype(pairs[0][0], xp)
        limits = [*(_rounded(t, dtype, xp) for t in thresholds), math.nan]
        stages = []
        for i, start in zip(visited, starts, strict=False):
            weight, bias = pairs[0 if tied else i]
            factor, columns = xp.matrix_transpose(weight[:, start : dims[i]]), slice(start, dims[i])
            if copy:
                factor, bias = contiguous(factor, xp), None if bias is None else xp.asarray(bias, copy=True)
            temperature = 1.0 if temperatures is None else temperatures[i]
            transposed = xp.matrix_transpose(factor)
            stages.append(Stage(dims[i], columns, factor, transposed, None if start else bias, limits[i], temperature))
        place = "numpy" if is_numpy_array(pairs[0][0]) else "device" if is_remote(pairs[0][0]) else "host"
        return cls(stages, measure, dtype, place, xp)


def contiguous(factor: Array, xp: Namespace) -> Array:
    """Return a copy in row-major order."""
    if is_numpy_array(factor):
        return np.array(factor, order="C")
    return factor.clone(memory_format=xp.contiguous_format)


def _rounded(threshold: float, dtype: Any, xp: Namespace) -> float:
    """Round a threshold as the comparison with confidences of this dtype does."""
    with np.errstate(over="ignore"):
        return float(xp.asarray(threshold, dtype=dtype))


def _pairs_of(head: NestedHead, dims: tuple[int, ...]) -> Sequence[Head] | Head:
    if (found := tuple(head.nesting)) != dims:
        msg = f"`heads` must be a head for the widths of the cascade, {dims}, got one for {found}; calibrate on these."
        raise ValueError(msg)
    pairs = head.heads()
    return pairs[0] if head.tied else pairs


def _checked(heads: object, dims: tuple[int, ...], *, tied: bool) -> tuple[list[Head], Namespace]:
    """Check that heads fit each other and the widths, and detach them from gradients."""
    pairs = _checks.heads(heads, 1 if tied else len(dims))  # type: ignore[arg-type]
    names = ["heads" if tied else f"heads[{i}]" for i in range(len(pairs))]
    weights = [(f"{name}[0]", weight) for name, (weight, _) in zip(names, pairs, strict=True)]
    biases = [(f"{name}[1]", bias) for name, (_, bias) in zip(names, pairs, strict=True)]
    xp = namespace(*weights, optional=biases)
    check_library(weights[0][1], weights[0][0])
    _checks.same_dtype(xp, *weights, *biases)
    widths = (dims[-1],) if tied else dims
    _check_not_transposed(weights, widths)
    n_classes = _checks.n_classes(weights[0][1], weights[0][0])
    for name, (weight, bias), dim in zip(names, pairs, widths, strict=True):
        _checks.shape(weight, f"{name}[0]", (n_classes, dim), "(n_classes, width)")
        _checks.bias(bias, f"{name}[1]", n_classes)
    if is_torch_array(weights[0][1]):
        return [(weight.detach(), None if bias is None else bias.detach()) for weight, bias in pairs], xp
    return list(pairs), xp


def _check_not_transposed(weights: Sequence[tuple[str, Array]], widths: Sequence[int]) -> None:
    """Refuse kernels (width, n_classes), as Keras stores them, if the shapes leave no doubt."""
    shapes = [tuple(weight.shape) for _, weight in weights]
    expected = [(*shapes[0][1:2], width) for width in widths]
    if [shape[::-1] for shape in shapes] == expected != shapes:
        msg = (
            f"`{weights[0][0]}` must have shape (n_classes, width), got {shapes[0]}, which looks like a kernel "
            "(width, n_classes); transpose it, or pass the layer that it belongs to."
        )
        raise ValueError(msg)


def check_library(array: Array, name: str) -> None:
    """Check that an array is of a library in which rows can be written one by one."""
    if not (is_numpy_array(array) or is_torch_array(array)):
        msg = f"`{name}` must be a NumPy or PyTorch array here, got {type(array).__name__}; use `predict`."
        raise TypeError(msg)
