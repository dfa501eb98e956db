"""matryoshka.qdrant: the engine in this process finds what a naive search in float64 finds; a client gets the same."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import BAD_RERANKS
from conftest import load
from oracles import retrieval_funnel, retrieval_rank

qdrant_edge = load("qdrant_edge")
qdrant_client = load("qdrant_client")

from matryoshka import Corpus, Funnel, Searchable, _qdrant, metrics, qdrant  # noqa: E402 (the engine decides whether there is a test)
from matryoshka._commands import _elsewhere, _measure  # noqa: E402
from matryoshka.cli import main  # noqa: E402
from matryoshka.qdrant import QdrantCorpus  # noqa: E402

METRICS = ["cosine", "ip", "l2"]
PLAN = Funnel((6, 12, 24), (60, 20))
DIMS = (6, 12, 24)
IMITATION = pytest.mark.filterwarnings("ignore:Local mode performs exact")


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    lengths = rng.uniform(0.5, 2.0, size=(300, 1))
    rows = (rng.normal(size=(300, 24)) * 0.85 ** np.arange(24) * lengths).astype(np.float32)
    rows[7, :6], rows[9] = 0, 0  # no direction
    rows[11] *= 1e-6  # shorter than what Qdrant brings to unit length
    return rows


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    queries = (rng.normal(size=(7, 24)) * 0.85 ** np.arange(24)).astype(np.float32)
    queries[2] *= 1e-6
    return queries


@pytest.fixture(params=["edge", pytest.param("client", marks=IMITATION)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Give a folder for the engine, and a client of the imitation of a server, which checks what is asked."""
    if request.param == "edge":
        yield tmp_path
    else:
        client = qdrant_client.QdrantClient(":memory:")
        yield client
        client.close()


