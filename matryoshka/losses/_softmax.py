"""What all formulas share: the softmax cross-entropy of a block's logits, its gradient, and weighted rows.

The gradient in the logits z_m of prefix m is g_m = c_m (sum(t) softmax(z_m) - t), where t is the target of a row: 1 at
its label, or a distribution. One softmax gives both the gradient and the loss, so that each logit is exponentiated
once. The weights a_i of the rows stay out of these large (r, c) arrays: they are multiplied into the gradient in the
rows, and into the rows before these enter the gradient in the parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from matryoshka._algebra import softmax, subtract_at
from matryoshka._array import arange, length, library
from matryoshka._hooks.formula import Arrays, Block, Formula
from matryoshka._typing import Array

_EXCLUDED = -1e30
"""The logit of what a mask excludes: its exp is 0, and unlike -inf it gives 0 when multiplied by 0."""


class Target(NamedTuple):
    """The targets of a block of rows: either `labels`, or `shares` and `total`.

    Attributes
    ----------
    labels : integer array (r,) or None
        The right column of each row; label smoothing is still to be applied.
    shares : array (r, c) or None
        The share of each column, with label smoothing applied.
    total : array (r,) or None
        The sum of the shares of a row.
    mask : bool array (r, c) or None
        False for columns that a row does not see.
    """

    labels: Array | None
    shares: Any = None
    total: Any = None
    mask: Array | None = None


class SoftmaxFormula(Formula):
    """The cross-entropy of the softmax of each prefix's logits (r, c)."""

    def losses(self, block: Block, prepared: Arrays) -> Array:
        target, losses = None, []
        for z in self.logits(block.rows, prepared):
            target = target or self.target(block, z)
            losses.append(self.softmax(z, target)[1])
        return self.xp.stack(losses)

    def logits(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        """Yield the logits (r, c) of each prefix, from the narrowest up; the next may overwrite them."""
        raise NotImplementedError

    def target(self, block: Block, like: Array) -> Target:
        """Return the targets of a block of rows among the columns of `like` (r, c), in its dtype."""
        xp, s, labels, mask = self.xp, self.smoothing, block.labels, block.mask
        dense = len(labels.shape) == 2
        if not dense and (mask is None or s == 0.0):
            return Target(labels, mask=mask)
        shares = xp.astype(labels, like.dtype, copy=False) if dense else self._one_hot(labels, like)
        if dense and mask is not None:  # targets may give excluded columns a share as small as a rounding error
            shares = xp.where(mask, shares, xp.zeros_like(shares))
        if s != 0.0:
            seen = xp.ones_like(like) if mask is None else xp.astype(mask, like.dtype)
            shares = (1.0 - s) * shares + s * seen / xp.sum(seen, axis=1)[:, None]
        return Target(None, shares, xp.sum(shares, axis=1), mask)

    def softmax(
        self, logits: Array, target: Target, *, scale: float = 1.0, overwrite: bool = False
    ) -> tuple[Array, Array]:
        """Return scale * p for p = softmax(logits) (r, c), and the losses -sum(t log p) (r,) for smoothed targets t.

        With `overwrite`, the former may replace the logits.
        """
        xp, s = self.xp, self.smoothing
        if logits.shape[-1] == 0:
            return xp.zeros_like(logits), xp.sum(logits, axis=-1)
        if target.mask is not None:
            logits = xp.where(target.mask, logits, xp.zeros_like(logits) + _EXCLUDED)
        if target.shares is not None:
            # The largest logit cancels, so it is left out of the sum.
            largest = xp.max(logits, axis=-1)
            right = xp.sum(target.shares * (logits - largest[:, None]), axis=-1)
            p, _, log_sum = softmax(logits, xp, scale=scale, overwrite=overwrite)
            return p, target.total * log_sum - right
        right = self.at_labels(logits, target.labels)
        if s != 0.0:
            # The largest logit would cancel, so it is left out of the mean.
            largest = xp.max(logits, axis=-1)
            right = (1.0 - s) * right + s * (largest + xp.mean(logits - largest[:, None], axis=-1))
        p, largest, log_sum = softmax(logits, xp, scale=scale, overwrite=overwrite)
        return p, (largest - right) + log_sum

    def differentiated(
        self, logits: Iterable[tuple[int, Array]], block: Block, *, overwrite: Collection[int] = ()
    ) -> Iterator[tuple[Array, Array]]:
        """Yield the losses (r,) of each prefix, and the gradient in its logits (r, c), from pairs (g, logits).

        The logits of the prefixes in `overwrite` may be overwritten.
        """
        target = None
        for g, z in logits:
            target = target or self.target(block, z)
            importance = self.nesting.importance[g]
            p, loss = self.softmax(z, target, scale=importance, overwrite=g in overwrite)
            yield loss, self._logit_gradients(p, target, importance)

    def _logit_gradients(self, p: Array, target: Target, c: float) -> Array:
        """Return c (sum(t) p - t), the gradient in the logits (r, c) of a prefix, from c p, which it may overwrite."""
        if target.shares is not None:
            p *= target.total[:, None]
            p -= target.shares if c == 1.0 else c * target.shares
            return p
        if self.smoothing != 0.0:
            p -= c * self.smoothing / length(p, 1, self.xp, dtype=p.dtype)
        return subtract_at(p, target.labels, c * (1.0 - self.smoothing), self.xp)

    def counted(self, block: Block) -> Block:
        """Return a block whose rows of weight 0 hold zeros: what they held, even NaN, must not enter a sum of rows."""
        if block.weights is None:
            return block
        xp, rows, labels, out = self.xp, block.rows, block.labels, block.weights == 0

        def cleared(array: Array) -> Array:
            where = xp.reshape(out, (-1, *(1 for _ in array.shape[1:])))
            return xp.where(where, xp.zeros_like(array), array)

        dense = len(labels.shape) == 2
        return block._replace(rows=tuple(map(cleared, rows)), labels=cleared(labels) if dense else labels)

    def at_labels(self, matrix: Array, labels: Array) -> Array:
        """Return the number at the label of each row, (r,)."""
        if library(self.xp) == "torch":  # whose `take_along_dim` fixes the number of rows when it is traced
            return self.xp.gather(matrix, 1, labels[:, None])[:, 0]
        return self.xp.take_along_axis(matrix, labels[:, None], axis=-1)[:, 0]

    def scale_rows(self, array: Array | None, factors: Array | None) -> Array | None:
        """Return `array` (r, ...) with each row times its factor (r,). No array gives None; no factors are ones."""
        if array is None or factors is None:
            return array
        factors = self.xp.astype(factors, array.dtype, copy=False)
        return array * self.xp.reshape(factors, (-1, *(1 for _ in array.shape[1:])))

    def add_row_sum(self, total: Array | None, array: Array, weights: Array | None) -> Array:
        """Return `total` plus the weighted sum of the rows of `array`; no total is zero, and no weights are ones."""
        if weights is None:
            row_sum = self.xp.sum(array, axis=0)
        else:  # a product of matrices, as TensorFlow demands
            row_sum = (self.xp.astype(weights, array.dtype, copy=False)[None, :] @ array)[0, :]
        return row_sum if total is None else total + row_sum

    def _one_hot(self, labels: Array, like: Array) -> Array:
        columns = arange(length(like, 1, self.xp), like=like, xp=self.xp, dtype=labels.dtype)
        return self.xp.astype(columns[None, :] == labels[:, None], like.dtype)
