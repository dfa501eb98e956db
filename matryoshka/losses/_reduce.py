"""From the loss of each row to what the caller asked for: weights, reduction, parts, gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, index_dtype, length
from matryoshka._hooks import hook_for
from matryoshka._hooks.rows import weigh, weigh_prefixes
from matryoshka._typing import Array, Namespace
from matryoshka.losses._formula import Arrays, Formula


@dataclass(frozen=True)
class Options:
    """What every loss lets its caller choose, checked."""

    label_smoothing: float = 0.0
    ignore_index: int | None = None
    sample_weight: Array | None = None
    reduction: str = "mean"
    return_parts: bool = False
    row_block: int | None = None

    def __post_init__(self) -> None:
        _checks.real(self.label_smoothing, "label_smoothing", minimum=0.0, maximum=1.0)
        _checks.choice(self.reduction, "reduction", ("mean", "sum", "none"))
        if self.ignore_index is not None:
            _checks.integer(self.ignore_index, "ignore_index")
        if self.row_block is not None:
            _checks.integer(self.row_block, "row_block", minimum=1)


@dataclass(frozen=True)
class Problem:
    """A checked loss, ready to be evaluated: its rows flattened to one axis.

    Attributes
    ----------
    formula : Formula
        The loss on a block of rows.
    rows : tuple of array (n, ...)
        What belongs to single rows and has a gradient.
    labels : integer array (n,)
        The right column of each row.
    weights : array (n,) or None
        Weight of each row; None for all ones.
    parameters : tuple of (array or None)
        What all rows share and has a gradient.
    axes : tuple of (int or array ())
        The lengths of the axes that `n` was flattened from.
    xp : namespace
        That of all arrays.
    """

    formula: Formula
    rows: Arrays
    labels: Array
    weights: Array | None
    parameters: Arrays
    axes: tuple[Any, ...]
    xp: Namespace


def lengths(array: Array, axes: Iterable[int], xp: Namespace) -> tuple[Any, ...]:
    """Return the lengths of some axes, those that a graph leaves open as arrays ()."""
    return tuple(length(array, axis, xp) for axis in axes)


def flatten_rows(array: Array, xp: Namespace) -> Array:
    """Return `array` (..., k) as (n, k)."""
    return array if len(array.shape) == 2 else xp.reshape(array, (-1, array.shape[-1]))


def row_weights(
    labels: Array, options: Options, *, axes: tuple[int, ...], n_classes: int, dtype: Any, xp: Namespace
) -> tuple[Array, Array | None]:
    """Return the labels (n,), 0 in place of the ignored, and the weight of each row (n,) or None for all ones."""
    ignore_index, sample_weight = options.ignore_index, options.sample_weight
    remedy = ", or name the id of rows to skip as ignore_index"
    _checks.labels(labels, "labels", axes, xp, n_classes=n_classes, ignore_index=ignore_index, remedy=remedy)
    labels = xp.astype(xp.reshape(labels, (-1,)), index_dtype(xp), copy=False)
    if sample_weight is not None:
        _checks.floating(sample_weight, "sample_weight", xp)
        _checks.shape(sample_weight, "sample_weight", axes, "that of `labels`")
        sample_weight = xp.astype(xp.reshape(sample_weight, (-1,)), dtype, copy=False)
    if ignore_index is None:
        return labels, sample_weight
    ignored = labels == ignore_index
    weights = xp.ones_like(labels, dtype=dtype) if sample_weight is None else sample_weight
    return xp.where(ignored, xp.zeros_like(labels), labels), xp.where(ignored, xp.zeros_like(weights), weights)


def evaluate(problem: Problem, options: Options) -> Any:
    """Return the loss: 0-d, or with reduction "none" one number a row; with `return_parts` also that of each prefix."""
    p, xp = problem, problem.xp
    hook = hook_for(xp)
    if options.reduction == "none":
        total, losses = hook.row_totals(p.formula, p.rows, p.labels, p.parameters, row_block=options.row_block, xp=xp)
        total = xp.reshape(weigh(total, p.weights, xp), p.axes)
        parts = xp.reshape(weigh(losses, p.weights, xp), (len(p.formula.nesting), *p.axes))
    else:
        divisor = _divisor(p, options)
        total, losses = hook.weighted_total(
            p.formula, p.rows, p.labels, p.weights, p.parameters, divisor=divisor, row_block=options.row_block, xp=xp
        )
        parts = xp.sum(weigh(losses, p.weights, xp), axis=-1) / divisor
    return (total, parts) if options.return_parts else total


def evaluate_with_grad(problem: Problem, options: Options) -> tuple[Any, Arrays, Arrays]:
    """Return the loss as `evaluate` does, and its gradients in the rows and in the parameters, in their dtypes."""
    p, xp = problem, problem.xp
    _checks.choice(options.reduction, "reduction", ("mean", "sum"))
    losses, d_rows, d_parameters = hook_for(xp).gradients(
        p.formula,
        p.rows,
        p.labels,
        p.weights,
        p.parameters,
        wanted=tuple(array is not None for array in (*p.rows, *p.parameters)),
        row_block=options.row_block,
        xp=xp,
    )
    divisor = _divisor(p, options)
    parts = xp.sum(weigh(losses, p.weights, xp), axis=-1) / divisor
    total = weigh_prefixes(parts, p.formula.nesting)

    def scaled(gradients: Arrays, arrays: Arrays) -> Iterator[Array]:
        for gradient, array in zip(gradients, arrays, strict=True):
            if gradient is not None:
                gradient /= divisor
                gradient = xp.astype(gradient, array.dtype, copy=False)
            yield gradient

    loss = (total, parts) if options.return_parts else total
    return loss, tuple(scaled(d_rows, p.rows)), tuple(scaled(d_parameters, p.parameters))


def _divisor(problem: Problem, options: Options) -> Any:
    """Return what the sum over rows is divided by; where nothing counts, 1, so that the mean is 0."""
    if options.reduction == "sum":
        return 1
    weights, labels, xp = problem.weights, problem.labels, problem.xp
    if weights is None and labels.shape[0] is not None:
        return max(labels.shape[0], 1)
    dtype = accumulator_dtype(problem.rows[0], xp)
    total = length(labels, 0, xp, dtype=dtype) if weights is None else xp.sum(weights)
    return xp.where(total == 0, xp.ones_like(total), total)
