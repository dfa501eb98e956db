"""Find neighbours: mAP@10 of each width, and with a short prefix first (tables 8, 11 to 14 and 30).

The training rows are the corpus, the test rows ask. Every system is searched exactly at each width. Those that the grid
lists as `staged` are searched in stages too: a shortlist at one width reordered at another (adaptive retrieval), for
all pairs of widths and for shortlists of several lengths; funnels; and one bit a column, the cheap rival. Beside each
stands what one query costs by count on a corpus of this size; `clock` takes the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.study.tasks.accuracy import some, untrained
from matryoshka import Corpus, Funnel, costs, metrics

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

K = 10
SHORTLIST = 200
LENGTHS = (10, 25, 50, 100, 200, 400, 800)
"""Shortlists to compare; the longest starts the longer of the funnels too."""
NARROW = 3
"""Shortlists are compared at so many of the narrowest widths, where their length matters."""
DIGITS = 6
"""Of the shares in a record, which is to stay small."""

Plan = tuple[str, Funnel]
"""Its kind ("exact", "adaptive" or "funnel") and its stages."""


@dataclass(frozen=True)
class Task:
    """Embedded rows to search and embedded queries, with the labels of both."""

    corpus: Corpus
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray


def measure(
    bench: Bench, system: str, seed: int, *, staged: Sequence[str] = (), most_queries: int | None = None
) -> dict[str, Any]:
    """Return what each width finds, and of a system in `staged` what every plan finds and costs.

    `most_queries` test rows, drawn by the seed, ask; by default all.
    """
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    asked = some(len(split.test), most_queries, seed)

    def task(dim: int) -> Task:
        rows = outputs.embed("train", dim), outputs.embed("test", dim)[asked]
        return Task(Corpus(rows[0]), split.train.labels, rows[1], split.test.labels[asked])

    found: dict[str, Any] = {"rows": len(split.train), "queries": len(asked)}
    if not outputs.nested:
        return found | _exact({dim: task(dim) for dim in outputs.dims})
    whole = task(outputs.dims[-1])
    found |= _exact(dict.fromkeys(outputs.dims, whole))
    if others := untrained(outputs, bench.grid.dims):
        found["untrained"] = _exact(dict.fromkeys(others, whole))
    return found | (_staged(whole, outputs.dims) if system in staged else {})


def _exact(tasks: Mapping[int, Task]) -> dict[str, Any]:
    """Return what each width finds, of the rows to search at it."""
    found = [judged(task, task.corpus.search(task.queries, K, dim=dim)[1]) for dim, task in tasks.items()]
    return {"dims": list(tasks), **{key: [each[key] for each in found] for key in ("map", "top_1")}}


def plans(dims: Sequence[int], shortlist: int = SHORTLIST) -> list[Plan]:
    """Return the plans to compare, each with its kind; a funnel of two stages is adaptive retrieval."""
    full, short = dims[-1], dims[:-1]
    exact = [("exact", Funnel((dim,))) for dim in dims]
    adaptive = [("adaptive", Funnel((dim, full), (shortlist,))) for dim in short]
    halving = [Funnel.halving(full, smallest=dim, keep=shortlist, last=K) for dim in short]
    return [*exact, *adaptive, *(("funnel", plan) for plan in halving if len(plan.dims) > 2)]


def quality(task: Task, chosen: Iterable[Plan]) -> list[float]:
    """Return mAP@10 of each plan."""
    return [judged(task, task.corpus.search(task.queries, K, funnel=plan)[1])["map"] for _, plan in chosen]


def judged(task: Task, ids: np.ndarray) -> dict[str, float]:
    """Return mAP@10 of what was found (n_queries, 10), and the share of queries whose first result is right."""
    relevance = metrics.relevance(ids, task.labels, task.query_labels)
    return {
        "map": round(metrics.mean_average_precision(relevance, K), DIGITS),
        "top_1": round(metrics.nearest_neighbor_accuracy(ids[:, :1], task.labels, task.query_labels), DIGITS),
    }


def describe(plan: Funnel, n: int) -> dict[str, Any]:
    """Return the record of a plan: its stages, and what one query on `n` rows costs by count, as published."""
    return {
        "dims": list(plan.dims),
        "keep": list(plan.keep),
        "multiply_adds": plan.multiply_adds(n),
        "bytes": costs.funnel_bytes(n, plan.dims, plan.keep, code=plan.code),
    }


def _staged(task: Task, dims: Sequence[int]) -> dict[str, Any]:
    """Return what the plans of a system find and cost, by kind."""
    n, full = len(task.corpus), dims[-1]
    shortlists = {dim: task.corpus.search(task.queries, min(LENGTHS[-1], n), dim=dim)[1] for dim in dims}

    def reordered(dim: int, then: int, length: int) -> dict[str, Any]:
        _, ids = task.corpus.rerank(task.queries, shortlists[dim][:, :length], K, dim=then)
        return _found(task, Funnel((dim, then), (length,)) if dim < then else Funnel((dim,)), ids)

    pairs = combinations_with_replacement(dims, 2)
    lengths = [length for length in LENGTHS if length <= n]
    return {
        "adaptive": [reordered(dim, then, SHORTLIST) for dim, then in pairs],
        "shortlists": [reordered(dim, full, length) for dim in dims[:-1][:NARROW] for length in lengths],
        "funnels": [_searched(task, plan) for plan in _funnels(dims)],
        "bits": [_searched(task, Funnel((dim, full), (SHORTLIST,), code="bits")) for dim in dims],
    }


def _funnels(dims: Sequence[int]) -> Iterator[Funnel]:
    for keep in (SHORTLIST, LENGTHS[-1]):
        for dim in dims[:-1]:
            plan = Funnel.halving(dims[-1], smallest=dim, keep=keep, last=K)
            if len(plan.dims) > 2:
                yield plan


def _searched(task: Task, plan: Funnel) -> dict[str, Any]:
    return _found(task, plan, task.corpus.search(task.queries, K, funnel=plan)[1])


def _found(task: Task, plan: Funnel, ids: np.ndarray) -> dict[str, Any]:
    return describe(plan, len(task.corpus)) | judged(task, ids)
