"""matryoshka.dask: chunks searched where they lie, on threads and in two processes, find what a `Corpus` finds."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load
from oracles import retrieval_funnel

dask = load("dask")
da = load("dask.array")
distributed = load("distributed")

from matryoshka import Corpus, Funnel, Searchable  # noqa: E402 (dask decides whether there is anything to test)
from matryoshka._commands import _elsewhere, _measure  # noqa: E402
from matryoshka.cli import main  # noqa: E402
from matryoshka.dask import DaskCorpus  # noqa: E402

METRICS = ["cosine", "ip", "l2"]
PLANS = (
    None,
    Funnel((6,)),
    Funnel((6, 24), (60,)),
    Funnel((4, 12, 24), (60, 20)),
    Funnel((6, 12, 16), (2000, 1500)),  # more than there are
)
CUTS = ((300,), (100, 3, 0, 197), (1,) * 20 + (280,))


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    lengths = rng.uniform(0.5, 2.0, size=(300, 1))
    rows = (rng.normal(size=(300, 24)) * 0.85 ** np.arange(24) * lengths).astype(np.float32)
    rows[7, :6], rows[9], rows[[40, 101, 290]], rows[41] = 0, 0, rows[30], 2 * rows[30]  # no direction, and ties
    return rows


@pytest.fixture
def queries(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    queries = (rng.normal(size=(7, 24)) * 0.85 ** np.arange(24)).astype(np.float32)
    queries[0] = rows[30]
    return queries


@contextmanager
def processes(n: int) -> Iterator[Any]:
    """Start workers, each a process of one thread, and a client that is not there for what follows."""
    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with (
        distributed.LocalCluster(n_workers=n, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def pair() -> Iterator[Any]:
    with processes(2) as client:
        yield client


@pytest.fixture
def two_processes(pair: Any) -> Iterator[Any]:
    with pair.as_current():
        yield pair


def cut(rows: np.ndarray, sizes: tuple[int, ...]) -> Any:
    return da.from_array(rows, chunks=(sizes, rows.shape[1]))


def saved(rows: np.ndarray, folder: Path) -> Path:
    for i, part in enumerate(np.split(rows, [120, 130, 250])):
        np.save(folder / f"part-{i}.npy", part)
    return folder


def assert_same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    for array, other in zip(found, expected, strict=True):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sizes", CUTS)
def test_chunks_find_what_all_rows_find(
    rows: np.ndarray, queries: np.ndarray, sizes: tuple[int, ...], metric: str, dtype: type
) -> None:
    rows, asked = rows.astype(dtype), queries.astype(np.float64 if dtype == np.float64 else np.float32)
    whole, corpus = Corpus(rows, metric=metric), DaskCorpus(cut(rows, sizes), metric=metric, search_dims=(6,))
    for plan in PLANS:
        assert_same(corpus.search(asked, 9, funnel=plan), whole.search(asked, 9, funnel=plan))
    assert_same(corpus.search(asked, 9, dim=5), whole.search(asked, 9, dim=5))
    assert_same(corpus.search(asked, 310), whole.search(asked, 310))
    assert_same(corpus.search(asked[:1], 3), whole.search(asked[:1], 3))
    assert_same(corpus.search(asked[:0], 3), whole.search(asked[:0], 3))


@pytest.mark.parametrize("metric", METRICS)
def test_the_search_is_that_of_float64(rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    corpus = DaskCorpus(cut(rows, CUTS[1]), metric=metric)
    for plan in PLANS[2:4]:
        scores, ids = retrieval_funnel(queries, rows, 9, plan.dims, plan.keep, metric)
        found = corpus.search(queries, 9, funnel=plan)
        np.testing.assert_array_equal(found[1], ids)
        np.testing.assert_allclose(found[0], scores, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_candidates_are_reranked_where_they_lie(
    rows: np.ndarray, queries: np.ndarray, rng: np.random.Generator, metric: str
) -> None:
    ids = rng.integers(-1, 300, size=(7, 50))
    ids[0], ids[1] = ids[0] % 100, -1  # all in one chunk, and none at all
    whole, corpus = Corpus(rows, metric=metric), DaskCorpus(cut(rows, CUTS[1]), metric=metric)
    for options in ({"dim": 7}, {"dim": 24}, {"funnel": PLANS[3]}, {"funnel": Funnel((64 // 4, 24), (40,))}):
        assert_same(corpus.rerank(queries, ids, 9, **options), whole.rerank(queries, ids, 9, **options))
        assert_same(corpus.rerank(queries, ids[:, :0], 9, **options), whole.rerank(queries, ids[:, :0], 9, **options))


def test_what_depends_on_all_rows_is_decided_before(rows: np.ndarray, queries: np.ndarray) -> None:
    uneven = rows.astype(np.float64)
    uneven[260:] *= 1e-200  # whose squares vanish: all rows are scaled, also in chunks that need not be
    whole, corpus = Corpus(uneven), DaskCorpus(cut(uneven, (100, 150, 50)))
    for plan in PLANS:
        asked = queries.astype(np.float64)
        assert_same(corpus.search(asked, 9, funnel=plan), whole.search(asked, 9, funnel=plan))
    short = rows.copy()
    short[260:] *= 1e-30  # alone too short for "ip"; beside the others they are not
    asked = queries * np.float32(1e-20)
    whole, corpus = Corpus(short, metric="ip"), DaskCorpus(cut(short, (100, 150, 50)), metric="ip")
    assert_same(corpus.search(asked, 300), whole.search(asked, 300))
    with pytest.raises(ValueError, match="`rows` must have their longest row within") as refused:
        DaskCorpus(cut(short[260:], (20, 20)), metric="ip")
    with pytest.raises(ValueError, match="`embeddings` must have their longest row within") as expected:
        Corpus(short[260:], metric="ip")
    assert str(refused.value) == str(expected.value).replace("`embeddings`", "`rows`")


def test_many_queries_go_in_parts(rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matryoshka.retrieval.shards._NUMBERS", 3 * 24)
    corpus, whole = DaskCorpus(cut(rows, CUTS[1])), Corpus(rows)
    assert_same(corpus.search(queries, 9, funnel=PLANS[2]), whole.search(queries, 9, funnel=PLANS[2]))
    ids = np.arange(70).reshape(7, 10)
    assert_same(corpus.rerank(queries, ids, 9, dim=24), whole.rerank(queries, ids, 9, dim=24))


def test_a_folder_of_files(rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    corpus = DaskCorpus(saved(rows, tmp_path))
    assert (len(corpus), corpus.dim, corpus.metric, corpus.search_dims, corpus.codes) == (
        300, 24, "cosine", None, ("float",),
    )  # fmt: skip
    assert isinstance(corpus, Searchable)
    assert repr(corpus) == "DaskCorpus(300 x 24 in 4 shards, metric='cosine')"
    assert_same(corpus.search(queries, 9, funnel=PLANS[3]), Corpus(rows).search(queries, 9, funnel=PLANS[3]))


def test_funnels_are_calibrated(rows: np.ndarray, rng: np.random.Generator) -> None:
    queries = (rows[rng.integers(300, size=200)] + 0.05 * rng.normal(size=(200, 24))).astype(np.float32)
    corpus, options = DaskCorpus(cut(rows, CUTS[1])), {"recall": 0.8, "cost": "multiply_adds"}
    funnel, expected = (Funnel.calibrate(each, queries, 5, **options) for each in (corpus, Corpus(rows)))
    assert funnel == expected
    assert funnel.certificate == expected.certificate
    assert Funnel.pareto(corpus, queries[:20], 5)[-1].funnel == Funnel((24,))


def test_the_benchmark_measures_it(
    rows: np.ndarray, queries: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_measure, "SECONDS", 0.0)
    tmp_path.joinpath("parts").mkdir()
    saved(rows, tmp_path / "parts")
    np.save("rows.npy", rows)
    np.save("queries.npy", np.tile(queries, (4, 1)))
    main(["benchmark", "rows.npy", "queries.npy", "--engine", "exact,dask:parts", "--dims", "6,24", "--batch", "4"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    exact, own = ([line[1:] for line in lines if line[:1] == [name]] for name in ("exact", "dask:parts"))
    assert len(own) >= 3
    for line, other in zip(own, exact, strict=False):
        assert [line[0], line[-1]] == [other[0], other[-1]]  # the plan and what it finds
    np.save("parts/part-9.npy", rows[:9])
    _elsewhere._opened.cache_clear()
    assert main(["benchmark", "rows.npy", "queries.npy", "--engine", "dask:parts"]) == 2
    assert (
        "--engine must name the rows of the corpus, 300 x 24, got dask:parts with 309 x 24" in capsys.readouterr().err
    )


@pytest.mark.parametrize("source", ["array", "files"])
def test_two_processes_find_the_same(
    two_processes: Any, rows: np.ndarray, queries: np.ndarray, tmp_path: Path, source: str
) -> None:
    corpus = DaskCorpus(saved(rows, tmp_path) if source == "files" else cut(rows, (90, 80, 70, 60)), search_dims=(6,))
    holders = two_processes.who_has(distributed.futures_of(corpus._shards))
    if source == "files":  # an array that comes from the client in one piece may stay with one of them
        assert len({worker for workers in holders.values() for worker in workers}) == 2
    whole = Corpus(rows)
    for plan in PLANS:
        assert_same(corpus.search(queries, 9, funnel=plan), whole.search(queries, 9, funnel=plan))
    ids = np.arange(280).reshape(7, 40)
    assert_same(corpus.rerank(queries, ids, 9, dim=24), whole.rerank(queries, ids, 9, dim=24))


DIE = """
import os, signal
from matryoshka.retrieval.shards import Shard
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
Shard.{stage} = die
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signal ends a process at once")
def test_workers_that_die_in_the_middle_of_a_search(rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    with processes(3) as client, client.as_current():
        corpora = [DaskCorpus(saved(rows, tmp_path)), DaskCorpus(cut(rows, (90, 80, 70, 60)))]
        dead: set[str] = set()
        for stage, corpus in zip(("search", "rerank"), corpora, strict=True):
            holders = client.who_has(distributed.futures_of(corpus._shards)).values()
            victim = next(worker for workers in holders for worker in workers if worker not in dead)
            client.run(exec, DIE.format(stage=stage), {}, workers=[victim])
            for each in (corpus, *corpora):  # the others, and then again, with what is left
                found, expected = (one.search(queries, 9, funnel=PLANS[3]) for one in (each, Corpus(rows)))
                assert_same(found, expected)
            dead.add(victim)
            assert victim not in client.scheduler_info()["workers"]


def test_rows_never_travel(two_processes: Any, rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "part.npy", np.tile(rows, (50, 1)))
    corpus = DaskCorpus(tmp_path, search_dims=(6,))
    (shard,) = two_processes.gather(distributed.futures_of(corpus._shards))
    assert len(pickle.dumps(shard)) < 15_000 * (6 + 2) * 4 + 5000  # prefixes, lengths, and no row
    found = shard.search(queries, 6, 60, 0)
    assert len(pickle.dumps(found)) < 7 * 60 * (8 + 4 + 4) + 2000  # an id and two sums for each candidate
    assert_same(corpus.search(queries, 9), Corpus(np.tile(rows, (50, 1))).search(queries, 9))


def test_the_scheduler_that_holds_the_rows_is_asked(
    two_processes: Any, rows: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    expected = Corpus(rows).search(queries, 9)
    with dask.config.set(scheduler="threads"):
        on_threads = DaskCorpus(saved(rows, tmp_path))
    with distributed.Client(two_processes.cluster, set_as_default=False) as client:
        with client.as_current():
            corpus = DaskCorpus(tmp_path)
        with dask.config.set(scheduler="threads"):
            assert_same(corpus.search(queries, 9), expected)
        assert_same(corpus.search(queries, 9), expected)
        assert_same(on_threads.search(queries, 9), expected)
    with pytest.raises(ConnectionError, match="`rows` must lie with a client that is open, got a closed one; build"):
        corpus.search(queries, 9)


def test_what_is_refused_is_so_before_a_chunk_is_computed() -> None:
    chunk = dask.delayed(pytest.fail)("computed")
    for shape, dtype in (((0, 24), float), ((5, 0), float), ((5,), float), ((5, 24), int)):
        with pytest.raises((TypeError, ValueError), match="`rows` must"):
            DaskCorpus(da.from_delayed(chunk, shape, dtype=dtype))
    with pytest.raises(ValueError, match="`rows` must .* cut along its rows only"):
        DaskCorpus(da.concatenate([da.from_delayed(chunk, (5, 12), dtype=float)] * 2, axis=1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda rows: da.from_array(rows, chunks=(300, 12)), ValueError, r"cut along its rows only, got columns cut"),
        (lambda rows: cut(rows, CUTS[1])[da.from_array(np.arange(300) % 2 == 0)], ValueError, "chunks of known sizes"),
        (lambda rows: cut(rows.astype(int), CUTS[1]), TypeError, "`rows` must hold floating-point numbers"),
        (lambda rows: cut(rows, CUTS[1])[0], ValueError, r"`rows` must have shape \(n, dim\), got \(24,\)"),
        (lambda rows: cut(rows, CUTS[1])[:0], ValueError, "`rows` must have at least one row"),
        (lambda rows: rows, TypeError, "`rows` must be a dask array or the path of a folder, got ndarray"),
        (lambda _: "nowhere", FileNotFoundError, "`rows` must be a folder that workers see, with .npy files in it"),
    ],
)
def test_bad_rows_are_refused(rows: np.ndarray, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DaskCorpus(make(rows))


def test_rows_that_are_not_finite_are_counted_over_all_chunks(rows: np.ndarray) -> None:
    rows[[3, 99, 150, 297], 5] = np.nan, np.inf, -np.inf, np.nan
    message = r"`rows` must be finite, got NaN or infinity in 4 of 300 rows \(first: 3, 99, 150, 297\)"
    for metric in METRICS:
        with pytest.raises(ValueError, match=message):
            DaskCorpus(cut(rows, CUTS[1]), metric=metric)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (
            np.ones((5, 23), np.float32),
            ValueError,
            "one width and one dtype in all parts, got 23 columns",
        ),
        (np.ones((5, 24)), ValueError, "one width and one dtype in all parts, got 24 columns of float32 and 24"),
        (np.ones((5, 24), int), TypeError, "part-4.npy` must hold floating-point numbers, got dtype int64"),
        (np.ones((5, 24), ">f4"), TypeError, "part-4.npy` must hold float16, float32 or float64 in the byte order"),
        (np.ones(24), ValueError, r"part-4.npy` must have shape \(n, dim\), got \(24,\)"),
        (np.ones((0, 24)), ValueError, r"part-4.npy` must have at least one row, got shape \(0, 24\)"),
    ],
)
def test_files_must_fit_each_other(
    rows: np.ndarray, tmp_path: Path, other: np.ndarray, error: type[Exception], message: str
) -> None:
    np.save(saved(rows, tmp_path) / "part-4.npy", other)
    with pytest.raises(error, match=message):
        DaskCorpus(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "angular"}, ValueError, "`metric` must be one of 'cosine', 'ip', 'l2', got 'angular'"),
        ({"search_dims": (12, 6)}, ValueError, "`search_dims` must be positive and strictly increasing"),
        ({"search_dims": (6, 25)}, ValueError, r"`search_dims` must lie within \[1, 24\]"),
    ],
)
def test_bad_arguments_are_refused(
    rows: np.ndarray, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DaskCorpus(cut(rows, CUTS[1]), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": np.ones((2, 23), np.float32)}, ValueError, r"`queries` must have shape \(n_queries, dim\)"),
        ({"queries": np.ones((2, 24), int)}, TypeError, "`queries` must hold floating-point numbers"),
        ({"queries": np.full((2, 24), np.nan, np.float32)}, ValueError, "`queries` must be finite"),
        ({"k": 0}, ValueError, "`k` must be an integer >= 1"),
        ({"k": 61}, ValueError, "`k` must be at most the last list of the funnel, 60, got 61"),
        ({"dim": 6}, TypeError, "at most one of `dim` and `funnel` may be given"),
        ({"funnel": Funnel((6, 24), (60,), code="bits")}, ValueError, "`funnel.code` must be 'float' here, got 'bits'"),
    ],
)
def test_bad_searches_are_refused(
    rows: np.ndarray, queries: np.ndarray, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    corpus = DaskCorpus(cut(rows, CUTS[1]))
    with pytest.raises(error, match=message):
        corpus.search(**{"queries": queries, "k": 5, "funnel": PLANS[2]} | arguments)
    with pytest.raises(ValueError, match=r"`ids` must lie within \[-1, 300\), got 0 to 300"):
        corpus.rerank(queries, np.array([[0, 300]] * 7), 1, dim=6)


def test_a_file_that_became_shorter_ends_no_worker(rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    corpus = DaskCorpus(saved(np.tile(rows, (100, 1)), tmp_path))
    os.truncate(tmp_path / "part-3.npy", 5000)
    for ask in (lambda: corpus.search(queries, 9), lambda: corpus.rerank(queries, np.full((7, 1), 29_999), 1, dim=24)):
        with pytest.raises(ValueError, match="`embeddings` must keep the file it is mapped from, .* got 5000; restore"):
            ask()


def test_without_dask_the_command_to_install_it_is_named() -> None:
    program = "import sys; sys.modules['dask'] = None; import matryoshka.dask"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert 'pip install "matryoshka-mrl[dask]"' in done.stderr
