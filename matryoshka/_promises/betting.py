"""Test whether the mean of a bounded quantity is small, by betting against it."""

from __future__ import annotations

import math

import numpy as np


def p_value(losses: np.ndarray, bound: float, delta: float) -> float:
    """Return a p-value of "the mean of the losses is above `bound`".

    Parameters
    ----------
    losses : array (n,)
        Independent draws within [0, 1], in an order that does not depend on them.
    bound : float
        Within (0, 1).
    delta : float
        The level of the test, for which the stakes are chosen; the p-value is valid at any level.

    Returns
    -------
    float
        If the mean is above the bound, it is at most p with probability at most p, whatever the distribution.

    Notes
    -----
    A gambler starts with a capital of 1 and, before each loss is seen, stakes a share of it on the loss being below the
    bound. If the mean is above the bound, no such game is favourable, so the capital reaches 1/p at some time with
    probability at most p (Ville). The stakes follow the mean and the variance of the losses seen so far, which makes
    the test sharp where losses vary little: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random
    variables by betting", section 4; and proposition 5 of Angelopoulos et al. (2021), "Learn then Test".
    """
    n = losses.size
    counts = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(losses)) / (1 + counts)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (1 + counts)
    before = np.concatenate([[0.25], variances[:-1]])
    stakes = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (n * before)))
    capital = np.cumsum(np.log1p(-stakes * (losses - bound)))
    return float(min(1.0, math.exp(-max(0.0, capital.max(initial=0.0)))))


def draws_needed(bound: float, delta: float) -> int:
    """Return the fewest draws, without any loss among them, for which `p_value` is at most `delta`.

    Parameters
    ----------
    bound, delta : float
        As for `p_value`.

    Returns
    -------
    int
        238 for 0.01 and 0.1. Large numbers, from some ten thousand on, are extrapolated from a larger bound, and at
        most one percent too high.

    Notes
    -----
    The first stakes are lower than 1, so this is more than the log(1 / delta) / log(1 + bound) of full ones.
    """
    full = math.ceil(math.log(1 / delta) / math.log1p(bound))
    if full > _PLAYED:  # a bound that is n / m times as large wins in m draws what a small one wins in n
        scale = 2 * full / _PLAYED
        return math.ceil(scale * draws_needed(scale * bound, delta))
    too_few, enough = full - 1, full
    while p_value(np.zeros(enough), bound, delta) > delta:
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if p_value(np.zeros(middle), bound, delta) > delta:
            too_few = middle
        else:
            enough = middle
    return enough


_PLAYED = 1 << 16
"""Draws up to which the game is played out."""
