"""From arguments to a problem, and from the loss of each row to what the caller asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, index_dtype, length
from matryoshka._hooks import hook_for
from matryoshka._hooks.formula import Arrays, Formula, Problem
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


def row_weights(
    labels: Array,
    sample_weight: Array | None,
    ignore_index: int | None,
    *,
    like: Array,
    axes: tuple[int, ...],
    n_classes: int,
    xp: Namespace,
) -> tuple[Array, Array | None]:
    """Return the labels (n,), 0 in place of the ignored, and the weight of each row (n,) or None for all ones.

    Both arrive with the given axes; the weights leave in the dtype of sums over `like`.
    """
    remedy = ", or name the id of rows to skip as ignore_index"
    _checks.labels(labels, "labels", axes, xp, n_classes=n_classes, ignore_index=ignore_index, remedy=remedy)
    labels = xp.astype(xp.reshape(labels, (-1,)), index_dtype(xp), copy=False)
    dtype = accumulator_dtype(like, xp)
    if sample_weight is not None:
        _checks.floating(sample_weight, "sample_weight", xp)
        _checks.shape(sample_weight, "sample_weight", axes, "that of `labels`")
        sample_weight = xp.astype(xp.reshape(sample_weight, (-1,)), dtype, copy=False)
    if ignore_index is None:
        return labels, sample_weight
    ignored = labels == ignore_index
    weights = xp.ones_like(labels, dtype=dtype) if sample_weight is None else sample_weight
    return xp.where(ignored, xp.zeros_like(labels), labels), xp.where(ignored, xp.zeros_like(weights), weights)


def evaluate(problem: Problem, reduction: str, return_parts: bool) -> Any:
    """Return the loss: 0-d, or with reduction "none" one number a row; with `return_parts` also that of each prefix."""
    xp = problem.formula.xp
    hook = hook_for(xp)
    if reduction == "none":
        total, losses = hook.row_totals(problem)
        total = xp.reshape(problem.weigh_rows(total), problem.axes)
    else:
        divisor = _divisor(problem, reduction)
        total, losses = hook.weighted_total(problem, divisor)
    if not return_parts:
        return total
    parts = problem.weigh_rows(losses)
    if reduction == "none":
        return total, xp.reshape(parts, (len(problem.formula.nesting), *problem.axes))
    return total, xp.sum(parts, axis=-1) / divisor


def evaluate_with_grad(problem: Problem, reduction: str, return_parts: bool) -> tuple[Any, Arrays, Arrays]:
    """Return the loss as `evaluate` does, and its gradients in the rows and in the parameters, in their dtypes."""
    formula, xp = problem.formula, problem.formula.xp
    _checks.choice(reduction, "reduction", ("mean", "sum"))
    losses, d_rows, d_parameters = hook_for(xp).gradients(problem, problem.present)
    divisor = _divisor(problem, reduction)
    parts = xp.sum(problem.weigh_rows(losses), axis=-1) / divisor
    total = formula.weigh_prefixes(parts)

    def scaled(gradients: Arrays, arrays: Arrays) -> Iterator[Array]:
        for gradient, array in zip(gradients, arrays, strict=True):
            if gradient is not None:
                gradient /= divisor
                gradient = xp.astype(gradient, array.dtype, copy=False)
            yield gradient

    loss = (total, parts) if return_parts else total
    return loss, tuple(scaled(d_rows, problem.rows)), tuple(scaled(d_parameters, problem.parameters))


def _divisor(problem: Problem, reduction: str) -> Any:
    """Return what the sum over rows is divided by; where nothing counts, 1, so that the mean is 0."""
    if reduction == "sum":
        return 1
    weights, labels, xp = problem.weights, problem.labels, problem.formula.xp
    if weights is None and labels.shape[0] is not None:
        return max(labels.shape[0], 1)
    dtype = accumulator_dtype(problem.rows[0], xp)
    total = length(labels, 0, xp, dtype=dtype) if weights is None else xp.sum(weights)
    return xp.where(total == 0, xp.ones_like(total), total)
