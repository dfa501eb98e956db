"""The steps in JAX, compiled: loss and gradients in one function, as training code has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_softmax

from benchmarks.losses.cases import Case
from matryoshka import info_nce, mrl_cross_entropy, mrl_e_cross_entropy


def build(case: Case, way: str, dtype: str = "float32") -> Callable[[], Any]:
    """Return a function that runs a step and returns loss and gradients."""
    run, arguments = compiled(case, way, dtype)
    return lambda: jax.block_until_ready(run(*arguments))


def planned_bytes(case: Case, way: str) -> int:
    """Return the temporary memory that the compiler plans for a step; loss and gradients are none of it."""
    return int(compiled(case, way)[0].memory_analysis().temp_size_in_bytes)


def compiled(case: Case, way: str, dtype: str = "float32") -> tuple[Any, tuple[Any, ...]]:
    """Return the compiled function of a step and its arguments."""
    inputs = case.inputs()
    labels = jnp.asarray(inputs.pop("labels", ()))
    inputs = jax.tree.map(lambda array: jnp.asarray(array, dtype), inputs)
    widths = case.nesting.dims[-1:] if way == "full" else case.nesting.dims

    def contrast(x: Any, keys: Any) -> Any:
        if way == "ours":
            return info_nce(x, keys, nesting=case.nesting)
        unit = [[a[:, :m] / jnp.linalg.norm(a[:, :m], axis=1, keepdims=True) for a in (x, keys)] for m in widths]
        return sum(cross_entropy(q @ k.T / 0.05, jnp.arange(case.n)) for q, k in unit)

    def classify(x: Any, heads: Any, labels: Any) -> Any:
        if way == "ours" and case.loss == "MRL":
            return mrl_cross_entropy(x, heads, labels, nesting=case.nesting)
        if way == "ours":
            return mrl_e_cross_entropy(x, *heads[0], labels, nesting=case.nesting)
        every = heads if len(heads) == len(widths) else heads * len(widths)
        pairs = zip(widths, every, strict=True)
        return sum(cross_entropy(x[:, :m] @ weight[:, :m].T + bias, labels) for m, (weight, bias) in pairs)

    if case.loss == "InfoNCE":
        function, arguments = contrast, (inputs["x"], inputs["keys"])
    else:
        heads = inputs["heads"][-1:] if way == "full" else inputs["heads"]
        function, arguments = classify, (inputs["x"], heads, labels)
    return jax.jit(jax.value_and_grad(function, (0, 1))).lower(*arguments).compile(), arguments


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Cross-entropy as users write it."""
    return -jnp.take_along_axis(log_softmax(logits), labels[:, None], axis=1).mean()


def rates() -> dict[str, Callable[[], Any]]:
    """Return steps of known size: one product, and the exponentials of one array."""
    a, small = jnp.ones((1024, 1024)), jnp.zeros((256, 1024))
    product, exponentials = jax.jit(jnp.matmul).lower(a, a).compile(), jax.jit(jnp.exp).lower(small).compile()
    return {
        "product": lambda: product(a, a).block_until_ready(),
        "exp": lambda: exponentials(small).block_until_ready(),
    }
