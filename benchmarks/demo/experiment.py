"""The whole study: train, measure, repeat with other seeds, and gather everything in one record.

Numbers that the clock gave stand under keys named ``seconds``; all others follow from the data and the seed.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info
from tqdm import tqdm

from benchmarks.demo import accuracy, cascades, retrieval
from benchmarks.study.data import Dataset, Split
from benchmarks.study.networks import Network, Training, reproducible, train
from benchmarks.study.tasks.retrieval import Plan, Task, describe, quality
from matryoshka import Funnel, __version__, audit

SEEDS_APART = 1000


@dataclass(frozen=True)
class Settings:
    """What to train and how often; the run with number i uses the seed ``seed + 1000 i``."""

    seed: int = 0
    runs: int = 3
    dims: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    training: Training = field(default_factory=Training)
    large: int = 200_000

    @property
    def seeds(self) -> list[int]:
        return [self.seed + SEEDS_APART * run for run in range(self.runs)]


@dataclass(frozen=True)
class Trained:
    """The networks of one run: nested ones by name, fixed-feature ones by width."""

    nested: dict[str, Network]
    fixed: dict[int, Network]


def study(dataset: Dataset, settings: Settings, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the study and return its record, which holds nothing but numbers, text, lists and dicts.

    Progress bars go to stderr, and only to a terminal; `say` hears of each stage.
    """
    start = time.perf_counter()
    with reproducible():
        record, first = _runs(dataset, settings, say)
        split = dataset.split(settings.seeds[0])
        tasks = _tasks(first.nested["MRL"], split, settings)
        chosen = retrieval.plans(settings.dims)
        maps = {"small": record.pop("map"), "large": quality(tasks["large"], chosen)}
    say(f"timing searches among {len(split.train):,} and {settings.large:,} rows")
    return {
        "data": _describe(dataset, split),
        "settings": _settings(settings),
        "environment": _environment(),
        **record,
        "plans": {size: _timed(task, chosen, maps[size]) for size, task in tasks.items()},
        "audit": _audited(first.nested["MRL"], split, settings),
        "seconds": time.perf_counter() - start,
    }


def _runs(dataset: Dataset, settings: Settings, say: Callable[[str], None]) -> tuple[dict[str, Any], Trained]:
    """Return what all runs found, merged, and the networks of the first run."""
    runs, kept = [], []
    n_networks = 2 + len(settings.dims)
    steps = settings.training.steps_for(len(dataset.split(settings.seeds[0]).train))
    with tqdm(total=settings.runs * n_networks * steps, unit=" steps", disable=None) as progress:
        for number, seed in enumerate(settings.seeds, start=1):
            progress.set_description(f"run {number} of {settings.runs}")
            split = dataset.split(seed)
            trained = _train(dataset, split, settings, seed, progress)
            runs.append(_measure(trained, split, settings, seed))
            kept = kept or [trained]
            say(f"run {number} of {settings.runs}: {n_networks} networks trained and measured")
    return _merged(runs), kept[0]


def _settings(settings: Settings) -> dict[str, Any]:
    return asdict(settings) | {"dims": list(settings.dims), "seeds": settings.seeds}


def _train(dataset: Dataset, split: Split, settings: Settings, seed: int, progress: tqdm) -> Trained:
    def fit(dims: tuple[int, ...], *, tied: bool = False) -> Network:
        return train(
            split.train,
            settings.dims[-1],
            dims,
            dataset.n_classes,
            seed=seed,
            tied=tied,
            training=settings.training,
            progress=progress,
        )

    return Trained(
        nested={"MRL": fit(settings.dims), "MRL-E": fit(settings.dims, tied=True)},
        fixed={dim: fit((dim,)) for dim in settings.dims},
    )


def _measure(trained: Trained, split: Split, settings: Settings, seed: int) -> dict[str, Any]:
    """Return what one run found; the records of all runs have the same form."""
    maps = {dim: _map(network, split, [_exact(dim)])[0] for dim, network in trained.fixed.items()}
    linear, nearest = accuracy.measure(trained.nested, trained.fixed, split, seed)
    return {
        "linear": linear,
        "nearest_neighbor": nearest,
        "cascades": cascades.run(trained.nested, split, settings.dims),
        "fixed_map": maps,
        "map": _map(trained.nested["MRL"], split, retrieval.plans(settings.dims)),
    }


def _map(network: Network, split: Split, chosen: list[Plan]) -> list[float]:
    return quality(retrieval.task(network, split.train, split.test), chosen)


def _exact(dim: int) -> Plan:
    return "exact", Funnel((dim,), ())


def _tasks(network: Network, split: Split, settings: Settings) -> dict[str, Task]:
    return {
        "small": retrieval.task(network, split.train, split.test),
        "large": retrieval.large_task(network, split.train, split.test, settings.large, settings.seed),
    }


def _timed(task: Task, chosen: list[Plan], maps: list[Any]) -> list[dict[str, Any]]:
    """Return the record of each plan: its costs by count, what it finds, and its seconds."""
    records = [{"kind": kind} | describe(plan, len(task.corpus)) for kind, plan in chosen]
    for record, (kind, plan) in zip(records, chosen, strict=True):
        record |= {"near_ties": retrieval.near_ties(task, plan)} if kind == "exact" else {}
    seconds = retrieval.clock(task, chosen)
    return [plan | {"map": found, "seconds": taken} for plan, found, taken in zip(records, maps, seconds, strict=True)]


def _audited(network: Network, split: Split, settings: Settings) -> str:
    """Return what the audit says of the vectors that nested training made."""
    rows = split.train
    return str(audit(network.embed(rows.features), labels=rows.labels, dims=settings.dims, seed=settings.seed))


def _merged(same: Sequence[Any]) -> Any:
    """Merge the records that the runs made of one thing: numbers become summaries, text stays."""
    first = same[0]
    if isinstance(first, dict):
        return {str(key): _merged([record[key] for record in same]) for key in first}
    if isinstance(first, list):
        return [_merged(values) for values in zip(*same, strict=True)]
    return _summary(same) if isinstance(first, float) else first


def _summary(runs: Sequence[float]) -> dict[str, Any]:
    """Return mean and standard deviation over the runs (None for a single one), and the values themselves."""
    deviation = statistics.stdev(runs) if len(runs) > 1 else None
    return {"mean": statistics.fmean(runs), "sd": deviation, "runs": list(runs)}


def _describe(dataset: Dataset, split: Split) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "n_features": dataset.n_features,
        "n_classes": dataset.n_classes,
        "own_test_rows": dataset.test is not None,
        "train": len(split.train),
        "calibration": len(split.calibration),
        "test": len(split.test),
    }


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "matryoshka": __version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": max((pool["num_threads"] for pool in threadpool_info()), default=1),
    }
