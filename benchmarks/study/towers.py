"""Towers for tasks that train for themselves: small encoders without a classifier, and how each system gives widths.

All towers of a task are as wide as the ladder; FF-m is one whose loss sees the first m columns only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from benchmarks.study.data import Dataset
from benchmarks.study.networks import descend
from matryoshka import Rotation

SYSTEMS = ("MRL", "FF", "cut", "rotation")
"""Trained for all widths; one for each width; the widest of these cut plainly; the same rotated, then cut."""

HIDDEN = 256
CHANNELS = (32, 64)
LEARNING_RATE = 3e-3
ROWS_AT_ONCE = 1024


def tower(dataset: Dataset, width: int) -> nn.Sequential:
    """Return a small convolutional network for images, two linear layers for other rows; it ends in `width` columns."""
    if dataset.shape is None:
        return nn.Sequential(
            nn.Linear(dataset.n_features, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, width)
        )
    small, large = CHANNELS
    return nn.Sequential(
        nn.Unflatten(1, (1, *dataset.shape)),
        *_convolution(1, small),
        *_convolution(small, large),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * large, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, width),
    )


def _convolution(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()


def optimise(module: nn.Module, loss: Callable[[], torch.Tensor], steps: int, *, rate: float | None = None) -> None:
    """Train on what `loss` returns, and leave the module in evaluation."""
    module.train()
    descend([{"params": list(module.parameters()), "lr": rate or LEARNING_RATE}], loss, steps)
    module.eval()


@torch.no_grad()
def embed(module: nn.Module, features: np.ndarray) -> np.ndarray:
    """Return what a tower makes of features (n, d)."""
    return torch.cat([module(part) for part in torch.from_numpy(features).split(ROWS_AT_ONCE)]).numpy()


def by_width(
    system: str, dims: tuple[int, ...], fit: Callable[[tuple[int, ...]], Mapping[str, np.ndarray]]
) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
    """Yield for each width what a system gives.

    Parameters
    ----------
    system
        One of `SYSTEMS`; what is not one of the last three is nested.
    dims
        The ladder.
    fit
        Trains for some prefixes and returns rows by name, as wide as the last of them: those named "train" tell the
        rotation. Arrays with one axis pass as they are.

    Yields
    ------
    tuple of int and dict
        A width, and rows of this width by name.
    """
    if system == "FF":
        for dim in dims:
            yield dim, fit((dim,))
        return
    found = fit(dims[-1:] if system in ("cut", "rotation") else dims)
    if system == "rotation":
        rotation = Rotation.fit(found["train"])
        found = {name: rotation.apply(rows) if rows.ndim == 2 else rows for name, rows in found.items()}
    for dim in dims:
        yield dim, {name: rows[:, :dim] if rows.ndim == 2 else rows for name, rows in found.items()}
