"""A corpus whose rows lie in several places: each shard is searched where it lies, and lists are merged on the way.

Ids travel, scores, and the sums that these are formed of; rows never do. What is found is what a `Corpus` of all rows
finds, to the last bit: each row is scored by the functions that score it there, and what depends on all rows, such as
whether one is too long for its square, is decided before any shard is searched.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._array import row_blocks
from matryoshka._typing import Array
from matryoshka.retrieval import _prefix, _rerank, engine
from matryoshka.retrieval._arguments import Arguments
from matryoshka.retrieval._rows import HostRows, Rows
from matryoshka.retrieval._scores import Sums
from matryoshka.retrieval._top_k import keep_best, take_along, top_k
from matryoshka.retrieval.corpus import Corpus, _check_rows, _of_parts, _search_dims
from matryoshka.retrieval.funnel import Funnel

__all__ = ["Candidates", "Outline", "Shard", "ShardedCorpus"]

_NUMBERS, _CANDIDATES = 1 << 20, 1 << 22
"""Numbers of queries that are sent at once, and candidates that they find."""


class Candidates(NamedTuple):
    """Rows that queries have found, and what a wider stage goes on with: 12 bytes each in float32, 16 for "cosine".

    Attributes
    ----------
    ids : array (n_queries, m)
        In ascending order; -1 is padding.
    sums : Sums
        What the columns so far add up to; nothing of rows that were named and not yet compared.
    lengths : array (n_queries,) or None
        Of the queries up to there, for "cosine".
    """

    ids: np.ndarray
    sums: Sums = Sums()
    lengths: np.ndarray | None = None

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """Put the lists of neighbouring shards side by side, in their order."""
        ids, sums, lengths = zip(*parts, strict=True)
        return cls(np.concatenate(ids, axis=1), Sums.join(sums, np, axis=1), lengths[0])

    @property
    def scores(self) -> np.ndarray:
        """Scores (n_queries, m) at the width so far, -inf for padding."""
        scores: np.ndarray = self.sums.scores(self.lengths, np)
        return np.where(self.ids < 0, scores.dtype.type(-np.inf), scores)

    def best(self, keep: int) -> Candidates:
        """Keep the best of each query: by score, equal scores by id."""
        return self if keep >= self.ids.shape[1] else self._pick(keep_best(self.scores, keep, np))

    def within(self, start: int, stop: int) -> Candidates:
        """Keep the rows [start, stop), numbered from there; padding comes first."""
        own = (self.ids >= start) & (self.ids < stop)
        most = int(own.sum(axis=1).max(initial=0))
        last = np.argsort(own, axis=1, kind="stable")[:, own.shape[1] - most :]
        return self._replace(ids=np.where(own, self.ids - start, -1))._pick(last)

    def ranked(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and ids (n_queries, at most k), best first."""
        scores = self.scores
        best = top_k(scores, min(k, scores.shape[1]), np)
        return take_along(scores, best, np), take_along(self.ids, best, np)

    def _pick(self, positions: np.ndarray) -> Candidates:
        return Candidates(take_along(self.ids, positions, np), self.sums.take(positions, np), self.lengths)


