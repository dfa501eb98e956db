"""The probabilities or logits of all prefixes for the same rows: checked once, and reduced to what cascades need."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._array import (
    accumulator_dtype,
    count_true,
    from_numpy,
    is_array,
    is_integer,
    is_numpy_array,
    namespace,
    row_blocks,
    take_rows,
    to_numpy,
)
from matryoshka._typing import Array, Namespace
from matryoshka.cascade._confidence import (
    MEASURES,
    PRECOMPUTED,
    Mass,
    fit_temperature,
    mass_of_logits,
    mass_of_probabilities,
)

Prefixes = Array | Sequence[Array]
"""Probabilities or logits of every prefix: an array (G, n, c), or a sequence of G arrays (n, c)."""

UNKNOWN = -1
"""The label of a row without one, as in scikit-learn."""

_BLOCK_ENTRIES = 2**18
_SUM_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}


class Scored(NamedTuple):
    """On the host: how sure every prefix is of each row, where it is correct, and where it agrees with the last."""

    confidences: np.ndarray
    correct: np.ndarray
    agrees: np.ndarray
    n_classes: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.correct.shape[1])

    def take(self, rows: np.ndarray) -> Scored:
        """Select rows."""
        return Scored(self.confidences[:, rows], self.correct[:, rows], self.agrees[:, rows], self.n_classes)


class Outputs:
    """Probabilities or logits of every prefix. Shapes are checked at once, values when they are first needed.

    `confidence` is the name of a measure of them, or an array (G, n) that says how sure each prefix is of each row.
    """

    def __init__(
        self,
        probabilities: Prefixes,
        dims: tuple[int, ...],
        *,
        from_logits: bool,
        confidence: str | Array = "max_probability",
    ) -> None:
        self.dims, self.from_logits = dims, _checks.flag(from_logits, "from_logits")
        self.prefixes, self.xp = _alike(probabilities, dims)
        self.n_rows, self.n_classes = map(int, self.prefixes[0].shape)
        self._given = self._checked(confidence) if is_array(confidence) else None
        self.measure = PRECOMPUTED if self._given is not None else _measure(confidence)

    def _checked(self, confidence: Array) -> Array:
        """Check given confidences (G, n), and return them in the dtype in which they are compared."""
        xp = namespace(("probabilities", self.prefixes[0]), ("confidence", confidence))
        _checks.floating(confidence, "confidence", xp)
        _checks.shape(confidence, "confidence", (len(self.dims), self.n_rows), "(prefixes, rows)")
        if count := count_true(~((confidence >= 0.0) & (confidence <= 1.0)), xp):
            msg = (
                f"`confidence` must lie within [0, 1], got {count} numbers that do not; "
                "rescale them, by the same rule as for all rows to come."
            )
            raise ValueError(msg)
        return xp.astype(confidence, accumulator_dtype(confidence, xp), copy=False)

    @cached_property
    def answers(self) -> list[Array]:
        """The class (n,) that each prefix answers with. Everything that uses the values goes through this check."""
        return [self._read(i) for i in range(len(self.dims))]

    def _read(self, i: int) -> Array:
        """Check the values of prefix i and return its answers (n,)."""
        xp, are_valid = self.xp, _are_finite if self.from_logits else _are_probabilities
        valid, answers = _in_blocks(lambda rows: (are_valid(rows, xp), xp.argmax(rows, axis=-1)), xp, self.prefixes[i])
        if count := count_true(~valid, xp):
            name = f"`probabilities[{i}]` (the prefix of width {self.dims[i]})"
            rows = f"{count} of {self.n_rows} rows"
            first = f"(first: {int(xp.argmax(xp.astype(~valid, xp.int32)))})"
            if self.from_logits:
                rule, remedy = f"finite logits, got NaN or infinity in {rows}", "repair the model or drop these rows"
            else:
                tolerance = _sum_tolerance(self.prefixes[i])
                rule = f"probabilities, non-negative and summing to 1 within {tolerance:g}, got {rows} that are not"
                given = "pass from_logits=True (to the command, --logits)"
                remedy = f"apply a softmax to logits first, or {given}, and drop rows with NaN"
            msg = f"{name} must hold {rule} {first}; {remedy}."
            raise ValueError(msg)
        return answers

    def route(self, thresholds: Sequence[float], temperatures: Sequence[float] | None) -> tuple[Array, Array]:
        """Return the answer to each row and the width at which it exits, in the library of the probabilities."""
        xp, labels = self.xp, self.answers[-1]
        exit_dims = xp.full_like(labels, self.dims[-1])
        for i in reversed(range(len(thresholds))):
            sure = self._confidences(i, temperatures) > thresholds[i]
            labels = xp.where(sure, self.answers[i], labels)
            exit_dims = xp.where(sure, xp.full_like(exit_dims, self.dims[i]), exit_dims)
        return labels, exit_dims

    def _confidences(self, i: int, temperatures: Sequence[float] | None, rows: np.ndarray | None = None) -> Array:
        """Return how sure prefix i is of each row (n,), or of these `rows`, within [0, 1]."""
        xp = self.xp
        if self._given is not None:
            return self._given[i, :] if rows is None else take_rows(self._given[i, :], rows, xp)
        confidence_of = MEASURES[self.measure]
        temperature = 1.0 if temperatures is None else temperatures[i]
        prefix, answers = self.prefixes[i], self.answers[i]
        if rows is not None:
            prefix, answers = take_rows(prefix, rows, xp), take_rows(answers, rows, xp)

        def sure(rows: Array, answers: Array) -> tuple[Array]:
            # Clipped, so that rounding lets no row exceed a threshold of 1.
            return (xp.clip(confidence_of(self._mass(rows, answers, temperature), xp), 0.0, 1.0),)

        return _in_blocks(sure, xp, prefix, answers)[0]

    def _mass(self, rows: Array, answers: Array, temperature: float) -> Mass:
        """Return the probability mass of every class in some rows, given their answers."""
        if self.from_logits:
            return mass_of_logits(rows, temperature, self.xp)
        largest = self.xp.take_along_axis(rows, answers[:, None], axis=-1)[:, 0]
        return mass_of_probabilities(rows, largest, temperature, self.xp)

    @cached_property
    def labels(self) -> Array:
        """The classes (n,) that answers are compared with: if no labels are known, the answers of the full width."""
        return self.answers[-1]

    @cached_property
    def known(self) -> np.ndarray:
        """Which rows (n,) have a label of their own, on the host."""
        return np.zeros(self.n_rows, dtype=bool)

    @cached_property
    def host_labels(self) -> np.ndarray:
        """The labels (n,), on the host."""
        return to_numpy(self.labels)

    @cached_property
    def host_answers(self) -> np.ndarray:
        """The answers of every prefix (G, n), on the host."""
        return np.stack([to_numpy(answers) for answers in self.answers])

    @cached_property
    def correct(self) -> np.ndarray:
        """Where the answer of each prefix is the label (G, n), on the host."""
        return np.asarray(self.host_answers == self.host_labels)

    def members(self, groups: Array) -> dict[int, np.ndarray]:
        """Check the group ids (n,), and return the rows of each group by its id."""
        namespace(("probabilities", self.prefixes[0]), ("groups", groups))
        if not is_integer(groups, self.xp):
            msg = (
                f"`groups` must hold integer group ids, got dtype {groups.dtype}; "
                "number the groups, as np.unique with return_inverse does."
            )
            raise TypeError(msg)
        _checks.shape(groups, "groups", (self.n_rows,), "(rows,)")
        ids = to_numpy(groups)
        order = np.argsort(ids, kind="stable")
        found, starts = np.unique(ids[order], return_index=True)
        return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))

    def check_calibration(self) -> None:
        """Refuse rows on which nothing can be calibrated, and warn if there are too few."""
        if not self.correct.any():
            msg = (
                f"`labels` must agree with some prediction, got {self.n_rows} rows of which no prefix gets any right; "
                "check that rows and class ids are in the order of `probabilities`."
            )
            raise ValueError(msg)
        if self.n_rows < self.n_classes:
            msg = (
                f"Calibrating on {self.n_rows} rows for {self.n_classes} classes: fewer rows than classes, "
                "so some class was never seen; use more rows."
            )
            warnings.warn(msg, UserWarning, stacklevel=3)

    def fit_temperatures(self, rows: np.ndarray) -> tuple[float, ...]:
        """Return for each prefix the temperature that makes the labels of these rows most likely."""
        if self._given is not None:
            msg = (
                "`temperature` must be False where `confidence` is an array, got True; "
                "no temperature changes what is given."
            )
            raise ValueError(msg)
        xp = self.xp
        labels = take_rows(self.labels, rows, xp)
        return tuple(
            fit_temperature(self._mass(take_rows(prefix, rows, xp), take_rows(answers, rows, xp), 1.0), labels, xp)
            for prefix, answers in zip(self.prefixes, self.answers, strict=True)
        )

    def score(self, temperatures: Sequence[float] | None, rows: np.ndarray | None = None) -> Scored:
        """Compute how sure every prefix is, where it is correct, and where it agrees with the last, on the host.

        `rows`, if given, are the numbers of the rows to look at, ascending and distinct.
        """
        if rows is not None and len(rows) == self.n_rows:
            rows = None
        confidences = [to_numpy(self._confidences(i, temperatures, rows)) for i in range(len(self.dims))]
        kept = np.s_[:] if rows is None else rows
        answers = self.host_answers[:, kept]
        return Scored(np.stack(confidences), self.correct[:, kept], answers == answers[-1], self.n_classes)


class Labelled(Outputs):
    """Outputs for rows with labels; if `partly`, labels may be UNKNOWN, and the full width's answers replace them."""

    def __init__(
        self, probabilities: Prefixes, labels: Array, dims: tuple[int, ...], *, partly: bool = False, **options: Any
    ) -> None:
        super().__init__(probabilities, dims, **options)
        namespace(("probabilities", self.prefixes[0]), ("labels", labels))
        _checks.not_empty(self.prefixes[0], "probabilities")
        _checks.labels(labels, "labels", (self.n_rows,), self.xp)
        on_host = to_numpy(labels)
        ignored = UNKNOWN if partly else None
        hint = f"{UNKNOWN} stands for a row without a label" if partly else "leave out rows without a label"
        _checks.label_values(on_host, "labels", self.n_classes, ignore_index=ignored, hint=f", and {hint}")
        self.known = on_host != UNKNOWN
        self.labels = labels if self.known.all() else self._filled(labels)

    def _filled(self, labels: Array) -> Array:
        """Replace unknown labels by the answers of the full width, after checking that some labels are known."""
        if not self.known.any():
            msg = (
                f"`labels` must be known for some row, got {UNKNOWN} for all {self.n_rows}; "
                "leave them out and bound `max_disagreement`."
            )
            raise ValueError(msg)
        answers = self.answers[-1]
        known = from_numpy(self.known, like=labels, xp=self.xp)
        return self.xp.where(known, self.xp.astype(labels, answers.dtype), answers)


