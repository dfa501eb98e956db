"""What search engines share: arguments are checked in the words of `Corpus`, and results laid out as its are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._array import from_numpy, index_dtype, is_integer, namespace, to_numpy
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval.funnel import Funnel

__all__ = [
    "Stages",
    "candidate_ids",
    "queries_in_float32",
    "results",
    "rows_in_float32",
    "stages",
    "width",
]


class Stages(NamedTuple):
    """The stages of a search: at which widths rows are compared, and how many are left after each.

    Attributes
    ----------
    dims : tuple of int
        Widths.
    lists : tuple of int
        How many rows each stage keeps; the last is the number of results.
    """

    dims: tuple[int, ...]
    lists: tuple[int, ...]

    @property
    def later(self) -> Stages:
        """The stages that rerank what the first one found; a single stage reranks at its own width."""
        return Stages(self.dims[1:], self.lists[1:]) if len(self.dims) > 1 else self


def stages(
    width: int,
    n_queries: int,
    k: int,
    *,
    dim: int | None,
    funnel: Funnel | None,
    given: bool = False,
    codes: Collection[str] = _checks.CODES,
    starts: Collection[int] | None = None,
    stored: Collection[int] | None = None,
) -> Stages:
    """Check the plan of a search, and return its stages.

    Parameters
    ----------
    width : int
        That of the embeddings.
    n_queries, k, dim, funnel
        As for `Corpus.search`, and with `given` candidates as for `Corpus.rerank`.
    given : bool, default False
        Whether there are candidates already, so that the first stage is not run.
    codes : collection of str, default ("float", "bits")
        Codes in which a funnel may start.
    starts : collection of int, optional
        Widths at which a funnel may start, the `search_dims` of the engine; by default any. One in numbers may always
        start at the full width, which is an exact search.
    stored : collection of int, optional
        Widths at which rows can be compared; by default any.

    Returns
    -------
    Stages
        Those of the funnel; without one, a single stage.

    Raises
    ------
    TypeError, ValueError
        As for `Corpus.search`, or a funnel starts elsewhere, or a width is not stored.

    Examples
    --------
    >>> from matryoshka import Funnel
    >>> stages(768, 1, 10, dim=None, funnel=Funnel((64, 768), (200,)))
    Stages(dims=(64, 768), lists=(200, 10))
    """
    if (dim is not None and funnel is not None) or (given and dim is None and funnel is None):
        rule, got = ("exactly", "both or neither") if given else ("at most", "both")
        msg = f"{rule} one of `dim` and `funnel` {'must' if given else 'may'} be given, got {got}; leave one out."
        raise TypeError(msg)
    k = _checks.integer(k, "k", minimum=1)
    _check_size(n_queries, k)
    if funnel is None:
        only = width if dim is None else _checks.integer(dim, "dim", minimum=1, maximum=width)
        _check_stored((only,), stored, "dim")
        return Stages((only,), (k,))
    if not isinstance(funnel, Funnel):
        msg = f"`funnel` must be a Funnel, got {type(funnel).__name__}; pass Funnel(dims, keep)."
        raise TypeError(msg)
    _checks.dims_within(funnel.dims, width, "funnel.dims")
    _check_stored(funnel.dims, stored, "funnel.dims")
    if funnel.keep and k > funnel.keep[-1]:
        msg = (
            f"`k` must be at most the last list of the funnel, {funnel.keep[-1]}, got {k}; keep more or ask for fewer."
        )
        raise ValueError(msg)
    if not given:
        _check_start(funnel, width, codes, starts)
    return Stages(funnel.dims, (*funnel.keep, k))


def _check_start(funnel: Funnel, width: int, codes: Collection[str], starts: Collection[int] | None) -> None:
    if funnel.code not in codes:
        known = " or ".join(map(repr, codes))
        msg = f"`funnel.code` must be {known} here, got {funnel.code!r}; leave it out."
        raise ValueError(msg)
    start, exact = funnel.dims[0], funnel.code == "float" and funnel.dims[0] == width
    if not (exact or starts is None or start in starts):
        msg = f"`funnel` must start at one of the `search_dims`, {tuple(starts)}, got {start}; change one."
        raise ValueError(msg)


def _check_size(n_queries: int, k: int) -> None:
    if n_queries * k > _checks.LARGEST_RESULT:
        msg = (
            f"`k` must ask for at most {_checks.LARGEST_RESULT} results in one call, got {k} for each of {n_queries} "
            "queries; ask for fewer, or pass the queries in parts."
        )
        raise ValueError(msg)


def _check_stored(dims: tuple[int, ...], stored: Collection[int] | None, name: str) -> None:
    if stored is not None and (others := [dim for dim in dims if dim not in stored]):
        msg = f"`{name}` must be of the widths that are stored, {tuple(stored)}, got {others[0]}; choose among these."
        raise ValueError(msg)


def queries_in_float32(queries: Array, width: int, metric: str) -> np.ndarray:
    """Return queries as an engine that computes in float32 compares them.

    Parameters
    ----------
    queries : array (n_queries, dim), floating
        Of any array library.
    width : int
        That of the embeddings.
    metric : {"cosine", "ip", "l2"}
        The similarity.

    Returns
    -------
    array (n_queries, dim), float32
        NumPy; at unit length under "cosine".

    Raises
    ------
    TypeError, ValueError
        They are no array, not floating, of another width, or not finite in float32.
    """
    _check_queries(queries, width, namespace(("queries", queries)))
    with np.errstate(over="ignore", invalid="ignore"):
        wide = truncate(to_numpy(queries).astype(np.float64), width, normalize=metric == "cosine")
        rows: np.ndarray = wide.astype(np.float32)
    _checks.finite_rows(rows, "queries", np)
    return rows


def _check_queries(queries: Array, width: int, xp: Namespace) -> None:
    """Check kind and shape of queries, of the library `xp`, that ask for embeddings so wide."""
    _checks.floating(queries, "queries", xp)
    _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
    _checks.shape(queries, "queries", (queries.shape[0], width), "(n_queries, dim)")


def _check_ids(ids: Array, n_queries: int, xp: Namespace) -> None:
    """Check kind and shape of candidates, of the library `xp`."""
    if not is_integer(ids, xp):
        msg = f"`ids` must hold integers, got dtype {ids.dtype}; pass the ids that a search returned."
        raise TypeError(msg)
    _checks.ndim(ids, "ids", 2, "(n_queries, m)")
    _checks.shape(ids, "ids", (n_queries, ids.shape[1]), "(n_queries, m)")


def candidate_ids(ids: Array, queries: Array) -> np.ndarray:
    """Return the candidates that a reranking is given, checked against its queries.

    Parameters
    ----------
    ids : array (n_queries, m), integer
        Of the library of `queries`.
    queries : array (n_queries, dim)
        The queries.

    Returns
    -------
    array (n_queries, m), integer
        NumPy.

    Raises
    ------
    TypeError, ValueError
        They hold no integers, or are not one row per query.
    """
    _check_ids(ids, queries.shape[0], namespace(("queries", queries), ("ids", ids)))
    found: np.ndarray = to_numpy(ids)
    return found


def results(found: Sequence[tuple[int, int, float]], queries: Array, k: int) -> tuple[Array, Array]:
    """Arrange what queries have found in arrays, as every search returns them.

    Parameters
    ----------
    found : sequence of (int, int, float)
        The number of a query, the id of a row and its score, in the order of queries, at most `k` for each, best first.
    queries : array (n_queries, dim)
        The queries, of any library.
    k : int
        Results per query.

    Returns
    -------
    scores, ids : array (n_queries, k)
        In float32 and the library of `queries`; where fewer were found, the rest has id -1 and score -inf.

    Raises
    ------
    ValueError
        The integers of that library do not hold the ids.
    """
    xp, table = namespace(("queries", queries)), np.array(found, [("query", "i8"), ("id", "i8"), ("score", "f4")])
    scores, ids = np.full((queries.shape[0], k), -np.inf, np.float32), np.full((queries.shape[0], k), -1)
    at = table["query"], np.arange(len(table)) - np.searchsorted(table["query"], table["query"])
    scores[at], ids[at] = table["score"], table["id"]
    if (largest := int(ids.max(initial=-1))) > xp.iinfo(index_dtype(xp)).max:  # JAX would cut it off without a word
        msg = (
            f"`queries` must come from a library that holds the ids, up to {largest}, got one with {index_dtype(xp)}; "
            "pass NumPy arrays, or enable 64 bits in JAX."
        )
        raise ValueError(msg)
    return from_numpy(scores, like=queries, xp=xp), from_numpy(ids, like=queries, xp=xp)


def width(embeddings: Array, most: int) -> int:
    """Return the width of embeddings that are to be stored in an engine.

    Parameters
    ----------
    embeddings : array (n, dim), floating
        Of any array library.
    most : int
        Columns that the engine takes.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        They are no such array, or have more columns.
    """
    _checks.floating(embeddings, "embeddings", namespace(("embeddings", embeddings)))
    _checks.ndim(embeddings, "embeddings", 2, "(n, dim)")
    return _checks.integer(embeddings.shape[1], "embeddings.shape[1]", minimum=1, maximum=most)


def rows_in_float32(embeddings: Array, block: slice) -> np.ndarray:
    """Return consecutive rows as an engine stores them.

    Parameters
    ----------
    embeddings : array (n, dim), floating
        Of any array library.
    block : slice
        Which rows.

    Returns
    -------
    array (rows, dim), float32
        NumPy, the same bytes on every machine.

    Raises
    ------
    ValueError
        They are not finite in float32.
    """
    with np.errstate(over="ignore"):
        rows: np.ndarray = to_numpy(embeddings[block, :]).astype("<f4")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1)) + block.start
    _checks.no_bad_rows(bad.tolist(), embeddings.shape[0], "embeddings")
    return rows
