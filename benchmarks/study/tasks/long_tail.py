"""Systems trained on frequent and rare classes, and on some classes only (table 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.study import selections
from matryoshka import Corpus, metrics, truncate

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench
    from benchmarks.study.data import Split
    from benchmarks.study.outputs import Outputs

K = 10
MOST_QUERIES = 2000


def measure(bench: Bench, system: str, seed: int) -> dict[str, Any]:
    """Return accuracies per width on the test rows of the frequent, middling and rare classes.

    `found["head"]`, "middle" and "tail" hold "linear" (of a system with heads), "nearest_neighbor" and "class_mean"
    (the nearest class mean), a number for each of `found["dims"]`. Neighbours and means are those of the rows that
    training has seen.
    """
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    kept = selections.long_tail(split.train.labels, seed)
    labels, counts = split.train.labels[kept], np.bincount(split.train.labels[kept])
    found: dict[str, Any] = {"dims": list(outputs.dims), "n_train": int(kept.sum())}
    for group, classes in selections.thirds(labels).items():
        rows = np.flatnonzero(np.isin(split.test.labels, classes))
        found[group] = {
            "n_classes": len(classes),
            "fewest_rows": int(counts[classes].min()),
            "most_rows": int(counts[classes].max()),
            "n_queries": len(rows),
        }
        if outputs.logits:
            right = outputs.logits["test"][:, rows].argmax(-1) == split.test.labels[rows]
            found[group]["linear"] = right.mean(-1).tolist()
        judged = _judged(outputs, split, kept, rows)
        found[group] |= {name: judged[name] for name in ("nearest_neighbor", "class_mean")}
    return found


def unseen(bench: Bench, system: str, seed: int) -> dict[str, Any]:
    """Return what neighbours are worth on classes that training has not seen, per width.

    `found["unseen"]` is of queries and a corpus of these classes only, `found["unseen among all"]` of a corpus of all
    classes; `found["seen among all"]` stands beside it. Each holds "nearest_neighbor", "class_mean" and "map@10".
    """
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    seen = selections.seen(split.train.labels, seed)
    new_classes = np.unique(split.train.labels[~seen])
    new = np.isin(split.test.labels, new_classes)
    everything, rng = np.ones_like(seen), np.random.default_rng(seed)
    of_new, of_seen = (rng.permutation(np.flatnonzero(asked))[:MOST_QUERIES] for asked in (new, ~new))
    found: dict[str, Any] = {"dims": list(outputs.dims), "n_classes": len(new_classes)}
    for name, known, asked in (
        ("unseen", ~seen, of_new),
        ("unseen among all", everything, of_new),
        ("seen among all", everything, of_seen),
    ):
        found[name] = {"n_corpus": int(known.sum()), "n_queries": len(asked)}
        found[name] |= _judged(outputs, split, known, asked)
    return found


def _judged(outputs: Outputs, split: Split, known: np.ndarray, asked: np.ndarray) -> dict[str, list[float]]:
    """Return how well the training rows `known` label and find the test rows `asked`, at each width."""
    labels, wanted = split.train.labels[known], split.test.labels[asked]
    found: dict[str, list[float]] = {"nearest_neighbor": [], "class_mean": [], f"map@{K}": []}
    for dim in outputs.dims:
        rows, queries = (
            truncate(outputs.embed(part, dim), dim)[some] for part, some in (("train", known), ("test", asked))
        )
        _, ids = Corpus(rows).search(queries, K)
        means = metrics.nearest_class_mean_accuracy(rows, labels, queries, wanted)
        precision = metrics.mean_average_precision(metrics.relevance(ids, labels, wanted), K)
        accuracy = metrics.nearest_neighbor_accuracy(ids, labels, wanted)
        for values, value in zip(found.values(), (accuracy, means, precision), strict=True):
            values.append(value)
    return found
