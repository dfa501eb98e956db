"""The rows that are searched, made up: time depends on their number, and on how they lie where a search skips some.

*Decaying* rows have independent columns that shrink like (column + 1)^-0.8, most of them in the first ones. *Real-like*
rows are those of `real_like`. Both have unit length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np

from benchmarks.retrieval import real_like
from matryoshka import Rotation

N_QUERIES = 256
"""Of them recall is measured; the clock runs on one batch of them after the other."""
_DECAY = 0.8
_AT_ONCE = 50_000


@dataclass(frozen=True)
class Source:
    """Which rows: "decaying" or "real-like", how many, and how wide."""

    kind: str
    n: int
    dim: int

    def __str__(self) -> str:
        return f"{self.n:,} x {self.dim:,}" + (", real-like" if self.kind == "real-like" else "")

    def draw(self, seed: int = 0) -> Data:
        """Draw the rows, and queries of their kind of which none is a row."""
        data = Data.empty(self.n, self.dim)
        if self.kind == "real-like":
            places = np.random.default_rng((self.n, self.dim, seed)).permutation(self.n + N_QUERIES)
            for some, rows in real_like.draw(places, self.dim, seed):
                held = some < self.n
                data.rows[some[held]] = rows[held]
                data.queries[some[~held] - self.n] = rows[~held]
            return data
        for start, rows in _decaying(self.n, self.dim, seed):
            data.rows[start : start + len(rows)] = rows
        data.queries[:] = next(_decaying(N_QUERIES, self.dim, seed + 1))[1]
        return data


@dataclass(frozen=True)
class Data:
    """Rows to search and queries, of unit length in float32; the memory of the rows belongs to an index of faiss.

    So nobody needs a copy: of 1,000,000 x 2,048 there is room for one.
    """

    flat: faiss.IndexFlatIP
    queries: np.ndarray

    @classmethod
    def empty(cls, n: int, dim: int) -> Data:
        """Make room for rows and queries."""
        flat = faiss.IndexFlatIP(dim)
        flat.codes.resize(4 * n * dim)
        flat.ntotal = n
        return cls(flat, np.empty((N_QUERIES, dim), np.float32))

    @property
    def n(self) -> int:
        return int(self.flat.ntotal)

    @property
    def dim(self) -> int:
        return int(self.flat.d)

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows, in the memory of the index."""
        numbers: np.ndarray = faiss.rev_swig_ptr(self.flat.get_xb(), self.n * self.dim)
        return numbers.reshape(self.n, self.dim)

    @cached_property
    def rotation(self) -> Rotation:
        """The rotation that is fitted on the rows."""
        return Rotation.fit(self.rows)

    @cached_property
    def rotated(self) -> Data:
        """The same after their rotation."""
        turned = Data.empty(self.n, self.dim)
        for start in range(0, self.n, _AT_ONCE):
            turned.rows[start : start + _AT_ONCE] = self.rotation.apply(self.rows[start : start + _AT_ONCE])
        turned.queries[:] = self.rotation.apply(self.queries)
        return turned

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean of the rows."""
        return (
            np.sum([block.sum(axis=0, dtype=np.float64) for block in self._blocks()], axis=0).astype(np.float32)
            / self.n
        )

    @cached_property
    def signs(self) -> np.ndarray:
        """Which numbers of the rows exceed their mean, eight a byte."""
        return np.concatenate([pack(block - self.mean) for block in self._blocks()])

    def _blocks(self) -> Iterator[np.ndarray]:
        return (self.rows[start : start + _AT_ONCE] for start in range(0, self.n, _AT_ONCE))

    @cached_property
    def nearest(self) -> np.ndarray:
        """Ids of the 200 nearest rows of each query, as faiss finds them."""
        found: np.ndarray = self.flat.search(self.queries, 200)[1]
        return found


def _decaying(n: int, dim: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Draw decaying rows, and say where each block of them starts."""
    scale = ((1.0 + np.arange(dim)) ** -_DECAY).astype(np.float32)
    for start in range(0, n, _AT_ONCE):
        rng = np.random.default_rng((dim, start, seed))
        yield start, unit(rng.standard_normal((min(_AT_ONCE, n - start), dim), np.float32) * scale)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return prefixes at unit length, contiguous."""
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def pack(rows: np.ndarray) -> np.ndarray:
    """Return which numbers are positive, eight a byte."""
    return np.packbits(rows > 0, axis=1)


def recall(ids: np.ndarray, nearest: np.ndarray) -> float:
    """Return the share of the nearest rows that is among the ids."""
    return float(np.mean([np.isin(best, row).mean() for row, best in zip(ids, nearest, strict=True)]))
