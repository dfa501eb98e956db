"""Reduce the probabilities of every prefix to what a cascade decides by: each prefix's answer and how sure it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from matryoshka import _checks
from matryoshka._array import accumulator_dtype, arange, is_array, namespace, to_numpy
from matryoshka._typing import Array, Namespace


@dataclass(frozen=True)
class Stages:
    """The answers (n,) of G prefixes and their confidences (n,), in the library of the probabilities."""

    answers: tuple[Array, ...]
    confidences: tuple[Array, ...]
    n_classes: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.answers[0].shape[0])


@dataclass(frozen=True)
class Scored:
    """The same on the host, beside the truth: confidences (G, n) and where each prefix is right (G, n)."""

    confidences: np.ndarray
    correct: np.ndarray
    n_classes: int


def read(
    probabilities: Array | Sequence[Array], dims: Sequence[int], confidence: str, temperatures: Sequence[float] | None
) -> Stages:
    """Check the probabilities of every prefix and reduce them, one prefix at a time."""
    prefixes, xp = _prefixes(probabilities, dims)
    answers, confidences = [], []
    for i, (rows, dim) in enumerate(zip(prefixes, dims, strict=True)):
        _checks.probabilities(rows, f"probabilities[{i}]", xp, note=f"the prefix of width {dim}")
        answers.append(xp.argmax(rows, axis=-1))
        if temperatures is not None and temperatures[i] != 1.0:
            rows = tempered(rows, temperatures[i], xp)
        confidences.append(measure(confidence)(rows, xp))
    return Stages(tuple(answers), tuple(confidences), int(prefixes[0].shape[1]))


def score(
    probabilities: Array | Sequence[Array],
    labels: Array,
    dims: Sequence[int],
    confidence: str,
    temperatures: Sequence[float] | None,
) -> Scored:
    """Reduce the probabilities, compare with the labels, and bring the outcome to the host."""
    prefixes, xp = _prefixes(probabilities, dims)
    namespace(("probabilities", prefixes[0]), ("labels", labels))
    n, n_classes = prefixes[0].shape
    _checks.not_empty(prefixes[0], "probabilities")
    _checks.labels(labels, "labels", (n,), xp)
    stages = read(prefixes, dims, confidence, temperatures)
    truth = to_numpy(labels)
    _checks.labels(truth, "labels", (n,), np, n_classes=n_classes)
    return Scored(
        np.stack([to_numpy(values) for values in stages.confidences]),
        np.stack([to_numpy(answers) == truth for answers in stages.answers]),
        stages.n_classes,
    )


def route(stages: Stages, dims: Sequence[int], thresholds: Sequence[float]) -> tuple[Array, Array]:
    """Return each row's answer and the width it exits at."""
    xp = namespace(("answers", stages.answers[-1]))
    labels = stages.answers[-1]
    exit_dims = xp.full_like(labels, dims[-1])
    for i in reversed(range(len(thresholds))):
        sure = stages.confidences[i] > thresholds[i]
        labels = xp.where(sure, stages.answers[i], labels)
        exit_dims = xp.where(sure, xp.full_like(exit_dims, dims[i]), exit_dims)
    return labels, exit_dims


def check_calibration_rows(scored: Scored) -> None:
    """Refuse rows that can calibrate nothing, and warn of too few."""
    n = scored.correct.shape[1]
    if not scored.correct.any():
        msg = (
            f"`labels` must agree with some prediction, got {n} rows of which no prefix gets any right; "
            "check that rows and class ids are in the order of `probabilities`."
        )
        raise ValueError(msg)
    if n < scored.n_classes:
        msg = f"Calibrating on {n} rows for {scored.n_classes} classes: fewer rows than classes; use more rows."
        warnings.warn(msg, UserWarning, stacklevel=3)


def tempered(rows: Array, temperature: float, xp: Namespace) -> Array:
    """Return the probabilities that softmax(logits / temperature) would have given: rows ** (1 / temperature), anew."""
    wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
    largest = xp.max(wide, axis=-1, keepdims=True)
    powers = (wide / largest) ** (1.0 / temperature)
    return powers / xp.sum(powers, axis=-1, keepdims=True)


def measure(name: str) -> Callable[[Array, Namespace], Array]:
    """Return the measure of confidence of that name: probabilities (n, c) to numbers (n,) within [0, 1]."""
    return MEASURES[name]


def _max_probability(rows: Array, xp: Namespace) -> Array:
    largest = xp.max(rows, axis=-1)
    return _within_one(xp.astype(largest, accumulator_dtype(rows, xp), copy=False), xp)


def _margin(rows: Array, xp: Namespace) -> Array:
    wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
    winner = arange(wide.shape[1], like=wide, xp=xp)[None, :] == xp.argmax(wide, axis=-1, keepdims=True)
    second = xp.max(xp.where(winner, xp.zeros_like(wide), wide), axis=-1)
    return _within_one(xp.max(wide, axis=-1) - second, xp)


def _entropy(rows: Array, xp: Namespace) -> Array:
    wide = xp.astype(rows, accumulator_dtype(rows, xp), copy=False)
    if wide.shape[1] == 1:
        return xp.ones_like(wide[:, 0])
    logs = xp.log(xp.where(wide > 0, wide, xp.ones_like(wide)))
    return _within_one(1.0 + xp.sum(wide * logs, axis=-1) / float(np.log(wide.shape[1])), xp)


MEASURES = {"max_probability": _max_probability, "margin": _margin, "entropy": _entropy}


def _within_one(values: Array, xp: Namespace) -> Array:
    """Undo rounding: a threshold of 1 is passed by no row, one below 0 by every row."""
    return xp.clip(values, 0.0, 1.0)


def _prefixes(probabilities: Array | Sequence[Array], dims: Sequence[int]) -> tuple[list[Array], Namespace]:
    """Return one (n, c) array per prefix, of one library, device, dtype and shape."""
    if is_array(probabilities):
        _checks.ndim(probabilities, "probabilities", 3, "(prefixes, rows, classes)")
        prefixes = [probabilities[i, ...] for i in range(probabilities.shape[0])]
    elif isinstance(probabilities, Sequence) and not isinstance(probabilities, str):
        prefixes = list(probabilities)
    else:
        msg = (
            f"`probabilities` must be an array (prefixes, rows, classes) or a sequence of arrays (rows, classes), "
            f"got {type(probabilities).__name__}; pass one array per prefix."
        )
        raise TypeError(msg)
    if len(prefixes) != len(dims):
        msg = (
            f"`probabilities` must hold one (rows, classes) array per prefix, {len(dims)} for {tuple(dims)}, "
            f"got {len(prefixes)}; use the ladder that the probabilities were computed with."
        )
        raise ValueError(msg)
    named = [(f"probabilities[{i}]", rows) for i, rows in enumerate(prefixes)]
    xp = namespace(*named)
    _checks.same_dtype(xp, *named)
    _checks.ndim(prefixes[0], "probabilities[0]", 2, "(rows, classes)")
    for name, rows in named:
        _checks.shape(rows, name, tuple(prefixes[0].shape), "(rows, classes)")
    return prefixes, xp
