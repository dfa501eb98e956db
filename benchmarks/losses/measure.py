"""What one process measures of one case in one framework: time in alternating rounds, and peak memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.clock import FEWEST, Step, Timer, rounds, summary, timer
from benchmarks.losses.cases import Case

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
    timed = timer(threads)
    rates = _rates(load(framework), timed)
    ways = steps(case, framework)
    for way, step in ways.items():
        if not case.slow or (case.small and way == "full"):
            step()
    samples = rounds(ways, timed, fewest=1 if case.slow else FEWEST)
    scales = {way: case.multiply_adds("full") / case.multiply_adds(way) if case.small else 1.0 for way in ways}
    found = summaries(samples, scales)
    if rates and case.loss != "cached InfoNCE":  # whose encoder theory leaves out
        for way, entry in found.items():
            counts = {"product": case.multiply_adds(way), "exp": case.exponentials(way)}
            entry["limit_s"] = sum(n / rates[name] for name, n in counts.items())
    return {"clock": "CPU" if threads == 1 else "wall", "threads": threads, "ways": found}


def summaries(samples: dict[str, list[float]], scales: Mapping[str, float] = MappingProxyType({})) -> dict[str, Any]:
    """Return the summary of each way beside one full-width loss, where there is one, and of ours beside the loop."""
    reference = samples.get("full")
    found = {way: summary(taken, reference or taken, scales.get(way, 1.0)) for way, taken in samples.items()}
    if "loop" in samples:
        found["ours"]["faster_than_loop"] = summary(samples["loop"], samples["ours"])["ratio"]
    return found


def _rates(module: Any, timed: Timer) -> dict[str, float]:
    """Return the best multiply-adds and exponentials a second, where the steps of a framework have them."""
    counts = {"product": PRODUCT, "exp": EXPONENTIALS}
    steps = module.rates() if hasattr(module, "rates") else {}
    return {name: counts[name] / min(timed(step)[0] for _ in range(5)) for name, step in steps.items()}


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
