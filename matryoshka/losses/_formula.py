"""The interface between a loss and the hooks: what has to be known of a loss to map it over blocks of rows.

A loss here is a sum over rows i and prefixes m,

    total = sum_i a_i sum_m c_m loss_m(rows_i, parameters),

so that a hook (`matryoshka._hooks`) may cut the rows into blocks, work them off one by one, and keep nothing of a
block but its gradients. A formula is pure and knows one block only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matryoshka._array import accumulator_dtype
from matryoshka._typing import Array, Namespace
from matryoshka.nesting import Nesting

Arrays = tuple[Array, ...]
Totals = tuple[Any, ...]


@dataclass(frozen=True)
class Formula:
    """A loss on one block of rows, with its gradient in closed form.

    Attributes
    ----------
    nesting : Nesting
        Prefix widths and their importances c_m.
    smoothing : float
        Label smoothing s of the softmax cross-entropy.
    product_dtype : dtype or None
        Dtype in which factors of matrix products are taken, where it is not that of the arrays (mixed precision).

    Notes
    -----
    Shapes: `rows` are arrays (r, ...), `labels` integers (r,), `weights` the a_i (r,) or None for all ones.
    `wanted` has a bool for each array of `rows` and then of `parameters`: form its gradient or leave it None.
    """

    nesting: Nesting
    smoothing: float = 0.0
    product_dtype: Any = None

    def prepare(self, parameters: Arrays, xp: Namespace) -> Arrays:
        """Return what all blocks need of the parameters, worked out once."""
        return parameters

    def losses(self, rows: Arrays, labels: Array, prepared: Arrays, xp: Namespace) -> Array:
        """Return the loss of each prefix for each row of the block, (G, r)."""
        raise NotImplementedError

    def gradients(
        self,
        rows: Arrays,
        labels: Array,
        weights: Array | None,
        prepared: Arrays,
        totals: Totals | None,
        wanted: tuple[bool, ...],
        xp: Namespace,
    ) -> tuple[Array, Arrays, Totals]:
        """Return the losses (G, r), the gradients in the rows, and `totals` with this block's share added.

        `totals` is what becomes the gradient in the parameters, in whatever pieces are cheap to add to; None stands
        for zero. It may be overwritten.
        """
        raise NotImplementedError

    def finish(self, parameters: Arrays, prepared: Arrays, totals: Totals, xp: Namespace) -> Arrays:
        """Return the gradients in the parameters, from the totals over all blocks."""
        raise NotImplementedError

    def row_bytes(self, parameters: Arrays) -> int:
        """Return the bytes that one row keeps while its block is worked on, from which a hook sizes the blocks."""
        raise NotImplementedError

    def dtype(self, rows: Array, xp: Namespace) -> Any:
        """Return the dtype of the sums over `rows`, of the losses and of the gradients."""
        return accumulator_dtype(rows, xp)

    def factor(self, array: Array, xp: Namespace) -> Array:
        """Return `array` in the dtype in which products are formed."""
        return array if self.product_dtype is None else xp.astype(array, self.product_dtype, copy=False)
