"""A corpus that was pickled finds what it found; rows that lie in a file stay there."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Library, load

from matryoshka import Corpus, Funnel

PLANS = (None, Funnel((6, 24), (30,)), Funnel((4, 12, 24), (40, 20)))


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(300, 24)) * 0.9 ** np.arange(24)


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(5, 24))


def assert_equal_results(corpus: Any, other: Any, queries: Any, to_numpy: Callable[[Any], np.ndarray]) -> None:
    for plan in PLANS:
        for found, expected in zip(
            other.search(queries, 7, funnel=plan), corpus.search(queries, 7, funnel=plan), strict=True
        ):
            assert type(found) is type(expected)
            np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_pickled_corpus_finds_the_same(library: Library, rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    corpus = Corpus(library.array(rows), metric=metric, search_dims=(6,))
    other = pickle.loads(pickle.dumps(corpus))
    assert (len(other), other.dim, other.metric, other.search_dims) == (300, 24, metric, (6,))
    assert_equal_results(corpus, other, library.array(queries), library.to_numpy)


def test_half_precision_stays(half: Library, rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = Corpus(half.array(rows))
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 300 * 24 * 4  # bfloat16 too: two bytes a number
    assert_equal_results(corpus, pickle.loads(pickled), half.array(queries), half.to_numpy)


def test_codes_scales_and_sharing_go_along(rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = Corpus(rows * np.geomspace(1e-200, 1e200, 300)[:, None], search_dims=(8,), code="bits")
    other = pickle.loads(pickle.dumps(corpus))
    plan = Funnel((8, 24), (50,), code="bits")
    for found, expected in zip(
        other.search(queries, 7, funnel=plan), corpus.search(queries, 7, funnel=plan), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert repr(other) == repr(corpus)
    assert other.nbytes == corpus.nbytes
    assert_equal_results(corpus, copy.deepcopy(corpus), queries, np.asarray)


def cuts() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        "whole": lambda array: array,
        "a slice": lambda array: array[37:250],
        "every third, backwards": lambda array: array[::-3],
        "some columns": lambda array: array[:, :24],
    }


@pytest.mark.parametrize("cut", ["whole", "a slice", "every third, backwards", "some columns"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_in_a_file_are_pickled_by_their_place(
    rows: np.ndarray, queries: np.ndarray, tmp_path: Path, cut: str, order: str
) -> None:
    wide = np.concatenate([rows, rows[:, :6]], axis=1)
    np.save(tmp_path / "rows.npy", np.asarray(wide, order=order))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    corpus = Corpus(cuts()[cut](mapped)[:, :24])
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 300 * 8 + 2000  # a length for each row, and no row
    other = pickle.loads(pickled)
    assert other.nbytes == corpus.nbytes
    assert other.nbytes.mapped == corpus.nbytes.mapped > 0
    assert_equal_results(corpus, other, queries, np.asarray)
    assert pickle.loads(pickle.dumps(other)).nbytes == corpus.nbytes


def test_a_loaded_corpus_is_pickled_by_its_place(rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    Corpus(rows).save(tmp_path / "corpus")
    corpus = Corpus.load(tmp_path / "corpus", mmap=True)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 300 * 8 + 2000
    assert_equal_results(corpus, pickle.loads(pickled), queries, np.asarray)


def test_what_became_of_the_file_is_said(rows: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "rows.npy"
    np.save(file, rows)
    pickled = pickle.dumps(Corpus(np.load(file, mmap_mode="r")))
    np.save(file, rows[::-1])
    with pytest.raises(ValueError, match=r"`embeddings` must lie in .*rows.npy as they did, got others"):
        pickle.loads(pickled)
    np.save(file, rows[:100])
    with pytest.raises(ValueError, match=r"`embeddings` must lie in .*rows.npy as they did, got a shorter file"):
        pickle.loads(pickled)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"`embeddings` must lie in .*rows.npy wherever they are searched"):
        pickle.loads(pickled)


def test_what_no_other_process_can_map_is_refused(rows: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(TypeError, match="`embeddings` must be mapped from a file .* may have been written to"):
        pickle.dumps(Corpus(np.load(tmp_path / "rows.npy", mmap_mode="c")))
    with tempfile.TemporaryFile() as file:
        unnamed = np.memmap(file, np.float64, mode="w+", shape=rows.shape)
        unnamed[:] = rows
        with pytest.raises(TypeError, match="`embeddings` must be mapped from a file .* got one without a name"):
            pickle.dumps(Corpus(unnamed))


def test_a_data_set_is_pickled_as_it_can_be(rows: np.ndarray) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError), match="pickle"):
        pickle.dumps(Corpus(Unpicklable(rows)))


class Unpicklable:
    """What is read in slices of rows, as an open file of HDF5 is."""

    def __init__(self, rows: np.ndarray) -> None:
        self.shape, self.dtype, self._rows = rows.shape, rows.dtype, rows

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._rows[key]

    def __reduce__(self) -> Any:
        msg = "h5py objects cannot be pickled"
        raise TypeError(msg)


def test_another_process_searches(rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", rows)
    plan = Funnel((6, 24), (30,))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for array in (rows, np.load(tmp_path / "rows.npy", mmap_mode="r")):
            corpus = Corpus(array, search_dims=(6,))
            for found, expected in zip(
                pool.submit(corpus.search, queries, 7, funnel=plan).result(),
                corpus.search(queries, 7, funnel=plan),
                strict=True,
            ):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("index", "plan"), [
    ("HNSW16", PLANS[1]), ("IVF8,Flat", PLANS[1]), ("BFlat", Funnel((8, 24), (50,), code="bits")),
])  # fmt: skip
def test_an_index_goes_along_with_its_settings(rows: np.ndarray, queries: np.ndarray, index: str, plan: Funnel) -> None:
    load("faiss")
    from matryoshka.faiss import FaissCorpus

    indexed = FaissCorpus(Corpus(rows), index, dim=plan.dims[0])
    if index == "IVF8,Flat":
        indexed.index.nprobe = 3
    other = pickle.loads(pickle.dumps(indexed))
    assert getattr(other.index, "nprobe", 3) == 3
    for found, expected in zip(
        other.search(queries, 7, funnel=plan), indexed.search(queries, 7, funnel=plan), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
