"""Search rows at any prefix of their width: exactly, in stages, or behind an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from matryoshka import _checks
from matryoshka._array import from_numpy, full, namespace, row_blocks
from matryoshka._typing import Array, Namespace
from matryoshka.embeddings import truncate
from matryoshka.retrieval import _bounds, _bytes, _codes, _device, _rerank, _scan, engine
from matryoshka.retrieval._arguments import Arguments
from matryoshka.retrieval._host import Sliceable, is_sliceable, view, widen
from matryoshka.retrieval._prefix import Prefix, build, inspect
from matryoshka.retrieval._rows import DeviceRows, HostRows, Rows
from matryoshka.retrieval.funnel import Funnel

__all__ = ["Corpus"]

_QUERIES = 128
"""Queries that are searched for at once: enough to use each row that is read many times."""

_CANDIDATES = 1 << 22


class Corpus:
    """Embeddings to search exactly, at full width or through a funnel.

    Parameters
    ----------
    embeddings : array (n, dim), floating
        One row per item. Kept as it is, neither copied nor written to; do not change it afterwards. It may be
        memory-mapped, or no array at all but something with a shape and a dtype that gives slices of rows as NumPy
        arrays (an HDF5 or Zarr data set): then only lengths and prefixes stay in memory.
    metric : {"cosine", "ip", "l2"}, default "cosine"
        Similarity of two prefixes. "cosine" brings each prefix to unit length first, as the paper does; "ip" (inner
        product) and "l2" (negative squared distance) take the vectors as they are.
    search_dims : sequence of int, default ()
        Widths at which funnels will start: a contiguous block of these prefixes is built now. For any other width it
        is built at the first search and kept.
    code : {"float", "bits"}, default "float"
        In which code funnels will start at these widths, as in `Funnel`: "bits" builds one bit a column instead of the
        block. Any other width and code is built when a funnel first asks for it.

    Raises
    ------
    TypeError
        `embeddings` is no floating-point array, or one that is stored in the byte order of other machines or in more
        than 64 bits a number.
    ValueError
        `embeddings` has no rows, no columns, or numbers that are not finite; or `search_dims`, `metric` or `code` do
        not fit.

    Notes
    -----
    Scores grow with similarity, and a row whose prefix is all zeros scores 0 under "cosine". Results are ordered by
    score, equal scores by id. Half-precision embeddings are computed with in float32. Scores agree with float64 within
    1e-5 for float32 rows of unit length: rows whose cosines differ by less, such as all rows far from the origin in one
    direction, may come in another order than in float64, and a corpus of float64 rows tells them apart (or one that is
    centred first). Equal rows score exactly equal; neither the batch nor the number of threads
    shows in a result.

    Everything follows `embeddings`: library, device and dtype. NumPy arrays, and PyTorch and JAX arrays on the CPU,
    share one engine without copies, on as many threads as OMP_NUM_THREADS says, or else as there are CPUs. Elsewhere
    the library of the array does the work; queries are not checked for NaN there, because that would wait for the
    device, and of more than 32 rows that a matrix product cannot tell from the last result any may be returned.

    An exact search at full width reads less than all rows where bounds from a prefix at hand rule most of them out,
    with the same result to the last bit (docs/retrieval.md states when it is tried).

    A corpus takes one pass over the rows to build, for a length per row and the blocks of `search_dims`, n x width
    numbers each in float32 or float64. A copy (`copy.copy`) shares the rows and the blocks; blocks that it builds later
    are its own. It can be pickled, and so sent to other processes, with all it has built: rows in memory by their
    content, rows that are mapped from a file by their place there, so that the file must lie there too, and a data set
    or an array elsewhere as its own library does.

    Bits take n x width / 8 bytes and two passes more. They say on which side of the mean of all rows a number lies, so
    they compare directions around it: "cosine" is always served, "ip" and "l2" where the longest row is at most 1.25
    times as long as the shortest that is not zero. They are compared on the host engine only.

    Examples
    --------
    >>> import numpy as np
    >>> corpus = Corpus(np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.6, 0.8]]))
    >>> scores, ids = corpus.search(np.array([[0.0, 2.0, 0.0]]), k=2)
    >>> scores, ids
    (array([[0.8, 0.6]]), array([[1, 2]]))
    """

    def __init__(
        self,
        embeddings: Array | Sliceable,
        *,
        metric: str = "cosine",
        search_dims: Iterable[int] = (),
        code: str = "float",
    ) -> None:
        like = np.empty(0, embeddings.dtype) if is_sliceable(embeddings) else embeddings
        xp = namespace(("embeddings", like))
        _check_rows(embeddings, like, "embeddings", xp)
        metric = _checks.choice(metric, "metric", _checks.METRICS)
        widths = _search_dims(search_dims, embeddings.shape[1])
        coded = _checks.choice(code, "code", _checks.CODES) == "bits"
        rows = _rows_of(embeddings, xp)
        rows.check()
        rows, prefixes = inspect(rows, () if coded else widths, metric)
        bits = _codes.build(_codes.checked(rows, metric, "code"), widths, metric) if coded else {}
        self._hold(full((0,), 0.0, like=like, xp=xp), metric, rows, prefixes, bits)

    def _hold(
        self, like: Array, metric: str, rows: Rows, prefixes: dict[int, Prefix], bits: dict[int, _codes.Code]
    ) -> None:
        """Take what is known of the rows; `like` holds nothing, in the library, the dtype and the place of queries."""
        self._rows, self._prefixes, self._bits = rows, prefixes, bits
        self._arguments = Arguments(rows, metric, like, namespace(("embeddings", like)))
        self._bounds: dict[int, _bounds.Bounds] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self._arguments.like, self.metric, self._rows, dict(self._prefixes), dict(self._bits))
        return _of_parts, (type(self), *parts)

    @property
    def metric(self) -> str:
        """The similarity: "cosine", "ip" or "l2"."""
        return self._arguments.metric

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._rows.shape[1]

    @property
    def search_dims(self) -> tuple[int, ...]:
        """Widths that are ready to search: those declared, and those searched since."""
        return tuple(sorted({*self._prefixes, *self._bits}))

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes in which a funnel may search its first width: those that serve these rows where they are."""
        return _checks.CODES if _codes.serves(self._rows, self.metric) else ("float",)

    @property
    def nbytes(self) -> _bytes.CorpusBytes:
        """How many bytes the corpus holds now, by part: `CorpusBytes`. Searches at new widths add to them."""
        return _bytes.count(self._rows, self._prefixes.values(), self._bits.values(), self._bounds.values())

    def __len__(self) -> int:
        return self._rows.shape[0]

    def __repr__(self) -> str:
        bits = f", in bits at {tuple(sorted(self._bits))}" if self._bits else ""
        return f"Corpus({len(self)} x {self.dim}, metric={self.metric!r}, search_dims={self.search_dims}{bits})"

    def search(
        self,
        queries: Array,
        k: int,
        *,
        dim: int | None = None,
        funnel: Funnel | None = None,
        first_stage: Callable[[Array, int], Array] | None = None,
    ) -> tuple[Array, Array]:
        """Find the `k` rows most similar to each query.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            Of the library and on the device of the corpus, in its dtype or in the one it is computed with.
        k : int
            Results per query, at least 1, and at most the last list of the funnel; of all queries together at most
            2**31.
        dim : int, optional
            Compare the first `dim` columns only, exactly, as ``Funnel((dim,))`` does; at most the width of the corpus.
        funnel : Funnel, optional
            Search at its first width and rerank at the others. With neither this nor `dim` the search is exact at full
            width.
        first_stage : callable, optional
            An index of your own, asked for candidates in place of the exact search at the first width: called with the
            prefixes of the queries (n_queries, width), at unit length under "cosine", and a count, it returns so many
            ids for each or fewer, in their library, -1 for none. `prefixes` gives what to fill it with. Where the
            funnel starts in bits it is called with the codes of the queries, as `prefixes` gives those of the rows.

        Returns
        -------
        scores : array (n_queries, k)
            Best first, in the dtype of the corpus (float32 for half precision); at the last width of the funnel.
        ids : array (n_queries, k)
            Rows of the corpus, in the default integer dtype. Where `k` exceeds the corpus, the rest has id -1 and
            score -inf.

        Raises
        ------
        TypeError
            `queries` is of another library or dtype, `k` or `dim` is no integer, `funnel` no funnel, or both of these
            are given.
        ValueError
            `queries` has another width or numbers that are not finite, lies on another device, or `k`, `dim` or
            `funnel` do not fit, or the funnel starts in a code that does not serve these rows.
        """
        rows = self._arguments.queries(queries)
        stages = engine.stages(self.dim, rows.shape[0], k, dim=dim, funnel=funnel)
        self._rows.check()
        code = None if funnel is None or funnel.code == "float" else self._code(stages.dims[0])
        if first_stage is not None:
            _checks.function(first_stage, "first_stage")
            asked = self._cut(rows, stages.dims[0]) if code is None else code.bytes_of(code.queries(rows))
            found = first_stage(asked, min(stages.lists[0], len(self)))
            ids = self._arguments.candidates(found, rows, rows.shape[0])
            return self._arguments.results([self._rerank(rows, ids, stages.later)], k)
        stages = stages._replace(lists=tuple(min(count, len(self)) for count in stages.lists))
        count = stages.lists[0]
        find = partial(self._first_stage, self._prefix(stages.dims[0])) if code is None else code.candidates
        left = stages if code is None else stages.later
        found = [self._rerank(rows[at, :], find(rows[at, :], count), left) for at in self._parts(rows.shape[0], count)]
        return self._arguments.results(found, k)

    def rerank(
        self, queries: Array, ids: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Order candidates by their similarity to the query at one width, or through the later stages of a funnel.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            As for `search`.
        ids : array (n_queries, m), integer
            Candidates of each query, in any order. -1 is padding and is passed over. Never written to.
        k : int
            Results per query, at least 1, of all queries together at most 2**31; where fewer candidates were given, the
            rest has id -1 and score -inf.
        dim : int, optional
            Width of the prefix, at most that of the corpus. Give either this or `funnel`.
        funnel : Funnel, optional
            Take the candidates for what a search at its first width found (an approximate index, say), and rerank
            them at its second width, keep as many as it says, and so on.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `search`. An id that was given twice is returned twice.

        Raises
        ------
        TypeError
            As for `search`, or `ids` holds no integers, or not exactly one of `dim` and `funnel` is given.
        ValueError
            As for `search`, or `ids` has not one row per query, or holds an id outside [-1, n).
        """
        rows = self._arguments.queries(queries)
        candidates = self._arguments.candidates(ids, self._arguments.like, rows.shape[0])
        stages = engine.stages(self.dim, rows.shape[0], k, dim=dim, funnel=funnel, given=True)
        self._rows.check()
        return self._arguments.results([self._rerank(rows, candidates, stages.later)], k)

    def prefixes(self, dim: int, *, code: str = "float") -> Iterator[tuple[slice, Array]]:
        """Give the prefixes of all rows a block at a time, to fill an index of your own.

        Parameters
        ----------
        dim : int
            Their width, at most that of the corpus.
        code : {"float", "bits"}, default "float"
            How they are given.

        Yields
        ------
        rows : slice
            Which rows of the corpus.
        prefixes : array (rows, dim)
            As the metric compares them: at unit length under "cosine". In float32 or float64, NumPy where the corpus
            is in main memory, else of its library. Not to be written to. With "bits" an array (rows, ⌈dim / 8⌉) of
            uint8, column 0 being the lowest bit of the first byte: 1 where the number lies below the mean of the rows.

        Raises
        ------
        TypeError, ValueError
            `dim` is no integer within [1, width], or there is no such code, or it does not serve these rows.
        """
        dim = _checks.integer(dim, "dim", minimum=1, maximum=self.dim)
        self._rows.check()
        if _checks.choice(code, "code", _checks.CODES) == "bits":
            bits = self._code(dim, "code")
            return ((block, bits.bytes_of(bits.words[:, block].T)) for block in self._rows.blocks())
        return ((block, self._cut(self._rows.read(block, dim), dim)) for block in self._rows.blocks())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the corpus to a folder: rows, lengths, and the prefixes and codes built so far.

        Parameters
        ----------
        path : path
            The folder: new, empty, or one that this method wrote, which is replaced when the new one is whole; an error
            leaves it as it was. A link is followed, and stays.

        Raises
        ------
        OSError
            The folder cannot be written, or holds other things, also besides a corpus.

        Notes
        -----
        Where the system cannot exchange two folders in one step (Linux can), the old one is out of its place for a
        moment; should the process be killed then, `load` finds it nevertheless, and the next save puts it back first.
        What a killed save leaves hidden beside the folder goes with the next one, but not on Windows.
        """
        from matryoshka.retrieval import _store  # with what it needs of the standard library, slow to load

        self._rows.check()
        _store.save(path, self._rows, self._prefixes, self._bits, self.metric)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = False, like: Array | None = None
    ) -> Corpus:
        """Read a corpus from the folder that `save` wrote.

        Parameters
        ----------
        path : path
            The folder.
        mmap : bool, default False
            Leave the rows in their file and read only those that are needed; prefixes and codes are read either way.
        verify : bool, default False
            With `mmap`, read the rows once and compare them with their checksum too, as is done with all that is read
            into memory. Checksums tell of damage, not of intent; folders from before there were any are taken as they
            are.
        like : array, optional
            Any array of the library and on the device that queries will come from; NumPy by default.

        Returns
        -------
        Corpus
            With the prefixes that were saved, and the codes where they can be searched. bfloat16, which NumPy lacks,
            takes float32 queries there.

        Raises
        ------
        FileNotFoundError
            There is no such folder.
        ValueError
            The folder holds no corpus, or a damaged one.
        """
        from matryoshka.retrieval import _store  # with what it needs of the standard library, slow to load

        flags = {"mmap": _checks.flag(mmap, "mmap"), "verify": _checks.flag(verify, "verify")}
        record, arrays = _store.load(path, **flags)
        like = np.empty(0) if like is None else like
        xp = namespace(("like", like))
        dtype = getattr(xp, record["dtype"], xp.float32)
        rows: Rows
        if view(like) is None:
            embeddings = from_numpy(widen(arrays.pop("embeddings")), like=like, xp=xp)
            plain = {name: array for name, array in arrays.items() if array.dtype != np.uint64}  # codes stay behind
            arrays = {name: from_numpy(array, like=like, xp=xp) for name, array in plain.items()}
            rows = DeviceRows(xp.astype(embeddings, dtype, copy=False), xp)
        else:
            rows = HostRows(arrays["embeddings"])
        like = xp.astype(from_numpy(np.empty(0, np.float32), like=like, xp=xp), dtype, copy=False)
        return _of_parts(cls, like, record["metric"], *_store.restore(record, arrays, rows))

    def _cut(self, rows: Array, dim: int) -> Array:
        """Return prefixes as the metric compares them."""
        return truncate(rows, dim, normalize=self.metric == "cosine")

    def _adopt(self, other: Corpus, dim: int, code: str) -> None:
        """Take over the block, or the code, of one width that a copy has built."""
        if code == "bits":
            self._bits[dim] = other._code(dim)
        else:
            self._prefixes[dim] = other._prefix(dim)

    def _parts(self, n_queries: int, count: int) -> list[slice]:
        """Cut queries into those that are searched for at once."""
        return row_blocks(n_queries, max(1, min(_QUERIES, _CANDIDATES // count)))

    def _first_stage(self, prefix: Prefix, queries: Array, k: int) -> Array:
        """Return candidates that hold the best `k` of each query."""
        if isinstance(self._rows, DeviceRows):
            return _device.candidates(prefix, prefix.queries(queries), k, self._rows.xp)
        bounds = self._bounds_of(self._rows) if prefix.dim == self.dim else None
        found = {} if bounds is None else bounds.candidates(queries, k)
        left = [i for i in range(len(queries)) if i not in found]
        some = queries if len(left) == len(queries) else queries[left]
        ids = _scan.candidates(
            prefix, prefix.queries(some), k, partial(_score, self._rows, self.metric, some, prefix.dim)
        )
        return _scan.merged(ids, left, found) if found else ids

    def _bounds_of(self, rows: HostRows) -> _bounds.Bounds | None:
        """Return what prunes an exact search, if there is a prefix to prune it by."""
        dim = _bounds.leading(rows, tuple(self._prefixes))
        if dim is None:
            return None
        found = self._bounds.get(dim)
        if found is None:  # searches on other threads may replace it by that of another width
            found = _bounds.Bounds(rows, self._prefixes[dim])
            self._bounds = {dim: found}
        return found

    def _rerank(self, queries: Array, ids: Array, stages: engine.Stages) -> tuple[Array, Array]:
        return _rerank.rerank(self._rows, self.metric, queries, ids, *stages)

    def _prefix(self, dim: int) -> Prefix:
        if dim not in self._prefixes:
            self._prefixes[dim] = build(self._rows, dim, self.metric)
        return self._prefixes[dim]

    def _code(self, dim: int, name: str = "funnel.code") -> _codes.Code:
        if dim not in self._bits:
            self._bits |= _codes.build(_codes.checked(self._rows, self.metric, name), (dim,), self.metric)
        return self._bits[dim]


def _of_parts(
    cls: type[Corpus], like: Array, metric: str, rows: Rows, prefixes: dict[int, Prefix], bits: dict[int, _codes.Code]
) -> Corpus:
    corpus = object.__new__(cls)
    corpus._hold(like, metric, rows, prefixes, bits)
    return corpus


def _score(rows: Rows, metric: str, queries: Array, dim: int, query: int, ids: np.ndarray) -> Array:
    """Return the final scores of some rows for one query."""
    return _rerank.score(rows, metric, queries[query : query + 1], ids[None, :], dim)[0]


def _check_rows(rows: Array | Sliceable, like: Array, name: str, xp: Namespace) -> None:
    """Check shape and dtype of rows to search, which are those of `like`: of NumPy's, such as a file of ours holds."""
    _checks.floating(like, name, xp)
    dtype = like.dtype
    if isinstance(dtype, np.dtype) and (dtype.itemsize > 8 or not dtype.isnative):
        kind = "float64" if dtype.itemsize > 8 else dtype.name
        msg = (
            f"`{name}` must hold float16, float32 or float64 in the byte order of this machine, got dtype {dtype}; "
            f"cast them, for instance with astype(np.{kind})."
        )
        raise TypeError(msg)
    _checks.ndim(rows, name, 2, "(n, dim)")
    _checks.not_empty(rows, name)
    _checks.not_empty(rows, name, axis=1)


def _rows_of(embeddings: Array | Sliceable, xp: Namespace) -> Rows:
    if not is_sliceable(embeddings):
        host = view(embeddings)
        return DeviceRows(embeddings, xp) if host is None else HostRows(host)
    some = embeddings[0:1, 0:1]
    if np.ndim(np.asarray(some)) != 2:  # as of a sparse matrix
        kind = type(embeddings).__name__
        msg = (
            f"`embeddings` must give slices of rows as NumPy arrays, got {kind}, which gives {type(some).__name__}; "
            "convert it to an array."
        )
        raise TypeError(msg)
    return HostRows(embeddings)


def _search_dims(values: Iterable[int], dim: int) -> tuple[int, ...]:
    found = _checks.sequence(values, "search_dims", "integers", "for instance (8, 16, 32)")
    return _checks.dims(found, "search_dims", most=dim) if found else ()
