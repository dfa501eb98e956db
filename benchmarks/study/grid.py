"""Which systems are measured by which tasks, with which seeds: a TOML file for each data set (grids/*.toml).

dims = [8, 16, 32, 64]                  # the ladder
seeds = [0, 1, 2]
[training]                              # how networks are trained (networks.Training)
[systems.MRL]                           # a name of your choice
kind = "nested"                         # one of systems.KINDS, then its options
[tasks.accuracy]                        # one of tasks.TASKS
systems = ["MRL", "FF"]                 # then its options; a task that trains for itself names its own systems
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Cell:
    """One measurement: a task on a system with a seed; its record is one file."""

    task: str
    system: str
    seed: int

    @property
    def path(self) -> Path:
        """Where its record lies, relative to the folder of the data set."""
        return Path(self.task) / f"{self.system.replace(' ', '_')}.{self.seed}.json"


@dataclass(frozen=True)
class Grid:
    """What is to be run on one data set."""

    name: str
    dims: tuple[int, ...]
    seeds: tuple[int, ...]
    training: Mapping[str, Any]
    systems: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[str, Mapping[str, Any]]

    def cells(self, tasks: Iterable[str] | None = None) -> list[Cell]:
        """Return the cells in order, of all tasks or of those named.

        Raises
        ------
        ValueError
            A name is not a task of the grid.
        """
        chosen = list(self.tasks if tasks is None else tasks)
        for task in chosen:
            if task not in self.tasks:
                msg = f"`--task` must be one of {', '.join(self.tasks)}, got {task!r}; the grid has no other."
                raise ValueError(msg)
        return [
            Cell(task, system, seed)
            for task in chosen
            for system in self.tasks[task]["systems"]
            for seed in self.tasks[task].get("seeds", self.seeds)
        ]


def read(name: str) -> Grid:
    """Read the grid of a data set from grids/NAME.toml, or a file of one's own that ends in .toml.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not TOML, lacks an entry, or names a kind, system or task that does not exist.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        msg = f"`--grid` must be one of {known} or a .toml file that exists, got {name!r}; check the path."
        raise FileNotFoundError(msg)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        msg = f"{path} must be TOML, got something else ({error}); mend the line."
        raise ValueError(msg) from error
    missing = [entry for entry in ("dims", "seeds", "training", "systems", "tasks") if entry not in table]
    if missing:
        msg = f"{path} lacks {', '.join(missing)}; it must have dims, seeds, training, systems and tasks."
        raise ValueError(msg)
    _check(path, table)
    return Grid(
        path.stem,
        tuple(table["dims"]),
        tuple(table["seeds"]),
        table["training"],
        table["systems"],
        table["tasks"],
    )


def _check(path: Path, table: Mapping[str, Any]) -> None:
    from benchmarks.study.systems import KINDS
    from benchmarks.study.tasks import TASKS, TRAIN_THEMSELVES

    for name, options in table["systems"].items():
        _one_of(path, f"systems.{name}", "kind", options.get("kind"), KINDS)
        if "of" in options:
            _one_of(path, f"systems.{name}", "of", options["of"], table["systems"])
            _check_start(path, name, table["systems"])
    for name, options in table["tasks"].items():
        _one_of(path, "tasks", "task", name, TASKS)
        if not options.get("systems"):
            msg = f"{path} [tasks.{name}] must name its systems, got none; add `systems = [...]`."
            raise ValueError(msg)
        for system in options["systems"]:
            _one_of(path, f"tasks.{name}", "system", system, TRAIN_THEMSELVES.get(name, table["systems"]))


def _check_start(path: Path, name: str, systems: Mapping[str, Mapping[str, Any]]) -> None:
    """Follow `of` from one system to the next: it must come to one that starts from none."""
    passed = [name]
    while (start := systems.get(passed[-1], {}).get("of")) is not None:
        if start in passed:
            msg = f"{path} [systems.{name}] must start from a system that does not start from it, got {passed}; cut it."
            raise ValueError(msg)
        passed.append(start)


def _one_of(path: Path, where: str, what: str, name: Any, known: Iterable[str]) -> None:
    if name not in (names := list(known)):
        msg = f"{path} [{where}] must name a {what} that exists ({', '.join(names)}), got {name!r}; correct the name."
        raise ValueError(msg)
