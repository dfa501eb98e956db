"""The rule behind the verdict, and the funnel that follows from the measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from matryoshka.retrieval import Funnel

LEVEL = 0.01
"""The highest probability with which columns without order may get a yes."""
WORTH = 1.1
"""How many times as many random columns a prefix must be worth."""
KEPT = 0.5
"""The share of neighbours that a prefix must keep, at the lower end of its interval."""
LOST = 0.01
"""The share of neighbours that a recommended funnel may lose, over all its stages."""

SHARE = 0.01
"""The longest list of a recommended funnel, as a share of all rows: rows that are fetched one by one cost far more time
than multiply-adds tell, and of many queries at once a longer list takes more than the exact search."""


def order_test(kept: np.ndarray) -> np.ndarray:
    """Return for each width the p-value of "the given order is better than a random one", over all widths at once.

    `kept` (orders, G) holds the mean share of neighbours kept, the given order first.
    """
    spread = kept.std(axis=0)
    deviations = (kept - kept.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    best_of_each = deviations.max(axis=1)
    return np.asarray((best_of_each[:, None] >= deviations[0]).mean(axis=0))


def worth(kept: np.ndarray, random: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """Return how many random columns keep as much as each prefix, per column of the prefix; 1 at full width."""
    widths = np.log2((1, *dims))
    reached = np.maximum.accumulate((0.0, *random))
    return np.asarray(np.exp2(np.interp(kept, reached, widths)) / np.asarray(dims))


def interval(kept: np.ndarray, rng: np.random.Generator, *, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % bootstrap interval of the mean over queries, from `kept` (G, q)."""
    n_queries = kept.shape[1]
    times_drawn = rng.multinomial(n_queries, np.full(n_queries, 1 / n_queries), size=draws)
    low, high = np.quantile(times_drawn @ kept.T / n_queries, (0.025, 0.975), axis=0)
    return low, high


def cheapest_funnel(places: np.ndarray, dims: Sequence[int], n_rows: int, n_audited: int) -> Funnel:
    """Return the cheapest plan that loses at most 1 % of the neighbours, from their places (G, q, k) at each width.

    Tried are, from each width, the way through all wider ones and the jump to full width, and the full width alone; no
    list may be longer than 1 % of the rows. A neighbour is lost at a stage if its place among all rows exceeds the
    list, so it is counted lost even where rows before it have gone.
    """
    scale = n_rows / n_audited
    ordered = np.sort(places.reshape(len(dims), -1), axis=1)

    def plan(stages: Sequence[int]) -> Funnel:
        allowed = int(LOST / max(len(stages) - 1, 1) * ordered.shape[1])
        keep = [max(places.shape[-1], math.ceil(ordered[stage, -1 - allowed] * scale)) for stage in stages[:-1]]
        return Funnel([dims[stage] for stage in stages], [max(keep[i:]) for i in range(len(keep))])

    pay = (funnel for funnel in map(plan, _paths(len(dims))) if all(kept <= SHARE * n_rows for kept in funnel.keep))
    return min(pay, key=lambda funnel: funnel.multiply_adds(n_rows, executed=True))


def _paths(n_widths: int) -> Iterator[Sequence[int]]:
    for start in range(n_widths):
        yield range(start, n_widths)
        if start < n_widths - 2:
            yield start, n_widths - 1
