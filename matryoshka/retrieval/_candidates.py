"""Shape funnels on some queries: at which widths, with lists how long, at what cost, and what they find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from matryoshka._array import from_numpy, namespace, to_numpy
from matryoshka._typing import Array
from matryoshka.retrieval._question import Question
from matryoshka.retrieval.funnel import Funnel

QUERIES = 256
"""Queries that shape funnels, at most."""

_PILOTS = 64
"""So many of these queries are searched first, to find out how long a list must be."""

_STEPS = {"float": 4, "bits": 2}
"""By which factor a list grows until it holds enough of the true neighbours. A search in codes returns its list without
an order, so that there only lists of these lengths can be told apart."""

_SAVED = 0.9
"""A funnel is looked at beside one that finds enough only if it costs at most this share of it."""


class Candidate(NamedTuple):
    """A funnel, what it costs, and its recall on the queries that shaped it."""

    cost: float
    recall: float
    funnel: Funnel


class Shaping:
    """The search for funnels that are worth their cost on some queries.

    Parameters
    ----------
    question : Question
        Which funnels are looked for.
    queries : array (n_queries, dim)
        What they are shaped on.
    exact : array (n_queries, k)
        The true neighbours.
    lost : sequence of float
        Shares of the true neighbours that a funnel may lose over all its stages, in ascending order, the first 0.
    enough : float
        Recall of a funnel that rules out those which cost more.
    cost : callable
        What a funnel costs.
    limit : float
        What a funnel must stay below.
    """

    def __init__(
        self,
        question: Question,
        queries: Array,
        exact: np.ndarray,
        *,
        lost: Sequence[float],
        enough: float,
        cost: Callable[[Funnel], float],
        limit: float,
    ) -> None:
        self._question, self._queries, self._exact = question, queries, exact
        self._lost, self._enough, self._cost, self._limit = lost, enough, cost, limit
        self._found: list[Candidate] = []
        self.reached = -1.0  # largest share of the true neighbours in a first stage worth its cost; -1 without one

    def candidates(self, step: Callable[[], object]) -> list[Candidate]:
        """Return the funnels that are worth their cost; `step` is called after each start."""
        for start, code in self._question.starts:
            self._shape(start, code)
            step()
        return self._found

    def _shape(self, start: int, code: str) -> None:
        """Add funnels that begin with a search at `start`.

        All lists are read off one table: where each of the best rows at `start` ranks at every wider prefix, and which
        of them are true neighbours.
        """
        question = self._question
        narrow = [dim for dim in question.dims[:-1] if dim > start or (dim == start and code != "float")]
        table = self._first_stage(start, code, narrow)
        if table is None:
            return
        if code == "float":
            self._add(Funnel((start,)), float(table.relevant[:, : question.k].sum()))
        ranks, lost = [table.ranks], self._lost
        for depth in range(len(narrow) + 1):
            dims = (start, *narrow[:depth], question.dims[-1])
            lists = {share: _lists(ranks, table.relevant, share / (depth + 1), question.k) for share in lost}
            lost = [share for share, keep in lists.items() if keep is not None]
            plans = [Funnel(dims, keep, code=code) for keep in dict.fromkeys(lists.values()) if keep is not None]
            for plan in plans:
                self._add(plan, _simulated(ranks, plan.keep, table.relevant))
            if depth == len(narrow) or not any(self._may_go_deeper(plan, narrow[depth]) for plan in plans):
                return
            ranks.append(_ranks(table.ids, self._reranked(table.ids, narrow[depth])))

    def _add(self, funnel: Funnel, found: float) -> None:
        """Take a funnel that costs less than the limit; one that finds enough lowers it for the others."""
        cost, recall = self._cost(funnel), found / self._exact.size
        if cost < self._limit:
            self._found.append(Candidate(cost, recall, funnel))
            if recall >= self._enough:
                self._limit = _SAVED * cost

    def _may_go_deeper(self, plan: Funnel, dim: int) -> bool:
        """Tell whether one more stage could pay: one that leaves only the results."""
        *dims, last = plan.dims
        deeper = self._cost(Funnel((*dims, dim, last), (*plan.keep, self._question.k), code=plan.code))
        return deeper < min(self._limit, _SAVED * self._cost(plan))

    def _first_stage(self, start: int, code: str, narrow: Sequence[int]) -> _Table | None:
        """Search for lists as long as is worth their cost; None if no list holds enough."""
        n_queries = len(self._exact)
        lengths = self._lengths(start, code, narrow)
        if not lengths:
            return None
        ids = self._searched(start, code, lengths[-1], n_queries)
        ranks = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        if code != "float":
            ranks = np.full(ids.shape, ids.shape[1] - 1)
            for shorter in reversed(lengths[:-1]):
                ranks[members(ids, self._searched(start, code, shorter, n_queries))] = shorter - 1
            order = np.argsort(ranks, axis=1, kind="stable")
            ids, ranks = (np.take_along_axis(array, order, axis=1) for array in (ids, ranks))
        relevant = members(ids, self._exact)
        self.reached = max(self.reached, float(relevant.sum() / self._exact.size))
        lists = [
            keep[0] for share in self._lost if (keep := _lists([ranks], relevant, share, self._question.k)) is not None
        ]
        longest = max((count for count in lists if self._least(start, code, narrow, count) < self._limit), default=0)
        return _Table(ids[:, :longest], ranks[:, :longest], relevant[:, :longest]) if longest else None

    def _lengths(self, start: int, code: str, narrow: Sequence[int]) -> list[int]:
        """Return ever longer lists, from the first that holds enough for some funnel on to where it pays no more."""
        question, exact, held = self._question, self._exact[:_PILOTS], dict[int, float]()
        length = min(_STEPS[code] * question.k, question.longest)
        while length not in held and self._least(start, code, narrow, length) < self._limit:
            held[length] = float(members(self._searched(start, code, length, len(exact)), exact).sum() / exact.size)
            if held[length] >= min(self._enough, 1 - self._lost[1]):
                break
            length = min(_STEPS[code] * length, question.longest)
        enough = [length for length, share in held.items() if share >= 1 - 1.5 * self._lost[-1]]
        if not enough:
            self.reached = max([self.reached, *held.values()])
        return enough

    def _least(self, start: int, code: str, narrow: Sequence[int], length: int) -> float:
        """Return what the cheapest funnel costs whose first list is so long."""
        dims, keep = (start, *narrow[:1], self._question.dims[-1]), (length, self._question.k)[: len(narrow[:1]) + 1]
        return self._cost(Funnel(dims, keep, code=code))

    def _searched(self, start: int, code: str, length: int, count: int) -> np.ndarray:
        """Return what the first so many queries find in a search at one width."""
        funnel = Funnel((start,), code=code)
        return to_numpy(self._question.corpus.search(self._queries[:count, :], length, funnel=funnel)[1])

    def _reranked(self, ids: np.ndarray, dim: int) -> np.ndarray:
        xp = namespace(("queries", self._queries))
        given = from_numpy(ids, like=self._queries, xp=xp)
        return to_numpy(self._question.corpus.rerank(self._queries, given, ids.shape[1], dim=dim)[1])


@dataclass(frozen=True)
class _Table:
    """The best rows of a first stage: ids, their places there, and which are true neighbours, each (n_queries, m)."""

    ids: np.ndarray
    ranks: np.ndarray
    relevant: np.ndarray


def _ranks(ids: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Return the place of each of `ids` (n_queries, m) in its row of `ordered`, which holds the same ids."""
    ranks = np.empty_like(ids)
    np.put_along_axis(ranks, np.argsort(ids, axis=1), np.argsort(ordered, axis=1), axis=1)
    return ranks


