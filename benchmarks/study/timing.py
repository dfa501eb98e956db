"""What one process times for the task `clock`: `python -m benchmarks.study.timing TASK.npz THREADS`.

The file holds rows, labels, queries, query_labels and dims; a line of JSON comes for each plan. The process with one
thread judges the plans too, and leaves the graphs of HNSW beside the file for the process with more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clock import Timer, rounds, summary, timer, turns
from benchmarks.study.tasks.clock import BATCHES
from benchmarks.study.tasks.retrieval import SHORTLIST, K, Plan, Task, describe, judged, plans
from matryoshka import Corpus, Funnel, costs
from matryoshka.retrieval import Searchable

ROUNDS = 9
LINKS = 32
"""Of a row of HNSW to others, as in the paper; the rest is as faiss has it."""
DIGITS = 4
"""Of the numbers that a clock gave."""

Search = Callable[[np.ndarray], np.ndarray]
"""From queries (n_queries, dim) to ids (n_queries, 10)."""


@dataclass(frozen=True)
class Way:
    """How to search, its plan, and what it costs by count."""

    record: dict[str, Any]
    plan: Funnel
    search: Search


def main(arguments: Sequence[str]) -> None:
    """Time every plan, and print its record."""
    path, threads = Path(arguments[0]), int(arguments[1])
    with np.load(path, allow_pickle=False) as held:
        task = Task(Corpus(held["rows"]), held["labels"], held["queries"], held["query_labels"])
        dims = held["dims"].tolist()
    ways = [*exact(task.corpus, plans(dims)), *hnsw(task.corpus, dims, path.parent)]
    ways.sort(key=lambda way: way.plan != Funnel(dims[-1:]))  # the reference first
    records = [way.record | (judge(way, task) if threads == 1 else {}) for way in ways]
    for record, seconds in zip(records, taken([way.search for way in ways], task.queries, timer(threads)), strict=True):
        print(json.dumps(record | seconds), flush=True)


def exact(corpus: Corpus, chosen: Sequence[Plan]) -> Iterator[Way]:
    """Give the plans of a corpus that is searched exactly at the first width."""
    for kind, plan in chosen:
        record = {"engine": "exact", "kind": kind} | describe(plan, len(corpus))
        yield Way(record, plan, find(corpus, plan))


def find(corpus: Searchable, plan: Funnel) -> Search:
    """Return the search of a corpus by a plan."""
    return lambda queries: corpus.search(queries, K, funnel=plan)[1]


def hnsw(corpus: Corpus, dims: Sequence[int], folder: Path) -> Iterator[Way]:
    """Give each width alone, and as the first of two, with a graph at the first; it is built if `folder` has none."""
    import faiss

    from matryoshka.faiss import FaissCorpus

    n, full = len(corpus), dims[-1]
    for dim in dims:
        path = folder / f"{dim}.faiss"
        index = faiss.read_index(str(path)) if path.is_file() else faiss.IndexHNSWFlat(dim, LINKS)
        narrow = FaissCorpus(corpus, index)
        if not path.is_file():
            faiss.write_index(narrow.index, str(path))
        wide = FaissCorpus(corpus, faiss.clone_index(narrow.index))
        wide.index.hnsw.efSearch = SHORTLIST  # else it visits no more rows for 200 candidates than for 10
        for plan in [Funnel((dim,)), *([Funnel((dim, full), (SHORTLIST,))] if dim < full else [])]:
            record = {
                "engine": "hnsw",
                "kind": "single" if len(plan.dims) == 1 else "adaptive",
                "dims": list(plan.dims),
                "keep": list(plan.keep),
                "order": round(costs.hnsw(n, dim)),
            }
            yield Way(record, plan, find(narrow if len(plan.dims) == 1 else wide, plan))


def judge(way: Way, task: Task) -> dict[str, Any]:
    """Return what a way finds, and of HNSW the multiply-adds of the distances that faiss counted."""
    import faiss

    faiss.cvar.hnsw_stats.reset()
    found = judged(task, way.search(task.queries))
    if way.record["engine"] == "exact":
        return found
    compared = faiss.cvar.hnsw_stats.ndis / len(task.queries)
    n, plan = len(task.corpus), way.plan
    later = plan.multiply_adds(n) - costs.search(n, plan.dims[0])
    return found | {"multiply_adds": round(compared * plan.dims[0]) + later}


def taken(searches: Sequence[Search], queries: np.ndarray, timer: Timer) -> list[dict[str, dict[str, float]]]:
    """Return of each way, for single queries and batches, the seconds a query and how many times faster than the first.

    Medians over rounds in which the ways take turns; seconds of the rounds are compared within each.
    """
    found: list[dict[str, dict[str, float]]] = [{} for _ in searches]
    for name, batch in BATCHES.items():
        steps = {str(number): turns(search, queries, batch) for number, search in enumerate(searches)}
        for step in steps.values():
            step()  # builds the block of a prefix, and warms the caches
        samples = rounds(steps, timer, most=ROUNDS)
        for record, own in zip(found, samples.values(), strict=True):
            its = summary(own, samples["0"])
            record[name] = {"seconds": _short(its["s"] / batch), "faster": _short(1 / its["ratio"])}
    return found


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


if __name__ == "__main__":
    main(sys.argv[1:])
