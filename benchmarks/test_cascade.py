"""What a prepared cascade, `Cascade.classifier`, takes against the full head, beside what its multiply-adds promise.

Thresholds are set such that stated shares of 1,024 rows exit at each width: by the margin, as `Cascade.certify` does
by default, or by the largest probability. Batches of 1 are 64 calls in a row; their time is that of all 64. The full
head is one product, its bias and the argmax of its logits. Bare products are those that theory counts, of the same
shapes, each formed at once by the library's `matmul`, with nothing around them.
"""

from __future__ import annotations

import importlib
import statistics
import timeit
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from benchmarks.conftest import THREADS
from matryoshka import Cascade

DIMS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
EXITS = {
    "early": (0.45, 0.20, 0.12, 0.08, 0.04, 0.03, 0.02, 0.02),
    "late": (0.14, 0.03, 0.01, 0.14, 0.22, 0.23, 0.14, 0.00),
    "three stops": (0.45, 0.00, 0.25, 0.00, 0.20, 0.00, 0.00, 0.00),
}
N_ROWS = 1024
SINGLES = 64


@cache
def problem(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (1024, 2048) and a tied head (c, 2048); later columns matter less, and rows differ in difficulty."""
    rng = np.random.default_rng(0)
    scale = ((1 + np.arange(2048)) ** -0.35).astype(np.float32)
    weight = rng.standard_normal((n_classes, 2048), dtype=np.float32) * scale
    difficulty = (0.15 + rng.gamma(1.5, 0.9, size=(N_ROWS, 1))).astype(np.float32)
    noise = rng.standard_normal((N_ROWS, 2048), dtype=np.float32) * scale
    return weight[rng.integers(n_classes, size=N_ROWS)] + difficulty * noise, weight


@cache
def confidences(n_classes: int, measure: str) -> np.ndarray:
    """Largest probabilities (8, 1024) of all prefixes but the last, or their lead over the next."""
    embeddings, weight = problem(n_classes)
    rows, logits, start = [], np.zeros((N_ROWS, n_classes), np.float32), 0
    for dim in DIMS[:-1]:
        logits += embeddings[:, start:dim] @ weight[:, start:dim].T
        second = -np.inf if measure == "max_probability" else np.partition(logits, -2)[:, -2]
        lead = 1 - np.exp(second - logits.max(1))
        rows.append(lead / [np.exp(row - row.max()).sum() for row in logits])
        start = dim
    return np.array(rows)


def cascade(n_classes: int, shares: tuple[float, ...], measure: str) -> Cascade:
    """The cascade by which these shares of the rows exit; a share of 0 gives threshold 1."""
    waiting, thresholds = np.ones(N_ROWS, bool), []
    for confidence, share in zip(confidences(n_classes, measure), shares, strict=True):
        count = round(share * N_ROWS)
        left = np.sort(confidence[waiting])[::-1]
        thresholds.append(float(left[count - 1] + left[count]) / 2 if count else 1.0)
        waiting &= ~(confidence > thresholds[-1])
    return Cascade(DIMS, thresholds, confidence=measure)


def on(framework: str, array: np.ndarray) -> Any:
    if framework == "numpy":
        return array
    import torch

    torch.set_num_threads(THREADS)
    return torch.from_numpy(array)


def batches(embeddings: Any, batch: int) -> list[Any]:
    return [embeddings[i : i + batch] for i in range(0, N_ROWS if batch > 1 else SINGLES, batch)]


def group(framework: str, n_classes: int, batch: int) -> str:
    return f"{framework}, {n_classes:,} classes, batch {batch:,}"


ROUNDS = {1000: 9, 10_000: 7, 100_000: 3}
sizes = pytest.mark.parametrize(("n_classes", "batch"), [(n, batch) for n in ROUNDS for batch in (1, N_ROWS)])
frameworks = pytest.mark.parametrize("framework", ["numpy", "torch"])


def bias(framework: str, n_classes: int) -> Any:
    """A bias (c,), small so that exits stay where the thresholds put them."""
    return on(framework, 1e-3 * np.random.default_rng(1).standard_normal(n_classes, dtype=np.float32))


def full_head(parts: list[Any], weight: Any, offset: Any) -> None:
    for part in parts:
        (part @ weight.T + offset).argmax(1)


def median_seconds(run: Callable[[], object], n_classes: int) -> float:
    run()
    return statistics.median(timeit.repeat(run, number=1, repeat=ROUNDS[n_classes]))


@frameworks
@sizes
def test_full(benchmark: Any, framework: str, n_classes: int, batch: int) -> None:
    embeddings, weight = (on(framework, array) for array in problem(n_classes))
    parts = batches(embeddings, batch)
    benchmark.group = group(framework, n_classes, batch)
    benchmark.pedantic(
        full_head, (parts, weight, bias(framework, n_classes)), rounds=ROUNDS[n_classes], warmup_rounds=1
    )
    rows = sum(len(part) for part in parts)
    benchmark.extra_info.update(row="full head", reference=True, multiply_adds=rows * n_classes * 2048)


@frameworks
@sizes
@pytest.mark.parametrize("exits", EXITS)
@pytest.mark.parametrize("head", ["tied", "separate"])
@pytest.mark.parametrize("measure", ["margin", "max_probability"])
def test_classifier(
    benchmark: Any, framework: str, n_classes: int, batch: int, exits: str, head: str, measure: str
) -> None:
    embeddings, weight = (on(framework, array) for array in problem(n_classes))
    policy = cascade(n_classes, EXITS[exits], measure)
    parts = batches(embeddings, batch)
    offset = bias(framework, n_classes)
    heads: Any = (weight, offset)
    if head == "separate":
        heads = [(on(framework, np.ascontiguousarray(problem(n_classes)[1][:, :dim])), offset) for dim in DIMS]
    answer = policy.classifier(heads)
    benchmark.group = group(framework, n_classes, batch)
    benchmark.pedantic(lambda: [answer(part) for part in parts], rounds=ROUNDS[n_classes], warmup_rounds=1)
    seconds = statistics.median(benchmark.stats.stats.data)
    whole = median_seconds(lambda: full_head(parts, weight, offset), n_classes)  # anew: machines slow down
    exit_dims = np.concatenate([np.asarray(answer(part)[1]) for part in parts])
    bare = bare_products(policy, exit_dims, batch, head, n_classes, framework)
    columns = sum(sum(widths(policy, int(dim), head)) for dim in exit_dims)
    theory = len(exit_dims) * 2048 / columns
    benchmark.extra_info.update(
        {
            "row": f"{head} head, exits {exits}, {measure}",
            "multiply_adds": columns * n_classes,
            "mean exit dim": round(float(exit_dims.mean())),
            "factor in theory": round(theory, 1),
            "of bare products": round(whole / bare, 1),
            "on the clock": round(whole / seconds, 1),
            "share of bare products": f"{bare / seconds:.0%}",
            "share reached": f"{whole / seconds / theory:.0%}",
        }
    )


def widths(policy: Cascade, exit_dim: int, head: str) -> list[int]:
    """Columns of each product that a row meets which exits at this width; where none can exit, none is formed."""
    visited = [dim for dim, threshold in zip(DIMS, policy.thresholds, strict=False) if threshold < 1] + [DIMS[-1]]
    met = visited[: visited.index(exit_dim) + 1]
    return np.diff([0, *met]).tolist() if head == "tied" else met


def bare_products(
    policy: Cascade, exit_dims: np.ndarray, batch: int, head: str, n_classes: int, framework: str
) -> float:
    """Median seconds of the products that these exits need, from operands that lie ready to memory that lies ready."""
    shapes: Counter[tuple[int, int]] = Counter()
    for start in range(0, len(exit_dims), batch):
        met = [widths(policy, int(dim), head) for dim in exit_dims[start : start + batch]]
        shapes.update((sum(len(row) > i for row in met), width) for i, width in enumerate(max(met, key=len)))
    matmul = importlib.import_module(framework).matmul
    seconds = 0.0
    for (rows, width), count in shapes.items():
        prefixes, columns = (np.ascontiguousarray(array[:, :width]) for array in problem(n_classes))
        out = np.empty((rows, n_classes), np.float32)
        left, right, out = (on(framework, array) for array in (prefixes[:rows], columns, out))
        seconds += count * median_seconds(partial(matmul, left, right.T, out=out), n_classes)
    return seconds
