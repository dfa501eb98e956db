"""Choose a funnel: candidates from some queries, and a test of whole funnels on others."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from matryoshka import _checks
from matryoshka._array import namespace, take_rows, to_numpy
from matryoshka._promises import betting
from matryoshka._promises.certificates import RecallCertificate
from matryoshka._promises.walk import walk
from matryoshka._typing import Array
from matryoshka._values import pareto_front
from matryoshka.nesting import Nesting
from matryoshka.retrieval.corpus import Corpus
from matryoshka.retrieval.funnel import Funnel, FunnelPoint, Searchable

_BUDGETS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the true neighbours that a candidate may lose over all its stages, on the queries that shape it."""


@dataclass(frozen=True)
class Question:
    """Which funnels are looked for: on what, for how many results, with which widths and lists."""

    corpus: Searchable
    k: int
    dims: tuple[int, ...]
    longest: int

    @classmethod
    def of(cls, corpus: Searchable, k: int, dims: Sequence[int] | None, longest: int) -> Question:
        """Check the arguments; the last width must be that of the corpus, which the exact search has."""
        if not isinstance(corpus, Searchable):
            msg = (
                f"`corpus` must be a Corpus, got {type(corpus).__name__}; "
                "build one of the embeddings, or pass another Searchable."
            )
            raise TypeError(msg)
        if corpus.dim in (_starts(corpus) or ()):
            msg = (
                f"`corpus` must start funnels below its full width of {corpus.dim} only, got {corpus.search_dims}: at "
                "the full width its search is not exact, which a certificate falls back on; index a prefix."
            )
            raise ValueError(msg)
        k = _checks.integer(k, "k", minimum=1, maximum=len(corpus))
        longest = _checks.integer(longest, "longest", minimum=k)
        widths = _default_dims(corpus) if dims is None else _checks.dims(dims)
        _checks.dims_within(widths, corpus.dim, "dims", of="corpus")
        if widths[-1] != corpus.dim:
            msg = f"`dims` must end with the width of the corpus, {corpus.dim}, got {widths}; add it."
            raise ValueError(msg)
        question = cls(corpus, k, widths, min(longest, len(corpus)))
        if len(widths) > 1 and not question.starts:
            msg = (
                f"`dims` must hold a width at which `corpus` may start, of {corpus.search_dims}, got {widths}; add one."
            )
            raise ValueError(msg)
        return question

    @property
    def starts(self) -> list[int]:
        """Widths below the full one at which a funnel may start."""
        allowed = _starts(self.corpus)
        return [dim for dim in self.dims[:-1] if allowed is None or dim in allowed]

    def exact(self, queries: Array, least: int) -> np.ndarray:
        """Return the exact neighbours (n_queries, k) of at least so many queries."""
        namespace(("queries", queries))
        _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
        if queries.shape[0] < least:
            msg = f"`queries` must be at least {least}, got {queries.shape[0]}; pass more."
            raise ValueError(msg)
        ids = self.found(queries)
        if (ids < 0).any():
            msg = f"`corpus` must find {self.k} rows for each query in an exact search, got fewer; choose a smaller k."
            raise ValueError(msg)
        return ids

    def found(self, queries: Array, funnel: Funnel | None = None) -> np.ndarray:
        """Return what the queries find (n_queries, k), exactly or through a funnel."""
        return to_numpy(self.corpus.search(queries, self.k, funnel=funnel)[1])


def pareto(question: Question, queries: Array) -> list[FunnelPoint]:
    """Return the candidates that no other one beats in both cost and recall, cheapest first, the exact search last."""
    question = _on_a_copy(question)
    return _pareto(question, queries, question.exact(queries, least=1))


