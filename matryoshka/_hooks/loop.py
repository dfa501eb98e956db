"""Map a loss over blocks of rows with a Python loop: the hook for libraries without automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from matryoshka._array import can_write, empty, is_numpy_array, row_blocks
from matryoshka._hooks.formula import Arrays, Problem
from matryoshka._typing import Array, Namespace

BLOCK_BYTES = 128 * 2**20
BLOCK_ROWS = (16, 512)


def on_host(array: Array) -> np.ndarray | None:
    """Return an array of NumPy as it is; None for others, which may lie on a device."""
    return array if is_numpy_array(array) else None


def product_dtype(array: Array) -> None:
    """Return None: products are formed in the dtype of the arrays."""


def weighted_total(problem: Problem, divisor: Any) -> tuple[Array, Array]:
    """Return sum_i a_i sum_m c_m loss_mi / `divisor` as a 0-d array, and the losses (G, n)."""
    losses = _losses(problem)
    return problem.total(losses) / divisor, losses


def row_totals(problem: Problem) -> tuple[Array, Array]:
    """Return sum_m c_m loss_mi for each row i, (n,), and the losses (G, n)."""
    losses = _losses(problem)
    return problem.formula.weigh_prefixes(losses), losses


def gradients(problem: Problem, wanted: tuple[bool, ...]) -> tuple[Array, Arrays, Arrays]:
    """Return the losses (G, n), and the gradients of the total in the rows and in the parameters."""
    formula, xp = problem.formula, problem.formula.xp
    prepared = formula.prepare(problem.parameters)
    losses, totals = [], None
    d_rows = [_Assembled(problem.labels.shape[0], xp) for _ in problem.rows]
    for rows in _blocks(problem):
        block_losses, d_block, totals = formula.gradients(problem.block(rows), prepared, totals, wanted)
        losses.append(block_losses)
        for whole, part in zip(d_rows, d_block, strict=True):
            whole.put(rows, part)
    joined = tuple(whole.join() for whole in d_rows)
    return _join(losses, xp, axis=1), joined, formula.finish(prepared, totals or ())


def largest_block(row_bytes: int, row_block: int | None) -> int | None:
    """Return how many rows to compute at a time at most: `row_block`, or what fits into a fixed memory; None for all.

    Larger blocks spend less time on adding up the gradients in the parameters; smaller blocks need less memory.
    """
    smallest, largest = BLOCK_ROWS
    if row_block is not None or not row_bytes:
        return row_block
    return max(smallest, min(largest, BLOCK_BYTES // row_bytes))


def block_size(n: int, row_bytes: int, row_block: int | None) -> int:
    """Return how many rows to compute at a time, so that blocks are of nearly equal size, within the largest."""
    largest = largest_block(row_bytes, row_block)
    if largest is None or n <= largest:
        return max(1, n)
    return -(-n // -(-n // largest))


def _losses(problem: Problem) -> Array:
    prepared = problem.formula.prepare(problem.parameters)
    blocks = [problem.formula.losses(problem.block(rows), prepared) for rows in _blocks(problem)]
    return _join(blocks, problem.formula.xp, axis=1)


def _blocks(problem: Problem) -> list[slice]:
    n = problem.labels.shape[0]
    return row_blocks(n, block_size(n, problem.formula.row_bytes(problem.parameters), problem.row_block))


class _Assembled:
    """An array (n, ...) that arrives in blocks of rows; where it can be written to, no block is kept besides it."""

    def __init__(self, n: int, xp: Namespace) -> None:
        self._n, self._xp = n, xp
        self._parts: list[Array] = []

    def put(self, rows: slice, part: Array | None) -> None:
        """Take the rows of a block; None if they are not wanted, which then holds for every block."""
        if part is None:
            return
        if part.shape[0] == self._n or not can_write(self._xp):
            self._parts.append(part)
            return
        if not self._parts:
            shape = (self._n, *part.shape[1:])
            self._parts.append(empty(shape, like=part, dtype=part.dtype, xp=self._xp))
        self._parts[0][rows, ...] = part

    def join(self) -> Array | None:
        """Return the array, or None."""
        return _join(self._parts, self._xp) if self._parts else None


def _join(parts: Sequence[Array], xp: Namespace, *, axis: int = 0) -> Array:
    return parts[0] if len(parts) == 1 else xp.concat(list(parts), axis=axis)
