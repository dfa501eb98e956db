"""InfoNCE summed over prefixes: contrastive training of nested embeddings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._algebra import midway
from matryoshka._array import accumulator_dtype, arange, beside_jax, full, length, namespace
from matryoshka._hooks import hook_for
from matryoshka._hooks.formula import Arrays, Options, Problem
from matryoshka._typing import Array, Namespace
from matryoshka.losses._reduce import evaluate, evaluate_with_grad, formula_for
from matryoshka.losses._similarity import Similarity
from matryoshka.losses._targets import broken_rows, check_mask, sums_to_one
from matryoshka.nesting import Nesting, NestingLike, as_nesting

__all__ = ["HardNegativeGradients", "InfoNCEGradients", "info_nce", "info_nce_with_grad"]


class InfoNCEGradients(NamedTuple):
    """Gradients of `info_nce`.

    Attributes
    ----------
    queries : array (n, dim)
        Gradient in the queries.
    keys : array (n_keys, dim)
        Gradient in the keys.
    temperature : array ()
        Gradient in the temperature, whether it came as an array or as a float.
    """

    queries: Array
    keys: Array
    temperature: Array


class HardNegativeGradients(NamedTuple):
    """Gradients of `info_nce` with hard negatives.

    Attributes
    ----------
    queries, keys, temperature
        As of `InfoNCEGradients`.
    negatives : array (n, h, dim)
        Gradient in the hard negatives.
    """

    queries: Array
    keys: Array
    temperature: Array
    negatives: Array


def info_nce(
    queries: Array,
    keys: Array,
    /,
    *,
    nesting: NestingLike,
    temperature: float | Array = 0.05,
    symmetric: bool = False,
    negatives: Array | None = None,
    mask: Array | None = None,
    targets: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> Any:
    """Sum over prefixes the cross-entropy of finding each query's key among all keys, by cosine similarity.

    Parameters
    ----------
    queries : array (n, dim), floating
        Embeddings as wide as the nesting, of any length: each prefix is normalised here.
    keys : array (n_keys, dim), floating
        Row i is the positive of query i; rows beyond the queries are negatives for all of them.
    nesting : Nesting or sequence of int
        Widths and importances c_m of the prefixes.
    temperature : float or array (), default 0.05
        Positive number by which similarities are divided. An array may be learned.
    symmetric : bool, default False
        Average with the reverse direction, in which each of the first n keys looks for its query (CLIP, ALIGN). That
        direction uses the transposed mask and targets of these keys, and no hard negatives.
    negatives : array (n, h, dim), floating, optional
        Hard negatives of each query, which other queries do not see.
    mask : bool array (n, n_keys) or (n, n_keys + h), optional
        False where a key is no negative of a query: because it duplicates the positive, or because a better model finds
        it too close. The positive itself must be True. The wider form covers the hard negatives too.
    targets : array (n, n_keys), floating, optional
        For each query a distribution over the keys, such as that of a teacher, instead of 1 for its positive. It gets
        no gradient.
    label_smoothing : float, default 0.0
        Share of the target spread evenly over all keys that a query sees, within [0, 1].
    reduction : {"mean", "sum", "none"}
        Over the queries.
    return_parts : bool, default False
        Also return the loss of each prefix, not weighted by importance.
    row_block : int, optional
        Queries computed at a time; by default as many as fit their similarities into about 130 MB, within [16, 512].
    xp : namespace, optional
        Array namespace to use instead of the one of the arguments.

    Returns
    -------
    array () or, with reduction "none", (n,)
        In the dtype of `queries`, float32 for half precision.
    array (G,) or (G, n), if `return_parts`
        The loss of each prefix, for logging: it has no gradient.

    Raises
    ------
    TypeError
        Arguments of several array libraries or dtypes, or not floating.
    ValueError
        Shapes that do not fit the nesting or each other; fewer keys than queries; a temperature that is not positive;
        several devices; options out of range. On the host also a mask that excludes a positive or every negative, and
        targets that do not sum to one over the keys that the mask leaves. On a device and under tracing, where a check
        would wait, such a row has loss NaN, or 0 if it merely has no negative.

    Notes
    -----
    Section 3 of Kusupati et al. (2022) trains ALIGN and BERT this way. Dot products and squared norms are sums over
    blocks of columns, so all prefixes together cost the multiply-adds of one full-width InfoNCE: n * n_keys * dim
    forward and twice that backward (and all of it twice if symmetric). A row whose prefix is zero, or so small beside
    the whole row that its square vanishes, has similarity 0 to everything, and no gradient. In float16, that is a
    prefix shorter than a thousandth of the largest number of its row; bfloat16 and float32 reach much further. For
    gradients and dtypes see `mrl_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import info_nce
    >>> rng = np.random.default_rng(0)
    >>> queries, keys = rng.normal(size=(4, 8)), rng.normal(size=(6, 8))
    >>> total, parts = info_nce(queries, keys, nesting=(2, 8), return_parts=True)
    >>> total.shape, parts.shape
    ((), (2,))
    """
    options = Options.of(label_smoothing, None, reduction, return_parts, row_block)
    pairs = _Pairs(queries, keys, negatives, temperature, mask, targets)
    forward, backward = _directions(pairs, as_nesting(nesting), options, symmetric, xp)
    loss = evaluate(forward, options)
    return loss if backward is None else midway(loss, evaluate(backward, options))


def info_nce_with_grad(
    queries: Array,
    keys: Array,
    /,
    *,
    nesting: NestingLike,
    temperature: float | Array = 0.05,
    symmetric: bool = False,
    negatives: Array | None = None,
    mask: Array | None = None,
    targets: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> tuple[Any, InfoNCEGradients | HardNegativeGradients]:
    """Return `info_nce` with its gradients, for libraries without automatic differentiation.

    Parameters
    ----------
    queries, keys, nesting, temperature, symmetric, negatives, mask, targets
        As for `info_nce`.
    label_smoothing, return_parts, row_block, xp
        Likewise.
    reduction : {"mean", "sum"}
        As there, except "none", which has no single gradient.

    Returns
    -------
    loss : array (), or (array (), array (G,)) if `return_parts`
        As of `info_nce`.
    gradients : InfoNCEGradients, or HardNegativeGradients with `negatives`
        Shapes and dtypes of the arguments.

    Raises
    ------
    TypeError, ValueError
        As `info_nce`.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import info_nce_with_grad
    >>> loss, gradients = info_nce_with_grad(np.eye(3), np.eye(3), nesting=(2, 3))
    >>> gradients.queries.shape, gradients.temperature.shape
    ((3, 3), ())
    """
    options = Options.of(label_smoothing, None, reduction, return_parts, row_block)
    pairs = _Pairs(queries, keys, negatives, temperature, mask, targets)
    forward, backward = _directions(pairs, as_nesting(nesting), options, symmetric, xp)
    loss, (d_queries, *d_negatives), (d_keys, d_temperature) = evaluate_with_grad(forward, options)
    if backward is not None:
        other, (d_reverse,), (d_found, d_other) = evaluate_with_grad(backward, options)
        n = queries.shape[0]
        d_keys = forward.formula.xp.concat([midway(d_keys[:n, :], d_reverse), d_keys[n:, :] / 2])
        loss, d_queries = midway(loss, other), midway(d_queries, d_found)
        d_temperature, d_negatives = midway(d_temperature, d_other), [d / 2 for d in d_negatives]
    if d_negatives:
        return loss, HardNegativeGradients(d_queries, d_keys, d_temperature, *d_negatives)
    return loss, InfoNCEGradients(d_queries, d_keys, d_temperature)


class _Pairs(NamedTuple):
    """The arrays of a contrastive loss, as `info_nce` takes them."""

    queries: Array
    keys: Array
    negatives: Array | None
    temperature: float | Array
    mask: Array | None
    targets: Array | None


def _directions(
    pairs: _Pairs, nesting: Nesting, options: Options, symmetric: bool, xp: Namespace | None
) -> tuple[Problem, Problem | None]:
    """Check the arguments; return the loss of the queries and, if symmetric, that of the first n keys."""
    symmetric = _checks.flag(symmetric, "symmetric")
    pairs = _Pairs(*beside_jax(*pairs, xp=xp))
    queries, keys, negatives, temperature, mask, targets = pairs
    named = [("queries", queries), ("keys", keys), *([] if negatives is None else [("negatives", negatives)])]
    optional = [("mask", mask), ("targets", targets), ("temperature", None if _is_number(temperature) else temperature)]
    xp = namespace(*named, optional=optional, xp=xp)
    for (name, array), axes in zip(named, ("(n, dim)", "(n, dim)", "(n, h, dim)"), strict=False):
        _checks.floating(array, name, xp)
        _checks.ndim(array, name, axes.count(",") + 1, axes)
        _checks.width(array, name, nesting.dim)
    smoothing = 0.0 if 0 in queries.shape else options.label_smoothing  # there may be no key to spread it over
    formula = formula_for(Similarity, named, nesting, smoothing, xp)
    _check_enough_keys(queries.shape[0], keys.shape[0])
    temperature = _temperature(temperature, queries, xp)
    if negatives is not None:
        _checks.shape(negatives, "negatives", (queries.shape[0], *negatives.shape[1:]), "(n, h, dim)")
    n = length(queries, 0, xp)
    labels = arange(n, like=queries, xp=xp)
    broken = _broken(pairs, labels, xp)

    def problem(rows: Arrays, others: Array, shares: Array | None, seen: Array | None) -> Problem:
        right = labels if shares is None else shares
        return Problem(
            formula, rows, right, seen, None, broken, (others, temperature), options.row_block, (queries.shape[0],)
        )

    def reverse(array: Array | None) -> Array | None:
        return None if array is None else xp.matrix_transpose(array[:, :n])

    rows = (queries,) if negatives is None else (queries, negatives)
    forward = problem(rows, keys, targets, mask)
    return forward, problem((keys[:n, :],), queries, reverse(targets), reverse(mask)) if symmetric else None


def _broken(pairs: _Pairs, labels: Array, xp: Namespace) -> Array | None:
    """Check mask and targets; where they cannot be read, return NaN for queries (n,) without a valid target, else 0."""
    queries, keys, negatives, _, mask, targets = pairs
    if mask is None and targets is None:
        return None
    expected, dtype = (queries.shape[0], keys.shape[0]), accumulator_dtype(queries, xp)
    if mask is not None:
        check_mask(mask, expected, 0 if negatives is None else negatives.shape[1], xp)
        _check_some_negative(mask, negatives, xp)
    if targets is None:
        positive = xp.take_along_axis(mask, labels[:, None], axis=1)[:, 0]
        return broken_rows(~positive, "mask", "leave its positive", "set mask[i, i] to True", dtype, xp)
    _checks.floating(targets, "targets", xp)
    _checks.shape(targets, "targets", expected, "(n, n_keys)")
    n_keys = length(keys, 0, xp)
    seen = targets if mask is None else xp.where(mask[:, :n_keys], targets, xp.zeros_like(targets))
    rule = "be shares >= 0 that sum to one over the keys that `mask` leaves"
    return broken_rows(~sums_to_one(seen, dtype, xp), "targets", rule, "normalise them", dtype, xp)


def _check_some_negative(mask: Array, negatives: Array | None, xp: Namespace) -> None:
    """Check that a mask, if it can be read, leaves a negative to some query."""
    host = hook_for(xp).on_host(mask)
    if negatives is None and host is not None and host.size > 1 and np.count_nonzero(host) <= len(host):
        msg = (
            f"`mask` must leave a negative to some query, got one of shape {host.shape} that leaves "
            f"{np.count_nonzero(host)} pairs; it is True for what a query sees. Skip a batch of duplicates."
        )
        raise ValueError(msg)


def _is_number(value: object) -> bool:
    """Tell whether a temperature is a number, which may be one of NumPy beside arrays of any library."""
    return not hasattr(value, "dtype") or isinstance(value, float | np.generic)


def _temperature(value: float | Array, queries: Array, xp: Namespace) -> Array:
    """Return a temperature as an array (), checked to be positive; one that cannot be read is NaN if it is not."""
    if _is_number(value):
        value = _checks.real(value, "temperature", minimum=0.0, open_minimum=True)
        return full((), value, like=queries, dtype=accumulator_dtype(queries, xp), xp=xp)
    _checks.floating(value, "temperature", xp)
    _checks.ndim(value, "temperature", 0, "()")
    host = hook_for(xp).on_host(value)
    if host is None:
        return xp.where(value > 0, value, xp.zeros_like(value) + math.nan)
    _checks.real(host, "temperature", minimum=0.0, open_minimum=True)
    return value


def _check_enough_keys(n_queries: int | None, n_keys: int | None) -> None:
    """Check that each query has a key, if both numbers are known."""
    if n_queries is not None and n_keys is not None and n_keys < n_queries:
        msg = (
            f"`keys` must have a row for each of the {n_queries} queries, got {n_keys}; "
            "row i is the positive of query i, further rows are negatives."
        )
        raise ValueError(msg)
