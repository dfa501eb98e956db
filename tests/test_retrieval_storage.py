"""Corpora in files: memory-mapped, read in slices, saved and loaded, shrunk, truncated and foreign."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load
from oracles import retrieval_funnel

from matryoshka import Corpus, Funnel
from matryoshka.retrieval import _host

PLAN = Funnel((5, 8, 24), (60, 20))


class Slices:
    """Rows as a file format gives them: shape, dtype, and slices."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.dtype, self._array = array.shape, array.dtype, array

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, columns = key
        assert isinstance(rows, slice)
        assert isinstance(columns, slice)
        return self._array[key].copy()


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=(500, 24)) * rng.uniform(0.5, 2.0, size=(500, 1))).astype(np.float32)


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(6, 24)).astype(np.float32)


def same_results(left: Corpus, right: Corpus, queries: np.ndarray) -> None:
    for plan in (None, PLAN, Funnel((8, 24), (30,))):
        for a, b in zip(left.search(queries, 7, funnel=plan), right.search(queries, 7, funnel=plan), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_memory_mapped_rows(tmp_path: Path, rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    same_results(Corpus(mapped, metric=metric, search_dims=(5,)), Corpus(rows, metric=metric), queries)
    scores, ids = Corpus(mapped, metric=metric).search(queries, 7, funnel=PLAN)
    expected_scores, expected_ids = retrieval_funnel(queries, rows, 7, PLAN.dims, PLAN.keep, metric)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_released_pages_lose_nothing(
    tmp_path: Path, rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(_host, "_RESIDENT", 0)  # let pages go after every read
    np.save(tmp_path / "rows.npy", np.zeros_like(rows))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r+" if mode == "r" else mode)
    mapped[:] = rows  # under "c" these are private pages, which must not be let go
    if mode == "r":
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    same_results(Corpus(mapped[10:, :]), Corpus(rows[10:]), queries)
    np.testing.assert_array_equal(mapped, rows)


@pytest.mark.parametrize("kind", ["copy of a file", "file", "shared memory", "private memory"])
def test_rows_in_a_mapping_of_ones_own(
    tmp_path: Path, rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(_host, "_RESIDENT", 0)  # let pages go after every read, where they may go
    (tmp_path / "rows").write_bytes(bytes(rows.nbytes))
    with (tmp_path / "rows").open("r+b") as file:
        mapping = {
            "copy of a file": lambda: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY),
            "file": lambda: mmap.mmap(file.fileno(), 0),
            "shared memory": lambda: mmap.mmap(-1, rows.nbytes),
            "private memory": lambda: mmap.mmap(-1, rows.nbytes, flags=mmap.MAP_PRIVATE),
        }[kind]()
    held = np.ndarray(rows.shape, rows.dtype, buffer=mapping)
    held[:] = rows
    same_results(Corpus(held[10:]), Corpus(rows[10:]), queries)
    np.testing.assert_array_equal(held, rows)
    assert (Corpus(held).nbytes.mapped > 0) is ("file" in kind)


def test_a_copy_of_mapped_rows_is_no_file(tmp_path: Path, rows: np.ndarray, queries: np.ndarray) -> None:
    np.save(tmp_path / "rows.npy", np.round(rows * 9).astype(np.int8))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    same_results(Corpus(mapped.astype(np.float32)), Corpus(np.round(rows * 9)), queries)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell private memory")
def test_a_mapped_corpus_stays_in_its_file(tmp_path: Path) -> None:
    program = """
import sys, numpy as np
from matryoshka import Corpus, Funnel
from matryoshka.retrieval import _host
_host._RESIDENT = 1 << 23

def private():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024

rows = np.lib.format.open_memmap(sys.argv[1], mode="w+", dtype=np.float32, shape=(60_000, 512))
for start in range(0, 60_000, 1000):
    rows[start : start + 1000] = np.random.default_rng(start).normal(size=(1000, 512))
rows.flush()
del rows
before = private()
corpus = Corpus(np.load(sys.argv[1], mmap_mode="r"), search_dims=(16,))
queries = np.random.default_rng(1).normal(size=(64, 512)).astype(np.float32)
for _ in range(3):
    corpus.search(queries, 10, funnel=Funnel.halving(512))
assert private() - before < 60, f"{private() - before} MiB private for a file of 117 MiB"
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "rows.npy")]
    done = subprocess.run(arguments, timeout=120, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_file_that_shrank_is_refused(tmp_path: Path, rows: np.ndarray, queries: np.ndarray) -> None:
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    searched = Corpus(mapped)
    with (tmp_path / "rows.npy").open("r+b") as file:
        file.truncate(9000)
    ids = np.zeros((6, 2), dtype=int)
    for use in (
        lambda: searched.search(queries, 2),
        lambda: searched.rerank(queries, ids, 2, dim=8),
        lambda: searched.save(tmp_path / "saved"),
        lambda: Corpus(mapped),
    ):
        with pytest.raises(
            ValueError, match="`embeddings` must keep the file it is mapped from, 48128 bytes, got 9000"
        ):
            use()
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_rows_that_are_read_in_slices(rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    sliced = Corpus(Slices(rows), metric=metric, search_dims=(5,))
    same_results(sliced, Corpus(rows, metric=metric), queries)
    ids = np.array([[7, 3, -1, 7, 499]] * 6)
    whole = Corpus(rows, metric=metric)
    for a, b in zip(sliced.rerank(queries, ids, 4, dim=9), whole.rerank(queries, ids, 4, dim=9), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match="`embeddings` must hold floating-point numbers"):
        Corpus(Slices(rows.astype(int)))


def test_slices_must_be_arrays(rows: np.ndarray) -> None:
    class Sparse(Slices):
        """As scipy's sparse matrices: they can be sliced, and NumPy makes an object of each slice."""

        def __getitem__(self, key: Any) -> Any:
            return Sparse(super().__getitem__(key))

    with pytest.raises(TypeError, match="`embeddings` must give slices of rows as NumPy arrays, got Sparse, which"):
        Corpus(Sparse(rows))


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # JAX's own
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_rows_in_float64_for_queries_of_a_library_without(tmp_path: Path, rows: np.ndarray, metric: str) -> None:
    jnp, rows = load("jax.numpy"), rows.astype(np.float64)
    Corpus(rows, metric=metric).save(tmp_path / "corpus")
    queries = np.float32(rows[:6] + 0.1)
    scores, ids = Corpus.load(tmp_path / "corpus", like=jnp.zeros(1)).search(jnp.asarray(queries), 5)
    expected_scores, expected_ids = Corpus(rows, metric=metric).search(queries.astype(np.float64), 5)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(
    tmp_path: Path, rows: np.ndarray, queries: np.ndarray, metric: str, dtype: str, mmap: bool
) -> None:
    original = Corpus(rows.astype(dtype), metric=metric, search_dims=(5, 24))
    original.save(tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus", mmap=mmap)
    assert repr(loaded) == repr(original)
    loaded.save(tmp_path / "again")
    same_results(loaded, original, queries.astype(dtype))
    for file in (tmp_path / "corpus").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_a_corpus_may_be_saved_over_itself(tmp_path: Path, rows: np.ndarray, queries: np.ndarray) -> None:
    Corpus(rows).save(tmp_path / "corpus")
    mapped = Corpus.load(tmp_path / "corpus", mmap=True)
    mapped.search(queries, 3, funnel=PLAN)
    mapped.save(tmp_path / "corpus")
    assert Corpus.load(tmp_path / "corpus").search_dims == (5,)
    same_results(mapped, Corpus(rows), queries)


def test_what_is_no_corpus_is_not_replaced(tmp_path: Path, rows: np.ndarray) -> None:
    """Neither a folder of other things nor a file; an empty folder may be filled."""
    folder, file, empty = (tmp_path / name for name in ("folder", "file", "empty"))
    folder.mkdir()
    empty.mkdir()
    (folder / "mine.txt").write_text("mine")
    file.write_text("mine")
    corpus = Corpus(rows)
    for path in (folder, file):
        with pytest.raises(FileExistsError, match=r"`path` must be new, empty, or a folder that was saved here before"):
            corpus.save(path)
    assert (folder / "mine.txt").read_text() == file.read_text() == "mine"
    corpus.save(empty)
    assert len(Corpus.load(empty)) == len(corpus)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "folder"]


def test_extreme_rows_survive_a_round_trip(tmp_path: Path, rows: np.ndarray, queries: np.ndarray) -> None:
    original = Corpus(rows * np.float32(1e-25), search_dims=(5,))
    original.save(tmp_path / "corpus")
    same_results(Corpus.load(tmp_path / "corpus"), original, queries)
    np.testing.assert_allclose(original.search(queries, 3)[0], Corpus(rows).search(queries, 3)[0], rtol=1e-5)


@pytest.mark.parametrize("module", ["torch", "jax.numpy", "array_api_strict"])
def test_load_into_another_library(tmp_path: Path, rows: np.ndarray, queries: np.ndarray, module: str) -> None:
    library = load(module)
    Corpus(rows, search_dims=(5,)).save(tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus", like=library.asarray(rows[:1]))
    scores, ids = loaded.search(library.asarray(queries), 7, funnel=PLAN)
    assert type(scores) is type(library.asarray(rows))
    expected = Corpus(rows).search(queries, 7, funnel=PLAN)
    np.testing.assert_allclose(np.asarray(scores), expected[0], rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(ids), expected[1])


def test_bfloat16_survives_a_round_trip(tmp_path: Path, rows: np.ndarray, queries: np.ndarray) -> None:
    torch = load("torch")
    half = torch.tensor(rows).bfloat16()
    original = Corpus(half, search_dims=(5,))
    original.save(tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus", like=half)
    for a, b in zip(loaded.search(half[:4], 3), original.search(half[:4], 3), strict=True):
        np.testing.assert_array_equal(a, b)
    in_numpy = Corpus.load(tmp_path / "corpus").search(queries, 3, funnel=PLAN)
    for a, b in zip(in_numpy, original.search(torch.tensor(queries), 3, funnel=PLAN), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_interrupted_save_loses_nothing(
    tmp_path: Path, rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    Corpus(rows).save(tmp_path / "corpus")
    before = {file.name: file.read_bytes() for file in (tmp_path / "corpus").iterdir()}

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Corpus(-rows, search_dims=(5,)).save(tmp_path / "corpus")
    assert {file.name: file.read_bytes() for file in (tmp_path / "corpus").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def truncate_rows(folder: Path) -> None:
    with (folder / "embeddings.npy").open("r+b") as file:
        file.truncate(5000)


def swap_rows(folder: Path) -> None:
    np.save(folder / "embeddings.npy", np.ones((500, 23), np.float32))


def change_dtype(folder: Path) -> None:
    np.save(folder / "prefix-5.npy", np.ones((500, 5)))


def edit(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        record = json.loads((folder / "corpus.json").read_text())
        (folder / "corpus.json").write_text(json.dumps(record | {key: value}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_rows, r"`.*embeddings.npy` must be a .npy file .* save the corpus anew"),
        (swap_rows, r"`.*embeddings.npy` must hold float32 of shape \(500, 24\), as corpus.json says, got float32 of"),
        (change_dtype, r"`.*prefix-5.npy` must hold float32 of shape \(500, 5\), .* got float64"),
        (lambda folder: (folder / "squares.npy").unlink(), r"`.*squares.npy` must exist"),
        (lambda folder: (folder / "corpus.json").unlink(), "`path` must be a folder that Corpus.save wrote"),
        (lambda folder: (folder / "corpus.json").write_text("{"), "corpus.json` must be JSON"),
        (edit("kind", "funnel"), "corpus.json` must be the JSON of a corpus, got 'funnel'"),
        (edit("version", 9), "corpus.json` must be version 1 of a corpus"),
        (edit("metric", "dot"), "`metric` must be one of"),
        (edit("dtype", "int8"), "`dtype` must be one of"),
        (edit("shape", [500]), "`shape` must hold two sizes"),
        (edit("search_dims", [99]), "`search_dims` must be an integer"),
    ],
)
@pytest.mark.parametrize("mmap", [False, True])
def test_damaged_and_foreign_folders_are_refused(
    tmp_path: Path, rows: np.ndarray, damage: Any, message: str, mmap: bool
) -> None:
    Corpus(rows, search_dims=(5,)).save(tmp_path / "corpus")
    damage(tmp_path / "corpus")
    with pytest.raises(ValueError, match=message):
        Corpus.load(tmp_path / "corpus", mmap=mmap)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = r"`path` must be a folder that Corpus.save wrote, got '.*nothing', which is not there; check the path"
    with pytest.raises(FileNotFoundError, match=message):
        Corpus.load(tmp_path / "nothing")
