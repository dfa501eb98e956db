"""Read stored records, and store them: for each data set, task and system what each seed gave."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.page.series import Curve, Seeds
from matryoshka._files import write_all

FIELDS = {"task": str, "system": str, "seed": int, "found": dict, "seconds": (int, float)}


@dataclass(frozen=True)
class Record:
    """What one cell found, with the file that says so."""

    path: Path
    task: str
    system: str
    seed: int
    found: Mapping[str, Any]
    seconds: float

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record.

        Raises
        ------
        ValueError
            The file is not the record of a cell; the message names it.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            msg = f"{path} must be the record of a cell in JSON, got something else ({error}); run the cell again."
            raise ValueError(msg) from error
        wrong = [
            name for name, kind in FIELDS.items() if not isinstance(content, dict) or not _is(content.get(name), kind)
        ]
        if wrong:
            msg = f"{path} must hold {', '.join(FIELDS)}, but {', '.join(wrong)} is not right; run the cell again."
            raise ValueError(msg)
        return cls(path, **{name: content[name] for name in FIELDS})

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def get(self, *keys: str | int) -> Any:
        """Return what stands below `keys`.

        Raises
        ------
        ValueError
            Nothing stands there; the message names the file.
        """
        value: Any = self.found
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            msg = f"{self.path} must hold {self._where(keys)}, got none; run the cell again, or mend the page."
            raise ValueError(msg) from error
        return value

    def number(self, *keys: str | int) -> float:
        """Return the number that stands below `keys`; ValueError, which names the file, if it is none."""
        return self._number(self.get(*keys), keys)

    def numbers(self, *keys: str | int) -> list[float]:
        """Return the list of numbers that stands below `keys`; ValueError, which names the file, if it is none."""
        values = self.get(*keys)
        if not isinstance(values, list):
            msg = f"{self.path} must hold a list of numbers as {self._where(keys)}, got {values!r}; run the cell again."
            raise ValueError(msg)  # noqa: TRY004 (the file is wrong, not the caller)
        return [self._number(value, keys) for value in values]

    def pairs(self, at: tuple[str | int, ...], values: tuple[str | int, ...]) -> dict[float, float]:
        """Return two lists of equal length as a dict, from the numbers `at` to those of `values`."""
        first, second = self.numbers(*at), self.numbers(*values)
        if len(first) != len(second):
            lengths = f"{len(first)} and {len(second)}"
            msg = f"{self.path} must hold {at} and {values} of one length, got {lengths}; run the cell again."
            raise ValueError(msg)
        return dict(zip(first, second, strict=True))

    def _number(self, value: Any, keys: tuple[str | int, ...]) -> float:
        if not _is(value, (int, float)) or not math.isfinite(value):
            msg = f"{self.path} must hold finite numbers as {self._where(keys)}, got {value!r}; run the cell again."
            raise ValueError(msg)
        return float(value)

    @staticmethod
    def _where(keys: tuple[str | int, ...]) -> str:
        return ".".join(map(str, ("found", *keys)))


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class Study:
    """All records of one data set."""

    name: str
    records: Mapping[tuple[str, str], Mapping[int, Record]] = field(default_factory=dict)

    def systems(self, task: str, *wanted: str) -> list[str]:
        """Return the systems that `task` was run on: those `wanted`, in their order, or all by name."""
        there = sorted(system for other, system in self.records if other == task)
        return [system for system in wanted if system in there] if wanted else there

    def of(self, task: str, system: str) -> Mapping[int, Record]:
        """Return the records by seed; none if the cell was not run."""
        return self.records.get((task, system), {})

    def value(self, task: str, system: str, *keys: str | int) -> Seeds:
        """Return the number below `keys` for each seed."""
        return {seed: record.number(*keys) for seed, record in self.of(task, system).items()}

    def curve(self, task: str, system: str, *keys: str | int, at: tuple[str | int, ...] = ("dims",)) -> Curve:
        """Return the numbers of the list below `keys`, by those of the list `at`; empty where a record has no such."""
        found: Curve = {}
        for seed, record in self.of(task, system).items():
            if keys[0] in record:
                for x, y in record.pairs(at, keys).items():
                    found.setdefault(x, {})[seed] = y
        return dict(sorted(found.items()))

    @property
    def seconds(self) -> float:
        """How long all cells took together."""
        return sum(record.seconds for cell in self.records.values() for record in cell.values())


def read(folder: Path) -> list[Study]:
    """Read FOLDER/NAME/TASK/SYSTEM.SEED.json; a name without records is left out.

    Raises
    ------
    ValueError
        A file is not the record of the cell that its path names.
    """
    studies = []
    for data in sorted(path for path in folder.glob("*") if path.is_dir()):
        found: dict[tuple[str, str], dict[int, Record]] = {}
        for path in files(data):
            record = Record.read(path)
            expected = f"{record.task}/{record.system.replace(' ', '_')}.{record.seed}.json"
            if path.relative_to(data).as_posix() != expected:
                msg = f"{path} must be the record that its path names, got that of {expected}; move it there."
                raise ValueError(msg)
            found.setdefault((record.task, record.system), {})[record.seed] = record
        if found:
            studies.append(Study(data.name, found))
    return studies


def store(source: Path, target: Path) -> int:
    """Copy the records of `source`, and nothing else, to `target`; return how many.

    Raises
    ------
    ValueError
        A file is not a record, or there is none; nothing has been copied.
    """
    paths = [path for data in sorted(source.glob("*")) for path in files(data)]
    if not paths:
        msg = f"`--store` must hold records, NAME/TASK/SYSTEM.SEED.json, got {source} with none; run the study first."
        raise ValueError(msg)
    texts = {path: path.read_text(encoding="utf-8") for path in paths if Record.read(path)}
    copies = {target / path.relative_to(source): text.encode() for path, text in texts.items()}
    for copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
    write_all(copies)
    return len(copies)


def files(data: Path) -> list[Path]:
    """Return the files of one data set that are to be records."""
    return sorted(path for path in data.glob("*/*.json") if not path.name.startswith("."))
