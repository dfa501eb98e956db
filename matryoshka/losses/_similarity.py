"""InfoNCE over the prefixes of queries and keys on one block of queries, and its gradient in closed form.

The similarity in prefix m is s = (q[:m] . k[:m]) / (|q[:m]| |k[:m]| t): dot products run over the prefixes as for a
tied head, and so do squared norms. With the gradient A in s, the gradient in the dot products is A / (|q| |k| t);
through the norms q[:m] gets -q[:m] sum_j(A_ij s_ij) / |q[:m]|^2, and keys likewise; the temperature gets -sum(A s) / t.
A row whose prefix is zero has similarity 0 to everything, and no gradient.

Lengths do not matter, so rows whose products are formed in half precision enter them divided by their largest number:
their dot products stay within the range of float16, whatever their length. Gradients are divided by it in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matryoshka._algebra import log_softmax
from matryoshka._array import accumulator_dtype
from matryoshka._hooks.formula import Arrays, Block, Totals
from matryoshka._typing import Array
from matryoshka.losses._products import ProductFormula


class Similarity(ProductFormula):
    """InfoNCE. Rows: queries (r, dim). Parameters: keys (c, dim), temperature (). Labels: the right key of a query.

    Totals, for each prefix: the gradient in its block of the keys' columns through the dot products, and the column
    sums of A s. Multiply-adds per row: dim * c forward and 2 * dim * c backward.
    """

    def prepare(self, parameters: Arrays) -> Arrays:
        keys, temperature = parameters
        inverse_temperature = 1.0 / self.xp.astype(temperature, accumulator_dtype(keys, self.xp), copy=False)
        keys, scale = self._factors(keys)
        return keys, self._inverse_norms(keys), scale, inverse_temperature

    def log_probabilities(self, rows: Arrays, prepared: Arrays) -> Iterator[Array]:
        q, _ = self._factors(rows[0])
        return (log_softmax(s, self.xp) for s in self._similarities(q, self._inverse_norms(q), prepared))

    def gradients(
        self, block: Block, prepared: Arrays, totals: Totals | None, wanted: tuple[bool, ...]
    ) -> tuple[Array, Arrays, Totals]:
        (x,), labels, weights = block
        k, inverse_k, _, inverse_t = prepared
        q, scale = self._factors(x)
        inverse_q = self._inverse_norms(q)
        log_ps, log_sums = [], []
        for s in self._similarities(q, inverse_q, prepared):
            log_ps.append(log_softmax(s, self.xp))
            log_sums.append(self.at_labels(s, labels) - self.at_labels(log_ps[-1], labels))
        losses = self.stack_losses(log_ps, labels)
        d_k, k_sums = totals or (None, [None] * len(log_ps))
        q_sums, k_sums = [None] * len(log_ps), list(k_sums)

        def dot_gradient(g: int) -> Array:
            log_p = log_ps.pop()
            a = self.logit_gradients(g, self.xp.exp(log_p), labels)
            # s is log_p plus one number per row, and the rows of A sum to 0.
            log_p *= a
            q_sums[g] = self.xp.sum(log_p, axis=1)
            k_sums[g] = self.add_row_sum(k_sums[g], log_p, weights)
            k_sums[g] = self.add_row_sum(k_sums[g], a, log_sums[g] if weights is None else log_sums[g] * weights)
            a *= inverse_k[g]
            a *= (inverse_q[g] * inverse_t)[:, None]
            return a

        _, d_q, d_k = self.block_gradients(dot_gradient, self.scale_rows(q, weights), k, d_k, wanted)
        if d_q is not None:
            d_q = self.scale_rows(d_q - self._norm_gradient(q, q_sums, inverse_q), scale)
        return losses, (self.scale_rows(d_q, weights),), (d_k, k_sums)

    def finish(self, prepared: Arrays, totals: Totals) -> Arrays:
        (keys, inverse_k, scale, inverse_t), (d_k, k_sums) = prepared, totals
        d_keys = self.join_columns(d_k)
        if d_keys is not None:
            d_keys -= self._norm_gradient(keys, k_sums, inverse_k)
        return self.scale_rows(d_keys, scale), -inverse_t * self.xp.sum(self.xp.stack(k_sums))

    def _similarities(self, q: Array, inverse_q: Sequence[Array], prepared: Arrays) -> Iterator[Array]:
        k, inverse_k, _, inverse_t = prepared
        for g, dot in enumerate(self.running_products(q, k)):
            s = dot * inverse_k[g]
            s *= (inverse_q[g] * inverse_t)[:, None]
            yield s

    def _factors(self, x: Array) -> tuple[Array, Array | None]:
        """Return rows as they enter products, and what they were multiplied by (n,); None stands for ones."""
        xp, factor = self.xp, self.factor(x)
        dtype = accumulator_dtype(factor, xp)
        if factor.dtype == dtype:
            return factor, None
        wide = xp.astype(x, dtype, copy=False)
        largest = xp.max(xp.abs(wide), axis=1)
        scale = 1.0 / xp.where(largest > 0, largest, xp.ones_like(largest))
        return xp.astype(self.scale_rows(wide, scale), factor.dtype), scale

    def _inverse_norms(self, x: Array) -> list[Array]:
        """Return 1 / |x[:, :m]| (n,) for each prefix, 0 where it is zero."""
        xp, dtype = self.xp, accumulator_dtype(x, self.xp)
        inverse, squared = [], 0.0
        for block in self.nesting.blocks:
            part = xp.astype(x[:, block], dtype, copy=False)
            squared = squared + xp.sum(part * part, axis=1)
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
