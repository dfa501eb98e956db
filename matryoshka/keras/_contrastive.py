"""A layer that adds InfoNCE."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from matryoshka import _checks
from matryoshka._hooks.formula import checked_options
from matryoshka.keras._base import Nested, for_each_row, is_about_shapes, xp
from matryoshka.losses import info_nce
from matryoshka.nesting import NestingLike


@keras.saving.register_keras_serializable(package="matryoshka")
class InfoNCE(Nested, keras.layers.Layer):
    """A layer that adds InfoNCE, summed over prefixes, with a fixed or a learned temperature.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefix widths and importances; the last width is that of the embeddings.
    temperature : float, default 0.05
        What similarities are divided by; where it is learned, its initial value.
    symmetric, label_smoothing
        As for `info_nce`.
    reduction : {"mean", "sum"}
        Over the queries.
    learnable_temperature : bool, default False
        Make the logarithm of the temperature a weight, `log_temperature`.
    **kwargs
        Of every Keras layer: name, dtype, trainable.

    Examples
    --------
    >>> from matryoshka.keras import InfoNCE
    >>> layer = InfoNCE((4, 8))
    >>> loss = layer(keras.ops.eye(8), keras.ops.eye(8))
    >>> tuple(loss.shape), len(layer.losses)
    ((), 1)
    """

    def __init__(
        self,
        nesting: NestingLike,
        *,
        temperature: float = 0.05,
        symmetric: bool = False,
        learnable_temperature: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # the temperature keeps its precision; call casts the rest
        self.initial_temperature = _checks.real(temperature, "temperature", minimum=0.0, open_minimum=True)
        _checks.choice(reduction, "reduction", ("mean", "sum"))
        learnable_temperature = _checks.flag(learnable_temperature, "learnable_temperature")
        self._options = {
            "symmetric": _checks.flag(symmetric, "symmetric"),
            **checked_options(label_smoothing=label_smoothing, reduction=reduction),
        }
        learned = {"temperature": self.initial_temperature, "learnable_temperature": learnable_temperature}
        self._set(nesting, **learned, **self._options)
        self.supports_masking = True  # of which `compute_mask` makes none
        self.log_temperature = None
        if learnable_temperature:
            start = keras.initializers.Constant(math.log(self.initial_temperature))
            self.log_temperature = self.add_weight(shape=(), initializer=start, name="log_temperature")

    def build(self, queries_shape: tuple[int | None, ...], keys_shape: tuple[int | None, ...]) -> None:
        """Check that queries and keys are as wide as the nesting."""
        self._check(keras.KerasTensor(queries_shape), keras.KerasTensor(keys_shape))

    def call(
        self,
        queries: Any,
        keys: Any,
        negatives: Any = None,
        mask: Any = None,
        targets: Any = None,
        return_parts: bool = False,
    ) -> Any:
        """Add the loss of queries (n, dim), whose positives are the first n of the keys (n_keys, dim).

        Parameters
        ----------
        queries, keys : tensor (n, dim), (n_keys, dim)
            Embeddings as wide as the nesting.
        negatives : tensor (n, h, dim), optional
            Hard negatives of each query.
        mask : bool tensor (n, n_keys), optional
            False where a key is no negative of a query. It is no mask of Keras, which pairs have none of.
        targets : tensor (n, n_keys), optional
            The share of each key in what a query shall find: a distribution for each query.
        return_parts : bool, default False
            Return the loss of each prefix (n, G), the same for every row, for `PrefixLoss` to log.

        Returns
        -------
        tensor () or (n, G)
            The loss that is added, or its parts.
        """
        self._check(queries, keys, negatives, mask, targets)
        return_parts = _checks.flag(return_parts, "return_parts")
        temperature: Any = self.initial_temperature
        if self.log_temperature is not None:
            temperature = ops.exp(ops.convert_to_tensor(self.log_temperature))
        mask, targets = (None, None) if is_about_shapes() else (mask, targets)
        cast = [None if a is None else ops.cast(a, self.compute_dtype) for a in (queries, keys, negatives)]
        given = {"negatives": cast[2], "mask": mask, "targets": targets, "temperature": temperature}
        options = {"return_parts": True, "xp": xp, **given, **self._options}
        total, parts = info_nce(*cast[:2], nesting=self.nesting, **options)
        self.add_loss(total)
        return for_each_row(parts, queries) if return_parts else total

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Return None: a loss has no mask, and that of pairs is not to be handed on."""

    def compute_output_shape(
        self, queries_shape: tuple[int | None, ...], keys_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Return the shape of the loss."""
        return ()

    def compute_output_spec(
        self,
        queries: Any,
        keys: Any,
        negatives: Any = None,
        mask: Any = None,
        targets: Any = None,
        return_parts: bool = False,
    ) -> Any:
        """Return shape and dtype of what `call` returns, after checking the arguments while a model is built."""
        self._check(queries, keys, negatives, mask, targets)
        return keras.KerasTensor((queries.shape[0], len(self.nesting)) if return_parts else ())

    def _check(self, queries: Any, keys: Any, negatives: Any = None, mask: Any = None, targets: Any = None) -> None:
        rows = [
            ("queries", queries, "(n, dim)"),
            ("keys", keys, "(n_keys, dim)"),
            ("negatives", negatives, "(n, h, dim)"),
        ]
        for name, array, axes in rows[: 2 if negatives is None else 3]:
            _checks.ndim(array, name, axes.count(",") + 1, axes)
            _checks.width(array, name, self.nesting.dim)
        for name, array in (("mask", mask), ("targets", targets)):
            if array is not None:
                _checks.shape(array, name, (queries.shape[0], keys.shape[0]), "(n, n_keys)")
