"""InfoNCE over the prefixes of queries and keys on one block of queries, and its gradient in closed form.

The similarity in prefix m is s = (q[:m] . k[:m]) / (|q[:m]| |k[:m]| t): dot products run over the prefixes as for a
tied head, and so do squared norms. With the gradient A in s, the gradient in the dot products is A / (|q| |k| t);
through the norms q[:m] gets -q[:m] sum_j(A_ij s_ij) / |q[:m]|^2, and keys likewise; the temperature gets -sum(A s) / t.
A row whose prefix is zero has similarity 0 to everything, and no gradient.

Lengths do not matter. Rows whose products are formed in half precision enter them divided by their largest number:
their dot products stay within the range of float16, whatever their length. Other rows enter them as they are, but for
those whose squares would overflow or vanish: these are multiplied by a power of two, which leaves every digit as it
was. Gradients are multiplied by the same factor in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np

from matryoshka._array import accumulator_dtype, library
from matryoshka._hooks.formula import Arrays, Block, Totals
from matryoshka._typing import Array
from matryoshka.losses._products import ProductFormula, join_columns

_FAR = {True: (2.0**96, 2.0**88), False: (2.0**512, 2.0**640)}
"""For float32 and float64: beyond which square a row is long, its inverse short, and the factor for such rows."""


class Similarity(ProductFormula):
    """InfoNCE. Rows: queries (r, dim). Parameters: keys (c, dim), temperature (). Labels: the right key of a query.

    Totals, for each prefix: the gradient in its block of the keys' columns through the dot products, and the column
    sums of A s. Multiply-adds per row: dim * c forward and 2 * dim * c backward.
    """

    def prepare(self, parameters: Arrays) -> Arrays:
        keys, temperature = parameters
        inverse_temperature = 1.0 / self.xp.astype(temperature, accumulator_dtype(keys, self.xp), copy=False)
        keys, scale, inverse_norms = self._factors(keys)
        return keys, inverse_norms, scale, inverse_temperature

    def logits(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        q, _, inverse_q = self._factors(rows[0])
        return self._similarities(q, inverse_q, prepared)

    def gradients(
        self, block: Block, prepared: Arrays, totals: Totals | None, wanted: tuple[bool, ...]
    ) -> tuple[Array, Arrays, Totals]:
        (x,), labels, weights = block
        k, inverse_k, _, inverse_t = prepared
        q, scale, inverse_q = self._factors(x)
        d_k, k_sums = totals or (None, [None] * len(self.nesting))
        k_sums, q_sums, losses = list(k_sums), [], []

        def dot_gradients() -> Iterator[Array]:
            for g, s in enumerate(self._similarities(q, inverse_q, prepared)):
                p, loss = self.softmax(s, labels)
                losses.append(loss)
                a = self.logit_gradients(g, p, labels)
                s *= a
                q_sums.append(self.xp.sum(s, axis=1))
                k_sums[g] = self.add_row_sum(k_sums[g], s, weights)
                a *= inverse_k[g]
                a *= (inverse_q[g] * inverse_t)[:, None]
                yield a

        q_columns, k_columns = self.columns(x), self.columns(x, d_k)
        factors = self.scale_rows(q, weights), k
        for _ in self.backward(dot_gradients(), factors, (q_columns, k_columns), wanted):
            pass
        d_q = q_columns.join()
        if d_q is not None:
            d_q = self.scale_rows(d_q - self._norm_gradient(q, q_sums, inverse_q), scale)
        return self.xp.stack(losses), (self.scale_rows(d_q, weights),), (k_columns.data, k_sums)

    def row_bytes(self, parameters: Arrays) -> int:
        # The product and the similarities of a prefix stand beside the gradients that are kept.
        return super().row_bytes(parameters) + 2 * 4 * int(parameters[0].shape[0])

    def finish(self, prepared: Arrays, totals: Totals) -> Arrays:
        (keys, inverse_k, scale, inverse_t), (d_k, k_sums) = prepared, totals
        d_keys = join_columns(d_k, self.xp)
        if d_keys is not None:
            d_keys -= self._norm_gradient(keys, k_sums, inverse_k)
        return self.scale_rows(d_keys, scale), -inverse_t * self.xp.sum(self.xp.stack(k_sums))

    def _similarities(self, q: Array, inverse_q: Sequence[Array], prepared: Arrays) -> Iterator[Array]:
        k, inverse_k, _, inverse_t = prepared
        for g, dot in enumerate(self.running_products(q, k)):
            s = dot * inverse_k[g]
            s *= (inverse_q[g] * inverse_t)[:, None]
            yield s

    def _factors(self, x: Array) -> tuple[Array, Array | None, list[Array]]:
        """Return rows as they enter products, what they were multiplied by (n,), and the inverse norms of the result.

        None stands for factors of one.
        """
        xp, factor = self.xp, self.factor(x)
        dtype = accumulator_dtype(factor, xp)
        if factor.dtype != dtype:
            wide = xp.astype(x, dtype, copy=False)
            largest = xp.max(xp.abs(wide), axis=1)
            scale = 1.0 / xp.where(largest > 0, largest, xp.ones_like(largest))
            factor = xp.astype(self.scale_rows(wide, scale), factor.dtype)
            return factor, scale, self._inverse_norms(self._squares(factor))
        with nullcontext() if library(xp) == "torch" else np.errstate(over="ignore"):  # which it cannot trace
            squares = self._squares(factor)
        far, step = _FAR["32" in str(dtype)]
        long, short = squares[-1] > far, squares[-1] < 1 / far
        if library(xp) == "numpy" and not (long.any() or short.any()):
            return factor, None, self._inverse_norms(squares)
        ones = xp.ones_like(squares[-1])
        scale = xp.where(long, ones / step, xp.where(short, ones * step, ones))
        factor = self.scale_rows(factor, scale)
        return factor, scale, self._inverse_norms(self._squares(factor))

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

    def _norm_gradient(self, x: Array, sums: Sequence[Array], inverse: Sequence[Array]) -> Array:
        """Return the sum over prefixes of x[:, :m] * sums_m / |x[:, :m]|^2, (n, dim)."""
        suffix, parts = 0.0, []
        for g, block in reversed(list(enumerate(self.nesting.blocks))):
            suffix = suffix + sums[g] * inverse[g] * inverse[g]
            parts.append(self.xp.astype(x[:, block], suffix.dtype, copy=False) * suffix[:, None])
        return self.xp.concat(parts[::-1], axis=1)
