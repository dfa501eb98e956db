"""Paths through the policies of a cascade, from "always the full width" down: along a path, no threshold rises.

So along a path no row exits later, and the cost only falls. A path must not depend on the rows that it is tested on:
the shared and the tapered path depend on none, the fitted one on the rows that it was fitted on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from matryoshka.cascade._evaluation import Prices, exits

Policy = tuple[float, ...]
"""The thresholds of one cascade."""

PATHS = ("shared", "fitted")

FULL_WIDTH = 1.0
"""The threshold that no confidence exceeds."""

EVERY_ROW = -1.0
"""A threshold that every confidence exceeds."""

_SUREST = 1e-6
_TAPER = 0.75
_N_STEPS = 320
_N_PRICES = 40
_N_APPROACH = 60
_BETWEEN = 12
_SWEEPS = 4


def policies(path: str, confidences: np.ndarray, failures: np.ndarray, prices: Prices) -> list[Policy]:
    """Return the policies of a path, fitted to these rows if it is the fitted one."""
    return fitted(confidences, failures, prices) if path == "fitted" else shared(len(prices.exits) - 1)


def shared(n_thresholds: int) -> list[Policy]:
    """Return the policies of one threshold for all prefixes, from just below 1 down to 0, close together near 1."""
    distances = np.unique(np.concatenate([np.geomspace(_SUREST, 1e-2, 81), np.linspace(0.01, 1.0, 100)]))
    return [(float(1.0 - distance),) * n_thresholds for distance in distances] if n_thresholds else []


def tapered(dims: Sequence[int]) -> list[Policy]:
    """Return policies that ask less of wider prefixes, from just below 1 at the widest down to 0, for any data.

    Notes
    -----
    An answer changes when noise exceeds the lead of the first class over the second, the difference of their logits.
    That noise falls as the prefix widens: as m ** -0.5 if columns carry equal shares, as m ** -1 if the first ones
    carry most. So the lead asked for falls as m ** -0.75; a lead is a margin of tanh(lead / 2) between two classes.
    Prefixes less than 1 / 3.6 times as wide as the widest one with a threshold start at exactly 1, to which tanh
    rounds, and are passed over until less is asked for.
    """
    if len(dims) < 2:
        return []
    nothing = (0.0,) * (len(dims) - 1)
    return [*_above(nothing, dims, 1e-3, _N_STEPS), nothing]


def _above(policy: Policy, widths: Sequence[float], closest: float, count: int) -> list[Policy]:
    """Return policies that ask for more lead than this one: from just below 1 at the widest, to `closest` above it."""
    taper = (np.asarray(widths[:-1]) / widths[0]) ** -_TAPER
    with np.errstate(divide="ignore"):
        leads = 2.0 * np.arctanh(policy)  # infinite at a threshold of 1, which stays so
        first = 2.0 * np.arctanh(1.0 - _SUREST) / taper[-1]
    raised = leads + np.geomspace(first, closest, count)[:, None] * taper
    return [tuple(thresholds) for thresholds in np.maximum(np.tanh(raised / 2.0), policy).tolist()]


def fitted(confidences: np.ndarray, failures: np.ndarray, prices: Prices) -> list[Policy]:
    """Fit a path to rows: the policies that trade failures for cost, with a rising weight of the cost.

    Parameters
    ----------
    confidences : array (G, n)
        How sure each prefix is.
    failures : array (G, n), bool
        Where an exit at each prefix counts as a failure.
    prices : Prices
        What an exit at each prefix costs.

    Notes
    -----
    For each weight, from "one failure outweighs all savings" to "the first step outweighs a failure", thresholds
    minimise failures + weight * cost, one threshold at a time with the others held fixed (at most four sweeps, from the
    thresholds of the previous weight); each step is exact. Then the path is made monotone, and interpolated, so that a
    test that walks down it can stop anywhere. The first of these policies has no failure on the rows that chose it, but
    may have too many on others: so the path comes down to it as a tapered path does, with costs in place of widths.
    With fees, a prefix is used only once that pays, and policies that cost more on these rows than an earlier one are
    left out.
    """
    n_thresholds = len(prices.exits) - 1
    if not n_thresholds:
        return []
    full_width = corner = (FULL_WIDTH,) * n_thresholds
    order = np.argsort(-confidences, axis=-1, kind="stable")
    corners = []
    step = prices.exits[1] - prices.exits[0]
    for weight in np.geomspace(1e-4, 1.0 / step, _N_PRICES):
        corner = tuple(map(min, corner, _descend(confidences, order, failures, prices, weight, corner)))
        corners.append(corner)
    path = [*_above(corners[0], prices.exits, 0.02, _N_APPROACH), corners[0]]
    for before, after in itertools.pairwise(corners):
        parts = [part / _BETWEEN for part in range(1, _BETWEEN + 1)]
        path += [tuple(a + (b - a) * part for a, b in zip(before, after, strict=True)) for part in parts]
    path = [policy for policy, _ in itertools.groupby(path) if policy != full_width]
    return _ever_cheaper(path, confidences, prices) if any(prices.fees) else path


def _ever_cheaper(path: Sequence[Policy], confidences: np.ndarray, prices: Prices) -> list[Policy]:
    """Return the policies that cost no more on these rows than those before them, nor than the full width."""
    n, kept = confidences.shape[1], []
    least = n * prices.exits[-1]
    for policy in path:
        stages = np.bincount(exits(confidences, policy), minlength=len(prices.exits))
        if (cost := float(stages @ prices.exit_costs(policy))) <= least:
            kept.append(policy)
            least = cost
    return kept


def _descend(
    confidences: np.ndarray, order: np.ndarray, failures: np.ndarray, prices: Prices, weight: float, start: Policy
) -> Policy:
    """Lower failures + weight * cost, one threshold at a time, until a sweep changes nothing.

    `order` (G, n) ranks the rows at each prefix, the surest first.
    """
    thresholds = list(start)
    rows = np.arange(confidences.shape[1])
    for _ in range(_SWEEPS):
        before = tuple(thresholds)
        for i in reversed(range(len(thresholds))):
            reached = exits(confidences[:i], thresholds[:i]) == i
            later = i + 1 + exits(confidences[i + 1 :], thresholds[i + 1 :])
            costs = prices.exit_costs([*thresholds[:i], EVERY_ROW, *thresholds[i + 1 :]])
            losses = failures + weight * costs[:, None]
            change = losses[i] - losses[later, rows]
            surest = order[i][reached[order[i]]]
            fees = weight * prices.fees[i] * len(surest)
            thresholds[i] = _best_cut(confidences[i, surest], change[surest], fees)
        if tuple(thresholds) == before:
            break
    return tuple(thresholds)


def _best_cut(confidences: np.ndarray, change: np.ndarray, fees: float) -> float:
    """Return the threshold above which the sum of `change` is smallest; of equals the highest. Surest rows come first.

    `fees` is what all rows pay together unless none exits.
    """
    sums = np.concatenate([[0.0], fees + np.cumsum(change)])
    # A cut can be before the first row, between unequal neighbours, or after the last row.
    possible = np.concatenate([[True], confidences[1:] < confidences[:-1], [True]])[: len(sums)]
    best = int(np.argmin(np.where(possible, sums, np.inf)))
    if best == 0:
        return FULL_WIDTH
    return float(confidences[best]) if best < len(confidences) else 0.0
