"""Files are written whole or not at all, and reading one executes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from matryoshka import Cascade, Funnel, Nesting, _files


def test_text_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    _files.write_text(path, "one")
    _files.write_text(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    _files.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        _files.write_text(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    _files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("before", [None, "old"])
def test_an_interrupted_folder_changes_nothing(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "corpus"
    if before is not None:
        path.mkdir()
        (path / "x").write_text(before)
    with pytest.raises(KeyboardInterrupt), _files.new_folder(path) as folder:
        (folder / "x").write_text("new")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == (["corpus"] if before else [])
    assert before is None or (path / "x").read_text() == before


def test_a_folder_replaces_the_old_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with _files.new_folder(tmp_path / "corpus") as folder:
            (folder / "x").write_text(text)
    assert (tmp_path / "corpus" / "x").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_only_plain_arrays_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("objects.npy", "two.npz", "text.npy", "empty.npy"):
        with pytest.raises(ValueError, match=rf"`.*{name}` must "):
            _files.load_array(tmp_path / name)
    np.save(tmp_path / "good.npy", np.arange(3.0))
    for mmap in (False, True):
        assert _files.load_array(tmp_path / "good.npy", mmap=mmap).tolist() == [0.0, 1.0, 2.0]


OF_A_LADDER = '{"kind": "nesting", "version": 1, "dims": ["8"], "importance": [1]}'


@pytest.mark.parametrize("kind", [Nesting, Funnel, Cascade])
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "corpus"}', '{"kind": "KIND", "version": 2}', OF_A_LADDER])
def test_foreign_json_is_refused(kind: type[Nesting | Funnel | Cascade], text: str) -> None:
    with pytest.raises(ValueError, match="`text` must be"):
        kind.from_json(text.replace("KIND", kind.__name__.lower()))


@pytest.mark.parametrize("kind", [Nesting, Funnel, Cascade])
def test_json_without_fields_is_refused(kind: type[Nesting | Funnel | Cascade]) -> None:
    name = kind.__name__.lower()
    with pytest.raises(ValueError, match=f"`text` must hold dims, .* got a {name} without "):
        kind.from_json(f'{{"kind": "{name}", "version": 1, "dims": [8]}}')
