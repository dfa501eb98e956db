"""Classify embeddings stage by stage: only rows that are still undecided meet the next head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from matryoshka._algebra import write_product
from matryoshka._array import arange, count_true, empty, is_numpy_array
from matryoshka._typing import Array, Namespace
from matryoshka.cascade._confidence import MEASURES, mass_of_logits
from matryoshka.cascade._stages import Stage, Stages, contiguous

_BLOCK_ENTRIES = 2**20
_ROWS_PER_COLUMN = 4

_LARGEST_SPACE = 2**24
"""Size of the largest array that is kept from one call to the next, in numbers."""

_LARGEST_EXPONENT = 60.0
"""Well below where exponentials in float32, and sums of them, overflow or vanish."""


def classify_row(stages: Stages, row: Array) -> tuple[Any, int]:
    """Return the answer to one row (dim,), an int or on a device an array (), and the width at which it exits.

    If the logits are not finite, the answer is -1.
    """
    xp, logits = stages.xp, None
    *before, last = stages.stages
    for stage in before:
        logits = _row_logits(stages, stage, row, logits)
        if _is_sure(logits, stage, stages):
            break
    else:
        stage, logits = last, _row_logits(stages, last, row, logits)
    if stages.place == "device":
        label = xp.argmax(logits)
        return xp.where(xp.isfinite(logits[label]), label, xp.full_like(label, -1)), stage.dim
    host = logits if stages.place == "numpy" else logits.numpy()
    label = int(host.argmax())
    return label if math.isfinite(host[label]) else -1, stage.dim


def _row_logits(stages: Stages, stage: Stage, row: Array, sums: Array | None) -> Array:
    """Return the logits (c,) of one row, added to the `sums` of the stage before if the stage continues them."""
    part, total = row[stage.columns], sums if stage.columns.start else stage.bias
    if stages.place == "numpy":
        product = np.dot if stage.factor.flags.forc else np.matmul  # faster, but would copy a few columns of wide rows
        logits = product(part, stage.factor).astype(stages.dtype, copy=False)
    elif part.dtype != stages.dtype or total is None:
        logits = stages.xp.mv(stage.transposed, part).to(stages.dtype)
    else:
        return stages.xp.addmv(total, stage.transposed, part)
    return logits if total is None else logits + total


def _is_sure(logits: Array, stage: Stage, stages: Stages) -> bool:
    """Tell whether one row (c,) exits, as `_exceed` does and in the same arithmetic, but by few calls."""
    if stages.measure == "entropy":
        return bool(_exceed(logits[None, :], stage, stages.measure, None, stages.xp)[0])
    confidence = (_numpy_confidence if stages.place == "numpy" else _torch_confidence)(logits, stage, stages)
    return min(float(confidence), 1.0) > stage.threshold


def _numpy_confidence(logits: np.ndarray, stage: Stage, stages: Stages) -> np.floating[Any]:
    """Return the largest probability of one row (c,), or its lead over the next."""
    best = logits.argmax()  # several times as fast as its max
    mass = logits - logits[best]
    if stage.temperature != 1.0:
        mass /= stage.temperature
    largest, total = np.exp(mass, out=mass)[best], mass.sum()
    if stages.measure == "margin":
        mass[best] = 0.0
        largest -= mass[mass.argmax()]
    found: np.floating[Any] = largest / total
    return found


def _torch_confidence(logits: Array, stage: Stage, stages: Stages) -> Any:
    """Return the largest probability of one row (c,), or its lead over the next."""
    mass = (logits if stage.temperature == 1.0 else logits / stage.temperature).softmax(-1)
    mass = mass.numpy() if stages.place == "host" else mass
    largest = mass.max()
    if stages.measure == "margin":
        mass[mass.argmax()] = 0.0
        largest = largest - mass.max()
    return largest


def _exceed(logits: Array, stage: Stage, measure: str, scratch: Array | None, xp: Namespace) -> Array:
    """Tell which rows (n, c) exit, by the comparison that `predict` makes."""
    confidence = MEASURES[measure](mass_of_logits(logits, stage.temperature, xp, out=scratch), xp)
    return xp.clip(confidence, 0.0, 1.0) > stage.threshold


def _are_sure(logits: Array, answers: Array, stage: Stage, stages: Stages, scratch: Array) -> Array:
    """Tell which rows (n, c) exit, as `_exceed` does, but faster, given the class (n,) of each row's largest logit.

    In NumPy, exponentials need no shift unless logits are large, and a product with ones adds them up faster than a
    sum. The error is at most n_classes roundings of the sum, and two hundred for arguments of up to 60 and the shift
    that `_exceed` makes, relative to the largest probability; closer calls than that are left to `_exceed`. The
    exponentials of half of the classes already show of many rows that they do not exit.
    """
    if stages.place != "numpy" or stages.measure == "entropy":
        return _exceed(logits, stage, stages.measure, scratch, stages.xp)
    best = np.arange(len(logits)), answers
    largest = logits[best]
    if not np.abs(largest).max() <= _LARGEST_EXPONENT * stage.temperature:
        return _exceed(logits, stage, stages.measure, scratch, stages.xp)
    lead = peak = np.exp(largest / stage.temperature)
    if stages.measure == "margin":
        logits[best] = -np.inf
        lead = peak - np.exp(logits.max(-1) / stage.temperature)
        logits[best] = largest
    scaled = logits if stage.temperature == 1.0 else np.divide(logits, stage.temperature, out=scratch)
    half, ones = logits.shape[1] // 2, np.ones(logits.shape[1], logits.dtype)
    error = (logits.shape[1] + 200) * np.finfo(logits.dtype).eps * peak
    total = np.exp(scaled[:, :half], out=scratch[:, :half]) @ ones[:half]
    may_exit = np.flatnonzero(~(lead + error < total * stage.threshold))
    rest = scaled[may_exit, half:]
    total[may_exit] += np.exp(rest, out=rest) @ ones[half:]
    excess = lead - total * stage.threshold
    close = np.flatnonzero(~(np.abs(excess) > error))
    sure = excess > 0.0
    sure[close] = _exceed(logits[close], stage, stages.measure, None, stages.xp)
    return sure


def classify_rows(stages: Stages, embeddings: Array, memory: dict[str, Array]) -> tuple[Array, Array]:
    """Return the answers to rows (n, dim), and the widths at which they exit.

    A row whose logits are not finite reaches the last width and gets the label -1. `memory` holds arrays for logits
    from earlier calls; it may not be used by two calls at once, and is updated for the next one.
    """
    xp, blocks = stages.xp, _Blocks(stages, embeddings, memory)
    rows = arange(embeddings.shape[0], like=embeddings, xp=xp)
    labels, exit_dims = xp.zeros_like(rows), xp.zeros_like(rows)
    for stage, following in itertools.pairwise(stages.stages):
        undecided = [rows[:0]]
        for block, logits in blocks.of(stage, rows):
            answers, scratch = _argmax(logits, stages), blocks.scratch[: block.shape[0], :]
            sure = _are_sure(logits, answers, stage, stages, scratch)
            done, left = xp.nonzero(sure)[0], xp.nonzero(~sure)[0]
            labels[block[done]] = answers[done]
            exit_dims[block[done]] = stage.dim
            undecided.append(block[left])
            if following.columns.start:
                blocks.keep(logits, left)
        rows = xp.concat(undecided)
    for block, logits in blocks.of(stages.stages[-1], rows):
        finite = xp.isfinite(xp.max(logits, axis=-1))
        labels[block] = xp.where(finite, _argmax(logits, stages), xp.full_like(block, -1))
        exit_dims[block] = stages.stages[-1].dim
    return labels, exit_dims


def check_answered(labels: Array, xp: Namespace) -> None:
    """Check that every row has an answer, which -1 is not; this reads the labels."""
    if count := count_true(labels < 0, xp):
        first = [int(row) for row in xp.nonzero(labels < 0)[0][:5]]
        msg = (
            f"`embeddings` must have finite logits, got NaN or infinity in {count} of {labels.shape[0]} rows "
            f"(first: {', '.join(map(str, first))}); remove or repair these rows, or `heads`."
        )
        raise ValueError(msg)


class _Blocks:
    """The logits of undecided rows, block after block, in memory that is reused; those to be continued are kept.

    Fresh memory may cost more time than a product, because the system clears it. Kept logits are packed in the order of
    their rows. Blocks are read and kept in that order, so that writing never overtakes reading.
    """

    def __init__(self, stages: Stages, embeddings: Array, memory: dict[str, Array]) -> None:
        self.stages, self.embeddings, self.memory, self.xp = stages, embeddings, memory, stages.xp
        n_rows = int(embeddings.shape[0])
        widest = min(n_rows, max(map(self._block_rows, stages.stages)))
        self.logits, self.scratch = (self._space(name, widest) for name in ("logits", "scratch"))
        tied = any(stage.columns.start for stage in stages.stages)
        self.sums, self.n_kept = self._space("sums", n_rows if tied else 0), 0

    def _space(self, name: str, n_rows: int) -> Array:
        """Return an uninitialised array for the logits of at least this many rows."""
        found = self.memory.get(name)
        if found is None or found.shape[0] < n_rows:
            found = self._fresh((n_rows, self.stages.n_classes))
            if n_rows * self.stages.n_classes <= _LARGEST_SPACE:
                self.memory[name] = found
        return found

    def _fresh(self, shape: tuple[int, int]) -> Array:
        """Return new memory for logits, which later calls can write to."""
        if self.stages.place == "numpy":
            return np.empty(shape, self.stages.dtype)
        dtype, xp = self.stages.dtype, self.xp
        with xp.inference_mode(mode=False):  # a tensor made in this mode could not be written to outside it
            if self.stages.place == "host":  # NumPy asks the system for huge pages
                return xp.from_numpy(np.empty(shape, str(dtype).rpartition(".")[2]))
            return empty(shape, like=self.embeddings, dtype=dtype, xp=xp)

    def of(self, stage: Stage, rows: Array) -> Iterator[tuple[Array, Array]]:
        """Yield the rows in blocks, each with its logits; the rows must be those that were kept, if any were."""
        size, factor = self._block_rows(stage), stage.factor
        if rows.shape[0] > size and not _is_contiguous(factor):
            factor = contiguous(factor, self.xp)  # read several times, and slowly if it is a few columns of wide rows
        prefix = self.embeddings[:, stage.columns]
        self.n_kept = 0
        for start in range(0, rows.shape[0], size):
            block = rows[start : start + size]
            logits = self.logits[: block.shape[0], :]
            write_product(logits, _rows(prefix, block, self.xp), factor, keep=False, xp=self.xp)
            if stage.columns.start:
                logits += self.sums[start : start + block.shape[0], :]
            elif stage.bias is not None:
                logits += stage.bias
            yield block, logits

    def keep(self, logits: Array, left: Array) -> None:
        """Keep the logits of the rows `left`, after those kept before."""
        stop = self.n_kept + left.shape[0]
        target = self.sums[self.n_kept : stop, :]
        if is_numpy_array(logits):
            np.take(logits, left, axis=0, out=target, mode="clip")
        else:
            self.xp.index_select(logits, 0, left, out=target)
        self.n_kept = stop

    def _block_rows(self, stage: Stage) -> int:
        """Return how many rows to compute at a time: on a CPU, so few that their logits stay in the cache while read.

        But not so few that a product would spend most of its time on reading the weight.
        """
        if self.stages.place == "device":
            return max(1, int(self.embeddings.shape[0]))
        width = stage.columns.stop - stage.columns.start
        return max(1, _BLOCK_ENTRIES // self.stages.n_classes, _ROWS_PER_COLUMN * int(width))


def _is_contiguous(factor: Array) -> bool:
    return bool(factor.flags.c_contiguous if is_numpy_array(factor) else factor.is_contiguous())


def _rows(array: Array, index: Array, xp: Namespace) -> Array:
    """Select rows in the fastest way of each library: NumPy's `take` would first copy the whole view."""
    return array[index] if is_numpy_array(array) else xp.take(array, index, axis=0)


def _argmax(logits: Array, stages: Stages) -> Array:
    """Return the class (n,) with the largest of the logits (n, c)."""
    if stages.place != "host":
        return logits.argmax(-1)
    return stages.xp.from_numpy(logits.numpy().argmax(-1))  # that of PyTorch takes ten times as long
