"""What a cascade is: its ladder, its thresholds, how confidence is measured; checked, compared, printed and stored."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from matryoshka import _checks
from matryoshka._typing import NestingLike
from matryoshka.cascade._certify import Certificate
from matryoshka.cascade._confidence import MEASURES
from matryoshka.nesting import as_nesting


@dataclass(frozen=True, init=False, repr=False)
class CascadeValue:
    """The part of `Cascade` that is data."""

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]
    confidence: str
    temperatures: tuple[float, ...] | None
    certificate: Certificate | None

    def __init__(
        self,
        dims: Iterable[int],
        thresholds: Iterable[float],
        *,
        confidence: str = "max_probability",
        temperatures: Iterable[float] | None = None,
        certificate: Certificate | None = None,
    ) -> None:
        widths = _checks.dims(dims)
        limits = _checks.reals(thresholds, "thresholds", len(widths) - 1, each="every prefix but the last")
        if temperatures is not None:
            temperatures = _checks.reals(
                temperatures, "temperatures", len(widths), each="every prefix", minimum=0.0, open_minimum=True
            )
        _check_certificate(certificate, limits)
        object.__setattr__(self, "dims", widths)
        object.__setattr__(self, "thresholds", limits)
        object.__setattr__(self, "confidence", _checks.choice(confidence, "confidence", MEASURES))
        object.__setattr__(self, "temperatures", temperatures)
        object.__setattr__(self, "certificate", certificate)

    def to_json(self) -> str:
        """Return the cascade as JSON text, its certificate included.

        Examples
        --------
        >>> from matryoshka import Cascade
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
                "certificate": None if self.certificate is None else self.certificate.to_record(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            `text` is not the JSON of a cascade.
        """
        return cls._read(text, "text")

    @classmethod
    def _read(cls, text: str | bytes, source: object) -> Self:
        keys = ("dims", "thresholds", "confidence", "temperatures", "certificate")
        record = _checks.record(text, kind="cascade", keys=keys, source=source)
        certificate = record["certificate"]
        with _checks.reading("cascade", source):
            return cls(
                record["dims"],
                record["thresholds"],
                confidence=record["confidence"],
                temperatures=record["temperatures"],
                certificate=None if certificate is None else Certificate.from_record(certificate),
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cascade to a JSON file: whole, or not at all."""
        from matryoshka import _files  # with what it needs of the standard library, half of what an import costs

        _files.write_text(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, nesting: NestingLike | None = None) -> Self:
        """Read a cascade from the file that `save` wrote.

        Parameters
        ----------
        path : path
            The JSON file.
        nesting : Nesting or sequence of int, optional
            The ladder the cascade is to be used with; another one in the file is an error.

        Returns
        -------
        Cascade
            The cascade that was saved.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file holds no cascade, or one of another ladder.
        """
        from pathlib import Path

        cascade = cls._read(Path(path).read_bytes(), path)
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
        if self.certificate is not None:
            options.append(f"certificate={self.certificate!r}")
        return f"Cascade({', '.join(options)})"


def _check_certificate(certificate: object, thresholds: tuple[float, ...]) -> None:
    if certificate is None:
        return
    if not isinstance(certificate, Certificate):
        msg = f"`certificate` must be what `Cascade.certify` made, got {type(certificate).__name__}; leave it out."
        raise TypeError(msg)
    if certificate.thresholds != thresholds:
        msg = (
            f"`certificate` must be about these thresholds, {thresholds}, got one about {certificate.thresholds}; "
            "a changed cascade has to be certified anew."
        )
        raise ValueError(msg)
