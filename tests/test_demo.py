"""The demo: the data it accepts and refuses, that its seeds repeat, and what it writes and prints.

Networks are trained for a few steps only; how good they become is for the demo itself to say.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks, load

import_benchmarks("torch", "sklearn", "matplotlib", "tqdm")

from benchmarks.demo import __main__ as command  # noqa: E402
from benchmarks.demo import accuracy, experiment, report, retrieval, tables  # noqa: E402
from benchmarks.study import data, networks  # noqa: E402
from matryoshka import Corpus, Funnel  # noqa: E402

SMALL = experiment.Settings(seed=3, runs=2, dims=(2, 4, 8), training=networks.Training(steps=20, epochs=0), large=300)


def arrays(n: int = 60, n_classes: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Three groups of rows around three points, with class ids that do not start at 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, 5, 2)) * 3
    found = {}
    for part, size in (("train", n), ("test", n // 2)):
        labels = np.arange(size) % n_classes
        found[f"{part}_features"] = centres[labels] + rng.normal(size=(size, 5, 2))
        found[f"{part}_labels"] = labels * 10 + 7
    return found


def write(folder: Path, form: str, content: dict[str, np.ndarray]) -> str:
    if form == "npz":
        np.savez(folder / "set.npz", **content)
        return str(folder / "set.npz")
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    source = write(tmp_path_factory.mktemp("data"), "npz", arrays())
    return experiment.study(data.load(source), SMALL)


def test_the_default_are_the_digits() -> None:
    digits = data.load("digits")
    split = digits.split(seed=1)
    assert (len(digits.train), digits.n_features, digits.n_classes, digits.test) == (1797, 64, 10, None)
    assert len(split.train) + len(split.calibration) + len(split.test) == 1797
    rows = [row.tobytes() for part in (split.train, split.calibration, split.test) for row in part.features]
    assert len(set(rows)) == 1797  # no row of the digits stands twice, so none is in two parts


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_own_arrays_keep_their_test_rows(tmp_path: Path, form: str) -> None:
    dataset = data.load(write(tmp_path, form, arrays()))
    first, second = dataset.split(seed=0), dataset.split(seed=1)
    assert (dataset.n_features, dataset.n_classes, len(first.train), len(first.calibration)) == (10, 3, 48, 12)
    assert sorted(set(first.test.labels.tolist())) == [0, 1, 2]
    np.testing.assert_array_equal(first.test.labels, second.test.labels)
    assert not np.array_equal(first.train.labels, second.train.labels)
    assert abs(float(first.train.features.mean())) < 1e-5
    assert abs(float(first.train.features.std()) - 1) < 1e-5


def test_without_test_rows_each_seed_cuts_its_own(tmp_path: Path) -> None:
    content = {name: array for name, array in arrays().items() if name.startswith("train")}
    dataset = data.load(write(tmp_path, "npz", content))
    assert len(dataset.split(0).test) == 15
    assert not np.array_equal(dataset.split(0).test.features, dataset.split(1).test.features)


def test_equal_splits_from_equal_seeds(tmp_path: Path) -> None:
    dataset = data.load(write(tmp_path, "npz", arrays()))
    first, second = dataset.split(5), dataset.split(5)
    for part in ("train", "calibration", "test"):
        np.testing.assert_array_equal(getattr(first, part).features, getattr(second, part).features)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path: Path, suffix: str) -> None:
    images = np.arange(40 * 6).reshape(40, 3, 2) % 251
    for name, values in zip(data.IDX_FILES, (images, np.arange(40) % 2, images[:4], np.arange(4) % 2), strict=True):
        write_idx(tmp_path / f"{name}{suffix}", values)
    dataset = data.load(str(tmp_path))
    np.testing.assert_array_equal(dataset.train.features, images.reshape(40, 6))
    np.testing.assert_array_equal(dataset.test.labels, [0, 1, 0, 1])  # type: ignore[union-attr]


def test_mixtures_lie_between_two_rows_of_their_class() -> None:
    rows = data.Rows(np.array([[0.0], [1.0], [10.0], [12.0]], np.float32), np.array([1, 1, 0, 0]))
    mixed = data.mixtures(rows, 500, seed=0)
    low, high = np.where(mixed.labels == 1, 0, 10), np.where(mixed.labels == 1, 1, 12)
    assert set(mixed.labels.tolist()) == {0, 1}
    assert ((mixed.features[:, 0] >= low) & (mixed.features[:, 0] <= high)).all()
    assert len(np.unique(mixed.features)) > 200


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`--data` must be digits, fashion-mnist, an .npz file or a folder"):
        data.load(str(tmp_path / "none.npz"))
    with pytest.raises(FileNotFoundError, match="got nothing named train_features, train_labels"):
        data.load(str(tmp_path))
    content = arrays()
    del content["test_labels"]
    with pytest.raises(FileNotFoundError, match="got nothing named test_labels"):
        data.load(write(tmp_path, "npz", content))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="must be an .npz file of plain arrays"):
        data.load(str(tmp_path / "set.npz"))
    np.savez(tmp_path / "set.npz", train_features=np.array([{}]), train_labels=np.array([1]))
    with pytest.raises(ValueError, match="must be an .npz file of plain arrays"):
        data.load(str(tmp_path / "set.npz"))
    (tmp_path / "train_features.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="must be a .npy file of numbers"):
        data.load(str(tmp_path))


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path / data.IDX_FILES[0], np.zeros((4, 2, 2)))
    with pytest.raises(FileNotFoundError, match="must hold four idx files, got none named train-labels"):
        data.load(str(tmp_path))
    for name in data.IDX_FILES[1:]:
        write_idx(tmp_path / name, np.zeros(4))
    whole = (tmp_path / data.IDX_FILES[0]).read_bytes()
    for damaged in (whole[:-1], whole[:2], b"\0\0\x0d" + whole[3:]):
        (tmp_path / data.IDX_FILES[0]).write_bytes(damaged)
        with pytest.raises(ValueError, match="must be an idx file of unsigned bytes"):
            data.load(str(tmp_path))
    (tmp_path / data.IDX_FILES[0]).unlink()
    (tmp_path / f"{data.IDX_FILES[0]}.gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(ValueError, match="must be a whole gzip file"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.zeros(60)}, r"`train_labels` must be integers \(n,\), got float64"),
        ({"train_labels": np.zeros((60, 1), int)}, r"`train_labels` must be integers \(n,\), got int64 \(60, 1\)"),
        ({"train_labels": np.zeros(60, int)}, "at least 2 classes with at least 10 rows each, got 1"),
        ({"train_labels": np.arange(60) // 55}, "got 2 classes, the rarest with 5"),
        ({"train_labels": np.arange(50) % 2}, "one row for each of the 50 labels"),
        ({"train_features": np.zeros(60)}, r"`train_features` must have shape \(n, …\)"),
        ({"train_features": np.zeros((60, 0))}, r"`train_features` must have shape \(n, …\)"),
        ({"train_features": np.full((60, 10), "a")}, "`train_features` must be real numbers, got <U1"),
        ({"train_features": np.full((60, 10), np.nan)}, "`train_features` must be finite in float32, got 60 rows"),
        ({"train_features": np.full((60, 10), 1e39)}, "finite in float32, got 60 rows"),
        ({"test_features": np.zeros((30, 9))}, "must be equally wide, got 10 and 9"),
        ({"test_features": np.zeros((29, 10))}, "`test_features` must have shape"),
        ({"test_labels": np.full(30, 8)}, "`test_labels` must name classes that the training rows have, got 30 others"),
    ],
)
def test_unfit_arrays_are_refused(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    source = write(tmp_path, "npz", arrays() | change)
    with pytest.raises(ValueError, match=message):
        data.load(source)


def test_plans_cover_every_width_once() -> None:
    plans = retrieval.plans((2, 4, 8, 16, 32, 64))
    assert len(set(plans)) == len(plans) == 15
    assert ("adaptive", Funnel((8, 64), (50,))) in plans
    assert ("funnel", Funnel((8, 16, 32, 64), (50, 25, 10))) in plans


def test_a_head_of_full_rank_is_the_head_itself(tmp_path: Path) -> None:
    split = data.load(write(tmp_path, "npz", arrays())).split(0)
    with networks.reproducible(), networks.tqdm(disable=True) as progress:
        network = networks.train(split.train, 8, (8,), 3, seed=0, progress=progress, training=SMALL.training)
    weight, bias = network.only_classifier()
    bias[:] = (0.0, 2.0, -1.0)  # enough to change answers
    answers = network.probabilities(split.test.features)[0].argmax(-1)
    low_rank = [accuracy._low_rank_head(network, rank, split.test) for rank in (3, 8)]
    assert low_rank == [float((answers == split.test.labels).mean())] * 2
    rank_one = np.linalg.svd(weight)[0][:, :1] @ (np.linalg.svd(weight)[0][:, :1].T @ weight)
    logits = network.embed(split.test.features) @ rank_one.T + bias
    expected = float((logits.argmax(-1) == split.test.labels).mean())
    assert accuracy._low_rank_head(network, 1, split.test) == expected


def test_the_nearest_row_is_found_by_cosine(rng: np.random.Generator) -> None:
    features, queries = rng.normal(size=(30, 4)), rng.normal(size=(9, 4))
    labels, query_labels = np.arange(30) % 3, np.arange(9) % 3
    rows = data.Rows(features, labels)
    split = data.Split(train=rows, calibration=rows, test=data.Rows(queries, query_labels))
    for dim, share in accuracy._one_nn(features, queries, split, (2, 4)).items():
        hits = 0
        for query, label in zip(queries[:, :dim], query_labels, strict=True):
            cosines = [float(row @ query / (row @ row) ** 0.5) for row in features[:, :dim]]
            hits += labels[cosines.index(max(cosines))] == label
        assert share == pytest.approx(hits / 9)


def test_the_same_seed_gives_the_same_numbers(record: dict[str, Any], tmp_path: Path) -> None:
    dataset = data.load(write(tmp_path, "npz", arrays()))
    again, other = experiment.study(dataset, SMALL), experiment.study(dataset, replace(SMALL, seed=4))
    assert without_seconds(again) == without_seconds(record)
    assert other["linear"] != record["linear"]


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def test_the_record_holds_every_method_at_every_width(record: dict[str, Any]) -> None:
    for judge in ("linear", "nearest_neighbor"):
        assert tuple(record[judge]) == accuracy.METHODS
        for found in record[judge].values():
            assert list(found) == ["2", "4", "8"]
            assert all(len(summary["runs"]) == 2 and 0 <= summary["mean"] <= 1 for summary in found.values())
    assert [(found["network"], found["calibration"]) for found in record["cascades"]] == [
        ("MRL", "published"),
        ("MRL", "certified"),
        ("MRL", "without labels"),
        ("MRL-E", "published"),
        ("MRL-E", "certified"),
        ("MRL-E", "without labels"),
    ]
    assert [point["cap"] for point in record["cascades"][0]["curve"]] == [4, 8]
    full = tables.full_width(record["plans"]["large"])
    assert (full["dims"], full["multiply_adds"], full["bytes"]) == ([8], 300 * 8, 300 * 8 * 4)
    assert json.loads(json.dumps(record)) == record


def plan_of(kind: str, dims: list[int], quality: float, alone: float, batch: float, **found: float) -> dict[str, Any]:
    """Return the record of a plan that counts a thousand multiply-adds for each of its first columns."""
    seconds = {"alone": alone * 1e-6, "batch": batch * 1e-6}
    given = {"near_ties": 10.0} | found if kind == "exact" else found
    return {"kind": kind, "dims": dims, "map": quality, "multiply_adds": 1000 * dims[0], "seconds": seconds, **given}


FULL = plan_of("exact", [64], 0.990, 2400, 400)


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        ([plan_of("funnel", [8, 16, 64], 0.99, 800, 240)], ["the plan *funnel 8 > 16 > 64* finds"]),
        (
            [plan_of("funnel", [8, 16, 64], 0.99, 800, 250), plan_of("exact", [16], 0.993, 750, 210)],
            [
                "the plan *exact 16* finds",
                "mAP@10 99.3 against 99.0%) with 4.0 times fewer",
                "the clock says 3.2 times faster for single queries and 1.9 times in batches of 64.",
                "*funnel 8 > 16 > 64* counts 8.0 times fewer in more steps, but is hardly faster: 3.0 times faster",
            ],
        ),
        (
            [plan_of("funnel", [8, 16, 64], 0.99, 800, 200), plan_of("exact", [16], 0.993, 750, 230)],
            ["the plan *funnel 8 > 16 > 64* finds"],
        ),
        (
            [plan_of("adaptive", [8, 64], 0.985, 800, 200), plan_of("exact", [8], 0.984, 400, 100)],
            ["the plan *adaptive 8 > 64* finds"],
        ),
        ([plan_of("exact", [16], 0.984, 750, 210)], ["No other plan came within 0.5 points of exact search in 300"]),
    ],
)
def test_the_simplest_plan_that_does_as_well_is_named(plans: list[dict[str, Any]], said: list[str]) -> None:
    [line] = report._search_lines({"plans": {"large": [FULL, *plans]}, "settings": {"large": 300}})
    assert all(part in line for part in said)


def test_near_ties_explain_a_short_search_that_is_slow() -> None:
    good = plan_of("exact", [16], 0.992, 750, 200)

    def lines(short: dict[str, Any]) -> list[str]:
        return report._search_lines({"plans": {"large": [FULL, short, good]}, "settings": {"large": 300}})[1:]

    [line] = lines(plan_of("exact", [2], 0.6, 1000, 500, near_ties=812.3))
    assert line == (
        "**Not faster.** *exact 2* counts less than *exact 16* and takes 2.5 times as long in batches: for a query, "
        "812 rows score like the last of the best 10 to six digits, and are to be told apart."
    )
    assert lines(plan_of("exact", [2], 0.6, 1000, 500, near_ties=19.0)) == []
    assert lines(plan_of("exact", [2], 0.6, 1000, 210, near_ties=812.3)) == []
    assert lines(plan_of("exact", [32], 0.6, 1000, 500, near_ties=812.3)) == []


def test_near_ties_are_counted() -> None:
    rows = np.array([[1.0, second, 0.0] for second in [0.1] * 3 + [0.0] * 12 + [0.5] * 25])
    task = retrieval.Task(Corpus(rows), np.arange(40), np.array([[1.0, 0.05, 0.0]] * 4), np.arange(4))
    assert retrieval.near_ties(task, Funnel((1,))) == 40  # nothing tells them apart
    assert retrieval.near_ties(task, Funnel((2,))) == 12  # after the three of the best


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch = load("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_nothing_is_left_changed() -> None:
    torch = load("torch")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state()
    with networks.reproducible():
        torch.manual_seed(1)
    after = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_tables_are_aligned_and_plain() -> None:
    table = tables.Table("Title", ["plan", "n"], [["exact 8", "1"], ["x", "10,000"]])
    assert table.text() == "Title\nplan          n\n-------  ------\nexact 8       1\nx        10,000"
    assert table.markdown() == "| plan | n |\n| --- | ---: |\n| exact 8 | 1 |\n| x | 10,000 |"


def test_percent_shows_the_spread_of_several_runs() -> None:
    assert tables.percent(0.12345) == "12.3"
    assert tables.percent({"mean": 0.5, "sd": None, "runs": [0.5]}) == "50.0"
    assert tables.percent({"mean": 0.5, "sd": 0.0149, "runs": [0.4, 0.6]}) == "50.0 ± 1.5"


@pytest.mark.parametrize("draw", list(report.FIGURES.values()))
def test_figures_are_drawn(record: dict[str, Any], draw: Any) -> None:
    assert draw(record).startswith(b"\x89PNG")


def test_the_command_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = write(tmp_path, "npz", arrays()), tmp_path / "a" / "report"
    monkeypatch.setattr(command, "Settings", lambda **options: replace(SMALL, **options))
    command.main(["--data", source, "--output", str(output), "--runs", "1"])
    printed, bars = capsys.readouterr()
    assert bars == ""
    assert "\x1b" not in printed
    assert "*" not in printed
    assert "Accuracy of a linear classifier (%)\ndim" in printed
    text = (output / "report.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in output.iterdir()) == sorted([*report.FIGURES, "report.md", "results.json"])
    assert set(re.findall(r"!\[[^]]+\]\((.+?)\)", text)) == set(report.FIGURES)
    results = json.loads((output / "results.json").read_text())
    assert results["settings"]["seeds"] == [0]
    assert f"first MRL network:\n{results['audit']}\n" in printed
    assert "{" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "error: `--data` must be digits"),
        (["--output", "file/report"], "error: "),
        (["--seed", "-1"], r"must be within \[0, 2147483648\], got -1"),
        (["--runs", "0"], r"must be within \[1, 1000\], got 0"),
        (["--runs", "two"], "--runs: invalid integer value: 'two'"),
    ],
)
def test_bad_arguments_end_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, last)
    assert not (tmp_path / "report").exists()


def test_an_interruption_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "study", interrupted)
    with pytest.raises(SystemExit) as ended:
        command.main(["--output", str(tmp_path / "report")])
    assert ended.value.code == 130
    assert "nothing written" in capsys.readouterr().err
    assert list((tmp_path / "report").iterdir()) == []


def test_a_failed_write_leaves_the_old_file(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.json").write_text("old")
    monkeypatch.setattr(report.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write(record, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "old"
