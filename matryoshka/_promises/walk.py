"""Learn then Test (Angelopoulos et al., 2021): from the safest plan down to the cheapest whose promise survives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Plan = TypeVar("Plan")


def walk(plans: Iterable[Plan], p_value: Callable[[Plan], float], delta: float) -> tuple[tuple[float, ...], int | None]:
    """Test plans in their order until one fails; return the p-values, and which plan passed last (None: none did).

    `p_value` is of "this plan breaks its promise". Fixed-sequence testing: each plan is tested at level delta, and the
    first that fails ends the walk, which keeps the probability of any false claim at delta without a correction for
    their number. The order must not depend on what the plans are tested on.
    """
    p_values: list[float] = []
    for plan in plans:
        p_values.append(p_value(plan))
        if p_values[-1] > delta:
            return tuple(p_values), len(p_values) - 2 if len(p_values) > 1 else None
    return tuple(p_values), len(p_values) - 1 if p_values else None
