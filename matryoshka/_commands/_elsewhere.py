"""Engines of the command `matryoshka benchmark` whose rows lie elsewhere: with Dask, in a database, or in Qdrant."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from matryoshka._commands._measure import Engine, Plan
from matryoshka._optional import require
from matryoshka.retrieval import Corpus, Searchable

KINDS = ("dask", "postgres", "qdrant")


@dataclass(frozen=True)
class Elsewhere(Engine):
    """What searches elsewhere: `index` is a folder, table or collection, `parameters` where, which no report shows."""

    kind: str = ""
    binary = False

    @classmethod
    def read(cls, text: str) -> Elsewhere | None:
        """Read dask:FOLDER[@HOST:PORT], postgres:TABLE@SERVER or qdrant:NAME@FOLDER; None if it is none of these.

        A table or a collection ends at the first @, since there may be others in what follows. A folder ends at the
        last one, if a port follows: where there is none, that @ is part of its name.
        """
        kind, _, rest = text.partition(":")
        index, _, address = rest.rpartition("@") if kind == "dask" else rest.partition("@")
        if kind == "dask" and ":" not in address:
            index, address = rest, ""
        if kind not in KINDS or not index or (kind != "dask" and not address):
            return None
        return cls(f"{kind}:{index}", index, address, kind)

    def check(self, dims: Iterable[int], metric: str) -> None:
        """Look whether it is there."""
        if (found := _opened(self, metric)).metric != metric:
            msg = f"--metric must be that of {self.name}, {found.metric!r}, got {metric!r}; change one."
            raise ValueError(msg)

    def takes(self, chosen: Iterable[Plan]) -> list[Plan]:
        """Return those of the plans that it can run: a collection has some widths, and may have bits."""
        if self.kind != "qdrant":
            return super().takes(chosen)
        found = _collection(self)
        starts = {(code, dim) for code in found.codes for dim in found.search_dims} | {("float", found.dim)}
        return [
            plan
            for plan in chosen
            if (plan.funnel.code, plan.funnel.dims[0]) in starts and set(plan.funnel.dims) <= set(found.dims)
        ]

    @property
    def starts_at(self) -> str:
        """At which widths it starts."""
        return f"its `search_dims`, {', '.join(map(str, _collection(self).search_dims))}"

    def build(self, corpus: Corpus, dim: int) -> Searchable:
        """Return the rows that lie there, which must be those of the corpus."""
        found = _opened(self, corpus.metric)
        if (len(found), found.dim) != (len(corpus), corpus.dim):
            msg = (
                f"--engine must name the rows of the corpus, {len(corpus)} x {corpus.dim}, got {self.name} with "
                f"{len(found)} x {found.dim}; put these rows there."
            )
            raise ValueError(msg)
        return found


@cache
def _opened(engine: Elsewhere, metric: str) -> Searchable:
    if engine.kind == "postgres":
        from matryoshka.postgres import PgvectorCorpus  # an extra, which other engines do without

        schema, dot, table = engine.index.partition(".")
        return PgvectorCorpus(engine.parameters, (schema, table) if dot else schema, metric=metric)
    if engine.kind == "qdrant":
        collection: Searchable = _collection(engine)
        return collection
    from matryoshka.dask import DaskCorpus  # as above

    if engine.parameters:
        distributed = require("distributed", extra="dask", purpose=f"--engine {engine.name}@...")
        try:
            distributed.Client(engine.parameters)  # what is searched from here on goes there
        except OSError as error:
            msg = f"--engine {engine.name}@HOST:PORT must lead to a scheduler, got: {error}; start one there."
            raise ConnectionError(msg) from error
    return DaskCorpus(engine.index, metric=metric)


@cache
def _collection(engine: Elsewhere) -> Any:
    from matryoshka.qdrant import QdrantCorpus  # as above

    if "://" not in engine.parameters:
        return QdrantCorpus(engine.parameters, engine.index)
    try:
        client = importlib.import_module("qdrant_client")  # of no extra: folders do without it
    except ModuleNotFoundError as error:
        msg = f"--engine {engine.name}@URL needs {error.name}, which is not installed; run: pip install qdrant-client"
        raise ImportError(msg) from error
    return QdrantCorpus(client.QdrantClient(engine.parameters, timeout=10, check_compatibility=False), engine.index)
