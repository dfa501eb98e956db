"""The losses under JAX's transformations: jit, grad and vmap, and what they keep in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import FLAT, LABELS, NESTING, assert_within_a_millionth, large, shares, value_and_slopes
from conftest import load

from matryoshka import info_nce, mrl_e_cross_entropy, mrl_e_cross_entropy_with_grad

jax = load("jax")
jnp = load("jax.numpy")


def single(arrays: Any) -> list[Any]:
    return [jnp.asarray(array, dtype=jnp.float32) for array in arrays]


def value_and_grad(name: str, reduction: str, **options: Any) -> Any:
    """Return value and gradients of a loss as a function of all its arrays, in one list."""
    loss = partial(FLAT[name], reduction=reduction, convert=jnp.asarray, **options)
    share = jnp.asarray(shares(name, reduction), dtype=jnp.float32)
    return jax.value_and_grad(lambda arrays: (share * loss(*arrays)).sum())


def assert_trees_close(actual: Any, expected: Any, rtol: float = 2e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), actual, expected)


@pytest.mark.parametrize(
    ("name", "reduction", "row_block"),
    [("mrl", "mean", 4), ("mrl-e", "none", 4), ("logits", "none", None), ("logits", "sum", 4), ("info-nce", "mean", 4)],
)
def test_values_and_gradients_under_jit_are_those_of_loops(name: str, reduction: str, row_block: int | None) -> None:
    """Gradients of sample weights and temperature too; neither 6 rows nor 5 queries fill blocks of 4."""
    found = jax.jit(value_and_grad(name, reduction, row_block=row_block))(single(FLAT[name].arrays()))
    assert_trees_close(found, value_and_slopes(name, reduction))


def test_vmap_works_on_a_batch_of_problems() -> None:
    scales = (1.0, 0.5, 2.0)
    batch = single(np.stack([scale * array for scale in scales]) for array in FLAT["mrl-e"].arrays())
    values, gradients = jax.jit(jax.vmap(value_and_grad("mrl-e", "mean", row_block=4)))(batch)
    for i, scale in enumerate(scales):
        found = values[i], [gradient[i] for gradient in gradients]
        assert_trees_close(found, value_and_slopes("mrl-e", "mean", scale), rtol=5e-5)


def test_closed_form_gradients_compile_too() -> None:
    (x, weight, *_), labels = single(FLAT["mrl-e"].arrays()), jnp.asarray(LABELS)
    loss, gradients = jax.jit(
        lambda x, weight: mrl_e_cross_entropy_with_grad(x, weight, None, labels, nesting=NESTING, row_block=4)
    )(x, weight)
    plain = jax.value_and_grad(lambda arrays: mrl_e_cross_entropy(*arrays, None, labels, nesting=NESTING))
    assert_trees_close((loss, (gradients.embeddings, gradients.weight)), jax.jit(plain)((x, weight)))


def test_parts_are_for_logging() -> None:
    x, weight, *_ = single(FLAT["mrl-e"].arrays())

    def parts_of(x: Any) -> Any:
        return mrl_e_cross_entropy(x, weight, None, jnp.asarray(LABELS), nesting=NESTING, return_parts=True)[1].sum()

    assert not jax.jit(jax.grad(parts_of))(x).any()


@pytest.mark.parametrize("kind", ["mrl-e", "info-nce"])
def test_numpy_and_jax_agree_to_a_millionth(kind: str) -> None:
    """Values and gradients in float32, of more than one block of rows."""
    flat, *expected = large(kind)
    arrays = single(flat.arrays())
    value, gradients = jax.jit(lambda arrays: flat(*arrays, method="with_grad", convert=jnp.asarray))(arrays)
    assert_within_a_millionth(float(value), gradients[: len(arrays)], expected)


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
