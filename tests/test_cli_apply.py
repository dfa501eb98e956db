"""matryoshka apply: the table, the answers, and the refusals."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, assert_refused, assert_usage_refused, names, strict_json

from matryoshka import Cascade, _files
from matryoshka.cli import main

DIMS = (4, 6, 9)


@pytest.fixture
def cascade(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Cascade:
    """A certified cascade, in c.json, and 300 rows of 4 classes: p.npy, z.npy (logits) and y.npy."""
    monkeypatch.chdir(tmp_path)
    labels = rng.integers(4, size=1300)
    logits = np.array([1.0, 2.0, 4.0])[:, None, None] * np.eye(4)[labels] + rng.normal(size=(3, 1300, 4))
    powers = np.exp(logits)
    probabilities = powers / powers.sum(-1, keepdims=True)
    found = Cascade.certify(probabilities[:, 300:], labels[300:], nesting=DIMS, max_gap=0.05)
    found.save("c.json")
    for name, array in (("p", probabilities[:, :300]), ("z", logits[:, :300]), ("y", labels[:300])):
        np.save(f"{name}.npy", array)
    return found


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_the_table_is_printed_and_the_answers_written(
    cascade: Cascade, capsys: Capture, *, labelled: bool, logits: bool
) -> None:
    rows = f"{'z' if logits else 'p'}.npy"
    asked = ["apply", "c.json", rows, *["y.npy"] * labelled, *["--logits"] * logits]
    assert main([*asked, "-o", "new"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    evaluation = cascade.evaluate(np.load(rows), *[np.load("y.npy")] * labelled, from_logits=logits)
    head = f"Cascade of c.json (confidence {cascade.confidence})."
    assert out.startswith(f"{head}\n\n{evaluation}\n\ncertificate: P(wrong, ")
    assert out.endswith("\nwrote new/answers.npy and new/exit_dims.npy\n")
    assert names("new") == ["answers.npy", "exit_dims.npy"]
    answers, exit_dims = (np.load(f"new/{name}", allow_pickle=False) for name in names("new"))
    for found, expected in zip((answers, exit_dims), cascade.predict(np.load(rows), from_logits=logits), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert len(set(exit_dims.tolist())) > 1
    assert main(asked) == 0
    assert capsys.readouterr().out == out[: out.index("wrote")]


def test_json_is_all_that_is_printed(cascade: Cascade, capsys: Capture) -> None:
    assert main(["apply", "c.json", "p.npy", "y.npy", "--json", "-o", "new"]) == 0
    printed = capsys.readouterr()
    record = strict_json(printed.out)
    assert Cascade.from_json(json.dumps(record["cascade"])) == cascade
    expected = cascade.evaluate(np.load("p.npy"), np.load("y.npy"))
    assert record["evaluation"] == json.loads(json.dumps(asdict(expected)))
    assert printed.err == "wrote new/answers.npy and new/exit_dims.npy\n"


def test_a_folder_of_groups_points_to_a_group(cascade: Cascade, capsys: Capture) -> None:
    for place, group in (("groups", "7"), ("groups", "-2")):
        Path(place).mkdir(exist_ok=True)
        cascade.save(f"{place}/{group}.json")
    message = (
        "CASCADE.json must be one file, got the folder 'groups' with the cascades -2.json, 7.json; "
        "name that of a group, such as groups/-2.json."
    )
    assert_refused("apply groups p.npy", message, capsys)
    Path("none").mkdir()
    assert_refused("apply none p.npy", "got the folder 'none' with no cascade; name a file.", capsys)


def test_rows_without_a_label_are_answered_but_not_judged(cascade: Cascade, capsys: Capture) -> None:
    known = np.arange(300) % 3 == 0
    np.save("few.npy", np.where(known, np.load("y.npy"), -1))
    assert main(["apply", "c.json", "p.npy", "few.npy", "-o", "new"]) == 0
    judged = cascade.evaluate(np.load("p.npy")[:, known], np.load("y.npy")[known])
    assert f"\n\n{judged}\n" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load("new/answers.npy"), cascade.predict(np.load("p.npy"))[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "none.json p.npy",
            "CASCADE.json must be a file to read, got 'none.json': No such file or directory; name what",
        ),
        ("p.npy p.npy", "`p.npy` must be"),
        ("c.json none.npy", "`PROBS.npy` must be a file to read, got 'none.npy'"),
        ("own.json p.npy", "own.json must decide by the probabilities, got precomputed confidences; use it in Python"),
        ("c.json two.npy", "two.npy must hold a prefix for each of the 3 widths, got 2"),
        ("c.json y.npy", "`probabilities` must have shape (prefixes, rows, classes)"),
        ("c.json z.npy", "`probabilities[0]` (the prefix of width 4) must hold probabilities"),
        ("c.json p.npy unknown.npy", "LABELS.npy must hold a label for some row that judges, got -1 for all 300; name"),
        ("c.json p.npy short.npy", "`labels` must have one class id per row"),
        ("c.json empty.npy", "`probabilities` must have at least one row"),
    ],
)
@pytest.mark.usefixtures("cascade")
def test_nothing_is_written_when_something_is_wrong(capsys: Capture, arguments: str, message: str) -> None:
    Cascade(DIMS, (0.5, 0.5), confidence="precomputed").save("own.json")
    np.save("two.npy", np.load("p.npy")[:2])
    np.save("short.npy", np.load("y.npy")[:5])
    np.save("unknown.npy", np.full(300, -1))
    np.save("empty.npy", np.load("p.npy")[:, :0])
    assert_refused(f"apply {arguments} -o new", message, capsys)


@pytest.mark.usefixtures("cascade")
def test_answers_and_exits_are_written_together_or_not_at_all(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write = _files._write_beside

    def fail(path: Path, data: bytes) -> Any:
        if path.name == "exit_dims.npy":
            raise OSError(28, "No space left on device", "/temporary/name")
        return write(path, data)

    monkeypatch.setattr(_files, "_write_beside", fail)
    before = names()
    assert main(["apply", "c.json", "p.npy", "-o", "new"]) == 2
    assert capsys.readouterr().err == "matryoshka: error: 'new/exit_dims.npy': No space left on device\n"
    assert names() == before


@pytest.mark.usefixtures("cascade")
def test_a_folder_that_cannot_be_is_refused_before_any_work(capsys: Capture) -> None:
    assert_usage_refused("apply c.json p.npy -o p.npy", "argument -o/--output: 'p.npy' must be a folder", capsys)
