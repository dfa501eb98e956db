"""The cases on a device, in float32 and bfloat16: `python -m benchmarks.losses gpu`, in some five minutes.

Ways take turns here too. Time is that of CUDA events, memory what PyTorch's allocator gives out at the peak of a step
above inputs and gradients. In bf16, inputs and weights are; with autocast they are too, and PyTorch takes the softmax
of its own losses in float32. JAX takes part if it sees the device. What fails, by its memory or a missing compiler,
is told in its row. Figures and page are written after every row.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import BURST, Step, burst, rounds
from benchmarks.losses import torch_steps
from benchmarks.losses.cases import CASES, LARGEST, Case
from benchmarks.losses.measure import n_bytes, summaries
from benchmarks.losses.torch_steps import Function
from benchmarks.table import lines, measured, setting

NO_MORE_AFTER = 240
"""Seconds after which no row is begun."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.bfloat16}
BOTH = ("float32", "bf16")
COMPILED = ("MRL-E 8…2048, 1,024 × 1,000", "InfoNCE 32…768, 1,024")
JAX = (*COMPILED, "MRL-E 8…2048, 256 × 50,000", "InfoNCE 32…768, 4,096")
INTRODUCTION = """Milliseconds of a step; in parentheses those of its multiply-adds at the rate of a product of two
large matrices of the same dtype, {rates}. Then × one full-width loss, times as fast as a loop over prefixes, and the
memory above inputs and gradients in MB: ours / full / loop. PyTorch multiplies float32 as it does by default, without
TF32. Under autocast it takes the softmax of its own losses in float32, in bf16 that of bf16."""


