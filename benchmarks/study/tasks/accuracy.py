"""How good each width is by itself: its head, and the nearest training row (tables 1 and 2, figure 5).

The widths in `dims` are those the system was trained at. Of a nested system any other prefix is an embedding too: those
halfway between two trained ones, and the ladder of the grid where the system was trained at another, are measured as
`untrained`. Only a shared head (MRL-E) can be cut there: separate heads do not exist at other widths.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.study.data import Split
from benchmarks.study.outputs import Outputs
from matryoshka import Corpus, metrics

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

CLOSE = 1e-3
"""How near a recovered head comes to the logits, as a share of the largest: more than float32 loses."""


def measure(bench: Bench, system: str, seed: int, *, most_queries: int | None = None) -> dict[str, Any]:
    """Return the share of test rows that the head, and the nearest training row by cosine, label rightly.

    `most_queries` test rows, drawn by the seed, look for their nearest row; by default all.
    """
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    asked, labels = some(len(split.test), most_queries, seed), split.test.labels
    found: dict[str, Any] = {"dims": list(outputs.dims), "queries": len(asked)}
    found["nearest_neighbor"] = _nearest(outputs, split, asked, outputs.dims)
    if outputs.logits:
        found["linear"] = [share_right(answers, labels) for answers in outputs.logits["test"].argmax(-1)]
    if others := untrained(outputs, bench.grid.dims):
        found["untrained"] = {"dims": others, "nearest_neighbor": _nearest(outputs, split, asked, others)}
        if bench.grid.systems[system].get("tied", False):
            weight, bias = shared_head(outputs)
            logits = (outputs.embed("test", dim) @ weight[:, :dim].T + bias for dim in others)
            found["untrained"]["linear"] = [share_right(values.argmax(-1), labels) for values in logits]
    return found


def untrained(outputs: Outputs, ladder: Iterable[int]) -> list[int]:
    """Return the widths to measure where a nested system was not trained: halfway between two, and of the ladder."""
    if not outputs.nested:
        return []
    halfway = {(low + high) // 2 for low, high in pairwise(outputs.dims)}
    within = {dim for dim in ladder if dim <= outputs.dims[-1]}
    return sorted((halfway | within) - set(outputs.dims))


def some(n: int, most: int | None, seed: int) -> np.ndarray:
    """Return all of `n` rows, or `most` of them drawn by the seed, in order."""
    if most is None or most >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def share_right(answers: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of answers (n,) that are the label."""
    return float(np.mean(answers == labels))


def nearest_neighbor(
    rows: np.ndarray, queries: np.ndarray, labels: tuple[np.ndarray, np.ndarray], dims: Iterable[int]
) -> list[float]:
    """Return the share of queries (n_queries, dim) whose nearest row (n, dim) by cosine has their label, by width.

    `labels` are those of the rows and of the queries.
    """
    corpus = Corpus(rows)
    found = (corpus.search(queries, 1, dim=dim)[1] for dim in dims)
    return [metrics.nearest_neighbor_accuracy(ids, *labels) for ids in found]


def _nearest(outputs: Outputs, split: Split, asked: np.ndarray, dims: Iterable[int]) -> list[float]:
    def found(dim: int, at: Iterable[int]) -> list[float]:
        queries, labels = outputs.embed("test", dim)[asked], (split.train.labels, split.test.labels[asked])
        return nearest_neighbor(outputs.embed("train", dim), queries, labels, at)

    return found(outputs.dims[-1], dims) if outputs.nested else [found(dim, [dim])[0] for dim in dims]


def shared_head(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (n_classes, dims[-1]) and bias (n_classes,) of a tied head, from what it answered.

    The columns between two widths account for the difference of their logits, so they solve a linear system over the
    calibration rows; the test rows tell whether the head was one.

    Raises
    ------
    ValueError
        No such head gives these logits.
    """
    rows, logits = (
        outputs.embed("calibration", outputs.dims[-1]).astype(np.float64),
        outputs.logits["calibration"].astype(np.float64),
    )
    first = np.column_stack([rows[:, : outputs.dims[0]], np.ones(len(rows))])
    solved = np.linalg.lstsq(first, logits[0], rcond=None)[0]
    parts, bias = [solved[:-1]], solved[-1]
    for (low, high), (less, more) in zip(pairwise(outputs.dims), pairwise(logits), strict=True):
        parts.append(np.linalg.lstsq(rows[:, low:high], more - less, rcond=None)[0])
    weight = np.concatenate(parts).T
    for dim, given in zip(outputs.dims, outputs.logits["test"], strict=True):
        fault = np.abs(outputs.embed("test", dim) @ weight[:, :dim].T + bias - given).max()
        if not fault <= CLOSE * np.abs(given).max():
            msg = f"the logits must be those of one shared head, got some that are off by {fault:.2g} at width {dim}."
            raise ValueError(msg)
    return weight, bias
