"""The result of an audit: a value, a table, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from matryoshka._pictures import table
from matryoshka.audit._rule import KEPT, LEVEL, LOST, SHARE, WORTH
from matryoshka.retrieval import Funnel


class AuditRow(NamedTuple):
    """What an audit found at one width. Shares lie within [0, 1].

    Attributes
    ----------
    dim : int
        The width.
    energy : float
        Share of the squared length of the rows that lies in the prefix; dim / full width without any order.
    kept : float
        Share of the nearest neighbours at full width that the prefix keeps, mean over queries.
    kept_low, kept_high : float
        Its 95 % bootstrap interval over queries.
    random : float
        The same share for random columns, mean over the random orders.
    random_low, random_high : float
        The lowest and the highest of the random orders.
    last : float
        The same share for the last columns.
    pca : float
        The same share for the leading principal directions of the audited rows.
    worth : float
        How many random columns keep as much, per column of the prefix.
    p_value : float
        Probability of so large a lead over random columns at any width, if the columns have no order.
    nearest_neighbor_accuracy, nearest_class_mean_accuracy : float or None
        Accuracies of the prefix, where labels were given.
    """

    dim: int
    energy: float
    kept: float
    kept_low: float
    kept_high: float
    random: float
    random_low: float
    random_high: float
    last: float
    pca: float
    worth: float
    p_value: float
    nearest_neighbor_accuracy: float | None = None
    nearest_class_mean_accuracy: float | None = None

    @property
    def beats_random(self) -> bool:
        """Tell whether the prefix passes the first two parts of the rule."""
        return self.p_value <= LEVEL and self.worth >= WORTH

    @property
    def passes(self) -> bool:
        """Tell whether the prefix passes all three parts of the rule."""
        return self.beats_random and self.kept_low >= KEPT


@dataclass(frozen=True)
class Audit:
    """Whether embeddings can be truncated, to what, and what that loses; printed, a table.

    Attributes
    ----------
    rows : tuple of AuditRow
        One per width, the narrowest first, the full width last.
    funnel : Funnel or None
        The cheapest plan found that loses at most 1 % of the neighbours with lists of at most 1 % of the rows, the full
        width alone if there is none; None if the verdict is no.
    k : int
        Neighbours per query.
    n_rows, n_audited, n_queries : int
        Rows handed in, rows audited, and queries among them.
    n_duplicates : int
        Rows drawn but dropped, because another has their direction.
    orders : int
        Random column orders compared with.
    seed : int
        Seed of all sampling.
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
        """The answer in one sentence."""
        if self.smallest_dim is not None:
            row = next(row for row in self.rows if row.dim == self.smallest_dim)
            return (
                f"Yes: truncates down to {row.dim:,} of {self.dim:,} columns, which keep {_percent(row.kept)} of the "
                f"{self.k} nearest neighbours, as many as {round(row.worth * row.dim):,} random columns would."
            )
        if any(row.beats_random for row in self.rows[:-1]):
            return (
                "No: the leading columns are better than random ones, but no prefix keeps half of the "
                f"{self.k} nearest neighbours."
            )
        if any(row.p_value <= LEVEL for row in self.rows[:-1]):
            return "No: the leading columns are hardly better than random ones."
        return "No: the leading columns are no better than random ones."

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
        if self.n_audited < 5 * self.dim:
            found.append(f"{self.n_audited:,} rows are few for {self.dim:,} directions: the PCA column flatters.")
        return tuple(found)

    def to_json(self) -> str:
        """Return verdict, rows and settings as JSON text.

        Returns
        -------
        str
            An object of kind "audit".
        """
        record: dict[str, Any] = {"kind": "audit", "version": 1}
        record |= {name: getattr(self, name) for name in ("truncates", "smallest_dim", "ladder", "verdict", "notes")}
        record |= vars(self) | {"rows": [row._asdict() for row in self.rows]}
        if self.funnel is not None:
            record["funnel"] = {"dims": self.funnel.dims, "keep": self.funnel.keep}
        return json.dumps(record)

    def figure(self) -> Any:
        """Draw the audit.

        Returns
        -------
        matplotlib.figure.Figure
            Neighbours kept at each width, beside accuracy where labels were given, energy where not;
            ``figure().savefig("audit.png")`` writes it.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        from matryoshka.audit._figure import figure  # which draws this class, and so imports it

        return figure(self)

    def __str__(self) -> str:
        return "\n".join((self.verdict, "", *_table(self), "", *_advice(self), *self.notes))


_LEGEND = (
    "energy: squared length that lies in the first columns; 95 %: interval of kept; range: of the random orders;",
    "last: the last columns instead of the first; PCA: the leading principal directions of these rows;",
    "worth: random columns that keep as much, per column; p: chance of such a lead if the order meant nothing.",
)


def _table(audit: Audit) -> list[str]:
    labelled = audit.rows[0].nearest_neighbor_accuracy is not None
    header = ["dim", "energy", "kept", "95 %", "random", "range", "last", "PCA", "worth", "p"]
    lines = [header + (["1-NN", "class mean"] if labelled else []) + [""]]
    for row in audit.rows:
        full = row.dim == audit.dim
        cells = [
            str(row.dim),
            _percent(row.energy),
            _percent(row.kept),
            f"{100 * row.kept_low:.0f}-{100 * row.kept_high:.0f}",
            _percent(row.random),
            f"{100 * row.random_low:.0f}-{100 * row.random_high:.0f}",
            _percent(row.last),
            _percent(row.pca),
            "" if full else f"{row.worth:.2f} x",
            "" if full else f"{row.p_value:.2f}",
        ]
        if row.nearest_neighbor_accuracy is not None and row.nearest_class_mean_accuracy is not None:
            cells += [f"{100 * row.nearest_neighbor_accuracy:.1f} %", f"{100 * row.nearest_class_mean_accuracy:.1f} %"]
        lines.append([*cells, "passes" if row.passes and not full else ""])
    title = (
        f"Share of the {audit.k} nearest neighbours kept: {audit.n_queries:,} queries among {audit.n_audited:,} rows, "
        f"{audit.orders} random column orders"
    )
    return [title, *table(lines), "", *_LEGEND]


def _advice(audit: Audit) -> list[str]:
    if audit.funnel is None:
        return []
    lines = [f"Ladder: {', '.join(map(str, audit.ladder))}"]
    if len(audit.funnel.dims) == 1:
        none = (
            f"Funnel: none pays for {audit.n_rows:,} rows: to lose at most {_percent(LOST)} of the neighbours, each "
            f"would rerank more than {_percent(SHARE)} of the rows or cost as much as an exact search."
        )
        return [*lines, none]
    stages = " > ".join(map(str, audit.funnel.dims))
    lists = ", ".join(map(str, audit.funnel.keep))
    executed, published = (audit.funnel.speedup(audit.n_rows, executed=executed) for executed in (True, False))
    plan = (
        f"Funnel: {stages}, keep {lists}: {executed:.1f} x fewer multiply-adds over {audit.n_rows:,} rows as executed, "
        f"{published:.1f} x as the paper counts; check it with Funnel.calibrate."
    )
    return [*lines, plan]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
