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

from matryoshka._array import accumulator_dtype, log_softmax
from matryoshka._typing import Array, Namespace
from matryoshka.losses._formula import Arrays, Formula, Totals
from matryoshka.losses._products import add_row_sum, block_gradients, join_columns, running_products, scale_rows
from matryoshka.losses._softmax import at_labels, logit_gradients, row_losses


class Similarity(Formula):
    """InfoNCE. Rows: queries (r, dim). Parameters: keys (c, dim), temperature (). Labels: the right key of a query.

    Totals, for each prefix: the gradient in its block of the keys' columns through the dot products, and the column
    sums of A s. Multiply-adds per row: dim * c forward and 2 * dim * c backward.
    """

    def prepare(self, parameters: Arrays, xp: Namespace) -> Arrays:
        keys, temperature = parameters
        inverse_temperature = 1.0 / xp.astype(temperature, accumulator_dtype(keys, xp), copy=False)
        keys, scale = self._factors(keys, xp)
        return keys, self._inverse_norms(keys, xp), scale, inverse_temperature

    def losses(self, rows: Arrays, labels: Array, prepared: Arrays, xp: Namespace) -> Array:
        q, _ = self._factors(rows[0], xp)
        similarities = self._similarities(q, self._inverse_norms(q, xp), prepared, xp)
        return xp.stack([row_losses(log_softmax(s, xp), labels, self.smoothing, xp) for s in similarities])

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
        k, inverse_k, _, inverse_t = prepared
        q, scale = self._factors(rows[0], xp)
        inverse_q = self._inverse_norms(q, xp)
        log_ps, log_sums = [], []
        for s in self._similarities(q, inverse_q, prepared, xp):
            log_ps.append(log_softmax(s, xp))
            log_sums.append(at_labels(s, labels, xp) - at_labels(log_ps[-1], labels, xp))
        losses = xp.stack([row_losses(log_p, labels, self.smoothing, xp) for log_p in log_ps])
        d_k, k_sums = totals or (None, [None] * len(log_ps))
        q_sums, k_sums = [None] * len(log_ps), list(k_sums)

        def dot_gradient(g: int) -> Array:
            log_p = log_ps.pop()
            a = logit_gradients(xp.exp(log_p), labels, self.smoothing, self.nesting.importance[g], xp)
            # s is log_p plus one number per row, and the rows of A sum to 0.
            log_p *= a
            q_sums[g] = xp.sum(log_p, axis=1)
            k_sums[g] = add_row_sum(k_sums[g], log_p, weights, xp)
            k_sums[g] = add_row_sum(k_sums[g], a, log_sums[g] if weights is None else log_sums[g] * weights, xp)
            a *= inverse_k[g]
            a *= (inverse_q[g] * inverse_t)[:, None]
            return a

        _, d_q, d_k = block_gradients(
            dot_gradient,
            scale_rows(q, weights, xp),
            k,
            self.nesting.blocks,
            d_y=d_k,
            wanted=(wanted[0], wanted[1]),
            dtype=accumulator_dtype(q, xp),
            xp=xp,
        )
        if wanted[0]:
            d_q = scale_rows(d_q - self._norm_gradient(q, q_sums, inverse_q, xp), scale, xp)
            d_q = scale_rows(d_q, weights, xp)
        return losses, (d_q,), (d_k, k_sums)

    def finish(self, parameters: Arrays, prepared: Arrays, totals: Totals, xp: Namespace) -> Arrays:
        (keys, inverse_k, scale, inverse_t), (d_k, k_sums) = prepared, totals
        d_keys = join_columns(d_k, xp)
        if d_keys is not None:
            d_keys -= self._norm_gradient(keys, k_sums, inverse_k, xp)
            d_keys = scale_rows(d_keys, scale, xp)
        return d_keys, -inverse_t * xp.sum(xp.stack(k_sums))

    def row_bytes(self, parameters: Arrays) -> int:
        return 4 * int(parameters[0].shape[0]) * len(self.nesting)

    def _similarities(self, q: Array, inverse_q: Sequence[Array], prepared: Arrays, xp: Namespace) -> Iterator[Array]:
        k, inverse_k, _, inverse_t = prepared
        dtype = accumulator_dtype(q, xp)
        dots = running_products(q, k, self.nesting.blocks, dtype=dtype, xp=xp)
        for g, dot in enumerate(dots):
            s = dot * inverse_k[g]
            s *= (inverse_q[g] * inverse_t)[:, None]
            yield s

    def _factors(self, x: Array, xp: Namespace) -> tuple[Array, Array | None]:
        """Return rows as they enter products, and what they were multiplied by (n,); None stands for ones."""
        factor = self.factor(x, xp)
        dtype = accumulator_dtype(factor, xp)
        if factor.dtype == dtype:
            return factor, None
        wide = xp.astype(x, dtype, copy=False)
        largest = xp.max(xp.abs(wide), axis=1)
        scale = 1.0 / xp.where(largest > 0, largest, xp.ones_like(largest))
        return xp.astype(scale_rows(wide, scale, xp), factor.dtype), scale

    def _inverse_norms(self, x: Array, xp: Namespace) -> list[Array]:
        """Return 1 / |x[:, :m]| (n,) for each prefix, 0 where it is zero."""
        inverse, squared = [], 0.0
        for block in self.nesting.blocks:
            part = xp.astype(x[:, block], accumulator_dtype(x, xp), copy=False)
            squared = squared + xp.sum(part * part, axis=1)
            positive = squared > 0
            inverse.append(xp.where(positive, 1.0 / xp.sqrt(xp.where(positive, squared, 1.0)), 0.0))
        return inverse

    def _norm_gradient(self, x: Array, sums: Sequence[Array], inverse: Sequence[Array], xp: Namespace) -> Array:
        """Return the sum over prefixes of x[:, :m] * sums_m / |x[:, :m]|^2, (n, dim)."""
        suffix, parts = 0.0, []
        for g, block in reversed(list(enumerate(self.nesting.blocks))):
            suffix = suffix + sums[g] * inverse[g] * inverse[g]
            parts.append(xp.astype(x[:, block], suffix.dtype, copy=False) * suffix[:, None])
        return xp.concat(parts[::-1], axis=1)
