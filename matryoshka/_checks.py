"""Checks of arguments that several parts of the package share, and the wording that all its errors follow.

A message names the argument, the rule, what arrived, and what to do about it. It never shows array contents.
The wrong kind of thing raises TypeError; a wrong value, shape or device raises ValueError.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar

import numpy as np

from matryoshka._array import count_true, is_floating, is_integer
from matryoshka._typing import Array, Namespace

Kind = TypeVar("Kind")

LARGEST_INTEGER = 2**63 - 1
"""No count, width or id is larger: arrays of every library hold it."""

LARGEST_SEQUENCE = 2**18
"""How many widths or thresholds a sequence may hold at most: an iterator may never end."""

LARGEST_RESULT = 2**31
"""How many numbers one call may return, or one layer hold, at most."""

METRICS = ("cosine", "ip", "l2")
"""How prefixes may be compared."""

CODES = ("float", "bits")
"""How a first stage may store and compare prefixes: as numbers, or as one bit per column."""

FEWEST_BITS = 64
"""Narrowest width at which a first stage is tried in bits, a machine word: fewer bits tell too few rows apart."""


def describe(value: object) -> str:
    """Name the type of a value and, if it is a single number or a short text, the value."""
    if not isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return type(value).__name__
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return f"{type(value).__name__} of {value.bit_length()} bits"
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) <= 40 else type(value).__name__


def flag(value: object, name: str) -> bool:
    """Return `value`, which must be True or False, as a Python bool."""
    if not isinstance(value, bool | np.bool_):
        msg = f"`{name}` must be True or False, got {describe(value)}; pass a bool."
        raise TypeError(msg)
    return bool(value)


def integer(
    value: object,
    name: str,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    limit: int = LARGEST_INTEGER,
) -> int:
    """Return `value` as a Python int within [minimum, maximum]; an error mentions `limit` only if it is exceeded."""
    number = value if type(value) is int else _index(value)
    if number is None:
        msg = f"`{name}` must be an integer, got {describe(value)}; pass an int."
        raise TypeError(msg)
    if minimum is None and maximum is None and abs(number) > limit:
        minimum, maximum = -limit, limit
    if maximum is None and number > limit:
        maximum = limit
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        got = number if abs(number) <= LARGEST_INTEGER else describe(number)
        msg = f"`{name}` must be an integer {_interval(minimum, maximum)}, got {got}; choose one in that range."
        raise ValueError(msg)
    return number


def _index(value: object) -> int | None:
    """Return an integer of any library, alone or as an array (), as a Python int; None for anything else."""
    if isinstance(value, bool) or not _is_single(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _is_single(value: object) -> bool:
    """Tell whether a value is not an array, or is an array () of a number that is not a bool."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return True
    return getattr(value, "shape", None) == () and "bool" not in str(dtype) and not isinstance(value, np.ma.MaskedArray)


def seed(value: object, name: str = "seed") -> int:
    """Return the seed of a random generator; None is refused, since its results could not be reproduced."""
    return integer(value, name, minimum=0, limit=2**128 - 1)  # as many bits as NumPy draws for one


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
    number = value if type(value) is float else _float(value)
    if number is None:
        msg = f"`{name}` must be a number, got {describe(value)}; pass a float."
        raise TypeError(msg)
    above = number > minimum if open_minimum else number >= minimum
    below = number < maximum if open_maximum else number <= maximum
    if not (abs(number) < math.inf and above and below):  # torch.compile cannot trace isfinite of an open float
        left, right = "(" if open_minimum else "[", ")" if open_maximum else "]"
        rule = f"must be finite and in {left}{minimum:g}, {maximum:g}{right}"
        if minimum == -math.inf and maximum == math.inf:
            rule = "must be finite"
        share = (minimum, maximum, open_minimum, open_maximum) == (0.0, 1.0, True, True)
        msg = f"`{name}` {rule}, got {number!r}; choose a {'share: 0.01 is 1 %' if share else 'value in that range'}."
        raise ValueError(msg)
    return number


def _float(value: object) -> float | None:
    """Return a real number of any library, alone or as an array (), as a Python float; None for anything else."""
    kind = str(getattr(value, "dtype", ""))
    if isinstance(value, bool | str | bytes | bytearray) or not _is_single(value):
        return None
    if "complex" in kind or "time" in kind or kind == "object":
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):
        return None


def choice(value: object, name: str, options: Collection[str]) -> str:
    """Return `value`, which must be one of the named options."""
    if not isinstance(value, str) or value not in options:
        allowed = ", ".join(repr(option) for option in options)
        got = repr(value) if isinstance(value, str) and len(value) <= 40 else describe(value)
        msg = f"`{name}` must be one of {allowed}, got {got}; choose one of these."
        raise ValueError(msg)
    return str(value)


def text(value: object, name: str) -> str:
    """Return `value`, which must be a string."""
    if not isinstance(value, str):
        msg = f"`{name}` must be a string, got {describe(value)}; pass a str."
        raise TypeError(msg)
    return value


