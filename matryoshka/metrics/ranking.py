"""Metrics of lists of neighbours."""

from __future__ import annotations

from matryoshka import _checks
from matryoshka._array import (
    arange,
    as_indices,
    count_true,
    full,
    is_array,
    is_floating,
    is_integer,
    namespace,
    widest_dtype,
)
from matryoshka._typing import Array, Namespace

__all__ = [
    "count_relevant",
    "hit_rate_at_k",
    "label_recall_at_k",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "overlap_at_k",
    "precision_at_k",
    "relevance",
]


def relevance(ids: Array, corpus_labels: Array, query_labels: Array, /) -> Array:
    """Tell which neighbours have the label of their query.

    Parameters
    ----------
    ids : array (n, k), integer
        Rows of the corpus found for each query, best first; -1 where there is none.
    corpus_labels : array (n_corpus,), integer
        Label of each row of the corpus.
    query_labels : array (n,), integer
        Label of each query.

    Returns
    -------
    array (n, k), bool
        On the library and device of `ids`.

    Raises
    ------
    TypeError
        Ids or labels are no integers, or arrays of different libraries.
    ValueError
        Shapes do not fit, or ids lie outside [-1, n_corpus).

    Examples
    --------
    >>> import numpy as np
    >>> relevance(np.array([[2, 0, -1]]), np.array([7, 7, 5]), np.array([7]))
    array([[False,  True, False]])
    """
    xp = namespace(("ids", ids), ("corpus_labels", corpus_labels), ("query_labels", query_labels))
    _checks.ndim(corpus_labels, "corpus_labels", 1, "(n_corpus,)")
    _checks.not_empty(corpus_labels, "corpus_labels")
    _checks.labels(corpus_labels, "corpus_labels", corpus_labels.shape, xp)
    ids = _ids(ids, "ids", xp)
    _check_within(ids, "ids", xp, minimum=-1, stop=corpus_labels.shape[0])
    _checks.labels(query_labels, "query_labels", (ids.shape[0],), xp)
    corpus_labels, query_labels = as_indices(corpus_labels, xp), as_indices(query_labels, xp)
    present = _first_occurrences(ids, xp)
    rows = xp.reshape(xp.where(present, ids, xp.zeros_like(ids)), (-1,))
    found = xp.reshape(xp.take(corpus_labels, rows, axis=0), ids.shape)
    return present & (found == query_labels[:, None])


def count_relevant(corpus_labels: Array, query_labels: Array, /) -> Array:
    """Count the rows of the corpus that have the label of each query, the `n_relevant` of other metrics.

    Parameters
    ----------
    corpus_labels : array (n_corpus,), integer
        Label of each row of the corpus.
    query_labels : array (n,), integer
        Label of each query.

    Returns
    -------
    array (n,), integer
        If the queries are rows of the corpus and were dropped from their own lists, subtract 1.

    Examples
    --------
    >>> import numpy as np
    >>> count_relevant(np.array([7, 7, 5]), np.array([5, 7, 1]))
    array([1, 2, 0])
    """
    xp = namespace(("corpus_labels", corpus_labels), ("query_labels", query_labels))
    for array, name, axes in ((corpus_labels, "corpus_labels", "(n_corpus,)"), (query_labels, "query_labels", "(n,)")):
        _checks.ndim(array, name, 1, axes)
        _checks.labels(array, name, array.shape, xp)
    ordered, query_labels = xp.sort(as_indices(corpus_labels, xp)), as_indices(query_labels, xp)
    return xp.searchsorted(ordered, query_labels, side="right") - xp.searchsorted(ordered, query_labels, side="left")


