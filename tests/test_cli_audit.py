"""matryoshka audit: what it prints and writes, and one line about every bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import load

from matryoshka import _files, audit
from matryoshka.cli import main


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    rows = (rng.normal(size=(120, 32)) * 0.9 ** np.arange(32)).astype(np.float32)
    np.save("rows.npy", rows)
    return rows


def names(folder: str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_prints_the_audit(rows: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "rows.npy"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{audit(rows)}\n"
    assert printed.err == ""
    assert names() == ["rows.npy"]


def test_options_reach_the_audit(rows: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.arange(120, dtype=np.uint8) % 3
    np.save("labels.npy", labels)
    assert main(["audit", "rows.npy", "--labels", "labels.npy", "--dims", "4,12", "--k", "3", "--seed", "8"]) == 0
    assert capsys.readouterr().out == f"{audit(rows, labels=labels, dims=(4, 12), k=3, seed=8)}\n"


@pytest.mark.parametrize("exists", [False, True])
def test_writes_table_figure_and_json(rows: np.ndarray, exists: bool, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_other_numbers_are_read(rows: np.ndarray, dtype: type, capsys: pytest.CaptureFixture[str]) -> None:
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
    np.savez("archive.npz", np.eye(50))
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
        ("archive.npz", "must hold one array, got an .npz archive"),
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
        ("rows.npy --k 0", "`k` must be an integer >= 1"),
    ],
)
@pytest.mark.usefixtures("rows")
def test_bad_input_is_one_line_and_status_2(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_bad_files()
    before = names()
    assert main(["audit", *arguments.split(), "-o", "out"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("matryoshka: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert names() == before


@pytest.mark.parametrize("output", ["rows.npy", "absent/out", "rows.npy/out"])
@pytest.mark.usefixtures("rows")
def test_a_folder_that_cannot_be_is_refused_before_any_work(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["audit", "rows.npy", "-o", output])
    assert f"{output!r} must be a folder, or a new one in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["out", "."])
@pytest.mark.usefixtures("rows")
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")  # the tests may run as root, who may write anywhere else

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(SystemExit, match="2"):
        main(["audit", "rows.npy", "-o", output])
    printed = capsys.readouterr().err
    assert "argument -o/--output: " in printed
    assert f"{output!r} must be a folder that can be written to, the system says: Read-only file system" in printed


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing_half_written(
    rows: np.ndarray, exists: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load("matplotlib")
    if exists:
        Path("out").mkdir()
        Path("out", "audit.json").write_text("old", encoding="utf-8")
    write = _files._write_beside

    def fail(path: Path, data: bytes) -> Path:
        if path.suffix == ".png":
            raise OSError(28, "No space left on device", "/temporary/name")
        return write(path, data)

    monkeypatch.setattr(_files, "_write_beside", fail)
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
def test_without_matplotlib_only_the_folder_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["audit", "rows.npy", "-o", "out"]) == 2
    assert 'pip install "matryoshka-mrl[cli]"' in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["audit", "rows.npy"]) == 0
