"""Keras layers, losses and metrics on one backend: run once per KERAS_BACKEND, each time in a process of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from cases import FLAT, IGNORED, KINDS, N_CLASSES, NESTING, shares, value_and_slopes
from conftest import REQUIRED, load

from matryoshka import Cascade, info_nce, info_nce_with_grad, mrl_e_cross_entropy, mrl_logits_cross_entropy, nested_loss

if "KERAS_BACKEND" not in os.environ and "keras" not in REQUIRED:
    pytest.skip("needs a backend: KERAS_BACKEND=jax pytest tests/backends/test_keras.py", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = load("keras")
    layers = load("matryoshka.keras")

ops = keras.ops
BACKEND = keras.backend.backend()
JIT = {"tensorflow": [False, True], "jax": [False, True], "torch": [False]}[BACKEND]
MODES = {"tensorflow": ["eager", "graph", "xla"], "jax": ["eager", "jit"], "torch": ["eager"]}[BACKEND]

LABELS = np.array([3, 0, 1, IGNORED, 2, 3, 1, 1, 0])
N = len(LABELS)
RTOL, GRADIENT_RTOL = 1e-5, 1e-4

BOTH_HEADS = pytest.mark.parametrize("tied", [False, True], ids=["mrl", "mrl-e"])
HEADS_IN_TURN = pytest.mark.parametrize(("tied", "jit_compile"), list(zip([False, True], [*JIT, False], strict=False)))
ALL_MODES = pytest.mark.parametrize("mode", MODES)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 7 * len(shape) + sum(shape)).normal(size=shape)


def single(array: np.ndarray) -> np.ndarray:
    return array.astype("float32") if array.dtype == "float64" else array


def to_host(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(tensor)))


def differentiate(
    function: Callable[..., Any], arrays: Sequence[np.ndarray], *, mode: str = "eager"
) -> tuple[Any, list[Any]]:
    """Value and gradients of a scalar function of float32 tensors; in a graph, the number of rows is open."""
    tensors = [ops.convert_to_tensor(single(array)) for array in arrays]
    if BACKEND == "torch":
        for tensor in tensors:
            tensor.requires_grad_()
        value = function(*tensors)
        value.backward()
        gradients = [tensor.grad for tensor in tensors]
    elif BACKEND == "jax":
        import jax

        slope = jax.value_and_grad(function, argnums=tuple(range(len(tensors))))
        value, gradients = (jax.jit(slope) if mode == "jit" else slope)(*tensors)
    else:
        import tensorflow as tf

        def slope(*inner: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(inner)
                value = function(*inner)
            return value, tape.gradient(value, inner)

        if mode != "eager":
            shapes = [(None, *a.shape[1:]) if a.ndim > 1 and len(a) > N_CLASSES else a.shape for a in arrays]
            signature = [tf.TensorSpec(shape, "float32") for shape in shapes]
            slope = tf.function(slope, input_signature=signature, jit_compile=mode == "xla", autograph=False)
        value, gradients = slope(*tensors)
    return to_host(value), [to_host(gradient) for gradient in gradients]


def of_logits(logits: np.ndarray, labels: np.ndarray, **options: Any) -> Any:
    """Loss and parts of logits as Keras has them, prefixes behind rows, by loops."""
    return KINDS["logits"].oracle((np.moveaxis(logits, 1, 0),), labels=labels, **options)


def assert_slopes(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for ours, exact in zip(actual, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, exact, rtol=GRADIENT_RTOL, atol=GRADIENT_RTOL * np.abs(exact).max())


# The functions of the core, on tensors of the backend.


FEW = [
    *(("mrl", None, "mean"), ("mrl", 4, "none"), ("logits", 4, "none")),
    *(("mrl-e", None, "none"), ("mrl-e", 4, "mean"), ("mrl-e", 1, "none")),
    *(("info-nce", None, "none"), ("info-nce", 4, "mean")),
    *(("info-nce-symmetric", None, "mean"), ("info-nce-symmetric", 4, "none")),
    *(("mrl-e-shares", 4, "mean"), ("info-nce-hard", None, "none"), ("info-nce-hard", 4, "mean")),
]
"""Every choice of each loss once, for what is compiled, as all is in JAX; where that takes no time, all together."""
RUNS = [
    (mode, *run)
    for mode in MODES
    for run in (
        itertools.product(FLAT, (None, 4, 1), ("mean", "none")) if mode == "eager" and BACKEND != "jax" else FEW
    )
]


@pytest.mark.parametrize(("mode", "name", "row_block", "reduction"), RUNS)
def test_losses_take_tensors_of_the_backend(mode: str, name: str, row_block: int | None, reduction: str) -> None:
    share = ops.convert_to_tensor(shares(name, reduction), "float32")

    def loss(*tensors: Any) -> Any:
        options = {"row_block": row_block, "reduction": reduction, "xp": layers.xp}
        rows = FLAT[name](*tensors, convert=ops.convert_to_tensor, **options)
        assert reduction != "none" or list(rows.shape) in (list(share.shape), [None])
        return ops.sum(share * rows)

    value, slopes = differentiate(loss, FLAT[name].arrays(), mode=mode)
    expected, exact = value_and_slopes(name, reduction)
    np.testing.assert_allclose(value, expected, rtol=RTOL)
    assert_slopes(slopes, exact)


@ALL_MODES
def test_stacked_logits_and_any_loss_take_tensors_of_the_backend(mode: str) -> None:
    logits, labels = draw(N, 3, N_CLASSES), ops.convert_to_tensor(np.maximum(LABELS, 0))

    def apart(*logits: Any) -> Any:
        return mrl_logits_cross_entropy(list(logits), labels, nesting=NESTING, xp=layers.xp)

    def stacked(logits: Any) -> Any:
        return mrl_logits_cross_entropy(ops.moveaxis(logits, 1, 0), labels, nesting=NESTING, xp=layers.xp)

    one, slopes = differentiate(apart, list(np.moveaxis(logits, 1, 0)), mode=mode)
    other, (slope,) = differentiate(stacked, [logits], mode=mode)
    expected, _ = of_logits(logits, np.maximum(LABELS, 0))
    np.testing.assert_allclose([one, other], expected, rtol=RTOL)
    np.testing.assert_allclose(np.stack(slopes, axis=1), slope, rtol=RTOL, atol=1e-7)

    def distance(x: Any, y: Any) -> Any:
        return nested_loss(lambda a, b: ops.sum((a - b) ** 2), x, y, nesting=NESTING, normalize=True, xp=layers.xp)

    value, _ = differentiate(distance, [draw(N, 7), draw(N, 7, seed=1)], mode=mode)
    units = [
        [a[:, :m] / np.linalg.norm(a[:, :m], axis=1, keepdims=True) for a in (draw(N, 7), draw(N, 7, seed=1))]
        for m in NESTING
    ]
    expected = sum(c * ((a - b) ** 2).sum() for c, (a, b) in zip(NESTING.importance, units, strict=True))
    np.testing.assert_allclose(value, expected, rtol=RTOL)


if BACKEND == "tensorflow":  # only its graphs leave lengths open

    def test_rows_of_open_batches_and_lengths_keep_their_axes() -> None:
        import tensorflow as tf

        weight, tokens, labels = draw(N_CLASSES, 7), single(draw(3, 3, 7)), LABELS.reshape(3, 3) % N_CLASSES

        @tf.function(input_signature=[tf.TensorSpec([None, None, 7]), tf.TensorSpec([None, None], tf.int32)])
        def losses(tokens: Any, labels: Any) -> Any:
            constant = tf.constant(single(weight))
            options = {"nesting": NESTING, "reduction": "none", "return_parts": True, "xp": layers.xp}
            return mrl_e_cross_entropy(tokens, constant, None, labels, **options)

        total, parts = losses(tokens, labels.astype("int32"))
        expected, each = mrl_e_cross_entropy(
            draw(3, 3, 7), weight, None, labels, nesting=NESTING, reduction="none", return_parts=True
        )
        np.testing.assert_allclose(to_host(total), expected, rtol=RTOL)
        np.testing.assert_allclose(to_host(parts), each, rtol=RTOL)

    @pytest.mark.parametrize("row_block", [None, 2])
    def test_pairs_of_open_batches_find_their_keys_and_hard_negatives(row_block: int | None) -> None:
        """A mask of the batch is open on both axes: it is made of the batch."""
        import tensorflow as tf

        arrays = draw(3, 7), draw(5, 7), draw(3, 2, 7)
        options = {"temperature": 0.3, "nesting": NESTING, "row_block": row_block}
        given = {"mask": MASK, "targets": single(TAUGHT)}
        shapes = [(None, 7), (None, 7), (None, None, 7)]
        signature = [*(tf.TensorSpec(shape) for shape in shapes), tf.TensorSpec((None, None), tf.bool)]

        @tf.function(input_signature=[*signature, tf.TensorSpec((None, None))], autograph=False)
        def value_and_slopes(queries: Any, keys: Any, negatives: Any, mask: Any, targets: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([queries, keys, negatives])
                pairs = {"negatives": negatives, "mask": mask, "targets": targets}
                loss = info_nce(queries, keys, **pairs, **options, xp=layers.xp)
            return loss, tape.gradient(loss, [queries, keys, negatives])

        loss, slopes = value_and_slopes(*map(single, arrays), *given.values())
        expected, exact = info_nce_with_grad(*arrays[:2], negatives=arrays[2], **given, **options)
        np.testing.assert_allclose(to_host(loss), expected, rtol=RTOL)
        assert_slopes([to_host(slope) for slope in slopes], [exact.queries, exact.keys, exact.negatives])

    def test_the_gradient_in_the_weight_0_of_a_row_is_its_loss() -> None:
        import tensorflow as tf

        arrays, labels = [tf.constant(single(draw(*shape))) for shape in ((N, 7), (N_CLASSES, 7))], tf.constant(LABELS)
        labels = tf.where(labels < 0, 0, labels)

        def loss(weights: Any, reduction: str) -> Any:
            options = {"sample_weight": weights, "reduction": reduction, "nesting": NESTING, "xp": layers.xp}
            return mrl_e_cross_entropy(*arrays, None, labels, **options)

        @tf.function(autograph=False)
        def slope(weights: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                total = loss(weights, "sum")
            return tape.gradient(total, weights)

        np.testing.assert_allclose(to_host(slope(tf.zeros(N))), to_host(loss(tf.ones(N), "none")), rtol=RTOL)


# The head.


def built_head(tied: bool, **options: Any) -> tuple[Any, list[tuple[np.ndarray, np.ndarray | None]]]:
    """A head with drawn weights, and these as the (weight, bias) pairs of the oracle."""
    head = layers.MRLHead(NESTING, N_CLASSES, tied=tied, **options)
    head.build((None, 7))
    for i, variable in enumerate(head.weights):
        variable.assign(draw(*variable.shape, seed=i))
    weights = [to_host(variable.value).astype("float64") for variable in head.weights]
    kernels, biases = [w for w in weights if w.ndim == 2], [w for w in weights if w.ndim == 1] or [None] * 3
    if tied:
        kernels, biases = [kernels[0][:m] for m in NESTING], [biases[0]] * 3
    return head, [(kernel.T, bias) for kernel, bias in zip(kernels, biases, strict=True)]


@BOTH_HEADS
@pytest.mark.parametrize("bias", [True, False])
def test_the_head_stacks_the_logits_of_all_prefixes(tied: bool, bias: bool) -> None:
    head, pairs = built_head(tied, bias=bias)
    x = draw(N, 7)
    logits = head(single(x))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    np.testing.assert_allclose(to_host(logits), np.stack(oracles.losses_logits(x, pairs), axis=1), rtol=RTOL, atol=1e-6)
    assert head.losses == []
    tokens = head(single(x.reshape(3, 3, 7)))
    np.testing.assert_allclose(to_host(tokens).reshape(N, 3, N_CLASSES), to_host(logits), rtol=1e-6, atol=1e-6)


@BOTH_HEADS
@pytest.mark.parametrize("bias", [True, False])
def test_a_cascade_takes_the_head(tied: bool, bias: bool) -> None:
    head, pairs = built_head(tied, bias=bias)
    x = single(draw(60, 7))
    logits = np.moveaxis(to_host(head(x)), 1, 0)
    wanted_pairs = pairs[-1:] if tied else pairs
    for (weight, offset), (wanted, wanted_offset) in zip(head.heads(), wanted_pairs, strict=True):
        np.testing.assert_array_equal(weight, wanted.astype("float32"))
        assert (offset is None) == (wanted_offset is None) == (not bias)
    cascade = Cascade(tuple(NESTING), [float(np.median(softmax(z).max(-1))) + 1e-6 for z in logits[:-1]])
    expected = [part.tolist() for part in cascade.predict(logits, from_logits=True)]
    assert len(set(expected[1])) == len(NESTING)
    for found in (cascade.classify(x, head), cascade.classifier(head)(x)):
        assert [part.tolist() for part in found] == expected
    with pytest.raises(ValueError, match=r"looks like \(rows, prefixes, classes\)"):
        cascade.predict(to_host(head(x)), from_logits=True)
    with pytest.raises(ValueError, match="`heads` must be built, got a layer without weights"):
        cascade.classifier(layers.MRLHead(NESTING, N_CLASSES))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@BOTH_HEADS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_head_adds_the_loss(tied: bool, reduction: str) -> None:
    head, pairs = built_head(tied, label_smoothing=0.1, ignore_index=IGNORED, reduction=reduction)
    x, weights = draw(N, 7), np.abs(draw(N)) + 0.1
    arguments = (single(x), LABELS, single(weights))
    options = {"label_smoothing": 0.1, "ignore_index": IGNORED, "sample_weight": arguments[2], "reduction": reduction}
    expected, parts = KINDS["mrl"].oracle((x, pairs), labels=LABELS, **options)
    logits = head(*arguments)
    assert tuple(logits.shape) == (N, 3, N_CLASSES)
    (loss,) = head.losses
    np.testing.assert_allclose(to_host(loss), expected, rtol=RTOL)
    repeated = head(*arguments, return_parts=True)
    np.testing.assert_allclose(to_host(repeated), np.tile(parts, (N, 1)), rtol=RTOL)
    assert len(head.losses) == 1  # of the last call only
    head(single(x).reshape(3, 3, 7), LABELS.reshape(3, 3, 1), single(weights).reshape(3, 3))
    np.testing.assert_allclose(to_host(head.losses[0]), expected, rtol=RTOL)


def test_no_row_that_counts_gives_no_loss() -> None:
    head, _ = built_head(True, ignore_index=IGNORED)
    head(single(draw(2, 7)), np.array([IGNORED, IGNORED]))
    assert to_host(head.losses[0]) == 0.0
    head(single(draw(2, 7)), np.array([0, 1]), np.zeros(2, "float32"))
    assert to_host(head.losses[0]) == 0.0


# What a head shares with Dense.


@BOTH_HEADS
def test_weights_are_made_as_those_of_dense(tied: bool) -> None:
    options = {"kernel_regularizer": keras.regularizers.L2(0.5), "bias_regularizer": "l1"}
    head = layers.MRLHead(NESTING, N_CLASSES, tied=tied, kernel_initializer="ones", bias_initializer="ones", **options)
    head(single(draw(N, 7)), np.maximum(LABELS, 0))
    n_weights = 7 * 4 if tied else (2 + 3 + 7) * 4
    n_biases = 4 if tied else 3 * 4
    *_, penalties = np.sum([to_host(loss) for loss in head.losses[1:]], axis=0, keepdims=True)
    np.testing.assert_allclose(penalties, 0.5 * n_weights + 0.01 * n_biases, rtol=RTOL)

    keras.utils.set_random_seed(3)
    free = layers.MRLHead(NESTING, N_CLASSES, tied=tied, kernel_constraint="non_neg", bias_constraint="non_neg")
    free.build((None, 7))
    kernels = [to_host(weight.value) for weight in free.weights if len(weight.shape) == 2]
    for one, other in itertools.pairwise(kernels):  # drawn one by one, from equal bounds or not
        assert abs(np.corrcoef(one[:2].ravel(), other[:2].ravel())[0, 1]) < 0.99
    model = keras.Sequential([keras.Input((7,)), free])
    model.compile("sgd", layers.MRLCrossEntropy(NESTING))
    model.train_on_batch(single(draw(N, 7)), np.maximum(LABELS, 0))
    assert all(np.min(weights) >= 0.0 for weights in free.get_weights())


@BOTH_HEADS
def test_shapes_are_known_without_data(tied: bool) -> None:
    head = layers.MRLHead(NESTING, N_CLASSES, tied=tied)
    assert head.compute_output_shape((None, 7)) == (None, 3, N_CLASSES)
    assert head.compute_output_shape((2, 5, 7)) == (2, 5, 3, N_CLASSES)
    spread = keras.layers.TimeDistributed(head)
    assert tuple(spread(keras.Input((5, 7))).shape) == (None, 5, 3, N_CLASSES)
    alone = keras.Sequential([keras.layers.Dense(7), layers.MRLHead(NESTING, N_CLASSES, tied=tied)])
    assert alone.compute_output_shape((None, 6)) == (None, 3, N_CLASSES)
    assert layers.InfoNCE(NESTING).compute_output_shape((None, 7), (None, 7)) == ()


def classifier(**options: Any) -> Any:
    """A Dense with drawn weights."""
    dense = keras.layers.Dense(N_CLASSES, **options)
    dense.build((None, 7))
    dense.set_weights([draw(*weight.shape) for weight in dense.weights])
    return dense


@BOTH_HEADS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_trained_classifier_becomes_a_head(tied: bool, bias: bool, activation: str | None) -> None:
    dense = classifier(use_bias=bias, activation=activation)
    kernel, *rest = dense.get_weights()
    head = layers.MRLHead.from_linear(dense, NESTING, tied=tied, ignore_index=IGNORED)
    assert (head.built, head.tied, head.trainable) == (True, tied, True)
    x = single(draw(N, 7))
    logits = to_host(head(x))
    pairs = [(kernel[:m].T, *(rest or [None])) for m in NESTING]
    np.testing.assert_allclose(logits, np.stack(oracles.losses_logits(x, pairs), axis=1), rtol=RTOL, atol=1e-6)
    full = to_host(ops.softmax(logits[:, -1])) if activation else logits[:, -1]
    np.testing.assert_allclose(full, to_host(dense(x)), rtol=1e-6, atol=1e-6)
    for weight in head.weights:  # its own, not those of the classifier
        weight.assign(np.zeros(weight.shape))
    np.testing.assert_array_equal(dense.get_weights()[0], kernel)


def test_a_head_keeps_what_its_classifier_was_given() -> None:
    given = {"kernel_regularizer": keras.regularizers.L2(0.1), "bias_regularizer": keras.regularizers.L1(0.2)}
    given |= {"kernel_constraint": keras.constraints.MaxNorm(3.0), "bias_constraint": keras.constraints.NonNeg()}
    dense = classifier(dtype="mixed_bfloat16", kernel_initializer=keras.initializers.Constant(np.ones((7, 4))), **given)
    head = layers.MRLHead.from_linear(dense, NESTING, tied=False)
    assert {name: getattr(head, name) for name in given} == given
    assert (head.compute_dtype, head.variable_dtype) == ("bfloat16", "float32")
    (kernel,) = (weights for weights in head.get_weights() if weights.shape == (7, 4))
    np.testing.assert_array_equal(kernel, dense.get_weights()[0])  # not rounded
    logits = head(single(draw(N, 7)))
    assert keras.backend.standardize_dtype(logits.dtype) == "bfloat16"
    np.testing.assert_array_equal(
        to_host(ops.cast(logits[:, -1], "float32")), to_host(ops.cast(dense(draw(N, 7)), "float32"))
    )
    other = layers.MRLHead.from_linear(dense, NESTING, dtype="float32", kernel_regularizer=None, name="top")
    assert (other.compute_dtype, other.kernel_regularizer, other.name) == ("float32", None, "top")


@BOTH_HEADS
def test_a_head_made_of_a_classifier_trains_on_and_is_saved(tied: bool, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x, labels = data(48)
    plain = keras.Sequential([keras.Input((7,)), keras.layers.Dense(7), keras.layers.Dense(4, activation="softmax")])
    plain.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    plain.fit(x, labels, epochs=20, verbose=0)
    before = plain.predict(x, verbose=0)
    head = layers.MRLHead.from_linear(plain.layers[-1], NESTING, tied=tied)
    nested = keras.Model(plain.inputs[0], head(plain.layers[-2].output))
    after = nested.predict(x, verbose=0)
    np.testing.assert_array_equal(after[:, -1].argmax(-1), before.argmax(-1))
    nested.compile(keras.optimizers.Adam(0.01), layers.MRLCrossEntropy(NESTING))
    history = nested.fit(x, labels, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert plain.layers[-1].get_weights()[0].shape == (7, 4)  # JAX has given nothing of it away
    nested.save(tmp_path / "nested.keras")
    again = keras.saving.load_model(tmp_path / "nested.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), nested.predict(x, verbose=0), rtol=1e-6, atol=1e-6)


def test_what_lora_learned_is_merged() -> None:
    dense = classifier()
    dense.enable_lora(2)
    for weight in dense.trainable_weights:
        weight.assign(draw(*weight.shape, seed=4))
    x = single(draw(N, 7))
    head = layers.MRLHead.from_linear(dense, NESTING)
    np.testing.assert_allclose(to_host(head(x))[:, -1], to_host(dense(x)), rtol=RTOL, atol=RTOL)
    assert len(head.trainable_weights) == 2


def quantised() -> Any:
    dense = classifier()
    dense.quantize("int8")
    return dense


@pytest.mark.parametrize(
    ("made", "error", "text"),
    [
        (lambda: keras.layers.Dense(4), ValueError, "`linear` must be built, got a layer without weights; call it"),
        (lambda: keras.layers.Conv1D(4, 1), TypeError, "`linear` must be a keras.layers.Dense, got Conv1D"),
        (lambda: None, TypeError, "`linear` must be a keras.layers.Dense, got NoneType"),
        (quantised, ValueError, "`linear` must not be quantised, got one in int8; pass the layer as it"),
        (lambda: classifier(activation="sigmoid"), ValueError, "no activation or the softmax, got sigmoid; copy"),
        (
            lambda: classifier(activation=keras.layers.ReLU()),
            ValueError,
            "no activation or the softmax, got (ReLU|re_lu)",
        ),
    ],
)
def test_what_is_no_classifier_of_a_head_is_refused(made: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        layers.MRLHead.from_linear(made(), NESTING)


def test_a_classifier_of_another_width_is_refused() -> None:
    for dims in ((2, 6), (2, 8)):
        with pytest.raises(
            ValueError, match=rf"`nesting` must end with the width of `linear`, 7, got {dims[-1]}; make 7"
        ):
            layers.MRLHead.from_linear(classifier(), dims)
    with pytest.raises(TypeError, match="num_classes"):
        layers.MRLHead.from_linear(classifier(), NESTING, num_classes=3)


# Losses for compile.

REDUCTIONS = pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None]
)


class OnlyPrefix(keras.layers.Layer):
    """Takes the axis of prefixes away, and hands the mask on."""

    supports_masking = True

    def call(self, logits: Any) -> Any:
        return logits[..., 0, :]


@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, IGNORED])
@pytest.mark.parametrize("masked", [False, True])
def test_one_prefix_is_the_loss_of_keras(
    reduction: str | None, weighted: bool, ignored: int | None, masked: bool
) -> None:
    labels = LABELS.reshape(3, 3) if ignored else np.maximum(LABELS, 0).reshape(3, 3)
    weights = single(np.abs(draw(3, 3)) + 0.1) if weighted else None
    x = single(draw(3, 3, 7))
    if masked:
        x[0, 2], x[2] = 0.0, 0.0
        x = keras.layers.Masking()(x)
    head = layers.MRLHead((7,), N_CLASSES)
    logits = head(x)
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored, reduction=reduction)
    ours = layers.MRLCrossEntropy((7,), ignore_index=ignored, reduction=reduction)
    expected = to_host(theirs(labels, OnlyPrefix()(logits), weights))
    np.testing.assert_allclose(to_host(ours(labels, logits, weights)), expected, rtol=RTOL, atol=1e-7)


def test_the_loss_weighs_prefixes_by_importance() -> None:
    logits, labels = draw(N, 3, N_CLASSES), np.maximum(LABELS, 0)
    expected, _ = of_logits(logits, labels, label_smoothing=0.2, reduction="none")
    loss = layers.MRLCrossEntropy(NESTING, label_smoothing=0.2)
    np.testing.assert_allclose(to_host(loss(labels, single(logits))), expected.mean(), rtol=RTOL)
    np.testing.assert_allclose(to_host(loss.call(labels[:, None], single(logits))), expected, rtol=RTOL)


def test_large_class_ids_stay_apart() -> None:
    label = 2**24 + 1  # not a float32
    logits = np.zeros((1, 1, label + 1), "float32")
    logits[0, 0, label] = 20.0
    expected = np.log(label + np.exp(20.0)) - 20.0
    loss = layers.MRLCrossEntropy((1,))(np.array([label]), logits)
    np.testing.assert_allclose(to_host(loss), expected, rtol=2e-2)  # a neighbour would lose 20

    inputs = keras.Input((7,))
    model = keras.Model(inputs, layers.MRLHead(NESTING, N_CLASSES)(inputs))
    model.compile(loss=layers.MRLCrossEntropy(NESTING, ignore_index=label))
    x, labels = single(draw(2, 7)), np.array([label, 2])
    alone = layers.MRLCrossEntropy(NESTING)(labels[1:], model(x[1:]))
    np.testing.assert_allclose(model.evaluate(x, labels, verbose=0), to_host(alone), rtol=RTOL)


def test_bfloat16_class_ids_stay_apart() -> None:
    logits = np.zeros((1, 1, 300), "float32")
    logits[0, 0, 299] = 5.0
    losses = [layers.MRLCrossEntropy((1,), dtype="bfloat16")(np.array([i]), logits) for i in (298, 299)]
    assert abs(float(losses[0]) - float(losses[1])) > 4.0


@pytest.mark.parametrize("normalize", [False, True])
def test_nested_loss_is_the_sum_over_prefixes(normalize: bool) -> None:
    student, teacher, weights = draw(N, 7), draw(N, 7, seed=1), np.abs(draw(N))
    rows = np.zeros(N)
    for m, c in zip(NESTING, NESTING.importance, strict=True):
        a, b = student[:, :m], teacher[:, :m]
        if normalize:
            a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
        rows += c * ((a - b) ** 2).mean(axis=1)
    for loss in ("mse", keras.losses.MeanSquaredError(), lambda t, p: ops.mean((t - p) ** 2, axis=-1)):
        nested = layers.NestedLoss(loss, NESTING, normalize=normalize)
        value = nested(single(teacher), single(student), single(weights))
        np.testing.assert_allclose(to_host(value), (rows * weights).mean(), rtol=RTOL)


# InfoNCE.


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("learnable", [False, True])
def test_info_nce_adds_and_returns_the_loss(symmetric: bool, learnable: bool) -> None:
    queries, keys = draw(N, 7), draw(N + 3, 7)
    layer = layers.InfoNCE(NESTING, temperature=0.3, symmetric=symmetric, learnable_temperature=learnable)
    expected, parts = KINDS["info-nce"].oracle((queries, keys), temperature=0.3, symmetric=symmetric)
    loss = layer(single(queries), single(keys))
    np.testing.assert_allclose([to_host(loss), to_host(layer.losses[0])], expected, rtol=RTOL)
    repeated = layer(single(queries), single(keys), return_parts=True)
    np.testing.assert_allclose(to_host(repeated), np.tile(parts, (N, 1)), rtol=RTOL)
    assert [weight.name for weight in layer.trainable_weights] == ["log_temperature"] * learnable


MASK = np.array([[True, True, False, True, True], [True, True, True, True, False], [False, True, True, True, True]])
TAUGHT = np.array([[0.5, 0.25, 0.0, 0.25, 0.0], [0.0, 0.75, 0.0, 0.25, 0.0], [0.0, 0.5, 0.25, 0.0, 0.25]])
PAIRED = {
    "negatives": {"negatives": draw(3, 2, 7, seed=2)},
    "mask": {"mask": MASK},
    "targets": {"targets": single(TAUGHT)},
    "all": {"negatives": draw(3, 2, 7, seed=2), "mask": MASK, "targets": single(TAUGHT)},
}


@pytest.mark.parametrize("given", PAIRED)
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_takes_hard_negatives_masks_and_targets(given: str, symmetric: bool) -> None:
    queries, keys, options = draw(3, 7), draw(5, 7), PAIRED[given]
    if symmetric and "targets" in options:  # the reverse direction takes them transposed, as they are
        options = {**options, "targets": single(np.eye(3, 5))}
    layer = layers.InfoNCE(NESTING, temperature=0.3, symmetric=symmetric)
    expected, parts = KINDS["info-nce"].oracle((queries, keys), temperature=0.3, symmetric=symmetric, **options)
    arrays = {name: single(array) for name, array in options.items()}
    loss = layer(single(queries), single(keys), **arrays)
    np.testing.assert_allclose([to_host(loss), to_host(layer.losses[0])], expected, rtol=RTOL)
    repeated = layer(single(queries), single(keys), **arrays, return_parts=True)
    np.testing.assert_allclose(to_host(repeated), np.tile(parts, (3, 1)), rtol=RTOL)
    half = layers.InfoNCE(NESTING, temperature=0.3, symmetric=symmetric, dtype="mixed_bfloat16")
    np.testing.assert_allclose(to_host(half(single(queries), single(keys), **arrays)), expected, rtol=3e-2)


@pytest.mark.parametrize("jit_compile", JIT)
def test_towers_with_hard_negatives_train(jit_compile: bool) -> None:
    keras.utils.set_random_seed(0)
    n = 12
    inputs = [
        keras.Input((5,)),
        keras.Input((5,)),
        keras.Input((2, 5)),
        keras.Input((n,), dtype="bool"),
        keras.Input((n,)),
    ]
    tower = keras.layers.Dense(7)
    towers = [tower(array) for array in inputs[:3]]
    loss = layers.InfoNCE(NESTING, temperature=0.3)
    rest = {"negatives": towers[2], "mask": inputs[3], "targets": inputs[4]}
    model = keras.Model(inputs, loss(*towers[:2], **rest, return_parts=True))
    model.compile(keras.optimizers.Adam(0.05), metrics=[layers.PrefixLoss(NESTING)], jit_compile=jit_compile)
    seen, taught = np.eye(n, k=1) == 0, single(0.9 * np.eye(n) + 0.1 * np.eye(n, k=-1))
    taught[0, 0] = 1.0
    drawn = [single(draw(n, 5)), single(draw(n, 5, seed=1)), single(draw(n, 2, 5))]
    given = [*drawn, seen, taught]
    history = model.fit(given, batch_size=n, epochs=20, verbose=0, shuffle=False).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    embeddings = [to_host(tower(array)).astype("float64") for array in drawn]
    options = {"negatives": embeddings[2], "mask": seen, "targets": taught, "temperature": 0.3}
    expected, _ = KINDS["info-nce"].oracle(embeddings[:2], **options)
    found = model.evaluate(given, batch_size=n, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("jit_compile", JIT)
def test_two_towers_train(jit_compile: bool) -> None:
    keras.utils.set_random_seed(0)
    left, right = keras.Input((5,)), keras.Input((6,))
    loss = layers.InfoNCE(NESTING, symmetric=True, learnable_temperature=True)
    towers = keras.layers.Dense(7, name="left")(left), keras.layers.Dense(7, name="right")(right)
    model = keras.Model([left, right], loss(*towers, return_parts=True))
    model.compile(keras.optimizers.Adam(0.05), metrics=[layers.PrefixLoss(NESTING)], jit_compile=jit_compile)
    x, y = single(draw(30, 5)), single(draw(30, 6))
    history = model.fit([x, y], batch_size=8, epochs=4, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    parts = [history[f"prefix_loss_{m}"][-1] for m in NESTING]
    np.testing.assert_allclose(np.dot(parts, NESTING.importance), history["loss"][-1], rtol=1e-4)
    assert float(to_host(loss.log_temperature.value)) != pytest.approx(np.log(0.05), abs=1e-4)


# Training.


def data(n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Classes that the first two columns tell apart."""
    labels = np.arange(n) % N_CLASSES
    x = draw(n, 7)
    x[:, 0] += 3 * (labels // 2)
    x[:, 1] += 3 * (labels % 2)
    return single(x), labels


@HEADS_IN_TURN
def test_fit_with_a_compiled_loss(tied: bool, jit_compile: bool) -> None:
    keras.utils.set_random_seed(0)
    x, labels = data()
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(7), layers.MRLHead(NESTING, N_CLASSES, tied=tied)])
    metrics = [layers.PrefixAccuracy(NESTING), layers.PrefixLoss(NESTING)]
    model.compile(
        keras.optimizers.Adam(0.05), layers.MRLCrossEntropy(NESTING), metrics=metrics, jit_compile=jit_compile
    )
    history = model.fit(x, labels, batch_size=16, epochs=8, validation_data=(x, labels), verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    names = {f"{kind}_{m}" for kind in ("accuracy", "prefix_loss") for m in NESTING}
    assert {"loss", *names} <= set(history)
    assert {"val_loss", *(f"val_{name}" for name in names)} <= set(history)

    logits = model.predict(x, verbose=0)
    assert logits.shape == (50, 3, N_CLASSES)
    found = model.evaluate(x, labels, verbose=0, return_dict=True)
    _, parts = of_logits(logits, labels)
    for g, m in enumerate(NESTING):
        np.testing.assert_allclose(found[f"accuracy_{m}"], np.mean(logits[:, g].argmax(-1) == labels), rtol=1e-6)
        np.testing.assert_allclose(found[f"prefix_loss_{m}"], parts[g], rtol=RTOL)
    np.testing.assert_allclose(found["loss"], np.dot(parts, NESTING.importance), rtol=RTOL)


@HEADS_IN_TURN
def test_fit_with_the_loss_of_the_head(tied: bool, jit_compile: bool) -> None:
    keras.utils.set_random_seed(0)
    x, labels = data()
    inputs, ids = keras.Input((7,)), keras.Input((), dtype="int32")
    head = layers.MRLHead(NESTING, N_CLASSES, tied=tied)
    model = keras.Model([inputs, ids], head(keras.layers.Dense(7)(inputs), ids))
    model.compile(keras.optimizers.Adam(0.05), metrics=[layers.PrefixAccuracy(NESTING)], jit_compile=jit_compile)
    history = model.fit([x, labels], labels, batch_size=16, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert history["accuracy_7"][-1] > 0.6


@BOTH_HEADS
def test_both_ways_to_train_take_the_same_steps(tied: bool) -> None:
    x, labels = data(24)
    weights = single(np.abs(draw(24)) + 0.1)
    inputs, ids, weight = keras.Input((7,)), keras.Input((), dtype="int32"), keras.Input(())
    head = layers.MRLHead(NESTING, N_CLASSES, tied=tied)
    whole = keras.Model([inputs, ids, weight], head(inputs, ids, weight))
    twin = layers.MRLHead(NESTING, N_CLASSES, tied=tied)
    parts = keras.Model(inputs, twin(inputs))
    twin.set_weights(head.get_weights())
    whole.compile(keras.optimizers.SGD(0.5))
    parts.compile(keras.optimizers.SGD(0.5), layers.MRLCrossEntropy(NESTING, reduction="mean_with_sample_weight"))
    for _ in range(3):
        one = whole.train_on_batch([x, labels, weights])
        other = parts.train_on_batch(x, labels, sample_weight=weights)
        np.testing.assert_allclose(one, other, rtol=RTOL)
    for ours, theirs in zip(head.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_padding_counts_nowhere() -> None:
    tokens, labels = np.array([[3, 1, 4, 0, 0], [2, 5, 0, 0, 0]]), np.array([[0, 1, 2, 3, 3], [1, 0, 2, 2, 2]])
    inputs, ids = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    embeddings = keras.layers.Embedding(6, 7, mask_zero=True)(inputs)
    head = layers.MRLHead(NESTING, N_CLASSES)
    model = keras.Model(inputs, head(embeddings))
    model.compile(
        loss=layers.MRLCrossEntropy(NESTING), metrics=[layers.PrefixAccuracy(NESTING), layers.PrefixLoss(NESTING)]
    )
    whole = keras.Model([inputs, ids], head(embeddings, ids))
    whole.compile()
    keep = tokens != 0
    logits = model.predict(tokens, verbose=0)[keep]
    expected, parts = of_logits(logits, labels[keep])
    found = model.evaluate(tokens, labels, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], expected, rtol=RTOL)
    np.testing.assert_allclose([found[f"prefix_loss_{m}"] for m in NESTING], parts, rtol=RTOL)
    right = (logits.argmax(-1) == labels[keep][:, None]).mean(axis=0)
    np.testing.assert_allclose([found[f"accuracy_{m}"] for m in NESTING], right, rtol=1e-6)
    np.testing.assert_allclose(whole.evaluate([tokens, labels], verbose=0), expected, rtol=RTOL)


def test_metrics_take_weights_and_leave_out_ignored_rows() -> None:
    logits, weights = draw(N, 3, N_CLASSES), np.abs(draw(N)) + 0.1
    accuracy = layers.PrefixAccuracy(NESTING, ignore_index=IGNORED)
    losses = layers.PrefixLoss(NESTING, ignore_index=IGNORED, label_smoothing=0.1)
    for half in (slice(0, 4), slice(4, None)):
        for metric in (accuracy, losses):
            metric.update_state(LABELS[half], single(logits[half]), single(weights[half]))
    counted = np.where(LABELS == IGNORED, 0.0, weights)
    right = (logits.argmax(-1) == LABELS[:, None]) * counted[:, None]
    found = {name: float(value) for name, value in accuracy.result().items()}
    np.testing.assert_allclose(list(found.values()), right.sum(0) / counted.sum(), rtol=1e-6)
    assert list(found) == ["accuracy_2", "accuracy_3", "accuracy_7"]
    options = {"label_smoothing": 0.1, "ignore_index": IGNORED, "sample_weight": weights}
    _, parts = of_logits(logits, LABELS, **options)
    np.testing.assert_allclose([float(value) for value in losses.result().values()], parts, rtol=RTOL)
    accuracy.reset_state()
    assert set(map(float, accuracy.result().values())) == {0.0}


# Labels that are distributions.


def mixed(n: int = N, seed: int = 5) -> np.ndarray:
    """Shares of the classes, some of them 0, and one row of one class."""
    shares = np.random.default_rng(seed).random((n, N_CLASSES)) ** 4
    shares[:, 2] *= np.arange(n) % 2
    shares[-1] = np.eye(N_CLASSES)[1]
    return single(shares / shares.sum(axis=1, keepdims=True))


@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
def test_one_prefix_of_distributions_is_the_loss_of_keras(reduction: str | None, weighted: bool) -> None:
    shares, x = mixed().reshape(3, 3, N_CLASSES), single(draw(3, 3, 7))
    weights = single(np.abs(draw(3, 3)) + 0.1) if weighted else None
    x[0, 2], x[2] = 0.0, 0.0
    logits = layers.MRLHead((7,), N_CLASSES)(keras.layers.Masking()(x))
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction=reduction)
    ours = layers.MRLCrossEntropy((7,), label_smoothing=0.1, reduction=reduction)
    expected = to_host(theirs(shares, OnlyPrefix()(logits), weights))
    np.testing.assert_allclose(to_host(ours(shares, logits, weights)), expected, rtol=RTOL, atol=1e-7)


@BOTH_HEADS
def test_the_head_takes_distributions(tied: bool) -> None:
    head, pairs = built_head(tied, label_smoothing=0.1, ignore_index=-100)
    x, shares, weights = draw(N, 7), mixed(), single(np.abs(draw(N)) + 0.1)
    expected, parts = KINDS["mrl"].oracle((x, pairs), labels=shares, label_smoothing=0.1, sample_weight=weights)
    for labels in (shares, shares.astype("float64"), shares.astype("float16")):
        rtol = 2e-3 if labels.dtype == "float16" else RTOL
        repeated = head(single(x), labels, weights, return_parts=True)
        np.testing.assert_allclose(to_host(head.losses[0]), expected, rtol=rtol)
        np.testing.assert_allclose(to_host(repeated), np.tile(parts, (N, 1)), rtol=rtol)
    head(single(x).reshape(3, 3, 7), shares.reshape(3, 3, N_CLASSES), weights.reshape(3, 3))
    np.testing.assert_allclose(to_host(head.losses[0]), expected, rtol=RTOL)
    half = layers.MRLHead(NESTING, N_CLASSES, tied=tied, dtype="mixed_bfloat16", label_smoothing=0.1)
    half.build((None, 7))
    half.set_weights(head.get_weights())
    half(single(x), shares, weights)
    np.testing.assert_allclose(to_host(half.losses[0]), expected, rtol=2e-2)


@HEADS_IN_TURN
def test_both_ways_to_train_on_distributions_take_the_same_steps(tied: bool, jit_compile: bool) -> None:
    (x, labels), other = data(24), mixed(24)
    shares = single(0.7 * np.eye(N_CLASSES)[labels] + 0.3 * other)
    inputs, share = keras.Input((7,)), keras.Input((N_CLASSES,))
    head = layers.MRLHead(NESTING, N_CLASSES, tied=tied)
    whole = keras.Model([inputs, share], head(inputs, share))
    twin = layers.MRLHead(NESTING, N_CLASSES, tied=tied)
    parts = keras.Model(inputs, twin(inputs))
    twin.set_weights(head.get_weights())
    metrics = [layers.PrefixLoss(NESTING), layers.PrefixAccuracy(NESTING)]
    whole.compile(keras.optimizers.SGD(0.5), jit_compile=jit_compile)
    parts.compile(keras.optimizers.SGD(0.5), layers.MRLCrossEntropy(NESTING), metrics=metrics, jit_compile=jit_compile)
    logits = parts.predict(x, verbose=0)
    found = parts.evaluate(x, shares, verbose=0, return_dict=True)
    expected, of_prefixes = of_logits(logits, shares)
    np.testing.assert_allclose(found["loss"], expected, rtol=RTOL)
    np.testing.assert_allclose([found[f"prefix_loss_{m}"] for m in NESTING], of_prefixes, rtol=RTOL)
    right = (logits.argmax(-1) == shares.argmax(-1)[:, None]).mean(axis=0)
    np.testing.assert_allclose([found[f"accuracy_{m}"] for m in NESTING], right, rtol=1e-6)
    for _ in range(3):
        one, (other_loss, *_) = whole.train_on_batch([x, shares]), parts.train_on_batch(x, shares)
        parts.reset_metrics()
        whole.reset_metrics()
        np.testing.assert_allclose(one, other_loss, rtol=RTOL)
    for ours, theirs in zip(head.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_hot_rows_are_class_ids() -> None:
    labels, logits = np.maximum(LABELS, 0), single(draw(N, 3, N_CLASSES))
    one_hot = keras.utils.to_categorical(labels, N_CLASSES)
    for kind in (layers.MRLCrossEntropy, layers.PrefixAccuracy, layers.PrefixLoss):
        judge = kind(NESTING, ignore_index=-100)  # of which a distribution has none
        ids, rows = (keras.tree.flatten(judge(given, logits)) for given in (labels, one_hot))
        np.testing.assert_allclose([to_host(v) for v in ids], [to_host(v) for v in rows], rtol=RTOL)


def test_the_dtype_tells_ids_from_distributions() -> None:
    single_class = single(draw(N, 3, 1))  # where (batch, 1) is the shape of both
    for labels in (np.zeros((N, 1), "int32"), np.ones((N, 1), "float32")):
        assert to_host(layers.MRLCrossEntropy(NESTING)(labels, single_class)) == 0.0
    logits = single(draw(N, 3, N_CLASSES))
    for judge in (layers.MRLCrossEntropy(NESTING), layers.PrefixAccuracy(NESTING), layers.PrefixLoss(NESTING)):
        for ids in (np.zeros(N, "float32"), np.zeros((N, 1), "float32")):
            with pytest.raises(TypeError, match="`y_true` must hold integer class ids, got dtype"):
                judge(ids, logits)
        with pytest.raises(ValueError, match=rf"`y_true` must have shape .* = \({N}, 4\), got \({N}, 5\)"):
            judge(np.full((N, 5), 0.2, "float32"), logits)
    head = layers.MRLHead(NESTING, N_CLASSES)
    with pytest.raises(ValueError, match=r"`labels` must have shape .* = \(None, 4\), got \(None, 3\)"):
        head(keras.Input((7,)), keras.Input((3,)))
    head(keras.Input((7,)), keras.Input((N_CLASSES,)))


class Unready(keras.metrics.Mean):
    """A metric that takes no tensors without values, on which Keras asks all of a model for shapes with ones."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if "meta" in str(getattr(y_true, "device", "")):
            raise RuntimeError
        super().update_state(ops.mean(y_pred), sample_weight)


def test_what_keras_makes_up_for_shapes_is_no_label() -> None:
    x, (_, labels) = single(draw(12, 7)), data(12)
    ours = {"loss": layers.MRLCrossEntropy(NESTING), "jit_compile": False}
    for n_classes, given in ((N_CLASSES, mixed(12)), (N_CLASSES, labels), (1, np.zeros(12, int))):
        model = keras.Sequential([keras.Input((7,)), layers.MRLHead(NESTING, n_classes)])
        model.compile("sgd", metrics=[Unready(), layers.PrefixLoss(NESTING), layers.PrefixAccuracy(NESTING)], **ours)
        assert np.isfinite(model.fit(x, given, verbose=0).history["loss"]).all()


# Labels that are none.

NO_LABELS = pytest.mark.parametrize("label", [-1, N_CLASSES, 10**6, -(2**31)])


def is_refused(call: Callable[[], Any]) -> bool:
    """Tell whether a label out of range ends in an error, where it can be read, or in NaN: in no plausible number."""
    try:
        values = keras.tree.flatten(call())
    except ValueError as error:
        return f"`labels` must lie within [0, {N_CLASSES})" in str(error)
    return bool(values) and all(np.isnan(to_host(ops.convert_to_tensor(value))).all() for value in values)


@NO_LABELS
@BOTH_HEADS
@pytest.mark.parametrize("ignored", [None, IGNORED])
def test_a_label_out_of_range_is_an_error_or_nan(label: int, tied: bool, ignored: int | None) -> None:
    x, logits = single(draw(N, 7)), single(draw(N, 3, N_CLASSES))
    labels = LABELS if ignored else np.maximum(LABELS, 0)
    bad = np.where(np.arange(N) == 4, label, labels)
    options: dict[str, Any] = {"ignore_index": ignored}
    head, _ = built_head(tied, **options)
    for reduction in ("sum_over_batch_size", "sum", "mean_with_sample_weight"):
        loss = layers.MRLCrossEntropy(NESTING, reduction=reduction, **options)
        assert is_refused(lambda loss=loss: loss(bad, logits))
        assert np.isfinite(to_host(loss(labels, logits)))

    def of_head() -> Any:
        head(x, bad)
        return head.losses

    assert is_refused(of_head)
    head(x, labels)
    assert np.isfinite(to_host(head.losses[0]))
    for metric in (layers.PrefixLoss(NESTING, **options), layers.PrefixAccuracy(NESTING, **options)):
        assert is_refused(lambda metric=metric: metric(bad, logits))
        metric.reset_state()
        assert np.isfinite([float(value) for value in metric(labels, logits).values()]).all()
    rows = layers.MRLCrossEntropy(NESTING, reduction="none", **options)
    assert is_refused(lambda: rows(bad, logits)[4])


@pytest.mark.parametrize(("label", "jit_compile"), list(zip([-1, N_CLASSES], [*JIT, False], strict=False)))
def test_a_label_out_of_range_shows_in_compiled_steps(label: int, jit_compile: bool) -> None:
    x, labels = data(12)
    bad = np.where(np.arange(12) == 7, label, labels)
    model = keras.Sequential([keras.Input((7,)), layers.MRLHead(NESTING, N_CLASSES, tied=True)])
    options: dict[str, Any] = {"ignore_index": IGNORED}
    metrics = [layers.PrefixAccuracy(NESTING, **options), layers.PrefixLoss(NESTING, **options)]
    model.compile("sgd", layers.MRLCrossEntropy(NESTING, **options), metrics=metrics, jit_compile=jit_compile)
    inputs, ids = keras.Input((7,)), keras.Input((), dtype="int32")
    fused = keras.Model([inputs, ids], layers.MRLHead(NESTING, N_CLASSES, **options)(inputs, ids))
    fused.compile("sgd", jit_compile=jit_compile)
    for step in (model.test_on_batch, model.train_on_batch):
        weights = model.get_weights()
        assert is_refused(lambda step=step: step(x, bad))
        model.set_weights(weights)
        assert is_refused(lambda: fused.test_on_batch([x, bad]))
    ignored = np.where(np.arange(12) == 7, IGNORED, labels)
    for each in (model, fused):  # before 3.15, Keras keeps the mean of one call for the next
        each.reset_metrics()
    assert np.isfinite(model.test_on_batch(x, ignored)).all()
    assert np.isfinite(fused.test_on_batch([x, ignored]))


if BACKEND != "torch":  # where Keras compiles nothing, so that the label can be read

    def traced(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        if BACKEND == "jax":
            return to_host(sys.modules["jax"].jit(function)(*arrays))
        return to_host(sys.modules["tensorflow"].function(function)(*map(ops.convert_to_tensor, arrays)))

    def test_only_the_row_of_a_label_out_of_range_is_broken() -> None:
        logits, labels = single(draw(N, 3, N_CLASSES)), np.maximum(LABELS, 0)
        bad, weights = np.where(np.arange(N) == 4, -1, labels), single(np.arange(N) % 5 != 4)
        loss = layers.MRLCrossEntropy(NESTING, reduction="none")
        expected, _ = of_logits(logits, labels, reduction="none")
        rows = traced(loss, bad, logits)
        np.testing.assert_allclose(rows[labels == bad], expected[labels == bad], rtol=RTOL)
        assert np.isnan(rows[4])
        weighed = traced(loss, bad, logits, weights)
        np.testing.assert_allclose(weighed, np.where(weights > 0, expected, 0.0), rtol=RTOL)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_sums_in_float32(policy: str) -> None:
    head = layers.MRLHead(NESTING, N_CLASSES, tied=True, dtype=policy)
    exact, pairs = built_head(True)
    head.build((None, 7))
    head.set_weights(exact.get_weights())
    x, labels, weights = single(draw(N, 7)), np.maximum(LABELS, 0), single(np.abs(draw(N)) * 1e-7)
    expected, _ = KINDS["mrl"].oracle((x, pairs), labels=labels, sample_weight=weights)
    logits = head(x, labels, weights)  # weights that float16 would round to 0
    assert keras.backend.standardize_dtype(logits.dtype) == policy.removeprefix("mixed_")
    (loss,) = head.losses
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    np.testing.assert_allclose(to_host(loss), expected, rtol=2e-2)
    compiled = layers.MRLCrossEntropy(NESTING, reduction="mean_with_sample_weight")(labels, logits, weights)
    assert keras.backend.standardize_dtype(compiled.dtype) == "float32"
    np.testing.assert_allclose(to_host(compiled), expected, rtol=2e-2)

    layer = layers.InfoNCE(NESTING, learnable_temperature=True, dtype=policy)
    found = layer(x, single(draw(N, 7, seed=1)))
    expected, _ = KINDS["info-nce"].oracle((x, draw(N, 7, seed=1)))
    np.testing.assert_allclose(to_host(found), expected, rtol=2e-2)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_a_custom_loop_trains(policy: str) -> None:
    keras.utils.set_random_seed(0)
    x, labels = data(24)
    head = layers.MRLHead(NESTING, N_CLASSES, dtype=policy)
    head.build((None, 7))
    optimizer = keras.optimizers.SGD(0.2)
    optimizer.build(head.trainable_variables)
    losses = []
    for _ in range(12):
        if BACKEND == "torch":
            head.zero_grad()
            head(x, labels)
            loss = head.losses[0]
            loss.backward()
            gradients = [variable.value.grad for variable in head.trainable_variables]
            with sys.modules["torch"].no_grad():
                optimizer.apply(gradients, head.trainable_variables)
        elif BACKEND == "tensorflow":
            with sys.modules["tensorflow"].GradientTape() as tape:
                head(x, labels)
                loss = head.losses[0]
            optimizer.apply(tape.gradient(loss, head.trainable_variables), head.trainable_variables)
        else:
            loss, gradients = jax_step(head, x, labels)
            optimizer.apply(gradients, head.trainable_variables)
        losses.append(float(to_host(loss)))
    assert losses[-1] < 0.6 * losses[0]


def jax_step(head: Any, x: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    def loss(trainable: Any) -> Any:
        _, _, losses = head.stateless_call(trainable, [], x, labels, return_losses=True)
        return losses[0]

    return sys.modules["jax"].value_and_grad(loss)([variable.value for variable in head.trainable_variables])


# Saving.


def distance(y_true: Any, y_pred: Any) -> Any:
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    "built",
    [
        lambda: layers.MRLHead(NESTING, 4, tied=True, bias=False, label_smoothing=0.1, ignore_index=-1, name="top"),
        lambda: layers.MRLHead(
            NESTING,
            4,
            kernel_initializer=keras.initializers.HeNormal(seed=1),
            bias_initializer="ones",
            kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2),
            bias_regularizer="l2",
            kernel_constraint=keras.constraints.MaxNorm(2.0, axis=0),
            bias_constraint="non_neg",
            dtype="mixed_float16",
        ),
        lambda: layers.InfoNCE(NESTING, temperature=0.1, symmetric=True, learnable_temperature=True, dtype="bfloat16"),
        lambda: layers.MRLCrossEntropy(NESTING, label_smoothing=0.1, ignore_index=3, reduction="sum", name="mine"),
        lambda: layers.NestedLoss("cosine_similarity", NESTING, normalize=True),
        lambda: layers.NestedLoss(keras.losses.Huber(delta=0.3), NESTING, reduction=None),
        lambda: layers.PrefixAccuracy(NESTING, ignore_index=3, name="top1"),
        lambda: layers.PrefixLoss(NESTING, label_smoothing=0.1),
    ],
    ids=["head", "head-of-weights", "info_nce", "cross_entropy", "nested-name", "nested-loss", "accuracy", "losses"],
)
def test_configuration_round_trip(built: Callable[[], Any]) -> None:
    first = built()
    second = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first))
    assert type(second) is type(first)
    assert second.get_config() == first.get_config()
    assert second.nesting == NESTING
    for name in ("initializer", "regularizer", "constraint"):
        pair = [getattr(layer, f"{of}_{name}", None) for of in ("kernel", "bias") for layer in (first, second)]
        assert [type(a) for a in pair[::2]] == [type(a) for a in pair[1::2]]


def test_a_function_of_ones_own_is_named_when_loading() -> None:
    config = keras.saving.serialize_keras_object(layers.NestedLoss(distance, NESTING))
    again = keras.saving.deserialize_keras_object(config, custom_objects={"distance": distance})
    assert again.loss is distance


def test_saved_models_give_the_same_logits_in_another_process(tmp_path: Path) -> None:
    (x, labels), logits = data(12), {}
    np.save(tmp_path / "x.npy", x)
    for name, tied in (("mrl", False), ("mrl-e", True)):
        inputs = keras.Input((7,))
        model = keras.Model(inputs, layers.MRLHead(NESTING, N_CLASSES, tied=tied)(keras.layers.Dense(7)(inputs)))
        model.compile("adam", layers.MRLCrossEntropy(NESTING), metrics=[layers.PrefixAccuracy(NESTING)])
        model.fit(x, labels, epochs=1, verbose=0)
        model.save(tmp_path / f"{name}.keras")
        again = keras.saving.load_model(tmp_path / f"{name}.keras")
        logits[name] = model.predict(x, verbose=0)
        np.testing.assert_allclose(again.predict(x, verbose=0), logits[name], rtol=1e-6, atol=1e-6)
        assert again.loss.get_config() == model.loss.get_config()
    code = """
import sys, numpy as np
from pathlib import Path
if sys.argv[2] == "torch":
    import torch
import keras, matryoshka.keras
for path in Path(sys.argv[1]).glob("*.keras"):
    model = keras.saving.load_model(path)
    np.save(path.with_suffix(".npy"), model.predict(np.load(path.with_name("x.npy")), verbose=0))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path), BACKEND], check=True, capture_output=True)
    for name, expected in logits.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-6, atol=1e-6)


