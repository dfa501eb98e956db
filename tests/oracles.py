"""What the library computes, written again as plain loops in float64: slow, obvious, and different in form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

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


def promises_tail(count: int, n: int, rate: Fraction) -> Fraction:
    """Add up P(Binomial(n, rate) <= count) in whole numbers."""
    return sum((math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(count + 1)), Fraction(0))


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


def metrics_reciprocal_rank(hits: list[bool], k: int) -> float:
    return 1 / (hits[:k].index(True) + 1) if True in hits[:k] else 0.0


def metrics_dcg(gains: list[float], k: int) -> float:
    """Sum discounted gains as Järvelin and Kekäläinen define them: rank by rank, each adding to the one before."""
    total = 0.0
    for rank, gain in enumerate(gains[:k], start=1):
        total += gain * math.log(2) / math.log(rank + 1)
    return total


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


def losses_logits(embeddings: np.ndarray, heads: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> list:
    """Classify each prefix of each row by the head of its width, number by number: [prefix][row][class]."""
    out = []
    for weight, bias in heads:
        n_classes, width = weight.shape
        starts = [0.0] * n_classes if bias is None else [float(b) for b in bias]
        out.append(
            [
                [starts[c] + sum(float(row[j]) * float(weight[c, j]) for j in range(width)) for c in range(n_classes)]
                for row in embeddings
            ]
        )
    return out


def losses_row(
    logits: Sequence[float], right: int | Sequence[float], smoothing: float, seen: Sequence[bool] | None = None
) -> float:
    """Cross-entropy of one row against a target written out: 1 - s for what is right, and s spread over all it sees."""
    shares = [float(j == right) for j in range(len(logits))] if np.ndim(right) == 0 else [float(t) for t in right]
    columns = [j for j in range(len(logits)) if seen is None or seen[j]]
    top = max(logits[j] for j in columns)
    log_sum = top + math.log(sum(math.exp(logits[j] - top) for j in columns))
    targets = {j: (1.0 - smoothing) * shares[j] + smoothing / len(columns) for j in columns}
    return sum(t * (log_sum - logits[j]) for j, t in targets.items())


def losses_reduce(
    rows: list[list[float]], weights: list[float], importance: Sequence[float], reduction: str
) -> tuple[np.ndarray, np.ndarray]:
    """Total and parts of losses [prefix][row]; a row of weight 0 is left out."""
    parts = []
    for line in rows:
        weighted = [w * loss if w else 0.0 for w, loss in zip(weights, line, strict=True)]
        divisor = {"mean": sum(weights) or 1.0, "sum": 1.0}.get(reduction)
        parts.append(weighted if divisor is None else sum(weighted) / divisor)
    total = sum(c * np.array(part) for c, part in zip(importance, parts, strict=True))
    return np.array(total), np.array(parts)


def losses_cross_entropy(
    logits: Sequence,
    labels: Sequence[int],
    *,
    importance: Sequence[float],
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    sample_weight: Sequence[float] | None = None,
    reduction: str = "mean",
) -> tuple[np.ndarray, np.ndarray]:
    """Total and parts from logits [prefix][row][class], prefix by prefix and row by row."""
    weights = [1.0 if sample_weight is None else float(sample_weight[i]) for i in range(len(labels))]
    ignored = [np.ndim(label) == 0 and label == ignore_index for label in labels]
    weights = [0.0 if out else w for out, w in zip(ignored, weights, strict=True)]
    rows = []
    for of_prefix in logits:
        line = []
        for row, label, out in zip(of_prefix, labels, ignored, strict=True):
            line.append(0.0 if out else losses_row([float(z) for z in row], label, label_smoothing))
        rows.append(line)
    return losses_reduce(rows, weights, importance, reduction)


def losses_info_nce(
    queries: np.ndarray,
    keys: np.ndarray,
    dims: Sequence[int],
    *,
    importance: Sequence[float],
    temperature: float = 0.05,
    symmetric: bool = False,
    negatives: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[np.ndarray, np.ndarray]:
    """Total and parts of the cross-entropy of cosine similarities, pair by pair."""
    n = len(queries)
    mask = np.ones((n, len(keys)), bool) if mask is None else mask
    if negatives is not None and mask.shape[1] == len(keys):
        mask = np.concatenate([mask, np.ones((n, negatives.shape[1]), bool)], axis=1)
    targets = np.eye(n, len(keys)) if targets is None else targets
    own = [[] for _ in range(n)] if negatives is None else negatives
    ways = [(queries, keys, own, mask, targets), (keys[:n], queries, [[]] * n, mask[:, :n].T, targets[:, :n].T)]
    results = []
    for ours, theirs, hard, seen, shares in ways[: 2 if symmetric else 1]:
        rows = [
            [
                losses_row(
                    [retrieval_similarity(one, other, dim, "cosine") / temperature for other in (*theirs, *hard[i])],
                    [*shares[i], *(0.0 for _ in hard[i])],
                    label_smoothing,
                    seen[i],
                )
                for i, one in enumerate(ours)
            ]
            for dim in dims
        ]
        results.append(losses_reduce(rows, [1.0] * len(ours), importance, reduction))
    return tuple(sum(values) / len(results) for values in zip(*results, strict=True))


def losses_slope(function: Callable[[], float], array: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """Differentiate `function`, which reads the float64 `array`, by central differences of fourth order."""
    slope = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        here = array[index]
        values = []
        for distance in (-2, -1, 1, 2):
            array[index] = here + distance * step
            values.append(float(function()))
        array[index] = here
        slope[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    slope[np.abs(slope) < 1e-11] = 0.0  # where nothing changes, all that is left is rounding
    return slope
