"""Engines of the command `matryoshka benchmark` whose rows lie elsewhere: in a folder for Dask, or in a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from matryoshka._commands._measure import Engine
from matryoshka._optional import require
from matryoshka.retrieval import Corpus, Searchable

KINDS = ("dask", "postgres")


@dataclass(frozen=True)
class Elsewhere(Engine):
    """What searches elsewhere: `index` is a folder or a table, `parameters` an address, which no report shows."""

    kind: str = ""
    binary = False

    @classmethod
    def read(cls, text: str) -> Elsewhere | None:
        """Read dask:FOLDER, dask:FOLDER@SCHEDULER or postgres:TABLE@SERVER; None if it is none of these."""
        kind, _, rest = text.partition(":")
        index, _, address = rest.partition("@")
        if kind not in KINDS or not index or (kind == "postgres" and not address):
            return None
        return cls(f"{kind}:{index}", index, address, kind)

    def check(self, dims: Iterable[int], metric: str) -> None:
        """Look whether it is there."""
        _opened(self, metric)

    def build(self, corpus: Corpus, dim: int) -> Searchable:
        """Return the rows that lie there, which must be those of the corpus; funnels start anywhere."""
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

        return PgvectorCorpus(engine.parameters, engine.index, metric=metric)
    from matryoshka.dask import DaskCorpus  # as above

    if engine.parameters:
        distributed = require("distributed", extra="dask", purpose=f"--engine {engine.name}@...")
        distributed.Client(engine.parameters)  # what is searched from here on goes there
    return DaskCorpus(engine.index, metric=metric)
