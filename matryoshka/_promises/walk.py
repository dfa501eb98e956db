"""Learn then Test (Angelopoulos et al., 2021): from the safest plan down to the cheapest whose promise survives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Plan = TypeVar("Plan")


def walk(plans: Iterable[Plan], p_value: Callable[[Plan], float], delta: float) -> tuple[tuple[float, ...], int | None]:
    """Test plans in order until one fails; return the p-values, and the index of the last plan that passed, if any did.

    `p_value` tests the hypothesis "this plan breaks its promise". Fixed-sequence testing: each plan is tested at level
    delta, and the first one to fail ends the walk. So the probability of any false claim is at most delta, without a
    correction for the number of plans. Their order must not depend on the data that they are tested on.
    """
    p_values: list[float] = []
    for plan in plans:
        p_values.append(p_value(plan))
        if p_values[-1] > delta:
            return tuple(p_values), len(p_values) - 2 if len(p_values) > 1 else None
    return tuple(p_values), len(p_values) - 1 if p_values else None
