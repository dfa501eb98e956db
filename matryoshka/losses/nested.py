"""Any loss, summed over prefixes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matryoshka import _checks
from matryoshka._array import namespace
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.nesting import NestingLike, as_nesting

__all__ = ["nested_loss"]


def nested_loss(
    loss: Callable[..., Array],
    *arrays: Array,
    nesting: NestingLike,
    normalize: bool = False,
    return_parts: bool = False,
    xp: Namespace | None = None,
) -> Any:
    """Sum a loss over prefixes of its arguments, weighted by importance.

    Parameters
    ----------
    loss : callable
        Called as ``loss(*prefixes)`` for each width m, the prefixes being arrays (..., m); returns an array, of the
        same shape for every width.
    *arrays : array (..., dim), floating
        Embeddings as wide as the nesting: students, teachers, anchors, positives, ….
    nesting : Nesting or sequence of int
        Widths and importances c_m of the prefixes.
    normalize : bool, default False
        Give every prefix of every array unit length, a teacher's included. Otherwise a student whose prefixes have unit
        length could never match a teacher that was normalised only at full width.
    return_parts : bool, default False
        Also return the loss of each prefix, not weighted by importance.
    xp : namespace, optional
        Array namespace to use instead of the one of the arguments.

    Returns
    -------
    array
        ``sum_m c_m loss(*(a[..., :m] for a in arrays))``, of the shape that `loss` returns.
    array (G, ...), if `return_parts`
        The loss of each prefix. Unlike those of the fused losses they are part of the graph: detach them for logging.

    Raises
    ------
    TypeError
        `loss` is not callable, or an argument is no floating-point array.
    ValueError
        There is no array, or one is not as wide as the nesting.

    Notes
    -----
    Calls `loss` once per prefix and leaves the gradient to the framework. For cross-entropy and InfoNCE, the dedicated
    functions cost a fraction of that.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import nested_loss
    >>> student, teacher = np.ones((3, 4)), np.zeros((3, 4))
    >>> nested_loss(lambda s, t: ((s - t) ** 2).sum(), student, teacher, nesting=(2, 4))
    np.float64(18.0)
    """
    nesting = as_nesting(nesting)
    _checks.function(loss, "loss")
    normalize, return_parts = _checks.flag(normalize, "normalize"), _checks.flag(return_parts, "return_parts")
    if not arrays:
        msg = "`arrays` must hold at least one array of embeddings, got none; pass them after `loss`."
        raise ValueError(msg)
    named = [(f"arrays[{i}]", array) for i, array in enumerate(arrays)]
    xp = namespace(*named, xp=xp)
    for name, array in named:
        _checks.floating(array, name, xp)
        _checks.width(array, name, nesting.dim)
    parts = [loss(*(truncate(array, m, normalize=normalize, xp=xp) for array in arrays)) for m in nesting]
    _check_shapes(parts)
    total = sum(part * importance for part, importance in zip(parts, nesting.importance, strict=True) if importance)
    return (total, xp.stack(parts)) if return_parts else total


def _check_shapes(parts: Sequence[Any]) -> None:
    """Check that a loss returned one shape at every width."""
    narrowest, widest = (tuple(getattr(part, "shape", ())) for part in (parts[0], parts[-1]))
    if not _checks.shapes_agree(narrowest, widest):
        msg = (
            f"`loss` must return one number, or one for each row, at every width, got shapes {narrowest} and {widest}; "
            "let it take the mean over the last axis."
        )
        raise ValueError(msg)
