"""Metrics of every prefix for the logs of `fit`."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from matryoshka._hooks.formula import checked_options
from matryoshka.keras._base import Nested, counting, is_distribution, logits_and_targets, row_weights, xp
from matryoshka.losses import mrl_logits_cross_entropy
from matryoshka.nesting import NestingLike


class _PrefixMean(Nested, keras.metrics.Metric):
    """The mean over rows of one number for each prefix."""

    def __init__(self, nesting: NestingLike, *, name: str, dtype: Any = None, **options: Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self._options = checked_options(**options)
        self._set(nesting, **self._options)
        self._total = self.add_variable(shape=(len(self.nesting),), initializer="zeros", name="total")
        self._weight = self.add_variable(shape=(), initializer="zeros", name="weight")

    def result(self) -> dict[str, Any]:
        """Return the mean of each prefix under the name of the metric and the width."""
        means = ops.divide_no_nan(self._total, self._weight)
        return {f"{self.name}_{width}": means[g] for g, width in enumerate(self.nesting)}

    def _add(self, total: Any, weight: Any) -> None:
        self._total.assign_add(ops.cast(total, self._total.dtype))
        self._weight.assign_add(ops.cast(weight, self._weight.dtype))


@keras.saving.register_keras_serializable(package="matryoshka")
class PrefixAccuracy(_PrefixMean):
    """Top-1 accuracy of each prefix: accuracy_8, accuracy_16, … in the logs.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefixes in the order of the logits.
    ignore_index : int, optional
        Rows with this label count nothing.
    name, dtype
        As for every Keras metric.

    Notes
    -----
    A label out of range makes it NaN: a row of weight 0, or one that is masked, may have any.

    Examples
    --------
    >>> from matryoshka.keras import PrefixAccuracy
    >>> accuracy = PrefixAccuracy((2, 4))
    >>> logits = keras.ops.array([[[0.0, 1.0], [1.0, 0.0]]])  # one row, two prefixes, two classes
    >>> {name: float(value) for name, value in accuracy(keras.ops.array([0]), logits).items()}
    {'accuracy_2': 0.0, 'accuracy_4': 1.0}
    """

    def __init__(
        self, nesting: NestingLike, *, ignore_index: int | None = None, name: str = "accuracy", dtype: Any = None
    ) -> None:
        super().__init__(nesting, name=name, dtype=dtype, ignore_index=ignore_index)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add class ids (batch, ...), or distributions, of which the largest share is right, and logits."""
        logits, labels = logits_and_targets(y_pred, y_true, self.nesting)
        weights = row_weights(logits, y_pred, sample_weight)
        weights = counting(logits, labels, weights, self._options["ignore_index"])
        labels = ops.argmax(labels, axis=-1) if is_distribution(labels) else labels
        outside = (labels < 0) | (labels >= logits.shape[-1])
        weights = ops.where(outside & (weights != 0.0), weights * math.nan, weights)
        found = ops.argmax(logits, axis=-1)
        right = ops.cast(found == ops.cast(labels, found.dtype)[..., None], weights.dtype)
        rows = ops.reshape(right * weights[..., None], (-1, len(self.nesting)))
        self._add(ops.sum(rows, axis=0), ops.sum(weights))


@keras.saving.register_keras_serializable(package="matryoshka")
class PrefixLoss(_PrefixMean):
    """Cross-entropy of each prefix, not weighted by importance: prefix_loss_8, prefix_loss_16, … in the logs.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefixes in the order of the logits.
    label_smoothing, ignore_index
        As for `MRLCrossEntropy`.
    name, dtype
        As for every Keras metric.

    Notes
    -----
    Works on logits with class ids as `MRLCrossEntropy` does, or, where there are no class ids, on the losses that
    `MRLHead` and `InfoNCE` return with ``return_parts=True``, which spares a second look at the logits.

    Examples
    --------
    >>> from matryoshka.keras import PrefixLoss
    >>> sorted(PrefixLoss((2, 4))(keras.ops.array([0]), keras.ops.zeros((1, 2, 5))))
    ['prefix_loss_2', 'prefix_loss_4']
    """

    def __init__(
        self,
        nesting: NestingLike,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        name: str = "prefix_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(nesting, name=name, dtype=dtype, label_smoothing=label_smoothing, ignore_index=ignore_index)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add class ids (batch, ...) or distributions and logits, or None and losses (batch, G)."""
        if y_true is None:
            self._add(ops.sum(y_pred, axis=0), ops.shape(y_pred)[0])
            return
        logits, labels = logits_and_targets(y_pred, y_true, self.nesting)
        weights = row_weights(logits, y_pred, sample_weight)
        options = {"sample_weight": weights, "reduction": "sum", "return_parts": True, "xp": xp, **self._options}
        by_prefix = ops.moveaxis(ops.stop_gradient(logits), -2, 0)
        _, parts = mrl_logits_cross_entropy(by_prefix, labels, nesting=self.nesting, **options)
        self._add(parts, ops.sum(counting(logits, labels, weights, self._options["ignore_index"])))
