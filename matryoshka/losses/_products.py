"""Products over growing prefixes, each block of columns multiplied once forward and twice backward.

Forward, the product of prefix m is the one before plus a block: D_m = D_{m-1} + X[:, B_m] @ Y[:, B_m].T. Backward,
a block has a part in every prefix that holds it, so its gradient needs the suffix sum S_m of the gradients in D_k
over k >= m: dX[:, B_m] = S_m @ Y[:, B_m] and dY[:, B_m] = S_m.T @ X[:, B_m].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from matryoshka._algebra import add_product, add_transposed_product, write_product
from matryoshka._array import accumulator_dtype, can_write, empty
from matryoshka._hooks.formula import Arrays
from matryoshka._typing import Array, Namespace
from matryoshka.losses._softmax import SoftmaxFormula


class ProductFormula(SoftmaxFormula):
    """A formula whose logits come from products of rows (r, dim) with the first parameter (c, dim)."""

    def row_bytes(self, parameters: Arrays) -> int:
        return 4 * int(parameters[0].shape[0]) * len(self.nesting)

    def running_products(self, x: Array, y: Array, bias: Array | None = None) -> Iterator[Array]:
        """Yield x[:, :m] @ y[:, :m].T + bias for each prefix; one array, overwritten on the way where possible."""
        running, xp, dtype = None, self.xp, accumulator_dtype(x, self.xp)
        for block in self.nesting.blocks:
            running = add_product(running, x[:, block], xp.matrix_transpose(y[:, block]), dtype=dtype, xp=xp)
            if bias is not None:
                running += xp.astype(bias, dtype, copy=False)
                bias = None
            yield running

    def block_gradients(
        self, gradient: Callable[[int], Array], x: Array, y: Array, d_y: Any, wanted: tuple[bool, ...]
    ) -> tuple[Array, Array | None, Any]:
        """Turn gradients in the running products into gradients in their factors.

        Parameters
        ----------
        gradient : callable
            Maps the index of a prefix to the gradient (r, c) in its product; called once each, from the widest prefix
            down. Its result may be overwritten.
        x, y : array (r, dim), (c, dim)
            The factors, as they shall enter the products.
        d_y : data of `_Columns` or None
            What the gradient in y is added to.
        wanted : tuple of bool
            Whether the gradients in x and in y are needed; what follows is not looked at.

        Returns
        -------
        suffix : array (r, c)
            The sum of the gradients of all prefixes.
        d_x : array (r, dim) or None
            Gradient in x.
        d_y : data of `_Columns`
            Gradient in y, added.
        """
        suffix, blocks, dtype = None, self.nesting.blocks, accumulator_dtype(x, self.xp)
        x_columns, y_columns = _Columns(blocks, dtype, self.xp), _Columns(blocks, dtype, self.xp, d_y)
        for g in reversed(range(len(blocks))):
            if suffix is None:
                suffix = gradient(g)
            else:
                suffix += gradient(g)
            factor = self.xp.astype(suffix, y.dtype, copy=False)
            if wanted[0]:
                x_columns.add_product(g, factor, y[:, blocks[g]])
            if wanted[1]:
                y_columns.add_transposed_product(g, factor, x[:, blocks[g]])
        return suffix, self.join_columns(x_columns.data), y_columns.data

    def join_columns(self, data: Any) -> Array | None:
        """Return the matrix of the `data` of columns; None if nothing was ever added."""
        if not isinstance(data, list):
            return data
        return None if data[0] is None else self.xp.concat(data, axis=1)


class _Columns:
    """A matrix (n, dim) that is made, or added to, one block of columns at a time.

    Where arrays can be written to, the blocks are views of one array; elsewhere they are joined at the end.

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
        self.data, self._keep = data, data is not None
        self._blocks, self._dtype, self._xp, self._writes = blocks, dtype, xp, can_write(xp)
        if data is None and not self._writes:
            self.data = [None] * len(blocks)

    def add_product(self, g: int, left: Array, right: Array) -> None:
        """Add left (n, k) @ right (k, width) to block g; each block once."""
        if not self._writes:
            self.data[g] = add_product(self.data[g], left, right, dtype=self._dtype, xp=self._xp)
            return
        if self.data is None:
            shape = (left.shape[0], self._blocks[-1].stop)
            self.data = empty(shape, like=left, dtype=self._dtype, xp=self._xp)
        write_product(self.data[:, self._blocks[g]], left, right, keep=self._keep, xp=self._xp)

    def add_transposed_product(self, g: int, left: Array, right: Array) -> None:
        """Add left.T @ right to block g, for left (k, n) and right (k, width); each block once."""
        if self._writes:
            self.add_product(g, self._xp.matrix_transpose(left), right)
        else:
            self.data[g] = add_transposed_product(self.data[g], left, right, dtype=self._dtype, xp=self._xp)
