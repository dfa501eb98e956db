"""Search with many batches: results and memory stay as they are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.soak.report import Report
from matryoshka import Corpus, Funnel

QUERIES = 200_000
LEAKED = 8 << 20
"""Bytes that the process may grow by between warm-up and end."""


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def queries() -> Iterator[Report]:
    """Search with batches of several sizes, exactly and through a funnel, and look at the memory."""
    rng = np.random.default_rng(0)
    corpus = Corpus(rng.normal(size=(20_000, 64)).astype(np.float32), search_dims=(8,))
    asked = rng.normal(size=(500, 64)).astype(np.float32)
    plans = {"exact": None, "funnel": Funnel((8, 32, 64), (400, 100))}
    expected = {name: corpus.search(asked, 10, funnel=plan) for name, plan in plans.items()}
    report, warm, most = Report("queries"), 0, 0
    for size, (name, plan) in itertools.cycle(itertools.product((1, 7, 32, 128, 500), plans.items())):
        start = int(rng.integers(0, len(asked) - size + 1))
        found = corpus.search(asked[start : start + size], 10, funnel=plan)
        report.count(name, times=size)
        if not all(np.array_equal(a, b[start : start + size]) for a, b in zip(found, expected[name], strict=True)):
            report.violations.append(f"{name}: other results for {size} queries from {start}")
        if report.tried >= QUERIES // 10:
            warm = warm or resident()
            most = max(most, resident())
        if report.tried >= QUERIES:
            break
    end = resident()
    report.name += f" (memory {warm / 2**20:.1f} MiB warm, {end / 2**20:.1f} at the end, {most / 2**20:.1f} at most)"
    if end - warm > LEAKED:
        report.violations.append(f"memory grew by {(end - warm) / 2**20:.1f} MiB")
    yield report
