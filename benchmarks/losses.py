"""The steps that the suite `losses` times: forward and backward, each in three ways.

- `ours`: the fused loss of this library;
- `loop`: a framework's own loss, called once per prefix, as the official layer and MatryoshkaLoss do;
- `full`: the framework's own loss at full width only, without any prefix.

In Keras a step is `train_on_batch`, the optimizer included; in sentence-transformers it begins with token embeddings
that are there, and the loop is `MatryoshkaLoss` around `MultipleNegativesRankingLoss`.

`python -m benchmarks.losses memory CASE FRAMEWORK WAY` prints the peak memory of one step above its inputs, in bytes:
that has to be measured in a process of its own. `serve` in place of `memory` runs a step for each line it is sent: a
backend of Keras needs a process of its own, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conftest import THREADS
from matryoshka import (
    Nesting,
    info_nce,
    info_nce_with_grad,
    mrl_cross_entropy,
    mrl_cross_entropy_with_grad,
    mrl_e_cross_entropy,
    mrl_e_cross_entropy_with_grad,
)

Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A loss and its size; `n_classes` is the number of keys for InfoNCE."""

    loss: str
    n: int
    n_classes: int
    nesting: Nesting

    def __str__(self) -> str:
        dims = self.nesting.dims
        ladder = f"{dims[0]}…{dims[-1]}" if len(dims) < 12 else f"every {dims[0]} to {dims[-1]}"
        against = f"{self.n:,} keys" if self.loss == "InfoNCE" else f"{self.n_classes:,} classes"
        return f"{self.loss} {ladder}, batch {self.n:,}, {against}"

    def multiply_adds(self, way: str) -> int:
        """Multiply-adds of forward and backward: each product is done once forward and twice backward."""
        dims = self.nesting.dims
        once = way == "full" or (way == "ours" and self.loss != "MRL")
        return 3 * self.n * self.n_classes * (dims[-1] if once else sum(dims))

    def logit_bytes(self, way: str) -> int:
        """Bytes of the logits or similarities that are alive at the end of the forward pass."""
        return 0 if way == "ours" else 4 * self.n * self.n_classes * (1 if way == "full" else len(self.nesting))

    def inputs(self) -> dict[str, Any]:
        """Draw the inputs, as NumPy arrays."""
        rng, (n, c, dim) = np.random.default_rng(0), (self.n, self.n_classes, self.nesting.dim)
        inputs: dict[str, Any] = {"x": rng.standard_normal((n, dim), dtype=np.float32)}
        if self.loss == "InfoNCE":
            return inputs | {"keys": inputs["x"] + rng.standard_normal((c, dim), dtype=np.float32)}
        widths = self.nesting.dims if self.loss == "MRL" else (dim,)
        weights = [rng.standard_normal((c, width), dtype=np.float32) / 50 for width in widths]
        return inputs | {"weights": weights, "bias": np.zeros(c, np.float32), "labels": rng.integers(0, c, n)}


LADDER, EVERY_64 = Nesting.halving(2048), Nesting(range(64, 2049, 64))
CASES = [
    Case("MRL-E", 256, 1000, LADDER),
    Case("MRL-E", 1024, 1000, LADDER),
    Case("MRL-E", 256, 10_000, LADDER),
    Case("MRL-E", 256, 50_000, LADDER),
    Case("MRL-E", 256, 1000, EVERY_64),
    Case("MRL", 256, 1000, LADDER),
    Case("MRL", 1024, 1000, LADDER),
    Case("MRL", 256, 10_000, LADDER),
    *(Case("InfoNCE", n, n, Nesting((32, 64, 128, 256, 512, 768))) for n in (256, 1024, 4096)),
    Case("InfoNCE", 1024, 1024, Nesting.halving(3072, smallest=96)),
]


def step(case: Case, framework: str, way: str) -> Step:
    """Return a function that runs one forward and backward pass and returns the gradients."""
    if framework.startswith("keras"):
        return _keras_step(case, way)
    steps = {"torch": _torch_step, "jax": _jax_step, "numpy": _numpy_step, "sentence-transformers": _st_step}
    return steps[framework](case, way)


