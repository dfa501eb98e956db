"""Read rows of a corpus: slices in order, or candidates by id, always in the dtype in which sums are formed."""

from __future__ import annotations

from collections.abc import Iterator

from matryoshka._array import accumulator_dtype, is_jax_array, is_numpy_array, is_torch_array
from matryoshka._typing import Array, Namespace

_BLOCK_BYTES = 1 << 22


class Rows:
    """The rows of a corpus as they are computed with: cast from half precision, and divided by their scale.

    Parameters
    ----------
    array : array (n, dim)
        Never written to. May be memory-mapped.
    scale : array (n,), optional
        Positive numbers that rows are divided by, for rows whose squares would underflow or overflow.
    """

    def __init__(self, array: Array, xp: Namespace, scale: Array | None = None) -> None:
        self.array = array
        self.xp = xp
        self.scale = scale
        self.dtype = accumulator_dtype(array, xp)
        self.shape: tuple[int, int] = tuple(array.shape)

    def slices(self, dim: int) -> Iterator[tuple[slice, Array]]:
        """Give the first `dim` columns in blocks of rows, with the slice of rows that each block covers."""
        n = self.shape[0]
        step = max(256, _BLOCK_BYTES // (4 * dim))
        for start in range(0, n, step):
            block = slice(start, min(start + step, n))
            yield block, self.read(block, dim)

    def read(self, block: slice, dim: int) -> Array:
        """Return the first `dim` columns of consecutive rows."""
        rows = self.xp.astype(self.array[block, :dim], self.dtype, copy=False)
        return rows if self.scale is None else rows / self.scale[block, None]

    def take(self, ids: Array, columns: slice) -> Array:
        """Return `columns` of the rows `ids` (n_queries, m), as (n_queries, m, width); ids are at least 0."""
        flat = self.xp.reshape(ids, (-1,))
        if is_numpy_array(self.array) or is_torch_array(self.array) or is_jax_array(self.array):
            rows = self.array[flat, columns]  # reads only these columns
        else:
            rows = self.xp.take(self.array[:, columns], flat, axis=0)
        rows = self.xp.astype(rows, self.dtype, copy=False)
        if self.scale is not None:
            rows = rows / self.xp.take(self.scale, flat)[:, None]
        return self.xp.reshape(rows, (*ids.shape, columns.stop - columns.start))
