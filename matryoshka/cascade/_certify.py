"""Learn then Test: find the cheapest cascade whose promise passes an exact test, and certify it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, Required, TypedDict

import numpy as np

from matryoshka import _checks
from matryoshka._promises.binomial import lower_tail, rows_needed
from matryoshka._promises.certificates import Certificate
from matryoshka._promises.walk import walk
from matryoshka._typing import Array
from matryoshka.cascade import _paths
from matryoshka.cascade._evaluation import Prices, exits
from matryoshka.cascade._outputs import UNKNOWN, Outputs, Scored
from matryoshka.cascade._paths import FULL_WIDTH, Policy
from matryoshka.nesting import NestingLike

PATHS = ("auto", "shared", "tapered", "fitted")
_FEW_ROWS = 2000


class Options(TypedDict, total=False):
    """The keywords of `Cascade.certify`, with groups and without."""

    nesting: Required[NestingLike]
    max_gap: float | None
    max_error: float | None
    max_disagreement: float | None
    delta: float
    path: str
    cost: str
    confidence: str | Array
    temperature: bool
    seed: int
    from_logits: bool


class Promise(NamedTuple):
    """The bounds of a certified cascade, which hold with probability at least 1 - delta over the tested rows."""

    max_gap: float | None
    max_error: float | None
    max_disagreement: float | None
    delta: float

    @classmethod
    def of(cls, bounds: dict[str, float | None], delta: float, *, labelled: bool) -> Promise:
        """Check the numbers; with labels but no bound, bound the gap by 0.01."""

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
        """Fewest rows on which anything can be certified, which takes that none of them fails."""
        bounds = (self.max_gap, self.max_error, self.max_disagreement)
        return max(rows_needed(bound, self.delta) for bound in bounds if bound is not None)

    def check_known(self, known: np.ndarray) -> None:
        """Refuse rows without a label if the error is bounded, about which they say nothing."""
        if self.max_error is not None and not known.all():
            msg = (
                f"`labels` must be known for every row with `max_error`, got {UNKNOWN} for {int((~known).sum())} of "
                f"{len(known)}; drop these rows, or bound `max_gap`."
            )
            raise ValueError(msg)

    def failures(self, scored: Scored) -> list[tuple[float, np.ndarray]]:
        """Return each bound, and where an exit at each prefix (G, n) is a failure in its sense."""
        wrong = ~scored.correct
        found = (
            (self.max_error, wrong),
            (self.max_disagreement, ~scored.agrees),
            (self.max_gap, wrong & scored.correct[-1]),
        )
        return [(bound, failures) for bound, failures in found if bound is not None]

    def shaping(self, scored: Scored) -> np.ndarray:
        """Return where an exit at each prefix (G, n) is a failure for the purpose of fitting a path.

        These are errors if the error has the tightest bound, else disagreements with the full width. Disagreements
        serve a gap too: whoever is wrong where the full width is right disagrees with it. They are so much more
        frequent that fewer rows, labelled or not, are enough to fit a path.
        """
        others = min(bound for bound in (self.max_gap, self.max_disagreement, 1.0) if bound is not None)
        return ~scored.correct if self.max_error is not None and self.max_error <= others else ~scored.agrees

    def choose_path(self, path: str, n: int, *, temperature: bool) -> str:
        """Resolve "auto" by the number of rows, which does not depend on what they hold."""
        if path != "auto":
            return path
        return "fitted" if temperature or n >= self._many else "tapered"

    @property
    def _many(self) -> int:
        return max(_FEW_ROWS, 10 * self.rows_needed)

    def n_fit(self, path: str, known: np.ndarray) -> int:
        """Return how many of the rows are used to fit a path: half of them for a fitted path, else none.

        If many rows have a label, as `known` (n,) says, all without one are used, so that the test has labels only.
        """
        if path != "fitted":
            return 0
        n_known = int(known.sum())
        return max(len(known) // 2, len(known) - n_known if n_known >= self._many else 0)

    def shared_by(self, sizes: Sequence[int], search: Search) -> Promise:
        """Return the promise for each of several groups of rows, such that all hold at once with 1 - delta.

        `delta` is divided evenly (Bonferroni) among the groups that have enough rows to pass at their share. That
        depends only on the sizes of groups, and a group that cannot pass makes no false claim.
        """
        halved = search.path == "fitted" or search.temperature  # if "auto" halves them, a half is more than enough
        tested = sorted(n - n // 2 if halved else n for n in sizes)
        shares = (self._replace(delta=self.delta / parts) for parts in range(1, len(sizes) + 1))
        return next(s for parts, s in enumerate(shares, 1) if len(tested) - bisect_left(tested, s.rows_needed) <= parts)


class Search(NamedTuple):
    """Which policies to test."""

    dims: tuple[int, ...]
    prices: Prices
    path: str
    temperature: bool
    seed: int

    def check(self) -> None:
        """Check the name of the path, and that temperatures are not fitted on tested rows."""
        _checks.choice(self.path, "path", PATHS)
        if self.temperature and self.path not in ("auto", "fitted"):
            msg = (
                f"`temperature` must be False with path={self.path!r}, got True: temperatures fitted on the tested "
                "rows would void the test; use path='fitted', which fits them on other rows."
            )
            raise ValueError(msg)

    def policies(self, path: str, fit: Scored, failures: np.ndarray) -> list[Policy]:
        """Return the policies of a path; only the fitted one depends on these rows."""
        if path == "tapered":
            return _paths.tapered(self.dims)
        return _paths.policies(path, fit.confidences, failures, self.prices)


def split(known: np.ndarray, n_fit: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows at random into those that fit a path and those that test it; those without a label fit first.

    Fitting needs no labels, and a test with labels is sharper.
    """
    order = np.random.default_rng(seed).permutation(len(known))
    order = order[np.argsort(known[order], kind="stable")]
    return np.sort(order[:n_fit]), np.sort(order[n_fit:])


