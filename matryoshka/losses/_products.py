"""Products over growing prefixes, each block of columns multiplied once forward and twice backward.

Forward, the product of prefix m is the one before plus a block: D_m = D_{m-1} + X[:, B_m] @ Y[:, B_m].T. Backward,
a block has a part in every prefix that holds it, so its gradient needs the suffix sum S_m of the gradients in D_k
over k >= m: dX[:, B_m] = S_m @ Y[:, B_m] and dY[:, B_m] = S_m.T @ X[:, B_m].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from matryoshka._array import add_product
from matryoshka._typing import Array, Namespace


def running_products(
    x: Array, y: Array, blocks: Sequence[slice], *, start: Array | None, dtype: object, xp: Namespace
) -> Iterator[Array]:
    """Yield `start` + x[:, :m] @ y[:, :m].T for each prefix; one array, overwritten on the way where possible."""
    running = start
    for block in blocks:
        running = add_product(running, x[:, block], xp.matrix_transpose(y[:, block]), dtype=dtype, xp=xp)
        yield running


def block_gradients(
    gradient: Callable[[int], Array],
    x: Array,
    y: Array,
    blocks: Sequence[slice],
    *,
    totals: Sequence[Array | None],
    wanted: tuple[bool, bool],
    xp: Namespace,
) -> tuple[Array, Array | None, list[Array | None]]:
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
    totals : sequence of array or None
        For each block, what the gradient in y[:, block] is added to.
    wanted : (bool, bool)
        Whether the gradients in x and in y are needed.
    xp : namespace
        That of the arrays.

    Returns
    -------
    suffix : array (r, c)
        The sum of the gradients of all prefixes.
    d_x : array (r, dim) or None
    d_y : list of array (c, width of the block) or None
    """
    suffix, d_x, d_y = None, [], list(totals)
    for g in reversed(range(len(blocks))):
        if suffix is None:
            suffix = gradient(g)
        else:
            suffix += gradient(g)
        factor = xp.astype(suffix, y.dtype, copy=False)
        if wanted[0]:
            d_x.append(add_product(None, factor, y[:, blocks[g]], dtype=suffix.dtype, xp=xp))
        if wanted[1]:
            transposed = xp.matrix_transpose(factor)
            d_y[g] = add_product(d_y[g], transposed, x[:, blocks[g]], dtype=suffix.dtype, xp=xp)
    return suffix, xp.concat(d_x[::-1], axis=1) if wanted[0] else None, d_y


def scale_rows(array: Array, weights: Array | None, xp: Namespace) -> Array:
    """Return `array` (r, ...) with each row times its weight (r,); None stands for ones."""
    return array if weights is None else array * xp.astype(weights, array.dtype, copy=False)[:, None]


def add_row_sum(total: Array | None, array: Array, weights: Array | None, xp: Namespace) -> Array:
    """Return `total` plus the weighted sum of the rows of `array`; None stands for zero and for ones."""
    row_sum = xp.sum(array, axis=0) if weights is None else xp.astype(weights, array.dtype, copy=False) @ array
    return row_sum if total is None else total + row_sum


def add_narrower(array: Array, narrower: Array | None, xp: Namespace) -> Array:
    """Return `array` (r, m) with `narrower` (r, k), k <= m, added to its first columns; None stands for zero."""
    if narrower is None:
        return array
    k = narrower.shape[1]
    return xp.concat([array[:, :k] + narrower, array[:, k:]], axis=1)
