"""The systems that the study compares: how each is trained or computed, and what it gives.

`KINDS` names the ways; a grid gives each system a kind and its options. All return `outputs.Outputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from benchmarks.study.networks import Network, Training, train
from benchmarks.study.outputs import Outputs

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench


def nested(bench: Bench, name: str, seed: int, *, tied: bool = False) -> Outputs:
    """Train one network with a head on every prefix of the ladder: MRL, or MRL-E if `tied`."""
    del name
    dataset, split, dims = bench.dataset, bench.split(seed), bench.grid.dims
    training = Training(**bench.grid.training)
    from tqdm import tqdm

    network: Network = train(
        split.train,
        dims[-1],
        dims,
        dataset.n_classes,
        seed=seed,
        tied=tied,
        training=training,
        progress=tqdm(disable=True),
    )
    rows = bench.parts(seed)
    return Outputs(
        dims,
        nested=True,
        embeddings={part: {dims[-1]: network.embed(features)} for part, features in rows.items()},
        logits={part: network.probabilities(rows[part]) for part in rows if part != "train"},
    )


KINDS: Mapping[str, Callable[..., Outputs]] = {"nested": nested}
