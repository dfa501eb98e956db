"""A layer with classifiers of every prefix."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import keras
from keras import ops

from matryoshka import _checks
from matryoshka._hooks.formula import checked_options
from matryoshka.keras._base import Nested, class_ids, for_each_row, xp
from matryoshka.losses import mrl_cross_entropy, mrl_e_cross_entropy
from matryoshka.nesting import NestingLike, as_nesting


@keras.saving.register_keras_serializable(package="matryoshka")
class MRLHead(Nested, keras.layers.Layer):
    """Linear classifiers of every prefix, with the MRL or MRL-E loss.

    Parameters
    ----------
    nesting : Nesting or sequence of int
        Prefix widths and importances; the last width is that of the embeddings.
    num_classes : int
        Number of classes.
    tied : bool, default False
        False: one classifier per prefix (MRL). True: prefixes of one classifier (MRL-E), at the cost of one.
    bias : bool, default True
        Give the classifiers a bias.
    label_smoothing, ignore_index
        As for `mrl_cross_entropy`.
    reduction : {"mean", "sum"}
        Of the loss that is added: the mean is sum(w * loss) / sum(w).
    **kwargs
        Of every Keras layer: name, dtype, trainable.

    Notes
    -----
    Weights: `kernel` (dim, num_classes) and `bias` if tied, else `kernel_8`, `bias_8` and so on for each width.
    A mask of the embeddings reaches the logits, and takes rows out of the loss.

    Examples
    --------
    >>> from matryoshka.keras import MRLHead
    >>> head = MRLHead((2, 4), num_classes=3, tied=True)
    >>> embeddings = keras.ops.ones((5, 4))
    >>> tuple(head(embeddings).shape)
    (5, 2, 3)
    >>> logits = head(embeddings, keras.ops.array([0, 1, 2, 0, 1]))
    >>> len(head.losses)
    1
    """

    def __init__(
        self,
        nesting: NestingLike,
        num_classes: int,
        *,
        tied: bool = False,
        bias: bool = True,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        reduction: str = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # sample weights keep their precision; call casts the rest
        self.num_classes = _checks.classes(num_classes, "num_classes", as_nesting(nesting).dim)
        tied, bias = _checks.flag(tied, "tied"), _checks.flag(bias, "bias")
        self.tied, self.supports_masking = tied, True
        self._options = checked_options(label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction)
        _checks.choice(reduction, "reduction", ("mean", "sum"))
        self._set(nesting, num_classes=self.num_classes, tied=tied, bias=bias, **self._options)

    def build(self, embeddings_shape: tuple[int | None, ...]) -> None:
        """Make the weights, for embeddings as wide as the nesting."""
        self._check(keras.KerasTensor(embeddings_shape))
        self._kernels, self._biases = [], []
        for width in (self.nesting.dim,) if self.tied else self.nesting:
            suffix = "" if self.tied else f"_{width}"
            self._kernels.append(self.add_weight(shape=(width, self.num_classes), name=f"kernel{suffix}"))
            if self._config["bias"]:
                bias = self.add_weight(shape=(self.num_classes,), initializer="zeros", name=f"bias{suffix}")
                self._biases.append(bias)

    def call(
        self,
        embeddings: Any,
        labels: Any = None,
        sample_weight: Any = None,
        return_parts: bool = False,
        embeddings_mask: Any = None,
    ) -> Any:
        """Return the logits of every prefix; with `labels`, add the loss.

        Parameters
        ----------
        embeddings : tensor (..., dim)
            Embeddings as wide as the nesting; leading axes (batch, tokens) are rows.
        labels : integer tensor (...), optional
            Class of each row.
        sample_weight : tensor (...), optional
            Weight of each row in the loss.
        return_parts : bool, default False
            With `labels`, return in place of the logits the loss of each prefix, the same for every row, for
            `PrefixLoss` to log. No logits are kept then.
        embeddings_mask : bool tensor (...), optional
            False for rows that are padding; Keras passes it along by itself.

        Returns
        -------
        tensor (..., G, num_classes) or (batch, G)
            Logits that nobody reads cost nothing where the backend compiles.
        """
        self._check(embeddings)
        return_parts = _checks.flag(return_parts, "return_parts")
        embeddings = ops.cast(embeddings, self.compute_dtype)
        if labels is None:
            return self._logits(embeddings)
        labels = class_ids(labels, "labels", tuple(embeddings.shape[:-1]))
        if embeddings_mask is not None:
            mask = ops.cast(embeddings_mask, "float32")
            sample_weight = mask if sample_weight is None else mask * ops.cast(sample_weight, "float32")
        total, parts = self._loss(embeddings, labels, sample_weight)
        self.add_loss(total)
        return for_each_row(parts, embeddings) if return_parts else self._logits(embeddings)

    def compute_output_spec(
        self,
        embeddings: Any,
        labels: Any = None,
        sample_weight: Any = None,
        return_parts: bool = False,
        embeddings_mask: Any = None,
    ) -> Any:
        """Return shape and dtype of what `call` returns, after checking the arguments while a model is built."""
        self._check(embeddings)
        rows = tuple(embeddings.shape[:-1])
        if labels is not None:
            class_ids(labels, "labels", rows)
            if return_parts:
                return keras.KerasTensor((rows[0], len(self.nesting)))
        return keras.KerasTensor((*rows, len(self.nesting), self.num_classes), dtype=self.compute_dtype)

    def _check(self, embeddings: Any) -> None:
        _checks.min_ndim(embeddings, "embeddings", 2, "(..., dim)")
        _checks.width(embeddings, "embeddings", self.nesting.dim)

    def _weights(self) -> list[tuple[Any, Any]]:
        """Return the kernel (m, num_classes) and the bias (num_classes,) or None of each classifier."""
        variables = self._kernels + self._biases
        cast = [ops.cast(ops.convert_to_tensor(variable), self.compute_dtype) for variable in variables]
        kernels, biases = cast[: len(self._kernels)], cast[len(self._kernels) :]
        return list(zip(kernels, biases or [None] * len(kernels), strict=True))

    def _logits(self, embeddings: Any) -> Any:
        weights = self._weights()
        if not self.tied:
            logits = [embeddings[..., :m] @ kernel for (kernel, _), m in zip(weights, self.nesting, strict=True)]
            pairs = zip(logits, weights, strict=True)
            return ops.stack([z if bias is None else z + bias for z, (_, bias) in pairs], axis=-2)
        ((kernel, bias),) = weights
        cuts = list(self.nesting.dims[:-1])
        blocks = zip(ops.split(embeddings, cuts, axis=-1), ops.split(kernel, cuts, axis=0), strict=True)
        logits = list(accumulate((x @ w for x, w in blocks), initial=bias))
        return ops.stack(logits[-len(self.nesting) :], axis=-2)  # without the bias, which they start from

    def _loss(self, embeddings: Any, labels: Any, sample_weight: Any) -> tuple[Any, Any]:
        heads = [(ops.transpose(kernel), bias) for kernel, bias in self._weights()]
        options = {"sample_weight": sample_weight, "return_parts": True, "xp": xp, **self._options}
        if self.tied:
            return mrl_e_cross_entropy(embeddings, *heads[0], labels, nesting=self.nesting, **options)
        return mrl_cross_entropy(embeddings, heads, labels, nesting=self.nesting, **options)
