"""Choose a funnel: candidates from some queries, and a test of whole funnels on others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from matryoshka import _checks, costs
from matryoshka._array import namespace, take_rows, to_numpy
from matryoshka._promises import betting
from matryoshka._promises.certificates import COSTS, RecallCertificate
from matryoshka._promises.walk import walk
from matryoshka._typing import Array
from matryoshka._values import pareto_front
from matryoshka.nesting import Nesting
from matryoshka.retrieval._candidates import QUERIES, Candidate, Shaping, Space, members
from matryoshka.retrieval._clock import Clock
from matryoshka.retrieval.corpus import Corpus
from matryoshka.retrieval.funnel import Funnel, FunnelPoint, Searchable

_MARGIN = 0.9
"""Part of the time of the exact search that a funnel may take: what is closer, the model does not tell apart."""

_LOST = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the true neighbours that a candidate may lose over all its stages, on the queries that shape it."""

_LOST_OF_BOUND = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""The same, as parts of what a promised recall leaves."""

_ENOUGH = 0.25
"""Part of the neighbours that a promise may lose; what loses less on some queries may start the test on others."""

_TESTED = 6
"""Candidates that are tested, at most."""

_LONGER = 2
"""How many times as long the lists are that are tested first: what loses little on the queries that shaped it may lose
more on others."""


@dataclass(frozen=True)
class Question:
    """Which funnels are looked for: on what, for how many results, with which widths and lists, by which cost."""

    corpus: Searchable
    k: int
    dims: tuple[int, ...]
    longest: int
    cost: str
    batch_size: int
    progress: Callable[[int, int], object] | None

    @classmethod
    def of(
        cls,
        corpus: Searchable,
        k: int,
        *,
        dims: Sequence[int] | None,
        longest: int,
        cost: str,
        batch_size: int,
        progress: Callable[[int, int], object] | None,
    ) -> Question:
        """Check the arguments; the last width must be that of the corpus, which the exact search has."""
        _check(corpus)
        k = _checks.integer(k, "k", minimum=1, maximum=len(corpus))
        longest = _checks.integer(longest, "longest", minimum=k)
        widths = _default_dims(corpus) if dims is None else _checks.dims(dims)
        _checks.dims_within(widths, corpus.dim, "dims", of="corpus")
        if widths[-1] != corpus.dim:
            msg = f"`dims` must end with the width of the corpus, {corpus.dim}, got {widths}; add it."
            raise ValueError(msg)
        cost = _checks.choice(cost, "cost", COSTS)
        if cost != "time" and "float" not in _codes(corpus):
            msg = (
                f"`cost` must be 'time' for a `corpus` that starts in {corpus.codes} only, got {cost!r}; leave it out."
            )
            raise ValueError(msg)
        batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
        if progress is not None and not callable(progress):
            msg = (
                f"`progress` must be callable, got {_checks.describe(progress)}; pass a function of two integers: how "
                "many steps are done, and of how many."
            )
            raise TypeError(msg)
        question = cls(corpus, k, widths, min(longest, len(corpus)), cost, batch_size, progress)
        if len(widths) > 1 and not question.starts:
            msg = (
                f"`dims` must hold a width at which `corpus` may start, of {corpus.search_dims}, got {widths}; add one."
            )
            raise ValueError(msg)
        return question

    @property
    def starts(self) -> list[tuple[int, str]]:
        """Widths and codes in which a funnel may start, in the order in which early ones rule out most of the others.

        A code multiplies nothing that could be counted, so that it needs the time.
        """
        allowed, codes, full = _starts(self.corpus), _codes(self.corpus), self.corpus.dim
        dims = [dim for dim in self.dims[::-1] if allowed is None or dim in allowed]
        coded = self.cost == "time" and "bits" in codes
        bits = [(dim, "bits") for dim in dims if coded and dim >= min(_checks.FEWEST_BITS, full)]
        return bits + [(dim, "float") for dim in dims if dim < full and "float" in codes]

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
    found = _candidates(copied, queries, exact, None, price, steps)
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
    exact = question.exact(queries, least=2)  # one to choose by, one to test with
    steps.next()
    (choice, chosen_by), (test, tested_by) = _halves(queries, exact, rng)
    price = _Price.agreed(question, choice, owner=corpus)
    found = _candidates(question, choice, chosen_by, recall, price, steps)
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
) -> list[Candidate]:
    """Return the funnels that are worth their cost, shaped on an even share of the queries, for a recall or for any."""
    size = min(len(exact), QUERIES)
    rows = np.arange(size) * len(exact) // size
    shaping = take_rows(queries, rows, namespace(("queries", queries)))
    space = Space(
        corpus=question.corpus,
        k=question.k,
        dims=question.dims,
        starts=question.starts,
        longest=question.longest,
        lost=_LOST if recall is None else [part * (1 - recall) for part in _LOST_OF_BOUND],
        enough=1.0 if recall is None else _enough(recall),
        cost=price.of,
        limit=price.limit,
    )
    return Shaping(space, shaping, exact[rows]).candidates(steps.next)


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


def _check(corpus: object) -> None:
    """Check that a funnel can be looked for on it, and that its exact search is exact."""
    if not isinstance(corpus, Searchable):
        msg = (
            f"`corpus` must be a Corpus, got {type(corpus).__name__}; "
            "build one of the embeddings, or pass another Searchable."
        )
        raise TypeError(msg)
    if corpus.dim in (_starts(corpus) or ()) and "float" in _codes(corpus):
        msg = (
            f"`corpus` must start funnels below its full width of {corpus.dim} only, got {corpus.search_dims}: at "
            "the full width its search is not exact, which a certificate falls back on; index a prefix."
        )
        raise ValueError(msg)


def _starts(corpus: Searchable) -> tuple[int, ...] | None:
    return None if isinstance(corpus, Corpus) else corpus.search_dims


def _codes(corpus: Searchable) -> tuple[str, ...]:
    return ("float",) if corpus.codes is None else corpus.codes


def _default_dims(corpus: Searchable) -> tuple[int, ...]:
    """Return the widths that an engine stores, which it names as `dims`, or halved ones where stages may have any."""
    stored: tuple[int, ...] | None = getattr(corpus, "dims", None)
    if stored is not None:
        return stored
    halved = Nesting.halving(corpus.dim, smallest=min(8, corpus.dim)).dims
    return tuple(sorted({*halved, *(_starts(corpus) or ())}))


def _on_a_copy(question: Question) -> Question:
    """Return the question for a copy of a `Corpus`: the blocks of prefixes that are built on the way go with it."""
    corpus = copy.copy(question.corpus) if isinstance(question.corpus, Corpus) else question.corpus
    return replace(question, corpus=corpus)
