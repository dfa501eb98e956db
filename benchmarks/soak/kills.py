"""Kill every save at every step: what stands there is old or new, and the next save leaves nothing behind."""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import matryoshka.faiss
from benchmarks.soak.report import PLAN, Report, certified, results
from matryoshka import Cascade, Corpus, Funnel, Nesting, Rotation, _files, _folders
from matryoshka.cascade import CascadeMonitor
from matryoshka.faiss import FaissCorpus

KILLS = 500
"""So many at least: there are as many as there are steps."""


class Steps:
    """Calls of this process to the system that change something; at one of them it is killed."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self, before: Callable[[], object] = lambda: None) -> None:
        self.left -= 1
        if self.left < 0:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.step()
            return function(*arguments, **options)

        return call

    def watch(self) -> None:
        """Replace what a save calls by what counts."""
        for name in ("open", "close", "replace", "rename", "unlink", "rmdir", "fsync", "mkdir", "listdir"):
            setattr(os, name, self.watched(getattr(os, name)))
        fcntl.flock = self.watched(fcntl.flock)
        _folders._exchange = self.watched(_folders._exchange)
        builtins.open = io.open = self.opening(io.open)
        for name in ("write_index", "write_index_binary"):
            setattr(matryoshka.faiss.faiss, name, self.writing(getattr(matryoshka.faiss.faiss, name)))

    def opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            self.step()
            stream = function(file, mode, *arguments, **options)
            return stream if mode in ("r", "rb") else Stream(stream, self)

        return call

    def writing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(index: Any, file: str) -> None:
            self.step()
            function(index, file)
            self.step(lambda: os.truncate(file, Path(file).stat().st_size // 2))

        return call


class Stream:
    """A stream that is written to in halves, with a step before each."""

    def __init__(self, stream: Any, steps: Steps) -> None:
        self.stream, self.steps = stream, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.steps.step()
        self.stream.close()

    def write(self, data: Any) -> int:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            self.steps.step()
            self.stream.write(part)
            self.stream.flush()
        return len(data)


@dataclass(frozen=True)
class Saving:
    """How two contents of one kind are saved to a place and what is read from there; reading nothing gives None."""

    save: Callable[[Path, Any], object]
    read: Callable[[Path], Any]
    old: Any
    new: Any


def read_files(place: Path) -> list[bytes] | None:
    files = sorted(place.rglob("*.*")) if place.is_dir() else [place]
    return [file.read_bytes() for file in files if file.is_file() and not file.name.startswith(".")] or None


def read_groups(place: Path) -> list[Cascade] | None:
    return [Cascade.load(file) for file in sorted(place.glob("*.json"))] or None


def monitors(cascade: Cascade) -> list[CascadeMonitor]:
    """Return the same monitor before and after many rows."""
    before, after = cascade.monitor(), cascade.monitor()
    after.update(np.arange(3000) % 40 == 0)
    return [before, after]


def folders() -> dict[str, Saving]:
    """Return what is saved as a folder: old and new are of different length and hold different files."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 32)).astype(np.float32) * scale for n, scale in ((60, 1.0), (90, np.float32(1e-25)))]
    corpora = [Corpus(part, search_dims=(8,)) for part in rows]
    bits = [Corpus(rows[0], search_dims=(8,), code="bits"), Corpus(rows[1], search_dims=(8, 16), code="bits")]
    coded = [FaissCorpus(corpus, text, dim=8) for corpus, text in zip(corpora, ("BFlat", "Flat"), strict=True)]
    kinds: dict[str, tuple[type[Any], list[Any]]] = {
        "Corpus.save": (Corpus, corpora),
        "Corpus.save with bits": (Corpus, bits),
        "FaissCorpus.save": (FaissCorpus, [FaissCorpus(corpus, "Flat", dim=8) for corpus in corpora]),
        "FaissCorpus.save with bits": (FaissCorpus, coded),
        "Rotation.save": (Rotation, [Rotation.fit(part) for part in rows]),
    }
    return {
        name: Saving(save, lambda p, kind=kind: results(kind.load(p)), *pair) for name, (kind, pair) in kinds.items()
    }


