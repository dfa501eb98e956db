"""What sentence embeddings lose when they are shortened, untrained: `python -m benchmarks.shortened FOLDER [--store]`.

The folder is that of `benchmarks.intents`: all-MiniLM-L6-v2 embeddings of CLINC150. The training questions are searched
for the nearest one of each question for validation and test, which shall be of the same intent. Rotations are fitted on
the training questions. Times are CPU time of one thread (set OMP_NUM_THREADS=1), one query at a time, the median of
several hundred. With `--store` the figures go to benchmarks/results/shortened.json and their table to docs/results.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.intents import read
from benchmarks.table import lines, measure_folder
from matryoshka import Corpus, Funnel, Rotation, metrics

WIDTHS, TIMED = (12, 24, 48, 96, 192), 500
Record = dict[str, Any]


def judged(
    way: str, rows: np.ndarray, queries: np.ndarray, labels: tuple[np.ndarray, np.ndarray], funnel: Funnel | None = None
) -> Record:
    """Return how often the nearest row has the query's label, the bytes of a row, and the time of a query."""
    corpus = Corpus(rows)
    _, ids = corpus.search(queries, 1, funnel=funnel)
    times = []
    for query in queries[:TIMED]:
        start = time.thread_time()
        corpus.search(query[None], 1, funnel=funnel)
        times.append(time.thread_time() - start)
    n_bytes = rows.shape[1] * rows.itemsize if funnel is None else rows.shape[1] // 8
    right = metrics.nearest_neighbor_accuracy(ids, *labels)
    return {"way": way, "dim": rows.shape[1], "bytes": n_bytes, "right": right, "ms": 1e3 * float(np.median(times))}


def measure(folder: Path) -> list[Record]:
    """Shorten in every way."""
    (train, own), (others, theirs) = read(folder, "train"), read(folder, "val", "test")
    rotation, labels, dim = Rotation.fit(train), (own, theirs), train.shape[1]
    turned = rotation.apply(train), rotation.apply(others)
    records = [judged("as it is", train, others, labels)]
    for width in WIDTHS:
        for way, (rows, queries) in (("plain cut", (train, others)), ("rotated, then cut", turned)):
            cut = np.ascontiguousarray(rows[:, :width]), np.ascontiguousarray(queries[:, :width])
            records.append(judged(way, *cut, labels))
    records.append(judged("one bit a column", train, others, labels, Funnel((dim,), code="bits")))
    return records


def page(records: list[Record]) -> str:
    """Return the table, ways of one size below each other."""
    head = ("stored", "columns", "bytes a row", "nearest is of the same intent", "ms a query")
    ordered = sorted(records, key=lambda record: (-record["bytes"], record["right"]))
    rows = [
        (r["way"], str(r["dim"]), f"{r['bytes']:,}", f"{r['right']:.1%}".replace("%", " %"), f"{r['ms']:.2f}")
        for r in ordered
    ]
    return "\n".join(lines(head, rows)) + "\n"


if __name__ == "__main__":
    measure_folder("shortened", __doc__, measure, page)
