"""How long the parts of a search take on one corpus: measured when they are first asked for, and kept with it.

What takes part is what every `Searchable` has: `search` at one width for lists of some lengths, `rerank` of rows drawn
at random, and the exact search. Times of whole funnels are put together from these.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np

from matryoshka._array import from_numpy, namespace, take_rows, to_numpy
from matryoshka._typing import Array
from matryoshka.retrieval.funnel import Funnel, Searchable

_ROUNDS = 3, 5
"""How often the same is timed, fewest and most; the least time counts, since machines have other things to do."""

_ENOUGH = 0.005
"""Seconds after which no round is begun, once there are the fewest."""

_QUERIES = 4
"""Queries that are asked in each round, at least: some are faster than others."""

_LARGEST = 256
"""Batch size beyond which a query takes no less time."""

_STEP = 4
"""Lists are timed at lengths that are powers of this; between them the logarithm of the time is interpolated."""

_COLUMNS = 16
"""Reranking is timed at the full width and near this fraction of it: one column in so many."""

_KEPT: WeakKeyDictionary[Searchable, dict[tuple[object, ...], float]] = WeakKeyDictionary()


class Clock:
    """Seconds per query that funnels take on one corpus when so many queries are asked at once.

    Parameters
    ----------
    corpus : Searchable
        What is searched.
    queries : array (n_queries, dim)
        What it is asked.
    batch_size : int
        Queries asked at once; more than there are, or than 256, count as so many.
    k : int
        Results per query.
    dims : sequence of int, default ()
        Widths that stages may have, increasing, to time reranking at: some corpora hold no others. By default any.
    owner : Searchable
        What the times are kept with: the corpus itself, or the one that it is a copy of. They are measured anew for one
        that cannot be referred to weakly.
    """

    def __init__(
        self,
        corpus: Searchable,
        queries: Array,
        batch_size: int,
        k: int,
        *,
        owner: Searchable,
        dims: Sequence[int] = (),
    ) -> None:
        self._corpus, self._queries, self._k = corpus, queries, k
        self._dims = tuple(dims) or tuple(range(1, corpus.dim + 1))
        self._batch = min(batch_size, queries.shape[0], _LARGEST)
        try:
            self._times = _KEPT.setdefault(owner, {})
        except TypeError:
            self._times = {}

    def exact(self) -> float:
        """Return the time of the exact search."""
        return self._time(("exact", self._k), lambda turn: self._corpus.search(self._asked(turn), self._k))

    def funnel(self, funnel: Funnel) -> float:
        """Return the time of a funnel, put together from its stages."""
        width = funnel.dims[0]
        seconds = self._between(funnel.keep[0] if funnel.keep else self._k, partial(self._start, width, funnel.code))
        for dim, count in zip(funnel.dims[1:], funnel.keep, strict=True):
            if dim > width:  # else a code that was scored at its own width, as its search alone is
                seconds += self._stage(count, dim - width)
            width = dim
        return seconds

    def _stage(self, count: int, columns: int) -> float:
        """Return the time of one reranking within a funnel, which is that of a call less what every call costs.

        That cost shows only where there are three widths; else it stays in.
        """
        dim = self._corpus.dim
        narrow = min(self._dims, key=lambda width: abs(math.log(width * _COLUMNS / dim)))
        at_narrow, at_full = (self._between(count, partial(self._rerank, width)) for width in (narrow, dim))
        share = (columns - narrow) / max(1, dim - narrow)
        alone = at_narrow + max(0.0, share) * max(0.0, at_full - at_narrow)
        if len(self._dims) < 3:
            return alone
        stages = Funnel(self._dims[:3], (1, 1))
        in_turn = self._time(("stages", stages), lambda turn: self._reranked(turn, 1, funnel=stages))
        one = self._rerank(stages.dims[1], 1)
        return max(0.0, alone - one) + max(0.0, in_turn - one)

    def _between(self, count: int, at: Callable[[int], float]) -> float:
        """Interpolate between lists of the lengths that are timed."""
        most = len(self._corpus)
        count = min(count, most)
        low = _STEP ** int(math.log(count, _STEP) + 1e-9)
        high = min(low * _STEP, most)
        if count == low or low == high:
            return at(count)
        share = math.log(count / low) / math.log(high / low)
        return math.exp((1 - share) * math.log(at(low)) + share * math.log(at(high)))

    def _start(self, dim: int, code: str, count: int) -> float:
        plan = Funnel((dim,), code=code)
        return self._time((dim, code, count), lambda turn: self._corpus.search(self._asked(turn), count, funnel=plan))

    def _rerank(self, dim: int, count: int) -> float:
        return self._time(("rerank", dim, count), lambda turn: self._reranked(turn, count, dim=dim))

    def _reranked(self, turn: int, count: int, **options: object) -> tuple[Array, Array]:
        """Rerank rows drawn at random, the same at the same turn."""
        queries = self._asked(turn)
        ids = np.random.default_rng(turn).integers(len(self._corpus), size=(queries.shape[0], count))
        ids = from_numpy(ids, like=queries, xp=namespace(("queries", queries)))
        return self._corpus.rerank(queries, ids, min(count, self._k), **options)  # type: ignore[arg-type]

    def _asked(self, turn: int) -> Array:
        rows = np.arange(turn * self._batch, (turn + 1) * self._batch) % self._queries.shape[0]
        return take_rows(self._queries, rows, namespace(("queries", self._queries)))

    def _time(self, name: tuple[object, ...], search: Callable[[int], tuple[Array, Array]]) -> float:
        """Return what a search takes per query, measured once."""
        key = (self._batch, *name)
        if key not in self._times:
            turns = range(-(-_QUERIES // self._batch))
            least, spent = [math.inf] * len(turns), 0.0
            for done in range(_ROUNDS[1]):
                if done >= _ROUNDS[0] and spent > _ENOUGH:
                    break
                for turn in turns:
                    start = time.perf_counter()
                    to_numpy(search(turn)[1])  # waits for a device
                    taken = time.perf_counter() - start
                    least[turn], spent = min(least[turn], taken), spent + taken
            self._times[key] = max(sum(least) / len(turns), 1e-9) / self._batch
        return self._times[key]