def mean_average_precision(relevance: Array, /, k: int, *, n_relevant: Array | int | None = None) -> float:
    """Average the precision at every relevant neighbour among the first `k`, then over queries: mAP@k.

    Parameters
    ----------
    relevance : array (n, k or wider), bool
        What `relevance` returns.
    k : int
        Neighbours that count.
    n_relevant : array (n,) of int, or int, optional
        Relevant items in the whole corpus, for each query or for all: see the notes.

    Returns
    -------
    float
        Within [0, 1].

    Raises
    ------
    ValueError
        `k` exceeds the list; `n_relevant` is negative, less than what was found, or 0 for every query.

    Notes
    -----
    AP@k = 1/k · Σ_{i <= k} rel_i · (hits among the first i) / i, as published. The divisor is k even where the corpus
    holds fewer relevant items, so that the best possible value may be below 1. With `n_relevant` the divisor is
    min(k, n_relevant): a list with every relevant item in front scores 1, and queries without one are left out.

    Examples
    --------
    >>> import numpy as np
    >>> hits = np.array([[True, False, False, True]])
    >>> mean_average_precision(hits, 4), mean_average_precision(hits, 4, n_relevant=2)
    (0.375, 0.75)
    """
    xp, k, first = _first_k(relevance, k)
    wide = widest_dtype(xp)
    hits = xp.astype(first, xp.int32)
    rank = arange(k, like=first, xp=xp, dtype=wide) + 1.0
    precision = xp.astype(xp.cumulative_sum(hits, axis=1), wide) / rank
    total = xp.sum(xp.where(first, precision, xp.zeros_like(precision)), axis=1)
    if n_relevant is None:
        return float(xp.sum(total) / (first.shape[0] * k))
    n_relevant = _n_relevant(n_relevant, first, xp)
    return _mean_ratio(total, xp.clip(n_relevant, max=k), xp)


def precision_at_k(relevance: Array, /, k: int) -> float:
    """Return the share of relevant items among the first `k` neighbours: P@k.

    Parameters
    ----------
    relevance : array (n, k or wider), bool
        What `relevance` returns.
    k : int
        Neighbours that count; padding is not relevant.

    Returns
    -------
    float
        Hits / (n · k).

    Examples
    --------
    >>> import numpy as np
    >>> precision_at_k(np.array([[True, False, True, False]]), 3)
    0.6666666666666666
    """
    xp, k, first = _first_k(relevance, k)
    return float(count_true(first, xp) / (first.shape[0] * k))


def label_recall_at_k(relevance: Array, /, k: int, n_relevant: Array | int) -> float:
    """Return the share of the relevant items of the corpus that stand among the first `k` neighbours.

    Parameters
    ----------
    relevance : array (n, k or wider), bool
        What `relevance` returns.
    k : int
        Neighbours that count.
    n_relevant : array (n,) of int, or int
        Relevant items in the whole corpus, for each query or for all; `count_relevant` counts them.

    Returns
    -------
    float
        Mean of hits / n_relevant over the queries that have a relevant item.

    Raises
    ------
    ValueError
        `k` exceeds the list; `n_relevant` is negative, less than what was found, or 0 for every query.

    Notes
    -----
    The released code divides by 1300 for every query. This recall is about classes, not about exact neighbours: for the
    "recall@k" of approximate search see `overlap_at_k`.

    Examples
    --------
    >>> import numpy as np
    >>> label_recall_at_k(np.array([[True, False, True, False]]), 4, n_relevant=8)
    0.25
    """
    xp, k, first = _first_k(relevance, k)
    return _mean_ratio(_row_counts(first, xp), _n_relevant(n_relevant, first, xp), xp)


def hit_rate_at_k(relevance: Array, /, k: int) -> float:
    """Return the share of queries with at least one relevant item among the first `k` neighbours ("top-k").

    Parameters
    ----------
    relevance : array (n, k or wider), bool
        What `relevance` returns.
    k : int
        Neighbours that count.

    Returns
    -------
    float
        Within [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> hit_rate_at_k(np.array([[False, True], [False, False]]), 2)
    0.5
    """
    xp, _, first = _first_k(relevance, k)
    return float(count_true(xp.any(first, axis=1), xp) / first.shape[0])


def mean_reciprocal_rank(relevance: Array, /, k: int) -> float:
    """Average 1 / rank of the first relevant neighbour among the first `k`: MRR@k.

    Parameters
    ----------
    relevance : array (n, k or wider), bool
        What `relevance` returns.
    k : int
        Neighbours that count.

    Returns
    -------
    float
        Within [0, 1]; a query without a relevant item among them counts 0.

    Raises
    ------
    ValueError
        `k` exceeds the list.

    References
    ----------
    Voorhees (1999), "The TREC-8 Question Answering Track Report".

    Examples
    --------
    >>> import numpy as np
    >>> mean_reciprocal_rank(np.array([[False, True, True], [True, False, False]]), 3)
    0.75
    """
    xp, k, first = _first_k(relevance, k)
    rank = arange(k, like=first, xp=xp, dtype=widest_dtype(xp)) + 1.0
    best = xp.max(xp.where(first, 1.0 / rank, xp.zeros_like(rank)), axis=1)
    return float(xp.sum(best) / first.shape[0])


