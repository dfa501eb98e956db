"""The systems that the study compares: how each is trained or computed, and what it gives.

`KINDS` names the ways; a grid gives each system a kind and its options. All return `outputs.Outputs`. Options that
several kinds share:

- `rows`: the training rows that are learned from, one of `selections.SELECTIONS`; all of them are embedded.
- `of`: the system whose widest embedding, or whose widest network, this one starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.study import networks, reductions
from benchmarks.study.data import Rows
from benchmarks.study.networks import Network, Training
from benchmarks.study.outputs import Outputs
from benchmarks.study.selections import SELECTIONS
from benchmarks.study.slimmable import Slimmable
from matryoshka import Nesting, Rotation
from matryoshka.torch import MRLHead

if TYPE_CHECKING:
    from benchmarks.study.cells import Bench

FINE_TUNING = 0.5
"""Share of the steps of training that fine-tuning takes."""


def nested(
    bench: Bench,
    name: str,
    seed: int,
    *,
    dims: Sequence[int] | None = None,
    importance: Sequence[float] | None = None,
    tied: bool = False,
    rows: str = "everything",
) -> Outputs:
    """Train one network with a head on every prefix of `dims` or of the grid's: MRL, or MRL-E if `tied`."""
    del name
    nesting = Nesting(dims or bench.grid.dims, importance)
    network = _trained(bench, seed, _learned_from(bench, seed, rows), nesting, width=nesting.dim, tied=tied)
    return _of_nested(network, bench.parts(seed))


def fixed(bench: Bench, name: str, seed: int, *, rows: str = "everything") -> Outputs:
    """Train one network for each width, whose head reads so many of its columns: FF."""
    del name
    dims, parts, seen = bench.grid.dims, bench.parts(seed), _learned_from(bench, seed, rows)
    trained = {dim: _trained(bench, seed, seen, (dim,), width=dims[-1]) for dim in dims}
    found = {dim: {part: network.outputs(parts[part]) for part in parts} for dim, network in trained.items()}
    return Outputs(
        dims,
        nested=False,
        embeddings={part: {dim: found[dim][part][0] for dim in dims} for part in parts},
        logits={part: np.concatenate([found[dim][part][1] for dim in dims]) for part in _judged(parts)},
        weights=trained[dims[-1]].weights(),
    )


def svd(bench: Bench, name: str, seed: int, *, of: str, rows: str = "everything") -> Outputs:
    """Project on the leading singular vectors; the logits are those of the head of `of`, its weight of rank m.

    The two are the two uses of the paper: the head reads the whole embedding, and is none of m numbers.
    """
    del name
    start = bench.outputs(of, seed)
    weight, bias = networks.only_classifier(start.weights)
    whole = _widest(start)
    logits = {
        part: np.stack([reductions.low_rank_logits(weight, bias, dim, whole[part]) for dim in start.dims])
        for part in _judged(whole)
    }
    reduce = reductions.svd(whole["train"][_chosen(bench.split(seed).train, seed, rows)])
    return Outputs(start.dims, True, {part: {start.dims[-1]: reduce(whole[part])} for part in whole}, logits)


def pca(bench: Bench, name: str, seed: int, *, of: str, rows: str = "everything") -> Outputs:
    """Project the widest embedding of `of` on its principal components."""
    del name
    return _probed(bench, seed, of, rows, reductions.pca)


def random(bench: Bench, name: str, seed: int, *, of: str, rows: str = "everything") -> Outputs:
    """Take the columns of the widest embedding of `of` in random order."""
    del name
    return _probed(bench, seed, of, rows, lambda features: reductions.random_columns(features, seed))


def rotation(bench: Bench, name: str, seed: int, *, of: str, rows: str = "everything") -> Outputs:
    """Sort the directions of the widest embedding of `of` by energy, with the library's rotation."""
    del name
    return _probed(bench, seed, of, rows, lambda features: Rotation.fit(features, seed=seed).apply)


def slim(bench: Bench, name: str, seed: int, *, rows: str = "everything") -> Outputs:
    """Train one network at all widths of all its layers."""
    del name
    dataset, training = bench.dataset, Training(**bench.grid.training)
    seen = _learned_from(bench, seed, rows)
    torch.manual_seed(seed)
    network = Slimmable(_backbone(bench, bench.grid.dims[-1]), bench.grid.dims, dataset.n_classes)
    networks.fit(network, seen, training.steps_for(len(seen)), seed=seed, progress=tqdm(disable=True))
    found = {part: network.outputs(features) for part, features in bench.parts(seed).items()}
    return Outputs(
        network.dims,
        nested=False,
        embeddings={part: embeddings for part, (embeddings, _) in found.items()},
        logits={part: found[part][1] for part in _judged(found)},
    )