class Outline(NamedTuple):
    """What must be known of every shard before one of them is searched.

    Attributes
    ----------
    shape : (int, int)
        Rows and columns.
    dtype : numpy.dtype
        As they are stored.
    longest : float
        Squared length of the longest row.
    safe : bool
        Whether all rows can be squared as they are.
    bad : list of int
        The first few rows that are not finite.
    n_bad : int
        How many there are.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    longest: float
    safe: bool
    bad: list[int]
    n_bad: int

    @classmethod
    def join(cls, outlines: Sequence[Outline]) -> Outline:
        """Check that neighbouring shards fit each other, and outline the corpus that they make."""
        kinds = {(outline.shape[1], outline.dtype) for outline in outlines}
        if len(kinds) > 1:
            found = " and ".join(f"{width} columns of {dtype}" for width, dtype in sorted(kinds, key=str)[:2])
            msg = f"`rows` must have one width and one dtype in all parts, got {found}; convert some of them."
            raise ValueError(msg)
        (width, dtype), starts = kinds.pop(), _starts(outlines)
        return cls(
            (starts[-1], width),
            dtype,
            max(outline.longest for outline in outlines),
            all(outline.safe for outline in outlines),
            [start + i for start, outline in zip(starts, outlines, strict=False) for i in outline.bad][:5],
            sum(outline.n_bad for outline in outlines),
        )


def _starts(outlines: Iterable[Outline]) -> list[int]:
    return list(itertools.accumulate((outline.shape[0] for outline in outlines), initial=0))


class Shard:
    """Consecutive rows of a larger corpus, searched one stage at a time.

    Parameters
    ----------
    rows : array (n, dim), floating
        NumPy, in memory or mapped from a file.
    metric : {"cosine", "ip", "l2"}, default "cosine"
        The similarity.
    search_dims : sequence of int, default ()
        Widths whose blocks of prefixes are built now.
    name : str, default "rows"
        What errors call the rows, such as the path of their file.

    Raises
    ------
    TypeError, ValueError
        As for `Corpus`, but for numbers that are not finite: the `outline` tells of them.

    Notes
    -----
    It can be pickled as a `Corpus` can. `ShardedCorpus` has checked and prepared what it is asked.
    """

    def __init__(
        self, rows: np.ndarray, *, metric: str = "cosine", search_dims: Sequence[int] = (), name: str = "rows"
    ) -> None:
        if not isinstance(rows, np.ndarray):
            msg = f"`{name}` must be NumPy arrays in all parts, got {type(rows).__name__}; convert them."
            raise TypeError(msg)
        _check_rows(rows, rows, name, np)
        self._metric, self._search_dims = metric, _search_dims(search_dims, rows.shape[1])
        self._rows = HostRows(rows)
        seen = _prefix.look(self._rows, self._search_dims, metric)
        longest = float(np.max(seen.squares))
        self.outline = Outline(self._rows.shape, rows.dtype, longest, seen.safe, seen.bad[:5], len(seen.bad))
        self._corpus = self._made(_prefix.known(self._rows, self._search_dims, metric, seen))

    def scaled(self) -> Shard:
        """Return the same rows, each divided by its largest number: for a corpus with some that cannot be squared."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin._corpus = self._made(_prefix.scaled(self._rows, self._search_dims, self._metric))
        return twin

    def _made(self, known: tuple[Rows, dict[int, _prefix.Prefix]]) -> Corpus:
        return _of_parts(Corpus, np.empty(0, self._rows.array.dtype), self._metric, *known, {})

    def __sizeof__(self) -> int:
        return self._corpus.nbytes.memory

    def search(self, queries: np.ndarray, dim: int, keep: int, start: int) -> Candidates:
        """Find the best rows at one width.

        Parameters
        ----------
        queries : array (n_queries, dim of the rows)
            As a `ShardedCorpus` prepares them.
        dim : int
            Leading columns to compare.
        keep : int
            Rows per query; all where there are fewer.
        start : int
            Number of the first row within the whole corpus.

        Returns
        -------
        Candidates
            By their numbers within the whole corpus.

        Raises
        ------
        ValueError
            Rows are mapped from a file that became shorter: to read on would end the process.
        """
        corpus = self._corpus
        self._rows.check()
        count, prefix, found = min(keep, len(corpus)), corpus._prefix(dim), []
        for part in corpus._parts(len(queries), count):
            near = Candidates(corpus._first_stage(prefix, queries[part], count))
            found.append(self._compared(queries[part], near, (0, dim)).best(keep))
        ids, sums, _ = zip(*found, strict=True)
        lengths = _rerank.lengths_of(queries, dim, self._metric, np)
        return _numbered(Candidates(np.concatenate(ids), Sums.join(sums, np, axis=0), lengths), start)

    def rerank(
        self, queries: np.ndarray, found: Candidates, columns: tuple[int, int], keep: int, start: int
    ) -> Candidates:
        """Compare those of the candidates that lie here in more columns.

        Parameters
        ----------
        queries, keep, start
            As for `search`.
        found : Candidates
            What all shards have found.
        columns : (int, int)
            The first of the columns to add, up to which there are sums, and the one after the last.

        Returns
        -------
        Candidates
            The best of them, by their numbers within the whole corpus.

        Raises
        ------
        ValueError
            As for `search`.
        """
        self._rows.check()
        own = found.within(start, start + len(self._corpus))
        return _numbered(self._compared(queries, own, columns).best(keep), start)

    def _compared(self, queries: np.ndarray, found: Candidates, columns: tuple[int, int]) -> Candidates:
        sums = _rerank.add_columns(self._corpus._rows, self._metric, queries, found.ids, slice(*columns), found.sums)
        return Candidates(found.ids, sums, _rerank.lengths_of(queries, columns[1], self._metric, np))


