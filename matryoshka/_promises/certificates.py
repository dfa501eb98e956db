"""What was promised of a plan, and the test that it passed: a value that is kept and saved with the plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from matryoshka import _checks, _pictures

BOUNDS = {
    "max_gap": "P(wrong, full width right)",
    "max_error": "P(wrong)",
    "max_disagreement": "P(disagrees with the full width)",
}
"""The bounds that may be promised of a cascade, and the probability that each of them bounds."""


class _Tested:
    """A certificate: a dataclass that is written as a JSON object of its fields, and names the plan it is about."""

    _kind: ClassVar[str]
    _maker: ClassVar[str]
    _subject: ClassVar[str]
    delta: float

    @classmethod
    def from_record(cls, record: Any) -> Self | None:
        """Build a certificate from the parsed JSON of `to_record`; None stays None."""
        if record is None:
            return None
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        lists = [field.name for field in fields if str(field.type).startswith("tuple")]
        required = {field.name for field in fields if field.default is dataclasses.MISSING}
        whole = isinstance(record, dict) and required <= set(record) <= {field.name for field in fields}
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
    def check(cls, certificate: object, **plan: tuple[float, ...] | str) -> None:
        """Check that a certificate, if given, is of this class and about the plan with these fields."""
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

    def __str__(self) -> str:
        promise, rows, outcome = self._parts()
        return f"{promise} with probability >= {1 - self.delta:g} over {rows}: {outcome}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def _repr_html_(self) -> str:
        """Return what is printed, as HTML for a notebook."""
        promise, rows, outcome = self._parts()
        probability = f">= {1 - self.delta:g}"
        lines = ("promise", promise), ("with probability", probability), ("over", rows), ("outcome", outcome)
        return _pictures.html_table(lines, header=False)

    def _parts(self) -> tuple[str, str, str]:
        """Return what is promised, over which rows, and the outcome of the test."""
        raise NotImplementedError

    def _check_fields(
        self, *, shares: Iterable[str], counts: Iterable[str], options: Mapping[str, Collection[str]]
    ) -> None:
        """Check the fields one by one: shares within (0, 1), counts of at least 1, and names among their options."""
        for name in shares:
            _share(getattr(self, name), name)
        for name in counts:
            _checks.integer(getattr(self, name), f"certificate.{name}", minimum=1)
        for name, allowed in options.items():
            _checks.choice(getattr(self, name), f"certificate.{name}", allowed)

    @staticmethod
    def _agree(name: str, value: object, expected: object, rule: str) -> None:
        """Refuse a field that does not follow from the others."""
        if value != expected or type(value) is not type(expected):
            msg = f"`certificate.{name}` must be {expected}, {rule}, got {value!r}; the certificate was changed."
            raise ValueError(msg)


def _share(value: object, name: str, *, closed: bool = False) -> float:
    limits = {"minimum": 0.0, "maximum": 1.0, "open_minimum": not closed, "open_maximum": not closed}
    return _checks.real(value, f"certificate.{name}", **limits)  # type: ignore[arg-type]


def _last_passed(p_values: tuple[float, ...], delta: float, *, skipped: int = 0) -> int | None:
    """Return the index of the plan that a walk chose, after checking that these are the p-values of a walk.

    The first `skipped` plans do not count as chosen, since they save nothing: they are the full width.
    """
    values = [_share(p, f"p_values[{i}]", closed=True) for i, p in enumerate(p_values)]
    if any(p > delta for p in values[:-1]) or len(values) < skipped:
        msg = f"`certificate.p_values` must end at the first above {delta:g}, got others; the certificate was changed."
        raise ValueError(msg)
    last = len(values) - 1 if values and values[-1] <= delta else len(values) - 2
    return last if last >= skipped else None


@dataclass(frozen=True, repr=False)
class Certificate(_Tested):
    """What was promised of a cascade, and the test that it passed.

    Attributes
    ----------
    thresholds : tuple of float
        The policy that the certificate is about: that of the cascade which carries it.
    max_gap : float or None
        Bound on P(cascade wrong and full width right).
    max_error : float or None
        Bound on P(cascade wrong).
    delta : float
        The promise holds with probability at least 1 - delta over the tested rows.
    path : {"shared", "tapered", "fitted"}
        One threshold for all prefixes, one that falls as they widen, or a path fitted on other rows.
    n_rows : int
        Rows the policies were tested on.
    n_fit_rows : int
        Rows, none of them among these, on which the path was fitted; 0 for the other paths.
    p_values : tuple of float
        Of the policies in the order of testing, safest first; the last one is the first that failed, if one did. With
        a bound on the error, the full width is tested first.
    chosen : int or None
        Index in `p_values` of `thresholds`, the cheapest policy that passed; None if no policy that saves anything
        passed, so that every row goes to the full width.
    rows_needed : int
        Fewest tested rows on which any policy could pass, which takes that none of them fails.
    max_disagreement : float or None
        Bound on P(cascade answers otherwise than the full width), and so on the gap too; None in files from before
        there was such a promise.
    n_unlabelled : int
        How many of the tested rows had no label, and so counted against the gap wherever the cascade contradicted the
        full width; 0 if the gap is not bounded.
    joint_delta : float or None
        For groups certified together: the promises to all of them hold at once with probability at least
        1 - joint_delta, of which `delta` is this group's share. None without other groups, and in older files.
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
    max_disagreement: float | None = None
    n_unlabelled: int = 0
    joint_delta: float | None = None

    def __post_init__(self) -> None:
        rates = [name for name in BOUNDS if getattr(self, name) is not None]
        paths = {"path": ("shared", "tapered", "fitted")}
        self._check_fields(shares=(*rates, "delta"), counts=("n_rows", "rows_needed"), options=paths)
        for i, threshold in enumerate(self.thresholds):
            _checks.real(threshold, f"certificate.thresholds[{i}]")
        _checks.integer(self.n_fit_rows, "certificate.n_fit_rows", minimum=0)
        most = 0 if self.max_gap is None else self.n_rows
        _checks.integer(self.n_unlabelled, "certificate.n_unlabelled", minimum=0, maximum=most)
        if self.joint_delta is not None and _share(self.joint_delta, "joint_delta") < self.delta:
            msg = (
                f"`certificate.joint_delta` must be at least its share `delta`, {self.delta:g}, got "
                f"{self.joint_delta:g}; the certificate was changed."
            )
            raise ValueError(msg)
        if not rates:
            names = " or ".join(f"`certificate.{name}`" for name in BOUNDS)
            msg = f"{names} must be given, got None for all; pass one."
            raise ValueError(msg)
        if self.path != "fitted":
            self._agree("n_fit_rows", self.n_fit_rows, 0, f"as no row fits a {self.path} path")
        last = _last_passed(self.p_values, self.delta, skipped=int(self.max_error is not None))
        self._agree("chosen", self.chosen, last, "the last of the p-values that passed")
        if self.chosen is None:
            self._agree("thresholds", self.thresholds, (1.0,) * len(self.thresholds), "as nothing else passed")

    def _parts(self) -> tuple[str, str, str]:
        bounds = [(failure, getattr(self, name)) for name, failure in BOUNDS.items()]
        promise = " and ".join(f"{failure} <= {bound:g}" for failure, bound in bounds if bound is not None)
        notes = [f"{self.n_unlabelled} unlabelled"] if self.n_unlabelled else []
        notes += [f"{self.n_fit_rows} others fitted the path"] if self.n_fit_rows else []
        rows = f"{self.n_rows} rows" + (f" ({', '.join(notes)})" if notes else "")
        if self.chosen is None:
            outcome = f"nothing but the full width could be certified{self._advice()}"
        else:
            outcome = f"p = {self.p_values[self.chosen]:.3g}, {len(self.p_values)} policies tested"
        if self.joint_delta is not None:
            promise += f" in all groups at once with probability >= {1 - self.joint_delta:g}, in this one"
        return promise, rows, outcome

    def _advice(self) -> str:
        """Say how many rows are needed, if there are too few for any promise."""
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
        The funnel that the certificate is about: the one which carries it.
    recall : float
        Bound on the expected recall@k over queries like those tested.
    delta : float
        The promise holds with probability at least 1 - delta over the tested queries.
    k : int
        Results per query.
    n_rows : int
        Rows of the corpus; for other rows the promise does not hold.
    metric : str
        Similarity of the corpus.
    n_queries : int
        Queries that the funnels were tested on.
    n_choice_queries : int
        Other queries, on which the candidates were chosen.
    p_values : tuple of float
        Of the funnels in the order of testing; the last one is the first that failed, if one did.
    recalls : tuple of float
        Mean recall@k of the same funnels on the tested queries.
    chosen : int or None
        Index of the funnel among these; None if none passed, and the funnel is the exact search.
    queries_needed : int
        Fewest tested queries on which any funnel could pass, with perfect recall on all of them.
    code : str
        How the funnel stores and searches its first width; "float" in files from before there was another code.
    cost : {"time", "multiply_adds"}
        What the funnels were compared by; "multiply_adds" in files from before there was a choice.
    batch_size : int or None
        Queries per batch in the times; None if multiply-adds were counted.
    best_recall : float or None
        Where all that costs less than the exact search finds too little to be tested: the most that was found, a share
        of the true neighbours of the queries that choose. None otherwise, and in older files.
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
    code: str = "float"
    cost: str = "multiply_adds"
    batch_size: int | None = None
    best_recall: float | None = None

    def __post_init__(self) -> None:
        counts = ("k", "n_rows", "n_queries", "n_choice_queries", "queries_needed")
        options = {"metric": _checks.METRICS, "code": _checks.CODES, "cost": COSTS}
        self._check_fields(shares=("recall", "delta"), counts=counts, options=options)
        if self.cost == "time":
            _checks.integer(self.batch_size, "certificate.batch_size", minimum=1)
        else:
            self._agree("batch_size", self.batch_size, None, "as a count is the same for each query")
        widths = _checks.dims(self.dims, "certificate.dims", code=self.code)
        _checks.keep(self.keep, len(widths), "certificate.keep")
        for i, recall in enumerate(self.recalls):
            _share(recall, f"recalls[{i}]", closed=True)
        self._agree("recalls", len(self.recalls), len(self.p_values), "one for each of the p-values")
        if self.best_recall is not None:
            _checks.real(self.best_recall, "certificate.best_recall", minimum=0.0, maximum=self.recall)
            self._agree("p_values", self.p_values, (), "as nothing found enough to be tested")
        last = _last_passed(self.p_values, self.delta)
        self._agree("chosen", self.chosen, last, "the last of the p-values that passed")
        if self.chosen is None:
            self._agree("keep", self.keep, (), "as nothing but the exact search passed")
            self._agree("code", self.code, "float", "as nothing but the exact search passed")

    def _parts(self) -> tuple[str, str, str]:
        queries = f"{self.n_queries} queries ({self.n_choice_queries} others chose the candidates)"
        return f"expected recall@{self.k} >= {self.recall:g}", queries, self._outcome()

    def _outcome(self) -> str:
        if self.chosen is not None:
            passed = f"p = {self.p_values[self.chosen]:.3g}, recall {self.recalls[self.chosen]:.4f}"
            return f"{passed}, {len(self.p_values)} funnels tested"
        if not self.p_values:
            asked = "one query at a time" if self.batch_size == 1 else f"{self.batch_size} queries at once"
            by = "multiply-adds" if self.batch_size is None else f"the clock, {asked}"
            if self.best_recall is None:
                return f"no funnel beats the exact search here by {by}"
            return (
                f"no funnel reached recall {self.recall:g} (best {self.best_recall:.4f}) in less than the exact search "
                f"takes by {by}; with an index in front, let it look at more (efSearch, nprobe)"
            )
        outcome = f"only the exact search could be certified (the safest funnel: recall {self.recalls[0]:.4f}"
        if self.n_queries < self.queries_needed:
            both = f"{2 * self.queries_needed} with those that choose"
            return f"{outcome}; a perfect one takes {self.queries_needed} tested queries, {both})"
        helps = "more queries, or a lower recall," if self.recalls[0] > self.recall else "a lower recall"
        return f"{outcome}; {helps} might certify one)"


COSTS = ("time", "multiply_adds")
"""What funnels may be compared by: seconds as predicted by a model of the corpus, or a count."""
