"""Checks of arguments that several rooms share, and their wording, which that of all others follows.

A message names the argument, the rule, what arrived, and what to do about it. It never shows array contents.
Kinds of things that are wrong raise TypeError, values, shapes and devices raise ValueError.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from matryoshka._array import is_floating, is_integer, library
from matryoshka._typing import Array, Namespace


def describe(value: object) -> str:
    """Say of what kind a value is, and, where that is short, what it is."""
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 else type(value).__name__


def integer(value: object, name: str, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` as a Python int within [minimum, maximum]."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        msg = f"`{name}` must be an integer, got {describe(value)}; pass an int."
        raise TypeError(msg)
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        msg = f"`{name}` must be an integer {_interval(minimum, maximum)}, got {number}; choose one in that range."
        raise ValueError(msg)
    return number


def real(
    value: object,
    name: str,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> float:
    """Return `value` as a finite Python float within the interval; `open_*` exclude its ends."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool | str):
        msg = f"`{name}` must be a number, got {describe(value)}; pass a float."
        raise TypeError(msg)
    above = number > minimum if open_minimum else number >= minimum
    below = number < maximum if open_maximum else number <= maximum
    if not (abs(number) < math.inf and above and below):  # torch.compile cannot trace isfinite of an open float
        left, right = "(" if open_minimum else "[", ")" if open_maximum else "]"
        rule = (
            "must be finite"
            if minimum == -math.inf and maximum == math.inf
            else f"must be finite and in {left}{minimum:g}, {maximum:g}{right}"
        )
        msg = f"`{name}` {rule}, got {number!r}; choose a value in that range."
        raise ValueError(msg)
    return number


def choice(value: object, name: str, options: Collection[str]) -> str:
    """Return `value`, which must be one of the named options."""
    if not isinstance(value, str) or value not in options:
        allowed = ", ".join(repr(option) for option in options)
        msg = f"`{name}` must be one of {allowed}, got {value!r}; choose one of these."
        raise ValueError(msg)
    return value


def dims(values: object, name: str = "dims") -> tuple[int, ...]:
    """Return widths as a tuple of ints: at least one, positive, strictly increasing."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        msg = f"`{name}` must be a sequence of integers, got {describe(values)}; pass for instance (8, 16, 32)."
        raise TypeError(msg)
    widths = tuple(integer(value, f"{name}[{i}]") for i, value in enumerate(values))
    if not widths:
        msg = f"`{name}` must hold at least one width, got none; pass for instance (8, 16, 32)."
        raise ValueError(msg)
    if min(widths) < 1 or any(a >= b for a, b in itertools.pairwise(widths)):
        remedy = "drop what is below 1" if min(widths) < 1 else "sort it and drop duplicates"
        msg = f"`{name}` must be positive and strictly increasing, got {widths}; {remedy}."
        raise ValueError(msg)
    return widths


def keep(values: object, n_stages: int, name: str = "keep") -> tuple[int, ...]:
    """Return list lengths as a tuple of ints: positive, never growing, one for each of the stages but the last."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        msg = f"`{name}` must be a sequence of integers, got {describe(values)}; pass for instance (200, 100, 50)."
        raise TypeError(msg)
    counts = tuple(integer(value, f"{name}[{i}]", minimum=1) for i, value in enumerate(values))
    if len(counts) != n_stages - 1:
        msg = (
            f"`{name}` must hold one count for every width but the last, {n_stages - 1}, got {len(counts)}; "
            "add or drop counts."
        )
        raise ValueError(msg)
    if any(a < b for a, b in itertools.pairwise(counts)):
        msg = f"`{name}` must never grow, got {counts}; each stage can only pass on what it received."
        raise ValueError(msg)
    return counts


def dims_within(widths: Sequence[int], limit: int, name: str = "dims", *, of: str = "embeddings") -> None:
    """Check that no width exceeds the `limit` columns that there are."""
    if max(widths) > limit:
        msg = (
            f"`{name}` must lie within [1, {limit}], the width of `{of}`, got {max(widths)}; "
            f"drop the widths above {limit}."
        )
        raise ValueError(msg)


