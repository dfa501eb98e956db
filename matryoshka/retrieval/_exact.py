"""Exact search over every row at one width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matryoshka._array import arange
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval import _scores
from matryoshka.retrieval._rows import Rows
from matryoshka.retrieval._top_k import take_along, top_k

_SPARE = 32
"""Candidates beyond k, so that the rounding of a matrix product cannot push a winner out."""

_BLOCK_SCORES = 1 << 22


@dataclass(frozen=True)
class Prefix:
    """All rows at one width, ready for matrix products.

    Attributes
    ----------
    rows : Rows
        Prefixes of unit length for "cosine" where a block was built, else the rows as they are.
    dim : int
        Columns to read.
    factor, offset : array (n,) or None
        The score of row i is proportional to ``(q · x_i) * factor[i] + offset[i]``.
    """

    rows: Rows
    dim: int
    factor: Array | None = None
    offset: Array | None = None

    def scores(self, queries: Array) -> Iterator[tuple[slice, Array]]:
        """Give the scores of all queries against blocks of rows, exact up to rounding."""
        for block, rows in self.rows.slices(self.dim):
            scores = queries @ rows.T
            if self.factor is not None:
                scores = scores * self.factor[block]
            if self.offset is not None:
                scores = scores + self.offset[block]
            yield block, scores


def prefix(rows: Rows, dim: int, metric: str, xp: Namespace) -> Prefix:
    """Prepare a width for search: a contiguous block of unit prefixes, or factors for the rows as they are."""
    if dim < rows.shape[1]:
        blocks = [block for _, block in rows.slices(dim)]
        if metric == "cosine":
            blocks = [truncate(block, dim) for block in blocks]
        rows = Rows(xp.concat(blocks), xp)  # a copy: prefixes of the caller's rows are not contiguous
    elif metric == "cosine":
        lengths = xp.concat([_scores.lengths(block, xp) for _, block in rows.slices(dim)])
        return Prefix(rows, dim, factor=1 / xp.where(lengths > 0, lengths, xp.ones_like(lengths)))
    if metric == "l2":
        # ordered as -|q - x|²: the products less half of |x|²
        return Prefix(rows, dim, offset=-xp.concat([_scores.squares(block, xp) for _, block in rows.slices(dim)]) / 2)
    return Prefix(rows, dim)


def candidates(prefix: Prefix, queries: Array, k: int, xp: Namespace) -> Array:
    """Return the ids of the best `k` rows and a few more, (n_queries, at least min(k, n)), in no order."""
    wanted = min(k + _SPARE, prefix.rows.shape[0])
    best = ids = None
    for block, scores in prefix.scores(queries):
        values, positions = top_k(scores, min(wanted, scores.shape[-1]), xp)
        positions = positions + arange(1, like=positions, xp=xp)[0] + block.start
        if best is not None:
            values, positions = xp.concat([best, values], axis=-1), xp.concat([ids, positions], axis=-1)
        best, chosen = top_k(values, min(wanted, values.shape[-1]), xp)
        ids = take_along(positions, chosen, xp)
    return ids
