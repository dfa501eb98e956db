"""The similarity of a query and a row at a prefix, as sums over columns that wider prefixes go on with.

Scores grow with similarity. With q and x the prefixes:

- "cosine": q · x / (|q| |x|), and 0 where either length is 0;
- "ip": q · x;
- "l2": -|q - x|².

Every candidate is scored by these functions alone, whichever way it was found, so that equal rows score equally.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from matryoshka._array import is_numpy_array
from matryoshka._typing import Array, Namespace
from matryoshka.retrieval._top_k import take_along

METRICS = ("cosine", "ip", "l2")


class Sums(NamedTuple):
    """What the columns so far add up to, for each query and candidate.

    Attributes
    ----------
    products : array (n_queries, m)
        q · x, or -|q - x|² for "l2".
    squares : array (n_queries, m) or None
        |x|², for "cosine" only.
    """

    products: Array
    squares: Array | None

    def take(self, positions: Array, xp: Namespace) -> Sums:
        """Pick the sums of some candidates, (n_queries, fewer)."""
        squares = None if self.squares is None else take_along(self.squares, positions, xp)
        return Sums(take_along(self.products, positions, xp), squares)


def sums(metric: str, queries: Array, rows: Array, xp: Namespace, before: Sums | None = None) -> Sums:
    """Add the columns `queries` (n_queries, width) and `rows` (n_queries, m, width) to the sums `before`."""
    if metric == "l2":
        difference = queries[:, None, :] - rows
        products = -_dot(difference, difference, xp)
    else:
        products = _dot(queries[:, None, :], rows, xp)
    lengths_squared = _dot(rows, rows, xp) if metric == "cosine" else None
    if before is not None:
        products = before.products + products
        lengths_squared = None if lengths_squared is None else before.squares + lengths_squared
    return Sums(products, lengths_squared)


def scores(total: Sums, query_lengths: Array | None, xp: Namespace) -> Array:
    """Turn sums into scores; `query_lengths` (n_queries,) are the lengths of the prefixes, for "cosine"."""
    if total.squares is None or query_lengths is None:
        return total.products
    lengths = query_lengths[:, None] * xp.sqrt(total.squares)
    return xp.where(
        lengths > 0, total.products / xp.where(lengths > 0, lengths, xp.ones_like(lengths)), xp.zeros_like(lengths)
    )


def squares(rows: Array, xp: Namespace) -> Array:
    """Return the squared L2 norm of each row (n, width) as (n,)."""
    return _dot(rows, rows, xp)


def lengths(rows: Array, xp: Namespace) -> Array:
    """Return the L2 norm of each row (n, width) as (n,)."""
    return xp.sqrt(squares(rows, xp))


def _dot(left: Array, right: Array, xp: Namespace) -> Array:
    if is_numpy_array(left):
        # not a matrix product: that rounds a row differently depending on where in the matrix it stands
        return np.einsum("...d,...d->...", left, right)
    return xp.sum(left * right, axis=-1)
