"""Two processes, each with half of a batch, do what one process does with the whole of it."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cases import N_CLASSES, NESTING
from conftest import load

torch = load("torch")
distributed, multiprocessing = load("torch.distributed"), load("torch.multiprocessing")
modules = load("matryoshka.torch")

if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

N_PROCESSES, N, N_EXTRA, SECONDS = 2, 3, 2, 60
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "symmetric": {"symmetric": True},
    "hard-negatives": {"label_smoothing": 0.1},
    "symmetric-hard-negatives": {"symmetric": True},
}
TRAINED = ("mrl", "mrl-e", "info-nce")


def draw(*shape: int, seed: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(name: str) -> tuple[Any, Any, Any]:
    """Queries, their keys and extra keys: row by row those of the first process, then those of the second."""
    n_extra = N_EXTRA * N_PROCESSES if name.endswith("hard-negatives") else 0
    n = N * N_PROCESSES
    return draw(n, 7, seed=1), draw(n, 7, seed=2), draw(n_extra, 7, seed=3)


def info_nce(name: str, *, gather: bool) -> Any:
    return modules.InfoNCE(NESTING, temperature=0.4, gather=gather, **LOSSES[name])


class Contrastive(torch.nn.Module):
    """An encoder with its loss, as users train it."""

    def __init__(self, *, gather: bool) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(5, 7, dtype=torch.float64)
        self.loss = modules.InfoNCE(
            NESTING, symmetric=True, learnable_temperature=True, gather=gather, dtype=torch.float64
        )

    def forward(self, queries: Any, keys: Any) -> Any:
        return self.loss(self.encoder(queries), self.encoder(keys))


def trained(name: str, rows: slice, wrap: Any) -> list[Any]:
    """Take two steps on some rows of each of two batches; return the parameters."""
    torch.manual_seed(0)
    if name == "info-nce":
        model = Contrastive(gather=wrap is not None)
    else:
        model = modules.MRLHead(NESTING, N_CLASSES, tied=name == "mrl-e", dtype=torch.float64)
    wrapped = model if wrap is None else wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for step in range(2):
        n = N * N_PROCESSES
        if name == "info-nce":
            batch = draw(n, 5, seed=step), draw(n, 5, seed=10 + step)
        else:
            batch = draw(n, 7, seed=step), torch.arange(step, n + step) % N_CLASSES
        optimizer.zero_grad()
        wrapped(*(array[rows] for array in batch)).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def work(rank: int, folder: str) -> None:
    """What each of the processes does: every loss on its rows, and every training on its rows."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=Path(folder, "rendezvous").as_uri(),
        rank=rank,
        world_size=N_PROCESSES,
        timeout=timedelta(seconds=SECONDS),
    )
    results: dict[str, Any] = {}
    for name in LOSSES:
        own = [array.chunk(N_PROCESSES)[rank].clone().requires_grad_() for array in pairs(name)]
        queries, keys, extra = own
        loss, parts = info_nce(name, gather=True)(queries, torch.cat([keys, extra]), return_parts=True)
        results[name] = loss.detach(), parts, *torch.autograd.grad(loss, own)
    rows = slice(rank * N, (rank + 1) * N)
    for name in TRAINED:
        results[name] = trained(name, rows, torch.nn.parallel.DistributedDataParallel)
    torch.save(results, Path(folder, f"{rank}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("distributed")
    context = multiprocessing.spawn(work, (str(folder),), nprocs=N_PROCESSES, join=False)
    give_up = time.monotonic() + 2 * SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < give_up, "the processes do not end"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(N_PROCESSES)]


@pytest.mark.parametrize("name", LOSSES)
def test_gathered_info_nce_is_that_of_the_joined_batch(results: list[dict[str, Any]], name: str) -> None:
    """The mean over processes of losses and parts is; gradients summed over processes are N_PROCESSES times as large.

    DistributedDataParallel averages gradients over processes, so that training sees those of the mean.
    """
    arrays = [array.requires_grad_() for array in pairs(name)]
    queries, keys, extra = arrays
    loss, parts = info_nce(name, gather=False)(queries, torch.cat([keys, extra]), return_parts=True)
    gradients = torch.autograd.grad(loss, arrays)
    losses, all_parts, *slices = zip(*(result[name] for result in results), strict=True)
    assert losses[0] != losses[1]  # each process has its own queries
    torch.testing.assert_close(sum(losses) / N_PROCESSES, loss.detach())
    torch.testing.assert_close(sum(all_parts) / N_PROCESSES, parts)
    for gradient, of_processes in zip(gradients, slices, strict=True):
        torch.testing.assert_close(torch.cat(of_processes) / N_PROCESSES, gradient)


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_parallel_is_training_on_the_joined_batch(results: list[dict[str, Any]], name: str) -> None:
    expected = trained(name, slice(None), None)
    for result in results:
        for parameter, other in zip(result[name], expected, strict=True):
            torch.testing.assert_close(parameter, other)
