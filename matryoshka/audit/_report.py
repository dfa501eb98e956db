"""The result of an audit: a value, a table, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from matryoshka import _pictures
from matryoshka.audit import _words
from matryoshka.audit._rows import AuditRow
from matryoshka.audit._rule import LOST, SHARE, FirstStage
from matryoshka.retrieval import Funnel


@dataclass(frozen=True)
class Audit:
    """Whether embeddings can be truncated, to what, and what that loses; printed, a table.

    Attributes
    ----------
    rows : tuple of AuditRow
        One per width, the narrowest first, the full width last.
    funnel : Funnel or None
        The cheapest plan found that loses at most 1 % of the neighbours with lists of at most 1 % of the rows, or the
        full width alone if there is none; None if the verdict is no.
    k : int
        Neighbours per query.
    n_rows, n_audited, n_queries : int
        Rows of the embeddings, rows audited, and queries among these.
    n_duplicates : int
        Rows drawn but dropped, because another row has the same direction.
    orders : int
        Random column orders that the given one was compared with.
    seed : int
        Seed of all sampling.
    n_fitted, n_rotated : int
        Rows that the rotation was fitted on, and other rows, among which it was measured; 0 if there were too few.
    first_stage : FirstStage or None
        The stage with the fewest bytes per row whose list of 10 `k` of the `n_rotated` rows, or else of the `n_audited`
        ones, holds 95 % of the neighbours: columns in float32 or one bit each, rotated only if that is recommended.
        None if there is none, or with fewer than 100 `k` rows.
    cut : int or None
        A width whose nearest `k` rows are as good as the funnel, with no more multiply-adds.
    """

    rows: tuple[AuditRow, ...]
    funnel: Funnel | None
    k: int
    n_rows: int
    n_audited: int
    n_queries: int
    n_duplicates: int
    orders: int
    seed: int
    n_fitted: int = 0
    n_rotated: int = 0
    first_stage: FirstStage | None = None
    cut: int | None = None

    @property
    def dim(self) -> int:
        """Full width of the embeddings."""
        return self.rows[-1].dim

    @property
    def smallest_dim(self) -> int | None:
        """Narrowest prefix below full width that passes the rule, None if none does."""
        return next((row.dim for row in self.rows[:-1] if row.passes), None)

    @property
    def truncates(self) -> bool:
        """Whether a prefix below full width passes the rule."""
        return self.smallest_dim is not None

    @property
    def ladder(self) -> tuple[int, ...]:
        """Widths from `smallest_dim` up, each good by itself; the full width alone if the verdict is no."""
        start = self.dim if self.smallest_dim is None else self.smallest_dim
        return tuple(row.dim for row in self.rows if row.dim >= start)

    @property
    def verdict(self) -> str:
        """The answer, in one sentence."""
        return _words.verdict(self.rows, self.k)

    @property
    def recommendation(self) -> str:
        """What to do: the width that labels allow; rotate, cut, or neither; the best first stage of a search."""
        return _words.recommendation(self.rows, self.k, self.n_fitted, self.n_rotated, self.first_stage)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to keep in mind about the numbers."""
        found = []
        if self.n_audited + self.n_duplicates < self.n_rows:
            found.append(
                f"A sample: {self.n_audited:,} of {self.n_rows:,} rows. Among all of them fewer neighbours are kept."
            )
        if self.n_duplicates:
            found.append(f"{self.n_duplicates:,} rows were dropped: another row has the same direction.")
        if not self.n_fitted:
            found.append(
                f"rotated: not measured: a Rotation is fitted on at least {self.dim:,} rows, and those that it is "
                "measured on must be others."
            )
        elif self.n_rotated == self.n_audited:
            found.append(
                f"rotated: by a Rotation fitted on {self.n_fitted:,} rows that are neither queries nor candidates."
            )
        else:
            found.append(
                f"rotated: among {self.n_rotated:,} of these rows, by a Rotation fitted on {self.n_fitted:,} others; "
                "among more rows fewer are kept. gain is over the prefix among the same rows."
            )
        if not self.truncates and self.rows[0].nearest_neighbor_accuracy is None:
            found.append(
                "Neighbours kept is a strict measure: another neighbour is often as good; pass `labels` to see."
            )
        return tuple(found)

    def to_json(self) -> str:
        """Return verdict, rows and settings as JSON text.

        Returns
        -------
        str
            An object of kind "audit".
        """
        record: dict[str, Any] = {"kind": "audit", "version": 1}
        record |= {name: getattr(self, name) for name in _DERIVED}
        record |= vars(self) | {"rows": [row._asdict() for row in self.rows]}
        if self.funnel is not None:
            record["funnel"] = {"dims": self.funnel.dims, "keep": self.funnel.keep}
        if self.first_stage is not None:
            record["first_stage"] = self.first_stage._asdict()
        return json.dumps(record)

    def figure(self) -> Any:
        """Draw the audit.

        Returns
        -------
        matplotlib.figure.Figure
            The neighbours kept at each width, beside accuracy if labels were given, else beside energy;
            ``figure().savefig("audit.png")`` writes it.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        from matryoshka.audit._figure import figure  # it imports this class

        return figure(self)

    def __str__(self) -> str:
        tables = [line for cells in _tables(self) for line in (*_pictures.table(cells), "")]
        above = self.verdict, self.recommendation, "", _title(self)
        below = *_legend(self), "", *_advice(self), *self.notes
        return "\n".join((*_pictures.wrapped(above), *tables, *_pictures.wrapped(below)))

    def _repr_html_(self) -> str:
        """Return what is printed, as HTML for a notebook."""
        return "\n".join(
            (
                _pictures.html_lines([self.verdict, self.recommendation]),
                _pictures.html_lines([_title(self)]),
                *map(_pictures.html_table, _tables(self)),
                _pictures.html_lines(_legend(self)),
                _pictures.html_lines([*_advice(self), *self.notes]),
            )
        )


_DERIVED = ("truncates", "smallest_dim", "ladder", "verdict", "recommendation", "notes")
_LEGEND = (
    "energy: squared length that lies in the first columns; 95 %: interval of kept;",
    "range: of the random orders; last: the last columns instead of the first;",
    "rotated: the first ones after a rotation fitted on other rows;",
    "gain: what that keeps beyond the prefix, a 95 % interval in points;",
    "worth: random columns that keep as much, per column;",
    "p: chance of such a lead if the order meant nothing.",
)
_LABELLED = (
    "1-NN, class mean: accuracy by the nearest other row, and by the nearest mean of a class;",
    "rotated 1-NN: the former after the rotation, among the rows of rotated: compare with its last line.",
)


def _title(audit: Audit) -> str:
    return (
        f"Share of the {audit.k} nearest neighbours kept: {audit.n_queries:,} queries among {audit.n_audited:,} rows, "
        f"{audit.orders} random column orders"
    )


def _legend(audit: Audit) -> list[str]:
    return [*_LEGEND, *(_LABELLED if audit.rows[0].nearest_neighbor_accuracy is not None else [])]


def _tables(audit: Audit) -> list[list[list[str]]]:
    """Return the cells of what is kept at each width, and with labels those of how good it is."""
    lines = [["dim", "energy", "kept", "95 %", "random", "range", "last", "rotated", "gain", "worth", "p", ""]]
    accuracies = [["dim", "1-NN", "class mean", "rotated 1-NN"]]
    for row in audit.rows:
        full = row.dim == audit.dim
        cells = [
            str(row.dim),
            _words.percent(row.energy),
            _words.percent(row.kept),
            f"{100 * row.kept_low:.0f}-{100 * row.kept_high:.0f}",
            _words.percent(row.random),
            f"{100 * row.random_low:.0f}-{100 * row.random_high:.0f}",
            _words.percent(row.last),
            "" if row.rotated is None else _words.percent(row.rotated),
            "" if full else _interval(row.gain_low, row.gain_high),
            "" if full else f"{row.worth:.2f} x",
            "" if full else f"{row.p_value:.2f}",
            "passes" if row.passes and not full else "",
        ]
        lines.append(cells)
        if row.nearest_neighbor_accuracy is not None and row.nearest_class_mean_accuracy is not None:
            rotated = row.rotated_nearest_neighbor_accuracy
            shares = row.nearest_neighbor_accuracy, row.nearest_class_mean_accuracy
            turned = "" if rotated is None else _words.tenths(rotated)
            accuracies.append([str(row.dim), *map(_words.tenths, shares), turned])
    return [lines, accuracies] if len(accuracies) > 1 else [lines]


def _advice(audit: Audit) -> list[str]:
    if audit.funnel is None:
        return []
    lines = [f"Ladder: {', '.join(map(str, audit.ladder))}"]
    if len(audit.funnel.dims) == 1:
        none = (
            f"Funnel: none pays for {audit.n_rows:,} rows: to lose at most {_words.percent(LOST)} of the neighbours, "
            f"each would rerank more than {_words.percent(SHARE)} of the rows or cost as much as an exact search."
        )
        return [*lines, none, *_cut(audit)]
    stages = " > ".join(map(str, audit.funnel.dims))
    lists = ", ".join(map(str, audit.funnel.keep))
    executed, published = (audit.funnel.speedup(audit.n_rows, executed=executed) for executed in (True, False))
    plan = (
        f"Funnel: {stages}, keep {lists}: {executed:.1f} x fewer multiply-adds over {audit.n_rows:,} rows as executed, "
        f"{published:.1f} x as the paper counts; check it with Funnel.calibrate."
    )
    return [*lines, plan, *_cut(audit)]


def _cut(audit: Audit) -> list[str]:
    if audit.cut is None:
        return []
    line = (
        f"Plain cut: corpus.search(queries, {audit.k}, dim={audit.cut}) does as well, at {audit.dim / audit.cut:.1f} x "
        "fewer multiply-adds than an exact search."
    )
    return [line]


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{round(100 * low):+d} {round(100 * high):+d}"