def _numbered(found: Candidates, start: int) -> Candidates:
    return found._replace(ids=np.where(found.ids < 0, -1, found.ids + start))


class ShardedCorpus(ABC):
    """A corpus that leaves to an engine where its shards lie and what runs there.

    Parameters
    ----------
    outlines : sequence of Outline
        Of all shards, in their order.
    metric : {"cosine", "ip", "l2"}
        The similarity.

    Raises
    ------
    ValueError
        The shards do not fit each other, or their rows are none of a `Corpus`.
    """

    def __init__(self, outlines: Sequence[Outline], *, metric: str) -> None:
        whole = Outline.join(outlines)
        _checks.no_bad_rows(whole.bad, whole.shape[0], "rows", count=whole.n_bad)
        outlined = HostRows(np.broadcast_to(whole.dtype.type(0), whole.shape))
        longest = np.asarray([whole.longest], outlined.dtype)
        if metric != "cosine":
            length = math.sqrt(whole.longest)
            _prefix.check_lengths(length, outlined.dtype, metric, np, safe=whole.safe, name="rows")
        self._arguments = Arguments(outlined.knowing(scale=None, squares=longest), metric, np.empty(0, whole.dtype), np)
        self._starts = tuple(_starts(outlines)[:-1])

    @property
    def metric(self) -> str:
        """The similarity: "cosine", "ip" or "l2"."""
        return self._arguments.metric

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._arguments.rows.shape[1]

    @property
    def search_dims(self) -> None:
        """Widths at which funnels may start: any."""
        return

    @property
    def codes(self) -> tuple[str]:
        """How a first stage compares: in numbers. A code is centred at the mean of all rows, which no shard knows."""
        return ("float",)

    def __len__(self) -> int:
        return self._arguments.rows.shape[0]

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({len(self)} x {self.dim} in {len(self._starts)} shards, metric={self.metric!r})"

    def search(
        self, queries: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` rows most similar to each query, where they lie.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            NumPy, in the dtype of the rows or in the one they are computed with.
        k : int
            Results per query, at least 1, and at most the last list of the funnel.
        dim : int, optional
            Compare the first `dim` columns only, exactly.
        funnel : Funnel, optional
            Search at its first width and rerank at the others. With neither this nor `dim` the search is exact at full
            width.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `Corpus.search` on all rows, to the last bit.

        Raises
        ------
        TypeError, ValueError
            As for `Corpus.search`, or the funnel starts in bits.
        """
        rows = self._arguments.queries(queries)
        stages = engine.stages(self.dim, len(rows), k, dim=dim, funnel=funnel, codes=self.codes)
        return self._in_parts(rows, stages, None)

    def rerank(
        self, queries: Array, ids: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Order candidates by their similarity to the query, where they lie.

        Parameters
        ----------
        queries, ids, k, dim, funnel
            As for `Corpus.rerank`, in NumPy.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `Corpus.rerank` on all rows, to the last bit.

        Raises
        ------
        TypeError, ValueError
            As for `Corpus.rerank`.
        """
        rows = self._arguments.queries(queries)
        given = self._arguments.candidates(ids, self._arguments.like, len(rows))
        stages = engine.stages(self.dim, len(rows), k, dim=dim, funnel=funnel, given=True)
        return self._in_parts(rows, stages.later, given)

    def _in_parts(
        self, queries: np.ndarray, stages: engine.Stages, given: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        most = min(stages.lists[0], len(self)) if given is None else given.shape[1]
        size = max(1, min(_NUMBERS // self.dim, _CANDIDATES // max(1, most)))
        parts = row_blocks(len(queries), size)
        found = [self._run(queries[at], stages, None if given is None else Candidates(given[at])) for at in parts]
        return self._arguments.results(found, stages.lists[-1])

    @abstractmethod
    def _run(
        self, queries: np.ndarray, stages: engine.Stages, given: Candidates | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Send queries through all stages, the first a search unless candidates are given; return them ranked."""
