"""Run the cells of a grid that have no record yet, several at once; a record is written whole, or not at all.

    OUTPUT/NAME/TASK/SYSTEM.SEED.json       the records, NAME being that of the data set
    OUTPUT/NAME/trained/SYSTEM.SEED.npz     what trained systems gave: made again if absent

Each process computes with one thread and deterministic kernels, so that a seed gives the same numbers wherever it runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.study import data
from benchmarks.study.corruptions import corrupted
from benchmarks.study.data import Dataset, Split
from benchmarks.study.grid import Cell, Grid
from benchmarks.study.networks import reproducible
from benchmarks.study.outputs import PARTS, Outputs
from benchmarks.study.systems import KINDS
from benchmarks.study.tasks import TASKS, TIMED
from matryoshka._files import write_text

Record = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What a cell may ask for: the rows of a split, what a system gives for them, and the options of its task."""

    source: str
    grid: Grid
    output: Path
    _made: dict[tuple[str, int], Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, read once a process."""
        return data.load(self.source)

    @property
    def folder(self) -> Path:
        """Where the records lie."""
        return self.output / self.grid.name

    def split(self, seed: int) -> Split:
        """Return the rows to train on, to calibrate with and to be judged by."""
        return self._once(("split", seed), lambda: self.dataset.split(seed))

    def parts(self, seed: int) -> dict[str, np.ndarray]:
        """Return the features that systems embed, by part: "train", "calibration", "test", "test/KIND/SEVERITY", …."""
        split = self.split(seed)
        known = {part: getattr(split, part).features for part in PARTS}
        worse = corrupted if "robustness" in self.grid.tasks else lambda *_: {}
        return known | self._once(("corrupted", seed), lambda: worse(self.dataset, split, seed))

    def _once(self, key: tuple[str, int], make: Callable[[], Any]) -> Any:
        """Return what `make` gives, made once a process."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def outputs(self, system: str, seed: int) -> Outputs:
        """Return what `system` gives for the split of `seed`; what is trained is kept in a file."""
        path = self.folder / "trained" / f"{system.replace(' ', '_')}.{seed}.npz"
        if path.is_file():
            return Outputs.load(path)
        options = dict(self.grid.systems[system])
        made = KINDS[options.pop("kind")](self, system, seed, **options)
        made.save(path)
        return made

    def measure(self, cell: Cell) -> Record:
        """Return the record of a cell, and keep it."""
        start = time.perf_counter()
        options = {key: value for key, value in self.grid.tasks[cell.task].items() if key not in ("systems", "seeds")}
        with reproducible():
            found = TASKS[cell.task](self, cell.system, cell.seed, **options)
        record = {"task": cell.task, "system": cell.system, "seed": cell.seed, "found": found}
        record["seconds"] = time.perf_counter() - start
        path = self.folder / cell.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record) + "\n")
        return record


class CellError(RuntimeError):
    """A cell failed; those that were finished have their records."""


def run(bench: Bench, cells: Iterable[Cell], progress: tqdm) -> None:
    """Run the cells that have no record: one of each system first, so that none is trained twice; last, timed ones.

    Raises
    ------
    CellError
        A cell failed; the message names it.
    """
    missing = [cell for cell in cells if not (bench.folder / cell.path).is_file()]
    progress.reset(total=len(missing))
    timed = [cell for cell in missing if cell.task in TIMED]
    shared = [cell for cell in missing if cell.task not in TIMED]
    once = {(cell.system, cell.seed): cell for cell in reversed(shared)}
    waves: dict[int, list[Cell]] = {}
    for cell in shared:
        depth = _depth(bench.grid, cell.system) if once[cell.system, cell.seed] is cell else len(bench.grid.systems)
        waves.setdefault(depth, []).append(cell)
    for _, wave in sorted(waves.items()):
        _spread(bench, wave, progress)
    for cell in timed:
        _guarded(cell, lambda cell=cell: bench.measure(cell))
        progress.update()


def _depth(grid: Grid, system: str) -> int:
    """Return how many systems are trained before this one can start."""
    of = grid.systems.get(system, {}).get("of")
    return 0 if of is None else 1 + _depth(grid, of)


def _spread(bench: Bench, cells: list[Cell], progress: tqdm) -> None:
    """Run cells in as many processes as there are cores; at the first failure those that wait are dropped."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_prepare, initargs=(bench,)) as pool:
        waiting = {pool.submit(_measure, cell): cell for cell in cells}
        try:
            for done in as_completed(waiting):
                _guarded(waiting[done], done.result)
                progress.set_description(f"{waiting[done].task} {waiting[done].system}")
                progress.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _guarded(cell: Cell, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:
        msg = f"the cell {cell.path} failed: {type(error).__name__}: {error}; the finished ones are kept, run it again."
        raise CellError(msg) from error


_bench: Bench


def _prepare(bench: Bench) -> None:
    global _bench
    _bench = bench


def _measure(cell: Cell) -> None:
    _bench.measure(cell)
