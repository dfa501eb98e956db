"""Find neighbours with a short prefix first: mAP@10 beside multiply-adds, bytes and the clock.

Three kinds of plans answer the same queries, all with one MRL network: *exact* (compare with every row at one width),
*adaptive* (a shortlist by a short prefix, reordered at full width) and *funnel* (ever shorter lists at ever wider
prefixes). A small corpus shows what they find, but not what they save, because a search in it takes hardly longer
than the call; so they are timed on a large corpus of mixtures too (`data.mixtures`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.clock import burst
from benchmarks.study.data import Rows, mixtures
from benchmarks.study.networks import Network
from benchmarks.study.tasks import retrieval
from benchmarks.study.tasks.clock import BATCHES
from benchmarks.study.tasks.retrieval import K, Plan, Task
from benchmarks.study.timing import find, taken
from matryoshka import Corpus, Funnel

SHORTLIST = 50
BATCH = BATCHES["batch"]
MOST_TIES = 2000
MOST_LARGE_QUERIES = 200
ROWS_AT_ONCE = 10_000


def plans(dims: tuple[int, ...]) -> list[Plan]:
    """Return the plans to compare, each with its kind; a funnel of two stages is adaptive retrieval."""
    return retrieval.plans(dims, SHORTLIST)


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


def near_ties(task: Task, plan: Funnel) -> float:
    """Return how many rows have the score of the last of the best `K` to six digits, on average over some queries."""
    k = min(MOST_TIES, len(task.corpus))
    scores, _ = task.corpus.search(task.queries[:BATCH], k, funnel=plan)
    last = scores[:, min(K, k) - 1, None]
    return float((np.abs(scores - last) <= 1e-6 * np.abs(last)).sum(axis=1).mean())


def clock(task: Task, chosen: Sequence[Plan]) -> list[dict[str, float]]:
    """Return the median seconds per query of each plan, asked one by one and in batches, by the wall clock."""
    searches = [find(task.corpus, plan) for _, plan in chosen]
    timed = taken(searches, task.queries, burst(time.perf_counter))
    return [{name: found["seconds"] for name, found in record.items()} for record in timed]
