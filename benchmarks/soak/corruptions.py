"""Damage saved files: what is loaded is refused, or answers as before; a value without a checksum may be another."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.soak.report import PLAN, Report, Saved, certified, results
from matryoshka import Corpus, Funnel, Nesting, Rotation
from matryoshka._values import JsonValue
from matryoshka.faiss import FaissCorpus

FOLDERS, VALUES = 2_000, 1_000
CORRUPTIONS = FOLDERS + VALUES
ACCIDENTS = ("bit", "byte", "bytes", "zeros", "cut", "drop", "insert", "swap", "exchange")

OUTCOMES = {0: "identical", 10: "refused", 20: "other results", 30: "another exception"}


def kind_of(folder: Path) -> type[Corpus] | type[FaissCorpus] | type[Rotation]:
    if (folder / "faiss.json").exists() or (folder / "corpus").exists():
        return FaissCorpus
    return Rotation if (folder / "matrix.npy").exists() else Corpus


def load(folder: Path, *, mmap: bool = False) -> Saved:
    kind = kind_of(folder)
    return kind.load(folder) if kind is Rotation else kind.load(folder, mmap=mmap, verify=mmap)


def saved_folders(place: Path) -> list[Path]:
    """Save corpora of all kinds and rotations, some of which could be mixed up."""
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[np.ndarray], Saved]] = {
        "cosine": lambda rows: Corpus(rows, search_dims=(8,)),
        "other": lambda rows: Corpus(rows, search_dims=(8,)),
        "ip": lambda rows: Corpus(rows, metric="ip", search_dims=(8, 16)),
        "l2": lambda rows: Corpus(rows, metric="l2", search_dims=(8,)),
        "scaled": lambda rows: Corpus(rows * np.float32(1e-25), search_dims=(8,)),
        "half": lambda rows: Corpus(rows.astype(np.float16), search_dims=(8,)),
        "bits": lambda rows: Corpus(rows, search_dims=(8, 24), code="bits"),
        "more bits": lambda rows: Corpus(rows, search_dims=(8, 24), code="bits"),
        "rotation": Rotation.fit,
        "other rotation": Rotation.fit,
        "binary": lambda rows: FaissCorpus(Corpus(rows), "BFlat", dim=8),
        "flat": lambda rows: FaissCorpus(Corpus(rows), "Flat", dim=8),
        "hnsw": lambda rows: FaissCorpus(Corpus(rows, metric="l2"), "HNSW8", dim=8),
        "ivf": lambda rows: FaissCorpus(Corpus(rows), "IVF4,Flat", dim=8),
    }
    for name, make in kinds.items():  # each of other rows: with the same ones, a record of another metric would fit
        make(rng.normal(size=(150, 32)).astype(np.float32)).save(place / name)
    return [place / name for name in kinds]


def damage(data: bytes, other: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return the bytes of a file after an accident; `other` are those of another file."""
    changed, n = bytearray(data), len(data)
    at, length = int(rng.integers(n)), int(rng.integers(1, 65))
    if kind == "bit":
        changed[at] ^= 1 << int(rng.integers(8))
    elif kind == "byte":
        changed[at] = int(rng.integers(256))
    elif kind == "bytes":
        for place in rng.integers(n, size=int(rng.integers(2, 17))):
            changed[place] = int(rng.integers(256))
    elif kind == "zeros":
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == "cut":
        del changed[at:]
    elif kind == "drop":
        del changed[at : at + length]
    elif kind == "insert":
        changed[at:at] = rng.bytes(length)
    elif kind == "swap":
        length = min(length, n // 2)
        left, right = int(rng.integers(n - 2 * length + 1)), n - length
        changed[left : left + length], changed[right:] = changed[right:], changed[left : left + length]
    else:
        return other
    return bytes(changed)


def look(read: Callable[[], object], expected: object) -> tuple[str, str]:
    """Load and use what was saved in a child; say how that ended, and in which words."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        code, said = 30, ""
        try:
            code = 0 if read() == expected else 20
        except (OSError, ValueError) as error:
            code, said = 10, str(error)
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode()[:4000])
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return OUTCOMES.get(status, f"ended by signal {-status}"), said


def corruptions() -> Iterator[Report]:
    """Damage every file of saved folders, and saved values, in every way."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "whole").mkdir()
        yield from damaged_folders(Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        yield damaged_values(Path(scratch))


def damaged_folders(place: Path) -> Iterator[Report]:
    """Load what was damaged into memory, or mapped and verified."""
    rng, folders = np.random.default_rng(1), saved_folders(place / "whole")
    expected = {folder: results(load(folder)) for folder in folders}
    files = sorted(path for folder in folders for path in folder.rglob("*.*"))
    reports = {kind: Report(kind) for kind in ACCIDENTS}
    for number in range(FOLDERS):
        file, kind = files[number % len(files)], ACCIDENTS[number // len(files) % len(ACCIDENTS)]
        folder = next(folder for folder in folders if file.is_relative_to(folder))
        twins = [other for other in files if other.name == file.name and other != file] or files
        data = damage(file.read_bytes(), twins[int(rng.integers(len(twins)))].read_bytes(), kind, rng)
        shutil.copytree(folder, place / "damaged")
        (place / "damaged" / file.relative_to(folder)).write_bytes(data)
        mmap = bool(rng.integers(2))
        outcome, said = look(functools.partial(loaded, place / "damaged", mmap=mmap), expected[folder])
        if outcome == "refused" and str(place / "damaged") not in said:
            outcome = "refused without the name of the file"
        reports[kind].count(outcome)
        if outcome not in ("identical", "refused"):
            where = f"{file.relative_to(place / 'whole')}, {kind}, number {number}, mmap={mmap}"
            reports[kind].violations.append(f"{where}: {outcome} {said[:200]}")
        shutil.rmtree(place / "damaged")
    yield from reports.values()


def loaded(folder: Path, *, mmap: bool) -> list[bytes]:
    return results(load(folder, mmap=mmap))


def damaged_values(place: Path) -> Report:
    """Load what is saved as JSON without a checksum: damaged, it is refused, or another good value."""
    rng, cascades = np.random.default_rng(2), certified(1)
    monitor = cascades[0].monitor()
    monitor.update(np.arange(3000) % 40 == 0)
    values: list[JsonValue] = [Nesting((4, 8, 24)), PLAN, Funnel((32,), ()), *cascades, monitor]
    for i, value in enumerate(values):
        value.save(place / f"{i}.json")
    texts = [(place / f"{i}.json").read_bytes() for i in range(len(values))]
    report = Report("values without a checksum")
    for number in range(VALUES):
        value, kind = number % len(values), ACCIDENTS[number // len(values) % len(ACCIDENTS)]
        other = texts[int(rng.integers(len(texts)))]
        (place / "damaged.json").write_bytes(damage(texts[value], other, kind, rng))
        outcome, said = look(functools.partial(type(values[value]).load, place / "damaged.json"), values[value])
        if outcome == "refused" and "damaged.json" not in said:
            outcome = "refused without the name of the file"
        report.count(outcome)
        if outcome not in ("identical", "refused", "other results"):
            report.violations.append(f"{type(values[value]).__name__}, {kind}, number {number}: {outcome} {said[:200]}")
    return report
