"""What imports cost: processes with cached bytecode, as after pip, each in turn with one that imports NumPy alone."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ALONE = "import numpy"


def cpu_seconds(statement: str, env: dict[str, str]) -> float:
    """Run a statement in a fresh interpreter and return the CPU time of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.benchmark(group="import")
@pytest.mark.parametrize(
    "statement",
    [ALONE, "import matryoshka", "from matryoshka import Corpus, Funnel", "from matryoshka import info_nce"],
)
def test_import(benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], statement: str) -> None:
    """The table shows wall clocks; the ratio of CPU times that counts is printed, and kept in `extra_info`."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    ratios = []

    def run() -> None:
        own = cpu_seconds(statement, env)
        ratios.append(own / cpu_seconds(ALONE, env))

    benchmark.pedantic(run, rounds=30, warmup_rounds=2)
    ratio = statistics.median(ratios[2:])
    benchmark.extra_info.update(
        {"row": f"`{statement}`, then `{ALONE}`", "x CPU time of NumPy's import": round(ratio, 3)}
    )
    with capsys.disabled():
        print(f"\n{statement}: {ratio:.2f} x the CPU time of {ALONE}, as processes (median)")
