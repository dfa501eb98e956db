"""Whether a wrong answer is at least of the right kind: accuracy over superclasses, by width (table 25, figure 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka import Corpus, metrics

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench
    from benchmarks.study.data import Split
    from benchmarks.study.outputs import Outputs


def measure(bench: Bench, system: str, seed: int) -> dict[str, Any]:
    """Return accuracies per width when answers and labels are mapped to superclasses; nothing is trained again.

    `found["linear"]` (of a system with heads) and `found["nearest_neighbor"]` hold "class" and "superclass", a number
    for each of `found["dims"]`, and "by superclass", such a list for each.

    Raises
    ------
    ValueError
        The classes of the data set belong to no superclasses.
    """
    superclasses, names = bench.dataset.superclasses, bench.dataset.superclass_names
    if superclasses is None or names is None:
        msg = (
            f"the task superclass needs superclasses, got {bench.dataset.name}, which has none; take it from the grid."
        )
        raise ValueError(msg)
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    labels = split.test.labels
    answers = {"nearest_neighbor": np.stack([_nearest_labels(outputs, split, dim) for dim in outputs.dims])}
    if outputs.logits:
        answers["linear"] = outputs.logits["test"].argmax(-1)
    found: dict[str, Any] = {"dims": list(outputs.dims)}
    for judge, by_dim in answers.items():
        found[judge] = {
            "class": (by_dim == labels).mean(-1).tolist(),
            "superclass": _accuracies(by_dim, labels, superclasses),
            "by superclass": {
                name: _accuracies(by_dim[:, rows], labels[rows], superclasses)
                for number, name in enumerate(names)
                if (rows := superclasses[labels] == number).any()
            },
        }
    return found


def _accuracies(by_dim: np.ndarray, labels: np.ndarray, superclasses: np.ndarray) -> list[float]:
    return [metrics.superclass_accuracy(answers, labels, superclasses) for answers in by_dim]


def _nearest_labels(outputs: Outputs, split: Split, dim: int) -> np.ndarray:
    _, ids = Corpus(outputs.embed("train", dim)).search(outputs.embed("test", dim), 1)
    return split.train.labels[ids[:, 0]]
