"""The networks of the study: one small backbone, with a head on every prefix of its embedding or on a single one.

A fixed-feature network (FF-m) is the same backbone whose head reads the first m columns only, as in the paper's
released code; a nested network (MRL, MRL-E) has heads on all prefixes. `MRLHead` is the head of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm import tqdm

from benchmarks.study.data import Rows
from matryoshka.torch import MRLHead

HIDDEN = 256
BATCH = 128
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-2
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Training:
    """How long to train: at least `steps` batches, and at least `epochs` passes over the rows."""

    steps: int = 600
    epochs: int = 5

    def steps_for(self, n: int) -> int:
        return max(self.steps, self.epochs * n // BATCH)


class Network(nn.Module):
    """Two linear layers with batch normalisation, then a linear head on each width of `dims`."""

    def __init__(self, n_features: int, width: int, dims: tuple[int, ...], n_classes: int, *, tied: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(n_features, HIDDEN),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, width),
            nn.BatchNorm1d(width),
        )
        self.head = MRLHead(dims, n_classes, tied=tied)
        self.dims = dims

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.head(self._read(features), labels)

    @torch.no_grad()
    def embed(self, features: np.ndarray) -> np.ndarray:
        """Return the part of the embedding that the head reads, (n, dims[-1])."""
        self.eval()
        return torch.cat([self._read(part) for part in _parts(features)]).numpy()

    @torch.no_grad()
    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probabilities that the head of each prefix gives to each class, (G, n, n_classes)."""
        self.eval()
        logits = [torch.stack(self.head(self._read(part))) for part in _parts(features)]
        return torch.cat(logits, dim=1).softmax(-1).numpy()

    def only_classifier(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (n_classes, dims[0]) and bias (n_classes,) of a network with one head."""
        state = self.head.state_dict()
        return state["nesting_classifier_0.weight"].numpy(), state["nesting_classifier_0.bias"].numpy()

    def _read(self, features: torch.Tensor) -> torch.Tensor:
        return self.backbone(features)[:, : self.dims[-1]]


def _parts(features: np.ndarray) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(features).split(ROWS_AT_ONCE)


def train(
    rows: Rows,
    width: int,
    dims: tuple[int, ...],
    n_classes: int,
    *,
    seed: int,
    progress: tqdm,
    tied: bool = False,
    training: Training = Training(),
) -> Network:
    """Train one network on `rows`; the same `seed` gives every network the same backbone and the same batches."""
    torch.manual_seed(seed)
    network = Network(rows.features.shape[1], width, dims, n_classes, tied=tied)
    n_steps = training.steps_for(len(rows))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=n_steps)
    features, labels = torch.from_numpy(rows.features), torch.from_numpy(rows.labels)
    batches = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        batch = torch.randint(len(rows), (BATCH,), generator=batches)
        loss = network(features[batch], labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update()
    return network


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute with one thread and with deterministic kernels, so that the same seed gives the same numbers."""
    n_threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=()), threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(n_threads)
        torch.use_deterministic_algorithms(deterministic)
