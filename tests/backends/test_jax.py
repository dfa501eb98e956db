"""The losses under JAX's transformations: jit, grad and vmap, and what they keep in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from cases import (
    FLAT,
    KINDS,
    LABELS,
    MASK,
    NESTING,
    WEIGHTS,
    assert_within_a_millionth,
    large,
    shares,
    value_and_slopes,
)
from conftest import load

from matryoshka import info_nce, info_nce_with_grad, mrl_e_cross_entropy, mrl_e_cross_entropy_with_grad

jax = load("jax")
jnp = load("jax.numpy")
check_grads = load("jax.test_util").check_grads


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
    [
        ("mrl", "mean", 4),
        ("mrl-e", "none", 4),
        ("mrl-e-shares", "mean", 4),
        ("logits", "none", None),
        ("logits", "sum", 4),
        ("info-nce", "mean", 4),
        ("info-nce-hard", "none", 4),
    ],
)
def test_values_and_gradients_under_jit_are_those_of_loops(name: str, reduction: str, row_block: int | None) -> None:
    """Gradients of sample weights and temperature too; neither 6 rows nor 5 queries fill blocks of 4."""
    found = jax.jit(value_and_grad(name, reduction, row_block=row_block))(single(FLAT[name].arrays()))
    assert_trees_close(found, value_and_slopes(name, reduction))


@pytest.mark.parametrize("n_rows", [0, 3])
def test_dense_ladders_need_no_rows(n_rows: int) -> None:
    """Some of their running sums are kept from being formed anew, which looks at a first entry."""
    rows = jnp.ones((n_rows, 16))
    slope = jax.grad(lambda x: info_nce(x, x, nesting=range(1, 17)))(rows)
    assert slope.shape == rows.shape


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_in_the_weight_0_of_a_row_is_its_loss(compiled: bool) -> None:
    arrays, labels = single(KINDS["mrl-e"].arrays()), jnp.asarray(LABELS)
    loss = partial(KINDS["mrl-e"].loss, arrays, labels=labels)
    slope = jax.grad(lambda weights: loss(sample_weight=weights, reduction="sum"))
    found = (jax.jit(slope) if compiled else slope)(jnp.zeros(len(LABELS)))
    np.testing.assert_allclose(found, loss(reduction="none"), rtol=1e-5)


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


def test_numpy_arrays_may_stand_beside_jax_arrays() -> None:
    """As in JAX itself: data in NumPy while a weight is differentiated, a NumPy number as the temperature."""
    embeddings, weight, bias = (array.astype(np.float32) for array in KINDS["mrl-e"].arrays())

    def loss(weight: Any) -> Any:
        return mrl_e_cross_entropy(embeddings, weight, bias, LABELS, nesting=NESTING, sample_weight=WEIGHTS)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(weight))
    expected, gradients = mrl_e_cross_entropy_with_grad(
        embeddings, weight, bias, LABELS, nesting=NESTING, sample_weight=WEIGHTS
    )
    assert_trees_close((value, gradient), (expected, gradients.weight))
    queries, keys = (array.astype(np.float32) for array in KINDS["info-nce"].arrays())
    found = jax.jit(lambda q: info_nce(q, keys, nesting=NESTING, temperature=np.float32(0.3), mask=MASK))(queries)
    assert_trees_close(found, info_nce(queries, keys, nesting=NESTING, temperature=0.3, mask=MASK))
    check_grads(loss, (jnp.asarray(weight),), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", FLAT)
def test_no_rank_is_promoted_and_nothing_moved_behind_the_back(name: str) -> None:
    arrays, mean, each = single(FLAT[name].arrays()), value_and_grad(name, "mean"), value_and_grad(name, "none")
    with jax.numpy_rank_promotion("raise"):
        compiled = [jax.jit(function).lower(arrays).compile() for function in (mean, each)]
    with jax.transfer_guard("disallow"):
        for function in compiled:
            jax.block_until_ready(function(arrays))


SHARDED = """
import jax
import jax.numpy as jnp
import numpy as np
from cases import FLAT, shares
from jax.sharding import Mesh, PartitionSpec

mesh, same = Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec()


def check(name, reduction, row_block):
    arrays = [jnp.asarray(array, jnp.float32) for array in FLAT[name].arrays()]

    def loss(arrays):
        found = FLAT[name](*arrays, reduction=reduction, row_block=row_block, convert=jnp.asarray)
        return (jnp.asarray(shares(name, reduction), jnp.float32) * found).sum()

    def outside(arrays):
        # The first array differs between the devices, all others are the same on both.
        return jax.lax.psum(loss([arrays[0] * (1.0 + jax.lax.axis_index("rows")), *arrays[1:]]), "rows")

    def inside(arrays):
        rows = jax.lax.pcast(arrays[0], "rows", to="varying")
        return jax.lax.psum(jax.grad(loss)([rows, *arrays[1:]])[0], "rows")

    def alone(arrays):
        return loss(arrays) + loss([2.0 * arrays[0], *arrays[1:]])

    def on_two(function):
        return jax.shard_map(function, mesh=mesh, in_specs=(same,), out_specs=same)

    found, expected = (jax.jit(jax.value_and_grad(f))(arrays) for f in (on_two(outside), alone))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    slope = jax.grad(loss)(arrays)[0]
    np.testing.assert_allclose(jax.jit(on_two(inside))(arrays), 2 * slope, rtol=1e-4, atol=1e-5)


for case in (("mrl", "mean", None), ("mrl-e", "none", 4), ("logits", "sum", 4), ("info-nce-hard", "mean", 4)):
    check(*case)
"""


def test_shard_map_adds_the_gradients_of_all_devices() -> None:
    """With its check of what varies between devices, on by default. Two devices need a process of their own."""
    if not hasattr(jax, "shard_map"):
        pytest.skip("JAX before 0.8 has none")
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(cases.__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("row_block", [None, 4])
def test_ladders_of_many_widths_are_as_right(row_block: int | None) -> None:
    """Their running sums are kept by other means than those of short ladders."""
    rng = np.random.default_rng(7)
    queries, keys = rng.normal(size=(6, 16)).astype(np.float32), rng.normal(size=(9, 16)).astype(np.float32)
    options: dict[str, Any] = {"nesting": range(1, 17), "temperature": 0.5, "row_block": row_block}
    found = jax.jit(jax.value_and_grad(lambda *arrays: info_nce(*arrays, **options), argnums=(0, 1)))(queries, keys)
    loss, gradients = info_nce_with_grad(queries.astype(np.float64), keys.astype(np.float64), **options)
    assert_trees_close(found, (loss, gradients[:2]))