def outputs_of(
    probabilities: Prefixes, labels: Array | None, dims: tuple[int, ...], *, partly: bool = False, **options: Any
) -> Outputs:
    """Return outputs for at least one row: with all labels, with some of them if `partly`, or with none."""
    if labels is not None:
        return Labelled(probabilities, labels, dims, partly=partly, **options)
    outputs = Outputs(probabilities, dims, **options)
    _checks.not_empty(outputs.prefixes[0], "probabilities")
    return outputs


def _measure(confidence: object) -> str:
    """Check that `confidence` is the name of a measure, and return it."""
    if not isinstance(confidence, str) or confidence == PRECOMPUTED:
        msg = (
            "`confidence` must be the name of a measure, or an array (prefixes, rows) of numbers of your own, "
            f"got {_checks.describe(confidence)}; pass them as one array."
        )
        raise ValueError(msg)
    return _checks.choice(confidence, "confidence", MEASURES)


def _alike(probabilities: Any, dims: tuple[int, ...]) -> tuple[list[Array], Namespace]:
    """Return one array (n, c) per prefix, after checking that they share library, device, dtype and shape."""
    if is_array(probabilities):
        namespace(("probabilities", probabilities))
        _checks.ndim(probabilities, "probabilities", 3, "(prefixes, rows, classes)")
        if probabilities.shape[0] != len(dims) == probabilities.shape[1]:
            msg = (
                f"`probabilities` must have shape (prefixes, rows, classes), {len(dims)} prefixes for {dims}, got "
                f"{tuple(probabilities.shape)}, which looks like (rows, prefixes, classes), as Keras heads return it; "
                "move the axes: np.moveaxis(probabilities, 1, 0)."
            )
            raise ValueError(msg)
        prefixes = [probabilities[i, ...] for i in range(probabilities.shape[0])]
    elif isinstance(probabilities, list | tuple):
        prefixes = list(probabilities)
    else:
        msg = (
            f"`probabilities` must be an array (prefixes, rows, classes) or a sequence of arrays (rows, classes), "
            f"got {type(probabilities).__name__}; pass one array per prefix."
        )
        raise TypeError(msg)
    if len(prefixes) != len(dims):
        msg = (
            f"`probabilities` must hold one (rows, classes) array per prefix, {len(dims)} for {dims}, "
            f"got {len(prefixes)}; use the ladder that the probabilities were computed with."
        )
        raise ValueError(msg)
    named = [(f"probabilities[{i}]", rows) for i, rows in enumerate(prefixes)]
    xp = namespace(*named)
    _checks.same_dtype(xp, *named)
    _checks.ndim(prefixes[0], "probabilities[0]", 2, "(rows, classes)")
    for name, rows in named:
        _checks.shape(rows, name, tuple(prefixes[0].shape), "(rows, classes)")
    if prefixes[0].shape[1] == 0:
        msg = (
            f"`probabilities[0]` (the prefix of width {dims[0]}) must have at least one class, "
            f"got shape {tuple(prefixes[0].shape)}; pass some data."
        )
        raise ValueError(msg)
    return prefixes, xp


