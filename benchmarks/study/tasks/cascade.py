"""Answer from the shortest prefix that is sure enough, and how the widths differ (tables 3 and 22, figures 6 and 12).

Thresholds are chosen on the held-out calibration rows and judged on the test rows, in each way that `CALIBRATIONS`
names. Networks of their own for each width (FF) make no cascade: they are the yardstick, and show what is chance in the
disagreement between widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from matryoshka import Cascade
from matryoshka.cascade import class_trends, oracle_routing

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

BOUND = 0.01
"""Of the certified cascades: how rarely they are wrong where the full width is right, or answer otherwise than it."""


def _without_labels(scores: np.ndarray, labels: np.ndarray, /, **options: Any) -> Cascade:
    del labels
    return Cascade.certify(scores, max_disagreement=BOUND, **options)


def _certified(scores: np.ndarray, labels: np.ndarray, /, **options: Any) -> Cascade:
    return Cascade.certify(scores, labels, max_gap=BOUND, **options)


CALIBRATIONS: Mapping[str, Callable[..., Cascade]] = {
    "published": Cascade.calibrate,
    "certified": _certified,
    "without labels": _without_labels,
}
"""Ways (scores (G, n, n_classes), labels (n,), *, nesting, from_logits) of choosing thresholds."""


def measure(bench: Bench, system: str, seed: int) -> dict[str, Any]:
    """Return each width alone, its disagreement with others, class trends, and of a nested system its cascades."""
    outputs, split = bench.outputs(system, seed), bench.split(seed)
    scores, labels, dims = outputs.logits["test"], split.test.labels, outputs.dims
    answers = scores.argmax(-1)
    oracle = oracle_routing(scores, labels, nesting=dims, from_logits=True)
    trends = class_trends(scores, labels, nesting=dims, from_logits=True)
    found = {
        "dims": list(dims),
        "n_rows": len(labels),
        "alone": np.mean(answers == labels, axis=1).tolist(),
        "oracle": {key: value for key, value in asdict(oracle).items() if key not in ("dims", "n_rows")},
        "only_right": only_right(answers, labels).tolist(),
        "trends": {name: len(classes) for name, classes in asdict(trends).items() if name != "dims"},
    }
    if outputs.nested:
        held_out = outputs.logits["calibration"], split.calibration.labels
        found["cascades"] = {
            name: chosen(calibrate(*held_out, nesting=dims, from_logits=True), scores, labels, from_logits=True)
            for name, calibrate in CALIBRATIONS.items()
        }
    return found


def only_right(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share of rows (G, G) that the width of the row gets right and the width of the column wrong.

    `answers` are (G, n), `labels` (n,).
    """
    right = (answers == labels).astype(np.float64)
    return right @ (1.0 - right).T / len(labels)


def chosen(cascade: Cascade, scores: np.ndarray, labels: np.ndarray, *, from_logits: bool) -> dict[str, Any]:
    """Return the record of a cascade on the rows of `scores` (G, n, n_classes).

    `fixed_dim` is the narrowest width that alone does as well, None if none does. A certificate that `holds` nothing
    sends all rows to the full width.
    """
    certificate = cascade.certificate
    return {
        "thresholds": list(cascade.thresholds),
        "holds": None if certificate is None else certificate.chosen is not None,
        "fixed_dim": cascade.evaluate(scores, labels, from_logits=from_logits).fixed_dim,
        **evaluated(cascade, scores, labels, from_logits=from_logits),
    }


def evaluated(cascade: Cascade, scores: np.ndarray, labels: np.ndarray, *, from_logits: bool = False) -> dict[str, Any]:
    """Return accuracy, cost and exits of a cascade, and its curve by cap."""
    whole = cascade.evaluate(scores, labels, from_logits=from_logits)
    return {
        "accuracy": whole.accuracy,
        "full_accuracy": None if whole.prefix_accuracy is None else whole.prefix_accuracy[-1],
        "gap": whole.gap,
        "disagreement": whole.disagreement,
        "expected_dim": whole.expected_dim,
        "cumulative_dim": whole.cumulative_dim,
        "exit_shares": list(whole.exit_shares),
        "curve": [
            {
                "cap": point.dims[-1],
                "accuracy": point.accuracy,
                "expected_dim": point.expected_dim,
                "cumulative_dim": point.cumulative_dim,
            }
            for point in cascade.curve(scores, labels, from_logits=from_logits)
        ],
    }