def agree(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    np.testing.assert_array_equal(np.asarray(found[1]), np.asarray(expected[1]))
    np.testing.assert_allclose(np.asarray(found[0]), np.asarray(expected[0]), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_the_search_is_that_of_float64(place: Any, rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    corpus = QdrantCorpus.create(place, "items", rows, metric=metric, dims=(6, 12), search_dims=(6,))
    assert isinstance(corpus, Searchable)
    for plan in (PLAN, Funnel((6, 24), (60,)), Funnel((6,)), Funnel((24,))):
        agree(corpus.search(queries, 9, funnel=plan), retrieval_funnel(queries, rows, 9, plan.dims, plan.keep, metric))
    agree(corpus.search(queries, 9, dim=12), retrieval_funnel(queries, rows, 9, (12,), (), metric))
    agree(corpus.search(queries, 9), retrieval_funnel(queries, rows, 9, (24,), (), metric))


@pytest.mark.parametrize("metric", METRICS)
def test_a_funnel_that_drops_nothing_is_exact(place: Any, rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    corpus = QdrantCorpus.create(place, "items", rows, metric=metric, dims=DIMS, search_dims=(6, 12))
    for dims in ((6, 24), (12, 24), DIMS):
        plan = Funnel(dims, [300] * (len(dims) - 1))
        agree(corpus.search(queries, 300, funnel=plan), retrieval_funnel(queries, rows, 300, (24,), (), metric))


@pytest.mark.parametrize("metric", METRICS)
def test_rerank(place: Any, rows: np.ndarray, queries: np.ndarray, rng: np.random.Generator, metric: str) -> None:
    corpus = QdrantCorpus.create(place, "items", rows, metric=metric, dims=DIMS)
    ids = np.stack([rng.permutation(len(rows))[:40] for _ in range(7)])
    ids[:, 3], ids[4] = -1, -1
    lists = [[i for i in row if i >= 0] for row in ids.tolist()]
    agree(corpus.rerank(queries, ids, 50, dim=12), retrieval_rank(queries, rows, lists, 50, 12, metric))
    short = Funnel(DIMS, (9, 9))  # whose first list is not asked for again
    agree(
        corpus.rerank(queries, ids, 8, funnel=short), Corpus(rows, metric=metric).rerank(queries, ids, 8, funnel=short)
    )
    agree(corpus.rerank(queries, ids + 1000, 3, dim=6), (np.full((7, 3), -np.inf), np.full((7, 3), -1)))
    assert corpus.rerank(queries, ids[:, :0], 3, dim=6)[1].tolist() == [[-1] * 3] * 7
    assert corpus.rerank(queries[:1], np.array([[5, -7, 5]]), 3, dim=6)[1].tolist() == [[5, -1, -1]]


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_come_in_the_order_of_ids(tmp_path: Path, rows: np.ndarray, metric: str) -> None:
    rows[[200, 40, 120]] = rows[30] * 4
    corpus = QdrantCorpus.create(tmp_path, "items", rows, metric=metric, dims=DIMS)
    assert corpus.search(rows[[40]], 4, funnel=PLAN)[1][0].tolist()[: 4 if metric == "cosine" else 3] == (
        [30, 40, 120, 200] if metric == "cosine" else [40, 120, 200]
    )


def test_more_results_than_rows_and_no_queries(place: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = QdrantCorpus.create(place, "items", rows[:5], dims=DIMS)
    for plan in (PLAN, Funnel((6,))):
        agree(corpus.search(queries, 8, funnel=plan), Corpus(rows[:5]).search(queries, 8, funnel=plan))
    assert corpus.search(queries[:0], 3)[0].shape == (0, 3)
    assert len(corpus) == 5
    assert len(QdrantCorpus.create(place, "none", rows[:0], dims=DIMS)) == 0
    assert QdrantCorpus(place, "none").search(queries, 2)[1].tolist() == [[-1, -1]] * 7


def test_an_index_finds_the_candidates_and_nothing_exact(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(6000, 64)).astype(np.float32)
    queries = rng.normal(size=(40, 64)).astype(np.float32)
    corpus = QdrantCorpus.create(tmp_path, "items", rows, dims=(8, 32), search_dims=(32,), index=True)
    assert corpus.client.info().indexed_vectors_count > 0
    exact = Corpus(rows)
    for plan in (Funnel((32, 64), (150,)), Funnel((32,))):
        found, expected = (one.search(queries, 100, funnel=plan)[1] for one in (corpus, exact))
        assert 0.8 < metrics.overlap_at_k(found, expected, 100) < 1
    agree(corpus.search(queries, 100, dim=32), exact.search(queries, 100, dim=32))
    agree(corpus.search(queries, 100, funnel=Funnel((64,))), exact.search(queries, 100))
    with pytest.raises(ValueError, match=r"`funnel` must start at one of the `search_dims`, \(32,\), got 8; change"):
        corpus.search(queries, 9, funnel=Funnel((8, 64), (60,)))


@IMITATION
def test_a_client_stays_open(rows: np.ndarray) -> None:
    client = qdrant_client.QdrantClient(":memory:")
    QdrantCorpus.create(client, "items", rows, dims=DIMS).close()
    assert client.count("items").count == 300
    client.close()


def test_bits_are_signs(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.normal(size=(4000, 128)).astype(np.float32)
    queries = rng.normal(size=(20, 128)).astype(np.float32)
    corpus = QdrantCorpus.create(tmp_path, "items", rows, dims=(64,), bits=True)
    assert corpus.codes == ("float", "bits")
    differ = ((queries[:, None, :64] > 0) != (rows[None, :, :64] > 0)).sum(axis=2)
    last = np.sort(differ, axis=1)[:, 39:40]  # of 40 candidates; ties there are the engine's to break
    for plan in (Funnel((64,), code="bits"), Funnel((64, 64), (40,), code="bits")):
        scores, ids = corpus.search(queries, 40, funnel=plan)
        assert (np.take_along_axis(differ, ids, axis=1) <= last).all()
        agree((scores, ids), Corpus(rows).rerank(queries, ids, 40, dim=64))  # scored in numbers
    agree(corpus.search(queries, 9, funnel=Funnel((64, 128), (90,))),
          Corpus(rows).search(queries, 9, funnel=Funnel((64, 128), (90,))))  # fmt: skip
    plain = QdrantCorpus.create(tmp_path, "plain", rows[:9], dims=(64,))
    with pytest.raises(ValueError, match="`funnel.code` must be 'float' here, got 'bits'"):
        plain.search(queries, 4, funnel=Funnel((64,), code="bits"))


@IMITATION
def test_a_batch_is_one_nested_request(rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    client, sent = qdrant_client.QdrantClient(":memory:"), []
    corpus = QdrantCorpus.create(client, "items", rows, dims=DIMS, search_dims=(6,), index=True, bits=True)
    ask = client.query_batch_points
    monkeypatch.setattr(
        client, "query_batch_points", lambda name, requests: sent.append(requests) or ask(name, requests)
    )
    corpus.search(queries, 5, funnel=PLAN)
    corpus.search(queries, 5, funnel=Funnel((6, 6, 24), (60, 20), code="bits"))
    corpus.search(queries, 5)
    assert [len(batch) for batch in sent] == [7, 7, 7]
    found = []
    for batch in sent:
        stage, stages = batch[3], []
        while stage is not None:
            stages.append((stage.using, stage.limit, stage.params.exact, stage.params.quantization.ignore))
            stage = stage.prefetch[0] if stage.prefetch else None
        found.append(stages)
    assert found == [
        [("24", 5, True, True), ("12", 20, True, True), ("6", 60, False, True)],
        [("24", 5, True, True), ("6", 20, True, True), ("6", 60, False, False)],
        [("24", 5, True, True)],
    ]
    params = client.get_collection("items").config.params.vectors
    assert {name: (vector.on_disk, vector.hnsw_config.m) for name, vector in params.items()} == {
        "6": (False, 16), "12": (True, 0), "24": (True, 0)
    }  # fmt: skip
    assert [vector.quantization_config is not None for vector in params.values()] == [True, False, False]
    client.close()


def test_many_queries_go_in_parts(tmp_path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matryoshka.qdrant._BATCH_NUMBERS", 100)
    corpus = QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS)
    agree(corpus.search(rows[100:150], 3, funnel=PLAN), Corpus(rows).search(rows[100:150], 3, funnel=PLAN))


def test_a_certificate_in_the_engine(tmp_path: Path, rng: np.random.Generator) -> None:
    rows, queries = ((rng.normal(size=(n, 24)) * 0.8 ** np.arange(24)).astype(np.float32) for n in (600, 240))
    corpus = QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS)
    options: dict[str, Any] = {"recall": 0.9, "dims": DIMS, "cost": "multiply_adds"}
    plan = Funnel.calibrate(corpus, queries, 5, **options)
    alone = Funnel.calibrate(Corpus(rows), queries, 5, **options)
    assert plan.keep
    assert (plan, plan.certificate) == (alone, alone.certificate)
    assert Funnel.calibrate(corpus, queries[:40], 5).certificate is not None  # by the clock, at the widths of `corpus`
    whatever = QdrantCorpus.create(tmp_path, "other", rows)  # has the widths that are tried by default
    assert (whatever.dims, whatever.search_dims) == ((12, 24), (12,))
    assert Funnel.calibrate(whatever, queries[:40], 5).certificate is not None
    points = Funnel.pareto(whatever, queries[:60], 5, cost="multiply_adds")
    assert {point.funnel.dims[0] for point in points} == {12, 24}


@pytest.mark.parametrize("module", ["torch", "jax.numpy", "array_api_strict"])
def test_other_libraries(tmp_path: Path, rows: np.ndarray, queries: np.ndarray, module: str) -> None:
    library = load(module)
    corpus = QdrantCorpus.create(tmp_path, "items", library.asarray(rows), dims=DIMS)
    found = corpus.search(library.asarray(queries), 5, funnel=PLAN)
    agree(found, Corpus(rows).search(queries, 5, funnel=PLAN))
    assert type(found[0]) is type(found[1]) is type(library.asarray(rows))
    agree(corpus.rerank(library.asarray(queries), found[1], 5, dim=24), found)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(tmp_path: Path, rows: np.ndarray, queries: np.ndarray, dtype: str) -> None:
    corpus = QdrantCorpus.create(tmp_path, "items", rows.astype(dtype), dims=DIMS)
    single = rows.astype(dtype).astype(np.float32)
    agree(
        corpus.search(queries[3:].astype(dtype), 5),
        retrieval_funnel(queries[3:].astype(dtype), single, 5, (24,), (), "cosine"),
    )


UPLOAD = """
import sys
import numpy as np
from matryoshka import qdrant

class Telling:
    def __init__(self, engine):
        self._engine = engine
    def __getattr__(self, name):
        return getattr(self._engine, name)
    def upsert(self, ids, *rest):
        self._engine.upsert(ids, *rest)
        print(str(ids[-1]).ljust(4000), flush=True)  # it waits where nobody reads on

create = qdrant._qdrant.engine
qdrant._qdrant.engine = lambda *where: Telling(create(*where))
qdrant._BATCH_NUMBERS = 42 * 50
qdrant.QdrantCorpus.create(sys.argv[1], "items", np.load(sys.argv[2]), dims=(6, 12, 24), search_dims=(6,))
"""


@pytest.mark.parametrize("last", [49, 4_999])
def test_a_killed_upload_keeps_what_it_acknowledged(tmp_path: Path, rng: np.random.Generator, last: int) -> None:
    rows = rng.normal(size=(20_000, 24)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    command = [sys.executable, "-c", UPLOAD, str(tmp_path), str(tmp_path / "rows.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = next(int(line) for line in process.stdout if int(line) >= last)
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())]) + 1
    assert process.returncode == -signal.SIGKILL
    corpus = QdrantCorpus(tmp_path, "items")
    assert acknowledged <= len(corpus) < len(rows)
    chosen = rows[:acknowledged:97]
    assert corpus.search(chosen, 1)[1][:, 0].tolist() == list(range(0, acknowledged, 97))
    ids = np.arange(acknowledged)[:, None]
    assert (corpus.rerank(rows[:acknowledged], ids, 1, dim=6)[0] > 0.99999).all()  # each is there, and what it was
    corpus = QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS, search_dims=(6,))
    assert len(corpus) == 20_000
    agree(corpus.search(rows[:50], 9, funnel=PLAN), Corpus(rows).search(rows[:50], 9, funnel=PLAN))


def test_ids_go_as_far_as_arrays_hold_them(tmp_path: Path, rows: np.ndarray) -> None:
    corpus = QdrantCorpus.create(tmp_path, "items", rows[:9], dims=DIMS)
    for row, number in ((20, 2**63 - 1), (21, 2**63)):
        point = qdrant_edge.Point(number, {str(dim): rows[row, :dim].tolist() for dim in DIMS})
        corpus.client.update(qdrant_edge.UpdateOperation.upsert_points([point]))
        if row == 20:
            assert corpus.search(rows[[20]], 1)[1].tolist() == [[2**63 - 1]]
    with pytest.raises(ValueError, match=r"got .* 9223372036854775808; number the points below 2 \*\* 63"):
        corpus.search(rows[[21]], 1)
    with pytest.raises(ValueError, match=r"`embeddings.shape\[1\]` must be an integer in \[1, 65536\], got 65537"):
        QdrantCorpus.create(tmp_path, "wide", np.zeros((1, 65537), np.float32))


@IMITATION
def test_rows_are_waited_for(rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The imitation applies them at once; a server tells when it has, if it is asked to."""
    client, asked = qdrant_client.QdrantClient(":memory:"), []
    upsert = client.upsert
    monkeypatch.setattr(client, "upsert", lambda *args, **options: asked.append(options) or upsert(*args, **options))
    QdrantCorpus.create(client, "items", rows, dims=DIMS)
    assert asked
    assert all(options["wait"] is True for options in asked)


def test_a_collection_of_which_some_widths_are_indexed_or_in_bits_has_both() -> None:
    plain = {"distance": "Cosine", "hnsw_config": {"m": 0}}
    vectors = {"6": {"size": 6, **plain}, "12": {"size": 12, **plain, "hnsw_config": {"m": 16}}}
    vectors["24"] = {"size": 24, **plain, "on_disk": True, "quantization_config": {"binary": {}}}
    found = qdrant._Layout.of(vectors, "here")
    assert (found.metric, found.dims, found.search_dims) == ("cosine", (6, 12, 24), (6, 12))
    assert (found.index, found.bits) == (True, False)
    vectors["12"]["quantization_config"] = {"binary": {}}
    assert qdrant._Layout.of(vectors, "here").bits
    del vectors["12"]["hnsw_config"], vectors["6"]["hnsw_config"]  # a server's default is an index
    assert qdrant._Layout.of(vectors, "here").index


def breaking_off(upsert: Callable[..., None]) -> Callable[..., None]:
    def upsert_some(engine: Any, ids: list[int], *rest: Any) -> None:
        if ids[-1] > 200:
            raise KeyboardInterrupt
        upsert(engine, ids, *rest)

    return upsert_some


def test_numbers_that_are_not_finite_are_found_before_any_is_sent(
    place: Any, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matryoshka.qdrant._BATCH_NUMBERS", 42 * 64)
    rows[200, 3] = np.inf
    with pytest.raises(ValueError, match=r"`embeddings` must be finite, got .* 1 of 300 rows \(first: 200\)"):
        QdrantCorpus.create(place, "items", rows, dims=DIMS)
    assert len(QdrantCorpus(place, "items")) == 0


def test_an_interrupted_upload_goes_on(
    place: Any, rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matryoshka.qdrant._BATCH_NUMBERS", 42 * 64)
    with monkeypatch.context() as patch:
        for engine in (_qdrant.Edge, _qdrant.Server):
            patch.setattr(engine, "upsert", breaking_off(engine.upsert))
        with pytest.raises(KeyboardInterrupt):
            QdrantCorpus.create(place, "items", rows, dims=DIMS)
    assert len(QdrantCorpus(place, "items")) == 192  # three batches of 64
    monkeypatch.setattr("matryoshka.qdrant._BATCH_NUMBERS", 42 * 50)  # whatever a batch is then
    for _ in range(2):
        corpus = QdrantCorpus.create(place, "items", rows, dims=DIMS)
        assert len(corpus) == 300
    agree(corpus.search(queries, 9, funnel=PLAN), Corpus(rows).search(queries, 9, funnel=PLAN))


def test_a_second_upload_sends_what_is_missing(
    tmp_path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, sent = QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS), []
    corpus.client.update(qdrant_edge.UpdateOperation.delete_points([3, 250]))
    upsert = type(corpus._engine).upsert
    monkeypatch.setattr(type(corpus._engine), "upsert", lambda *args: sent.extend(args[1]) or upsert(*args))
    QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS)
    assert sent == [3, 250]
    assert corpus.rerank(rows[[3]], np.array([[3]]), 1, dim=24)[1].tolist() == [[3]]


def test_a_bar_where_somebody_sees_it(tmp_path: Path, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    QdrantCorpus.create(tmp_path, "quiet", rows, dims=DIMS)
    assert seen.getvalue() == ""
    monkeypatch.setattr(seen, "isatty", lambda: True)
    QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS)
    assert "300/300" in seen.getvalue()


def test_a_collection_of_other_content_is_refused_and_stays(place: Any, rows: np.ndarray) -> None:
    QdrantCorpus.create(place, "items", rows, dims=DIMS)
    first, last = rows.copy(), rows.copy()
    first[0, 0] += 1
    last[299, 23] += 1
    for other in (first, last, rows[:200], 2 * rows):  # the last is the same under "cosine"
        with pytest.raises(ValueError, match="`name` must be new or a collection of rows of `embeddings`, got oth"):
            QdrantCorpus.create(place, "items", other, dims=DIMS)
    for arguments, got in (
        ({"dims": (6, 24)}, r"dims=\(6, 12, 24\)"),
        ({"metric": "ip", "dims": DIMS}, "metric='cosine'"),
        ({"dims": DIMS, "search_dims": (6,)}, r"search_dims=\(6, 12\)"),
        ({"dims": DIMS, "index": True}, "index=False"),
        ({"dims": DIMS, "bits": True}, "bits=False"),
    ):
        with pytest.raises(ValueError, match=f"`name` must be new or .* of these arguments, got at .*{got}.*; choose"):
            QdrantCorpus.create(place, "items", rows, **arguments)
    agree(QdrantCorpus(place, "items").search(rows[:3], 5), Corpus(rows).search(rows[:3], 5))


def test_rows_that_others_uploaded_are_no_upload_of_ours(tmp_path: Path, rows: np.ndarray) -> None:
    corpus = QdrantCorpus.create(tmp_path, "items", rows[:9], dims=DIMS)
    point = qdrant_edge.Point("5c56c793-69f3-4fbf-87e6-c4bf54c28c26", {str(d): rows[20, :d].tolist() for d in DIMS})
    corpus.client.update(qdrant_edge.UpdateOperation.upsert_points([point]))
    with pytest.raises(ValueError, match="`name` must be new or a collection of rows of `embeddings`"):
        QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS)
    with pytest.raises(
        ValueError, match="`name` must be a collection with integers for ids, got .*'5c56c793-.*; number"
    ):
        corpus.search(rows[3:4], 10)


@IMITATION
def test_collections_of_others(rows: np.ndarray) -> None:
    client, models = qdrant_client.QdrantClient(":memory:"), qdrant_client.models
    cosine, dot = (
        models.VectorParams(size=24, distance=kind) for kind in (models.Distance.COSINE, models.Distance.DOT)
    )
    short = models.VectorParams(size=6, distance=models.Distance.COSINE)
    for name, vectors in (("plain", cosine), ("named", {"text": cosine}), ("mixed", {"6": short, "24": dot})):
        client.create_collection(name, vectors_config=vectors)
        with pytest.raises(ValueError, match="`name` must be a collection of vectors named by their widths, of one"):
            QdrantCorpus(client, name)
        with pytest.raises(ValueError, match="`name` must be a collection of vectors named by their widths, of one"):
            QdrantCorpus.create(client, name, rows)
    client.create_collection("ours", vectors_config={"6": short, "24": cosine})
    assert QdrantCorpus(client, "ours").dims == (6, 24)
    client.close()


def test_a_folder_is_open_in_one_process(tmp_path: Path, rows: np.ndarray) -> None:
    corpus = QdrantCorpus.create(tmp_path, "items", rows, dims=DIMS)
    assert len(QdrantCorpus.create(tmp_path / "." / "", "items", rows, dims=DIMS)) == 300  # the same, in this one
    program = "import sys; from matryoshka.qdrant import QdrantCorpus; print(len(QdrantCorpus(sys.argv[1], 'items')))"

    def elsewhere() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    assert "`client_or_path` must lead to an engine that answers, got from" in (error := elsewhere().stderr)
    assert f"{tmp_path}/items" in error
    assert "another process" in error
    corpus.close()
    corpus.close()
    assert elsewhere().stdout == "300\n"
    assert corpus.search(rows[:1], 1)[1].tolist() == [[0]]  # open again
    del corpus
    gc.collect()
    assert elsewhere().stdout == "300\n"


def test_a_damaged_folder(tmp_path: Path, rows: np.ndarray) -> None:
    QdrantCorpus.create(tmp_path, "items", rows[:9], dims=DIMS)
    gc.collect()
    tmp_path.joinpath("items", "edge_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="`name` must be a collection of the engine, got at .*items what cannot be"):
        QdrantCorpus(tmp_path, "items")
    tmp_path.joinpath("file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="`client_or_path` must lead to an engine that answers, got from .*file/items"):
        QdrantCorpus.create(tmp_path / "file", "items", rows[:9], dims=DIMS)


@pytest.fixture
def silent() -> Iterator[int]:
    """Give a port where nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def no_server(where: str, **options: Any) -> Any:
    return qdrant_client.QdrantClient(where, timeout=1, check_compatibility=False, **options)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("grpc", [False, True])
def test_a_server_that_does_not_answer(silent: int, rows: np.ndarray, grpc: bool) -> None:
    client = no_server(f"http://user:s3cret@127.0.0.1:{silent}", api_key="k3y", prefer_grpc=grpc, grpc_port=silent)
    match = (
        rf"`client_or_path` must lead to an engine that answers, got from .*127\.0\.0\.1:{silent}, collection 'items': "
    )
    for make in (QdrantCorpus, lambda *where: QdrantCorpus.create(*where, rows)):
        with pytest.raises(ConnectionError, match=match) as raised:
            make(client, "items")
        assert "s3cret" not in str(raised.value)
        assert "k3y" not in str(raised.value)
    client.close()


class Refusing(BaseHTTPRequestHandler):
    """Refuses whatever is asked, as Qdrant does without a key."""

    def do_GET(self) -> None:
        answer = b'{"status": {"error": "Must provide an API key"}}'
        self.send_response(401)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_server_that_refuses() -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = no_server(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ValueError, match=f"got from .*:{server.server_port}, .*401.*Must provide an API key"):
            QdrantCorpus(client, "items")
        client.close()
        server.shutdown()


@pytest.mark.parametrize(
    ("where", "name", "error", "message"),
    [
        ("http://user:s3cret@host:6333", "items", ValueError, "`client_or_path` .* got a URL; pass QdrantClient"),
        (7, "items", TypeError, "`client_or_path` must be a folder or a QdrantClient, got int 7; pass a path or"),
        (b"x", "items", TypeError, "`client_or_path` must be a folder or a QdrantClient, got bytes b'x'"),
        ("a\0b", "items", TypeError, "`client_or_path` must be a folder"),
        (
            "nowhere",
            "items",
            ValueError,
            "`name` must be a collection, got none at .*nowhere/items; check it, or ",
        ),
        ("here", "", ValueError, "`name` must be the name of a collection, got str ''"),
        ("here", "..", ValueError, "`name` must be the name of a collection"),
        ("here", "a/b", ValueError, "`name` must be the name of a collection"),
        ("here", "a\0b", ValueError, "`name` must be the name of a collection"),
        ("here", 7, TypeError, "`name` must be a string"),
    ],
)
def test_bad_places(tmp_path: Path, where: Any, name: Any, error: type[Exception], message: str,
                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as raised:
        QdrantCorpus(where, name)
    assert "s3cret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "dot"}, ValueError, "`metric` must be one of 'cosine', 'ip', 'l2', got 'dot'"),
        ({"dims": (6, 25)}, ValueError, r"`dims` must lie within \[1, 24\]"),
        ({"dims": 6}, TypeError, "`dims` must be a sequence of integers"),
        ({"search_dims": (12, 6)}, ValueError, "`search_dims` must be positive and strictly increasing"),
        ({"index": 1}, TypeError, "`index` must be True or False"),
        ({"bits": "yes"}, TypeError, "`bits` must be True or False"),
        ({"embeddings": np.ones(3)}, ValueError, r"`embeddings` must have shape|`embeddings`"),
        ({"embeddings": np.ones((3, 24), int)}, TypeError, "`embeddings` must hold floating-point numbers"),
        ({"embeddings": np.ones((3, 0))}, ValueError, r"`embeddings.shape\[1\]` must be an integer in"),
        ({"embeddings": [[1.0]]}, TypeError, "`embeddings` must be an array"),
    ],
)
def test_bad_uploads_are_refused(
    tmp_path: Path, rows: np.ndarray, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        QdrantCorpus.create(tmp_path, "items", **{"embeddings": rows} | arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 21}, ValueError, "`k` must be at most the last list of the funnel, 20, got 21"),
        ({"k": 0}, ValueError, "`k` must be an integer >= 1"),
        ({"funnel": (6, 24)}, TypeError, "`funnel` must be a Funnel, got tuple"),
        ({"funnel": Funnel((6, 25), (9,))}, ValueError, r"`funnel.dims` must lie within \[1, 24\]"),
        (
            {"funnel": Funnel((6, 8, 24), (9, 9))},
            ValueError,
            r"`funnel.dims` must be of the widths that are stored",
        ),
        ({"funnel": Funnel((24,), code="bits")}, ValueError, "`funnel.code` must be 'float' here, got 'bits'"),
        ({"dim": 6}, TypeError, "at most one of `dim` and `funnel` may be given, got both"),
        ({"dim": 25, "funnel": None}, ValueError, r"`dim` must be an integer in \[1, 24\], got 25"),
        ({"dim": 7, "funnel": None}, ValueError, r"`dim` must be of the widths that are stored, \(6, 12, 24\), got 7"),
        ({"queries": np.ones((2, 23), np.float32)}, ValueError, r"`queries` must have shape \(n_queries, dim\)"),
        ({"queries": np.full((2, 24), np.nan)}, ValueError, "`queries` must be finite"),
        ({"queries": np.ones((2, 24), int)}, TypeError, "`queries` must hold floating-point numbers"),
        ({"queries": [[1.0] * 24]}, TypeError, "`queries`"),
    ],
)
def test_bad_searches_are_refused(
    tmp_path: Path,
    rows: np.ndarray,
    queries: np.ndarray,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    corpus = QdrantCorpus.create(tmp_path, "items", rows[:9], dims=DIMS)
    with pytest.raises(error, match=message):
        corpus.search(**{"queries": queries, "k": 5, "funnel": PLAN} | arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_RERANKS)
def test_bad_reranks_are_refused(
    tmp_path: Path,
    rows: np.ndarray,
    queries: np.ndarray,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    corpus = QdrantCorpus.create(tmp_path, "items", rows[:9], dims=DIMS)
    with pytest.raises(error, match=message):
        corpus.rerank(**{"queries": queries, "ids": np.ones((7, 2), int), "k": 1, "dim": 6} | arguments)


@pytest.mark.parametrize("index", [False, True])
def test_the_benchmark_measures_it(
    rows: np.ndarray, queries: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, index: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_measure, "SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "matryoshka.faiss", None)
    QdrantCorpus.create("here", "items", rows, dims=(6, 24), search_dims=(6,), index=index, bits=True).close()
    np.save("rows.npy", rows)
    np.save("queries.npy", np.tile(queries, (4, 1)))
    command = ["benchmark", "rows.npy", "queries.npy", "--dims", "6,12,24", "--batch", "4", "--engine"]
    assert main([*command, "exact,qdrant:items@here"]) == 0
    out = capsys.readouterr().out
    exact, own = (
        {line[12:40].strip(): line[40:].split() for line in out.splitlines() if line.startswith(name)}
        for name in ("exact  ", "qdrant:items  ")
    )
    assert {"full 24", "prefix 6", "adaptive 6 > 24"} <= {*own} < {*exact}
    if not index:
        assert all(line[0] == exact[plan][0] and line[-1] == exact[plan][-1] for plan, line in own.items())
    assert "qdrant:items: left out 12 columns; it starts at its `search_dims`, 6." in out
    assert main([*command, "qdrant:items@here", "--metric", "l2"]) == 2
    assert "--metric must be that of qdrant:items, 'cosine', got 'l2'; change one." in capsys.readouterr().err
    assert main([*command, "qdrant:items@http://user:s3cret@127.0.0.1:1"]) == 2
    assert "s3cret" not in (error := capsys.readouterr().err)
    assert "`client_or_path` must lead to an engine that answers, got from 127.0.0.1:1, collection 'items'" in error
    with pytest.raises(SystemExit):
        main([*command, "qdrant:items@http://user:s3cret@h,qdrant:items@http://user:s3cret@h"])
    assert "engines must differ, got qdrant:items, qdrant:items" in (error := capsys.readouterr().err)
    assert "s3cret" not in error
    for function in (_elsewhere._opened, _elsewhere._collection):
        function.cache_clear()


def test_tells_what_it_is(tmp_path: Path, rows: np.ndarray) -> None:
    corpus = QdrantCorpus.create(tmp_path, "items", rows, metric="l2")
    assert (len(corpus), corpus.dim, corpus.metric, corpus.dims, corpus.codes) == (300, 24, "l2", (12, 24), ("float",))
    assert isinstance(corpus.client, qdrant_edge.EdgeShard)
    described = "300 x 24, metric='l2', dims=(12, 24), search_dims=(12,), index=False, bits=False)"
    assert repr(corpus) == f"QdrantCorpus({tmp_path}/items, {described}"
    config = json.loads(tmp_path.joinpath("items", "edge_config.json").read_text(encoding="utf-8"))
    assert {name: vector["on_disk"] for name, vector in config["vectors"].items()} == {"12": False, "24": True}


def test_without_the_engine_the_command_to_install_it_is_named(tmp_path: Path) -> None:
    program = "import sys; sys.modules['qdrant_edge'] = None; from matryoshka.qdrant import *; QdrantCorpus('a', 'b')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert 'pip install "matryoshka-mrl[qdrant]"' in done.stderr