def run(device: str, divide: int, output: Path) -> None:
    """Measure everything and write bench-losses-gpu.json and losses-gpu.md to the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if device == "cuda" else device
    result = setting(("numpy", "torch", "jax")) | {"card": card, "rates": _rates(device, divide), "rows": []}
    end = time.perf_counter() + NO_MORE_AFTER
    for case, framework, precision in _plan(divide):
        row = {"case": str(case), "framework": framework, "precision": precision, "bar": case.bar}
        if time.perf_counter() > end:
            row["failed"] = "out of time"
        else:
            row |= _row(case, framework, precision, device)
            row["multiply_adds"] = case.multiply_adds("ours")
        result["rows"].append(row)
        print(_cells(row, result["rates"]), flush=True)
        output.joinpath("bench-losses-gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        output.joinpath("losses-gpu.md").write_text(markdown(result), encoding="utf-8")


def _plan(divide: int) -> Iterator[tuple[Case, str, str]]:
    def sized(case: Case) -> Case:
        return replace(case, n=case.n // divide, n_classes=case.n_classes // divide, small=None)

    yield from ((sized(LARGEST), "torch", precision) for precision in ("bf16", "autocast"))
    yield from ((sized(case), "torch", precision) for precision in BOTH for case in CASES)
    for framework, names in (("jax", JAX), ("torch.compile", COMPILED)):
        yield from ((sized(case), framework, precision) for precision in BOTH for case in CASES if str(case) in names)


def _row(case: Case, framework: str, precision: str, device: str) -> dict[str, Any]:
    if framework == "jax":
        return _jax(case, precision, device)
    torch.cuda.empty_cache()
    ways, memory, failed = {}, {}, {}
    for way in case.ways:
        try:
            step = torch_steps.build(case, way, device, DTYPES[precision], _wrap(case, framework, precision, device))
            memory[way] = _memory(step, device)
            ways[way] = step
        except Exception as error:  # of memory, of a compiler that is not there, and what else devices come with
            failed[way] = f"{type(error).__name__}: {error}"
    if "ours" not in ways:
        return {"failed": failed["ours"]}
    samples = rounds(ways, _events if device == "cuda" else burst(time.perf_counter))
    return {"ways": summaries(samples), "memory": memory, "failed_ways": failed}


def _wrap(case: Case, framework: str, precision: str, device: str) -> Callable[[Function], Function]:
    if framework == "torch.compile":
        torch.compiler.reset()
        return lambda loss: torch.compile(loss)
    mixed = precision == "autocast" or (precision == "bf16" and case.loss == "cached InfoNCE")  # has float32 weights
    return lambda loss: torch.autocast(device, torch.bfloat16)(loss) if mixed else loss


def _memory(step: Step, device: str) -> int | None:
    """Return the bytes that a step takes at its peak above inputs and gradients."""
    step()
    if device != "cuda":
        return None
    gradients = n_bytes(step())
    before = torch.cuda.memory_allocated() - gradients  # of the step before, which the next one frees at first
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before - gradients


def _events(step: Step) -> tuple[float, float]:
    """Return the seconds of a step on the device, and the seconds spent to find out."""
    started = time.perf_counter()
    once = _elapsed(step, 1)
    n_steps = max(1, min(100, int(BURST / max(once, 1e-6))))
    return (_elapsed(step, n_steps) if n_steps > 1 else once), time.perf_counter() - started


def _elapsed(step: Step, n_steps: int) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(n_steps):
        step()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / n_steps


def _jax(case: Case, precision: str, device: str) -> dict[str, Any]:
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch holds some of the device
    import jax

    from benchmarks.losses import jax_steps

    if jax.default_backend() != {"cuda": "gpu"}.get(device, device):
        return {"failed": f"JAX sees no {device}"}
    dtype = {"bf16": "bfloat16"}.get(precision, precision)
    memory, ways = {}, {}
    for way in case.ways:
        step, arguments = jax_steps.compiled(case, way, dtype)
        memory[way] = int(step.memory_analysis().temp_size_in_bytes)
        ways[way] = lambda step=step, arguments=arguments: jax.block_until_ready(step(*arguments))
        ways[way]()
    return {"ways": summaries(rounds(ways, burst(time.perf_counter))), "memory": memory}


def _rates(device: str, divide: int) -> dict[str, float]:
    """Return multiply-adds a second of a large product, in each dtype."""
    rates, size = {}, 8192 // divide
    for precision in BOTH:
        a = torch.ones((size, size), device=device, dtype=DTYPES[precision])
        timer = _events if device == "cuda" else burst(time.perf_counter)
        product = {"product": lambda a=a: a @ a}
        product["product"]()
        rates[precision] = size**3 / min(rounds(product, timer)["product"])
    return rates


def markdown(result: dict[str, Any]) -> str:
    """Return the page of a run."""
    rates = ", ".join(f"{2 * rate / 1e12:,.3g} TFLOP/s in {name}" for name, rate in result["rates"].items())
    parts = [measured(result | {"machine": f"{result['card']}, {result['machine']}"}), INTRODUCTION.format(rates=rates)]
    for framework in dict.fromkeys(row["framework"] for row in result["rows"]):
        header = ("work", "", "ms (limit)", "× full", "× as fast", "MB")
        rows = [_cells(row, result["rates"]) for row in result["rows"] if row["framework"] == framework]
        parts += [f"### {framework}", "\n".join(lines(header, rows))]
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any], rates: dict[str, float]) -> list[str]:
    if "failed" in row:
        return [row["case"], row["precision"], _short(row["failed"]), "", "", ""]
    ways, failed = row["ways"], row.get("failed_ways", {})
    limit = row["multiply_adds"] / rates["float32" if row["precision"] == "float32" else "bf16"]
    missed = row["bar"] is not None and ways["ours"]["ratio"] > row["bar"]
    full = _short(failed["full"]) if "full" in failed else f"{ways['ours']['ratio']:.2f}"
    fast = _short(failed["loop"]) if "loop" in failed else f"{ways['ours'].get('faster_than_loop', 0):.1f}"
    memory = [row["memory"].get(way) for way in ("ours", "full", "loop") if way in row["memory"]]
    return [
        row["case"],
        row["precision"],
        f"{1e3 * ways['ours']['s']:.3g} ({1e3 * limit:.2g})",
        f"**{full}**" if missed else full,
        fast if "loop" in ways or "loop" in failed else "",
        " / ".join("–" if n is None else f"{n / 1e6:,.0f}" for n in memory),
    ]


def _short(failed: str) -> str:
    return "out of memory" if "OutOfMemory" in failed else failed.splitlines()[0][:60]
