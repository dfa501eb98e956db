"""Exact statements about counts, with the standard library only."""

from __future__ import annotations

import math

_NORMAL_95 = 1.959963984540054  # two-sided 95 % of the normal distribution
_MOST_ROWS = 2**63 - 1


def lower_tail(count: int, n: int, rate: float) -> float:
    """Return P(Binomial(n, rate) <= count), the p-value of "the rate is at least `rate`" when `count` were seen.

    The largest term is computed with lgamma, and the others from it by their ratios; all are positive, so nothing
    cancels. The relative error is below 1e-8 up to n = 1e6.
    """
    if count >= n:
        return 1.0
    # Terms grow up to the mode: start there, or at `count` if it comes first, and walk down, then up.
    start = min(count, int((n + 1) * rate))
    log_start = math.lgamma(n + 1) - math.lgamma(start + 1) - math.lgamma(n - start + 1)
    log_start += start * math.log(rate) + (n - start) * math.log1p(-rate)
    odds = rate / (1.0 - rate)
    total = term = 1.0
    for i in range(start, 0, -1):
        term *= i / ((n - i + 1) * odds)
        total += term
        if term < total * 1e-17:
            break
    term = 1.0
    for i in range(start + 1, count + 1):
        term *= (n - i + 1) / i * odds
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, math.exp(log_start + math.log(total)))


def rows_needed(rate: float, delta: float) -> int:
    """Return the fewest rows that show at level delta, if none of them fails, that the rate is below `rate`.

    At most 2^63 - 1, which is more than any array has.
    """
    rows = max(1, math.floor(min(_MOST_ROWS, math.log(delta) / math.log1p(-rate))) - 1)
    while rows < _MOST_ROWS and lower_tail(0, rows, rate) > delta:
        rows += 1
    return rows


def interval(count: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Wilson (1927) for a rate, given `count` successes in `n` draws."""
    z2 = _NORMAL_95**2
    share = count / n
    middle = share + z2 / (2 * n)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if count == 0 else (middle - half) / (1 + z2 / n)
    high = 1.0 if count == n else (middle + half) / (1 + z2 / n)
    return low, high
