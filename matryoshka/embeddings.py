"""Cut embeddings to a prefix and bring the prefix back to unit length."""

from __future__ import annotations

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, namespace
from matryoshka._typing import Array, Namespace

__all__ = ["truncate"]


def truncate(embeddings: Array, dim: int, *, normalize: bool = True, xp: Namespace | None = None) -> Array:
    """Keep the first `dim` numbers of each embedding.

    Parameters
    ----------
    embeddings : array (..., width), floating
        Embeddings; leading axes are kept.
    dim : int
        Numbers to keep, within [1, width].
    normalize : bool, default True
        Divide each prefix by its own L2 norm, as the paper does before every search. Without it the result may
        share memory with `embeddings`.
    xp : namespace, optional
        Array namespace to use instead of the one of `embeddings`.

    Returns
    -------
    array (..., dim)
        Same library, device and dtype as `embeddings`. A prefix of only zeros stays zero.

    Raises
    ------
    TypeError
        `embeddings` is no floating-point array, or `dim` no integer.
    ValueError
        `dim` is outside [1, width].

    Notes
    -----
    Norms of half-precision embeddings are formed in float32. Rows are scaled by their largest number before they
    are squared, so that tiny and huge embeddings neither underflow nor overflow.

    Examples
    --------
    >>> import numpy as np
    >>> truncate(np.array([[3.0, 4.0, 12.0]]), 2)
    array([[0.6, 0.8]])
    """
    xp = namespace(("embeddings", embeddings), xp=xp)
    _checks.floating(embeddings, "embeddings", xp)
    _checks.min_ndim(embeddings, "embeddings", 1, "(..., width)")
    dim = _checks.integer(dim, "dim", minimum=1, maximum=embeddings.shape[-1])
    prefix = embeddings[..., :dim]
    return _unit(prefix, xp) if _checks.flag(normalize, "normalize") else prefix


def _unit(rows: Array, xp: Namespace) -> Array:
    wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
    largest = xp.max(xp.abs(wide), axis=-1, keepdims=True)
    scaled = wide / xp.where(largest > 0, largest, xp.ones_like(largest))
    squared = xp.sum(scaled * scaled, axis=-1, keepdims=True)
    norm = xp.sqrt(xp.where(squared > 0, squared, xp.ones_like(squared)))  # the slope of sqrt at 0 is infinite
    return xp.astype(scaled / norm, rows.dtype, copy=False)
