"""Which calibration keeps what it promises, and what that costs: `python -m benchmarks.promises [PART ...] [--store]`.

Draws calibration rows from three known populations, chooses thresholds, and looks at the whole population: how many
rows to bring (`rows`), which rule to take (`rules`), and how often promises are broken (`kept`). With `--store` the
figures go to benchmarks/results/promises_PART.json and their tables to docs/results. All parts take some 14 minutes of
one thread.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.table import store
from matryoshka import Cascade

DIMS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
BOUND, DELTA = 0.01, 0.1
FEW, KEPT_ROWS, KEPT_DRAWS = 500, 600, 1000
ROWS = (
    *((n, 0) for n in (300, 500, 1000, 3000, 10_000)),
    *((500, 5000), (3000, 10_000)),
    *((0, n) for n in (500, 1000, 3000, 10_000)),
)
"""Rows with and without labels."""
Rows = tuple[np.ndarray, np.ndarray]


def population(n: int = 20_000, n_classes: int = 20) -> Rows:
    """Rows whose prefixes lose noise as they widen, with accuracies 0.54, 0.63, 0.69, 0.71, 0.72, 0.73, ..."""
    rng = np.random.default_rng(1)
    labels = rng.integers(n_classes, size=n)
    difficulty = 2.6 * rng.gamma(1.6, 1.0, size=(n, 1))
    clean = difficulty * np.eye(n_classes)[labels] + rng.normal(size=(n, n_classes))
    noise = 1.3 * 0.62 ** np.arange(9)[:, None, None] * rng.normal(size=(9, n, n_classes))
    return _softmax(clean + 0.9 * _widening(noise)), labels


def overconfident(n: int = 12_000, n_classes: int = 60) -> Rows:
    """Many classes, nearly all right: 0.77, 0.90, 0.96, 0.98, 0.99, ..., and the narrow prefixes far too sure."""
    rng = np.random.default_rng(2)
    labels = rng.integers(n_classes, size=n)
    difficulty = 2.0 + 9.0 * rng.beta(2.5, 1.2, size=(n, 1))
    clean = difficulty * np.eye(n_classes)[labels] + rng.normal(size=(n, n_classes))
    noise = 1.6 * 0.7 ** np.arange(9)[:, None, None] * rng.normal(size=(9, n, n_classes))
    return _softmax((clean + _widening(noise)) * np.linspace(2.0, 1.0, 9)[:, None, None]), labels


def heavy_tailed(n: int = 20_000, n_classes: int = 5) -> Rows:
    """Few classes, hard to tell apart: 0.51, 0.56, 0.58, 0.59, 0.60, ...; most disagreements are no gap."""
    rng = np.random.default_rng(3)
    labels = rng.integers(n_classes, size=n)
    difficulty = 2.2 * rng.gamma(1.0, 1.0, size=(n, 1))
    clean = difficulty * np.eye(n_classes)[labels] + rng.standard_t(4, size=(n, n_classes))
    noise = 0.8 * 0.55 ** np.arange(9)[:, None, None] * rng.standard_t(5, size=(9, n, n_classes))
    return _softmax(0.6 * (clean + _widening(noise))), labels


def _widening(noise: np.ndarray) -> np.ndarray:
    """Sum the noise that each prefix still has, (9, n, c)."""
    return np.cumsum(noise[::-1], axis=0)[::-1]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


POPULATIONS = {
    "20 classes, 73 % right": population,
    "60 classes, 99 % right": overconfident,
    "5 classes, 60 % right": heavy_tailed,
}


class World:
    """A population whose every answer is known, computed apart from the library."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        self.probabilities, self.labels = probabilities, labels
        self.answers = probabilities.argmax(-1)
        second, first = np.partition(probabilities, -2, axis=-1)[..., -2:].transpose(2, 0, 1)
        self.confidences = {"max_probability": first, "margin": first - second}
        full = self.answers[-1]
        # Ease with noise, in three unequal parts: groups that differ in what they allow.
        ease = self.confidences["margin"][-1] + np.random.default_rng(0).normal(scale=0.3, size=len(labels))
        self.groups = np.searchsorted(np.quantile(ease, [0.15, 0.5]), ease)
        self.error = float(np.mean(full != labels))

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw rows with replacement."""
        return rng.integers(len(self.labels), size=n)

    def of(self, cascade: Cascade, rows: np.ndarray | slice = np.s_[:]) -> dict[str, float]:
        """Return what a cascade truly does on the population, or on a part of it."""
        confidence = self.confidences[cascade.confidence][:, rows]
        answers, labels = self.answers[:, rows], self.labels[rows]
        stage = np.full(len(labels), len(DIMS) - 1)
        for i in reversed(range(len(cascade.thresholds))):
            stage[confidence[i] > cascade.thresholds[i]] = i
        answer = answers[stage, np.arange(len(labels))]
        wrong = answer != labels
        asked = np.where(np.append(cascade.thresholds, 0.0) < 1.0, DIMS, 0)  # at a threshold of 1 no row can exit
        return {
            "gap": float(np.mean(wrong & (answers[-1] == labels))),
            "error": float(np.mean(wrong)),
            "disagreement": float(np.mean(answer != answers[-1])),
            "expected_dim": float(np.mean(np.asarray(DIMS)[stage])),
            "cumulative_dim": float(np.mean((np.cumsum(asked) - asked + DIMS)[stage])),
        }


def tuned(probabilities: np.ndarray, labels: np.ndarray) -> Cascade:
    """One threshold for all prefixes, the lowest whose gap on these rows is at most BOUND; no test."""
    for threshold in np.linspace(0.0, 1.0, 51):
        cascade = Cascade(DIMS, (float(threshold),) * 8)
        if cascade.evaluate(probabilities, labels).gap <= BOUND:
            return cascade
    msg = "a threshold of 1 has no gap"
    raise AssertionError(msg)


def certified(**options: Any) -> Callable[[np.ndarray, np.ndarray], Cascade]:
    """Return the rule that certifies a gap with these options."""
    return lambda p, y: Cascade.certify(p, y, nesting=DIMS, max_gap=BOUND, delta=DELTA, **options)


RULES: dict[str, Callable[[np.ndarray, np.ndarray], Cascade]] = {
    "`calibrate`, the published rule": lambda p, y: Cascade.calibrate(p, y, nesting=DIMS),
    "one threshold, tuned without a test": tuned,
    "`certify`, one threshold on the largest probability": certified(path="shared", confidence="max_probability"),
    "`certify`, one threshold on the margin": certified(path="shared"),
    "`certify`, fitted on the largest probability": certified(path="fitted", confidence="max_probability"),
    "`certify`, fitted on the margin": certified(path="fitted"),
    "`certify`, tapered on the largest probability": certified(path="tapered", confidence="max_probability"),
    "`certify`, tapered on the margin": certified(path="tapered"),
}


def mean(found: list[dict[str, float]], key: str) -> float:
    """Return the mean of a figure over draws."""
    return float(np.mean([each[key] for each in found]))


def rules(worlds: dict[str, World]) -> list[dict[str, Any]]:
    """Return a record for each number of rows and each rule, of means over the draws from the first population."""
    records, world = [], next(iter(worlds.values()))
    for n, draws in {FEW: 100, 3000: 30, 10_000: 15}.items():
        rng = np.random.default_rng(n)
        chosen = [world.draw(rng, n) for _ in range(draws)]
        for name, rule in RULES.items():
            found = [world.of(rule(world.probabilities[:, drawn], world.labels[drawn])) for drawn in chosen]
            broken = float(np.mean([each["gap"] > BOUND for each in found]))
            keys = ("gap", "error", "expected_dim", "cumulative_dim")
            means = {key: mean(found, key) for key in keys}
            record = {"rows": n, "draws": draws, "rule": name, "broken": broken, **means}
            records.append(record | {"full_error": world.error})
    return records


def rows(worlds: dict[str, World]) -> list[dict[str, Any]]:
    """Return a record for each number of rows with and without labels, on each population."""
    records = []
    for (labelled, unlabelled), (name, world) in itertools.product(ROWS, worlds.items()):
        n = labelled + unlabelled
        draws = 300 if n < 3000 or (labelled, unlabelled) == (FEW, 5000) else 60
        rng, key = np.random.default_rng(n), "gap" if labelled else "disagreement"
        found = []
        for _ in range(draws):
            drawn = world.draw(rng, n)
            labels = np.where(np.arange(n) < labelled, world.labels[drawn], -1) if labelled else None
            cascade = Cascade.certify(
                world.probabilities[:, drawn], labels, nesting=DIMS, delta=DELTA, **{f"max_{key}": BOUND}
            )
            found.append(world.of(cascade))
        broken = float(np.mean([each[key] > BOUND for each in found]))
        means = {key: mean(found, key) for key in ("gap", "disagreement", "expected_dim")}
        record = {"labelled": labelled, "unlabelled": unlabelled, "promise": key, "population": name, "draws": draws}
        records.append(record | {"broken": broken, **means})
    return records


def _trial(world: World, promise: str, path: str, rng: np.random.Generator) -> dict[str, float]:
    """Draw rows, certify a promise on them, and tell whether it is broken, and the mean exit."""
    drawn = world.draw(rng, KEPT_ROWS * (3 if promise == "gap in three groups" else 1))
    options: dict[str, Any] = {"nesting": DIMS, "delta": DELTA, "path": path}
    probabilities, labels = world.probabilities[:, drawn], world.labels[drawn]
    if promise == "gap in three groups":
        cascades = Cascade.certify(probabilities, labels, groups=world.groups[drawn], max_gap=0.03, **options)
        parts = {group: np.flatnonzero(world.groups == group) for group in cascades}
        found = {group: world.of(cascades[group], part) for group, part in parts.items()}
        exit_dim = sum(found[group]["expected_dim"] * len(part) for group, part in parts.items()) / len(world.labels)
        return {"broken": any(each["gap"] > 0.03 for each in found.values()), "expected_dim": exit_dim}
    key, bound = {
        "gap": ("gap", 0.02),
        "gap, half of the rows unlabelled": ("gap", 0.02),
        "error": ("error", world.error + 0.04),
        "disagreement": ("disagreement", 0.03),
    }[promise]
    if promise == "disagreement":
        labels = None
    if "unlabelled" in promise:
        labels = np.where(np.arange(len(drawn)) % 2, labels, -1)
    try:
        cascade = Cascade.certify(probabilities, labels, **{f"max_{key}": bound}, **options)
    except ValueError as error:  # not even the full width passed, so nothing was promised
        if "max_error" not in str(error):
            raise
        return {"broken": False, "expected_dim": DIMS[-1]}
    of = world.of(cascade)
    return {"broken": of[key] > bound, "expected_dim": of["expected_dim"]}


PROMISES = (
    ("gap", "tapered"),
    ("gap", "fitted"),
    ("gap, half of the rows unlabelled", "fitted"),
    ("error", "tapered"),
    ("disagreement", "fitted"),
    ("gap in three groups", "tapered"),
)
"""What is promised, and the path it is tested along."""


def kept(worlds: dict[str, World]) -> list[dict[str, Any]]:
    """Return a record for each promise, path and population: how often it was broken."""
    records = []
    for (promise, path), (name, world) in itertools.product(PROMISES, worlds.items()):
        rng = np.random.default_rng(7)
        found = [_trial(world, promise, path, rng) for _ in range(KEPT_DRAWS)]
        record = {"promise": promise, "path": path, "population": name, "draws": KEPT_DRAWS}
        records.append(record | {key: mean(found, key) for key in ("broken", "expected_dim")})
    return records


def rules_table(records: list[dict[str, Any]]) -> str:
    """Return the table that compares rules."""
    head = (
        f"rows | rule | gap above {BOUND:.0%} in | mean gap | accuracy (full width {1 - records[0]['full_error']:.1%})"
    )
    lines = [f"| {head} | mean exit dim | separate heads pay |", "|---:|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {r['rows']:,} | {r['rule']} | {r['broken']:.0%} of {r['draws']} draws | {r['gap']:.2%} "
        f"| {1 - r['error']:.1%} | {r['expected_dim']:,.0f} | {r['cumulative_dim']:,.0f} |"
        for r in records
    ]
    return "\n".join(lines) + "\n"


def _rows_of(records: Iterable[dict[str, Any]], *keys: str) -> Iterable[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Group records of the three populations into one row of a table."""
    for values, group in itertools.groupby(records, key=lambda record: tuple(record[key] for key in keys)):
        yield values, list(group)


