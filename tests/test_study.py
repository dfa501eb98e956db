"""The grid of the study: what it reads and refuses, that finished cells stay and are not run again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks

import_benchmarks("torch", "sklearn", "tqdm")

from benchmarks.study import __main__ as command  # noqa: E402
from benchmarks.study import cells, grid  # noqa: E402
from benchmarks.study.outputs import Outputs  # noqa: E402

GRID = """
dims = [2, 4]
seeds = [3, 5]
[training]
steps = 4
epochs = 0
[systems.MRL]
kind = "nested"
[systems."MRL tied"]
kind = "nested"
tied = true
[tasks.accuracy]
systems = ["MRL", "MRL tied"]
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A small set, a small grid, and a folder to write to."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "set.npz", train_features=rng.normal(size=(60, 5)) + labels[:, None], train_labels=labels)
    (tmp_path / "small.toml").write_text(GRID)
    given = {"data": tmp_path / "set.npz", "grid": tmp_path / "small.toml", "output": tmp_path / "out"}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def found(folder: Path) -> dict[str, Any]:
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]
    return {f"{record['system']} {record['seed']}": record["found"] for record in records}


def test_every_cell_leaves_a_record_and_is_not_run_again(arguments: list[str], tmp_path: Path) -> None:
    command.main(arguments)
    first = found(tmp_path / "out" / "small")
    assert list(first) == ["MRL 3", "MRL 5", "MRL tied 3", "MRL tied 5"]
    assert first["MRL 3"] != first["MRL 5"] != first["MRL tied 5"]
    assert all(set(record) >= {"dims", "linear", "nearest_neighbor"} for record in first.values())
    kept = tmp_path / "out" / "small" / "accuracy" / "MRL.3.json"
    kept.write_text('{"system": "MRL", "seed": 3, "found": "mine"}')
    gone = tmp_path / "out" / "small" / "accuracy" / "MRL_tied.5.json"
    gone.unlink()
    command.main(arguments)
    again = found(tmp_path / "out" / "small")
    assert again == first | {"MRL 3": "mine"}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]


def test_a_cell_that_fails_is_named_and_the_finished_stay(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(bench: cells.Bench, system: str, seed: int) -> dict[str, int]:
        if (system, seed) == ("MRL tied", 3):
            msg = "no room"
            raise ValueError(msg)
        return {"seed": seed}

    monkeypatch.setitem(cells.TASKS, "accuracy", measure)
    monkeypatch.setattr(cells, "TIMED", {"accuracy"})  # in this process, which has the patched task
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "the cell accuracy/MRL_tied.3.json failed: ValueError: no room; the finished" in capsys.readouterr().err
    assert list(found(tmp_path / "out" / "small")) == ["MRL 3", "MRL 5"]


def test_an_interruption_keeps_what_is_finished(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(bench: cells.Bench, system: str, seed: int) -> dict[str, int]:
        if seed == 5:
            raise KeyboardInterrupt
        return {"seed": seed}

    monkeypatch.setitem(cells.TASKS, "accuracy", measure)
    monkeypatch.setattr(cells, "TIMED", {"accuracy"})
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 130
    assert "finished cells are kept" in capsys.readouterr().err
    assert list(found(tmp_path / "out" / "small")) == ["MRL 3"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[tasks.accuracy]", "[tasks.accuracies]", r"\[tasks\] must name a task that exists \(accuracy.*'accuracies'"),
        ('"MRL", "MRL tied"', '"MRL", "FF"', r"\[tasks.accuracy\] must name a system that .*, got 'FF'"),
        ('kind = "nested"\ntied', 'kind = "nest"\ntied', r"\[systems.MRL tied\] must name a kind that .*, got 'nest'"),
        ("tied = true", 'of = "SVD"', r"\[systems.MRL tied\] must name a of that exists \(MRL.*, got 'SVD'"),
        ('systems = ["MRL", "MRL tied"]', "", r"\[tasks.accuracy\] must name its systems, got none"),
        (
            "tied = true",
            'of = "MRL tied"',
            r"\[systems.MRL tied\] must start from a system that does not start from it",
        ),
        ("seeds = [3, 5]", "", "small.toml lacks seeds; it must have dims"),
        ("seeds = [3, 5]", "seeds = [3", "small.toml must be TOML, got something else"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert old in GRID
    (tmp_path / "small.toml").write_text(GRID.replace(old, new))
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, last), last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--grid", "nothing"], "`--grid` must be one of .*digits.* or a .toml file that exists, got 'nothing'"),
        (["--task", "speed"], "`--task` must be one of accuracy, got 'speed'"),
        (["--data", "nowhere"], "`--data` must be digits"),
    ],
)
def test_bad_arguments_end_with_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([*arguments, *changed])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("path", sorted(grid.FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_of_the_project_are_read(path: Path) -> None:
    read = grid.read(path.stem)
    assert read.cells()
    assert len({cell.path for cell in read.cells()}) == len(read.cells())


def test_outputs_are_what_was_saved(tmp_path: Path, rng: np.random.Generator) -> None:
    rows, logits = rng.normal(size=(7, 4)), rng.normal(size=(2, 7, 3))
    nested = Outputs((2, 4), nested=True, embeddings={"test/blur/3": {4: rows}}, logits={"test/blur/3": logits})
    nested.save(tmp_path / "a" / "b.npz")
    loaded = Outputs.load(tmp_path / "a" / "b.npz")
    assert (loaded.dims, loaded.nested) == ((2, 4), True)
    np.testing.assert_array_equal(loaded.embed("test/blur/3", 3), rows[:, :3])
    np.testing.assert_array_equal(loaded.logits["test/blur/3"], logits)
    apart = Outputs((2, 4), nested=False, embeddings={"test": {2: -rows[:, :2], 4: rows}}, logits={})
    np.testing.assert_array_equal(apart.embed("test", 2), -rows[:, :2])