def test_fused_training_can_be_saved(tmp_path: Path) -> None:
    x, labels = data(12)
    inputs, ids = keras.Input((7,)), keras.Input((), dtype="int32")
    model = keras.Model([inputs, ids], layers.MRLHead(NESTING, N_CLASSES)(inputs, ids, return_parts=True))
    model.compile("adam", metrics=[layers.PrefixLoss(NESTING)])
    model.fit([x, labels], epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict([x, labels], verbose=0), model.predict([x, labels], verbose=0), rtol=1e-5)


# Bad input.


def test_the_head_refuses_what_does_not_fit() -> None:
    head = layers.MRLHead(NESTING, N_CLASSES)
    with pytest.raises(
        ValueError, match=r"last axis of `embeddings` must be as wide as the nesting, 7, got .*\(None, 8\)"
    ):
        head(keras.Input((8,)))
    with pytest.raises(ValueError, match=r"`embeddings` must have shape \(\.\.\., dim\), got \(None,\)"):
        head(keras.Input(()))
    with pytest.raises(TypeError, match="`labels` must hold integer class ids, got dtype float32"):
        head(keras.Input((7,)), keras.Input(()))
    with pytest.raises(ValueError, match=r"`labels` must have one class id per row, shape \(None,\), got \(None, 4\)"):
        head(keras.Input((7,)), keras.Input((4,), dtype="int32"))
    head(keras.Input((7,)), keras.Input((1,), dtype="int32"))
    x = single(draw(N, 7))
    with pytest.raises(ValueError, match="as wide as the nesting, 7"):
        head(x[:, :6])
    with pytest.raises(TypeError, match="integer class ids, got dtype"):
        head(x, np.zeros(N, "float32"))
    with pytest.raises(ValueError, match=rf"shape \({N},\), got \({N}, 4\)"):
        head(x, np.eye(4, dtype=int)[np.maximum(LABELS, 0)])