def save(place: Path, value: Any) -> None:
    value.save(place)


def savings() -> dict[str, Saving]:
    """Return all that the package writes."""
    groups = [certified(seed) for seed in (1, 2)]
    values = {
        "Nesting": [Nesting((4, 8)), Nesting((2, 4, 8))],
        "Funnel": [PLAN, Funnel((32,), ())],
        "Cascade": [Cascade((4, 8), (0.5,)), groups[0][0]],
        "CascadeMonitor": monitors(groups[0][0]),
    }
    texts = [{f"audit.{end}": text * 100 for end in ("txt", "json", "png")} for text in (b"old", b"new")]
    files = [{f"{i}.json": f"{one.to_json()}\n".encode() for i, one in enumerate(of)} for of in groups]
    found = {
        **folders(),
        "report of a command": Saving(_files.write_together, read_files, *texts),
        "files of groups": Saving(_files.write_together, read_groups, *files),
        "files of a command": Saving(
            lambda p, data: _files.write_all({p.with_name(name): text for name, text in data.items()}),
            lambda p: read_files(p.parent),
            *texts,
        ),
    }
    for name, (old, new) in values.items():
        found[f"{name}.save"] = Saving(save, type(old).load, old, new)
    return found


def run_killed(save: Callable[[], object], at: int) -> bool:
    """Save in a child that is killed at a step, and say whether it came to that."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        Steps(at).watch()
        save()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        msg = f"a save ended with status {status} at step {at}"
        raise RuntimeError(msg)
    return False


def read(saving: Saving, place: Path) -> Any:
    """Read what was saved; None if nothing was."""
    try:
        return saving.read(place)
    except FileNotFoundError:
        return None


def kills_of(name: str, saving: Saving, folder: Path, *, over: bool, linked: bool) -> Report:
    """Kill a save at its first step, its second, … until it comes through; after each look, save and look again."""
    report = Report(f"{name}{', over an old one' if over else ''}{', by a link' if linked else ''}")
    (folder / "disk").mkdir()
    place = folder / "disk" / "saved"
    if linked:
        (folder / "link").symlink_to(place)
        place = folder / "link"
    saving.save(place, saving.new)
    new = saving.read(place)
    saving.save(place, saving.old)
    old, clean = saving.read(place), tree(folder)
    one_by_one = isinstance(old, list) and len(old) == 3  # files that each are whole, old or new
    allowed = [old if over else None, new]
    for at in range(400):
        if not over:
            clear(folder / "disk")
        if not run_killed(lambda: saving.save(place, saving.new), at):
            break
        found = read(saving, place)
        whole = found in allowed or (one_by_one and set(found or ()) <= {*(old if over else ()), *new})
        if not whole:
            report.violations.append(f"{report.name}, step {at}: neither old nor new")
        report.count("other" if not whole else "nothing" if found is None else "old" if found == old else "new")
        saving.save(place, saving.old)
        if saving.read(place) != old:
            report.violations.append(f"{report.name}, step {at}: the next save does not hold")
        if left := tree(folder) - clean:
            report.violations.append(f"{report.name}, step {at}: the next save leaves {sorted(left)}")
    else:
        report.violations.append(f"{report.name}: still not through after 400 steps")
    return report


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def kills() -> Iterator[Report]:
    """Kill every save at every step, with folders that are exchanged and with what stands in for that."""
    exchange = _folders._exchange
    for name, saving in savings().items():
        for renames in (False, True) if name in folders() else (False,):
            _folders._exchange = (lambda *_: False) if renames else exchange
            for over, linked in ((True, False), (False, False), (True, True)):
                if linked and name.startswith(("report", "files")):
                    continue
                with tempfile.TemporaryDirectory() as place:
                    report = kills_of(name, saving, Path(place), over=over, linked=linked)
                report.name += ", by renames" if renames else ""
                yield report
