"""Records of a study that was never run, for tests of the page: accuracies that rise with width, by made-up systems."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np

DIMS = [4, 8, 16, 32, 64]
SEEDS = (0, 1, 2)
LOSS = {
    "MRL": 0.5,
    "MRL-E": 0.7,
    "FF": 0.6,
    "SVD": 1.4,
    "PCA": 1.5,
    "Rand": 3.0,
    "Slim": 0.9,
    "rotation": 1.3,
    "raw": 2.0,
    "raw rotation": 1.6,
    "fine-tune 0": 2.0,
    "fine-tune 1": 1.0,
    "fine-tune 2": 0.8,
    "fine-tune all": 0.6,
}
"""How much a system loses at short widths."""


def right(system: str, seed: int, dims: Sequence[float] = DIMS, *, top: float = 0.97) -> list[float]:
    """Return a made-up accuracy for each width."""
    rng = np.random.default_rng([seed, len(system), int(100 * top)])
    loss = LOSS.get(system, 0.55)
    return [round(float(np.clip(top - loss / dim + rng.normal(scale=0.004), 0, 1)), 5) for dim in dims]


def accuracy(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task, with widths between the trained ones for nested systems."""
    found = {"dims": DIMS, "nearest_neighbor": right(system, seed, top=0.96)}
    if not system.startswith("raw"):
        found["linear"] = right(system, seed)
    if system.startswith("MRL"):
        between = [6, 12, 24, 48]
        found["untrained"] = {"dims": between, "nearest_neighbor": right(system, seed, between, top=0.96)}
    return found


