"""Theory beside clock: what a plan costs by count, and the seconds of a query, exact and with HNSW (table 19).

The training rows are the corpus, the test rows ask, one by one and in batches. All plans take turns in a process of one
thread, whose CPU time decides, and again in one of two threads, for the wall clock (`benchmarks.study.timing`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.clock import process
from benchmarks.study.tasks.accuracy import some

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

BATCHES = {"alone": 1, "batch": 64}
"""Queries asked at once, by the name that their seconds have in a record."""
THREADS = {"cpu": 1, "wall": 2}
"""The clocks, and how many threads the process has in which each is read; the first builds graphs, and judges."""


def measure(bench: Bench, system: str, seed: int, *, most_queries: int | None = None) -> dict[str, Any]:
    """Return the record of each plan: count, mAP@10, and by clock seconds and speed against all columns, exactly.

    `most_queries` test rows, drawn by the seed, ask; by default all.
    """
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    asked, full = some(len(split.test), most_queries, seed), outputs.dims[-1]
    with TemporaryDirectory() as folder:
        path = Path(folder, "task.npz")
        np.savez(
            path,
            rows=outputs.embed("train", full),
            labels=split.train.labels,
            queries=outputs.embed("test", full)[asked],
            query_labels=split.test.labels[asked],
            dims=outputs.dims,
        )
        printed = {clock: _printed(path, threads) for clock, threads in THREADS.items()}
    plans = [{key: value for key, value in plan.items() if key not in BATCHES} for plan in printed["cpu"]]
    for clock, records in printed.items():
        for plan, record in zip(plans, records, strict=True):
            plan[clock] = {name: record[name] for name in BATCHES}
    return {"rows": len(split.train), "queries": len(asked), "plans": plans}


def _printed(path: Path, threads: int) -> list[dict[str, Any]]:
    """Return the records that a process of its own prints; it finds modules where this one does."""
    paths = os.pathsep.join(filter(None, sys.path))
    try:
        lines = [*process("benchmarks.study.timing", [path, threads], threads, PYTHONPATH=paths)]
    except SystemExit as error:
        msg = f"a process that takes the time failed: {error}"
        raise RuntimeError(msg) from error
    return [json.loads(line) for line in lines]
