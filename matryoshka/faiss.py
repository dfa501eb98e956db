"""A faiss index on leading columns as the first stage of a funnel."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from matryoshka import _checks, _files, _folders, _values
from matryoshka._array import from_numpy, namespace, to_numpy
from matryoshka._optional import require
from matryoshka._threads import n_threads
from matryoshka._typing import Array
from matryoshka.retrieval import Corpus, Funnel

faiss = require("faiss", extra="faiss", purpose="`matryoshka.faiss`")

__all__ = ["FaissCorpus"]

_TRAINING_ROWS = 1 << 16
_ROWS_PER_LIST = 256
"""Rows that faiss trains on at most, in all and for each list of an inverted file; it would drop more."""

_WIDEST = 1 << 16
"""Columns of an index at most: asked for more than any memory holds, faiss would try to take it."""


class FaissCorpus:
    """A corpus whose funnels start with a faiss index instead of an exact search.

    Parameters
    ----------
    corpus : Corpus
        The rows, their metric, and the later stages.
    index : faiss.Index, faiss.IndexBinary or str
        An index, or a text for ``faiss.index_factory`` such as "Flat", "HNSW32", "IVF1024,Flat", "IVF1024,PQ8" or
        "SQ8", or for ``faiss.index_binary_factory`` such as "BFlat", "BHNSW32" or "BIVF1024". An empty index is trained
        if it must be, and filled; one with as many rows as the corpus is taken to hold what `Corpus.prefixes` gives of
        them in their order (of unit length under "cosine", codes in a binary one). It is kept, not copied.
    dim : int, optional
        Leading columns that the index holds. By default all, or as many as an index that is given is wide.
    parameters : str, default ""
        Search-time settings as ``faiss.ParameterSpace`` reads them, such as "nprobe=16" or "efSearch=64". It does not
        know binary indexes: set theirs in place.
    seed : int, default 0
        Draws the rows to train on.

    Raises
    ------
    TypeError, ValueError
        `corpus` is no Corpus, `index` neither an index nor a text, or they do not fit each other; or faiss does not
        know the text or a parameter, or needs more rows to train on.

    Notes
    -----
    "cosine" and "ip" make indexes of inner products, "l2" of Euclidean distances; an index of Euclidean distances
    that is given serves "cosine" too. faiss computes in float32 and runs on the threads that OMP_NUM_THREADS names, as
    the rest of the search does. On several threads it builds other graphs from run to run.

    A binary index holds one bit a column, as a funnel with ``code="bits"`` compares them, so funnels start in bits
    there and nowhere else. Its width is a multiple of 8, and it serves what bits serve: see `Corpus.codes`.

    A funnel that was certified on the corpus alone is not certified here: `Funnel.calibrate` takes a FaissCorpus too,
    and then promises what the index finds with the settings that it has.

    It can be pickled as a `Corpus` can; the index goes with it.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import Corpus, Funnel
    >>> embeddings = np.random.default_rng(0).normal(size=(500, 64)) * 0.9 ** np.arange(64)
    >>> indexed = FaissCorpus(Corpus(embeddings), "HNSW32", dim=16)
    >>> scores, ids = indexed.search(embeddings[:2], k=3, funnel=Funnel((16, 64), (50,)))
    >>> ids.shape, ids[:, 0]
    ((2, 3), array([0, 1]))
    """

    def __init__(
        self, corpus: Corpus, index: Any, *, dim: int | None = None, parameters: str = "", seed: int = 0
    ) -> None:
        if not isinstance(corpus, Corpus):
            msg = f"`corpus` must be a Corpus, got {type(corpus).__name__}; pass Corpus(embeddings)."
            raise TypeError(msg)
        self._corpus, seed = corpus, _checks.seed(seed)
        if isinstance(index, str):
            width = corpus.dim if dim is None else _checks.integer(dim, "dim", minimum=1, maximum=corpus.dim)
            self._index = self.empty_index(index, width, metric=corpus.metric, parameters=parameters)
        else:
            self._index = _given(index, dim, corpus)
            _tune(self._index, parameters)
        if not set(self.codes) <= set(corpus.codes):
            msg = (
                f"`index` must hold numbers for this corpus, got {type(self._index).__name__}: bits serve rows in main "
                f"memory, and of nearly one length under metric {self.metric!r}; pass 'Flat' or 'HNSW32'."
            )
            raise ValueError(msg)
        if self._index.ntotal == 0:
            with _threads():
                self._train(np.random.default_rng(seed))
                self._fill()

    @staticmethod
    def empty_index(text: str, dim: int, *, metric: str = "cosine", parameters: str = "") -> Any:
        """Make the index of a text, with nothing in it.

        Parameters
        ----------
        text : str
            As `index`.
        dim : int
            Columns it is to hold.
        metric : {"cosine", "ip", "l2"}, default "cosine"
            The similarity.
        parameters : str, default ""
            Search-time settings.

        Returns
        -------
        faiss.Index or faiss.IndexBinary
            Neither trained nor filled.

        Raises
        ------
        ValueError
            faiss does not know the text or a parameter, or the text does not fit the number of columns, which is a
            multiple of 8 for a binary index.
        """
        dim = _checks.integer(dim, "dim", minimum=1, maximum=_WIDEST)
        metric = _checks.choice(metric, "metric", _METRICS)
        text = _checks.text(text, "text")
        binary = text.startswith("B")  # no other text does
        if binary and dim % 8:
            remedy = f"choose {dim - dim % 8}" if dim > 8 else "choose 8 or more, or an index of numbers"
            msg = f"`dim` must be a multiple of 8 for a binary index such as {text!r}, got {dim}; {remedy}."
            raise ValueError(msg)
        like = "'BFlat'" if binary else "'HNSW32'"
        with _explained(f"`index` must be a factory string of faiss for {dim} columns, such as {like}, got {text!r}"):
            index = (
                faiss.index_binary_factory(dim, text) if binary else faiss.index_factory(dim, text, _METRICS[metric][0])
            )
        _tune(index, parameters)
        return index

    @property
    def corpus(self) -> Corpus:
        """The rows behind the index."""
        return self._corpus

    @property
    def index(self) -> Any:
        """The faiss index, to be tuned in place: ``indexed.index.hnsw.efSearch = 64``."""
        return self._index

    @property
    def metric(self) -> str:
        """The similarity: "cosine", "ip" or "l2"."""
        return self._corpus.metric

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self._corpus.dim

    @property
    def search_dims(self) -> tuple[int]:
        """Width of the index, at which funnels start."""
        return (self._index.d,)

    @property
    def codes(self) -> tuple[str]:
        """How the index compares: "bits" where it is one of faiss' binary indexes, else "float"."""
        return ("bits",) if _is_binary(self._index) else ("float",)

    def __len__(self) -> int:
        return len(self._corpus)

    def __repr__(self) -> str:
        return f"FaissCorpus({self._corpus!r}, {type(self._index).__name__}, dim={self._index.d})"

    def search(
        self, queries: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Find rows similar to each query: candidates from the index, then the later stages of the funnel.

        Parameters
        ----------
        queries : array (n_queries, dim), floating
            As for `Corpus.search`.
        k : int
            Results per query, at least 1, and at most the last list of the funnel.
        dim : int, optional
            Search exactly at this width, without the index: ``Funnel((dim,))`` asks the index of that width.
        funnel : Funnel, optional
            It starts at the width of the index and in its code; the index is asked for ``keep[0]`` candidates, or for
            `k` without later stages. With neither this nor `dim` the search is exact at full width, without the index;
            so it is with the full width alone where the index is narrower.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `Corpus.search`: the scores are computed from the rows of the corpus, not from codes of the index.
            Where the index found fewer, the rest has id -1 and score -inf.

        Raises
        ------
        TypeError, ValueError
            As for `Corpus.search`, or the funnel starts at another width than that of the index, or in another code.
        """
        if dim is not None or not isinstance(funnel, Funnel):
            return self._corpus.search(queries, k, dim=dim, funnel=funnel)
        starts, coded = funnel.dims[:1] == self.search_dims, funnel.code in self.codes
        if starts and coded:
            return self._corpus.search(queries, k, funnel=funnel, first_stage=self._find)
        if funnel == Funnel((self.dim,)):
            return self._corpus.search(queries, k)
        if not starts:
            msg = f"`funnel` must start at the width of the index, {self._index.d}, got {funnel.dims}; change one."
            raise ValueError(msg)
        msg = f"`funnel.code` must be that of the index, {self.codes[0]!r}, got {funnel.code!r}; change one."
        raise ValueError(msg)

    def rerank(
        self, queries: Array, ids: Array, k: int, *, dim: int | None = None, funnel: Funnel | None = None
    ) -> tuple[Array, Array]:
        """Order candidates by their similarity to the query, computed from the rows of the corpus.

        Parameters
        ----------
        queries, ids, k, dim, funnel
            As for `Corpus.rerank`.

        Returns
        -------
        scores, ids : array (n_queries, k)
            As for `Corpus.rerank`.

        Raises
        ------
        TypeError, ValueError
            As for `Corpus.rerank`.
        """
        return self._corpus.rerank(queries, ids, k, dim=dim, funnel=funnel)

    def __reduce__(self) -> tuple[Any, ...]:
        binary = _is_binary(self._index)
        write = faiss.serialize_index_binary if binary else faiss.serialize_index
        with _explained("`index` must be one that faiss can write to be pickled"):
            return _pickled, (type(self), self._corpus, write(self._index), binary)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write corpus and index to a folder.

        Parameters
        ----------
        path : path
            The folder: new, empty, or one that this method wrote, which is replaced when the new one is whole, as with
            `Corpus.save`.

        Raises
        ------
        OSError
            The folder cannot be written, or holds other things, also besides a corpus with an index.
        """
        with _folders.new_folder(path, _LAYOUT) as folder:
            self._corpus.save(folder / _CORPUS)
            with _explained(f"`path` must be a folder that can be written, got {os.fspath(path)!r}", OSError):
                write = faiss.write_index_binary if _is_binary(self._index) else faiss.write_index
                write(self._index, str(folder / _INDEX))
            checksums = {name: _files.checksum(folder / file) for name, file in _CHECKED.items()}
            code = {"code": "bits"} if _is_binary(self._index) else {}
            record = _values.sealed({"kind": _LAYOUT.kind, "version": 1, **code}, checksums)
            (folder / _LAYOUT.record).write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = False, like: Array | None = None
    ) -> FaissCorpus:
        """Read corpus and index from the folder that `save` wrote.

        Parameters
        ----------
        path : path
            The folder.
        mmap : bool, default False
            Leave the rows in their file, as in `Corpus.load`; the index is read either way.
        verify : bool, default False
            With `mmap`, compare the rows with their checksum too, as in `Corpus.load`; the index always is.
        like : array, optional
            Any array of the library and on the device that queries will come from; NumPy by default.

        Returns
        -------
        FaissCorpus
            With the search-time settings that the index had.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such folder, or it holds no corpus with an index, or a damaged one.
        """
        read = partial(_read, mmap=mmap, verify=verify, like=like)
        return cls(*_folders.read_folder(path, _LAYOUT, read, by="FaissCorpus.save"))

    def _train(self, rng: np.random.Generator) -> None:
        if self._index.is_trained:
            return
        most, n = _TRAINING_ROWS, len(self)
        if (inverted := _inverted(self._index)) is not None:
            most = max(most, _ROWS_PER_LIST * inverted.nlist)
            inverted.cp.min_points_per_centroid = 1  # there are no more rows to be asked for: faiss need not warn
        drawn = np.sort(rng.choice(n, size=min(n, most), replace=False))
        parts = [rows[drawn[(drawn >= at.start) & (drawn < at.stop)] - at.start] for at, rows in self._blocks()]
        rule = f"`index` must be one that can be trained on {len(drawn)} rows: choose fewer lists or shorter codes"
        with _explained(f"{rule}, or pass more rows"):
            self._index.train(np.concatenate(parts))

    def _fill(self) -> None:
        named = isinstance(self._index, faiss.IndexIDMap | faiss.IndexIDMap2 | faiss.IndexBinaryIDMap)
        add = self._index.add_with_ids if named else lambda rows, _: self._index.add(rows)
        with _explained("`index` must take rows"):
            for at, rows in self._blocks():
                add(rows, np.arange(at.start, at.stop))

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        blocks = self._corpus.prefixes(self._index.d, code=self.codes[0])
        return ((at, _as_faiss_reads(rows, "embeddings")) for at, rows in blocks)

    def _find(self, prefixes: Array, count: int) -> Array:
        """Return the ids (n_queries, count) that the index finds, in the library of the prefixes."""
        with _threads():
            _, ids = self._index.search(_as_faiss_reads(prefixes, "queries"), count)
        return from_numpy(ids, like=prefixes, xp=namespace(("prefixes", prefixes)))