def certify(
    promise: Promise,
    search: Search,
    outputs: Outputs,
    rows: np.ndarray,
    *,
    of: str = "",
    joint_delta: float | None = None,
) -> tuple[Certificate, tuple[float, ...] | None]:
    """Certify the cheapest policy of a path on these rows; also return its temperatures, if any.

    If these are the rows of a group, `of` names it in errors, and `joint_delta` is what all groups share.
    """
    path = promise.choose_path(search.path, len(rows), temperature=search.temperature)
    known = outputs.known[rows] & (promise.max_gap is not None)  # labels matter only for a gap
    fit_rows, tested_rows = split(known, promise.n_fit(path, known), search.seed)
    temperatures = outputs.fit_temperatures(rows[fit_rows]) if search.temperature and len(fit_rows) else None
    scored = outputs.score(temperatures, rows)
    fit, tested = scored.take(fit_rows), scored.take(tested_rows)
    full_width: Policy = (FULL_WIDTH,) * (len(search.dims) - 1)
    policies = search.policies(path, fit, promise.shaping(fit))
    if promise.max_error is not None:  # even the full width may break this bound, but never the others
        policies.insert(0, full_width)
    p_values, last = _test(promise, policies, tested, of)
    thresholds = full_width if last is None else policies[last]
    certificate = Certificate(
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
        n_unlabelled=0 if promise.max_gap is None else int((~known[tested_rows]).sum()),
        joint_delta=joint_delta,
    )
    return certificate, temperatures


def _test(
    promise: Promise, policies: Sequence[Policy], tested: Scored, of: str
) -> tuple[tuple[float, ...], int | None]:
    """Walk down the policies; if the error is bounded, the full width at least must pass."""
    failures, rows = promise.failures(tested), np.arange(tested.n_rows)

    def p_value(policy: Policy) -> float:
        """Return the exact p-value of "the promise is broken", the largest one over its bounds."""
        stage = exits(tested.confidences, policy)
        return max(lower_tail(int(failed[stage, rows].sum()), len(rows), bound) for bound, failed in failures)

    p_values, last = walk(policies, p_value, promise.delta)
    if promise.max_error is not None and last is None:
        msg = (
            f"`max_error` must be certifiable for the full width at least{of}, got {promise.max_error:g} where "
            f"the full width is wrong on {int((~tested.correct[-1]).sum())} of {tested.n_rows} tested rows "
            f"(p = {p_values[0]:.3g}); allow more error, or use more rows (never fewer than {promise.rows_needed})."
        )
        raise ValueError(msg)
    return p_values, last
