"""Can these embeddings be truncated? The answer comes from the embeddings alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from matryoshka import _checks
from matryoshka._array import namespace
from matryoshka._typing import Array
from matryoshka.audit import _neighbours, _rotation, _rule
from matryoshka.audit._figure import AuditDisplay
from matryoshka.audit._report import Audit
from matryoshka.audit._rows import AuditRow
from matryoshka.audit._rule import FirstStage
from matryoshka.audit._sample import Sample, draw
from matryoshka.nesting import Nesting

__all__ = ["Audit", "AuditDisplay", "AuditRow", "FirstStage", "audit"]

_MOST_ORDERS = 100_000


def audit(
    embeddings: Array,
    /,
    *,
    labels: Array | None = None,
    dims: Iterable[int] | None = None,
    k: int = 10,
    max_rows: int = 4096,
    max_queries: int = 400,
    orders: int = 99,
    seed: int = 0,
) -> Audit:
    """Tell whether embeddings can be cut to a prefix, down to which width, and what that loses.

    Parameters
    ----------
    embeddings : array (n, dim), floating or signed integer
        One row per item, of any array library; the work is done on the host. Rows are normalised and compared by
        cosine, as in the paper. Half precision and (quantised) signed integers are read as the numbers they represent.
    labels : array (n,), integer, optional
        A class per row: adds accuracies to the table, without a rotation and with it, which do not affect the verdict,
        and to the recommendation the width that they allow.
    dims : sequence of int, optional
        Widths to measure; the full width is added if absent. By default the full width halved down to 8.
    k : int, default 10
        Number of nearest neighbours that should be kept.
    max_rows : int, default 4096
        If there are more rows, a random sample of this size is audited, and the result says so.
    max_queries : int, default 400
        Number of audited rows whose neighbours, among all audited rows, are measured.
    orders : int, default 99
        Number of random column orders that the given one is compared with, within [99, 100000].
    seed : int, default 0
        Seed of all sampling. One seed gives one result.

    Returns
    -------
    Audit
        The verdict (`truncates`, `smallest_dim`), the `recommendation`, the `ladder` and `funnel` that follow from a
        yes, and a row per width; printed, a table.

    Raises
    ------
    TypeError
        `embeddings` are no real numbers or unsigned (packed bits, a zero point); `labels` are no integers.
    ValueError
        NaN or infinity among the rows that are read; fewer than 2 columns; not more than 2 `k` distinct rows; labels of
        another length; widths that do not increase or exceed that of the embeddings.

    Notes
    -----
    **What is measured.** For each query, its `k` nearest other rows at full width; then the share of these that are
    still among the nearest `k` when only m columns are compared. The m columns are the first ones (the prefix), the
    last ones, m random ones, or the first m after a `Rotation`.

    **The rotation** is that of `Rotation.fit`, of the rows as they are, not centred. It is measured on rows on which it
    was not fitted, since the others would flatter it: it is fitted on up to 4 dim rows that are not audited and do not
    have the direction of an audited row. If there are fewer of these than columns, one half of the audited rows is
    added to them, and queries and candidates come from the other half, with the rotation and without (`gain`,
    `n_fitted`, `n_rotated`). If even then there are fewer rows than columns to fit on, these figures are None.

    **The question.** The columns of an ordinary model come in no particular order, and *any* m of them keep many
    neighbours, so "the prefix keeps 80 %" says little by itself. Matryoshka embeddings differ in that their *first*
    columns are better than others. So it is the order that is tested.

    **The rule.** The verdict is yes if some width below the full one passes all three parts; `smallest_dim` is
    the narrowest that does.

    1. *Better than chance.* The columns are shuffled 99 times (`orders`), and every shuffle is measured like the
       given order. If the given order were no better than a shuffle, it would be one of 100 equals, and the best of
       them with probability 1/100. To test all widths together, every figure is expressed in standard deviations
       over the 100 orders at its width; a prefix passes if it beats the best width of (all but 1 % of) the shuffles.
       So columns without order get a yes at most 1 time in 100, whatever the data and the number of rows or widths:
       the only randomness relied upon is that of the shuffling. (With fewer than six columns, the given order occurs
       among the shuffles, and the answer is no.)
    2. *By enough to matter.* At least 1.1 times as many random columns would be needed to keep as much (`worth`,
       interpolated between widths). A lead that is real but tiny is no reason to truncate.
    3. *Good by itself.* It keeps at least half of the neighbours, at the lower end of a 95 % bootstrap interval over
       queries. A shortlist that is reranked later may well be narrower: that is what `funnel` is for.

    **The recommendation** is to rotate first if that surely keeps more at some width: if the 95 % interval of the gain
    is above 0, and the gain is 5 points or more; embeddings that pass the rule may gain, too. It names the narrowest
    such width that keeps half of the neighbours. With labels it begins with the narrowest width whose 1-NN accuracy is
    no lower than at full width among the same queries, after a rotation if that is recommended, else without. With 100
    `k` rows or more it also names the first stage of a search that takes the fewest bytes per row, among those whose
    best 10 `k` of the measured rows hold 95 % of the neighbours. Its columns are in float32, or one bit each (the sign
    of a column of the normalised prefix minus its mean), and rotated only if that is recommended. Longer corpora need
    longer lists: `Funnel.calibrate` finds their lengths.

    A no does not mean that nothing can be cut: random columns of redundant embeddings keep a lot, as the table shows.
    It means that the leading columns are no better than others. A yes does not prove training with MRL: columns sorted
    by PCA are ordered, too.

    **Limits.** Intervals describe the choice of queries, given the audited rows. In a denser corpus, neighbours are
    closer together and fewer of them are kept, so a sample is somewhat too optimistic about the whole; the comparison
    with random columns, made on the same rows, is not biased by this. Tied rows share the places for which they tie. Of
    rows with the same direction (to six digits), only one is audited.

    **The funnel.** It starts at a width of the ladder. Each list is as long as it takes to lose at most 1 % of the
    neighbours over all stages among the audited rows, scaled to all rows, and holds at most 1 % of all rows: longer
    ones take more time to rerank than they save. The cheapest of the plans tried wins, by multiply-adds as executed; if
    none is left, the funnel is the full width alone. It is a starting point; `Funnel.calibrate` tests one with queries
    of your own. `cut` is a narrower width of the ladder whose nearest `k` rows are as good by the same measure, if
    there is one and it costs no more than the funnel.

    Cost: (`orders` + 1) · `max_queries` · `max_rows` · dim multiply-adds, a partial selection per width and order, and
    about 12 dim^3 for the rotation, with memory for 4 dim^2 numbers.

    References
    ----------
    Kusupati et al. (2022), sections 3 and 4. Westfall and Young (1993), "Resampling-Based Multiple Testing", for
    asking about all widths at once.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(500, 64)) * 0.95 ** np.arange(64)
    >>> report = audit(rows)
    >>> report.truncates, report.smallest_dim, report.ladder
    (True, 16, (16, 32, 64))
    >>> audit(rows[:, np.random.default_rng(1).permutation(64)]).truncates
    False
    """
    k = _checks.integer(k, "k", minimum=1)
    max_rows = _checks.integer(max_rows, "max_rows", minimum=2 * k + 1)
    max_queries = _checks.integer(max_queries, "max_queries", minimum=1)
    orders = _checks.integer(orders, "orders", minimum=99, limit=_MOST_ORDERS)
    seed = _checks.seed(seed)
    rng = np.random.default_rng(seed)
    xp = namespace(("embeddings", embeddings), optional=[("labels", labels)])
    _checks.ndim(embeddings, "embeddings", 2, "(n, dim)")
    widths = _widths(dims, embeddings.shape[1])
    sample = draw(embeddings, labels, k=k, max_rows=max_rows, max_queries=max_queries, rng=rng, xp=xp)
    survival, rows = _measure(sample, widths, k, orders, rng)
    report = Audit(
        rows=rows,
        funnel=None,
        k=k,
        n_rows=sample.n_total,
        n_audited=len(sample.rows),
        n_queries=sample.n_queries,
        n_duplicates=sample.n_duplicates,
        orders=orders,
        seed=seed,
    )
    report = _with_rotation(report, _rotation.trial(embeddings, sample, k, rng=rng, xp=xp), rng)
    return _with_funnel(report, survival.places)


def _with_rotation(report: Audit, tried: _rotation.Trial, rng: np.random.Generator) -> Audit:
    """Add what a rotation keeps, and the cheapest first stage, which is a rotated one only if the rotation helps."""
    columns, stages = _rotation.measure(tried, tuple(row.dim for row in report.rows), report.k, rng)
    rows = tuple(
        row._replace(**{name: float(column[i]) for name, column in columns.items()})  # type: ignore[arg-type]
        for i, row in enumerate(report.rows)
    )
    helps = any(row.rotation_helps for row in rows)
    return replace(
        report,
        rows=rows,
        n_fitted=tried.n_fitted,
        n_rotated=len(tried.sample.rows) if columns else 0,
        first_stage=_rule.cheapest_stage([stage for stage in stages if helps or not stage.rotated]),
    )


def _with_funnel(report: Audit, places: np.ndarray) -> Audit:
    """After a yes, add the funnel, and the plain cut that is as good, from the places of the neighbours (G, q, k)."""
    if not report.truncates:
        return report
    ladder, counts = report.ladder, (report.n_rows, report.n_audited)
    places = places[-len(ladder) :]
    funnel = _rule.cheapest_funnel(places, ladder, *counts)
    return replace(report, funnel=funnel, cut=_rule.plain_cut(places, ladder, *counts, funnel))


def _widths(dims: Iterable[int] | None, dim: int) -> tuple[int, ...]:
    """Return the widths to measure: at least one below the full one, and that last."""
    if dim < 2:
        msg = f"`embeddings` must have at least 2 columns, got {dim}; there is nothing to cut."
        raise ValueError(msg)
    if dims is None:
        return Nesting.halving(dim, smallest=min(8, dim // 2)).dims
    widths = _checks.dims(dims, most=dim)
    if widths == (dim,):
        msg = f"`dims` must hold a width below the full one, got only {dim}; add narrower ones."
        raise ValueError(msg)
    return widths if widths[-1] == dim else (*widths, dim)


def _measure(
    sample: Sample, dims: tuple[int, ...], k: int, orders: int, rng: np.random.Generator
) -> tuple[_neighbours.Survival, tuple[AuditRow, ...]]:
    """Measure prefixes, and random, last and principal columns, at each width."""
    exact = _neighbours.neighbours(sample, k)
    prefix = _neighbours.survival(sample, dims, exact)
    last = [_neighbours.mean_kept(sample.rows[:, -dim:], (dim,), exact)[0] for dim in dims]
    shuffled = [
        _neighbours.mean_kept(np.take(sample.rows, rng.permutation(dims[-1]), axis=1), dims, exact)
        for _ in range(orders)
    ]
    kept, random = prefix.kept.mean(axis=1), np.stack(shuffled)
    columns = {
        "energy": [np.square(sample.rows[:, :dim], dtype=np.float64).sum() / len(sample.rows) for dim in dims],
        "kept": kept,
        "random": random.mean(axis=0),
        "random_low": random.min(axis=0),
        "random_high": random.max(axis=0),
        "last": last,
        "pca": _neighbours.mean_kept(_neighbours.principal(sample.rows), dims, exact),
        "worth": _rule.worth(kept, random.mean(axis=0), dims),
        "p_value": _rule.order_test(np.concatenate((kept[None], random))),
    }
    columns["kept_low"], columns["kept_high"] = _rule.interval(prefix.kept, rng)
    if sample.labels is not None:
        by_neighbour, by_mean = _neighbours.accuracies(sample, sample.labels, dims, prefix.nearest)
        columns |= {"nearest_neighbor_accuracy": by_neighbour, "nearest_class_mean_accuracy": by_mean}
    rows = tuple(
        AuditRow(dim=dim, **{name: float(column[i]) for name, column in columns.items()}) for i, dim in enumerate(dims)
    )
    return prefix, rows