def _torch_step(case: Case, way: str) -> Step:
    import torch
    from torch.nn.functional import cross_entropy, normalize

    torch.set_num_threads(THREADS)
    inputs, dims = case.inputs(), case.nesting.dims
    widths = dims[-1:] if way == "full" else dims
    x = torch.from_numpy(inputs["x"]).requires_grad_()
    if case.loss == "InfoNCE":
        keys, positives = torch.from_numpy(inputs["keys"]).requires_grad_(), torch.arange(case.n)
        leaves = [x, keys]

        def similarities(m: int) -> Any:
            return normalize(x[:, :m]) @ normalize(keys[:, :m]).T / 0.05

        def loss() -> Any:
            if way == "ours":
                return info_nce(x, keys, nesting=case.nesting)
            return sum(cross_entropy(similarities(m), positives) for m in widths)
    else:
        weights = [torch.from_numpy(weight).requires_grad_() for weight in inputs["weights"]]
        bias, labels = torch.from_numpy(inputs["bias"]).requires_grad_(), torch.from_numpy(inputs["labels"])
        if way == "full":
            weights = weights[-1:]
        heads = [(weight, bias) for weight in (weights * len(widths))[: len(widths)]]
        leaves = [x, *weights, bias]

        def loss() -> Any:
            if way != "ours":
                logits = (x[:, :m] @ w[:, :m].T + b for m, (w, b) in zip(widths, heads, strict=True))
                return sum(cross_entropy(z, labels) for z in logits)
            if case.loss == "MRL":
                return mrl_cross_entropy(x, heads, labels, nesting=case.nesting)
            return mrl_e_cross_entropy(x, *heads[0], labels, nesting=case.nesting)

    def run() -> Any:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()
        return [leaf.grad for leaf in leaves]

    return run


def _st_step(case: Case, way: str) -> Step:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling

    from matryoshka.sentence_transformers import MatryoshkaMultipleNegativesRankingLoss

    torch.set_num_threads(THREADS)
    inputs, n_tokens = case.inputs(), 4
    tokens = [torch.from_numpy(inputs[name]).repeat(n_tokens, 1, 1).transpose(0, 1) for name in ("x", "keys")]
    leaves = [array.contiguous().requires_grad_() for array in tokens]
    mask = torch.ones(case.n, n_tokens, dtype=torch.int64)
    model = SentenceTransformer(modules=[Pooling(case.nesting.dim)], device="cpu")
    loss: Any = MultipleNegativesRankingLoss(model)
    if way == "loop":
        loss = MatryoshkaLoss(model, loss, case.nesting.dims)
    elif way == "ours":
        loss = MatryoshkaMultipleNegativesRankingLoss(model, case.nesting)

    def run() -> Any:
        for leaf in leaves:
            leaf.grad = None
        value = loss([{"token_embeddings": leaf, "attention_mask": mask} for leaf in leaves], None)
        (sum(value.values()) if way == "ours" else value).backward()
        return [leaf.grad for leaf in leaves]

    return run


def _keras_step(case: Case, way: str) -> Step:
    import keras
    from keras import ops

    from matryoshka.keras import MRLHead

    widths = case.nesting.dims[-1:] if way == "full" else case.nesting.dims

    class Loop(keras.layers.Layer):  # type: ignore[misc]
        """The classifier of every prefix, shared, with Keras' own loss of each."""

        def build(self, x_shape: Any, labels_shape: Any) -> None:
            self.kernel = self.add_weight(shape=(case.nesting.dim, case.n_classes))
            self.bias = self.add_weight(shape=(case.n_classes,), initializer="zeros")

        def call(self, x: Any, labels: Any) -> Any:
            for m in widths:
                logits = x[:, :m] @ self.kernel[:m] + self.bias
                self.add_loss(ops.mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)))
            return labels

    inputs = case.inputs()
    x, labels = keras.Input((case.nesting.dim,)), keras.Input((), dtype="int32")
    embeddings = keras.layers.LayerNormalization()(x)  # cheap, and trained: embeddings have a gradient
    if way == "ours":
        found = MRLHead(case.nesting, case.n_classes, tied=True)(embeddings, labels, return_parts=True)
    else:
        found = Loop()(embeddings, labels)
    model = keras.Model([x, labels], found)
    model.compile(keras.optimizers.SGD(0.01))
    batch = [inputs["x"], inputs["labels"].astype("int32")]
    return lambda: model.train_on_batch(batch)


def _jax_step(case: Case, way: str) -> Step:
    run, arguments = _jax_compiled(case, way)
    import jax

    return lambda: jax.block_until_ready(run(*arguments))


