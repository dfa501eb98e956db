"""What all formulas share: the softmax cross-entropy of a block's logits, its gradient, and weighted rows.

With the logits z_m of prefix m, the gradient in them is g_m = c_m (softmax(z_m) - target). The weights a_i of the rows
stay out of these large (r, c) arrays: they scale the gradient in the rows, and the rows where they enter that in the
parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

from matryoshka._algebra import subtract_at
from matryoshka._array import length
from matryoshka._hooks.formula import Arrays, Block, Formula
from matryoshka._typing import Array


class SoftmaxFormula(Formula):
    """The cross-entropy of the softmax of each prefix's logits (r, c)."""

    def losses(self, block: Block, prepared: Arrays) -> Array:
        return self.stack_losses(self.log_probabilities(block.rows, prepared), block.labels)

    def log_probabilities(self, rows: Arrays, prepared: Arrays) -> Iterable[Array]:
        """Yield the logarithm of each prefix's softmax, from the narrowest prefix up: new arrays (r, c)."""
        raise NotImplementedError

    def stack_losses(self, log_ps: Iterable[Array], labels: Array) -> Array:
        """Return the losses (G, r) of log-probabilities (r, c)."""
        return self.xp.stack([self.row_losses(log_p, labels) for log_p in log_ps])

    def row_losses(self, log_p: Array, labels: Array) -> Array:
        """Return -(1 - s) log p[label] - s mean(log p) for each row of log-probabilities (r, c)."""
        losses, s = -self.at_labels(log_p, labels), self.smoothing
        return losses if s == 0.0 else (1.0 - s) * losses - s * self.xp.mean(log_p, axis=-1)

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
