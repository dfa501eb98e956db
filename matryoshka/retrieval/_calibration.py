"""Choose a funnel: candidates from some queries, and a test of whole funnels on others."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from matryoshka import _checks
from matryoshka._array import from_numpy, namespace, to_numpy
from matryoshka._typing import Array
from matryoshka.nesting import Nesting
from matryoshka.retrieval import _betting

if TYPE_CHECKING:
    from matryoshka.retrieval.corpus import Corpus
    from matryoshka.retrieval.funnel import Funnel

AnyFunnel = TypeVar("AnyFunnel", bound="Funnel")

_BUDGETS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of the true neighbours that a candidate may lose over all its stages, on the queries that shape it."""


@dataclass(frozen=True)
class FunnelPoint:
    """A funnel and how it did on some queries.

    Attributes
    ----------
    funnel : Funnel
        The plan.
    recall : float
        Mean share of the exact k nearest neighbours that it found.
    multiply_adds : int
        Its cost per query, as `Funnel.multiply_adds` counts it.
    """

    funnel: Funnel
    recall: float
    multiply_adds: int


@dataclass(frozen=True, repr=False)
class RecallCertificate:
    """What was promised of a funnel, and the test that it passed.

    Attributes
    ----------
    dims, keep : tuple of int
        The funnel the certificate is about: the one which carries it.
    recall : float
        Bound on the expected recall@k over queries like those tested.
    delta : float
        The promise holds with probability at least 1 - delta over the tested queries.
    k : int
        Results per query.
    n_rows : int
        Rows of the corpus; other rows need another test.
    metric : str
        Its similarity.
    n_queries : int
        Queries the funnels were tested on.
    n_choice_queries : int
        Queries, none of them among these, on which the candidates were chosen.
    p_values : tuple of float
        Of the funnels in the order of their test; the last one is the first that failed, if one did.
    recalls : tuple of float
        Mean recall@k of the same funnels on the tested queries.
    chosen : int or None
        Which of these the funnel is; None where none passed, and the funnel is the exact search.
    queries_needed : int
        Fewest tested queries on which any funnel could pass: with perfect recall on all of them.
    """

    dims: tuple[int, ...]
    keep: tuple[int, ...]
    recall: float
    delta: float
    k: int
    n_rows: int
    metric: str
    n_queries: int
    n_choice_queries: int
    p_values: tuple[float, ...]
    recalls: tuple[float, ...]
    chosen: int | None
    queries_needed: int

    @classmethod
    def from_record(cls, record: Any) -> RecallCertificate:
        """Build a certificate from the parsed JSON of `to_record`."""
        fields = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(record, dict) or sorted(record) != sorted(fields):
            msg = "`certificate` must hold exactly the fields of a certificate; pass what `to_json` of a funnel wrote."
            raise ValueError(msg)
        return cls(**record | {key: tuple(record[key]) for key in ("dims", "keep", "p_values", "recalls")})

    def to_record(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        promise = f"expected recall@{self.k} >= {self.recall:g} with probability >= {1 - self.delta:g}"
        queries = f"{self.n_queries} queries ({self.n_choice_queries} others chose the candidates)"
        if self.chosen is None:
            outcome = "only the exact search could be certified"
            if self.n_queries < self.queries_needed:
                outcome += f" (at least {self.queries_needed} are needed, so {2 * self.queries_needed} in all)"
        else:
            outcome = (
                f"p = {self.p_values[self.chosen]:.3g}, recall {self.recalls[self.chosen]:.4f}, "
                f"{len(self.p_values)} funnels tested"
            )
        return f"{promise} over {queries}: {outcome}"

    def __repr__(self) -> str:
        return f"<RecallCertificate: {self}>"


class Search(NamedTuple):
    """Which funnels to consider."""

    k: int
    dims: tuple[int, ...]
    longest: int

    @classmethod
    def of(cls, corpus: Corpus, k: int, dims: Sequence[int] | None, longest: int) -> Search:
        """Check the arguments; the last width must be that of the corpus, which the exact search has."""
        if not hasattr(corpus, "_scores_at"):
            msg = f"`corpus` must be a Corpus, got {type(corpus).__name__}; build one of the embeddings."
            raise TypeError(msg)
        k = _checks.integer(k, "k", minimum=1, maximum=len(corpus))
        longest = _checks.integer(longest, "longest", minimum=k)
        widths = Nesting.halving(corpus.dim, smallest=min(8, corpus.dim)).dims if dims is None else _checks.dims(dims)
        _checks.dims_within(widths, corpus.dim, "dims", of="corpus")
        if widths[-1] != corpus.dim:
            msg = f"`dims` must end with the width of the corpus, {corpus.dim}, got {widths}; add it."
            raise ValueError(msg)
        return cls(k, widths, min(longest, len(corpus)))


def pareto(make: type[Funnel], corpus: Corpus, queries: Array, search: Search) -> list[FunnelPoint]:
    """Return the candidates that no other one beats in both cost and recall, cheapest first, the exact search last."""
    built, single = corpus.search_dims, make((corpus.dim,), ())
    exact = to_numpy(corpus.search(queries, search.k)[1])
    last = FunnelPoint(single, 1.0, single.multiply_adds(len(corpus)))
    points = [last]
    for start in search.dims[:-1]:
        perfect = min(point.multiply_adds for point in points if point.recall == 1.0)
        if start * len(corpus) < perfect:  # what starts wider costs more than what finds everything already
            points += _candidates(make, corpus, queries, exact, search, start)
    corpus._forget(built)
    front = [point for point in _front(points) if point.multiply_adds < last.multiply_adds]
    return [*front, last]


def calibrate(
    make: type[AnyFunnel], corpus: Corpus, queries: Array, search: Search, recall: float, delta: float, seed: int
) -> AnyFunnel:
    """Choose candidates on one half of the queries and test them on the other, from the safest to the cheapest."""
    recall = _checks.real(recall, "recall", minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
    delta = _checks.real(delta, "delta", minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
    _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
    n_queries, built = queries.shape[0], corpus.search_dims
    if n_queries < 2:
        msg = f"`queries` must be at least 2, one to choose and one to test, got {n_queries}; pass more."
        raise ValueError(msg)
    order = np.random.default_rng(seed).permutation(n_queries)
    choice, test = (_pick(queries, rows) for rows in (order[: n_queries // 2], order[n_queries // 2 :]))
    front = pareto(make, corpus, choice, search)
    best, p_values, recalls, chosen = front[-1].funnel, [], [], None
    exact = to_numpy(corpus.search(test, search.k)[1])
    for point in reversed(front[:-1]):
        found = _recalls(to_numpy(corpus.search(test, search.k, funnel=point.funnel)[1]), exact)
        p_values.append(_betting.p_value(1 - found, 1 - recall, delta))
        recalls.append(float(found.mean()))
        if p_values[-1] > delta:
            break
        best, chosen = point.funnel, len(p_values) - 1
    corpus._forget((*built, best.dims[0]))
    certificate = RecallCertificate(
        dims=best.dims,
        keep=best.keep,
        recall=recall,
        delta=delta,
        k=search.k,
        n_rows=len(corpus),
        metric=corpus.metric,
        n_queries=test.shape[0],
        n_choice_queries=choice.shape[0],
        p_values=tuple(p_values),
        recalls=tuple(recalls),
        chosen=chosen,
        queries_needed=_betting.draws_needed(1 - recall, delta),
    )
    return make(best.dims, best.keep, certificate=certificate)


def _candidates(
    make: type[Funnel], corpus: Corpus, queries: Array, exact: np.ndarray, search: Search, start: int
) -> Iterator[FunnelPoint]:
    """Give funnels that search at `start`, with their recall on the queries that shaped them.

    All lists are read off one table: where each of the `longest` best rows at `start` ranks at every wider prefix, and
    which of them are true neighbours.
    """
    found = corpus.search(queries, search.longest, funnel=make((start,), ()))[1]
    wider = [dim for dim in search.dims if dim > start]
    scores = corpus._scores_at(queries, found, wider)
    ids = to_numpy(found)
    relevant = _members(ids, exact)
    ranks = {start: np.broadcast_to(np.arange(ids.shape[1]), ids.shape)}
    for dim, values in zip(wider, scores, strict=True):
        ranks[dim] = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
    chains = [wider[:length] for length in range(len(wider))]
    for chain, budget in itertools.product(chains, _BUDGETS):
        dims = (start, *chain, corpus.dim)
        keep = _lists([ranks[dim] for dim in dims[:-1]], relevant, budget / (len(dims) - 1), search.k)
        if keep is not None:
            funnel = make(dims, keep)
            recall = _simulated([ranks[dim] for dim in dims], keep, relevant, search.k)
            yield FunnelPoint(funnel, recall, funnel.multiply_adds(len(corpus)))


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


def _front(points: Sequence[FunnelPoint]) -> list[FunnelPoint]:
    """Return the points that no other one beats in both cost and recall, cheapest first."""
    front: list[FunnelPoint] = []
    for point in sorted(points, key=lambda point: (point.multiply_adds, -point.recall)):
        if not front or point.recall > front[-1].recall:
            front.append(point)
    return front


def _pick(queries: Array, rows: np.ndarray) -> Array:
    xp = namespace(("queries", queries))
    return xp.take(queries, from_numpy(rows, like=queries, xp=xp), axis=0)


def _recalls(ids: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return recall@k of each query; ids are distinct and never padded here, since k is at most the corpus."""
    return np.asarray(_members(ids, exact).mean(axis=1))


def _members(ids: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Tell for each id whether it is among the exact neighbours of the same query."""
    rows = np.arange(ids.shape[0])[:, None] * (int(exact.max()) + 1)  # an id of another query is another number
    return np.isin(np.where(ids <= exact.max(), rows + ids, -1), rows + exact)
