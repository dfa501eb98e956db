"""Suite `losses`: forward and backward of every prefix, against a loop over prefixes and one full-width loss.

The bars of the project are ratios to the row `full`. The steps themselves are in `benchmarks.losses`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.losses import CASES, Case, jax_temporary_bytes, step

WAYS = {"full": "one full-width loss", "loop": "loop over prefixes", "ours": "matryoshka"}


def rows() -> list[Any]:
    """Every case in every framework and way; NumPy has no loop for InfoNCE to compare with."""
    return [
        pytest.param(case, framework, way, id=f"{framework}-{way}-{case}")
        for case in CASES
        for framework in ("torch", "jax", "numpy")
        for way in WAYS
        if (framework, case.loss, way) not in {("numpy", "InfoNCE", "loop"), ("numpy", "InfoNCE", "full")}
    ]


@pytest.mark.parametrize(("case", "framework", "way"), rows())
def test_forward_and_backward(benchmark: Any, case: Case, framework: str, way: str) -> None:
    benchmark.group = f"{case}: {framework}"
    benchmark.extra_info |= {
        "row": WAYS[way],
        "reference": way == "full",
        "multiply_adds": case.multiply_adds(way),
        "peak_bytes": memory(case, framework, way),
    }
    run = step(case, framework, way)
    benchmark.pedantic(run, rounds=9 if case.n * case.n_classes < 4_000_000 else 5, warmup_rounds=2)


def memory(case: Case, framework: str, way: str) -> int:
    """Peak memory above the inputs: what the compiler plans for JAX, what the process takes elsewhere."""
    if framework == "jax":
        return jax_temporary_bytes(case, way)
    # A fixed threshold hands freed arrays back to the system, so that the peak is that of live arrays.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.losses", str(CASES.index(case)), framework, way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)
