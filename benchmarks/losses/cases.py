"""The cases of the suite, what the project wants of them, and what theory says that they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from matryoshka import Nesting

ARRAYS = ("torch", "jax", "numpy")
KERAS = ("keras-tensorflow", "keras-jax", "keras-torch")
SENTENCES = "sentence-transformers"


@dataclass(frozen=True)
class Case:
    """A loss and its size, with the ratio to one full-width loss that is asked for and the one that is wished for.

    `memory_bar` and `memory_goal` are the same for memory above inputs and gradients, in MB or × one full-width loss.
    `n_classes` is the number of keys for InfoNCE. `small` is set where a full-width loss takes too much memory: the way
    `full` is then the same loss of ours at that smaller shape, and ratios are those of the time per multiply-add.
    """

    loss: str
    n: int
    n_classes: int
    nesting: Nesting
    bar: float | None = None
    goal: float | None = None
    frameworks: tuple[str, ...] = ARRAYS
    small: Case | None = None
    memory_bar: str = ""
    memory_goal: str = ""

    def __str__(self) -> str:
        dims = self.nesting.dims
        ladder = f"{dims[0]}…{dims[-1]}" if len(dims) < 12 else f"every {dims[0]} to {dims[-1]}"
        size = f"{self.n:,}" if "InfoNCE" in self.loss else f"{self.n:,} × {self.n_classes:,}"
        return f"{self.loss} {ladder}, {size}"

    @property
    def ways(self) -> tuple[str, ...]:
        """Return the ways that are compared, the one that others are compared with first."""
        return ("full", "ours") if self.slow else ("full", "ours", "loop")

    @property
    def slow(self) -> bool:
        """Return whether a step takes so long that one round has to do, without a step to warm up."""
        return self.small is not None or self.loss == "cached InfoNCE"

    def resolve(self, way: str) -> tuple[Case, str]:
        """Return the case and the way that are run for a way of this case."""
        return (self.small, "ours") if self.small and way == "full" else (self, way)

    def multiply_adds(self, way: str) -> int:
        """Multiply-adds of forward and backward: each product is done once forward and twice backward."""
        case, way = self.resolve(way)
        dims = case.nesting.dims
        once = way == "full" or (way == "ours" and case.loss != "MRL")
        return 3 * case.n * case.n_classes * (dims[-1] if once else sum(dims))

    def exponentials(self, way: str) -> int:
        """Exponentials of forward and backward: each logit of each prefix has one."""
        case, way = self.resolve(way)
        return case.n * case.n_classes * (1 if way == "full" else len(case.nesting))

    def inputs(self) -> dict[str, Any]:
        """Draw the inputs as NumPy arrays; `heads` are pairs of a weight and a bias, several for MRL."""
        rng, (n, c, dim) = np.random.default_rng(0), (self.n, self.n_classes, self.nesting.dim)
        x = rng.standard_normal((n, dim), dtype=np.float32)
        if self.loss == "InfoNCE":
            keys = rng.standard_normal((c, dim), dtype=np.float32)
            keys[:n] += x
            return {"x": x, "keys": keys}
        widths = self.nesting.dims if self.loss == "MRL" else (dim,)
        heads = [
            (rng.standard_normal((c, m), dtype=np.float32) / np.float32(50), np.zeros(c, np.float32)) for m in widths
        ]
        return {"x": x, "heads": heads, "labels": rng.integers(0, c, n)}


LADDER, EVERY_64 = Nesting.halving(2048), Nesting(range(64, 2049, 64))
SIX, EVERY_16 = Nesting((32, 64, 128, 256, 512, 768)), Nesting(range(16, 769, 16))
_SMALL_BATCH, _FEW_CLASSES = Case("InfoNCE", 4096, 4096, SIX), Case("MRL-E", 4096, 10_000, SIX)
CASES = [
    Case("MRL-E", 256, 1000, LADDER, 1.25, 1.1, (*ARRAYS, *KERAS)),
    Case("MRL-E", 1024, 1000, LADDER, 1.25, 1.1),
    Case("MRL-E", 256, 10_000, LADDER, 1.25, 1.1),
    Case("MRL-E", 256, 50_000, LADDER, 1.3, 1.15),
    Case("MRL-E", 256, 1000, EVERY_64),
    Case("MRL", 256, 1000, LADDER),
    Case("MRL", 1024, 1000, LADDER),
    Case("MRL", 256, 10_000, LADDER),
    Case("InfoNCE", 256, 256, SIX, 1.6, 1.3),
    Case("InfoNCE", 1024, 1024, SIX, 1.45, 1.25, (*ARRAYS, SENTENCES)),
    Case("InfoNCE", 4096, 4096, SIX, 1.3, 1.1),
    Case("InfoNCE", 1024, 1024, EVERY_16, 6.0, 4.0),
    Case("InfoNCE", 1024, 1024, Nesting.halving(3072, smallest=96), frameworks=(*ARRAYS, SENTENCES)),
    Case("cached InfoNCE", 8192, 8192, SIX, 1.1, 1.03, ("torch",), None, "1.1 ×", "1.0 ×"),
    Case("InfoNCE", 32_768, 32_768, SIX, 1.3, 1.1, ("torch", "jax"), _SMALL_BATCH, "300 MB", "150 MB"),
    Case("MRL-E", 4096, 100_000, SIX, 1.3, 1.1, ("torch", "jax"), _FEW_CLASSES, "500 MB", "200 MB"),
]
LARGEST = Case("InfoNCE", 65_536, 65_536, SIX, 1.3)
"""For devices: some 40 GB are alive in a full-width loss."""
