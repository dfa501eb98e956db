"""What all formulas share: the softmax cross-entropy of a block's logits, its gradient, and weighted rows.

With the logits z_m of prefix m, the gradient in them is g_m = c_m (softmax(z_m) - target). One softmax gives both the
gradient and the loss, so that each logit is exponentiated once. The weights a_i of the rows stay out of these large
(r, c) arrays: they scale the gradient in the rows, and the rows where they enter that in the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from matryoshka._algebra import softmax, subtract_at
from matryoshka._array import length
from matryoshka._hooks.formula import Arrays, Block, Formula
from matryoshka._typing import Array


class SoftmaxFormula(Formula):
    """The cross-entropy of the softmax of each prefix's logits (r, c)."""

    def losses(self, block: Block, prepared: Arrays) -> Array:
        return self.xp.stack([self.softmax(z, block.labels)[1] for z in self.logits(block.rows, prepared)])

    def logits(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        """Yield the logits (r, c) of each prefix, from the narrowest up; the next may be written over them."""
        raise NotImplementedError

    def softmax(self, logits: Array, labels: Array, *, overwrite: bool = False) -> tuple[Array, Array]:
        """Return p = softmax(logits) (r, c) and the losses -(1 - s) log p[label] - s mean(log p) (r,).

        With `overwrite`, p may take the place of the logits.
        """
        xp, s = self.xp, self.smoothing
        if logits.shape[-1] == 0:
            return xp.zeros_like(logits), xp.sum(logits, axis=-1)
        right = self.at_labels(logits, labels)
        if s != 0.0:
            # The largest logit, which would cancel, stays out of the mean.
            largest = xp.max(logits, axis=-1)
            right = (1.0 - s) * right + s * (largest + xp.mean(logits - largest[:, None], axis=-1))
        p, largest, log_sum = softmax(logits, xp, overwrite=overwrite)
        return p, (largest - right) + log_sum

    def logit_gradients(self, g: int, p: Array, labels: Array) -> Array:
        """Return c_m (p - target), the gradient in the logits (r, c) of the prefix g; overwrites `p` where it can."""
        gradients, importance = p, self.nesting.importance[g]
        if self.smoothing != 0.0:
            gradients -= self.smoothing / length(gradients, 1, self.xp, dtype=gradients.dtype)
        gradients = subtract_at(gradients, labels, 1.0 - self.smoothing, self.xp)
        if importance != 1.0:
            gradients *= importance
        return gradients

    def at_labels(self, matrix: Array, labels: Array) -> Array:
        """Return the number at the label of each row, (r,)."""
        return self.xp.take_along_axis(matrix, labels[:, None], axis=-1)[:, 0]

    def scale_rows(self, array: Array | None, factors: Array | None) -> Array | None:
        """Return `array` (r, k), if there is one, with each row times its factor (r,); None stands for ones."""
        if array is None or factors is None:
            return array
        return array * self.xp.astype(factors, array.dtype, copy=False)[:, None]

    def add_row_sum(self, total: Array | None, array: Array, weights: Array | None) -> Array:
        """Return `total` plus the weighted sum of the rows of `array`; None stands for zero and for ones."""
        if weights is None:
            row_sum = self.xp.sum(array, axis=0)
        else:  # TensorFlow multiplies matrices only
            row_sum = (self.xp.astype(weights, array.dtype, copy=False)[None, :] @ array)[0, :]
        return row_sum if total is None else total + row_sum
