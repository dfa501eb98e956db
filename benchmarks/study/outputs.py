"""What a trained or computed system says of the rows of one split: embeddings and logits, at each of its widths."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from matryoshka._files import write_bytes

PARTS = ("train", "calibration", "test")


@dataclass(frozen=True)
class Outputs:
    """Embeddings of a system by part and width, and the logits of its heads by part.

    Parameters
    ----------
    dims
        Widths with a head, ascending.
    nested
        Whether any prefix of the widest embedding is an embedding; else only the widths in `dims` are there.
    embeddings
        By part ("train", "calibration", "test", and what a task asked for, such as "test/blur/3"): nested, one array
        (n, dims[-1]); else one for each width.
    logits
        By part but "train", (G, n, n_classes); empty for a system without heads. A class that the head was never
        shown may have -inf.
    weights
        Parameters and running statistics of the widest network by name, for systems that start from it; else empty.
    """

    dims: tuple[int, ...]
    nested: bool
    embeddings: Mapping[str, Mapping[int, np.ndarray]]
    logits: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def embed(self, part: str, dim: int) -> np.ndarray:
        """Return the embeddings of `part` at width `dim`, (n, dim), not normalised."""
        by_dim = self.embeddings[part]
        return by_dim[max(by_dim)][:, :dim] if self.nested else by_dim[dim]

    def save(self, path: Path) -> None:
        """Write an .npz file: whole, or not at all."""
        arrays = {"dims": np.array(self.dims), "nested": np.array(self.nested)}
        arrays |= {f"logits/{part}": values for part, values in self.logits.items()}
        arrays |= {f"weights/{name}": values for name, values in self.weights.items()}
        for part, by_dim in self.embeddings.items():
            arrays |= {f"embeddings/{dim}/{part}": rows for dim, rows in by_dim.items()}
        data = io.BytesIO()
        np.savez(data, **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data.getvalue())

    @classmethod
    def load(cls, path: Path) -> Outputs:
        """Read what `save` wrote."""
        embeddings: dict[str, dict[int, np.ndarray]] = {}
        logits: dict[str, np.ndarray] = {}
        weights: dict[str, np.ndarray] = {}
        with np.load(path, allow_pickle=False) as arrays:
            dims, nested = tuple(arrays["dims"].tolist()), bool(arrays["nested"])
            for name in arrays.files:
                kind, _, rest = name.partition("/")
                if kind == "logits":
                    logits[rest] = arrays[name]
                elif kind == "weights":
                    weights[rest] = arrays[name]
                elif kind == "embeddings":
                    dim, _, part = rest.partition("/")
                    embeddings.setdefault(part, {})[int(dim)] = arrays[name]
        return cls(dims, nested, embeddings, logits, weights)
