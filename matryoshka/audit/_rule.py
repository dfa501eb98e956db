"""The rule behind the verdict, and the funnel and the first stage that follow from the measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from matryoshka.retrieval import Funnel

LEVEL = 0.01
"""The largest probability with which columns without order may get a yes."""
WORTH = 1.1
"""How many times as many random columns a prefix must be worth."""
KEPT = 0.5
"""The share of neighbours that a prefix must keep, at the lower end of its interval."""
LOST = 0.01
"""The share of neighbours that a recommended funnel may lose, over all its stages."""

GAIN = 0.05
"""The share of neighbours that a rotation must keep beyond the prefix to be recommended."""
STAGE = 0.95
"""The share of neighbours that the list of a recommended first stage must hold."""
CANDIDATES = 10
"""The length of that list, in lists of k."""

SHARE = 0.01
"""The longest list of a recommended funnel, as a share of all rows: fetching rows one by one takes far more time than
their multiply-adds suggest, and for many queries at once, longer lists take more time than the exact search."""


class FirstStage(NamedTuple):
    """A possible first stage of a search, and how many of the neighbours are in its list.

    Attributes
    ----------
    dim : int
        Columns compared.
    code : {"float", "bits"}
        How they are stored: in float32, or as one bit each.
    rotated : bool
        Whether the rows are rotated first.
    bytes : int
        Bytes per row; bits fill whole words of 64.
    kept : float
        Share of the nearest neighbours that are in its list, mean over queries.
    candidates : int
        Length of the list.
    """

    dim: int
    code: str
    rotated: bool
    bytes: int
    kept: float
    candidates: int


def order_test(kept: np.ndarray) -> np.ndarray:
    """Return for each width the p-value of its lead over random orders, adjusted for looking at all widths.

    `kept` (orders, G) holds the mean share of neighbours kept, with the given order first.
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


def interval(kept: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % bootstrap interval of the mean over queries, from `kept` (G, q)."""
    n_queries = kept.shape[1]
    times_drawn = rng.multinomial(n_queries, np.full(n_queries, 1 / n_queries), size=1000)
    low, high = np.quantile(times_drawn @ kept.T / n_queries, (0.025, 0.975), axis=0)
    return low, high


def cheapest_funnel(places: np.ndarray, dims: Sequence[int], n_rows: int, n_audited: int) -> Funnel:
    """Return the cheapest plan that loses at most 1 % of the neighbours, from their ranks (G, q, k) at each width.

    The candidates are, from each width, the path through all wider ones and the jump to the full width, and the full
    width alone; no list may be longer than 1 % of the rows. A neighbour is lost at a stage if its rank among all rows
    exceeds the list, so it counts as lost even if rows before it were dropped earlier.
    """
    scale = n_rows / n_audited
    ordered = np.sort(places.reshape(len(dims), -1), axis=1)

    def plan(stages: Sequence[int]) -> Funnel:
        allowed = int(LOST / max(len(stages) - 1, 1) * ordered.shape[1])
        keep = [max(places.shape[-1], math.ceil(ordered[stage, -1 - allowed] * scale)) for stage in stages[:-1]]
        return Funnel([dims[stage] for stage in stages], [max(keep[i:]) for i in range(len(keep))])

    pay = (funnel for funnel in map(plan, _paths(len(dims))) if all(kept <= SHARE * n_rows for kept in funnel.keep))
    return min(pay, key=lambda funnel: funnel.multiply_adds(n_rows, executed=True))


def plain_cut(places: np.ndarray, dims: Sequence[int], n_rows: int, n_audited: int, funnel: Funnel) -> int | None:
    """Return the narrowest width whose nearest k rows lose at most 1 %, if it costs no more than the funnel."""
    k = places.shape[-1]
    lost = np.mean(np.ceil(places * (n_rows / n_audited)) > k, axis=(1, 2))
    dim = next((dim for dim, share in zip(dims[:-1], lost, strict=False) if share <= LOST), None)
    if dim is None or n_rows * dim > funnel.multiply_adds(n_rows, executed=True):
        return None
    return dim


def cheapest_stage(stages: Sequence[FirstStage]) -> FirstStage | None:
    """Return the stage with the fewest bytes per row whose list holds enough of the neighbours; of equals the first."""
    return min((stage for stage in stages if stage.kept >= STAGE), key=lambda stage: stage.bytes, default=None)


def _paths(n_widths: int) -> Iterator[Sequence[int]]:
    for start in range(n_widths):
        yield range(start, n_widths)
        if start < n_widths - 2:
            yield start, n_widths - 1
