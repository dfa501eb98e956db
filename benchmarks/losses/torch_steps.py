"""The steps in PyTorch, on the CPU or on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, normalize

from benchmarks.losses.cases import Case
from matryoshka import info_nce, mrl_cross_entropy, mrl_e_cross_entropy

Function = Callable[[], torch.Tensor]

TOKENS, VOCABULARY, ENCODER_WIDTH, MINI_BATCH = 8, 1000, 256, 256


def build(
    case: Case,
    way: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    wrap: Callable[[Function], Function] = lambda function: function,
) -> Callable[[], list[Any]]:
    """Return a function that runs a step and returns the gradients; `wrap` has the loss before it is used."""
    if case.loss == "cached InfoNCE":
        return _cached(case, way, device, wrap)
    loss, leaves = differentiable(case, way, device, dtype)
    loss = wrap(loss)

    def run() -> list[Any]:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()
        return [leaf.grad for leaf in leaves]

    return run


def differentiable(case: Case, way: str, device: str, dtype: torch.dtype) -> tuple[Function, Sequence[torch.Tensor]]:
    """Return the loss as a function without arguments, and the tensors that it has a gradient in."""
    inputs = case.inputs()

    def leaf(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device, dtype).requires_grad_()

    x, nesting = leaf(inputs["x"]), case.nesting
    if case.loss == "InfoNCE":
        keys = leaf(inputs["keys"])
        if way == "ours":
            return lambda: info_nce(x, keys, nesting=nesting), (x, keys)
        widths = nesting.dims[-1:] if way == "full" else nesting.dims
        return lambda: sum(contrastive(x[:, :m], keys[:, :m]) for m in widths), (x, keys)

    chosen = inputs["heads"][-1:] if way == "full" else inputs["heads"]
    heads = [(leaf(weight), leaf(bias)) for weight, bias in chosen]
    labels = torch.from_numpy(inputs["labels"]).to(device)
    leaves = (x, *(array for head in heads for array in head))
    weight, bias = heads[0]
    if way == "full":
        return lambda: cross_entropy(linear(x, weight, bias), labels), leaves
    if case.loss == "MRL":
        if way == "ours":
            return lambda: mrl_cross_entropy(x, heads, labels, nesting=nesting), leaves
        each = list(zip(nesting, heads, strict=True))
        return lambda: sum(cross_entropy(linear(x[:, :m], w, b), labels) for m, (w, b) in each), leaves
    if way == "ours":
        return lambda: mrl_e_cross_entropy(x, weight, bias, labels, nesting=nesting), leaves
    return lambda: sum(cross_entropy(linear(x[:, :m], weight[:, :m], bias), labels) for m in nesting), leaves


def contrastive(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """InfoNCE as users write it."""
    similarities = normalize(queries) @ normalize(keys).T / 0.05
    return cross_entropy(similarities, torch.arange(len(queries), device=queries.device))


class Encoder(nn.Module):
    """Two layers of a transformer over a few tokens, the mean of them, and a projection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, ENCODER_WIDTH)
        layer = nn.TransformerEncoderLayer(ENCODER_WIDTH, 4, 4 * ENCODER_WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.project = nn.Linear(ENCODER_WIDTH, dim)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.project(self.layers(self.tokens(ids)).mean(dim=1))


def _cached(case: Case, way: str, device: str, wrap: Callable[[Function], Function]) -> Callable[[], list[Any]]:
    """Return a step that caches the gradients in the embeddings, of our loss or of one full-width loss."""
    from matryoshka.torch import CachedStep

    torch.manual_seed(0)
    encoder = Encoder(case.nesting.dim).to(device)
    ids = [torch.randint(VOCABULARY, (case.n, TOKENS), device=device) for _ in range(2)]

    def ours(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return info_nce(queries, keys, nesting=case.nesting)

    cached = CachedStep(encoder, ours if way == "ours" else contrastive, mini_batch=MINI_BATCH)
    step = wrap(lambda: cached(*ids))

    def run() -> list[Any]:
        encoder.zero_grad()
        step()
        return [parameter.grad for parameter in encoder.parameters()]

    return run


def rates() -> dict[str, Callable[[], Any]]:
    """Return steps of known size: one product, and the exponentials of one array."""
    a = torch.ones(1024, 1024)
    product, small = torch.empty(1024, 1024), torch.zeros(256, 1024)
    exponentials = torch.empty_like(small)
    return {"product": lambda: torch.mm(a, a, out=product), "exp": lambda: torch.exp(small, out=exponentials)}
