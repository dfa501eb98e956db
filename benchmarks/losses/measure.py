"""What one process measures of one case in one framework: time in alternating rounds, and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.losses.cases import Case

Step = Callable[[], Any]
Timer = Callable[[Step], tuple[float, float]]

BURST = 0.02
"""Seconds that a way runs at least before the next one has its turn: as in training, its data stays in the cache."""
FEWEST, MOST = 3, 15
SECONDS = 1.0
"""Rounds that a way takes part in: these many, and no more of them once it has run for so long."""
PRODUCT, EXPONENTIALS = 1024**3, 256 * 1024
"""What the steps of `rates` do: multiply-adds of one product, and exponentials of one array."""


def load(framework: str) -> Any:
    """Return the module with the steps of a framework."""
    names = {"sentence-transformers": "sentence"}
    return import_module(f"benchmarks.losses.{names.get(framework, framework.partition('-')[0])}_steps")


def steps(case: Case, framework: str) -> dict[str, Step]:
    """Return a step for each way of a case."""
    build = load(framework).build
    return {way: build(*case.resolve(way)) for way in case.ways}


def times(case: Case, framework: str, threads: int) -> dict[str, Any]:
    """Return what each way of a case takes, and the rates that theory needs."""
    timer = burst(time.process_time if threads == 1 else time.perf_counter)
    rates = _rates(load(framework), timer)
    ways = steps(case, framework)
    for way, step in ways.items():
        if not case.slow or (case.small and way == "full"):
            step()
    samples = rounds(ways, timer, fewest=1 if case.slow else FEWEST)
    scales = {way: case.multiply_adds("full") / case.multiply_adds(way) if case.small else 1.0 for way in ways}
    found = {way: summary(samples[way], samples["full"], scales[way]) for way in ways}
    if "loop" in ways:
        found["ours"]["faster_than_loop"] = summary(samples["loop"], samples["ours"])["ratio"]
    if rates and case.loss != "cached InfoNCE":  # whose encoder theory leaves out
        for way, entry in found.items():
            counts = {"product": case.multiply_adds(way), "exp": case.exponentials(way)}
            entry["limit_s"] = sum(n / rates[name] for name, n in counts.items())
    return {"clock": "CPU" if threads == 1 else "wall", "threads": threads, "ways": found}


def _rates(module: Any, timer: Timer) -> dict[str, float]:
    """Return the best multiply-adds and exponentials a second, where the steps of a framework have them."""
    counts = {"product": PRODUCT, "exp": EXPONENTIALS}
    steps = module.rates() if hasattr(module, "rates") else {}
    return {name: counts[name] / min(timer(step)[0] for _ in range(5)) for name, step in steps.items()}


def burst(clock: Callable[[], float]) -> Timer:
    """Return a function that runs a step for some time, and returns the seconds of one and of all."""

    def timed(step: Step) -> tuple[float, float]:
        n_steps, start = 0, clock()
        while n_steps == 0 or clock() - start < BURST:
            step()
            n_steps += 1
        took = clock() - start
        return took / n_steps, took

    return timed


def rounds(ways: dict[str, Step], timer: Timer, *, fewest: int = FEWEST) -> dict[str, list[float]]:
    """Return the seconds of a step of each way in each round, with every other round in reverse order.

    A way leaves when it has run for its time; the first one stays until all others have left.
    """
    samples: dict[str, list[float]] = {way: [] for way in ways}
    spent, first = dict.fromkeys(ways, 0.0), next(iter(ways))
    active = list(ways)
    while len(active) > 1 or not samples[first]:
        n_rounds = len(samples[first]) + 1
        for way in active if n_rounds % 2 else active[::-1]:
            seconds, took = timer(ways[way])
            samples[way].append(seconds)
            spent[way] += took
        done = n_rounds >= fewest
        active = [w for w in active if w == first or not (n_rounds == MOST or (done and spent[w] >= SECONDS))]
    return samples


def summary(samples: list[float], reference: Iterable[float], scale: float = 1.0) -> dict[str, Any]:
    """Return the median of the seconds of a way, and of its ratios to the reference in the same round."""
    ratios = [scale * own / other for own, other in zip(samples, reference, strict=False)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"s": median(samples), "rounds": len(samples), "ratio": median(ratios), "quartiles": [low, high]}


def memory(case: Case, framework: str) -> dict[str, int]:
    """Return the bytes that a step of each way takes above inputs and gradients, at its peak."""
    ways = ("ours",) if case.small else case.ways
    if framework == "jax":
        return {way: load(framework).planned_bytes(case, way) for way in ways}
    return {way: _peak_of_way(case, framework, way) for way in ways}


def _peak_of_way(case: Case, framework: str, way: str) -> int:
    build = load(framework).build
    n = min(case.n, 512)
    n_classes = n if "InfoNCE" in case.loss else case.n_classes
    build(replace(case, n=n, n_classes=n_classes), way)()  # what a library keeps from its first use on does not count
    step = build(case, way)
    before = start_of_peak()
    gradients = step()
    return peak() - before - n_bytes(gradients)


def n_bytes(arrays: Any) -> int:
    """Return the bytes of an array, or of nested lists and tuples of them."""
    return sum(map(n_bytes, arrays)) if isinstance(arrays, list | tuple) else int(arrays.nbytes)


def start_of_peak() -> int:
    """Return the resident memory of this process in bytes, and let `peak` begin with it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak() -> int:
    """Return the largest resident memory of this process since `start_of_peak`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
