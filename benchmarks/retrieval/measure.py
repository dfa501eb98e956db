"""What one process measures of all cases on the same rows: time in alternating rounds, and recall."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from benchmarks.clock import Step, rounds, summary, timer, turns
from benchmarks.retrieval.cases import Case, Cost
from benchmarks.retrieval.data import Data, recall
from benchmarks.retrieval.peers import Search

PRODUCT = 1024
"""Rows and columns of the matrices whose product says how many multiply-adds a second there can be."""
ROUNDS = 9
"""In which the first way takes part to the last, and it is the slowest of many cases."""
_MOST_READ = 1 << 28


def measure(cases: Sequence[Case], threads: int) -> Iterator[dict[str, Any]]:
    """Give what was measured of each case and batch, all on the same rows, as soon as it is."""
    drawn = cases[0].source.draw()
    for case in cases:
        yield from _case(case, drawn.rotated if case.rotated else drawn, threads)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _case(case: Case, data: Data, threads: int) -> Iterator[dict[str, Any]]:
    searches = {name: way.build(data, case.k) for name, way in case.ways.items()}
    found = _recalls(case, data, searches) if threads == 1 else {}
    for batch in case.batches:
        ways = {name: turns(search, data.queries, batch) for name, search in searches.items()}
        for step in ways.values():
            step()
        samples = rounds(ways, timer(threads), most=ROUNDS)
        reference = samples[next(iter(ways))]
        entries = {name: summary(samples[name], reference) for name in ways}
        for name, way in case.ways.items():
            entries[name] |= {"recall": found[name]} if name in found else {}
            entries[name] |= _theory(way.cost(data.n, data.dim), batch, threads) if way.cost else {}
        asked = [w for w in case.wanted if w.batch == batch]
        ratios = [summary(samples[w.way], samples[w.than])["ratio"] for w in asked]
        yield {"title": case.title(batch), "ways": entries, "asked": ratios}


def _recalls(case: Case, data: Data, searches: dict[str, Search]) -> dict[str, float]:
    """Return which share of the nearest rows each way finds, where it finds any; a batch at a time."""
    if not case.exact:
        return {}
    batch, shares = case.batches[-1], {}
    for name, search in searches.items():
        starts = range(0, len(data.queries) - batch + 1, batch)
        ids = np.concatenate([search(data.queries[start : start + batch]) for start in starts])
        if ids.shape[1]:
            shares[name] = round(recall(ids, data.nearest[: len(ids), : case.exact]), 4)
    return shares


def _theory(cost: Cost, batch: int, threads: int) -> dict[str, float]:
    """Return what one query takes, and the seconds of a batch that memory and arithmetic need at least."""
    read = cost.shared + batch * cost.own
    limit = max(
        read / _bandwidth(min(_MOST_READ, max(read, 1 << 16)).bit_length(), threads),
        batch * cost.multiply_adds / _rate(threads),
    )
    return {"bytes": cost.shared + cost.own, "multiply_adds": cost.multiply_adds, "limit_s": limit}


@cache
def _bandwidth(bits: int, threads: int) -> float:
    """Return the bytes a second of reading so many bytes over and over: from the cache if they fit there."""
    numbers = np.ones((1 << bits) // 8, np.float32)
    return numbers.nbytes / _best(lambda: numbers @ numbers, threads)


@cache
def _rate(threads: int) -> float:
    """Return the multiply-adds a second of a large product."""
    a = np.ones((PRODUCT, PRODUCT), np.float32)
    out = np.empty_like(a)
    return PRODUCT**3 / _best(lambda: np.matmul(a, a, out=out), threads)


def _best(step: Step, threads: int) -> float:
    timed = timer(threads)
    return min(timed(step)[0] for _ in range(5))
