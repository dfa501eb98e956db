"""Numbers for each seed, alone or along widths: mean and spread, differences seed by seed, and parts of a curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

Seeds = dict[int, float]
"""A number for each seed."""

Curve = dict[float, Seeds]
"""A number for each seed at each width, or whatever else stands below a curve, ascending."""


def mean(seeds: Mapping[int, float]) -> float:
    """Return the mean over the seeds."""
    return statistics.fmean(seeds.values())


def spread(seeds: Mapping[int, float]) -> float:
    """Return the standard deviation over the seeds (divisor n - 1); NaN if there is one seed only."""
    return statistics.stdev(seeds.values()) if len(seeds) > 1 else math.nan


def minus(first: Mapping[int, float], second: Mapping[int, float]) -> Seeds:
    """Return the differences, seed by seed: a seed has the same split, start and order of rows for all systems."""
    return {seed: value - second[seed] for seed, value in first.items() if seed in second}


def common(*curves: Curve) -> list[float]:
    """Return the widths that all curves have, ascending."""
    return sorted(set(curves[0]).intersection(*curves[1:])) if all(curves) else []


def means(curve: Curve) -> dict[float, float]:
    """Return the mean over the seeds at each width."""
    return {x: mean(seeds) for x, seeds in curve.items()}


def less(first: Curve, second: Curve) -> Curve:
    """Return the difference of two curves at the widths that both have, seed by seed."""
    return {x: seeds for x in common(first, second) if (seeds := minus(first[x], second[x]))}


def best(curves: Iterable[Curve]) -> Curve:
    """Return the largest of several curves, seed by seed, at the widths that any has."""
    found: Curve = {}
    for curve in curves:
        for x, seeds in curve.items():
            at = found.setdefault(x, dict(seeds))
            at.update({seed: max(value, at.get(seed, value)) for seed, value in seeds.items()})
    return dict(sorted(found.items()))


def head(curve: Curve, n: int = 1) -> Curve:
    """Return the first `n` widths of a curve."""
    return dict(list(curve.items())[:n])


def after(curve: Curve, n: int) -> Curve:
    """Return a curve without its first `n` widths."""
    return dict(list(curve.items())[n:])


def last(curve: Curve) -> Curve:
    """Return the last width of a curve."""
    return dict(list(curve.items())[-1:])


def short_half(curve: Curve) -> Curve:
    """Return the shorter half of the widths of a curve, the middle one included."""
    return head(curve, (len(curve) + 1) // 2)
