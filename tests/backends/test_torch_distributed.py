"""Two processes, each with half of a batch, do what one process does with the whole of it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cases import N_CLASSES, NESTING
from conftest import load
from processes import SECONDS, results_of

torch = load("torch")
distributed = load("torch.distributed")
checkpoint = load("torch.utils.checkpoint").checkpoint
modules = load("matryoshka.torch")

if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

DOCUMENT = Path(__file__).parents[2].joinpath("docs", "distributed.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
FULLY_SHARD = getattr(load("torch.distributed.fsdp"), "fully_shard", None)
NEEDS_FULLY_SHARD = pytest.mark.skipif(FULLY_SHARD is None, reason="this PyTorch has no public fully_shard")
N_PROCESSES, N, N_EXTRA = 2, 3, 2
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "symmetric": {"symmetric": True},
    "hard-negatives": {"label_smoothing": 0.1},
    "symmetric-hard-negatives": {"symmetric": True},
}
KINDS = ("mrl", "mrl-e", "info-nce")
REPLICATED = ("ddp", "ddp-accumulating", "ddp-checkpointed")
SHARDED = ("fsdp", "fsdp-accumulating", "fsdp-checkpointed", "fsdp-by-layers")


def draw(*shape: int, seed: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(name: str) -> tuple[Any, Any, Any]:
    """Queries, their keys and extra keys: row by row those of the first process, then those of the second."""
    n_extra = N_EXTRA * N_PROCESSES if name.endswith("hard-negatives") else 0
    n = N * N_PROCESSES
    return draw(n, 7, seed=1), draw(n, 7, seed=2), draw(n_extra, 7, seed=3)


def info_nce(name: str, *, gather: bool) -> Any:
    return modules.InfoNCE(NESTING, temperature=0.4, gather=gather, **LOSSES[name])


class Model(torch.nn.Module):
    """An encoder with its loss, as users train it."""

    def __init__(self, kind: str, *, gather: bool = True, checkpointed: bool = False) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(5, 7, dtype=torch.float64)
        self.paired, self.checkpointed = kind == "info-nce", checkpointed
        if self.paired:
            options = {"symmetric": True, "learnable_temperature": True, "gather": gather}
            self.loss = modules.InfoNCE(NESTING, **options, dtype=torch.float64)
        else:
            self.loss = modules.MRLHead(NESTING, N_CLASSES, tied=kind == "mrl-e", dtype=torch.float64)

    def forward(self, first: Any, second: Any) -> Any:
        if self.checkpointed:
            return checkpoint(self.embed_and_compare, first, second, use_reentrant=False)
        return self.embed_and_compare(first, second)

    def embed_and_compare(self, first: Any, second: Any) -> Any:
        return self.loss(self.encoder(first), self.encoder(second) if self.paired else second)


def wrapped(model: Any, way: str) -> Any:
    """Distribute a model; under FSDP its encoder and its loss are units of their own, or all linear layers."""
    if way.startswith("ddp"):
        return torch.nn.parallel.DistributedDataParallel(model)
    classifiers = () if model.paired else model.loss.classifiers
    for part in (*classifiers, model) if way.endswith("by-layers") else (model.encoder, model.loss, model):
        FULLY_SHARD(part)
    return model


def without_sync(model: Any, way: str) -> Any:
    """Let a backward pass keep its gradients to itself."""
    if way.startswith("ddp"):
        return model.no_sync()
    model.set_requires_gradient_sync(False)
    return nullcontext()


def full(tensor: Any) -> Any:
    """Return what a tensor holds in all processes together."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def trained(kind: str, way: str, rank: int | None = None) -> list[Any]:
    """Take two steps in a process of the given rank, or alone on the joined batches.

    Return the mean loss of each step, the gradients of the last one, and the parameters.
    """
    torch.manual_seed(0)
    alone, n_batches = rank is None, 2 if way.endswith("accumulating") else 1
    model = Model(kind, gather=not alone, checkpointed=way.endswith("checkpointed"))
    called = model if alone else wrapped(model, way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for step in range(2):
        optimizer.zero_grad()
        for i in range(n_batches):
            n, seed = N * N_PROCESSES, 2 * step + i
            second = draw(n, 5, seed=10 + seed) if kind == "info-nce" else torch.arange(seed, n + seed) % N_CLASSES
            batch = [array if alone else array.chunk(N_PROCESSES)[rank] for array in (draw(n, 5, seed=seed), second)]
            last = i == n_batches - 1
            if last and not alone and way == "fsdp-accumulating":
                called.set_requires_gradient_sync(True)
            with nullcontext() if last or alone else without_sync(called, way):
                loss = called(*batch) / n_batches
                loss.backward()
            losses.append(loss.detach())
        optimizer.step()
    parameters = list(model.parameters())
    return [torch.stack(losses), *(full(parameter.grad) for parameter in parameters), *map(full, parameters)]


def told(name: str, rank: int | None = None) -> list[Any]:
    """Give a mask, targets or hard negatives to a process of the given rank, or to one with the joined batch.

    Return the loss and the gradients in queries, keys and hard negatives.
    """
    n = N * N_PROCESSES
    drawn = [draw(n, 7, seed=1), draw(n, 7, seed=2), draw(n, 2, 7, seed=3)]
    masks = [draw(N, N, seed=4 + i).gt(-0.5) | torch.eye(N, dtype=torch.bool) for i in range(N_PROCESSES)]
    shares = [draw(N, N, seed=6 + i).exp().where(mask, 0.0) for i, mask in enumerate(masks)]
    shares = [share / share.sum(dim=1, keepdim=True) for share in shares]
    if rank is None:
        mask, targets = ~torch.block_diag(*(~mask for mask in masks)).bool(), torch.block_diag(*shares)
    else:
        mask, targets, drawn = masks[rank], shares[rank], [array.chunk(N_PROCESSES)[rank] for array in drawn]
    queries, keys, negatives = (array.clone().requires_grad_() for array in drawn)
    loss = info_nce(name, gather=rank is not None)(
        queries, keys, negatives=negatives, mask=mask, targets=targets if name == "plain" else None
    )
    return [loss.detach(), *torch.autograd.grad(loss, [queries, keys, negatives])]


# What is refused


def outside_forward(kind: str, rank: int) -> None:
    """Call the loss of a sharded model whose forward does not."""
    model = Model(kind)
    FULLY_SHARD(model, reshard_after_forward=True)
    model.loss(draw(N, 7, seed=rank), draw(N, 7, seed=2) if model.paired else torch.arange(N))


def with_a_distributed(name: str, rank: int) -> None:
    arguments = {"embeddings": draw(N, 7, seed=1), "labels": torch.arange(N)}
    mesh = load("torch.distributed.device_mesh").init_device_mesh("cpu", (N_PROCESSES,))
    tensor = load("torch.distributed.tensor")
    arguments[name] = tensor.distribute_tensor(arguments[name], mesh, [tensor.Replicate()])
    modules.MRLHead(NESTING, N_CLASSES, dtype=torch.float64)(*arguments.values())


def with_rows(n_queries: tuple[int, int], n_keys: tuple[int, int], rank: int) -> None:
    """Gather other numbers of rows in each process."""
    modules.InfoNCE(NESTING, gather=True)(draw(n_queries[rank], 7, seed=1), draw(n_keys[rank], 7, seed=2))


def with_targets_both_ways(rank: int) -> None:
    info_nce("symmetric", gather=True)(draw(N, 7, seed=rank), draw(N, 7, seed=2), targets=torch.eye(N))


def differentiated_twice(rank: int) -> None:
    queries, keys = (draw(N, 7, seed=seed).requires_grad_() for seed in (rank, 2))
    gradient, *_ = torch.autograd.grad(info_nce("symmetric", gather=True)(queries, keys), [keys], create_graph=True)
    gradient.sum().backward()


DISTRIBUTED = "must be a plain array, got a DTensor, .* call the module that was sharded, .* or take full_tensor"
REFUSED: dict[str, tuple[Callable[[int], None], str]] = {
    "mrl-outside-forward": (partial(outside_forward, "mrl"), rf"TypeError: `heads\[0\]\[0\]` {DISTRIBUTED}"),
    "mrl-e-outside-forward": (partial(outside_forward, "mrl-e"), f"TypeError: `weight` {DISTRIBUTED}"),
    "info-nce-outside-forward": (partial(outside_forward, "info-nce"), f"TypeError: `log_temperature` {DISTRIBUTED}"),
    "distributed-embeddings": (partial(with_a_distributed, "embeddings"), f"TypeError: `embeddings` {DISTRIBUTED}"),
    "distributed-labels": (partial(with_a_distributed, "labels"), f"TypeError: `labels` {DISTRIBUTED}"),
    "unequal-queries": (
        partial(with_rows, (3, 4), (3, 4)),
        r"ValueError: `queries` must have one shape in all processes, got \(3, 7\) and \(4, 7\); .* drop_last=True",
    ),
    "unequal-keys": (
        partial(with_rows, (3, 3), (3, 4)),
        r"ValueError: `keys` must have one shape in all processes, got \(3, 7\) and \(4, 7\); .* drop_last=True",
    ),
    "fewer-keys": (
        partial(with_rows, (3, 3), (2, 2)),
        "ValueError: `keys` must have a row for each of the 3 queries of its process, got 2; row i is the positive",
    ),
    "targets-both-ways": (with_targets_both_ways, "ValueError: `targets` must be None where `gather` and `symmetric`"),
    "differentiated-twice": (differentiated_twice, "RuntimeError: .* gradients of first order only"),
}


def refusal(attempt: Callable[[int], None], rank: int) -> str:
    try:
        attempt(rank)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


# The processes


def work(rank: int, folder: str) -> None:
    """What each of the processes does: every loss on its rows, every training on its rows, and all that is refused."""
    warnings.filterwarnings("error", category=FutureWarning)  # how PyTorch warns of what it will drop
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=Path(folder, "rendezvous").as_uri(),
        rank=rank,
        world_size=N_PROCESSES,
        timeout=timedelta(seconds=SECONDS),
    )
    results: dict[Any, Any] = {}
    for name in LOSSES:
        for dtype in (torch.float64, torch.bfloat16):
            own = [array.to(dtype).chunk(N_PROCESSES)[rank].clone().requires_grad_() for array in pairs(name)]
            queries, keys, extra = own
            loss, parts = info_nce(name, gather=True)(queries, torch.cat([keys, extra]), return_parts=True)
            results[name, dtype] = loss.detach(), parts, *torch.autograd.grad(loss, own)
    for kind in KINDS:
        for way in REPLICATED if FULLY_SHARD is None else REPLICATED + SHARDED:
            results[kind, way] = trained(kind, way, rank)
    for name, (attempt, _) in REFUSED.items():
        results[name] = None if FULLY_SHARD is None else refusal(attempt, rank)
    results["compiled"] = compiled_and_eager(rank)
    results["told"] = {name: told(name, rank) for name in ("plain", "symmetric")}
    distributed.barrier()
    distributed.destroy_process_group()
    for i, program in enumerate(PROGRAMS):
        results[program] = (
            None if FULLY_SHARD is None and "fully_shard" in program else printed(program, i, rank, folder)
        )
    torch.save(results, Path(folder, f"{rank}.pt"))


