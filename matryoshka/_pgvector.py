"""What `matryoshka.postgres` asks of a server beside searches: a connection, errors in our words, binary values."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from matryoshka import _checks
from matryoshka._array import to_numpy
from matryoshka._optional import require
from matryoshka._typing import Array

psycopg = require("psycopg", extra="postgres", purpose="`matryoshka.postgres`")

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
    return _Binary(struct.pack(">5i", 1, 0, kind, len(elements), 1) + elements.tobytes())


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
    with np.errstate(over="ignore"):
        rows = to_numpy(embeddings[start:stop, :]).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1)) + start
    _checks.no_bad_rows(bad.tolist(), embeddings.shape[0], "embeddings")
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
    """Give a connection and the address of its server; what an error follows is closed again, if it was opened here."""
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
    with _explained(address), connection.transaction(), connection.cursor(binary=True) as cursor:
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
