"""The study's data with names and texts, and the tasks that train for themselves: pairs, images with texts, words."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load

for _needed in ("torch", "sklearn", "tqdm"):
    try:
        load(_needed)
    except pytest.skip.Exception as _skipped:
        pytest.skip(str(_skipped), allow_module_level=True)
sys.path.append(str(Path(__file__).parents[1]))  # last, so that `matryoshka` stays the installed one

from benchmarks.study import data, texts  # noqa: E402

DOMAINS = {"kitchen": ["boil", "bake"], "road": ["drive"]}


def questions(**changes: Any) -> dict[str, list[list[str]]]:
    """Twelve training questions of each intent, three to calibrate with and six to be judged by."""
    sizes = {"train": 12, "val": 3, "test": 6}
    intents = ("drive", "boil", "bake")
    found = {
        part: [[f"{part} {i} how to {one}", one] for i in range(n) for one in intents] for part, n in sizes.items()
    }
    return found | {"oos_train": [["what", "oos"]]} | changes


def write_questions(folder: Path, content: Any, domains: Any = DOMAINS) -> str:
    (folder / data.QUESTIONS).write_text(json.dumps(content), encoding="utf-8")
    (folder / data.DOMAINS).write_text(json.dumps(domains), encoding="utf-8")
    return str(folder)


@pytest.fixture
def by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the vector of a text be its length and its last letter, since the encoder is large."""
    monkeypatch.setattr(data, "encode", lambda rows: np.array([[len(text), ord(text[-1])] for text in rows.tolist()]))


@pytest.mark.usefixtures("by_length")
def test_questions_keep_their_texts_through_the_split(tmp_path: Path) -> None:
    dataset = data.load(write_questions(tmp_path, questions()))
    assert dataset.class_names == ("bake", "boil", "drive")
    assert dataset.superclass_names == ("kitchen", "road")
    assert dataset.superclasses is not None
    assert dataset.superclasses.tolist() == [0, 0, 1]
    split = dataset.split(5)
    for part, size in (("train", 36), ("calibration", 9), ("test", 18)):
        rows = getattr(split, part)
        assert len(rows) == size
        for text, label, row in zip(rows.texts.tolist(), rows.labels, rows.features, strict=True):
            assert text.endswith(dataset.class_names[label])
            mean, deviation = dataset.train.features.mean(), dataset.train.features.std()
            np.testing.assert_allclose(row * deviation + mean, [len(text), ord(text[-1])], rtol=1e-4)


@pytest.mark.usefixtures("by_length")
def test_rows_take_their_texts_along(tmp_path: Path) -> None:
    rows = data.load(write_questions(tmp_path, questions())).train[np.array([4, 1])]
    assert rows.texts is not None
    assert rows.texts.tolist() == ["train 1 how to boil", "train 0 how to boil"]


@pytest.mark.parametrize(
    ("content", "domains", "message"),
    [
        (questions(test=[]), DOMAINS, r"data_full.json must hold \{\"train\""),
        (questions(val=[["a question"]]), DOMAINS, r"data_full.json must hold"),
        ([], DOMAINS, r"data_full.json must hold"),
        (questions(), {"kitchen": "boil"}, r"domains.json must hold \{domain"),
        (questions(), {"kitchen": ["boil", "bake"]}, r"domains.json must name the domain .* got none for \['drive'\]"),
        (questions(test=[["walk to", "walk"]]), DOMAINS | {"foot": ["walk"]}, r"data_full.json must have training"),
    ],
)
@pytest.mark.usefixtures("by_length")
def test_unfit_questions_are_refused(tmp_path: Path, content: Any, domains: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(write_questions(tmp_path, content, domains))


def test_damaged_and_missing_files_of_questions_are_named(tmp_path: Path) -> None:
    source = write_questions(tmp_path, questions())
    (tmp_path / data.DOMAINS).write_text("{")
    with pytest.raises(ValueError, match=r"domains.json must be JSON"):
        data.load(source)
    (tmp_path / data.DOMAINS).unlink()
    with pytest.raises(FileNotFoundError, match=r"domains.json must exist"):
        data.load(source)


def test_errors_about_arrays_name_the_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "train_features.npy", np.zeros((5, 2)))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}: `--data` must hold"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(("name", "named"), [("fashion-mnist", True), ("mnist", False)])
def test_clothes_are_named_by_their_folder(tmp_path: Path, name: str, named: bool) -> None:
    folder = tmp_path / name
    folder.mkdir()
    images, labels = np.arange(100 * 6 % 251, dtype=np.uint8), np.arange(100, dtype=np.uint8) % 10
    for file, values in zip(data.IDX_FILES, (np.resize(images, (100, 3, 2)), labels) * 2, strict=True):
        header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (folder / file).write_bytes(header + values.tobytes())
    dataset = data.load(str(folder))
    assert (dataset.name, dataset.shape, dataset.n_features) == (name, (3, 2), 6)
    if not named:
        assert dataset.class_names is dataset.superclasses is None
        return
    assert dataset.superclass_names == ("tops", "bottoms", "footwear", "bags")
    assert dataset.class_names is not None
    assert dataset.superclasses is not None
    of = dict(zip(dataset.class_names, dataset.superclasses, strict=True))
    assert {name for name, superclass in of.items() if superclass == 2} == {"Sandal", "Sneaker", "Ankle boot"}


def test_texts_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def encoder(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return np.full((len(rows), 3), len(asked), np.float32)

    monkeypatch.setattr(texts, "_encode", encoder)
    first, other = np.array(["a", "bc"]), np.array(["ab", "c"])
    found = [texts.encode(rows, folder=tmp_path)[0, 0] for rows in (first, other, first)]
    assert found == [1, 2, 1]
    assert asked == [["a", "bc"], ["ab", "c"]]
