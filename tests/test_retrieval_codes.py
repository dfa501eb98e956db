"""A first stage in bits: against signs compared one by one, on every library, through ties, blocks and files."""

from __future__ import annotations

import copy
import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Library, load
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import retrieval_rank
from test_retrieval_storage import Slices

from matryoshka import Corpus, Funnel, _threads, metrics
from matryoshka.retrieval import _codes
from matryoshka.retrieval._rows import HostRows

METRICS = ("cosine", "ip", "l2")


def of_one_length(rng: np.random.Generator, n: int, dim: int, dtype: Any = np.float64) -> np.ndarray:
    """Rows around a mean that is not zero, of lengths between 0.9 and 1.1."""
    rows = (rng.normal(size=(n, dim)) + 0.4) * 0.97 ** np.arange(dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True) * rng.uniform(0.9, 1.1, size=(n, 1))).astype(dtype)


def scaled(row: list[float], length: float) -> list[float]:
    norm = math.sqrt(math.fsum(v * v for v in row))
    return [v / norm * length for v in row] if norm else row


def signs(rows: np.ndarray, queries: np.ndarray, dim: int, metric: str) -> tuple[list[list[bool]], list[list[bool]]]:
    """Give the sign of each number of rows and queries, less the mean of the rows."""
    kept = [[float(v) for v in row] for row in rows]
    asked = [[float(v) for v in query] for query in queries]
    if metric == "cosine":
        kept, asked = ([scaled(row[:dim], 1.0) for row in some] for some in (kept, asked))
    else:
        typical = math.sqrt(math.fsum(v * v for row in kept for v in row) / len(kept))
        asked = [scaled(query, typical) for query in asked]
    mean = [math.fsum(row[j] for row in kept) / len(kept) for j in range(dim)]
    return tuple([[bool(np.signbit(row[j] - mean[j])) for j in range(dim)] for row in some] for some in (kept, asked))


def nearest(rows: np.ndarray, queries: np.ndarray, k: int, dim: int, metric: str) -> list[list[int]]:
    """Return the rows whose signs differ least, equal numbers by id."""
    kept, asked = signs(rows, queries, dim, metric)
    found = []
    for query in asked:
        distances = [(sum(a != b for a, b in zip(row, query, strict=True)), i) for i, row in enumerate(kept)]
        found.append([i for _, i in sorted(distances)[:k]])
    return found


def expected(rows: np.ndarray, queries: np.ndarray, k: int, plan: Funnel, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Run a coded funnel stage by stage."""
    candidates = nearest(rows, queries, (*plan.keep, k)[0], plan.dims[0], metric)
    for dim, count in zip(plan.dims[1:] or plan.dims, (*plan.keep[1:], k), strict=True):
        scores, ids = retrieval_rank(queries, rows, candidates, count, dim, metric)
        candidates = ids.tolist()
    return scores, ids


def assert_found(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-9, atol=1e-12)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few hundred rows take every path that millions take."""
    for name in ("_BLOCK_WORDS", "_LEAST_ROWS", "_MOST_ROWS"):
        monkeypatch.setattr(_codes, name, 64)
    for name in ("_UNSAMPLED", "_LEAST_SAMPLE", "_MOST_SAMPLE"):
        monkeypatch.setattr(_codes, name, 48)


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (_threads, _codes):
        monkeypatch.setattr(module, "n_threads", lambda: 4)
    _threads._pool.cache_clear()
    yield
    _threads._pool().shutdown()
    _threads._pool.cache_clear()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 7, 63, 64, 65, 70])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 9), (40, 7), (300, 1), (300, 40)])
