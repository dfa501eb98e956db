"""One network at several widths of all its layers, after Yu et al., Slimmable Neural Networks (ICLR 2019).

At width m of d each layer uses the first m / d of its units, with batch normalisation of its own for each width
("switchable"); the loss is summed over the widths. The embedding of m numbers is what the slim network of that width
gives, no prefix of the widest one: it costs less to compute, but a row must be computed anew for each width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.study.networks import parts_of


class Slimmable(nn.Module):
    """The layers of `backbone`, at the widths `dims`, and one linear head of which width m reads m columns."""

    def __init__(self, backbone: nn.Sequential, dims: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.dims = dims
        leaves = [layer for layer in backbone.modules() if not isinstance(layer, nn.Sequential)]
        self.layers = nn.ModuleList(self._switchable(layer) for layer in leaves)
        self.head = nn.Linear(dims[-1], n_classes)

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss, summed over the widths."""
        losses = [functional.cross_entropy(self._classify(self._read(features, dim)), labels) for dim in self.dims]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def outputs(self, features: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Return the embeddings (n, m) of each width m, and the logits (G, n, n_classes)."""
        self.eval()
        found = {dim: torch.cat([self._read(part, dim) for part in parts_of(features)]) for dim in self.dims}
        logits = torch.stack([self._classify(embeddings) for embeddings in found.values()])
        return {dim: embeddings.numpy() for dim, embeddings in found.items()}, logits.numpy()

    def _switchable(self, layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            return layer
        return nn.ModuleDict({str(dim): type(layer)(self._n_units(layer.num_features, dim)) for dim in self.dims})

    def _n_units(self, whole: int, dim: int) -> int:
        return max(1, round(whole * dim / self.dims[-1]))

    def _read(self, values: torch.Tensor, dim: int) -> torch.Tensor:
        for layer in self.layers:
            if isinstance(layer, nn.ModuleDict):
                values = layer[str(dim)](values)
            elif isinstance(layer, nn.Linear):
                kept = self._n_units(layer.out_features, dim)
                values = functional.linear(values, layer.weight[:kept, : values.shape[1]], layer.bias[:kept])
            elif isinstance(layer, nn.Conv2d):
                weight = layer.weight[: self._n_units(layer.out_channels, dim), : values.shape[1]]
                values = functional.conv2d(values, weight, None, layer.stride, layer.padding)
            else:
                values = layer(values)
        return values

    def _classify(self, embeddings: torch.Tensor) -> torch.Tensor:
        return functional.linear(embeddings, self.head.weight[:, : embeddings.shape[1]], self.head.bias)