def cascade(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    alone = right(system, seed)
    found: dict[str, Any] = {
        "dims": DIMS,
        "alone": alone,
        "oracle": {
            "accuracy": 0.99,
            "only_shorter": 0.02,
            "shares": [alone[0], 0.1, 0.02, 0.01, 0.0],
            "disagreement": [0.2, 0.1, 0.05, 0.02, 0.0],
        },
        "trends": {"rises": 5 if system == "MRL" else 2, "dips": 2, "recovers": 1, "unclear": 2, "unseen": 0},
    }
    if system != "FF":
        curve = [
            {"cap": dim, "accuracy": value, "expected_dim": 3 + dim / 4, "cumulative_dim": 4 + dim / 3}
            for dim, value in zip(DIMS[1:], alone[1:], strict=True)
        ]
        ways = {}
        for n, way in enumerate(("published", "certified", "without labels")):
            points = [point | {"accuracy": point["accuracy"] + 0.003 * n} for point in curve]
            ways[way] = {**points[-1], "gap": 0.004, "full_accuracy": alone[-1], "curve": points, "fixed_dim": None}
        found["cascades"] = ways
    return found


def retrieval(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task, with stages for MRL and the rotation."""
    n, full = 2000, DIMS[-1]
    by_width = dict(zip(DIMS, right(system, seed, top=0.9), strict=True))
    found: dict[str, Any] = {
        "rows": n,
        "queries": 100,
        "dims": DIMS,
        "map": list(by_width.values()),
        "top_1": right(system, seed),
    }

    def plan(dims: Sequence[int], keep: Sequence[int], lost: float = 0.0) -> dict[str, Any]:
        work = n * dims[0] + sum(k * dim for k, dim in zip(keep, dims[1:], strict=True))
        quality = max(by_width[dims[-1]] - lost, 0)
        costs = {"multiply_adds": work, "bytes": 4 * work}
        return {"dims": [*dims], "keep": [*keep], "map": quality, "top_1": quality, **costs}

    if system in ("MRL", "rotation"):
        found["adaptive"] = [
            plan((a, b), (200,), 0.02 / a) if a < b else plan((a,), ())
            for a, b in combinations_with_replacement(DIMS, 2)
        ]
        found["shortlists"] = [plan((a, full), (k,), 1 / (a * k)) for a in DIMS[:3] for k in (10, 50, 200, 800)]
        found["funnels"] = [
            plan(DIMS[i:], [keep // 2**j for j in range(len(DIMS) - i - 1)], 0.02 / DIMS[i])
            for keep in (200, 800)
            for i in range(3)
        ]
        found["bits"] = [plan((a, full), (200,), 0.3 / a) for a in DIMS]
    return found


def clock(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    plans = []
    for engine in ("exact", "hnsw"):
        for dims in [(64,), *((dim, *rest) for dim in DIMS[:-1] for rest in ((), (64,)))]:
            faster = {"seconds": 1e-5 * dims[0], "faster": (64 / dims[0]) ** 0.5 + 0.01 * seed}
            plans.append(
                {
                    "engine": engine,
                    "kind": "exact" if len(dims) == 1 else "adaptive",
                    "dims": [*dims],
                    "keep": [200] * (len(dims) - 1),
                    "map": 0.9,
                    "multiply_adds": 2000 * dims[0] // (1 if engine == "exact" else 4),
                    "cpu": {"alone": faster, "batch": faster},
                    "wall": {"alone": faster, "batch": faster},
                }
            )
    return {"rows": 2000, "queries": 100, "plans": plans}


def robustness(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    clean = {"linear": right(system, seed), "nearest_neighbor": right(system, seed, top=0.96)}
    found: dict[str, Any] = {"dims": DIMS, "n_rows": 100, "test": clean}
    for kind in ("noise", "blur"):
        for severity in (1, 2, 3):
            found[f"test/{kind}/{severity}"] = {judge: [x - 0.05 * severity for x in v] for judge, v in clean.items()}
    return found


def few_shot(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    shots = [1, 3, 5, 7, 9]
    return {"dims": DIMS, "shots": shots, "accuracy": [right(system, seed, top=0.9 - 0.3 / n) for n in shots]}


def long_tail(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    tops = {"head": 0.95, "middle": 0.85, "tail": 0.6}
    return {"dims": DIMS} | {
        group: {
            "linear": right(system.split()[0], seed, top=top),
            "nearest_neighbor": right(system.split()[0], seed, top=top),
        }
        for group, top in tops.items()
    }


def unseen(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    tops = {"unseen": 0.9, "unseen among all": 0.7, "seen among all": 0.95}
    name = system.removesuffix(" seen")
    return {"dims": DIMS} | {
        place: {metric: right(name, seed, top=top) for metric in ("nearest_neighbor", "map@10")}
        for place, top in tops.items()
    }


def superclass(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    coarse = [1 - (1 - value) / 3 for value in right(system, seed)]
    return {"dims": DIMS} | {
        judge: {"class": right(system, seed), "superclass": coarse} for judge in ("linear", "nearest_neighbor")
    }


def contrastive(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    return {"dims": DIMS, "nearest_neighbor": right(system, seed), "map": right(system, seed, top=0.9)}


def image_text(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    return {"dims": DIMS, "zero_shot": right(system, seed, top=0.8)}


def masked_language(system: str, seed: int) -> dict[str, Any]:
    """Return a record of the task."""
    return {"dims": DIMS, "masked_words": right(system, seed, top=0.5), "most_frequent": 0.1}


TASKS = {
    accuracy: [*LOSS, "MRL 8boost", "MRL 8+16boost", "MRL uniform", "MRL from 4", "MRL from 8", "MRL every 16"],
    cascade: ["MRL", "MRL-E", "FF"],
    retrieval: ["MRL", "MRL-E", "FF", "SVD", "Rand", "Slim", "rotation"],
    clock: ["MRL"],
    robustness: ["MRL", "MRL-E", "FF", "rotation"],
    few_shot: ["MRL", "FF", "rotation"],
    long_tail: ["MRL long tail", "FF long tail", "rotation long tail"],
    unseen: ["MRL seen", "FF seen", "rotation seen", "raw", "raw rotation"],
    superclass: ["MRL", "FF"],
    contrastive: ["MRL", "FF", "cut", "rotation"],
    image_text: ["MRL", "FF", "cut", "rotation"],
    masked_language: ["MRL-E", "FF", "cut", "rotation"],
}
"""What makes the record of each task, and the systems it is made for."""


def cells(names: Sequence[str] = ("digits", "clinc150")) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the path and the record of each cell."""
    for name in names:
        for make, systems in TASKS.items():
            for system in systems:
                for seed in SEEDS:
                    record = {"task": make.__name__, "system": system, "seed": seed, "found": make(system, seed)}
                    path = f"{name}/{make.__name__}/{system.replace(' ', '_')}.{seed}.json"
                    yield path, record | {"seconds": 1.5}


def write(folder: Path, names: Sequence[str] = ("digits", "clinc150")) -> Path:
    """Write all records below a folder, and return it."""
    for path, record in cells(names):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(record))
    return folder