def test_the_nearest_in_signs_scored_in_numbers(
    rng: np.random.Generator, n: int, k: int, dim: int, metric: str
) -> None:
    rows, queries = of_one_length(rng, n, 70), rng.normal(size=(3, 70)) * [[1e-3], [1.0], [50.0]]
    plan = Funnel((dim,), code="bits")
    assert_found(Corpus(rows, metric=metric).search(queries, k, funnel=plan), expected(rows, queries, k, plan, metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "plan",
    [
        Funnel((20, 70), (30,), code="bits"),
        Funnel((20, 20), (30,), code="bits"),
        Funnel((20, 20, 40, 70), (60, 30, 15), code="bits"),
        Funnel((70, 70), (500,), code="bits"),
    ],
)
def test_later_stages_start_from_nothing(rng: np.random.Generator, plan: Funnel, metric: str) -> None:
    rows, queries = of_one_length(rng, 200, 70), rng.normal(size=(3, 70))
    corpus, wanted = Corpus(rows, metric=metric), expected(rows, queries, 9, plan, metric)
    assert_found(corpus.search(queries, 9, funnel=plan), wanted)
    found = np.array(nearest(rows, queries, min(plan.keep[0], 200), plan.dims[0], metric))
    assert_found(corpus.rerank(queries, found, 9, funnel=plan), wanted)


@pytest.mark.parametrize("metric", METRICS)
def test_results_follow_the_library(library: Library, rng: np.random.Generator, metric: str) -> None:
    rows, queries = (of_one_length(rng, n, 40, np.float32) for n in (150, 4))
    plan = Funnel((33, 40), (30,), code="bits")
    corpus = Corpus(library.array(rows), metric=metric)
    if library.name == "array_api_strict" or library.device not in (None, "cpu"):
        assert corpus.codes == ("float",)
        with pytest.raises(
            ValueError, match=r"`funnel.code` must be 'float' for a corpus on a device, .* leave it out"
        ):
            corpus.search(library.array(queries), 5, funnel=plan)
        with pytest.raises(ValueError, match="`code` must be 'float' for a corpus on a device"):
            Corpus(library.array(rows), metric=metric, code="bits")
        return
    assert corpus.codes == ("float", "bits")
    library.assert_found(
        corpus.search(library.array(queries), 5, funnel=plan), expected(rows, queries, 5, plan, metric)
    )


def test_half_precision(half: Library, rng: np.random.Generator) -> None:
    rows, queries = (half.array(of_one_length(rng, n, 40)) for n in (150, 4))
    seen = [half.to_numpy(array).astype(np.float64) for array in (rows, queries)]
    plan = Funnel((33, 40), (30,), code="bits")
    for metric in METRICS:
        wanted = expected(*seen, 5, plan, metric)
        half.assert_found(Corpus(rows, metric=metric).search(queries, 5, funnel=plan), wanted)


def test_rows_too_short_to_be_squared(rng: np.random.Generator) -> None:
    rows, queries = rng.normal(size=(90, 40)).astype(np.float32), rng.normal(size=(4, 40)).astype(np.float32)
    plan = Funnel((33, 40), (30,), code="bits")
    for a, b in zip(*(Corpus(r).search(queries, 5, funnel=plan) for r in (rows, rows * 2.0**-90)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(("dim", "flipped"), [(300, 50), (66_000, 1000)])
def test_distances_do_not_come_round(rng: np.random.Generator, dim: int, flipped: int) -> None:
    query, other = rng.choice([-1.0, 1.0], size=(2, dim)).astype(np.float32)
    near = np.where(np.arange(dim) < flipped, -query, query)
    corpus = Corpus(np.stack([-query, other, near, -other, -near]))
    assert corpus.search(query[None], 1, funnel=Funnel((dim,), code="bits"))[1].tolist() == [[2]]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n", [64, 65, 500])
@pytest.mark.parametrize("k", [1, 6, 70])
def test_many_blocks(rng: np.random.Generator, n: int, k: int) -> None:
    rows, queries = of_one_length(rng, n, 20), rng.normal(size=(6, 20))
    plan = Funnel((20,), code="bits")
    assert_found(Corpus(rows).search(queries, k, funnel=plan), expected(rows, queries, k, plan, "cosine"))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("pending", [1, 1 << 22])
@pytest.mark.parametrize("order", ["better", "worse", "waves"])
@pytest.mark.parametrize("k", [3, 90])
def test_the_order_of_rows_does_not_matter(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, order: str, k: int, pending: int
) -> None:
    monkeypatch.setattr(_codes, "_PENDING", pending)
    rows, query = rng.normal(size=(500, 30)), rng.normal(size=30)
    mixed = {"better": np.linspace(0, 1, 500), "worse": np.linspace(1, 0, 500), "waves": np.arange(500) % 7 / 7}[order]
    rows = mixed[:, None] * query + (1 - mixed[:, None]) * rows
    plan, queries = Funnel((30,), code="bits"), np.stack([query, -query])
    assert_found(Corpus(rows).search(queries, k, funnel=plan), expected(rows, queries, k, plan, "cosine"))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("pending", [1, 1 << 22])
def test_equal_codes_come_by_id(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, pending: int) -> None:
    monkeypatch.setattr(_codes, "_PENDING", pending)
    kinds = rng.normal(size=(3, 5))
    rows, queries = kinds[rng.integers(3, size=700)], kinds + 0.01
    for k in (1, 20, 100, 300):
        plan = Funnel((5,), code="bits")
        assert_found(Corpus(rows).search(queries, k, funnel=plan), expected(rows, queries, k, plan, "cosine"))
    same = Corpus(np.tile(kinds[:1], (700, 1)))
    np.testing.assert_array_equal(same.search(queries, 100, funnel=Funnel((5,), code="bits"))[1][2], np.arange(100))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 150), st.integers(1, 20), st.integers(1, 160), st.sampled_from(METRICS), st.integers(0, 10**6))
def test_no_row_that_is_left_out_is_nearer(n: int, dim: int, k: int, metric: str, seed: int) -> None:
    """Whatever the bits are: of those that were left out none differs less, and none as little with a lower id."""
    rng = np.random.default_rng(seed)
    code = _codes.build(HostRows(rng.choice([-1.0, 1.0], size=(n, dim))).knowing(scale=None, squares=np.full(n, dim)),
                        (dim,), metric)[dim]  # fmt: skip
    asked = rng.normal(size=(3, dim))
    words, found = code.queries(asked), code.candidates(asked, min(k, n))
    assert (np.diff(found, axis=1) > 0).all()
    for word, ids in zip(words.tolist(), found.tolist(), strict=True):
        differ = [sum((a ^ b).bit_count() for a, b in zip(word, row, strict=True)) for row in code.words.T.tolist()]
        left = set(range(n)) - set(ids)
        assert all((differ[i], i) > max((differ[j], j) for j in ids) for i in left)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(2, 9), st.integers(1, 70), st.sampled_from(METRICS), st.integers(0, 10**6))
