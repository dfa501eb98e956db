"""How many bytes a corpus holds, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matryoshka._typing import Array, Namespace
from matryoshka.retrieval._bounds import Bounds
from matryoshka.retrieval._codes import Code
from matryoshka.retrieval._prefix import Prefix
from matryoshka.retrieval._rows import Rows


@dataclass(frozen=True)
class CorpusBytes:
    """Bytes that a corpus holds, by part; `int` of it is the total.

    Attributes
    ----------
    rows : int
        Embeddings in memory, or on their device, as they were given.
    mapped : int
        Embeddings that stay where they are and are read from there: in a memory-mapped file or a data set. What the
        system caches of them it can take back.
    prefixes : int
        Blocks of the widths in `search_dims` below the full one, and the samples of them that set thresholds.
    lengths : int
        Numbers kept for each row: squared lengths, what products are multiplied by or added to, and what a prefix
        leaves.
    codes : int
        Rows in bits, with their means, and the samples of them that set thresholds.

    Examples
    --------
    >>> import numpy as np
    >>> from matryoshka import Corpus
    >>> Corpus(np.ones((1000, 64), np.float32), search_dims=(16,)).nbytes
    CorpusBytes(rows=256000, mapped=0, prefixes=64000, lengths=4000, codes=0)
    """

    rows: int
    mapped: int
    prefixes: int
    lengths: int
    codes: int = 0

    @property
    def memory(self) -> int:
        """All but what is mapped."""
        return self.rows + self.prefixes + self.lengths + self.codes

    @property
    def total(self) -> int:
        """All parts together."""
        return self.memory + self.mapped

    def __int__(self) -> int:
        return self.total


def count(rows: Rows, prefixes: Iterable[Prefix], codes: Iterable[Code], bounds: Iterable[Bounds]) -> CorpusBytes:
    """Count what rows, their prefixes, codes and bounds hold, from shapes and dtypes alone."""
    prefixes, codes, bounds = tuple(prefixes), tuple(codes), tuple(bounds)  # searches on other threads may add to them
    samples = [sample for prefix in prefixes if (sample := prefix.drawn) is not None]
    return CorpusBytes(
        rows=rows.nbytes if rows.in_memory else 0,
        mapped=0 if rows.in_memory else rows.nbytes,
        prefixes=sum(prefix.rows.nbytes for prefix in prefixes if prefix.dim < rows.shape[1])
        + sum(sample.rows.nbytes for sample in samples)
        + sum(_size(array, rows.xp) for sample in samples for array in (sample.factor, sample.offset)),
        lengths=_size(rows.squares, rows.xp)
        + _size(rows.scale, rows.xp)
        + sum(_size(array, rows.xp) for prefix in prefixes for array in (prefix.factor, prefix.offset))
        + sum(bound.nbytes for bound in bounds),
        codes=sum(code.nbytes for code in codes),
    )


def _size(array: Array | None, xp: Namespace) -> int:
    return 0 if array is None else math.prod(array.shape) * (xp.finfo(array.dtype).bits // 8)
