"""What search and heads cost, counted instead of measured: multiply-adds, bytes read, bytes kept, parameters.

One multiply-add counts as one, as in the paper, which calls it a FLOP; its MFLOPs are these numbers divided by 10^6.
The network, normalisation and the selection of the best candidates are not counted. All counts except those of HNSW
are exact integers. A number takes `itemsize` bytes, 4 in float32.

There are two ways of counting. *As published*: every stage of a funnel computes its distances from scratch. *As
executed* (`executed=True`): a stage at width d' that follows one at width d adds the products of columns d … d' - 1 to
running sums, so a candidate costs d' - d.

A first stage may be searched in a code of one bit per column, packed into words of 64 bits. It multiplies nothing, so
it counts 0 multiply-adds, and only its bytes; the stage after it has no running sums to add to.

References
----------
Kusupati et al. (2022), "Matryoshka Representation Learning", section 4.3, tables 8 and 10 to 14, appendices E and I.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matryoshka import _checks
from matryoshka.nesting import NestingLike, as_nesting

__all__ = [
    "RESNET50_FORWARD",
    "SHORTLIST",
    "funnel",
    "funnel_bytes",
    "head",
    "head_parameters",
    "hnsw",
    "hnsw_bytes",
    "hnsw_index_bytes",
    "index_bytes",
    "rerank",
    "rerank_bytes",
    "search",
    "search_bytes",
    "separate_indexes_bytes",
]

RESNET50_FORWARD = 4_000_000_000
"""Multiply-adds of embedding one 224 × 224 image with ResNet-50, as the paper sets them beside a search."""

SHORTLIST = 200
"""Candidates that the paper reranks; its single shots are counted as `search(n, dim) + rerank(SHORTLIST, dim)`."""


def search(n: int, dim: int) -> int:
    """Count the multiply-adds of comparing one query with every row.

    Parameters
    ----------
    n : int
        Rows of the corpus.
    dim : int
        Numbers compared per row.

    Returns
    -------
    int
        n · dim; the same as published and as executed.

    Examples
    --------
    The "128 times fewer" of the paper, and the same with reranking counted:

    >>> search(1_281_167, 2048) / search(1_281_167, 16)
    128.0
    >>> single_shot = search(1_281_167, 2048) + rerank(SHORTLIST, 2048)
    >>> round(single_shot / funnel(1_281_167, (16, 2048), (SHORTLIST,)), 1)
    125.5
    """
    return _count(n, "n") * _count(dim, "dim")


def rerank(k: int, dim: int, *, after: int = 0) -> int:
    """Count the multiply-adds of comparing one query with `k` candidates.

    Parameters
    ----------
    k : int
        Candidates, or the distances that an index (HNSW, IVF) says it computed.
    dim : int
        Numbers compared per candidate.
    after : int, default 0
        Leading columns, fewer than `dim`, whose products an earlier stage has summed up; 0 counts as published.

    Returns
    -------
    int
        k · (dim - after).

    Examples
    --------
    >>> rerank(200, 2048), rerank(200, 2048, after=16)
    (409600, 406400)
    """
    k, dim = _count(k, "k"), _count(dim, "dim")
    return k * (dim - _checks.integer(after, "after", minimum=0, maximum=dim - 1))


def funnel(n: int, dims: Sequence[int], keep: Sequence[int], *, code: str = "float", executed: bool = False) -> int:
    """Count the multiply-adds of a search at dims[0] followed by reranking ever shorter lists at ever wider prefixes.

    Parameters
    ----------
    n : int
        Rows of the corpus.
    dims : sequence of int
        Widths of the stages, strictly increasing; after a coded first stage the second may equal the first.
    keep : sequence of int
        Candidates handed from each stage to the next, one fewer than `dims`, never growing; lists longer than the
        corpus count as `n`.
    code : {"float", "bits"}, default "float"
        How the first width is stored and searched.
    executed : bool, default False
        Let every stage add to the sums of the one before, instead of starting from scratch.

    Returns
    -------
    int
        n · dims[0] + Σ keep[j] · dims[j + 1], or with `executed` Σ keep[j] · (dims[j + 1] - dims[j]). With a code
        there is no first term, and the second stage starts from scratch either way.

    Raises
    ------
    TypeError
        A width or a count is no integer.
    ValueError
        `dims` do not increase, `keep` grows, their lengths do not fit, or there is no such code.

    Notes
    -----
    Two widths are adaptive retrieval; a single width and no list are an exact search. Selecting the first list is not
    counted, although by the clock it soon outweighs a search at 16 dimensions.

    Examples
    --------
    The funnel of section 4.3.1 of the paper, 20.54 MFLOPs:

    >>> dims, keep = (16, 32, 64, 128, 256, 2048), (200, 100, 50, 25, 10)
    >>> funnel(1_281_167, dims, keep), funnel(1_281_167, dims, keep, executed=True)
    (20544752, 20529392)
    """
    n, code, executed = _count(n, "n"), _checks.choice(code, "code", _checks.CODES), _checks.flag(executed, "executed")
    dims = _checks.dims(dims, code=code)
    keep = _checks.keep(keep, len(dims))
    total, sums = (search(n, dims[0]), dims[0]) if code == "float" else (0, 0)
    for k, width in zip(keep, dims[1:], strict=True):
        total += rerank(min(k, n), width, after=sums if executed else 0)
        sums = width
    return total


def hnsw(n: int, dim: int) -> float:
    """Estimate the multiply-adds of one query on an HNSW graph.

    Parameters
    ----------
    n : int
        Rows of the corpus.
    dim : int
        Numbers compared per row.

    Returns
    -------
    float
        dim · log2(n).

    Notes
    -----
    The paper gives HNSW the order O(d log N) and never a count. This is that order with the constant 1, good for
    ratios between widths at one `n`, but not for a comparison with `search`: a real query visits many times log2(n)
    rows, and more as its candidate list grows. As executed, the count is `rerank` of the distances it computed.

    Examples
    --------
    >>> hnsw(1_048_576, 16)
    320.0
    """
    return _count(dim, "dim") * math.log2(_count(n, "n"))


def search_bytes(n: int, dim: int, *, code: str = "float", itemsize: int = 4) -> int:
    """Count the bytes of corpus that one query reads in a search of all rows.

    Parameters
    ----------
    n, dim : int
        As for `search`.
    code : {"float", "bits"}, default "float"
        How the rows are stored.
    itemsize : int, default 4
        Bytes per number.

    Returns
    -------
    int
        n · dim · itemsize, or for bits n · ⌈dim / 64⌉ · 8. The queries of a batch share these reads.

    Examples
    --------
    >>> search_bytes(1_000_000, 512, code="bits") == search_bytes(1_000_000, 16)
    True
    """
    numbers, itemsize = search(n, dim), _count(itemsize, "itemsize")
    if _checks.choice(code, "code", _checks.CODES) == "bits":
        return _count(n, "n") * -(-_count(dim, "dim") // 64) * 8
    return numbers * itemsize


def rerank_bytes(k: int, dim: int, *, after: int = 0, itemsize: int = 4) -> int:
    """Count the bytes of corpus that one query reads for reranking `k` candidates.

    Parameters
    ----------
    k, dim, after : int
        As for `rerank`.
    itemsize : int, default 4
        Bytes per number.

    Returns
    -------
    int
        k · (dim - after) · itemsize; the norm stored for each candidate and stage is not counted.
    """
    return rerank(k, dim, after=after) * _count(itemsize, "itemsize")


def funnel_bytes(
    n: int,
    dims: Sequence[int],
    keep: Sequence[int],
    *,
    code: str = "float",
    executed: bool = False,
    itemsize: int = 4,
) -> int:
    """Count the bytes of corpus that one query reads in a funnel.

    Parameters
    ----------
    n, dims, keep, code, executed
        As for `funnel`.
    itemsize : int, default 4
        Bytes per number, codes aside.

    Returns
    -------
    int
        The bytes of its search plus those of its reranking stages.

    Examples
    --------
    >>> round(search_bytes(1_281_167, 2048) / funnel_bytes(1_281_167, (16, 2048), (200,), executed=True), 1)
    125.5
    """
    widths = _checks.dims(dims, code=_checks.choice(code, "code", _checks.CODES))
    total = funnel(n, widths, keep, code=code, executed=executed) * _count(itemsize, "itemsize")
    return total if code == "float" else total + search_bytes(n, widths[0], code=code)


def hnsw_bytes(n: int, dim: int, *, itemsize: int = 4) -> float:
    """Estimate the bytes that one query reads on an HNSW graph.

    Parameters
    ----------
    n, dim : int
        As for `hnsw`.
    itemsize : int, default 4
        Bytes per number.

    Returns
    -------
    float
        log2(n) · (dim · itemsize + 4): each row visited, and the four-byte link that led to it.
    """
    return hnsw(n, dim) * _count(itemsize, "itemsize") + hnsw(n, 1) * _LINK_BYTES


def index_bytes(n: int, dim: int, *, code: str = "float", itemsize: int = 4) -> int:
    """Count the bytes of `n` stored rows: of a flat index, or of the one store that serves every prefix of MRL.

    Parameters
    ----------
    n : int
        Rows.
    dim : int
        Numbers stored per row: the full width for MRL. A prefix block kept for fast search is another such store.
    code : {"float", "bits"}, default "float"
        How they are stored.
    itemsize : int, default 4
        Bytes per number.

    Returns
    -------
    int
        n · dim · itemsize, or for bits n · ⌈dim / 64⌉ · 8.

    Examples
    --------
    >>> index_bytes(1_281_167, 2048), index_bytes(1_281_167, 512, code="bits")
    (10495320064, 81994688)
    """
    return search_bytes(n, dim, code=code, itemsize=itemsize)


def separate_indexes_bytes(n: int, nesting: NestingLike, *, itemsize: int = 4) -> int:
    """Count the bytes of one database per width, which separately trained models of fixed width need.

    Parameters
    ----------
    n : int
        Rows.
    nesting : Nesting or sequence of int
        The widths.
    itemsize : int, default 4
        Bytes per number.

    Returns
    -------
    int
        Σ n · dim · itemsize over the widths; with MRL, the widest alone is enough.

    Examples
    --------
    >>> separate_indexes_bytes(1_281_167, (512, 1024, 2048)) / index_bytes(1_281_167, 2048)
    1.75
    """
    return sum(index_bytes(n, dim, itemsize=itemsize) for dim in as_nesting(nesting))


def hnsw_index_bytes(n: int, dim: int, *, m: int = 32, itemsize: int = 4) -> int:
    """Estimate the bytes of an HNSW index: its rows and its links.

    Parameters
    ----------
    n, dim : int
        Rows, and numbers per row.
    m : int, default 32
        Links per row in an upper layer; the lowest layer has twice as many. HNSW32, as in the paper, has 32.
    itemsize : int, default 4
        Bytes per number.

    Returns
    -------
    int
        n · (dim · itemsize + 2 m · 4), without the upper layers, which take about four bytes per row.

    Examples
    --------
    The links add little at 2048 dimensions, and outweigh the rows at 16:

    >>> [round(hnsw_index_bytes(1_281_167, dim) / index_bytes(1_281_167, dim), 2) for dim in (2048, 16)]
    [1.03, 5.0]
    """
    return index_bytes(n, dim, itemsize=itemsize) + _count(n, "n") * 2 * _count(m, "m") * _LINK_BYTES


def head_parameters(nesting: NestingLike, n_classes: int, *, tied: bool = False, bias: bool = True) -> int:
    """Count the parameters of the classifiers on all prefixes.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        The prefixes.
    n_classes : int
        Classes.
    tied : bool, default False
        MRL-E: one classifier, whose leading columns serve the prefixes, instead of one per prefix (MRL).
    bias : bool, default True
        Count biases: one per prefix for MRL, a shared one for MRL-E.

    Returns
    -------
    int
        MRL: n_classes · Σ (dim + 1). MRL-E: n_classes · (widest + 1), as a plain head of that width.

    Examples
    --------
    >>> head_parameters((8, 16, 32), 10), head_parameters((8, 16, 32), 10, tied=True)
    (590, 330)
    """
    nesting, weights = as_nesting(nesting), head(nesting, n_classes, tied=tied)
    if not _checks.flag(bias, "bias"):
        return weights
    return weights + _count(n_classes, "n_classes") * (1 if tied else len(nesting))


def head(nesting: NestingLike, n_classes: int, *, tied: bool = False) -> int:
    """Count the multiply-adds of the logits of one embedding at every prefix.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        The prefixes.
    n_classes : int
        Classes.
    tied : bool, default False
        MRL-E: the logits of a prefix are those of the prefix before plus the products of its new columns.

    Returns
    -------
    int
        MRL: n_classes · Σ dim. MRL-E with running sums: n_classes · the widest dim.
    """
    nesting, tied = as_nesting(nesting), _checks.flag(tied, "tied")
    return _count(n_classes, "n_classes") * (nesting.dim if tied else sum(nesting))


_LINK_BYTES = 4


def _count(value: int, name: str) -> int:
    return _checks.integer(value, name, minimum=1)
