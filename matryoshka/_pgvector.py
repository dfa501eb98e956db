"""Statements of `matryoshka.postgres`, its connections, errors in our words, and values in binary form."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from matryoshka import _checks
from matryoshka._optional import require
from matryoshka._typing import Array
from matryoshka.retrieval import engine

psycopg = require("psycopg", extra="postgres", purpose="`matryoshka.postgres`")

_MOST_EF_SEARCH = 1_000
"""Candidates that an HNSW index of pgvector looks for at once, at most."""

_BATCH_NUMBERS = 1 << 21
"""Numbers that are uploaded or compared at once: 8 MiB."""

_SECONDS = 10
"""How long to wait for a server to answer, unless the connection string says otherwise."""

_EXTENSION = "SELECT string_to_array(extversion, '.')::int[] >= '{0,8}' FROM pg_extension WHERE extname = 'vector'"
_COLUMNS = """SELECT a.attname, y.typname, a.attnotnull, a.atttypid, a.atttypmod,
    format('%%I.%%I', n.nspname, c.relname), quote_ident(a.attname), coalesce(pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
    JOIN pg_type y ON y.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.oid = to_regclass(%s)"""
INDEXES = """SELECT coalesce(pg_get_expr(i.indexprs, i.indrelid), quote_ident(a.attname)) FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam JOIN pg_opclass o ON o.oid = i.indclass[0]
    LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = to_regclass(%s) AND o.opcname = %s AND m.amname = 'hnsw' AND i.indisvalid
    AND i.indpred IS NULL"""


METRICS = {
    "cosine": ("<=>", "coalesce(nullif(1 - ({} <=> {}), 'NaN'), 0)::real"),
    "ip": ("<#>", "(-({} <#> {}))::real"),
    "l2": ("<->", "(-(({} <-> {}) ^ 2))::real"),
}
"""Of each metric the operator that an index serves, and the score. What is sorted by the score is exact: no index is
of use there."""

ALL = "SELECT {id} AS id, {embedding} AS embedding, {prefix} AS prefix FROM {table} AS t WHERE {embedding} IS NOT NULL"
NEAR = """SELECT {id} AS id, {embedding} AS embedding FROM {table} AS t WHERE {embedding} IS NOT NULL
    ORDER BY {prefix} {by} q.{p} LIMIT %(near)s"""
GIVEN = """SELECT t.{id} AS id, t.{embedding} AS embedding
    FROM unnest((%(ids)b::bigint[])[((q.n - 1) * %(m)s + 1)::int : (q.n * %(m)s)::int]) AS c (id)
    JOIN {table} AS t ON t.{id} = c.id WHERE t.{embedding} IS NOT NULL"""
"""Where candidates of the query q come from: all rows, an index, or the caller."""

STAGE = "SELECT s.id, s.embedding, {score} AS score FROM ({rows}) AS s ORDER BY score DESC, id LIMIT %(keep{i})s"
BATCH = """WITH q AS MATERIALIZED (SELECT n, {prefixes} FROM unnest(%(queries)b::vector[]) WITH ORDINALITY AS u (v, n))
    SELECT q.n - 1, r.id, r.score FROM q CROSS JOIN LATERAL ({stages}) AS r ORDER BY q.n, r.score DESC, r.id"""

COUNT = "SELECT min({id}), max({id}), count(*), count({embedding}) FROM {table}"
CHECKSUM = """SELECT sha256(string_agg(vector_send({embedding}), '' ORDER BY {id})) FROM {table}
    WHERE {id} >= %s AND {id} < %s"""
CREATE = "CREATE TABLE IF NOT EXISTS {table} (id bigint PRIMARY KEY, embedding vector({dim}) NOT NULL)"
ADD = "ALTER TABLE {table} ADD COLUMN embedding_{dim} vector({dim}) GENERATED ALWAYS AS ({prefix}) STORED"
INDEX = "CREATE INDEX ON {table} USING hnsw (({prefix}) vector_{metric}_ops)"
COPY = "COPY {table} ({id}, {embedding}) FROM STDIN (FORMAT binary)"

_SCAN = {
    "enable_seqscan": "'off'",
    "hnsw.iterative_scan": "'relaxed_order'",
    "hnsw.max_scan_tuples": "'2147483647'",
    "hnsw.scan_mem_multiplier": "'1000'",
    "hnsw.ef_search": "greatest(current_setting('hnsw.ef_search', true)::int, %s)::text",
}
TUNED = "SELECT {}, {}".format(
    ", ".join(f"current_setting('{name}', true)" for name in _SCAN),
    ", ".join(f"set_config('{name}', {value}, true)" for name, value in _SCAN.items()),
)
RESTORED = "SELECT " + ", ".join(f"set_config('{name}', %s, true)" for name in _SCAN)
"""Settings by which a scan gives the whole list, and what they were: the caller may go on with the transaction."""


class _Binary(bytes):
    """A value in the binary form of the server, of the type that the statement says."""


class _AsItIs(psycopg.adapt.Dumper):  # type: ignore[misc, name-defined]
    format = psycopg.pq.Format.BINARY

    def dump(self, obj: _Binary) -> bytes:
        return obj


BIGINT = 20
"""What PostgreSQL calls the type of ids."""


def array(kind: int, elements: np.ndarray) -> _Binary:
    """Return an array of one axis; each of its elements stands after its length."""
    return _Binary(struct.pack(">2iI2i", 1, 0, kind, len(elements), 1) + elements.tobytes())


def elements(kind: Any, values: np.ndarray) -> np.ndarray:
    """Return values (n,) of a binary kind, each after its length in bytes."""
    found = np.zeros(len(values), [("length", ">i4"), ("value", kind)])
    found["length"], found["value"] = found.itemsize - 4, values
    return found


def vectors(rows: np.ndarray) -> np.ndarray:
    """Return rows (n, dim) as vectors of pgvector, each after its length in bytes."""
    found = np.zeros(len(rows), [("dim", ">i2"), ("unused", ">i2"), ("numbers", ">f4", (rows.shape[1],))])
    found["dim"], found["numbers"] = rows.shape[1], rows
    return elements(found.dtype, found)


def records(embeddings: Array, start: int, stop: int) -> np.ndarray:
    """Return rows of a new table in binary form: the number of fields, an id and a vector."""
    rows = engine.rows_in_float32(embeddings, slice(start, stop))
    ids, values = elements(">i8", np.arange(start, stop)), vectors(rows)
    found = np.empty(len(rows), [("n_fields", ">i2"), ("id", ids.dtype), ("vector", values.dtype)])
    found["n_fields"], found["id"], found["vector"] = 2, ids, values
    return found


def quoted(table: Any) -> str:
    """Return the name of a table, or of its schema and it, as SQL has it."""
    names = (table,) if isinstance(table, str) else _checks.sequence(table, "table", "names", "a schema and a name")
    return str(psycopg.sql.Identifier(*(_checks.text(name, "table") for name in names)).as_string(None))


def escaped(text: str) -> str:
    """Return SQL as it stands in a statement with placeholders."""
    return text.replace("%", "%%")


@contextmanager
def connected(connection: Any) -> Iterator[tuple[Any, str]]:
    """Give a connection and the address of its server; after an error, close it if it was opened here."""
    given = not isinstance(connection, str)
    if given and not isinstance(connection, psycopg.Connection):
        kind = type(connection).__name__
        msg = f"`connection` must be a psycopg.Connection or a string, got {kind}; pass psycopg.connect(...)."
        raise TypeError(msg)
    opened = connection if given else _opened(connection)
    try:
        with _explained("what is closed"):
            parts = {name: getattr(opened.info, name) for name in ("host", "port", "dbname")}
        yield opened, _address(parts)
    except BaseException:
        if not given:
            opened.close()
        raise


def _opened(text: str) -> Any:
    try:
        parts = psycopg.conninfo.conninfo_to_dict(text)
    except psycopg.Error:  # which shows parts of the string, and there may be a password among them
        msg = "`connection` must be as 'postgresql://user@host:5432/database', got what cannot be read; mend it."
        raise ValueError(msg) from None
    seconds = parts.get("connect_timeout", _SECONDS)
    with _explained(_address(parts)):
        return psycopg.connect(text, autocommit=True, connect_timeout=seconds)


def _address(parts: dict[str, Any]) -> str:
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


@contextmanager
def transaction(connection: Any, address: str) -> Iterator[Any]:
    """Give a cursor within a transaction, or within a savepoint of the one that is open."""
    options = {"binary": True, "row_factory": psycopg.rows.tuple_row}
    with _explained(address), connection.transaction(), connection.cursor(**options) as cursor:
        cursor.adapters.register_dumper(_Binary, _AsItIs)
        yield cursor


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn an error of the server into one that names the argument and the address."""
    try:
        yield
    except psycopg.Error as error:
        reason, lost = str(error).partition("\n")[0], isinstance(error, psycopg.OperationalError)
        rule = "`connection` must lead to a server that answers" if lost else "`table` must be as these arguments say"
        msg = f"{rule}, got from {address}: {reason}; look there."
        raise (ConnectionError if lost else ValueError)(msg) from error


def check_extension(cursor: Any, address: str) -> None:
    """Check that the database has pgvector, and one that knows iterative scans."""
    recent = cursor.execute(_EXTENSION).fetchone()
    if recent != (True,):
        got = "an older one" if recent else "none"
        msg = f"`connection` to {address} must have pgvector 0.8 or newer, got {got}; run CREATE EXTENSION vector."
        raise ValueError(msg)


def create_table(connection: Any, address: str, table: str, dim: int) -> None:
    """Make a table unless there is one of its name."""
    with transaction(connection, address) as cursor:
        check_extension(cursor, address)
        cursor.execute(CREATE.format(table=escaped(table), dim=dim), [])


def columns(
    cursor: Any, table: str, address: str, *, id: str, embedding: str
) -> tuple[dict[str, str], int, int, dict[int, str]]:
    """Look a table up: names for statements, type and width of its vectors, and columns that hold prefixes of them."""
    check_extension(cursor, address)
    found = {row[0]: row for row in cursor.execute(_COLUMNS, [table]).fetchall()}
    if not found:
        msg = f"`table` must exist, got {table} at {address}, which does not; check the name, or `create` it."
        raise ValueError(msg)
    for argument, name, kinds in (("id", id, ("int2", "int4", "int8")), ("embedding", embedding, ("vector",))):
        _, kind, required, _, width, *_ = found.get(name, (name, "no column", False, 0, 0))
        if kind not in kinds or not (required or argument == "embedding") or (width < 1 and kind == "vector"):
            rule = "integer NOT NULL" if argument == "id" else "vector(n)"
            got = {"vector": "vector of any width"}.get(
                kind, kind if kind not in kinds else f"{kind}, which may be NULL"
            )
            msg = (
                f"`{argument}` must be a column {rule} of {table} at {address}, got {name!r}: {got}; name or alter it."
            )
            raise ValueError(msg)
    *_, of, dim, whole, vector, _ = found[embedding]
    prefixes = {}
    for *_, width, _, name, definition in found.values():
        cut = f"subvector({vector}, 1, {width})"
        if definition in (cut, f"({cut})::vector({width})"):
            prefixes[width] = escaped(name)
    return {"table": escaped(whole), "id": escaped(found[id][6]), "embedding": escaped(vector)}, of, dim, prefixes


def found(connection: Any, address: str, statement: str, values: dict[str, Any]) -> list[tuple[int, int, float]]:
    """Return the rows that a search finds; one that asks an index, for so many `near` rows, has settings of its own."""
    near = values.get("near")
    with transaction(connection, address) as cursor:
        before = cursor.execute(TUNED, [min(near, _MOST_EF_SEARCH)]).fetchone()[: len(_SCAN)] if near else None
        cursor.execute(statement, values, prepare=True)
        rows: list[tuple[int, int, float]] = cursor.fetchall()
        if near:
            cursor.execute(RESTORED, before)
    return rows


def fill(
    connection: Any,
    address: str,
    names: dict[str, str],
    embeddings: Array,
    *,
    dim: int,
    columns: dict[int, str],
) -> None:
    """Compare the rows that are there, then add the columns, of prefixes of some widths, and the rows that are not."""
    n, size = embeddings.shape[0], max(1, _BATCH_NUMBERS // dim)
    with transaction(connection, address) as cursor:
        least, most, held, _ = cursor.execute(COUNT.format(**names), []).fetchone()
        same = embeddings.shape[1] == dim and (held == 0 or (least == 0 and most == held - 1 < n))
        for start in range(0, held if same else 0, size):
            stop = min(start + size, held)
            checksum = cursor.execute(CHECKSUM.format(**names), [start, stop]).fetchone()
            sent = records(embeddings, start, stop)["vector"]["value"].tobytes()
            same = same and checksum == (hashlib.sha256(sent).digest(),)
        if not same:
            table = names["table"].replace("%%", "%")
            msg = (
                f"`table` {table} at {address} must be new or hold the first rows of `embeddings`, got "
                f"{held} others of {dim} columns; choose another name."
            )
            raise ValueError(msg)
        for width, prefix in columns.items():
            cursor.execute(ADD.format(**names, dim=width, prefix=prefix), [])
    for start in range(held, n, size):
        rows = records(embeddings, start, min(start + size, n)).tobytes()
        with transaction(connection, address) as cursor, cursor.copy(COPY.format(**names).replace("%%", "%")) as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows + b"\xff\xff")
