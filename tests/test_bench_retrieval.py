"""The suite `retrieval`: rows that are as hard as those they stand for, and a page that says what was measured.

What it measures is for the suite itself to say; it needs libraries that tests do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import import_benchmarks

import_benchmarks()

from benchmarks.retrieval import page, real_like  # noqa: E402

N, QUERIES = 6000, 200


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Rows and, behind them, queries, each where its place says."""
    found = np.full((N + QUERIES, 384), np.nan, np.float32)
    for places, some in real_like.draw(np.random.default_rng(0).permutation(len(found)), 384, seed=3):
        assert np.isnan(found[places]).all()
        found[places] = some
    return found


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_real_like_rows_fill_every_place_with_unit_length_and_come_again(rows: np.ndarray) -> None:
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-4)
    places, again = next(real_like.draw(np.random.default_rng(0).permutation(len(rows)), 384, seed=3))
    np.testing.assert_array_equal(again, rows[places])
    other = next(real_like.draw(places, 384, seed=4))[1]
    assert not np.isclose(other, again).all(axis=1).any()


def test_real_like_rows_have_the_mean_and_the_spectrum_of_the_embeddings(rows: np.ndarray) -> None:
    along = rows @ real_like._model(384)[2].T
    known = real_like.json.loads(real_like._STATISTICS.read_text())["columns"]
    energy = np.add(known["variance"], np.square(known["mean"]))
    np.testing.assert_allclose(along.mean(axis=0), known["mean"], atol=0.08)
    np.testing.assert_allclose(np.cumsum(np.square(along).mean(axis=0)), np.cumsum(energy), atol=0.06)


def test_statistics_of_real_like_rows_are_those_they_were_drawn_from(rows: np.ndarray) -> None:
    found = {name: np.array(values) for name, values in real_like.statistics(rows).items()}
    turned = rows @ np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
    np.testing.assert_allclose(found["variance"], turned.var(axis=0), atol=1e-4)
    distances = np.square(rows[:50, None] - rows[None]).sum(axis=-1)
    distances[np.arange(50), np.arange(50)] = np.inf
    assert found["neighbours"].sum() * 2 == pytest.approx(distances.min(axis=1).mean(), rel=0.3)


def test_real_like_rows_are_hard_to_cut_and_easier_after_a_rotation(rows: np.ndarray) -> None:
    corpus, queries = rows[:N], rows[N:]
    directions = np.linalg.eigh(corpus[::2].T @ corpus[::2])[1][:, ::-1]
    exact = np.argsort(-(queries @ corpus.T), axis=1)[:, :10]

    def kept(a: np.ndarray, b: np.ndarray, width: int) -> float:
        found = np.argsort(-(unit(a[:, :width]) @ unit(b[:, :width]).T), axis=1)[:, :100]
        return float(np.mean([np.isin(best, some).mean() for best, some in zip(exact, found, strict=True)]))

    assert 0.6 < kept(queries, corpus, 16) < 0.85  # of embeddings of as many intents, .75
    assert 0.84 < kept(queries @ directions, corpus @ directions, 16) < 0.95  # .94
    assert kept(np.sign(queries - corpus.mean(axis=0)), np.sign(corpus - corpus.mean(axis=0)), 384) > 0.96  # .995


def row(title: str, wanted: dict[str, Any], **other: Any) -> dict[str, Any]:
    """A case of two ways, of which the second takes half of the time, a third by the wall clock."""

    def clock(ratio: float) -> dict[str, Any]:
        ways = {"faiss IndexFlatIP": {"s": 0.008, "ratio": 1.0}, "matryoshka": {"s": 0.008 * ratio, "ratio": ratio}}
        return {"ways": ways, "asked": [ratio] if wanted else []}

    asked = [{"way": "matryoshka", "than": "faiss IndexFlatIP", "faster": False, "goal": None} | wanted]
    own = {"title": title, "batch": 64, "k": 10, "exact": 10, "at_recall": None, "wanted": asked if wanted else []}
    return own | {"cpu": clock(0.5), "wall": clock(1 / 3)} | other


def cells_of(line: str, text: str) -> list[str]:
    found = next(part for part in text.splitlines() if part.startswith(f"| {line} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


SETTING = {"date": "2026-11-28", "machine": "none", "python": "3", "setting": {}}
OLD = "First stage: 1,000,000 x 16, best 200, batch 64"


@pytest.mark.parametrize(
    ("wanted", "cells"),
    [
        ({"bar": 0.4}, ["0.4", "", "**0.5**", "0.333"]),
        ({"bar": 0.5, "goal": 0.25}, ["0.5", "0.25", "0.5", "0.333"]),
        ({"bar": 3, "faster": True}, ["3", "", "**2**", "3"]),
        ({"bar": 2, "goal": 4, "faster": True}, ["2", "4", "2", "3"]),
        ({"bar": None}, ["", "", "0.5", "0.333"]),
    ],
)
def test_page_says_what_was_asked_and_what_misses_it(wanted: dict[str, Any], cells: list[str]) -> None:
    text = page.markdown(SETTING | {"rows": [row("some work", wanted)]})
    assert cells_of("some work", text)[2:6] == cells


def test_page_compares_with_the_run_of_version_0_1() -> None:
    text = page.markdown(SETTING | {"rows": [row(OLD, {"bar": 1})]})
    assert cells_of(OLD, text)[-1] == "0.291"
    assert cells_of("matryoshka", text)[-1] == "43.4 ms, **0.29**"  # 1/3 is more than a tenth above
    assert cells_of("faiss IndexFlatIP", text)[-1] == "149 ms, 1.00"


def test_page_of_cpu_time_alone_and_of_a_rate() -> None:
    half = row("some work", {"bar": 1})
    del half["wall"]
    assert cells_of("matryoshka", page.section(half))[1:] == ["4 ms", "0.50"]
    rated = row("some work", {}, at_recall=(300, 1000))
    for clock in ("cpu", "wall"):
        rated[clock]["ways"]["matryoshka"]["recall"] = 0.98
        rated[clock]["ways"]["matryoshka, hasty"] = {"s": 0.001, "ratio": 0.125, "recall": 0.97}
    text = page.markdown(SETTING | {"rows": [rated]})
    assert cells_of("some work", text)[2:6] == ["300", "1,000", "16,000", "24,000"]
    rated["at_recall"] = (24_001, 40_000)
    assert cells_of("some work", page.markdown(SETTING | {"rows": [rated]}))[4:6] == ["16,000", "**24,000**"]
    del rated["wall"]
    assert cells_of("some work", page.markdown(SETTING | {"rows": [rated]}))[4:6] == ["16,000", ""]


def test_page_of_rows_in_a_file() -> None:
    plan = {
        "plan": "Funnel((8, 16), (9,))",
        "bytes": 1e8,
        "recall": 0.9,
        "private_bytes": 3 << 20,
        "held_bytes": 1 << 20,
    }
    text = page.section({"title": "On disk", "k": 10, "plans": [plan | {"seconds": {"1": 0.002, "64": 0.05}}]})
    assert cells_of(plan["plan"], text)[1:] == ["1e+08", "0.9", "3", "1", "2 ms", "50 ms"]
