"""Answer from the shortest prefix that is sure enough: accuracy against expected dimension.

Thresholds are chosen on the held-out calibration rows and judged on the test rows. `CALIBRATIONS` names the ways of
choosing them; each becomes a row of the table.
"""

from __future__ import annotations

from typing import Any

from benchmarks.study.data import Split
from benchmarks.study.networks import Network
from benchmarks.study.tasks.cascade import CALIBRATIONS, evaluated


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
                    **evaluated(cascade, probabilities, split.test.labels),
                }
            )
    return records
