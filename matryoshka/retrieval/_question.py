"""What is asked of a calibration: which funnels are looked for, on which corpus, and by which cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from matryoshka import _checks
from matryoshka._array import namespace, to_numpy
from matryoshka._promises.certificates import COSTS
from matryoshka._typing import Array
from matryoshka.nesting import Nesting
from matryoshka.retrieval.corpus import Corpus
from matryoshka.retrieval.funnel import Funnel, Searchable


@dataclass(frozen=True)
class Question:
    """Which funnels are looked for: on what, for how many results, with which widths and lists, by which cost."""

    corpus: Searchable
    k: int
    dims: tuple[int, ...]
    longest: int
    cost: str
    batch_size: int
    progress: Callable[[int, int], object] | None

    @classmethod
    def of(
        cls,
        corpus: Searchable,
        k: int,
        *,
        dims: Sequence[int] | None,
        longest: int,
        cost: str,
        batch_size: int,
        progress: Callable[[int, int], object] | None,
    ) -> Question:
        """Check the arguments; the last width must be that of the corpus, which the exact search has."""
        _check(corpus)
        k = _checks.integer(k, "k", minimum=1, maximum=len(corpus))
        longest = _checks.integer(longest, "longest", minimum=k)
        widths = _default_dims(corpus) if dims is None else _checks.dims(dims)
        _checks.dims_within(widths, corpus.dim, "dims", of="corpus")
        if widths[-1] != corpus.dim:
            msg = f"`dims` must end with the width of the corpus, {corpus.dim}, got {widths}; add it."
            raise ValueError(msg)
        cost = _checks.choice(cost, "cost", COSTS)
        if cost != "time" and "float" not in _codes(corpus):
            msg = (
                f"`cost` must be 'time' for a `corpus` that starts in {corpus.codes} only, got {cost!r}; leave it out."
            )
            raise ValueError(msg)
        batch_size = _checks.integer(batch_size, "batch_size", minimum=1)
        if progress is not None and not callable(progress):
            msg = (
                f"`progress` must be callable, got {_checks.describe(progress)}; pass a function of two integers: how "
                "many steps are done, and of how many."
            )
            raise TypeError(msg)
        question = cls(corpus, k, widths, min(longest, len(corpus)), cost, batch_size, progress)
        if len(widths) > 1 and not question.starts:
            msg = (
                f"`dims` must hold a width at which `corpus` may start, of {corpus.search_dims}, got {widths}; add one."
            )
            raise ValueError(msg)
        return question

    @property
    def starts(self) -> list[tuple[int, str]]:
        """Widths and codes in which a funnel may start, in the order in which early ones rule out most of the others.

        A code multiplies nothing that could be counted, so that it needs the time.
        """
        allowed, codes, full = _starts(self.corpus), _codes(self.corpus), self.corpus.dim
        dims = [dim for dim in self.dims[::-1] if allowed is None or dim in allowed]
        coded = self.cost == "time" and "bits" in codes
        bits = [(dim, "bits") for dim in dims if coded and dim >= min(_checks.FEWEST_BITS, full)]
        return bits + [(dim, "float") for dim in dims if dim < full and "float" in codes]

    def exact(self, queries: Array, least: int) -> np.ndarray:
        """Return the exact neighbours (n_queries, k) of at least so many queries."""
        namespace(("queries", queries))
        _checks.ndim(queries, "queries", 2, "(n_queries, dim)")
        if queries.shape[0] < least:
            msg = f"`queries` must be at least {least}, got {queries.shape[0]}; pass more."
            raise ValueError(msg)
        ids = self.found(queries)
        if (ids < 0).any():
            msg = f"`corpus` must find {self.k} rows for each query in an exact search, got fewer; choose a smaller k."
            raise ValueError(msg)
        return ids

    def found(self, queries: Array, funnel: Funnel | None = None) -> np.ndarray:
        """Return what the queries find (n_queries, k), exactly or through a funnel."""
        return to_numpy(self.corpus.search(queries, self.k, funnel=funnel)[1])


def _check(corpus: object) -> None:
    """Check that a funnel can be looked for on it, and that its exact search is exact."""
    if not isinstance(corpus, Searchable):
        msg = (
            f"`corpus` must be a Corpus, got {type(corpus).__name__}; "
            "build one of the embeddings, or pass another Searchable."
        )
        raise TypeError(msg)
    if corpus.dim in (_starts(corpus) or ()) and "float" in _codes(corpus):
        msg = (
            f"`corpus` must start funnels below its full width of {corpus.dim} only, got {corpus.search_dims}: at "
            "the full width its search is not exact, which a certificate falls back on; index a prefix."
        )
        raise ValueError(msg)


def _starts(corpus: Searchable) -> tuple[int, ...] | None:
    return None if isinstance(corpus, Corpus) else corpus.search_dims


def _codes(corpus: Searchable) -> tuple[str, ...]:
    return ("float",) if corpus.codes is None else corpus.codes


def _default_dims(corpus: Searchable) -> tuple[int, ...]:
    """Return the widths that an engine stores, which it names as `dims`, or halved ones where stages may have any."""
    stored: tuple[int, ...] | None = getattr(corpus, "dims", None)
    if stored is not None:
        return stored
    halved = Nesting.halving(corpus.dim, smallest=min(8, corpus.dim)).dims
    return tuple(sorted({*halved, *(_starts(corpus) or ())}))
