"""All rows at one width, laid out for matrix products, and the one pass over the rows that prepares them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._array import to_numpy
from matryoshka._threads import each
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval import _sampling, _scores
from matryoshka.retrieval._rows import DeviceRows, HostRows, Rows

_SAMPLED_ROWS = 1 << 10
_SAMPLED_NUMBERS = 1 << 18


@dataclass(frozen=True)
class Prefix:
    """All rows at one width.

    Attributes
    ----------
    rows : Rows
        A contiguous block of the prefixes, of unit length under "cosine"; at full width the rows of the corpus.
    dim : int
        Columns to read.
    metric : str
        The similarity.
    factor, offset : array (n,) or None
        The score of row i is ``(q · x_i) * factor[i] + offset[i]`` with q as `queries` prepares it, less a constant
        of the query.
    longest : float
        Length of the longest row, 1 under "cosine".
    """

    rows: Rows
    dim: int
    metric: str
    factor: Array | None
    offset: Array | None
    longest: float

    def __len__(self) -> int:
        return self.rows.shape[0]

    def queries(self, queries: Array) -> Array:
        """Prepare queries (n_queries, at least dim), which come as `Arguments.queries` returns them, for products."""
        if queries.shape[1] == self.dim and self.metric != "l2":
            return queries
        prefix = queries[:, : self.dim]
        if self.metric == "cosine":
            return _scores.unit(prefix, self.rows.xp)
        return 2 * prefix if self.metric == "l2" else prefix

    def rounding(self, queries: Array) -> Array:
        """Bound, for each prepared query (n_queries,), how far a product may be from the score summed otherwise."""
        xp = self.rows.xp
        lengths = xp.ones_like(queries[:, 0]) if self.metric == "cosine" else _scores.lengths(queries, xp)
        if self.metric == "l2":
            lengths = lengths + self.longest
        return (self.dim + 8) * float(xp.finfo(queries.dtype).eps) * self.longest * lengths

    def finish(self, products: Array, block: slice | tuple[slice, None]) -> Array:
        """Make scores of products (n_queries, rows), or with (block, None) of (rows, n_queries), in place if it can."""
        if self.factor is not None:
            products *= self.factor[block]
        if self.offset is not None:
            products += self.offset[block]
        return products

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Return the scores (n, n_queries) of prepared queries and all rows at once: those of a sample are few."""
        scores: np.ndarray = self.rows.read(slice(0, len(self)), self.dim) @ queries.T
        self.finish(scores, (slice(None), None))
        return scores

    @cached_property
    def sample(self) -> Prefix:
        """One row from each of many equal shares, fewer of wide rows: by them thresholds are set."""
        size = max(_SAMPLED_ROWS, _SAMPLED_NUMBERS // self.dim)
        ids = _sampling.draw(len(self), min(len(self), size))
        factor, offset = (None if array is None else array[ids] for array in (self.factor, self.offset))
        return replace(self, rows=HostRows(self.rows.take(ids, slice(0, self.dim))), factor=factor, offset=offset)

    @property
    def drawn(self) -> Prefix | None:
        """The sample, if it was asked for before."""
        return vars(self).get("sample")


def inspect(rows: Rows, dims: Sequence[int], metric: str) -> tuple[Rows, dict[int, Prefix]]:
    """Read all rows once: check that they are finite, and return them with their lengths, and the prefixes `dims`.

    Raises
    ------
    ValueError
        Rows hold NaN or infinity; the message counts them all. Or they are so long or so short, under another metric
        than "cosine", that squared lengths are not numbers of their dtype.
    """
    seen = look(rows, dims, metric)
    _checks.no_bad_rows(seen.bad, rows.shape[0], "embeddings")
    if metric == "cosine" and not seen.safe:
        return scaled(rows, dims, metric)
    if metric != "cosine":
        check_lengths(math.sqrt(float(rows.xp.max(seen.squares))), rows.dtype, metric, rows.xp, safe=seen.safe)
    return known(rows, dims, metric, seen)


def known(rows: Rows, dims: Sequence[int], metric: str, seen: Seen) -> tuple[Rows, dict[int, Prefix]]:
    """Return rows that were looked at with their lengths, and the prefixes `dims`."""
    rows = rows.knowing(scale=rows.scale, squares=seen.squares)
    return rows, {dim: of_block(rows, dim, metric, seen.prefixes.get(dim)) for dim in dims}


def scaled(rows: Rows, dims: Sequence[int], metric: str) -> tuple[Rows, dict[int, Prefix]]:
    """Do the same where squares of some rows vanish or overflow: each row is divided by its largest number."""
    rows = rows.knowing(scale=_largest(rows))
    return known(rows, dims, metric, look(rows, dims, metric))


def build(rows: Rows, dim: int, metric: str) -> Prefix:
    """Prepare one more width of rows that were inspected before; below full width this reads them all."""
    block = look(rows, (dim,), metric, width=dim).prefixes[dim] if dim < rows.shape[1] else None
    return of_block(rows, dim, metric, block)


class Seen(NamedTuple):
    """What one pass over the rows found: which are not finite, and whether squared lengths of the others are safe."""

    squares: Array
    bad: list[int]
    safe: bool
    prefixes: dict[int, Array]


def look(rows: Rows, dims: Sequence[int], metric: str, *, width: int | None = None) -> Seen:
    """Read all rows once, or so many of their columns, and say what they are like."""
    xp, on_host, width = rows.xp, isinstance(rows, HostRows), width or rows.shape[1]
    dims = [dim for dim in dims if dim < rows.shape[1]]
    prefixes = {dim: np.empty((rows.shape[0], dim), rows.dtype) for dim in dims} if on_host else {}

    def read(block: slice) -> tuple[Array, list[int], bool, list[Array]]:
        some = rows.read(block, width)
        squares = _scores.squares(some, xp)
        least, most = _scores.SAFE
        safe = bool(xp.all((squares > least) & (squares < most)))
        bad: list[int] = []
        if not safe:  # look closer: rows may be zero, which is safe, or not finite
            finite, zero = xp.all(xp.isfinite(some), axis=-1), xp.all(some == 0, axis=-1)
            bad = [block.start + i for i, good in enumerate(to_numpy(finite).tolist()) if not good]
            safe = bool(xp.all(zero | ((squares > least) & (squares < most))))
        cut = [truncate(some, dim, normalize=metric == "cosine") for dim in dims]
        if on_host:
            for dim, part in zip(dims, cut, strict=True):
                prefixes[dim][block] = part
            cut = []
        return squares, bad, safe, cut

    parts = each(read, rows.blocks()) if on_host else [read(block) for block in rows.blocks()]
    squares, bad, safe, cuts = zip(*parts, strict=True)
    if not on_host:
        prefixes = {dim: xp.concat(parts) for dim, parts in zip(dims, zip(*cuts, strict=True), strict=True)}
    return Seen(xp.concat(squares), list(itertools.chain.from_iterable(bad)), all(safe), prefixes)


def product_range(dtype: object, xp: Namespace) -> tuple[float, float]:
    """Return between which sizes products of lengths keep their precision, with room for sums of them."""
    info = xp.finfo(dtype)
    return float(info.smallest_normal) / float(info.eps), float(info.max) / 256


def check_lengths(
    longest: float, dtype: object, metric: str, xp: Namespace, *, safe: bool, name: str = "embeddings"
) -> None:
    """Check that the longest row is neither too long nor, if it is not zero, too short to be squared."""
    least, most = map(math.sqrt, product_range(dtype, xp))
    if not (longest <= most and (longest >= least or (longest == 0 and safe))):
        msg = (
            f"`{name}` must have their longest row within [{least:.1g}, {most:.1g}] under metric {metric!r} in "
            f"{dtype}, got {longest:.1g}; divide them and the queries by one number: the order stays."
        )
        raise ValueError(msg)


def _largest(rows: Rows) -> Array:
    """Return the largest number of each row, 1 for rows of zeros, to divide them by."""
    xp = rows.xp
    largest = xp.concat([xp.max(xp.abs(rows.read(block, rows.shape[1])), axis=-1) for block in rows.blocks()])
    return xp.where(largest > 0, largest, xp.ones_like(largest))


def of_block(rows: Rows, dim: int, metric: str, block: Array | None) -> Prefix:
    """Lay out one width: `block` below full width, else the rows themselves."""
    xp = rows.xp
    own = rows if block is None else HostRows(block) if isinstance(rows, HostRows) else DeviceRows(block, xp)
    squares: Array = rows.squares if block is None else None if metric == "cosine" else _scores.squares(block, xp)
    if metric == "cosine":
        factor = None if squares is None else 1 / xp.sqrt(xp.where(squares > 0, squares, xp.ones_like(squares)))
        return Prefix(own, dim, metric, factor, None, 1.0)
    longest = float(xp.sqrt(xp.max(squares)))
    return Prefix(own, dim, metric, None, -squares if metric == "l2" else None, longest)
