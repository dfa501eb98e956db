"""Which calibration keeps what it promises, and what that costs: `python -m benchmarks.promises [--store]`.

Draws calibration rows from a known population, chooses thresholds in three ways, and looks at the whole population.
With `--store` the figures go to benchmarks/results/promises.json and their table to docs/results/promises.md.
Takes some two minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.table import store
from matryoshka import Cascade

DIMS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
DRAWS = {500: 300, 3000: 60, 10_000: 30}
MAX_GAP, DELTA = 0.01, 0.1
MEANS = ("gap", "accuracy", "expected_dim", "cumulative_dim")
Rows = tuple[np.ndarray, np.ndarray]


def population(n: int = 20_000, n_classes: int = 20) -> Rows:
    """Rows whose prefixes lose noise as they widen, with accuracies 0.54, 0.63, 0.69, 0.71, 0.72, 0.73, ..."""
    rng = np.random.default_rng(1)
    labels = rng.integers(n_classes, size=n)
    difficulty = 2.6 * rng.gamma(1.6, 1.0, size=(n, 1))
    clean = difficulty * np.eye(n_classes)[labels] + rng.normal(size=(n, n_classes))
    noise = 1.3 * 0.62 ** np.arange(9)[:, None, None] * rng.normal(size=(9, n, n_classes))
    powers = np.exp(clean + 0.9 * np.cumsum(noise[::-1], axis=0)[::-1])
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32), labels


def tuned(probabilities: np.ndarray, labels: np.ndarray) -> Cascade:
    """One threshold for all prefixes, the lowest whose gap on these rows is at most MAX_GAP; no test."""
    for threshold in np.linspace(0.0, 1.0, 51):
        cascade = Cascade(DIMS, (float(threshold),) * 8)
        if cascade.evaluate(probabilities, labels).gap <= MAX_GAP:
            return cascade
    msg = "a threshold of 1 has no gap"
    raise AssertionError(msg)


RULES: dict[str, Callable[[np.ndarray, np.ndarray], Cascade]] = {
    "`calibrate`, the published rule": lambda p, y: Cascade.calibrate(p, y, nesting=DIMS),
    "one threshold, tuned without a test": tuned,
    "`certify`": lambda p, y: Cascade.certify(p, y, nesting=DIMS, max_gap=MAX_GAP, delta=DELTA),
}


def measure(everything: Rows) -> list[dict[str, Any]]:
    """Return a record for each number of rows and each rule, of means over the draws."""
    probabilities, labels = everything
    records = []
    for n, draws in DRAWS.items():
        rng = np.random.default_rng(n)
        chosen = [rng.integers(len(labels), size=n) for _ in range(draws)]
        for name, rule in RULES.items():
            found = [rule(probabilities[:, rows], labels[rows]).evaluate(*everything) for rows in chosen]
            records.append(
                {
                    "rows": n,
                    "draws": draws,
                    "rule": name,
                    "broken": float(np.mean([e.gap > MAX_GAP for e in found])),
                    **{name: float(np.mean([getattr(e, name) for e in found])) for name in MEANS},
                    "full_accuracy": found[0].prefix_accuracy[-1],
                }
            )
    return records


def markdown(records: list[dict[str, Any]]) -> str:
    """Return the table of the documentation."""
    accuracy = f"accuracy (full width {records[0]['full_accuracy']:.1%})"
    head = f"calibration rows | rule | gap above {MAX_GAP:.0%} in | mean gap | {accuracy}"
    lines = [f"| {head} | mean exit dim | separate heads pay |", "|---:|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {r['rows']:,} | {r['rule']} | {r['broken']:.0%} of {r['draws']} draws | {r['gap']:.2%} "
        f"| {r['accuracy']:.1%} | {r['expected_dim']:,.0f} | {r['cumulative_dim']:,.0f} |"
        for r in records
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and store on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true", help="keep the figures and the table in the repository")
    arguments = parser.parse_args()
    records = measure(population())
    print(table := markdown(records))
    if arguments.store:
        store("promises", records, table)


if __name__ == "__main__":
    main()
