"""Map a loss over blocks of rows with a Python loop: the hook of libraries without automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matryoshka._array import can_write, empty
from matryoshka._typing import Array, Namespace

Arrays = tuple[Array, ...]

BLOCK_BYTES = 96 * 2**20
BLOCK_ROWS = (64, 512)


def product_dtype(array: Array) -> Any:
    """Return the dtype that the framework asks products to be formed in, or None for that of the arrays."""
    return None


def largest_block(row_bytes: int, row_block: int | None) -> int | None:
    """Return how many rows to work on at a time at most: `row_block`, or what keeps a block within a fixed memory.

    Larger blocks spend less time on adding up the parameters' gradients, smaller ones need less memory. None: all.
    """
    smallest, largest = BLOCK_ROWS
    if row_block is not None or not row_bytes:
        return row_block
    return max(smallest, min(largest, BLOCK_BYTES // row_bytes))


def block_size(n: int, row_bytes: int, row_block: int | None) -> int:
    """Return how many rows to work on at a time: blocks of nearly equal size, none above the largest."""
    n_blocks = -(-n // (largest_block(row_bytes, row_block) or n)) if n else 1
    return max(1, -(-n // n_blocks))


def weighted_total(
    formula: Any,
    rows: Arrays,
    labels: Array,
    weights: Array | None,
    parameters: Arrays,
    *,
    divisor: Any,
    row_block: int | None,
    xp: Namespace,
) -> tuple[Array, Array]:
    """Return sum_i a_i sum_m c_m loss_mi / `divisor` as a 0-d array, and the losses (G, n)."""
    losses = _map_losses(formula, rows, labels, parameters, row_block=row_block, xp=xp)
    return combine(formula, losses, weights, xp) / divisor, losses


def row_totals(
    formula: Any, rows: Arrays, labels: Array, parameters: Arrays, *, row_block: int | None, xp: Namespace
) -> tuple[Array, Array]:
    """Return sum_m c_m loss_mi for each row i, (n,), and the losses (G, n)."""
    losses = _map_losses(formula, rows, labels, parameters, row_block=row_block, xp=xp)
    return weigh_prefixes(losses, formula.nesting), losses


def gradients(
    formula: Any,
    rows: Arrays,
    labels: Array,
    weights: Array | None,
    parameters: Arrays,
    *,
    wanted: tuple[bool, ...],
    row_block: int | None,
    xp: Namespace,
) -> tuple[Array, Arrays, Arrays]:
    """Return the losses (G, n), and the gradients of `weighted_total` in the rows and in the parameters."""
    n = labels.shape[0]
    size = block_size(n, formula.row_bytes(parameters), row_block)
    prepared = formula.prepare(parameters, xp)
    losses, totals = [], None
    d_rows = [_Rows(n, xp) for _ in rows]
    for block in _blocks(n, size):
        block_weights = None if weights is None else weights[block]
        block_losses, d_block, totals = formula.gradients(
            tuple(row[block, ...] for row in rows), labels[block], block_weights, prepared, totals, wanted, xp
        )
        losses.append(block_losses)
        for whole, part in zip(d_rows, d_block, strict=True):
            whole.put(block, part)
    joined = tuple(whole.join() for whole in d_rows)
    return _join(losses, xp, axis=1), joined, formula.finish(parameters, prepared, totals, xp)


def combine(formula: Any, losses: Array, weights: Array | None, xp: Namespace) -> Array:
    """Return the total over rows and prefixes of the losses (G, n)."""
    return weigh_prefixes(xp.sum(weigh(losses, weights, xp), axis=-1), formula.nesting)


def weigh_prefixes(losses: Array, nesting: Any) -> Array:
    """Return sum_m c_m losses[m], prefixes on the first axis; c_m = 0 counts nothing, not even where a loss is inf."""
    return sum(losses[g, ...] * importance for g, importance in enumerate(nesting.importance) if importance)


def weigh(losses: Array, weights: Array | None, xp: Namespace) -> Array:
    """Return `losses` (..., n) times the weight of each row; a row of weight 0 has loss 0, whatever it holds."""
    if weights is None:
        return losses
    weights = xp.astype(weights, losses.dtype, copy=False)
    return xp.where(weights == 0, xp.zeros_like(losses), losses * weights)


def _map_losses(
    formula: Any, rows: Arrays, labels: Array, parameters: Arrays, *, row_block: int | None, xp: Namespace
) -> Array:
    n = labels.shape[0]
    prepared = formula.prepare(parameters, xp)
    size = block_size(n, formula.row_bytes(parameters), row_block)
    blocks = [formula.losses(tuple(row[b, ...] for row in rows), labels[b], prepared, xp) for b in _blocks(n, size)]
    return _join(blocks, xp, axis=1)


def _blocks(n: int, size: int) -> list[slice]:
    """Cut n rows into slices of `size`; no rows make one empty slice, so that every result has its shape."""
    return [slice(start, min(start + size, n)) for start in range(0, max(n, 1), size)]


class _Rows:
    """An array (n, ...) that arrives in blocks of rows; where it can be written to, no block is kept beside it."""

    def __init__(self, n: int, xp: Namespace) -> None:
        self._n, self._xp = n, xp
        self._parts: list[Array] = []

    def put(self, block: slice, part: Array | None) -> None:
        """Take the rows of a block; None, and then of every block, if they are not wanted."""
        if part is None:
            return
        if part.shape[0] == self._n or not can_write(self._xp):
            self._parts.append(part)
            return
        if not self._parts:
            shape = (self._n, *part.shape[1:])
            self._parts.append(empty(shape, like=part, dtype=part.dtype, xp=self._xp))
        self._parts[0][block, ...] = part

    def join(self) -> Array | None:
        """Return the array, or None."""
        return _join(self._parts, self._xp) if self._parts else None


def _join(parts: Sequence[Array], xp: Namespace, *, axis: int = 0) -> Array:
    return parts[0] if len(parts) == 1 else xp.concat(list(parts), axis=axis)