def floating(array: Array, name: str, xp: Namespace) -> None:
    """Check that `array` holds real floating-point numbers."""
    if not is_floating(array, xp):
        msg = f"`{name}` must hold floating-point numbers, got dtype {array.dtype}; cast it, for instance to float32."
        raise TypeError(msg)


def same_dtype(xp: Namespace, *arrays: tuple[str, Array]) -> None:
    """Check that the named arrays (None is passed over) hold floating-point numbers of one dtype."""
    present = [(name, array) for name, array in arrays if array is not None]
    first_name, first = present[0]
    for name, array in present:
        floating(array, name, xp)
        if array.dtype != first.dtype:
            msg = (
                f"`{first_name}` and `{name}` must have one dtype, "
                f"got {first.dtype} and {array.dtype}; cast one of them."
            )
            raise TypeError(msg)


def ndim(array: Array, name: str, n: int, axes: str) -> None:
    """Check that `array` has `n` axes; `axes` spells them for the message."""
    if len(array.shape) != n:
        msg = f"`{name}` must have shape {axes}, got {tuple(array.shape)}; reshape it."
        raise ValueError(msg)


def min_ndim(array: Array, name: str, n: int, axes: str) -> None:
    """Check that `array` has at least `n` axes; `axes` spells them for the message."""
    if len(array.shape) < n:
        msg = f"`{name}` must have shape {axes}, got {tuple(array.shape)}; reshape it."
        raise ValueError(msg)


def shape(array: Array, name: str, expected: tuple[int, ...], axes: str) -> None:
    """Check the shape of `array`; `axes` spells it for the message."""
    if not _agree(array.shape, expected):
        msg = f"`{name}` must have shape {axes} = {tuple(expected)}, got {tuple(array.shape)}; reshape or select."
        raise ValueError(msg)


def _agree(actual: Sequence[int | None], expected: Sequence[int | None]) -> bool:
    """Tell whether two shapes are equal as far as they are known: graphs may leave an axis open (None)."""
    return len(actual) == len(expected) and all(
        a is None or b is None or a == b for a, b in zip(actual, expected, strict=True)
    )


def width(array: Array, name: str, dim: int) -> None:
    """Check that the last axis of `array` is as wide as the nesting: a wider input is never silently cut."""
    if len(array.shape) < 1 or array.shape[-1] != dim:
        msg = (
            f"the last axis of `{name}` must be as wide as the nesting, {dim}, got shape {tuple(array.shape)}; "
            "add the full width to the nesting or slice the input."
        )
        raise ValueError(msg)


def callable_loss(loss: object) -> None:
    """Check that `loss` can be called."""
    if not callable(loss):
        msg = f"`loss` must be callable, got {describe(loss)}; pass a function of arrays."
        raise TypeError(msg)


def same_result_shape(parts: Sequence[Any]) -> None:
    """Require that a loss returned one shape at every width."""
    narrowest, widest = (tuple(getattr(part, "shape", ())) for part in (parts[0], parts[-1]))
    if not _agree(narrowest, widest):
        msg = (
            f"`loss` must return one number, or one for each row, at every width, got shapes {narrowest} and {widest}; "
            "let it take the mean over the last axis."
        )
        raise ValueError(msg)


def n_classes(weight: Array, name: str, *, axis: int = 0) -> int:
    """Return the number of classes, the length of `axis`, of which there must be at least one."""
    min_ndim(weight, name, 2 if axis == 0 else 1, "(n_classes, width)" if axis == 0 else "(..., n_classes)")
    count = weight.shape[axis]
    if count < 1:
        msg = f"`{name}` must have at least one class, got shape {tuple(weight.shape)}; pass the head's weight."
        raise ValueError(msg)
    return int(count)


