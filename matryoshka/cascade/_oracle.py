"""What a perfect router would reach, which no cascade can exceed, and how the prefixes differ."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from matryoshka import _checks
from matryoshka._array import from_numpy
from matryoshka._typing import Array
from matryoshka.cascade._outputs import Labelled, Prefixes
from matryoshka.nesting import NestingLike, as_nesting

__all__ = ["ClassTrends", "OracleRouting", "class_trends", "oracle_routing", "smallest_correct_dim"]


@dataclass(frozen=True)
class OracleRouting:
    """What a router would reach that sends each row to the narrowest prefix that is right.

    Attributes
    ----------
    dims : tuple of int
        Widths of the prefixes.
    n_rows : int
        Rows looked at.
    accuracy : float
        Share of rows that some prefix gets right: no router of these prefixes does better.
    shares : tuple of float
        Share of all rows for which each width is the narrowest right one; with `never_right` they sum to 1.
    never_right : float
        Share of rows that no prefix gets right.
    only_shorter : float
        Share of rows that the full width gets wrong and a shorter prefix right: the gain in accuracy by routing.
    expected_dim_right : float or None
        Mean narrowest right width over the rows that some prefix gets right; None if there are none.
    expected_dim_all : float
        The same over all rows, where those that no prefix gets right count with the full width.
    disagreement : tuple of float
        Share of rows on which the answers of each prefix and the full width differ; 0 for the last.
    """

    dims: tuple[int, ...]
    n_rows: int
    accuracy: float
    shares: tuple[float, ...]
    never_right: float
    only_shorter: float
    expected_dim_right: float | None
    expected_dim_all: float
    disagreement: tuple[float, ...]


@dataclass(frozen=True)
class ClassTrends:
    """How the accuracy of each class changes as prefixes widen.

    Attributes
    ----------
    dims : tuple of int
        Widths of the prefixes.
    rises, dips, recovers, unclear : tuple of int
        The classes whose accuracy never falls by more than the tolerance; rises and then falls, by at most the
        allowed dip below its peak; falls and then rises; or does anything else.
    unseen : tuple of int
        Classes without a row.
    """

    dims: tuple[int, ...]
    rises: tuple[int, ...]
    dips: tuple[int, ...]
    recovers: tuple[int, ...]
    unclear: tuple[int, ...]
    unseen: tuple[int, ...]


def smallest_correct_dim(
    probabilities: Prefixes, labels: Array, /, *, nesting: NestingLike, from_logits: bool = False
) -> Array:
    """Return the narrowest width that gets each row right.

    Parameters
    ----------
    probabilities, labels, nesting, from_logits
        As for `Cascade.calibrate`.

    Returns
    -------
    array (n,), integer
        A width, or 0 where no prefix is right. Library and device follow `labels`.

    Raises
    ------
    TypeError, ValueError
        The arguments are not as described.

    Examples
    --------
    >>> import numpy as np
    >>> short = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    >>> full = np.array([[0.8, 0.2], [0.3, 0.7], [0.9, 0.1]])
    >>> smallest_correct_dim([short, full], np.array([0, 1, 1]), nesting=(8, 16))
    array([ 8, 16,  0])
    """
    outputs = Labelled(probabilities, labels, as_nesting(nesting).dims, from_logits=from_logits)
    return from_numpy(_smallest(outputs), like=labels, xp=outputs.xp)


def oracle_routing(
    probabilities: Prefixes, labels: Array, /, *, nesting: NestingLike, from_logits: bool = False
) -> OracleRouting:
    """Measure what a perfect router would reach.

    Parameters
    ----------
    probabilities, labels, nesting, from_logits
        As for `Cascade.calibrate`.

    Returns
    -------
    OracleRouting
        Python numbers.

    Raises
    ------
    TypeError, ValueError
        The arguments are not as described.

    Notes
    -----
    Section 5.1 of Kusupati et al. (2022), where the oracle gains 4.6 % over the full width on ImageNet-1K.
    """
    outputs = Labelled(probabilities, labels, as_nesting(nesting).dims, from_logits=from_logits)
    dims, n, smallest = outputs.dims, outputs.n_rows, _smallest(outputs)
    total = int(smallest.sum())
    never = int((smallest == 0).sum())
    return OracleRouting(
        dims=dims,
        n_rows=n,
        accuracy=(n - never) / n,
        shares=tuple(int((smallest == dim).sum()) / n for dim in dims),
        never_right=never / n,
        only_shorter=int(((smallest > 0) & ~outputs.correct[-1]).sum()) / n,
        expected_dim_right=total / (n - never) if never < n else None,
        expected_dim_all=(total + never * dims[-1]) / n,
        disagreement=tuple(int((answers != outputs.host_answers[-1]).sum()) / n for answers in outputs.host_answers),
    )


def class_trends(
    probabilities: Prefixes,
    labels: Array,
    /,
    *,
    nesting: NestingLike,
    tolerance: float = 0.0,
    dip: float = 0.1,
    from_logits: bool = False,
) -> ClassTrends:
    """Group the classes by how their accuracy changes as prefixes widen.

    Parameters
    ----------
    probabilities, labels, nesting, from_logits
        As for `Cascade.calibrate`.
    tolerance : float, default 0
        Changes of the accuracy up to this size count as none.
    dip : float, default 0.1
        How far below its peak the accuracy of a class in `dips` may end.

    Returns
    -------
    ClassTrends
        Each class in one group.

    Raises
    ------
    TypeError, ValueError
        The arguments are not as described.

    Notes
    -----
    Section 5.1 of Kusupati et al. (2022) counts such classes (on ImageNet-1K 244 monotone ones, 177 with a small dip,
    and 49 that fall and rise) without stating a rule; this rule is our own. With few rows per class, trends may be
    noise.
    """
    tolerance = _checks.real(tolerance, "tolerance", minimum=0.0, maximum=1.0)
    dip = _checks.real(dip, "dip", minimum=0.0, maximum=1.0)
    outputs = Labelled(probabilities, labels, as_nesting(nesting).dims, from_logits=from_logits)
    truth, n_classes = outputs.host_labels, outputs.n_classes
    counts = np.bincount(truth, minlength=n_classes)
    hits = np.stack([np.bincount(truth[correct], minlength=n_classes) for correct in outputs.correct])
    groups: dict[str, list[int]] = {name: [] for name in ("rises", "dips", "recovers", "unclear", "unseen")}
    for label in range(n_classes):
        accuracy = hits[:, label] / counts[label] if counts[label] else None
        groups["unseen" if accuracy is None else _trend(accuracy, tolerance, dip)].append(label)
    return ClassTrends(dims=outputs.dims, **{name: tuple(classes) for name, classes in groups.items()})


def _trend(accuracy: np.ndarray, tolerance: float, dip: float) -> str:
    """Name the trend by the directions of its steps, ignoring level ones and merging equal neighbours."""
    steps = [float(b - a) for a, b in itertools.pairwise(accuracy)]
    directions = [up for up, _ in itertools.groupby(step > 0 for step in steps if abs(step) > tolerance)]
    if directions in ([], [True]):
        return "rises"
    if directions == [True, False]:
        return "dips" if accuracy.max() - accuracy[-1] <= dip else "unclear"
    return "recovers" if directions == [False, True] else "unclear"


def _smallest(outputs: Labelled) -> np.ndarray:
    """Return the narrowest correct width of each row (n,), 0 where no prefix is correct."""
    first = np.argmax(outputs.correct, axis=0)
    return np.where(outputs.correct.any(axis=0), np.asarray(outputs.dims)[first], 0)
