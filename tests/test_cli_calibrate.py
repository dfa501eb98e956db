"""matryoshka calibrate: the table, the files, and the refusals."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from commands import Capture, assert_refused, assert_usage_refused, names
from conftest import load

from matryoshka import Cascade
from matryoshka._commands.calibrate import figure
from matryoshka.cascade import oracle_routing
from matryoshka.cli import main

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 400 rows of 4 classes at 3 prefixes: p.npy, z.npy (logits) and y.npy."""
    monkeypatch.chdir(tmp_path)
    labels = rng.integers(4, size=400)
    signal = np.array([1.0, 2.0, 4.0])[:, None, None] * np.eye(4)[labels]
    logits = (signal + rng.normal(size=(3, 400, 4))).astype(np.float32)
    powers = np.exp(logits)
    np.save("p.npy", powers / powers.sum(-1, keepdims=True))
    np.save("z.npy", logits)
    np.save("y.npy", labels)
    return tmp_path


def calibrate(arguments: str) -> int:
    return main(["calibrate", *arguments.split()])


def test_the_table_says_what_evaluate_says(folder: Path, capsys: Capture) -> None:
    assert calibrate("p.npy y.npy -o cascade.json") == 0
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    cascade = Cascade.load("cascade.json", nesting=(8, 16, 32))
    assert cascade == Cascade.calibrate(probabilities, labels, nesting=(8, 16, 32))
    evaluation = cascade.evaluate(probabilities, labels)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    assert out.isprintable() or set(out) - set(filter(str.isprintable, out)) == {"\n"}
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for i, dim in enumerate(evaluation.dims):
        row = lines[str(dim)]
        assert f"{evaluation.exit_shares[i]:.1%}" in row
        assert f"{evaluation.prefix_accuracy[i]:.2%}" in row
        assert f"{evaluation.exit_accuracy[i]:.2%}" in row
        assert i == 2 or f"{cascade.thresholds[i]:.4f}" in row
    assert f"{evaluation.accuracy:.2%}" in lines["accuracy"]
    assert f"{evaluation.gap:.2%}" in lines["gap"]
    assert f"{oracle_routing(probabilities, labels, nesting=(8, 16, 32)).accuracy:.2%}" in lines["perfect"]
    assert f"{evaluation.expected_dim:.1f}" in lines["expected"]
    assert f"{32 / evaluation.cumulative_dim:.1f} x less than 32" in lines["cumulative"]
    assert f"{evaluation.separate_multiply_adds:,.0f} multiply-adds" in lines["cumulative"]
    assert "Widths taken to double from 8 to 32; --dims names others." in out
    assert lines["wrote"] == "wrote cascade.json"
    assert names() == ["cascade.json", "p.npy", "y.npy", "z.npy"]


def test_the_certificate_is_printed_and_written(folder: Path, capsys: Capture) -> None:
    assert calibrate("p.npy y.npy --dims 4,6,9 --certify --max-gap 0.05 --delta 0.2 --seed 1 -o c.json") == 0
    cascade = Cascade.load("c.json", nesting=(4, 6, 9))
    assert cascade.certificate is not None
    assert (cascade.certificate.max_gap, cascade.certificate.delta) == (0.05, 0.2)
    out = capsys.readouterr().out
    assert "certificate: P(wrong, full width right) <= 0.05 with probability >= 0.8 over 400 rows" in out
    assert "--dims" not in out


def test_options_reach_the_calibration(folder: Path, capsys: Capture) -> None:
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    assert calibrate("z.npy y.npy --logits --confidence margin --temperature --variant paper -o c.json") == 0
    cascade = Cascade.load("c.json")
    expected = Cascade.calibrate(
        np.load("z.npy"), labels, nesting=(8, 16, 32), confidence="margin", temperature=True, variant="paper",
        from_logits=True,
    )  # fmt: skip
    assert cascade == expected
    assert "temperatures    " in capsys.readouterr().out
    assert calibrate("p.npy y.npy --certify --max-error 0.4 --path fitted --cost cumulative_dim -o c.json") == 0
    assert Cascade.load("c.json") == Cascade.certify(
        probabilities, labels, nesting=(8, 16, 32), max_error=0.4, path="fitted", cost="cumulative_dim"
    )


