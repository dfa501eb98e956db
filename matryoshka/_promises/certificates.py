"""What was promised of a plan, and the test that it passed: a value that travels with the plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self


class _Tested:
    """A certificate: a dataclass whose fields travel as a JSON object, and which names the plan it is about."""

    _kind: ClassVar[str]
    _maker: ClassVar[str]
    _subject: ClassVar[str]

    @classmethod
    def from_record(cls, record: Any) -> Self | None:
        """Build a certificate from the parsed JSON of `to_record`; None stays None."""
        if record is None:
            return None
        fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        lists = [name for name, kind in fields.items() if kind.startswith("tuple")]
        whole = isinstance(record, dict) and set(record) == set(fields)
        if not whole or not all(isinstance(record[name], list) for name in lists):
            msg = (
                "`certificate` must hold exactly the fields of a certificate; "
                f"pass what `to_json` of a {cls._kind} wrote."
            )
            raise ValueError(msg)
        return cls(**(record | {name: tuple(record[name]) for name in lists}))

    def to_record(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def check(cls, certificate: object, **plan: tuple[float, ...]) -> None:
        """Check that a certificate, if there is one, is of this class and about the plan with these fields."""
        if certificate is None:
            return
        if not isinstance(certificate, cls):
            msg = f"`certificate` must be what `{cls._maker}` made, got {type(certificate).__name__}; leave it out."
            raise TypeError(msg)
        tested = {name: getattr(certificate, name) for name in plan}
        if tested != plan:
            asked, got = (" with ".join(map(str, fields.values())) for fields in (plan, tested))
            msg = (
                f"`certificate` must be about {cls._subject}, {asked}, got one about {got}; "
                f"a changed {cls._kind} has to be certified anew."
            )
            raise ValueError(msg)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


@dataclass(frozen=True, repr=False)
class Certificate(_Tested):
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

    _kind, _maker, _subject = "cascade", "Cascade.certify", "these thresholds"

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


@dataclass(frozen=True, repr=False)
class RecallCertificate(_Tested):
    """What was promised of a funnel, and the test that it passed.

    Attributes
    ----------
    dims, keep : tuple of int
        The funnel the certificate is about: the one which carries it.
    recall : float
        Bound on the expected recall@k over queries like those tested.
    delta : float
        The promise holds with probability at least 1 - delta over the tested queries.
    k : int
        Results per query.
    n_rows : int
        Rows of the corpus; other rows need another test.
    metric : str
        Its similarity.
    n_queries : int
        Queries the funnels were tested on.
    n_choice_queries : int
        Queries, none of them among these, on which the candidates were chosen.
    p_values : tuple of float
        Of the funnels in the order of their test; the last one is the first that failed, if one did.
    recalls : tuple of float
        Mean recall@k of the same funnels on the tested queries.
    chosen : int or None
        Which of these the funnel is; None where none passed, and the funnel is the exact search.
    queries_needed : int
        Fewest tested queries on which any funnel could pass: with perfect recall on all of them.
    """

    _kind, _maker, _subject = "funnel", "Funnel.calibrate", "this funnel"

    dims: tuple[int, ...]
    keep: tuple[int, ...]
    recall: float
    delta: float
    k: int
    n_rows: int
    metric: str
    n_queries: int
    n_choice_queries: int
    p_values: tuple[float, ...]
    recalls: tuple[float, ...]
    chosen: int | None
    queries_needed: int

    def __str__(self) -> str:
        promise = f"expected recall@{self.k} >= {self.recall:g} with probability >= {1 - self.delta:g}"
        queries = f"{self.n_queries} queries ({self.n_choice_queries} others chose the candidates)"
        if self.chosen is None:
            outcome = "only the exact search could be certified"
            if self.n_queries < self.queries_needed:
                outcome += f" (at least {self.queries_needed} are needed, so {2 * self.queries_needed} in all)"
        else:
            outcome = (
                f"p = {self.p_values[self.chosen]:.3g}, recall {self.recalls[self.chosen]:.4f}, "
                f"{len(self.p_values)} funnels tested"
            )
        return f"{promise} over {queries}: {outcome}"
