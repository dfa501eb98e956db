"""Check what a search is given, bring it to where the rows lie, and hand results back in the caller's library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from matryoshka import _checks
from matryoshka._array import (
    accumulator_dtype,
    arange,
    count_true,
    from_numpy,
    full,
    is_floating,
    is_remote,
    namespace,
)
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval import _scores, engine
from matryoshka.retrieval._host import view, widen
from matryoshka.retrieval._prefix import product_range
from matryoshka.retrieval._rows import DeviceRows, HostRows, Rows


@dataclass(frozen=True)
class Arguments:
    """The checks and conversions that a corpus applies to its arguments and results.

    Attributes
    ----------
    rows : Rows
        The corpus.
    metric : str
        The similarity.
    like : array
        Of the library, the dtype and the device that arguments come from and results go to.
    xp : namespace
        The library of `like`.
    """

    rows: Rows
    metric: str
    like: Array
    xp: Namespace

    def queries(self, queries: Array) -> Array:
        """Check queries and return them as they are computed with: at unit length under "cosine"."""
        if self._is_plain(queries) and queries.dtype == self.rows.dtype and queries.shape[1:] == (self.rows.shape[1],):
            rows = queries
        else:
            rows = self._checked(queries)
        if is_remote(rows) or not rows.shape[0]:
            return truncate(rows, rows.shape[1], normalize=self.metric == "cosine")
        xp, squared = self.rows.xp, None
        if xp is np:
            squared = _scores.squares(rows, np)
        if squared is None or not _scores.all_within(squared, *self._lengths_that_fit):
            _checks.finite_rows(rows, "queries", xp)
            if self.metric != "cosine":
                self._check_products(rows)
        return _scores.unit(rows, xp, squared) if self.metric == "cosine" else rows

    def _is_plain(self, array: Array) -> bool:
        """Tell whether this is a NumPy array with two axes for a corpus of NumPy arrays: most need no more checks."""
        return type(array) is np.ndarray and type(self.like) is np.ndarray and array.ndim == 2

    def _checked(self, queries: Array) -> Array:
        namespace(("embeddings", self.like), ("queries", queries))
        engine._check_queries(queries, self.rows.shape[1], self.xp)
        if queries.dtype not in (self.like.dtype, accumulator_dtype(self.like, self.xp)):
            msg = f"`queries` must have the dtype of the corpus, {self.like.dtype}, got {queries.dtype}; cast them."
            raise TypeError(msg)
        return self._own(queries)

    @cached_property
    def _sizes(self) -> tuple[float, float]:
        """Bounds on the largest number of a query within which products with rows neither vanish nor overflow."""
        least, most = product_range(self.rows.dtype, self.rows.xp)
        longest, root = self.rows.longest, math.sqrt(self.rows.shape[1])  # a query is at most `root` times as long
        if self.metric == "l2":
            return 0.0, max(0.0, (math.sqrt(most) - longest) / root)
        return least / longest, most / max(longest, 1.0) / root

    @cached_property
    def _lengths_that_fit(self) -> tuple[float, float]:
        """Bounds on the squared length of a query within which every check of its numbers is sure to pass."""
        _, most = product_range(self.rows.dtype, np)
        if self.metric == "cosine" or self.rows.longest == 0:
            return 0.0, most
        smallest, largest = self._sizes
        return smallest * smallest * self.rows.shape[1], min(most, largest * largest)

    def _check_products(self, queries: Array) -> None:
        """Check that products of queries and rows are numbers of their dtype: they neither overflow nor vanish."""
        xp, longest = self.rows.xp, self.rows.longest
        if longest == 0:
            return
        smallest, greatest = self._sizes
        largest = xp.max(xp.abs(queries), axis=-1)
        bad = (largest > greatest) | ((largest > 0) & (largest < smallest))
        if count := count_true(bad, xp):
            msg = (
                f"`queries` must be as long as products with rows of length {longest:.1g} allow under metric "
                f"{self.metric!r} in {self.rows.dtype}, got {count} of {queries.shape[0]} that are too long or too "
                "short; divide them by one number, under 'l2' the embeddings as well, which keeps the order."
            )
            raise ValueError(msg)

    def _own(self, array: Array) -> Array:
        """Bring an argument to where the rows are computed with."""
        floating = is_floating(array, self.xp)
        if isinstance(self.rows, DeviceRows):
            return self.xp.astype(array, self.rows.dtype, copy=False) if floating else array
        return widen(view(array)).astype(self.rows.dtype, copy=False) if floating else view(array)

    def candidates(self, ids: Array, like: Array, n_queries: int) -> Array:
        """Check candidates, which are to come from the library of `like`, and return them sorted."""
        if not (self._is_plain(ids) and ids.dtype.kind == "i" and ids.shape[0] == n_queries):
            namespace(("embeddings", like), ("ids", ids))
            engine._check_ids(ids, n_queries, namespace(("ids", ids)))
            ids = self._own(ids)
        xp = self.rows.xp
        if 0 not in ids.shape and not is_remote(ids):
            least, most = int(xp.min(ids)), int(xp.max(ids))
            if least < -1 or most >= self.rows.shape[0]:
                msg = (
                    f"`ids` must lie within [-1, {self.rows.shape[0]}), got {least} to {most}; "
                    "pass row numbers of this corpus, or -1 for padding."
                )
                raise ValueError(msg)
        return xp.sort(xp.astype(ids, arange(1, like=ids, xp=xp).dtype, copy=False), axis=-1)

    def results(self, found: Sequence[tuple[Array, Array]], k: int) -> tuple[Array, Array]:
        """Join parts, cut or pad them to `k`, and give them back in the library of the corpus."""
        xp = self.rows.xp
        scores, ids = (parts[0] if len(parts) == 1 else xp.concat(parts) for parts in zip(*found, strict=True))
        scores, ids = _cut_or_pad(scores, ids, k, xp)
        if isinstance(self.rows, HostRows) and type(self.like) is not np.ndarray:
            scores, ids = (from_numpy(array, like=self.like, xp=self.xp) for array in (scores, ids))
        return scores, ids


def _cut_or_pad(scores: Array, ids: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
    missing = k - ids.shape[1]
    if missing <= 0:
        return scores[:, :k], ids[:, :k]
    pad = (ids.shape[0], missing)
    return (
        xp.concat([scores, full(pad, -xp.inf, like=scores, xp=xp)], axis=-1),
        xp.concat([ids, full(pad, -1, like=ids, xp=xp)], axis=-1),
    )
