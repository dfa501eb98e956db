"""InfoNCE summed over prefixes: contrastive training of nested embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

from matryoshka import _checks
from matryoshka._algebra import midway
from matryoshka._array import accumulator_dtype, arange, full_scalar, length, library, namespace
from matryoshka._hooks.formula import Options, Problem
from matryoshka._typing import Array, Namespace
from matryoshka.losses._reduce import evaluate, evaluate_with_grad, formula_for
from matryoshka.losses._similarity import Similarity
from matryoshka.nesting import Nesting, NestingLike, as_nesting

__all__ = ["InfoNCEGradients", "info_nce", "info_nce_with_grad"]


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


def info_nce(
    queries: Array,
    keys: Array,
    /,
    *,
    nesting: NestingLike,
    temperature: float | Array = 0.05,
    symmetric: bool = False,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> Any:
    """Sum over prefixes the cross-entropy of finding each query's key among all keys by cosine similarity.

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
        Average with the reverse direction, in which each of the first n keys looks for its query (CLIP, ALIGN).
    label_smoothing : float, default 0.0
        Share of the target spread evenly over all keys, within [0, 1].
    reduction : {"mean", "sum", "none"}
        Over the queries.
    return_parts : bool, default False
        Also return the loss of each prefix, not weighted by importance.
    row_block : int, optional
        Queries worked on at a time; by default as many as keep a block's similarities in some 130 MB, 64 to 512.
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
        Shapes that do not fit the nesting or each other, fewer keys than queries, a temperature that is not positive,
        several devices, options outside their range.

    Notes
    -----
    Section 3 of Kusupati et al. (2022) trains ALIGN and BERT this way. Dot products and squared norms are sums over
    blocks of columns, so the ladder costs the multiply-adds of one full-width InfoNCE: n * n_keys * dim forward and
    twice that backward (twice all that if symmetric). A row whose prefix is zero, or so small beside the whole row that
    its square vanishes, has similarity 0 to everything and no gradient. For gradients and dtypes see
    `mrl_cross_entropy`.

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
    options = Options.of(
        label_smoothing=label_smoothing, reduction=reduction, return_parts=return_parts, row_block=row_block
    )
    forward, backward = _directions(queries, keys, temperature, as_nesting(nesting), options, symmetric, xp)
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
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_parts: bool = False,
    row_block: int | None = None,
    xp: Namespace | None = None,
) -> tuple[Any, InfoNCEGradients]:
    """Return `info_nce` with its gradients, for libraries without automatic differentiation.

    Parameters
    ----------
    queries, keys, nesting, temperature, symmetric, label_smoothing, return_parts, row_block, xp
        As for `info_nce`.
    reduction : {"mean", "sum"}
        As there; "none" has no one gradient.

    Returns
    -------
    loss : array (), or (array (), array (G,)) if `return_parts`
        As of `info_nce`.
    gradients : InfoNCEGradients
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
    options = Options.of(
        label_smoothing=label_smoothing, reduction=reduction, return_parts=return_parts, row_block=row_block
    )
    forward, backward = _directions(queries, keys, temperature, as_nesting(nesting), options, symmetric, xp)
    loss, (d_queries,), (d_keys, d_temperature) = evaluate_with_grad(forward, options)
    if backward is None:
        return loss, InfoNCEGradients(d_queries, d_keys, d_temperature)
    other, (d_reverse,), (d_found, d_other) = evaluate_with_grad(backward, options)
    n = queries.shape[0]
    d_keys = forward.formula.xp.concat([midway(d_keys[:n, :], d_reverse), d_keys[n:, :] / 2])
    return midway(loss, other), InfoNCEGradients(midway(d_queries, d_found), d_keys, midway(d_temperature, d_other))


def _directions(
    queries: Array,
    keys: Array,
    temperature: float | Array,
    nesting: Nesting,
    options: Options,
    symmetric: bool,
    xp: Namespace | None,
) -> tuple[Problem, Problem | None]:
    """Check the arguments; return the loss of the queries and, if symmetric, that of the first n keys."""
    symmetric, scalar = (
        _checks.flag(symmetric, "symmetric"),
        not hasattr(temperature, "dtype") or isinstance(temperature, float),
    )
    named = [("queries", queries), ("keys", keys)]
    xp = namespace(*named, *([] if scalar else [("temperature", temperature)]), xp=xp)
    for name, array in named:
        _checks.floating(array, name, xp)
        _checks.ndim(array, name, 2, "(n, dim)")
        _checks.width(array, name, nesting.dim)
    smoothing = 0.0 if 0 in queries.shape else options.label_smoothing  # there may be no key to spread it over
    formula = formula_for(Similarity, named, nesting, smoothing, xp)
    _check_enough_keys(queries.shape[0], keys.shape[0])
    _check_temperature(temperature, xp)
    if scalar:
        temperature = full_scalar(temperature, like=queries, dtype=accumulator_dtype(queries, xp), xp=xp)
    n = length(queries, 0, xp)
    labels = arange(n, like=queries, xp=xp)

    def problem(rows: Array, others: Array) -> Problem:
        return Problem(
            formula, (rows,), labels, None, None, (others, temperature), options.row_block, (queries.shape[0],)
        )

    return problem(queries, keys), problem(keys[:n, :], queries) if symmetric else None


def _check_temperature(value: float | Array, xp: Namespace) -> None:
    """Check a temperature: a positive float, or a 0-d floating array, whose value is read on NumPy only."""
    if hasattr(value, "dtype") and not isinstance(value, float):
        _checks.floating(value, "temperature", xp)
        _checks.ndim(value, "temperature", 0, "()")
        if library(xp) != "numpy":
            return
    _checks.real(value, "temperature", minimum=0.0, open_minimum=True)


def _check_enough_keys(n_queries: int | None, n_keys: int | None) -> None:
    """Check that each query has a key, where both numbers are known."""
    if n_queries is not None and n_keys is not None and n_keys < n_queries:
        msg = (
            f"`keys` must have a row for each of the {n_queries} queries, got {n_keys}; "
            "row i is the positive of query i, further rows are negatives."
        )
        raise ValueError(msg)
