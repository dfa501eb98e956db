"""The closed-form gradients as JAX functions with custom derivatives, which map over rows with `lax.scan`.

A scan holds the arrays of one block at a time, where an unrolled loop under `jit` would hold those of all blocks. Rows
that do not fill a block follow after the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from matryoshka._array import accumulator_dtype
from matryoshka._hooks import loop
from matryoshka._hooks.formula import Arrays, Block, Problem, Totals

product_dtype = loop.product_dtype

_BLOCK_ROWS = 256
"""Rows of a block at most: under `jit`, larger blocks are no faster, and take memory in proportion."""

jax.tree_util.register_dataclass(
    Problem,
    data_fields=["rows", "labels", "mask", "weights", "broken", "parameters"],
    meta_fields=["formula", "row_block", "axes"],
)


def on_host(array: jax.Array) -> np.ndarray | None:
    """Return an array as one of NumPy; None if it is on a device or being traced."""
    readable = not isinstance(array, jax.core.Tracer) and all(d.platform == "cpu" for d in array.devices())
    return np.asarray(array) if readable else None


def weighted_total(problem: Problem, divisor: Any) -> tuple[jax.Array, jax.Array]:
    """Return the total / `divisor` as a differentiable 0-d array, and the losses (G, n) without a gradient."""
    dtype: Any = accumulator_dtype(problem.rows[0], jnp)
    total, losses = _weighted_total(*_alike((problem, jnp.asarray(divisor, dtype))))
    return total, lax.stop_gradient(losses)


def row_totals(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Return the total of each row (n,), differentiable, and the losses (G, n) without a gradient."""
    totals, losses = _row_totals(_alike(replace(problem, weights=None, broken=None)))
    return totals, lax.stop_gradient(losses)


def gradients(problem: Problem, wanted: tuple[bool, ...]) -> tuple[jax.Array, Arrays, Arrays]:
    """Return the losses (G, n), and the gradients of the total in the rows and in the parameters."""
    return _gradients(_alike(problem), wanted, 1)


def _alike(tree: Any) -> Any:
    """Return arrays that all vary over those devices of `jax.shard_map` over which any of them varies.

    JAX cannot see into a closed form: an array that is the same on all devices would get a gradient that differs
    between them. If it is marked as varying, JAX adds up the gradients of the devices itself.
    """
    axes = frozenset().union(*map(_varying, jax.tree.leaves(tree)))
    return jax.tree.map(lambda array: _vary(array, axes - _varying(array)), tree) if axes else tree


def _varying(array: Any) -> frozenset[str]:
    """Return the axes of devices over which an array varies: none outside `jax.shard_map`."""
    kind: Any = jax.typeof(array) if hasattr(jax, "typeof") else None  # JAX 0.5 has neither this nor such axes
    if hasattr(kind, "manual_axis_type"):
        return frozenset(kind.manual_axis_type.varying)
    return getattr(kind, "vma", frozenset())  # before JAX 0.10


def _vary(array: jax.Array, axes: frozenset[str]) -> jax.Array:
    return lax.pcast(array, tuple(axes), to="varying") if axes else array


def _gradients(problem: Problem, wanted: tuple[bool, ...], divisor: Any) -> tuple[jax.Array, Arrays, Arrays]:
    """Return the losses, and the gradients of the total / `divisor`."""
    formula = problem.formula
    prepared = formula.prepare(problem.parameters)

    def step(totals: Totals | None, block: Block) -> tuple[Totals, tuple[jax.Array, Arrays]]:
        losses, d_rows, totals = formula.gradients(block, prepared, totals, wanted)
        # Divided here, block by block: after the scan, XLA would make a second array of all rows.
        return totals, (losses.T, jax.tree.map(lambda d: d / divisor, d_rows))

    totals, (losses, d_rows) = _scan(step, problem, problem.whole)
    d_parameters = formula.finish(prepared, totals)
    return losses.T, d_rows, jax.tree.map(lambda d: d / divisor, d_parameters)


