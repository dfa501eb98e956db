"""Answer from the shortest prefix that is sure enough: accuracy against expected dimension.

Thresholds are chosen on the held-out calibration rows and judged on the test rows. `CALIBRATIONS` names the ways of
choosing them; each becomes a row of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.study.data import Split
from benchmarks.study.networks import Network
from matryoshka import Cascade

CALIBRATIONS: dict[str, Callable[..., Cascade]] = {
    "published": Cascade.calibrate,
    "certified": Cascade.certify,
    "without labels": lambda probabilities, _, *, nesting: Cascade.certify(
        probabilities, nesting=nesting, max_disagreement=0.01
    ),
}


def run(networks: dict[str, Network], split: Split, dims: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return one record for each network and each way of choosing thresholds."""
    records = []
    for name, network in networks.items():
        held_out = network.probabilities(split.calibration.features)
        probabilities = network.probabilities(split.test.features)
        for calibration, calibrate in CALIBRATIONS.items():
            cascade = calibrate(held_out, split.calibration.labels, nesting=dims)
            records.append(
                {
                    "network": name,
                    "calibration": calibration,
                    "thresholds": list(cascade.thresholds),
                    **_measure(cascade, probabilities, split.test.labels),
                }
            )
    return records


def _measure(cascade: Cascade, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    whole = cascade.evaluate(probabilities, labels)
    return {
        "accuracy": whole.accuracy,
        "full_accuracy": whole.prefix_accuracy[-1],
        "expected_dim": whole.expected_dim,
        "cumulative_dim": whole.cumulative_dim,
        "exit_shares": list(whole.exit_shares),
        "curve": [
            {"cap": point.dims[-1], "accuracy": point.accuracy, "expected_dim": point.expected_dim}
            for point in cascade.curve(probabilities, labels)
        ],
    }
