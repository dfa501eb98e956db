"""Find neighbours with a short prefix first: mAP@10 beside multiply-adds, bytes and the clock.

Three kinds of plans answer the same queries, all with one MRL network: *exact* (compare with every row at one width),
*adaptive* (a shortlist by a short prefix, reordered at full width) and *funnel* (ever shorter lists at ever wider
prefixes). A small corpus shows what they find, but not what they save, because a search in it takes hardly longer
than the call; so they are timed on a large corpus of mixtures too (`data.mixtures`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.study.data import Rows, mixtures
from benchmarks.study.networks import Network
from matryoshka import Corpus, Funnel, costs, metrics

K = 10
SHORTLIST = 50
BATCH = 64
SINGLES = 16
REPEATS = 5
MOST_TIES = 2000
MOST_LARGE_QUERIES = 200
ROWS_AT_ONCE = 10_000

Plan = tuple[str, Funnel]
"""Its kind ("exact", "adaptive" or "funnel") and its stages."""


def plans(dims: tuple[int, ...]) -> list[Plan]:
    """Return the plans to compare, each with its kind; a funnel of two stages is adaptive retrieval."""
    full, short = dims[-1], dims[:-1]
    exact = [("exact", Funnel((dim,), ())) for dim in dims]
    adaptive = [("adaptive", Funnel((dim, full), (SHORTLIST,))) for dim in short]
    halving = [Funnel.halving(full, smallest=dim, keep=SHORTLIST, last=K) for dim in short]
    return [*exact, *adaptive, *(("funnel", plan) for plan in halving if len(plan.dims) > 2)]


@dataclass(frozen=True)
class Task:
    """Embedded rows to search and embedded queries, with the labels of both."""

    corpus: Corpus
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray


def task(network: Network, rows: Rows, queries: Rows) -> Task:
    """Return the task of finding `rows`."""
    return Task(Corpus(network.embed(rows.features)), rows.labels, network.embed(queries.features), queries.labels)


def large_task(network: Network, rows: Rows, queries: Rows, n: int, seed: int) -> Task:
    """Return the task of finding `n` mixtures of `rows`."""
    sizes = [min(ROWS_AT_ONCE, n - start) for start in range(0, n, ROWS_AT_ONCE)]
    parts = [mixtures(rows, size, seed + index) for index, size in enumerate(sizes)]
    corpus = Corpus(np.concatenate([network.embed(part.features) for part in parts]))
    asked = slice(MOST_LARGE_QUERIES)
    embedded = network.embed(queries.features[asked])
    return Task(corpus, np.concatenate([part.labels for part in parts]), embedded, queries.labels[asked])


def quality(task: Task, chosen: Iterable[Plan]) -> list[float]:
    """Return mAP@10 of each plan."""
    found = []
    for _, plan in chosen:
        _, ids = task.corpus.search(task.queries, K, funnel=plan)
        relevance = metrics.relevance(ids, task.labels, task.query_labels)
        found.append(metrics.mean_average_precision(relevance, K))
    return found


def describe(kind: str, plan: Funnel, n: int) -> dict[str, Any]:
    """Return the record of a plan: what it is, and what one query on `n` rows costs by count."""
    return {
        "kind": kind,
        "dims": list(plan.dims),
        "keep": list(plan.keep),
        "multiply_adds": plan.multiply_adds(n),
        "multiply_adds_executed": plan.multiply_adds(n, executed=True),
        "bytes": costs.funnel_bytes(n, plan.dims, plan.keep),
    }


def near_ties(task: Task, plan: Funnel) -> float:
    """Return how many rows have the score of the last of the best `K` to six digits, on average over some queries."""
    k = min(MOST_TIES, len(task.corpus))
    scores, _ = task.corpus.search(task.queries[:BATCH], k, funnel=plan)
    last = scores[:, min(K, k) - 1, None]
    return float((np.abs(scores - last) <= 1e-6 * np.abs(last)).sum(axis=1).mean())


def clock(task: Task, chosen: Sequence[Plan]) -> list[dict[str, float]]:
    """Return the median seconds per query of each plan, asked one by one and in batches.

    The plans take turns in every repetition, so that a slow moment of the machine does not fall on one of them.
    """
    rows = np.arange(BATCH) % len(task.queries)
    batch, singles = task.queries[rows], [task.queries[row : row + 1] for row in rows[:SINGLES]]
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in chosen]
    for repeat in range(REPEATS + 1):
        for (_, plan), (alone, together) in zip(chosen, taken, strict=True):
            seconds = _seconds(task.corpus, singles, plan) / SINGLES, _seconds(task.corpus, [batch], plan) / BATCH
            if repeat:  # the first round builds prefix blocks and warms caches
                alone.append(seconds[0])
                together.append(seconds[1])
    return [{"alone": statistics.median(alone), "batch": statistics.median(both)} for alone, both in taken]


def _seconds(corpus: Corpus, batches: list[np.ndarray], plan: Funnel) -> float:
    start = time.perf_counter()
    for queries in batches:
        corpus.search(queries, K, funnel=plan)
    return time.perf_counter() - start
