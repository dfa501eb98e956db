"""What the plans of this package share: JSON, alone or in a file, and the Pareto front of cost and quality."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeVar

from matryoshka import _checks

Point = TypeVar("Point")


class JsonValue:
    """A dataclass that is written as a JSON object of its fields, and read by calling its constructor with them."""

    _kind: ClassVar[str]
    """The name of the class in the JSON."""

    _before: ClassVar[dict[str, Any]] = {}
    """Fields that older versions did not have, each with the value that means the same; such values are not written."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            `text` is not the JSON of such a value.
        """
        return cls._read(text, "text")

    def to_json(self) -> str:
        """Return the value as JSON text, with its certificate if it has one."""
        fields = dataclasses.asdict(self, dict_factory=self._written)  # type: ignore[call-overload]
        return json.dumps({"kind": self._kind, "version": 1, **fields})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read the value from the file that `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file holds no such value.
        """
        from pathlib import Path

        return cls._read(Path(path).read_bytes(), path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the value to a JSON file: whole, or not at all."""
        from matryoshka import _files  # with what it needs of the standard library, half of what an import costs

        _files.write_text(path, self.to_json() + "\n")

    @classmethod
    def _read(cls, text: str | bytes, source: object) -> Self:
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        always = [name for name in names if name not in cls._before]
        parsed = cls._before | record(text, kind=cls._kind, keys=always, source=source)
        with reading(cls._kind, source):
            return cls(**cls._arguments({name: parsed[name] for name in names}))

    @classmethod
    def _written(cls, fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        """Return those fields of the value, or of a certificate within it, that are written."""
        return {name: value for name, value in fields if name not in cls._before or value != cls._before[name]}

    @classmethod
    def _arguments(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Return what the constructor takes, from the fields as JSON gives them."""
        return fields


def record(text: str | bytes, *, kind: str, keys: Collection[str], source: object = "text") -> dict[str, Any]:
    """Parse the JSON of one of this package's values and check kind, version and keys; `source` says where it was."""
    remedy = f"pass what `to_json` of a {kind} wrote" if source == "text" else f"save the {kind} anew"
    try:
        parsed = json.loads(text)
    except (RecursionError, TypeError, ValueError) as error:
        msg = f"`{source}` must be JSON, got {_checks.describe(text)}; {remedy}."
        raise ValueError(msg) from error
    if not isinstance(parsed, dict) or parsed.get("kind") != kind:
        found = parsed.get("kind") if isinstance(parsed, dict) else type(parsed).__name__
        msg = f"`{source}` must be the JSON of a {kind}, got {_brief(found)}; {remedy}."
        raise ValueError(msg)
    if parsed.get("version") != 1:
        msg = f"`{source}` must be version 1 of a {kind}, got {_brief(parsed.get('version'))}; write it anew."
        raise ValueError(msg)
    missing = [key for key in keys if key not in parsed]
    if missing:
        msg = f"`{source}` must hold {', '.join(keys)}, got a {kind} without {', '.join(missing)}; {remedy}."
        raise ValueError(msg)
    return parsed


@contextmanager
def reading(kind: str, source: object) -> Iterator[None]:
    """Make errors about the values in a record say where the record was."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        msg = f"`{source}` must be the JSON of a {kind}: {error}"
        raise ValueError(msg) from error


def _brief(value: object) -> str:
    """Show what a file gives as its kind or version, in a few words."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(value) if plain and len(repr(value)) <= 80 else type(value).__name__


def sealed(record: dict[str, Any], checksums: dict[str, int]) -> dict[str, Any]:
    """Return a record with the checksums of the arrays that it describes, and with one of itself."""
    record = {**record, "checksums": checksums}
    return {**record, "checksum": _own_checksum(record)}


def checksums(record: dict[str, Any], names: Iterable[str]) -> dict[str, int] | None:
    """Return the checksums in a record, one for each of `names`; None in an old record, which has none."""
    found = record.get("checksums")
    if found is None and "checksum" not in record:
        return None
    if not isinstance(found, dict) or set(found) != set(names):
        msg = f"`checksums` must hold one for each of {', '.join(names)}, got {_checks.describe(found)}; save anew."
        raise ValueError(msg)
    return {name: _checks.integer(value, f"checksums[{name!r}]", minimum=0) for name, value in found.items()}


def check_seal(record: dict[str, Any], keys: Collection[str], *, source: object, of: str = "corpus") -> None:
    """Check that a record is as it was sealed and has no other keys; an old one has no checksums to compare."""
    allowed = {"kind", "version", *keys} | ({"checksums", "checksum"} if "checksum" in record else set())
    if others := set(record) - allowed:
        msg = f"`{source}` must hold nothing but {', '.join(sorted(allowed))}, got {_brief(min(others))}; save anew."
        raise ValueError(msg)
    if "checksum" in record:
        check_sum(record["checksum"], _own_checksum(record), source=source, of=of)


def check_sum(expected: object, got: int, *, source: object, of: str = "corpus") -> None:
    """Check that what was read has the checksum that was saved; `of` names in the error what to save anew."""
    if expected != got:
        msg = (
            f"`{source}` must be as it was saved, got other bytes than its checksum says; the folder is damaged or "
            f"mixed from several: save the {of} anew."
        )
        raise ValueError(msg)


def _own_checksum(record: dict[str, Any]) -> int:
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def pareto_front(points: Iterable[Point], worth: Callable[[Point], tuple[float, float]]) -> list[Point]:
    """Return the points that no other one beats, cheapest first; `worth` gives the cost and the quality of a point.

    Of points with the same cost and quality, the first is kept.
    """
    front: list[Point] = []
    best = -float("inf")
    for (_, reached), point in sorted(((worth(p), p) for p in points), key=lambda pair: (pair[0][0], -pair[0][1])):
        if reached > best:
            front.append(point)
            best = reached
    return front
