"""matryoshka audit: what it prints and writes, and one line about every bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import Capture, assert_refused, assert_usage_refused, names, strict_json
from conftest import load

from matryoshka import Rotation, audit
from matryoshka.cli import main


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    rows = (rng.normal(size=(120, 32)) * 0.9 ** np.arange(32)).astype(np.float32)
    np.save("rows.npy", rows)
    return rows


def test_prints_the_audit(rows: np.ndarray, capsys: Capture) -> None:
    assert main(["audit", "rows.npy"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{audit(rows)}\n"
    assert printed.err == ""
    assert names() == ["rows.npy"]


def test_options_reach_the_audit(rows: np.ndarray, capsys: Capture) -> None:
    labels = np.arange(120, dtype=np.uint8) % 3
    np.save("labels.npy", labels)
    assert main(["audit", "rows.npy", "--labels", "labels.npy", "--dims", "4,12", "--k", "3", "--seed", "8"]) == 0
    assert capsys.readouterr().out == f"{audit(rows, labels=labels, dims=(4, 12), k=3, seed=8)}\n"


@pytest.mark.parametrize("exists", [False, True])
def test_writes_table_figure_and_json(rows: np.ndarray, exists: bool, capsys: Capture) -> None:
    load("matplotlib")
    if exists:
        Path("out").mkdir()
        Path("out", "mine.txt").write_text("stays", encoding="utf-8")
    assert main(["audit", "rows.npy", "-o", "out"]) == 0
    report = audit(rows)
    assert Path("out", "audit.txt").read_text(encoding="utf-8") == f"{report}\n"
    assert json.loads(Path("out", "audit.json").read_text(encoding="utf-8")) == json.loads(report.to_json())
    assert Path("out", "audit.png").read_bytes().startswith(b"\x89PNG")
    assert len(names("out")) == 3 + exists
    assert "wrote out" in capsys.readouterr().out


def test_json_is_all_that_is_printed(rows: np.ndarray, capsys: Capture) -> None:
    assert main(["audit", "rows.npy", "--json", "--rotation", "turn"]) == 0
    printed = capsys.readouterr()
    assert strict_json(printed.out) == json.loads(audit(rows).to_json())
    assert printed.err.startswith("wrote turn: ")


@pytest.mark.parametrize("exists", [False, True])
def test_fits_and_writes_a_rotation(rows: np.ndarray, exists: bool, capsys: Capture) -> None:
    if exists:
        Rotation.fit(rows[:40]).save("turn")
    assert main(["audit", "rows.npy", "--rotation", "turn"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{audit(rows)}\n")
    assert printed.endswith(
        "wrote turn: Rotation.load('turn').apply(rows) turns rows and queries, before they are cut\n"
    )
    assert Rotation.load("turn") == Rotation.fit(rows)
    assert names() == ["rows.npy", "turn"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("full", "got 'full', which holds other things and no rotation.json; choose another path"),
        ("mixed", "got 'mixed', which also holds mine.txt; move that elsewhere or choose another path"),
        ("rows.npy", "'rows.npy' must be a folder, or a new one in a folder that exists"),
        ("absent/turn", "'absent/turn' must be a folder, or a new one in a folder that exists"),
    ],
)
def test_a_folder_of_other_things_is_refused_before_any_work(
    rows: np.ndarray, folder: str, message: str, capsys: Capture
) -> None:
    Path("full").mkdir()
    Rotation.fit(rows).save("mixed")
    for place in ("full", "mixed"):
        Path(place, "mine.txt").write_text("stays", encoding="utf-8")
    assert_usage_refused(f"audit absent.npy --rotation {folder}", message, capsys)
    assert (names("full"), "mine.txt" in names("mixed")) == (["mine.txt"], True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rows.npy -o out --rotation out", "`--rotation` must be another folder than `-o`, got 'out' for both"),
        (
            "few.npy --rotation turn",
            "--rotation must get rows that it can be fitted on, or be left out: `embeddings` must have at least as",
        ),
        (
            "whole.npy --rotation turn",
            "or be left out: `embeddings` must hold floating-point numbers, got dtype int8",
        ),
    ],
)
def test_no_rotation_is_written_of_rows_that_have_none(
    rows: np.ndarray, arguments: str, message: str, capsys: Capture
) -> None:
    load("matplotlib")
    np.save("few.npy", rows[:31])
    np.save("whole.npy", np.round(20 * rows).astype(np.int8))
    before = names()
    assert main(["audit", *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert names() == before


def test_runs_as_a_module(rows: np.ndarray) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "matryoshka", "audit", "rows.npy"],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.decode("ascii").startswith("Yes: truncates down to")
    assert done.stderr == b""


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_numbers_are_read(rows: np.ndarray, dtype: type, capsys: Capture) -> None:
    np.save("other.npy", np.round(rows * 20).astype(dtype))
    assert main(["audit", "other.npy"]) == 0
    assert capsys.readouterr().out == f"{audit(np.round(rows * 20).astype(np.float64))}\n"


def save_bad_files() -> None:
    np.save("objects.npy", np.array([[{}, {}]]), allow_pickle=True)
    np.save("flat.npy", np.ones(5))
    np.save("empty.npy", np.ones((0, 5)))
    np.save("bits.npy", np.ones((50, 4), np.uint8))
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("nan.npy", np.where(np.eye(50) > 0, np.nan, 1.0))
    np.save("few.npy", np.eye(12))
    np.save("short.npy", np.arange(119))
    np.save("fractions.npy", np.ones(120))
    np.savez("archive.npz", a=np.eye(50), b=np.eye(50))
    Path("text.npy").write_text("not an array", encoding="utf-8")
    Path("cut.npy").write_bytes(Path("rows.npy").read_bytes()[:500])
    Path("head.npy").write_bytes(Path("rows.npy").read_bytes()[:40])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("absent.npy", "`EMB.npy` must be a file to read, got 'absent.npy': No such file or directory; check the path"),
        (
            "objects.npy",
            "`objects.npy` must be a .npy file of numbers, got Python objects (numbers among them can be cast",
        ),
        ("text.npy", "`text.npy` must be a .npy file of numbers, got a file of another format; save a numeric array"),
        ("cut.npy", "`cut.npy` must be a .npy file of numbers, got a damaged or shortened one; save a numeric array"),
        ("head.npy", "`head.npy` must be a .npy file of numbers, got a damaged one; save a numeric array"),
        (".", "`EMB.npy` must be a file to read, got '.': Is a directory"),
        ("archive.npz", "`archive.npz` must be followed by the name of one of its arrays (a, b), got none; write arc"),
        ("flat.npy", "`embeddings` must have shape (n, dim), got (5,)"),
        ("empty.npy", "`embeddings` must have at least one row, got shape (0, 5)"),
        ("bits.npy", "`embeddings` must hold floating-point numbers or signed integers, got dtype uint8"),
        ("words.npy", "`embeddings` must hold floating-point numbers or signed integers"),
        ("nan.npy", "`embeddings` must be finite, got NaN or infinity in 50 of 50 rows"),
        ("few.npy", "`embeddings` must have more than 2 k = 20 rows of different directions, got 12"),
        ("rows.npy --labels short.npy", "`labels` must have one class id per row, shape (120,), got (119,)"),
        ("rows.npy --labels fractions.npy", "`labels` must hold integer class ids, got dtype float64"),
        ("rows.npy --labels absent.npy", "`--labels` must be a file to read, got 'absent.npy'"),
        ("rows.npy --dims 64", "`dims` must lie within [1, 32]"),
        ("rows.npy --k 0", "`--k` must be an integer in [1, 2047], got 0"),
        ("rows.npy --k 2048", "`--k` must be an integer in [1, 2047], got 2048"),
    ],
)
@pytest.mark.usefixtures("rows")
def test_bad_input_is_one_line_and_status_2(arguments: str, message: str, capsys: Capture) -> None:
    load("matplotlib")
    save_bad_files()
    assert_refused(f"audit {arguments} -o out", message, capsys)


@pytest.mark.parametrize("output", ["rows.npy", "absent/out", "rows.npy/out"])
@pytest.mark.usefixtures("rows")
def test_a_folder_that_cannot_be_is_refused_before_any_work(output: str, capsys: Capture) -> None:
    message = f"{output!r} must be a folder, or a new one in a folder that exists"
    assert_usage_refused(f"audit rows.npy -o {output}", message, capsys)


@pytest.mark.parametrize("output", ["out", "."])
@pytest.mark.usefixtures("rows", "read_only")
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(output: str, capsys: Capture) -> None:
    message = f"{output!r} must be a folder that can be written to, the system says: Read-only file system"
    assert_usage_refused(f"audit rows.npy -o {output}", f"argument -o/--output: {message}", capsys)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_nothing_half_written(rows: np.ndarray, exists: bool, capsys: Capture) -> None:
    load("matplotlib")
    if exists:
        Path("out").mkdir()
        Path("out", "audit.json").write_text("old", encoding="utf-8")
    assert main(["audit", "rows.npy", "-o", "out"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"matryoshka: error: '{Path('out', 'audit.png')}': No space left on device\n"
    assert printed.out == f"{audit(rows)}\n"  # the work is not lost
    if exists:
        assert names("out") == ["audit.json"]
        assert Path("out", "audit.json").read_text(encoding="utf-8") == "old"
    else:
        assert not Path("out").exists()


@pytest.mark.usefixtures("rows")
def test_a_full_disk_is_named_where_it_is(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail(self: Rotation, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Rotation, "save", fail)
    assert main(["audit", "rows.npy", "--rotation", "turn"]) == 2
    assert capsys.readouterr().err == "matryoshka: error: 'turn': No space left on device\n"


@pytest.mark.usefixtures("rows")
def test_without_matplotlib_only_the_folder_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["audit", "rows.npy", "-o", "out"]) == 2
    assert 'pip install "matryoshka-mrl[cli]"' in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["audit", "rows.npy"]) == 0
