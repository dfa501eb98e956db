"""Cross-entropy of nested linear classifiers on one block of rows, and its gradient in closed form.

With the logits z_m = x[:m] @ W_m.T + b_m of prefix m, the gradient in them is g_m = c_m (softmax(z_m) - target).
The weights a_i of the rows stay out of the large (r, c) arrays: they scale dx, and x where it enters dW.
"""

from __future__ import annotations

from collections.abc import Iterator

from matryoshka._array import accumulator_dtype, add_product, exp_, log_softmax
from matryoshka._typing import Array, Namespace
from matryoshka.losses._formula import Arrays, Formula, Totals
from matryoshka.losses._products import (
    add_row_sum,
    add_to_prefix,
    block_gradients,
    join_columns,
    running_products,
    scale_rows,
)
from matryoshka.losses._softmax import logit_gradients, row_losses


class TiedHead(Formula):
    """MRL-E: the head of prefix m is the first m columns of one weight.

    Rows: embeddings (r, dim). Parameters: weight (c, dim), and bias (c,) or None. Totals: the gradient in each block of
    the weight's columns, and in the bias. Multiply-adds per row: dim * c forward and 2 * dim * c backward.
    """

    def prepare(self, parameters: Arrays, xp: Namespace) -> Arrays:
        weight, bias = parameters
        return self.factor(weight, xp), bias

    def losses(self, rows: Arrays, labels: Array, prepared: Arrays, xp: Namespace) -> Array:
        return xp.stack([row_losses(log_p, labels, self.smoothing, xp) for log_p in self._log_p(rows, prepared, xp)])

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
        (x,), (weight, _) = rows, prepared
        d_weight, d_bias = totals or (None, None)
        log_ps = list(self._log_p(rows, prepared, xp))
        losses = xp.stack([row_losses(log_p, labels, self.smoothing, xp) for log_p in log_ps])
        suffix, d_x, d_weight = block_gradients(
            lambda g: logit_gradients(exp_(log_ps.pop(), xp), labels, self.smoothing, self.nesting.importance[g], xp),
            self.factor(scale_rows(x, weights, xp), xp),
            weight,
            self.nesting.blocks,
            d_y=d_weight,
            wanted=(wanted[0], wanted[1]),
            dtype=accumulator_dtype(x, xp),
            xp=xp,
        )
        if wanted[0]:
            d_x = scale_rows(d_x, weights, xp)
        if wanted[2]:
            d_bias = add_row_sum(d_bias, suffix, weights, xp)
        return losses, (d_x,), (d_weight, d_bias)

    def finish(self, parameters: Arrays, prepared: Arrays, totals: Totals, xp: Namespace) -> Arrays:
        d_weight, d_bias = totals
        return join_columns(d_weight, xp), d_bias

    def row_bytes(self, parameters: Arrays) -> int:
        return 4 * int(parameters[0].shape[0]) * len(self.nesting)

    def _log_p(self, rows: Arrays, prepared: Arrays, xp: Namespace) -> Iterator[Array]:
        (x,), (weight, bias) = rows, prepared
        dtype = accumulator_dtype(x, xp)
        for z in running_products(self.factor(x, xp), weight, self.nesting.blocks, bias=bias, dtype=dtype, xp=xp):
            yield log_softmax(z, xp)


class SeparateHeads(Formula):
    """MRL: each prefix has a weight and a bias of its own.

    Rows: embeddings (r, dim). Parameters: for each prefix in turn, weight (c, m) and bias (c,) or None. Totals: the
    gradients in them. Multiply-adds per row: (sum of the widths) * c forward and twice that backward.
    """

    def prepare(self, parameters: Arrays, xp: Namespace) -> Arrays:
        return tuple(p if i % 2 else self.factor(p, xp) for i, p in enumerate(parameters))

    def losses(self, rows: Arrays, labels: Array, prepared: Arrays, xp: Namespace) -> Array:
        log_ps = (self._log_p(g, rows, prepared, xp) for g in range(len(self.nesting)))
        return xp.stack([row_losses(log_p, labels, self.smoothing, xp) for log_p in log_ps])

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
        weighted_x = self.factor(scale_rows(rows[0], weights, xp), xp)
        d_heads = list(totals or [None] * len(prepared))
        losses, d_x = [], None
        for g, m in reversed(list(enumerate(self.nesting))):
            log_p = self._log_p(g, rows, prepared, xp)
            losses.append(row_losses(log_p, labels, self.smoothing, xp))
            d_z = logit_gradients(exp_(log_p, xp), labels, self.smoothing, self.nesting.importance[g], xp)
            w, b = 2 * g, 2 * g + 1
            factor = xp.astype(d_z, prepared[w].dtype, copy=False)
            if wanted[0]:
                d_x = add_to_prefix(d_x, factor, prepared[w], dtype=d_z.dtype, xp=xp)
            if wanted[1 + w]:
                transposed = xp.matrix_transpose(factor)
                d_heads[w] = add_product(d_heads[w], transposed, weighted_x[:, :m], dtype=d_z.dtype, xp=xp)
            if wanted[1 + b]:
                d_heads[b] = add_row_sum(d_heads[b], d_z, weights, xp)
        if wanted[0]:
            d_x = scale_rows(d_x, weights, xp)
        return xp.stack(losses[::-1]), (d_x,), tuple(d_heads)

    def finish(self, parameters: Arrays, prepared: Arrays, totals: Totals, xp: Namespace) -> Arrays:
        return totals

    def row_bytes(self, parameters: Arrays) -> int:
        return 4 * int(parameters[0].shape[0]) * 3

    def _log_p(self, g: int, rows: Arrays, prepared: Arrays, xp: Namespace) -> Array:
        (x,), weight, bias = rows, prepared[2 * g], prepared[2 * g + 1]
        prefix = slice(0, self.nesting.dims[g])
        (z,) = running_products(self.factor(x, xp), weight, [prefix], bias=bias, dtype=accumulator_dtype(x, xp), xp=xp)
        return log_softmax(z, xp)


class Logits(Formula):
    """Logits computed elsewhere. Rows: those of each prefix (r, c), or one array of all (r, G, c); no parameters."""

    def losses(self, rows: Arrays, labels: Array, prepared: Arrays, xp: Namespace) -> Array:
        return xp.stack([row_losses(self._log_p(z, xp), labels, self.smoothing, xp) for z in self._each(rows)])

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
        losses, gradients = [], []
        for z, importance in zip(self._each(rows), self.nesting.importance, strict=True):
            log_p = self._log_p(z, xp)
            losses.append(row_losses(log_p, labels, self.smoothing, xp))
            gradients.append(
                scale_rows(logit_gradients(exp_(log_p, xp), labels, self.smoothing, importance, xp), weights, xp)
            )
        stacked = len(rows[0].shape) == 3
        return xp.stack(losses), (xp.stack(gradients, axis=1),) if stacked else tuple(gradients), ()

    def finish(self, parameters: Arrays, prepared: Arrays, totals: Totals, xp: Namespace) -> Arrays:
        return ()

    def row_bytes(self, parameters: Arrays) -> int:
        return 0

    def _each(self, rows: Arrays) -> Arrays:
        """Return the logits of each prefix. Cut here, they need no gradient of the cuts by the framework."""
        return tuple(rows[0][:, g, :] for g in range(len(self.nesting))) if len(rows[0].shape) == 3 else rows

    def _log_p(self, logits: Array, xp: Namespace) -> Array:
        return log_softmax(xp.astype(logits, accumulator_dtype(logits, xp), copy=False), xp)