def bias(array: Array | None, name: str, count: int) -> None:
    """Check that a bias, if there is one, has one number per class."""
    if array is not None:
        shape(array, name, (count,), "(n_classes,)")


def one_per_prefix(values: Sequence[object], name: str, count: int) -> None:
    """Check that there is one value for each of `count` prefixes."""
    if len(values) != count:
        msg = f"`{name}` must hold one entry per prefix of the nesting, {count}, got {len(values)}; add or drop some."
        raise ValueError(msg)


def heads(values: Sequence[Any], count: int, name: str = "heads") -> tuple[tuple[Array, Array | None], ...]:
    """Return linear classifiers as (weight, bias) pairs, one per prefix."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, list | tuple) and len(v) == 2 for v in values):
        msg = f"`{name}` must be a sequence of (weight, bias) pairs, got {describe(values)}; use None for no bias."
        raise TypeError(msg)
    one_per_prefix(values, name, count)
    return tuple((weight, bias) for weight, bias in values)


def labels(
    array: Array,
    name: str,
    expected: tuple[int | None, ...],
    xp: Namespace,
    *,
    n_classes: int | None = None,
    ignore_index: int | None = None,
    remedy: str = "",
) -> None:
    """Check shape and integer dtype of labels, and, on NumPy, that they lie within [0, n_classes).

    Elsewhere the values stay unread, because reading them would wait for the device.
    """
    if not is_integer(array, xp):
        msg = f"`{name}` must hold integer class ids, got dtype {array.dtype}; cast it, or take argmax of one-hot rows."
        raise TypeError(msg)
    if not _agree(array.shape, expected):
        msg = (
            f"`{name}` must have one class id per row, shape {tuple(expected)}, got {tuple(array.shape)}; "
            "reshape it or check which rows it belongs to."
        )
        raise ValueError(msg)
    if n_classes is None or library(xp) != "numpy":
        return
    outside = (array < 0) | (array >= n_classes)
    if ignore_index is not None:
        outside &= array != ignore_index
    if outside.any():
        msg = (
            f"`{name}` must lie within [0, {n_classes}), got {int(outside.sum())} outside it, such as "
            f"{array[outside][0]}; map class ids to 0 … n_classes - 1{remedy}."
        )
        raise ValueError(msg)


def signed_numbers(array: Array, name: str, xp: Namespace) -> None:
    """Check that `array` holds floating-point numbers or signed integers, which may be quantised ones."""
    if not (is_floating(array, xp) or xp.isdtype(array.dtype, "signed integer")):
        msg = (
            f"`{name}` must hold floating-point numbers or signed integers, got dtype {array.dtype}; "
            "unpack bits to -1 and 1, or subtract the zero point."
        )
        raise TypeError(msg)


def no_bad_rows(
    bad: Sequence[int], n_rows: int, name: str, *, count: int | None = None, drawn_from: int | None = None
) -> None:
    """Check that no rows were found that are not finite; `bad` may hold the first of `count` only.

    Where not all rows were looked at, `n_rows` were drawn from `drawn_from`.
    """
    if bad:
        drawn = "" if drawn_from in (None, n_rows) else f" drawn from {drawn_from}"
        msg = (
            f"`{name}` must be finite, got NaN or infinity in {count or len(bad)} of {n_rows} rows{drawn} "
            f"(first: {', '.join(map(str, bad[:5]))}); remove or repair these rows."
        )
        raise ValueError(msg)


def not_empty(array: Array, name: str, *, axis: int = 0) -> None:
    """Check that `array` has at least one row, or with axis 1 one column."""
    if array.shape[axis] == 0:
        kind = ("row", "column")[axis]
        msg = f"`{name}` must have at least one {kind}, got shape {tuple(array.shape)}; pass some data."
        raise ValueError(msg)


def _interval(minimum: int | None, maximum: int | None) -> str:
    if minimum is None:
        return f"<= {maximum}"
    return f">= {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