def towers(**given: Any) -> Any:
    return layers.InfoNCE((2, 4))(keras.Input((4,)), keras.Input((4,)), **given)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: layers.MRLHead((4, 2), 3), ValueError, "`nesting` must be positive and strictly increasing"),
        (lambda: layers.MRLHead((2, 4), 0), ValueError, "`num_classes` must be an integer >= 1"),
        (lambda: layers.MRLHead((2, 4), 3, reduction="none"), ValueError, "`reduction` must be one of 'mean', 'sum'"),
        (lambda: layers.MRLHead((2, 4), 3, label_smoothing=2.0), ValueError, "`label_smoothing` must be finite and in"),
        (lambda: layers.MRLCrossEntropy((2, 4), ignore_index=0.5), TypeError, "`ignore_index` must be an integer"),
        (lambda: layers.MRLCrossEntropy((2, 4), reduction="average"), ValueError, "reduction"),
        (lambda: layers.InfoNCE((2, 4), temperature=0.0), ValueError, "`temperature` must be finite and in"),
        (lambda: layers.InfoNCE((2, 4), reduction="none"), ValueError, "`reduction` must be one of"),
        (lambda: layers.InfoNCE((2, 4))(keras.Input((5,)), keras.Input((4,))), ValueError, "`queries` must be as wide"),
        (lambda: layers.InfoNCE((2, 4))(keras.Input((4,)), keras.Input((3, 4))), ValueError, "`keys` must have shape"),
        (lambda: towers(negatives=keras.Input((3, 5))), ValueError, "`negatives` must be as wide as the nesting, 4"),
        (lambda: towers(negatives=keras.Input((4,))), ValueError, r"`negatives` must have shape \(n, h, dim\)"),
        (lambda: towers(mask=keras.Input((2, 2), dtype="bool")), ValueError, r"`mask` must have shape \(n, n_keys\)"),
        (lambda: towers(targets=keras.Input(())), ValueError, r"`targets` must have shape \(n, n_keys\)"),
        (lambda: layers.NestedLoss("no_such_loss", (2, 4)), ValueError, "no_such_loss"),
        (lambda: layers.NestedLoss(None, (2, 4)), TypeError, "`loss` must be callable"),
        (lambda: layers.PrefixLoss((2, 4), label_smoothing=-1.0), ValueError, "`label_smoothing` must be finite"),
    ],
)
def test_bad_options_are_refused_when_built(build: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build()


def test_losses_and_metrics_refuse_what_does_not_fit() -> None:
    logits = single(draw(N, 3, N_CLASSES))
    for judge in (layers.MRLCrossEntropy(NESTING), layers.PrefixAccuracy(NESTING), layers.PrefixLoss(NESTING)):
        with pytest.raises(TypeError, match="`y_true` must hold integer class ids, got dtype"):
            judge(np.zeros(N, "float32"), logits)
        with pytest.raises(ValueError, match=rf"`y_true` must have one class id per row, shape \({N},\)"):
            judge(np.eye(4, dtype=int)[np.maximum(LABELS, 0)], logits)
        with pytest.raises(ValueError, match=r"`y_pred` must have shape \(batch, \.\.\., G, num_classes\)"):
            judge(LABELS, logits[:, 0])
        with pytest.raises(ValueError, match=r"`y_pred` must have shape .* = \(9, 3, 4\), got \(9, 2, 4\)"):
            judge(LABELS, logits[:, :2])
    with pytest.raises(ValueError, match="as wide as the nesting, 7"):
        layers.NestedLoss("mse", NESTING)(single(draw(2, 8)), single(draw(2, 8)))


def test_a_missing_backend_names_the_command() -> None:
    code = """
import sys
from importlib.machinery import PathFinder
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
try:
    import matryoshka.keras
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code, BACKEND], capture_output=True, text=True, check=True)
    extra = {"tensorflow": "keras"}.get(BACKEND, BACKEND)
    assert f"Keras is set to the backend {BACKEND}, which is not installed" in run.stdout
    assert f'pip install "matryoshka-mrl[{extra}]"' in run.stdout
    run = subprocess.run([sys.executable, "-c", code, "keras"], capture_output=True, text=True, check=True)
    assert "`matryoshka.keras` needs keras, which is not installed; run: pip install " in run.stdout
    assert 'pip install "matryoshka-mrl[keras]"' in run.stdout