def ndcg_at_k(gains: Array, /, k: int, *, ideal: Array | None = None) -> float:
    """Compare the discounted gain of the first `k` neighbours with that of the best possible list: nDCG@k.

    Parameters
    ----------
    gains : array (n, k or wider), floating, integer or bool
        How much each neighbour is worth to its query, best neighbour first: at least 0, and 0 for padding. The result
        of `relevance` will do.
    k : int
        Neighbours that count.
    ideal : array (n, m), floating, integer or bool, optional
        Gains of all items of the corpus for each query, in any order; zeros may be left out, and the `k` largest are
        enough. By default the lists in `gains` are taken for the whole corpus, so that an item that a search missed
        costs nothing: right where all candidates were ranked.

    Returns
    -------
    float
        Within [0, 1]; mean over queries.

    Raises
    ------
    TypeError
        An array holds no numbers, or `gains` and `ideal` hold floating-point numbers of two dtypes.
    ValueError
        `k` exceeds the list; gains are negative or not finite; or `ideal` holds less for a query than was found, or
        only zeros.

    Notes
    -----
    nDCG@k is DCG@k = Σ_{i <= k} gain_i / log2(i + 1), divided by the DCG@k of the largest gains in descending order.
    Gains enter as they are; for the exponential gain of Burges et al. (2005) pass ``2.0**grades - 1``. With `ideal`,
    queries without any gain to be had are left out; without it, they count 0.

    From a row of grades per query, the gains of the ids of a search are ``numpy.where(ids >= 0,
    numpy.take_along_axis(grades, ids, axis=1), 0)``; without the condition, id -1 would read the last grade. With
    labels, the best list of a query begins with `count_relevant` ones: ``ideal=numpy.arange(k) < n_relevant[:, None]``.

    References
    ----------
    Järvelin and Kekäläinen (2002), "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), section 2, with
    the discount log2(i + 1), which is usual since Burges et al. (2005), "Learning to rank using gradient descent".

    Examples
    --------
    >>> import numpy as np
    >>> found = np.array([[3, 0, 2]])
    >>> round(ndcg_at_k(found, 3), 3), round(ndcg_at_k(found, 3, ideal=np.array([[1, 2, 3, 3]])), 3)
    (0.939, 0.679)
    """
    xp = namespace(("gains", gains), optional=[("ideal", ideal)])
    if ideal is not None and is_floating(gains, xp) and is_floating(ideal, xp):
        _checks.same_dtype(xp, ("gains", gains), ("ideal", ideal))
    gains = _gains(gains, "gains", "(n, k or wider)", xp)
    k = _checks.integer(k, "k", minimum=1, maximum=gains.shape[1])
    best = gains if ideal is None else _gains(ideal, "ideal", "(n, m)", xp)
    _checks.shape(best, "ideal", (gains.shape[0], best.shape[1]), "(n, m)")
    found, best = gains[:, :k], _largest(best, k, xp)
    if ideal is not None:
        _check_ideal(_largest(found, k, xp), best, xp)
    scale = xp.where(best[:, :1] > 0, best[:, :1], xp.ones_like(best[:, :1]))  # else sums of large gains might overflow
    ratio, of_best = _dcg(found / scale, xp), _dcg(best / scale, xp)
    if ideal is not None:
        return _mean_ratio(ratio, of_best, xp)
    return float(xp.sum(ratio / xp.where(of_best > 0, of_best, xp.ones_like(of_best))) / found.shape[0])


