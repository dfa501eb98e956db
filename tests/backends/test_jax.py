"""The losses under JAX's transformations: jit, grad and vmap, and what they keep in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import load

from matryoshka import (
    Nesting,
    info_nce,
    info_nce_with_grad,
    mrl_cross_entropy,
    mrl_e_cross_entropy,
    mrl_e_cross_entropy_with_grad,
    mrl_logits_cross_entropy,
)

jax = load("jax")
jnp = load("jax.numpy")

NESTING = Nesting((2, 3, 7), importance=(2.0, 0.0, 0.5))
N_ROWS, N_CLASSES, IGNORED = 7, 4, -100
LABELS = np.array([3, 0, 1, IGNORED, 2, 3, 1])


def draw(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed + sum(shape)).normal(size=shape), dtype=jnp.float32)


# Each loss twice, as functions of the same tuple of arrays: ours, and prefix by prefix in plain JAX.


def cross_entropy(logits: Any, labels: Any, weights: Any, reduction: str) -> Any:
    keep = (labels != IGNORED) * weights
    log_p = jax.nn.log_softmax(logits)
    target = 0.9 * jax.nn.one_hot(labels, log_p.shape[1]) + 0.1 / log_p.shape[1]
    rows = -keep * (target * log_p).sum(axis=1)
    return {"mean": rows.sum() / keep.sum(), "sum": rows.sum(), "none": rows}[reduction]


def weighed(parts: Any) -> Any:
    return sum(c * part for c, part in zip(NESTING.importance, parts, strict=True))


def options(weights: Any, reduction: str, row_block: int | None) -> dict[str, Any]:
    """What the three cross-entropies are called with, and `cross_entropy` above has built in."""
    fixed = {"nesting": NESTING, "ignore_index": IGNORED, "label_smoothing": 0.1}
    return {"sample_weight": weights, "reduction": reduction, "row_block": row_block, **fixed}


def mrl(arrays: Any, reduction: str, row_block: int | None) -> Any:
    x, weights, heads = arrays
    return mrl_cross_entropy(x, heads, jnp.asarray(LABELS), **options(weights, reduction, row_block))


def plain_mrl(arrays: Any, reduction: str) -> Any:
    x, weights, heads = arrays
    logits = [x[:, :m] @ w.T + b for m, (w, b) in zip(NESTING, heads, strict=True)]
    return weighed(cross_entropy(z, jnp.asarray(LABELS), weights, reduction) for z in logits)


def mrl_e(arrays: Any, reduction: str, row_block: int | None) -> Any:
    x, weights, weight = arrays
    return mrl_e_cross_entropy(x, weight, None, jnp.asarray(LABELS), **options(weights, reduction, row_block))


def plain_mrl_e(arrays: Any, reduction: str) -> Any:
    x, weights, weight = arrays
    logits = [x[:, :m] @ weight[:, :m].T for m in NESTING]
    return weighed(cross_entropy(z, jnp.asarray(LABELS), weights, reduction) for z in logits)


def of_logits(arrays: Any, reduction: str, row_block: int | None) -> Any:
    weights, logits = arrays
    return mrl_logits_cross_entropy(logits, jnp.asarray(LABELS), **options(weights, reduction, row_block))


def plain_of_logits(arrays: Any, reduction: str) -> Any:
    weights, logits = arrays
    return weighed(cross_entropy(z, jnp.asarray(LABELS), weights, reduction) for z in logits)


def contrastive(arrays: Any, reduction: str, row_block: int | None) -> Any:
    queries, keys, log_temperature = arrays
    return info_nce(
        queries,
        keys,
        nesting=NESTING,
        temperature=jnp.exp(log_temperature),
        reduction=reduction,
        row_block=row_block,
    )


def plain_contrastive(arrays: Any, reduction: str) -> Any:
    queries, keys, log_temperature = arrays
    parts = []
    for m in NESTING:
        q, k = (rows[:, :m] / jnp.linalg.norm(rows[:, :m], axis=1, keepdims=True) for rows in (queries, keys))
        rows = -jnp.diagonal(jax.nn.log_softmax(q @ k.T / jnp.exp(log_temperature)))
        parts.append({"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction])
    return weighed(parts)


LOSSES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "mrl": (
        mrl,
        plain_mrl,
        (draw(N_ROWS, 7), jnp.abs(draw(N_ROWS)), [(draw(N_CLASSES, m), draw(N_CLASSES)) for m in NESTING]),
    ),
    "mrl-e": (mrl_e, plain_mrl_e, (draw(N_ROWS, 7), jnp.abs(draw(N_ROWS)), draw(N_CLASSES, 7))),
    "logits": (of_logits, plain_of_logits, (jnp.abs(draw(N_ROWS)), [draw(N_ROWS, N_CLASSES, seed=m) for m in NESTING])),
    "info-nce": (contrastive, plain_contrastive, (draw(N_ROWS, 7), draw(N_ROWS + 2, 7), draw())),
}


def assert_trees_close(actual: Any, expected: Any, rtol: float = 2e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), actual, expected)


@pytest.mark.parametrize(
    ("name", "reduction", "row_block"),
    [("mrl", "mean", 4), ("mrl-e", "none", 4), ("logits", "none", None), ("logits", "sum", 4), ("info-nce", "mean", 4)],
)
def test_values_and_gradients_under_jit_are_those_of_plain_jax(
    name: str, reduction: str, row_block: int | None
) -> None:
    """Gradients of sample weights and temperature too; 7 rows do not fill blocks of 4."""
    ours, plain, arrays = LOSSES[name]
    share = jnp.linspace(-1.0, 2.0, N_ROWS) if reduction == "none" else 3.0  # a weight of its own for each row

    def value_and_grad(loss: Callable[..., Any], *options: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda arrays: (share * loss(arrays, reduction, *options)).sum()))(arrays)

    assert_trees_close(value_and_grad(ours, row_block), value_and_grad(plain))


def test_vmap_works_on_a_batch_of_problems() -> None:
    ours, plain, arrays = LOSSES["mrl-e"]
    batch = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, 2 * a]), arrays)
    together = jax.jit(jax.vmap(jax.value_and_grad(lambda arrays: ours(arrays, "mean", 4))))(batch)
    one_by_one = jax.jit(jax.vmap(jax.value_and_grad(lambda arrays: plain(arrays, "mean"))))(batch)
    assert_trees_close(together, one_by_one, rtol=5e-5)


def test_closed_form_gradients_compile_too() -> None:
    x, weight, labels = draw(N_ROWS, 7), draw(N_CLASSES, 7), jnp.abs(jnp.asarray(LABELS)) % N_CLASSES
    loss, gradients = jax.jit(
        lambda x, weight: mrl_e_cross_entropy_with_grad(x, weight, None, labels, nesting=NESTING, row_block=4)
    )(x, weight)
    plain = jax.value_and_grad(lambda arrays: mrl_e_cross_entropy(*arrays, None, labels, nesting=NESTING))
    expected = jax.jit(plain)((x, weight))
    assert_trees_close((loss, (gradients.embeddings, gradients.weight)), expected)


def test_parts_are_for_logging() -> None:
    def parts_of(x: Any) -> Any:
        labels = jnp.asarray([3, 0, 1, 2, 2, 3, 1])
        return mrl_e_cross_entropy(x, draw(N_CLASSES, 7), None, labels, nesting=NESTING, return_parts=True)[1].sum()

    assert not jax.jit(jax.grad(parts_of))(draw(N_ROWS, 7)).any()


@pytest.mark.parametrize("name", ["mrl-e", "info-nce"])
def test_numpy_and_jax_agree_to_a_millionth(name: str) -> None:
    """Values and gradients in float32, of more than one block of rows."""
    n, dims, n_classes = 300, (8, 16, 32, 64), 300
    rng = np.random.default_rng(5)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((n, 64), (n_classes, 64)))

    def run(x: Any, weight: Any, labels: Any) -> Any:
        if name == "info-nce":
            loss, gradients = info_nce_with_grad(x, weight, nesting=dims, temperature=0.5, row_block=128)
        else:
            options = {"nesting": dims, "row_block": 128}
            loss, gradients = mrl_e_cross_entropy_with_grad(x, weight / 8, None, labels, **options)
        return loss, gradients[:2]

    labels = rng.integers(0, n_classes, size=n)
    expected, gradients = run(x, weight, labels)
    loss, jax_gradients = jax.jit(run)(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(labels))
    assert abs(float(loss) / expected - 1) < 1e-6
    for ours, gradient in zip(jax_gradients, gradients, strict=True):
        assert np.linalg.norm(np.asarray(ours) - gradient) < 1e-6 * np.linalg.norm(gradient)


@pytest.mark.parametrize("name", ["mrl-e", "info-nce"])
def test_one_block_of_logits_is_alive_at_a_time(name: str) -> None:
    """Plain JAX keeps the logits of every prefix; ours not even those of one, of all rows."""
    n, dims, n_classes = 4096, (8, 16, 32, 64), 1000
    labels = jnp.zeros(n, dtype=jnp.int32)

    def loss(x: Any, weight: Any) -> Any:
        if name == "info-nce":
            return info_nce(x, weight, nesting=dims, row_block=128)
        return mrl_e_cross_entropy(x, weight, None, labels, nesting=dims, row_block=128)

    n_keys = n if name == "info-nce" else n_classes
    shapes = [jax.ShapeDtypeStruct((rows, 64), jnp.float32) for rows in (n, n_keys)]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    bytes_of_one_prefix = 4 * n * n_keys
    assert compiled.memory_analysis().temp_size_in_bytes < bytes_of_one_prefix
