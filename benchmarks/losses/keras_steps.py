"""The steps in Keras, on the backend of KERAS_BACKEND: `train_on_batch`, the optimizer included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.losses import SparseCategoricalCrossentropy, sparse_categorical_crossentropy

from benchmarks.losses.cases import Case
from matryoshka.keras import MRLHead


class Loop(keras.layers.Layer):  # type: ignore[misc]
    """The classifier of every prefix, shared, with Keras' own loss of each."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def build(self, x_shape: Any, labels_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(self.case.nesting.dim, self.case.n_classes))
        self.bias = self.add_weight(shape=(self.case.n_classes,), initializer="zeros")

    def call(self, x: Any, labels: Any) -> Any:
        for m in self.case.nesting:
            logits = x[:, :m] @ self.kernel[:m] + self.bias
            self.add_loss(ops.mean(sparse_categorical_crossentropy(labels, logits, from_logits=True)))
        return labels


def build(case: Case, way: str) -> Callable[[], Any]:
    """Return a function that runs a step."""
    inputs, labels = case.inputs(), keras.Input((), dtype="int32")
    targets = inputs["labels"].astype("int32")
    x = keras.Input((case.nesting.dim,))
    embeddings = keras.layers.LayerNormalization()(x)  # cheap, and trained: embeddings have a gradient
    optimizer = keras.optimizers.SGD(0.01)
    if way == "full":
        model = keras.Model(x, keras.layers.Dense(case.n_classes)(embeddings))
        model.compile(optimizer, SparseCategoricalCrossentropy(from_logits=True))
        return lambda: model.train_on_batch(inputs["x"], targets)
    if way == "ours":
        found = MRLHead(case.nesting, case.n_classes, tied=True)(embeddings, labels, return_parts=True)
    else:
        found = Loop(case)(embeddings, labels)
    model = keras.Model([x, labels], found)
    model.compile(optimizer)
    return lambda: model.train_on_batch([inputs["x"], targets])
