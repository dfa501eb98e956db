"""The page of the study: which records it reads, the rule of its verdicts, and where its numbers come from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import study_records
from conftest import import_benchmarks

import_benchmarks("torch", "sklearn", "matplotlib", "tqdm")

from benchmarks.study import __main__ as command  # noqa: E402
from benchmarks.study.page import cascades, claims, clock, document, draw, instead, records, series, widths  # noqa: E402
from benchmarks.study.page.section import by_width, number, percent, points, range_of  # noqa: E402
from benchmarks.study.page.verdicts import Case, interval, overall, seen, within  # noqa: E402

STUDENT = {2: 12.706204736432095, 3: 4.302652729696142}
"""Quantiles of Student's t for 95 %, by the number of values, from a table."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records of one data set in run/ and their page in docs/."""
    folder = tmp_path_factory.mktemp("page")
    document.write(study_records.write(folder / "run", ["digits"]), folder / "docs")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with few records: accuracy of MRL and FF on one data set."""
    for path, record in study_records.cells(["digits"]):
        if record["task"] == "accuracy" and record["system"] in ("MRL", "FF"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(json.dumps(record))
    return tmp_path


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return path


def study_of(task: str, found: dict[str, list[dict[str, Any]]]) -> records.Study:
    """Return a study of one task from what each system found for seeds 0, 1, …."""
    cells = {
        (task, system): {
            seed: records.Record(Path(f"{system}.{seed}.json"), task, system, seed, each, 1.0)
            for seed, each in enumerate(by_seed)
        }
        for system, by_seed in found.items()
    }
    return records.Study("digits", cells)


# --- records ---


def test_records_are_read_by_task_system_and_seed(folder: Path) -> None:
    [study] = records.read(folder)
    assert study.name == "digits"
    assert study.systems("accuracy") == ["FF", "MRL"]
    assert study.systems("accuracy", "SVD", "MRL", "FF") == ["MRL", "FF"]
    assert study.systems("cascade") == []
    curve = study.curve("accuracy", "MRL", "linear")
    assert list(curve) == study_records.DIMS
    assert curve[8] == {seed: study_records.right("MRL", seed)[1] for seed in study_records.SEEDS}
    assert study.curve("accuracy", "SVD", "linear") == study.curve("accuracy", "MRL", "zero_shot") == {}
    assert study.seconds == 6 * 1.5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.pop("found"), "must hold task, system, .* but found is not right"),
        (lambda record: record.update(seed=True), "but seed is not right"),
        (lambda record: record.update(seed=5), "must be the record that its path names, got that of accuracy/MRL.5"),
        (lambda record: record["found"].pop("dims"), r"must hold found\.dims, got none"),
        (lambda record: record["found"].update(linear=[0.5]), r"of one length, got 5 and 1"),
        (lambda record: record["found"].update(linear=0.5), r"a list of numbers as found\.linear, got 0\.5"),
        (lambda record: record["found"]["linear"].__setitem__(2, None), r"finite numbers as found\.linear, got None"),
        (
            lambda record: record["found"]["linear"].__setitem__(2, math.nan),
            r"finite numbers as found\.linear, got nan",
        ),
    ],
)
def test_a_record_that_does_not_fit_is_named(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = change(folder / "digits" / "accuracy" / "MRL.1.json", edit)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        document.write(folder, folder / "docs")
    assert not (folder / "docs").exists()


def test_a_file_that_is_no_json_is_named(folder: Path) -> None:
    path = folder / "digits" / "accuracy" / "MRL.1.json"
    path.write_text('{"task": ')
    with pytest.raises(ValueError, match=re.escape(str(path)) + " must be the record of a cell in JSON"):
        records.read(folder)


def test_records_are_stored_without_what_was_trained(folder: Path, tmp_path: Path) -> None:
    trained = folder / "digits" / "trained" / "MRL.0.npz"
    trained.parent.mkdir()
    trained.write_bytes(b"weights")
    target = tmp_path / "kept"
    assert records.store(folder, target) == 6
    assert [study.systems("accuracy") for study in records.read(target)] == [["FF", "MRL"]]
    assert {path.suffix for path in target.rglob("*") if path.is_file()} == {".json"}
    (folder / "digits" / "accuracy" / "FF.2.json").write_text("[]")
    with pytest.raises(ValueError, match="FF.2.json must hold task"):
        records.store(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="`--store` must hold records"):
        records.store(tmp_path / "nothing", target)


# --- numbers ---


def test_mean_and_spread_are_over_the_seeds() -> None:
    seeds = {0: 0.5, 1: 0.7, 2: 0.9}
    assert (series.mean(seeds), series.spread(seeds)) == pytest.approx((0.7, 0.2))
    assert math.isnan(series.spread({3: 0.5}))
    assert percent(seeds) == "70.0 ± 20.0"
    assert (percent({0: 0.5}), percent({}), percent(None), number({0: 1234.5, 1: 1234.5})) == (
        "50.0",
        "",
        "",
        "1,234.5 ± 0.0",
    )
    assert points({0: -0.01, 1: -0.02}) == "−1.5 ± 0.7"


def test_differences_are_taken_seed_by_seed_where_both_are() -> None:
    first = {4: {0: 0.5, 1: 0.7}, 8: {0: 0.9, 2: 0.8}, 16: {0: 1.0}}
    second = {8: {0: 0.6, 1: 0.1, 2: 0.9}, 4: {1: 0.4}}
    gap = series.less(first, second)
    assert {x: pytest.approx(seeds) for x, seeds in gap.items()} == {4: {1: 0.3}, 8: {0: 0.3, 2: -0.1}}
    assert series.best([first, second, {}]) == {4: {0: 0.5, 1: 0.7}, 8: {0: 0.9, 1: 0.1, 2: 0.9}, 16: {0: 1.0}}
    assert series.less(first, {}) == series.less({}, first) == {}
    assert range_of({4: {0: 0.03}, 8: {0: -0.01}}) == "−1.0 (at 8) to +3.0 (at 4)"
    assert (range_of({4: {0: 0.03}}), range_of({})) == ("+3.0 (at 4)", "")


def test_a_table_has_a_row_for_each_width_of_any_curve() -> None:
    header, rows = by_width({"MRL": {4: {0: 0.5}, 8: {0: 0.6}}, "gone": {}, "FF": {8: {0: 0.7}, 16: {0: 0.8}}})
    assert header == ["width", "MRL", "FF"]
    assert rows == [["4", "50.0", ""], ["8", "60.0", "70.0"], ["16", "", "80.0"]]


# --- verdicts ---


@pytest.mark.parametrize("values", [[0.1, 0.3], [0.1, 0.4, 0.2]])
def test_the_interval_is_that_of_student(values: list[float]) -> None:
    half = STUDENT[len(values)] * np.std(values, ddof=1) / np.sqrt(len(values))
    expected = np.mean(values) - half, np.mean(values) + half
    assert interval(dict(enumerate(values))) == pytest.approx(expected)


def test_one_seed_decides_nothing() -> None:
    assert interval({0: 5.0}) == (-math.inf, math.inf)
    assert Case("", {0: 5.0}, least=-100.0).verdict == "undecided"


@pytest.mark.parametrize(
    ("values", "least", "most", "verdict"),
    [
        ([0.0, 0.1, 0.2], -0.149, math.inf, "agrees"),  # the interval is 0.1 ± 0.2484
        ([0.0, 0.1, 0.2], -0.148, math.inf, "undecided"),
        ([0.0, 0.1, 0.2], 0.348, math.inf, "undecided"),
        ([0.0, 0.1, 0.2], 0.349, math.inf, "differs"),
        ([0.0, 0.1, 0.2], -math.inf, 0.349, "agrees"),
        ([0.0, 0.1, 0.2], -math.inf, -0.149, "differs"),
        ([0.0, 0.1, 0.2], -0.2, 0.3, "undecided"),
        ([0.0, 0.0, 0.0], 0.0, 0.0, "agrees"),
    ],
)
def test_a_case_is_decided_where_the_whole_interval_is(
    values: list[float], least: float, most: float, verdict: str
) -> None:
    assert Case("", dict(enumerate(values)), least, most).verdict == verdict


AGREES, DIFFERS = (Case("at 4", {0: value, 1: value}, 0.0) for value in (1.0, -1.0))
UNDECIDED = Case("at 8", {0: 1.0, 1: -1.0}, 0.0)


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ([], "not run"),
        ([Case("", {}, 0.0)], "not run"),
        ([AGREES, AGREES, UNDECIDED], "agrees"),
        ([AGREES, UNDECIDED], "agrees"),
        ([AGREES, UNDECIDED, UNDECIDED], "undecided"),
        ([DIFFERS, DIFFERS, UNDECIDED], "differs"),
        ([AGREES, DIFFERS, DIFFERS], "agrees in part"),
        ([UNDECIDED], "undecided"),
    ],
)
def test_half_of_the_cases_have_to_be_decided(cases: list[Case], verdict: str) -> None:
    assert within(cases) == verdict


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["not run"], "not run"),
        (["agrees", "not run", "agrees"], "agrees"),
        (["agrees", "undecided"], "agrees in part"),
        (["agrees", "differs"], "agrees in part"),
        (["agrees in part"], "agrees in part"),
        (["undecided", "differs"], "differs"),
        (["undecided", "not run"], "undecided"),
    ],
)
def test_a_claim_agrees_where_all_data_sets_do(verdicts: list[str], verdict: str) -> None:
    assert overall(verdicts) == verdict


def test_what_was_seen_names_the_weakest_case() -> None:
    claim = claims.CLAIMS[0]
    assert seen(claim, []) == "not run"
    assert seen(claim, [AGREES]) == "agrees: +100.0 ± 0.0 points, at 4"
    weak = Case("at 16", {0: -0.01, 1: -0.03}, 0.0)
    assert seen(claim, [AGREES, weak, AGREES]) == "agrees: 2 agree, 1 undecided; weakest −2.0 ± 1.4 points, at 16"


def verdict(text: str, study: records.Study) -> str:
    """Return the verdict on the claim that begins so."""
    [claim] = [claim for claim in claims.CLAIMS if claim.text.startswith(text)]
    return within(claim.cases(study))


@pytest.mark.parametrize(("behind", "expected"), [(0.005, "agrees"), (0.02, "differs")])
def test_a_claim_follows_the_records(behind: float, expected: str) -> None:
    fixed = [[0.8 + noise, 0.9 - noise] for noise in (0.0, 0.001, 0.002)]
    nested = [[value - behind for value in values] for values in fixed]
    found = {
        name: [{"dims": [4, 8], "linear": values, "nearest_neighbor": values} for values in by_seed]
        for name, by_seed in (("MRL", nested), ("FF", fixed))
    }
    assert verdict("One MRL network classifies", study_of("accuracy", found)) == expected
    assert verdict("By the nearest neighbour", study_of("accuracy", found)) == expected
    assert verdict("A cascade loses", study_of("accuracy", found)) == "not run"


# --- sections ---


def test_widths_between_are_compared_with_the_line_through_their_neighbours() -> None:
    found = {"dims": [4, 16, 64], "nearest_neighbor": [0.4, 0.8, 0.9]}
    found["untrained"] = {"dims": [8, 24], "nearest_neighbor": [0.65, 0.8]}
    gaps = widths.from_the_line(study_of("accuracy", {"MRL": [found]}), "MRL")
    expected = [
        0.65 - np.interp(3, [2, 4, 6], [0.4, 0.8, 0.9]),
        0.8 - np.interp(np.log2(24), [2, 4, 6], [0.4, 0.8, 0.9]),
    ]
    assert [gaps[8][0], gaps[24][0]] == pytest.approx(expected)


def test_a_cascade_is_compared_with_the_narrowest_network_as_good() -> None:
    way = {
        "accuracy": 0.9,
        "full_accuracy": 0.92,
        "gap": 0.01,
        "expected_dim": 5.0,
        "cumulative_dim": 20.0,
        "curve": [],
    }
    nested = {"dims": [4, 8, 16], "alone": [0.8, 0.85, 0.92], "cascades": {"published": way}}
    fixed = {"dims": [4, 8, 16], "alone": [0.8, 0.9, 0.95]}
    study = study_of("cascade", {"MRL": [nested] * 2, "FF": [fixed] * 2})
    assert cascades.rival(study, {0: 0.9}) == 8
    assert cascades.rival(study, {0: 0.96}) is None
    ratios = {cost: next(cascades._fewer(study, cost, 2.0)).values[0] for cost in ("expected_dim", "cumulative_dim")}
    assert ratios == {"expected_dim": 8 / 5, "cumulative_dim": 8 / 20}
    assert verdict("A cascade uses", study) == "differs"
    better = study_of(
        "cascade", {"MRL": [nested | {"cascades": {"published": way | {"accuracy": 0.96}}}], "FF": [fixed]}
    )
    assert next(cascades._fewer(better, "expected_dim", 2.0)).values[0] == 16 / 5  # no FF is as good: the widest
    assert next(cascades._loss(study)).values[0] == pytest.approx(0.9 - 0.95)


def test_timed_plans_are_compared_with_the_exact_search_of_all_columns(made: Path) -> None:
    [study] = records.read(made / "run")
    found = clock.timed(study)
    assert found["exact: 64"]["theory"] == {0: 1.0, 1: 1.0, 2: 1.0}
    assert found["hnsw: 8 > 64"]["theory"][0] == 4 * 64 / 8
    assert found["exact: 16"]["cpu alone"] == {0: 2.0, 1: 2.01, 2: 2.02}


def test_where_prefixes_pay_is_told_by_the_interval() -> None:
    gap = {4: {0: 0.2, 1: 0.21}, 8: {0: 0.1, 1: -0.1}, 16: {0: -0.2, 1: -0.2}}
    assert instead.decided(gap).endswith("training for prefixes pays at 4, it does not pay at 16, undecided at 8.")


def test_labels_are_moved_apart_and_no_more() -> None:
    levels = [0.0, 1.0, 2.0, 50.0, 55.0]
    moved = draw.apart(levels, 10.0)
    assert np.diff(moved).min() == pytest.approx(10.0)
    assert moved == pytest.approx([-9.0, 1.0, 11.0, 47.5, 57.5])
    assert draw.apart([1.0, 30.0], 10.0) == [1.0, 30.0]


def test_the_stretched_axis_can_be_read_back() -> None:
    shares = np.linspace(0, 1, 11)
    assert draw.unstretch(draw.stretch(shares)) == pytest.approx(shares)
    assert np.all(np.diff(draw.stretch(shares)) > 0)


# --- the document ---


def test_every_figure_is_there_and_says_how_it_is_made(made: Path) -> None:
    page = (made / "docs" / "study.md").read_text()
    shown = re.findall(r"!\[[^\]]+\]\(study/(.+?)\)", page)
    assert sorted(shown) == sorted(path.name for path in (made / "docs" / "study").iterdir())
    assert len(shown) == len(set(shown)) > 15
    assert all((made / "docs" / "study" / name).read_bytes().startswith(b"\x89PNG") for name in shown)
    commands = re.findall(r"^`nox -s study -- --data DATA --task (\w+)` measures", page, flags=re.MULTILINE)
    assert len(commands) == len(shown)
    assert set(commands) <= {make.__name__ for make in study_records.TASKS}


def test_every_claim_has_a_verdict_and_none_stands_twice(made: Path) -> None:
    page = (made / "docs" / "study.md").read_text()
    rows = re.findall(r"^\| .* \| \*\*(.+)\*\* \|$", page, flags=re.MULTILINE)
    assert len(rows) == len(claims.CLAIMS) == len({claim.text for claim in claims.CLAIMS}) >= 25
    assert set(rows) <= {"agrees", "agrees in part", "differs", "undecided"}


def test_the_summary_counts_the_verdicts(made: Path) -> None:
    page = " ".join((made / "docs" / "study.md").read_text().split())
    verdicts = re.findall(r" \| \*\*([a-z ]+)\*\* \|", page)
    [total, agree] = re.findall(r"Of (\d+) claims of the paper (\d+) agree", page)[0]
    assert (int(total), int(agree)) == (len(verdicts), verdicts.count("agrees"))
    short = page.split("**In short.**")[1].split("**Data.**")[0]
    studies = records.read(made / "run")
    apart = [claim.text[1:] for claim in claims.CLAIMS for study in studies if within(claim.cases(study)) == "differs"]
    assert apart
    assert short.count("The paper: ") == len(apart)
    assert all(text in short for text in apart)


def test_numbers_are_those_of_the_records(made: Path) -> None:
    page = (made / "docs" / "study.md").read_text()
    rows = page.split("digits: right in percent, by a linear classifier")[1].split("\n\n")[1].splitlines()
    assert rows[0].split(" | ")[:4] == ["| width", "MRL", "MRL-E", "FF"]
    values = [100 * study_records.right("FF", seed)[2] for seed in study_records.SEEDS]
    assert rows[4].split(" | ")[3] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def test_what_was_not_run_is_said(folder: Path) -> None:
    document.write(folder, folder / "docs")
    page = (folder / "docs" / "study.md").read_text()
    assert page.count("*Not run: there are no stored records of the task") == 11
    rows = re.findall(r"^\| .* \| \*\*(.+)\*\* \|$", page, flags=re.MULTILINE)
    assert rows.count("not run") > 25
    assert rows[0] != "not run"


def test_a_figure_that_is_no_longer_shown_is_removed(folder: Path) -> None:
    old = folder / "docs" / "study" / "old.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    paths = document.write(folder, folder / "docs")
    assert not old.exists()
    assert all(path.is_file() for path in paths)


def test_the_command_stores_and_makes_the_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--results", str(tmp_path / "kept"), "--docs", str(tmp_path / "docs")]
    with pytest.raises(SystemExit) as ended:
        command.main(["page", *where])
    assert ended.value.code == 2
    assert "`--results` must hold records" in capsys.readouterr().err
    command.main(["page", *where, "--store", str(folder)])
    assert "6 records copied" in capsys.readouterr().out
    assert (tmp_path / "docs" / "study.md").is_file()
