"""matryoshka calibrate: the table, the files, and the refusals."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from commands import Capture, assert_refused, assert_usage_refused, names, strict_json
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


def split(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The 320 rows of 400 that choose, and the 80 that judge."""
    order = np.random.default_rng(seed).permutation(400)
    return np.sort(order[80:]), np.sort(order[:80])


def test_the_table_says_what_evaluate_says_of_rows_that_chose_nothing(folder: Path, capsys: Capture) -> None:
    assert calibrate("p.npy y.npy --dims 8,16,32 -o cascade.json") == 0
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    chosen, judged = split()
    cascade = Cascade.load("cascade.json", nesting=(8, 16, 32))
    assert cascade == Cascade.calibrate(probabilities[:, chosen], labels[chosen], nesting=(8, 16, 32))
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    assert out.isprintable() or set(out) - set(filter(str.isprintable, out)) == {"\n"}
    said = " ".join(out.partition("\n\n")[0].split())
    assert said == (
        "Cascade (published rule, confidence max_probability). Chosen on 320 rows, measured on 80 others, drawn from "
        "the same file (--test names rows of your own)."
    )
    assert f"\n{cascade.evaluate(probabilities[:, judged], labels[judged])}\n" in out
    oracle = oracle_routing(probabilities[:, judged], labels[judged], nesting=(8, 16, 32))
    assert f"perfect router  {oracle.expected_dim_all:7.1f}  expected dim, right on {oracle.accuracy:.2%} of" in out
    last = out.split("\n\n")[-1]
    promise = "No promise about new rows: ask for one with --certify, or a bound: --max-gap, --max-error, "
    assert " ".join(last.split()) == f"{promise}--max-disagreement. wrote cascade.json"
    assert out.endswith("\nwrote cascade.json\n")
    assert names() == ["cascade.json", "p.npy", "y.npy", "z.npy"]


def test_other_rows_may_judge(folder: Path, capsys: Capture) -> None:
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    np.save("q.npy", probabilities[:, ::7])
    np.save("x.npy", labels[::7])
    cascade = Cascade.calibrate(probabilities, labels, nesting=(8, 16, 32))
    for test, known in (("q.npy x.npy", (labels[::7],)), ("q.npy", ())):
        assert calibrate(f"p.npy y.npy --dims 8,16,32 -o c.json --test {test}") == 0
        assert Cascade.load("c.json") == cascade
        out = capsys.readouterr().out
        assert "Chosen on 400 rows, measured on the 58 rows of --test." in " ".join(out.split())
        assert f"\n{cascade.evaluate(probabilities[:, ::7], *known)}\n" in out
        assert ("perfect router" in out) == bool(known)


def test_rows_without_a_label_judge_nothing(folder: Path, capsys: Capture) -> None:
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    np.save("x.npy", np.where(np.arange(400) % 3, labels, -1))
    assert calibrate("p.npy y.npy --dims 8,16,32 -o c.json --test p.npy x.npy") == 0
    rows = np.flatnonzero(np.arange(400) % 3)
    out = capsys.readouterr().out
    assert f"\n{Cascade.load('c.json').evaluate(probabilities[:, rows], labels[rows])}\n" in out
    assert "the 266 rows of --test" in " ".join(out.split())


