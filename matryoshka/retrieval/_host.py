"""Look at arrays in main memory as NumPy arrays, without copying, and at the file behind a memory-mapped one.

PyTorch and JAX arrays on the CPU share their memory with NumPy, so that one engine serves them all. Arrays of an
accelerator, and of other libraries, stay what they are.
"""

from __future__ import annotations

import mmap
import os
from typing import Any, NamedTuple, Protocol

import numpy as np

from matryoshka._array import is_array, is_jax_array, is_numpy_array, is_remote, is_torch_array
from matryoshka._typing import Array


class Sliceable(Protocol):
    """What is read in slices of rows only, such as an HDF5 or Zarr data set."""

    shape: tuple[int, ...]
    dtype: Any

    def __getitem__(self, key: Any) -> Any: ...


def is_sliceable(value: object) -> bool:
    """Tell whether `value` is no array but can be read in slices of rows."""
    return not is_array(value) and all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__"))


def view(array: Array) -> Array:
    """Return a NumPy view of an array in main memory, bfloat16 as its bits (uint16); None if it lies elsewhere."""
    if is_remote(array) or not (is_torch_array(array) or is_jax_array(array) or is_numpy_array(array)):
        return None
    half = str(array.dtype).endswith("bfloat16")
    if is_torch_array(array):  # NumPy does not know torch's bfloat16: its bits pass as int16
        array = array.detach()
        array = (array.view(dtype=array.new_empty(0).short().dtype) if half else array).numpy()
    host = np.asarray(array)
    return host.view(np.uint16) if half else host


def widen(array: np.ndarray) -> np.ndarray:
    """Return half-precision numbers as float32, float32 and float64 as they are."""
    if array.dtype == np.uint16:  # the leading half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype == np.float16 else array


class InFile(NamedTuple):
    """Where the rows of a memory-mapped array lie, by which another process finds them."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def open(self) -> np.ndarray:
        """Map the rows again."""
        try:
            pages = np.memmap(self.path, np.uint8, mode="r")
            return np.ndarray(self.shape, self.dtype, buffer=pages, offset=self.offset, strides=self.strides)
        except FileNotFoundError as error:
            msg = f"`embeddings` must lie in {self.path} wherever they are searched, got no such file; put it there."
            raise FileNotFoundError(msg) from error
        except (TypeError, ValueError) as error:  # of NumPy: it ends too early
            msg = f"`embeddings` must lie in {self.path} as they did, got a shorter file; restore it."
            raise ValueError(msg) from error


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class Mapping:
    """The file behind a memory-mapped array: whether it is still whole, and which of its pages stay in memory.

    Pages that are mapped count as memory of the process although the system can take them back at any time. Linux maps
    up to 2 MiB around what is read where the file is cached in large pages: a few thousand rows would map gigabytes.
    """

    most_per_row = 1 << 21
    rows_at_once = 32

    def __init__(self, pages: mmap.mmap, source: np.memmap | None) -> None:
        """Take the pages, and the array by which NumPy mapped them, if it did.

        Pages that were written to may hold more than the file: those of a writable mapping that NumPy did not make,
        which does not tell, are never let go.
        """
        self._pages, self._source = pages, source
        self._start = 0 if source is None else source.offset - source.offset % mmap.ALLOCATIONGRANULARITY
        shared = memoryview(pages).readonly or (source is not None and source.mode != "c")
        self._releases = hasattr(mmap, "MADV_DONTNEED") and shared
        self._read = 0

    @classmethod
    def of(cls, array: object) -> Mapping | None:
        """Find the mapping of a file that `array` is a view of, if there is one."""
        source = None
        while isinstance(array, np.ndarray):
            if isinstance(array, np.memmap) and array.offset is not None:  # None: a copy in memory keeps the class
                source = array
            array = array.base
        if not isinstance(array, mmap.mmap):
            return None
        try:
            array.size()
        except (OSError, ValueError):  # memory that no file stands behind, or a file that the mapping let go
            return None
        return cls(array, source)

    def place(self, array: np.ndarray) -> InFile:
        """Say where an array lies that is a view of this mapping."""
        source = self._source
        if source is None or source.filename is None or source.mode == "c":
            named = source is not None and source.filename is not None
            got = "a copy of it that may have been written to" if named else "one without a name"
            msg = (
                f"`embeddings` must be mapped from a file that other processes can map to be pickled, got {got}; "
                'open it with np.load(path, mmap_mode="r").'
            )
            raise TypeError(msg)
        offset = self._start + _address(array) - _address(np.frombuffer(self._pages, np.uint8))
        return InFile(os.fsdecode(source.filename), array.dtype, array.shape, array.strides, offset)

    def check(self) -> None:
        """Check that the file still reaches to the end of the mapping: to read beyond would end the process."""
        size, needed = self._pages.size(), self._start + len(self._pages)
        if size < needed:
            msg = (
                f"`embeddings` must keep the file it is mapped from, {needed} bytes, got {size}; "
                "restore the file and build the corpus anew."
            )
            raise ValueError(msg)

    def note(self, n_bytes: int) -> None:
        """Count bytes that were read, and let the pages go once they are many; the system still caches the file."""
        self._read += n_bytes
        if self._releases and self._read > _RESIDENT:
            self._read = 0
            self._pages.madvise(mmap.MADV_DONTNEED)


_RESIDENT = 1 << 26
