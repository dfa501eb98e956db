"""The steps in NumPy: the losses that return their gradients, and the same by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.losses.cases import Case
from matryoshka import info_nce_with_grad, mrl_cross_entropy_with_grad, mrl_e_cross_entropy_with_grad


def build(case: Case, way: str) -> Callable[[], Any]:
    """Return a function that runs a step and returns the gradients."""
    inputs, nesting = case.inputs(), case.nesting
    x, widths = inputs["x"], nesting.dims[-1:] if way == "full" else nesting.dims
    if case.loss == "InfoNCE":
        if way == "ours":
            return lambda: info_nce_with_grad(x, inputs["keys"], nesting=nesting)[1][:2]
        return lambda: contrast(x, inputs["keys"], widths)
    heads, labels = inputs["heads"], inputs["labels"]
    if way == "ours" and case.loss == "MRL":
        return lambda: mrl_cross_entropy_with_grad(x, heads, labels, nesting=nesting)[1]
    if way == "ours":
        return lambda: mrl_e_cross_entropy_with_grad(x, *heads[0], labels, nesting=nesting)[1]
    chosen = heads[-1:] if way == "full" else heads
    return lambda: classify(x, chosen, labels, widths)


def classify(x: Any, heads: Any, labels: Any, widths: tuple[int, ...]) -> list[Any]:
    """A linear head with cross-entropy for each width, and the gradients; a single head is shared by all widths."""
    shared = len(heads) == 1
    d_x, *d_head = one_head(x[:, : widths[-1]], *heads[-1], labels)
    gradients = [d_x, *d_head]
    for g, m in reversed(list(enumerate(widths[:-1]))):
        weight, bias = heads[0 if shared else g]
        d_prefix, d_weight, d_bias = one_head(x[:, :m], weight[:, :m], bias, labels)
        d_x[:, :m] += d_prefix
        if shared:
            d_head[0][:, :m] += d_weight
            d_head[1] += d_bias
        else:
            gradients += [d_weight, d_bias]
    return gradients


def one_head(x: Any, weight: Any, bias: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of a linear head with cross-entropy in its embeddings, weight and bias."""
    z = x @ weight.T
    z += bias
    d_z = softmax_gradient(z, labels)[1]
    return d_z @ weight, d_z.T @ x, d_z.sum(axis=0)


def contrast(x: Any, keys: Any, widths: tuple[int, ...]) -> list[Any]:
    """InfoNCE and its gradients."""
    gradients = [np.zeros_like(x), np.zeros_like(keys)]
    for m in widths:
        norms = [np.linalg.norm(array[:, :m], axis=1, keepdims=True) for array in (x, keys)]
        q, k = x[:, :m] / norms[0], keys[:, :m] / norms[1]
        similarities = q @ k.T
        similarities /= 0.05
        d_s = softmax_gradient(similarities, np.arange(len(x)))[1]
        d_s /= 0.05
        for total, d_unit, unit, norm in zip(gradients, (d_s @ k, d_s.T @ q), (q, k), norms, strict=True):
            total[:, :m] += (d_unit - unit * (d_unit * unit).sum(axis=1, keepdims=True)) / norm
    return gradients


def softmax_gradient(z: Any, labels: Any) -> tuple[Any, Any]:
    """Return the mean cross-entropy, and its gradient in the logits, written over them."""
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z, out=z)
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(z))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1.0
    p /= len(z)
    return loss, p


def rates() -> dict[str, Callable[[], Any]]:
    """Return steps of known size: one product, and the exponentials of one array."""
    a = np.ones((1024, 1024), np.float32)
    product, small = np.empty_like(a), np.zeros((256, 1024), np.float32)
    exponentials = np.empty_like(small)
    return {"product": lambda: np.matmul(a, a, out=product), "exp": lambda: np.exp(small, out=exponentials)}
