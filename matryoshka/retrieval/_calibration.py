"""Choose a funnel: candidates from some queries, and a test of whole funnels on others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from matryoshka import _checks, costs
from matryoshka._array import namespace, take_rows
from matryoshka._promises import betting
from matryoshka._promises.certificates import RecallCertificate
from matryoshka._promises.walk import walk
from matryoshka._typing import Array
from matryoshka._values import pareto_front
from matryoshka.retrieval._candidates import QUERIES, Candidate, Shaping, members
from matryoshka.retrieval._clock import Clock
from matryoshka.retrieval._question import Question
from matryoshka.retrieval.corpus import Corpus
from matryoshka.retrieval.funnel import Funnel, FunnelPoint, Searchable

_MARGIN = 0.9
"""Share of the time of the exact search below which a funnel is of use: the model of times is no finer."""

_LOST = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the true neighbours that a candidate may lose over all its stages, on the queries that shape it."""

_LOST_OF_BOUND = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""The same, as parts of what a promised recall leaves."""

_ENOUGH = 0.25
"""Share of the promised loss: a candidate that loses no more on the queries that shaped it may be tested first."""

_TESTED = 6
"""Candidates that are tested, at most."""

_LONGER = 2
"""How many times as long the lists are that are tested first: what loses little on the queries that shaped it may lose
more on others."""


class _Steps:
    """Tells of progress: a step for the exact search, for each start, and for each funnel tested."""

    def __init__(self, question: Question, tests: int) -> None:
        self._tell, self._done, self._total = question.progress, 0, 1 + len(question.starts) + tests

    def next(self) -> None:
        """Tell that one more is done."""
        self._done += 1
        if self._tell is not None:
            self._tell(self._done, self._total)

    def finish(self) -> None:
        """Tell that no more are needed."""
        if self._done < self._total:
            self._done = self._total - 1
            self.next()


class _Price(NamedTuple):
    """What the exact search costs, what a funnel does, and what a funnel must stay below to be of use."""

    exact: float
    of: Callable[[Funnel], float]
    limit: float

    @classmethod
    def agreed(cls, question: Question, queries: Array, *, owner: Searchable) -> _Price:
        """Count, or measure and keep the times with the owner."""
        if question.cost == "multiply_adds":
            n = len(question.corpus)
            exact = costs.search(n, question.corpus.dim)
            return cls(exact, lambda funnel: funnel.multiply_adds(n), exact)
        clock = Clock(question.corpus, queries, question.batch_size, question.k, dims=question.dims, owner=owner)
        return cls(clock.exact(), clock.funnel, _MARGIN * clock.exact())


def pareto(question: Question, queries: Array) -> list[FunnelPoint]:
    """Return the candidates that no other one beats in both cost and recall, cheapest first, the exact search last."""
    steps, copied, n = _Steps(question, 0), _on_a_copy(question), len(question.corpus)
    exact = copied.exact(queries, least=1)
    steps.next()
    price = _Price.agreed(copied, queries, owner=question.corpus)
    found, _ = _candidates(copied, queries, exact, None, price, steps)
    front = pareto_front(found, lambda candidate: (candidate.cost, candidate.recall))
    timed = question.cost == "time"
    return [
        FunnelPoint(funnel, recall, funnel.multiply_adds(n), cost if timed else None)
        for cost, recall, funnel in (*front, Candidate(price.exact, 1.0, Funnel((question.corpus.dim,))))
    ]


def certify(question: Question, queries: Array, *, recall: float, delta: float, seed: int) -> RecallCertificate:
    """Choose candidates on one half of the queries and test them on the other, from the safest to the cheapest."""
    recall = _checks.real(recall, "recall", minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
    delta = _checks.real(delta, "delta", minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
    rng = np.random.default_rng(_checks.seed(seed))
    corpus, steps, question = question.corpus, _Steps(question, 2 + _TESTED), _on_a_copy(question)
    # At least one to choose by, and one to test with.
    (choice, chosen_by), (test, tested_by) = _halves(queries, question.exact(queries, least=2), rng)
    steps.next()
    price = _Price.agreed(question, choice, owner=corpus)
    found, best_recall = _candidates(question, choice, chosen_by, recall, price, steps)
    recalls: list[float] = []

    def test_recall(funnel: Funnel) -> float:
        shares = members(question.found(test, funnel), tested_by).mean(axis=1)
        recalls.append(float(shares.mean()))
        steps.next()
        return betting.p_value(1 - shares, 1 - recall, delta)

    safest_first = _to_test(found, recall, price, question.longest)
    p_values, chosen = walk(safest_first, test_recall, delta)
    best = Funnel((corpus.dim,)) if chosen is None else safest_first[chosen]
    _adopt(corpus, question.corpus, best)
    steps.finish()
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
        code=best.code,
        cost=question.cost,
        batch_size=question.batch_size if question.cost == "time" else None,
        best_recall=best_recall if not found and 0 <= best_recall < recall else None,
    )


def _halves(
    queries: Array, exact: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[Array, np.ndarray], tuple[Array, np.ndarray]]:
    """Split queries and their neighbours at random, the larger half last."""
    rows = rng.permutation(len(exact))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    xp = namespace(("queries", queries))
    return (take_rows(queries, first, xp), exact[first]), (take_rows(queries, second, xp), exact[second])


def _candidates(
    question: Question,
    queries: Array,
    exact: np.ndarray,
    recall: float | None,
    price: _Price,
    steps: _Steps,
) -> tuple[list[Candidate], float]:
    """Return the funnels that are worth their cost, shaped on an even share of the queries, for a recall or for any.

    Beside them the largest share of the true neighbours that was in a first stage worth its cost, -1 without one.
    """
    size = min(len(exact), QUERIES)
    rows = np.arange(size) * len(exact) // size
    shaping = take_rows(queries, rows, namespace(("queries", queries)))
    lost = _LOST if recall is None else [part * (1 - recall) for part in _LOST_OF_BOUND]
    enough = 1.0 if recall is None else _enough(recall)
    shaped = Shaping(question, shaping, exact[rows], lost=lost, enough=enough, cost=price.of, limit=price.limit)
    return shaped.candidates(steps.next), shaped.reached


def _to_test(found: Sequence[Candidate], recall: float, price: _Price, longest: int) -> list[Funnel]:
    """Return the funnels to test, the safest first.

    Of those that lose little it is the one whose lists can be twice as long at the least cost, first with these. What
    costs less and reaches the recall follows, a few of many, spread evenly by their cost. Where none reaches it,
    the certificate tells how far the best is.
    """
    if not found:
        return []

    def longer(funnel: Funnel) -> Funnel:
        return Funnel(funnel.dims, [min(_LONGER * count, longest) for count in funnel.keep], code=funnel.code)

    enough = min(_enough(recall), max(candidate.recall for candidate in found))
    safe = [candidate for candidate in found if candidate.recall >= enough]
    safest = min(safe, key=lambda candidate: price.of(longer(candidate.funnel)))
    roomy = [funnel] if price.of(funnel := longer(safest.funnel)) < price.limit else []
    front = pareto_front(found, lambda candidate: (candidate.cost, candidate.recall))
    cheaper = [candidate for candidate in front if candidate.cost < safest.cost and candidate.recall >= recall]
    if len(cheaper) > _TESTED:
        levels = np.geomspace(cheaper[0].cost, cheaper[-1].cost, _TESTED) * (1 + 1e-9)
        at = np.searchsorted([candidate.cost for candidate in cheaper], levels, side="right") - 1
        cheaper = [cheaper[i] for i in sorted(set(at.tolist()))]
    return list(dict.fromkeys([*roomy, safest.funnel, *(candidate.funnel for candidate in cheaper[::-1])]))


def _enough(recall: float) -> float:
    """Return the recall on some queries with which the test on others may start."""
    return 1 - _ENOUGH * (1 - recall)


def _adopt(corpus: Searchable, copied: Searchable, funnel: Funnel) -> None:
    """Let a `Corpus` keep what its copy has built for the funnel."""
    if isinstance(corpus, Corpus) and isinstance(copied, Corpus):
        corpus._adopt(copied, funnel.dims[0], funnel.code)


def _on_a_copy(question: Question) -> Question:
    """Return the question for a copy of a `Corpus`: the blocks of prefixes that are built on the way go with it."""
    corpus = copy.copy(question.corpus) if isinstance(question.corpus, Corpus) else question.corpus
    return replace(question, corpus=corpus)