def overlap_at_k(ids: Array, reference_ids: Array, /, k: int) -> float:
    """Return the share of the exact `k` neighbours that a search found: the "recall@k" of approximate search.

    Parameters
    ----------
    ids : array (n, k or wider), integer
        What a search found, best first, padded with -1.
    reference_ids : array (n, k or wider), integer
        What an exact search found, best first, padded with -1.
    k : int
        Neighbours of both that count.

    Returns
    -------
    float
        Mean of ``|found ∩ exact| / |exact|`` over queries; the order within the first `k` does not matter.

    Raises
    ------
    ValueError
        `k` exceeds a list, or no query has an exact neighbour.

    Notes
    -----
    If the corpus holds fewer than `k` rows, the exact list is shorter, and so is the divisor; a query whose exact list
    is all padding is left out. Ids are compared, not scores: of two rows that tie for the last place, only the one in
    the exact list counts.

    Examples
    --------
    >>> import numpy as np
    >>> overlap_at_k(np.array([[3, 9, -1]]), np.array([[9, 4, 3]]), 3)
    0.6666666666666666
    """
    xp = namespace(("ids", ids), ("reference_ids", reference_ids))
    ids, reference_ids = _ids(ids, "ids", xp), _ids(reference_ids, "reference_ids", xp)
    _checks.shape(reference_ids, "reference_ids", (ids.shape[0], reference_ids.shape[1]), "(n, k or wider)")
    k = _checks.integer(k, "k", minimum=1, maximum=min(ids.shape[1], reference_ids.shape[1]))
    found, exact = (_distinct(array[:, :k], xp) for array in (ids, reference_ids))
    both = xp.sort(xp.concat((found, exact), axis=1), axis=1)
    shared = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)
    n_exact = _row_counts(exact >= 0, xp)
    if not bool(xp.any(n_exact > 0)):
        msg = "`reference_ids` must hold a neighbour for at least one query, got padding only; search a larger corpus."
        raise ValueError(msg)
    return _mean_ratio(_row_counts(shared, xp), n_exact, xp)


def _ids(ids: Array, name: str, xp: Namespace) -> Array:
    """Check lists of row ids (n, k), and return them in the dtype of indices."""
    if not xp.isdtype(ids.dtype, "signed integer"):
        msg = f"`{name}` must hold signed integers, -1 for padding, got dtype {ids.dtype}; cast it to int64."
        raise TypeError(msg)
    _check_lists(ids, name, "(n, k)")
    return as_indices(ids, xp)


def _check_lists(array: Array, name: str, axes: str) -> None:
    """Check that there is a list for at least one query, with at least one entry."""
    _checks.ndim(array, name, 2, axes)
    _checks.not_empty(array, name)
    _checks.not_empty(array, name, axis=1)


def _check_within(array: Array, name: str, xp: Namespace, *, minimum: int, stop: int) -> None:
    """Check that integers lie within [minimum, stop), on every library: reading them waits for the device."""
    count = count_true((array < minimum) | (array >= stop), xp)
    if count:
        msg = f"`{name}` must lie within [{minimum}, {stop}), got {count} outside it; check what it counts."
        raise ValueError(msg)


def _first_k(relevance: Array, k: int) -> tuple[Namespace, int, Array]:
    """Check a relevance array and return its namespace, `k`, and its first `k` columns."""
    xp = namespace(("relevance", relevance))
    if not xp.isdtype(relevance.dtype, "bool"):
        msg = f"`relevance` must hold booleans, got dtype {relevance.dtype}; pass what metrics.relevance returns."
        raise TypeError(msg)
    _check_lists(relevance, "relevance", "(n, k or wider)")
    k = _checks.integer(k, "k", minimum=1, maximum=relevance.shape[1])
    return xp, k, relevance[:, :k]


def _gains(gains: Array, name: str, axes: str, xp: Namespace) -> Array:
    """Check gains and return them in the widest floating dtype."""
    if not (is_floating(gains, xp) or is_integer(gains, xp) or xp.isdtype(gains.dtype, "bool")):
        msg = f"`{name}` must hold numbers or booleans, got dtype {gains.dtype}; pass a gain for each neighbour."
        raise TypeError(msg)
    _check_lists(gains, name, axes)
    gains = xp.astype(gains, widest_dtype(xp))
    _checks.finite_rows(gains, name, xp)
    if count := count_true(gains < 0, xp):
        msg = f"`{name}` must be at least 0, got {count} below; give what is worth nothing, padding too, a gain of 0."
        raise ValueError(msg)
    return gains


