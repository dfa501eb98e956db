"""A cascade answers from the shortest prefix that is sure enough."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matryoshka import _checks, _files
from matryoshka._typing import Array, NestingLike
from matryoshka.cascade import _evaluation, _published, _stages
from matryoshka.cascade._evaluation import CascadeEvaluation
from matryoshka.nesting import as_nesting

__all__ = ["Cascade"]


@dataclass(frozen=True, init=False)
class Cascade:
    """A rule when a short prefix of an embedding may answer alone.

    A row starts at the narrowest prefix and exits at the first one whose confidence exceeds its threshold; the last
    prefix answers whatever is left.

    Parameters
    ----------
    dims : sequence of int
        Widths of the prefixes, positive and strictly increasing.
    thresholds : sequence of float
        One for every prefix but the last. A row exits where confidence > threshold, strictly: 1 lets no row exit, a
        negative threshold every row.
    confidence : {"max_probability", "margin", "entropy"}, default "max_probability"
        How sure a prefix is, within [0, 1]: the largest probability; the largest less the second largest; or
        1 - H / log(n_classes) with the entropy H of the probabilities.
    temperatures : sequence of float, optional
        One per prefix, above 0: confidence is taken of softmax(logits / temperature). None leaves probabilities as
        they are. Answers do not depend on it.

    Raises
    ------
    TypeError
        A width is no integer, or a threshold or temperature no number.
    ValueError
        The widths are no ladder; there is not one threshold for every prefix but the last, or not one temperature per
        prefix; a number is not finite; the confidence is unknown.

    Notes
    -----
    Section 4.2.1 of Kusupati et al. (2022). A cascade is an immutable value: it compares and hashes by what it holds.
    Confidences of half-precision probabilities are formed in float32; a threshold is compared in the dtype of the
    confidence.

    Examples
    --------
    >>> import numpy as np
    >>> cascade = Cascade((8, 16), thresholds=(0.7,))
    >>> short = np.array([[0.9, 0.1], [0.6, 0.4]])
    >>> full = np.array([[0.8, 0.2], [0.3, 0.7]])
    >>> cascade.predict([short, full])
    (array([0, 1]), array([ 8, 16]))
    """

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]
    confidence: str
    temperatures: tuple[float, ...] | None

    def __init__(
        self,
        dims: Iterable[int],
        thresholds: Iterable[float],
        *,
        confidence: str = "max_probability",
        temperatures: Iterable[float] | None = None,
    ) -> None:
        widths = _checks.dims(dims)
        limits = _checks.reals(thresholds, "thresholds", len(widths) - 1, each="every prefix but the last")
        if temperatures is not None:
            temperatures = _checks.reals(
                temperatures, "temperatures", len(widths), each="every prefix", minimum=0.0, open_minimum=True
            )
        object.__setattr__(self, "dims", widths)
        object.__setattr__(self, "thresholds", limits)
        object.__setattr__(self, "confidence", _checks.choice(confidence, "confidence", _stages.MEASURES))
        object.__setattr__(self, "temperatures", temperatures)

    @classmethod
    def calibrate(
        cls,
        probabilities: Array | Sequence[Array],
        labels: Array,
        /,
        *,
        nesting: NestingLike,
        grid: Iterable[float] | None = None,
        variant: str = "code",
        confidence: str = "max_probability",
    ) -> Cascade:
        """Choose thresholds by the published rule, which is greedy and promises nothing about new rows.

        For each pair of neighbouring prefixes it takes the smallest threshold with the best accuracy of "the shorter
        prefix if its confidence exceeds the threshold, else the longer one", on all calibration rows.

        Parameters
        ----------
        probabilities : array (G, n, c), or a sequence of G arrays (n, c), floating
            Probabilities of c classes from each prefix, narrowest first.
        labels : array (n,), integer
            The true classes, of the same library and device.
        nesting : Nesting or sequence of int
            The G widths.
        grid : iterable of float, optional
            Thresholds to choose from; sorted, duplicates dropped. By default 100 values evenly spaced, from 0.1 to 1
            in the code's variant and from 0 to 1 in the paper's.
        variant : {"code", "paper"}, default "code"
            The released code accepts confidence > t, the paper's text confidence >= t. The latter is kept as the
            next smaller number in the dtype of the confidences, since a cascade compares strictly. The paper also
            lists a threshold for the widest prefix, which has no effect and is left out.
        confidence : str, default "max_probability"
            As for `Cascade`; the paper uses the largest probability.

        Returns
        -------
        Cascade
            With one threshold for every prefix but the last.

        Raises
        ------
        TypeError, ValueError
            The arguments are not as described; rows are no probabilities; no prefix gets any row right.

        Warns
        -----
        UserWarning
            There are fewer rows than classes.

        Notes
        -----
        Cost: one pass over the probabilities, then n log(grid) per prefix. Ties go to the smallest threshold.

        Examples
        --------
        >>> import numpy as np
        >>> short = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
        >>> full = np.array([[0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
        >>> Cascade.calibrate([short, full], np.array([0, 1, 1]), nesting=(8, 16), grid=(0.5, 0.7, 0.9))
        Cascade((8, 16), (0.7,))
        """
        dims = as_nesting(nesting).dims
        _checks.choice(variant, "variant", _published.VARIANTS)
        _checks.choice(confidence, "confidence", _stages.MEASURES)
        candidates = _published.candidates(grid, variant)
        scored = _stages.score(probabilities, labels, dims, confidence, None)
        _stages.check_calibration_rows(scored)
        return cls(dims, _published.thresholds(scored, candidates, variant), confidence=confidence)

    def predict(self, probabilities: Array | Sequence[Array], /) -> tuple[Array, Array]:
        """Answer each row from the shortest prefix that is sure enough.

        Parameters
        ----------
        probabilities : array (G, n, c), or a sequence of G arrays (n, c), floating
            Probabilities of c classes from each prefix, narrowest first.

        Returns
        -------
        labels : array (n,), integer
            The answers; the lowest class wins a tie. Library and device follow `probabilities`.
        exit_dims : array (n,), integer
            The width at which each row exits.

        Raises
        ------
        TypeError, ValueError
            The probabilities are of another kind or shape, or rows are negative or do not sum to one: the message
            names the prefix and counts the rows.
        """
        stages = _stages.read(probabilities, self.dims, self.confidence, self.temperatures)
        return _stages.route(stages, self.dims, self.thresholds)

    def evaluate(self, probabilities: Array | Sequence[Array], labels: Array, /) -> CascadeEvaluation:
        """Measure accuracy and cost on labelled rows.

        Parameters
        ----------
        probabilities : array (G, n, c), or a sequence of G arrays (n, c), floating
            Probabilities of c classes from each prefix, narrowest first.
        labels : array (n,), integer
            The true classes, of the same library and device.

        Returns
        -------
        CascadeEvaluation
            Python numbers. They hold for these rows: measure on rows that chose no threshold.

        Raises
        ------
        TypeError, ValueError
            The arguments are not as described.
        """
        return _evaluation.evaluate(self._score(probabilities, labels), self.dims, self.thresholds)

    def curve(self, probabilities: Array | Sequence[Array], labels: Array, /) -> list[CascadeEvaluation]:
        """Measure the cascade capped at each width from the second on: the curve of the paper's figure 6.

        Parameters
        ----------
        probabilities, labels
            As for `evaluate`.

        Returns
        -------
        list of CascadeEvaluation
            One per cap, narrowest first; the last one is `evaluate`. A single prefix has no cap and gives none.
            The gap is against the full width at every cap.
        """
        scored = self._score(probabilities, labels)
        return [
            _evaluation.evaluate(scored, self.dims[:count], self.thresholds[: count - 1])
            for count in range(2, len(self.dims) + 1)
        ]

    def to_json(self) -> str:
        """Return the cascade as JSON text.

        Examples
        --------
        >>> cascade = Cascade((8, 16), (0.7,))
        >>> Cascade.from_json(cascade.to_json()) == cascade
        True
        """
        return json.dumps(
            {
                "kind": "cascade",
                "version": 1,
                "dims": self.dims,
                "thresholds": self.thresholds,
                "confidence": self.confidence,
                "temperatures": self.temperatures,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Cascade:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            `text` is not the JSON of a cascade.
        """
        keys = ("dims", "thresholds", "confidence", "temperatures")
        record = _checks.record(text, kind="cascade", keys=keys)
        return cls(
            record["dims"],
            record["thresholds"],
            confidence=record["confidence"],
            temperatures=record["temperatures"],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cascade to a JSON file: whole, or not at all."""
        _files.write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, nesting: NestingLike | None = None) -> Cascade:
        """Read a cascade from the file that `save` wrote.

        Parameters
        ----------
        path : path
            The JSON file.
        nesting : Nesting or sequence of int, optional
            The ladder the cascade is to be used with; another one in the file is an error.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file holds no cascade, or one of another ladder.
        """
        cascade = cls.from_json(Path(path).read_text(encoding="utf-8"))
        if nesting is not None and cascade.dims != (dims := as_nesting(nesting).dims):
            msg = (
                f"`{os.fspath(path)}` must hold a cascade for {dims}, got one for {cascade.dims}; "
                "calibrate one on this ladder."
            )
            raise ValueError(msg)
        return cascade

    def __repr__(self) -> str:
        options = [f"{self.dims}", f"{self.thresholds}"]
        if self.confidence != "max_probability":
            options.append(f"confidence={self.confidence!r}")
        if self.temperatures is not None:
            options.append(f"temperatures={self.temperatures}")
        return f"Cascade({', '.join(options)})"

    def _score(self, probabilities: Array | Sequence[Array], labels: Array) -> _stages.Scored:
        return _stages.score(probabilities, labels, self.dims, self.confidence, self.temperatures)
