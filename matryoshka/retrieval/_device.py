"""The first stage on an accelerator, or in a library of its own: nothing leaves the device."""

from __future__ import annotations

from matryoshka._array import arange, row_blocks
from matryoshka._typing import Array, Namespace
from matryoshka.retrieval._prefix import Prefix
from matryoshka.retrieval._top_k import keep_best, take_along

_SPARE = 32
"""Candidates beyond k, so that the rounding of a matrix product does not push a winner out."""

_NUMBERS = 1 << 26
"""Numbers of one block of rows, or of its scores."""


def candidates(prefix: Prefix, queries: Array, k: int, xp: Namespace) -> Array:
    """Return the ids (n_queries, m) of the best `k` rows and a few more, in ascending order.

    Where more rows than that are equally good, up to rounding, which of them are found is up to the rounding.
    """
    n, n_queries = len(prefix), queries.shape[0]
    wanted, step = min(k + _SPARE, n), max(64, _NUMBERS // max(prefix.dim, n_queries, 1))
    best = ids = None
    for block in row_blocks(n, step):
        scores = prefix.finish(queries @ prefix.rows.read(block, prefix.dim).T, block)
        positions = keep_best(scores, min(wanted, block.stop - block.start), xp)
        scores = take_along(scores, positions, xp)
        positions = positions + block.start
        if best is not None:
            scores, positions = xp.concat([best, scores], axis=-1), xp.concat([ids, positions], axis=-1)
        chosen = keep_best(scores, min(wanted, scores.shape[1]), xp)
        best, ids = take_along(scores, chosen, xp), take_along(positions, chosen, xp)
    return xp.astype(ids, arange(1, like=ids, xp=xp).dtype, copy=False)
