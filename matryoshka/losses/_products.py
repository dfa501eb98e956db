"""Products over growing prefixes, each block of columns multiplied once forward and twice backward.

Forward, the product of prefix m is the one before plus a block: D_m = D_{m-1} + X[:, B_m] @ Y[:, B_m].T. Backward,
a block has a part in every prefix that holds it, so its gradient needs the suffix sum S_m of the gradients in D_k
over k >= m: dX[:, B_m] = S_m @ Y[:, B_m] and dY[:, B_m] = S_m.T @ X[:, B_m].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from matryoshka._array import add_product, can_write, empty, write_product
from matryoshka._typing import Array, Namespace


def running_products(
    x: Array, y: Array, blocks: Sequence[slice], *, bias: Array | None = None, dtype: object, xp: Namespace
) -> Iterator[Array]:
    """Yield x[:, :m] @ y[:, :m].T + bias for each prefix; one array, overwritten on the way where possible."""
    running = None
    for block in blocks:
        running = add_product(running, x[:, block], xp.matrix_transpose(y[:, block]), dtype=dtype, xp=xp)
        if bias is not None:
            running += xp.astype(bias, dtype, copy=False)
            bias = None
        yield running


class Columns:
    """A matrix (n, dim) that is made one block of columns at a time, or added to so.

    Where arrays can be written to, the blocks are views of one array; elsewhere they are joined at the end.

    Parameters
    ----------
    blocks : sequence of slice
        The blocks, which together cover the columns.
    data : array, list of array, or None
        The `data` of earlier columns, to be added to; None starts from zero.
    dtype : dtype
        That of the matrix.
    xp : namespace
        That of the arrays.
    """

    def __init__(self, blocks: Sequence[slice], data: Any = None, *, dtype: object, xp: Namespace) -> None:
        self.data, self._keep = data, data is not None
        self._blocks, self._dtype, self._xp = blocks, dtype, xp
        if data is None and not can_write(xp):
            self.data = [None] * len(blocks)

    def add_product(self, g: int, left: Array, right: Array) -> None:
        """Add left (n, k) @ right (k, width) to block g; each block once."""
        if not can_write(self._xp):
            self.data[g] = add_product(self.data[g], left, right, dtype=self._dtype, xp=self._xp)
            return
        if self.data is None:
            shape = (left.shape[0], self._blocks[-1].stop)
            self.data = empty(shape, like=left, dtype=self._dtype, xp=self._xp)
        write_product(self.data[:, self._blocks[g]], left, right, keep=self._keep, xp=self._xp)


def join_columns(data: Any, xp: Namespace) -> Array | None:
    """Return the matrix of the `data` of columns; None if nothing was ever added."""
    if not isinstance(data, list):
        return data
    return None if data[0] is None else xp.concat(data, axis=1)


def block_gradients(
    gradient: Callable[[int], Array],
    x: Array,
    y: Array,
    blocks: Sequence[slice],
    *,
    d_y: Any,
    wanted: tuple[bool, bool],
    dtype: object,
    xp: Namespace,
) -> tuple[Array, Array | None, Any]:
    """Turn gradients in the running products into gradients in their factors.

    Parameters
    ----------
    gradient : callable
        Maps the index of a prefix to the gradient (r, c) in its product; called once each, from the widest prefix
        down. Its result may be overwritten.
    x, y : array (r, dim), (c, dim)
        The factors, as they shall enter the products.
    blocks : sequence of slice
        The columns that each prefix adds.
    d_y : data of `Columns` or None
        What the gradient in y is added to.
    wanted : (bool, bool)
        Whether the gradients in x and in y are needed.
    dtype : dtype
        That of the gradients.
    xp : namespace
        That of the arrays.

    Returns
    -------
    suffix : array (r, c)
        The sum of the gradients of all prefixes.
    d_x : array (r, dim) or None
        Gradient in x.
    d_y : data of `Columns`
        Gradient in y, added.
    """
    suffix = None
    x_columns, y_columns = Columns(blocks, dtype=dtype, xp=xp), Columns(blocks, d_y, dtype=dtype, xp=xp)
    for g in reversed(range(len(blocks))):
        if suffix is None:
            suffix = gradient(g)
        else:
            suffix += gradient(g)
        factor = xp.astype(suffix, y.dtype, copy=False)
        if wanted[0]:
            x_columns.add_product(g, factor, y[:, blocks[g]])
        if wanted[1]:
            y_columns.add_product(g, xp.matrix_transpose(factor), x[:, blocks[g]])
    return suffix, join_columns(x_columns.data, xp), y_columns.data


def scale_rows(array: Array, weights: Array | None, xp: Namespace) -> Array:
    """Return `array` (r, ...) with each row times its weight (r,); None stands for ones."""
    return array if weights is None else array * xp.astype(weights, array.dtype, copy=False)[:, None]


def add_row_sum(total: Array | None, array: Array, weights: Array | None, xp: Namespace) -> Array:
    """Return `total` plus the weighted sum of the rows of `array`; None stands for zero and for ones."""
    if weights is None:
        row_sum = xp.sum(array, axis=0)
    else:  # TensorFlow multiplies matrices only
        row_sum = (xp.astype(weights, array.dtype, copy=False)[None, :] @ array)[0, :]
    return row_sum if total is None else total + row_sum


def add_to_prefix(total: Array | None, left: Array, right: Array, *, dtype: object, xp: Namespace) -> Array:
    """Return `total` (r, dim) with left (r, k) @ right (k, m) added to its first m columns, m <= dim.

    None stands for zero, of m columns. Written over `total` where its library can.
    """
    m = right.shape[1]
    if total is None or m == total.shape[1]:
        return add_product(total, left, right, dtype=dtype, xp=xp)
    if can_write(xp):
        write_product(total[:, :m], left, right, keep=True, xp=xp)
        return total
    return xp.concat([add_product(total[:, :m], left, right, dtype=dtype, xp=xp), total[:, m:]], axis=1)
