"""Corpus.nbytes: by formula on every array library, beside what Python says was allocated, and in files."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import Library
from test_retrieval_storage import Slices

from matryoshka import Corpus, Funnel
from matryoshka.retrieval import CorpusBytes, _bounds, _scan

N, DIM = 3001, 24
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=(N, DIM)) * rng.uniform(0.5, 2.0, size=(N, 1))).astype(np.float32)


def sums(library: Library) -> int:
    """Bytes of a number that is computed with."""
    return max(4, SIZES[library.dtype_name])


@pytest.mark.parametrize(("metric", "per_block"), [("cosine", 0), ("ip", 0), ("l2", 1)])
def test_parts_before_a_search(library: Library, rows: np.ndarray, metric: str, per_block: int) -> None:
    held = Corpus(library.array(rows), metric=metric, search_dims=(5, 9)).nbytes
    assert (held.rows, held.mapped) == (N * DIM * SIZES[library.dtype_name], 0)
    assert held.prefixes == N * (5 + 9) * sums(library)
    assert held.lengths == N * (1 + 2 * per_block) * sums(library)


def test_half_precision_counts_half(half: Library, rows: np.ndarray) -> None:
    held = Corpus(half.array(rows), search_dims=(5,)).nbytes
    assert held == CorpusBytes(rows=N * DIM * 2, mapped=0, prefixes=N * 5 * 4, lengths=N * 4)


def test_the_full_width_adds_no_block(library: Library, rows: np.ndarray) -> None:
    one, both = (Corpus(library.array(rows), search_dims=dims).nbytes for dims in ((), (DIM,)))
    assert one.prefixes == both.prefixes == 0
    assert both.lengths == 2 * one.lengths == 2 * N * sums(library)  # squares, and what cosines are multiplied by


def test_lengths_that_must_be_divided_by_count(rows: np.ndarray) -> None:
    assert Corpus(rows * np.float32(1e-30)).nbytes.lengths == 2 * Corpus(rows).nbytes.lengths == 2 * N * 4


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_what_is_allocated_is_counted(rows: np.ndarray, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scan, "_AT_ONCE", 0)
    Corpus(rows, metric=metric).search(rows[:3], 5, dim=7)  # what is made once for all
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        corpus = Corpus(rows, metric=metric, search_dims=(5,))
        corpus.search(rows[:3], 5, funnel=Funnel((5, 8, DIM), (60, 20)))
        corpus.search(rows[:3], 5, dim=12)
        corpus.search(rows[:3], 5)
        allocated = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    held = corpus.nbytes
    assert corpus.search_dims == (5, 12, DIM)
    assert held.rows == rows.nbytes
    assert held.prefixes > N * (5 + 12) * 4  # and the samples
    assert held.memory - held.rows == pytest.approx(allocated, rel=0.03)


def test_rows_that_stay_in_their_file(tmp_path: Path, rows: np.ndarray) -> None:
    np.save(tmp_path / "rows.npy", rows)
    kept = Corpus(rows, search_dims=(5,))
    kept.save(tmp_path / "corpus")
    for corpus in (
        Corpus(np.load(tmp_path / "rows.npy", mmap_mode="r"), search_dims=(5,)),
        Corpus(np.load(tmp_path / "rows.npy", mmap_mode="r")[:, :], search_dims=(5,)),
        Corpus(Slices(rows), search_dims=(5,)),
        Corpus.load(tmp_path / "corpus", mmap=True),
    ):
        assert corpus.nbytes == CorpusBytes(0, rows.nbytes, N * 5 * 4, N * 4)
        assert corpus.nbytes.memory == N * 6 * 4
        assert int(corpus.nbytes) == corpus.nbytes.total == int(kept.nbytes)
    assert Corpus.load(tmp_path / "corpus").nbytes == kept.nbytes == CorpusBytes(rows.nbytes, 0, N * 5 * 4, N * 4)


def test_a_copy_counts_what_it_shares(rows: np.ndarray) -> None:
    corpus = Corpus(rows, search_dims=(5,))
    twin = copy.copy(corpus)
    twin.search(rows[:1], 3, dim=9)
    assert twin.nbytes.prefixes - corpus.nbytes.prefixes >= N * 9 * 4
    assert twin.nbytes.rows == corpus.nbytes.rows


def test_to_ask_reads_no_rows(rows: np.ndarray) -> None:
    slices = Slices(rows)
    corpus = Corpus(slices, search_dims=(5,))
    slices._array = np.empty((0, 0), np.float32)
    assert int(corpus.nbytes) == N * (DIM + 6) * 4


@pytest.mark.parametrize("part", ["_prefixes", "_bits", "_bounds"])
def test_searches_on_other_threads_may_add_parts_meanwhile(
    rows: np.ndarray, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bounds, "_NUMBERS", 1)
    corpus = Corpus(rows, search_dims=(5,))
    corpus.search(rows[:1], 3)
    corpus.search(rows[:1], 3, funnel=Funnel((5,), code="bits"))
    held = corpus.nbytes
    kept = getattr(corpus, part)
    kind = type(kept[5])
    name = "drawn" if part == "_prefixes" else "nbytes"
    get = getattr(kind, name).fget
    monkeypatch.setattr(kind, name, property(lambda self: kept.setdefault(6 + len(kept), kept[5]) and get(self)))
    assert corpus.nbytes == held
    assert len(kept) > 1