_CORPUS, _INDEX = "corpus", "index.faiss"
_LAYOUT = _folders.Layout("faiss corpus", "faiss.json", re.escape(_INDEX), {_CORPUS: _folders.CORPUS})
_CHECKED = {"index": _INDEX, "corpus": f"{_CORPUS}/{_folders.CORPUS.record}"}
"""Files whose checksums the record holds: that of a corpus holds those of its arrays in turn."""

_LARGEST = 1e15
"""Numbers whose squares float32 sums without overflow, in thousands of columns."""

_IP, _L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
_METRICS = {"cosine": (_IP, _L2), "ip": (_IP,), "l2": (_L2,)}
"""Distances of faiss that order rows as ours do; the first is for new indexes."""


def _read(folder: Path, text: bytes, *, mmap: bool, verify: bool, like: Array | None) -> tuple[Corpus, Any]:
    source, file = folder / _LAYOUT.record, folder / _INDEX
    record = _values.record(text, kind=_LAYOUT.kind, keys=(), source=source)
    with _values.reading(_LAYOUT.kind, source):
        checksums = _values.checksums(record, _CHECKED)
        code = _checks.choice(record.get("code", "float"), "code", _checks.CODES)
    corpus = Corpus.load(folder / _CORPUS, mmap=mmap, verify=verify, like=like)
    for name, checked in _CHECKED.items():
        if checksums is not None and (folder / checked).exists():  # faiss crashes on some damaged files
            _values.check_sum(checksums[name], _files.checksum(folder / checked), source=folder / checked)
    _values.check_seal(record, ("code",), source=source)
    with _explained(f"`{file}` must be the index that FaissCorpus.save wrote: save the corpus anew"):
        index = (faiss.read_index if code == "float" else faiss.read_index_binary)(str(file))
    if index.ntotal == 0:
        msg = f"`{file}` must hold {len(corpus)} rows, got none; save the corpus anew."
        raise ValueError(msg)
    return corpus, index


