"""Cross-entropy of nested linear classifiers on one block of rows, and its gradient in closed form.

Prefix m has the logits z_m = x[:m] @ W_m.T + b_m, for embeddings x.
"""

from __future__ import annotations

from collections.abc import Iterator

from matryoshka._algebra import add_product, add_transposed_product, write_product
from matryoshka._array import accumulator_dtype, can_write
from matryoshka._hooks.formula import Arrays, Block, Totals
from matryoshka._typing import Array
from matryoshka.losses._products import ProductFormula, join_columns
from matryoshka.losses._softmax import SoftmaxFormula


class TiedHead(ProductFormula):
    """MRL-E: the head of prefix m is the first m columns of one weight.

    Rows: embeddings (r, dim). Parameters: weight (c, dim), and bias (c,) or None. Totals: the gradient in each block of
    the weight's columns, and in the bias. Multiply-adds per row: dim * c forward and 2 * dim * c backward.
    """

    def prepare(self, parameters: Arrays) -> Arrays:
        weight, bias = parameters
        return self.factor(weight), bias

    def logits(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        weight, bias = prepared
        return self.running_products(self.factor(rows[0]), weight, bias)

    def gradients(
        self, block: Block, prepared: Arrays, totals: Totals | None, wanted: tuple[bool, ...]
    ) -> tuple[Array, Arrays, Totals]:
        block = self.counted(block)
        (x,), *_, weights = block
        d_weight, d_bias = totals or (None, None)
        losses = []

        def logit_gradients() -> Iterator[Array]:
            logits, last = enumerate(self.logits(block.rows, prepared)), len(self.nesting) - 1
            for loss, d_z in self.differentiated(logits, block, overwrite=(last,)):
                losses.append(loss)
                yield d_z

        x_columns, w_columns = self.columns(x), self.columns(x, d_weight)
        factors = self.factor(self.scale_rows(x, weights)), prepared[0]
        for total in self.backward(logit_gradients(), factors, (x_columns, w_columns), wanted):
            if wanted[2]:
                d_bias = self.add_row_sum(d_bias, total, weights)
        return self.xp.stack(losses), (self.scale_rows(x_columns.join(), weights),), (w_columns.data, d_bias)

    def finish(self, prepared: Arrays, totals: Totals) -> Arrays:
        d_weight, d_bias = totals
        return join_columns(d_weight, self.xp), d_bias


class SeparateHeads(SoftmaxFormula):
    """MRL: each prefix has a weight and a bias of its own.

    Rows: embeddings (r, dim). Parameters: for each prefix in turn, weight (c, m) and bias (c,) or None. Totals: the
    gradients in them. Multiply-adds per row: (sum of the widths) * c forward and twice that backward.
    """

    def prepare(self, parameters: Arrays) -> Arrays:
        return tuple(p if i % 2 else self.factor(p) for i, p in enumerate(parameters))

    def logits(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        return (self._logits(g, rows[0], prepared) for g in range(len(self.nesting)))

    def gradients(
        self, block: Block, prepared: Arrays, totals: Totals | None, wanted: tuple[bool, ...]
    ) -> tuple[Array, Arrays, Totals]:
        block = self.counted(block)
        (x,), *_, weights = block
        xp = self.xp
        weighted_x = self.factor(self.scale_rows(x, weights))
        d_heads = list(totals or [None] * len(prepared))
        losses, d_x = [], None
        widest_first = list(enumerate(self.nesting))[::-1]
        own = () if hasattr(xp, "softmax") else range(len(self.nesting))  # a softmax of the library is faster
        logits = ((g, self._logits(g, x, prepared)) for g, _ in widest_first)
        for (g, m), (loss, d_z) in zip(widest_first, self.differentiated(logits, block, overwrite=own), strict=True):
            losses.append(loss)
            w, b = 2 * g, 2 * g + 1
            factor = xp.astype(d_z, prepared[w].dtype, copy=False)
            if wanted[0]:
                d_x = self._add_to_prefix(d_x, factor, prepared[w], d_z.dtype)
            if wanted[1 + w]:
                columns = weighted_x[:, :m]
                d_heads[w] = add_transposed_product(d_heads[w], factor, columns, dtype=d_z.dtype, xp=xp)
            if wanted[1 + b]:
                d_heads[b] = self.add_row_sum(d_heads[b], d_z, weights)
        return xp.stack(losses[::-1]), (self.scale_rows(d_x, weights),), tuple(d_heads)

    def row_bytes(self, parameters: Arrays) -> int:
        return 4 * int(parameters[0].shape[0]) * 3

    def _logits(self, g: int, x: Array, prepared: Arrays) -> Array:
        weight, bias = prepared[2 * g : 2 * g + 2]
        xp, dtype = self.xp, accumulator_dtype(x, self.xp)
        prefix = self.factor(x)[:, : self.nesting.dims[g]]
        z = add_product(None, prefix, xp.matrix_transpose(weight), dtype=dtype, xp=xp)
        if bias is not None:
            z += xp.astype(bias, dtype, copy=False)[None, :]
        return z

    def _add_to_prefix(self, total: Array | None, left: Array, right: Array, dtype: object) -> Array:
        """Return `total` (r, dim) with left (r, k) @ right (k, m) added to its first m columns, m <= dim.

        None stands for zeros (r, m). `total` is overwritten where its library can.
        """
        xp, m = self.xp, right.shape[1]
        if total is None or m == total.shape[1]:
            return add_product(total, left, right, dtype=dtype, xp=xp)
        if can_write(xp):
            write_product(total[:, :m], left, right, keep=True, xp=xp)
            return total
        return xp.concat([add_product(total[:, :m], left, right, dtype=dtype, xp=xp), total[:, m:]], axis=1)


class Logits(SoftmaxFormula):
    """Logits computed elsewhere. Rows: those of each prefix (r, c), or one array of all (r, G, c); no parameters."""

    def logits(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        # A stacked array is cut here, so that the framework need not differentiate the cuts.
        stacked = len(rows[0].shape) == 3
        for z in (rows[0][:, g, :] for g in range(len(self.nesting))) if stacked else rows:
            yield self.xp.astype(z, accumulator_dtype(z, self.xp), copy=False)

    def gradients(
        self, block: Block, prepared: Arrays, totals: Totals | None, wanted: tuple[bool, ...]
    ) -> tuple[Array, Arrays, Totals]:
        losses, gradients = [], []
        block = self.counted(block)
        for loss, d_z in self.differentiated(enumerate(self.logits(block.rows, prepared)), block):
            losses.append(loss)
            gradients.append(self.scale_rows(d_z, block.weights))
        stacked = len(block.rows[0].shape) == 3
        return self.xp.stack(losses), (self.xp.stack(gradients, axis=1),) if stacked else tuple(gradients), ()