def _losses(problem: Problem) -> jax.Array:
    prepared = problem.formula.prepare(problem.parameters)

    def step(totals: None, block: Block) -> tuple[None, jax.Array]:
        return None, problem.formula.losses(block, prepared).T

    losses: jax.Array = _scan(step, problem, problem.whole._replace(weights=None))[1].T
    return losses


def _scan(step: Callable[[Any, Block], tuple[Any, Any]], problem: Problem, whole: Block) -> tuple[Any, Any]:
    """Carry `step` over blocks of the `whole` rows; return its last carry, and its outputs joined along the rows."""
    n, row_bytes, row_block = whole.labels.shape[0], problem.formula.row_bytes(problem.parameters), problem.row_block
    if row_block is None and row_bytes:
        row_block = min(_BLOCK_ROWS, loop.largest_block(row_bytes, None) or n)
    size = loop.block_size(n, row_bytes, row_block)
    # Leftover rows need a second program, with memory of its own: better somewhat smaller blocks that leave none.
    size = next((rows for rows in range(size, size // 2, -1) if n % rows == 0), size)
    if size >= n:
        return step(None, whole)
    n_blocks = n // size

    def blocks(array: jax.Array) -> jax.Array:
        return array[: n_blocks * size].reshape(n_blocks, size, *array.shape[1:])

    stacked = jax.tree.map(blocks, whole)
    shapes = jax.eval_shape(lambda block: step(None, block)[0], jax.tree.map(lambda a: a[0], stacked))
    axes = _varying(whole.labels)
    start = jax.tree.map(lambda s: _vary(jnp.zeros(s.shape, s.dtype), axes), shapes)
    carry, outputs = lax.scan(step, start, stacked)
    outputs = jax.tree.map(lambda a: a.reshape(n_blocks * size, *a.shape[2:]), outputs)
    if n_blocks * size < n:
        carry, last = step(carry, jax.tree.map(lambda a: a[n_blocks * size :], whole))
        outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, last)
    return carry, outputs


@jax.custom_vjp
def _weighted_total(problem: Problem, divisor: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses = _losses(problem)
    return problem.total(losses) / divisor, losses


def _weighted_total_forward(problem: Problem, divisor: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
    losses, d_rows, d_parameters = _gradients(problem, problem.present, divisor)
    total = problem.total(losses) / divisor
    # The losses at hand leave out rows of weight 0. Under `jit`, this second pass is dropped if nobody needs it.
    d_weights = None if problem.weights is None else problem.formula.weigh_prefixes(_losses(problem)) / divisor
    return (total, losses), (_cotangent(problem, d_rows, d_weights, d_parameters), -total / divisor)


def _weighted_total_backward(saved: tuple[Problem, jax.Array], cotangent: Any) -> Any:
    return jax.tree.map(lambda d: (d * cotangent[0]).astype(d.dtype), saved)


_weighted_total.defvjp(_weighted_total_forward, _weighted_total_backward)


@jax.custom_vjp
def _row_totals(problem: Problem) -> tuple[jax.Array, jax.Array]:
    losses = _losses(problem)
    return problem.formula.weigh_prefixes(losses), losses


def _row_totals_forward(problem: Problem) -> tuple[tuple[jax.Array, jax.Array], Problem]:
    return _row_totals(problem), problem


def _row_totals_backward(problem: Problem, cotangent: Any) -> tuple[Problem]:
    _, d_rows, d_parameters = gradients(replace(problem, weights=cotangent[0]), problem.present)
    return (_cotangent(problem, d_rows, None, d_parameters),)


_row_totals.defvjp(_row_totals_forward, _row_totals_backward)


def _cotangent(problem: Problem, d_rows: Arrays, d_weights: jax.Array | None, d_parameters: Arrays) -> Problem:
    """Return gradients as JAX wants them: in the structure of their problem, and in the dtypes of its arrays."""
    primal = replace(problem, labels=None, mask=None, broken=None)
    formed = replace(primal, rows=d_rows, weights=d_weights, parameters=d_parameters)
    cast: Problem = jax.tree.map(lambda d, array: d.astype(array.dtype), formed, primal)
    return cast
