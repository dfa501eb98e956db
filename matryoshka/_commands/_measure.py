"""Measure plans of search on engines: what each costs by count, how long it takes, and what it finds.

Plans that start at one width are timed together, and in each round all of them and the exact search answer the same
queries in turn: a slow moment of the machine falls on all, and beside the full width only one block of prefixes is in
memory.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from matryoshka import costs, metrics
from matryoshka.retrieval import Corpus, Funnel, Searchable

if TYPE_CHECKING:
    from matryoshka.faiss import FaissCorpus

SECONDS = 0.5
"""Time for each plan and batch size, as long as there are `ROUNDS`, fewest and most."""
ROUNDS = 7, 100

FAISS_ITEMSIZE = 4
"""Bytes of a number of a row and of a link of a graph in faiss, which computes in float32 and numbers rows in int32."""


class Plan(NamedTuple):
    """A funnel, and which kind it is: full, prefix, adaptive, funnel or calibrated."""

    kind: str
    funnel: Funnel

    def __str__(self) -> str:
        dims = self.funnel.dims
        shown = dims if len(dims) <= 3 else (dims[0], "...", dims[-1])
        return f"{self.kind} {' > '.join(map(str, shown))}"


class Times(NamedTuple):
    """Seconds per query at one batch size; `exact` is the median of the exact search in the same rounds."""

    batch: int
    median: float
    p95: float
    exact: float

    @property
    def speedup(self) -> float:
        """How many times faster than the exact search beside it."""
        return self.exact / self.median


@dataclass(frozen=True)
class Measured:
    """One plan on one engine. Counts are None where an index does not count what it computes."""

    engine: str
    plan: Plan
    multiply_adds: float | None
    bytes: float | None
    theory: float | None
    times: tuple[Times, ...]
    recall: float
    mean_average_precision: float | None

    def to_record(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        funnel = self.plan.funnel
        record = {name: value for name, value in vars(self).items() if name not in ("plan", "times")}
        record |= {"kind": self.plan.kind, "dims": funnel.dims, "keep": funnel.keep}
        return record | {"times": [{**times._asdict(), "speedup": times.speedup} for times in self.times]}


@dataclass(frozen=True)
class Engine:
    """What searches at the first width of a funnel: "exact", or a text for a faiss index and its settings."""

    name: str
    index: str = ""
    parameters: str = ""

    def check(self, dims: Iterable[int], metric: str) -> None:
        """Let faiss read text and settings for each width before any work is done."""
        if self.index:
            from matryoshka.faiss import FaissCorpus  # an extra, which other engines do without

            for dim in dims:
                FaissCorpus.empty_index(self.index, dim, metric=metric, parameters=self.parameters)

    def build(self, corpus: Corpus, dim: int) -> Corpus | FaissCorpus:
        """Return what starts searches of the corpus at `dim`."""
        if not self.index:
            return corpus
        from matryoshka.faiss import FaissCorpus  # as above

        return FaissCorpus(corpus, self.index, dim=dim, parameters=self.parameters)


@dataclass(frozen=True)
class Task:
    """Rows and queries, what the exact search finds, and labels where there are some."""

    corpus: Corpus
    queries: np.ndarray
    k: int
    batches: tuple[int, ...]
    labels: tuple[np.ndarray, np.ndarray] | None = None
    exact: np.ndarray = field(init=False)
    itemsize: int = field(init=False)
    """Bytes of a number that the exact search computes with."""

    def __post_init__(self) -> None:
        scores, ids = self.corpus.search(self.queries, self.k)
        object.__setattr__(self, "exact", ids)
        object.__setattr__(self, "itemsize", scores.dtype.itemsize)


def plans(dim: int, dims: Sequence[int], k: int, calibrated: Funnel | None) -> list[Plan]:
    """Return the plans to compare, full width first."""
    short = [width for width in dims if width < dim]
    keep, last = max(costs.SHORTLIST, k), max(10, k)
    halving = [Funnel.halving(dim, smallest=width, keep=keep, last=last) for width in short]
    found = [Plan("full", Funnel((dim,), ()))]
    found += [Plan("prefix", Funnel((width,), ())) for width in short]
    found += [Plan("adaptive", Funnel((width, dim), (keep,))) for width in short]
    found += [Plan("funnel", funnel) for funnel in halving if len(funnel.dims) > 2]
    if calibrated is not None and calibrated.keep:
        found.append(Plan("calibrated", calibrated))
    return found


def measure(
    task: Task, engines: Sequence[Engine], chosen: Sequence[Plan], advance: Callable[[], object]
) -> list[Measured]:
    """Measure all plans on all engines, in the order given; `advance` is called after each."""
    found: dict[tuple[str, Plan], Measured] = {}
    for engine in engines:
        for dim in sorted({plan.funnel.dims[0] for plan in chosen}):
            group = [plan for plan in chosen if plan.funnel.dims[0] == dim]
            searcher = engine.build(copy.copy(task.corpus), dim)  # the block of prefixes goes with the copy
            times = _clock(task, searcher, group)
            for plan, taken in zip(group, times, strict=True):
                found[engine.name, plan] = _measured(task, engine, searcher, plan, taken)
                advance()
    return [found[engine.name, plan] for engine in engines for plan in chosen]


def _measured(
    task: Task, engine: Engine, searcher: Corpus | FaissCorpus, plan: Plan, times: tuple[Times, ...]
) -> Measured:
    n, k, dim = len(task.corpus), task.k, plan.funnel.dims[0]
    compared = _Count(searcher)
    _, ids = searcher.search(task.queries, k, funnel=plan.funnel)
    rows = compared.per_query(len(task.queries))
    row_bytes = task.itemsize * dim if isinstance(searcher, Corpus) else FAISS_ITEMSIZE * (dim + compared.links)
    later = plan.funnel.multiply_adds(n) - costs.search(n, dim)
    multiply_adds = None if rows is None else rows * dim + later
    quality = None
    if task.labels is not None:
        quality = metrics.mean_average_precision(metrics.relevance(ids, *task.labels), k)
    return Measured(
        engine=engine.name,
        plan=plan,
        multiply_adds=multiply_adds,
        bytes=None if rows is None else rows * row_bytes + task.itemsize * later,
        theory=None if multiply_adds is None else costs.search(n, task.corpus.dim) / multiply_adds,
        times=times,
        recall=metrics.overlap_at_k(ids, task.exact, k),
        mean_average_precision=quality,
    )


class _Count:
    """How many rows a first stage compares with each query: all of them, or what the index counts itself.

    Where it does not count, None. `links` are the links read with each row that a graph visits.
    """

    def __init__(self, searcher: Corpus | FaissCorpus) -> None:
        self._always: int | None = len(searcher)
        self._counted: Any = None
        self.links = 0
        if isinstance(searcher, Corpus):
            return
        from matryoshka.faiss import faiss  # loaded already: there is an index

        index = searcher.index
        if isinstance(index, faiss.IndexHNSWFlat):
            self._counted, self._always, self.links = faiss.cvar.hnsw_stats, 0, 1
        elif isinstance(index, faiss.IndexIVFFlat):
            self._counted, self._always = faiss.cvar.indexIVF_stats, index.nlist
        elif not isinstance(index, faiss.IndexFlat):
            self._always = None
        if self._counted is not None:
            self._counted.reset()

    def per_query(self, n_queries: int) -> float | None:
        """Return the rows compared since, None where they are not counted."""
        if self._counted is None or self._always is None:
            return self._always
        return self._always + float(self._counted.ndis) / n_queries


def _clock(task: Task, searcher: Corpus | FaissCorpus, group: Sequence[Plan]) -> list[tuple[Times, ...]]:
    """Time every plan of the group at each batch size."""
    contenders: list[tuple[Searchable, Funnel | None]] = [
        (task.corpus, None),
        *((searcher, plan.funnel) for plan in group),
    ]
    at_batch = []
    for batch in task.batches:
        taken = _rounds(task, contenders, batch) / batch
        medians = np.median(taken, axis=0)
        at_batch.append(
            [
                Times(batch, float(median), float(p95), float(medians[0]))
                for median, p95 in zip(medians[1:], np.percentile(taken[:, 1:], 95, axis=0), strict=True)
            ]
        )
    return list(zip(*at_batch, strict=True))


def _rounds(task: Task, contenders: Sequence[tuple[Searchable, Funnel | None]], batch: int) -> np.ndarray:
    """Return the seconds (rounds, contenders) of one batch; the first round, which warms up, is left out."""
    fewest, most = ROUNDS
    taken: list[list[float]] = []
    end = time.perf_counter() + SECONDS * len(contenders)
    while len(taken) <= fewest or (len(taken) <= most and time.perf_counter() < end):
        rows = np.arange(len(taken) * batch, (len(taken) + 1) * batch) % len(task.queries)
        queries, seconds = task.queries[rows], [0.0] * len(contenders)
        for turn in range(len(contenders)):
            i = (turn + len(taken)) % len(contenders)  # each goes first once: who does finds its rows out of the cache
            searcher, funnel = contenders[i]
            start = time.perf_counter()
            searcher.search(queries, task.k, funnel=funnel)
            seconds[i] = time.perf_counter() - start
        taken.append(seconds)
    return np.asarray(taken[1:])
