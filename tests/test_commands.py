"""matryoshka._commands: what its parts do by themselves, beside the tests of each command."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryoshka._commands._inputs import load_array
from matryoshka._commands._options import Progress, new_file, progress
from matryoshka.cli import main


class Bar:
    """Writes down what a bar of tqdm is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, *arguments))


def test_lines_are_printed_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    shown = Progress(bar)
    shown.now("measuring")
    shown.step()
    shown.show("a line")
    assert bar.told == [("set_description_str", "measuring"), ("update",), ("clear",), ("refresh",)]
    assert capsys.readouterr().out == "a line\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_neither_bar_nor_lines_are_needed(capsys: pytest.CaptureFixture[str], *, quiet: bool) -> None:
    bar = Bar()
    for shown in (Progress(quiet=quiet), Progress(bar, quiet=quiet)):
        shown.now("measuring")
        shown.step()
        shown.show("a line")
        assert capsys.readouterr().out == ("" if quiet else "a line\n")
    assert bar.told[:2] == [("set_description_str", "measuring"), ("update",)]
    with progress(3, "step", quiet=quiet) as shown:  # standard error is no terminal here
        shown.show("a line")
    assert capsys.readouterr() == ("" if quiet else "a line\n", "")


@pytest.mark.parametrize(("n", "shown"), [(2, "a0, a1"), (8, "a0, a1, a2, a3, a4, a5, a6, a7"),
                                          (9, "a0, a1, a2, a3, a4, a5, a6, a7, ...")])  # fmt: skip
def test_names_of_an_archive_are_told_a_few_at_a_time(tmp_path: Path, n: int, shown: str) -> None:
    np.savez(tmp_path / "many.npz", **{f"a{i}": np.arange(3.0) for i in range(n)})
    with pytest.raises(ValueError, match=rf"its arrays \({shown}\), got none; write .*many.npz:a0, for instance"):
        load_array(f"{tmp_path / 'many.npz'}", "EMB.npy")


class Closed(io.StringIO):
    """A pipe whose reader leaves after the first time that it was flushed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._flushed = descriptor, 0

    def flush(self) -> None:
        self._flushed += 1
        if self._flushed > 1:
            raise BrokenPipeError

    def fileno(self) -> int:
        return self._descriptor


def test_a_reader_that_leaves_before_the_last_line_is_noticed(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = rng.integers(3, size=200)
    np.save(tmp_path / "p.npy", np.tile(np.eye(3)[labels], (2, 1, 1)))
    np.save(tmp_path / "y.npy", labels)
    with (tmp_path / "pipe").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", Closed(stream.fileno()))
        files = [str(tmp_path / name) for name in ("p.npy", "y.npy")]
        assert main(["calibrate", *files, "--dims", "4,8", "-o", str(tmp_path / "cascade.json")]) == 1


def test_records_name_their_kind_and_version(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = rng.integers(3, size=200)
    files = [str(tmp_path / name) for name in ("p.npy", "y.npy")]
    np.save(files[0], np.tile(np.eye(3)[labels], (2, 1, 1)))
    np.save(files[1], labels)
    place = str(tmp_path / "cascade.json")
    assert main(["calibrate", *files, "--dims", "4,8", "-o", place, "--json"]) == 0
    assert main(["apply", place, *files, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["kind"], record["version"]) for record in records] == [("calibration", 1), ("application", 1)]


@pytest.mark.parametrize(("place", "message"), [("", "got a folder"), ("none/file", "must be in a folder that exists")])
def test_a_file_is_new_in_a_folder_that_exists(tmp_path: Path, place: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        new_file(str(tmp_path / place))
    assert new_file(str(tmp_path / "file")) == tmp_path / "file"
    assert list(tmp_path.iterdir()) == []
