"""Prefixes in one bit a column, and the first stage that compares them by the number of bits that differ.

A bit says on which side of the mean of all rows a number lies, so that codes compare directions around that mean. Bits
are stored word by word: all rows' first 64 columns, then all rows' next 64, and so on, which lets each operation run
along the rows, a block of them at a time that stays in the cache while all queries pass over it.

A sample of the rows gives each query a distance that somewhat more than k rows are expected to reach; a query that
fewer rows reached is searched again with a larger one. Distances are integers, so nothing is rounded and neither
blocks nor threads show in the result.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from matryoshka._array import row_blocks
from matryoshka._threads import each, n_threads
from matryoshka.embeddings import truncate
from matryoshka.retrieval import _sampling
from matryoshka.retrieval._rows import HostRows, Rows

WORD = 64

MOST_UNEVEN = 1.25
"""Ratio of the longest row to the shortest that is not zero up to which inner products and distances order rows nearly
as angles do: with lengths spread evenly within it, 100 candidates miss 1 % of the ten nearest; with a ratio of 2, 5."""

_BLOCK_WORDS = 1 << 17
"""Words of a block: 1 MiB, about what a core has as second-level cache, which one query passes over in 0.05 ms."""

_LEAST_ROWS, _MOST_ROWS = 1 << 13, 1 << 16
_SAMPLED_SHARE, _LEAST_SAMPLE, _MOST_SAMPLE = 64, 1 << 10, 1 << 14
_UNSAMPLED = 1 << 12
"""Rows up to which a threshold saves nothing."""

_PENDING = 1 << 22
"""Candidates that are held before all but the best of them are dropped."""


@dataclass(frozen=True)
class Code:
    """All rows at one width in bits.

    Attributes
    ----------
    words : array (⌈dim / 64⌉, n), uint64
        Column 0 is the lowest bit of the first word; what the last word has left over is 0. A bit is set where the
        number lies below the mean.
    mean : array (dim,)
        Mean of the prefixes as the metric compares them, in their dtype.
    metric : str
        The similarity.
    length : float
        To which queries are brought before the mean is subtracted: the typical length of a row at full width.
    """

    words: np.ndarray
    mean: np.ndarray
    metric: str
    length: float

    def __len__(self) -> int:
        return int(self.words.shape[1])

    @property
    def dim(self) -> int:
        """Columns that are coded."""
        return len(self.mean)

    def queries(self, queries: np.ndarray) -> np.ndarray:
        """Return the codes (n_queries, ⌈dim / 64⌉) of queries at full width, as `Corpus` prepares them.

        The order of rows does not depend on how long a query is, and nor must its code.
        """
        if self.metric == "cosine":
            return _encode(truncate(queries, self.dim), self.mean)
        return _encode(truncate(queries, queries.shape[1])[:, : self.dim] * queries.dtype.type(self.length), self.mean)

    def candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return the ids of the `k` rows nearest to each query, equal distances by id.

        Parameters
        ----------
        queries : array (n_queries, dim)
            At full width, as `Corpus` prepares them.
        k : int
            At most the number of rows.

        Returns
        -------
        array (n_queries, k), intp
            In ascending order of the ids.
        """
        asked, n = self.queries(queries), len(self)
        ids = np.empty((len(asked), k), np.intp)
        if n <= _UNSAMPLED:
            sampled, rank = np.empty((len(asked), 0), np.uint8), k
        else:
            scan = _Scan(self.sample)
            sampled = np.stack([scan.distances(scan.words, query).copy() for query in asked] or [np.empty(0, np.uint8)])
            rank = _sampling.rank(k, sampled.shape[1], n)
        # Ends: once the rank exceeds the sample every row is near enough.
        todo = np.arange(len(asked))
        while todo.size:
            limits = _limits(sampled[todo], rank, WORD * len(self.words))
            left = []
            for query, found in zip(todo, _Search(self, asked[todo], k, limits).run(), strict=True):
                if len(found) < k:
                    left.append(query)
                else:
                    ids[query] = found
            todo, rank = np.array(left, np.intp), 8 * rank
        return ids

    def bytes_of(self, words: np.ndarray) -> np.ndarray:
        """Return codes (rows, ⌈dim / 64⌉) as bytes (rows, ⌈dim / 8⌉), column 0 being the lowest bit of the first."""
        return np.ascontiguousarray(words, "<u8").view(np.uint8)[:, : -(-self.dim // 8)]

    @property
    def nbytes(self) -> int:
        """Size of all this, with the sample if it was drawn."""
        sample = vars(self).get("sample")
        return int(self.words.nbytes + self.mean.nbytes + (0 if sample is None else sample.nbytes))

    @cached_property
    def sample(self) -> np.ndarray:
        """Codes (⌈dim / 64⌉, fewer) of one row from each of many equal shares, the same in each run."""
        n = len(self)
        size = min(n, _MOST_SAMPLE, max(_LEAST_SAMPLE, n // _SAMPLED_SHARE))
        return self.words[:, _sampling.draw(n, size)]


def checked(rows: Rows, metric: str, name: str) -> HostRows:
    """Return rows that codes serve under this metric; `name` is the argument that asks for them."""
    if not isinstance(rows, HostRows):
        msg = (
            f"`{name}` must be 'float' for a corpus on a device, got 'bits'; leave it out, or keep the corpus in main "
            "memory: in NumPy, or in PyTorch or JAX on the CPU."
        )
        raise ValueError(msg)  # noqa: TRY004 (a corpus may lie there, only not be asked for this)
    if not serves(rows, metric):
        shortest, longest = _lengths(rows)
        msg = (
            f"`{name}` must be 'float' under metric {metric!r} for rows of different lengths, since bits compare "
            f"directions: at most {MOST_UNEVEN:g} times the shortest, got lengths from {shortest:.3g} to "
            f"{longest:.3g}; leave it out, or use metric='cosine'."
        )
        raise ValueError(msg)
    return rows


def serves(rows: Rows, metric: str) -> bool:
    """Tell whether codes serve these rows under this metric."""
    if not isinstance(rows, HostRows):
        return False
    if metric == "cosine":
        return True
    shortest, longest = _lengths(rows)
    return longest <= MOST_UNEVEN * shortest


def _lengths(rows: HostRows) -> tuple[float, float]:
    """Return the lengths of the shortest row that is not zero and of the longest, both 0 if there is no such row."""
    squares = np.asarray(rows.squares)
    squares = squares[squares > 0]
    return (math.sqrt(squares.min()), math.sqrt(squares.max())) if squares.size else (0.0, 0.0)


def build(rows: HostRows, dims: Sequence[int], metric: str) -> dict[int, Code]:
    """Code all rows at some widths, once they are `checked`: one pass over them for the means and one for the bits."""
    if not dims:
        return {}
    words = {dim: np.empty((-(-dim // WORD), rows.shape[0]), np.uint64) for dim in dims}

    def cut(block: slice) -> list[np.ndarray]:
        read = rows.read(block, max(dims))
        return [truncate(read, dim, normalize=metric == "cosine") for dim in dims]

    def add_up(block: slice) -> list[np.ndarray]:
        return [np.asarray(part.sum(axis=0, dtype=np.float64)) for part in cut(block)]

    def encode(block: slice) -> None:
        for dim, part in zip(dims, cut(block), strict=True):
            words[dim][:, block] = _encode(part, means[dim]).T

    sums = zip(*each(add_up, rows.blocks()), strict=True)
    means = {
        dim: (np.sum(parts, axis=0) / rows.shape[0]).astype(rows.dtype) for dim, parts in zip(dims, sums, strict=True)
    }
    each(encode, rows.blocks())
    return {dim: of_words(rows, words[dim], means[dim], metric) for dim in dims}


def of_words(rows: HostRows, words: np.ndarray, mean: np.ndarray, metric: str) -> Code:
    """Put together what was coded, now or before it was saved."""
    typical = 1.0 if metric == "cosine" else math.sqrt(np.asarray(rows.squares).mean(dtype=np.float64))
    return Code(words, mean, metric, typical)


def _encode(prefixes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the codes (rows, ⌈dim / 64⌉) of prefixes (rows, dim)."""
    packed = np.packbits(prefixes < mean, axis=1, bitorder="little")
    padded = np.zeros((len(prefixes), -(-len(mean) // WORD) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u8").astype(np.uint64, copy=False)


def _limits(distances: np.ndarray, rank: int, most: int) -> list[int]:
    """Return the `rank`-th smallest of each row of distances, `most` where there are not as many."""
    if rank > distances.shape[1]:
        return [most] * len(distances)
    return [int(limit) for limit in np.partition(distances, rank - 1, axis=1)[:, rank - 1]]


class _Scan:
    """Distances of queries to blocks of rows, with memory of its own for each thread."""

    def __init__(self, words: np.ndarray) -> None:
        n_words = len(words)
        self.words = words
        rows = 1 << max(1, _BLOCK_WORDS // n_words).bit_length() - 1
        self.step = max(1, min(words.shape[1], max(_LEAST_ROWS, min(_MOST_ROWS, rows))))
        bits = n_words * WORD
        self.dtype = np.dtype(np.uint8 if bits < 1 << 8 else np.uint16 if bits < 1 << 16 else np.uint32)
        self.memory = threading.local()

    def distances(self, words: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return in how many bits rows (⌈dim / 64⌉, m) differ from a query, in a buffer that the next call reuses."""
        m = words.shape[1]
        memory = self.memory
        if getattr(memory, "size", -1) < m:
            memory.size = m
            memory.differ, memory.counts = np.empty((len(words), m), np.uint64), np.empty((len(words), m), np.uint8)
            memory.sums = np.empty(m, self.dtype)
        differ, counts, sums = memory.differ[:, :m], memory.counts[:, :m], memory.sums[:m]
        np.bitwise_xor(words, query[:, None], out=differ)
        np.bitwise_count(differ, out=counts)
        found: np.ndarray = np.add.reduce(counts, axis=0, dtype=self.dtype, out=sums)
        return found


_Found = tuple[np.ndarray, np.ndarray]
"""Ids in ascending order, and their distances."""


class _Search(_Scan):
    """One pass over all rows with given limits on the distance."""

    def __init__(self, code: Code, queries: np.ndarray, k: int, limits: Sequence[int]) -> None:
        super().__init__(code.words)
        self.queries, self.k = queries, k
        self.bounds = [(limit, len(code)) for limit in limits]
        """A distance within which k rows lie, and where the last block of these starts: later rows must be nearer."""

    def run(self) -> list[np.ndarray]:
        """Return for each query the ids of the best k, fewer if no more keep to the limit."""
        blocks = row_blocks(self.words.shape[1], self.step)
        at_once = max(n_threads(), _PENDING // (len(self.queries) * min(self.k, self.step)))
        best: list[_Found] = [(np.empty(0, np.intp), np.empty(0, self.dtype))] * len(self.queries)
        for start in range(0, len(blocks), at_once):
            found = each(self.block, blocks[start : start + at_once])
            best = [
                self.keep_best(query, [best[query], *parts]) for query, parts in enumerate(zip(*found, strict=True))
            ]
        return [ids for ids, _ in best]

    def block(self, block: slice) -> list[_Found]:
        """Find in one block of rows, for each query, the best k of those that keep to its bound."""
        words, found = self.words[:, block], []
        for query, code in enumerate(self.queries):
            limit, after = self.bounds[query]
            distances = self.distances(words, code)
            near = np.flatnonzero(distances <= limit - (block.start > after))
            found.append(self.nearest(query, near + block.start, distances[near], block.start))
        return found

    def keep_best(self, query: int, parts: Sequence[_Found]) -> _Found:
        """Join what blocks found, in their order, and drop all but the best k; blocks that are left come after all."""
        ids, distances = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return self.nearest(query, ids, distances, 0)

    def nearest(self, query: int, ids: np.ndarray, distances: np.ndarray, start: int) -> _Found:
        """Keep the best k, equal distances by id, and hold later rows to them: those from `start` on come after all."""
        surplus = ids.size - self.k
        if surplus <= 0:
            return ids, distances
        counts = np.cumsum(np.bincount(distances))
        bound = int(np.searchsorted(counts, self.k))
        chosen = distances <= bound
        equal = np.flatnonzero(distances == bound)
        chosen[equal[equal.size - (counts[bound] - self.k) :]] = False
        self.bounds[query] = min(self.bounds[query], (bound, start))
        return ids[chosen], distances[chosen]
