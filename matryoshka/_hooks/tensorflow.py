"""The closed-form gradients as TensorFlow custom gradients; in a graph, rows are mapped by `tf.while_loop`.

A graph may be traced before the number of rows is known (None). A first block is worked off before the loop, which
takes what is left in blocks of one size: with few rows the loop has nothing to do, and the totals need no zeros.

In a graph, gradients of `weighted_total` are formed in the forward pass; where none is asked for, TensorFlow prunes
them. Eagerly it cannot tell beforehand whether one will be asked for, so they are formed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

from matryoshka._hooks import rows as loop
from matryoshka._typing import Namespace

Tensors = tuple[Any, ...]

product_dtype = loop.product_dtype


def weighted_total(
    formula: Any,
    rows: Tensors,
    labels: Any,
    weights: Any,
    parameters: Tensors,
    *,
    divisor: Any,
    row_block: int | None,
    xp: Namespace,
) -> tuple[Any, Any]:
    """Return the total / `divisor` as a differentiable 0-d tensor, and the losses (G, n) without a gradient."""
    arrays = (*rows, *parameters, weights)
    wanted, options = (True,) * (len(arrays) - 1), {"row_block": row_block, "xp": xp}

    @tf.custom_gradient
    def total(*present: Any) -> Any:
        *inner, inner_weights = _restore(present, arrays)
        inner_rows, inner_parameters = tuple(inner[: len(rows)]), tuple(inner[len(rows) :])

        def form() -> tuple[Any, Tensors, Tensors]:
            return gradients(formula, inner_rows, labels, inner_weights, inner_parameters, wanted=wanted, **options)

        formed = None if tf.executing_eagerly() else form()
        losses = formed[0] if formed else _losses(formula, inner_rows, labels, inner_parameters, **options)

        def backward(d_total: Any, _: Any) -> list[Any]:
            _, d_rows, d_parameters = formed or form()
            d_weights = loop.weigh_prefixes(losses, formula.nesting)
            return _as_arrays((*d_rows, *d_parameters, d_weights), arrays, d_total)

        return (loop.combine(formula, losses, inner_weights, xp), losses), backward

    result, losses = total(*_present(arrays))
    return result / tf.cast(divisor, result.dtype), tf.stop_gradient(losses)


def row_totals(
    formula: Any, rows: Tensors, labels: Any, parameters: Tensors, *, row_block: int | None, xp: Namespace
) -> tuple[Any, Any]:
    """Return the total of each row (n,), differentiable, and the losses (G, n) without a gradient."""
    arrays = (*rows, *parameters)
    wanted, options = (True,) * len(arrays), {"row_block": row_block, "xp": xp}

    @tf.custom_gradient
    def totals(*present: Any) -> Any:
        inner = _restore(present, arrays)
        inner_rows, inner_parameters = inner[: len(rows)], inner[len(rows) :]
        losses = _losses(formula, inner_rows, labels, inner_parameters, **options)

        def backward(d_totals: Any, _: Any) -> list[Any]:
            _, d_rows, d_parameters = gradients(
                formula, inner_rows, labels, d_totals, inner_parameters, wanted=wanted, **options
            )
            return _as_arrays((*d_rows, *d_parameters), arrays)

        return (loop.weigh_prefixes(losses, formula.nesting), losses), backward

    result, losses = totals(*_present(arrays))
    return result, tf.stop_gradient(losses)


def gradients(
    formula: Any,
    rows: Tensors,
    labels: Any,
    weights: Any,
    parameters: Tensors,
    *,
    wanted: tuple[bool, ...],
    row_block: int | None,
    xp: Namespace,
) -> tuple[Any, Tensors, Tensors]:
    """Return the losses (G, n), and the gradients of `weighted_total` in the rows and in the parameters."""
    prepared = formula.prepare(parameters, xp)

    def step(totals: Any, block: Any) -> tuple[Any, tuple[Any, Tensors]]:
        losses, d_rows, totals = formula.gradients(*block, prepared, totals, wanted, xp)
        return totals, (tf.transpose(losses), d_rows)

    totals, (losses, d_rows) = _carry(step, (rows, labels, weights), _largest_block(formula, parameters, row_block))
    return tf.transpose(losses), d_rows, formula.finish(parameters, prepared, totals, xp)


def _losses(
    formula: Any, rows: Tensors, labels: Any, parameters: Tensors, *, row_block: int | None, xp: Namespace
) -> Any:
    prepared = formula.prepare(parameters, xp)

    def step(totals: None, block: Any) -> tuple[None, Any]:
        return None, tf.transpose(formula.losses(*block, prepared, xp))

    return tf.transpose(_carry(step, (rows, labels), _largest_block(formula, parameters, row_block))[1])


def _largest_block(formula: Any, parameters: Tensors, row_block: int | None) -> Any:
    """Return how many rows to work on at a time at most, an int or a tensor; None stands for all."""
    if row_block is not None:
        return row_block
    if not parameters or parameters[0].shape[0] is not None:
        return loop.largest_block(formula.row_bytes(parameters), None)
    column = SimpleNamespace(shape=(1, *parameters[0].shape[1:]))
    row_bytes = formula.row_bytes((column, *parameters[1:])) * tf.maximum(tf.shape(parameters[0])[0], 1)
    return tf.clip_by_value(loop.BLOCK_BYTES // row_bytes, *loop.BLOCK_ROWS)


def _carry(step: Callable[[Any, Any], Any], arrays: Any, largest: Any) -> tuple[Any, Any]:
    """Carry `step` over blocks of rows of `arrays`; return its last carry, and its outputs joined along the rows."""
    present = _present(arrays)
    n = present[0].shape[0]
    if largest is None or (isinstance(largest, int) and n is not None and n <= largest):
        return step(None, arrays)
    n = tf.shape(present[0])[0]
    size = _ceil(n, tf.maximum(_ceil(n, largest), 1))
    n_more = tf.maximum(_ceil(n, tf.maximum(size, 1)), 1) - 1
    carry, first = step(None, _restore([a[: n - n_more * size] for a in present], arrays))

    # Without a block to take, the loop does nothing; what it would read and write needs a length all the same.
    length = tf.maximum(n_more, 1)
    blocks = [tf.reshape(a[n - length * size :], [length, size, *a.shape[1:]]) for a in present]
    outputs = _present(first)
    empty = [tf.zeros([size, *a.shape[1:]], a.dtype) for a in outputs]
    lists = [tf.TensorArray(a.dtype, size=length).write(0, a) for a in empty]

    def body(i: Any, carried: list[Any], lists: list[Any]) -> Any:
        next_carry, outputs = step(_restore(carried, carry), _restore([a[i] for a in blocks], arrays))
        return i + 1, _present(next_carry), [a.write(i, o) for a, o in zip(lists, _present(outputs), strict=True)]

    start = (tf.constant(0), _present(carry), lists)
    _, carried, lists = tf.while_loop(lambda i, *_: i < n_more, body, start, parallel_iterations=1)
    more = [tf.reshape(a.stack()[:n_more], [n_more * size, *o.shape[1:]]) for a, o in zip(lists, outputs, strict=True)]
    joined = [tf.concat(pair, 0) for pair in zip(outputs, more, strict=True)]
    return _restore(carried, carry), _restore(joined, first)


def _ceil(n: Any, divisor: Any) -> Any:
    return -(-n // divisor)


def _present(structure: Any) -> list[Any]:
    """Return the tensors of a nested structure in their order, passing over None."""
    return [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(structure) if leaf is not None]


def _restore(present: Iterable[Any], structure: Any) -> Any:
    """Return tensors in the form of a structure, None where it has None."""
    tensors = iter(present)
    return tf.nest.map_structure(lambda leaf: None if leaf is None else next(tensors), structure)


def _as_arrays(gradients: Sequence[Any], arrays: Tensors, scale: Any = None) -> list[Any]:
    """Return the gradients of the arrays that are there, in their dtypes, times `scale`."""
    pairs = [(d, a) for d, a in zip(gradients, arrays, strict=True) if a is not None]
    return [tf.cast(d if scale is None else d * scale, a.dtype) for d, a in pairs]
