"""Learn then Test: the cheapest cascade whose promise survives an exact test, and the certificate it gets."""

from __future__ import annotations

import operator
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
    max_disagreement: float | None
    delta: float

    @classmethod
    def of(cls, bounds: dict[str, float | None], delta: float, *, labelled: bool) -> Promise:
        """Check the numbers; with labels and without any bound the gap must be at most 0.01."""

        def share(value: float, name: str) -> float:
            return _checks.real(value, name, minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)

        given = {name: share(bound, name) for name, bound in bounds.items() if bound is not None}
        if not labelled and set(given) != {"max_disagreement"}:
            got = " and ".join(given) or "no bound"
            msg = (
                f"`labels` must be given for any bound but `max_disagreement`, got None with {got}; "
                "pass labels, or max_disagreement alone."
            )
            raise ValueError(msg)
        return cls(**(dict.fromkeys(bounds) | (given or {"max_gap": 0.01})), delta=share(delta, "delta"))

    @property
    def rows_needed(self) -> int:
        """Fewest rows on which anything can be certified: with no failure among them."""
        bounds = (self.max_gap, self.max_error, self.max_disagreement)
        return max(rows_needed(bound, self.delta) for bound in bounds if bound is not None)

    def failures(self, scored: Scored) -> list[tuple[float, np.ndarray]]:
        """Return each bound with where an exit at each prefix (G, n) counts against it.

        Whatever counts against a gap counts against a disagreement and an error too, which therefore stand before it.
        """
        wrong = ~scored.correct
        found = (
            (self.max_error, wrong),
            (self.max_disagreement, ~scored.agrees),
            (self.max_gap, wrong & scored.correct[-1]),
        )
        return [(bound, failures) for bound, failures in found if bound is not None]

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
    _, strictest = min(promise.failures(fit), key=operator.itemgetter(0))
    policies = _paths.policies(path, fit.confidences, strictest, costs)
    if promise.max_error is not None:  # which even the full width may break, while it has no gap
        policies.insert(0, full_width)
    failures, rows = promise.failures(tested), np.arange(tested.n_rows)

    def p_value(policy: Policy) -> float:
        """Return the exact p-value of "the promise is broken": the largest over its bounds."""
        stage = exits(tested.confidences, policy)
        return max(lower_tail(int(failed[stage, rows].sum()), len(rows), bound) for bound, failed in failures)

    p_values, last = walk(policies, p_value, promise.delta)
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
        max_disagreement=promise.max_disagreement,
        delta=promise.delta,
        path=path,
        n_rows=tested.n_rows,
        n_fit_rows=fit.n_rows,
        p_values=p_values,
        chosen=None if thresholds == full_width else last,
        rows_needed=promise.rows_needed,
    )
