"""Rows that stay in a file, which the system has read before: what a search takes, in time and in memory of its own."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import clock
from benchmarks.retrieval.cases import SHORT, K, bits
from benchmarks.retrieval.data import N_QUERIES, Source, recall
from matryoshka import Corpus, Funnel

BATCHES = (1, 64)
_AT_ONCE = 100_000
_TIMES, _WARM = 9, 2


@dataclass(frozen=True)
class File:
    """Rows in a file and the funnels that search them; `asked_for`: only when its group is named."""

    name: str
    source: Source
    plans: tuple[Funnel, ...]
    asked_for: bool = False

    @property
    def title(self) -> str:
        """What is searched, for tables and as the name of the row."""
        return f"{self.name}: {self.source}, funnel, best {K}"


FILES = {
    "mapped": File(
        "Memory-mapped",
        Source("decaying", 1_000_000, 2048),
        (Funnel.halving(2048, smallest=SHORT),),
    ),
    "disk": File(
        "On disk",
        Source("real-like", 10_000_000, 256),
        (bits(256, 256, keep=(200,)), bits(256, 256, keep=(1000,)), Funnel((SHORT, 256), (1000,))),
        asked_for=True,
    ),
}


def measured(group: str) -> dict[str, Any]:
    """Write the file of a group, search it in a process for each plan, and remove it."""
    file, module = FILES[group], "benchmarks.retrieval"
    with TemporaryDirectory(prefix="retrieval-") as folder:
        needed, free = 4 * file.source.n * file.source.dim, shutil.disk_usage(folder).free
        if free < 1.2 * needed:
            msg = f"{group} needs {1.2 * needed / 2**30:.0f} GiB in {folder}, which has {free / 2**30:.0f}; set TMPDIR."
            raise SystemExit(msg)
        list(clock.process(module, ("draw", group, folder), 2))
        plans = [
            json.loads(line)
            for i in range(len(file.plans))
            for line in clock.process(module, ("file", group, folder, i), 2)
        ]
    return {"group": group, "title": file.title, "k": K, "plans": plans}


def run(task: str, group: str, folder: Path, plan: int | None) -> None:
    """Do one task of a process: draw the rows, or search them with one of the plans."""
    if plan is None:
        _draw(FILES[group].source, folder)
    else:
        print(json.dumps(_search(FILES[group].plans[plan], folder)))


def _draw(source: Source, folder: Path) -> None:
    """Write rows, queries, and the nearest rows of the queries, drawn as so many smaller sets."""
    shape = (source.n, source.dim)
    rows = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=shape)
    starts = range(0, source.n, _AT_ONCE)
    queries = []
    for start in starts:
        some = Source(source.kind, min(_AT_ONCE, source.n - start), source.dim).draw(seed=start)
        rows[start : start + some.n] = some.rows
        queries.append(some.queries[: -(-N_QUERIES // len(starts))])
    rows.flush()
    asked = np.random.default_rng(0).permutation(np.concatenate(queries))[:N_QUERIES]
    np.save(folder / "queries.npy", asked)
    np.save(folder / "nearest.npy", _nearest(rows, asked))


def _nearest(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), _AT_ONCE):
        new = queries @ rows[start : start + _AT_ONCE].T
        scores = np.concatenate([scores, new], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(np.arange(start, start + new.shape[1]), new.shape)], axis=1)
        best = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
    return ids


def _search(plan: Funnel, folder: Path) -> dict[str, Any]:
    queries, nearest = np.load(folder / "queries.npy"), np.load(folder / "nearest.npy")
    with _most_private_bytes() as seen:
        corpus = Corpus(np.load(folder / "rows.npy", mmap_mode="r"), search_dims=plan.dims[:1], code=plan.code)
        starts = range(0, len(queries), BATCHES[-1])
        ids = [corpus.search(queries[s : s + BATCHES[-1]], K, funnel=plan)[1] for s in starts]
        seconds = {batch: _seconds(corpus, queries, plan, batch) for batch in BATCHES}
    held = corpus.nbytes
    return {
        "plan": repr(plan),
        "bytes": plan.bytes(len(corpus)),
        "recall": round(recall(np.concatenate(ids), nearest), 4),
        "private_bytes": max(seen),
        "held_bytes": held.memory,
        "seconds": seconds,
    }


def _seconds(corpus: Corpus, queries: np.ndarray, plan: Funnel, batch: int) -> float:
    """Return the median of the seconds of a batch, each of other queries."""
    parts, took = cycle(range(0, len(queries) - batch + 1, batch)), []
    for _ in range(_WARM + _TIMES):
        start = next(parts)
        began = time.perf_counter()
        corpus.search(queries[start : start + batch], K, funnel=plan)
        took.append(time.perf_counter() - began)
    return median(took[_WARM:])


@contextmanager
def _most_private_bytes() -> Iterator[list[int]]:
    """Watch how many bytes more this process shares with no other and with no file it has not written to (Linux)."""
    before, seen, done = _private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(_private_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def _private_bytes() -> int:
    with Path("/proc/self/smaps_rollup").open() as lines:
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private"))
