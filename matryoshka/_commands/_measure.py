"""Measure plans of search on engines: what each costs by count, how long it takes, and what it finds.

Plans that start at one width are timed together, and in each round all of them and the exact search answer the same
queries in turn: a slow moment of the machine falls on all, and beside the full width only one block of prefixes is in
memory.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from matryoshka import _checks, costs, metrics
from matryoshka._array import row_blocks
from matryoshka.retrieval import Corpus, Funnel, Searchable
from matryoshka.rotation import Rotation

SECONDS = 0.5
"""Time for each plan and batch size, as long as there are `ROUNDS`, fewest and most."""
ROUNDS = 7, 100

BINARY_WIDTHS = f"a multiple of 8 from {_checks.FEWEST_BITS} on"
"""What starts on a binary index, which fills whole bytes."""

_BLOCK_NUMBERS = 1 << 22
MOST_TIES = 1000
"""Rows that score alike are counted up to here."""

_TIE_QUERIES = 32

FAISS_ITEMSIZE = 4
"""Bytes of a number of a row and of a link of a graph in faiss, which computes in float32 and numbers rows in int32."""


class Plan(NamedTuple):
    """A funnel, and which kind it is: full, prefix, adaptive, funnel, bits or calibrated."""

    kind: str
    funnel: Funnel

    def __str__(self) -> str:
        dims = self.funnel.dims
        shown = dims if len(dims) <= 3 else (dims[0], "...", dims[-1])
        kind = self.kind if self.funnel.code in ("float", self.kind) else f"{self.kind} {self.funnel.code}"
        return f"{kind} {' > '.join(map(str, shown))}"


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
    near_ties: float | None = None
    """Rows that score like the k-th best to six digits, counted up to `MOST_TIES`; of prefixes on the exact engine."""

    def to_record(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        funnel = self.plan.funnel
        record = {name: value for name, value in vars(self).items() if name not in ("plan", "times")}
        record |= {"kind": self.plan.kind, "dims": funnel.dims, "keep": funnel.keep, "code": funnel.code}
        return record | {"times": [{**times._asdict(), "speedup": times.speedup} for times in self.times]}


@dataclass(frozen=True)
class Engine:
    """What searches at the first width of a funnel: "exact", or a text for a faiss index and its settings."""

    name: str
    index: str = ""
    parameters: str = ""

    @property
    def binary(self) -> bool:
        """Whether it is a binary index of faiss, whose texts, and no others, start with B."""
        return self.index.startswith("B")

    @property
    def starts_at(self) -> str:
        """At which widths it starts, if it does not at all."""
        return BINARY_WIDTHS

    def check(self, dims: Iterable[int], metric: str) -> None:
        """Let faiss read text and settings for each width that it may start at, before any work is done."""
        if not self.index:
            return
        from matryoshka.faiss import FaissCorpus  # an extra, which other engines do without

        if self.binary and self.parameters:
            msg = f"--engine must name binary indexes without settings, got {self.name!r}; drop @ and what follows."
            raise ValueError(msg)
        starts = [dim for dim in dims if not self.binary or _holds_bits(dim)]
        if not starts:
            msg = f"--dims must hold a width for {self.name}, {BINARY_WIDTHS}, got none; add one or drop the engine."
            raise ValueError(msg)
        for dim in starts:
            FaissCorpus.empty_index(self.index, dim, metric=metric, parameters=self.parameters)

    def takes(self, chosen: Iterable[Plan]) -> list[Plan]:
        """Return those of the plans that it can start: an index has its own codes, and a binary one its widths."""
        if self.binary:
            return [plan for plan in chosen if plan.funnel.code == "bits" and _holds_bits(plan.funnel.dims[0])]
        return [plan for plan in chosen if plan.funnel.code == "float" or not self.index]

    def build(self, corpus: Corpus, dim: int) -> Searchable:
        """Return what starts searches of the corpus at `dim`."""
        if not self.index:
            return corpus
        from matryoshka.faiss import FaissCorpus  # as above

        return FaissCorpus(corpus, self.index, dim=dim, parameters=self.parameters)


@dataclass(frozen=True)
class Task:
    """Rows and queries, what the exact search finds, and labels where there are some.

    With a rotation, `corpus` holds rotated rows, and each plan rotates the queries it is asked, but for the full width,
    which needs none.
    """

    corpus: Corpus
    queries: np.ndarray
    k: int
    batches: tuple[int, ...]
    labels: tuple[np.ndarray, np.ndarray] | None = None
    rotation: Rotation | None = None
    rotated: np.ndarray = field(init=False)
    exact: np.ndarray = field(init=False)
    itemsize: int = field(init=False)
    """Bytes of a number that the exact search computes with."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "rotated", self.queries if self.rotation is None else rotate(self.rotation, self.queries)
        )
        scores, ids = self.corpus.search(self.rotated, self.k)
        object.__setattr__(self, "exact", ids)
        object.__setattr__(self, "itemsize", scores.dtype.itemsize)

    def search_exactly(self, rows: np.ndarray) -> np.ndarray:
        """Return the ids that the exact search finds for some queries."""
        ids: np.ndarray = self.corpus.search(self.rotated[rows], self.k)[1]
        return ids

    def search(self, searcher: Searchable, plan: Plan, rows: np.ndarray) -> np.ndarray:
        """Return the ids that a plan finds for some queries, which are rotated first where the corpus is."""
        if plan.kind == "full" or self.rotation is None:
            queries = self.rotated[rows]
        else:
            queries = self.rotation.apply(self.queries[rows])
        ids: np.ndarray = searcher.search(queries, self.k, funnel=plan.funnel)[1]
        return ids

    def counted(self, plan: Plan) -> int:
        """Return the multiply-adds with which a plan rotates one query."""
        return 0 if plan.kind == "full" or self.rotation is None else self.corpus.dim**2