def test_no_labels_are_needed_for_a_promise_of_agreement(folder: Path, capsys: Capture) -> None:
    load("matplotlib")
    assert calibrate("p.npy --dims 8,16,32 --max-disagreement 0.2 --seed 4 -o c.json --figure c.png") == 0
    chosen, judged = split(4)
    probabilities = np.load("p.npy")
    cascade = Cascade.certify(probabilities[:, chosen], nesting=(8, 16, 32), max_disagreement=0.2, seed=4)
    assert Cascade.load("c.json") == cascade
    out = capsys.readouterr().out
    assert f"\n{cascade.evaluate(probabilities[:, judged])}\n" in out
    assert "certificate: P(disagrees with the full width) <= 0.2" in out
    assert "right" not in out
    drawing = figure(cascade, cascade.curve(probabilities), None)
    (axes,) = drawing.axes
    alone, points, promised = (line.get_ydata() for line in axes.get_lines())
    disagreement = [np.mean(rows.argmax(-1) != probabilities[-1].argmax(-1)) for rows in probabilities]
    np.testing.assert_allclose(alone, 100 - 100 * np.array(disagreement))
    assert points[-1] == pytest.approx(100 - 100 * cascade.evaluate(probabilities).disagreement)
    np.testing.assert_allclose(promised, 80)
    assert axes.get_ylabel() == "agreement with the full width (%)"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_is_told_what_takes_long(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr("matryoshka._commands._rows._LARGE", 1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert calibrate("p.npy y.npy --dims 8,16,32") == 0
    steps = ["reading 400", "choosing thresholds on 320", "measuring on 80"]
    told = "".join(f"matryoshka: {step} rows ...\n" for step in steps)
    assert capsys.readouterr().err == (told if terminal else "")


def test_the_certificate_is_printed_and_written(folder: Path, capsys: Capture) -> None:
    assert calibrate("p.npy y.npy --dims 4,6,9 --max-gap 0.05 --delta 0.2 --seed 1 -o c.json") == 0
    cascade = Cascade.load("c.json", nesting=(4, 6, 9))
    assert cascade.certificate is not None
    assert (cascade.certificate.max_gap, cascade.certificate.delta) == (0.05, 0.2)
    out = capsys.readouterr().out
    assert "No promise" not in out
    assert "certificate: P(wrong, full width right) <= 0.05 with probability >= 0.8 over 320 rows" in out
    assert calibrate("p.npy y.npy --dims 4,6,9 --certify -o c.json") == 0
    assert Cascade.load("c.json").certificate.max_gap == 0.01


def test_options_reach_the_calibration(folder: Path, capsys: Capture) -> None:
    rows, _ = split()
    published = "--logits --confidence margin --temperature --variant paper"
    assert calibrate(f"z.npy y.npy --dims 8,16,32 {published} -o c.json") == 0
    expected = Cascade.calibrate(
        np.load("z.npy")[:, rows], np.load("y.npy")[rows], nesting=(8, 16, 32), confidence="margin", temperature=True,
        variant="paper", from_logits=True,
    )  # fmt: skip
    assert Cascade.load("c.json") == expected
    assert "temperatures    " in capsys.readouterr().out
    rows, _ = split(3)
    promised = "--max-error 0.4 --max-disagreement 0.5 --path fitted --cost cumulative_dim --seed 3"
    assert calibrate(f"p.npy y.npy --dims 8,16,32 {promised} -o c.json") == 0
    assert Cascade.load("c.json") == Cascade.certify(
        np.load("p.npy")[:, rows], np.load("y.npy")[rows], nesting=(8, 16, 32), max_error=0.4, max_disagreement=0.5,
        path="fitted", cost="cumulative_dim", seed=3,
    )  # fmt: skip


def test_the_figure_is_a_picture(folder: Path, capsys: Capture) -> None:
    load("matplotlib")
    assert calibrate("p.npy y.npy --dims 8,16,32 --figure curve.png") == 0
    assert (folder / "curve.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out.endswith("wrote curve.png\n")
    assert calibrate("p.npy y.npy --dims 8,16,32 --figure curve.nonsense -o c.json") == 2
    assert "--figure must end in one of " in capsys.readouterr().err
    assert calibrate(f"p.npy y.npy --dims 8,16,32 --figure c.svg -o ../{folder.name}/c.svg") == 2
    assert "--figure and -o must be two files, got 'c.svg' for both" in capsys.readouterr().err
    assert names() == ["curve.png", "p.npy", "y.npy", "z.npy"]


@pytest.mark.parametrize(
    ("option", "named"), [("-o c.json", "-o/--output: 'c.json'"), ("--figure c.png", "--figure: 'c.png'")]
)
@pytest.mark.usefixtures("folder", "read_only")
def test_a_place_that_cannot_be_written_is_refused_before_any_work(option: str, named: str, capsys: Capture) -> None:
    message = f"argument {named} must be a file in a folder that can be written to, the system says: Read-only"
    assert_usage_refused(f"calibrate p.npy y.npy --dims 8,16,32 {option}", message, capsys)


def test_the_figure_names_the_widths(folder: Path) -> None:
    load("matplotlib")
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    cascade = Cascade.calibrate(probabilities, labels, nesting=(24, 40, 90))
    oracle = oracle_routing(probabilities, labels, nesting=(24, 40, 90))
    drawing = figure(cascade, cascade.curve(probabilities, labels), oracle)
    (axes,) = drawing.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["24", "40", "90"]
    assert "cascade, capped at each width" in [t.get_text() for t in axes.get_legend().get_texts()]
    drawing.draw_without_rendering()
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


@pytest.mark.usefixtures("folder", "full_disk")
def test_figure_and_cascade_are_written_together_or_not_at_all(capsys: Capture) -> None:
    load("matplotlib")
    assert calibrate("p.npy y.npy --dims 8,16,32 --figure curve.png -o c.json") == 2
    printed = capsys.readouterr()
    assert printed.err == "matryoshka: error: 'curve.png': No space left on device\n"
    assert printed.out.startswith("Cascade (published rule")  # the work is not lost
    assert names() == ["p.npy", "y.npy", "z.npy"]


def test_without_matplotlib_the_extra_is_named(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert calibrate("p.npy y.npy --dims 8,16,32 --figure curve.png -o c.json") == 2
    assert 'pip install "matryoshka-mrl[cli]"' in capsys.readouterr().err
    assert "c.json" not in names()


def test_few_rows_warn(folder: Path, capsys: Capture) -> None:
    np.save("p.npy", np.load("p.npy")[:, 4:8])
    np.save("y.npy", np.load("y.npy")[4:8])
    assert calibrate("p.npy y.npy --dims 8,16,32") == 2
    message = (
        "PROBS.npy must have at least 5 rows, of which one in 5 judges, got 4; add rows, or name others with --test."
    )
    assert message in capsys.readouterr().err
    np.save("q.npy", np.load("p.npy")[:, :3])
    np.save("x.npy", np.load("y.npy")[:3])
    assert calibrate("q.npy x.npy --dims 8,16,32 --test p.npy y.npy") == 0
    assert capsys.readouterr().err.startswith("matryoshka: warning: Calibrating on 3 rows for 4 classes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.npy y.npy", "`PROBS.npy` must be a file to read, got 'none.npy': No such file or directory"),
        ("p.npy none.npy", "`LABELS.npy` must be a file to read, got 'none.npy': No such file or directory"),
        ("p.npy y.npy --test none.npy", "`--test` must be a file to read, got 'none.npy': No such file or directory"),
        ("p.npy y.npy --test p.npy none.npy", "`--test` must be a file to read, got 'none.npy': No such file or"),
        ("p.npy y.npy --test p.npy y.npy y.npy", "--test must name probabilities and labels, got 3 files"),
        ("p.npy y.npy --test p.npy short.npy", "`labels` must have one class id per row"),
        (
            "p.npy y.npy --test two.npy y.npy",
            "two.npy must hold a prefix for each of the 3 widths, got 2; name its own",
        ),
        ("y.npy y.npy", "`probabilities` must have shape (prefixes, rows, classes)"),
        ("z.npy y.npy", "`probabilities[0]` (the prefix of width 8) must hold probabilities"),
        ("p.npy p.npy", "`labels` must hold integer class ids"),
        ("p.npy short.npy", "`labels` must have one class id per row"),
        ("p.npy", "LABELS.npy must be given for all but --max-disagreement alone, got no bound either; add it"),
        (
            "p.npy --certify",
            "LABELS.npy must be given for all but --max-disagreement alone, got no bound either; add it",
        ),
        ("p.npy --max-disagreement 0.1 --max-gap 0.1", "alone, got --max-gap, --max-disagreement; add it, or drop"),
        ("p.npy y.npy --dims 8,16", "p.npy must hold a prefix for each of the 2 widths, got 3; name its own ladder"),
        ("p.npy y.npy --dims 16,8,32", "strictly increasing"),
        ("p.npy y.npy --confidence x", "`confidence` must be one of"),
        (
            "p.npy y.npy --confidence precomputed",
            "--confidence must be max_probability, margin or entropy, which",
        ),
        ("p.npy y.npy --variant x", "`variant` must be one of"),
        ("p.npy y.npy --delta 0.1 --path fitted", "--delta, --path must come with --certify or a bound"),
        ("p.npy y.npy --certify --variant code", "--variant is of the published rule, got it with --certify"),
        ("p.npy y.npy --max-gap 0.1 --variant code", "--variant is of the published rule, got it with --max-gap"),
        ("p.npy y.npy --max-gap 1", "`max_gap` must be finite and in (0, 1), got 1.0; choose a share: 0.01 is 1 %"),
        ("p.npy y.npy --seed -1", "`--seed` must be an integer >= 0"),
        ("p.npy y.npy --max-error 0.0001", "`max_error` must be certifiable for the full width at least"),
        ("text.npy y.npy", "`text.npy` must be a .npy file of numbers"),
        ("p.npy y.npy --groups y.npy", "--groups must come with --certify or a bound; the published rule"),
        ("nan.npy y.npy", "`nan.npy[1]` must be finite, got NaN or infinity in 1 of 400 rows (first: 399); remove"),
        ("nan.npy y.npy --logits", "`nan.npy[1]` must be finite, got NaN or infinity in 1 of 400 rows (first: 399)"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(
    folder: Path, capsys: Capture, arguments: str, message: str
) -> None:
    np.save("short.npy", np.load("y.npy")[:5])
    np.save("two.npy", bad := np.load("p.npy")[:2])
    bad[1, -1, 0] = np.nan
    np.save("nan.npy", np.concatenate((bad, bad[:1])))
    Path("text.npy").write_text("0.5")
    drawn = " --figure c.png" if importlib.util.find_spec("matplotlib") else ""
    dims = "" if "--dims" in arguments else " --dims 8,16,32"
    assert_refused(f"calibrate {arguments}{dims} -o c.json{drawn}", message, capsys)


def test_widths_are_asked_for(folder: Path, capsys: Capture) -> None:
    message = "--dims must name the widths of the 3 prefixes in p.npy, got none; name them from the narrowest on, as in"
    assert_refused("calibrate p.npy y.npy -o c.json", message, capsys)


def test_json_is_all_that_is_printed(folder: Path, capsys: Capture) -> None:
    assert calibrate("p.npy y.npy --dims 8,16,32 --json -o c.json") == 0
    chosen, judged = split()
    printed, cascade = capsys.readouterr(), Cascade.load("c.json")
    (result,) = strict_json(printed.out)["results"]
    assert Cascade.from_json(json.dumps(result["cascade"])) == cascade
    rows = np.load("p.npy")[:, judged], np.load("y.npy")[judged]
    assert result["curve"][-1] == json.loads(json.dumps(asdict(cascade.evaluate(*rows))))
    assert result["perfect_router"]["expected_dim_all"] == oracle_routing(*rows, nesting=(8, 16, 32)).expected_dim_all
    assert (result["group"], result["n_chosen"], result["n_judged"]) == (None, len(chosen), len(judged))
    assert printed.err == "wrote c.json\n"
    np.save("g.npy", np.arange(400) % 2)
    assert calibrate("p.npy --dims 8,16,32 --json --max-disagreement 0.4 --groups g.npy") == 0
    results = strict_json(capsys.readouterr().out)["results"]
    assert [(result["group"], result["perfect_router"]) for result in results] == [(0, None), (1, None)]


@pytest.mark.parametrize("labelled", [False, True])
def test_groups_get_a_table_and_a_file_each(folder: Path, capsys: Capture, *, labelled: bool) -> None:
    chosen, judged = split()
    groups = np.where(np.arange(400) < 300, 7, -2)
    groups[chosen[:5]] = 90  # a group of which no row judges, and too small to pass
    np.save("g.npy", groups)
    probabilities, labels = np.load("p.npy"), np.load("y.npy")
    rows, bound = ("p.npy y.npy", "max_gap") if labelled else ("p.npy", "max_disagreement")
    assert calibrate(f"{rows} --dims 8,16,32 --{bound.replace('_', '-')} 0.3 --groups g.npy -o new") == 0
    truth = [labels] if labelled else []
    expected = Cascade.certify(
        probabilities[:, chosen],
        *(y[chosen] for y in truth),
        nesting=(8, 16, 32),
        groups=groups[chosen],
        **{bound: 0.3},
    )
    assert names("new") == ["-2.json", "7.json", "90.json"]
    assert {group: Cascade.load(f"new/{group}.json") for group in (-2, 7, 90)} == expected
    assert [group for group, cascade in expected.items() if cascade.certificate.chosen is None] == [90]
    out = capsys.readouterr().out
    tables = out.split("Cascade (certified, confidence margin). Group ")[1:]
    assert [" ".join(table.split()).partition(" from ")[0] for table in tables] == [
        f"{group}. Chosen on {(groups[chosen] == group).sum()} rows, measured on {(groups[judged] == group).sum()} "
        "others, drawn"
        for group in (-2, 7, 90)
    ]
    for group, table in zip((-2, 7), tables, strict=False):
        part = judged[groups[judged] == group]
        assert f"\n{expected[group].evaluate(probabilities[:, part], *(y[part] for y in truth))}\n" in table
        assert ("perfect router" in table) == labelled
    assert "\n\nNo row judges it.\n" in tables[2]
    assert out.endswith("\n\nwrote new/-2.json\nwrote new/7.json\nwrote new/90.json\n")


@pytest.mark.parametrize("labelled", [False, True])
def test_other_rows_may_judge_each_group(folder: Path, capsys: Capture, *, labelled: bool) -> None:
    probabilities, labels, groups = np.load("p.npy"), np.load("y.npy"), np.arange(400) % 3
    for name, array in (("g", groups), ("q", probabilities[:, :90]), ("x", labels[:90]), ("h", groups[:90] // 2)):
        np.save(f"{name}.npy", array)
    truth, rows = ((labels,), "y.npy") if labelled else ((), "")
    judging = f"q.npy {'x.npy ' * labelled}h.npy"
    promise = "--max-disagreement 0.4 --groups g.npy --json"
    assert calibrate(f"p.npy {rows} --dims 8,16,32 {promise} --test {judging}") == 0
    expected = Cascade.certify(probabilities, *truth, nesting=(8, 16, 32), max_disagreement=0.4, groups=groups)
    results = strict_json(capsys.readouterr().out)["results"]
    assert [(found["group"], found["n_judged"]) for found in results] == [(0, 60), (1, 30), (2, 0)]
    for found, group in zip(results, (0, 1), strict=False):
        part = np.flatnonzero(groups[:90] // 2 == group)
        evaluation = expected[group].evaluate(probabilities[:, part], *(y[part] for y in truth))
        assert found["curve"][-1] == json.loads(json.dumps(asdict(evaluation)))
    assert results[2]["curve"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--groups p.npy", "GROUPS.npy must hold an integer for each of 400 rows, got float32 (3, 400, 4); number the"),
        ("--groups short.npy", "GROUPS.npy must hold an integer for each of 400 rows, got int64 (5,)"),
        ("--groups none.npy", "`GROUPS.npy` must be a file to read, got 'none.npy'"),
        ("--groups y.npy --figure c.png", "--groups must come without --figure, which is of one cascade; leave it out"),
        ("--groups y.npy -o text", "-o must be a new folder with --groups, got 'text', a file; name another"),
        (
            "--groups y.npy --test p.npy",
            "--test must name probabilities and labels, and last groups, got 1 files; name",
        ),
        ("--groups y.npy --test p.npy y.npy y.npy y.npy", "labels, and last groups, got 4 files; name two or three"),
        ("--groups y.npy --test p.npy y.npy short.npy", "--test must hold an integer for each of 400 rows, got int64"),
        ("--groups y.npy --test p.npy none.npy", "`--test` must be a file to read, got 'none.npy'"),
        (
            "--groups y.npy --test p.npy y.npy far.npy",
            "in --groups, got 2 other groups, such as 7; leave their rows out",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(folder: Path, capsys: Capture, arguments: str, message: str) -> None:
    load("matplotlib")
    np.save("short.npy", np.load("y.npy")[:5])
    np.save("far.npy", np.where(np.arange(400) < 2, 7, np.load("y.npy")) + (np.arange(400) == 9) * 90)
    Path("text").touch()
    assert_refused(f"calibrate p.npy y.npy --dims 8,16,32 --max-gap 0.3 -o new {arguments}", message, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dims 8,x", "--dims: widths must be integers"),
        ("-o none/c.json", "-o/--output: 'none/c.json' must be in a folder that exists"),
        ("--figure none/c.png", "--figure: 'none/c.png' must be in a folder that exists"),
        ("-o .", "-o/--output: '.' must be new, or a file that may be replaced, got a folder"),
        ("-o y.npy", "-o/--output: 'y.npy' must be new, or a file that may be replaced, got a file of arrays"),
        ("--figure /dev/null", "--figure: '/dev/null' must be new, or a file that may be replaced, got a device"),
    ],
)
def test_wrong_options_are_refused_before_any_work(folder: Path, capsys: Capture, arguments: str, message: str) -> None:
    assert_usage_refused(f"calibrate p.npy y.npy {arguments}", f"matryoshka: error: argument {message}", capsys)