def _lists(ranks: Sequence[np.ndarray], relevant: np.ndarray, budget: float, k: int) -> tuple[int, ...] | None:
    """Return the shortest lists that each lose at most a share `budget` of the true neighbours; None if none can."""
    n_true, keep = relevant.shape[0] * k, []
    kept = math.ceil((1 - budget) * n_true)
    for at_width in ranks:
        reached = np.sort(at_width[relevant])
        if kept > reached.size:
            return None
        keep.append(max(k, int(reached[kept - 1]) + 1))
    return tuple(itertools.accumulate(keep, min))


def _simulated(ranks: Sequence[np.ndarray], keep: Sequence[int], relevant: np.ndarray) -> float:
    """Run a funnel on the table of ranks and return how many true neighbours reach its last stage, which finds them."""
    alive = np.broadcast_to(np.arange(keep[0]), (relevant.shape[0], keep[0]))
    for at_width, count in zip(ranks[1:], keep[1:], strict=True):
        chosen = np.argpartition(np.take_along_axis(at_width, alive, axis=1), count - 1, axis=1)[:, :count]
        alive = np.take_along_axis(alive, chosen, axis=1)
    return float(np.take_along_axis(relevant, alive, axis=1).sum())


def members(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Tell for each id, -1 being none, whether it is among the wanted ones of the same query."""
    if ids.shape[1] * wanted.shape[1] > _FEW_PAIRS:
        return np.stack([np.isin(own, some) for own, some in zip(ids, wanted, strict=True)]) & (ids >= 0)
    found = np.zeros(ids.shape, bool)
    for column in wanted.T:
        found |= ids == column[:, None]
    return found & (ids >= 0)


_FEW_PAIRS = 1 << 16
"""Pairs of an id and a wanted one up to which it is faster to compare all of them than to sort both."""