def test_a_funnel_from_bits_that_drops_nothing_is_exact(n: int, dim: int, k: int, metric: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, queries = of_one_length(rng, n, dim), rng.normal(size=(3, dim))
    corpus = Corpus(rows, metric=metric)
    exact = corpus.search(queries, k)
    for dims in ((dim, dim), (1, dim), (dim - 1, dim - 1, dim)):
        assert_found(corpus.search(queries, k, funnel=Funnel(dims, [max(n, k)] * (len(dims) - 1), code="bits")), exact)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_may_be_done_in_any_order() -> None:
    code = _codes.build(HostRows(np.zeros((200, 5))).knowing(scale=None, squares=np.zeros(200)), (5,), "cosine")[5]
    search = _codes._Search(code, np.zeros((1, 1), np.uint64), 3, [0])
    turns = ((128, [128, 129, 130]), (64, [64, 65, 66]), (128, []), (0, [0, 1, 2]), (64, []))  # as threads come to them
    for start, ids in turns:
        assert search.block(slice(start, start + 64))[0][0].tolist() == ids


def test_a_sample_that_misleads_costs_time_only(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = of_one_length(rng, 5000, 20), rng.normal(size=(5, 20))
    corpus, plan = Corpus(rows), Funnel((20,), code="bits")
    wanted = corpus.search(queries, 9, funnel=plan)
    limits, asked = _codes._limits, []

    def too_low(distances: np.ndarray, rank: int, most: int) -> list[int]:
        asked.append(len(distances))
        return [0] * 3 + limits(distances[3:], rank, most) if len(asked) == 1 else limits(distances, rank, most)

    monkeypatch.setattr(_codes, "_limits", too_low)
    for a, b in zip(corpus.search(queries, 9, funnel=plan), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert asked == [5, 3]


def test_every_row_is_near_enough_in_the_end(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_codes.Code, "sample", np.zeros((1, 1024), np.uint64))  # all of them next to one query
    rows, plan = of_one_length(rng, 5000, 20), Funnel((20,), code="bits")
    queries = np.stack([rows.max(axis=0), rows.min(axis=0)])
    found = Corpus(rows).search(queries, 9, funnel=plan)[1]
    kept, asked = (np.array(some) for some in signs(rows, queries, 20, "cosine"))
    wanted = [np.argsort((kept != query).sum(axis=1), kind="stable")[:9] for query in asked]
    np.testing.assert_array_equal(np.sort(found, axis=1), np.sort(wanted, axis=1))


def test_many_equal_rows_are_not_held(rng: np.random.Generator) -> None:
    rows, queries = np.tile(rng.normal(size=64).astype(np.float32), (300_000, 1)), rng.normal(size=(32, 64))
    corpus, plan = Corpus(rows, search_dims=(64,), code="bits"), Funnel((64, 64), (50,), code="bits")
    corpus.search(queries[:1].astype(np.float32), 1, funnel=plan)
    tracemalloc.start()
    try:
        ids = corpus.search(queries.astype(np.float32), 9, funnel=plan)[1]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(ids, np.tile(np.arange(9), (32, 1)))
    assert most < 1 << 24, f"{most} bytes, where all ids of all queries are {32 * 300_000 * 8}"


@pytest.mark.usefixtures("small_blocks", "four_threads")
def test_neither_batch_nor_threads_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = (of_one_length(rng, n, 90, np.float32) for n in (2000, 150))
    plan = Funnel((80, 80, 90), (50, 20), code="bits")
    together = Corpus(rows).search(queries, 12, funnel=plan)
    for module in (_threads, _codes):
        monkeypatch.setattr(module, "n_threads", lambda: 1)
    monkeypatch.setattr(_codes, "_BLOCK_WORDS", 1 << 17)
    monkeypatch.setattr(_codes, "_MOST_ROWS", 1 << 16)
    corpus = Corpus(rows)
    for i in (0, 3, 149):
        for a, b in zip(corpus.search(queries[i : i + 1], 12, funnel=plan), together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])
    assert corpus.search(queries[:0], 12, funnel=plan)[1].shape == (0, 12)


@pytest.mark.parametrize("metric", METRICS)
def test_zeros_and_constant_columns_have_a_sign(rng: np.random.Generator, metric: str) -> None:
    rows = np.column_stack([of_one_length(rng, 60, 5), np.full(60, 0.25), of_one_length(rng, 60, 2)])
    rows[7], rows[20:23] = 0.0, 0.0
    queries = np.stack([rows[0], np.zeros(8), -rows[0]])
    corpus = Corpus(rows, metric=metric)
    for plan in (Funnel((8,), code="bits"), Funnel((6, 8), (20,), code="bits"), Funnel((7, 7), (9,), code="bits")):
        assert_found(corpus.search(queries, 5, funnel=plan), expected(rows, queries, 5, plan, metric))
    axes = np.concatenate([np.eye(3), 0 - np.eye(3)])  # half of whose numbers are the mean itself
    plan, queries = Funnel((3,), code="bits"), np.array([[-1.0, -0.1, -0.2], [0.5, -0.6, 0.7]])
    assert_found(Corpus(axes, metric=metric).search(queries, 3, funnel=plan), expected(axes, queries, 3, plan, metric))
    for same in (np.zeros((9, 3)), np.full((9, 3), 0.1)):
        ids = Corpus(same, metric=metric).search(np.ones((1, 3)), 4, funnel=Funnel((3,), code="bits"))[1]
        assert ids.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_rows_of_different_lengths_are_compared_by_direction_only(rng: np.random.Generator, metric: str) -> None:
    rows = rng.normal(size=(50, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[4] = 0.0  # nothing is as short, and nothing is left out for it
    rows[0] *= 1.24
    corpus = Corpus(rows, metric=metric)
    assert corpus.codes == ("float", "bits")
    corpus.search(rows[:2], 3, funnel=Funnel((6,), code="bits"))
    rows[0] *= 1.02
    corpus = Corpus(rows, metric=metric, search_dims=(3,))
    assert corpus.codes == Corpus(rows / 9, metric=metric).codes == ("float",)
    message = (
        rf"must be 'float' under metric '{metric}' .* lengths from 1 to 1.26; leave it out, or use metric='cosine'"
    )
    with pytest.raises(ValueError, match=f"`funnel.code` {message}"):
        corpus.search(rows[:2], 3, funnel=Funnel((6,), code="bits"))
    with pytest.raises(ValueError, match=f"`code` {message}"):
        Corpus(rows, metric=metric, code="bits")
    with pytest.raises(ValueError, match=f"`code` {message}"):
        corpus.prefixes(3, code="bits")
    assert Corpus(rows).codes == ("float", "bits")


def test_bad_plans_and_codes_are_refused(rng: np.random.Generator) -> None:
    corpus, queries = Corpus(rng.normal(size=(9, 6))), rng.normal(size=(2, 6))
    with pytest.raises(ValueError, match=r"`funnel.dims` must lie within \[1, 6\]"):
        corpus.search(queries, 2, funnel=Funnel((7,), code="bits"))
    with pytest.raises(ValueError, match="`k` must be at most the last list of the funnel, 3, got 4"):
        corpus.search(queries, 4, funnel=Funnel((6, 6), (3,), code="bits"))
    for make in (lambda: Corpus(queries, code="int8"), lambda: corpus.prefixes(3, code="int8")):
        with pytest.raises(ValueError, match="`code` must be one of 'float', 'bits', got 'int8'"):
            make()


def test_codes_are_built_at_once_or_when_first_asked_for(rng: np.random.Generator) -> None:
    rows, plan = rng.normal(size=(300, 70)), Funnel((65, 70), (20,), code="bits")
    ready, later = Corpus(rows, search_dims=(10, 65), code="bits"), Corpus(rows, search_dims=(10,))
    assert ready.search_dims == (10, 65)
    assert ready.nbytes.prefixes == 0
    assert ready.nbytes.codes == 300 * 8 * (1 + 2) + 8 * (10 + 65)
    assert repr(ready) == "Corpus(300 x 70, metric='cosine', search_dims=(10, 65), in bits at (10, 65))"
    assert later.nbytes.codes == 0
    twin = copy.copy(later)
    for a, b in zip(later.search(rows[:3], 5, funnel=plan), ready.search(rows[:3], 5, funnel=plan), strict=True):
        np.testing.assert_array_equal(a, b)
    assert later.nbytes.codes == 300 * 8 * 2 + 8 * 65
    assert later.nbytes.total - later.nbytes.codes == twin.nbytes.total
    assert repr(later) == "Corpus(300 x 70, metric='cosine', search_dims=(10, 65), in bits at (65,))"
    assert (later.search_dims, twin.search_dims) == ((10, 65), (10,))
    again = copy.copy(later)
    again.search(rows[:1], 1, funnel=Funnel((7,), code="bits"))
    assert (again.search_dims, later.search_dims) == ((7, 10, 65), (10, 65))
    twin._adopt(later, 65, "bits")
    assert twin.nbytes.codes == later.nbytes.codes


def test_what_is_allocated_is_counted(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "n_threads", lambda: 1)  # others let go of their memory a moment later
    rows = rng.normal(size=(70_000, 70)).astype(np.float32)
    plan = Funnel((65,), code="bits")
    Corpus(rows).search(rows[:3], 5, funnel=plan)  # what is made once for all
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        corpus = Corpus(rows)
        corpus.search(rows[:3], 5, funnel=plan)
        allocated = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert corpus.nbytes.codes > 70_000 * 2 * 8 + 65 * 4  # and the sample
    assert corpus.nbytes.memory - corpus.nbytes.rows == pytest.approx(allocated, rel=0.03)


def test_rows_in_files_and_slices(tmp_path: Path, rng: np.random.Generator) -> None:
    rows, queries = (rng.normal(size=(n, 40)).astype(np.float32) for n in (900, 5))
    np.save(tmp_path / "rows.npy", rows)
    plan = Funnel((33, 40), (30,), code="bits")
    wanted = Corpus(rows).search(queries, 5, funnel=plan)
    for kept in (np.load(tmp_path / "rows.npy", mmap_mode="r"), Slices(rows)):
        for a, b in zip(Corpus(kept).search(queries, 5, funnel=plan), wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("mmap", [False, True])
def test_save_and_load(tmp_path: Path, rng: np.random.Generator, metric: str, dtype: str, mmap: bool) -> None:
    rows, queries = (of_one_length(rng, n, 70, dtype) for n in (200, 5))
    original = Corpus(rows, metric=metric, search_dims=(10, 65), code="bits")
    plan = Funnel((65, 70), (30,), code="bits")
    wanted = original.search(queries, 5, funnel=plan)
    original.search(queries, 5, dim=10)
    original.save(tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus", mmap=mmap, verify=mmap)
    assert repr(loaded) == repr(original)
    assert loaded.nbytes.codes == original.nbytes.codes > 0
    for a, b in zip(loaded.search(queries, 5, funnel=plan), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    loaded.save(tmp_path / "again")
    for file in (tmp_path / "corpus").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_folders_without_codes_are_as_before(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(50, 12))
    Corpus(rows, search_dims=(5,)).save(tmp_path / "corpus")
    record = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    keys = {"kind", "version", "metric", "shape", "dtype", "search_dims", "scaled", "checksums", "checksum"}
    assert set(record) == keys  # which versions that know no code read too
    for key in ("checksums", "checksum"):
        del record[key]
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(record))  # as the first version wrote it
    loaded, plan = Corpus.load(tmp_path / "corpus"), Funnel((9, 12), (20,), code="bits")
    for a, b in zip(
        loaded.search(rows[:3], 5, funnel=plan), Corpus(rows).search(rows[:3], 5, funnel=plan), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    loaded.save(tmp_path / "corpus")
    assert Corpus.load(tmp_path / "corpus").search_dims == (5, 9)


@pytest.mark.parametrize("module", ["torch", "jax.numpy", "array_api_strict"])
def test_load_into_another_library(tmp_path: Path, rng: np.random.Generator, module: str) -> None:
    library, rows = load(module), rng.normal(size=(50, 12)).astype(np.float32)
    Corpus(rows, search_dims=(9,), code="bits").save(tmp_path / "corpus")
    loaded = Corpus.load(tmp_path / "corpus", like=library.asarray(rows[:1]))
    if module == "array_api_strict":
        assert (loaded.search_dims, loaded.codes) == ((), ("float",))  # searched with numbers, codes stay behind
        return
    assert loaded.search_dims == (9,)
    plan = Funnel((9, 12), (20,), code="bits")
    scores, ids = loaded.search(library.asarray(rows[:3]), 5, funnel=plan)
    assert type(scores) is type(ids) is type(library.asarray(rows))
    np.testing.assert_array_equal(np.asarray(ids), Corpus(rows).search(rows[:3], 5, funnel=plan)[1])


def edit(folder: Path, **changes: Any) -> None:
    """Change the record as somebody might who knows no checksums."""
    record = json.loads((folder / "corpus.json").read_text()) | changes
    for key in ("checksums", "checksum"):
        del record[key]
    (folder / "corpus.json").write_text(json.dumps(record))


def change(folder: Path, name: str, **arrays: Any) -> None:
    edit(folder)
    np.save(folder / f"{name}.npy", arrays["to"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: np.save(at / "bits-65.npy", np.zeros((2, 50), np.uint64)), "`.*bits-65.npy` must be as it was"),
        (
            lambda at: change(at, "bits-65", to=np.zeros((2, 49), np.uint64)),
            r"`.*bits-65.npy` must hold uint64 of .*50",
        ),
        (
            lambda at: change(at, "bits-65", to=np.zeros((1, 50), np.uint64)),
            r"`.*bits-65.npy` must hold uint64 of .*2, ",
        ),
        (lambda at: change(at, "bits-65", to=np.zeros((2, 50))), r"`.*bits-65.npy` must hold uint64 .* got float64"),
        (lambda at: change(at, "bits-65", to=np.full((2, 50), 2, np.uint64)), "`.*bits-65.npy` must hold 65 bits for"),
        (lambda at: change(at, "mean-65", to=np.zeros(64)), r"`.*mean-65.npy` must hold float64 of shape \(65,\)"),
        (
            lambda at: change(at, "mean-65", to=np.full(65, np.nan)),
            "`.*bits-65.npy` must hold 65 bits .* finite numbers",
        ),
        (lambda at: (at / "mean-65.npy").unlink(), "`.*mean-65.npy` must exist"),
        (lambda at: edit(at, search_bits=[71]), r"`search_bits` must be an integer in \[1, 70\], got 71"),
        (lambda at: edit(at, search_bits="all"), "`search_bits` must be a list, got str 'all'"),
        (lambda at: edit(at, search_bits=[64]), "`.*bits-64.npy` must exist"),
    ],
)
@pytest.mark.parametrize("mmap", [False, True])
def test_codes_that_do_not_fit_their_rows_are_refused(
    tmp_path: Path, rng: np.random.Generator, damage: Any, message: str, mmap: bool
) -> None:
    Corpus(rng.normal(size=(50, 70)), search_dims=(65,), code="bits").save(tmp_path / "corpus")
    damage(tmp_path / "corpus")
    with pytest.raises(ValueError, match=message):
        Corpus.load(tmp_path / "corpus", mmap=mmap)


@pytest.mark.parametrize("dim", [1, 8, 20, 64, 70])
def test_an_index_of_your_own_gets_codes(rng: np.random.Generator, dim: int) -> None:
    rows, queries = rng.normal(size=(300, 70)), rng.normal(size=(4, 70))
    corpus, plan = Corpus(rows), Funnel((dim, 70), (40,), code="bits")
    index = np.concatenate([codes for _, codes in corpus.prefixes(dim, code="bits")])
    kept, _ = signs(rows, queries, dim, "cosine")
    np.testing.assert_array_equal(np.unpackbits(index, axis=1, bitorder="little")[:, :dim], kept)
    assert index.shape == (300, -(-dim // 8))

    def find(codes: np.ndarray, count: int) -> np.ndarray:
        differ = np.unpackbits(codes[:, None] ^ index, axis=2).sum(axis=2, dtype=int)
        return np.argsort(differ, axis=1, kind="stable")[:, :count]

    mine = corpus.search(queries, 5, funnel=plan, first_stage=find)
    for a, b in zip(mine, corpus.search(queries, 5, funnel=plan), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bits_of_many_columns_keep_more_than_as_many_bytes_of_few(rng: np.random.Generator) -> None:
    centres = (rng.normal(size=(400, 256)) + 0.3) * (np.arange(256) + 1) ** -0.2
    rows, queries = (np.tile(centres, (times, 1))[:n] for times, n in ((10, 4000), (1, 60)))
    rows, queries = (some + rng.normal(size=some.shape) * 0.7 for some in (rows, queries))
    corpus = Corpus(rows.astype(np.float32))
    queries = queries.astype(np.float32)
    coded, plain = Funnel((256, 256), (50,), code="bits"), Funnel((8, 256), (50,))
    assert coded.bytes(4000) - plain.bytes(4000) == 4 * 50 * 8  # which the other need not read once more
    exact = corpus.search(queries, 10)[1]
    kept, lost = (
        metrics.overlap_at_k(corpus.search(queries, 10, funnel=plan)[1], exact, 10) for plan in (coded, plain)
    )
    assert kept > lost + 0.2
