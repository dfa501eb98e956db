"""Losses for `compile`: cross-entropy of stacked logits, and any loss between embeddings."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from matryoshka import _checks
from matryoshka._hooks.formula import checked_options
from matryoshka.keras._base import Nested, counting, logits_and_targets, mean_over_replicas, row_weights, xp
from matryoshka.losses import mrl_logits_cross_entropy, nested_loss
from matryoshka.nesting import NestingLike


@keras.saving.register_keras_serializable(package="matryoshka")
class MRLCrossEntropy(Nested, keras.losses.Loss):
    """Cross-entropy summed over prefixes, of the stacked logits of an `MRLHead`.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefixes in the order of the logits; only their number and importances enter.
    label_smoothing, ignore_index
        As for `mrl_logits_cross_entropy`.
    reduction : {"sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none"} or None
        As everywhere in Keras: "mean" is "sum_over_batch_size", sum(w * loss) / n over the n rows that count, and
        "mean_with_sample_weight" is sum(w * loss) / sum(w).
    name, dtype
        As for every Keras loss.

    Notes
    -----
    Called as ``loss(y_true, y_pred, sample_weight=None)`` with logits (batch, ..., G, num_classes) and integer class
    ids (batch, ...) or (batch, ..., 1), or floating distributions (batch, ..., num_classes): one-hot rows, mixup, those
    of a teacher. Keras itself casts labels to floating point before a loss sees them, which merges ids above 2^24;
    here they stay integers. Sums over half-precision logits are formed in float32.

    Examples
    --------
    >>> from matryoshka.keras import MRLCrossEntropy
    >>> loss = MRLCrossEntropy((2, 4), reduction="none")
    >>> tuple(loss(keras.ops.array([0, 1, 2]), keras.ops.zeros((3, 2, 5))).shape)
    (3,)
    """

    def __init__(
        self,
        nesting: NestingLike,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "mrl_cross_entropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self._options = checked_options(label_smoothing=label_smoothing, ignore_index=ignore_index)
        self._set(nesting, **self._options)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the loss of class ids (batch, ...) or distributions and logits (batch, ..., G, num_classes)."""
        logits, labels = logits_and_targets(y_pred, y_true, self.nesting)
        weights = row_weights(logits, y_pred, sample_weight)
        if self.reduction in (None, "none"):
            return self._core(labels, logits, weights, "none")
        if self.reduction == "sum":
            return self._core(labels, logits, weights, "sum")
        if sample_weight is None or self.reduction == "mean_with_sample_weight":
            total = self._core(labels, logits, weights, "mean")
        else:
            counted = counting(logits, labels, row_weights(logits, y_pred, None), self._options["ignore_index"])
            total = ops.divide_no_nan(self._core(labels, logits, weights, "sum"), ops.sum(counted))
        return mean_over_replicas(total)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each row (batch, ...)."""
        logits, labels = logits_and_targets(y_pred, y_true, self.nesting)
        return self._core(labels, logits, None, "none")

    def _core(self, labels: Any, logits: Any, weights: Any, reduction: str) -> Any:
        options = {"sample_weight": weights, "reduction": reduction, **self._options}
        return mrl_logits_cross_entropy(ops.moveaxis(logits, -2, 0), labels, nesting=self.nesting, xp=xp, **options)


@keras.saving.register_keras_serializable(package="matryoshka")
class NestedLoss(Nested, keras.losses.Loss):
    """Any loss between embeddings, summed over prefixes: y_true and y_pred are both cut.

    Parameters
    ----------
    loss : keras.losses.Loss, callable or str
        Called on prefixes of y_true and y_pred, for each width; of a Keras loss, what it gives for each row.
    nesting : Nesting or sequence of int
        Prefix widths and importances; the last width is that of the embeddings.
    normalize : bool, default False
        Give every prefix unit length.
    reduction, name, dtype
        As for every Keras loss.

    Examples
    --------
    >>> from matryoshka.keras import NestedLoss
    >>> distill = NestedLoss("mean_squared_error", (2, 4), normalize=True)
    >>> float(distill(keras.ops.eye(4), 3 * keras.ops.eye(4)))
    0.0
    """

    def __init__(
        self,
        loss: Any,
        nesting: NestingLike,
        *,
        normalize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "nested_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.loss = keras.losses.get(loss)
        _checks.function(self.loss, "loss")
        self.normalize = normalize = _checks.flag(normalize, "normalize")
        self._set(nesting, normalize=normalize)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` makes an equal object of."""
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return the object that `get_config` described."""
        return super().from_config({**config, "loss": keras.losses.deserialize(config["loss"])})

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each row of embeddings (batch, dim)."""
        loss = self.loss.call if isinstance(self.loss, keras.losses.Loss) else self.loss
        return nested_loss(loss, y_true, y_pred, nesting=self.nesting, normalize=self.normalize, xp=xp)
