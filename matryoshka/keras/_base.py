"""What Keras layers, losses and metrics share: the namespace of the backend, configuration, targets, row weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from matryoshka import _checks
from matryoshka._array import as_indices, namespace
from matryoshka._optional import command, require
from matryoshka.nesting import Nesting, NestingLike, as_nesting

try:
    require("keras", extra="keras", purpose="`matryoshka.keras`")
except ModuleNotFoundError as error:
    extra = {"tensorflow": "keras", "jax": "jax", "torch": "torch"}.get(error.name or "")
    if extra is None:
        raise
    msg = (
        f"Keras is set to the backend {error.name}, which is not installed; "
        f"run: {command(extra)}, or name another one in the environment variable KERAS_BACKEND"
    )
    raise ImportError(msg) from error

import keras
from keras import ops

__all__ = ["Nested", "counting", "for_each_row", "is_about_shapes", "is_distribution", "logits_and_targets"]
__all__ += ["mean_over_replicas", "row_weights", "targets", "xp"]

if keras.backend.backend() == "tensorflow":
    from matryoshka import _tensorflow as xp
else:
    xp = namespace(("example", ops.zeros(())))

# Keras tensors have a shape and the name of a dtype, but no values.
_SYMBOLIC = SimpleNamespace(isdtype=lambda dtype, kind: keras.backend.is_int_dtype(dtype))


class Nested:
    """A nesting and options, which are what the configuration of a Keras object holds besides Keras' own."""

    nesting: Nesting

    def _set(self, nesting: NestingLike, **options: Any) -> None:
        self.nesting, self._config = as_nesting(nesting), options

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` makes an equal object of."""
        return {**super().get_config(), "nesting": self.nesting.to_json(), **self._config}  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return the object that `get_config` described."""
        return cls(**{**config, "nesting": Nesting.from_json(config["nesting"])})


class _Given(keras.losses.Loss):
    """What Keras makes of numbers by masks, sample weights, reductions and replicas, without any loss of its own."""

    def __init__(self, reduction: str | None, dtype: str) -> None:
        super().__init__(name="given", reduction=reduction, dtype=dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return y_true


_WEIGHTS = _Given(None, "float32")


def targets(labels: Any, name: str, rows: tuple[Any, ...], n_classes: int) -> Any:
    """Return what the rows shall find: integer class ids in their shape, or floating distributions (*rows, n_classes).

    The kind of the dtype decides. Class ids may have a last axis of length 1; floating numbers are never taken for ids.
    """
    symbolic = isinstance(labels, keras.KerasTensor)
    labels = labels if symbolic else ops.convert_to_tensor(labels)
    trailing = labels.shape[-1] if len(labels.shape) == len(rows) + 1 else None
    if is_distribution(labels) and trailing is not None and (trailing != 1 or n_classes == 1):
        _checks.shape(labels, name, (*rows, n_classes), "(..., num_classes)")
        return ops.zeros_like(labels[..., 0], "int32") if is_about_shapes() else labels
    if trailing == 1:
        labels = ops.squeeze(labels, -1)
    _checks.labels(labels, name, rows, _SYMBOLIC if symbolic else xp)
    if symbolic:
        return labels
    labels = as_indices(labels, xp)
    return ops.zeros_like(labels) if is_about_shapes() else labels


def is_about_shapes() -> bool:
    """Tell whether Keras only asks for shapes: PyTorch may give it tensors full of ones, which are no labels then."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def is_distribution(labels: Any) -> bool:
    """Tell whether labels are floating numbers."""
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype)))


def logits_and_targets(y_pred: Any, y_true: Any, nesting: Nesting) -> tuple[Any, Any]:
    """Return logits (batch, ..., G, num_classes), and what their rows shall find as `targets` does, checked."""
    logits, axes = ops.convert_to_tensor(y_pred), "(batch, ..., G, num_classes)"
    _checks.min_ndim(logits, "y_pred", 3, axes)
    rows = tuple(logits.shape[:-2])
    _checks.shape(logits, "y_pred", (*rows, len(nesting), logits.shape[-1]), axes)
    return logits, targets(y_true, "y_true", rows, logits.shape[-1])


def row_weights(logits: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Return what the mask of `y_pred` and `sample_weight` make the weight of each row; None for all ones."""
    ones = _ones(logits)
    weights = _WEIGHTS(ones, y_pred, sample_weight)
    return None if weights is ones else weights


def counting(logits: Any, labels: Any, weights: Any, ignore_index: int | None) -> Any:
    """Return the weights of rows, those of ignored rows 0; None stands for ones."""
    weights = _ones(logits) if weights is None else weights
    if ignore_index is None or is_distribution(labels):
        return weights
    return ops.where(labels == ignore_index, ops.zeros_like(weights), weights)


def _ones(logits: Any) -> Any:
    return ops.ones_like(logits[..., 0, 0], dtype="float32")


def mean_over_replicas(loss: Any) -> Any:
    """Return a mean as Keras wants it: divided by the number of replicas that will be summed."""
    loss = ops.reshape(loss, (1,))
    return _Given("mean", keras.backend.standardize_dtype(loss.dtype))(loss, loss)


def for_each_row(parts: Any, rows: Any) -> Any:
    """Return the losses of the prefixes (G,) once for each entry of the batch, (batch, G)."""
    return ops.broadcast_to(parts, (ops.shape(rows)[0], parts.shape[0]))
