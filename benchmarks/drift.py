"""How soon a monitor sees that a promise is broken, and how often it errs: `python -m benchmarks.drift [--store]`.

Feeds monitors with rows that fail at a known rate: first rows that keep the promise, then rows that break it.
With `--store` the figures go to benchmarks/results/drift.json and their table to docs/results/drift.md.
Takes about a minute.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from benchmarks.table import store
from matryoshka.cascade import CascadeMonitor

RUNS, DELTA, BATCH = 1000, 0.05, 10
ROWS_AT_MOST = 50_000
COURSES = (
    (0.001, 0, 0.0, 0.021),
    (0.01, 0, 0.0, 0.03),
    (0.01, 0, 0.0, 0.02),
    (0.05, 0, 0.0, 0.07),
    (0.1, 0, 0.0, 0.12),
    (0.01, 1000, 0.005, 0.03),
    (0.01, 10_000, 0.005, 0.03),
    (0.01, 100_000, 0.005, 0.03),
    (0.01, 100_000, 0.0, 0.03),
    (0.01, 100_000, 0.01, 0.03),
    (0.001, 100_000, 0.001, 0.021),
    (0.1, 100_000, 0.1, 0.12),
)
"""The bound that was promised, so many rows at so high a rate, and the rate from then on."""


def rows_to_alarm(monitor: CascadeMonitor, rate: float, rng: np.random.Generator) -> float:
    """Feed batches that fail at this rate until there is an alarm; infinity if there is none for long."""
    for n_rows in range(BATCH, ROWS_AT_MOST + 1, BATCH):
        monitor.update(rng.random(BATCH) < rate)
        if monitor.alarm:
            return n_rows
    return math.inf


def measure() -> list[dict[str, Any]]:
    """Return a record for each course: false alarms before the promise is broken, and the delays of the others."""
    records = []
    for bound, good_rows, good_rate, rate in COURSES:
        rng = np.random.default_rng(1)
        delays = []
        for _ in range(RUNS):
            monitor = CascadeMonitor(promise="max_gap", bound=bound, delta=DELTA, cascade=0)
            monitor.update(rng.random(good_rows) < good_rate)
            if not monitor.alarm:
                delays.append(rows_to_alarm(monitor, rate, rng))
        records.append(
            {
                "bound": bound,
                "good_rows": good_rows,
                "good_rate": good_rate,
                "rate": rate,
                "runs": RUNS,
                "delta": DELTA,
                "false_alarms": RUNS - len(delays),
                "median": float(np.median(delays)),
                "within_95": float(np.quantile(delays, 0.95, method="higher")),
            }
        )
    return records


def markdown(records: list[dict[str, Any]]) -> str:
    """Return the table of the documentation."""
    lines = [
        "| promised rate | first | alarms by then | then a rate of | rows to the alarm, median | 95 % of runs within |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for r in records:
        first = f"{r['good_rows']:,} rows at {r['good_rate']:.1%}" if r["good_rows"] else "–"
        alarms = f"{r['false_alarms'] / r['runs']:.1%}" if r["good_rows"] else "–"
        lines.append(
            f"| {r['bound']:.1%} | {first} | {alarms} | {r['rate']:.1%} | {r['median']:,.0f} | {r['within_95']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and store on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep the figures and the table in the repository")
    arguments = parser.parse_args()
    records = measure()
    print(table := markdown(records))
    if arguments.store:
        store("drift", records, table)


if __name__ == "__main__":
    main()
