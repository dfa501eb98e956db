"""The steps in sentence-transformers, from token embeddings that are there, through pooling, to their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling

from benchmarks.losses.cases import Case
from matryoshka.sentence_transformers import MatryoshkaMultipleNegativesRankingLoss

TOKENS = 4


def build(case: Case, way: str) -> Callable[[], Any]:
    """Return a function that runs a step and returns the gradients."""
    inputs = case.inputs()
    tokens = [torch.from_numpy(inputs[name]).repeat(TOKENS, 1, 1).transpose(0, 1) for name in ("x", "keys")]
    leaves = [array.contiguous().requires_grad_() for array in tokens]
    mask = torch.ones(case.n, TOKENS, dtype=torch.int64)
    model = SentenceTransformer(modules=[Pooling(case.nesting.dim)], device="cpu")
    loss: Any = MultipleNegativesRankingLoss(model)
    if way == "loop":
        loss = MatryoshkaLoss(model, loss, case.nesting.dims)
    elif way == "ours":
        loss = MatryoshkaMultipleNegativesRankingLoss(model, case.nesting)

    def run() -> list[Any]:
        for leaf in leaves:
            leaf.grad = None
        value = loss([{"token_embeddings": leaf, "attention_mask": mask} for leaf in leaves], None)
        (sum(value.values()) if isinstance(value, dict) else value).backward()
        return [leaf.grad for leaf in leaves]

    return run
