"""InfoNCE over the prefixes of queries and keys on one block of queries, and its gradient in closed form.

The similarity in prefix m is s = (q[:m] . k[:m]) / (|q[:m]| |k[:m]| t): dot products run over the prefixes as for a
tied head, and so do squared norms. With the gradient A in s, the gradient in the dot products is A / (|q| |k| t);
through the norms q[:m] gets -q[:m] sum_j(A_ij s_ij) / |q[:m]|^2, and keys likewise; the temperature gets -sum(A s) / t.
A row whose prefix is zero has similarity 0 to everything, and no gradient.

The lengths of rows cancel, so rows may be scaled. Before products in half precision, each row is divided by its
largest number, which keeps dot products within the range of float16. Other rows stay as they are, unless their squares
would overflow or vanish: these are multiplied by a power of two, which changes no digit. In the end, gradients are
multiplied by the same factor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from matryoshka._array import accumulator_dtype, can_write, length, library
from matryoshka._hooks import hook_for
from matryoshka._hooks.formula import Arrays, Block, Totals
from matryoshka._typing import Array
from matryoshka.losses._products import ProductFormula, join_columns
from matryoshka.losses._softmax import Target

_FAR = {True: (2.0**96, 2.0**88), False: (2.0**512, 2.0**640)}
"""Of float32 and of float64: the squared length above which a row is scaled, as below its inverse; and the factor."""

_TINY = 2.0**-120
"""The smallest number to divide by: in bfloat16, the inverse of some smaller ones is infinite."""


class Scaled(NamedTuple):
    """Rows as they enter products.

    Attributes
    ----------
    rows : array (n, dim)
        The rows times their scale.
    scale : array (n,) or None
        The factor of each row; None stands for ones.
    inverse : list of array (n,)
        1 / |rows[:, :m]| for each prefix, 0 where it is zero.
    """

    rows: Array
    scale: Array | None
    inverse: list[Array]


class Similarity(ProductFormula):
    """InfoNCE.

    Rows: queries (r, dim) and, if there are any, the hard negatives of each (r, h, dim), which give h more logits.
    Parameters: keys (c, dim), temperature (). Labels: the right key of a query, or the share of each key. Totals: the
    gradient in the keys through the dot products, the column sums of A s for each prefix, and the sum of all A s.
    Multiply-adds per row: dim * (c + h) forward and twice that backward.
    """

    def prepare(self, parameters: Arrays) -> Arrays:
        keys, temperature = parameters
        return self.scaled(keys), 1.0 / self.xp.astype(temperature, accumulator_dtype(keys, self.xp), copy=False)

    def logits(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        q = self.scaled(rows[0])
        return (self._joined(pair) for pair in self._similarities(q, self._own(q, rows), prepared))

    def gradients(
        self, block: Block, prepared: Arrays, totals: Totals | None, wanted: tuple[bool, ...]
    ) -> tuple[Array, Arrays, Totals]:
        xp, block = self.xp, self.counted(block)
        (k, inverse_t), weights, n_rows = prepared, block.weights, len(block.rows)
        q = self.scaled(block.rows[0])
        own = self._own(q, block.rows)
        d_k, k_sums, total = totals or (None, [None] * len(self.nesting), None)
        k_sums, q_sums, losses, found = list(k_sums), [], [], []

        def logits() -> Iterator[tuple[int, Array]]:
            for g, pair in enumerate(self._similarities(q, own, prepared)):
                found.append(pair)
                yield g, self._joined(pair)

        def dot_gradients() -> Iterator[Array]:
            for g, (loss, a) in enumerate(self.differentiated(logits(), block)):
                losses.append(loss)
                s, s_own = found.pop()
                n_keys, inverse_q = length(s, 1, xp), q.inverse[g] * inverse_t
                q_sum = 0.0 if own is None else own.take(g, a[:, n_keys:], s_own, inverse_q)
                a = a if own is None else a[:, :n_keys]
                s *= a
                q_sums.append(xp.sum(s, axis=1) + q_sum)
                k_sums[g] = self.add_row_sum(k_sums[g], s, weights)
                a *= k.inverse[g][None, :]
                a *= inverse_q[:, None]
                yield a

        q_columns, k_columns = self.columns(q.rows), self.columns(q.rows, d_k)
        factors, of_products = (self.scale_rows(q.rows, weights), k.rows), (wanted[0], wanted[n_rows])
        for _ in self.backward(dot_gradients(), factors, (q_columns, k_columns), of_products):
            pass
        d_q, d_own = q_columns.join(), () if own is None else own.gradients()
        if d_q is not None:
            d_q = d_q + d_own[0] if d_own else d_q
            d_q = self.scale_rows(self.less_norm_gradient(d_q, q, q_sums), q.scale)
        total = self.add_row_sum(total, sum(q_sums)[:, None], weights)
        d_rows = tuple(self.scale_rows(d, weights) for d in (d_q, *d_own[1:]))
        return xp.stack(losses), d_rows, (k_columns.data, k_sums, total)

    def target(self, block: Block, like: Array) -> Target:
        """Return the targets of the queries, extended to their hard negatives: never right, and always seen."""
        labels, mask = block.labels, block.mask
        if len(block.rows) == 2:
            if len(labels.shape) == 2:
                own = like[:, length(labels, 1, self.xp) :]
                labels = self.xp.concat([self.xp.astype(labels, like.dtype), self.xp.zeros_like(own)], axis=1)
            if mask is not None:
                own = like[:, length(mask, 1, self.xp) :]
                mask = self.xp.concat([mask, self.xp.ones_like(own, dtype=mask.dtype)], axis=1)
        return super().target(block._replace(labels=labels, mask=mask), like)

    def row_bytes(self, parameters: Arrays) -> int:
        # The product and the similarities of a prefix, beside the gradients that are kept.
        return super().row_bytes(parameters) + 2 * 4 * int(parameters[0].shape[0])

    def finish(self, prepared: Arrays, totals: Totals) -> Arrays:
        (keys, inverse_t), (d_k, k_sums, total) = prepared, totals
        d_keys = join_columns(d_k, self.xp)
        if d_keys is not None:
            d_keys = self.less_norm_gradient(d_keys, keys, k_sums)
        return self.scale_rows(d_keys, keys.scale), self.xp.reshape(-inverse_t * total, ())

    def _own(self, q: Scaled, rows: Arrays) -> HardNegatives | None:
        return HardNegatives(self, q, rows[1]) if len(rows) == 2 else None

    def _joined(self, pair: tuple[Array, Array | None]) -> Array:
        return pair[0] if pair[1] is None else self.xp.concat(list(pair), axis=1)

    def _similarities(
        self, q: Scaled, own: HardNegatives | None, prepared: Arrays
    ) -> Iterator[tuple[Array, Array | None]]:
        """Yield the similarities of each prefix: with the keys (r, c), and with hard negatives (r, h)."""
        k, inverse_t = prepared
        others = itertools.repeat(None) if own is None else own.dot_products()
        for g, (dot, dot_own) in enumerate(zip(self.running_products(q.rows, k.rows), others, strict=False)):
            inverse_q = (q.inverse[g] * inverse_t)[:, None]
            s = dot * k.inverse[g][None, :]
            s *= inverse_q
            yield s, None if own is None else dot_own * own.inverse[g] * inverse_q

    def scaled(self, x: Array) -> Scaled:
        """Return rows (n, dim) as they enter products."""
        xp, factor = self.xp, self.factor(x)
        dtype = accumulator_dtype(factor, xp)
        if factor.dtype != dtype:
            wide = xp.astype(x, dtype, copy=False)
            largest = xp.max(xp.abs(wide), axis=1)
            scale = 1.0 / xp.where(largest > _TINY, largest, xp.zeros_like(largest) + _TINY)
            factor = xp.astype(self.scale_rows(wide, scale), factor.dtype)
            return Scaled(factor, scale, self._inverse_norms(self._squares(factor)))
        with nullcontext() if library(xp) == "torch" else np.errstate(over="ignore"):  # which cannot trace it
            squares = self._squares(factor)
        far, step = _FAR["32" in str(dtype)]
        long, short = squares[-1] > far, squares[-1] < 1 / far
        host = hook_for(xp).on_host(long | short)
        if host is not None and not host.any():  # saves a copy of all rows
            return Scaled(factor, None, self._inverse_norms(squares))
        ones = xp.ones_like(squares[-1])
        scale = xp.where(long, ones / step, xp.where(short, ones * step, ones))
        factor = self.scale_rows(factor, scale)
        return Scaled(factor, scale, self._inverse_norms(self._squares(factor)))

    def _squares(self, x: Array) -> list[Array]:
        """Return |x[:, :m]|^2 (n,) for each prefix."""
        xp, dtype = self.xp, accumulator_dtype(x, self.xp)
        found, squared = [], 0.0
        for block in self.nesting.blocks:
            part = xp.astype(x[:, block], dtype, copy=False)
            squared = squared + xp.sum(part * part, axis=1)
            found.append(squared)
        return found

    def _inverse_norms(self, squares: Sequence[Array]) -> list[Array]:
        """Return 1 / |x[:, :m]| (n,) for each prefix, 0 where it is zero."""
        xp, inverse = self.xp, []
        for squared in squares:
            positive = squared > 0
            inverse.append(xp.where(positive, 1.0 / xp.sqrt(xp.where(positive, squared, 1.0)), 0.0))
        return inverse

    def less_norm_gradient(self, gradient: Array, x: Scaled, sums: Sequence[Array]) -> Array:
        """Return `gradient` (n, dim) less the sum over prefixes of x[:, :m] * sums_m / |x[:, :m]|^2.

        `gradient` is overwritten, one block of columns at a time, where its library can.
        """
        xp, suffix, parts = self.xp, 0.0, []
        for g, block in reversed(list(enumerate(self.nesting.blocks))):
            suffix = suffix + sums[g] * x.inverse[g] * x.inverse[g]
            part = xp.astype(x.rows[:, block], suffix.dtype, copy=False) * suffix[:, None]
            if can_write(xp):
                gradient[:, block] -= part
            else:
                parts.append(part)
        return gradient - xp.concat(parts[::-1], axis=1) if parts else gradient


class HardNegatives:
    """The hard negatives (r, h, dim) of a block of queries (r, dim): their similarities (r, h), and gradients."""

    def __init__(self, formula: Similarity, q: Scaled, negatives: Array) -> None:
        self._formula, self._xp, self._q = formula, formula.xp, q
        self._shape = tuple(length(negatives, axis, self._xp) for axis in range(2))
        self._flat = formula.scaled(self._xp.reshape(negatives, (-1, formula.nesting.dim)))
        self._rows = self._xp.reshape(self._flat.rows, (*self._shape, formula.nesting.dim))
        self.inverse = [self._xp.reshape(inverse, self._shape) for inverse in self._flat.inverse]
        self._dtype = accumulator_dtype(negatives, self._xp)
        self._dot_gradients: list[Array] = []
        self._sums: list[Array] = []

    def dot_products(self) -> Iterator[Array]:
        """Yield the dot products (r, h) of each prefix."""
        total = 0.0
        for block in self._formula.nesting.blocks:
            total = total + self._wide((self._rows[:, :, block] @ self._q.rows[:, block, None])[:, :, 0])
            yield total

    def take(self, g: int, a: Array, s: Array, inverse_q: Array) -> Array:
        """Keep the gradient `a` (r, h) in the similarities `s` of prefix g; return the row sums of a * s, (r,)."""
        sums = a * s
        self._dot_gradients.append(a * self.inverse[g] * inverse_q[:, None])
        self._sums.append(self._xp.reshape(sums, (-1,)))
        return self._xp.sum(sums, axis=1)

    def gradients(self) -> tuple[Array, Array]:
        """Return the gradients in the queries, without the part through their norms, and in the negatives."""
        xp, suffix, d_q, d_rows = self._xp, 0.0, [], []
        for block, gradient in zip(self._formula.nesting.blocks[::-1], self._dot_gradients[::-1], strict=True):
            suffix = suffix + gradient
            factor = xp.astype(suffix, self._rows.dtype, copy=False)
            d_q.append(self._wide((factor[:, None, :] @ self._rows[:, :, block])[:, 0, :]))
            d_rows.append(suffix[:, :, None] * self._wide(self._q.rows[:, block])[:, None, :])
        flat = xp.reshape(xp.concat(d_rows[::-1], axis=2), (-1, self._formula.nesting.dim))
        flat = self._formula.less_norm_gradient(flat, self._flat, self._sums)
        flat = self._formula.scale_rows(flat, self._flat.scale)
        return xp.concat(d_q[::-1], axis=1), xp.reshape(flat, (*self._shape, self._formula.nesting.dim))

    def _wide(self, array: Array) -> Array:
        """Return `array` in the dtype of sums."""
        return self._xp.astype(array, self._dtype, copy=False)
