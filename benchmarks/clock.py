"""What the suites share that take the clock of processes of their own: ways that take turns, and those processes.

Ways of doing the same work take turns, so that whatever slows the machine slows all of them; a ratio is the median of
the ratios of the rounds. One process, limited to one thread, measures its CPU time; another, with two, the wall clock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from statistics import median, quantiles
from tempfile import TemporaryFile
from typing import Any

Step = Callable[[], Any]
Timer = Callable[[Step], tuple[float, float]]

BURST = 0.02
"""Seconds that a way runs at least before the next one has its turn: as in use, its data stays in the cache."""
FEWEST, MOST = 3, 15
SECONDS = 1.0
"""Rounds that a way takes part in: these many, and no more of them once it has run for so long."""
THREAD_VARIABLES = (
    *(f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL")),
    *("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC"),
)


def process(module: str, arguments: Iterable[object], threads: int, **env: str) -> Iterator[str]:
    """Run a module in a process that takes so many threads, and give the lines that it prints as they come.

    If the process fails, the program ends with what it wrote to its standard error.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    env = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | env
    with TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env) as child:
            yield from child.stdout or ()
        if child.returncode != 0:
            errors.seek(0)
            sys.exit(f"{' '.join(command)}\n{errors.read()}")


def keep_to(threads: int) -> None:
    """Keep this process on as many CPUs; before it imports what starts a thread for each."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def timer(threads: int) -> Timer:
    """Return `burst` with the clock that decides: CPU time of one thread, the wall clock of several."""
    return burst(time.process_time if threads == 1 else time.perf_counter)


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


def rounds(ways: dict[str, Step], timer: Timer, *, fewest: int = FEWEST, most: int = MOST) -> dict[str, list[float]]:
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
        active = [w for w in active if w == first or not (n_rounds == most or (done and spent[w] >= SECONDS))]
    return samples


def turns(search: Callable[[Any], Any], queries: Any, batch: int) -> Step:
    """Return a step that searches for the next queries of an array, over and over: then no rows are in the cache."""
    starts = range(0, len(queries), batch)
    parts = cycle([queries.take(range(start, start + batch), axis=0, mode="wrap") for start in starts])
    return lambda: search(next(parts))


def summary(samples: list[float], reference: Iterable[float], scale: float = 1.0) -> dict[str, Any]:
    """Return the median of the seconds of a way, and of its ratios to the reference in the same round."""
    ratios = [scale * own / other for own, other in zip(samples, reference, strict=False)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"s": median(samples), "rounds": len(samples), "ratio": median(ratios), "quartiles": [low, high]}
