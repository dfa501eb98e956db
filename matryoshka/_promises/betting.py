"""Test whether the mean of a bounded quantity is small, by betting against it."""

from __future__ import annotations

import math

import numpy as np


def p_value(losses: np.ndarray, bound: float, delta: float) -> float:
    """Return a p-value of "the mean of the losses is above `bound`".

    Parameters
    ----------
    losses : array (n,)
        Independent draws within [0, 1], in an order that says nothing about them.
    bound : float
        Within (0, 1).
    delta : float
        The level the test is meant for: it sets the stakes, not the validity.

    Returns
    -------
    float
        If the mean is above the bound, this is at most p with probability at most p, whatever the distribution.

    Notes
    -----
    A gambler starts with 1 and stakes, before each loss is seen, a share of the capital on it being below the bound.
    If the mean is above the bound no such game is favourable, so the capital ever reaches 1/p with probability at most
    p (Ville). The stakes follow mean and variance of what was seen, which makes the test sharp where the losses vary
    little: Waudby-Smith and Ramdas (2024), "Estimating means of bounded random variables by betting", section 4; and
    proposition 5 of Angelopoulos et al. (2021), "Learn then Test".
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
        238 for 0.01 and 0.1. Above some ten thousand it is that of a larger bound, scaled up, which is at most a
        hundredth too high.

    Notes
    -----
    The first stakes are lower than 1, so this is more than the log(1 / delta) / log(1 + bound) of full ones.
    """
    full = math.ceil(math.log(1 / delta) / math.log1p(bound))
    if full > _PLAYED:  # what a small bound wins in n draws, one that is n / m times as large wins in m
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
