"""Learn then Test: the cheapest cascade whose promise survives an exact test, and the certificate it gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka.cascade import _paths
from matryoshka.cascade._binomial import lower_tail, rows_needed
from matryoshka.cascade._evaluation import exits
from matryoshka.cascade._paths import FULL_WIDTH, Policy
from matryoshka.cascade._stages import Scored

PATHS = ("auto", "shared", "fitted")
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
        for name, value in (("max_gap", max_gap), ("max_error", max_error), ("delta", delta)):
            if value is not None:
                _checks.real(value, name, minimum=0.0, maximum=1.0, open_minimum=True, open_maximum=True)
        return cls(max_gap, max_error, delta)

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
        """Choose between the paths by the number of rows, which says nothing about the rows themselves."""
        _checks.choice(path, "path", PATHS)
        if temperature and path == "shared":
            msg = (
                "`temperature` must be False with path='shared', got True: temperatures fitted on the tested rows "
                "would void the test; use path='fitted', which fits them on other rows."
            )
            raise ValueError(msg)
        if path != "auto":
            return path
        return "fitted" if temperature or n >= max(_FEW_ROWS, 10 * self.rows_needed) else "shared"


@dataclass(frozen=True, repr=False)
class Certificate:
    """What was promised of a cascade, and the test that it passed.

    Attributes
    ----------
    thresholds : tuple of float
        The policy the certificate is about: that of the cascade which carries it.
    max_gap : float or None
        Bound on P(cascade wrong and full width right).
    max_error : float or None
        Bound on P(cascade wrong).
    delta : float
        The promise holds with probability at least 1 - delta over the tested rows.
    path : {"shared", "fitted"}
        One threshold for all prefixes, or a path fitted on other rows.
    n_rows : int
        Rows the policies were tested on.
    n_fit_rows : int
        Rows, none of them among these, on which the path was fitted; 0 for the shared path.
    p_values : tuple of float
        Of the policies in the order of their test, safest first; the last one is the first that failed, if one did.
        A promise on the error tests the full width first.
    chosen : int or None
        Which of `p_values` is that of `thresholds`, the cheapest policy that passed; None where no policy that saves
        anything passed, so that every row goes to the full width.
    rows_needed : int
        Fewest tested rows on which any policy could pass: with no failure among them.
    """

    thresholds: tuple[float, ...]
    max_gap: float | None
    max_error: float | None
    delta: float
    path: str
    n_rows: int
    n_fit_rows: int
    p_values: tuple[float, ...]
    chosen: int | None
    rows_needed: int

    @classmethod
    def from_record(cls, record: Any) -> Certificate:
        """Build a certificate from the parsed JSON of `to_record`."""
        fields, lists = {field.name for field in dataclasses.fields(cls)}, ("thresholds", "p_values")
        whole = isinstance(record, dict) and set(record) == fields
        if not whole or not all(isinstance(record[key], list) for key in lists):
            msg = "`certificate` must hold exactly the fields of a certificate; pass what `to_json` of a cascade wrote."
            raise ValueError(msg)
        return cls(**record | {key: tuple(record[key]) for key in lists})

    def to_record(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        targets = {"P(wrong, full width right)": self.max_gap, "P(wrong)": self.max_error}
        promise = " and ".join(f"{name} <= {bound:g}" for name, bound in targets.items() if bound is not None)
        rows = f"{self.n_rows} rows" + (f" ({self.n_fit_rows} others fitted the path)" if self.n_fit_rows else "")
        if self.chosen is None:
            outcome = f"nothing but the full width could be certified{self._advice()}"
        else:
            outcome = f"p = {self.p_values[self.chosen]:.3g}, {len(self.p_values)} policies tested"
        return f"{promise} with probability >= {1 - self.delta:g} over {rows}: {outcome}"

    def _advice(self) -> str:
        """Say how many rows to bring, where their number alone rules a promise out."""
        if self.n_rows >= self.rows_needed:
            return ""
        in_all = f", so {2 * self.rows_needed} in all" if self.n_fit_rows else ""
        return f" (at least {self.rows_needed} tested rows are needed{in_all})"

    def __repr__(self) -> str:
        return f"<Certificate: {self}>"


def certify(scored: Scored, costs: Sequence[float], promise: Promise, path: str, seed: int) -> Certificate:
    """Certify the cheapest policy of a path; the rows of `split` that fit the fitted path are not tested."""
    fit_rows, test_rows = split(scored.n_rows, path, seed)
    if path == "fitted":
        fit = scored.take(fit_rows)
        policies = _paths.fitted(fit.confidences, promise.failures(fit), costs)
    else:
        policies = _paths.shared(len(costs) - 1)
    thresholds, p_values, chosen = walk(scored.take(test_rows), policies, promise)
    return Certificate(
        thresholds=thresholds,
        max_gap=promise.max_gap,
        max_error=promise.max_error,
        delta=promise.delta,
        path=path,
        n_rows=len(test_rows),
        n_fit_rows=len(fit_rows),
        p_values=p_values,
        chosen=chosen,
        rows_needed=promise.rows_needed,
    )


def split(n: int, path: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that fit the path, a random half for the fitted one, and those that test it."""
    if path == "shared":
        return np.arange(0), np.arange(n)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def walk(scored: Scored, path: Iterable[Policy], promise: Promise) -> tuple[Policy, tuple[float, ...], int | None]:
    """Walk down the path while the promise is not refuted; return the last policy that passed and all p-values.

    Fixed-sequence testing: each policy is tested at level delta, and the first that fails ends the walk, which keeps
    the probability of any false claim at delta without a correction for their number.
    """
    thresholds: Policy = (FULL_WIDTH,) * (len(scored.correct) - 1)
    p_values, chosen = [], None
    if promise.max_error is not None:
        p_values.append(promise.p_value(scored, thresholds))
        if p_values[0] > promise.delta:
            wrong = int((~scored.correct[-1]).sum())
            msg = (
                f"`max_error` must be certifiable for the full width at least, got {promise.max_error:g} where the "
                f"full width is wrong on {wrong} of {scored.n_rows} tested rows (p = {p_values[0]:.3g}); "
                f"allow more error, or use more rows (never fewer than {promise.rows_needed})."
            )
            raise ValueError(msg)
    for policy in path:
        p_values.append(promise.p_value(scored, policy))
        if p_values[-1] > promise.delta:
            break
        thresholds, chosen = policy, len(p_values) - 1
    return thresholds, tuple(p_values), chosen
