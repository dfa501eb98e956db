"""Classify embeddings stage by stage: only rows still undecided meet the next head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from matryoshka import _checks
from matryoshka._algebra import add_product
from matryoshka._array import (
    accumulator_dtype,
    arange,
    count_true,
    empty,
    is_array,
    is_numpy_array,
    is_remote,
    is_torch_array,
    namespace,
)
from matryoshka._typing import Array, Head, Namespace
from matryoshka.cascade._confidence import MEASURES, Measure, mass_of_logits
from matryoshka.cascade._paths import FULL_WIDTH

_BLOCK_ENTRIES = 2**20
_ROWS_PER_COLUMN = 4


def classify(
    embeddings: Array,
    heads: Sequence[Head] | Head,
    dims: tuple[int, ...],
    thresholds: Sequence[float],
    measure: str,
    temperatures: Sequence[float] | None,
) -> tuple[Array, Array]:
    """Return each row's answer and the width it exits at.

    A prefix at which no row can exit is passed over: its columns join those of the next one.
    """
    last = len(thresholds)
    visited = [i for i in range(last) if thresholds[i] < FULL_WIDTH]
    linear = _Linear(embeddings, heads, dims, [*visited, last])
    with np.errstate(invalid="ignore", over="ignore"):  # a row that is not finite is spoken of in the end
        labels, exit_dims = _route(linear, dims, thresholds, MEASURES[measure], temperatures, visited)
    if not is_remote(labels):
        _check_answered(labels, linear.xp)
    return labels, exit_dims


def _route(
    linear: _Linear,
    dims: tuple[int, ...],
    thresholds: Sequence[float],
    confidence_of: Measure,
    temperatures: Sequence[float] | None,
    visited: Sequence[int],
) -> tuple[Array, Array]:
    """Take the rows from prefix to prefix; one without finite logits reaches the last and gets the label -1."""
    xp, last = linear.xp, len(thresholds)
    rows = arange(linear.embeddings.shape[0], like=linear.embeddings, xp=xp)
    labels, exit_dims = xp.zeros_like(rows), xp.zeros_like(rows)
    for i in visited:
        temperature = 1.0 if temperatures is None else temperatures[i]
        undecided = [rows[:0]]
        for block, logits in linear.blocks(i, rows):
            sure = confidence_of(mass_of_logits(logits, temperature, xp), xp) > thresholds[i]
            done, left = xp.nonzero(sure)[0], xp.nonzero(~sure)[0]
            labels[block[done]] = xp.argmax(_rows(logits, done, xp), axis=-1)
            exit_dims[block[done]] = dims[i]
            linear.keep(logits, left)
            undecided.append(block[left])
        rows = xp.concat(undecided)
    for block, logits in linear.blocks(last, rows):
        finite = xp.isfinite(xp.max(logits, axis=-1))
        labels[block] = xp.where(finite, xp.argmax(logits, axis=-1), xp.full_like(block, -1))
        exit_dims[block] = dims[last]
    return labels, exit_dims


def _check_answered(labels: Array, xp: Namespace) -> None:
    """Check that no row is left without an answer, which -1 stands for: it reads the labels."""
    if count := count_true(labels < 0, xp):
        first = [int(row) for row in xp.nonzero(labels < 0)[0][:5]]
        msg = (
            f"`embeddings` must have finite logits, got NaN or infinity in {count} of {labels.shape[0]} rows "
            f"(first: {', '.join(map(str, first))}); remove or repair these rows, or `heads`."
        )
        raise ValueError(msg)


class _Linear:
    """The heads of a ladder. Of a tied one it keeps the logits of undecided rows, packed in their order.

    Rows are read block after block, and the kept ones written behind each other, so never past what was read.
    """

    def __init__(
        self, embeddings: Array, heads: Sequence[Head] | Head, dims: tuple[int, ...], visited: Sequence[int]
    ) -> None:
        self.tied = isinstance(heads, list | tuple) and len(heads) == 2 and is_array(heads[0])
        pairs, self.xp = _checked(embeddings, [heads] if self.tied else heads, dims, tied=self.tied)
        if is_torch_array(embeddings):
            embeddings = embeddings.detach()
            pairs = [(weight.detach(), None if bias is None else bias.detach()) for weight, bias in pairs]
        self.embeddings, self.pairs = embeddings, pairs
        self.dtype = accumulator_dtype(embeddings, self.xp)
        self.n_classes = int(pairs[0][0].shape[0])
        starts = [0, *(dims[i] for i in visited)] if self.tied else [0] * len(visited)
        self.columns = {i: slice(start, dims[i]) for i, start in zip(visited, starts, strict=False)}
        self.sums: Array | None = None
        self.n_kept = 0

    def blocks(self, i: int, rows: Array) -> Iterator[tuple[Array, Array]]:
        """Yield the rows in blocks, each with its logits of prefix i; for a tied head rows must be the kept ones."""
        size, columns, sums = self._block_rows(i), self.columns[i], self.sums
        weight, bias = self.pairs[0 if self.tied else i]
        weight = weight[:, columns]
        if rows.shape[0] > size:
            weight = self.xp.asarray(weight, copy=True)  # read several times: narrow columns of wide rows are slow
        factor, prefix = self.xp.matrix_transpose(weight), self.embeddings[:, columns]
        self.n_kept = 0
        for start in range(0, rows.shape[0], size):
            block = rows[start : start + size]
            total = None if sums is None else sums[start : start + block.shape[0]]
            logits = add_product(total, _rows(prefix, block, self.xp), factor, dtype=self.dtype, xp=self.xp)
            if total is None and bias is not None:
                logits += bias
            yield block, logits

    def keep(self, logits: Array, left: Array) -> None:
        """Keep the logits of the rows that are left, if later logits build on them."""
        if not self.tied:
            return
        if self.sums is None:
            shape = (self.embeddings.shape[0], self.n_classes)
            self.sums = empty(shape, like=logits, dtype=self.dtype, xp=self.xp)
        stop = self.n_kept + left.shape[0]
        self.sums[self.n_kept : stop] = _rows(logits, left, self.xp)
        self.n_kept = stop

    def _block_rows(self, i: int) -> int:
        """Return how many rows to take together: on a CPU, so few that their logits stay in the cache while read.

        But not so few that a product would spend its time on reading the weight.
        """
        if is_torch_array(self.embeddings) and self.embeddings.device.type != "cpu":
            return max(1, int(self.embeddings.shape[0]))
        width = self.columns[i].stop - self.columns[i].start
        return max(1, _BLOCK_ENTRIES // self.n_classes, _ROWS_PER_COLUMN * width)


def _rows(array: Array, index: Array, xp: Namespace) -> Array:
    """Select rows, each library's fastest way: NumPy's take would copy a view whole."""
    return array[index] if is_numpy_array(array) else xp.take(array, index, axis=0)


def _checked(embeddings: Array, heads: object, dims: tuple[int, ...], *, tied: bool) -> tuple[list[Head], Namespace]:
    """Check the heads against the ladder and the embeddings."""
    pairs = _checks.heads(heads, 1 if tied else len(dims))  # type: ignore[arg-type]
    names = ["heads" if tied else f"heads[{i}]" for i in range(len(pairs))]
    required = [
        ("embeddings", embeddings),
        *((f"{name}[0]", weight) for name, (weight, _) in zip(names, pairs, strict=True)),
    ]
    optional = [(f"{name}[1]", bias) for name, (_, bias) in zip(names, pairs, strict=True)]
    xp = namespace(*required, optional=optional)
    if not (is_numpy_array(embeddings) or is_torch_array(embeddings)):
        msg = f"`embeddings` must be a NumPy or PyTorch array here, got {type(embeddings).__name__}; use `predict`."
        raise TypeError(msg)
    _checks.same_dtype(xp, *required, *optional)
    _checks.ndim(embeddings, "embeddings", 2, "(rows, dim)")
    _checks.width(embeddings, "embeddings", dims[-1])
    n_classes = _checks.n_classes(pairs[0][0], f"{names[0]}[0]")
    for name, (weight, bias), dim in zip(names, pairs, (dims[-1],) if tied else dims, strict=True):
        _checks.shape(weight, f"{name}[0]", (n_classes, dim), "(n_classes, width)")
        _checks.bias(bias, f"{name}[1]", n_classes)
    return list(pairs), xp
