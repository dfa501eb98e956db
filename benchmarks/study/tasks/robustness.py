"""What corrupted test rows cost each width: its head, and the nearest clean training row (table 17)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.study.corruptions import chosen
from matryoshka import Corpus, metrics

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench


def measure(bench: Bench, system: str, seed: int) -> dict[str, Any]:
    """Return accuracies per width of the same test rows as they are and in each corruption, and their ratio.

    `found["test/KIND/SEVERITY"]` and `found["test"]` hold "linear" (of a system with heads) and "nearest_neighbor",
    a number for each of `found["dims"]`; of corrupted rows also what these are "relative" to those of "test".

    Raises
    ------
    ValueError
        The system was run before the grid had this task.
    """
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    rows = chosen(len(split.test), seed)
    labels = split.test.labels[rows]
    parts = [part for part in outputs.embeddings if part.startswith("test/")]
    if not parts:
        msg = f"{system} must have embedded corrupted rows, got none; it is older than this task: remove its file."
        raise ValueError(msg)
    found: dict[str, Any] = {part: {"nearest_neighbor": []} for part in ("test", *parts)}
    for dim in outputs.dims:
        corpus = Corpus(outputs.embed("train", dim))
        for part in found:
            queries = outputs.embed(part, dim)
            _, ids = corpus.search(queries[rows] if part == "test" else queries, 1)
            accuracy = metrics.nearest_neighbor_accuracy(ids, split.train.labels, labels)
            found[part]["nearest_neighbor"].append(accuracy)
    for part in found if outputs.logits else ():
        answers = outputs.logits[part].argmax(-1)
        right = (answers[:, rows] if part == "test" else answers) == labels
        found[part]["linear"] = right.mean(-1).tolist()
    for part in parts:
        found[part]["relative"] = {
            judge: _relative(found[part][judge], clean) for judge, clean in found["test"].items()
        }
    return {"dims": list(outputs.dims), "n_rows": len(rows)} | found


def _relative(worse: list[float], clean: list[float]) -> list[float | None]:
    """Divide by the clean accuracies; there is no ratio to one of 0."""
    return [one / other if other else None for one, other in zip(worse, clean, strict=True)]
