"""Reduce the probabilities of every prefix to what a cascade decides by: each prefix's answer and how sure it is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from matryoshka import _checks
from matryoshka._array import from_numpy, is_array, namespace, to_numpy
from matryoshka._typing import Array, Namespace
from matryoshka.cascade import _confidence, _temperature

Prefixes = Array | Sequence[Array]
"""Probabilities or logits of every prefix: an array (G, n, c), or a sequence of G arrays (n, c)."""


class Reader(NamedTuple):
    """How the probabilities of a ladder are read."""

    dims: tuple[int, ...]
    confidence: str
    temperatures: tuple[float, ...] | None = None
    from_logits: bool = False

    def read(self, probabilities: Prefixes) -> Stages:
        """Check every prefix and reduce it, one prefix at a time."""
        prefixes, xp = self.prefixes(probabilities)
        measure = _confidence.MEASURES[self.confidence]
        answers, confidences = [], []
        for i, rows in enumerate(prefixes):
            self.check(i, rows, xp)
            answers.append(xp.argmax(rows, axis=-1))
            # Undo rounding, so that a threshold of 1 is passed by no row.
            confidences.append(xp.clip(measure(self.weights(i, rows, xp), xp), 0.0, 1.0))
        return Stages(tuple(answers), tuple(confidences), int(prefixes[0].shape[1]))

    def score(self, probabilities: Prefixes, labels: Array) -> Scored:
        """Read the probabilities, compare with the labels, and bring the outcome to the host."""
        prefixes, xp = self.prefixes(probabilities)
        namespace(("probabilities", prefixes[0]), ("labels", labels))
        n, n_classes = prefixes[0].shape
        _checks.not_empty(prefixes[0], "probabilities")
        _checks.labels(labels, "labels", (n,), xp)
        stages = self.read(prefixes)
        truth = to_numpy(labels)
        _checks.labels(truth, "labels", (n,), namespace(("labels", truth)), n_classes=n_classes)
        return Scored(
            np.stack([to_numpy(values) for values in stages.confidences]),
            np.stack([to_numpy(answers) for answers in stages.answers]),
            truth,
            n_classes,
        )

    def fit_temperatures(self, probabilities: Prefixes, labels: Array, rows: np.ndarray | None = None) -> Reader:
        """Return the reader with temperatures fitted on the given rows, or on all; the input was checked before."""
        prefixes, xp = self.prefixes(probabilities)
        if rows is not None:
            index = from_numpy(rows, like=labels, xp=xp)
            labels = xp.take(labels, index, axis=0)
        temperatures = []
        for i, prefix in enumerate(prefixes):
            selected = prefix if rows is None else xp.take(prefix, index, axis=0)
            temperatures.append(_temperature.fit(self.weights(i, selected, xp), labels, xp))
        return self._replace(temperatures=tuple(temperatures))

    def prefixes(self, probabilities: Any) -> tuple[list[Array], Namespace]:
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
        if len(prefixes) != len(self.dims):
            msg = (
                f"`probabilities` must hold one (rows, classes) array per prefix, {len(self.dims)} for {self.dims}, "
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

    def check(self, i: int, rows: Array, xp: Namespace) -> None:
        """Check that the rows of prefix i are probabilities, or finite logits."""
        note = f"the prefix of width {self.dims[i]}"
        if self.from_logits:
            _checks.logits(rows, f"probabilities[{i}]", xp, note=note)
        else:
            _checks.probabilities(rows, f"probabilities[{i}]", xp, note=note)

    def weights(self, i: int, rows: Array, xp: Namespace) -> _confidence.Weights:
        """Weigh the classes of the rows of prefix i."""
        temperature = 1.0 if self.temperatures is None else self.temperatures[i]
        weigh = _confidence.weights_of_logits if self.from_logits else _confidence.weights_of_probabilities
        return weigh(rows, temperature, xp)


class Stages(NamedTuple):
    """The answers (n,) of G prefixes and their confidences (n,), in the library of the probabilities."""

    answers: tuple[Array, ...]
    confidences: tuple[Array, ...]
    n_classes: int

    def route(self, dims: Sequence[int], thresholds: Sequence[float]) -> tuple[Array, Array]:
        """Return each row's answer and the width it exits at."""
        xp = namespace(("answers", self.answers[-1]))
        labels = self.answers[-1]
        exit_dims = xp.full_like(labels, dims[-1])
        for i in reversed(range(len(thresholds))):
            sure = self.confidences[i] > thresholds[i]
            labels = xp.where(sure, self.answers[i], labels)
            exit_dims = xp.where(sure, xp.full_like(exit_dims, dims[i]), exit_dims)
        return labels, exit_dims


@dataclass(frozen=True)
class Scored:
    """On the host: the confidences and the answers of every prefix (G, n), and the labels (n,)."""

    confidences: np.ndarray
    answers: np.ndarray
    labels: np.ndarray
    n_classes: int

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @cached_property
    def correct(self) -> np.ndarray:
        """Where each prefix is right (G, n)."""
        right: np.ndarray = self.answers == self.labels
        return right

    def take(self, rows: np.ndarray) -> Scored:
        """Select rows."""
        return Scored(self.confidences[:, rows], self.answers[:, rows], self.labels[rows], self.n_classes)

    def check_calibration(self) -> None:
        """Refuse rows that can calibrate nothing, and warn of too few."""
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
