"""The closed-form gradients as JAX functions with custom derivatives, their rows mapped by `lax.scan`.

A scan holds one block's arrays at a time where an unrolled loop under `jit` would hold all blocks'. Rows that do not
fill a block are worked off after the scan.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from matryoshka._hooks import rows as loop
from matryoshka._typing import Namespace

Arrays = tuple[jax.Array | None, ...]

product_dtype = loop.product_dtype

_BLOCK_ROWS = 256
"""Rows of a block at most: under `jit` larger ones are no faster, and take memory in proportion."""


def weighted_total(
    formula: Any,
    rows: Arrays,
    labels: jax.Array,
    weights: jax.Array | None,
    parameters: Arrays,
    *,
    divisor: Any,
    row_block: int | None,
    xp: Namespace,
) -> tuple[jax.Array, jax.Array]:
    """Return the total / `divisor` as a differentiable 0-d array, and the losses (G, n) without a gradient."""
    divisor = jnp.asarray(divisor, formula.dtype(rows[0], jnp))
    total, losses = _weighted_total(formula, row_block, rows, labels, weights, divisor, parameters)
    return total, lax.stop_gradient(losses)


def row_totals(
    formula: Any, rows: Arrays, labels: jax.Array, parameters: Arrays, *, row_block: int | None, xp: Namespace
) -> tuple[jax.Array, jax.Array]:
    """Return the total of each row (n,), differentiable, and the losses (G, n) without a gradient."""
    totals, losses = _row_totals(formula, row_block, rows, labels, parameters)
    return totals, lax.stop_gradient(losses)


def gradients(
    formula: Any,
    rows: Arrays,
    labels: jax.Array,
    weights: jax.Array | None,
    parameters: Arrays,
    *,
    wanted: tuple[bool, ...],
    divisor: Any = 1,
    row_block: int | None,
    xp: Namespace,
) -> tuple[jax.Array, Arrays, Arrays]:
    """Return the losses (G, n), and the gradients of `weighted_total` in the rows and in the parameters."""
    prepared = formula.prepare(parameters, jnp)

    def step(totals: Any, block: Any) -> tuple[Any, tuple[jax.Array, Arrays]]:
        block_rows, block_labels, block_weights = block
        losses, d_rows, totals = formula.gradients(
            block_rows, block_labels, block_weights, prepared, totals, wanted, jnp
        )
        # Divided here, while they are small: after the scan, XLA would make a second array of all rows.
        return totals, (losses.T, jax.tree.map(lambda d: d / divisor, d_rows))

    totals, (losses, d_rows) = _scan(step, (rows, labels, weights), formula.row_bytes(parameters), row_block)
    d_parameters = formula.finish(parameters, prepared, totals, jnp)
    return losses.T, d_rows, jax.tree.map(lambda d: d / divisor, d_parameters)


def _losses(formula: Any, row_block: int | None, rows: Arrays, labels: jax.Array, parameters: Arrays) -> Any:
    prepared = formula.prepare(parameters, jnp)

    def step(totals: None, block: Any) -> tuple[None, jax.Array]:
        return None, formula.losses(*block, prepared, jnp).T

    return _scan(step, (rows, labels), formula.row_bytes(parameters), row_block)[1].T


def _scan(step: Any, arrays: Any, row_bytes: int, row_block: int | None) -> Any:
    """Carry `step` over blocks of rows of `arrays`; return its last carry, and its outputs joined along the rows."""
    n = jax.tree.leaves(arrays)[0].shape[0]
    if row_block is None and row_bytes:
        row_block = min(_BLOCK_ROWS, loop.largest_block(row_bytes, None) or n)
    size = loop.block_size(n, row_bytes, row_block)
    if size >= n:
        return step(None, arrays)
    n_blocks = n // size

    def blocks(array: jax.Array) -> jax.Array:
        return array[: n_blocks * size].reshape(n_blocks, size, *array.shape[1:])

    stacked = jax.tree.map(blocks, arrays)
    shapes = jax.eval_shape(lambda block: step(None, block)[0], jax.tree.map(lambda a: a[0], stacked))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry, outputs = lax.scan(step, start, stacked)
    outputs = jax.tree.map(lambda a: a.reshape(n_blocks * size, *a.shape[2:]), outputs)
    if n_blocks * size < n:
        carry, last = step(carry, jax.tree.map(lambda a: a[n_blocks * size :], arrays))
        outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outputs, last)
    return carry, outputs


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_total(
    formula: Any,
    row_block: int | None,
    rows: Arrays,
    labels: jax.Array,
    weights: jax.Array | None,
    divisor: jax.Array,
    parameters: Arrays,
) -> tuple[jax.Array, jax.Array]:
    losses = _losses(formula, row_block, rows, labels, parameters)
    return loop.combine(formula, losses, weights, jnp) / divisor, losses


def _weighted_total_forward(
    formula: Any,
    row_block: int | None,
    rows: Arrays,
    labels: jax.Array,
    weights: jax.Array | None,
    divisor: jax.Array,
    parameters: Arrays,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    losses, *saved = gradients(
        formula,
        rows,
        labels,
        weights,
        parameters,
        wanted=_present(rows, parameters),
        divisor=divisor,
        row_block=row_block,
        xp=jnp,
    )
    total = loop.combine(formula, losses, weights, jnp) / divisor
    d_weights = None
    if weights is not None:
        d_weights = (loop.weigh_prefixes(losses, formula.nesting) / divisor).astype(weights.dtype)
    d_rows, d_parameters = jax.tree.map(lambda d, array: d.astype(array.dtype), tuple(saved), (rows, parameters))
    return (total, losses), (d_rows, d_weights, -total / divisor, d_parameters)


def _weighted_total_backward(formula: Any, row_block: int | None, saved: Any, cotangent: Any) -> tuple[Any, ...]:
    d_rows, d_weights, d_divisor, d_parameters = jax.tree.map(lambda d: (d * cotangent[0]).astype(d.dtype), saved)
    return d_rows, None, d_weights, d_divisor, d_parameters


_weighted_total.defvjp(_weighted_total_forward, _weighted_total_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _row_totals(
    formula: Any, row_block: int | None, rows: Arrays, labels: jax.Array, parameters: Arrays
) -> tuple[jax.Array, jax.Array]:
    losses = _losses(formula, row_block, rows, labels, parameters)
    return loop.weigh_prefixes(losses, formula.nesting), losses


def _row_totals_forward(
    formula: Any, row_block: int | None, rows: Arrays, labels: jax.Array, parameters: Arrays
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    return _row_totals(formula, row_block, rows, labels, parameters), (rows, labels, parameters)


def _row_totals_backward(formula: Any, row_block: int | None, saved: Any, cotangent: Any) -> tuple[Any, ...]:
    rows, labels, parameters = saved
    _, *d_arrays = gradients(
        formula,
        rows,
        labels,
        cotangent[0],
        parameters,
        wanted=_present(rows, parameters),
        row_block=row_block,
        xp=jnp,
    )
    d_rows, d_parameters = jax.tree.map(lambda d, array: d.astype(array.dtype), tuple(d_arrays), (rows, parameters))
    return d_rows, None, d_parameters


_row_totals.defvjp(_row_totals_forward, _row_totals_backward)


def _present(rows: Arrays, parameters: Arrays) -> tuple[bool, ...]:
    return tuple(array is not None for array in (*rows, *parameters))
