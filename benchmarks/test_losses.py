"""Suite `losses`: forward and backward of every prefix, against a loop over prefixes and one full-width loss.

The bars of the project are ratios to the row `full`. The steps themselves are in `benchmarks.losses`. Those of Keras
run in processes of their own, one for each backend.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.losses import CASES, Case, Step, jax_temporary_bytes, step

KERAS = ("keras-tensorflow", "keras-jax", "keras-torch")
WAYS = {"full": "one full-width loss", "loop": "loop over prefixes", "ours": "matryoshka"}


def rows() -> list[Any]:
    """Every case in the frameworks that have it, in every way; NumPy has no loop for InfoNCE to compare with."""
    frameworks = {case: ["torch", "jax", "numpy"] for case in CASES}
    frameworks[CASES[0]] += KERAS
    for case in CASES:
        if case.loss == "InfoNCE" and case.n == 1024:
            frameworks[case].append("sentence-transformers")
    return [
        pytest.param(case, framework, way, id=f"{framework}-{way}-{case}")
        for case in CASES
        for framework in frameworks[case]
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
    }
    rounds = 9 if case.n * case.n_classes < 4_000_000 else 5
    if framework in KERAS:
        with served(case, framework, way) as run:
            benchmark.pedantic(run, rounds=2 * rounds, warmup_rounds=5)
        return
    benchmark.extra_info["peak_bytes"] = memory(case, framework, way)
    benchmark.pedantic(step(case, framework, way), rounds=rounds, warmup_rounds=2)


@contextmanager
def served(case: Case, framework: str, way: str) -> Iterator[Step]:
    """Give a step that runs in a process with the backend of Keras that `framework` names."""
    env = os.environ | {"KERAS_BACKEND": framework.removeprefix("keras-"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "benchmarks.losses", "serve", str(CASES.index(case)), framework, way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def run() -> None:
            requests.write("step\n")
            requests.flush()
            assert answers.readline() == "done\n"

        yield run
        requests.close()
    assert process.returncode == 0


def memory(case: Case, framework: str, way: str) -> int:
    """Peak memory above the inputs: what the compiler plans for JAX, what the process takes elsewhere."""
    if framework == "jax":
        return jax_temporary_bytes(case, way)
    # A fixed threshold hands freed arrays back to the system, so that the peak is that of live arrays.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.losses", "memory", str(CASES.index(case)), framework, way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)
