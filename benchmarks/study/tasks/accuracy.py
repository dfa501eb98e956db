"""How good each width is by itself: its head, and the nearest training row (tables 1 and 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka import Corpus, metrics

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench


def measure(bench: Bench, system: str, seed: int) -> dict[str, Any]:
    """Return the share of test rows that the head, and the nearest training row by cosine, label rightly."""
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    found: dict[str, Any] = {"dims": list(outputs.dims), "nearest_neighbor": []}
    if outputs.logits:
        answers = outputs.logits["test"].argmax(-1)
        found["linear"] = [float(np.mean(answer == split.test.labels)) for answer in answers]
    for dim in outputs.dims:
        corpus = Corpus(outputs.embed("train", dim))
        _, ids = corpus.search(outputs.embed("test", dim), 1)
        found["nearest_neighbor"].append(metrics.nearest_neighbor_accuracy(ids, split.train.labels, split.test.labels))
    return found
