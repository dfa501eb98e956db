"""From arguments to a problem, and from the loss of each row to what the caller asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, index_dtype, length, library
from matryoshka._hooks import hook_for
from matryoshka._hooks.formula import Arrays, Formula, Options, Problem
from matryoshka._typing import Array, Namespace
from matryoshka.nesting import Nesting


def formula_for(
    kind: type[Formula], named: Sequence[tuple[str, Array]], nesting: Nesting, smoothing: float, xp: Namespace
) -> Formula:
    """Return the formula of products of the named arrays, of one dtype where the framework does not cast for itself."""
    product_dtype = hook_for(xp).product_dtype(named[0][1])
    if product_dtype is None:
        _checks.same_dtype(xp, *named)
    return kind(nesting, xp, smoothing, product_dtype)


def flatten_rows(array: Array, xp: Namespace) -> Array:
    """Return `array` (..., k) as (n, k)."""
    return array if len(array.shape) == 2 else xp.reshape(array, (-1, array.shape[-1]))


def row_labels(
    labels: Array,
    sample_weight: Array | None,
    ignore_index: int | None,
    *,
    like: Array,
    axes: tuple[int, ...],
    n_classes: int,
    xp: Namespace,
) -> tuple[Array, Array | None, Array | None]:
    """Return the labels (n,), the weight of each row (n,) or None for all ones, and 0 or NaN for each row (n,) or None.

    Labels and weights arrive with the given axes; numbers leave in the dtype of sums over `like`. The labels of rows
    that are ignored, and labels that are none, leave as 0. A row whose label or weight is none has a NaN: where there
    are weights that is its weight, else the number that comes last.
    """
    remedy = ", or name the id of rows to skip as ignore_index"
    _checks.labels(labels, "labels", axes, xp, n_classes=n_classes, ignore_index=ignore_index, remedy=remedy)
    labels = xp.astype(xp.reshape(labels, (-1,)), index_dtype(xp), copy=False)
    dtype = accumulator_dtype(like, xp)
    weights = None if sample_weight is None else _weights(sample_weight, axes, dtype, xp)
    if ignore_index is not None:
        ignored = labels == ignore_index
        weights = xp.ones_like(labels, dtype=dtype) if weights is None else weights
        labels, weights = xp.where(ignored, xp.zeros_like(labels), labels), _put(weights, ignored, 0.0, xp)
    if library(xp) == "numpy":  # where labels were checked
        return labels, weights, None
    outside = (labels < 0) | (labels >= n_classes)
    labels = xp.where(outside, xp.zeros_like(labels), labels)
    if weights is None:
        return labels, None, _put(xp.zeros_like(labels, dtype=dtype), outside, math.nan, xp)
    return labels, _put(weights, outside & (weights != 0), math.nan, xp), None


def _weights(sample_weight: Array, axes: tuple[int, ...], dtype: object, xp: Namespace) -> Array:
    """Return weights as (n,), after checking them on NumPy, and elsewhere with NaN for those that are not finite."""
    _checks.floating(sample_weight, "sample_weight", xp)
    _checks.shape(sample_weight, "sample_weight", axes, "that of `labels`")
    weights = xp.astype(xp.reshape(sample_weight, (-1,)), dtype, copy=False)
    if library(xp) != "numpy":
        return _put(weights, ~(xp.abs(weights) < math.inf), math.nan, xp)
    bad = ~((weights >= 0) & (weights < math.inf))
    if bad.any():
        msg = (
            f"`sample_weight` must be finite and not negative, got {int(bad.sum())} of {len(bad)} that are not; "
            "give rows that count nothing the weight 0."
        )
        raise ValueError(msg)
    return weights


def _put(array: Array, where: Array, value: float, xp: Namespace) -> Array:
    """Return `array` with `value` at some places."""
    return xp.where(where, xp.zeros_like(array) + value, array)


def evaluate(problem: Problem, options: Options) -> Any:
    """Return the loss: 0-d, or with reduction "none" one number a row; with `return_parts` also that of each prefix."""
    xp = problem.formula.xp
    hook = hook_for(xp)
    if options.reduction == "none":
        total, losses = hook.row_totals(problem)
        total = xp.reshape(problem.weigh_rows(total), problem.axes)
    else:
        divisor = _divisor(problem, options.reduction)
        total, losses = hook.weighted_total(problem, divisor)
    if not options.return_parts:
        return total
    parts = problem.weigh_rows(losses)
    if options.reduction == "none":
        return total, xp.reshape(parts, (len(problem.formula.nesting), *problem.axes))
    return total, xp.sum(parts, axis=-1) / divisor


def evaluate_with_grad(problem: Problem, options: Options) -> tuple[Any, Arrays, Arrays]:
    """Return the loss as `evaluate` does, and its gradients in the rows and in the parameters, in their dtypes."""
    formula, xp = problem.formula, problem.formula.xp
    _checks.choice(options.reduction, "reduction", ("mean", "sum"))
    losses, d_rows, d_parameters = hook_for(xp).gradients(problem, problem.present)
    divisor = _divisor(problem, options.reduction)
    parts = xp.sum(problem.weigh_rows(losses), axis=-1) / divisor
    total = formula.weigh_prefixes(parts)

    def scaled(gradients: Arrays, arrays: Arrays) -> Iterator[Array]:
        for gradient, array in zip(gradients, arrays, strict=True):
            if gradient is not None:
                gradient /= divisor
                gradient = xp.astype(gradient, array.dtype, copy=False)
            yield gradient

    loss = (total, parts) if options.return_parts else total
    return loss, tuple(scaled(d_rows, problem.rows)), tuple(scaled(d_parameters, problem.parameters))


def _divisor(problem: Problem, reduction: str) -> Any:
    """Return what the sum over rows is divided by: NaN where a row has no loss, and 1 where nothing counts."""
    divisor = 1 if reduction == "sum" else _count(problem)
    return divisor if problem.broken is None else divisor + problem.formula.xp.sum(problem.broken)


def _count(problem: Problem) -> Any:
    """Return what the rows weigh together; where nothing counts, 1, so that the mean is 0."""
    weights, labels, xp = problem.weights, problem.labels, problem.formula.xp
    if weights is None and labels.shape[0] is not None:
        return max(labels.shape[0], 1)
    dtype = accumulator_dtype(problem.rows[0], xp)
    total = length(labels, 0, xp, dtype=dtype) if weights is None else xp.sum(weights)
    return xp.where(total == 0, xp.ones_like(total), total)
