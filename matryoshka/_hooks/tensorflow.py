"""The closed-form gradients as TensorFlow custom gradients; in a graph, rows are mapped by `tf.while_loop`.

A graph may be traced before the number of rows is known (None). The first block is computed before the loop, which
takes the rest in blocks of one size: with few rows the loop has nothing to do, and totals need not start at zero.

In a graph, gradients of `weighted_total` are formed in the forward pass; if none is needed, TensorFlow prunes them. In
eager mode it is unknown whether one will be needed, so they are formed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

from matryoshka._array import length
from matryoshka._hooks import loop
from matryoshka._hooks.formula import Arrays, Block, Problem, Totals

product_dtype = loop.product_dtype


def on_host(array: Any) -> np.ndarray | None:
    """Return a tensor as an array of NumPy; None if it is on a device or part of a graph."""
    return array.numpy() if hasattr(array, "numpy") and "CPU" in array.device else None


def weighted_total(problem: Problem, divisor: Any) -> tuple[Any, Any]:
    """Return the total / `divisor` as a differentiable 0-d tensor, and the losses (G, n) without a gradient."""
    arrays = (*problem.arrays, problem.weights)

    @tf.custom_gradient
    def total(*present: Any) -> Any:
        *inner, weights = _restore(present, arrays)
        inside = _with_arrays(problem, inner, weights)
        formed = None if tf.executing_eagerly() else gradients(inside, problem.present)
        losses = formed[0] if formed else _losses(inside)

        def backward(d_total: Any, _: Any) -> list[Any]:
            _, d_rows, d_parameters = formed or gradients(inside, problem.present)
            # The losses that come with gradients leave out rows of weight 0.
            d_weights = problem.formula.weigh_prefixes(_losses(inside) if formed else losses)
            return _as_arrays((*d_rows, *d_parameters, d_weights), arrays, d_total)

        return (inside.total(losses), losses), backward

    result, losses = total(*_present(arrays))
    return result / tf.cast(divisor, result.dtype), tf.stop_gradient(losses)


def row_totals(problem: Problem) -> tuple[Any, Any]:
    """Return the total of each row (n,), differentiable, and the losses (G, n) without a gradient."""
    arrays = problem.arrays

    @tf.custom_gradient
    def totals(*present: Any) -> Any:
        inner = _restore(present, arrays)
        losses = _losses(_with_arrays(problem, inner, None))

        def backward(d_totals: Any, _: Any) -> list[Any]:
            _, d_rows, d_parameters = gradients(_with_arrays(problem, inner, d_totals), problem.present)
            return _as_arrays((*d_rows, *d_parameters), arrays)

        return (problem.formula.weigh_prefixes(losses), losses), backward

    result, losses = totals(*_present(arrays))
    return result, tf.stop_gradient(losses)


def gradients(problem: Problem, wanted: tuple[bool, ...]) -> tuple[Any, Arrays, Arrays]:
    """Return the losses (G, n), and the gradients of the total in the rows and in the parameters."""
    formula = problem.formula
    prepared = formula.prepare(problem.parameters)

    def step(totals: Totals | None, block: Block) -> tuple[Totals, tuple[Any, Arrays]]:
        losses, d_rows, totals = formula.gradients(block, prepared, totals, wanted)
        return totals, (tf.transpose(losses), d_rows)

    totals, (losses, d_rows) = _carry(step, problem.whole, _largest_block(problem))
    return tf.transpose(losses), d_rows, formula.finish(prepared, totals)


def _losses(problem: Problem) -> Any:
    prepared = problem.formula.prepare(problem.parameters)

    def step(totals: None, block: Block) -> tuple[None, Any]:
        return None, tf.transpose(problem.formula.losses(block, prepared))

    whole = problem.whole._replace(weights=None)
    return tf.transpose(_carry(step, whole, _largest_block(problem))[1])


def _largest_block(problem: Problem) -> Any:
    """Return how many rows to compute at a time at most, an int or a tensor; None for all."""
    formula, parameters = problem.formula, problem.parameters
    if problem.row_block is not None:
        return problem.row_block
    if not parameters or parameters[0].shape[0] is not None:
        return loop.largest_block(formula.row_bytes(parameters), None)
    column = SimpleNamespace(shape=(1, *parameters[0].shape[1:]))
    row_bytes = formula.row_bytes((column, *parameters[1:])) * tf.maximum(tf.shape(parameters[0])[0], 1)
    return tf.clip_by_value(loop.BLOCK_BYTES // row_bytes, *loop.BLOCK_ROWS)


def _carry(step: Callable[[Any, Block], tuple[Any, Any]], whole: Block, largest: Any) -> tuple[Any, Any]:
    """Carry `step` over blocks of the `whole` rows; return its last carry, and its outputs joined along the rows."""
    present = _present(whole)
    n = present[0].shape[0]
    if largest is None or (isinstance(largest, int) and n is not None and n <= largest):
        return step(None, whole)
    n = tf.shape(present[0])[0]
    size = _ceil(n, tf.maximum(_ceil(n, largest), 1))
    n_more = tf.maximum(_ceil(n, tf.maximum(size, 1)), 1) - 1
    carry, first = step(None, _restore([a[: n - n_more * size] for a in present], whole))

    # Without a block to compute, the loop does nothing, but its inputs and outputs need a length all the same.
    n_blocks = tf.maximum(n_more, 1)
    blocks = [tf.reshape(a[n - n_blocks * size :], [n_blocks, size, *_row_shape(a)]) for a in present]
    outputs = _present(first)
    empty = [tf.zeros([size, *_row_shape(a)], a.dtype) for a in outputs]
    lists = [tf.TensorArray(a.dtype, size=n_blocks).write(0, a) for a in empty]

    def body(i: Any, carried: list[Any], lists: list[Any]) -> Any:
        next_carry, outputs = step(_restore(carried, carry), _restore([a[i] for a in blocks], whole))
        return i + 1, _present(next_carry), [a.write(i, o) for a, o in zip(lists, _present(outputs), strict=True)]

    start = (tf.constant(0), _present(carry), lists)
    _, carried, lists = tf.while_loop(lambda i, *_: i < n_more, body, start, parallel_iterations=1)
    more = [
        tf.reshape(a.stack()[:n_more], [n_more * size, *_row_shape(o)]) for a, o in zip(lists, outputs, strict=True)
    ]
    joined = [tf.concat(pair, 0) for pair in zip(outputs, more, strict=True)]
    return _restore(carried, carry), _restore(joined, first)


def _row_shape(array: Any) -> list[Any]:
    """Return the shape of a row, with tensors for axes that a graph leaves open, such as the keys of a mask."""
    return [length(array, axis, tf) for axis in range(1, len(array.shape))]


def _ceil(n: Any, divisor: Any) -> Any:
    return -(-n // divisor)


def _with_arrays(problem: Problem, arrays: Sequence[Any], weights: Any) -> Problem:
    """Return a problem with other rows and parameters, and other weights."""
    n = len(problem.rows)
    return replace(problem, rows=tuple(arrays[:n]), parameters=tuple(arrays[n:]), weights=weights)


def _present(structure: Any) -> list[Any]:
    """Return the tensors of a nested structure in order, without None."""
    return [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(structure) if leaf is not None]


def _restore(present: Iterable[Any], structure: Any) -> Any:
    """Return tensors in a nested structure, with None where it has None."""
    tensors = iter(present)
    return tf.nest.map_structure(lambda leaf: None if leaf is None else next(tensors), structure)


def _as_arrays(gradients: Sequence[Any], arrays: Arrays, scale: Any = None) -> list[Any]:
    """Return the gradients of the arrays that are given, in their dtypes, times `scale`."""
    pairs = [(d, a) for d, a in zip(gradients, arrays, strict=True) if a is not None]
    return [tf.cast(d if scale is None else d * scale, a.dtype) for d, a in pairs]
