"""Files are written whole or not at all, and reading one executes nothing and ends in errors that name it."""

from __future__ import annotations

import ast
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryoshka import Cascade, Corpus, Funnel, Nesting, _checks, _files, cli

MAGIC = b"\x93NUMPY\x01\x00"


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


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_and_stays(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target.json", tmp_path / "link.json"
    if exists:
        target.write_text("old")
    link.symlink_to(target)
    Nesting((1, 2)).save(link)
    assert link.is_symlink()
    assert Nesting.load(target) == Nesting((1, 2))
    assert {p.name for p in tmp_path.rglob("*")} == {"there", "target.json", "link.json"}


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="`path` must be a file, got .*pipe', which is a device or the like"):
        _files.write_text(tmp_path / "pipe", "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("locks", [True, False])
def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    pytest.importorskip("fcntl")
    dead, living, other = (tmp_path / f".{name}.tmp" for name in ("a.json.0123abcd", "a.json.4567abcd", "b.0123abcd"))
    for path in (dead, living, other):
        path.write_text("half")
    if not locks:
        monkeypatch.setattr(_files, "fcntl", None)  # as on Windows: nothing tells the dead from the living
    with _files.locked(living):
        _files.write_text(tmp_path / "a.json", "whole")
    left = {living.name, other.name, "a.json"} | (set() if locks else {dead.name})
    assert {p.name for p in tmp_path.iterdir()} == left


def test_a_file_that_is_taken_for_a_leftover_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its lock another save may remove it."""
    made: list[Path] = []

    def make(path: Path) -> None:
        path.touch()
        made.append(path)
        if len(made) == 1:
            path.unlink()

    with _files.hidden_beside(tmp_path / "a", make) as path:
        assert path == made[1]
        assert path.exists()


def test_files_of_one_report_come_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        (tmp_path / "new" / "thesis.txt").write_text("of somebody else")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*a.txt'"):
        _files.write_together(tmp_path / "new", {"a.txt": b"a", "b.txt": b"b"})
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["thesis.txt"]


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


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin1")
    return MAGIC + len(text).to_bytes(2, "little") + text + data


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"
DAMAGED = {
    "cut header": npy(HEADER)[:40],
    "cut data": npy(HEADER, bytes(47)),
    "open bracket": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4"),
    "deep": npy("(" * 5000),
    "deeper": npy("-" * 9000 + "1"),
    "quote": npy("{'descr': '<f4"),
    "indent": npy("  {\n 'a'\n   :1}"),
    "null": npy("\0" * 50),
    "no dict": npy("3"),
    "10**12 rows": npy(HEADER.replace("3, 4", "1000000000000, 64")),
    "10**30 rows": npy(HEADER.replace("3, 4", f"{10**30}, 0")),
    "400 digits": npy(HEADER.replace("3, 4", "9" * 400 + ",")),
    "5000 digits": npy(HEADER.replace("3, 4", "9" * 5000 + ",")),
    "negative": npy(HEADER.replace("3, 4", "-1, 4"), bytes(64)),
    "wide numbers": npy(HEADER.replace("<f4", "(1000000,1000000)f4")),
    "wider numbers": npy(HEADER.replace("<f4", f"({10**30},)f4")),
    "kind": npy(HEADER.replace("<f4", "<q9")),
    "list of kinds": npy(HEADER.replace("'<f4'", "[('a', '<f4'), ('a', '<f4')]")),
    "zip": b"PK\3\4" + bytes(60),
    "version": MAGIC[:6] + b"\x09\x00" + bytes(60),
    "long header": MAGIC[:6] + b"\x02\x00" + b"\xff\xff\xff\x7f" + bytes(60),
    "magic": MAGIC,
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("mmap", [False, True])
def test_damaged_arrays_are_refused_by_name(tmp_path: Path, kind: str, mmap: bool) -> None:
    (tmp_path / "rows.npy").write_bytes(DAMAGED[kind])
    with pytest.raises(ValueError, match=r"^`.*rows.npy` must (be a .npy file of numbers|hold one array), got "):
        _files.load_array(tmp_path / "rows.npy", mmap=mmap)


def test_a_parser_that_trips_over_another_thread_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, calls = ast.literal_eval, itertools.count()

    def trip(text: str) -> Any:
        if next(calls) % 3 != 2:
            msg = "AST constructor recursion depth mismatch (before=18, after=14)"
            raise SystemError(msg)
        return parse(text)

    np.save(tmp_path / "rows.npy", np.arange(6.0))
    monkeypatch.setattr(ast, "literal_eval", trip)
    assert _files.load_array(tmp_path / "rows.npy").tolist() == list(range(6))
    assert next(calls) == 6  # twice in vain, for what is checked and for what is read


def test_an_array_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    np.save(tmp_path / "rows.npy", np.ones(3))
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(OSError, match=r"`EMB.npy` must be a file that fits into memory, got '.*rows.npy'"):
        _files.load_array(tmp_path / "rows.npy", "EMB.npy")


@pytest.mark.parametrize("kind", ["deep", "10**12 rows", "open bracket", "zip", "400 digits"])
def test_commands_say_in_one_line_that_a_file_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    (tmp_path / "rows.npy").write_bytes(DAMAGED[kind])
    assert cli.main(["audit", str(tmp_path / "rows.npy")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("matryoshka: error: `")
    assert error.count("\n") == 1


BAD_JSON = {
    "deep": "[" * 200_000,
    "deep object": '{"a":' * 100_000,
    "no text": b"\xff\xfe\xfa",
    "cut": '{"kind": "funnel", "ver',
    "5000 digits": "9" * 5000,
    "number": "7",
    "deep kind": '{"kind": ' + "[" * 300 + "]" * 300 + "}",
    "deep version": '{"kind": "KIND", "version": ' + "[" * 300 + "]" * 300 + "}",
    "no fields": '{"kind": "KIND", "version": 1}',
    "400 digits": '{"kind": "KIND", "version": 1, FIELDS}'.replace("FIELDS", "%FIELDS%"),
}


@pytest.mark.parametrize("value", [Nesting((2, 4)), Funnel((2, 4), (3,)), Cascade((2, 4), (0.5,))], ids=repr)
@pytest.mark.parametrize("kind", BAD_JSON)
def test_damaged_values_are_refused_by_name(tmp_path: Path, value: Any, kind: str) -> None:
    own = json.loads(value.to_json())
    fields = {key: [10**400] * 2 for key in own if key not in ("kind", "version")}
    text = BAD_JSON[kind]
    if isinstance(text, str):
        text = text.replace("KIND", own["kind"]).replace("%FIELDS%", json.dumps(fields)[1:-1]).encode()
    (tmp_path / "value.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"^`.*value.json` must "):
        type(value).load(tmp_path / "value.json")


def test_values_come_back_from_their_files(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(30, 4))
    certified = Funnel.calibrate(Corpus(rows), rows, 1, recall=0.5, dims=(2, 4))
    for value in (Nesting((2, 4), importance=(0.5, 2)), Funnel((2, 4), (3,)), certified, Cascade((2, 4), (0.5,))):
        value.save(tmp_path / "value.json")
        found = type(value).load(os.fspath(tmp_path / "value.json"))
        assert found == value
        assert found.to_json() == value.to_json()
        assert [path.name for path in tmp_path.iterdir()] == ["value.json"]
        with pytest.raises(FileNotFoundError, match=r"none\.json"):
            type(value).load(tmp_path / "none.json")
    assert certified.certificate is not None


def test_numbers_of_hundreds_of_digits_are_out_of_range() -> None:
    for number, shown in ((10**400, "inf"), (-(10**400), "-inf")):
        with pytest.raises(ValueError, match=rf"`x` must be finite, got {shown}; choose a value in that range"):
            _checks.real(number, "x")
    for digits in (400, 5000):
        with pytest.raises(ValueError, match=r"`n` must be an integer in \[1, 9\], got int of \d+ bits; choose one in"):
            _checks.integer(10**digits, "n", minimum=1, maximum=9)
    with pytest.raises(TypeError, match="`loss` must be callable, got int"):
        _checks.function(10**5000, "loss")