def fine_tune(bench: Bench, name: str, seed: int, *, of: str, unfrozen: int | str, rows: str = "everything") -> Outputs:
    """Give the widest network of `of` heads on all prefixes; train these and its last `unfrozen` blocks, or "all"."""
    start, dims = bench.outputs(of, seed), bench.grid.dims
    torch.manual_seed(seed)
    backbone = _backbone(bench, dims[-1])
    known = {key: torch.from_numpy(array.copy()) for key, array in start.weights.items()}
    backbone.load_state_dict({key[9:]: array for key, array in known.items() if key.startswith("backbone.")})
    n_learning = len(backbone) if unfrozen == "all" else unfrozen
    if not (isinstance(n_learning, int) and 0 <= n_learning <= len(backbone)):
        msg = f"`unfrozen` of {name} must be within [0, {len(backbone)}] or all, got {unfrozen!r}; it counts blocks."
        raise ValueError(msg)
    network = Network(backbone, MRLHead(dims, bench.dataset.n_classes), n_frozen=len(backbone) - n_learning)
    seen = _learned_from(bench, seed, rows)
    n_steps = round(FINE_TUNING * Training(**bench.grid.training).steps_for(len(seen)))
    networks.fit(network, seen, n_steps, seed=seed, progress=tqdm(disable=True), slower=backbone)
    return _of_nested(network, bench.parts(seed))


def raw(bench: Bench, name: str, seed: int) -> Outputs:
    """Take the features as they are: the widths of the grid, and the full one."""
    del name
    parts, width = bench.parts(seed), bench.dataset.n_features
    dims = (*(dim for dim in bench.grid.dims if dim < width), width)
    return Outputs(dims, True, {part: {width: features} for part, features in parts.items()}, {})


def _trained(
    bench: Bench, seed: int, seen: Rows, dims: tuple[int, ...] | Nesting, *, width: int, tied: bool = False
) -> Network:
    return networks.train(
        seen,
        width,
        dims,
        bench.dataset.n_classes,
        seed=seed,
        tied=tied,
        training=Training(**bench.grid.training),
        shape=bench.dataset.shape,
        progress=tqdm(disable=True),
    )


def _backbone(bench: Bench, width: int) -> torch.nn.Sequential:
    training = Training(**bench.grid.training)
    return networks.BACKBONES[training.backbone](bench.dataset.n_features, width, training, bench.dataset.shape)


def _learned_from(bench: Bench, seed: int, rows: str) -> Rows:
    train = bench.split(seed).train
    chosen = _chosen(train, seed, rows)
    return Rows(train.features[chosen], train.labels[chosen])


def _chosen(train: Rows, seed: int, rows: str) -> np.ndarray:
    """Return which training rows (n,) are learned from."""
    if rows not in SELECTIONS:
        msg = f"`rows` must be one of {', '.join(SELECTIONS)}, got {rows!r}; correct the name."
        raise ValueError(msg)
    return SELECTIONS[rows](train.labels, seed)


def _of_nested(network: Network, parts: Mapping[str, np.ndarray]) -> Outputs:
    found = {part: network.outputs(features) for part, features in parts.items()}
    return Outputs(
        network.dims,
        nested=True,
        embeddings={part: {network.dims[-1]: embeddings} for part, (embeddings, _) in found.items()},
        logits={part: found[part][1] for part in _judged(found)},
    )


def _probed(bench: Bench, seed: int, of: str, rows: str, fit: Callable[[np.ndarray], reductions.Reduction]) -> Outputs:
    """Reduce the widest embedding of `of` as fitted on the chosen rows, with a new classifier for each width."""
    start, train = bench.outputs(of, seed), bench.split(seed).train
    chosen = _chosen(train, seed, rows)
    dims, labels, whole = start.dims, train.labels[chosen], _widest(start)
    reduce = fit(whole["train"][chosen])
    reduced = {part: reduce(features) for part, features in whole.items()}
    learned = reduced["train"][chosen]
    probes = [(dim, reductions.probe(learned[:, :dim], labels, bench.dataset.n_classes)) for dim in dims]
    logits = {part: np.stack([probe(reduced[part][:, :dim]) for dim, probe in probes]) for part in _judged(reduced)}
    return Outputs(dims, True, {part: {dims[-1]: reduced[part]} for part in reduced}, logits)


def _widest(outputs: Outputs) -> dict[str, np.ndarray]:
    return {part: outputs.embed(part, outputs.dims[-1]) for part in outputs.embeddings}


def _judged(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if part != "train"]


KINDS: Mapping[str, Callable[..., Outputs]] = {
    "nested": nested,
    "fixed": fixed,
    "svd": svd,
    "pca": pca,
    "random": random,
    "rotation": rotation,
    "slim": slim,
    "fine-tune": fine_tune,
    "raw": raw,
}