def printed(program: str, i: int, rank: int, folder: str) -> str:
    """Run a program as torchrun would, but for how its processes meet; return what it prints."""
    begin = partial(
        distributed.init_process_group,
        init_method=Path(folder, f"rendezvous-{i}").as_uri(),
        rank=rank,
        world_size=N_PROCESSES,
    )
    with mock.patch.object(distributed, "init_process_group", begin), redirect_stdout(io.StringIO()) as text:
        exec(program, {"__name__": "__main__"})
    return text.getvalue()


def compiled_and_eager(rank: int) -> list[list[Any]]:
    """Values and gradients of a loss that gathers, traced as one graph and not."""
    loss = modules.InfoNCE((3, 7), learnable_temperature=True, gather=True, dtype=torch.float64)
    arguments = [draw(N, 7, seed=rank).requires_grad_(), draw(N, 7, seed=5 + rank).requires_grad_()]
    tensors = [*arguments, *loss.parameters()]
    functions = torch.compile(loss, fullgraph=True, backend="eager"), loss
    return [[value.detach(), *torch.autograd.grad(value, tensors)] for value in (f(*arguments) for f in functions)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each process found."""
    return results_of(work, tmp_path_factory.mktemp("distributed"), N_PROCESSES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["f64", "bf16"])
@pytest.mark.parametrize("name", LOSSES)
def test_gathered_info_nce_is_that_of_the_joined_batch(results: list[dict[Any, Any]], name: str, dtype: Any) -> None:
    """The mean over processes of losses and parts is; gradients summed over processes are N_PROCESSES times as large.

    DistributedDataParallel averages gradients over processes, so that training sees those of the mean.
    """
    arrays = [array.to(dtype).requires_grad_() for array in pairs(name)]
    queries, keys, extra = arrays
    loss, parts = info_nce(name, gather=False)(queries, torch.cat([keys, extra]), return_parts=True)
    gradients = torch.autograd.grad(loss, arrays)
    losses, all_parts, *slices = zip(*(result[name, dtype] for result in results), strict=True)
    assert losses[0] != losses[1]  # each process has its own queries
    torch.testing.assert_close(sum(losses) / N_PROCESSES, loss.detach())
    torch.testing.assert_close(sum(all_parts) / N_PROCESSES, parts)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.01}
    for gradient, of_processes in zip(gradients, slices, strict=True):
        torch.testing.assert_close(torch.cat(of_processes) / N_PROCESSES, gradient, **tolerance)


@pytest.mark.parametrize("way", [*REPLICATED, *(pytest.param(way, marks=NEEDS_FULLY_SHARD) for way in SHARDED)])
@pytest.mark.parametrize("kind", KINDS)
def test_training_in_parallel_is_training_on_the_joined_batch(
    results: list[dict[Any, Any]], kind: str, way: str
) -> None:
    """In losses, gradients and parameters."""
    losses, *expected = trained(kind, way)
    own_losses, *tensors = zip(*(result[kind, way] for result in results), strict=True)
    torch.testing.assert_close(sum(own_losses) / N_PROCESSES, losses, rtol=1e-12, atol=1e-12)
    for found, tensor in zip(tensors, expected, strict=True):
        for of_process in found:
            torch.testing.assert_close(of_process, tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "symmetric"])
def test_masks_targets_and_hard_negatives_speak_of_their_own_process(results: list[dict[Any, Any]], name: str) -> None:
    """What others hold is seen and not sought."""
    loss, *gradients = told(name)
    losses, *slices = zip(*(result["told"][name] for result in results), strict=True)
    torch.testing.assert_close(sum(losses) / N_PROCESSES, loss, rtol=1e-12, atol=1e-12)
    for gradient, of_processes in zip(gradients, slices, strict=True):
        torch.testing.assert_close(torch.cat(of_processes) / N_PROCESSES, gradient, rtol=1e-12, atol=1e-12)


@NEEDS_FULLY_SHARD
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_do_in_every_process(results: list[dict[Any, Any]], name: str) -> None:
    for result in results:
        assert re.match(REFUSED[name][1], result[name], flags=re.DOTALL), result[name]


def test_gathering_compiles_to_one_graph(results: list[dict[Any, Any]]) -> None:
    for result in results:
        torch.testing.assert_close(*result["compiled"])


@pytest.mark.parametrize("i", [0, pytest.param(1, marks=NEEDS_FULLY_SHARD)], ids=["ddp", "fsdp"])
def test_the_programs_of_the_documentation_run(results: list[dict[Any, Any]], i: int) -> None:
    """The first process prints what their comments promise."""
    program = PROGRAMS[i]
    promised = re.findall(r"  # prints (.*)$", program, flags=re.MULTILINE)
    assert promised
    assert [result[program].splitlines() for result in results] == [promised, []]