def _holds_bits(dim: int) -> bool:
    return dim >= _checks.FEWEST_BITS and dim % 8 == 0


def rotate(rotation: Rotation, rows: np.ndarray) -> np.ndarray:
    """Return rotated rows in memory, a block at a time, in the dtype in which they are searched."""
    rotated = np.empty(rows.shape, np.float64 if rows.dtype == np.float64 else np.float32)
    for block in row_blocks(len(rows), max(1, _BLOCK_NUMBERS // rows.shape[1])):
        rotated[block] = rotation.apply(rows[block].astype(rotated.dtype, copy=False))
    return rotated


def plans(dim: int, dims: Sequence[int], k: int, *, coded: bool) -> list[Plan]:
    """Return the plans to compare, full width first, those that start at one width beside each other."""
    keep, last = max(costs.SHORTLIST, k), max(10, k)
    found = [Plan("full", Funnel((dim,)))]
    for width in dims:
        if width < dim:
            halving = Funnel.halving(dim, smallest=width, keep=keep, last=last)
            found.append(Plan("prefix", Funnel((width,))))
            found.append(Plan("adaptive", Funnel((width, dim), (keep,))))
            found += [Plan("funnel", halving)] * (len(halving.dims) > 2)
        if coded and width >= _checks.FEWEST_BITS:
            found.append(Plan("bits", Funnel((width, dim), (keep,), code="bits")))
    return found


def widths(chosen: Iterable[Plan]) -> tuple[int, ...]:
    """Return the widths at which plans start."""
    return tuple(sorted({plan.funnel.dims[0] for plan in chosen}))


def measure(task: Task, engine: Engine, chosen: Iterable[Plan], now: Callable[[str], object]) -> Iterator[Measured]:
    """Measure plans on an engine and give each as it is done; `now` is told what is done meanwhile."""
    for dim, same in itertools.groupby(engine.takes(chosen), key=lambda plan: plan.funnel.dims[0]):
        group = list(same)
        now(f"{engine.name}: searches that start at {dim} columns")
        searcher = engine.build(copy.copy(task.corpus), dim)  # the block of prefixes goes with the copy
        times = _clock(task, searcher, group)
        for plan, taken in zip(group, times, strict=True):
            yield _measured(task, engine, searcher, plan, taken)


def _measured(task: Task, engine: Engine, searcher: Searchable, plan: Plan, times: tuple[Times, ...]) -> Measured:
    compared = _Count(searcher)
    ids = task.search(searcher, plan, np.arange(len(task.queries)))
    multiply_adds, read = _counts(task, searcher, plan, compared)
    full = costs.search(len(task.corpus), task.corpus.dim)
    if plan.funnel.code == "float":
        theory = None if multiply_adds is None else full / multiply_adds
    else:  # what a bit costs is to be read, not multiplied
        theory = None if read is None else full * task.itemsize / read
    quality = None
    if task.labels is not None:
        quality = metrics.mean_average_precision(metrics.relevance(ids, *task.labels), task.k)
    return Measured(
        engine=engine.name,
        plan=plan,
        multiply_adds=multiply_adds,
        bytes=read,
        theory=theory,
        times=times,
        recall=metrics.overlap_at_k(ids, task.exact, task.k),
        mean_average_precision=quality,
        near_ties=_near_ties(task, searcher, plan) if plan.kind == "prefix" and not engine.index else None,
    )


def _counts(task: Task, searcher: Searchable, plan: Plan, compared: _Count) -> tuple[float | None, float | None]:
    """Return the multiply-adds and the bytes of a query, None where an index does not count what it compares."""
    n, funnel, turn = len(task.corpus), plan.funnel, task.counted(plan)
    turned = turn * task.itemsize
    if _compares_all(searcher):
        return funnel.multiply_adds(n) + turn, funnel.bytes(n, itemsize=task.itemsize) + turned
    rows, dim = compared.per_query(len(task.queries)), funnel.dims[0]
    if rows is None:
        return None, None
    if funnel.code == "bits":
        return funnel.multiply_adds(n) + turn, rows * dim / 8 + task.itemsize * funnel.multiply_adds(n) + turned
    later = funnel.multiply_adds(n) - costs.search(n, dim)
    row_bytes = FAISS_ITEMSIZE * (dim + compared.links)
    return rows * dim + later + turn, rows * row_bytes + task.itemsize * later + turned


def _compares_all(searcher: Searchable) -> bool:
    """Tell whether searches compare all rows wherever they start."""
    index = getattr(searcher, "index", None)
    return isinstance(searcher, Corpus) or searcher.search_dims is None or index is False


def _near_ties(task: Task, searcher: Searchable, plan: Plan) -> float:
    """Return how many rows have the score of the k-th best up to its sixth digit, on average over some queries."""
    n, k = len(task.corpus), task.k
    scores, _ = searcher.search(task.rotated[:_TIE_QUERIES], min(n, k + MOST_TIES), funnel=plan.funnel)
    last = scores[:, k - 1 : k]
    return float((np.abs(scores - last) <= 1e-6 * np.abs(last)).sum(axis=1).mean())


class _Count:
    """How many rows a first stage compares with each query: all of them, or what the index counts itself.

    Where it does not count, None. `links` are the links read with each row that a graph visits.
    """

    def __init__(self, searcher: Searchable) -> None:
        self._always: int | None = len(searcher)
        self._counted: Any = None
        self.links = 0
        index = getattr(searcher, "index", None)
        if _compares_all(searcher):
            return
        if index is True:
            self._always = None
            return
        from matryoshka.faiss import faiss  # loaded already: there is an index

        if isinstance(index, faiss.IndexHNSWFlat):
            self._counted, self._always, self.links = faiss.cvar.hnsw_stats, 0, 1
        elif isinstance(index, faiss.IndexIVFFlat):
            self._counted, self._always = faiss.cvar.indexIVF_stats, index.nlist
        elif not isinstance(index, faiss.IndexFlat | faiss.IndexBinaryFlat):
            self._always = None
        if self._counted is not None:
            self._counted.reset()

    def per_query(self, n_queries: int) -> float | None:
        """Return the rows compared since, None where they are not counted."""
        if self._counted is None or self._always is None:
            return self._always
        return self._always + float(self._counted.ndis) / n_queries


def _clock(task: Task, searcher: Searchable, group: Sequence[Plan]) -> list[tuple[Times, ...]]:
    """Time every plan of the group at each batch size."""
    contenders: list[Callable[[np.ndarray], object]] = [
        task.search_exactly,
        *(partial(task.search, searcher, plan) for plan in group),
    ]
    at_batch = []
    for batch in task.batches:
        taken = _rounds(len(task.queries), contenders, batch) / batch
        medians = np.median(taken, axis=0)
        at_batch.append(
            [
                Times(batch, float(median), float(p95), float(medians[0]))
                for median, p95 in zip(medians[1:], np.percentile(taken[:, 1:], 95, axis=0), strict=True)
            ]
        )
    return list(zip(*at_batch, strict=True))


def _rounds(n_queries: int, contenders: Sequence[Callable[[np.ndarray], object]], batch: int) -> np.ndarray:
    """Return the seconds (rounds, contenders) of one batch; the first round, which warms up, is left out."""
    fewest, most = ROUNDS
    taken: list[list[float]] = []
    end = time.perf_counter() + SECONDS * len(contenders)
    while len(taken) <= fewest or (len(taken) <= most and time.perf_counter() < end):
        rows, seconds = np.arange(len(taken) * batch, (len(taken) + 1) * batch) % n_queries, [0.0] * len(contenders)
        for turn in range(len(contenders)):
            i = (turn + len(taken)) % len(contenders)  # each goes first once: who does finds its rows out of the cache
            start = time.perf_counter()
            contenders[i](rows)
            seconds[i] = time.perf_counter() - start
        taken.append(seconds)
    return np.asarray(taken[1:])
