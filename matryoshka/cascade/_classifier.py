"""A cascade with its heads, prepared for repeated calls on one row or many rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from matryoshka import _checks
from matryoshka._array import namespace
from matryoshka._typing import Array, Head, NestedHead
from matryoshka.cascade import _classify
from matryoshka.cascade._confidence import PRECOMPUTED
from matryoshka.cascade._stages import Stage, Stages

__all__ = ["CascadeClassifier"]

_FEW_ROWS = 8
"""Up to so many rows are answered one by one on a CPU, which takes less time than a batch of them."""


class CascadeClassifier:
    """A cascade with the heads of its prefixes, prepared for repeated calls; made by `Cascade.classifier`.

    Attributes
    ----------
    dims : tuple of int
        The widths of the cascade.
    exit_dims : tuple of int
        The widths at which a row can exit.
    n_classes : int
        The number of classes.

    Notes
    -----
    It may be called from several threads at once, and pickled for other processes. The memory for the logits of a batch
    is kept for the next one: for each concurrent call at most three arrays (rows, classes), each of at most 2^24
    numbers.
    """

    def __init__(self, cascade: Any, heads: Sequence[Head] | Head | NestedHead, *, copy: bool) -> None:
        if cascade.confidence == PRECOMPUTED:
            msg = (
                f"`confidence` of a cascade that classifies must be one that follows from logits, got {PRECOMPUTED!r}; "
                "use `predict`, which takes yours."
            )
            raise ValueError(msg)
        rule = cascade.dims, cascade.thresholds, cascade.confidence, cascade.temperatures
        self._stages = Stages.of(heads, *rule, copy=copy)
        self._like = self._stages.stages[0].factor
        self._kind = _kind(self._like)
        self._spare: list[dict[str, Array]] = []
        self.dims: tuple[int, ...] = cascade.dims
        self.exit_dims = tuple(stage.dim for stage in self._stages.stages)
        self.n_classes = self._stages.n_classes

    def __call__(self, embeddings: Array, /) -> tuple[Array, Array]:
        """Answer rows, or a single row.

        Parameters
        ----------
        embeddings : array (n, dim) or (dim,), floating
            Same library, device and dtype as the heads.

        Returns
        -------
        labels, exit_dims : array (n,) or (), integer
            As from `Cascade.classify`.

        Raises
        ------
        TypeError, ValueError
            As from `Cascade.classify`.
        """
        if _kind(embeddings) != self._kind:
            self._check_kind(embeddings)
        if embeddings.ndim not in (1, 2):
            _checks.ndim(embeddings, "embeddings", 2, "(rows, dim), or (dim,)")
        if embeddings.shape[-1] != self.dims[-1]:
            _checks.width(embeddings, "embeddings", self.dims[-1])
        if self._stages.place != "numpy":
            embeddings = embeddings.detach()
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are reported at the end
            if embeddings.ndim == 1:
                return self._singly([embeddings], ())
            n_rows = embeddings.shape[0]
            if 1 <= n_rows <= (1 if self._stages.place == "device" else _FEW_ROWS):
                return self._singly(embeddings, (n_rows,))
            labels, exit_dims = self._many(embeddings)
        if self._stages.place != "device":
            _classify.check_answered(labels, self._stages.xp)
        return labels, exit_dims

    def _many(self, embeddings: Array) -> tuple[Array, Array]:
        """Answer rows (n, dim), in memory that no other thread uses meanwhile."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = {}
        found = _classify.classify_rows(self._stages, embeddings, memory)
        self._spare.append(memory)
        return found

    def _singly(self, rows: Iterable[Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Answer each of few rows (dim,) by itself; on a device there may be one."""
        found = [_classify.classify_row(self._stages, row) for row in rows]
        if self._stages.place == "device":
            ((label, exit_dim),) = found
            return label.reshape(shape), label.new_full(shape, exit_dim)
        labels, exit_dims = (np.array(column if shape else column[0]) for column in zip(*found, strict=True))
        if min(label for label, _ in found) < 0:
            _classify.check_answered(labels.reshape(-1), np)
        if self._stages.place == "numpy":
            return labels, exit_dims
        from_numpy = self._stages.xp.from_numpy
        return from_numpy(labels), from_numpy(exit_dims)

    def _check_kind(self, embeddings: Array) -> None:
        if type(embeddings) is np.ndarray and self._stages.place != "numpy":
            msg = (
                "`embeddings` and `heads` must come from one array library, got numpy and torch; convert the rows with "
                "torch.from_numpy, or give NumPy heads."
            )
            raise TypeError(msg)
        xp = namespace(("embeddings", embeddings), ("heads", self._like))
        _checks.same_dtype(xp, ("embeddings", embeddings), ("heads", self._like))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle or copy: without modules and memory, and with each weight once."""
        stages = [stage._replace(transposed=None) for stage in self._stages.stages]
        left_out: dict[str, Any] = {"_like": None, "_kind": None, "_spare": []}
        return self.__dict__ | {"_stages": self._stages._replace(stages=stages, xp=None), **left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        stages: list[Stage] = self._stages.stages
        self._like = stages[0].factor
        self._kind = _kind(self._like)
        xp = namespace(("heads", self._like))
        whole = [stage._replace(transposed=xp.matrix_transpose(stage.factor)) for stage in stages]
        self._stages = self._stages._replace(stages=whole, xp=xp)

    def __repr__(self) -> str:
        return f"CascadeClassifier(n_classes={self.n_classes}, dims={self.dims}, exit_dims={self.exit_dims})"


def _kind(array: Array) -> tuple[Any, ...]:
    """Return what rows must have in common with the heads, as far as it can be read fast."""
    return type(array), getattr(array, "dtype", None), getattr(array, "device", None), getattr(array, "layout", None)
