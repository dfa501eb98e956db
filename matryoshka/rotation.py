"""Rotate embeddings so that their first columns hold most of their energy: then any embedding can be cut."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka import _checks, _values
from matryoshka._array import (
    accumulator_dtype,
    can_write,
    device,
    from_numpy,
    library,
    namespace,
    row_blocks,
    take_rows,
    to_numpy,
)
from matryoshka._typing import Array, Namespace

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Rotation"]

_BLOCK_NUMBERS = 1 << 21
_KEYS = ("dim",)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Rotation:
    """An orthogonal matrix that sorts the directions of embeddings by energy.

    Lengths, inner products, cosines and distances stay as they are, so a search at full width finds what it found
    before, while each prefix holds as much energy as that many columns of any rotation can. `fit` finds the matrix.

    Parameters
    ----------
    matrix : array (dim, dim), floating
        Orthogonal: its columns are the directions. Rows are multiplied with it from the right.
    energy : array (dim,), floating
        Share of the sum of squares of the embeddings along each direction: not negative, never growing, of sum 1.

    Raises
    ------
    TypeError
        `matrix` or `energy` is no floating-point array.
    ValueError
        `matrix` is not square or not orthogonal to six digits, or `energy` is no such sequence of shares.

    Notes
    -----
    The directions are the eigenvectors of the second moment X^T X of the rows *as they are*: they are not centred,
    because subtracting a mean would change inner products. Where the mean of the rows is far from the origin, as with
    many text encoders, the first direction is close to it. The largest entry of each eigenvector (in absolute value,
    the first of equals) is positive, so that runs agree within rounding, which depends on the number of threads.
    Directions of equal or nearly equal energy, or of none, are arbitrary: any orthogonal ones that span the same
    subspace are as good, and another run may find others.

    A rotation compares by value. `matrix` and `energy` are float64 NumPy arrays that cannot be written to.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> rows = rng.normal(size=(1000, 3)) * (0.1, 1.0, 0.5)
    >>> rotation = Rotation.fit(rows)
    >>> rotation.energy.round(2)
    array([0.78, 0.22, 0.01])
    >>> turned = rotation.apply(rows)
    >>> turned.shape, np.allclose(turned @ turned.T, rows @ rows.T)
    ((1000, 3), True)
    """

    matrix: np.ndarray
    energy: np.ndarray
    _ready: dict[Any, Array] = field()

    def __init__(self, matrix: Array, energy: Array) -> None:
        directions = _host(matrix, "matrix", 2, "(dim, dim)")
        dim = directions.shape[1]
        _checks.shape(directions, "matrix", (dim, dim), "(dim, dim)")
        shares = _host(energy, "energy", 1, "(dim,)")
        _checks.shape(shares, "energy", (dim,), "(dim,)")
        fault = np.abs(directions).max() - 1
        if fault < _TOLERANCE:  # else the product might overflow
            fault = np.abs(directions.T @ directions - np.eye(dim)).max()
        if not fault < _TOLERANCE:
            msg = (
                f"`matrix` must be orthogonal within {_TOLERANCE:g}, got one that is off by {fault:.1g}; take its Q of "
                "np.linalg.qr, or fit a rotation to the rows."
            )
            raise ValueError(msg)
        if (got := _fault(shares)) is not None:
            msg = f"`energy` must not be negative, never grow and sum to 1, got {got}; sort and divide them."
            raise ValueError(msg)
        self._hold(directions, shares)

    def _hold(self, matrix: np.ndarray, energy: np.ndarray) -> None:
        for name, array in (("matrix", matrix), ("energy", energy)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "_ready", {})

    @classmethod
    def _of(cls, matrix: np.ndarray, energy: np.ndarray) -> Rotation:
        """Return the rotation that holds these very arrays, which are known to be valid and belong to nobody else."""
        rotation = object.__new__(cls)
        rotation._hold(matrix, energy)
        return rotation

    def __reduce__(self) -> tuple[Callable[..., Rotation], tuple[np.ndarray, np.ndarray]]:
        return type(self)._of, (self.matrix, self.energy)

    @classmethod
    def fit(cls, embeddings: Array, *, sample: int | None = 50_000, seed: int = 0) -> Rotation:
        """Find the rotation that puts as much of the energy of the embeddings as possible into each prefix.

        Parameters
        ----------
        embeddings : array (n, dim), floating
            At least as many rows as columns; of any library, on any device, or memory-mapped. Read in blocks.
        sample : int or None, default 50_000
            Fit on at most this many rows, drawn without replacement; at least `dim`. None takes all rows.
        seed : int, default 0
            Seed of the sample.

        Returns
        -------
        Rotation
            Of width `dim`.

        Raises
        ------
        TypeError
            `embeddings` is no floating-point array.
        ValueError
            `embeddings` has fewer rows than columns, numbers that are not finite, or only zeros; or `sample` is smaller
            than the number of columns.

        Notes
        -----
        Fewer rows than columns cannot determine all directions: those outside the span of the rows would have energy 0
        and an arbitrary order, and wider prefixes of new rows might keep less than without a rotation. About four times
        as many rows as columns are enough: on sentence embeddings of 384 columns, the share of neighbours kept after a
        fit on 1,536 rows was within one percentage point of that after a fit on 7,500.

        Sums are formed in float64 on the host, whatever the embeddings are: sample x dim^2 / 2 multiply-adds, and some
        ten dim^3 for the eigenvectors. Memory: a block of 16 MB and a few dim x dim matrices. Rows are scaled by powers
        of two, so that tiny and huge embeddings neither underflow nor overflow.

        References
        ----------
        Eckart and Young, The approximation of one matrix by another of lower rank, Psychometrika 1 (1936).
        """
        xp = namespace(("embeddings", embeddings))
        _checks.floating(embeddings, "embeddings", xp)
        _checks.ndim(embeddings, "embeddings", 2, "(n, dim)")
        _checks.not_empty(embeddings, "embeddings", axis=1)
        n, dim = embeddings.shape
        if n < dim:
            msg = (
                f"`embeddings` must have at least as many rows as columns, {dim}, got {n}, which leave directions "
                "undetermined; pass more rows, or fit on rows of another data set of the same model."
            )
            raise ValueError(msg)
        most = n if sample is None else _checks.integer(sample, "sample", minimum=dim)
        generator = np.random.default_rng(_checks.seed(seed))
        chosen = None if n <= most else np.sort(generator.choice(n, most, replace=False, shuffle=False))
        values, vectors = np.linalg.eigh(_second_moment(embeddings, chosen, xp))
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        largest = np.argmax(np.abs(vectors), axis=0)
        signs = np.where(vectors[largest, np.arange(dim)] < 0, -1.0, 1.0)
        return cls._of(np.ascontiguousarray(vectors * signs), values / values.sum())

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return len(self.matrix)

    def apply(self, rows: Array) -> Array:
        """Rotate embeddings, those of a corpus and of queries alike.

        Parameters
        ----------
        rows : array (..., dim), floating
            One embedding, or any number of them.

        Returns
        -------
        array (..., dim)
            Same library, device and dtype as `rows`, and the same lengths, inner products and distances within the
            rounding of that dtype. Numbers that are not finite make their row so.

        Raises
        ------
        TypeError
            `rows` is no floating-point array.
        ValueError
            `rows` has another width.

        Notes
        -----
        dim^2 multiply-adds per row, as exact as the library's products: half precision is multiplied in float32, and
        float32 on some accelerators in TF32 unless the library is told otherwise. A copy of the matrix is kept for each
        dtype and device in which it was used, except for JAX, where it is converted anew (under `jit`, a constant).
        Gradients pass through.
        """
        xp = namespace(("rows", rows))
        _checks.floating(rows, "rows", xp)
        _checks.min_ndim(rows, "rows", 1, "(..., dim)")
        if rows.shape[-1] != self.dim:
            msg = (
                f"`rows` must be as wide as the rotation, {self.dim}, got shape {tuple(rows.shape)}; rotate whole "
                "embeddings and cut them afterwards."
            )
            raise ValueError(msg)
        wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
        return xp.astype(wide @ self._matrix_like(wide, xp), rows.dtype, copy=False)

    def _matrix_like(self, rows: Array, xp: Namespace) -> Array:
        """Return the matrix in the library, on the device and in the dtype of `rows`."""
        key = library(xp), device(rows), rows.dtype
        if (found := self._ready.get(key)) is None:
            # A tensor made in PyTorch's inference mode could never take part in a gradient.
            with xp.inference_mode(mode=False) if library(xp) == "torch" else nullcontext():
                found = xp.astype(from_numpy(self.matrix.copy(), like=rows, xp=xp), rows.dtype)
            if can_write(xp):  # an array of JAX may belong to a function that is being traced
                self._ready[key] = found
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the rotation to a folder.

        Parameters
        ----------
        path : path
            The folder: new, empty, or one that this method wrote, which is replaced once the new one is complete.

        Raises
        ------
        OSError
            The folder cannot be written, or holds other things.
        """
        from matryoshka import _folders  # with what it needs of the standard library, slow to load

        with _folders.new_folder(path, _folders.ROTATION) as folder:
            checksums = {}
            for name in ("matrix", "energy"):
                array = getattr(self, name)
                np.save(folder / f"{name}.npy", array)
                checksums[name] = zlib.crc32(array.data.cast("B"))
            record = {"kind": "rotation", "version": 1, "dim": self.dim}
            text = json.dumps(_values.sealed(record, checksums))
            (folder / _folders.ROTATION.record).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Rotation:
        """Read a rotation from the folder that `save` wrote.

        Parameters
        ----------
        path : path
            The folder.

        Returns
        -------
        Rotation
            Equal to the one that was saved.

        Raises
        ------
        FileNotFoundError
            There is no such folder.
        ValueError
            The folder holds no rotation, or a damaged one.
        """
        from matryoshka import _folders  # with what it needs of the standard library, slow to load

        return cls._of(*_folders.read_folder(path, _folders.ROTATION, _read, by="Rotation.save"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rotation):
            return NotImplemented
        return np.array_equal(self.matrix, other.matrix) and np.array_equal(self.energy, other.energy)

    def __hash__(self) -> int:
        return hash((self.dim, self.energy.tobytes()))

    def __repr__(self) -> str:
        held = np.cumsum(self.energy)
        half, most = (min(self.dim, int(np.searchsorted(held, share)) + 1) for share in (0.5, 0.9))
        return f"Rotation(dim={self.dim}, half of the energy in {half} columns, 90 % in {most})"


_TOLERANCE = 1e-6


def _host(array: Array, name: str, n_axes: int, axes: str) -> np.ndarray:
    """Return a copy of a finite array of any library, in float64 on the host."""
    xp = namespace((name, array))
    _checks.floating(array, name, xp)
    _checks.ndim(array, name, n_axes, axes)
    _checks.not_empty(array, name)
    host = np.array(to_numpy(array), dtype=np.float64, order="C")
    if not np.isfinite(host).all():
        msg = f"`{name}` must be finite, got NaN or infinity; pass what a fit has found."
        raise ValueError(msg)
    return host


def _fault(shares: np.ndarray) -> str | None:
    """Say why these numbers are not sorted shares of a whole; None if they are."""
    if (negative := int((shares < 0).sum())) > 0:
        return f"{negative} of {len(shares)} numbers below 0"
    if (grows := shares[1:] > shares[:-1]).any():
        i = int(grows.argmax())
        return f"entry {i + 1} larger than entry {i}"
    total = float(shares.sum())
    return None if abs(total - 1) < _TOLERANCE else f"a sum of {total:.7g}"


def _blocks(embeddings: Array, chosen: np.ndarray | None, xp: Namespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers of rows, and the rows as float64 on the host: all of them, or those `chosen`."""
    n, dim = embeddings.shape
    for part in row_blocks(n if chosen is None else len(chosen), max(1, _BLOCK_NUMBERS // dim)):
        ids = np.arange(part.start, part.stop) if chosen is None else chosen[part]
        rows = embeddings[part, :] if chosen is None else take_rows(embeddings, ids, xp)
        yield ids, np.ascontiguousarray(to_numpy(rows), dtype=np.float64)


def _second_moment(embeddings: Array, chosen: np.ndarray | None, xp: Namespace) -> np.ndarray:
    """Return X^T X of the rows (dim, dim), divided by a power of four, after checking that they are finite."""
    n, dim = embeddings.shape
    moment, exponent = np.zeros((dim, dim)), None
    bad: list[int] = []
    for ids, rows in _blocks(embeddings, chosen, xp):
        bad += ids[~np.isfinite(rows).all(axis=1)].tolist()
        if bad or not (largest := float(np.abs(rows).max())):
            continue
        own = math.frexp(largest)[1]
        if exponent is None or own > exponent:
            moment = moment if exponent is None else np.ldexp(moment, 2 * (exponent - own))
            exponent = own
        scaled = np.ldexp(rows, -exponent)
        moment += scaled.T @ scaled
    _checks.no_bad_rows(bad, n if chosen is None else len(chosen), "embeddings", drawn_from=n)
    if exponent is None:
        msg = "`embeddings` must hold a number other than 0, got only zeros; pass rows of the data to be searched."
        raise ValueError(msg)
    return moment


def _read(folder: Path, text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the arrays of a folder, and check that they fit each other and are as they were saved."""
    from matryoshka import _files  # with what it needs of the standard library, slow to load

    source = folder / "rotation.json"
    record = _values.record(text, kind="rotation", keys=(*_KEYS, "checksums", "checksum"), source=source)
    with _values.reading("rotation", source):
        dim = _checks.integer(record["dim"], "dim", minimum=1)
        checksums = _values.checksums(record, ("matrix", "energy")) or {}
    arrays = []
    for name, shape in (("matrix", (dim, dim)), ("energy", (dim,))):
        file, remedy = folder / f"{name}.npy", "the folder is damaged: save the rotation anew"
        if not file.is_file():
            msg = f"`{file}` must exist, as rotation.json says; {remedy}."
            raise ValueError(msg)
        array = _files.load_array(file, remedy=remedy)
        if array.shape != shape or array.dtype != np.float64 or not array.flags.c_contiguous:
            msg = f"`{file}` must hold float64 of shape {shape}, got {array.dtype} of shape {array.shape}; {remedy}."
            raise ValueError(msg)
        _values.check_sum(checksums[name], zlib.crc32(array.data.cast("B")), source=file, of="rotation")
        arrays.append(array)
    _values.check_seal(record, _KEYS, source=source, of="rotation")
    return arrays[0], arrays[1]
