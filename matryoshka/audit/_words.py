"""The sentences of an audit; each is true of the row of the table that it names."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from matryoshka import costs
from matryoshka.audit._rows import AuditRow
from matryoshka.audit._rule import KEPT, LEVEL, WORTH, FirstStage


def verdict(rows: Sequence[AuditRow], k: int) -> str:
    """Tell whether the embeddings can be cut."""
    *cut, full = rows
    if (row := next((row for row in cut if row.passes), None)) is not None:
        random = row.worth * row.dim
        return (
            f"Yes: truncates down to {row.dim:,} of {full.dim:,} columns, which keep {percent(row.kept)} of the {k} "
            f"nearest neighbours, as many as {random:,.{0 if random >= 10 else 1}f} random columns would."
        )
    if ahead := [row for row in cut if row.beats_random]:
        return _too_little(max(ahead, key=lambda row: row.kept), cut, k)
    if ahead := [row for row in cut if row.p_value <= LEVEL]:
        if all(row.worth < WORTH for row in cut):
            return "No: the leading columns are hardly better than random ones."
        return f"No: the first {ahead[0].dim:,} columns are better than random ones, but hardly."
    if ahead := [row for row in cut if row.kept > row.random_high]:
        row = min(ahead, key=lambda row: row.p_value)
        return f"No: the first {row.dim:,} columns keep more than random ones, but not surely."
    return "No: the leading columns are no better than random ones."


def _too_little(row: AuditRow, cut: Sequence[AuditRow], k: int) -> str:
    """Say that columns better than random ones keep too little, in agreement with the rounded table."""
    kept = percent(row.kept)
    if all(_shows_less_than_half(other.kept) for other in cut):
        return (
            f"No: the leading columns are better than random ones, but no prefix keeps half of the {k} nearest "
            f"neighbours: the first {row.dim:,} keep {kept}."
        )
    much = (
        f"only {kept} of the {k} nearest neighbours."
        if _shows_less_than_half(row.kept)
        else (f"{kept} of the {k} nearest neighbours, not surely half of them.")
    )
    return f"No: the first {row.dim:,} columns are better than random ones, but keep {much}"


def _shows_less_than_half(share: float) -> bool:
    return round(100 * share) < 100 * KEPT


def recommendation(
    rows: Sequence[AuditRow], k: int, n_fitted: int, n_rotated: int, first_stage: FirstStage | None
) -> str:
    """Tell what width the labels allow, in one sentence what to do, and in another the best first stage of a search."""
    *cut, full = rows
    passing = next((row for row in cut if row.passes), None)
    helped = [row for row in cut if row.rotation_helps]
    labelled = _as_right(rows, rotates=bool(helped))
    cutting = "do not cut" if passing is None else f"cut to {passing.dim:,} columns"
    cutting = cutting.capitalize() if labelled is None else f"By the neighbours kept, {cutting}"
    if helped:
        row = next((row for row in helped if (row.rotated or 0.0) >= KEPT), helped[-1])
        rotated, gain = row.rotated or 0.0, row.gain or 0.0
        advice = (
            f"Rotate first{'' if passing is None else ' all the same'}: after a rotation fitted on {n_fitted:,} other "
            f"rows, {row.dim:,} columns keep {percent(rotated)} of the {k} nearest neighbours (prefix: "
            f"{percent(rotated - gain)}, both among {n_rotated:,} rows); "
            "matryoshka audit EMB.npy --rotation DIR writes one."
        )
    elif n_fitted:
        advice = f"{cutting}; a rotation fitted on {n_fitted:,} other rows hardly helps."
    else:
        needed = max(2 * full.dim, 4 * k + 2)
        advice = f"{cutting}; whether a rotation would help takes {needed:,} rows of different directions to tell."
    start = None if first_stage is None else _start(first_stage, full.dim, rotates=bool(helped))
    return " ".join(part for part in (labelled, advice, start) if part is not None)


def _start(stage: FirstStage, dim: int, *, rotates: bool) -> str:
    """Name the cheapest first stage, and the corpus and the funnel that start with it."""
    form, code = ("in one bit each", ', code="bits"') if stage.code == "bits" else ("in float32", "")
    lead = ("Then, of rotated rows, the" if stage.rotated else "Or, without a rotation: the") if rotates else "The"
    rows = "rotation.apply(rows)" if stage.rotated else "rows"
    return (
        f"{lead} cheapest first stage of a search is {stage.dim:,} columns {form}, {stage.bytes:,} bytes a row, whose "
        f"best {stage.candidates:,} rows hold {percent(stage.kept)} of the neighbours: "
        f"Corpus({rows}, search_dims=({stage.dim},){code}) with "
        f"funnel=Funnel(({stage.dim}, {dim}), ({stage.candidates},){code})."
    )


def _as_right(rows: Sequence[AuditRow], *, rotates: bool) -> str | None:
    """Name the narrowest prefix whose nearest neighbours have the right label as often as those at full width."""
    measure = attrgetter(("rotated_" if rotates else "") + "nearest_neighbor_accuracy")
    *cut, full = rows
    whole = measure(full)
    row = next((row for row in cut if measure(row) >= whole), None) if whole else None
    if row is None:
        return None
    lead = f"After a rotation {row.dim:,}" if rotates else f"The first {row.dim:,}"
    return (
        f"{lead} columns are right as often as all {full.dim:,} (1-NN {tenths(measure(row))} against {tenths(whole)}), "
        f"in {costs.index_bytes(1, row.dim):,} bytes a row instead of {costs.index_bytes(1, full.dim):,} (float32)."
    )


def tenths(share: float) -> str:
    """Return a share as text, to a tenth of a percent."""
    return f"{100 * share:.1f} %"


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.0f} %"
