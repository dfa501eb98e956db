"""Processes of PyTorch that work side by side, for tests of what they do together."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import load

SECONDS = 60
"""How long a process may wait for the others; all of them together may take twice that."""


def results_of(work: Callable[[int, str], None], folder: Path, n_processes: int = 2) -> list[Any]:
    """Call work(rank, folder) in each process, which saves what it finds as RANK.pt there; return what all found."""
    torch = load("torch")
    context = load("torch.multiprocessing").spawn(work, (str(folder),), nprocs=n_processes, join=False)
    give_up = time.monotonic() + 2 * SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < give_up, "the processes do not end"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(n_processes)]
