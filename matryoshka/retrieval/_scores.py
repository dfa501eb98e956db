"""The similarity of a query and a row at a prefix, as sums over columns that wider prefixes go on with.

Scores grow with similarity. With q and x the prefixes:

- "cosine": q · x / (|q| |x|), and 0 where either length is 0;
- "ip": q · x;
- "l2": -|q - x|².

Every candidate is scored by these functions alone, whichever way it was found, so that equal rows score equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval._top_k import take_along


class Sums(NamedTuple):
    """What the columns so far add up to, for each query and candidate.

    Attributes
    ----------
    products : array (n_queries, m) or None
        q · x, or -|q - x|² for "l2"; None of candidates that were named and not yet compared.
    squares : array (n_queries, m) or None
        |x|², for "cosine" only.
    """

    products: Array = None
    squares: Array | None = None

    def take(self, positions: Array, xp: Namespace) -> Sums:
        """Pick the sums of some candidates, (n_queries, fewer)."""
        return Sums(*(None if array is None else take_along(array, positions, xp) for array in self))

    def of(self, queries: slice) -> Sums:
        """Pick the sums of some queries."""
        return Sums(*(None if array is None else array[queries] for array in self))

    def plus(self, other: Sums) -> Sums:
        """Add the sums over further columns."""
        squares = None if self.squares is None or other.squares is None else self.squares + other.squares
        return Sums(self.products + other.products, squares)

    @classmethod
    def join(cls, parts: Sequence[Sums], xp: Namespace, *, axis: int) -> Sums:
        """Put the sums of several groups of candidates side by side (axis 1), or those of queries below each other."""
        return cls(
            *(None if arrays[0] is None else xp.concat(arrays, axis=axis) for arrays in zip(*parts, strict=True))
        )

    def scores(self, query_lengths: Array | None, xp: Namespace) -> Array:
        """Turn sums into scores; `query_lengths` (n_queries,) are the lengths of the prefixes, for "cosine"."""
        if self.squares is None or query_lengths is None:
            return self.products
        lengths = query_lengths[:, None] * xp.sqrt(self.squares)
        # where a length is 0 the product is 0 as well
        return self.products / xp.where(lengths > 0, lengths, xp.ones_like(lengths))


def sums(metric: str, queries: Array, rows: Array, xp: Namespace, *, squares: bool) -> Sums:
    """Sum over the columns of `queries` (n_queries, width) and `rows` (n_queries, m, width)."""
    if metric == "l2":
        difference = queries[:, None, :] - rows
        return Sums(-_dot(difference, difference, xp), None)
    return Sums(_dot(queries[:, None, :], rows, xp), _dot(rows, rows, xp) if squares else None)


def squares(rows: Array, xp: Namespace) -> Array:
    """Return the squared L2 norm of each row (n, width) as (n,), infinity or 0 where that is no number."""
    with np.errstate(over="ignore"):
        return _dot(rows, rows, xp)


def lengths(rows: Array, xp: Namespace) -> Array:
    """Return the L2 norm of each row (n, width) as (n,), on the host also where its square is no number."""
    squared = squares(rows, xp)
    if not isinstance(rows, np.ndarray) or all_within(squared, *SAFE):
        return xp.sqrt(squared)
    largest = np.abs(rows).max(axis=-1, initial=0)
    scale = np.where(_safe(squared) | (largest == 0), 1, largest)
    return scale * np.sqrt(squares(rows / scale[:, None], np))


def unit(rows: Array, xp: Namespace, squared: Array | None = None) -> Array:
    """Bring rows (n, width) to unit length; `squared` are their squared lengths, if they are known."""
    if not isinstance(rows, np.ndarray):
        return truncate(rows, rows.shape[1])
    squared = squares(rows, np) if squared is None else squared
    if all_within(squared, *SAFE):
        scaled: np.ndarray = rows / np.sqrt(squared)[:, None]
        return scaled
    safe = _safe(squared)
    scaled = rows / np.sqrt(np.where(safe, squared, 1))[:, None]
    scaled[~safe] = truncate(rows[~safe], rows.shape[1])
    return scaled


def all_within(values: np.ndarray, least: float, most: float) -> bool:
    """Tell whether all of `values` (n,) lie strictly within two numbers; NaN does not."""
    if len(values) < 2:
        return all(least < value < most for value in values)
    return bool(least < values.min() and values.max() < most)


def _safe(squared: np.ndarray) -> np.ndarray:
    return np.asarray((squared > SAFE[0]) & (squared < SAFE[1]))


SAFE = 1e-30, 1e30
"""Squared lengths that are computed as they stand; float32 keeps room below them for short prefixes."""


def _dot(left: Array, right: Array, xp: Namespace) -> Array:
    if not isinstance(right, np.ndarray):
        return xp.sum(left * right, axis=-1)
    # Not a matrix product: that rounds a row differently depending on where in the matrix it stands.
    if _WIDE <= right.shape[-1] <= _SERIAL_DOT and _sums_in_one_order():
        return np.vecdot(left, right)
    return np.einsum("...d,...d->...", left, right)


_WIDE, _SERIAL_DOT = 64, 8192
"""Columns from which on a call of OpenBLAS for each row pays, and up to which it sums them in one thread."""


@cache
def _sums_in_one_order() -> bool:
    """Tell whether the matrix library of NumPy is known to sum a row in one way wherever it lies in memory."""
    config: dict[str, dict[str, dict[str, str]]] = np.show_config(mode="dicts")  # type: ignore[assignment]
    return "openblas" in config["Build Dependencies"]["blas"]["name"]
