"""The first stage on the host: every row that can be among the best k, found without sorting anything long.

Few scores, such as those of one query, are formed all at once. Each is put into one of many groups, and the k-th best
of the groups' largest is a threshold that at least k rows reach: only groups that reach it are looked at again.

Of many scores, a random sample of the rows gives each query a threshold that a little more than k rows are expected to
reach. Blocks of rows are then multiplied with all queries, each block small enough to stay in the cache, and only what
reaches the threshold is looked at again: of every eight scores the largest is compared first. If too few rows reached
the threshold of a query, it is searched again with a lower one: the sample decides the speed and never the result.

Matrix products round a row differently depending on where it stands. Thresholds leave room for that, and the candidates
found here are scored anew by one function, so that neither blocks nor threads show in the result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from matryoshka._array import row_blocks
from matryoshka._threads import each, n_threads
from matryoshka.retrieval import _sampling
from matryoshka.retrieval._prefix import Prefix

_GROUP = 8
_SCORES = 1 << 18
"""Scores of one block: 1 MiB in float32, about what a core has as second-level cache."""

_READ = 1 << 22
_SERIAL_PRODUCT = 1 << 18
"""Multiply-adds up to which OpenBLAS computes a product in the calling thread, so that our threads run beside it."""

_SERIAL_VECTOR, _VECTOR_ROWS = 9 << 10, 256
"""The same for a matrix times a vector, and the rows from which on a longer matrix gets slower."""

_LONG = 256
"""Columns from which on a matrix times a vector takes as long as that many products of two vectors."""

_AT_ONCE = 3 << 20
"""Scores up to which all are formed at once: of more, blocks that stay in the cache are looked at one by one."""

_PENDING = 1 << 21
"""Candidates that are held before all but the best of them are dropped."""

Score = Callable[[int, np.ndarray], np.ndarray]
"""Gives the final scores of rows, by ids, for one query."""


class _Found(NamedTuple):
    """Scores that reach the threshold, in the order of rows or sorted by query."""

    rows: np.ndarray
    queries: np.ndarray
    scores: np.ndarray

    @classmethod
    def join(cls, parts: list[_Found]) -> _Found:
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.queries for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )

    def pick(self, chosen: np.ndarray) -> _Found:
        return _Found(self.rows[chosen], self.queries[chosen], self.scores[chosen])


def candidates(prefix: Prefix, queries: np.ndarray, k: int, score: Score) -> np.ndarray:
    """Return the ids of all rows that may be among the best `k` of each query.

    Parameters
    ----------
    prefix : Prefix
        The rows.
    queries : array (n_queries, dim)
        As `Prefix.queries` prepares them.
    k : int
        At most the number of rows.
    score : callable
        Final scores, asked for only where very many rows are equally good.

    Returns
    -------
    array (n_queries, at least k), intp
        In ascending order, padded with -1 in front.
    """
    if not queries.shape[0]:
        return np.empty((0, k), np.intp)
    # A product differs from the final score by one rounding at most, so two products of a row differ by two: the slack.
    # The rows of the sample that reach the threshold reach it less the slack in the scan, and a row that may be among
    # the best lies at most the slack below the k-th best product (`_keep_best`): the floor is lower by both.
    slack = 2 * prefix.rounding(queries)
    if len(prefix) * queries.shape[0] <= _AT_ONCE:
        return _padded(_at_once(prefix, queries, k, slack, score), queries.shape[0], len(prefix))
    sampled, size = prefix.sample.scores(queries), len(prefix.sample)
    rank = _sampling.rank(k, size, len(prefix))
    found: list[_Found] = []
    # Ends: once the rank exceeds the sample the threshold is -inf, which every score reaches, since none is NaN.
    todo = np.arange(queries.shape[0])
    while todo.size:
        own = sampled if todo.size == queries.shape[0] else sampled[:, todo]
        floor = _threshold(own, rank) - 2 * slack[todo]
        new, complete = _Search(prefix, queries[todo], k, floor, slack[todo], partial(_score_of, score, todo)).run()
        new = new.pick(complete[new.queries])
        found.append(_Found(new.rows, todo[new.queries], new.scores))
        todo, rank = todo[~complete], 8 * rank
    return _padded(_Found.join(found), queries.shape[0], len(prefix))


def _score_of(score: Score, queries: np.ndarray, query: int, ids: np.ndarray) -> np.ndarray:
    return score(int(queries[query]), ids)


def _threshold(scores: np.ndarray, rank: int) -> np.ndarray:
    """Return the `rank`-th largest score of each column, or a little less; -inf if there are not as many."""
    size, n_queries = scores.shape
    if rank > size:
        return np.full(n_queries, -np.inf, scores.dtype)
    if size % _GROUP == 0 and 32 * rank <= size:  # few groups hold two of the largest
        scores = scores.reshape(_GROUP, -1, n_queries).max(axis=0)
        size //= _GROUP
    return np.partition(scores.T, size - rank, axis=1)[:, size - rank]


def _padded(found: _Found, n_queries: int, n: int) -> np.ndarray:
    if n_queries == 1:
        return np.sort(found.rows)[None, :]
    rows = np.sort(found.queries * n + found.rows) % n
    counts = np.bincount(found.queries, minlength=n_queries)
    ids = np.full((n_queries, counts.max()), -1, np.intp)
    ids[np.arange(ids.shape[1]) >= ids.shape[1] - counts[:, None]] = rows
    return ids


def merged(ids: np.ndarray, queries: Sequence[int], others: Mapping[int, np.ndarray]) -> np.ndarray:
    """Put candidates (m, most) of some queries and those of others, (fewer,) each, into one array, -1 in front."""
    most = max(ids.shape[1], *map(len, others.values()))
    found = np.full((len(queries) + len(others), most), -1, np.intp)
    found[queries, most - ids.shape[1] :] = ids
    for query, own in others.items():
        found[query, most - len(own) :] = own
    return found


def _at_once(prefix: Prefix, queries: np.ndarray, k: int, slack: np.ndarray, score: Score) -> _Found:
    """Find what may be among the best `k` of each query, from all scores at once."""
    rows, asked, scores = best(form(prefix, queries, k), k, slack)
    found = _Found(rows, asked, scores)
    return found if rows.size <= 4 * k + _SPARE else _keep_best(found, k, slack, score)[0]


class Formed(NamedTuple):
    """The scores of all rows, and the largest of every few.

    Attributes
    ----------
    scores : array (n_queries, at least n)
        Block after block of `step` rows, -inf after the last row.
    largest : array (n_queries, groups)
        Of groups of as many scores, which lie equally far apart within their block.
    step : int
        Rows of a block.
    """

    scores: np.ndarray
    largest: np.ndarray
    step: int


def form(prefix: Prefix, queries: np.ndarray, k: int) -> Formed:
    """Form the scores of all rows, in groups that suit the search for the best `k`."""
    n, dim, n_queries = len(prefix), prefix.dim, len(queries)
    size, numbers = _group(n, k), max(1, n_queries // 8) * len(prefix) * dim
    threaded = numbers > _READ and _serial(n_queries, dim)
    step = n if numbers <= _READ else max(1, _READ // (dim * (4 if threaded else 1)))
    step = -(-step // size) * size
    scores = np.empty((n_queries, -(-n // step) * step), queries.dtype)
    scores[:, n:] = -np.inf
    largest = scores if size == 1 else np.empty((n_queries, scores.shape[1] // size), queries.dtype)

    def write(block: slice) -> None:
        out = scores[:, block]
        _multiply(prefix.rows.read(block, dim), queries, out, at_once=n_threads() == 1 and step >= n)
        prefix.finish(out, block)
        if size > 1:
            grouped = scores[:, block.start : block.start + step].reshape(n_queries, size, -1)
            start = block.start // size
            np.maximum.reduce(grouped, axis=1, out=largest[:, start : start + step // size])

    blocks = row_blocks(n, step)
    if threaded:
        each(write, blocks)
    else:
        for block in blocks:
            write(block)
    return Formed(scores, largest, step)


def best(formed: Formed, k: int, slack: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, query and score of all that lie at most the slack below the `k` best."""
    scores, largest, step = formed
    n_groups = largest.shape[1]
    size = scores.shape[1] // n_groups
    bounds = np.partition(largest, n_groups - k, axis=1)[:, n_groups - k] - slack
    places = (largest >= bounds[:, None]).reshape(-1).nonzero()[0]
    if size > 1:
        asked = places // n_groups
        blocks, columns = np.divmod(places, step // size)  # rows of `scores` hold whole blocks
        places = blocks * step + columns + step // size * np.arange(size)[:, None]
        places = places[scores.reshape(-1).take(places) >= bounds[asked]]
    asked, rows = np.divmod(places, scores.shape[1]) if len(scores) > 1 else (np.zeros_like(places), places)
    return rows, asked, scores.reshape(-1).take(places)


def _group(n: int, k: int) -> int:
    """Return how many scores of `n` make a group: so many that groups are few, so few that several times `k` remain."""
    return 1 if n <= _SORTED else max(1, min(_LARGEST_GROUP, n // (4 * k)))


def _multiply(rows: np.ndarray, queries: np.ndarray, out: np.ndarray, *, at_once: bool) -> None:
    """Write the products (n_queries, n) of queries and rows, in the calling thread where they are `_serial`.

    OpenBLAS waits for its other threads, on a busy machine many times as long as all these products take.
    """
    (n, dim), n_queries = rows.shape, len(queries)
    piece = _piece(n_queries, dim)
    if n_queries == 1 and dim >= _LONG:
        np.vecdot(rows, queries[0], out=out[0])
    elif at_once or not piece:
        np.matmul(queries, rows.T, out=out)
    else:
        whole = n // piece * piece
        pieces = rows[:whole].reshape(-1, piece, dim)
        np.matmul(queries, pieces.mT, out=out[:, :whole].reshape(n_queries, -1, piece).swapaxes(0, 1))
        np.matmul(queries, rows[whole:].T, out=out[:, whole:])


def _serial(n_queries: int, dim: int) -> bool:
    """Tell whether products are formed in the calling thread, so that our threads run beside each other."""
    return _piece(n_queries, dim) > 0 or (n_queries == 1 and dim >= _LONG)


def _piece(n_queries: int, dim: int) -> int:
    """Return of how many rows OpenBLAS forms the products in the calling thread; 0 if of too few to be worth it."""
    most = min(_SERIAL_VECTOR // dim, _VECTOR_ROWS) if n_queries == 1 else _SERIAL_PRODUCT // (n_queries * dim)
    return 1 << (most.bit_length() - 1) if most >= 16 else 0


def _keep_best(found: _Found, k: int, slack: np.ndarray, score: Score) -> tuple[_Found, np.ndarray]:
    """Drop what cannot be among the best `k`, and return the rest and the threshold that no better one undercuts."""
    found = found.pick(np.argsort(found.queries.astype(np.uint16), kind="stable"))
    ends = np.cumsum(np.bincount(found.queries, minlength=slack.size))
    kept, bounds = [], np.full_like(slack, -np.inf)
    for query, (start, end) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
        scores, chosen = found.scores[start:end], np.arange(start, end)
        if end - start >= k:
            bounds[query] = np.partition(scores, -k)[-k] - slack[query]
            chosen = chosen[scores >= bounds[query]]
        if chosen.size > 4 * k + _SPARE:
            final = score(query, found.rows[chosen])
            chosen = np.sort(chosen[np.lexsort((found.rows[chosen], -final))[:k]])
        kept.append(chosen)
    return found.pick(np.concatenate(kept)), bounds


_LARGEST_GROUP, _SORTED = 16, 1 << 14
"""Scores of one group, and of how many the k-th best is found as soon as their groups."""

_SPARE = 1 << 12


class _Search:
    """One pass over all rows with given thresholds."""

    def __init__(
        self, prefix: Prefix, queries: np.ndarray, k: int, floor: np.ndarray, slack: np.ndarray, score: Score
    ) -> None:
        n_queries, dim = queries.shape
        self.prefix, self.k, self.floor, self.slack, self.score = prefix, k, floor, slack, score
        self.transposed = np.ascontiguousarray(queries.T)
        self.piece = _piece(n_queries, dim)
        step = min(_SCORES // n_queries, 1 << 16)
        if not self.piece:
            step = min(step, _READ // dim)
        self.step = max(64, step // 64 * 64, self.piece)
        self.memory = threading.local()

    def run(self) -> tuple[_Found, np.ndarray]:
        """Return what was found, and for which queries (n_queries,) that is all that matters."""
        left = list(range(0, len(self.prefix), self.step))
        held: list[_Found] = []
        bounds = self.floor
        while left:  # with nothing pending, each pass takes one block at least
            self.pending, self.thresholds = 0, np.maximum(self.floor, bounds)
            self.tiled = np.tile(self.thresholds, self.step // _GROUP)
            results = each(self.block, left) if self.piece else [self.block(start) for start in left]
            held += [found for found in results if found is not None]
            left = [start for start, found in zip(left, results, strict=True) if found is None]
            best, bounds = _keep_best(_Found.join(held), self.k, self.slack, self.score)
            held = [best]
        return best, bounds >= self.floor

    def block(self, start: int) -> _Found | None:
        """Find what reaches the thresholds in one block of rows; None if enough is pending already."""
        if self.pending > _PENDING:
            return None
        stop = min(start + self.step, len(self.prefix))
        scores = self.products(slice(start, stop))
        if stop - start == self.step:
            rows, queries, reached = _reach(scores, self.tiled, *self.buffers()[1:])
        else:
            reached = np.flatnonzero(scores >= self.thresholds)
            rows, queries = np.divmod(reached, scores.shape[1])
            reached = scores.reshape(-1)[reached]
        self.pending += rows.size
        return _Found(rows + start, queries, reached)

    def products(self, block: slice) -> np.ndarray:
        """Return the scores (rows, n_queries) of a block, in a buffer that the next call overwrites."""
        rows = self.prefix.rows.read(block, self.prefix.dim)
        scores = self.buffers()[0][: rows.shape[0]]
        if self.piece and rows.shape[0] % self.piece == 0:
            cut = (rows.shape[0] // self.piece, self.piece)
            np.matmul(rows.reshape(*cut, -1), self.transposed, out=scores.reshape(*cut, -1))
        else:
            np.matmul(rows, self.transposed, out=scores)
        self.prefix.finish(scores, (block, None))
        return scores

    def buffers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return this thread's own memory for scores, and for the largest of groups and which of them pass."""
        memory = self.memory
        if not hasattr(memory, "buffers"):
            n_queries, dtype = self.transposed.shape[1], self.transposed.dtype
            n_groups = self.step // _GROUP * n_queries
            memory.buffers = (
                np.empty((self.step, n_queries), dtype),
                np.empty(n_groups, dtype),
                np.empty(n_groups, bool),
            )
        buffers: tuple[np.ndarray, np.ndarray, np.ndarray] = memory.buffers
        return buffers


def _reach(
    scores: np.ndarray, tiled: np.ndarray, largest: np.ndarray, passes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, query and score wherever `scores` (rows, n_queries) reach the threshold of their query.

    Eight scores that lie an eighth of the block apart, of one query, make a group: its largest decides whether to look.
    """
    groups = scores.reshape(_GROUP, -1)
    np.maximum.reduce(groups, axis=0, out=largest)
    np.greater_equal(largest, tiled, out=passes)
    columns = passes.nonzero()[0]
    members = groups.take(columns, axis=1)
    reached = (members >= tiled[columns]).reshape(-1).nonzero()[0]  # in one axis NumPy finds them many times faster
    member, column = np.divmod(reached, max(1, columns.size))
    rows, queries = np.divmod(member * largest.size + columns[column], scores.shape[1])
    return rows, queries, members.reshape(-1)[reached]
