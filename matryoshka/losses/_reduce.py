"""From arguments to a problem, and from the loss of each row to what the caller asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, length
from matryoshka._hooks import hook_for
from matryoshka._hooks.formula import Arrays, Formula, Options, Problem
from matryoshka._typing import Array, Namespace
from matryoshka.nesting import Nesting


def formula_for(
    kind: type[Formula], named: Sequence[tuple[str, Array]], nesting: Nesting, smoothing: float, xp: Namespace
) -> Formula:
    """Return the formula, after checking that the named arrays have one dtype unless the framework is to cast them."""
    product_dtype = hook_for(xp).product_dtype(named[0][1])
    if product_dtype is None:
        _checks.same_dtype(xp, *named)
    return kind(nesting, xp, smoothing, product_dtype)


def flatten_rows(array: Array, xp: Namespace) -> Array:
    """Return `array` (..., k) as (n, k)."""
    return array if len(array.shape) == 2 else xp.reshape(array, (-1, array.shape[-1]))


def evaluate(problem: Problem, options: Options) -> Any:
    """Return the loss (), or per row with reduction "none"; with `return_parts`, also that of each prefix."""
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
    divisor = _divisor(problem, options.reduction)
    # Dividing the importances by a known number costs nothing; dividing the gradients would be one more pass.
    known = float(divisor) if isinstance(divisor, int | float | np.floating) else None
    divided = problem if known is None else replace(problem, formula=formula.divided(known))
    losses, d_rows, d_parameters = hook_for(xp).gradients(divided, problem.present)
    parts = xp.sum(problem.weigh_rows(losses), axis=-1) / divisor
    total = formula.weigh_prefixes(parts)

    def scaled(gradients: Arrays, arrays: Arrays) -> Iterator[Array]:
        for gradient, array in zip(gradients, arrays, strict=True):
            if gradient is not None:
                if known is None:
                    gradient /= divisor
                gradient = xp.astype(gradient, array.dtype, copy=False)
            yield gradient

    loss = (total, parts) if options.return_parts else total
    return loss, tuple(scaled(d_rows, problem.rows)), tuple(scaled(d_parameters, problem.parameters))


def _divisor(problem: Problem, reduction: str) -> Any:
    """Return what the sum over rows is divided by: NaN if a row has no loss, and 1 if no row counts."""
    divisor = 1 if reduction == "sum" else _count(problem)
    return divisor if problem.broken is None else divisor + problem.formula.xp.sum(problem.broken)


def _count(problem: Problem) -> Any:
    """Return the sum of the weights of the rows; if it is 0, then 1, so that the mean is 0."""
    weights, labels, xp = problem.weights, problem.labels, problem.formula.xp
    if weights is None and labels.shape[0] is not None:
        return max(labels.shape[0], 1)
    dtype = accumulator_dtype(problem.rows[0], xp)
    total = length(labels, 0, xp, dtype=dtype) if weights is None else xp.sum(weights)
    return xp.where(total == 0, xp.ones_like(total), total)
