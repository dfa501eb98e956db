"""What the library computes, written again as plain loops in float64: slow, obvious, and different in form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def cascade_confidence(row: np.ndarray, name: str, temperature: float = 1.0) -> float:
    weights = [float(p) ** (1.0 / temperature) for p in row]
    p = sorted((w / sum(weights) for w in weights), reverse=True)
    if name == "max_probability":
        return p[0]
    if name == "margin":
        return p[0] - p[1]
    return 1.0 - sum(-x * math.log(x) for x in p if x > 0) / math.log(len(p))


def cascade_walk(
    probabilities: np.ndarray,
    dims: tuple[int, ...],
    thresholds: tuple[float, ...],
    name: str = "max_probability",
    temperatures: tuple[float, ...] | None = None,
) -> list[tuple[int, int, list[int]]]:
    """For each row: its answer, the width it exits at, the widths it visited."""
    out = []
    for row in range(probabilities.shape[1]):
        visited = []
        for stage, dim in enumerate(dims):
            visited.append(dim)
            p = probabilities[stage, row]
            temperature = 1.0 if temperatures is None else temperatures[stage]
            if stage == len(dims) - 1 or cascade_confidence(p, name, temperature) > thresholds[stage]:
                answer = next(c for c in range(len(p)) if p[c] == max(p))
                out.append((answer, dim, visited))
                break
    return out


def cascade_published(
    probabilities: np.ndarray, labels: np.ndarray, grid: Sequence[float], *, inclusive: bool = False
) -> list[float]:
    """The rule as the released notebook runs it: over pairs, thresholds and rows, one at a time."""
    chosen = []
    for stage in range(len(probabilities) - 1):
        best, best_threshold = -1, math.nan
        for threshold in grid:
            hits = 0
            for row, label in enumerate(labels):
                short, long = probabilities[stage, row], probabilities[stage + 1, row]
                sure = max(short) >= threshold if inclusive else max(short) > threshold
                hits += int(np.argmax(short if sure else long)) == label
            if hits > best:
                best, best_threshold = hits, threshold
        chosen.append(best_threshold)
    return chosen


def metrics_hits(ids: np.ndarray, corpus_labels: np.ndarray, query_labels: np.ndarray) -> list[list[bool]]:
    """For each query and place: is it a row of the right label that the list had not named before."""
    out = []
    for row, wanted in zip(ids.tolist(), query_labels.tolist(), strict=True):
        seen: set[int] = set()
        line = []
        for found in row:
            line.append(found != -1 and found not in seen and int(corpus_labels[found]) == wanted)
            seen.add(found)
        out.append(line)
    return out


def metrics_average_precision(hits: list[bool], k: int, divisor: int) -> float:
    total = 0.0
    for place in range(1, k + 1):
        if hits[place - 1]:
            total += hits[:place].count(True) / place
    return total / divisor


def metrics_overlap(ids: np.ndarray, reference: np.ndarray, k: int) -> float:
    shares = []
    for found, exact in zip(ids[:, :k].tolist(), reference[:, :k].tolist(), strict=True):
        wanted = set(exact) - {-1}
        if wanted:
            shares.append(len(wanted & set(found)) / len(wanted))
    return sum(shares) / len(shares)


def metrics_nearest_class_mean(
    rows: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> float:
    means = {}
    for label in sorted(set(labels.tolist())):
        members = [row.astype(np.float64) for row, of in zip(rows, labels.tolist(), strict=True) if of == label]
        means[label] = sum(members) / len(members)
    right = 0
    for query, wanted in zip(queries.astype(np.float64), query_labels.tolist(), strict=True):
        right += min(means, key=lambda label: float(((query - means[label]) ** 2).sum())) == wanted
    return right / len(queries)


def retrieval_similarity(query: np.ndarray, row: np.ndarray, dim: int, metric: str) -> float:
    """Score one pair at one width, number by number."""
    q, x = [float(v) for v in query[:dim]], [float(v) for v in row[:dim]]
    if metric == "l2":
        return -sum((a - b) ** 2 for a, b in zip(q, x, strict=True))
    product = sum(a * b for a, b in zip(q, x, strict=True))
    if metric == "ip":
        return product
    length = math.sqrt(sum(a * a for a in q)) * math.sqrt(sum(b * b for b in x))
    return product / length if length else 0.0


def retrieval_rank(
    queries: np.ndarray, corpus: np.ndarray, candidates: list[list[int]], k: int, dim: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Order the candidates of each query by (score, lower id); pad with -1 and -inf."""
    all_scores, all_ids = [], []
    for query, ids in zip(queries, candidates, strict=True):
        scored = [(-retrieval_similarity(query, corpus[i], dim, metric), i) for i in ids if i >= 0]
        scored.sort()
        scored = (scored + [(math.inf, -1)] * k)[:k]
        all_scores.append([-score for score, _ in scored])
        all_ids.append([i for _, i in scored])
    return np.array(all_scores), np.array(all_ids)


def retrieval_funnel(
    queries: np.ndarray, corpus: np.ndarray, k: int, dims: tuple[int, ...], keep: tuple[int, ...], metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Run a funnel stage by stage, each from nothing."""
    candidates = [list(range(len(corpus))) for _ in queries]
    for dim, count in zip(dims, (*keep, k), strict=True):
        scores, ids = retrieval_rank(queries, corpus, candidates, count, dim, metric)
        candidates = ids.tolist()
    return scores, ids
