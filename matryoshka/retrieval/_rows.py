"""Read rows of a corpus: slices in order, or candidates by id, always in the dtype in which sums are formed.

`HostRows` reads what lies in main memory or in a file, through NumPy; `DeviceRows` what lies elsewhere, through the
array's own library. What comes out may be a view: it is never written to.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from matryoshka._array import (
    accumulator_dtype,
    is_cupy_array,
    is_jax_array,
    is_torch_array,
    namespace,
    row_blocks,
    to_numpy,
)
from matryoshka._typing import Array, Namespace
from matryoshka.retrieval import _host, _sampling

_BLOCK_NUMBERS = 1 << 20


class _Rows:
    """What rows have in common wherever they lie."""

    shape: tuple[int, int]
    xp: Namespace
    squares: Array

    @cached_property
    def longest(self) -> float:
        """Length of the longest row after scaling: it waits for a device."""
        return math.sqrt(float(self.xp.max(self.squares)))

    def blocks(self) -> list[slice]:
        """Cut the rows into blocks of a few megabytes."""
        return row_blocks(self.shape[0], max(64, _BLOCK_NUMBERS // self.shape[1]))


class HostRows(_Rows):
    """Rows in main memory, in a memory-mapped file, or in anything that is read in slices of rows.

    Parameters
    ----------
    array : array (n, dim)
        float16, float32, float64, or the bits of bfloat16 as uint16.
    scale : array (n,), optional
        Positive numbers that rows are divided by, where their squares would vanish or overflow.
    squares : array (n,), optional
        Squared lengths of the full rows after scaling, once they are known.

    Attributes
    ----------
    gathers : bool
        Whether candidates are gathered at once, and not read one by one.
    """

    xp = np

    def __init__(self, array: Any, *, scale: np.ndarray | None = None, squares: np.ndarray | None = None) -> None:
        self.array, self.scale, self.squares = array, scale, squares
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = np.dtype(np.float64 if np.dtype(array.dtype).itemsize > 4 else np.float32)
        self.gathers = isinstance(array, np.ndarray)
        self._mapping = _host.Mapping.of(array)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what lies in memory by its content, and what lies in a file by where it lies there."""
        array = self.array if self._mapping is None else self._mapping.place(self.array)
        return _host_rows, (array, self.scale, self.squares)

    def knowing(self, *, scale: Array | None, squares: Array | None = None) -> HostRows:
        """Return the same rows with what was found out about them."""
        return HostRows(self.array, scale=scale, squares=squares)

    @property
    def in_memory(self) -> bool:
        """Whether the rows lie in memory, and not in a file."""
        return self.gathers and self._mapping is None

    @property
    def nbytes(self) -> int:
        """Size of the rows as they are stored."""
        size: int = np.dtype(self.array.dtype).itemsize
        return math.prod(self.shape) * size

    def check(self) -> None:
        """Check that the rows can still be read."""
        if self._mapping is not None:
            self._mapping.check()

    def raw(self, block: slice) -> np.ndarray:
        """Return consecutive rows as they are stored, bfloat16 as its bits."""
        if self._mapping is not None:
            self._mapping.note((block.stop - block.start) * self.array.strides[0])
        return np.asarray(self.array[block, :])

    def read(self, block: slice, dim: int) -> np.ndarray:
        """Return the first `dim` columns of consecutive rows."""
        rows = _host.widen(self.raw(block)[:, :dim] if self.gathers else np.asarray(self.array[block, :dim]))
        return rows if self.scale is None else rows / self.scale[block, None]

    def take(self, ids: np.ndarray, columns: slice) -> np.ndarray:
        """Return `columns` of the rows `ids`, any shape, as (*ids.shape, width); ids are at least 0."""
        flat = ids.reshape(-1)
        if self._mapping is not None:
            rows = self._gather_from_file(self._mapping, flat, columns)
        else:
            rows = self._gather(flat, columns) if self.gathers else self._read_each(flat, columns)
        rows = _host.widen(rows)
        if self.scale is not None:
            rows = rows / self.scale[flat, None]
        return rows.reshape(*ids.shape, columns.stop - columns.start)

    def _gather(self, ids: np.ndarray, columns: slice) -> np.ndarray:
        """Gather pieces of rows as if they were short rows: NumPy copies whole rows far faster than parts of rows."""
        dim, width = self.shape[1], columns.stop - columns.start
        piece = math.gcd(dim, columns.start, columns.stop)
        if piece < _SHORT_PIECE and 2 * width >= dim:
            piece = dim
        if piece < _SHORTEST_PIECE:  # pieces that also hold a few columns before or after
            piece = min(math.gcd(dim, 1 << 16), 1 << (width - 1).bit_length())
        if piece < _SHORTEST_PIECE or not self.array.flags.c_contiguous:
            taken: np.ndarray = self.array[ids, columns]
            return taken
        first, last = columns.start // piece, -(-columns.stop // piece)
        places = ids * (dim // piece) + first
        if last - first > 1:
            places = places[:, None] + np.arange(last - first)
        taken = self.array.reshape(-1, piece).take(places, axis=0).reshape(ids.size, (last - first) * piece)
        return taken[:, columns.start - first * piece :][:, :width]

    def _gather_from_file(self, mapping: _host.Mapping, ids: np.ndarray, columns: slice) -> np.ndarray:
        """Gather a few rows at a time: each may bring in pages far beyond its own."""
        taken = np.empty((ids.size, columns.stop - columns.start), self.array.dtype)
        for start in range(0, ids.size, mapping.rows_at_once):
            some = slice(start, start + mapping.rows_at_once)
            taken[some] = self._gather(ids[some], columns)
            mapping.note(ids[some].size * mapping.most_per_row)
        return taken

    def _read_each(self, ids: np.ndarray, columns: slice) -> np.ndarray:
        wanted, where = np.unique(ids, return_inverse=True)
        rows = [np.asarray(self.array[int(i) : int(i) + 1, columns]) for i in wanted]
        empty = np.empty((0, columns.stop - columns.start), self.array.dtype)
        return np.concatenate([empty, *rows])[where.reshape(-1)]


_SHORTEST_PIECE, _SHORT_PIECE = 8, 128
"""Numbers of pieces that are not worth it at all, and instead of which the most of a row is as well read whole."""


class DeviceRows(_Rows):
    """Rows of any library, on any device.

    Parameters
    ----------
    array : array (n, dim)
        Never written to.
    xp : namespace
        Its library.
    scale, squares : array (n,), optional
        As for `HostRows`.
    """

    def __init__(
        self, array: Array, xp: Namespace, *, scale: Array | None = None, squares: Array | None = None
    ) -> None:
        self.array, self.scale, self.squares = array, scale, squares
        self.xp = xp
        self.shape = (array.shape[0], array.shape[1])
        self.dtype = accumulator_dtype(array, xp)

    def __reduce__(self) -> tuple[Any, ...]:
        return _device_rows, (self.array, self.scale, self.squares)

    def knowing(self, *, scale: Array | None, squares: Array | None = None) -> DeviceRows:
        """As `HostRows.knowing`."""
        return DeviceRows(self.array, self.xp, scale=scale, squares=squares)

    in_memory = True

    @property
    def nbytes(self) -> int:
        """As `HostRows.nbytes`."""
        size: int = self.xp.finfo(self.array.dtype).bits // 8
        return math.prod(self.shape) * size

    def check(self) -> None:
        """Arrays stay readable."""

    def raw(self, block: slice) -> np.ndarray:
        """As `HostRows.raw`."""
        rows = self.array[block, :]
        host = _host.view(rows.cpu() if is_torch_array(rows) else rows)
        return to_numpy(rows) if host is None else host

    def read(self, block: slice, dim: int) -> Array:
        """As `HostRows.read`."""
        rows = self.xp.astype(self.array[block, :dim], self.dtype, copy=False)
        return rows if self.scale is None else rows / self.scale[block, None]

    def take(self, ids: Array, columns: slice) -> Array:
        """As `HostRows.take`."""
        flat = self.xp.reshape(ids, (-1,))
        if is_torch_array(flat) or is_jax_array(flat) or is_cupy_array(flat):
            rows = self.array[flat, columns]  # reads only these columns
        else:
            rows = self.xp.take(self.array[:, columns], flat, axis=0)
        rows = self.xp.astype(rows, self.dtype, copy=False)
        if self.scale is not None:
            rows = rows / self.xp.take(self.scale, flat)[:, None]
        return self.xp.reshape(rows, (*ids.shape, columns.stop - columns.start))


Rows = HostRows | DeviceRows


def _host_rows(array: Any, scale: np.ndarray | None, squares: np.ndarray | None) -> HostRows:
    """Return rows that were pickled; of a file some rows are looked at, since it may have become another one."""
    if not isinstance(array, _host.InFile):
        return HostRows(array, scale=scale, squares=squares)
    rows = HostRows(array.open(), scale=scale, squares=squares)
    if squares is not None:
        ids = _sampling.draw(rows.shape[0], min(rows.shape[0], _LOOKED_AT))
        some = rows.take(ids, slice(0, rows.shape[1]))
        if not np.allclose(np.einsum("nd,nd->n", some, some), squares[ids], rtol=1e-3):
            msg = f"`embeddings` must lie in {array.path} as they did, got others; restore it or build the corpus anew."
            raise ValueError(msg)
    return rows


_LOOKED_AT = 8


def _device_rows(array: Array, scale: Array | None, squares: Array | None) -> DeviceRows:
    return DeviceRows(array, namespace(("embeddings", array)), scale=scale, squares=squares)
