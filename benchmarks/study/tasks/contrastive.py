"""Embeddings learned from pairs by symmetric InfoNCE, without a classifier, as ALIGN is.

The pairs of images are two views of one, shifted, turned, scaled, dimmed and noisy: no label is used. Those of other
rows, such as questions, are two of one class, and rows of the same class are no negatives of each other. One tower
serves both sides. What retrieval finds among the training rows says how good each width is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from benchmarks.study.data import Rows
from benchmarks.study.towers import by_width, embed, optimise, tower
from matryoshka import Corpus, metrics
from matryoshka.torch import InfoNCE

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

Pairs = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]

TEMPERATURE = 0.1  # where it starts; it is learned
TURN, SCALE, SHIFT = 0.25, 0.15, 0.2  # radians, share, share of half the image: at most
DIMMING, NOISE = 0.3, 0.2
MOST_ROWS, MOST_QUERIES = 10_000, 2_000


def measure(bench: Bench, system: str, seed: int, *, steps: int = 300, batch: int = 256) -> dict[str, Any]:
    """Return the 1-NN accuracy and mAP@10 of test rows among training rows, at each width."""
    dataset, split = bench.dataset, bench.split(seed)
    rng = np.random.default_rng(seed)
    corpus, queries = _some(split.train, MOST_ROWS, rng), _some(split.test, MOST_QUERIES, rng)

    def fit(dims: tuple[int, ...]) -> dict[str, np.ndarray]:
        torch.manual_seed(seed)
        network = tower(dataset, bench.grid.dims[-1])
        loss = InfoNCE(dims, temperature=TEMPERATURE, symmetric=True, learnable_temperature=True)
        pairs = _pairs_of(split.train, dataset.shape, batch)

        def of_a_batch() -> torch.Tensor:
            left, right, mask = pairs()
            both = network(torch.cat((left, right)))[:, : dims[-1]]
            return loss(both[:batch], both[batch:], mask=mask)

        optimise(nn.ModuleList((network, loss)), of_a_batch, steps)
        rows = {"train": corpus.features, "test": queries.features}
        return {name: embed(network, features)[:, : dims[-1]] for name, features in rows.items()}

    found: dict[str, Any] = {"dims": list(bench.grid.dims), "nearest_neighbor": [], "map": []}
    for _, rows in by_width(system, bench.grid.dims, fit):
        _, ids = Corpus(rows["train"]).search(rows["test"], 10)
        relevance = metrics.relevance(ids, corpus.labels, queries.labels)
        found["nearest_neighbor"].append(float(relevance[:, 0].mean()))
        found["map"].append(float(metrics.mean_average_precision(relevance, 10)))
    pairs = "two views of an image" if dataset.shape is not None else "two rows of a class"
    return found | {"pairs": pairs, "steps": steps, "batch": batch, "n_corpus": len(corpus), "n_queries": len(queries)}


def _some(rows: Rows, most: int, rng: np.random.Generator) -> Rows:
    return rows[rng.permutation(len(rows))[:most]]


def _pairs_of(rows: Rows, shape: tuple[int, ...] | None, batch: int) -> Pairs:
    """Return a function that draws `batch` pairs of rows, and the mask of negatives where not all others are."""
    features, labels = torch.from_numpy(rows.features), torch.from_numpy(rows.labels)
    if shape is not None:
        side = shape

        def views() -> tuple[torch.Tensor, torch.Tensor, None]:
            images = features[torch.randint(len(features), (batch,))].unflatten(1, (1, *side))
            return view(images).flatten(1), view(images).flatten(1), None

        return views
    by_class = labels.argsort(stable=True)
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), labels.bincount().cumsum(0)))

    def of_one_class() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first = torch.randint(len(features), (batch,))
        own = labels[first]
        among = (torch.rand(batch) * (starts[own + 1] - starts[own])).long()
        mask = (own[:, None] != own) | torch.eye(batch, dtype=torch.bool)
        return features[first], features[by_class[starts[own] + among]], mask

    return of_one_class


def view(images: torch.Tensor) -> torch.Tensor:
    """Return images (n, 1, height, width) of zero mean and unit deviation, each changed a little at random."""
    n = len(images)
    turn, scale = TURN * _spread(n), 1 + SCALE * _spread(n)
    cosine, sine = scale * turn.cos(), scale * turn.sin()
    moves = torch.stack((cosine, -sine, SHIFT * _spread(n), sine, cosine, SHIFT * _spread(n)), dim=1)
    grid = nn.functional.affine_grid(moves.unflatten(1, (2, 3)), list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved * (1 + DIMMING * _spread(n))[:, None, None, None] + NOISE * torch.randn_like(moved)


def _spread(n: int) -> torch.Tensor:
    return 2 * torch.rand(n) - 1
