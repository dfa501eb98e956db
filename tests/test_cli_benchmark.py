"""matryoshka benchmark: what it counts, prints and writes, and one line about every bad input."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, assert_refused, assert_usage_refused, names, strict_json
from conftest import load

from matryoshka import Corpus, Funnel, Rotation, costs, metrics
from matryoshka._commands import _measure, _picture, benchmark
from matryoshka._commands._elsewhere import Elsewhere
from matryoshka._commands._inputs import bad_rows
from matryoshka._commands._measure import Engine, Measured, Plan, Task, Times
from matryoshka._commands._report import Report
from matryoshka.cli import main


@pytest.fixture(autouse=True)
def _quick_and_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_measure, "SECONDS", 0.0)
    monkeypatch.setattr(_measure, "ROUNDS", (2, 2))


@pytest.fixture
def files(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows, queries = ((rng.normal(size=(n, 32)) * 0.9 ** np.arange(32)).astype(np.float32) for n in (300, 40))
    np.save("rows.npy", rows)
    np.save("queries.npy", queries)
    np.save("labels.npy", np.arange(300) % 7)
    np.save("query_labels.npy", np.arange(40) % 7)
    return rows, queries


def unwrapped(report: object) -> list[str]:
    """Return what is printed, all of a row or sentence in one line; no line of it is too wide."""
    text = str(report)
    assert max(map(len, text.splitlines())) <= 100
    return re.sub("\n +", " ", text).splitlines()


LABELS = "--labels labels.npy --query-labels query_labels.npy"


def record_of(arguments: str) -> dict[str, Any]:
    load("matplotlib")
    assert main(["benchmark", *arguments.split(), "-o", "out"]) == 0
    parsed: dict[str, Any] = json.loads(Path("out", "benchmark.json").read_text(encoding="utf-8"))
    return parsed


def test_counts_and_qualities_are_those_of_the_library(files: tuple[np.ndarray, np.ndarray]) -> None:
    rows, queries = files
    record = record_of(f"rows.npy queries.npy --k 3 --batch 1,8 {LABELS}")
    asked = np.random.default_rng(0).permutation(40)[20:]
    corpus, labels = Corpus(rows), np.arange(300) % 7
    exact = corpus.search(queries[asked], 3)[1]
    assert record["n_queries"] == 20
    assert {plan["kind"] for plan in record["plans"]} >= {"full", "prefix", "adaptive"}
    for plan in record["plans"]:
        funnel = Funnel(plan["dims"], plan["keep"], code=plan["code"])
        ids = corpus.search(queries[asked], 3, funnel=funnel)[1]
        assert plan["recall"] == metrics.overlap_at_k(ids, exact, 3)
        relevance = metrics.relevance(ids, labels, (np.arange(40) % 7)[asked])
        assert plan["mean_average_precision"] == metrics.mean_average_precision(relevance, 3)
        assert plan["multiply_adds"] == funnel.multiply_adds(300)
        assert plan["bytes"] == costs.funnel_bytes(300, funnel.dims, funnel.keep, executed=True)
        assert plan["theory"] == pytest.approx(costs.search(300, 32) / funnel.multiply_adds(300))
        assert [times["batch"] for times in plan["times"]] == [1, 8]
        assert all(0 < times["median"] <= times["p95"] for times in plan["times"])
        assert all(times["speedup"] == times["exact"] / times["median"] for times in plan["times"])


def test_prints_table_and_advice_plainly(files: tuple[np.ndarray, np.ndarray]) -> None:
    program = (
        "from matryoshka._commands import _measure; _measure.SECONDS, _measure.ROUNDS = 0, (2, 2); "
        "from matryoshka.cli import main; main(['benchmark', 'rows.npy', 'queries.npy'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    lines = unwrapped(done.stdout.decode("ascii"))
    assert done.stderr == b""
    assert b"\r" not in done.stdout
    assert lines[0].startswith("rows.npy: 300 rows of 32 columns, cosine; 20 queries")
    assert (
        lines[1]
        == "rows: 0.0 MB mapped from their file (--in-memory reads them first); in memory: what searches start with"
    )
    assert lines[3].split()[:3] == ["engine", "plan", "multiply-adds"]
    assert lines[4].split()[:4] == ["exact", "full", "32", "9,600"]
    table = [line for line in done.stdout.splitlines() if line.startswith((b"engine", b"exact"))]
    assert len(set(map(len, table))) == 1
    assert any(line.startswith("fastest with recall@10 >= 0.95 at batch 20: ") for line in lines)
    assert lines[-1].startswith("calibrated")
    assert names() == ["labels.npy", "queries.npy", "query_labels.npy", "rows.npy"]


def row_of_report(recall: float, plan: Plan, median: float, exact: float) -> Measured:
    return Measured("faiss:IVF64,Flat", plan, None, None, None, (Times(1, median, median, exact),), recall, None)


def exact_row(kind: str, dims: tuple[int, ...], clock: float, recall: float = 1.0, **found: Any) -> Measured:
    """Return a plan of the exact engine beside an exact search of one millisecond."""
    plan = Plan(kind, Funnel(dims, (50,) * (len(dims) - 1)))
    times = (Times(1, 1e-3 / clock, 1e-3 / clock, 1e-3),)
    given: dict[str, Any] = {"multiply_adds": 1e3, "bytes": 4e3, "theory": 9.0, "mean_average_precision": None} | found
    return Measured("exact", plan, times=times, recall=recall, **given)


FULL = exact_row("full", (32,), 1.0, theory=1.0)
FOURFOLD = "4.0 x on the clock, 9.0 x by count"


SETTINGS = {
    "source": "rows.npy", "n": 300, "dim": 32, "metric": "cosine", "k": 10, "n_queries": 20, "batches": (1,),
    "threads": 1, "recall": 0.95, "mapped": True, "rows_bytes": 38_400, "rotation": None, "dtype": "float32",
}  # fmt: skip


def test_nothing_may_reach_the_recall() -> None:
    measured = [row_of_report(0.2, Plan("prefix", Funnel((8,), ())), 1e-3, 2e-3)]
    measured.append(row_of_report(0.94, Plan("full", Funnel((32,), ())), 1e-3, 2e-3))
    text = str(Report(SETTINGS, measured, ["a note."]))
    assert text.splitlines()[-2:] == [
        "nothing reached recall@10 >= 0.95; faiss:IVF64,Flat, full 32 came closest: 0.940.", "a note."
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [exact_row("adaptive", (8, 32), 4), exact_row("prefix", (16,), 3.7)],
            f"adaptive 8 > 32: {FOURFOLD}; as fast within 10% and simpler: exact, prefix 16: 3.7 x",
        ),
        ([exact_row("adaptive", (8, 32), 4.0), exact_row("prefix", (16,), 3.5)], "adaptive 8 > 32: 4.0 x"),
        ([exact_row("adaptive", (8, 32), 4.0), exact_row("prefix", (8,), 9.0, 0.94)], "adaptive 8 > 32: 4.0 x"),
        ([exact_row("prefix", (8,), 4.0), exact_row("prefix", (16,), 3.9)], "prefix 8: 4.0 x"),
        (
            [exact_row("funnel", (8, 16, 32), 1.05), exact_row("prefix", (8,), 9.0, 0.1)],
            "funnel 8 > 16 > 32: 1.1 x on the clock, 9.0 x by count; the exact search does as well.",
        ),
        (
            [exact_row("adaptive", (8, 32), 0.95)],
            "full 32: 1.0 x on the clock, 1.0 x by count, the exact search itself.",
        ),
    ],
)
def test_the_simplest_plan_that_does_as_well_is_named(rows: list[Measured], said: str) -> None:
    said = said if said.endswith(".") else f"{said} on the clock, 9.0 x by count."
    line = f"fastest with recall@10 >= 0.95 at batch 1: exact, {said}"
    assert unwrapped(Report(SETTINGS, [FULL, *rows], []))[-1] == line


def test_an_index_of_the_full_width_is_not_the_exact_search() -> None:
    index = replace(FULL, engine="faiss:HNSW32", recall=0.97, times=(Times(1, 2e-4, 2e-4, 1e-3),))
    line = "fastest with recall@10 >= 0.95 at batch 1: faiss:HNSW32, full 32: 5.0 x on the clock, 1.0 x by count"
    assert unwrapped(Report(SETTINGS, [FULL, index], []))[-1] == f"{line}."
    as_fast = replace(index, times=(Times(1, 0.91e-3, 0.91e-3, 1e-3),))
    assert unwrapped(Report(SETTINGS, [as_fast], []))[-1].endswith("; the exact search does as well.")
    rows = [FULL, index, exact_row("adaptive", (8, 32), 4.6)]
    simpler = "exact, adaptive 8 > 32: 4.6 x on the clock, 9.0 x by count."
    assert unwrapped(Report(SETTINGS, rows, []))[-1] == f"{line}; as fast within 10% and simpler: {simpler}"


def test_bits_are_counted_in_bytes(files: tuple[np.ndarray, np.ndarray], capsys: Capture) -> None:
    rng = np.random.default_rng(5)
    np.save("rows.npy", rows := rng.normal(size=(300, 96)).astype(np.float32))
    np.save("queries.npy", rng.normal(size=(40, 96)).astype(np.float32))
    record = record_of("rows.npy queries.npy --k 3 --batch 2 --dims 48,64")
    bits = [plan for plan in record["plans"] if plan["kind"] == "bits"]
    assert [(plan["dims"], plan["code"]) for plan in bits] == [([64, 96], "bits"), ([96, 96], "bits")]
    corpus, asked = Corpus(rows), np.load("queries.npy")[np.random.default_rng(0).permutation(40)[20:]]
    exact = corpus.search(asked, 3)[1]
    for plan in bits:
        funnel = Funnel(plan["dims"], plan["keep"], code="bits")
        assert plan["theory"] == pytest.approx(300 * 96 * 4 / funnel.bytes(300))
        assert plan["recall"] == metrics.overlap_at_k(corpus.search(asked, 3, funnel=funnel)[1], exact, 3)
    shown = [line.split()[:5] for line in capsys.readouterr().out.splitlines() if "bits" in line.split()[:2]]
    assert shown == [["exact", "bits", "64", ">", "96"], ["exact", "bits", "96", ">", "96"]]


def test_labels_may_be_content_with_a_plain_cut() -> None:
    rows = [replace(FULL, mean_average_precision=0.8), exact_row("prefix", (4,), 9.0, 0.2, mean_average_precision=0.79)]
    rows.append(exact_row("prefix", (8,), 3.0, 0.3, mean_average_precision=0.796))
    lines = unwrapped(Report(SETTINGS, rows, []))
    assert lines[-2].endswith("exact, full 32: 1.0 x on the clock, 1.0 x by count, the exact search itself.")
    assert lines[-1] == (
        "fastest with mAP@10 >= 0.795 (full width: 0.800) at batch 1: exact, prefix 8: 3.0 x on the clock, "
        "9.0 x by count."
    )


def test_slow_plans_are_explained_by_what_was_measured() -> None:
    rows = [FULL, exact_row("prefix", (8,), 4.0, 0.5), exact_row("adaptive", (8, 32), 0.5)]
    rows += [exact_row("funnel", (8, 16, 32), 0.25), exact_row("adaptive", (16, 32), 0.5)]
    explained = (
        "slower than the exact search at batch 1 (1.000 ms): 2 of 2 plans in stages; longer lists and reranking take "
        "most of their 2.000 to 4.000, since searching the prefix alone takes 0.250"
    )
    mapped = "; candidates are gathered from the mapped file: compare --in-memory."
    assert unwrapped(Report(SETTINGS, rows, []))[-1] == explained + mapped
    assert unwrapped(Report(SETTINGS | {"mapped": False}, rows, []))[-1] == f"{explained}."
    for quick in (replace(rows[2], theory=1.9), exact_row("adaptive", (8, 32), 0.91), rows[4]):
        assert "slower" not in str(Report(SETTINGS, [*rows[:2], quick], []))
    slow_start = exact_row("prefix", (8,), 0.9, 0.5)  # takes more than half of the time of what starts with it
    assert "slower" not in str(Report(SETTINGS, [FULL, slow_start, rows[2]], []))


def test_near_ties_explain_a_short_prefix_that_is_slow() -> None:
    rows = [FULL, exact_row("prefix", (2,), 0.5, near_ties=53.4), exact_row("prefix", (8,), 4.0, near_ties=10.0)]
    assert unwrapped(Report(SETTINGS, rows, []))[-1] == (
        "at batch 1, prefix 2 is slower than prefix 8, 2.000 against 0.250 ms: 53 rows score like the last of the best "
        "10 to six digits, and are to be told apart."
    )
    assert ": at least 1,005 rows" in str(Report(SETTINGS, [FULL, replace(rows[1], near_ties=1005.0), rows[2]], []))
    assert "slower" not in str(Report(SETTINGS, [FULL, replace(rows[1], near_ties=19.0), rows[2]], []))
    assert "slower" not in str(Report(SETTINGS, [FULL, exact_row("prefix", (2,), 3.7, near_ties=53.4), rows[2]], []))


def test_near_ties_are_counted() -> None:
    rows = np.zeros((40, 3), np.float32)
    rows[:, 0], rows[:, 1], rows[:, 2] = 1.0, np.arange(40) // 13, np.arange(40)
    task = Task(Corpus(rows, metric="l2"), np.array([[0.0, 1.0, 7.0]] * 3, np.float32), 5, (1,))
    for width, alike in ((1, 40.0), (2, 13.0), (3, 2.0)):  # at 3 columns, two are as far as the fifth
        found = _measure._measured(task, Engine("exact"), task.corpus, Plan("prefix", Funnel((width,))), ())
        assert found.near_ties == alike


def test_a_clock_that_was_disturbed_is_not_trusted() -> None:
    slow = replace(exact_row("prefix", (8,), 2.0), times=(Times(1, 1e-3, 1e-3, 1.6e-3),))
    assert unwrapped(Report(SETTINGS, [FULL, slow], []))[-2] == (
        "at batch 1 the exact search took 1.000 to 1.600 ms, more beside some plans than beside others: something else "
        "kept the machine busy; measure again."
    )
    assert "busy" not in str(Report(SETTINGS, [FULL, replace(slow, times=(Times(1, 1e-3, 1e-3, 1.4e-3),))], []))


def test_rows_are_shown_as_they_are_found(
    files: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen: list[list[str]] = []

    def calibrate(*_: Any, **__: Any) -> Funnel:
        seen.append([line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("exact")])
        raise KeyboardInterrupt

    monkeypatch.setattr(Funnel, "calibrate", calibrate)
    assert main(["benchmark", "rows.npy", "queries.npy", "--dims", "8"]) == 130
    assert seen == [["full", "prefix", "adaptive", "funnel"]]


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_corpus_may_be_read_into_memory(files: tuple[np.ndarray, np.ndarray], capsys: Capture, dtype: type) -> None:
    for name, array in zip(("rows", "queries"), files, strict=True):
        np.save(f"{name}.npy", (array * 1000).astype(dtype))
    found = []
    for options in ("", " --in-memory"):
        record = record_of(f"rows.npy queries.npy{options}")
        assert record["mapped"] == (options == "" and dtype is np.float32)  # integers become float32 in memory
        assert ("rows: 0.0 MB in memory\n" in capsys.readouterr().out) != record["mapped"]
        assert record["rows_bytes"] == 300 * 32 * 4
        found.append([(plan["dims"], plan["keep"], plan["recall"]) for plan in record["plans"]])
    assert found[0] == found[1]


def test_rows_narrower_than_float32_are_said_to_be_converted(
    files: tuple[np.ndarray, np.ndarray], capsys: Capture
) -> None:
    Rotation.fit(files[0]).save("turn")
    np.save("half.npy", files[0].astype(np.float16))
    note = (
        "rows are float16: each exact search converts them all; as float32 it is faster and the gains below are smaller"
    )
    for arguments, noted in (
        ("half.npy", True), ("half.npy --in-memory", True), ("rows.npy", False), ("half.npy --rotation turn", False)
    ):  # fmt: skip
        rows, *options = arguments.split()
        assert main(["benchmark", rows, "queries.npy", "--batch", "1", *options]) == 0
        head = " ".join(capsys.readouterr().out.partition("engine")[0].split())
        assert (note in head) == noted
        assert ("float16" in head) == noted


def test_of_many_queries_some_are_measured(monkeypatch: pytest.MonkeyPatch, files: tuple[np.ndarray, ...]) -> None:
    monkeypatch.setattr(benchmark, "MOST_MEASURED", 7)
    monkeypatch.setattr(benchmark, "MOST_CALIBRATING", 6)
    record = record_of("rows.npy queries.npy --batch 1,4")
    assert (record["n_queries"], record["batches"]) == (7, [1, 4])
    assert "over 3 queries (3 others chose the candidates)" in record["notes"][-1]
    assert record_of("rows.npy queries.npy --batch 1,9")["n_queries"] == 9


def test_a_rotation_is_counted_with_each_query(files: tuple[np.ndarray, np.ndarray], capsys: Capture) -> None:
    rows, queries = files
    rotation = Rotation.fit(rows[:, ::-1].copy())  # of other rows: what is searched is turned by it, not sorted
    rotation.save("turn")
    record = record_of("rows.npy queries.npy --k 3 --batch 1 --rotation turn")
    assert "rows are rotated by turn; to rotate a query is part of each count and time" in capsys.readouterr().out
    assert not record["mapped"]
    asked = np.random.default_rng(0).permutation(40)[20:]
    corpus, turned = Corpus(rotation.apply(rows)), rotation.apply(queries[asked])
    exact = corpus.search(turned, 3)[1]
    for plan in record["plans"]:
        funnel, own = Funnel(plan["dims"], plan["keep"], code=plan["code"]), 32 * 32 * (plan["kind"] != "full")
        assert plan["multiply_adds"] == funnel.multiply_adds(300) + own
        assert plan["bytes"] == funnel.bytes(300) + 4 * own
        assert plan["recall"] == metrics.overlap_at_k(corpus.search(turned, 3, funnel=funnel)[1], exact, 3)


def test_labels_of_the_figure_never_collide_and_names_are_those_of_the_table() -> None:
    load("matplotlib")
    measured = []
    for engine in range(4):
        for i, dim in enumerate((8, 16, 1024)):
            row = row_of_report(0.5 + i / 1000, Plan("prefix", Funnel((dim,), ())), 1e-3, 1e-3)
            measured.append(replace(row, engine=f"engine {engine}", bytes=1e3 * dim))
    measured.append(replace(measured[0], plan=Plan("full", Funnel((2048,), ())), recall=1.0))
    canvas = _picture.figure(SETTINGS, measured)
    for axes in canvas.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) >= 3
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    names = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert [name.partition(": ")[0] for name in names[4:]] == ["prefix", "full"]


def test_the_legend_of_the_figure_is_not_cut() -> None:
    load("matplotlib")
    kinds = ("full", "prefix", "adaptive", "funnel", "bits", "calibrated")
    measured = [
        replace(row_of_report(0.5 + i / 10, Plan(kind, Funnel((32,), ())), 1e-3, 1e-3), bytes=1e3)
        for i, kind in enumerate(kinds)
    ]
    (legend,) = _picture.figure(SETTINGS, measured).legends
    box, whole = legend.get_window_extent(), legend.figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert len(legend.get_texts()) == 1 + len(kinds)


def test_the_clock_is_the_ratio_of_two_columns() -> None:
    measured = [row_of_report(1.0, Plan("full", Funnel((32,), ())), 0.599e-3, 2.941e-3)]
    lines = unwrapped(Report(SETTINGS, measured, []))
    assert lines[3].split()[-7:] == ["recall@10", "ms,", "batch", "1", "p95", "exact", "clock"]
    assert lines[4].split()[-6:] == ["1.000", "0.599", "0.599", "2.941", "4.9", "x"]
    assert lines[7].startswith("clock = exact / ms")


def test_a_row_takes_the_lines_it_needs() -> None:
    row = row_of_report(1.0, Plan("full", Funnel((2048,), ())), 0.599e-3, 2.941e-3)
    row = replace(row, engine="faiss:IVF64,Flat@nprobe=8", times=row.times * 3, mean_average_precision=0.5)
    report = Report(SETTINGS | {"dim": 2048, "n": 10**6, "batches": (1, 8, 64)}, [row], [])
    assert unwrapped(report)[4].split() == [
        *["faiss:IVF64,Flat@nprobe=8", "full", "2048", "-", "-", "-", "1.000", "0.500"],
        *["0.599", "0.599", "2.941", "4.9", "x"] * 3,
    ]
    printed = str(report).splitlines()
    shown = printed[printed.index("") + 1 :][:6]
    assert [line.startswith("    ") for line in shown] == [False, True, True] * 2
    assert [len(line) for line in shown[1:3]] == [len(line) for line in shown[4:]]


@pytest.mark.parametrize("output", [False, True])
def test_json_is_all_that_is_printed(files: tuple[np.ndarray, np.ndarray], capsys: Capture, *, output: bool) -> None:
    arguments = ["benchmark", "rows.npy", "queries.npy", "--dims", "8", "--batch", "2", "--json"]
    if output:
        load("matplotlib")
    assert main([*arguments, *["-o", "out"] * output]) == 0
    printed = capsys.readouterr()
    record = strict_json(printed.out)
    assert (record["kind"], record["dim"], record["batches"]) == ("benchmark", 32, [2])
    assert [plan["kind"] for plan in record["plans"]][:2] == ["full", "prefix"]
    if output:
        assert json.loads(Path("out", "benchmark.json").read_text(encoding="utf-8")) == record
    assert printed.err == ("wrote out/benchmark.txt, .json and .png\n" if output else "")


def test_a_bar_shows_progress_on_a_terminal(
    files: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    load("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["benchmark", "rows.npy", "queries.npy", "--dims", "8", "--batch", "1"]) == 0
    printed = capsys.readouterr()
    assert "/6" in printed.err  # full, prefix, adaptive, funnel; to calibrate, and what comes of it
    assert "calibrating with 20 queries" in printed.err
    assert "%" not in printed.out


def test_without_a_bar_the_work_is_done_all_the_same(
    files: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["benchmark", "rows.npy", "queries.npy", "--dims", "8", "--batch", "1"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("exists", [False, True])
def test_writes_table_figure_and_json(exists: bool, capsys: Capture) -> None:
    load("matplotlib")
    if exists:
        Path("out").mkdir()
        Path("out", "mine.txt").write_text("stays", encoding="utf-8")
    assert main(["benchmark", "--n", "120", "--dim", "16", "-o", "out"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(Path("out", "benchmark.txt").read_text(encoding="utf-8"))
    assert printed.startswith("generated: 120 rows of 16 columns, cosine; 500 queries")
    assert "mAP@10" in printed
    assert Path("out", "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert len(names("out")) == 3 + exists


def test_generated_vectors_are_alike_in_class_and_ordered_by_column() -> None:
    options = argparse.Namespace(labels=None, query_labels=None, n=500, dim=24, seed=3)
    vectors = benchmark._generate(options)
    assert vectors.labels is not None
    assert (vectors.rows.shape, vectors.queries.shape, len(vectors.labels[0])) == ((500, 24), (1000, 24), 500)
    spread = vectors.rows.std(axis=0)
    assert spread[0] > 3 * spread[8] > 3 * spread[23]
    ids = Corpus(vectors.rows).search(vectors.queries, 1)[1]
    assert (vectors.labels[0][ids[:, 0]] == vectors.labels[1]).mean() > 0.5
    np.testing.assert_array_equal(benchmark._generate(options).rows, vectors.rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_other_numbers_are_read(files: tuple[np.ndarray, np.ndarray], dtype: type) -> None:
    for name, array in zip(("rows", "queries"), files, strict=True):
        np.save(f"other_{name}.npy", np.round(array * 20).astype(dtype))
    record = record_of("other_rows.npy other_queries.npy")
    first, *_ = record["plans"]
    assert first["recall"] == 1.0
    assert record["dtype"] == {np.int8: "float32"}.get(dtype, np.dtype(dtype).name)
    assert first["bytes"] == 300 * 32 * (8 if dtype is np.float64 else 4)


def test_indexes_are_measured_beside_the_exact_engine(files: tuple[np.ndarray, np.ndarray]) -> None:
    load("faiss")
    record = record_of("rows.npy queries.npy --engine exact,faiss:Flat,faiss:IVF4,Flat@nprobe=4,faiss:SQ8 --dims 8,16")
    by_engine: dict[str, list[dict[str, Any]]] = {}
    for plan in record["plans"]:
        by_engine.setdefault(plan["engine"], []).append(plan)
    assert list(by_engine) == ["exact", "faiss:Flat", "faiss:IVF4,Flat@nprobe=4", "faiss:SQ8"]
    for exact, flat, lists, codes in zip(*by_engine.values(), strict=True):
        assert flat["multiply_adds"] == exact["multiply_adds"]
        assert lists["multiply_adds"] == exact["multiply_adds"] + 4 * exact["dims"][0]  # and the four centres
        assert flat["recall"] == lists["recall"] == exact["recall"]
        assert codes["multiply_adds"] is codes["bytes"] is codes["theory"] is None
        assert codes["recall"] > 0.9 * exact["recall"]
    assert "an index misses rows of its own" in record["notes"][-1] or "left out" in record["notes"][-1]


@pytest.fixture
def wide_files(rng: np.random.Generator) -> np.ndarray:
    rows, queries = (rng.normal(size=(n, 100)).astype(np.float32) for n in (300, 40))
    np.save("rows.npy", rows)
    np.save("queries.npy", queries)
    np.save("labels.npy", np.arange(300) % 7)
    np.save("query_labels.npy", np.arange(40) % 7)
    return rows


@pytest.mark.usefixtures("wide_files")
def test_binary_indexes_start_in_bits_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    load("faiss")
    monkeypatch.setattr(Funnel, "calibrate", lambda *_, **__: Funnel((48, 100), (20,)))
    record = record_of(f"rows.npy queries.npy --engine exact,faiss:BFlat,faiss:BHNSW8 --dims 48,64,80 {LABELS}")
    by_engine: dict[str, list[dict[str, Any]]] = {}
    for plan in record["plans"]:
        by_engine.setdefault(plan["engine"], []).append(plan)
    exact = [plan for plan in by_engine["exact"] if plan["code"] == "bits"]
    assert [plan["dims"] for plan in exact] == [[64, 100], [80, 100], [100, 100]]
    for own, flat, graph in zip(exact[:2], by_engine["faiss:BFlat"], by_engine["faiss:BHNSW8"], strict=True):
        assert flat["dims"] == graph["dims"] == own["dims"]
        assert flat["recall"] == pytest.approx(own["recall"], abs=0.01)  # ties are broken otherwise
        assert flat["multiply_adds"] == 200 * 100
        assert flat["bytes"] == 300 * own["dims"][0] / 8 + 4 * 200 * 100
        assert graph["bytes"] is None
    rule = "left out 48, 100 columns; it starts at a multiple of 8 from 64 on."
    assert record["notes"][1:3] == [f"faiss:BFlat: {rule}", f"faiss:BHNSW8: {rule}"]
    assert "It was not measured on faiss:BFlat, faiss:BHNSW8, where it cannot start." in record["notes"]


@pytest.mark.usefixtures("wide_files")
def test_a_binary_index_alone_is_measured(capsys: Capture) -> None:
    load("faiss")
    record = record_of("rows.npy queries.npy --engine faiss:BFlat --dims 48,96")
    assert [plan["dims"] for plan in record["plans"] if plan["kind"] == "bits"] == [[96, 100]]
    assert record["notes"][1] == "faiss:BFlat: left out 48, 100 columns; it starts at a multiple of 8 from 64 on."
    assert record["notes"][1] in capsys.readouterr().out


def test_rows_whose_lengths_differ_take_no_binary_index(wide_files: np.ndarray, capsys: Capture) -> None:
    load("faiss")
    np.save("rows.npy", wide_files * np.linspace(1, 9, 300, dtype=np.float32)[:, None])
    arguments = "benchmark rows.npy queries.npy --engine exact,faiss:BFlat --metric ip --dims 64"
    assert_refused(arguments, "--engine must name what serves these rows, got 'faiss:BFlat'", capsys)


def test_graphs_count_what_they_visit(rng: np.random.Generator) -> None:
    faiss = load("faiss")
    rows = rng.normal(size=(400, 8)).astype(np.float32)
    task = Task(Corpus(rows), rows[:30], 5, (1,))
    engine = Engine("faiss:HNSW8", "HNSW8")
    plan = Plan("prefix", Funnel((8,), ()))
    found = _measure._measured(task, engine, searcher := engine.build(task.corpus, 8), plan, ())
    faiss.cvar.hnsw_stats.reset()
    searcher.search(rows[:30], 5, funnel=plan.funnel)
    assert found.multiply_adds == faiss.cvar.hnsw_stats.ndis / 30 * 8
    assert found.bytes == faiss.cvar.hnsw_stats.ndis / 30 * (8 * 4 + 4)
    assert found.multiply_adds < 400 * 8


def test_engines_are_read() -> None:
    assert benchmark.engines("faiss:IVF64,PQ8@nprobe=8,exact,faiss:HNSW32") == (
        Engine("faiss:IVF64,PQ8@nprobe=8", "IVF64,PQ8", "nprobe=8"),
        Engine("exact"),
        Engine("faiss:HNSW32", "HNSW32"),
    )


@pytest.mark.parametrize(
    ("text", "index", "address"),
    [
        ("dask:parts", "parts", ""),
        ("dask:a@b/parts", "a@b/parts", ""),
        ("dask:a@b/parts@tcp://host:8786", "a@b/parts", "tcp://host:8786"),
        ("postgres:items@postgresql://me:p@ss@host/db", "items", "postgresql://me:p@ss@host/db"),
        ("postgres:shop.items@host=h dbname=d", "shop.items", "host=h dbname=d"),
        ("qdrant:items@a@b/here", "items", "a@b/here"),
    ],
)
def test_what_lies_elsewhere_ends_at_an_at(text: str, index: str, address: str) -> None:
    kind = text.partition(":")[0]
    assert benchmark.engines(f"{text},exact") == (Elsewhere(f"{kind}:{index}", index, address, kind), Engine("exact"))


def test_a_client_that_no_extra_brings_is_named(files: Any, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    load("qdrant_edge")
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    message = "--engine qdrant:a@URL needs qdrant_client, which is not installed; run: pip install qdrant-client"
    assert_refused("benchmark rows.npy queries.npy --engine qdrant:a@http://h:1", message, capsys)


def test_a_scheduler_that_is_not_there_is_named(files: Any, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail(address: str) -> None:
        raise TimeoutError({"h:1": "silence"}[address])

    monkeypatch.setattr(load("distributed"), "Client", fail)
    message = "--engine dask:a@HOST:PORT must lead to a scheduler, got: silence; start one there."
    assert_refused("benchmark rows.npy queries.npy --engine dask:a@h:1", message, capsys)


@pytest.mark.parametrize("text", ["", "faiss:", "hnsw", "exact,exact", "exactly"])
def test_unknown_engines_are_refused(text: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", "--engine", text])
    assert "argument --engine: engines must " in capsys.readouterr().err


def test_batches_are_no_larger_than_the_queries(files: tuple[np.ndarray, np.ndarray], capsys: Capture) -> None:
    record = record_of("rows.npy queries.npy --dims 8 --batch 4,30,1000")
    assert record["batches"] == [4, 20]
    assert record["notes"][0] == "batch 1000: only 20 queries are left to measure on, asked all at once."
    printed = capsys.readouterr().out
    assert record["notes"][0] in printed
    assert "at batch 20: " in printed
    assert "at batch 1000" not in printed


def test_batches_are_called_batches(capsys: Capture) -> None:
    message = "batch sizes must be integers with commas between them, such as 1,64, got 'a'"
    assert_usage_refused("benchmark --batch a", message, capsys)


def test_bad_rows_are_found_block_by_block() -> None:
    rows = np.zeros((9, 2**21))
    rows[[2, 3, 8], [0, 5, 2**21 - 1]] = np.nan, np.inf, -np.inf
    assert bad_rows(rows) == [2, 3, 8]


def test_few_queries_are_not_calibrated_on(files: tuple[np.ndarray, np.ndarray], capsys: Capture) -> None:
    np.save("few.npy", files[1][:3])
    assert main(["benchmark", "rows.npy", "few.npy"]) == 0
    assert "calibrated: left out, too few queries" in capsys.readouterr().out


def save_bad_files() -> None:
    np.save("objects.npy", np.array([[{}, {}]]), allow_pickle=True)
    np.save("flat.npy", np.ones(5))
    np.save("empty.npy", np.ones((0, 32)))
    np.save("columnless.npy", np.ones((9, 0)))
    np.save("bits.npy", np.ones((50, 4), np.uint8))
    np.save("narrow.npy", np.ones((50, 31)))
    np.save("nan.npy", np.full((50, 32), np.nan))
    np.save("one_nan.npy", np.where(np.arange(50)[:, None] == 4, np.nan, np.ones((50, 32))))
    np.save("short.npy", np.arange(39))
    np.save("fractions.npy", np.ones(300))
    Rotation.fit(np.eye(2)).save("narrow")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("absent.npy queries.npy", "`CORPUS.npy` must be a file to read, got 'absent.npy': No such file"),
        ("rows.npy absent.npy", "`QUERIES.npy` must be a file to read, got 'absent.npy': No such file"),
        ("rows.npy", "QUERIES.npy must come with CORPUS.npy, got none"),
        ("objects.npy queries.npy", "`objects.npy` must be a .npy file of numbers"),
        ("flat.npy queries.npy", "`corpus` must have shape (n, dim), got (5,)"),
        ("empty.npy queries.npy", "`corpus` must have at least one row"),
        ("columnless.npy columnless.npy", "`corpus` must have at least one column"),
        ("rows.npy empty.npy", "`queries` must have at least one row"),
        ("bits.npy queries.npy", "`corpus` must hold floating-point numbers or signed integers, got dtype uint8"),
        ("rows.npy narrow.npy", "`queries` must have shape (n_queries, dim) = (50, 32), got (50, 31)"),
        ("nan.npy queries.npy", "`corpus` must be finite, got NaN or infinity in 50 of 50 rows (first: 0, 1, 2, 3, 4)"),
        ("rows.npy one_nan.npy", "`queries` must be finite, got NaN or infinity in 1 of 50 rows (first: 4)"),
        ("rows.npy queries.npy --n 5", "--n and --dim must come without files, got them with CORPUS.npy"),
        ("rows.npy queries.npy --dim 5", "--n and --dim must come without files, got them with CORPUS.npy"),
        ("rows.npy queries.npy --dims 0,8", "`dims` must be positive and strictly increasing, got (0, 8); drop what"),
        ("rows.npy queries.npy --batch 4,2", "`batch` must be positive and strictly increasing, got (4, 2); sort it"),
        ("rows.npy queries.npy --labels labels.npy", "--labels and --query-labels must come together"),
        (f"--n 50 {LABELS}", "--labels and --query-labels must come with CORPUS.npy"),
        (
            "rows.npy queries.npy --labels labels.npy --query-labels short.npy",
            "`query_labels` must have one class id per row, shape (40,), got (39,)",
        ),
        (
            "rows.npy queries.npy --labels fractions.npy --query-labels query_labels.npy",
            "`labels` must hold integer class ids, got dtype float64",
        ),
        ("rows.npy queries.npy --k 301", "`k` must be an integer in [1, 300], got 301"),
        ("rows.npy queries.npy --dims 64", "`dims` must lie within [1, 32], the width of `corpus`, got 64"),
        (
            "rows.npy queries.npy --batch 0,4",
            "`batch` must be positive and strictly increasing, got (0, 4); drop what is",
        ),
        ("rows.npy queries.npy --recall 1", "`recall` must be finite and in (0, 1)"),
        (
            "rows.npy queries.npy --rotation absent",
            "--rotation must be a folder that holds a rotation, got 'absent': No such file or directory; write one",
        ),
        (
            "rows.npy queries.npy --rotation .",
            "got '.': `path` must be a folder that Rotation.save wrote, got '.' without rotation.json; save anew; ",
        ),
        ("rows.npy queries.npy --rotation narrow", "--rotation must be of 32 columns, as the corpus is, got one of 2;"),
        ("--n 0", "`n` must be an integer >= 1"),
        ("--n 9 --seed -1", "`seed` must be an integer >= 0"),
        ("rows.npy queries.npy --seed -1", "`seed` must be an integer >= 0"),
    ],
)
@pytest.mark.usefixtures("files")
def test_bad_input_is_one_line_and_status_2(arguments: str, message: str, capsys: Capture) -> None:
    load("matplotlib")
    save_bad_files()
    assert_refused(f"benchmark {arguments} -o out", message, capsys)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("faiss:Tree9", "`index` must be a factory string of faiss for 8 columns, such as 'HNSW32', got 'Tree9'"),
        ("faiss:PQ3", "for 8 columns, such as 'HNSW32', got 'PQ3'"),
        ("faiss:Flat@nprobe=3", "`parameters` must be settings of this index, got 'nprobe=3'"),
        ("faiss:BFlat", "--dims must hold a width for faiss:BFlat, a multiple of 8 from 64 on, got none; add one"),
        ("faiss:BIVF4@nprobe=3", "--engine must name binary indexes without settings, got 'faiss:BIVF4@nprobe=3'"),
        ("faiss:IVF400,Flat", "trained on 300 rows: choose fewer lists or shorter codes, or pass more rows"),
    ],
)
@pytest.mark.usefixtures("files")
def test_a_bad_index_is_one_line_and_status_2(engine: str, message: str, capsys: Capture) -> None:
    load("faiss")
    load("matplotlib")
    assert_refused(f"benchmark rows.npy queries.npy --engine {engine} -o out", message, capsys)


@pytest.mark.usefixtures("files", "full_disk")
def test_a_full_disk_leaves_nothing_half_written(capsys: Capture) -> None:
    load("matplotlib")
    assert main(["benchmark", "rows.npy", "queries.npy", "--dims", "8", "-o", "out"]) == 2
    printed = capsys.readouterr()
    assert "No space left on device" in printed.err
    assert printed.out.startswith("rows.npy: 300 rows")  # the work is not lost
    assert "wrote" not in printed.out
    assert not Path("out").exists()


@pytest.mark.parametrize("module", ["matplotlib", "faiss"])
@pytest.mark.usefixtures("files")
def test_a_missing_extra_is_named_before_any_work(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delitem(sys.modules, "matryoshka.faiss", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    options = ["-o", "out"] if module == "matplotlib" else ["--engine", "faiss:Flat"]
    assert main(["benchmark", "rows.npy", "queries.npy", *options]) == 2
    extra = "cli" if module == "matplotlib" else "faiss"
    assert f'pip install "matryoshka-mrl[{extra}]"' in capsys.readouterr().err
    assert not Path("out").exists()