def sequence(value: object, name: str, of: str, example: str, *, unordered: bool = False) -> tuple[Any, ...]:
    """Return the entries of a list, tuple, range, array (n,) or iterator, or, if `unordered`, of a set."""
    refused = (str, bytes, bytearray, memoryview, Mapping, *(() if unordered else (Set,)))
    if isinstance(value, refused) or not isinstance(value, Iterable) or len(getattr(value, "shape", (0,))) != 1:
        msg = f"`{name}` must be a sequence of {of}, got {describe(value)}; pass {example}."
        raise TypeError(msg)
    entries = tuple(itertools.islice(value, LARGEST_SEQUENCE + 1))
    if len(entries) > LARGEST_SEQUENCE:
        msg = f"`{name}` must hold at most {LARGEST_SEQUENCE} {of}, got more; pass fewer."
        raise ValueError(msg)
    return entries


def numbers(values: object, name: str, count: int, rule: str, **interval: Any) -> tuple[float, ...]:
    """Return `count` finite numbers within an interval, as for `real`; `rule` tells in the errors what they are."""
    found = sequence(values, name, "numbers", rule)
    floats = tuple(real(value, f"{name}[{i}]", **interval) for i, value in enumerate(found))
    if len(floats) != count:
        msg = f"`{name}` must hold {rule}, {count}, got {len(floats)}; add or drop numbers."
        raise ValueError(msg)
    return floats


def instances(values: object, name: str, of: type[Kind], example: str) -> tuple[Kind, ...]:
    """Return the entries of a sequence, of which there must be at least one, and all must be of one class."""
    entries = sequence(values, name, of.__name__, example)
    other = [describe(entry) for entry in entries if not isinstance(entry, of)]
    if other or not entries:
        rule, got = ("nothing but", f"{other[0]} among them") if other else ("at least one", "none")
        msg = f"`{name}` must hold {rule} {of.__name__}, got {got}; pass {example}."
        raise (TypeError if other else ValueError)(msg)
    return entries


def dims(
    values: object, name: str = "dims", *, code: str = "float", most: int | None = None, of: str = "embeddings"
) -> tuple[int, ...]:
    """Return widths as a tuple of ints: at least one, positive, strictly increasing, none above `most`.

    With a coded first stage, the second width may equal the first: the same columns once more, as numbers.
    """
    found = sequence(values, name, "integers", "for instance (8, 16, 32)")
    widths = tuple(integer(value, f"{name}[{i}]") for i, value in enumerate(found))
    if not widths:
        msg = f"`{name}` must hold at least one width, got none; pass for instance (8, 16, 32)."
        raise ValueError(msg)
    numbers = widths[1:] if code != "float" and widths[1:2] == widths[:1] else widths
    if min(widths) < 1 or any(a >= b for a, b in itertools.pairwise(numbers)):
        remedy = "drop what is below 1" if min(widths) < 1 else "sort it and drop duplicates"
        msg = f"`{name}` must be positive and strictly increasing, got {widths}; {remedy}."
        raise ValueError(msg)
    if most is not None:
        dims_within(widths, most, name, of=of)
    return widths


def keep(values: object, n_stages: int, name: str = "keep") -> tuple[int, ...]:
    """Return list lengths as a tuple of ints: positive, never growing, one for each stage but the last."""
    found = sequence(values, name, "integers", "for instance (200, 100, 50)")
    counts = tuple(integer(value, f"{name}[{i}]", minimum=1) for i, value in enumerate(found))
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
    """Check that no width exceeds `limit`, the number of columns."""
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
    """Check that `array` has `n` axes; `axes` names them in the message."""
    if len(array.shape) != n:
        remedy = f"for one row pass {name}[None]" if (n, len(array.shape)) == (2, 1) else "reshape it"
        msg = f"`{name}` must have shape {axes}, got {tuple(array.shape)}; {remedy}."
        raise ValueError(msg)


def min_ndim(array: Array, name: str, n: int, axes: str) -> None:
    """Check that `array` has at least `n` axes; `axes` names them in the message."""
    if len(array.shape) < n:
        msg = f"`{name}` must have shape {axes}, got {tuple(array.shape)}; reshape it."
        raise ValueError(msg)


def shape(array: Array, name: str, expected: tuple[int | None, ...], axes: str) -> None:
    """Check the shape of `array`; `axes` names its axes in the message."""
    if not shapes_agree(array.shape, expected):
        msg = f"`{name}` must have shape {axes} = {tuple(expected)}, got {tuple(array.shape)}; reshape or select."
        raise ValueError(msg)


def shapes_agree(actual: Sequence[int | None], expected: Sequence[int | None]) -> bool:
    """Tell whether two shapes are equal as far as they are known: a graph may leave an axis open (None)."""
    return len(actual) == len(expected) and all(
        a is None or b is None or a == b for a, b in zip(actual, expected, strict=True)
    )