def _are_probabilities(rows: Array, xp: Namespace) -> Array:
    """Tell which rows are non-negative and sum to one; NaN is neither."""
    total = xp.sum(rows, axis=-1, dtype=accumulator_dtype(rows, xp))
    return (xp.abs(total - 1.0) <= _sum_tolerance(rows)) & (xp.min(rows, axis=-1) >= 0.0)


def _sum_tolerance(rows: Array) -> float:
    return _SUM_TOLERANCE.get(str(rows.dtype).rpartition(".")[2], 1e-5)


def _are_finite(rows: Array, xp: Namespace) -> Array:
    """Tell which rows hold neither NaN nor infinity."""
    return xp.all(xp.isfinite(rows), axis=-1)


def _in_blocks(function: Callable[..., tuple[Array, ...]], xp: Namespace, *arrays: Array) -> tuple[Array, ...]:
    """Apply a function to arrays in blocks of rows, and concatenate each of its results.

    In NumPy, a block stays in the cache while it is read several times; other libraries are faster with all rows.
    """
    if not is_numpy_array(arrays[0]):
        return function(*arrays)
    n, n_classes = arrays[0].shape
    blocks = row_blocks(n, max(1, _BLOCK_ENTRIES // n_classes))
    parts = [function(*(array[block] for array in arrays)) for block in blocks]
    return tuple(xp.concat(results) for results in zip(*parts, strict=True))
