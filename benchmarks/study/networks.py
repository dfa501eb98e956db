"""The networks of the study: one small backbone, with a head on every prefix of its embedding or on a single one.

A fixed-feature network (FF-m) is the same backbone whose head reads the first m columns only, as in the paper's
released code; a nested network (MRL, MRL-E) has heads on all prefixes. `MRLHead` is the head of all of them. Backbones
are sequences of blocks, so that training may leave the first ones as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm import tqdm

from benchmarks.study.data import Rows
from matryoshka import Nesting
from matryoshka.torch import MRLHead

HIDDEN = 256
CHANNELS = (16, 32, 64)
BATCH = 128
LEARNING_RATE = 4e-3
SLOWER = 4  # so many times slower does a pretrained part learn: 0.1 after 0.425 in the paper
WEIGHT_DECAY = 1e-2
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Training:
    """What to train and how long: at least `steps` batches, and at least `epochs` passes over the rows.

    `backbone` is one of `BACKBONES`; `hidden` counts the hidden layers of a dense one.
    """

    steps: int = 600
    epochs: int = 5
    backbone: str = "dense"
    hidden: int = 1

    def steps_for(self, n: int) -> int:
        return max(self.steps, self.epochs * n // BATCH)


class Planes(nn.Module):
    """Turn flat rows (n, height * width * channels) into the planes of their images, (n, channels, height, width)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        height, width, *channels = shape
        self.shape = (height, width, *(channels or (1,)))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(1, self.shape).movedim(-1, 1)


def dense(n_features: int, width: int, training: Training, shape: Sequence[int] | None) -> nn.Sequential:
    """Linear layers with batch normalisation, each a block."""
    del shape
    sizes = [n_features] + [HIDDEN] * training.hidden
    hidden = [
        nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()) for before, after in pairwise(sizes)
    ]
    return nn.Sequential(*hidden, nn.Sequential(nn.Linear(sizes[-1], width), nn.BatchNorm1d(width)))


def convolutional(n_features: int, width: int, training: Training, shape: Sequence[int] | None) -> nn.Sequential:
    """Convolutions with batch normalisation, each a block that halves the image; the last takes the mean over it."""
    del training
    if shape is None:
        msg = (
            f"`backbone` convolutional must have images, got rows of {n_features} numbers without a shape; take dense."
        )
        raise ValueError(msg)
    planes = Planes(shape)
    sizes = [planes.shape[-1], *CHANNELS, width]
    blocks = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(sizes)
    ]
    for block in blocks[:-1]:
        block.append(nn.MaxPool2d(2, ceil_mode=True))
    blocks[0].insert(0, planes)
    blocks[-1].extend((nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return nn.Sequential(*blocks)


BACKBONES: Mapping[str, Callable[..., nn.Sequential]] = {"dense": dense, "convolutional": convolutional}


class Network(nn.Module):
    """A backbone, a sequence of blocks, and a linear head on each prefix that `head` is for; it may read fewer columns.

    The first `n_frozen` blocks stay as they are in training, the running statistics of their normalisation as well.
    """

    def __init__(self, backbone: nn.Sequential, head: MRLHead, *, n_frozen: int = 0) -> None:
        super().__init__()
        self.backbone, self.head, self.dims = backbone, head, head.nesting.dims
        self.frozen = tuple(backbone)[:n_frozen]
        for block in self.frozen:
            block.requires_grad_(False)

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        for block in self.frozen:
            block.eval()
        return self

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.head(self._read(features), labels)

    @torch.no_grad()
    def outputs(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of the embedding that the head reads, (n, dims[-1]), and its logits (G, n, n_classes)."""
        self.eval()
        embeddings = torch.cat([self._read(part) for part in parts_of(features)])
        logits = [torch.stack(self.head(part)) for part in embeddings.split(ROWS_AT_ONCE)]
        return embeddings.numpy(), torch.cat(logits, dim=1).numpy()

    def embed(self, features: np.ndarray) -> np.ndarray:
        """Return the part of the embedding that the head reads, (n, dims[-1])."""
        return self.outputs(features)[0]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probabilities that the head of each prefix gives to each class, (G, n, n_classes)."""
        return torch.from_numpy(self.outputs(features)[1]).softmax(-1).numpy()

    def only_classifier(self) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (n_classes, dims[0]) and bias (n_classes,) of a network with one head."""
        return only_classifier(self.weights())

    def weights(self) -> dict[str, np.ndarray]:
        """Return parameters and running statistics by name."""
        return {name: tensor.numpy() for name, tensor in self.state_dict().items()}

    def _read(self, features: torch.Tensor) -> torch.Tensor:
        return self.backbone(features)[:, : self.dims[-1]]


def only_classifier(weights: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (n_classes, dim) and bias (n_classes,) from the weights of a network with one head."""
    return weights["head.nesting_classifier_0.weight"], weights["head.nesting_classifier_0.bias"]


def parts_of(features: np.ndarray) -> tuple[torch.Tensor, ...]:
    """Return features (n, d) in blocks that are not too large to embed."""
    return torch.from_numpy(features).split(ROWS_AT_ONCE)


def train(
    rows: Rows,
    width: int,
    dims: tuple[int, ...] | Nesting,
    n_classes: int,
    *,
    seed: int,
    progress: tqdm,
    tied: bool = False,
    training: Training = Training(),
    shape: Sequence[int] | None = None,
) -> Network:
    """Train one network on `rows`; the same `seed` gives every network the same backbone and the same batches."""
    torch.manual_seed(seed)
    backbone = BACKBONES[training.backbone](rows.features.shape[1], width, training, shape)
    network = Network(backbone, MRLHead(dims, n_classes, tied=tied))
    fit(network, rows, training.steps_for(len(rows)), seed=seed, progress=progress)
    return network


def fit(
    network: nn.Module,
    rows: Rows,
    n_steps: int,
    *,
    seed: int,
    progress: tqdm,
    slower: nn.Module | None = None,
) -> None:
    """Train `network`, which gives the loss of (features, labels), in place; the part `slower` at a lower rate."""
    network.train()
    slow = set(slower.parameters()) if slower is not None else set()
    groups = [
        {"params": [one for one in network.parameters() if one.requires_grad and (one in slow) is is_slow], "lr": rate}
        for is_slow, rate in ((False, LEARNING_RATE), (True, LEARNING_RATE / SLOWER))
    ]
    groups = [group for group in groups if group["params"]]
    features, labels = torch.from_numpy(rows.features), torch.from_numpy(rows.labels)
    batches = torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        batch = torch.randint(len(rows), (BATCH,), generator=batches)
        progress.update()
        return network(features[batch], labels[batch])

    descend(groups, loss, n_steps)


def descend(groups: Sequence[Mapping[str, Any]], loss: Callable[[], torch.Tensor], n_steps: int) -> None:
    """Take steps of AdamW on what `loss` returns; the learning rates "lr" of parameter groups rise and fall once."""
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


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
