"""Test row by row, without end, whether a rate still keeps its bound, by betting against it."""

from __future__ import annotations

import numpy as np

from matryoshka._array import row_blocks

_ODDS = 1.0 + 2.0 ** np.arange(-3.0, 7.0)
"""The odds of a failure that each gambler assumes, as a multiple of the odds at the bound: 1.125, 1.25, 1.5, … 65."""

_FAILURES_AT_ONCE = 4096


def opening() -> np.ndarray:
    """Return the stakes before the first row: the logarithm of each gambler's capital, with nothing won or lost yet."""
    return _log_shares(np.zeros(1)) - np.zeros_like(_ODDS)


def play(
    failures: np.ndarray, bound: float, *, n_rows: int, n_failures: int, stakes: np.ndarray
) -> tuple[float, np.ndarray]:
    """Bet on further rows against "a failure has at most the probability `bound`, whatever came before".

    Parameters
    ----------
    failures : array (n,), bool
        The rows in order of arrival.
    bound : float
        Within (0, 1).
    n_rows, n_failures : int
        The counts before these rows.
    stakes : array
        As `opening` or the last call returned them.

    Returns
    -------
    log_capital : float
        Logarithm of the largest capital held after any of these rows, 0 if it never exceeded 1. While the bound is
        kept, the capital reaches 1/delta at any time with probability at most delta.
    stakes : array
        For the next call. How rows are divided among calls makes no difference.

    Notes
    -----
    A gambler who multiplies the odds by r turns a stake into r^x / (1 + (r - 1) bound) times as much, where x is 1 for
    a failure and else 0. The mean of that factor is at most 1 while the rate is at most `bound`, so a capital that
    starts at 1 reaches 1/delta at any time with probability at most delta (Ville, 1939). The capital is divided evenly
    among the gamblers: the mixture wins nearly as fast as the best of them (Robbins, 1970; Shafer et al., 2011).

    A long time without failures would ruin a gambler who staked everything at once. So the share
    1 / log(e + k) - 1 / log(e + k + 1) of each gambler's capital waits until k failures were seen; these shares add up
    to 1, and what still waits counts as capital. To detect a change after k failures then takes a log capital larger by
    log k + 2 log log k. To start again with a full stake at every row would be faster, but would bound only the mean
    time to a false alarm (Shin, Ramdas and Rinaldo, 2024).

    With G = k log r - n log(1 + (r - 1) bound) after n rows, a share staked at G' is worth share * exp(G - G'), so the
    sum of share * exp(-G') is what is stored. Only a failure raises the capital, so only failures are visited.
    """
    found, best = np.flatnonzero(failures), 0.0
    for block in row_blocks(len(found), _FAILURES_AT_ONCE):
        rows = n_rows + 1 + found[block]
        counts = np.arange(n_failures + 1, n_failures + 1 + len(rows))
        gains = counts[:, None] * np.log(_ODDS) - rows[:, None] * np.log1p((_ODDS - 1.0) * bound)
        sums = np.concatenate([stakes[None, :], _log_shares(counts)[:, None] - gains])
        sums = np.logaddexp.accumulate(sums, axis=0)
        waiting = -np.log(np.log(np.e + counts + 1.0))
        capital = np.logaddexp(np.logaddexp.reduce(gains + sums[1:], axis=1), waiting)
        best = max(best, float(capital.max(initial=0.0)))
        n_failures, stakes = n_failures + len(rows), sums[-1]
    return best, stakes


def _log_shares(counts: np.ndarray) -> np.ndarray:
    """Return the logarithm of what each gambler newly stakes after these counts of failures."""
    waited = np.e + counts
    share = np.log1p(1.0 / waited) / (np.log(waited) * np.log(waited + 1.0))
    return np.asarray(np.log(share / len(_ODDS)))