def _largest(gains: Array, k: int, xp: Namespace) -> Array:
    """Return the `k` largest gains of each row (n, k), largest first; zeros where there are fewer."""
    ordered = xp.flip(xp.sort(gains, axis=1), axis=1)[:, :k]
    missing = full((gains.shape[0], k - ordered.shape[1]), 0.0, like=ordered, xp=xp)
    return xp.concat((ordered, missing), axis=1)


def _check_ideal(found: Array, best: Array, xp: Namespace) -> None:
    """Check that no gain found (n, k) exceeds the best one (n, k) of its place, both in descending order."""
    if count := count_true(xp.any(found > best, axis=1), xp):
        msg = (
            f"`ideal` must hold every gain that was found, got less for {count} queries; pass the gains of all items "
            "of the corpus, and count no item twice."
        )
        raise ValueError(msg)
    if not bool(xp.any(best > 0)):
        msg = "`ideal` must be above 0 for at least one query, got only zeros; there is nothing to find."
        raise ValueError(msg)


def _dcg(gains: Array, xp: Namespace) -> Array:
    """Sum gains (n, k), discounted by rank."""
    rank = arange(gains.shape[1], like=gains, xp=xp, dtype=gains.dtype) + 1.0
    return xp.sum(gains / xp.log2(rank + 1.0), axis=1)


def _n_relevant(n_relevant: Array | int, first: Array, xp: Namespace) -> Array:
    """Return `n_relevant` as an array (n,), checked against the hits in `first`."""
    hits = _row_counts(first, xp)
    if not is_array(n_relevant):
        n_relevant = xp.full_like(hits, _checks.integer(n_relevant, "n_relevant", minimum=0))
    counts: Array = n_relevant
    namespace(("relevance", first), ("n_relevant", counts))
    if not is_integer(counts, xp):
        msg = f"`n_relevant` must hold integers, got dtype {counts.dtype}; cast it to int64."
        raise TypeError(msg)
    _checks.shape(counts, "n_relevant", hits.shape, "(n,)")
    counts = as_indices(counts, xp)
    if bool(xp.any(counts < hits)):
        msg = (
            "`n_relevant` must be at least the number of relevant neighbours found, got less for "
            f"{count_true(counts < hits, xp)} queries; count over the whole corpus, as count_relevant does."
        )
        raise ValueError(msg)
    if not bool(xp.any(counts > 0)):
        msg = "`n_relevant` must be above 0 for at least one query, got only zeros; there is nothing to find."
        raise ValueError(msg)
    return counts


def _row_counts(mask: Array, xp: Namespace) -> Array:
    """Count what is true in each row (n,)."""
    return as_indices(xp.sum(xp.astype(mask, xp.int32), axis=1), xp)


def _mean_ratio(numerator: Array, denominator: Array, xp: Namespace) -> float:
    """Average numerator / denominator over the queries whose denominator is not 0."""
    counted, wide = denominator > 0, widest_dtype(xp)
    ratio = xp.astype(numerator, wide) / xp.astype(xp.where(counted, denominator, xp.ones_like(denominator)), wide)
    return float(xp.sum(xp.where(counted, ratio, xp.zeros_like(ratio)))) / count_true(counted, xp)


def _distinct(ids: Array, xp: Namespace) -> Array:
    """Sort each row and replace repetitions (and padding) by -1."""
    ordered = xp.sort(ids, axis=1)
    repeated = ordered[:, 1:] == ordered[:, :-1]
    rest = xp.where(repeated, xp.full_like(repeated, -1, dtype=ids.dtype), ordered[:, 1:])
    return xp.concat((ordered[:, :1], rest), axis=1)


def _first_occurrences(ids: Array, xp: Namespace) -> Array:
    """Tell which places of each row hold an id (not padding) that no earlier place holds."""
    present = ids >= 0
    ordered = xp.sort(ids, axis=1)
    if not bool(xp.any((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0))):
        return present
    new = [xp.all(ids[:, :place] != ids[:, place : place + 1], axis=1) for place in range(1, ids.shape[1])]
    return present & xp.stack((xp.ones_like(new[0]), *new), axis=1)