def _pickled(cls: type[FaissCorpus], corpus: Corpus, index: np.ndarray, binary: bool) -> FaissCorpus:
    indexed = object.__new__(cls)
    indexed._corpus = corpus
    indexed._index = faiss.deserialize_index_binary(index) if binary else faiss.deserialize_index(index)
    return indexed


def _is_binary(index: Any) -> bool:
    return isinstance(index, faiss.IndexBinary)


def _inverted(index: Any) -> Any:
    """Return the inverted file that an index is or has within, or None."""
    if _is_binary(index):
        return index if isinstance(index, faiss.IndexBinaryIVF) else None
    return faiss.try_extract_index_ivf(index)


def _tune(index: Any, parameters: str) -> None:
    parameters = _checks.text(parameters, "parameters")
    if _is_binary(index):
        if parameters:
            msg = (
                f"`parameters` must be empty for a binary index, got {parameters!r}; "
                "set it in place, for instance with `indexed.index.nprobe = 16`."
            )
            raise ValueError(msg)
        return
    with _explained(f"`parameters` must be settings of this index, got {parameters!r}"):
        faiss.ParameterSpace().set_index_parameters(index, parameters)


def _given(index: Any, dim: int | None, corpus: Corpus) -> Any:
    """Check an index that was made elsewhere, and return it."""
    if not isinstance(index, faiss.Index | faiss.IndexBinary):
        msg = f"`index` must be a faiss.Index or a factory string, got {type(index).__name__}; pass 'Flat' or 'HNSW32'."
        raise TypeError(msg)
    if dim is not None and _checks.integer(dim, "dim") != index.d:
        msg = f"`dim` must be the width of the index, {index.d}, got {dim}; leave it out."
        raise ValueError(msg)
    if index.d > corpus.dim:
        msg = f"`index` must hold at most the {corpus.dim} columns of the corpus, got {index.d}; make a narrower one."
        raise ValueError(msg)
    if not _is_binary(index) and (got := index.metric_type) not in _METRICS[corpus.metric]:
        names = {_IP: "inner products", _L2: "Euclidean distances"}
        kinds = " or ".join(names[kind] for kind in _METRICS[corpus.metric])
        msg = f"`index` must compute {kinds} for metric {corpus.metric!r}, got {names.get(got, got)}; remake it."
        raise ValueError(msg)
    if index.ntotal not in (0, n := len(corpus)):
        msg = f"`index` must be empty or hold the {n} rows of the corpus, got {index.ntotal} rows; pass an empty one."
        raise ValueError(msg)
    return index


def _as_faiss_reads(rows: Array, name: str) -> np.ndarray:
    """Return rows in float32, in which faiss computes; where that is less than they hold, their sizes must fit it.

    Codes stay what they are.
    """
    host = to_numpy(rows)
    if host.dtype == np.uint8:
        return np.ascontiguousarray(host)
    if host.dtype == np.float64 and host.size:
        largest = float(np.abs(host).max())
        if largest > _LARGEST or 0 < largest < 1 / _LARGEST:
            msg = (
                f"`{name}` must hold numbers within [{1 / _LARGEST:g}, {_LARGEST:g}], since faiss computes in float32, "
                f"got {largest:.1g} as the largest; divide embeddings and queries by one number."
            )
            raise ValueError(msg)
    return np.ascontiguousarray(host, np.float32)


@contextmanager
def _threads() -> Iterator[None]:
    """Let faiss use as many threads as our own searches do, and leave its setting as it was."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@contextmanager
def _explained(rule: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Turn an error of faiss into one that names the argument, without the place in faiss' source."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = re.sub(r"^Error in .*? at \S+:\d+: ", "", " ".join(str(error).split()))
        msg = f"{rule}; faiss says: {reason}"
        raise kind(msg) from error