def test_the_figure_is_a_picture(folder: Path, capsys: Capture) -> None:
    load("matplotlib")
    assert calibrate("p.npy y.npy --figure curve.png") == 0
    assert (folder / "curve.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out.endswith("wrote curve.png\n")
    assert calibrate("p.npy y.npy --figure curve.nonsense -o c.json") == 2
    assert "--figure must end in one of " in capsys.readouterr().err
    assert calibrate("p.npy y.npy --figure c.svg -o c.svg") == 2
    assert "--figure and -o must be two files, got 'c.svg' for both" in capsys.readouterr().err
    assert names() == ["curve.png", "p.npy", "y.npy", "z.npy"]


@pytest.mark.parametrize(
    ("option", "named"), [("-o c.json", "-o/--output: 'c.json'"), ("--figure c.png", "--figure: 'c.png'")]
)
@pytest.mark.usefixtures("folder", "read_only")
def test_a_place_that_cannot_be_written_is_refused_before_any_work(option: str, named: str, capsys: Capture) -> None:
    message = f"argument {named} must be a file in a folder that can be written to, the system says: Read-only"
    assert_usage_refused(f"calibrate p.npy y.npy {option}", message, capsys)


def test_the_figure_names_the_widths(folder: Path) -> None:
    load("matplotlib")
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    cascade = Cascade.calibrate(probabilities, labels, nesting=(24, 40, 90))
    oracle = oracle_routing(probabilities, labels, nesting=(24, 40, 90))
    drawing = figure(cascade.curve(probabilities, labels), cascade.evaluate(probabilities, labels), oracle)
    (axes,) = drawing.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["24", "40", "90"]
    assert "cascade: a point for each widest prefix allowed" in [t.get_text() for t in axes.get_legend().get_texts()]
    drawing.draw_without_rendering()
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


@pytest.mark.usefixtures("folder", "full_disk")
def test_figure_and_cascade_are_written_together_or_not_at_all(capsys: Capture) -> None:
    load("matplotlib")
    assert calibrate("p.npy y.npy --figure curve.png -o c.json") == 2
    printed = capsys.readouterr()
    assert printed.err == "matryoshka: error: 'curve.png': No space left on device\n"
    assert printed.out.startswith("Cascade (published rule")  # the work is not lost
    assert names() == ["p.npy", "y.npy", "z.npy"]


def test_without_matplotlib_the_extra_is_named(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert calibrate("p.npy y.npy --figure curve.png -o c.json") == 2
    assert 'pip install "matryoshka-mrl[cli]"' in capsys.readouterr().err
    assert "c.json" not in names()


def test_few_rows_warn(folder: Path, capsys: Capture) -> None:
    np.save("p.npy", np.load("p.npy")[:, :3])
    np.save("y.npy", np.load("y.npy")[:3])
    assert calibrate("p.npy y.npy") == 0
    assert capsys.readouterr().err.startswith("matryoshka: warning: Calibrating on 3 rows for 4 classes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.npy y.npy", "`PROBS.npy` must be a file to read, got 'none.npy': No such file or directory"),
        ("p.npy none.npy", "`LABELS.npy` must be a file to read, got 'none.npy': No such file or directory"),
        ("y.npy y.npy", "`probabilities` must have shape (prefixes, rows, classes)"),
        ("z.npy y.npy", "`probabilities[0]` (the prefix of width 8) must hold probabilities"),
        ("p.npy p.npy", "`labels` must hold integer class ids"),
        ("p.npy short.npy", "`labels` must have one class id per row"),
        ("p.npy y.npy --dims 8,16", "`probabilities` must hold one (rows, classes) array per prefix, 2 for (8, 16)"),
        ("p.npy y.npy --dims 16,8,32", "strictly increasing"),
        ("p.npy y.npy --confidence x", "`confidence` must be one of"),
        ("p.npy y.npy --variant x", "`variant` must be one of"),
        ("p.npy y.npy --max-gap 0.1 --seed 3", "--max-gap, --seed must come with --certify"),
        ("p.npy y.npy --certify --variant code", "--variant is of the published rule"),
        ("p.npy y.npy --certify --max-gap 2", "`max_gap` must be finite and in (0, 1)"),
        ("p.npy y.npy --certify --max-error 0.0001", "`max_error` must be certifiable for the full width at least"),
        ("text.npy y.npy", "`text.npy` must be a .npy file of numbers"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(
    folder: Path, capsys: Capture, arguments: str, message: str
) -> None:
    np.save("short.npy", np.load("y.npy")[:5])
    Path("text.npy").write_text("0.5")
    drawn = " --figure c.png" if importlib.util.find_spec("matplotlib") else ""
    assert_refused(f"calibrate {arguments} -o c.json{drawn}", message, capsys)


@pytest.mark.parametrize("arguments", ["--dims 8,x", "-o none/c.json", "--figure none/c.png", "-o ."])
def test_wrong_options_are_refused_before_any_work(folder: Path, capsys: Capture, arguments: str) -> None:
    assert_usage_refused(f"calibrate p.npy y.npy {arguments}", "matryoshka: error: argument ", capsys)