def certify(question: Question, queries: Array, *, recall: float, delta: float, seed: int) -> RecallCertificate:
    """Choose candidates on one half of the queries and test them on the other, from the safest to the cheapest."""
    recall = _checks.real(recall, "recall", minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
    delta = _checks.real(delta, "delta", minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
    rng = np.random.default_rng(_checks.seed(seed))
    corpus, question = question.corpus, _on_a_copy(question)
    exact = question.exact(queries, least=2)  # one to choose by, one to test with
    half, rows = len(exact) // 2, rng.permutation(len(exact))
    choice, test = (take_rows(queries, part, namespace(("queries", queries))) for part in (rows[:half], rows[half:]))
    *cheaper, exact_search = (point.funnel for point in _pareto(question, choice, exact[rows[:half]]))
    recalls: list[float] = []

    def test_recall(funnel: Funnel) -> float:
        found = _members(question.found(test, funnel), exact[rows[half:]]).mean(axis=1)
        recalls.append(float(found.mean()))
        return betting.p_value(1 - found, 1 - recall, delta)

    safest_first = cheaper[::-1]
    p_values, chosen = walk(safest_first, test_recall, delta)
    best = exact_search if chosen is None else safest_first[chosen]
    if isinstance(corpus, Corpus) and isinstance(question.corpus, Corpus):
        corpus._adopt(question.corpus, best.dims[0])
    return RecallCertificate(
        dims=best.dims,
        keep=best.keep,
        recall=recall,
        delta=delta,
        k=question.k,
        n_rows=len(corpus),
        metric=corpus.metric,
        n_queries=test.shape[0],
        n_choice_queries=choice.shape[0],
        p_values=p_values,
        recalls=tuple(recalls),
        chosen=chosen,
        queries_needed=betting.draws_needed(1 - recall, delta),
    )


def _starts(corpus: Searchable) -> tuple[int, ...] | None:
    return None if isinstance(corpus, Corpus) else corpus.search_dims


def _default_dims(corpus: Searchable) -> tuple[int, ...]:
    halved = Nesting.halving(corpus.dim, smallest=min(8, corpus.dim)).dims
    return tuple(sorted({*halved, *(_starts(corpus) or ())}))


def _on_a_copy(question: Question) -> Question:
    """Return the question for a copy of a `Corpus`: the blocks of prefixes that are built on the way go with it."""
    corpus = copy.copy(question.corpus) if isinstance(question.corpus, Corpus) else question.corpus
    return Question(corpus, question.k, question.dims, question.longest)


def _pareto(question: Question, queries: Array, exact: np.ndarray) -> list[FunnelPoint]:
    n, dim = len(question.corpus), question.corpus.dim
    single = Funnel((dim,), ())
    last = FunnelPoint(single, 1.0, single.multiply_adds(n))
    points = [last]
    for start in question.starts:
        perfect = min(point.multiply_adds for point in points if point.recall == 1.0)
        if start * n < perfect:  # what starts wider costs more than what finds everything already
            points += _shaped(question, queries, exact, start)
    front = pareto_front(points, lambda point: (point.multiply_adds, point.recall))
    return [*(point for point in front if point.multiply_adds < last.multiply_adds), last]


def _shaped(question: Question, queries: Array, exact: np.ndarray, start: int) -> Iterator[FunnelPoint]:
    """Give funnels that search at `start`, with their recall on the queries that shaped them.

    All lists are read off one table: where each of the `longest` best rows at `start` ranks at every wider prefix, and
    which of them are true neighbours.
    """
    corpus, k = question.corpus, question.k
    found = corpus.search(queries, question.longest, funnel=Funnel((start,), ()))[1]
    ids = to_numpy(found)
    relevant = _members(ids, exact)
    wider = [dim for dim in question.dims if dim > start]
    ranks = {start: np.broadcast_to(np.arange(ids.shape[1]), ids.shape)}
    for dim in wider:
        ranks[dim] = _ranks(ids, to_numpy(corpus.rerank(queries, found, ids.shape[1], dim=dim)[1]))
    chains = [wider[:length] for length in range(len(wider))]
    for chain, budget in itertools.product(chains, _BUDGETS):
        dims = (start, *chain, corpus.dim)
        keep = _lists([ranks[dim] for dim in dims[:-1]], relevant, budget / (len(dims) - 1), k)
        if keep is not None:
            funnel = Funnel(dims, keep)
            recall = _simulated([ranks[dim] for dim in dims], keep, relevant, k)
            yield FunnelPoint(funnel, recall, funnel.multiply_adds(len(corpus)))


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


def _simulated(ranks: Sequence[np.ndarray], keep: Sequence[int], relevant: np.ndarray, k: int) -> float:
    """Run a funnel on the table of ranks and return its recall@k."""
    alive = np.broadcast_to(np.arange(keep[0]), (relevant.shape[0], keep[0]))
    for at_width, count in zip(ranks[1:], (*keep[1:], k), strict=True):
        chosen = np.argpartition(np.take_along_axis(at_width, alive, axis=1), count - 1, axis=1)[:, :count]
        alive = np.take_along_axis(alive, chosen, axis=1)
    return float(np.take_along_axis(relevant, alive, axis=1).mean())


def _members(ids: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Tell for each id, -1 being none, whether it is among the exact neighbours of the same query."""
    rows = np.arange(ids.shape[0])[:, None] * (int(exact.max()) + 1)  # an id of another query is another number
    return np.isin(np.where((ids >= 0) & (ids <= exact.max()), rows + ids, -1), rows + exact)
