"""Checks of what rows are to be classified as, and of their weights: labels, distributions, masks.

A bad row is an error where its values can be read on the host; elsewhere its loss is NaN.
"""

from __future__ import annotations

import math

import numpy as np

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, as_indices, is_floating, library
from matryoshka._hooks import hook_for
from matryoshka._typing import Array, Namespace


def row_labels(
    labels: Array,
    sample_weight: Array | None,
    ignore_index: int | None,
    *,
    like: Array,
    axes: tuple[int, ...],
    n_classes: int,
    xp: Namespace,
) -> tuple[Array, None, Array | None, Array | None]:
    """Return `labels`, `mask` (None), `weights` and `broken`, as a `Problem` has them, of rows with `n_classes` logits.

    Labels and weights come with the given axes, and are returned flat; numbers are in the dtype of sums over `like`.
    Labels that are ignored or out of range become 0. A row that counts but has a bad label or weight gets a NaN: in
    `weights` if there are any, else in `broken`.
    """
    dtype = accumulator_dtype(like, xp)
    weights = None if sample_weight is None else _weights(sample_weight, axes, dtype, xp)
    if len(labels.shape) == len(axes) + 1 and is_floating(labels, xp):
        return _distributions(labels, weights, ignore_index, (*axes, n_classes), dtype, xp)
    _checks.labels(labels, "labels", axes, xp)
    labels = xp.reshape(labels, (-1,))
    host = _counted_on_host(labels, weights, xp)
    if host is not None:
        hint = ", or name the id of rows to skip as ignore_index"
        _checks.label_values(host, "labels", n_classes, ignore_index, hint)
    labels = as_indices(labels, xp)
    if ignore_index is not None:
        ignored = labels == ignore_index
        weights = xp.ones_like(labels, dtype=dtype) if weights is None else weights
        labels, weights = xp.where(ignored, xp.zeros_like(labels), labels), _put(weights, ignored, 0.0, xp)
    if host is not None and weights is None:
        return labels, None, None, None
    outside = (labels < 0) | (labels >= n_classes)
    labels = xp.where(outside, xp.zeros_like(labels), labels)
    if host is not None:
        return labels, None, weights, None
    broken = _put(xp.zeros_like(labels, dtype=dtype), outside, math.nan, xp)
    return labels, None, *_weights_and_broken(weights, broken, xp)


def _distributions(
    labels: Array, weights: Array | None, ignore_index: int | None, shape: tuple[int, ...], dtype: object, xp: Namespace
) -> tuple[Array, None, Array | None, Array | None]:
    """Return what `row_labels` does, for labels that are distributions."""
    _checks.shape(labels, "labels", shape, "(..., n_classes)")
    _check_nothing_to_ignore(ignore_index)
    labels = xp.reshape(labels, (-1, shape[-1]))
    outside = ~sums_to_one(labels, dtype, xp)
    outside = outside if weights is None else outside & (weights != 0)
    rule = "be shares >= 0 that sum to one over the classes"
    broken = broken_rows(outside, "labels", rule, "normalise them", dtype, xp)
    return labels, None, *_weights_and_broken(weights, broken, xp)


def check_mask(mask: Array, axes: tuple[int | None, int | None], n_hard: int | None, xp: Namespace) -> None:
    """Check dtype and shape of a mask, which may cover the `n_hard` hard negatives, after the keys, or not."""
    if not xp.isdtype(mask.dtype, "bool"):
        msg = f"`mask` must be boolean, got dtype {mask.dtype}; make it True for what a query sees."
        raise TypeError(msg)
    n, n_keys = axes
    if n_hard and n_keys and tuple(mask.shape[1:]) == (n_keys + n_hard,):
        n_keys += n_hard
    _checks.shape(mask, "mask", (n, n_keys), "(n, n_keys)")


def sums_to_one(shares: Array, dtype: object, xp: Namespace) -> Array:
    """Tell which rows of `shares` (n, c) are distributions, within the rounding of a softmax in their dtype."""
    wide = xp.astype(shares, dtype, copy=False)
    tolerance = 1e-3 if shares.dtype == dtype else 2e-2
    return (xp.abs(xp.sum(wide, axis=1) - 1.0) <= tolerance) & (xp.sum(xp.abs(wide), axis=1) <= 1.0 + tolerance)


def broken_rows(bad: Array, name: str, rule: str, remedy: str, dtype: object, xp: Namespace) -> Array | None:
    """Raise an error if rows are `bad` (n,), else return None; if that cannot be read, return NaN for them, else 0."""
    host = hook_for(xp).on_host(bad)
    if host is None:
        return _put(xp.zeros_like(bad, dtype=dtype), bad, math.nan, xp)
    if host.any():
        msg = f"every row of `{name}` must {rule}, got {int(host.sum())} of {len(host)} that do not; {remedy}."
        raise ValueError(msg)
    return None


def _counted_on_host(labels: Array, weights: Array | None, xp: Namespace) -> np.ndarray | None:
    """Return the labels of the rows whose weight is not 0; None if they cannot be read."""
    host = hook_for(xp).on_host(labels)
    if host is None or weights is None:
        return host
    counts = hook_for(xp).on_host(weights != 0)
    return None if counts is None else host[counts]


def _check_nothing_to_ignore(ignore_index: int | None) -> None:
    """Check that `ignore_index` is none of the classes of distributions, as PyTorch does, whose default is -100."""
    if ignore_index is not None and ignore_index >= 0:
        msg = (
            f"`ignore_index` must be None or negative where `labels` are distributions, got {ignore_index}; "
            "give rows that count nothing the sample_weight 0."
        )
        raise ValueError(msg)


def _weights(sample_weight: Array, axes: tuple[int, ...], dtype: object, xp: Namespace) -> Array:
    """Return weights (n,), checked if they are of NumPy; elsewhere, with NaN for those that are not finite."""
    _checks.floating(sample_weight, "sample_weight", xp)
    _checks.shape(sample_weight, "sample_weight", axes, "that of `labels`")
    weights = xp.astype(xp.reshape(sample_weight, (-1,)), dtype, copy=False)
    if library(xp) != "numpy":
        return _put(weights, ~(xp.abs(weights) < math.inf), math.nan, xp)
    bad = ~((weights >= 0) & (weights < math.inf))
    if bad.any():
        msg = (
            f"`sample_weight` must be finite and not negative, got {int(bad.sum())} of {len(bad)} that are not; "
            "give rows that count nothing the weight 0."
        )
        raise ValueError(msg)
    return weights


def _weights_and_broken(
    weights: Array | None, broken: Array | None, xp: Namespace
) -> tuple[Array | None, Array | None]:
    """Return weights and `broken`; if there are weights, they take over its NaN, except in rows of weight 0."""
    if weights is None or broken is None:
        return weights, broken
    return xp.where(weights == 0, weights, weights + broken), None


def _put(array: Array, where: Array, value: float, xp: Namespace) -> Array:
    """Return `array` with `value` at some places."""
    return xp.where(where, xp.zeros_like(array) + value, array)
