"""What the commands read beside .npy files: archives, tables, data sets on disk; and what they refuse there."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from commands import Capture, assert_refused
from conftest import load

from matryoshka._commands._inputs import load_array
from matryoshka.cli import main


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(30, 5)).astype(np.float32)


def assert_same(place: str, expected: np.ndarray) -> None:
    found = load_array(place, "EMB.npy")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_gives_the_array_that_is_named(rows: np.ndarray, save: Any) -> None:
    save("two.npz", a=rows, b=rows[::-1])
    save("one.npz", rows)
    assert_same("two.npz:b", rows[::-1])
    assert_same("one.npz", rows)
    Path("one.npz").rename("two.npz:b")  # a file of that very name comes first
    assert_same("two.npz:b", rows)


def parquet() -> Any:
    load("pyarrow")
    return load("pyarrow.parquet")


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed"])
def test_a_table_gives_the_column_that_is_named(rows: np.ndarray, kind: str) -> None:
    pq, pa = parquet(), load("pyarrow")
    values = pa.float32()
    lists = {"list": pa.list_(values), "large_list": pa.large_list(values), "fixed": pa.list_(values, 5)}[kind]
    columns = {"text": ["x"] * 30, "e": pa.array(rows.tolist(), lists), "y": pa.array(range(30), pa.int16())}
    pq.write_table(pa.table(columns), "t.parquet", row_group_size=7)
    assert_same("t.parquet:e", rows)
    assert_same("t.parquet:y", np.arange(30, dtype=np.int16))
    deep = rows.reshape(3, 5, 10)
    pq.write_table(pa.table({"p": pa.array(deep.tolist(), pa.list_(pa.list_(values)))}), "deep.parquet")
    assert_same("deep.parquet", deep)


def test_a_data_set_gives_the_column_that_is_named(rows: np.ndarray) -> None:
    datasets = load("datasets")
    columns = {"e": rows.tolist(), "m": rows.reshape(30, 1, 5).tolist(), "y": list(range(30))}
    kinds = datasets.Features(
        e=datasets.Sequence(datasets.Value("float32")), m=datasets.Array2D((1, 5), "float32"), y=datasets.Value("int8")
    )
    whole = datasets.Dataset.from_dict(columns, features=kinds)
    whole.select(range(29, -1, -1)).save_to_disk("turned")
    assert_same("turned:e", rows[::-1])
    assert_same("turned:m", rows[::-1, None])
    assert_same("turned:y", np.arange(29, -1, -1, dtype=np.int8))
    datasets.DatasetDict(train=whole).save_to_disk("split")
    assert_same("split/train:e", rows)
    with pytest.raises(ValueError, match="`EMB.npy` must be one split of a data set, got all of 'split'; name one of"):
        load_array("split:e", "EMB.npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_before_it_is_waited_for(capsys: Capture) -> None:
    os.mkfifo("pipe")
    assert_refused(
        "audit pipe", "`EMB.npy` must be a file to read, got 'pipe', a pipe or a device; write it to", capsys
    )


def test_commands_read_them(rows: np.ndarray, capsys: Capture) -> None:
    np.savez("a.npz", e=rows, y=np.arange(30) % 3)
    np.save("e.npy", rows)
    np.save("y.npy", np.arange(30) % 3)
    printed = []
    for arguments in ("a.npz:e --labels a.npz:y", "e.npy --labels y.npy"):
        assert main(["audit", *arguments.split(), "--k", "3"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


class Trap:
    """Unpickled, it ends the test."""

    def __reduce__(self) -> Any:
        return _sprung, ()


def _sprung() -> NoReturn:
    pytest.fail("a pickle was executed")


def bad_archives() -> None:
    np.savez("objects.npz", a=np.array([Trap()], dtype=object))
    Path("trap.npz").write_bytes(pickle.dumps(Trap()))
    np.savez("good.npz", a=np.arange(1000.0))
    data = bytearray(Path("good.npz").read_bytes())
    data[500] ^= 1
    Path("damaged.npz").write_bytes(data)
    Path("cut.npz").write_bytes(data[:600])
    with zipfile.ZipFile("words.npz", "w") as archive:
        archive.writestr("a.txt", "words")
    head = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000000,), }"
    with zipfile.ZipFile("huge.npz", "w") as archive:
        archive.writestr("a.npy", head.ljust(127) + b"\n")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("good.npz:b", "`good.npz` must be followed by the name of one of its arrays (a), got 'b'; write good.npz:a"),
        ("none.npz:a", "`EMB.npy` must be a file to read, got 'none.npz:a': No such file or directory"),
        ("objects.npz", "`objects.npz:a` must be an array of numbers without Python objects, got one that cannot be"),
        ("trap.npz", "`trap.npz` must be a .npy file of numbers, got a file of another format"),
        ("damaged.npz", "`damaged.npz:a` must be an array of numbers without Python objects, got one that cannot be"),
        ("cut.npz", "`cut.npz` must be an archive that np.savez wrote, got one that cannot be read"),
        ("words.npz", "`words.npz:a.txt` must be an array, got another file in the archive; name an array"),
        ("huge.npz", "`huge.npz:a` must fit into memory"),
    ],
)
def test_bad_archives_are_one_line_and_nothing_is_executed(place: str, message: str, capsys: Capture) -> None:
    bad_archives()
    assert_refused(f"audit {place}", message, capsys)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "words",
            "`t.parquet:words` must hold numbers, or lists of them that are all as long, got string; name",
        ),
        ("ragged", "that are all as long, got lists of several lengths; name another column"),
        ("even", "that are all as long, got lists of several lengths; name another column"),
        ("missing", "that are all as long, got missing values; name another column"),
        ("within", "that are all as long, got missing values; name another column"),
        ("other", "must be followed by the name of one of its arrays (words, ragged, even, missing, within), got 'oth"),
    ],
)
def test_columns_that_are_no_arrays_are_refused(column: str, message: str, capsys: Capture) -> None:
    pq, pa = parquet(), load("pyarrow")
    columns = {"words": ["a", "b"], "ragged": [[1.0], [2.0, 3.0]], "even": [[1.0], [2.0, 3.0, 4.0]]}
    pq.write_table(pa.table(columns | {"missing": [1.0, None], "within": [[1.0], [None]]}), "t.parquet")
    assert_refused(f"audit t.parquet:{column}", message, capsys)


def test_tables_and_data_sets_that_are_damaged_or_empty_are_refused(capsys: Capture) -> None:
    pq, pa, datasets = parquet(), load("pyarrow"), load("datasets")
    pq.write_table(pa.table({"a": pa.array([], pa.float64())}), "empty.parquet")
    assert_refused("audit empty.parquet", "`empty.parquet:a` must hold numbers, or lists of them", capsys)
    Path("cut.parquet").write_bytes(Path("empty.parquet").read_bytes()[:-9])
    assert_refused("audit cut.parquet", "`cut.parquet` must be a .parquet file, got one that cannot be read", capsys)
    datasets.Dataset.from_dict({"a": [1.0, 2.0]}).save_to_disk("cut")
    assert json.loads(Path("cut/state.json").read_text(encoding="utf-8"))
    next(Path("cut").glob("*.arrow")).write_bytes(b"")
    assert_refused("audit cut", "`cut` must be a data set that save_to_disk wrote, got one that cannot be", capsys)


@pytest.mark.parametrize("module", ["pyarrow", "datasets"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    Path("t.parquet").write_bytes(b"PAR1")
    Path("d").mkdir()
    Path("d", "state.json").write_text("{}", encoding="utf-8")
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(f"audit {'t.parquet' if module == 'pyarrow' else 'd'}", 'pip install "matryoshka-mrl[dat', capsys)
