"""Learn then Test: the cheapest cascade whose promise survives an exact test, and the certificate it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._promises.binomial import lower_tail, rows_needed
from matryoshka._promises.certificates import Certificate
from matryoshka._promises.walk import walk
from matryoshka.cascade import _paths
from matryoshka.cascade._evaluation import exits
from matryoshka.cascade._outputs import Scored
from matryoshka.cascade._paths import FULL_WIDTH, Policy

_FEW_ROWS = 2000


class Promise(NamedTuple):
    """What a certified cascade keeps, with probability at least 1 - delta over the rows it was tested on."""

    max_gap: float | None
    max_error: float | None
    delta: float

    @classmethod
    def of(cls, max_gap: float | None, max_error: float | None, delta: float) -> Promise:
        """Check the numbers; without any target the gap must be at most 0.01."""
        if max_gap is None and max_error is None:
            max_gap = 0.01

        def share(value: float, name: str) -> float:
            return _checks.real(value, name, minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)

        return cls(
            None if max_gap is None else share(max_gap, "max_gap"),
            None if max_error is None else share(max_error, "max_error"),
            share(delta, "delta"),
        )

    @property
    def rows_needed(self) -> int:
        """Fewest rows on which anything can be certified: with no failure among them."""
        return max(rows_needed(rate, self.delta) for rate in (self.max_gap, self.max_error) if rate is not None)

    def p_value(self, scored: Scored, thresholds: Policy) -> float:
        """Return the exact p-value of "the promise is broken": the largest over its targets."""
        n = scored.n_rows
        wrong = ~scored.correct[exits(scored.confidences, thresholds), np.arange(n)]
        p_values = []
        if self.max_gap is not None:
            p_values.append(lower_tail(int((wrong & scored.correct[-1]).sum()), n, self.max_gap))
        if self.max_error is not None:
            p_values.append(lower_tail(int(wrong.sum()), n, self.max_error))
        return max(p_values)

    def failures(self, scored: Scored) -> np.ndarray:
        """Return where an exit at each prefix (G, n) would count against the promise."""
        wrong = ~scored.correct
        return wrong if self.max_gap is None else wrong & scored.correct[-1]

    def choose_path(self, path: str, n: int, *, temperature: bool) -> str:
        """Resolve "auto" by the number of rows, which says nothing about the rows themselves."""
        if path != "auto":
            return path
        return "fitted" if temperature or n >= max(_FEW_ROWS, 10 * self.rows_needed) else "shared"


def check_path(path: str, *, temperature: bool) -> None:
    """Check the name of a path, and that temperatures are fitted on no row that is tested."""
    _checks.choice(path, "path", ("auto", *_paths.PATHS))
    if temperature and path == "shared":
        msg = (
            "`temperature` must be False with path='shared', got True: temperatures fitted on the tested rows "
            "would void the test; use path='fitted', which fits them on other rows."
        )
        raise ValueError(msg)


def split(n: int, path: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that fit the path, a random half for the fitted one, and those that test it."""
    if path == "shared":
        return np.arange(0), np.arange(n)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def certify(promise: Promise, path: str, costs: Sequence[float], *, fit: Scored, tested: Scored) -> Certificate:
    """Certify the cheapest policy of a path; of the rows, `fit` shape the fitted path and `tested` test it."""
    full_width: Policy = (FULL_WIDTH,) * (len(costs) - 1)
    policies = _paths.policies(path, fit.confidences, promise.failures(fit), costs)
    if promise.max_error is not None:  # which even the full width may break, while it has no gap
        policies.insert(0, full_width)
    p_values, last = walk(policies, lambda policy: promise.p_value(tested, policy), promise.delta)
    if promise.max_error is not None and last is None:
        msg = (
            f"`max_error` must be certifiable for the full width at least, got {promise.max_error:g} where the "
            f"full width is wrong on {int((~tested.correct[-1]).sum())} of {tested.n_rows} tested rows "
            f"(p = {p_values[0]:.3g}); allow more error, or use more rows (never fewer than {promise.rows_needed})."
        )
        raise ValueError(msg)
    thresholds = full_width if last is None else policies[last]
    return Certificate(
        thresholds=thresholds,
        max_gap=promise.max_gap,
        max_error=promise.max_error,
        delta=promise.delta,
        path=path,
        n_rows=tested.n_rows,
        n_fit_rows=fit.n_rows,
        p_values=p_values,
        chosen=None if thresholds == full_width else last,
        rows_needed=promise.rows_needed,
    )