def rows_table(records: list[dict[str, Any]]) -> str:
    """Return the table that says how many rows to bring."""
    head = " | ".join(POPULATIONS)
    lines = [
        f"| labelled | unlabelled | promised, at most {BOUND:.0%} | {head} | broken in |",
        "|---:|---:|---|" + "---:|" * 4,
    ]
    for (labelled, unlabelled, promise), found in _rows_of(records, "labelled", "unlabelled", "promise"):
        exits = " | ".join(f"{r['expected_dim']:,.0f}" for r in found)
        broken = "/".join(f"{100 * r['broken']:.0f}" for r in found)
        counts = " | ".join(f"{count:,}" if count else "–" for count in (labelled, unlabelled))
        lines.append(f"| {counts} | {promise} | {exits} | {broken} % |")
    return "\n".join(lines) + "\n"


def kept_table(records: list[dict[str, Any]]) -> str:
    """Return the table that counts broken promises."""
    lines = [f"| promise | path | {' | '.join(POPULATIONS)} |", "|---|---|---:|---:|---:|"]
    for (promise, path), found in _rows_of(records, "promise", "path"):
        lines.append(f"| {promise} | {path} | {' | '.join(format(r['broken'], '.1%') for r in found)} |")
    return "\n".join(lines) + "\n"


PARTS: dict[str, tuple[Callable[[dict[str, World]], list[dict[str, Any]]], Callable[[list[dict[str, Any]]], str]]] = {
    "rows": (rows, rows_table),
    "rules": (rules, rules_table),
    "kept": (kept, kept_table),
}


def main() -> None:
    """Measure, print, and store on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--store", action="store_true", help="keep the figures and the tables in the repository")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    worlds = {name: World(*make()) for name, make in POPULATIONS.items()}
    for part in arguments.parts or PARTS:
        measure, table = PARTS[part]
        records = measure(worlds)
        print(page := table(records), flush=True)
        if arguments.store:
            store(f"promises_{part}", records, page)


if __name__ == "__main__":
    main()