def _jax_compiled(case: Case, way: str) -> tuple[Any, tuple[Any, ...]]:
    import jax
    import jax.numpy as jnp
    from jax.nn import log_softmax

    inputs = jax.tree.map(jnp.asarray, case.inputs())
    widths = case.nesting.dims[-1:] if way == "full" else case.nesting.dims

    def cross_entropy(z: Any, labels: Any) -> Any:
        return -jnp.take_along_axis(log_softmax(z), labels[:, None], axis=1).mean()

    def contrastive(x: Any, keys: Any) -> Any:
        if way == "ours":
            return info_nce(x, keys, nesting=case.nesting)
        unit = [[a[:, :m] / jnp.linalg.norm(a[:, :m], axis=1, keepdims=True) for a in (x, keys)] for m in widths]
        return sum(cross_entropy(q @ k.T / 0.05, jnp.arange(case.n)) for q, k in unit)

    def classify(x: Any, weights: Any, bias: Any, labels: Any) -> Any:
        heads = [(weight, bias) for weight in weights]
        if way == "ours" and case.loss == "MRL":
            return mrl_cross_entropy(x, heads, labels, nesting=case.nesting)
        if way == "ours":
            return mrl_e_cross_entropy(x, *heads[0], labels, nesting=case.nesting)
        chosen = (weights[-len(widths) :] * len(widths))[: len(widths)]
        return sum(cross_entropy(x[:, :m] @ w[:, :m].T + bias, labels) for m, w in zip(widths, chosen, strict=True))

    if case.loss == "InfoNCE":
        function, arguments, differentiated = contrastive, (inputs["x"], inputs["keys"]), (0, 1)
    else:
        function, differentiated = classify, (0, 1, 2)
        arguments = (inputs["x"], inputs["weights"], inputs["bias"], inputs["labels"])
    return jax.jit(jax.value_and_grad(function, differentiated)).lower(*arguments).compile(), arguments


def _numpy_step(case: Case, way: str) -> Step:
    inputs, dims = case.inputs(), case.nesting.dims
    x = inputs["x"]
    if case.loss == "InfoNCE":
        return lambda: info_nce_with_grad(x, inputs["keys"], nesting=case.nesting)
    heads = [(weight, inputs["bias"]) for weight in inputs["weights"]]
    if way == "ours" and case.loss == "MRL":
        return lambda: mrl_cross_entropy_with_grad(x, heads, inputs["labels"], nesting=case.nesting)
    if way == "ours":
        return lambda: mrl_e_cross_entropy_with_grad(x, *heads[0], inputs["labels"], nesting=case.nesting)
    widths = dims[-1:] if way == "full" else dims
    chosen = (inputs["weights"][-len(widths) :] * len(widths))[: len(widths)]

    def run() -> Any:
        d_x, gradients = np.zeros_like(x), []
        for m, w in zip(widths, chosen, strict=True):
            loss, d_prefix, *d_head = _numpy_head(x[:, :m], w[:, :m], inputs["bias"], inputs["labels"])
            d_x[:, :m] += d_prefix
            gradients.append((loss, *d_head))
        return d_x, gradients

    return run


def _numpy_head(x: Any, weight: Any, bias: Any, labels: Any) -> Any:
    """One linear head with cross-entropy and its gradients, as one would write it by hand."""
    z = x @ weight.T + bias
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z)
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(x))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1.0
    p /= len(x)
    return loss, p @ weight, p.T @ x, p.sum(axis=0)


def jax_temporary_bytes(case: Case, way: str) -> int:
    """Return the temporary memory that the compiler plans for a step."""
    return int(_jax_compiled(case, way)[0].memory_analysis().temp_size_in_bytes)


def peak_bytes(run: Step) -> int:
    """Return how far the resident memory of this process rises above its start in one step (Linux)."""
    status = Path("/proc/self/status")

    def read(field: str) -> int:
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    run()
    return read("VmHWM") - before


def serve(run: Step) -> None:
    """Run a step for each line of the standard input, and answer with a line."""
    for _ in sys.stdin:
        run()
        print("done", flush=True)


if __name__ == "__main__":
    task, index, framework, way = sys.argv[1:]
    case = CASES[int(index)]
    if task == "serve":
        serve(step(case, framework, way))
    else:
        step(case, framework, way)()  # what a library itself keeps from its first use on does not count
        print(peak_bytes(step(case, framework, way)))
