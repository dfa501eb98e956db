"""The policies of a path that nothing cheaper beats, on given rows."""

from __future__ import annotations

from collections.abc import Sequence

from matryoshka.cascade import _paths
from matryoshka.cascade._evaluation import CascadeEvaluation, evaluate
from matryoshka.cascade._paths import EVERY_ROW, FULL_WIDTH, Policy
from matryoshka.cascade._stages import Scored

PATHS = ("fitted", "shared")
Point = tuple[Policy, CascadeEvaluation]


def frontier(scored: Scored, dims: tuple[int, ...], costs: Sequence[float], path: str, cost: str) -> list[Point]:
    """Return the policies with their evaluations, cheapest first: each is more accurate than all before it."""
    n_thresholds = len(dims) - 1
    policies = [(FULL_WIDTH,) * n_thresholds, (EVERY_ROW,) * n_thresholds]
    if path == "fitted":
        policies += _paths.fitted(scored.confidences, ~scored.correct, costs)
    else:
        policies += _paths.shared(n_thresholds)
    points = [(policy, evaluate(scored, dims, policy)) for policy in policies]
    points.sort(key=lambda point: (getattr(point[1], cost), -point[1].accuracy))
    kept: list[Point] = []
    for point in points:
        if not kept or point[1].accuracy > kept[-1][1].accuracy:
            kept.append(point)
    return kept
