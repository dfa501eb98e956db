"""Products over growing prefixes: each block of columns is multiplied once forward and twice backward.

Forward, the product of prefix m is that of the prefix before plus one block: D_m = D_{m-1} + X[:, B_m] @ Y[:, B_m].T.
Backward, a block enters the product of every prefix that contains it, so its gradient takes the suffix sum S_m of the
gradients in D_k over k >= m: dX[:, B_m] = S_m @ Y[:, B_m] and dY[:, B_m] = S_m.T @ X[:, B_m].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from matryoshka._algebra import add_product, add_transposed_product, settled, write_product
from matryoshka._array import accumulator_dtype, can_write, empty
from matryoshka._hooks.formula import Arrays
from matryoshka._typing import Array, Namespace
from matryoshka.losses._softmax import SoftmaxFormula

_MANY_COLUMNS = 4096
"""With fewer, the gradients of all prefixes fit into memory for as many rows as a block can use."""

_MANY_PREFIXES, _SETTLED_EVERY = 12, 4
"""With more prefixes, running sums are settled every few of them: XLA takes longer to recompute long ones."""


class ProductFormula(SoftmaxFormula):
    """A formula whose logits come from products of rows (r, dim) with the first parameter (c, dim)."""

    def row_bytes(self, parameters: Arrays) -> int:
        n_columns = int(parameters[0].shape[0])
        n_narrow = self._n_narrow(n_columns)
        # The gradients that are kept, and at first the product that goes on.
        return 4 * n_columns * max(n_narrow + 1, len(self.nesting) - n_narrow)

    def _n_narrow(self, n_columns: int | None) -> int:
        """Return how many of the narrowest prefixes go backward before the others go forward.

        Their gradients are then freed early, so that blocks may have more rows and read the parameters less often. In
        return, the gradients of the others multiply the columns of these once more: at most 2 % of all multiplications.
        """
        if n_columns is None or n_columns < _MANY_COLUMNS:
            return 0
        return sum(m <= self.nesting.dim // 32 for m in self.nesting)

    def running_products(self, x: Array, y: Array, bias: Array | None = None) -> Iterator[Array]:
        """Yield x[:, :m] @ y[:, :m].T + bias for each prefix; one array, overwritten on the way where possible."""
        running, xp, dtype = None, self.xp, accumulator_dtype(x, self.xp)
        for g, block in enumerate(self.nesting.blocks, start=1):
            running = add_product(running, x[:, block], xp.matrix_transpose(y[:, block]), dtype=dtype, xp=xp)
            if bias is not None:
                running += xp.astype(bias, dtype, copy=False)[None, :]
                bias = None
            if g % _SETTLED_EVERY == 0 and len(self.nesting) > _MANY_PREFIXES:
                running = settled(running, xp)
            yield running

    def backward(
        self,
        gradients: Iterable[Array],
        factors: tuple[Array, Array],
        columns: tuple[Columns, Columns],
        wanted: tuple[bool, ...],
    ) -> Iterator[Array]:
        """Turn gradients in the running products into gradients in their factors.

        Parameters
        ----------
        gradients : iterable of array (r, c)
            The gradient in the product of each prefix, from the narrowest up; kept until those of wider prefixes have
            come, and then overwritten where possible.
        factors : array (r, dim), (c, dim)
            In the dtype of the products.
        columns : Columns, Columns
            What the gradients in the factors are added to.
        wanted : tuple of bool
            Whether each of the two gradients is needed; further entries are ignored.

        Yields
        ------
        array (r, c)
            Sums of gradients, each over some of the prefixes, which together are all.
        """
        blocks, (x, y), (d_x, d_y) = self.nesting.blocks, factors, columns
        ends = {self._n_narrow(y.shape[0]), len(blocks)}
        kept: list[Array] = []
        for n, gradient in enumerate(gradients, start=1):
            kept.append(gradient)
            if n not in ends:
                continue
            suffix = kept.pop()
            for g in reversed(range(n)):
                factor = self.xp.astype(suffix, y.dtype, copy=False)
                if wanted[0]:
                    d_x.add_product(g, factor, y[:, blocks[g]])
                if wanted[1]:
                    d_y.add_transposed_product(g, factor, x[:, blocks[g]])
                if kept:
                    suffix += kept.pop()
            yield suffix

    def columns(self, like: Array, data: Any = None) -> Columns:
        """Return columns to which products with `like` can be added, starting at zero or at the `data` of others."""
        return Columns(self.nesting.blocks, accumulator_dtype(like, self.xp), self.xp, data)


def join_columns(data: Any, xp: Namespace) -> Array | None:
    """Return the matrix that the `data` of columns makes; None if nothing was ever added."""
    if not isinstance(data, list):
        return data
    return None if data[0] is None else xp.concat(data, axis=1)


class Columns:
    """A matrix (n, dim) that is summed up one block of columns at a time.

    Where arrays can be written to, the blocks are views of one array; elsewhere, they are joined at the end.

    Parameters
    ----------
    blocks : tuple of slice
        The blocks, which together cover the columns.
    dtype : dtype
        That of the matrix.
    xp : namespace
        That of the arrays.
    data : array, list of array, or None
        The `data` of earlier columns, to be added to; None starts from zero.
    """

    def __init__(self, blocks: tuple[slice, ...], dtype: object, xp: Namespace, data: Any = None) -> None:
        self.data = data
        self._filled = set() if data is None else set(range(len(blocks)))
        self._blocks, self._dtype, self._xp, self._writes = blocks, dtype, xp, can_write(xp)
        if data is None and not self._writes:
            self.data = [None] * len(blocks)

    def add_product(self, g: int, left: Array, right: Array) -> None:
        """Add left (n, k) @ right (k, width) to block g."""
        if not self._writes:
            self.data[g] = add_product(self.data[g], left, right, dtype=self._dtype, xp=self._xp)
            return
        if self.data is None:
            shape = (left.shape[0], self._blocks[-1].stop)
            self.data = empty(shape, like=left, dtype=self._dtype, xp=self._xp)
        write_product(self.data[:, self._blocks[g]], left, right, keep=g in self._filled, xp=self._xp)
        self._filled.add(g)

    def add_transposed_product(self, g: int, left: Array, right: Array) -> None:
        """Add left.T @ right to block g, for left (k, n) and right (k, width)."""
        if self._writes:
            self.add_product(g, self._xp.matrix_transpose(left), right)
        else:
            self.data[g] = add_transposed_product(self.data[g], left, right, dtype=self._dtype, xp=self._xp)

    def join(self) -> Array | None:
        """Return the matrix; None if nothing was ever added."""
        return join_columns(self.data, self._xp)
