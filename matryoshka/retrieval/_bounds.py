"""An exact search that reads less: what a prefix rules out is never read at full width.

By Cauchy and Schwarz, columns that were not compared add at most the product of what is left of the lengths of query
and row. A row whose bound lies below the k-th best score of any k rows is not among the best k. The rest is read on,
in steps that double the width, and drops out as soon as its bound does: as in faiss' Panorama, for rows of any metric.

It pays where the leading columns hold most of the lengths: after a `Rotation`, or of embeddings trained to be cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from matryoshka._array import row_blocks
from matryoshka._threads import each
from matryoshka.retrieval import _rerank, _scan, _scores
from matryoshka.retrieval._prefix import Prefix
from matryoshka.retrieval._rows import HostRows, Rows

_NUMBERS = 1 << 24
"""Size of a corpus, in numbers, from which on bounds are tried; also how many scores are formed at once."""

_GATHERED, _MOST_GATHERED, _OF_FILE = 1 << 10, 5 << 10, 16
"""To read one row on takes as long as so many numbers of a full pass: for a single query, which waits for memory; for
a batch, whose queries share the wait; and by which factor longer for rows in a file."""

_SPENT_ON_TRIES = 1 / 64
"""Share of the time of full passes that is spent on trying bounds where they have cost more than they saved."""


def leading(rows: Rows, dims: Iterable[int]) -> int | None:
    """Return the width to bound by: the widest at hand of at most a quarter of the columns, of rows that are many."""
    if not (isinstance(rows, HostRows) and rows.gathers and math.prod(rows.shape) >= _NUMBERS):
        return None
    return max((dim for dim in dims if 4 * dim <= rows.shape[1]), default=None)


class Bounds:
    """What the columns after a prefix can add to the score of each row.

    Parameters
    ----------
    rows : HostRows
        The corpus.
    prefix : Prefix
        Some of its leading columns.

    Attributes
    ----------
    rest : array (n,)
        Length of the columns after the prefix, at least; as a share of the length of the row under "cosine".
    """

    def __init__(self, rows: HostRows, prefix: Prefix) -> None:
        self.rows, self.prefix = rows, prefix
        whole, dtype = np.asarray(rows.squares), rows.dtype
        self._margin = 4 * (rows.shape[1] + 8) * float(rows.xp.finfo(dtype).eps)
        cosine, l2 = prefix.metric == "cosine", prefix.metric == "l2"
        source = rows if cosine else prefix.rows
        inner = np.concatenate([_scores.squares(source.read(block, prefix.dim), np) for block in rows.blocks()])
        self._unit: np.ndarray = 1 / np.sqrt(np.where(whole > 0, whole, 1)) if cosine else np.ones(1, dtype)
        self.rest = np.sqrt(np.maximum(whole - inner, 0) + self._margin * whole) * self._unit
        factor = np.sqrt(inner) * self._unit if cosine else None
        self._leading = replace(prefix, factor=factor, offset=-whole if l2 else None)
        self._twice = 2 if l2 else 1
        self._saved = {True: 0.5, False: 0.5}  # of single queries and of many; for the first or two

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept for each row."""
        kept = self.rest, self._unit, self._leading.factor, self._leading.offset
        return sum(int(array.nbytes) for array in kept if array is not None)

    def candidates(self, queries: np.ndarray, k: int) -> dict[int, np.ndarray]:
        """Return for some of the queries ids (m,) that hold the best `k`; for the others a full pass takes less time.

        The rule: to read a row on costs as much as 1,024 numbers of a full pass, in a batch 5,120, and in a file 16
        times that. A query for which this adds up to more than half of a full pass is left to the full pass. What is
        saved is kept account of in full passes, for single queries and for batches apart: a query that was pruned earns
        a quarter of a pass; one that was not costs twice the share that the prefix has of the columns, or in a batch a
        whole pass, since a pass for a few queries takes nearly as long as one for all. While the account is overdrawn,
        bounds are tried only as often as a 64th of the time allows.
        """
        if not len(queries):
            return {}
        single = len(queries) == 1
        if self._saved[single] < 0:
            self._saved[single] += _SPENT_ON_TRIES
            return {}
        parts = row_blocks(len(queries), max(1, _NUMBERS // len(self.rest)))
        found = enumerate(ids for part in parts for ids in self._pruned(queries[part], k))
        pruned = {query: ids for query, ids in found if ids is not None}
        failed = 1 - len(pruned) / len(queries)
        cost = 2 * self.prefix.dim / self.rows.shape[1] if single else 1
        self._saved[single] = min(1.0, self._saved[single] + (1 - failed) / 4 - failed * cost)
        return pruned

    def _pruned(self, queries: np.ndarray, k: int) -> list[np.ndarray | None]:
        dim, n = self.prefix.dim, len(self.rest)
        weights = self._twice * queries
        beyond = _scores.lengths(weights[:, dim:], np)
        probes = min(n, 2 * k + 32)
        formed = _scan.form(self._leading, weights[:, :dim], probes)
        floors, scores = self._floors(queries, formed, k, probes), formed.scores
        read_on = min(len(queries) * _GATHERED, _MOST_GATHERED) * (1 if self.rows.in_memory else _OF_FILE)
        most = n * self.rows.shape[1] / (2 * read_on)

        def survivors(i: int) -> np.ndarray | None:
            bounds = beyond[i] * self.rest
            bounds += scores[i, :n]
            ids = (bounds >= floors[i]).nonzero()[0]
            return None if len(ids) > most else self._read_on(weights[i], floors[i], k, ids, scores[i].take(ids))

        return each(survivors, range(len(queries)))

    def _floors(self, queries: np.ndarray, formed: _scan.Formed, k: int, probes: int) -> list[float]:
        """Return the score that a row must reach: that of the k-th best among the rows with the best prefixes."""
        rows, asked, _ = _scan.best(formed, probes, np.zeros(len(queries), queries.dtype))
        metric, floors = self.prefix.metric, []
        for i, query in enumerate(queries[:, None, :]):
            some = rows[None, (asked == i).nonzero()[0][: 2 * probes]]  # of equal rows there may be any number
            final = _rerank.score(self.rows, metric, query, some, self.rows.shape[1])[0]
            least, length = float(np.partition(final, -k)[-k]), float(_scores.lengths(query, np)[0])
            longest = 1.0 if metric == "cosine" else self.rows.longest
            if metric == "l2":
                floors.append(least + length * length - self._margin * (length + longest) ** 2)
            else:
                floors.append(least - self._margin * length * longest)
        return floors

    def _read_on(self, weights: np.ndarray, floor: float, k: int, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Drop rows (m,) as ever more of their columns rule them out; `scores` are those of their prefixes."""
        start, width = self.prefix.dim, self.rows.shape[1]
        left = np.square(self.rest.take(ids))
        while start < width and len(ids) > 4 * k:
            columns = slice(start, min(2 * start, width))
            part = self.rows.take(ids, columns)
            unit = self._unit.take(ids, mode="clip")  # one for all, but for "cosine"
            scores = scores + np.vecdot(part, weights[columns]) * unit
            left = np.maximum(left - _scores.squares(part, np) * (unit * unit), 0)
            start = columns.stop
            beyond = float(_scores.lengths(weights[None, start:], np)[0])
            chosen = (scores + beyond * np.sqrt(left) >= floor).nonzero()[0]
            ids, scores, left = ids.take(chosen), scores.take(chosen), left.take(chosen)
        return ids
