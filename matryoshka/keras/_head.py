"""A layer with classifiers of every prefix, new ones or those of a trained `Dense`."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import keras
from keras import ops

from matryoshka import _checks
from matryoshka._hooks.formula import checked_options
from matryoshka.keras._base import Nested, for_each_row, targets, xp
from matryoshka.losses import mrl_cross_entropy, mrl_e_cross_entropy
from matryoshka.nesting import NestingLike, as_nesting

_OF_WEIGHTS = {"initializer": keras.initializers, "regularizer": keras.regularizers, "constraint": keras.constraints}


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
    kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint
        As of `keras.layers.Dense`, for the kernel and the bias of each classifier.
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
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # sample weights keep their precision; call casts the rest
        self.num_classes = _checks.classes(num_classes, "num_classes", as_nesting(nesting).dim)
        tied, bias = _checks.flag(tied, "tied"), _checks.flag(bias, "bias")
        self.tied, self.supports_masking = tied, True
        self._options = checked_options(label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=reduction)
        _checks.choice(reduction, "reduction", ("mean", "sum"))
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self._set(nesting, num_classes=self.num_classes, tied=tied, bias=bias, **self._options)

    @classmethod
    def from_linear(cls, linear: Any, nesting: NestingLike, *, tied: bool = True, **options: Any) -> MRLHead:
        """Return a head that starts with the weights of a trained classifier.

        Parameters
        ----------
        linear : keras.layers.Dense
            A built classifier with as many inputs as the nesting is wide, whose activation is linear or the softmax,
            which the loss of the head applies itself. It stays as it is.
        nesting : Nesting or sequence of int
            Prefix widths and importances; the last width is that of the embeddings.
        tied : bool, default True
            True: the classifier is shared by all prefixes. False: each prefix gets its first rows, and its bias.
        **options
            As of `MRLHead`, but for `num_classes` and `bias`. Regularizers, constraints and dtype policy are those of
            the classifier unless given here.

        Returns
        -------
        MRLHead
            A built layer. Its logits at full width are those of the classifier.

        Raises
        ------
        TypeError
            The classifier is no `Dense`.
        ValueError
            It is not built, is quantised, has another activation, or another width than the nesting.

        Notes
        -----
        What LoRA learned is merged into the copied kernel.

        Examples
        --------
        >>> from matryoshka.keras import MRLHead
        >>> classifier = keras.layers.Dense(3, activation="softmax")
        >>> probabilities = classifier(keras.ops.eye(4))
        >>> logits = MRLHead.from_linear(classifier, (2, 4))(keras.ops.eye(4))
        >>> bool(keras.ops.all(keras.ops.abs(keras.ops.softmax(logits[:, -1]) - probabilities) < 1e-6))
        True
        """
        nesting = as_nesting(nesting)
        _check_classifier(linear, nesting.dim)
        inherited = ("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint")
        options = {"dtype": linear.dtype_policy, **{name: getattr(linear, name) for name in inherited}, **options}
        head = cls(nesting, linear.units, tied=tied, bias=linear.use_bias, **options)
        head.build((None, nesting.dim))
        for kernel in head._kernels:  # copies, because JAX donates what a variable holds to each step of training
            kernel.assign(ops.copy(linear.kernel[: kernel.shape[0]]))
        for bias in head._biases:
            bias.assign(ops.copy(linear.bias))
        return head

    def heads(self) -> list[tuple[Any, Any]]:
        """Return the weight (num_classes, m) and the bias of each classifier in main memory, as cascades take them.

        Returns
        -------
        list of (weight, bias)
            NumPy arrays, as `predict` of a model returns them, whatever the backend: one pair for each prefix, or the
            one of all if they are tied. Without a bias, None.

        Raises
        ------
        ValueError
            The layer is not built.
        """
        if not self.built:
            msg = "`heads` must be built, got a layer without weights; call it, or load its model, first."
            raise ValueError(msg)
        weights = [ops.convert_to_numpy(kernel).T for kernel in self._kernels]
        biases = [ops.convert_to_numpy(bias) for bias in self._biases] or [None] * len(weights)
        return list(zip(weights, biases, strict=True))

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` makes an equal layer of."""
        of_weights = {
            f"{weight}_{kind}": module.serialize(getattr(self, f"{weight}_{kind}"))
            for kind, module in _OF_WEIGHTS.items()
            for weight in ("kernel", "bias")
        }
        return {**super().get_config(), **of_weights}

    def build(self, embeddings_shape: tuple[int | None, ...]) -> None:
        """Make the weights, for embeddings as wide as the nesting."""
        self._check(keras.KerasTensor(embeddings_shape))
        self._kernels, self._biases = [], []
        for width in (self.nesting.dim,) if self.tied else self.nesting:
            suffix = "" if self.tied else f"_{width}"
            self._kernels.append(self._new("kernel", suffix, (width, self.num_classes)))
            if self._config["bias"]:
                self._biases.append(self._new("bias", suffix, (self.num_classes,)))

    def _new(self, weight: str, suffix: str, shape: tuple[int, ...]) -> Any:
        """Return a new variable, which draws numbers of its own: an initializer gives the same ones each time."""
        options = {kind: getattr(self, f"{weight}_{kind}") for kind in _OF_WEIGHTS}
        if isinstance(options["initializer"], keras.initializers.Initializer):
            options["initializer"] = options["initializer"].clone()
        return self.add_weight(shape=shape, name=f"{weight}{suffix}", **options)

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
        labels : integer tensor (...), or floating tensor (..., num_classes), optional
            Class of each row, which may have a last axis of length 1; or the share of each class, a distribution.
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
        labels = targets(labels, "labels", tuple(embeddings.shape[:-1]), self.num_classes)
        if embeddings_mask is not None:
            mask = ops.cast(embeddings_mask, "float32")
            sample_weight = mask if sample_weight is None else mask * ops.cast(sample_weight, "float32")
        total, parts = self._loss(embeddings, labels, sample_weight)
        self.add_loss(total)
        return for_each_row(parts, embeddings) if return_parts else self._logits(embeddings)

    def compute_output_shape(self, embeddings_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the logits (..., G, num_classes) of embeddings (..., dim)."""
        return (*embeddings_shape[:-1], len(self.nesting), self.num_classes)

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
            targets(labels, "labels", rows, self.num_classes)
            if return_parts:
                return keras.KerasTensor((rows[0], len(self.nesting)))
        return keras.KerasTensor(self.compute_output_shape(embeddings.shape), dtype=self.compute_dtype)

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


def _check_classifier(linear: Any, width: int) -> None:
    """Check that `linear` is a layer whose kernel can become that of a head of this width."""
    if not isinstance(linear, keras.layers.Dense):
        msg = f"`linear` must be a keras.layers.Dense, got {_checks.describe(linear)}; pass the layer with the weights."
        raise TypeError(msg)
    if not linear.built:
        msg = "`linear` must be built, got a layer without weights; call it, or load its model, first."
        raise ValueError(msg)
    if linear.quantization_mode is not None:
        mode = linear.quantization_mode
        msg = f"`linear` must not be quantised, got one in {mode}; pass the layer as it was before `quantize`."
        raise ValueError(msg)
    if linear.activation not in (None, keras.activations.linear, keras.activations.softmax):
        name = getattr(linear.activation, "__name__", type(linear.activation).__name__)
        msg = (
            f"`linear` must have no activation or the softmax, got {name}; "
            "copy its weights into a Dense without one, if a softmax over its classes is what you want."
        )
        raise ValueError(msg)
    if linear.kernel.shape[0] != width:
        msg = (
            f"`nesting` must end with the width of `linear`, {linear.kernel.shape[0]}, got {width}; "
            f"make {linear.kernel.shape[0]} its last width."
        )
        raise ValueError(msg)