def width(array: Array, name: str, dim: int) -> None:
    """Check that the last axis of `array` is as wide as the nesting: a wider input is never cut silently."""
    if len(array.shape) < 1 or array.shape[-1] != dim:
        msg = (
            f"the last axis of `{name}` must be as wide as the nesting, {dim}, got shape {tuple(array.shape)}; "
            "add the full width to the nesting or slice the input."
        )
        raise ValueError(msg)


def function(value: object, name: str) -> None:
    """Check that `value` can be called."""
    if not callable(value):
        msg = f"`{name}` must be callable, got {describe(value)}; pass a function of arrays."
        raise TypeError(msg)


def n_classes(weight: Array, name: str, *, axis: int = 0) -> int:
    """Return the number of classes, the length of `axis`, which must be at least one."""
    min_ndim(weight, name, 2 if axis == 0 else 1, "(n_classes, width)" if axis == 0 else "(..., n_classes)")
    count = weight.shape[axis]
    if count < 1:
        msg = f"`{name}` must have at least one class, got shape {tuple(weight.shape)}; pass the head's weight."
        raise ValueError(msg)
    return int(count)


def classes(value: object, name: str, width: int) -> int:
    """Return the number of classes of a new head, whose weight must not exceed `LARGEST_RESULT` numbers."""
    return integer(value, name, minimum=1, limit=max(1, LARGEST_RESULT // width))


def bias(array: Array | None, name: str, count: int) -> None:
    """Check that a bias, if given, has one number per class."""
    if array is not None:
        shape(array, name, (count,), "(n_classes,)")


def one_per_prefix(values: Sequence[object], name: str, count: int) -> None:
    """Check that there is one value for each of `count` prefixes."""
    if len(values) != count:
        msg = f"`{name}` must hold one entry per prefix of the nesting, {count}, got {len(values)}; add or drop some."
        raise ValueError(msg)


def heads(values: Sequence[Any], count: int) -> tuple[tuple[Array, Array | None], ...]:
    """Return linear classifiers as (weight, bias) pairs, one per prefix."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, list | tuple) and len(v) == 2 for v in values):
        msg = f"`heads` must be a sequence of (weight, bias) pairs, got {describe(values)}; use None for no bias."
        raise TypeError(msg)
    one_per_prefix(values, "heads", count)
    return tuple((weight, bias) for weight, bias in values)


def labels(array: Array, name: str, expected: tuple[int | None, ...], xp: Namespace) -> None:
    """Check shape and integer dtype of labels, but not their values: reading them might wait for a device."""
    if not is_integer(array, xp):
        msg = f"`{name}` must hold integer class ids, got dtype {array.dtype}; cast it, or take argmax of one-hot rows."
        raise TypeError(msg)
    if not shapes_agree(array.shape, expected):
        msg = (
            f"`{name}` must have one class id per row, shape {tuple(expected)}, got {tuple(array.shape)}; "
            "reshape it or check which rows it belongs to; one-hot rows for a loss must be floating."
        )
        raise ValueError(msg)


def label_values(
    labels: np.ndarray, name: str, n_classes: int, ignore_index: int | None = None, hint: str = ""
) -> None:
    """Check that labels lie within [0, n_classes) or equal `ignore_index`."""
    outside = (labels < 0) | (labels >= n_classes)
    if ignore_index is not None:
        outside &= labels != ignore_index
    if outside.any():
        msg = (
            f"`{name}` must lie within [0, {n_classes}), got {int(outside.sum())} outside it, such as "
            f"{labels[outside][0]}; map class ids to 0 … n_classes - 1{hint}."
        )
        raise ValueError(msg)


def signed_numbers(array: Array, name: str, xp: Namespace) -> None:
    """Check that `array` holds floating-point numbers or signed integers, which may be quantised ones."""
    if not (is_floating(array, xp) or xp.isdtype(array.dtype, "signed integer")):
        msg = (
            f"`{name}` must hold floating-point numbers or signed integers, got dtype {array.dtype}; "
            "cast them, unpack bits to -1 and 1, or subtract the zero point."
        )
        raise TypeError(msg)


def no_bad_rows(
    bad: Sequence[int], n_rows: int, name: str, *, count: int | None = None, drawn_from: int | None = None
) -> None:
    """Raise an error if there are bad rows, with NaN or infinity, among `n_rows`.

    `bad` holds their numbers, or the first few of `count`. If the rows are a sample, it is of `drawn_from` rows.
    """
    if bad:
        drawn = "" if drawn_from in (None, n_rows) else f" drawn from {drawn_from}"
        msg = (
            f"`{name}` must be finite, got NaN or infinity in {count or len(bad)} of {n_rows} rows{drawn} "
            f"(first: {', '.join(map(str, bad[:5]))}); remove or repair these rows."
        )
        raise ValueError(msg)


def finite_rows(array: Array, name: str, xp: Namespace) -> None:
    """Check that every row (n, k) is finite, which waits for the device; the message counts bad rows and lists some."""
    bad = xp.any(~xp.isfinite(array), axis=-1)
    if count := count_true(bad, xp):
        found = xp.nonzero(bad)[0]
        no_bad_rows([int(found[i]) for i in range(min(count, 5))], bad.shape[0], name, count=count)


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
