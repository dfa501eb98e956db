"""The interface between losses, hooks and backends: what a loss defines, and what a hook does with it.

A loss here is a sum over rows i and prefixes m,

    total = sum_i a_i sum_m c_m loss_m(rows_i, parameters),

so a `Hook` may cut the rows into blocks, compute one block after the other, and keep nothing of a block but its
gradients. A `Formula` is pure and sees one block at a time; a `Problem` is a formula with all its arrays; `Options` are
the choices of the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from matryoshka import _checks
from matryoshka._typing import Array, Namespace
from matryoshka.nesting import Nesting

Arrays: TypeAlias = tuple[Array, ...]

Totals: TypeAlias = tuple[Any, ...]
"""What the gradient in the parameters is made of, in whatever pieces are cheap to add to, even lists of arrays."""


class Block(NamedTuple):
    """A block of rows.

    Attributes
    ----------
    rows : tuple of array (r, ...)
        The arrays with a gradient that have one entry per row.
    labels : integer array (r,), or floating array (r, c)
        The right column of each row, or the share of each column.
    mask : bool array (r, c) or None
        False for columns that a row does not see; None for all seen.
    weights : array (r,) or None
        Weight a_i of each row; None for all ones.
    """

    rows: Arrays
    labels: Array
    mask: Array | None = None
    weights: Array | None = None


@dataclass(frozen=True)
class Formula:
    """A loss on one block of rows, with its gradient in closed form.

    Attributes
    ----------
    nesting : Nesting
        Prefix widths and their importances c_m.
    xp : namespace
        That of all arrays.
    smoothing : float
        Label smoothing s of the softmax cross-entropy.
    product_dtype : dtype or None
        Dtype of the factors of matrix products, if it is not that of the arrays (mixed precision).

    Notes
    -----
    `wanted` holds a bool for each array of the rows, then of the parameters: whether to form its gradient, or None.
    """

    nesting: Nesting
    xp: Namespace
    smoothing: float = 0.0
    product_dtype: object = None

    def prepare(self, parameters: Arrays) -> Arrays:
        """Return what all blocks need of the parameters, to be computed once."""
        return parameters

    def losses(self, block: Block, prepared: Arrays) -> Array:
        """Return the loss of each prefix for each row of the block, (G, r)."""
        raise NotImplementedError

    def gradients(
        self, block: Block, prepared: Arrays, totals: Totals | None, wanted: tuple[bool, ...]
    ) -> tuple[Array, Arrays, Totals]:
        """Return the losses (G, r), the gradients in the rows, and `totals` with the share of this block added.

        Totals may be overwritten; None stands for zeros.
        """
        raise NotImplementedError

    def finish(self, prepared: Arrays, totals: Totals) -> Arrays:
        """Return the gradients in the parameters, from the totals over all blocks."""
        return totals

    def row_bytes(self, parameters: Arrays) -> int:
        """Return the bytes that one row needs while its block is computed, by which a hook chooses the block size.

        0 means no more than the row itself: one block takes all rows.
        """
        return 0

    def divided(self, divisor: float) -> Formula:
        """Return the formula of this loss / `divisor`."""
        importance = [c / divisor for c in self.nesting.importance]
        return replace(self, nesting=Nesting(self.nesting.dims, importance))

    def factor(self, array: Array) -> Array:
        """Return `array` in the dtype of products."""
        return array if self.product_dtype is None else self.xp.astype(array, self.product_dtype, copy=False)

    def weigh_prefixes(self, losses: Array) -> Array:
        """Return sum_m c_m losses[m], prefixes on the first axis; a prefix with c_m = 0 adds nothing, even if inf."""
        return sum(losses[g, ...] * c for g, c in enumerate(self.nesting.importance) if c)


@dataclass(frozen=True, eq=False)
class Problem:
    """A checked loss, ready to be evaluated: its rows flattened to one axis.

    Attributes
    ----------
    formula : Formula
        The loss on a block of rows.
    rows : tuple of array (n, ...)
        The arrays with a gradient that have one entry per row.
    labels, mask, weights
        As of a `Block`, for all rows.
    broken : array (n,) or None
        NaN for rows without a valid loss, 0 for all others; None stands for zeros.
    parameters : tuple of (array or None)
        The arrays with a gradient that all rows share.
    row_block : int or None
        Rows to compute at a time, if the caller chose that.
    axes : tuple of (int or array ())
        The lengths of the axes that were flattened to n.
    """

    formula: Formula
    rows: Arrays
    labels: Array
    mask: Array | None
    weights: Array | None
    broken: Array | None
    parameters: Arrays
    row_block: int | None = None
    axes: tuple[Any, ...] = ()

    @property
    def arrays(self) -> Arrays:
        """All arrays with a gradient: the rows, then the parameters."""
        return *self.rows, *self.parameters

    @property
    def present(self) -> tuple[bool, ...]:
        """Whether each of `arrays` is given: a bias may be None."""
        return tuple(array is not None for array in self.arrays)

    @property
    def whole(self) -> Block:
        """All rows as one block."""
        return Block(self.rows, self.labels, self.mask, self.weights)

    def block(self, rows: slice) -> Block:
        """Return some of the rows as a block."""
        _, *shared = self.whole
        return Block(
            tuple(array[rows, ...] for array in self.rows),
            *(None if array is None else array[rows, ...] for array in shared),
        )

    def weigh_rows(self, losses: Array) -> Array:
        """Return `losses` (..., n) times the weight of each row; a row of weight 0 has loss 0, whatever it holds."""
        xp, weights, broken = self.formula.xp, self.weights, self.broken
        prefixes = [None] * (len(losses.shape) - 1)
        if weights is None:  # a factor, so that the gradient is NaN too
            return losses if broken is None else losses * (1 + broken)[*prefixes, :]
        weights = xp.astype(weights, losses.dtype, copy=False)[*prefixes, :]
        return xp.where(weights == 0, xp.zeros_like(losses), losses * weights)

    def total(self, losses: Array) -> Array:
        """Return the total over rows and prefixes of the losses (G, n)."""
        return self.formula.weigh_prefixes(self.formula.xp.sum(self.weigh_rows(losses), axis=-1))


class Hook(Protocol):
    """How a framework maps a problem over blocks of rows and gets its gradient: a module of `matryoshka._hooks`."""

    def on_host(self, array: Array) -> np.ndarray | None:
        """Return an array as one of NumPy; None if that would wait for a device or break the tracing of a graph."""

    def product_dtype(self, array: Array) -> Any:
        """Return the dtype in which the framework wants products to be formed, or None for that of the arrays."""

    def weighted_total(self, problem: Problem, divisor: Any) -> tuple[Array, Array]:
        """Return the total / `divisor` as a differentiable 0-d array, and the losses (G, n) without a gradient."""

    def row_totals(self, problem: Problem) -> tuple[Array, Array]:
        """Return sum_m c_m loss_mi of each row, (n,), differentiable, and the losses (G, n) without a gradient.

        The weights of the rows do not enter.
        """

    def gradients(self, problem: Problem, wanted: tuple[bool, ...]) -> tuple[Array, Arrays, Arrays]:
        """Return the losses (G, n), and the gradients of the total in the rows and in the parameters."""


class Options(NamedTuple):
    """The options that all losses share, checked by `of`."""

    label_smoothing: float
    ignore_index: int | None
    reduction: str
    return_parts: bool
    row_block: int | None

    @classmethod
    def of(
        cls,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        reduction: str = "mean",
        return_parts: bool = False,
        row_block: int | None = None,
    ) -> Options:
        """Check the options, and return them as Python values."""
        return cls(
            _checks.real(label_smoothing, "label_smoothing", minimum=0.0, maximum=1.0),
            None if ignore_index is None else _checks.integer(ignore_index, "ignore_index"),
            _checks.choice(reduction, "reduction", ("mean", "sum", "none")),
            _checks.flag(return_parts, "return_parts"),
            None if row_block is None else _checks.integer(row_block, "row_block", minimum=1),
        )


def checked_options(**options: Any) -> dict[str, Any]:
    """Check some of the options and return them: a module does so when it is built, not deep in training."""
    checked = Options.of(**options)
    return {name: getattr(checked, name) for name in options}
